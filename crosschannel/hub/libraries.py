"""Load sources that are models of torchvision or timm, or user-defined factories."""

import contextlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.factories import call_factory
from crosschannel.files import user_path
from crosschannel.hub.convert import import_state
from crosschannel.hub.formats import FORMATS, IMAGENET
from crosschannel.hub.from_files import LoadedNet, resize_input
from crosschannel.hub.library_weights import from_file, load_weights
from crosschannel.hub.network import downloading, downloading_from_hub
from crosschannel.hub.sources import Source, has_weights_file
from crosschannel.hub.state_dicts import Checkpoint, read_checkpoint
from crosschannel.models import Backbone, InputSpec, wrap
from crosschannel.models.backbone import Provenance
from crosschannel.models.timm_net import TimmNet, check_timm_name


@dataclass
class LibraryModel:
    """A model of another library.

    Attributes:
        model: the model, with its classifier.
        input: input specification of the model.
        details: provenance details.
        missing: modules of the head without weights in the file, replaced by identities.
    """

    model: nn.Module
    input: InputSpec
    details: dict[str, Any]
    missing: Sequence[str] = ()


def torchvision_model(source: Source) -> LibraryModel:
    """Build a torchvision model with its classifier; a weights file may lack the head or have a different one.

    Raises:
        UserError: the model does not exist, or its weights cannot be loaded.
    """
    import torchvision

    if source.name not in torchvision.models.list_models():
        raise UserError(f"torchvision has no model {source.name!r}")
    available = torchvision.models.get_model_weights(source.name)
    weights = source.options.get("weights", "DEFAULT")
    entry = available.__members__.get(weights.rpartition(".")[2], available.DEFAULT)
    input = _torchvision_input(entry.transforms())
    details = {"library": f"torchvision {torchvision.__version__}", "weights": weights}
    if has_weights_file(source) and (weights_path := _local_weights(source)):
        checkpoint = read_checkpoint(weights_path)
        input, details["preprocessing"] = _stored_input(source, checkpoint, input, f"torchvision's {entry.name}")
        if source.untrained:
            return LibraryModel(_torchvision_net(source.name), input, details)
        model, loaded_weights = from_file(
            partial(_torchvision_net, source.name), checkpoint, source.options.get("key", "")
        )
        return LibraryModel(model, input, details | loaded_weights.details, loaded_weights.missing)
    _refuse_key(source)
    input, details["preprocessing"] = resize_input(source, input), f"torchvision's {entry.name}"
    if source.untrained or weights.lower() == "none":
        return LibraryModel(_torchvision_net(source.name), input, details)
    if weights != "DEFAULT" and weights.rpartition(".")[2] not in available.__members__:
        names = ", ".join(available.__members__)
        raise UserError(f"{source.text!r}: weights {weights!r} are neither a file nor one of torchvision's: {names}")
    is_cached = (Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]).is_file()
    with (
        contextlib.nullcontext() if is_cached else downloading(entry.url, source.text),
        wrap_external_errors(f"torchvision could not load weights {weights!r} of {source.name}"),
    ):
        return LibraryModel(torchvision.models.get_model(source.name, weights=weights), input, details)


def _torchvision_net(name: str, **options: object) -> nn.Module:
    """Build a torchvision net without pretrained weights."""
    import torchvision

    builder = inspect.signature(torchvision.models.get_model_builder(name))
    options |= {key: None for key in ("weights", "weights_backbone") if key in builder.parameters}
    with wrap_external_errors(f"torchvision could not build {name}"):
        return torchvision.models.get_model(name, **options)


def load_torchvision(source: Source, _data: object) -> LoadedNet:
    """Load a torchvision model as a backbone."""
    library_model = torchvision_model(source)
    provenance = Provenance(source.text, library_model.details)
    format = f"torchvision-{source.name}"  # AlexNet and VGG-16 are converted to our nets, with layers up to fc7
    if format in FORMATS:
        return import_state(library_model.model.state_dict(), format, source.text).net, library_model.input, provenance
    net = wrap(library_model.model, library_model.input).net
    heads = {name.partition(".")[0] for name in library_model.missing}
    removed_heads = [name for name in net.layers if name in heads and not list(net.get_module(name).parameters())]
    net.exclude_layers(
        {name: f"layer {name!r} has no weights in {source.options['weights']}" for name in removed_heads}
    )
    return net, library_model.input, provenance


def _torchvision_input(transform: Any) -> InputSpec:
    """Return the input on which a classifier was trained, or the usual ImageNet input for other models."""
    if len(getattr(transform, "crop_size", None) or ()) != 1:
        return IMAGENET
    interpolation, mean, std = transform.interpolation.value, tuple(transform.mean), tuple(transform.std)
    return InputSpec("rgb", transform.crop_size[0], transform.resize_size[0], interpolation, mean, std)


def timm_model(source: Source) -> LibraryModel:
    """Build a timm model with its classifier; a weights file determines the number of classes.

    Raises:
        UserError: the model does not exist, or its weights cannot be loaded.
    """
    check_timm_name(source.name)
    import timm

    weights_path = _local_weights(source)

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        with wrap_external_errors(f"timm could not create {source.name!r}"):
            return timm.create_model(source.name, pretrained=pretrained, **options)

    details = {"library": "timm", "weights": source.options.get("weights", "timm")}
    if weights_path:
        checkpoint = read_checkpoint(weights_path)
        model, loaded_weights = from_file(build, checkpoint, source.options.get("key", ""))
        return LibraryModel(model, _timm_input(source, model, checkpoint)[0], details, loaded_weights.missing)
    _refuse_key(source)
    with _timm_download(source) as pretrained:
        model = build(pretrained)
    return LibraryModel(model, _timm_input(source, model)[0], details)


@contextlib.contextmanager
def _timm_download(source: Source) -> Iterator[bool]:
    """Yield whether to load timm's pretrained weights; if the Hub is unreachable, timm only uses its cache."""
    pretrained = "weights" not in source.options and not source.untrained
    with downloading_from_hub(source.text) if pretrained else contextlib.nullcontext():
        yield pretrained


def _refuse_key(source: Source) -> None:
    """Raise a UserError if a source without a weights file has the option ``key``."""
    if "key" in source.options:
        raise UserError(f"{source.text!r}: key= selects a net in a weights file, but weights= does not name a file")


def _local_weights(source: Source) -> Path | None:
    """Return the path in the option ``weights``; None without one, or if the net is untrained and has no such file."""
    weights = source.options.get("weights", "none")
    path = None if weights.lower() == "none" else user_path(weights)
    if path and not path.is_file() and source.untrained:
        return None
    if path and not path.is_file():
        raise UserError(f"{source.text!r}: no weights file {weights!r}")
    return path


def _stored_input(source: Source, checkpoint: Checkpoint, default: InputSpec, origin: str) -> tuple[InputSpec, str]:
    """Return the input stored with a checkpoint, or the default if none is stored, and its origin."""
    if checkpoint.config and checkpoint.config.get("architecture") in (None, source.name.partition(".")[0]):
        return _parse_input(source, checkpoint.config, default.kind, checkpoint.config_origin), checkpoint.config_origin
    return resize_input(source, default), f"{origin}, since {checkpoint.path.name} has none"


def _parse_input(source: Source, config: Mapping[str, Any], kind: str, origin: str) -> InputSpec:
    """Convert a timm config to an input specification."""
    try:
        size = source.options.get("size", 0) or int((config.get("input_size") or (3, 224, 224))[-1])
        resize = source.options.get(
            "resize", max(size, math.floor(size / (config.get("crop_pct") or 0.875)))
        )  # as timm
        mean, std = tuple(config.get("mean") or InputSpec.mean), tuple(config.get("std") or InputSpec.std)
        input = InputSpec(kind, size, resize, config.get("interpolation") or "bilinear", mean, std)
        return input.changed(**source.input_options() | {"size": size, "resize": resize})
    except (UserError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{source.text!r}: {origin} is not a valid input specification: {error}") from None


def _timm_input(source: Source, model: nn.Module, checkpoint: Checkpoint | None = None) -> tuple[InputSpec, str]:
    """Return the input of a timm model and its origin."""
    config = model.pretrained_cfg
    default = "" if "." in source.name else "default "
    origin = f"timm's {default}tag {config.get('tag')}" if config.get("tag") else "timm's default"
    kind = source.choice("input", ("rgb", "grey", "lab"), "rgb")
    input = _parse_input(source, config, kind, origin)
    return _stored_input(source, checkpoint, input, origin) if checkpoint else (input, origin)


def load_timm(source: Source, _data: object) -> LoadedNet:
    """Load a timm model as a backbone."""
    weights_path, size = _local_weights(source), source.options.get("size", 0) or None
    check_timm_name(source.name)
    kind = source.choice("input", ("rgb", "grey", "lab"), "rgb")
    with _timm_download(source) as pretrained:
        net = TimmNet(source.name, 1 if kind == "grey" else 3, pretrained)
    config = net.model.pretrained_cfg
    details = {"library": "timm", "weights": source.options.get("weights") or config.get("hf_hub_id") or "timm"}
    checkpoint = read_checkpoint(weights_path) if weights_path else _refuse_key(source)
    if checkpoint and not source.untrained:
        if not _has_same_positions(net.model, checkpoint):
            net.set_image_size(size)  # assume that the stored net was trained at this size
        classifiers = config.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        heads = {name.partition(".")[0] for name in classifiers}
        details |= load_weights(net.model, checkpoint, source.options.get("key", ""), heads).details
    net.set_image_size(size)
    input, details["preprocessing"] = _timm_input(source, net.model, checkpoint)
    return net, input, Provenance(source.text, details)


def _has_same_positions(model: nn.Module, checkpoint: Checkpoint) -> bool:
    """Whether the position embeddings of a model and a checkpoint have the same shape."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name.endswith("pos_embed")}
    stored = [(name, tensor.shape) for name, tensor in checkpoint.tensors.items() if name.endswith("pos_embed")]
    return all(shape == shapes[key] for name, shape in stored for key in shapes if name.endswith(key))


def load_factory(source: Source, _data: object) -> LoadedNet:
    """Load the result of a user-defined factory: a Backbone, or an nn.Module for RGB with ImageNet's normalisation."""
    module, details = call_factory(source.name), {}
    if not isinstance(module, nn.Module):
        raise UserError(f"{source.name} returned {type(module).__name__}, not an nn.Module or a Backbone")
    weights_path = _local_weights(source)
    checkpoint = read_checkpoint(weights_path) if weights_path else _refuse_key(source)
    if checkpoint and not source.untrained:
        loaded_weights = load_weights(_unwrap(module), checkpoint, source.options.get("key", ""))
        details |= {"weights": source.options["weights"], **loaded_weights.details}
    if isinstance(module, Backbone):
        if not isinstance(module.input, InputSpec) or not isinstance(module.provenance, Provenance):
            raise UserError(f"{source.name} returned a Backbone without an InputSpec or a Provenance")
        module.provenance.details |= details
        json.dumps(module.provenance.to_dict())  # raises an error if the provenance cannot be stored
        return module.net, module.input.changed(**source.input_options()), module.provenance
    input = replace(IMAGENET, kind=source.choice("input", ("rgb", "grey", "lab"), "rgb")).changed(
        **source.input_options()
    )
    details["preprocessing"] = "the default for user-defined nets"
    if checkpoint:
        input, details["preprocessing"] = _stored_input(source, checkpoint, input, details["preprocessing"])
    return wrap(module, input).net, input, Provenance(source.text, details)


def _unwrap(module: nn.Module) -> nn.Module:
    """Return the user's module that a Backbone wraps; return any other module unchanged."""
    return module.wrapped_module if isinstance(module, Backbone) else module
