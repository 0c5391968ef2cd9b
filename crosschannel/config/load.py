"""Build validated configs from layers: defaults, then YAML files, then flags or keyword arguments.

Every config is built or validated here, and so is every dataclass that is read back from JSON. pydantic validates
values in strict mode: "5" is not a number.
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
RENAMED = {"crop.train": "crop.kind"}  # old names of keys, accepted in flags, YAML files and run folders
_MAX_INT = 2**63 - 1  # largest integer that file formats and libraries can store
_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "predicate_failed"}


class UnknownKeyError(UserError):
    """Unknown key. The message suggests the closest match."""

    def __init__(self, name: str, known_names: Iterable[str]):
        matches = get_close_matches(name, list(known_names), 1)
        super().__init__(f"unknown key {name[:80]!r}" + (f"; did you mean {matches[0]}?" if matches else ""))


class MissingKeysError(UserError):
    """Required keys without a value. Raised before cross-key rules are checked."""

    def __init__(self, names: Iterable[str]):
        super().__init__(f"the following keys are required: {', '.join(names)}")


def build(cls: type[T], tree: Mapping[str, Any]) -> T:
    """Build a config from a nested mapping of values, and validate it.

    Missing keys get their defaults. Missing keys of a group take the defaults of the enclosing config.

    Raises:
        UserError: an unknown key, a missing required key, an invalid value, or values that violate a cross-key rule
            (``check`` methods).
    """
    config = _construct(cls, tree)
    _check_rules(config)
    return config


def build_stored(cls: type[T], tree: Any, file: str) -> T:
    """Build a dataclass from a stored JSON value, and validate it.

    Fields with the metadata ``stored: False`` are not read. A class can define a class method ``from_dict(tree)`` to
    parse its stored form itself, or a static method ``upgrade(tree)`` to convert the form of earlier versions.

    Raises:
        UserError: as for :func:`build`; the message names the file.
    """
    try:
        return build(cls, tree)
    except UserError as error:
        raise UserError(f"{file} is damaged or from another version: {error}") from None


def check_config(config: T, kind: type[T] | None = None) -> T:
    """Validate a config created in Python, and return a copy with sequences converted to their declared type.

    Raises:
        UserError: ``config`` is not an instance of ``kind``, or as for :func:`build`.
    """
    if kind and not isinstance(config, kind):
        raise UserError(f"expected a config, {kind.__name__}(key=value, …), got {describe(config)}")
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
    fields_by_name = {field.name: field for field in fields(cls) if field.init and field.metadata.get("stored", True)}
    for name in tree:
        if name not in fields_by_name:
            raise UnknownKeyError(f"{prefix}{name}", [prefix + name for name in fields_by_name])
    values, missing = {}, []
    for name, field in fields_by_name.items():
        default = default_of(field) if defaults is None else getattr(defaults, name)
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
    """Convert a JSON or YAML value to the type of its key, and validate it."""
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
        return f"{name} is a group of keys, got {str(value)[:80]!r}; set one of its keys, such as {example}"
    return f"expected a mapping of keys, got {describe(value)}"


def _check_rules(config: Any) -> None:
    """Run the ``check`` methods of a config's groups, then its own."""
    for field in fields(config):
        value = getattr(config, field.name, None)
        if is_dataclass(value) and not isinstance(value, type):
            _check_rules(value)
    if hasattr(config, "check"):
        config.check()


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Validate a value against its type, and return it. An integer becomes a float if the type is float.

    Args:
        name: name of the value in error messages.
        value: value to validate.
        hint: type annotation.

    Raises:
        UserError: a wrong type, a value out of range, NaN, infinity, a NUL character, or a magnitude above 2**63 - 1.
    """
    from pydantic import ValidationError

    for leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise UserError(f"{name} must be a finite number, got {value}")
        if isinstance(leaf, str) and "\0" in leaf:
            raise UserError(f"{name} contains a NUL character: {leaf!r}")
    try:
        valid_value = _validator(hint).validate_python(value, strict=True)
    except ValidationError as error:
        is_out_of_range = any(detail["type"] in _RANGE_ERRORS for detail in error.errors(include_url=False))
        expected = describe_range(hint) if is_out_of_range else describe_type(hint)
        raise UserError(f"{name} must be {expected}, got {value!r}") from None
    too_large = next((leaf for leaf in _leaves(value) if isinstance(leaf, int | float) and abs(leaf) > _MAX_INT), None)
    if too_large is not None:
        raise UserError(f"{name} must be at most 2**63 - 1 in magnitude, got {str(too_large)[:20]}")
    return valid_value


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


def require(condition: bool, rule: str, value: object) -> None:
    """Raise a :class:`UserError` that states the rule and the value, unless the condition holds."""
    if not condition:
        raise UserError(f"{rule}, got {value}")


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated with ``layer``. Groups, i.e. nested mappings, are merged key by key."""
    merged = dict(base)
    for name, value in layer.items():
        is_group = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if is_group else value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nest a mapping of dotted names: {"optim.lr": 1} → {"optim": {"lr": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, subkey = name.partition(".")
        tree = merge(tree, {group: nest({subkey: value})} if dot else {name: value})
    return tree


def override(config: T, overrides: Mapping[str, Any]) -> T:
    """Return a copy of a config with some values replaced. Types and ranges are validated, cross-key rules are not.

    Args:
        config: config to copy.
        overrides: values by key; NumPy and torch values are converted. A key in a group is addressed by its dotted
            name, or by its last component if that is unique (``epochs`` for ``train.epochs``). The value of a group is
            a mapping or a dataclass.

    Raises:
        UserError: an unknown key, an ambiguous short name, or an invalid value.
    """
    names = [key.name for key in keys_of(type(config))]
    names += list(dict.fromkeys(key.group for key in keys_of(type(config)) if key.group))
    flat = {}
    for name, value in overrides.items():
        matches = [name] if name in names else [known for known in names if known.rpartition(".")[2] == name]
        if len(matches) > 1:
            raise UserError(f"ambiguous key {name!r}: {' or '.join(matches)}; pass **{{{matches[0]!r}: …}}")
        if not matches:
            raise UnknownKeyError(name, [*names, *(known.rpartition(".")[2] for known in names)])
        flat[matches[0]] = _to_builtin(value)
    return _construct(type(config), merge(asdict(config), nest(flat)))


def _to_builtin(value: Any) -> Any:
    """Convert NumPy and torch values to numbers or lists, ranges and tuples to lists, and dataclasses to dicts."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, range | tuple) else value


def rename(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replace old names of keys with the current ones, in a nested mapping."""
    return nest({RENAMED.get(name, name): value for name, value in flatten(tree).items()})


def to_yaml(config: Any) -> str:
    """Format a config or its nested mapping as YAML, with keys in order and tuples as lists."""
    tree = asdict(config) if is_dataclass(config) else config
    return yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, allow_unicode=True)


def config_folder() -> Path:
    """Return the folder of packaged configs, in the installed package or at the top of a checkout."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(name: str, folder: Path, flag: str = "config") -> Path:
    """Find a config file by its path, or by the name of a packaged config.

    Args:
        name: path or name, as the user typed it.
        folder: folder of the packaged configs.
        flag: name of the flag, "config" or "profile".

    Raises:
        UserError: no such config; the message lists the packaged ones.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    packaged_names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
    raise UserError(f"unknown {flag} {name!r}: not a file, and not a packaged {flag} ({packaged_names})")


def read_config(path: Path, flag: str = "config") -> dict[str, Any]:
    """Read a layer of values from a YAML file.

    Raises:
        UserError: the file is damaged, or has a dotted key, a key that is not a string, or the key "config".
    """
    tree = read_yaml(path, f"the {flag} {path}")
    for key in tree:
        if not isinstance(key, str) or "." in key or key == "config" or key.startswith("__"):
            raise UserError(f"the {flag} {path}: key {key!r} is not allowed; write groups as train: {{steps: 3}}")
    return rename(tree)
