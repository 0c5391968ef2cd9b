"""load_backbone and load_colorizer: a source string → a module that is ready to use."""

import contextlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosschannel.data import CropConfig, CropStream, crop_loader, open_images
from crosschannel.errors import UserError, foreign
from crosschannel.files import user_path
from crosschannel.hub import zoo
from crosschannel.hub.convert import WEIGHTS, import_state, import_weights, read_state
from crosschannel.hub.files import is_ours, load_state, read_weights
from crosschannel.hub.formats import FORMATS, IMAGENET
from crosschannel.hub.huggingface import fetch_repository
from crosschannel.hub.sources import OPTIONS, Source, parse_source, working_folder_importable
from crosschannel.keys import check_config
from crosschannel.models import NET_NAMES, AlexNet, Backbone, InputSpec, NetSpec, build_net, build_pretext, widen_to_lab
from crosschannel.models import initialisation as init
from crosschannel.models.backbone import Provenance
from crosschannel.models.build import classic_fc
from crosschannel.models.colorizer import Colorizer
from crosschannel.models.wrapped import ModuleNet, TimmNet
from crosschannel.objectives import ObjectiveConfig, build_objective


def load_backbone(
    source: str,
    layers: Sequence[str] | None = None,
    frozen: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    data: str | None = None,
) -> Backbone:
    """Load a backbone.

    Args:
        source: a run folder, a weights file (ours or somebody else's), ``random:``, ``gaussian:``, ``kmeans:``,
            ``torchvision:``, ``timm:``, ``zoo:``, ``hf-hub:`` or ``package.module:factory``; see
            :mod:`crosschannel.hub.sources`.
        layers: what ``features`` gives when it is not told; default all.
        frozen: eval mode and no gradients; else training mode, with gradients.
        device, dtype: of the weights.
        data: images from which a fresh net's statistics or k-means filters are taken, where the source does not
            name them; default ``builtin:sample``.

    Returns:
        a :class:`~crosschannel.models.Backbone`.

    Raises:
        UserError: no such source, a file that does not hold a backbone, an unknown layer.
    """
    parsed = _fetched(parse_source(source))
    of_others = parsed.kind == "factory" or (parsed.kind == "random" and parse_source(parsed.name).kind == "factory")
    grad = torch.is_grad_enabled()
    with foreign(f"{source!r} cannot be made") if of_others else contextlib.nullcontext():
        with torch.random.fork_rng(devices=[]):  # nets are made with random weights before they get theirs
            net, input, provenance = _LOADERS[parsed.kind](parsed, data)
        torch.set_grad_enabled(grad)  # whatever a factory has done
        provenance.source = source
        backbone = Backbone(net, input, layers, provenance).to(device, dtype)
        odd = [
            name for name in backbone.layers if not isinstance(name, str) or not name.isprintable() or len(name) > 200
        ]
        if odd:
            raise UserError(f"{source!r} has a layer that cannot be called so: {str(odd[0])[:80]!r}")
        return backbone.eval().requires_grad_(False) if frozen else backbone.train()


def load_colorizer(source: str, device: str | torch.device = "cpu") -> Colorizer:
    """Load a net that colours pictures: a run folder, a ``colorizer.safetensors``, ``zoo:eccv16`` or ``hf-hub:``.

    Raises:
        UserError: no such source, or a file that holds a backbone only.
    """
    parsed = _fetched(parse_source(source))
    if parsed.kind != "path":
        raise UserError(f"{source!r} has no colorization head; give a run folder or a colorizer.safetensors file")
    path = _weights_path(parsed, "colorizer.safetensors")
    if not is_ours(path):
        colorizer = _imported_colorizer(path, source)
        return colorizer.to(device).eval().requires_grad_(False)
    state, meta = read_weights(path)
    if meta.objective is None:
        raise UserError(f"{source} holds a backbone without its colorization head; give its run folder")
    objective, native = (
        build_objective(replace(meta.objective, prior="imagenet-256", lam=0.5)),
        state.pop("native", None),
    )
    if native is not None and (
        native.shape != (2, 313) or not native.is_floating_point() or not native.abs().max() < 1e3
    ):
        raise UserError(f"{source} holds a decode that is none: (2, 313) ab values")
    net = build_pretext(meta.net, objective.outputs, meta.input.size)
    load_state(net, state, source)
    provenance = Provenance(source, meta.provenance.details)
    colorizer = Colorizer(net, objective, meta.input.resize, meta.temperature, provenance, native)
    return colorizer.to(device).eval().requires_grad_(False)


def has_head(source: str) -> bool:
    """Whether a source holds a colorization head besides its backbone: whether :func:`load_colorizer` takes it.

    Raises:
        UserError: no such source, or a damaged file.
    """
    parsed = _fetched(parse_source(source))
    if parsed.kind != "path":
        return False
    path = user_path(parsed.name)
    if path.is_dir():
        return (path / "colorizer.safetensors").exists()
    path = _weights_path(parsed, "")
    return read_weights(path)[1].objective is not None if is_ours(path) else import_weights(path).has_head


def _imported_colorizer(path: Path, source: str) -> Colorizer:
    found = import_weights(path)
    if not found.has_head:
        raise UserError(f"{source} holds a backbone without a colorization head ({found.format})")
    provenance, objective = Provenance(source, {"format": found.format}), build_objective(ObjectiveConfig())
    return Colorizer(found.net, objective, found.input.resize, found.temperature, provenance, found.native)


Loaded = tuple[nn.Module, InputSpec, Provenance]


def _weights_path(source: Source, name: str) -> Path:
    path = user_path(source.name)
    if path.is_dir():
        if not (path / name).is_file():
            is_run = (path / "config.yaml").is_file()
            hint = "the run has not finished; start it again to go on" if is_run else "it is not a run folder"
            raise UserError(f"{path} has no {name}: {hint}")
        return path / name
    if not path.exists():
        raise UserError(f"no source {source.text!r}: neither a file or run folder nor a known kind")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    if path.suffix not in WEIGHTS:
        raise UserError(f"{path} is not a run folder or a weights file ({', '.join(WEIGHTS)})")
    return path


def _fetched(source: Source) -> Source:
    """Weights that are somewhere else as a path on this machine."""
    if source.kind == "zoo":
        path = zoo.fetch(source.name)
        return replace(source, kind="path", name=str(path), licence=zoo.ZOO[source.name].licence)
    if source.kind == "hf-hub":
        return replace(source, kind="path", name=str(fetch_repository(source.name)))
    return source


def _load_path(source: Source, _data: str | None) -> Loaded:
    path = _weights_path(source, "backbone.safetensors")
    if not is_ours(path):
        return _load_imported(path, source)
    state, meta = read_weights(path)
    if meta.objective is not None:
        state = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}
    spec, input = _for_transfer(source, meta.net, meta.input)
    net = build_net(spec, input.size)
    load_state(net, state, source.name)
    if source.options.get("input", input.kind) != input.kind:
        source.choice("input", ("grey", "lab") if input.kind == "grey" else (input.kind,), input.kind)
        net, input = widen_to_lab(net), replace(input, kind="lab")
    return net, input, Provenance(source.text, meta.provenance.details)


def _load_imported(path: Path, source: Source) -> Loaded:
    """Somebody else's file; ``input=lab`` says what three channels of a caffemodel are."""
    kind = source.options.get("input") and source.choice("input", ("grey", "lab", "rgb"), "rgb")
    found = import_weights(path, input=kind)
    spec, input = _for_transfer(source, found.spec, found.input)
    net = found.backbone()
    if isinstance(net, AlexNet):
        net.set_geometry(spec.geometry)
    details = {"format": found.format, "file": path.name} | ({"licence": source.licence} if source.licence else {})
    return net, input, Provenance(source.text, details)


def _for_transfer(source: Source, spec: NetSpec, input: InputSpec) -> tuple[NetSpec, InputSpec]:
    """Geometry and input as the source asks for them.

    Else an AlexNet with fc6 is the net of the transfer protocols, at 227 px whatever it was pretrained on; a trunk
    stays as it was trained.
    """
    geometry = source.choice("geometry", ("probe", "padded"), "probe" if spec.fc else spec.geometry)
    if spec.name == "alexnet" and spec.variant == "crosschannel" and spec.fc and geometry == "probe":
        input = replace(input, size=227, resize=256)
    return replace(spec, geometry=geometry), _resized(source, input)


def _resized(source: Source, input: InputSpec) -> InputSpec:
    """The input with the source's own ``size`` and ``resize``."""
    size = source.integer("size", input.size)
    return replace(input, size=size, resize=source.integer("resize", max(size, input.resize)))


def _fresh(source: Source, norm: bool) -> tuple[nn.Module, InputSpec, int]:
    """An untrained net, its input and its seed: of a name, or the twin of a trained one."""
    seed = source.integer("seed", 0)
    inner = _fetched(parse_source(source.name))
    if inner.kind in ("timm", "torchvision", "factory") and source.kind != "gaussian":
        return *_fresh_elsewhere(source, inner, seed), seed
    if source.name not in NET_NAMES and inner.kind == "path" and user_path(inner.name).exists():
        path = _weights_path(inner, "backbone.safetensors")
        if is_ours(path):
            meta = read_weights(path)[1]
            spec, input = meta.net, meta.input
        else:
            found = import_weights(path)
            spec, input = found.spec, found.input
    else:
        spec = NetSpec(source.name, norm=norm, fc=classic_fc(source.name), geometry="probe")
        input = InputSpec("grey", 227 if source.name == "alexnet" else 224)
    if source.kind == "gaussian" and spec.name not in NET_NAMES:
        raise UserError(f"{source.text!r}: gaussian is for {', '.join(NET_NAMES)} and files of theirs")
    input = replace(input, kind=source.choice("input", ("grey", "lab", "rgb", "sobel"), input.kind))
    if "fc" in source.options and spec.name not in ("alexnet", "vgg16"):
        raise UserError(f"{source.text!r}: {spec.name} has no fully connected layers")
    spec = replace(
        spec,
        in_channels=input.channels,
        norm=source.kind != "gaussian" and source.choice("norm", ("true", "false"), str(spec.norm).lower()) == "true",
        fc=source.integer("fc", spec.fc),
        fc7=0 if "fc" in source.options else spec.fc7,
        variant=source.options.get("variant", spec.variant),
    )
    spec, input = _for_transfer(source, spec, input)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(spec, input.size)
        if not isinstance(net, TimmNet):  # timm's nets have their own
            init.gaussian(net, ones=init.CAFFENET_ONES if source.kind == "gaussian" else ())
    return net, input, seed


def _fresh_elsewhere(source: Source, inner: Source, seed: int) -> tuple[nn.Module, InputSpec]:
    """A net of another library with the initial weights that its authors gave it."""
    unknown = sorted(source.options.keys() - OPTIONS[inner.kind] - {"seed", "data"})
    if unknown:
        raise UserError(f"{source.text!r}: no option {unknown[0]!r} for a net of {inner.kind}")
    options = {key: value for key, value in source.options.items() if key in OPTIONS[inner.kind]}
    if "weights" in OPTIONS[inner.kind]:
        options["weights"] = "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, input, _ = _LOADERS[inner.kind](Source(inner.kind, inner.name, source.text, options), None)
        if inner.kind == "factory":  # it may have loaded weights
            for module in net.modules():
                if hasattr(module, "reset_parameters"):
                    with foreign(f"{source.text!r}: its {type(module).__name__} cannot be initialised anew"):
                        module.reset_parameters()
                elif next(module.parameters(recurse=False), None) is not None:
                    what = type(module).__name__
                    raise UserError(f"{source.text!r}: its {what} has no reset_parameters, to be initialised anew")
    return net, input


def _load_random(source: Source, data: str | None) -> Loaded:
    net, input, seed = _fresh(source, norm=True)
    details = {"initialisation": "random", "seed": seed}
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
        images = source.options.get("data") or data or "builtin:sample"
        with _crops_fit(source, input):
            init.estimate_batchnorm(net, real_batches(images, input, seed=seed))
        details["statistics"] = images
    return net, input, Provenance(source.text, details)


@contextlib.contextmanager
def _crops_fit(source: Source, input: InputSpec) -> Iterator[None]:
    """A net that cannot take crops of its input's size says so in one sentence."""
    with foreign(f"{source.text!r} cannot take crops of {input.size} px"):
        yield


def _load_gaussian(source: Source, _data: str | None) -> Loaded:
    """The "Gaussian" row of the literature's tables: a net without BatchNorm, with CaffeNet's initial biases."""
    net, input, seed = _fresh(source, norm=False)
    return net, input, Provenance(source.text, {"initialisation": "gaussian", "seed": seed})


def _load_kmeans(source: Source, data: str | None) -> Loaded:
    net, input, seed = _fresh(source, norm=False)
    images = source.options.get("data") or data or "builtin:sample"
    with _crops_fit(source, input):
        init.kmeans(net, real_batches(images, input, batch=80, seed=seed), seed, skip=())
    return net.eval(), input, Provenance(source.text, {"initialisation": "k-means", "seed": seed, "images": images})


def real_batches(data: str, input: InputSpec, count: int = 10, batch: int = 16, seed: int = 0) -> list[Tensor]:
    """Preprocessed training batches for data-dependent initial values."""
    images, _ = open_images(data)
    stream = CropStream(images, CropConfig(input.size, max(input.size, input.resize)), seed)
    return [input.preprocess(b.images) for b in crop_loader(stream, 0, count * batch, batch)]


def _load_torchvision(source: Source, _data: str | None) -> Loaded:
    import torchvision

    if source.name not in torchvision.models.list_models():
        raise UserError(f"torchvision has no model {source.name!r}")
    weights = source.options.get("weights", "DEFAULT")
    local = user_path(weights)
    options: dict[str, object] = {"weights": weights}
    if weights.lower() == "none" or local.is_file():
        builder = inspect.signature(torchvision.models.get_model_builder(source.name))
        options = {key: None for key in ("weights", "weights_backbone") if key in builder.parameters}
    with foreign(f"torchvision's weights {weights!r} of {source.name} cannot be had"):
        model = torchvision.models.get_model(source.name, **options)
    if local.is_file():
        load_state(model, _torch_weights(local), str(local))
    known = torchvision.models.get_model_weights(source.name)
    entry = known.__members__.get(weights.rpartition(".")[2], known.DEFAULT)
    input = _resized(source, _torchvision_input(entry.transforms()))
    details = {"library": f"torchvision {torchvision.__version__}", "weights": weights}
    format = f"torchvision-{source.name}"  # AlexNet and VGG-16 have the literature's layers, fc6 and fc7 among them
    net = import_state(model.state_dict(), format, source.text).net if format in FORMATS else ModuleNet(model)
    return net, input, Provenance(source.text, details)


def _torchvision_input(transform: Any) -> InputSpec:
    """What a classifier's weights were trained on; nets for anything but classes get ImageNet's usual input."""
    if len(getattr(transform, "crop_size", None) or ()) != 1:
        return IMAGENET
    interpolation, mean, std = transform.interpolation.value, tuple(transform.mean), tuple(transform.std)
    return InputSpec("rgb", transform.crop_size[0], transform.resize_size[0], interpolation, mean, std)


def _load_timm(source: Source, _data: str | None) -> Loaded:
    weights = source.options.get("weights")
    local = user_path(weights) if weights else None
    if local and weights.lower() != "none" and not local.is_file():
        raise UserError(f"{source.text!r}: no weights file {weights!r}")
    input_kind = source.choice("input", ("rgb", "grey", "lab"), "rgb")
    size = source.integer("size", 0) or None
    net = TimmNet(source.name, 1 if input_kind == "grey" else 3, pretrained=weights is None, image_size=size)
    if local and local.is_file():
        load_state(net.model, _torch_weights(local, drop=net.model.pretrained_cfg.get("classifier")), weights)
    config = net.model.pretrained_cfg
    size = size or config.get("input_size", (3, 224, 224))[-1]
    resize = source.integer("resize", round(size / config.get("crop_pct", 0.875)))
    mean, std = tuple(config.get("mean", InputSpec.mean)), tuple(config.get("std", InputSpec.std))
    input = InputSpec(input_kind, size, resize, config.get("interpolation", "bilinear"), mean, std)
    details = {"library": "timm", "weights": weights or net.model.pretrained_cfg.get("hf_hub_id") or "timm"}
    return net, input, Provenance(source.text, details)


def _torch_weights(path: Path, drop: str | None = None) -> dict[str, Tensor]:
    """The state dict of a file, without the module ``drop``."""
    return {k: v for k, v in read_state(path).items() if not (drop and k.startswith(f"{drop}."))}


def _load_factory(source: Source, _data: str | None) -> Loaded:
    """A callable of the user's that returns an nn.Module (RGB, ImageNet's normalisation) or a Backbone."""
    module_name, _, attribute = source.name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{source.name!r}: {module_name} is a module of Python's own; name one of yours")
    with foreign(f"cannot import {source.name!r}"), working_folder_importable():
        factory = getattr(importlib.import_module(module_name), attribute)
    with foreign(f"{source.name}() failed"):
        made = factory()
    if isinstance(made, Backbone):
        if not isinstance(made.input, InputSpec) or not isinstance(made.provenance, Provenance):
            raise UserError(f"{source.name} returned a Backbone without an InputSpec or a Provenance")
        check_config(made.input)
        json.dumps(made.provenance.to_dict())  # it is going to be written
        return made.net, made.input, made.provenance
    if not isinstance(made, nn.Module):
        raise UserError(f"{source.name} returned {type(made).__name__}, not an nn.Module or a Backbone")
    kind = source.choice("input", ("rgb", "grey", "lab"), "rgb")
    size = source.integer("size", 224)
    input = InputSpec(kind, size, source.integer("resize", max(size, 256)))
    net = made if hasattr(made, "forward_features") and hasattr(made, "layers") else ModuleNet(made)
    return net, input, Provenance(source.text, {})


_LOADERS = {
    "path": _load_path,
    "random": _load_random,
    "gaussian": _load_gaussian,
    "kmeans": _load_kmeans,
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "factory": _load_factory,
}

__all__ = ["has_head", "load_backbone", "load_colorizer", "real_batches"]
