"""load_backbone and load_colorizer: a source string → a module that is ready to use."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from crosschannel.data import ImageSet
from crosschannel.errors import UserError, foreign
from crosschannel.files import user_path
from crosschannel.hub.convert import import_weights
from crosschannel.hub.files import is_ours, load_state, read_weights
from crosschannel.hub.from_files import fetched, weights_path
from crosschannel.hub.sources import KINDS, inner_source, parse_source
from crosschannel.models import Backbone, build_pretext
from crosschannel.models.backbone import Provenance
from crosschannel.models.colorizer import Colorizer
from crosschannel.objectives.build import build_objective
from crosschannel.objectives.config import ObjectiveConfig


def load_backbone(
    source: str,
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
        layers: what ``features`` gives when it is not told; default all.
        frozen: eval mode and no gradients; else training mode, with gradients.
        device, dtype: of the weights.
        data: images from which a fresh net's statistics or k-means filters are taken, by name or as a set, where the
            source does not name them; default ``builtin:sample``.

    Returns:
        a :class:`~crosschannel.models.Backbone`.

    Raises:
        UserError: no such source, a file that does not hold a backbone, an unknown layer.
    """
    parsed = fetched(parse_source(source))
    of_others = KINDS[inner_source(parsed).kind].of_the_user
    grad = torch.is_grad_enabled()
    with foreign(f"{source!r} cannot be made") if of_others else contextlib.nullcontext():
        with torch.random.fork_rng(devices=[]):  # nets are made with random weights before they get theirs
            net, input, provenance = KINDS[parsed.kind].load(parsed, data)
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
    parsed = fetched(parse_source(source))
    if parsed.kind != "path":
        raise UserError(f"{source!r} has no colorization head; give a run folder or a colorizer.safetensors file")
    path = weights_path(parsed, "colorizer.safetensors")
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
    parsed = fetched(parse_source(source))
    if parsed.kind != "path":
        return False
    path = user_path(parsed.name)
    if path.is_dir():
        return (path / "colorizer.safetensors").exists()
    path = weights_path(parsed, "")
    return read_weights(path)[1].objective is not None if is_ours(path) else import_weights(path).has_head


def _imported_colorizer(path: Path, source: str) -> Colorizer:
    found = import_weights(path)
    if not found.has_head:
        raise UserError(f"{source} holds a backbone without a colorization head ({found.format})")
    provenance, objective = Provenance(source, {"format": found.format}), build_objective(ObjectiveConfig())
    return Colorizer(found.net, objective, found.input.resize, found.temperature, provenance, found.native)
