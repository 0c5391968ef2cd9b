"""load_backbone and load_colorizer: a source string → a module that is ready to use."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crosschannel.colorize.colorizer import Colorizer, ResizeSpec
from crosschannel.colorize.decoders import Decoder, build_decoder
from crosschannel.config.load import build_stored
from crosschannel.data import ImageSet
from crosschannel.data.memory import as_image_set
from crosschannel.errors import UserError, describe, wrap_external_errors
from crosschannel.files import user_path
from crosschannel.hub.convert import import_weights
from crosschannel.hub.files import COLORIZER, PRETEXT, is_ours, load_state, read_weights
from crosschannel.hub.from_files import check_code, fetch_weights, read_ours, weights_path
from crosschannel.hub.sources import KINDS, Source, inner_source, parse_source
from crosschannel.models import Backbone, InputSpec
from crosschannel.models.adapt import fold_input_scale
from crosschannel.models.backbone import Provenance
from crosschannel.pretext import TASKS, create, find_task
from crosschannel.pretext.task import Pretext
from crosschannel.training.device import as_device


def load_backbone(
    source: str | os.PathLike[str],
    layers: Sequence[str] | None = None,
    frozen: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    data: str | ImageSet | None = None,
) -> Backbone:
    """Load a backbone.

    Args:
        source: a run folder, a weights file (ours or somebody else's), ``random:``, ``gaussian:``, ``kmeans:``,
            ``torchvision:``, ``timm:``, ``zoo:``, ``hf-hub:`` or ``package.module:factory``; see
            :mod:`crosschannel.hub.sources`.
        layers: default layers of ``features``: names or patterns such as ``conv*``; default all.
        frozen: eval mode and no gradients; else training mode, with gradients.
        device: of the weights.
        dtype: of the weights.
        data: images for the statistics or k-means filters of an untrained net, by name, as a set, or as
            (images, labels), if the source does not name any; default ``builtin:sample``.

    Returns:
        a Backbone.

    Raises:
        UserError: no such source, a file that does not hold a backbone, an unknown layer.
    """
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise UserError(f"dtype is one of torch's, such as torch.float16, got {describe(dtype)}")
    device, data = as_device(device), data if data is None or isinstance(data, str) else as_image_set(data)
    parsed = fetch_weights(parse_source(source))
    source = parsed.text
    of_others = KINDS[inner_source(parsed).kind].is_user_code
    grad = torch.is_grad_enabled()
    with wrap_external_errors(f"{source!r} cannot be made") if of_others else contextlib.nullcontext():
        with torch.random.fork_rng(devices=[]):  # nets are made with random weights before they get theirs
            net, input, provenance = KINDS[parsed.kind].load(parsed, data)
        torch.set_grad_enabled(grad)  # whatever a factory has done
        provenance.source = source
        _note_input_options(parsed, input, provenance)
        backbone = Backbone(net, input, layers, provenance).to(device, dtype)
        odd = [
            name for name in backbone.layers if not isinstance(name, str) or not name.isprintable() or len(name) > 200
        ]
        if odd:
            raise UserError(f"{source!r} has a layer that cannot be called so: {str(odd[0])[:80]!r}")
        return backbone.eval().requires_grad_(False) if frozen else backbone.train()


def _note_input_options(source: Source, input: InputSpec, provenance: Provenance) -> None:
    """Record in the provenance which input attributes the source overrides.

    Raises:
        UserError: mean or std for an input that has neither.
    """
    options = sorted(source.input_options())
    if input.kind in ("grey", "lab") and set(options) & {"mean", "std"}:
        raise UserError(f"{source.text!r}: mean and std are for RGB, and this net takes {input.kind}")
    if options:
        origin = provenance.details.get("preprocessing", "the net's own")
        provenance.details["preprocessing"] = f"{origin}, with {' and '.join(options)} of the source"


@dataclass
class PretextCheckpoint:
    """A net with its task.

    Attributes:
        net, task: see :func:`crosschannel.pretext.create`.
        input: what it was trained on.
        resize_spec: resizing of pictures before the net (colorization only).
        provenance: of the weights.
        decoder: converts outputs to ab (colorization only).
    """

    net: nn.Module
    task: Pretext
    input: InputSpec
    resize_spec: ResizeSpec
    provenance: Provenance
    decoder: Decoder | None = None


def load_pretext(source: str | os.PathLike[str]) -> PretextCheckpoint:
    """Load the whole net of a pretext task: a run folder, a file of one, ``zoo:eccv16`` or ``hf-hub:``.

    Raises:
        UserError: no such source, or one that holds a backbone only.
    """
    parsed = fetch_weights(parse_source(source))
    source = parsed.text
    if parsed.kind != "path":
        raise UserError(f"{source!r} has no head; give a run folder or a colorizer.safetensors file")
    path = weights_path(parsed, _whole_file(parsed.name))
    if not is_ours(path):
        return _imported(path, source)
    state, meta = read_ours(path, parsed)
    if meta.objective is None:
        raise UserError(f"{source} holds a backbone without its head; give its run folder")
    check_code(path, parsed, meta.task, "task")
    row, objective = find_task(meta.task), meta.objective
    if meta.task not in TASKS:
        objective = build_stored(row.keys, objective, f"the metadata of {path}: objective")
    config = row.load().inference_config(objective)
    net, task = create(meta.task, config, meta.net, meta.input.size, meta.classes)
    weights = net.state_dict().keys()
    decoder = build_decoder(task) if task.decoder else None
    if decoder is not None:
        decoder.load_decoder_state({name: state.pop(name) for name in state.keys() - weights}, meta.temperature, source)
    load_state(net, state, source)
    input = fold_input_scale(net.net, meta.input)  # the task's own input has no scale
    return PretextCheckpoint(net, task, input, meta.look, Provenance(source, meta.provenance.details), decoder)


def load_colorizer(
    source: str | os.PathLike[str], device: str | torch.device = "cpu", size: int = 0, **options: Any
) -> Colorizer:
    """Load a net that colours pictures: a run folder, a ``colorizer.safetensors``, ``zoo:eccv16`` or ``hf-hub:``.

    Args:
        source: the net.
        device: its device.
        size: short side, in pixels, at which it sees a picture; 0: its own.
        options: ``saturation``, ``gamut`` and ``upsample`` of a :class:`Colorizer`.

    Raises:
        UserError: no such source, a file that holds a backbone only, or a net of a task that colours nothing.
    """
    whole = load_pretext(source)
    if whole.decoder is None:
        raise UserError(f"{source} is a net of the task {whole.task.name}, which colours nothing")
    if hasattr(whole.net.net, "take_any_size"):
        whole.net.net.take_any_size()
    size = size or whole.input.resize
    colorizer = Colorizer(whole.net, whole.task, size, whole.provenance, whole.resize_spec, whole.decoder, **options)
    return colorizer.to(as_device(device)).eval().requires_grad_(False)


def has_head(source: str) -> bool:
    """Whether a source holds a head besides its backbone: whether :func:`load_pretext` takes it.

    Raises:
        UserError: no such source, or a damaged file.
    """
    parsed = fetch_weights(parse_source(source))
    if parsed.kind != "path":
        return False
    path = user_path(parsed.name)
    if path.is_dir():
        return any((path / name).exists() for name in (COLORIZER, PRETEXT))
    path = weights_path(parsed, "")
    return read_weights(path)[1].objective is not None if is_ours(path) else import_weights(path).has_head


def _whole_file(name: str) -> str:
    """The file of a run folder that holds its whole net."""
    return PRETEXT if (user_path(name) / PRETEXT).exists() else COLORIZER


def _imported(path: Path, source: str) -> PretextCheckpoint:
    found = import_weights(path)
    if found.task is None:
        raise UserError(f"{source} holds a backbone without a head ({found.format})")
    input = fold_input_scale(found.net.net, found.input)
    return PretextCheckpoint(
        found.net, found.task, input, found.resize_spec, Provenance(source, {"format": found.format}), found.decoder
    )
