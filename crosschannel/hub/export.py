"""Our backbones for other libraries: safetensors, torchvision's, timm's or detectron2's names, ONNX."""

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
class Exported:
    """What is to be said of a file that was written.

    Attributes:
        usage: lines of Python that load it where it lies and use it.
        notes: sentences.
    """

    usage: list[str]
    notes: list[str] = field(default_factory=list)


def how_to_load(source: str, backbone: Backbone) -> list[str]:
    """Lines of Python that load a source of ours."""
    return [
        "import crosschannel",
        "import torch",
        "",
        f"backbone = crosschannel.load_backbone({json.dumps(source)})",
        f"rgb = torch.rand({_shape(3, backbone)})  # pictures in [0, 1]",
        f'maps = backbone(rgb, ["{backbone.layers[-1]}"])  # by layer: (N, C, h, w)',
    ]


def _shape(channels: int, backbone: Backbone) -> str:
    return f"1, {channels}, {backbone.input.size}, {backbone.input.size}"


def to_safetensors(backbone: Backbone, out: Path, write: Writer = atomic_write) -> Exported:
    """One of our own files."""
    if is_factory(spec_of(backbone.net).name):
        raise UserError("a net of your own is loaded from its run folder alone; its weights by its own library")
    save_backbone(out, backbone.net, spec_of(backbone.net), backbone.input, backbone.provenance, write)
    return Exported(how_to_load(out.name, backbone))


def _seen(backbone: Backbone) -> list[str]:
    """A line of Python: a stand-in for what the net sees."""
    input = backbone.input
    known = {"grey": "L - 50 of CIE Lab", "lab": "L - 50, a and b of CIE Lab"}
    words = known.get(input.kind, f"{input.kind}, normalised")
    return [f"x = torch.rand({_shape(input.channels, backbone)})  # {words}"]


def to_torchvision(backbone: Backbone, out: Path, write: Writer = atomic_write) -> Exported:
    """torchvision's names, for VGG-16 (with or without BatchNorm) and AlexNets of torchvision's shape.

    Raises:
        UserError: a net that torchvision has no shape for.
    """
    backbone = without_input_scale(backbone)
    net = backbone.net
    spec = spec_of(net)
    name = _torchvision_format(spec)
    if not name:
        more = [spec.options.variant] if family(spec.name).has_option("variant") else []
        more += ["with BatchNorm"] if spec.options.norm else []
        shape = f"this one is {spec.name}" + (f" ({', '.join(more)})" if more else "")
        raise UserError(
            f"torchvision has no net of this shape: VGG-16 and AlexNets of 64-192-384-256-256 without groups and "
            f"BatchNorm fit, {shape}"
        )
    state: dict[str, Tensor] = {}
    own = net.state_dict()
    for ours, theirs in FORMATS[name].names.items():
        state |= {f"{theirs}.{k.rpartition('.')[2]}": v for k, v in own.items() if k.rpartition(".")[0] == ours}
        if f"{theirs}.running_var" in state:  # torchvision's BatchNorm has a scale and a shift
            state.setdefault(f"{theirs}.weight", torch.ones_like(state[f"{theirs}.running_var"]))
            state.setdefault(f"{theirs}.bias", torch.zeros_like(state[f"{theirs}.running_var"]))
    state = {k: v.flatten(1) if k.startswith("classifier") and v.ndim == 4 else v for k, v in state.items()}
    _save_state(state, out, write)
    model = name.removeprefix("torchvision-")
    usage = [*_imports(out, "torch", "torchvision"), f"model = torchvision.models.{model}()"]
    if spec.in_channels != 3:
        shape = "first.out_channels, first.kernel_size, first.stride, first.padding"
        usage += ["first = model.features[0]", f"model.features[0] = torch.nn.Conv2d({spec.in_channels}, {shape})"]
    usage += [
        f"model.load_state_dict({_reading(out)}, strict=False)  # the classifier is not in it",
        *_seen(backbone),
        "maps = model.eval().features(x)",
    ]
    return Exported(usage)


def _imports(out: Path, *modules: str) -> list[str]:
    """Lines that import what reads a file, and other modules."""
    needed = sorted([*modules, *(["safetensors.torch"] if out.suffix == ".safetensors" else [])])
    return [*(f"import {module}" for module in needed), ""]


def _reading(out: Path) -> str:
    """Python that reads a state dict."""
    name = json.dumps(out.name)
    of_tensors = out.suffix == ".safetensors"
    return f"safetensors.torch.load_file({name})" if of_tensors else f"torch.load({name}, weights_only=True)"


def _torchvision_format(spec: NetSpec) -> str:
    """The format of torchvision's that a net has the shape of; empty for none. Any BatchNorm can be made affine."""
    fitting = (
        name
        for name, format in FORMATS.items()
        if name.startswith("torchvision-")
        and format.net.name == spec.name
        and (format.net.options.variant, format.net.options.norm) == (spec.options.variant, spec.options.norm)
    )
    return next(fitting, "")


def to_timm(backbone: Backbone, out: Path, write: Writer = atomic_write) -> Exported:
    """Write a state dict for ``timm.create_model`` with its ``config.json``, for a timm net or one of
    ``crosschannel.timm``."""
    backbone = without_input_scale(backbone)
    net = backbone.net
    if backbone.timm_name:
        _save_state(net.model.state_dict(), out, write)
        size = "" if backbone.exports_any_size else f", img_size={backbone.input.size}"
        model = f'model = timm.create_model("{backbone.timm_name}", in_chans={net.in_channels}, num_classes=0{size})'
        usage = [*_imports(out, "timm", "torch"), model, f"model.load_state_dict({_reading(out)})"]
        arguments = {"in_chans": net.in_channels} | ({"img_size": backbone.input.size} if size else {})
        copied_keys = {"classifier", "first_conv", "license", "fixed_input_size"}
        overrides = {key: value for key, value in net.model.pretrained_cfg.items() if key in copied_keys}
        overrides["input_size"] = [net.in_channels, backbone.input.size, backbone.input.size]
        if backbone.input.kind != "rgb":  # timm's transforms only make RGB
            overrides |= {"mean": [0.0] * net.in_channels, "std": [1.0] * net.in_channels}
        notes = write_config(out, backbone, backbone.timm_name.partition(".")[0], arguments, overrides, write)
        return Exported([*usage, *_seen(backbone), "features = model.eval()(x)"], notes)
    spec = spec_of(net)
    if not is_registered(spec):
        raise UserError("crosschannel.timm registers no net of this shape; export it as safetensors")
    _save_state(net.state_dict(), out, write)
    row, options = family(spec.name), spec.options
    is_default = options.geometry == "probe" and options.fc  # without fc layers both geometries exist
    needs_geometry = row.has_option("geometry") and not is_default
    arguments: dict[str, object] = {"geometry": options.geometry} if needs_geometry else {}
    arguments |= {} if options.norm else {"norm": False}
    arguments |= {"fc_width": options.fc} if options.fc != row.fc else {}
    extra = "".join(f", {key}={json.dumps(value) if key == 'geometry' else value}" for key, value in arguments.items())
    file, architecture = json.dumps(out.name), f"crosschannel_{spec.name}"
    overrides = {"mean": [0.0] * 3, "std": [1.0] * 3, "classifier": "fc", "first_conv": f"net.{row.first}"}
    notes = write_config(out, backbone, architecture, arguments, overrides, write)
    made = f'timm.create_model("{architecture}", num_classes=0, checkpoint_path={file}{extra})'
    rgb = f"rgb = torch.rand({_shape(3, backbone)})  # pictures in [0, 1]"
    usage = ["import timm", "import torch", "", "import crosschannel.timm  # registers the net", "", f"model = {made}"]
    return Exported([*usage, rgb, "maps = model.eval().forward_features(rgb)"], notes)


def _save_state(state: dict[str, Tensor], out: Path, write: Writer) -> None:
    with write(out) as part:
        if out.suffix == ".safetensors":
            write_tensors(part, state)
        else:
            with part.open("wb") as file:
                torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)


class _Maps(nn.Module):
    """RGB → a tuple of maps, as ONNX has it."""

    def __init__(self, backbone: Backbone, layers: Sequence[str]):
        super().__init__()
        self.backbone, self.layers = backbone, tuple(layers)

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        found = self.backbone(rgb, self.layers)
        return tuple(found[layer] for layer in self.layers)


def _with_floor_pools(module: nn.Module) -> nn.Module:
    """A copy whose pools (of stride 1 or 2) round down, on inputs with one more row and column of -inf: the same
    numbers, in terms that an exporter can follow for any size."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d) and child.ceil_mode:
                child.ceil_mode = False
                if child.stride > 1:
                    setattr(parent, name, nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), child))
    return module


def to_onnx(backbone: Backbone, out: Path, write: Writer = atomic_write, layers: Sequence[str] = ()) -> Exported:
    """ONNX: RGB in [0, 1], (N, 3, H, W) of any N, H, W → the maps by layer, checked with onnxruntime.

    Raises:
        UserError: onnx is not installed, or the exported net does not give the same numbers.
    """
    layers = tuple(layers) or backbone.default_layers
    if backbone.uses_hooks:
        raise UserError("a net that is read by hooks cannot become ONNX; export it with its own library")
    any_size = backbone.exports_any_size
    names = [layer.replace(".", "_") for layer in layers]
    rgb = torch.rand(2, 3, backbone.input.size, backbone.input.size, generator=torch.Generator().manual_seed(0))
    _write_onnx(_Maps(backbone, layers), "rgb", rgb, names, any_size, out, write)
    shape = _shape(3, backbone)
    usage = [*_running(out), f'rgb = np.random.rand({shape}).astype("float32")  # pictures in [0, 1]']
    usage.append('maps = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"rgb": rgb})))')
    return Exported(usage, [f"input rgb: float32 in [0, 1]; outputs {', '.join(layers)}; checked with onnxruntime"])


def _running(out: Path) -> list[str]:
    """Lines of Python that open an ONNX file."""
    return [
        "import numpy as np",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({json.dumps(out.name)})",
    ]


class Decoded(nn.Module):
    """Lightness → what is predicted of it: the distribution over ab bins, where there is one, and ab."""

    def __init__(self, colorizer: Colorizer):
        super().__init__()
        self.net, self.task, self.decoder = colorizer.net, colorizer.task, colorizer.decoder

    def forward(self, lightness: Tensor) -> tuple[Tensor, ...]:
        grey = lab_to_rgb(torch.cat((lightness, torch.zeros_like(lightness), torch.zeros_like(lightness)), 1))
        sees_lightness = self.task.input.kind == "grey"
        outputs = self.net(lightness - 50 if sees_lightness else self.task.inputs(grey))
        stride = self.task.stride
        ab = self.decoder.to_ab(self.decoder.to_maps(outputs), grey[:, :, ::stride, ::stride])
        distribution = self.decoder.distribution(outputs)
        return (ab,) if distribution is None else (distribution, ab)


def colorizer_to_onnx(colorizer: Colorizer, out: Path, write: Writer = atomic_write) -> Exported:
    """ONNX: L in 0..100, (N, 1, H, W) of any N, H, W → the distribution over 313 ab bins, where the net predicts one,
    and ab, of every ``stride``-th pixel; checked with onnxruntime.

    Raises:
        UserError: onnx is not installed, or the exported net does not give the same numbers.
    """
    task, decoded = colorizer.task, Decoded(colorizer).eval()
    lightness = 100 * torch.rand(2, 1, colorizer.size, colorizer.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        names = ["distribution", "ab"][-len(decoded(lightness)) :]
    _write_onnx(decoded, "lightness", lightness, names, colorizer.exports_any_size, out, write)
    temperature = colorizer.decoder.temperature
    how = "" if temperature is None else f", ab at the temperature {temperature:g}"
    shape = f"1, 1, {colorizer.size}, {colorizer.size}"
    usage = [*_running(out), f'lightness = 100 * np.random.rand({shape}).astype("float32")  # L of CIE Lab']
    usage.append(f'{", ".join(names)}{"," * (len(names) == 1)} = session.run(None, {{"lightness": lightness}})')
    note = (
        f"input lightness: float32, L in 0..100, best at a short side of {colorizer.size}; outputs {', '.join(names)} "
        f"of one pixel in {task.stride} down and across{how}; checked with onnxruntime"
    )
    return Exported(usage, [note])


def _write_onnx(
    module: nn.Module, input: str, example: Tensor, outputs: Sequence[str], any_size: bool, out: Path, write: Writer
) -> None:
    """Export a module of one input, and check it with onnxruntime on batches and sizes other than the exported one.

    Raises:
        UserError: onnx is not installed, torch cannot export it, or the numbers are others.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (the exporter's)
    except ImportError:
        raise UserError("ONNX needs more: pip install 'crosschannel[onnx]'") from None
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
        raise UserError(f"onnx and onnxscript do not fit torch {torch.__version__} ({error}); {hint}") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"torch cannot export this net: {str(error).splitlines()[0]}") from error
    with write(out) as part:
        program.save(str(part), external_data=False)
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        channels, side = example.shape[1:3]
        sizes = [(2, side, side), (1, side, side), *([(3, side + 32, side + 64)] if any_size else [])]
        for count, height, width in sizes:
            shape = (count, channels, height, width)
            x = example.max() * torch.rand(shape, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                expected = module(x)
            for name, ours, theirs in zip(outputs, expected, session.run(None, {input: x.numpy()}), strict=True):
                error = float((torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max().clamp(min=1e-12))
                if error > 1e-4:
                    raise UserError(
                        f"onnxruntime gives other numbers for {name}: they differ by {error:.1e} of the largest"
                    )


def to_detectron2(backbone: Backbone, out: Path, write: Writer = atomic_write) -> Exported:
    """Weights for a detector of detectron2's whose config names a source of this shape: the backbone's up to the map
    that regions are pooled from, and what stands above it as its region head. BatchNorm is absorbed, where it can be.

    Raises:
        UserError: a net without a map, or of the user's code.
    """
    backbone = absorbed(trainable_copy(without_input_scale(backbone)))  # as a detector takes it
    plan = plan_regions(backbone)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in backbone.state_dict().items():
        tensors[_in_detectron2(name, backbone, plan.parts)] = tensor.detach().cpu().contiguous().numpy()
    content = {"model": tensors, "__author__": "crosschannel", "matching_heuristics": False}
    with write(out) as part, part.open("wb") as file:
        pickle.dump(content, file)
    usage = [
        "from detectron2.checkpoint import DetectionCheckpointer",
        "from detectron2.config import get_cfg",
        "from detectron2.modeling import build_model",
        "",
        "import crosschannel",
        "from crosschannel.detectron2 import add_crosschannel_config, pixel_mean",
        "",
        f'source = "{_of_the_shape(backbone)}"  # of its shape; the weights come from the file',
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
    return Exported(usage)


def _of_the_shape(backbone: Backbone) -> str:
    """A source that anybody has, of a backbone's shape."""
    net, input = backbone.net, backbone.input
    if backbone.timm_name:
        return f"timm:{backbone.timm_name},weights=none,size={input.size}"
    spec = find_spec(net)
    if spec is None or spec.name not in FAMILIES or spec.options.fc7:
        return backbone.provenance.source
    norm, own = str(spec.options.norm).lower(), asdict(spec.options)
    options = [f"input={input.kind}", f"norm={norm}", f"size={input.size}", f"resize={input.resize}"]
    options += [f"{key}={own[key]}" for key in ("fc", "geometry", "variant") if key in own]
    return f"random:{spec.name},{','.join(options)}"


def _in_detectron2(name: str, backbone: Backbone, parts: Sequence[str]) -> str:
    """What a tensor of a backbone is called in a detector of detectron2's."""
    for number, part in enumerate(parts):
        module = backbone.get_module(part)
        place = next(place for place, found in backbone.named_modules() if found is module)
        if name.startswith(f"{place}."):
            return f"roi_heads.box_head.parts.{number}.{name.removeprefix(f'{place}.')}"
    return f"backbone.source.{name}"


EXPORTERS: dict[str, Callable[[Backbone, Path, Writer], Exported]] = {
    "safetensors": to_safetensors,
    "torchvision": to_torchvision,
    "timm": to_timm,
    "onnx": to_onnx,
    "detectron2": to_detectron2,
}
