"""A command's help, made from the dataclass of its keys: what each is for, its range and its default."""

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from crosschannel.console import stdout_console
from crosschannel.keys import Device, Range, Seed, declared, plain_type
from crosschannel.parsing import Command, config_folder, find_config, typed_flags
from crosschannel.runs.config import flatten, renamed
from crosschannel.stored import read_yaml

_UNUSED = "taken as by every command"  # what a key that a command has for uniformity's sake says of itself
_COLUMN = 28  # where explanations begin


def help_text(command: Command, program: str, name: str, argv: Sequence[str], folder: Path) -> str:
    """The help of a command.

    Args:
        command: one of a program's.
        program, name: what it is called.
        argv: its flags, of which some choose among keys.
        folder: of its packaged configs.

    Raises:
        UserError: flags that choose name nothing.
    """
    config = command.keys([word for word in argv if word not in ("-h", "--help")], folder)
    flag = command.told_by
    places = "".join(f" {key.upper()}{' …' if _is_list(config, key) else ''}" for key in command.positional)
    told = f" [--{flag} NAME|FILE]" if folder.is_dir() or hasattr(config, "default_out") else ""
    usage = f"usage: {program} {name}{command.head}{places}{told} [--KEY VALUE …]{command.tail}"
    title = command.help if command.head else _title(config) or command.help
    values = default_values(config) | (_recipe(argv, command, folder) if told else {})
    blocks = [usage, "", *_wrapped(title, 0)]
    listed = config_lines(folder, width())
    if listed:
        blocks += ["", f"{flag}s (--{flag} NAME, or a YAML file of yours):", *listed]
    blocks += ["", *_group(config, "", command, values)]
    for entry in sorted(fields(config), key=lambda entry: _depth(config, entry.name)):
        if is_dataclass(entry.type):
            title = _title(entry.type).rstrip(".") or entry.name
            blocks += ["", f"{title}:", *_group(entry.type, f"{entry.name}.", command, values)]
    if told:
        blocks += ["", f"--print_config prints the whole {flag}, --debug an error's traceback."]
    return "\n".join(blocks)


def show_configs(_config: Any) -> None:
    """`crosschannel configs`: the packaged configs, a line each, below the command that takes them."""
    console, top = stdout_console(), config_folder()
    found: dict[str, Path] = {}
    for folder in sorted({path.parent for path in top.rglob("*.yaml")}):
        words = folder.relative_to(top).parts
        found[" ".join([*(words if words[0] == "transfer" else ("crosschannel", *words)), "--config"])] = folder
    found["crosschannel-slurm submit --profile"] = Path(__file__).parents[1] / "slurm" / "profiles"
    for command, folder in found.items():
        console.print(command, markup=False)
        for line in config_lines(folder, width()):
            console.print(line, markup=False)


def config_lines(folder: Path, width: int) -> list[str]:
    """A line for every config of a folder: its name, and the first sentence of the comment that it begins with."""
    found = sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    longest = max((len(path.stem) for path in found), default=0)
    room = max(20, width - longest - 4)
    return [f"  {path.stem:<{longest}}  {textwrap.shorten(_comment(path), room, placeholder=' …')}" for path in found]


def _comment(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"\.(?= [A-Z])|\.$", " ".join(line.lstrip("# ") for line in lines))[0]


def _depth(config: type, key: str) -> int:
    """How far up among its bases a dataclass has a key from: what is a command's own comes before what is shared."""
    return next(depth for depth, base in enumerate(config.__mro__) if key in inspect.get_annotations(base))


def width() -> int:
    """Columns of the terminal that text is laid out for."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def _title(config: type) -> str:
    said = inspect.getdoc(config) or ""
    return "" if said.startswith(f"{config.__name__}(") else said.partition("\n")[0]  # dataclasses make one up


def default_values(config: type, prefix: str = "") -> dict[str, Any]:
    """Defaults by dotted name, those of groups as the command has them."""
    found: dict[str, Any] = {}
    for entry in fields(config):
        value = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if is_dataclass(entry.type):
            found |= {f"{prefix}{entry.name}.{inner.name}": getattr(value, inner.name) for inner in fields(value)}
        else:
            found[prefix + entry.name] = value
    return found


def _recipe(argv: Sequence[str], command: Command, folder: Path) -> dict[str, Any]:
    """What the config that is named has, by dotted name."""
    named = typed_flags(argv).get("--config")
    if not named:
        return {}
    path = find_config(named, folder, command.told_by)
    return flatten(renamed(read_yaml(path, f"the {command.told_by} {path}")))


def _group(config: type, prefix: str, command: Command, values: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a dataclass that are no groups: those given by place, those that are needed, the others."""
    hints, told = get_type_hints(config, include_extras=True), documented(config)
    own = [entry for entry in fields(config) if not is_dataclass(entry.type)]

    def place(entry: Field) -> tuple[bool, bool, bool]:
        last = not prefix and entry.name in ("seed", "device")
        return entry.name not in command.positional, not _is_needed(entry), last

    for entry in sorted(own, key=place):
        words = told.get(entry.name) or entry.metadata.get("help", "")
        if words.startswith(_UNUSED) or entry.metadata.get("hidden"):
            continue
        hint, name = hints[entry.name], f"{prefix}{entry.name}"
        if not prefix and entry.name in command.positional:
            left = entry.name.upper()
        else:
            aliases = [f"{'-' * min(2, len(alias))}{alias}" for alias, key in command.aliases.items() if key == name]
            of_a_dict = ".NAME" if get_origin(plain_type(hint)) is dict else ""
            left = " ".join([", ".join([f"--{name}{of_a_dict}", *aliases]), _shape(hint, entry)]).rstrip()
        yield from _entry(left, words + _facts(hint, entry, words, values.get(name, MISSING)))


def _entry(left: str, words: str) -> Iterator[str]:
    lines = _wrapped(words, _COLUMN)
    if len(left) + 4 > _COLUMN:
        yield f"  {left}"
        yield from lines
    else:
        yield f"  {left:<{_COLUMN - 2}}{lines[0].strip() if lines else ''}".rstrip()
        yield from lines[1:]


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text, width(), initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _shape(hint: Any, entry: Field) -> str:
    """How a value is written."""
    kind = plain_type(hint)
    if get_origin(hint) in (Union, UnionType) and bool in get_args(hint):
        return f"{'|'.join(map(str, get_args(kind)))}|true|false"
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if kind is bool:
        return "" if entry.default is False else "true|false"
    number = {int: "N", float: "X"}
    if kind in number:
        return number[kind]
    if get_origin(kind) is dict:
        return "VALUE"
    if get_origin(kind) in (list, tuple):
        inner = number.get(get_args(kind)[0])
        return f"{inner},{inner}…" if inner else f"{entry.name.rstrip('s').upper()} …"
    return {"source": "SOURCE", "data": "DATA", "path": "FILE"}.get(entry.metadata.get("role", ""), entry.name.upper())


def _facts(hint: Any, entry: Field, words: str, default: Any) -> str:
    """The range and the default, in brackets."""
    facts = [] if hint in (Seed, Device) else [rule.words for rule in declared(hint) if isinstance(rule, Range)]
    facts = [re.sub(r" and at most 1e\+09$", "", fact) for fact in facts if not fact.startswith("at least")]
    if _is_needed(entry):
        facts.append("needed")
    elif default not in (None, "", [], {}, MISSING) and default is not False and "default" not in words:
        facts.append(f"default {_written(default)}")
    return f" ({'; '.join(facts)})" if facts else ""


def _is_needed(entry: Field) -> bool:
    return entry.metadata.get("needed", False) or (entry.default is MISSING and entry.default_factory is MISSING)


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _is_list(config: type, key: str) -> bool:
    return get_origin(get_type_hints(config).get(key)) is list


@cache
def documented(config: type) -> dict[str, str]:
    """What stands below each field of a dataclass, by name, those that it inherits too."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body if is_dataclass(base) else (None,)
        except (OSError, TypeError):  # made at run time
            continue
        for entry, below in pairwise(getattr(tree, "body", ())):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and is_text:
                found[entry.target.id] = " ".join(str(below.value.value).split())
    return found
