"""Sources that are untrained nets: the baselines."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crosschannel.data import CropConfig, ImageSet, Stream, TrainingCrops, load_batches, open_images
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.factories import is_factory
from crosschannel.files import user_path
from crosschannel.hub.convert import import_weights
from crosschannel.hub.files import is_ours
from crosschannel.hub.from_files import Loaded, apply_source_options, fetch_weights, read_ours, weights_path
from crosschannel.hub.sources import KINDS, Source, parse_source
from crosschannel.models import FAMILIES, InputSpec, NetSpec, build_net, family
from crosschannel.models import initialisation as init
from crosschannel.models.backbone import Provenance


def _fresh(source: Source, norm: bool) -> tuple[nn.Module, InputSpec, dict[str, Any]]:
    """Build an untrained net by name, or the untrained twin of a trained net, with its input and provenance details."""
    seed = source.options.get("seed", 0)
    inner = fetch_weights(parse_source(source.name))
    if KINDS[inner.kind].is_library and source.kind != "gaussian":
        return _fresh_elsewhere(source, inner, seed)
    if source.name not in FAMILIES and inner.kind == "path" and user_path(inner.name).exists():
        path = weights_path(inner, "backbone.safetensors")
        if is_ours(path):
            meta = read_ours(path, inner)[1]
            spec, input = meta.net, meta.input
        else:
            found = import_weights(path, key=source.options.get("key", ""))
            spec, input = found.spec, found.input
    elif source.kind == "gaussian" and source.name not in FAMILIES:
        raise UserError(f"{source.text!r}: gaussian is for {', '.join(FAMILIES)} and files of theirs")
    else:
        row = family(source.name)
        spec = NetSpec(source.name, **row.supported_options(norm=norm, fc=row.fc, geometry="probe"))
        input = InputSpec("grey", row.size)
    if source.kind == "gaussian" and spec.name not in FAMILIES:
        raise UserError(f"{source.text!r}: gaussian is for {', '.join(FAMILIES)} and files of theirs")
    if "input" in source.options:
        input = replace(input, kind=source.choice("input", ("grey", "lab", "rgb", "sobel"), input.kind))
    if "fc" in source.options and not family(spec.name).has_option("fc"):
        raise UserError(f"{source.text!r}: {spec.name} has no fully connected layers")
    options = spec.options
    changes = {
        "norm": source.kind != "gaussian" and source.options.get("norm", options.norm),
        "fc": source.options.get("fc", options.fc),
        "fc7": 0 if "fc" in source.options else options.fc7,
        "variant": source.options.get("variant", options.variant),
    }
    spec = spec.replace(input.channels, **family(spec.name).supported_options(**changes))
    spec, input = apply_source_options(source, spec, input)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        other = dict(build_net(spec, input.size).named_parameters()) if is_factory(spec.name) else {}
        torch.manual_seed(seed)
        net = build_net(spec, input.size)
        if is_factory(spec.name):
            _begin_anew(net, other, source)
        if spec.name in FAMILIES:  # timm's nets have their own
            init.gaussian(net, ones=init.CAFFENET_ONES if source.kind == "gaussian" else ())
    return net, input, {"seed": seed}


def _fresh_elsewhere(source: Source, inner: Source, seed: int) -> tuple[nn.Module, InputSpec, dict[str, Any]]:
    """A net of another library with the initial weights that its authors gave it.

    A factory may have loaded some: what can be initialised anew is, and what cannot must be what it begins with, one
    number everywhere or numbers drawn at random.
    """
    unknown = sorted(source.options.keys() - KINDS[inner.kind].options - {"seed", "data"})
    if unknown:
        raise UserError(f"{source.text!r}: no option {unknown[0]!r} for a net of {inner.kind}")
    options = {key: value for key, value in source.options.items() if key in KINDS[inner.kind].options}
    made = Source(inner.kind, inner.name, source.text, options, untrained=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        other = dict(KINDS[inner.kind].load(made, None)[0].named_parameters()) if inner.kind == "factory" else {}
        torch.manual_seed(seed)
        net, input, provenance = KINDS[inner.kind].load(made, None)
        if inner.kind == "factory":
            _begin_anew(net, other, source)
    preprocessing = {key: value for key, value in provenance.details.items() if key == "preprocessing"}
    return net, input, {"seed": seed} | preprocessing


def _begin_anew(net: nn.Module, other: Mapping[str, nn.Parameter], source: Source) -> None:
    """Initial weights for a net of the user's, in place.

    Args:
        net: as its factory has made it; it may have loaded weights.
        other: parameters by name of another one, made under another seed.
        source: for messages.

    Raises:
        UserError: it has weights that cannot be initialised anew: no module's own, and neither drawn at random nor one
            number everywhere.
    """
    for place, module in net.named_modules():
        what = type(module).__name__
        if hasattr(module, "reset_parameters"):
            with wrap_external_errors(f"{source.text!r}: its {what} cannot be initialised anew"):
                module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(place, recurse=False):
            if torch.equal(parameter, other[name]) and not (parameter == parameter.flatten()[0]).all():
                raise UserError(f"{source.text!r}: its {what} has no reset_parameters, to be initialised anew")


def load_random(source: Source, data: str | ImageSet | None) -> Loaded:
    net, input, details = _fresh(source, norm=True)
    details = {"initialisation": "random", **details}
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
        images = source.options.get("data") or data or "builtin:sample"
        with _crops_fit(source, input):
            init.estimate_batchnorm(net, real_batches(images, input, seed=details["seed"]))
        details["statistics"] = _words(images)
    return net, input, Provenance(source.text, details)


@contextlib.contextmanager
def _crops_fit(source: Source, input: InputSpec) -> Iterator[None]:
    """A net that cannot take crops of its input's size says so in one sentence."""
    with wrap_external_errors(f"{source.text!r} cannot take crops of {input.size} px"):
        yield


def load_gaussian(source: Source, _data: object) -> Loaded:
    """The "Gaussian" row of the literature's tables: a net without BatchNorm, with CaffeNet's initial biases."""
    net, input, details = _fresh(source, norm=False)
    return net, input, Provenance(source.text, {"initialisation": "gaussian", **details})


def load_kmeans(source: Source, data: str | ImageSet | None) -> Loaded:
    net, input, details = _fresh(source, norm=False)
    images = source.options.get("data") or data or "builtin:sample"
    with _crops_fit(source, input):
        seed = details["seed"]
        init.kmeans(net, real_batches(images, input, batch=80, seed=seed), seed, skip=())
    details = {"initialisation": "k-means", **details, "images": _words(images)}
    return net.eval(), input, Provenance(source.text, details)


def _words(images: str | ImageSet) -> str:
    return images if isinstance(images, str) else f"{len(images)} images, {images.names[0]} the first"


def real_batches(
    data: str | ImageSet, input: InputSpec, count: int = 10, batch: int = 16, seed: int = 0
) -> list[Tensor]:
    """Preprocessed training batches for data-dependent initial values."""
    images = open_images(data)[0] if isinstance(data, str) else data
    crop = CropConfig(input.size, max(input.size, input.resize))
    stream = Stream(images, TrainingCrops(crop), seed)
    return [input.preprocess(b.images) for b in load_batches(stream, 0, count * batch, batch)]
