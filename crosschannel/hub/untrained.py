"""Load sources that are untrained nets, for baselines."""

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
from crosschannel.hub.files import is_own_format
from crosschannel.hub.from_files import LoadedNet, apply_source_options, fetch_weights, read_own_file, weights_path
from crosschannel.hub.sources import KINDS, Source, parse_source
from crosschannel.models import FAMILIES, InputSpec, NetSpec, build_net, family
from crosschannel.models import initialisation as init
from crosschannel.models.backbone import Provenance


def _build_untrained(source: Source, norm: bool) -> tuple[nn.Module, InputSpec, dict[str, Any]]:
    """Build an untrained net, from the name of a family or with the architecture of another source.

    Args:
        source: a random, gaussian or kmeans source.
        norm: default for BatchNorm if the source has the name of a family.

    Returns:
        Net, input specification and provenance details.
    """
    seed = source.options.get("seed", 0)
    inner = fetch_weights(parse_source(source.name))
    if KINDS[inner.kind].is_library and source.kind != "gaussian":
        return _build_untrained_library_net(source, inner, seed)
    if source.name not in FAMILIES and inner.kind == "path" and user_path(inner.name).exists():
        path = weights_path(inner, "backbone.safetensors")
        if is_own_format(path):
            meta = read_own_file(path, inner)[1]
            spec, input = meta.net, meta.input
        else:
            imported = import_weights(path, key=source.options.get("key", ""))
            spec, input = imported.spec, imported.input
    elif source.kind == "gaussian" and source.name not in FAMILIES:
        raise UserError(f"{source.text!r}: gaussian supports only {', '.join(FAMILIES)} and files of these nets")
    else:
        net_family = family(source.name)
        spec = NetSpec(source.name, **net_family.supported_options(norm=norm, fc=net_family.fc, geometry="probe"))
        input = InputSpec("grey", net_family.size)
    if source.kind == "gaussian" and spec.name not in FAMILIES:
        raise UserError(f"{source.text!r}: gaussian supports only {', '.join(FAMILIES)} and files of these nets")
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
        second_parameters = dict(build_net(spec, input.size).named_parameters()) if is_factory(spec.name) else {}
        torch.manual_seed(seed)
        net = build_net(spec, input.size)
        if is_factory(spec.name):
            _reinitialise(net, second_parameters, source)
        if spec.name in FAMILIES:  # timm nets keep their own initialisation
            init.gaussian(net, ones=init.CAFFENET_ONES if source.kind == "gaussian" else ())
    return net, input, {"seed": seed}


def _build_untrained_library_net(
    source: Source, inner: Source, seed: int
) -> tuple[nn.Module, InputSpec, dict[str, Any]]:
    """Build a net of another library or a factory with its own initialisation.

    A factory may have loaded pretrained weights, so its nets are re-initialised. Parameters without an initialisation
    method must be constant or depend on the seed.
    """
    unknown = sorted(source.options.keys() - KINDS[inner.kind].options - {"seed", "data"})
    if unknown:
        raise UserError(f"{source.text!r}: unknown option {unknown[0]!r} for {inner.kind} nets")
    options = {key: value for key, value in source.options.items() if key in KINDS[inner.kind].options}
    untrained = Source(inner.kind, inner.name, source.text, options, untrained=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        second_parameters = (
            dict(KINDS[inner.kind].load(untrained, None)[0].named_parameters()) if inner.kind == "factory" else {}
        )
        torch.manual_seed(seed)
        net, input, provenance = KINDS[inner.kind].load(untrained, None)
        if inner.kind == "factory":
            _reinitialise(net, second_parameters, source)
    preprocessing = {key: value for key, value in provenance.details.items() if key == "preprocessing"}
    return net, input, {"seed": seed} | preprocessing


def _reinitialise(net: nn.Module, second_parameters: Mapping[str, nn.Parameter], source: Source) -> None:
    """Re-initialise the net of a user-defined factory, in place.

    Args:
        net: result of the factory; it may hold pretrained weights.
        second_parameters: parameters, by name, of a second net from the factory, built with another seed.
        source: source of the net, for messages.

    Raises:
        UserError: a module without ``reset_parameters`` has parameters that are neither constant nor random, which may
            be pretrained weights.
    """
    for prefix, module in net.named_modules():
        kind = type(module).__name__
        if hasattr(module, "reset_parameters"):
            with wrap_external_errors(f"{source.text!r}: could not re-initialise {kind}"):
                module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if torch.equal(parameter, second_parameters[name]) and not (parameter == parameter.flatten()[0]).all():
                raise UserError(f"{source.text!r}: cannot re-initialise {kind}, which has no reset_parameters method")


def load_random(source: Source, data: str | ImageSet | None) -> LoadedNet:
    """Load a randomly initialised net; BatchNorm statistics are estimated on images."""
    net, input, details = _build_untrained(source, norm=True)
    details = {"initialisation": "random", **details}
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
        images = source.options.get("data") or data or "builtin:sample"
        with _explain_crop_errors(source, input):
            init.estimate_batchnorm(net, training_batches(images, input, seed=details["seed"]))
        details["statistics"] = _describe_images(images)
    return net, input, Provenance(source.text, details)


@contextlib.contextmanager
def _explain_crop_errors(source: Source, input: InputSpec) -> Iterator[None]:
    """Report errors of the forward pass as a UserError about the crop size."""
    with wrap_external_errors(f"{source.text!r} cannot take crops of {input.size} px"):
        yield


def load_gaussian(source: Source, _data: object) -> LoadedNet:
    """Load the "Gaussian" baseline of the literature: a net without BatchNorm, with CaffeNet's initial biases."""
    net, input, details = _build_untrained(source, norm=False)
    return net, input, Provenance(source.text, {"initialisation": "gaussian", **details})


def load_kmeans(source: Source, data: str | ImageSet | None) -> LoadedNet:
    """Load a net whose filters are k-means centres of image patches, see :mod:`crosschannel.models.initialisation`."""
    net, input, details = _build_untrained(source, norm=False)
    images = source.options.get("data") or data or "builtin:sample"
    with _explain_crop_errors(source, input):
        seed = details["seed"]
        init.kmeans(net, training_batches(images, input, batch=80, seed=seed), seed, skip=())
    details = {"initialisation": "k-means", **details, "images": _describe_images(images)}
    return net.eval(), input, Provenance(source.text, details)


def _describe_images(images: str | ImageSet) -> str:
    return images if isinstance(images, str) else f"{len(images)} images, starting with {images.names[0]}"


def training_batches(
    data: str | ImageSet, input: InputSpec, count: int = 10, batch: int = 16, seed: int = 0
) -> list[Tensor]:
    """Return preprocessed batches of training crops for data-dependent initialisation.

    Args:
        data: a value of ``--data``, or an image set.
        input: input specification of the net.
        count: number of batches.
        batch: images per batch.
        seed: seed of the order and the crops.
    """
    images = open_images(data)[0] if isinstance(data, str) else data
    crop = CropConfig(input.size, max(input.size, input.resize))
    stream = Stream(images, TrainingCrops(crop), seed)
    return [input.preprocess(b.images) for b in load_batches(stream, 0, count * batch, batch)]
