"""Other people's state dicts, read off ``.pth`` and ``.safetensors`` files: tensors by name, and nothing else.

A checkpoint may hold several nets (raw weights and their average, student and teacher) under any prefix;
:func:`choose_net` finds the one whose names are those of the net that is to be loaded.
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

_WRAPPERS = ("module", "_orig_mod")  # what DataParallel, DDP and torch.compile put into names, at any depth
_MAX_DEPTH = 5  # of dictionaries in a checkpoint
# Of several nets in a file the one that its authors evaluate; averages of the weights come before these.
_EVALUATED = ("teacher", "encoder_q", "base_encoder", "backbone")


@dataclass
class Checkpoint:
    """The content of a weights file.

    Attributes:
        path: the file.
        tensors: by name; dictionaries around them are parts of their names (``state_dict.module.conv1.weight``).
        config: the preprocessing that it states as timm does (``mean``, ``std``, ``input_size``, …); empty for none.
        config_place: where it states it, in words.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    config_place: str = ""


@dataclass
class NetState:
    """The state dict of one net of a checkpoint.

    Attributes:
        tensors: by the net's names.
        note: which of the file's nets it is, in words; empty for the only one without a prefix.
    """

    tensors: dict[str, Tensor]
    note: str = ""


def read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a ``.safetensors`` file or of a ``.pth``, see :attr:`Checkpoint.tensors`."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.safetensors`` file or a ``.pth``, of which nothing but tensors and plain values is unpickled.

    Raises:
        UserError: it is damaged, or holds no named tensors.
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
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # of training scripts
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
    """The preprocessing that a checkpoint states, or the ``config.json`` beside it, as timm writes them."""
    for key in ("pretrained_cfg", "default_cfg"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return dict(content[key]), f"{key} of {path.name}"
    beside = path.parent / "config.json"
    try:
        config = json.loads(read_bytes(beside, 1 << 24))
    except (OSError, ValueError):
        return {}, ""
    if not isinstance(config, dict) or "architecture" not in config:
        return {}, ""  # of another library
    stated = config.get("pretrained_cfg", config)
    place = f"config.json beside {path.name}"
    return ({**stated, "architecture": config["architecture"]}, place) if isinstance(stated, dict) else ({}, "")


def choose_net(tensors: Mapping[str, Tensor], needed: Collection[str], what: str, key: str = "") -> NetState:
    """Find the net of some names in a checkpoint, whatever prefix they have there.

    Of raw weights and their moving average it takes the average (a part of the prefix is called ``ema``,
    ``state_dict_ema``, ``model_ema`` …), as timm does.

    Args:
        tensors: see :attr:`Checkpoint.tensors`.
        needed: names that the net must have.
        what: the file, for messages.
        key: prefix, or parts of it, of the net that is wanted.

    Returns:
        its state dict; where no net has all the names, that of the one which has the most.

    Raises:
        UserError: several nets fit and none is preferred, or none stands at ``key``.
    """
    clean = _without_wrappers(tensors, needed, what)
    counts = _count_names(clean, set(needed))
    raw = {prefix: _raw_prefix(prefix, clean, needed) for prefix in counts}
    wanted = [prefix for prefix in counts if _is_at(key, prefix, raw[prefix])]
    if key and not wanted:
        raise UserError(f"{what} has no such net at key={key}; it has some at {_in_words(raw.values())}")
    most = max((counts[prefix] for prefix in wanted), default=0)
    fitting = sorted((prefix for prefix in wanted if counts[prefix] == most), key=_preference)
    if most == len(needed) and len(fitting) > 1 and _preference(fitting[0]) == _preference(fitting[1]):
        places = _in_words(raw[prefix] for prefix in fitting)
        raise UserError(f"{what} holds several such nets, at {places}: say which with key=")
    prefix, others = (fitting[0], fitting[1:]) if fitting else ("", [])
    inner = tuple(other for other in others if other.startswith(prefix))
    own = [name for name in clean if name.startswith(prefix) and not name.startswith(inner)]
    note = f"net {_in_words([raw[prefix]])}" if fitting and (raw[prefix] or others) else ""
    if others and most == len(needed):
        note += f" (not {_in_words(raw[other] for other in others)}, which key= would choose)"
    return NetState({name.removeprefix(prefix): tensors[clean[name]] for name in own}, note)


def has_net(tensors: Mapping[str, Tensor], needed: Collection[str], what: str, key: str = "") -> bool:
    """Whether a checkpoint holds a net with all of some names; arguments as for :func:`choose_net`."""
    clean = _without_wrappers(tensors, needed, what)
    counts = _count_names(clean, set(needed))
    return any(
        count == len(needed) and _is_at(key, prefix, _raw_prefix(prefix, clean, needed))
        for prefix, count in counts.items()
    )


def _is_at(key: str, prefix: str, raw: str) -> bool:
    """Whether a key names a prefix, or parts of it, with what frameworks put in or without."""
    return not key or f".{key}." in f".{prefix}" or f".{key}." in f".{raw}"


def _in_words(prefixes: Iterable[str]) -> str:
    return ", ".join(prefix.removesuffix(".") or "the top level" for prefix in prefixes)


def _without_wrappers(tensors: Mapping[str, Tensor], needed: Collection[str], what: str) -> dict[str, str]:
    """Names without the parts that frameworks put in, unless the net has such parts → names in the file."""
    if any(part in _WRAPPERS for name in needed for part in name.split(".")):
        return {name: name for name in tensors}
    clean: dict[str, str] = {}
    for name in tensors:
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in clean:
            raise UserError(f"{what} holds two tensors of one name, {clean[short]} and {name}")
        if not short.endswith("n_averaged"):  # torch.optim.swa_utils counts in its models
            clean[short] = name
    return clean


def _count_names(names: Iterable[str], needed: set[str]) -> Counter[str]:
    """How many of the needed names stand behind each prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in needed:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _raw_prefix(prefix: str, clean: Mapping[str, str], needed: Collection[str]) -> str:
    """A prefix as it stands in the file."""
    name = next(name for name in clean if name.startswith(prefix) and name.removeprefix(prefix) in needed)
    own = name.removeprefix(prefix)
    return clean[name].removesuffix(own) if clean[name].endswith(own) else prefix


def _preference(prefix: str) -> int:
    """Rank of a net among several of a file: averaged weights, the top level, those that are evaluated, any other."""
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
