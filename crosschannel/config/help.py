"""Help on the keys of a config: how each is typed, its description, range and default."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from crosschannel.config.flags import spellings
from crosschannel.config.keys import Key, describe_range, keys_of
from crosschannel.config.types import Data, File, Source

_COLUMN = 28  # where descriptions begin


def key_lines(
    config: type, positional: Sequence[str], aliases: Mapping[str, str], recipe: Mapping[str, Any]
) -> list[str]:
    """Describe the keys of a command, group by group.

    Args:
        config: dataclass of its keys.
        positional: keys that are positional arguments.
        aliases: key by other name of its flag.
        recipe: values that replace defaults, by dotted name.
    """
    groups: dict[str, list[Key]] = {"": []}
    for key in keys_of(config):
        groups.setdefault(key.group, []).extend([] if key.is_hidden else [key])
    lines = []
    for group in sorted(groups, key=lambda group: _depth(config, group) if group else -1):
        heading = f"{docstring_title(groups[group][0].owner).rstrip('.') or group}:" if group else ""
        lines += ["", heading] if heading else [""]
        for key in sorted(groups[group], key=lambda key: _place(key, positional)):
            facts = _facts(key, recipe.get(key.name, key.default))
            lines += _entry(_left(key, positional, aliases), key.description + facts)
    return lines


def _depth(config: type, field: str) -> int:
    """How far up its bases a dataclass has a field: a command's own groups come before shared ones."""
    return next(depth for depth, base in enumerate(config.__mro__) if field in inspect.get_annotations(base))


def _place(key: Key, positional: Sequence[str]) -> tuple[bool, bool, bool]:
    """Positional arguments come first, then required keys; seed and device are last."""
    return key.name not in positional, not key.is_required, key.name in ("seed", "device")


def config_lines(folder: Path) -> list[str]:
    """A line for every config in a folder: its name, and the first sentence of the comment at its top."""
    paths = sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    longest = max((len(path.stem) for path in paths), default=0)
    room = max(20, _terminal_width() - longest - 4)
    return [f"  {path.stem:<{longest}}  {textwrap.shorten(_comment(path), room, placeholder=' …')}" for path in paths]


def _comment(path: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"\.(?= [A-Z])|\.$", " ".join(line.lstrip("# ") for line in lines))[0]


def _terminal_width() -> int:
    """Columns to lay text out for."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def docstring_title(config: type) -> str:
    """First line of a dataclass's docstring; empty if it has none of its own."""
    text = (config.__doc__ or "").strip()
    return "" if text.startswith(f"{config.__name__}(") else text.partition("\n")[0]  # dataclasses generate one


def _entry(left: str, text: str) -> Iterator[str]:
    lines = wrap(text, _COLUMN)
    if len(left) + 4 > _COLUMN:
        yield f"  {left}"
        yield from lines
    else:
        yield f"  {left:<{_COLUMN - 2}}{lines[0].strip() if lines else ''}".rstrip()
        yield from lines[1:]


def wrap(text: str, indent: int = 0) -> list[str]:
    """Wrap text to the terminal."""
    margin = " " * indent
    return textwrap.wrap(
        text, _terminal_width(), initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )


def _left(key: Key, positional: Sequence[str], aliases: Mapping[str, str]) -> str:
    """How a key is typed."""
    if key.name in positional:
        return key.name.upper()
    others = spellings(key.name, aliases)[len(spellings(key.name)) :]
    entry = ".NAME" if get_origin(key.type) is dict else ""
    return " ".join([", ".join([f"--{key.name}{entry}", *others]), _metavar(key)]).rstrip()


def _metavar(key: Key) -> str:
    """How its value is written."""
    choices = "|".join(str(choice) for choice in get_args(key.type))
    if get_origin(key.type) in (Union, UnionType) and bool in get_args(key.type):
        return f"{'|'.join(map(str, get_args(get_args(key.type)[0])))}|true|false"
    if get_origin(key.type) is Literal:
        return choices
    if key.type is bool:
        return "" if key.default is False else "true|false"
    number = {int: "N", float: "X"}
    name = key.name.rpartition(".")[2]
    if key.type in number:
        return number[key.type]
    if get_origin(key.type) is dict:
        return "VALUE"
    if key.element:
        return (
            f"{number[key.element]},{number[key.element]}…"
            if key.element in number
            else f"{name.rstrip('s').upper()} …"
        )
    roles = {Source: "SOURCE", Data: "DATA", File: "FILE"}
    return next((metavar for role, metavar in roles.items() if key.role(role)), name.upper())


def _facts(key: Key, default: Any) -> str:
    """Range and default, in brackets."""
    allowed = "" if key.element is str or key.type is str else describe_range(key.hint)
    facts = [allowed] if allowed and not allowed.startswith("at least") else []
    if key.is_required:
        facts.append("required")
    elif default not in (None, "", [], {}, MISSING) and default is not False and "default" not in key.description:
        facts.append(f"default {_format(default)}")
    return f" ({'; '.join(facts)})" if facts else ""


def _format(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_format, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
