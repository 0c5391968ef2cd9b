"""Command-line flags of configs. argparse splits arguments and formats help; the type of a key defines its syntax."""

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

_COMMON_FLAGS = ("config", "help", "print_config", "debug")  # flags that every command accepts


class _Parser(ArgumentParser):
    """Argument parser with the flags common to all commands; raises :class:`UserError` instead of exiting."""

    def __init__(self, config_flag: str = "config", **options: Any):
        super().__init__(add_help=False, allow_abbrev=False, **options)
        self.add_argument(
            *dict.fromkeys([f"--{config_flag}", "--config"]), dest="config", action="append", help=SUPPRESS
        )
        self.add_argument("-h", "--help", action="store_true", help=SUPPRESS)
        for name in _COMMON_FLAGS[2:]:
            self.add_argument(f"--{name}", action="store_true", help=SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def terminal_width() -> int:
    """Return the width of printed text: the terminal width, at most 100 columns."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def split_at_separator(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments at the first ``--``. Arguments after it are positional, even with a leading dash."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def parse_common_flags(argv: Sequence[str], config_flag: str = "config", selector: str = "") -> Namespace:
    """Parse the common flags and the selector, and ignore all other arguments.

    Returns:
        a namespace with ``config`` (list of values) and ``selector``, both None if absent, and the switches ``help``,
        ``print_config`` and ``debug``.
    """
    parser = _Parser(config_flag)
    parser.set_defaults(selector=None)
    if selector:
        parser.add_argument(f"--{selector}", dest="selector")
    return parser.parse_known_args(_normalise_flags(split_at_separator(argv)[0]))[0]


class CommandParser(_Parser):
    """Parser of a command, with one flag per key of its config.

    Args:
        config: dataclass that declares the keys.
        positional: names of the keys that are positional arguments. A list key gets all remaining arguments, and a
            hidden key gets only the arguments after ``--``.
        aliases: key names by alias, without dashes.
        config_flag: name of the flag for config files; ``--config`` is accepted too.
        file_values: values from config files by dotted name, shown in help in place of the defaults.
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
                text = SUPPRESS if key.is_hidden else _help_text(key, default)
                if key.name not in positional:
                    section.add_argument(*self._flags(key), dest=key.name, help=text, **self._arguments(key))
                elif text is not SUPPRESS:  # only for help; read() assigns the values
                    section.add_argument(key.name, nargs="*", metavar=key.name.upper(), help=text)

    def _sort_key(self, key: Key) -> tuple[bool, bool, bool]:
        """Return the sort key: positional arguments come first, then required keys; seed and device come last."""
        return key.name not in self.positional, not key.is_required, key.name in ("seed", "device")

    def _flags(self, key: Key) -> list[str]:
        entry_flag = [f"--{key.name}.NAME"] if get_origin(key.type) is dict else []
        return [*entry_flag, f"--{key.name}", *(flag for flag, name in self.aliases.items() if name == key.name)]

    def _arguments(self, key: Key) -> dict[str, Any]:
        """Return the arguments of ``add_argument`` for a key.

        A list flag accepts several values, or only one if a positional argument is a list (several would be ambiguous).
        Repeating a flag extends a list of strings.
        """
        arguments: dict[str, Any] = {"metavar": _metavar(key)}
        if key.type is bool:
            return arguments | {"nargs": "?", "const": "true"}
        if any(self.keys[name].element and not self.keys[name].is_hidden for name in self.positional):
            return arguments | {"action": "append" if _includes_string_list(key.hint) else "store"}
        if _includes_string_list(key.hint):
            return arguments | {"action": "extend", "nargs": "*"}
        return arguments | ({"nargs": "*"} if key.element else {})

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Parse flags and positional arguments into a nested mapping of values.

        Raises:
            UserError: an unknown flag, a flag without a value, or too many positional arguments.
        """
        options, operands = split_at_separator(argv)
        options = list(_normalise_flags(options, self.aliases, [k for k, key in self.keys.items() if key.type is bool]))
        last_index = {option.partition("=")[0].removeprefix("--"): index for index, option in enumerate(options)}
        for name in last_index:  # entries of a dict key, such as --extra.NAME
            if "." in name and name.partition(".")[0] in self.keys:
                self.add_argument(f"--{name}", dest=name)
        for action in [action for action in self._actions if not action.option_strings]:
            self._remove_action(action)  # so that flags and positional arguments can be interleaved
        parsed, remaining = self.parse_known_args(options)
        unknown = next((argument for argument in remaining if argument.startswith("-") and argument != "-"), None)
        if unknown is not None:
            name = unknown.partition("=")[0].removeprefix("--")
            if name in self.positional:
                raise UserError(f"{name} is a positional argument; pass it without --{name}")
            if name and unknown.startswith("--"):
                raise UnknownKeyError(name, [*self.keys, *_COMMON_FLAGS])
            raise UserError(f"unrecognized argument {unknown}; put positional arguments with a leading dash after --")
        values = {name: value for name, value in vars(parsed).items() if name not in _COMMON_FLAGS}
        # Later flags override earlier ones.
        ordered_names = sorted(values, key=lambda name: last_index.get(name, 0))
        layer = nest({name: parse_text(values[name], self._hint(name), name) for name in ordered_names})
        hidden = [name for name in self.positional if self.keys[name].is_hidden]
        if hidden:
            return layer | self._assign(remaining, ()) | self._assign(operands, hidden)
        return layer | self._assign([*remaining, *operands], self.positional)

    def _hint(self, name: str) -> Any:
        """Return the type of a key, a group, or an entry of a dict key."""
        if name in self.keys:
            return self.keys[name].hint
        base_type = self.keys[name.partition(".")[0]].type if "." in name else dict
        return get_args(base_type)[1] if get_args(base_type) else Any

    def _assign(self, queue: list[str], names: Sequence[str]) -> dict[str, Any]:
        """Assign positional arguments to keys, in order."""
        values: dict[str, Any] = {}
        for name in names:
            if queue:
                values[name], queue = (queue, []) if self.keys[name].element else (queue[0], queue[1:])
        if queue:
            raise UserError(f"unexpected argument {queue[0]!r}; --help lists the arguments")
        return values


def _normalise_flags(
    argv: Sequence[str], aliases: Mapping[str, str] = MappingProxyType({}), switches: Sequence[str] = ()
) -> Iterator[str]:
    """Normalise the flags of a command line.

    ``--val-share`` becomes ``--val_share``, aliases and old names become current key names, ``--no-mirror`` becomes
    ``--mirror=false``, and ``--mirror`` becomes ``--mirror=true`` unless true or false follows.
    """
    for argument, next_argument in pairwise([*argv, ""]):
        flag, equals, value = argument.partition("=")
        name = aliases.get(flag, flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else "")
        name = RENAMED.get(name, name)
        if name.removeprefix("no_") in switches and not equals:
            is_explicit = name in switches and next_argument.lower() in ("true", "false")
            yield f"--{name}" if is_explicit else f"--{name.removeprefix('no_')}={str(name in switches).lower()}"
        else:
            yield f"--{name}{equals}{value}" if name else argument


def parse_text(text: str | list[str], hint: Any, name: str) -> Any:
    """Parse the text of a value according to its type.

    Strings are returned unchanged, and other types are parsed as YAML. Lists of numbers may be written ``1,2``.

    Args:
        text: one argument, or several.
        hint: type annotation of the value.
        name: name of the value in error messages.
    """
    arguments = text if isinstance(text, list) else [text]
    base_type, joined_text = unwrap_optional(hint), ",".join(arguments)
    if is_optional(hint):
        if joined_text == "":
            raise UserError(f"{name} must not be empty")
        if joined_text == "null":
            return None
    if _includes_string_list(hint):
        list_indices = [index for index, argument in enumerate(arguments) if argument.startswith("[")]
        if list_indices:  # the last YAML list replaces the arguments before it
            return [*parse_yaml(arguments[list_indices[-1]], name), *arguments[list_indices[-1] + 1 :]]
        return joined_text if len(arguments) == 1 and element_type(base_type) is None else arguments
    if base_type is str or (
        get_origin(base_type) is Literal and all(isinstance(choice, str) for choice in get_args(base_type))
    ):
        return joined_text
    is_sequence = element_type(base_type) is not None
    return parse_yaml(f"[{joined_text}]" if is_sequence and not joined_text.startswith("[") else joined_text, name)


def _includes_string_list(hint: Any) -> bool:
    """Whether a type is a list of strings, or a union that includes one."""
    base_type = unwrap_optional(hint)
    return element_type(base_type) is str or list[str] in get_args(base_type)


def docstring_title(config: type) -> str:
    """Return the first line of a dataclass's docstring, or "" if the class only has the generated one."""
    text = (config.__doc__ or "").strip()
    return "" if text.startswith(f"{config.__name__}(") else text.partition("\n")[0]


def _mro_index(config: type, field: str) -> int:
    """Return the MRO index of the class that declares a field, to sort a command's own groups before inherited ones."""
    return next(index for index, base in enumerate(config.__mro__) if field in inspect.get_annotations(base))


class _Formatter(RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=terminal_width())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def choices_of(key: Key) -> list[str]:
    """Return the allowed values of a Literal or bool key, or an empty list for other types."""
    members = [choice for member in (key.type, *get_args(key.type)) for choice in get_args(member)]
    has_bool = key.type is bool or bool in get_args(key.type)
    return [*dict.fromkeys(choice for choice in members if isinstance(choice, str)), *["true", "false"] * has_bool]


def _metavar(key: Key) -> str:
    """Return the placeholder of a key's value in help, such as N or FILE."""
    choices = choices_of(key)
    if choices:
        return "|".join(choices)
    type_metavars = {int: "N", float: "X", dict: "VALUE"}
    role_metavars = {Source: "SOURCE", Data: "DATA", File: "FILE"}
    role = next((metavar for role, metavar in role_metavars.items() if key.role(role)), "")
    name = key.name.rpartition(".")[2].upper()
    return (
        type_metavars.get(key.element or get_origin(key.type) or key.type)
        or role
        or (name.rstrip("S") if key.element else name)
    )


def _help_text(key: Key, default: Any) -> str:
    """Format the help of a key for argparse: its description, then range and default (or "required") in parentheses."""
    allowed_range = "" if str in (key.element, key.type) else describe_range(key.hint)
    details = [allowed_range] if allowed_range else []
    if key.is_required:
        details.append("required")
    elif default not in (None, "", [], {}, MISSING) and default is not False and "default" not in key.description:
        details.append(f"default {_format_value(default)}")
    text = f"{key.description} ({'; '.join(details)})" if details else key.description
    return text.replace("%", "%%")


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_format_value, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
