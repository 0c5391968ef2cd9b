"""What is read back from disk is data, not truth: JSON, YAML and arrays, checked for form, type and size in one place.

A bad file is one :class:`UserError`; lines of a log that are damaged are left out.
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
        UserError: as :func:`parse_yaml`, or it holds no keys.
    """
    what = what or str(path)
    tree = parse_yaml(read_text(path), what)
    if not isinstance(tree, dict):
        raise UserError(f"{what} is damaged: it holds no keys")
    return tree


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; 1e-3 is a number, and a date is a string.

    Raises:
        UserError: it is no YAML, has a key twice (the second would win in silence), or aliases (a bomb).
    """
    import yaml

    if len(text) > _LONGEST_YAML:
        raise UserError(f"{what} is longer than {_LONGEST_YAML} characters")
    loader = _yaml_loader()
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise UserError(f"{what} has an alias (*name); write the value out")
        _check_keys(yaml.compose(text, loader), what)
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{what} is no YAML: {_first_line(error)}") from None
    except RecursionError:
        raise UserError(f"{what} is nested too deeply") from None


@cache
def _yaml_loader() -> type:
    """PyYAML's safe loader with the numbers of YAML 1.2: 017 is seventeen, and 12:30 is a string."""
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
