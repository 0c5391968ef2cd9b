"""Export backbones: safetensors, weights for torchvision, timm or detectron2, and ONNX."""

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.color import lab_to_rgb
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.errors import UserError
from crosschannel.factories import is_factory
from crosschannel.files import Writer, atomic_write
from crosschannel.hub.files import save_backbone, write_tensors
from crosschannel.hub.formats import FORMATS
from crosschannel.hub.timm_config import write_config
from crosschannel.models import FAMILIES, Backbone, NetSpec, family, spec_of
from crosschannel.models.adapt import absorbed, trainable_copy, without_input_scale
from crosschannel.models.nets import find_spec, is_registered
from crosschannel.models.regions import plan_regions


@dataclass
class ExportedFile:
    """Usage example and notes for an exported file.

    Attributes:
        usage: lines of Python that load the file from the working directory and run the net.
        notes: remarks for the user.
    """

    usage: list[str]
    notes: list[str] = field(default_factory=list)


def how_to_load(source: str, backbone: Backbone) -> list[str]:
    """Return lines of Python that load a source and run the backbone."""
    return [
        "import crosschannel",
        "import torch",
        "",
        f"backbone = crosschannel.load_backbone({json.dumps(source)})",
        f"rgb = torch.rand({_shape(3, backbone)})  # RGB images in [0, 1]",
        f'maps = backbone(rgb, ["{backbone.layers[-1]}"])  # dict of layer name → (N, C, h, w)',
    ]


def _shape(channels: int, backbone: Backbone) -> str:
    """Format the shape of a batch of one image."""
    return f"1, {channels}, {backbone.input.size}, {backbone.input.size}"


def to_safetensors(backbone: Backbone, out: Path, write: Writer = atomic_write) -> ExportedFile:
    """Write a crosschannel weights file.

    Raises:
        UserError: a user-defined net.
    """
    if is_factory(spec_of(backbone.net).name):
        raise UserError(
            "a user-defined net cannot be exported, since it loads only from its run folder; save its weights with "
            "your own code"
        )
    save_backbone(out, backbone.net, spec_of(backbone.net), backbone.input, backbone.provenance, write)
    return ExportedFile(how_to_load(out.name, backbone))


def _random_input(backbone: Backbone) -> list[str]:
    """Return a line of Python that creates a random preprocessed input."""
    input = backbone.input
    descriptions = {"grey": "L - 50 of CIE Lab", "lab": "L - 50, a and b of CIE Lab"}
    description = descriptions.get(input.kind, f"normalised {input.kind}")
    return [f"x = torch.rand({_shape(input.channels, backbone)})  # {description}"]


def to_torchvision(backbone: Backbone, out: Path, write: Writer = atomic_write) -> ExportedFile:
    """Write a state dict for torchvision's VGG-16 (with or without BatchNorm) or AlexNet.

    Raises:
        UserError: torchvision has no net with this architecture.
    """
    backbone = without_input_scale(backbone)
    net = backbone.net
    spec = spec_of(net)
    name = _torchvision_format(spec)
    if not name:
        features = [spec.options.variant] if family(spec.name).has_option("variant") else []
        features += ["with BatchNorm"] if spec.options.norm else []
        architecture = f"not {spec.name}" + (f" ({', '.join(features)})" if features else "")
        raise UserError(
            "torchvision has no such net: only VGG-16 and AlexNet (64-192-384-256-256, without groups or BatchNorm) "
            f"can be exported, {architecture}"
        )
    state: dict[str, Tensor] = {}
    tensors = net.state_dict()
    for module, stored_name in FORMATS[name].names.items():
        state |= {
            f"{stored_name}.{k.rpartition('.')[2]}": v for k, v in tensors.items() if k.rpartition(".")[0] == module
        }
        if f"{stored_name}.running_var" in state:  # BatchNorm is always affine in torchvision
            state.setdefault(f"{stored_name}.weight", torch.ones_like(state[f"{stored_name}.running_var"]))
            state.setdefault(f"{stored_name}.bias", torch.zeros_like(state[f"{stored_name}.running_var"]))
    state = {k: v.flatten(1) if k.startswith("classifier") and v.ndim == 4 else v for k, v in state.items()}
    _save_state(state, out, write)
    model = name.removeprefix("torchvision-")
    usage = [*_imports(out, "torch", "torchvision"), f"model = torchvision.models.{model}()"]
    if spec.in_channels != 3:
        shape = "first.out_channels, first.kernel_size, first.stride, first.padding"
        usage += ["first = model.features[0]", f"model.features[0] = torch.nn.Conv2d({spec.in_channels}, {shape})"]
    usage += [
        f"model.load_state_dict({_load_call(out)}, strict=False)  # the file has no classifier",
        *_random_input(backbone),
        "maps = model.eval().features(x)",
    ]
    return ExportedFile(usage)


def _imports(out: Path, *modules: str) -> list[str]:
    """Return lines that import the modules, and safetensors if the file requires it."""
    names = sorted([*modules, *(["safetensors.torch"] if out.suffix == ".safetensors" else [])])
    return [*(f"import {module}" for module in names), ""]


def _load_call(out: Path) -> str:
    """Return the Python expression that reads a state dict."""
    name = json.dumps(out.name)
    is_safetensors = out.suffix == ".safetensors"
    return f"safetensors.torch.load_file({name})" if is_safetensors else f"torch.load({name}, weights_only=True)"


def _torchvision_format(spec: NetSpec) -> str:
    """Return the torchvision format of a net, with or without affine BatchNorm; empty if there is none."""
    matches = (
        name
        for name, format in FORMATS.items()
        if name.startswith("torchvision-")
        and format.net.name == spec.name
        and (format.net.options.variant, format.net.options.norm) == (spec.options.variant, spec.options.norm)
    )
    return next(matches, "")


def to_timm(backbone: Backbone, out: Path, write: Writer = atomic_write) -> ExportedFile:
    """Write a state dict and ``config.json`` for ``timm.create_model``.

    The model is the timm net of the backbone, or a net that ``crosschannel.timm`` registers.

    Raises:
        UserError: neither timm nor ``crosschannel.timm`` has the net.
    """
    backbone = without_input_scale(backbone)
    net = backbone.net
    if backbone.timm_name:
        _save_state(net.model.state_dict(), out, write)
        size = "" if backbone.exports_any_size else f", img_size={backbone.input.size}"
        model = f'model = timm.create_model("{backbone.timm_name}", in_chans={net.in_channels}, num_classes=0{size})'
        usage = [*_imports(out, "timm", "torch"), model, f"model.load_state_dict({_load_call(out)})"]
        arguments = {"in_chans": net.in_channels} | ({"img_size": backbone.input.size} if size else {})
        copied_keys = {"classifier", "first_conv", "license", "fixed_input_size"}
        overrides = {key: value for key, value in net.model.pretrained_cfg.items() if key in copied_keys}
        overrides["input_size"] = [net.in_channels, backbone.input.size, backbone.input.size]
        if backbone.input.kind != "rgb":  # timm's transforms produce only RGB
            overrides |= {"mean": [0.0] * net.in_channels, "std": [1.0] * net.in_channels}
        notes = write_config(out, backbone, backbone.timm_name.partition(".")[0], arguments, overrides, write)
        return ExportedFile([*usage, *_random_input(backbone), "features = model.eval()(x)"], notes)
    spec = spec_of(net)
    if not is_registered(spec):
        raise UserError("crosschannel.timm does not register this architecture; use --format safetensors")
    _save_state(net.state_dict(), out, write)
    net_family, options = family(spec.name), spec.options
    is_default = options.geometry == "probe" and options.fc  # nets without fc layers can have either geometry
    needs_geometry = net_family.has_option("geometry") and not is_default
    arguments: dict[str, object] = {"geometry": options.geometry} if needs_geometry else {}
    arguments |= {} if options.norm else {"norm": False}
    arguments |= {"fc_width": options.fc} if options.fc != net_family.fc else {}
    extra_arguments = "".join(
        f", {key}={json.dumps(value) if key == 'geometry' else value}" for key, value in arguments.items()
    )
    file, architecture = json.dumps(out.name), f"crosschannel_{spec.name}"
    overrides = {"mean": [0.0] * 3, "std": [1.0] * 3, "classifier": "fc", "first_conv": f"net.{net_family.first}"}
    notes = write_config(out, backbone, architecture, arguments, overrides, write)
    call = f'timm.create_model("{architecture}", num_classes=0, checkpoint_path={file}{extra_arguments})'
    rgb = f"rgb = torch.rand({_shape(3, backbone)})  # RGB images in [0, 1]"
    usage = ["import timm", "import torch", "", "import crosschannel.timm  # registers the net", "", f"model = {call}"]
    return ExportedFile([*usage, rgb, "maps = model.eval().forward_features(rgb)"], notes)


def _save_state(state: dict[str, Tensor], out: Path, write: Writer) -> None:
    """Write a state dict as safetensors or with ``torch.save``, depending on the suffix."""
    with write(out) as partial_file:
        if out.suffix == ".safetensors":
            write_tensors(partial_file, state)
        else:
            with partial_file.open("wb") as file:
                torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)


class _MapExtractor(nn.Module):
    """Backbone that returns a tuple of feature maps, since ONNX outputs are a sequence."""

    def __init__(self, backbone: Backbone, layers: Sequence[str]):
        super().__init__()
        self.backbone, self.layers = backbone, tuple(layers)

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(rgb, self.layers)
        return tuple(maps[layer] for layer in self.layers)


def _with_floor_pools(module: nn.Module) -> nn.Module:
    """Return an equivalent copy whose pooling rounds sizes down instead of up, so that it can be exported for any size.

    Pools with stride 2 get an extra row and column of -inf; with stride 1, rounding makes no difference.
    """
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d) and child.ceil_mode:
                child.ceil_mode = False
                if child.stride > 1:
                    setattr(parent, name, nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), child))
    return module


def to_onnx(backbone: Backbone, out: Path, write: Writer = atomic_write, layers: Sequence[str] = ()) -> ExportedFile:
    """Write an ONNX model of a backbone and verify it with onnxruntime.

    The model maps RGB in [0, 1], (N, 3, H, W), to one feature map per layer. N, H and W are dynamic, but H and W are
    fixed for nets with a fixed input size.

    Args:
        backbone: the backbone.
        out: output file.
        write: opens the output file.
        layers: layers to output; default: the backbone's default layers.

    Raises:
        UserError: onnx is not installed, the net cannot be exported, or the outputs of the exported model differ.
    """
    layers = tuple(layers) or backbone.default_layers
    if backbone.uses_hooks:
        raise UserError("a net whose features are read by hooks cannot be exported to ONNX; use the net's own library")
    any_size = backbone.exports_any_size
    names = [layer.replace(".", "_") for layer in layers]
    rgb = torch.rand(2, 3, backbone.input.size, backbone.input.size, generator=torch.Generator().manual_seed(0))
    _write_onnx(_MapExtractor(backbone, layers), "rgb", rgb, names, any_size, out, write)
    shape = _shape(3, backbone)
    usage = [*_onnx_session(out), f'rgb = np.random.rand({shape}).astype("float32")  # RGB images in [0, 1]']
    usage.append('maps = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"rgb": rgb})))')
    return ExportedFile(
        usage, [f"input: rgb, float32 in [0, 1]; outputs: {', '.join(layers)}; verified with onnxruntime"]
    )


def _onnx_session(out: Path) -> list[str]:
    """Return lines of Python that open an ONNX file."""
    return [
        "import numpy as np",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({json.dumps(out.name)})",
    ]


class Decoded(nn.Module):
    """Net that maps lightness to predicted ab and, if the task predicts it, the distribution over ab bins."""

    def __init__(self, colorizer: Colorizer):
        super().__init__()
        self.net, self.task, self.decoder = colorizer.net, colorizer.task, colorizer.decoder

    def forward(self, lightness: Tensor) -> tuple[Tensor, ...]:
        grey = lab_to_rgb(torch.cat((lightness, torch.zeros_like(lightness), torch.zeros_like(lightness)), 1))
        is_lightness_input = self.task.input.kind == "grey"
        outputs = self.net(lightness - 50 if is_lightness_input else self.task.inputs(grey))
        stride = self.task.stride
        ab = self.decoder.to_ab(self.decoder.to_maps(outputs), grey[:, :, ::stride, ::stride])
        distribution = self.decoder.distribution(outputs)
        return (ab,) if distribution is None else (distribution, ab)


def colorizer_to_onnx(colorizer: Colorizer, out: Path, write: Writer = atomic_write) -> ExportedFile:
    """Write an ONNX model of a colorizer and verify it with onnxruntime.

    The model maps L in 0..100, (N, 1, H, W), to ab at every ``stride``-th pixel and, if the task predicts it, the
    distribution over the 313 ab bins. N, H and W are dynamic, but H and W are fixed for nets with a fixed input size.

    Raises:
        UserError: onnx is not installed, the net cannot be exported, or the outputs of the exported model differ.
    """
    task, decoded = colorizer.task, Decoded(colorizer).eval()
    lightness = 100 * torch.rand(2, 1, colorizer.size, colorizer.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        names = ["distribution", "ab"][-len(decoded(lightness)) :]
    _write_onnx(decoded, "lightness", lightness, names, colorizer.exports_any_size, out, write)
    temperature = colorizer.decoder.temperature
    decoding = "" if temperature is None else f", ab decoded at temperature {temperature:g}"
    shape = f"1, 1, {colorizer.size}, {colorizer.size}"
    usage = [*_onnx_session(out), f'lightness = 100 * np.random.rand({shape}).astype("float32")  # L of CIE Lab']
    usage.append(f'{", ".join(names)}{"," * (len(names) == 1)} = session.run(None, {{"lightness": lightness}})')
    note = (
        f"input: lightness, float32 in 0..100, ideally with a short side of {colorizer.size} px; outputs: "
        f"{', '.join(names)} with a stride of {task.stride} px{decoding}; verified with onnxruntime"
    )
    return ExportedFile(usage, [note])


def _write_onnx(
    module: nn.Module, input: str, example: Tensor, outputs: Sequence[str], any_size: bool, out: Path, write: Writer
) -> None:
    """Export a module with one input, and verify it with onnxruntime at several batch and image sizes.

    Args:
        module: module to export.
        input: name of the input.
        example: example batch (N, C, S, S).
        outputs: names of the outputs.
        any_size: whether the image size is dynamic, in addition to the batch size.
        out: output file.
        write: opens the output file.

    Raises:
        UserError: onnx is not installed, torch cannot export the module, or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (required by torch.onnx.export)
    except ImportError:
        raise UserError("ONNX export requires more packages: pip install 'crosschannel[onnx]'") from None
    module = module.eval()
    dynamic = dict.fromkeys([0, 2, 3] if any_size else [0], torch.export.Dim.DYNAMIC)
    try:
        program = torch.onnx.export(
            _with_floor_pools(module),
            (example,),
            input_names=[input],
            output_names=list(outputs),
            dynamic_shapes=(dynamic,),
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        hint = "update them: pip install -U 'crosschannel[onnx]'"
        raise UserError(
            f"onnx and onnxscript are incompatible with torch {torch.__version__} ({error}); {hint}"
        ) from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"torch could not export this net: {str(error).splitlines()[0]}") from error
    with write(out) as partial_file:
        program.save(str(partial_file), external_data=False)
        session = onnxruntime.InferenceSession(str(partial_file), providers=["CPUExecutionProvider"])
        channels, side = example.shape[1:3]
        sizes = [(2, side, side), (1, side, side), *([(3, side + 32, side + 64)] if any_size else [])]
        for count, height, width in sizes:
            shape = (count, channels, height, width)
            x = example.max() * torch.rand(shape, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                expected = module(x)
            for name, value, actual in zip(outputs, expected, session.run(None, {input: x.numpy()}), strict=True):
                error = float((torch.from_numpy(actual) - value).abs().max() / value.abs().max().clamp(min=1e-12))
                if error > 1e-4:
                    raise UserError(
                        f"the exported {name} differs in onnxruntime by {error:.1e} of the largest absolute value"
                    )


def to_detectron2(backbone: Backbone, out: Path, write: Writer = atomic_write) -> ExportedFile:
    """Write weights for a detectron2 detector built from the same architecture (see :mod:`crosschannel.detectron2`).

    The layers up to the map from which regions are pooled become the backbone, and the layers above it the box head.
    BatchNorm is absorbed if possible.

    Raises:
        UserError: the net has no feature maps.
    """
    backbone = absorbed(trainable_copy(without_input_scale(backbone)))  # like crosschannel.detectron2
    plan = plan_regions(backbone)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in backbone.state_dict().items():
        tensors[_detectron2_name(name, backbone, plan.parts)] = tensor.detach().cpu().contiguous().numpy()
    content = {"model": tensors, "__author__": "crosschannel", "matching_heuristics": False}
    with write(out) as partial_file, partial_file.open("wb") as file:
        pickle.dump(content, file)
    usage = [
        "from detectron2.checkpoint import DetectionCheckpointer",
        "from detectron2.config import get_cfg",
        "from detectron2.modeling import build_model",
        "",
        "import crosschannel",
        "from crosschannel.detectron2 import add_crosschannel_config, pixel_mean",
        "",
        f'source = "{_public_equivalent(backbone)}"  # same architecture; the weights are loaded below',
        "cfg = get_cfg()",
        "add_crosschannel_config(cfg)",
        'cfg.MODEL.CROSSCHANNEL.SOURCE, cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = source, "cpu", "RGB"',
        'cfg.MODEL.BACKBONE.NAME = "build_crosschannel_backbone"',
        'cfg.MODEL.ROI_HEADS.NAME = "CrosschannelROIHeads"',
        f'cfg.MODEL.RPN.IN_FEATURES = ["{plan.layer}"]',
        "cfg.MODEL.PIXEL_MEAN = pixel_mean(crosschannel.load_backbone(source))",
        "cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]",
        "detector = build_model(cfg)",
        f'DetectionCheckpointer(detector).load("{out.name}")',
    ]
    return ExportedFile(usage)


def _public_equivalent(backbone: Backbone) -> str:
    """Return a publicly available source with the same architecture, or the backbone's own source if there is none."""
    net, input = backbone.net, backbone.input
    if backbone.timm_name:
        return f"timm:{backbone.timm_name},weights=none,size={input.size}"
    spec = find_spec(net)
    if spec is None or spec.name not in FAMILIES or spec.options.fc7:
        return backbone.provenance.source
    norm, values = str(spec.options.norm).lower(), asdict(spec.options)
    options = [f"input={input.kind}", f"norm={norm}", f"size={input.size}", f"resize={input.resize}"]
    options += [f"{key}={values[key]}" for key in ("fc", "geometry", "variant") if key in values]
    return f"random:{spec.name},{','.join(options)}"


def _detectron2_name(name: str, backbone: Backbone, head_layers: Sequence[str]) -> str:
    """Return the name of a backbone's tensor in a detectron2 detector.

    Args:
        name: name of the tensor in the backbone.
        backbone: the backbone.
        head_layers: layers that become the box head.
    """
    for index, layer in enumerate(head_layers):
        module = backbone.get_module(layer)
        prefix = next(path for path, submodule in backbone.named_modules() if submodule is module)
        if name.startswith(f"{prefix}."):
            return f"roi_heads.box_head.parts.{index}.{name.removeprefix(f'{prefix}.')}"
    return f"backbone.source.{name}"


EXPORTERS: dict[str, Callable[[Backbone, Path, Writer], ExportedFile]] = {
    "safetensors": to_safetensors,
    "torchvision": to_torchvision,
    "timm": to_timm,
    "onnx": to_onnx,
    "detectron2": to_detectron2,
}
