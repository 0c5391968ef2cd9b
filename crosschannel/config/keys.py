"""The keys of a config dataclass, with types, defaults and descriptions, and queries by role."""

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
    """A key of a config.

    Attributes:
        name: dotted, such as "optim.lr".
        hint: type annotation, including metadata.
        default: default value, or MISSING.
        description: string literal below the field.
        owner: dataclass that has the field.
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
        """Its role of that kind, if any."""
        return next((entry for entry in self.metadata if isinstance(entry, kind)), None)

    @property
    def is_runtime(self) -> bool:
        """Whether a resumed run may change it."""
        files = self.role(File)
        return RUNTIME in self.metadata or self.role(Data) is not None or bool(files and files.download)

    @property
    def is_required(self) -> bool:
        """Whether a value must be set. Backbone and data may default to "": Python calls pass them separately."""
        names_input = self.role(Source) or self.role(Data)
        return self.default is MISSING or (names_input is not None and self.default == "")

    @property
    def is_hidden(self) -> bool:
        """Whether help leaves it out: it is internal, or the command ignores it."""
        return HIDDEN in self.metadata or self.name in getattr(self.owner, "ignored", ())

    @property
    def type(self) -> Any:
        """Its type without metadata and None."""
        return unwrap_optional(self.hint)

    @property
    def element(self) -> Any:
        """Type of the elements of a list or tuple, without metadata; None for other types."""
        return element_type(self.type)


@cache
def keys_of(config: type) -> tuple[Key, ...]:
    """Return every key of a config dataclass, those of groups included, in the order of its fields."""
    return tuple(_walk(config, None, ""))


def _walk(config: type, defaults: Any, prefix: str) -> Iterator[Key]:
    hints, descriptions = get_type_hints(config, include_extras=True), describe_fields(config)
    for entry in fields(config):
        default = getattr(defaults, entry.name) if defaults is not None else default_of(entry)
        if is_dataclass(hints[entry.name]):
            group = None if default is MISSING else default
            yield from _walk(hints[entry.name], group, f"{prefix}{entry.name}.")
        else:
            name = prefix + entry.name
            yield Key(name, hints[entry.name], default, descriptions.get(entry.name, ""), config)


def default_of(entry: Field) -> Any:
    """Default of a dataclass field; MISSING if it has none."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


@cache
def describe_fields(config: type) -> dict[str, str]:
    """Return the string literal below each field of a dataclass, by field name, including inherited fields."""
    descriptions: dict[str, str] = {}
    for base in reversed(config.__mro__):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body if is_dataclass(base) else (None,)
        except (OSError, TypeError):  # class created by make_dataclass
            continue
        for entry, below in pairwise(getattr(tree, "body", ())):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and is_text:
                descriptions[entry.target.id] = " ".join(str(below.value.value).split())
    return descriptions


def items(config: Any) -> Iterator[tuple[Key, Any]]:
    """Yield every key of a config with its value."""
    for key in keys_of(type(config)):
        yield key, attrgetter(key.name)(config)


def values_of_role(config: Any, role: type) -> dict[str, Any]:
    """Values by dotted name of the keys that have a role (Source, Data or File) and a value."""
    return {key.name: value for key, value in items(config) if key.role(role) and value not in (None, "", [])}


def sources(config: Any) -> Iterator[tuple[str, Source, str]]:
    """Yield (name, role, source) for every source in a config; the name has a number, from 1, if the key is a list."""
    for key, value in items(config):
        role = key.role(Source)
        if role and value not in (None, "", []):
            texts = value if isinstance(value, list | tuple) else [value]
            for number, text in enumerate(texts, 1):
                if role.extract(text):
                    yield f"{key.name} {number}" if texts is value else key.name, role, role.extract(text)


def allows_download(config: Any) -> bool:
    """Whether a config allows missing images to be downloaded."""
    roles = (key.role(Data) or key.role(File) for key in keys_of(type(config)))
    return any(getattr(config, role.download or "", False) for role in roles if role)


def input_paths(config: Any) -> dict[str, list[str]]:
    """Files and folders that a config's File keys name, by key, except packaged ones and those to be downloaded."""
    paths = {}
    for key, value in items(config):
        role = key.role(File)
        if role and value not in (None, "", []) and not getattr(config, role.download or "", False):
            texts = value if isinstance(value, list | tuple) else [value]
            paths[key.name] = [text for text in texts if text not in role.packaged]
    return paths


def science(config: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that distinguish runs, by dotted name, without backbone, data, input files and seed.

    Args:
        config: the config.
        stored: its values with ``auto`` resolved, as in a run's ``config.yaml``.
    """
    excluded = {key.name for key, value in items(config) if key.is_runtime or _is_input(key, value)}
    return {name: value for name, value in flatten(stored).items() if name not in excluded}


def _is_input(key: Key, value: Any) -> bool:
    """Whether a key is the seed, or names a backbone, images or a file that is not the package's."""
    files = key.role(File)
    is_packaged = files is not None and value in files.packaged
    return SEED in key.metadata or key.role(Source) is not None or (files is not None and not is_packaged)


def legacy_defaults(config: type) -> dict[str, Any]:
    """Return the values to assume for keys that a stored config lacks, by dotted name: legacy or current defaults."""
    values = {}
    for key in keys_of(config):
        legacy = key.role(LegacyDefault)
        if legacy or key.default is not MISSING:
            values[key.name] = legacy.value if legacy else key.default
    return flatten(values)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} → {"optim.lr": 1}, tuples as lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def unwrap_optional(hint: Any) -> Any:
    """A type without metadata, and without None in a union."""
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
    """Type of the elements of a list or tuple type, without metadata; None for other types."""
    return unwrap_optional(get_args(hint)[0]) if get_origin(hint) in (list, tuple) else None


def is_optional(hint: Any) -> bool:
    """Whether a type includes None."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def describe_type(hint: Any) -> str:
    """Describe a type in words, without its range."""
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
        return f"a list, each {describe_type(arguments[0])}"
    if origin is dict:
        return f"a dictionary, each value {describe_type(arguments[1])}"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return words.get(origin or hint, "None" if hint is type(None) else getattr(hint, "__name__", str(hint)))


def describe_range(hint: Any) -> str:
    """Describe the range or pattern of a type, or of the elements of a list; empty if there is none."""
    for entry in getattr(hint, "__metadata__", ()):
        if isinstance(entry, Pattern):
            return entry.phrase
        gt, ge, lt, le = (getattr(entry, bound, None) for bound in ("gt", "ge", "lt", "le"))
        if None not in (ge, le):
            return f"within {ge}..{le}"
        if None not in (gt, lt):
            return f"between {gt} and {lt}"
        bounds = {"above": gt, "at least": ge, "at most": le, "below": lt}
        if any(limit is not None for limit in bounds.values()):
            return " and ".join(f"{word} {limit}" for word, limit in bounds.items() if limit is not None)
    return next(filter(None, map(describe_range, get_args(hint))), "")
