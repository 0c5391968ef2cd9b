"""The reader of command lines: argparse splits the words, and the type of a key says how its value is written."""

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_args, get_origin

from crosschannel.config.keys import Key, element_type, is_optional, keys_of, unwrap_optional
from crosschannel.config.load import RENAMED, UnknownKeyError, nest
from crosschannel.errors import UserError
from crosschannel.stored import parse_yaml

_EARLIER = {new: old for old, new in RENAMED.items()}


@dataclass(frozen=True)
class CommonFlags:
    """Flags that every command has.

    Attributes:
        config: NAME or FILE of ``--config``; None without it.
        selector: value of the flag that selects the keys of the command; None if there is none.
    """

    config: str | None = None
    help: bool = False
    print_config: bool = False
    debug: bool = False
    selector: str | None = None


class _Parser(ArgumentParser):
    """An argparse parser that raises our errors, with the flags of every command."""

    def __init__(self, config_flag: str):
        super().__init__(add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
        self.add_argument(f"--{config_flag}", *(["--config"] if config_flag != "config" else []), dest=":config")
        self.add_argument("-h", "--help", dest=":help", action="store_true")
        self.add_argument("--print_config", "--print-config", dest=":print_config", action="store_true")
        self.add_argument("--debug", dest=":debug", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def split_at_separator(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words at the first ``--``: those after it are positional, even with a leading dash."""
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def read_common(words: Sequence[str], config_flag: str = "config", selector: str = "") -> CommonFlags:
    """Read the flags that every command has, whatever the others are.

    Args:
        words: as typed.
        config_flag: another name of ``--config``.
        selector: the key that selects the others, if any.
    """
    parser = _Parser(config_flag)
    if selector:
        parser.add_argument(f"--{selector}", dest=":selector")
    values, _ = parser.parse_known_args(split_at_separator(words)[0])
    return CommonFlags(**{name.removeprefix(":"): value for name, value in vars(values).items()})


def read_flags(
    words: Sequence[str],
    config: type,
    positional: Sequence[str] = (),
    aliases: Mapping[str, str] = MappingProxyType({}),
    config_flag: str = "config",
) -> dict[str, Any]:
    """Read flags and positional arguments as a layer of values: a nested mapping by key.

    Args:
        words: as typed after the command's name.
        config: dataclass of the command's keys.
        positional: keys that are positional arguments; a list takes all words that are left.
        aliases: key by other name of its flag.
        config_flag: another name of ``--config``.

    Raises:
        UserError: an unknown flag, a flag without a value, or too many words.
    """
    keys = {key.name: key for key in keys_of(config)}
    options, operands = split_at_separator(words)
    many = any(keys[name].element for name in positional)  # then a flag takes one word: the others are positional
    parser = _Parser(config_flag)
    for key in keys.values():
        if key.name not in positional:
            parser.add_argument(*spellings(key.name, aliases), dest=key.name, **_arguments(key, many))
    for name in dict.fromkeys(key.group for key in keys.values() if key.group):
        parser.add_argument(f"--{name}", dest=name)
    for flag in dict.fromkeys(word.partition("=")[0] for word in options):  # entries of a dictionary
        name, dot, _ = flag.removeprefix("--").partition(".")
        if dot and name in keys and get_origin(keys[name].type) is dict:
            parser.add_argument(flag, dest=flag.removeprefix("--"))
    parsed, rest = parser.parse_known_args(_expand_switches(options, keys, aliases))
    unknown = next((word for word in rest if word.startswith("-") and word != "-"), None)
    if unknown is not None:
        name = unknown.partition("=")[0].removeprefix("--").replace("-", "_")
        raise UnknownKeyError(name, list(keys)) if name else UserError(f"unrecognized argument {unknown}")
    values = {name: value for name, value in vars(parsed).items() if not name.startswith(":")}
    hints = {name: keys[name].hint if name in keys else str if "." in name else dict for name in values}
    layer = nest({name: parse_text(value, hints[name], name) for name, value in values.items()})
    return layer | _assign([*rest, *operands], [keys[name] for name in positional])


def spellings(name: str, aliases: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """How the flag of a key can be written: the key's name first, aliases last."""
    names = [name, name.replace("_", "-"), *([_EARLIER[name]] if name in _EARLIER else [])]
    flags = [f"--{name}" for name in dict.fromkeys(names)]
    return flags + [f"{'-' if len(alias) == 1 else '--'}{alias}" for alias, key in aliases.items() if key == name]


def _arguments(key: Key, many: bool) -> dict[str, Any]:
    """argparse arguments for a key: a list takes several words, and a repeated list of strings grows."""
    if _holds_strings(key.hint):
        return {"action": "append"} if many else {"action": "extend", "nargs": "*"}
    return {"nargs": "*"} if key.element and not many else {}


def _holds_strings(hint: Any) -> bool:
    """Whether a type is a list of strings, or one or several strings."""
    plain = unwrap_optional(hint)
    return element_type(plain) is str or list[str] in get_args(plain)


def _expand_switches(options: Sequence[str], keys: Mapping[str, Key], aliases: Mapping[str, str]) -> list[str]:
    """``--mirror`` → ``--mirror=true`` unless true or false follows, and ``--no-mirror`` → ``--mirror=false``."""
    switches = [name for name, key in keys.items() if key.type is bool]
    on = {flag for name in switches for flag in spellings(name, aliases)}
    off = {flag: name for name in switches for flag in spellings(f"no_{name}")}
    words = []
    for word, following in pairwise([*options, ""]):
        if word in on and following.lower() not in ("true", "false"):
            words += [word, "true"]
        else:
            words.append(f"--{off[word]}=false" if word in off else word)
    return words


def parse_text(text: str | list[str], hint: Any, name: str) -> Any:
    """Parse a value as typed: strings as they are, anything else as YAML, lists of numbers also as ``1,2``.

    Args:
        text: one word, or several.
        hint: type of the value.
        name: its name in messages.
    """
    words = text if isinstance(text, list) else [text]
    plain, joined = unwrap_optional(hint), ",".join(words)
    if is_optional(hint):
        if joined == "":
            raise UserError(f"{name} must not be empty")
        if joined in ("null", "None"):
            return None
    if _holds_strings(hint):
        lists = [place for place, word in enumerate(words) if word.startswith("[")]
        if lists:  # the last of them replaces what was before it
            return [*parse_yaml(words[lists[-1]], name), *words[lists[-1] + 1 :]]
        return joined if len(words) == 1 and element_type(plain) is None else words
    if plain is str or (get_origin(plain) is Literal and all(isinstance(choice, str) for choice in get_args(plain))):
        return joined
    is_sequence = element_type(plain) is not None
    return parse_yaml(f"[{joined}]" if is_sequence and not joined.startswith("[") else joined, name)


def _assign(words: list[str], keys: Sequence[Key]) -> dict[str, Any]:
    """Positional arguments by key."""
    values: dict[str, Any] = {}
    for key in keys:
        if words:
            values[key.name], words = (words, []) if key.element else (words[0], words[1:])
    if words:
        raise UserError(f"unexpected argument {words[0]!r}; --help lists the arguments")
    return values
