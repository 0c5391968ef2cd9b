"""State dicts of other libraries, read from ``.pth`` and ``.safetensors`` files: only tensors, by name.

A checkpoint may hold several nets (raw weights and their average, student and teacher) under any prefix;
:func:`choose_net` finds the one whose names match the net to load.
"""

import argparse
import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosschannel.errors import UserError
from crosschannel.files import read_bytes

_WRAPPERS = ("module", "_orig_mod")  # name parts that DataParallel, DDP and torch.compile insert, at any depth
_MAX_DEPTH = 5  # of nested dictionaries in a checkpoint
# The net that its authors evaluate, if a file holds several; averaged weights take precedence.
_EVALUATED = ("teacher", "encoder_q", "base_encoder", "backbone")


@dataclass
class Checkpoint:
    """Content of a weights file.

    Attributes:
        path: the file.
        tensors: tensors by name; names include the keys of enclosing dictionaries (``state_dict.module.conv1.weight``).
        config: preprocessing stored in timm's format (``mean``, ``std``, ``input_size``, …); empty if there is none.
        config_origin: description of where the preprocessing is stored, for messages.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    config_origin: str = ""


@dataclass
class NetState:
    """State dict of one net of a checkpoint.

    Attributes:
        tensors: tensors by their names in the net.
        note: description of the chosen net; empty if the file holds one net without a prefix.
    """

    tensors: dict[str, Tensor]
    note: str = ""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a ``.safetensors`` or ``.pth`` file, see :attr:`Checkpoint.tensors`."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.safetensors`` or ``.pth`` file; only tensors and plain values are unpickled.

    Raises:
        UserError: the file is damaged, or holds no named tensors.
    """
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    tensors = dict(_named_tensors(content))
    if not tensors:
        raise UserError(f"{path} holds no named tensors")
    return Checkpoint(path, tensors, *_read_config(path, content))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":
            raise UserError(f"{path} is not a weights file but a web page: the download did not work")
    if _is_bomb(path):
        raise UserError(f"{path} is not a weights file: unpacked it would be larger than it says")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # training arguments
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on bytes they cannot read
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors, and nothing else is unpickled"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a weights file: {reason}") from None


def _named_tensors(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items() if isinstance(content, Mapping) and depth < _MAX_DEPTH else ():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor) and _is_plain(value):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from _named_tensors(value, f"{prefix}{key}.", depth + 1)


def _read_config(path: Path, content: Any) -> tuple[dict[str, Any], str]:
    """Read the preprocessing from a checkpoint or the ``config.json`` beside it, in timm's format."""
    for key in ("pretrained_cfg", "default_cfg"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return dict(content[key]), f"{key} of {path.name}"
    config_path = path.parent / "config.json"
    try:
        config = json.loads(read_bytes(config_path, 1 << 24))
    except (OSError, ValueError):
        return {}, ""
    if not isinstance(config, dict) or "architecture" not in config:
        return {}, ""  # of another library
    entries = config.get("pretrained_cfg", config)
    origin = f"config.json beside {path.name}"
    return ({**entries, "architecture": config["architecture"]}, origin) if isinstance(entries, dict) else ({}, "")


def choose_net(tensors: Mapping[str, Tensor], needed: Collection[str], file: str, key: str = "") -> NetState:
    """Find a net in a checkpoint by its parameter names, under any prefix.

    If there are both raw weights and their moving average, it takes the average (its prefix has a part such as ``ema``,
    ``state_dict_ema`` or ``model_ema``), as timm does.

    Args:
        tensors: see :attr:`Checkpoint.tensors`.
        needed: names that the net must have.
        file: name of the file, for messages.
        key: prefix of the net to choose, or parts of it.

    Returns:
        State dict of the net; if no net has all names, that of the net with the most.

    Raises:
        UserError: several nets fit and none is preferred, or ``key`` fits none.
    """
    clean = _without_wrappers(tensors, needed, file)
    counts = _count_names(clean, set(needed))
    raw = {prefix: _raw_prefix(prefix, clean, needed) for prefix in counts}
    candidates = [prefix for prefix in counts if _matches_key(key, prefix, raw[prefix])]
    if key and not candidates:
        raise UserError(f"{file} has no such net at key={key}; it has some at {_join_prefixes(raw.values())}")
    max_count = max((counts[prefix] for prefix in candidates), default=0)
    fitting = sorted((prefix for prefix in candidates if counts[prefix] == max_count), key=_preference)
    if max_count == len(needed) and len(fitting) > 1 and _preference(fitting[0]) == _preference(fitting[1]):
        options = _join_prefixes(raw[prefix] for prefix in fitting)
        raise UserError(f"{file} holds several such nets, at {options}: choose one with key=")
    prefix, others = (fitting[0], fitting[1:]) if fitting else ("", [])
    inner = tuple(other for other in others if other.startswith(prefix))
    members = [name for name in clean if name.startswith(prefix) and not name.startswith(inner)]
    note = f"net {_join_prefixes([raw[prefix]])}" if fitting and (raw[prefix] or others) else ""
    if others and max_count == len(needed):
        note += f" (not {_join_prefixes(raw[other] for other in others)}, which key= would choose)"
    return NetState({name.removeprefix(prefix): tensors[clean[name]] for name in members}, note)


def has_net(tensors: Mapping[str, Tensor], needed: Collection[str], file: str, key: str = "") -> bool:
    """Whether a checkpoint holds a net with all needed names; arguments as for :func:`choose_net`."""
    clean = _without_wrappers(tensors, needed, file)
    counts = _count_names(clean, set(needed))
    return any(
        count == len(needed) and _matches_key(key, prefix, _raw_prefix(prefix, clean, needed))
        for prefix, count in counts.items()
    )


def _matches_key(key: str, prefix: str, raw: str) -> bool:
    """Whether a key is a prefix, or parts of it, with or without the name parts that frameworks insert."""
    return not key or f".{key}." in f".{prefix}" or f".{key}." in f".{raw}"


def _join_prefixes(prefixes: Iterable[str]) -> str:
    return ", ".join(prefix.removesuffix(".") or "the top level" for prefix in prefixes)


def _without_wrappers(tensors: Mapping[str, Tensor], needed: Collection[str], file: str) -> dict[str, str]:
    """Map names without the parts that frameworks insert, unless the net has such parts, to names in the file."""
    if any(part in _WRAPPERS for name in needed for part in name.split(".")):
        return {name: name for name in tensors}
    clean: dict[str, str] = {}
    for name in tensors:
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in clean:
            raise UserError(f"{file} holds two tensors of one name, {clean[short]} and {name}")
        if not short.endswith("n_averaged"):  # counter that torch.optim.swa_utils adds to its models
            clean[short] = name
    return clean


def _count_names(names: Iterable[str], needed: set[str]) -> Counter[str]:
    """Count the needed names under each prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in needed:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _raw_prefix(prefix: str, clean: Mapping[str, str], needed: Collection[str]) -> str:
    """Return a prefix as written in the file."""
    name = next(name for name in clean if name.startswith(prefix) and name.removeprefix(prefix) in needed)
    suffix = name.removeprefix(prefix)
    return clean[name].removesuffix(suffix) if clean[name].endswith(suffix) else prefix


def _preference(prefix: str) -> int:
    """Rank the nets of a file: averaged weights, the top level, the nets that authors evaluate, then any other."""
    parts = prefix.lower().split(".")
    if any("ema" in re.split(r"[_-]", part) for part in parts):
        return 0
    ranks = (rank for rank, name in enumerate(_EVALUATED, 2) if name in parts)
    return next(ranks, 2 + len(_EVALUATED)) if prefix else 1


def _is_bomb(path: Path) -> bool:
    """Whether a zip file has compressed members: torch stores tensors as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False  # not a zip file, or one that torch will not read either


def _is_plain(tensor: Tensor) -> bool:
    """Real numbers that are all in the file: not sparse, quantised, complex, without data, or repeated by strides."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
