"""What is read back from disk is data, not truth: JSON, YAML and arrays, checked for form, type and size in one place.

A bad file is one :class:`UserError`; lines of a log that are damaged are left out.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from crosschannel.errors import UserError
from crosschannel.files import read_bytes, read_text
from crosschannel.keys import check_config, fits

T = TypeVar("T")
_LONGEST_YAML = 1 << 20  # characters
LARGEST = 1 << 29  # bytes of the arrays of a file


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is damaged.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, what: str) -> Any:
    """What a JSON text says; ``what`` names it where it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is damaged: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; none where there is no file. What is damaged or cut off is left out."""
    rows = []
    for line in read_bytes(path).splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_yaml(path: Path, what: str = "") -> dict[str, Any]:
    """The keys of a YAML file; ``what`` names it in messages.

    Raises:
        UserError: it is no YAML, holds no keys, one of them twice, or aliases (which can stand for anything).
    """
    import yaml

    text, what = read_text(path), what or str(path)
    check_yaml(text, what)
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{what} is no YAML: {_first_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{what} is damaged: it holds no keys")
    return tree


def check_yaml(text: str, what: str) -> None:
    """Raise a UserError for a text that is no YAML, or that a reader would take for more, or less, than it says."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > _LONGEST_YAML:
        raise UserError(f"{what} is longer than {_LONGEST_YAML} characters")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise UserError(f"{what} has an alias (*name); write the value out")
        _check_keys(yaml.compose(text, loader), what)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{what} is no YAML: {_first_line(error)}") from None
    except RecursionError:
        raise UserError(f"{what} is nested too deeply") from None


def _check_keys(node: Any, what: str) -> None:
    """No mapping has a key twice: the second would win in silence."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise UserError(f"{what} has the key {twice!r} twice")
        for _, value in node.value:
            _check_keys(value, what)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, what)


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    words = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return words + (f" in line {mark.line + 1}" if mark else "")


def read_arrays(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """The arrays of a ``.npz`` file by name, none of them pickled.

    Args:
        path: the file.
        limit: bytes that they may have altogether.

    Raises:
        UserError: it is damaged, or claims to hold what it does not.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"it would unpack to more than {limit} bytes")
            found = {}
            for member in members:
                data = io.BytesIO(archive.read(member))
                head = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, in_columns, dtype = head[np.lib.format.read_magic(data)](data)
                if dtype.hasobject or prod(shape) * dtype.itemsize != len(data.getvalue()) - data.tell():
                    raise ValueError(f"{member.filename} is not what its head says")
                values = np.frombuffer(data.read(), dtype)
                found[member.filename.removesuffix(".npy")] = values.reshape(shape, order="F" if in_columns else "C")
            return found
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # decoders raise whatever they like on bytes they cannot read
        raise UserError(f"{path} is damaged or no .npz file: {error or type(error).__name__}") from None


def typed(cls: type[T], tree: Any, what: str) -> T:
    """A dataclass from what JSON had for it, its types and ranges checked.

    Raises:
        UserError: a key too many or too few, a value of another type or out of range; it begins with ``what``.
    """
    if hasattr(cls, "from_dict"):
        return cls.from_dict(tree, what)
    if not isinstance(tree, Mapping):
        raise UserError(f"{what} is damaged: it holds no keys")
    tree = getattr(cls, "of_earlier_version", dict)(tree)
    hints, values = get_type_hints(cls, include_extras=True), {}
    known = {entry.name: entry for entry in fields(cls) if entry.init}
    for key in tree:
        if key not in known:
            raise UserError(f"{what} is damaged, or of a newer version: it has the key {str(key)[:80]!r}")
    for key, entry in known.items():
        if key in tree:
            values[key] = _converted(tree[key], hints[key], f"{what}: {key}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{what} is damaged: it lacks the key {key!r}")
    try:
        found = cls(**values)
        check_config(found)
    except UserError as error:
        raise UserError(f"{what} is damaged: {error}") from None
    return found


def _converted(value: Any, hint: Any, what: str) -> Any:
    """A value of JSON as a key of this type has it."""
    if get_origin(hint) is list and is_dataclass(get_args(hint)[0]) and isinstance(value, list):
        return [typed(get_args(hint)[0], one, what) for one in value]
    inner = next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None)
    if inner and not (value is None and inner is not hint):
        return typed(inner, value, what)
    if not fits(value, hint):
        raise UserError(f"{what} is damaged: it is {str(value)[:80]!r}")
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return tuple(value) if get_origin(plain) is tuple else value
