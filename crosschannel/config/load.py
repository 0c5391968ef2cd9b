"""Build a checked config from layers: defaults, then YAML files, then flags or keyword arguments.

Every config that crosschannel uses is built or checked here, and so is every dataclass that it reads back from JSON.
pydantic checks the values, strictly: "5" is not a number.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from crosschannel.config.keys import default_of, describe_range, describe_type, flatten, keys_of, unwrap_optional
from crosschannel.errors import UserError, describe
from crosschannel.files import user_path
from crosschannel.stored import read_yaml

T = TypeVar("T")
RENAMED = {"crop.train": "crop.kind"}  # renamed keys, for old YAML files and run folders
_MAX_INT = 2**63 - 1  # the largest integer that file formats and libraries store
_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "predicate_failed"}


class UnknownKeyError(UserError):
    """Unknown key; the message suggests the closest match."""

    def __init__(self, name: str, known: Iterable[str]):
        close = get_close_matches(name, list(known), 1)
        super().__init__(f"no key {name[:80]!r}" + (f"; did you mean {close[0]}?" if close else ""))


class MissingKeysError(UserError):
    """Required keys have no value. Rules between keys have not been checked yet."""

    def __init__(self, names: Iterable[str]):
        super().__init__(f"missing: {', '.join(names)}")


def build(cls: type[T], tree: Mapping[str, Any]) -> T:
    """Build a config from a nested mapping of its keys, and check it.

    Missing keys take their defaults; in a group, those that the containing config sets for the group.

    Raises:
        UserError: an unknown key, a missing one, an invalid value, or a broken rule between keys (``check`` methods).
    """
    config = _construct(cls, tree)
    _check_rules(config)
    return config


def build_stored(cls: type[T], tree: Any, file: str) -> T:
    """Build a dataclass from stored JSON, and check it.

    Fields with the metadata ``stored: False`` are not read. A class may read its own stored form in a class method
    ``from_dict(tree)``, or convert trees of earlier versions in a static method ``upgrade(tree)``.

    Raises:
        UserError: as :func:`build`; the message names the file.
    """
    try:
        return build(cls, tree)
    except UserError as error:
        raise UserError(f"{file} is damaged, or of another version: {error}") from None


def check_config(config: T, kind: type[T] | None = None) -> T:
    """Check a config that was created in Python, and return a copy with every list or tuple of its declared type.

    Raises:
        UserError: not an instance of ``kind``, or as :func:`build`.
    """
    if kind and not isinstance(config, kind):
        raise UserError(f"this takes a config, {kind.__name__}(key=value, …), got {describe(config)}")
    return build(type(config), vars(config))


def _construct(cls: type, tree: Any, defaults: Any = None, prefix: str = "") -> Any:
    if hasattr(cls, "from_dict"):
        return cls.from_dict(tree)
    if isinstance(tree, cls):
        tree = vars(tree)
    if not isinstance(tree, Mapping):
        raise UserError(_mapping_error(cls, prefix.rstrip("."), tree))
    tree = getattr(cls, "upgrade", dict)(tree)
    hints = get_type_hints(cls, include_extras=True)
    known = {entry.name: entry for entry in fields(cls) if entry.init and entry.metadata.get("stored", True)}
    for name in tree:
        if name not in known:
            raise UnknownKeyError(f"{prefix}{name}", [prefix + name for name in known])
    values, missing = {}, []
    for name, entry in known.items():
        default = default_of(entry) if defaults is None else getattr(defaults, name)
        if name in tree:
            values[name] = _convert(tree[name], hints[name], default, prefix + name)
        elif default is MISSING:
            missing.append(prefix + name)
        else:
            values[name] = default
    if missing:
        raise MissingKeysError(missing)
    return cls(**values)


def _convert(value: Any, hint: Any, default: Any, name: str) -> Any:
    """Convert a value of JSON or YAML to the type of its key, and check it."""
    base_type, origin = unwrap_optional(hint), get_origin(unwrap_optional(hint))
    if is_dataclass(base_type) and not (value is None and base_type is not hint):
        return _construct(base_type, value, default if is_dataclass(default) else None, f"{name}.")
    if origin is list and is_dataclass(get_args(base_type)[0]) and isinstance(value, list):
        return [_construct(get_args(base_type)[0], entry, None, f"{name}.") for entry in value]
    if origin in (list, tuple) and isinstance(value, list | tuple):
        value = origin(value)
    return check_value(name, value, hint)


def _mapping_error(cls: type, name: str, value: Any) -> str:
    example = f"--{name}.{fields(cls)[0].name}"
    if name:
        return f"{name} is a group of keys: give one, such as {example}, got {str(value)[:80]!r}"
    return f"expected a mapping of keys, got {describe(value)}"


def _check_rules(config: Any) -> None:
    """Run the ``check`` methods of a config and its groups, those of groups first."""
    for entry in fields(config):
        value = getattr(config, entry.name, None)
        if is_dataclass(value) and not isinstance(value, type):
            _check_rules(value)
    if hasattr(config, "check"):
        config.check()


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Check a value by its type, and return it; a whole number becomes a float if the type is float.

    Raises:
        UserError: a wrong type, a value out of range, NaN, infinity, a NUL or more than 63 bits.
    """
    from pydantic import ValidationError

    for leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise UserError(f"{name} must be a finite number, got {value}")
        if isinstance(leaf, str) and "\0" in leaf:
            raise UserError(f"{name} holds a NUL character: {leaf!r}")
    try:
        checked = _validator(hint).validate_python(value, strict=True)
    except ValidationError as error:
        is_out_of_range = any(detail["type"] in _RANGE_ERRORS for detail in error.errors(include_url=False))
        expected = describe_range(hint) if is_out_of_range else describe_type(hint)
        raise UserError(f"{name} must be {expected}, got {value!r}") from None
    large = next((leaf for leaf in _leaves(value) if isinstance(leaf, int | float) and abs(leaf) > _MAX_INT), None)
    if large is not None:
        raise UserError(f"{name} must be a number of at most 63 bits, got {str(large)[:20]}")
    return checked


@cache
def _validator(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def require(holds: bool, rule: str, value: object) -> None:
    """Raise a :class:`UserError` if a rule between keys does not hold."""
    if not holds:
        raise UserError(f"{rule}, got {value}")


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay one nested mapping on another; groups are merged key by key."""
    merged = dict(base)
    for name, value in layer.items():
        is_group = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if is_group else value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.lr": 1} → {"optim": {"lr": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, rest = name.partition(".")
        tree = merge(tree, {group: nest({rest: value})} if dot else {name: value})
    return tree


def override(config: T, overrides: Mapping[str, Any]) -> T:
    """Return a copy of a config with some values replaced. Types and ranges are checked, rules between keys are not.

    Args:
        config: the config; it is not changed.
        overrides: values by key, NumPy and torch numbers included. A key of a group has its dotted name, or its last
            part if no other group has such a key (``epochs`` is ``train.epochs``). A group can be given whole.

    Raises:
        UserError: an unknown key, an ambiguous short name, or an invalid value.
    """
    names = [key.name for key in keys_of(type(config))]
    names += list(dict.fromkeys(key.group for key in keys_of(type(config)) if key.group))
    flat = {}
    for name, value in overrides.items():
        matches = [name] if name in names else [known for known in names if known.rpartition(".")[2] == name]
        if len(matches) > 1:
            raise UserError(f"the key {name!r} may be {' or '.join(matches)}: give it as **{{{matches[0]!r}: …}}")
        if not matches:
            raise UnknownKeyError(name, [*names, *(known.rpartition(".")[2] for known in names)])
        flat[matches[0]] = _to_builtin(value)
    return _construct(type(config), merge(asdict(config), nest(flat)))


def _to_builtin(value: Any) -> Any:
    """Convert NumPy and torch values to numbers or lists, ranges and tuples to lists, a dataclass to a dictionary."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, range | tuple) else value


def rename(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former names of keys by the current ones."""
    return nest({RENAMED.get(name, name): value for name, value in flatten(tree).items()})


def to_yaml(config: Any) -> str:
    """Format a config, or its nested mapping, as YAML, with all keys in order and tuples as lists."""
    tree = asdict(config) if is_dataclass(config) else config
    return yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, allow_unicode=True)


def config_folder() -> Path:
    """The folder of packaged configs: in the wheel, or at the top of a checkout."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(name: str, folder: Path, flag: str = "config") -> Path:
    """Find a config file: a path, or the name of a packaged one.

    Args:
        name: path or name, as typed.
        folder: folder of the packaged configs.
        flag: name of the flag, "config" or "profile".

    Raises:
        UserError: there is none; the message lists the packaged ones.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
    raise UserError(f"no {flag} {name!r}: not a file, and not a packaged {flag} ({known})")


def read_config(path: Path, flag: str = "config") -> dict[str, Any]:
    """Read a YAML file as a layer.

    Raises:
        UserError: the file is damaged, or has a dotted key, a key that is not a string, or the key "config".
    """
    tree = read_yaml(path, f"the {flag} {path}")
    for key in tree:
        if not isinstance(key, str) or "." in key or key == "config" or key.startswith("__"):
            raise UserError(f"the {flag} {path}: key {key!r} is not allowed; write groups as train: {{steps: 3}}")
    return rename(tree)
