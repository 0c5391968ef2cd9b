"""The command line of a config: argparse splits it and formats help; each value is parsed by the type of its key."""

import inspect
import shutil
import textwrap
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_args, get_origin

from crosschannel.config.keys import Key, describe_range, element_type, is_optional, keys_of, unwrap_optional
from crosschannel.config.load import RENAMED, UnknownKeyError, nest
from crosschannel.config.types import Data, File, Source
from crosschannel.errors import UserError
from crosschannel.stored import parse_yaml

_COMMON = ("config", "help", "print_config", "debug")  # flags of every command


class _Parser(ArgumentParser):
    """An argparse parser with the flags that all commands share; it raises :class:`UserError` instead of exiting."""

    def __init__(self, config_flag: str = "config", **options: Any):
        super().__init__(add_help=False, allow_abbrev=False, **options)
        self.add_argument(
            *dict.fromkeys([f"--{config_flag}", "--config"]), dest="config", action="append", help=SUPPRESS
        )
        self.add_argument("-h", "--help", action="store_true", help=SUPPRESS)
        for name in _COMMON[2:]:
            self.add_argument(f"--{name}", action="store_true", help=SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def terminal_width() -> int:
    """Width for printed text: that of the terminal, at most 100 columns."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def split_at_separator(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words at the first ``--``: those after it are positional, even with a leading dash."""
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def read_common(words: Sequence[str], config_flag: str = "config", selector: str = "") -> Namespace:
    """Read the flags that all commands share, and the selector; ignore all others.

    Returns:
        ``config`` (a list) and ``selector``, None if absent, and the switches ``help``, ``print_config`` and ``debug``.
    """
    parser = _Parser(config_flag)
    parser.set_defaults(selector=None)
    if selector:
        parser.add_argument(f"--{selector}", dest="selector")
    return parser.parse_known_args(_rename_flags(split_at_separator(words)[0]))[0]


class CommandParser(_Parser):
    """The parser of a command: a flag for every key of its config.

    Args:
        config: dataclass of the keys.
        positional: names of keys that are positional arguments; a list takes all remaining words, and a hidden key
            those after ``--`` alone.
        aliases: keys by alias, without dashes.
        config_flag: name of the flag for a config file, also accepted as ``--config``.
        file_values: values from a config file, shown in help instead of defaults, by dotted name.
        options: arguments of :class:`argparse.ArgumentParser`, such as ``usage`` and ``description``.
    """

    def __init__(
        self,
        config: type,
        positional: Sequence[str] = (),
        aliases: Mapping[str, str] = MappingProxyType({}),
        config_flag: str = "config",
        file_values: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ):
        super().__init__(config_flag, argument_default=SUPPRESS, formatter_class=_Formatter, **options)
        self.keys, self.positional = {key.name: key for key in keys_of(config)}, positional
        self.aliases = {f"{'-' if len(alias) == 1 else '--'}{alias}": key for alias, key in aliases.items()}
        groups: dict[str, list[Key]] = {"": []}
        for key in self.keys.values():
            groups.setdefault(key.group, []).append(key)
        for group in sorted(groups, key=lambda group: _mro_index(config, group) if group else -1):
            if group:
                self.add_argument(f"--{group}", help=SUPPRESS)
            section = self.add_argument_group(docstring_title(groups[group][0].owner).rstrip(".") if group else None)
            for key in sorted(groups[group], key=self._sort_key):
                default = file_values.get(key.name, key.default)
                text = SUPPRESS if key.is_hidden else _describe(key, default)
                if key.name not in positional:
                    section.add_argument(*self._flags(key), dest=key.name, help=text, **self._arguments(key))
                elif text is not SUPPRESS:  # for help only; read() assigns the values
                    section.add_argument(key.name, nargs="*", metavar=key.name.upper(), help=text)

    def _sort_key(self, key: Key) -> tuple[bool, bool, bool]:
        """Sort positional arguments first, then required keys; seed and device last."""
        return key.name not in self.positional, not key.is_required, key.name in ("seed", "device")

    def _flags(self, key: Key) -> list[str]:
        entry = [f"--{key.name}.NAME"] if get_origin(key.type) is dict else []
        return [*entry, f"--{key.name}", *(flag for flag, name in self.aliases.items() if name == key.name)]

    def _arguments(self, key: Key) -> dict[str, Any]:
        """Arguments of ``add_argument``. A list flag takes several words, or one if a positional argument is a list (it
        would be ambiguous). Repeating a flag extends a list of strings."""
        arguments: dict[str, Any] = {"metavar": _metavar(key)}
        if key.type is bool:
            return arguments | {"nargs": "?", "const": "true"}
        if any(self.keys[name].element and not self.keys[name].is_hidden for name in self.positional):
            return arguments | {"action": "append" if _holds_strings(key.hint) else "store"}
        if _holds_strings(key.hint):
            return arguments | {"action": "extend", "nargs": "*"}
        return arguments | ({"nargs": "*"} if key.element else {})

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Read flags and positional arguments as a layer of values: a nested mapping by key.

        Raises:
            UserError: an unknown flag, a flag without a value, or too many words.
        """
        options, operands = split_at_separator(words)
        options = list(_rename_flags(options, self.aliases, [k for k, key in self.keys.items() if key.type is bool]))
        last = {word.partition("=")[0].removeprefix("--"): number for number, word in enumerate(options)}
        for name in last:  # entries of a dict key, such as --extra.NAME
            if "." in name and name.partition(".")[0] in self.keys:
                self.add_argument(f"--{name}", dest=name)
        for action in [action for action in self._actions if not action.option_strings]:
            self._remove_action(action)  # positional arguments may stand between flags
        parsed, rest = self.parse_known_args(options)
        unknown = next((word for word in rest if word.startswith("-") and word != "-"), None)
        if unknown is not None:
            name = unknown.partition("=")[0].removeprefix("--")
            if name in self.positional:
                raise UserError(f"{name} is a positional argument: give it without --{name}")
            if name and unknown.startswith("--"):
                raise UnknownKeyError(name, [*self.keys, *_COMMON])
            raise UserError(f"unrecognized argument {unknown}; a positional argument with a dash goes after --")
        values = {name: value for name, value in vars(parsed).items() if name not in _COMMON}
        in_order = sorted(values, key=lambda name: last.get(name, 0))  # of a group and its key, the last one wins
        layer = nest({name: parse_text(values[name], self._hint(name), name) for name in in_order})
        hidden = [name for name in self.positional if self.keys[name].is_hidden]
        if hidden:
            return layer | self._assign(rest, ()) | self._assign(operands, hidden)
        return layer | self._assign([*rest, *operands], self.positional)

    def _hint(self, name: str) -> Any:
        """Type of a key, of a group, or of an entry of a dict key."""
        if name in self.keys:
            return self.keys[name].hint
        base_type = self.keys[name.partition(".")[0]].type if "." in name else dict
        return get_args(base_type)[1] if get_args(base_type) else Any

    def _assign(self, words: list[str], names: Sequence[str]) -> dict[str, Any]:
        """Positional arguments by key."""
        values: dict[str, Any] = {}
        for name in names:
            if words:
                values[name], words = (words, []) if self.keys[name].element else (words[0], words[1:])
        if words:
            raise UserError(f"unexpected argument {words[0]!r}; --help lists the arguments")
        return values


def _rename_flags(
    words: Sequence[str], aliases: Mapping[str, str] = MappingProxyType({}), switches: Sequence[str] = ()
) -> Iterator[str]:
    """Normalise flags: ``--val-share`` → ``--val_share``, aliases and old names → keys, ``--no-mirror`` →
    ``--mirror=false``, and ``--mirror`` → ``--mirror=true`` unless true or false follows."""
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        name = aliases.get(flag, flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else "")
        name = RENAMED.get(name, name)
        if name.removeprefix("no_") in switches and not equals:
            is_explicit = name in switches and following.lower() in ("true", "false")
            yield f"--{name}" if is_explicit else f"--{name.removeprefix('no_')}={str(name in switches).lower()}"
        else:
            yield f"--{name}{equals}{value}" if name else word


def parse_text(text: str | list[str], hint: Any, name: str) -> Any:
    """Parse the text of a value by its type: strings unchanged, all else as YAML; lists of numbers may be ``1,2``.

    Args:
        text: one word, or several.
        hint: type of the value.
        name: its name in messages.
    """
    words = text if isinstance(text, list) else [text]
    base_type, joined = unwrap_optional(hint), ",".join(words)
    if is_optional(hint):
        if joined == "":
            raise UserError(f"{name} must not be empty")
        if joined == "null":
            return None
    if _holds_strings(hint):
        lists = [index for index, word in enumerate(words) if word.startswith("[")]
        if lists:  # the last YAML list replaces the words before it
            return [*parse_yaml(words[lists[-1]], name), *words[lists[-1] + 1 :]]
        return joined if len(words) == 1 and element_type(base_type) is None else words
    if base_type is str or (
        get_origin(base_type) is Literal and all(isinstance(choice, str) for choice in get_args(base_type))
    ):
        return joined
    is_sequence = element_type(base_type) is not None
    return parse_yaml(f"[{joined}]" if is_sequence and not joined.startswith("[") else joined, name)


def _holds_strings(hint: Any) -> bool:
    """Whether a type is a list of strings, or one or several strings."""
    base_type = unwrap_optional(hint)
    return element_type(base_type) is str or list[str] in get_args(base_type)


def docstring_title(config: type) -> str:
    """Return the first line of a dataclass's docstring, or "" if it was generated."""
    text = (config.__doc__ or "").strip()
    return "" if text.startswith(f"{config.__name__}(") else text.partition("\n")[0]  # dataclasses generate one


def _mro_index(config: type, field: str) -> int:
    """Index in the MRO of the class that declares a field, to list a command's own groups before shared ones."""
    return next(depth for depth, base in enumerate(config.__mro__) if field in inspect.get_annotations(base))


class _Formatter(RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=terminal_width())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def choices_of(key: Key) -> list[str]:
    """Return the allowed values of a Literal or bool key; empty for other types."""
    members = [choice for member in (key.type, *get_args(key.type)) for choice in get_args(member)]
    has_bool = key.type is bool or bool in get_args(key.type)
    return [*dict.fromkeys(choice for choice in members if isinstance(choice, str)), *["true", "false"] * has_bool]


def _metavar(key: Key) -> str:
    """Placeholder of a value in help, such as N or FILE."""
    choices = choices_of(key)
    if choices:
        return "|".join(choices)
    kinds = {int: "N", float: "X", dict: "VALUE"}
    roles = {Source: "SOURCE", Data: "DATA", File: "FILE"}
    role = next((metavar for role, metavar in roles.items() if key.role(role)), "")
    name = key.name.rpartition(".")[2].upper()
    return (
        kinds.get(key.element or get_origin(key.type) or key.type)
        or role
        or (name.rstrip("S") if key.element else name)
    )


def _describe(key: Key, default: Any) -> str:
    """Help of a key for argparse: its description, with range and default (or "required") in parentheses."""
    allowed = "" if str in (key.element, key.type) else describe_range(key.hint)
    facts = [allowed] if allowed else []
    if key.is_required:
        facts.append("required")
    elif default not in (None, "", [], {}, MISSING) and default is not False and "default" not in key.description:
        facts.append(f"default {_format(default)}")
    text = f"{key.description} ({'; '.join(facts)})" if facts else key.description
    return text.replace("%", "%%")


def _format(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_format, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
