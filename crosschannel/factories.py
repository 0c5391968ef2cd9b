"""Registry entries of tasks and protocols, and import of user-defined objects by ``package.module:name``."""

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
    """Registry entry of a pretext task or a protocol.

    Attributes:
        import_path: "module:name" of the task or protocol.
        config: dataclass of its keys, or "module:class" of that dataclass.
        help: one-line description.
    """

    import_path: str
    config: str | type
    help: str

    @classmethod
    def custom(cls, import_path: str, keys: type, documented: type) -> "Entry":
        """Create the entry of a user-defined object, with the first docstring line of ``documented`` as its help."""
        docstring = (documented.__doc__ or "").strip() or import_path
        return cls(import_path, keys, docstring.splitlines()[0])

    @property
    def keys(self) -> type:
        """Dataclass of the keys."""
        return self.config if isinstance(self.config, type) else resolve_name(self.config)

    def load(self) -> Any:
        """Import the task or protocol."""
        return resolve_name(self.import_path)


def find_entry(
    name: str, registry: Mapping[str, Entry], group: str, user_entry: Callable[[str], Entry]
) -> Entry | None:
    """Look up an entry by its built-in name, the name of an entry point, or ``package.module:name``.

    Args:
        name: name or import path, as the user typed it.
        registry: built-in entries by name.
        group: entry-point group of installed packages.
        user_entry: function that creates the entry of a user-defined object from its import path.

    Returns:
        the entry, or None if the name is unknown.

    Raises:
        UserError: the object cannot be imported.
    """
    if name in registry:
        return registry[name]
    import_path = name if is_factory(name) else entry_point_names(group).get(name)
    return user_entry(import_path) if import_path else None


def is_factory(name: str) -> bool:
    """Whether a name has the form ``package.module:name``."""
    return re.fullmatch(r"(?!timm:)[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """Temporarily add the working directory to ``sys.path``.

    It comes first, as for ``python -m``, or last under ``PYTHONSAFEPATH``, so that a job's copy of the code takes
    precedence.
    """
    sys.path.insert(len(sys.path) if sys.flags.safe_path else 0, "")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code removed it
            sys.path.remove("")


def import_object(name: str) -> Any:
    """Import a user-defined object, ``package.module:name``.

    Raises:
        UserError: the object cannot be imported, or its module belongs to the standard library.
    """
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{name!r}: {module} is in the standard library; choose your own module")
    with wrap_external_errors(f"cannot import {name!r}"), working_folder_importable():
        imported = getattr(importlib.import_module(module), attribute)
    if "" not in sys.path:  # for lazy imports in the module, and for unpickling in spawned workers
        sys.path.append("")
    return imported


def entry_point_names(group: str) -> dict[str, str]:
    """Return the entry points of a group in all installed packages: ``module:name`` by entry-point name."""
    return {entry_point.name: entry_point.value for entry_point in entry_points(group=group)}


def call_factory(name: str, in_channels: int | None = None) -> Any:
    """Import a factory and call it.

    Args:
        name: import path, ``package.module:factory``.
        in_channels: number of input channels, passed if the factory has a parameter ``in_channels`` or ``in_chans``.

    Raises:
        UserError: the factory cannot be imported, or fails.
    """
    factory, options = import_object(name), {}
    if in_channels is not None:
        with contextlib.suppress(TypeError, ValueError):  # some callables have no signature
            parameters = inspect.signature(factory).parameters
            options = {key: in_channels for key in ("in_channels", "in_chans") if key in parameters}
    with wrap_external_errors(f"{name}() failed"):
        return factory(**options)
