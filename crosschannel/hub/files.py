"""Our weights files: safetensors, with enough metadata to build the net again.

Metadata (all strings, JSON where it is structured): ``format`` ("crosschannel.backbone" or
"crosschannel.colorizer"), ``schema``, ``net``, ``input``, ``layers``, ``provenance``; a colorizer has
``objective`` and ``temperature`` besides.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.models.backbone import InputSpec, Provenance
from crosschannel.models.build import NetSpec
from crosschannel.models.pretext import PretextNet
from crosschannel.objectives import ObjectiveConfig

SCHEMA = 1


def save_backbone(path: Path, net: nn.Module, spec: NetSpec, input: InputSpec, provenance: Provenance) -> None:
    """Write a backbone as trained, BatchNorm included."""
    _write(path, net.state_dict(), "crosschannel.backbone", net.layers, spec, input, provenance)


def save_colorizer(
    path: Path,
    net: PretextNet,
    spec: NetSpec,
    input: InputSpec,
    objective: ObjectiveConfig,
    provenance: Provenance,
    temperature: float = 0.38,
    native: Tensor | None = None,
) -> None:
    """Write a backbone with its head, and the decode of its own that an imported net may have, (2, 313)."""
    extra = {"objective": json.dumps(asdict(objective)), "temperature": str(temperature)}
    state = net.state_dict() if native is None else {**net.state_dict(), "native": native}
    _write(path, state, "crosschannel.colorizer", net.net.layers, spec, input, provenance, extra)


def _write(path, state, kind, layers, spec, input, provenance, extra=None) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {
        "format": kind,
        "schema": str(SCHEMA),
        "net": json.dumps(spec.to_dict()),
        "input": json.dumps(asdict(input)),
        "layers": json.dumps(layers),
        "provenance": json.dumps(provenance.to_dict()),
        **(extra or {}),
    }
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata)
    part.replace(path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and decoded metadata of one of our files.

    Raises:
        UserError: the file is missing, cut off, no safetensors, or not ours.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"no weights file {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    if not metadata.get("format", "").startswith("crosschannel."):
        raise UserError(f"{path} was not written by crosschannel: its metadata names no crosschannel format")
    if int(metadata.get("schema", 0)) > SCHEMA:
        raise UserError(f"{path} was written by a newer crosschannel (schema {metadata['schema']}); update it")
    decoded = {key: value if key == "format" else json.loads(value) for key, value in metadata.items()}
    return state, decoded


def is_ours(path: Path) -> bool:
    """Whether a file is to be read by :func:`read_weights`: safetensors whose metadata does not name another writer.

    A damaged file counts as ours, so that the reader says what is wrong with it.
    """
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            known = any(name.startswith(("features.", "_feature_blocks.", "model1.")) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return True
    return ("format" in metadata and metadata["format"].startswith("crosschannel.")) or not known


def load_state(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """``load_state_dict`` that says in one sentence what does not fit."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shaped = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    for problem, keys in (("lacks", missing), ("has the unexpected", extra), ("has the wrong shape for", shaped)):
        if keys:
            raise UserError(f"{what} {problem} {keys[0]} (and {len(keys) - 1} more); is it for another net?")
    with torch.no_grad():
        module.load_state_dict(state)
