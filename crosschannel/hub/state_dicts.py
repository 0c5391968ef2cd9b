"""Read state dicts of other libraries from ``.pth`` and ``.safetensors`` files; only tensors are loaded.

A checkpoint may hold several nets (raw weights and their average, student and teacher) under any prefix.
:func:`choose_net` finds the one whose parameter names match the net to be loaded.
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

_WRAPPERS = ("module", "_orig_mod")  # parts of names that DataParallel, DDP and torch.compile insert, at any depth
_MAX_DEPTH = 5  # maximum depth of nested dictionaries in a checkpoint
# Nets that their authors evaluate, in order of preference; averaged weights take precedence over them.
_PREFERRED_PARTS = ("teacher", "encoder_q", "base_encoder", "backbone")


@dataclass
class Checkpoint:
    """Content of a weights file.

    Attributes:
        path: path of the file.
        tensors: tensors by name; names include the keys of enclosing dictionaries (``state_dict.module.conv1.weight``).
        config: stored preprocessing in timm's format (``mean``, ``std``, ``input_size``, …); empty if there is none.
        config_origin: location of the stored preprocessing, for messages.
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
    """Read the tensors of a ``.safetensors`` or ``.pth`` file; for their names see :attr:`Checkpoint.tensors`."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.safetensors`` or ``.pth`` file; only tensors and plain values are unpickled.

    Raises:
        UserError: the file is damaged or does not hold named tensors.
    """
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    tensors = dict(_named_tensors(content))
    if not tensors:
        raise UserError(f"{path} does not hold named tensors")
    return Checkpoint(path, tensors, *_read_config(path, content))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":
            raise UserError(f"{path} is a web page instead of a weights file: the download failed")
    if _is_compressed(path):
        raise UserError(f"{path} is not a weights file: it is a compressed archive")
    try:
        # argparse.Namespace: many checkpoints include the arguments of the training script
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on invalid bytes, the unpickler may raise any exception
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it contains objects other than tensors, which are not unpickled"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a weights file: {reason}") from None


def _named_tensors(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dictionaries, with the keys joined by dots."""
    for key, value in content.items() if isinstance(content, Mapping) and depth < _MAX_DEPTH else ():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor) and _is_plain(value):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from _named_tensors(value, f"{prefix}{key}.", depth + 1)


def _read_config(path: Path, content: Any) -> tuple[dict[str, Any], str]:
    """Read the preprocessing in timm's format from a checkpoint or the ``config.json`` in its folder."""
    for key in ("pretrained_cfg", "default_cfg"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return dict(content[key]), f"{key} of {path.name}"
    config_path = path.parent / "config.json"
    try:
        config = json.loads(read_bytes(config_path, 1 << 24))
    except (OSError, ValueError):
        return {}, ""
    if not isinstance(config, dict) or "architecture" not in config:
        return {}, ""  # written by another library
    entries = config.get("pretrained_cfg", config)
    origin = f"config.json next to {path.name}"
    return ({**entries, "architecture": config["architecture"]}, origin) if isinstance(entries, dict) else ({}, "")


def choose_net(tensors: Mapping[str, Tensor], required: Collection[str], file: str, key: str = "") -> NetState:
    """Find a net in a checkpoint by its parameter names, under any prefix.

    A moving average of the weights is preferred to the raw weights, as in timm. Its prefix has a part such as ``ema``,
    ``state_dict_ema`` or ``model_ema``.

    Args:
        tensors: see :attr:`Checkpoint.tensors`.
        required: parameter names that the net must have.
        file: name of the file, for messages.
        key: prefix of the net to choose, or consecutive parts of that prefix.

    Returns:
        State dict of the net. If no net has all required names, the one with the most of them.

    Raises:
        UserError: several nets match and none is preferred, or none matches ``key``.
    """
    clean_names = _without_wrappers(tensors, required, file)
    counts = _count_names(clean_names, set(required))
    raw_prefixes = {prefix: _raw_prefix(prefix, clean_names, required) for prefix in counts}
    candidates = [prefix for prefix in counts if _matches_key(key, prefix, raw_prefixes[prefix])]
    if key and not candidates:
        raise UserError(f"{file} has no matching net at key={key}; available: {_join_prefixes(raw_prefixes.values())}")
    max_count = max((counts[prefix] for prefix in candidates), default=0)
    matches = sorted((prefix for prefix in candidates if counts[prefix] == max_count), key=_preference)
    if max_count == len(required) and len(matches) > 1 and _preference(matches[0]) == _preference(matches[1]):
        options = _join_prefixes(raw_prefixes[prefix] for prefix in matches)
        raise UserError(f"{file} holds several matching nets ({options}); choose one with key=")
    prefix, rejected = (matches[0], matches[1:]) if matches else ("", [])
    nested_prefixes = tuple(candidate for candidate in rejected if candidate.startswith(prefix))
    names = [name for name in clean_names if name.startswith(prefix) and not name.startswith(nested_prefixes)]
    note = f"net {_join_prefixes([raw_prefixes[prefix]])}" if matches and (raw_prefixes[prefix] or rejected) else ""
    if rejected and max_count == len(required):
        note += f" (not {_join_prefixes(raw_prefixes[candidate] for candidate in rejected)}; key= selects another)"
    return NetState({name.removeprefix(prefix): tensors[clean_names[name]] for name in names}, note)


def has_net(tensors: Mapping[str, Tensor], required: Collection[str], file: str, key: str = "") -> bool:
    """Whether a checkpoint holds a net with all required names; for the arguments see :func:`choose_net`."""
    clean_names = _without_wrappers(tensors, required, file)
    counts = _count_names(clean_names, set(required))
    return any(
        count == len(required) and _matches_key(key, prefix, _raw_prefix(prefix, clean_names, required))
        for prefix, count in counts.items()
    )


def _matches_key(key: str, prefix: str, raw: str) -> bool:
    """Whether a key is a prefix or consecutive parts of it, with or without the parts that frameworks insert."""
    return not key or f".{key}." in f".{prefix}" or f".{key}." in f".{raw}"


def _join_prefixes(prefixes: Iterable[str]) -> str:
    return ", ".join(prefix.removesuffix(".") or "the top level" for prefix in prefixes)


def _without_wrappers(tensors: Mapping[str, Tensor], required: Collection[str], file: str) -> dict[str, str]:
    """Map clean names to the names in the file.

    Clean names lack the parts that frameworks insert, unless the net itself has such parts.
    """
    if any(part in _WRAPPERS for name in required for part in name.split(".")):
        return {name: name for name in tensors}
    clean_names: dict[str, str] = {}
    for name in tensors:
        clean_name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if clean_name in clean_names:
            raise UserError(f"{file} holds two tensors with the same name: {clean_names[clean_name]} and {name}")
        if not clean_name.endswith("n_averaged"):  # counter that torch.optim.swa_utils adds to its models
            clean_names[clean_name] = name
    return clean_names


def _count_names(names: Iterable[str], required: set[str]) -> Counter[str]:
    """Count the required names under each prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in required:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _raw_prefix(prefix: str, clean_names: Mapping[str, str], required: Collection[str]) -> str:
    """Return a prefix as written in the file."""
    name = next(name for name in clean_names if name.startswith(prefix) and name.removeprefix(prefix) in required)
    suffix = name.removeprefix(prefix)
    return clean_names[name].removesuffix(suffix) if clean_names[name].endswith(suffix) else prefix


def _preference(prefix: str) -> int:
    """Return the rank of a net: averaged weights first, then the top level, the preferred parts, and all others."""
    parts = prefix.lower().split(".")
    if any("ema" in re.split(r"[_-]", part) for part in parts):
        return 0
    ranks = (rank for rank, name in enumerate(_PREFERRED_PARTS, 2) if name in parts)
    return next(ranks, 2 + len(_PREFERRED_PARTS)) if prefix else 1


def _is_compressed(path: Path) -> bool:
    """Whether a file is a zip archive with compressed members (torch writes none): it could expand to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False  # not a zip file, or an invalid one, which torch rejects, too


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is real-valued and stores all of its values.

    This is not the case if it is sparse, quantised, complex, on the meta device or expanded by strides.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
