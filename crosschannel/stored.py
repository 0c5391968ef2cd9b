"""Readers for JSON, YAML and .npz files that check syntax, types and sizes, since files may be damaged or malicious.

A bad file raises a :class:`UserError`. Damaged lines of a log are skipped.
"""

import io
import json
import re
import zipfile
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from crosschannel.errors import UserError
from crosschannel.files import read_bytes, read_text

_MAX_YAML_LENGTH = 1 << 20  # in characters
LARGEST = 1 << 29  # maximum total size of the arrays in a file, in bytes


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is damaged.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, name: str) -> Any:
    """Parse JSON. ``name`` identifies the text in the error message.

    Raises:
        UserError: the text is damaged.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is damaged: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file, or an empty list if it does not exist. Damaged lines are skipped."""
    rows = []
    for line in read_bytes(path).splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_yaml(path: Path, name: str = "") -> dict[str, Any]:
    """Read a YAML file that contains a mapping. ``name`` identifies it in error messages; default: its path.

    Raises:
        UserError: as for :func:`parse_yaml`, or the file does not contain a mapping.
    """
    name = name or str(path)
    tree = parse_yaml(read_text(path), name)
    if not isinstance(tree, dict):
        raise UserError(f"{name} is damaged: it does not contain a mapping of keys")
    return tree


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML. 1e-3 is a number, and dates are strings. ``name`` identifies the text in error messages.

    Raises:
        UserError: invalid YAML, a duplicate key (YAML would silently use the last value), or an alias (which can expand
            exponentially).
    """
    import yaml

    if len(text) > _MAX_YAML_LENGTH:
        raise UserError(f"{name} is longer than {_MAX_YAML_LENGTH} characters")
    loader = _yaml_loader()
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise UserError(f"{name} has an alias (*name), which is not supported; repeat the value")
        _check_duplicates(yaml.compose(text, loader), name)
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{name} is not valid YAML: {_summarise(error)}") from None
    except RecursionError:
        raise UserError(f"{name} is nested too deeply") from None


@cache
def _yaml_loader() -> type:
    """Return PyYAML's safe loader with the number syntax of YAML 1.2: 017 is 17, and 12:30 is a string."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, regex) for tag, regex in rules if not tag.endswith((":timestamp", ":float", ":int"))]
            for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    number = r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: int(node.value))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{number})$"), list("-+0123456789."))
    return Loader


def _check_duplicates(node: Any, name: str) -> None:
    """Raise a UserError if a mapping of a YAML tree has a duplicate key."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        duplicate = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if duplicate is not None:
            raise UserError(f"{name} has the key {duplicate!r} twice")
        for _, value in node.value:
            _check_duplicates(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_duplicates(value, name)


def _summarise(error: Exception) -> str:
    """Return the problem that a YAML error describes, with its line number if known."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return problem + (f" in line {mark.line + 1}" if mark else "")


def read_arrays(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """Read the arrays of a ``.npz`` file, by name. Pickled arrays are rejected.

    Args:
        path: path of the file.
        limit: maximum total size of the arrays, in bytes.

    Raises:
        UserError: the file is damaged, or its headers do not match the data.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"it would unpack to more than {limit} bytes")
            arrays = {}
            for member in members:
                data = io.BytesIO(archive.read(member))
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, is_fortran, dtype = readers[np.lib.format.read_magic(data)](data)
                if dtype.hasobject or prod(shape) * dtype.itemsize != len(data.getvalue()) - data.tell():
                    raise ValueError(f"{member.filename} has a header that does not match its data")
                values = np.frombuffer(data.read(), dtype)
                arrays[member.filename.removesuffix(".npy")] = values.reshape(shape, order="F" if is_fortran else "C")
            return arrays
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # zipfile and NumPy raise exceptions of many types for damaged files
        raise UserError(f"{path} is damaged or not an .npz file: {error or type(error).__name__}") from None
