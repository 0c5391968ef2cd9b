"""Keys of config dataclasses, with their types, defaults and descriptions, and queries by role."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from crosschannel.config.types import HIDDEN, RUNTIME, SEED, Data, File, LegacyDefault, Pattern, Source

R = TypeVar("R")


@dataclass(frozen=True)
class Key:
    """Key of a config.

    Attributes:
        name: dotted name, such as "optim.lr".
        hint: type annotation, including metadata.
        default: default value, or MISSING.
        description: string literal below the field.
        owner: dataclass that declares or inherits the field.
    """

    name: str
    hint: Any
    default: Any
    description: str
    owner: type

    @property
    def group(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def metadata(self) -> tuple[Any, ...]:
        return getattr(self.hint, "__metadata__", ())

    def role(self, kind: type[R]) -> R | None:
        """Return the key's role of the given class, or None."""
        return next((item for item in self.metadata if isinstance(item, kind)), None)

    @property
    def is_runtime(self) -> bool:
        """Whether a resumed run may change the value."""
        files = self.role(File)
        return RUNTIME in self.metadata or self.role(Data) is not None or bool(files and files.download)

    @property
    def is_required(self) -> bool:
        """Whether a value must be set, also if backbone or data default to "" (Python callers pass them separately)."""
        input_role = self.role(Source) or self.role(Data)
        return self.default is MISSING or (input_role is not None and self.default == "")

    @property
    def is_hidden(self) -> bool:
        """Whether help omits the key, because it is internal or the command ignores it."""
        return HIDDEN in self.metadata or self.name in getattr(self.owner, "ignored", ())

    @property
    def type(self) -> Any:
        """Type of the value, without metadata and None."""
        return unwrap_optional(self.hint)

    @property
    def element(self) -> Any:
        """Type of the elements if the value is a list or tuple, without metadata; None for other types."""
        return element_type(self.type)


@cache
def keys_of(config: type) -> tuple[Key, ...]:
    """Return all keys of a config dataclass in field order, including the keys of its groups."""
    return tuple(_walk(config, None, ""))


def _walk(config: type, defaults: Any, prefix: str) -> Iterator[Key]:
    hints, descriptions = get_type_hints(config, include_extras=True), describe_fields(config)
    for field in fields(config):
        default = getattr(defaults, field.name) if defaults is not None else default_of(field)
        if is_dataclass(hints[field.name]):
            group_defaults = None if default is MISSING else default
            yield from _walk(hints[field.name], group_defaults, f"{prefix}{field.name}.")
        else:
            name = prefix + field.name
            yield Key(name, hints[field.name], default, descriptions.get(field.name, ""), config)


def default_of(field: Field) -> Any:
    """Return the default of a dataclass field, or MISSING."""
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def describe_fields(config: type) -> dict[str, str]:
    """Return the string literal below each field of a dataclass, by field name, including inherited fields."""
    descriptions: dict[str, str] = {}
    for base in reversed(config.__mro__):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body if is_dataclass(base) else (None,)
        except (OSError, TypeError):  # class created by make_dataclass
            continue
        for field, next_node in pairwise(getattr(tree, "body", ())):
            is_literal = isinstance(next_node, ast.Expr) and isinstance(next_node.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_literal:
                descriptions[field.target.id] = " ".join(str(next_node.value.value).split())
    return descriptions


def items(config: Any) -> Iterator[tuple[Key, Any]]:
    """Yield every key of a config with its value."""
    for key in keys_of(type(config)):
        yield key, attrgetter(key.name)(config)


def values_of_role(config: Any, role: type) -> dict[str, Any]:
    """Return the values of all keys with a role (Source, Data or File), by dotted name; empty values are omitted."""
    return {key.name: value for key, value in items(config) if key.role(role) and value not in (None, "", [])}


def sources(config: Any) -> Iterator[tuple[str, Source, str]]:
    """Yield (name, role, source) for every source in a config. Elements of a list are numbered from 1."""
    for key, value in items(config):
        role = key.role(Source)
        if role and value not in (None, "", []):
            elements = value if isinstance(value, list | tuple) else [value]
            for number, element in enumerate(elements, 1):
                if role.extract(element):
                    yield f"{key.name} {number}" if elements is value else key.name, role, role.extract(element)


def allows_download(config: Any) -> bool:
    """Whether a config permits downloading missing images."""
    roles = (key.role(Data) or key.role(File) for key in keys_of(type(config)))
    return any(getattr(config, role.download or "", False) for role in roles if role)


def input_paths(config: Any) -> dict[str, list[str]]:
    """Return the input files and folders in a config's File keys, by key, except packaged and downloadable ones."""
    paths = {}
    for key, value in items(config):
        role = key.role(File)
        if role and value not in (None, "", []) and not getattr(config, role.download or "", False):
            elements = value if isinstance(value, list | tuple) else [value]
            paths[key.name] = [element for element in elements if element not in role.packaged]
    return paths


def science(config: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that affect a run's results, by dotted name, except backbone, data, input files and seed.

    Args:
        config: config of the run.
        stored: nested mapping of its values with ``auto`` resolved, as in the run's ``config.yaml``.
    """
    excluded = {key.name for key, value in items(config) if key.is_runtime or _is_input(key, value)}
    return {name: value for name, value in flatten(stored).items() if name not in excluded}


def _is_input(key: Key, value: Any) -> bool:
    """Whether a key is the seed, or names a backbone or a file outside the package."""
    files = key.role(File)
    is_packaged = files is not None and value in files.packaged
    return SEED in key.metadata or key.role(Source) is not None or (files is not None and not is_packaged)


def legacy_defaults(config: type) -> dict[str, Any]:
    """Return the legacy (else current) default of every key by dotted name, for keys that a stored config lacks."""
    values = {}
    for key in keys_of(config):
        legacy = key.role(LegacyDefault)
        if legacy or key.default is not MISSING:
            values[key.name] = legacy.value if legacy else key.default
    return flatten(values)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to dotted names: {"optim": {"lr": 1}} → {"optim.lr": 1}. Tuples become lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def unwrap_optional(hint: Any) -> Any:
    """Strip metadata and None from a type, so that ``X | None`` becomes ``X``."""
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
            continue
        members = [member for member in get_args(hint) if member is not type(None)]
        if get_origin(hint) in (Union, types.UnionType) and len(members) == 1:
            hint = members[0]
            continue
        return hint


def element_type(hint: Any) -> Any:
    """Return the element type of a list or tuple type, without metadata, or None for other types."""
    return unwrap_optional(get_args(hint)[0]) if get_origin(hint) in (list, tuple) else None


def is_optional(hint: Any) -> bool:
    """Whether a type includes None."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def describe_type(hint: Any) -> str:
    """Describe a type for error messages, without its range."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe_type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and ... not in arguments:
        return f"{ {2: 'two', 3: 'three'}.get(len(arguments), len(arguments)) } numbers such as 0.5,1.0"
    if origin in (list, tuple):
        return f"a list, each element {describe_type(arguments[0])}"
    if origin is dict:
        return f"a dictionary, each value {describe_type(arguments[1])}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return names.get(origin or hint, "None" if hint is type(None) else getattr(hint, "__name__", str(hint)))


def describe_range(hint: Any) -> str:
    """Describe the range or pattern of a type or its elements for help and error messages, or return ""."""
    for constraint in getattr(hint, "__metadata__", ()):
        if isinstance(constraint, Pattern):
            return constraint.phrase
        gt, ge, lt, le = (getattr(constraint, bound, None) for bound in ("gt", "ge", "lt", "le"))
        if None not in (ge, le):
            return f"within {ge}..{le}"
        if None not in (gt, lt):
            return f"between {gt} and {lt}"
        bounds = {"above": gt, "at least": ge, "at most": le, "below": lt}
        if any(limit is not None for limit in bounds.values()):
            return " and ".join(f"{relation} {limit}" for relation, limit in bounds.items() if limit is not None)
    return next(filter(None, map(describe_range, get_args(hint))), "")
