"""Lazy import of a package's public names, since importing torch takes seconds and few commands need it at startup."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a package that imports its public names on first use.

    Args:
        package: ``__name__`` of the package.
        modules: full names of modules, each mapped to the public names that it defines, separated by spaces. A public
            submodule is mapped to its own name.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get_attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(module_of[name])
        return module if module_of[name] == f"{package}.{name}" else getattr(module, name)

    names = sorted(module_of)
    return get_attribute, lambda: names, names
