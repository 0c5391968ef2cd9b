"""Import user-defined objects by name, ``package.module:name``: functions that return nets or data, and tasks."""

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from crosschannel.errors import UserError, foreign


def is_factory(name: str) -> bool:
    """Whether a name is written as one of a factory."""
    return re.fullmatch(r"(?!timm:)[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """What stands in the working folder can be named, as with ``python -m``."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.pop(0)


def import_object(name: str) -> Any:
    """Import a user's ``package.module:name``.

    Raises:
        UserError: it cannot be imported, or the module is Python's own.
    """
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{name!r}: {module} is in the standard library; name a module of yours")
    with foreign(f"cannot import {name!r}"), working_folder_importable():
        return getattr(importlib.import_module(module), attribute)


def installed_names(group: str) -> dict[str, str]:
    """The entry points of a group that installed packages define: their ``module:name``, by their names."""
    return {point.name: point.value for point in entry_points(group=group)}


def make(name: str, in_channels: int | None = None) -> Any:
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
    with foreign(f"{name}() failed"):
        return factory(**options)
