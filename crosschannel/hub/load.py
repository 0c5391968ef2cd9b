"""Load backbones, pretext checkpoints and colorizers from source strings."""

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
from crosschannel.hub.files import COLORIZER, PRETEXT, is_own_format, load_state, read_weights
from crosschannel.hub.from_files import check_user_code, fetch_weights, read_own_file, weights_path
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
        source: a run folder, a crosschannel or third-party weights file, ``random:``, ``gaussian:``, ``kmeans:``,
            ``torchvision:``, ``timm:``, ``zoo:``, ``hf-hub:`` or ``package.module:factory``; see
            :mod:`crosschannel.hub.sources`.
        layers: names or patterns, such as ``conv*``, of the layers that ``features`` returns by default; default: all.
        frozen: whether to return the backbone in eval mode without gradients, or in training mode with gradients.
        device: device of the returned backbone.
        dtype: dtype of the returned backbone; default: as stored.
        data: images for the BatchNorm statistics or k-means filters of an untrained net, if the source does not name
            any: a value of ``--data``, an ImageSet, or (images, labels); default: ``builtin:sample``.

    Returns:
        The backbone.

    Raises:
        UserError: the source does not exist or does not hold a backbone, or a layer is unknown.
    """
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise UserError(f"dtype must be a torch.dtype, such as torch.float16, got {describe(dtype)}")
    device, data = as_device(device), data if data is None or isinstance(data, str) else as_image_set(data)
    parsed = fetch_weights(parse_source(source))
    source = parsed.text
    is_user_code = KINDS[inner_source(parsed).kind].is_user_code
    is_grad_enabled = torch.is_grad_enabled()
    with wrap_external_errors(f"could not build {source!r}") if is_user_code else contextlib.nullcontext():
        with torch.random.fork_rng(devices=[]):  # building a net draws random weights, even if others are loaded
            net, input, provenance = KINDS[parsed.kind].load(parsed, data)
        torch.set_grad_enabled(is_grad_enabled)  # a factory may have changed it
        provenance.source = source
        _note_input_options(parsed, input, provenance)
        backbone = Backbone(net, input, layers, provenance).to(device, dtype)
        invalid = [
            name for name in backbone.layers if not isinstance(name, str) or not name.isprintable() or len(name) > 200
        ]
        if invalid:
            raise UserError(f"{source!r} has a layer with an invalid name: {str(invalid[0])[:80]!r}")
        return backbone.eval().requires_grad_(False) if frozen else backbone.train()


def _note_input_options(source: Source, input: InputSpec, provenance: Provenance) -> None:
    """Record in the provenance which input attributes the source overrides.

    Raises:
        UserError: mean or std for an input that has neither.
    """
    options = sorted(source.input_options())
    if input.kind in ("grey", "lab") and set(options) & {"mean", "std"}:
        raise UserError(f"{source.text!r}: mean and std apply to RGB, but this net has {input.kind} input")
    if options:
        origin = provenance.details.get("preprocessing", "the net's own")
        provenance.details["preprocessing"] = f"{origin}, with {' and '.join(options)} from the source"


@dataclass
class PretextCheckpoint:
    """A pretrained net with the head of its pretext task.

    Attributes:
        net: backbone and head, see :func:`crosschannel.pretext.create`.
        task: pretext task of the head.
        input: input specification of the backbone.
        resize_spec: resizing of pictures before the net (colorization only).
        provenance: source and details of the weights.
        decoder: converts outputs to ab (colorization only).
    """

    net: nn.Module
    task: Pretext
    input: InputSpec
    resize_spec: ResizeSpec
    provenance: Provenance
    decoder: Decoder | None = None


def load_pretext(source: str | os.PathLike[str]) -> PretextCheckpoint:
    """Load a net with the head of its pretext task.

    Args:
        source: a run folder, its ``colorizer.safetensors`` or ``pretext.safetensors``, ``zoo:eccv16`` or ``hf-hub:``.

    Raises:
        UserError: the source does not exist, or holds a backbone without a head.
    """
    parsed = fetch_weights(parse_source(source))
    source = parsed.text
    if parsed.kind != "path":
        raise UserError(f"{source!r} has no head; pass a run folder or a colorizer.safetensors file")
    path = weights_path(parsed, _checkpoint_name(parsed.name))
    if not is_own_format(path):
        return _load_third_party(path, source)
    state, meta = read_own_file(path, parsed)
    if meta.objective is None:
        raise UserError(f"{source} holds a backbone without its head; pass its run folder")
    check_user_code(path, parsed, meta.task, "task")
    entry, objective = find_task(meta.task), meta.objective
    if meta.task not in TASKS:
        objective = build_stored(entry.keys, objective, f"the metadata of {path}: objective")
    config = entry.load().inference_config(objective)
    net, task = create(meta.task, config, meta.net, meta.input.size, meta.classes)
    weights = net.state_dict().keys()
    decoder = build_decoder(task) if task.decoder else None
    if decoder is not None:
        decoder.load_decoder_state({name: state.pop(name) for name in state.keys() - weights}, meta.temperature, source)
    load_state(net, state, source)
    input = fold_input_scale(net.net, meta.input)  # the task computes unscaled inputs
    return PretextCheckpoint(net, task, input, meta.look, Provenance(source, meta.provenance.details), decoder)


def load_colorizer(
    source: str | os.PathLike[str], device: str | torch.device = "cpu", size: int = 0, **options: Any
) -> Colorizer:
    """Load a colorizer.

    Args:
        source: a run folder, a ``colorizer.safetensors`` file, ``zoo:eccv16`` or ``hf-hub:``.
        device: device of the returned colorizer.
        size: short side to which pictures are resized for the net, in pixels; 0 means ``resize`` of the net's input.
        options: ``saturation``, ``gamut`` and ``upsample`` of :class:`Colorizer`.

    Raises:
        UserError: the source does not exist, holds a backbone without a head, or was trained on a task that does not
            predict colours.
    """
    checkpoint = load_pretext(source)
    if checkpoint.decoder is None:
        raise UserError(f"{source} was trained on the task {checkpoint.task.name}, which does not predict colours")
    if hasattr(checkpoint.net.net, "take_any_size"):
        checkpoint.net.net.take_any_size()
    size = size or checkpoint.input.resize
    colorizer = Colorizer(
        checkpoint.net,
        checkpoint.task,
        size,
        checkpoint.provenance,
        checkpoint.resize_spec,
        checkpoint.decoder,
        **options,
    )
    return colorizer.to(as_device(device)).eval().requires_grad_(False)


def has_head(source: str) -> bool:
    """Whether a source holds the head of a pretext task, so that :func:`load_pretext` can load it.

    Raises:
        UserError: the source does not exist, or its file is damaged.
    """
    parsed = fetch_weights(parse_source(source))
    if parsed.kind != "path":
        return False
    path = user_path(parsed.name)
    if path.is_dir():
        return any((path / name).exists() for name in (COLORIZER, PRETEXT))
    path = weights_path(parsed, "")
    return read_weights(path)[1].objective is not None if is_own_format(path) else import_weights(path).has_head


def _checkpoint_name(name: str) -> str:
    """Return the name of the file in a run folder that holds the net with its head."""
    return PRETEXT if (user_path(name) / PRETEXT).exists() else COLORIZER


def _load_third_party(path: Path, source: str) -> PretextCheckpoint:
    """Load the net and head of a third-party file."""
    imported = import_weights(path)
    if imported.task is None:
        raise UserError(f"{source} holds a backbone without a head ({imported.format})")
    input = fold_input_scale(imported.net.net, imported.input)
    return PretextCheckpoint(
        imported.net,
        imported.task,
        input,
        imported.resize_spec,
        Provenance(source, {"format": imported.format}),
        imported.decoder,
    )
