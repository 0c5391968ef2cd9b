"""Registries of tasks and protocols, and user-defined objects imported by name, ``package.module:name``."""

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from crosschannel.errors import UserError, wrap_external_errors


@dataclass(frozen=True)
class Entry:
    """An entry of a registry: a pretext task, or a protocol.

    Attributes:
        import_path: module:name.
        config: the dataclass of its keys, or module:class of it.
        help: one line.
    """

    import_path: str
    config: str | type
    help: str

    @classmethod
    def custom(cls, import_path: str, keys: type, documented: type) -> "Entry":
        """The entry of a user-defined object; its help is the first line of a class's docstring."""
        doc = (documented.__doc__ or "").strip() or import_path
        return cls(import_path, keys, doc.splitlines()[0])

    @property
    def keys(self) -> type:
        """The dataclass of its keys."""
        return self.config if isinstance(self.config, type) else resolve_name(self.config)

    def load(self) -> Any:
        """Import the task or the protocol."""
        return resolve_name(self.import_path)


def find_entry(
    name: str, registry: Mapping[str, Entry], group: str, user_entry: Callable[[str], Entry]
) -> Entry | None:
    """Look up an entry by name: built in, an installed package's entry point, or ``package.module:name``.

    Args:
        name: as typed.
        registry: built-in entries by name.
        group: group of entry points.
        user_entry: import path of a user-defined object → its entry.

    Raises:
        UserError: it cannot be imported.
    """
    if name in registry:
        return registry[name]
    import_path = name if is_factory(name) else entry_point_names(group).get(name)
    return user_entry(import_path) if import_path else None


def is_factory(name: str) -> bool:
    """Whether a name is written as one of a factory."""
    return re.fullmatch(r"(?!timm:)[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """Add the working directory to ``sys.path``: first, like ``python -m``, or last under ``PYTHONSAFEPATH``, so that a
    job's copy of the code takes precedence."""
    sys.path.insert(len(sys.path) if sys.flags.safe_path else 0, "")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code removed it
            sys.path.remove("")


def import_object(name: str) -> Any:
    """Import a user's ``package.module:name``.

    Raises:
        UserError: it cannot be imported, or the module is Python's own.
    """
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{name!r}: {module} is in the standard library; name a module of yours")
    with wrap_external_errors(f"cannot import {name!r}"), working_folder_importable():
        imported = getattr(importlib.import_module(module), attribute)
    if "" not in sys.path:  # for lazy imports in the module, and for unpickling in spawned workers
        sys.path.append("")
    return imported


def entry_point_names(group: str) -> dict[str, str]:
    """The entry points of a group that installed packages define: their ``module:name``, by their names."""
    return {point.name: point.value for point in entry_points(group=group)}


def call_factory(name: str, in_channels: int | None = None) -> Any:
    """What a factory returns.

    Args:
        name: package.module:factory.
        in_channels: of the input, for a factory that takes ``in_channels`` or ``in_chans``.

    Raises:
        UserError: it cannot be imported, or fails.
    """
    factory, options = import_object(name), {}
    if in_channels is not None:
        with contextlib.suppress(TypeError, ValueError):  # of what tells nobody what it takes
            takes = inspect.signature(factory).parameters
            options = {key: in_channels for key in ("in_channels", "in_chans") if key in takes}
    with wrap_external_errors(f"{name}() failed"):
        return factory(**options)
