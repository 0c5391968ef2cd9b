"""Sources that are nets of other libraries, and of the user's own code."""

import inspect
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crosschannel.errors import UserError, foreign
from crosschannel.factories import make
from crosschannel.files import user_path
from crosschannel.hub.convert import import_state
from crosschannel.hub.files import load_state
from crosschannel.hub.formats import FORMATS, IMAGENET
from crosschannel.hub.from_files import Loaded, resized
from crosschannel.hub.sources import Source
from crosschannel.hub.state_dicts import read_state
from crosschannel.models import Backbone, InputSpec, wrap
from crosschannel.models.backbone import Provenance
from crosschannel.models.wrapped import ModuleNet, TimmNet


def torchvision_model(source: Source) -> tuple[nn.Module, InputSpec, str]:
    """A model of torchvision's as its authors built it, what it sees, and which weights it has.

    Raises:
        UserError: no such model, or its weights cannot be had.
    """
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
    return model, resized(source, _torchvision_input(entry.transforms())), weights


def load_torchvision(source: Source, _data: object) -> Loaded:
    import torchvision

    model, input, weights = torchvision_model(source)
    details = {"library": f"torchvision {torchvision.__version__}", "weights": weights}
    format = f"torchvision-{source.name}"  # AlexNet and VGG-16 have the literature's layers, fc6 and fc7 among them
    net = import_state(model.state_dict(), format, source.text).net if format in FORMATS else wrap(model, input).net
    return net, input, Provenance(source.text, details)


def _torchvision_input(transform: Any) -> InputSpec:
    """What a classifier's weights were trained on; nets for anything but classes get ImageNet's usual input."""
    if len(getattr(transform, "crop_size", None) or ()) != 1:
        return IMAGENET
    interpolation, mean, std = transform.interpolation.value, tuple(transform.mean), tuple(transform.std)
    return InputSpec("rgb", transform.crop_size[0], transform.resize_size[0], interpolation, mean, std)


def timm_model(source: Source) -> tuple[nn.Module, InputSpec]:
    """A model of timm's with its classifier, and what it sees.

    Raises:
        UserError: no such model, or its weights cannot be had.
    """
    try:
        import timm
    except ImportError:
        raise UserError("timm nets need timm: pip install 'crosschannel[timm]'") from None
    weights, local = _local_weights(source)
    with foreign(f"timm could not create {source.name!r}"):
        model = timm.create_model(source.name, pretrained=weights is None)
    if local:
        load_state(model, _torch_weights(local), str(local))
    return model, _timm_input(source, model.pretrained_cfg, "rgb")


def _local_weights(source: Source) -> tuple[str | None, Path | None]:
    """The option ``weights``, and the file that it names."""
    weights = source.options.get("weights")
    local = user_path(weights) if weights and weights.lower() != "none" else None
    if local and not local.is_file():
        raise UserError(f"{source.text!r}: no weights file {weights!r}")
    return weights, local


def _timm_input(source: Source, config: dict[str, Any], kind: str) -> InputSpec:
    size = source.integer("size", 0) or config.get("input_size", (3, 224, 224))[-1]
    resize = source.integer("resize", max(size, round(size / config.get("crop_pct", 0.875))))
    mean, std = tuple(config.get("mean", InputSpec.mean)), tuple(config.get("std", InputSpec.std))
    input = InputSpec(kind, size, resize, config.get("interpolation", "bilinear"), mean, std)
    return input.changed(**source.look() | {"size": size, "resize": resize})


def load_timm(source: Source, _data: object) -> Loaded:
    weights, local = _local_weights(source)
    input_kind = source.choice("input", ("rgb", "grey", "lab"), "rgb")
    size = source.integer("size", 0) or None
    net = TimmNet(source.name, 1 if input_kind == "grey" else 3, pretrained=weights is None, image_size=size)
    if local:
        load_state(net.model, _torch_weights(local, drop=net.model.pretrained_cfg.get("classifier")), weights)
    input = _timm_input(source, net.model.pretrained_cfg, input_kind)
    details = {"library": "timm", "weights": weights or net.model.pretrained_cfg.get("hf_hub_id") or "timm"}
    return net, input, Provenance(source.text, details)


def _torch_weights(path: Path, drop: str | None = None) -> dict[str, Tensor]:
    """The state dict of a file, without the module ``drop``."""
    return {k: v for k, v in read_state(path).items() if not (drop and k.startswith(f"{drop}."))}


def load_factory(source: Source, _data: object) -> Loaded:
    """A callable of the user's that returns an nn.Module (RGB, ImageNet's normalisation) or a Backbone."""
    made, details = make(source.name), {}
    if not isinstance(made, nn.Module):
        raise UserError(f"{source.name} returned {type(made).__name__}, not an nn.Module or a Backbone")
    weights, local = _local_weights(source)
    if local:
        load_state(_module_of(made), _torch_weights(local), weights)
        details["weights"] = weights
    if isinstance(made, Backbone):
        if not isinstance(made.input, InputSpec) or not isinstance(made.provenance, Provenance):
            raise UserError(f"{source.name} returned a Backbone without an InputSpec or a Provenance")
        made.provenance.details |= details
        json.dumps(made.provenance.to_dict())  # it is going to be written
        return made.net, made.input.changed(**source.look()), made.provenance
    input = InputSpec(source.choice("input", ("rgb", "grey", "lab"), "rgb"), 224, 256).changed(**source.look())
    return wrap(made, input).net, input, Provenance(source.text, details)


def _module_of(made: nn.Module) -> nn.Module:
    """The user's own module in what a factory returns."""
    made = made.net if isinstance(made, Backbone) else made
    return made.model if isinstance(made, ModuleNet) else made
