"""Our weights files: safetensors, with enough metadata to build the net again.

Metadata (all strings, JSON where it is structured): ``format`` ("crosschannel.backbone" or
"crosschannel.colorizer"), ``schema``, ``net``, ``input``, ``layers``, ``provenance``; a colorizer has
``objective`` and ``temperature`` besides.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.models.backbone import InputSpec, Provenance
from crosschannel.models.build import NET_NAMES, NetSpec, build_net
from crosschannel.models.pretext import PretextNet
from crosschannel.objectives import ObjectiveConfig

LICENCE = "bsd-2-clause"  # of weights that were trained here from nothing
SCHEMA = 2  # 1: nets other than AlexNet said fc 4096 and had none


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
    publish(part, path)


def publish(part: Path, path: Path) -> None:
    """Give a written file its name, and the rights that new files have here (safetensors gives the owner's alone)."""
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)
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
    try:
        if int(metadata["schema"]) > SCHEMA:
            raise UserError(f"{path} was written by a newer crosschannel (schema {metadata['schema']}); update it")
        decoded = {key: value if key == "format" else json.loads(value) for key, value in metadata.items()}
        spec, input, _ = described(decoded)
        input.channels  # noqa: B018  (a kind of input that there is)
        if decoded["format"] == "crosschannel.colorizer" and not decoded["temperature"] > 0:
            raise ValueError("temperature")
        _check_shapes(spec, state, "net." if decoded["format"] == "crosschannel.colorizer" else "", path)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} has damaged metadata: {type(error).__name__} {error}") from None
    return state, decoded


def described(meta: dict[str, Any]) -> tuple[NetSpec, InputSpec, dict[str, Any]]:
    """The net, the input and the details of the provenance that decoded metadata describe."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in meta["input"].items()}
    spec = NetSpec(**meta["net"])
    if meta["schema"] == 1 and spec.name != "alexnet":
        spec = replace(spec, fc=0)
    return spec, InputSpec(**values), meta["provenance"]["details"]


def _check_shapes(spec: NetSpec, state: dict[str, Tensor], prefix: str, path: Path) -> None:
    """The tensors are of the net that the metadata describes, before anything of its size is made."""
    if spec.name not in NET_NAMES:
        return
    with torch.device("meta"):
        own = build_net(spec).state_dict()
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    _compare(own, {key: value for key, value in found.items() if key in own or not prefix}, str(path))


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
    _compare(module.state_dict(), state, what)
    with torch.no_grad():
        module.load_state_dict(state)


def _compare(own: dict[str, Tensor], state: dict[str, Tensor], what: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for problem, keys in (("lacks", missing), ("has the unexpected", extra)):
        if keys:
            raise UserError(f"{what} {problem} {keys[0]} (and {len(keys) - 1} more); is it for another net?")
    for key in own:
        ours, theirs = tuple(own[key].shape), tuple(state[key].shape)
        if ours != theirs:
            raise UserError(f"{what} has the wrong shape for {key}: {theirs} where the net has {ours}")
