"""Flags and config files → the dataclass of a command, with one sentence for what cannot be."""

import json
import os
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise, takewhile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_origin

from crosschannel.errors import UserError
from crosschannel.files import user_path
from crosschannel.keys import check_config, plain_type
from crosschannel.runs.config import RENAMED, renamed
from crosschannel.runs.config import keys as config_keys
from crosschannel.stored import check_yaml, read_yaml


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        config: the dataclass of its keys, or module:dataclass; its method ``default_out(name, recipe)``, if any, fills
            in a missing ``out`` from the config's name and keys. No torch is imported for it, so that help is quick.
        function: module:function that takes the config.
        help: one line.
        positional: keys that are given by place.
        aliases: flags by other names than their keys', such as ``--as``.
        configs: folder of its packaged configs, where that is not the program's.
        by: a key on which the others depend: ``config`` is then module:function of its value (None where it is not
            given) that returns the dataclass.
        told_by: what a config of it is called: the flag that names one.
        head: what its usage has before the flags, where that is not given as a key.
        tail: what follows the flags where it is typed.
        after: module:function of its config → the commands that one would type next.
    """

    config: str | type
    function: str
    help: str
    positional: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    configs: Path | None = None
    by: str = ""
    told_by: str = "config"
    head: str = ""
    tail: str = ""
    after: str = ""

    def keys(self, argv: Sequence[str] = (), configs: Path = Path()) -> type:
        """The dataclass of its keys, as far as flags (and the config that they name) choose among several."""
        config = self.config if isinstance(self.config, type) else resolve_name(self.config)
        return config(_given(self.by, argv, configs)) if self.by else config


def _given(key: str, argv: Sequence[str], configs: Path) -> str | None:
    """The value that flags give a key, else the config that they name; None where neither does."""
    values = typed_flags(argv)
    if f"--{key}" in values:
        return values[f"--{key}"]
    if not values.get("--config"):
        return None
    path = find_config(values["--config"], configs)
    value = read_yaml(path, f"the config {path}").get(key)
    if not isinstance(value, str | None):
        raise UserError(f"{key} must be a name, and {path} has {value!r}")
    return value


def options_of(argv: Sequence[str]) -> list[str]:
    """Return the arguments before ``--``; those after it are positional, whatever they start with."""
    return list(takewhile(lambda word: word != "--", argv))


def typed_flags(argv: Sequence[str]) -> dict[str, str]:
    """Flags and the words that they are given, or that follow them; the last of a name counts."""
    values: dict[str, str] = {}
    for word, following in pairwise([*options_of(argv), ""]):
        flag, equals, value = word.partition("=")
        values[flag] = value if equals else following
    return values


def config_folder() -> Path:
    """Where the packaged configs are: in the wheel, or at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(name: str, folder: Path, called: str = "config") -> Path:
    """A config file: a path, or the name of one of those in a folder.

    Args:
        name: as typed.
        folder: of the packaged ones.
        called: what a file of this kind is called.

    Raises:
        UserError: neither; the message lists the packaged ones.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
    raise UserError(f"no {called} {name!r}: neither a file nor a packaged one ({known})")


def parse(command: Command, program: str, name: str, argv: list[str], configs: Path, whole: bool = True) -> Any:
    """Flags (over a config file) → the dataclass of a command.

    Args:
        command: what is to be run.
        program, name: what it is called.
        argv: the flags.
        configs: folder of its packaged configs.
        whole: nothing that the command needs may be missing.

    Raises:
        UserError: an unknown key, a bad value, a missing file; one sentence.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def _print_message(self, message: str, file: Any = None) -> None:
            """As argparse's, which says nothing of output that nobody takes."""
            print(message, end="", file=file)

    _read_yaml_strictly()
    config_class, positional = command.keys(argv, configs), command.positional
    parser = Parser(prog=f"{program} {name}", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, skip=set(positional), fail_untyped=True)
    _add_positionals(parser, config_class, positional)
    argv, path, recipe = _prepare(argv, configs, command, parser, config_class)
    try:
        values = parser.instantiate(parser.parse_args(argv))
    except ArgumentError as error:
        raise UserError(_one_sentence(str(error), _keys(parser))) from None
    except Exception as error:  # of a library that reads what a user typed
        raise UserError(f"the command line cannot be read: {type(error).__name__}: {error}") from error
    keys = {entry.name for entry in fields(config_class)}
    config = config_class(**{key: value for key, value in vars(values).items() if key in keys})
    missing = [name for name, entry, value in config_keys(config) if entry.metadata.get("needed") and not value]
    if whole and missing:
        raise UserError(f"missing: {', '.join(missing)}")
    if whole and getattr(config, "out", "") is None and hasattr(config, "default_out"):
        config.out = config.default_out(Path(path).stem or name, recipe)
    check_config(config)
    for key in ("out", "model"):  # a shell leaves the ~ of --out=~/x to us
        if isinstance(getattr(config, key, None), str):
            setattr(config, key, str(user_path(getattr(config, key))))
    if path and os.path.realpath(path) == os.path.realpath(getattr(config, "out", None) or ""):
        raise UserError(f"{path} is the config; give another --out")
    return config


@lru_cache(maxsize=1)
def _read_yaml_strictly() -> None:
    """jsonargparse's reader of YAML, in files and in values, behind our check of it."""
    from jsonargparse import get_loader, set_loader
    from yaml import YAMLError

    def load(text: str) -> Any:
        try:
            check_yaml(text, "the value")
        except UserError as error:
            raise YAMLError(str(error)) from None
        return loose(text)

    loose = get_loader("yaml")
    set_loader("yaml", load, exceptions=(YAMLError,))


def _keys(parser) -> list[str]:
    return [action.dest for action in parser._actions]


def _one_sentence(message: str, keys: list[str]) -> str:
    """jsonargparse's complaint in our words, with the nearest key where one does not exist."""
    message = " ".join(message.split())
    unknown = (
        re.match(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        or re.match(r"Option '([\w.]+)' is not accepted", message)
        or re.match(r"unrecognized arguments: --([\w.]+)", message)
    )
    if unknown:
        key = ".".join(unknown.groups())
        close = get_close_matches(key, keys, 1)
        return f"no key {key!r}" + (f"; did you mean {close[0]}?" if close else "; --help lists them")
    group = re.match(r'Parser key "(\w+)": Unable to load config', message)
    if group:
        member = next((key for key in keys if key.startswith(f"{group[1]}.")), group[1])
        return f"{group[1]} is a group of keys: give one of them, such as --{member}"
    for pattern, words in (
        (r"Expected a <class 'tuple'>", "expected two numbers such as 0.5,1.0"),
        (r"[Ee]xpected a?\s?tuple with 2 elements", "expected two numbers such as 0.5,1.0"),
        (r"Expected a <class 'list'>", "expected a list such as 1,2"),
        (r"^the following arguments are required: (.*)$", r"missing: \1"),
        (r'^Parser key "([\w.]+)": ', r"\1: "),
        (r"Does not validate .* Subtypes: \[(.*?)\] Errors: .*Given value: (.*)$", r"expected \1, got \2"),
        (r"typing\.Literal\[(.*?)\]", r"one of \1"),
        (r"<class '(\w+)'>", r"\1"),
        (r"Expected an? ", "expected "),
        (r"\. Got value: ", ", got "),
    ):
        message = re.sub(pattern, words, message)
    return message


def _add_positionals(parser, config_class: type, names: tuple[str, ...]) -> None:
    for entry in fields(config_class):
        if entry.name in names:
            kind: dict[str, Any] = {"type": entry.type}
            if entry.type == list[str]:
                kind = {"type": str, "nargs": "+"}
                if entry.default_factory is not MISSING:
                    kind |= {"nargs": "*", "default": entry.default_factory()}
            parser.add_argument(entry.name, metavar=entry.name.upper(), help=entry.metadata["help"], **kind)


def _prepare(
    argv: list[str], configs: Path, command: Command, parser: Any, config_class: type
) -> tuple[list[str], str, dict[str, Any]]:
    """Normalise the arguments of a command for its parser.

    `--config` comes first with its path, wherever it was typed, since flags override it. Flags get the names of their
    keys, with '_' for '-', and switches a value. Values of a repeated list flag become one list, and so do values that
    follow one another, unless a positional argument is a list. Positional arguments come last, after ``--``.

    Returns:
        the arguments, the config's path, and the config's content.
    """
    types = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    groups = {key.rpartition(".")[0] for key in types} - {""}
    first, prepared, path, tree, lists = [], [], "", {}, {}
    has_many = any(entry.type == list[str] for entry in fields(config_class) if entry.name in command.positional)
    options, positional = options_of(argv), []
    rest = deque(options)
    while rest:
        argument = rest.popleft()
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            value = value if equals else rest.popleft() if rest else ""
            path = str(find_config(value, configs, command.told_by))
            tree = _check_file(path, config_class, command.told_by)
            now = renamed(tree)
            first += ["--config", path if now == tree else json.dumps(now)]
        elif flag.startswith("--"):
            key = flag[2:].replace("-", "_")
            key = RENAMED.get(key, command.aliases.get(key, key))
            following = rest[0] if rest and not equals else value
            if type(None) in get_args(types.get(key)) and following == "" and (equals or rest):
                raise UserError(f"{key} must not be empty")  # it would be read as if it had not been given
            if key in groups and not following.startswith("{"):  # it would be read as the name of a file
                member = next(name for name in types if name.startswith(f"{key}."))
                raise UserError(f"{key} is a group of keys: give one of them, such as --{member}")
            if _is_numbers(types.get(key)) and following and re.fullmatch(r"[-+.\deE]+(,[-+.\deE]+)*", following):
                if not equals:
                    rest.popleft()
                equals, value = "=", f"[{following}]"  # a list of numbers, as one would type it
            if plain_type(types.get(key)) == list[str] or list[str] in get_args(types.get(key)):
                words = [value] if equals else list(takewhile(lambda word: not word.startswith("--"), rest))
                words = words[:1] if has_many else words
                rest = rest if equals else deque(list(rest)[len(words) :])
                if len(words) != 1 or words[0][:1] != "[":
                    lists.setdefault(key, []).extend(words)
                    continue
                equals, value = "=", words[0]
            if not equals and _takes(types, key, following) and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.popleft()
            prepared.append(f"--{key}{equals}{value}" + ("=true" if types.get(key) is bool and not equals else ""))
        else:
            (prepared if re.match("-.", argument) else positional).append(argument)
    for key, words in lists.items():
        alone = len(words) == 1 and plain_type(types[key]) is str
        prepared.append(f"--{key}={words[0] if alone else json.dumps(words, ensure_ascii=False)}")
    positional += argv[len(options) + 1 :]
    if len(positional) > len(command.positional) and not has_many:
        raise UserError(f"unexpected argument {positional[len(command.positional)]!r}; --help lists the arguments")
    return [*first, *prepared, *(["--", *positional] if positional else [])], path, tree


def _takes(types: dict[str, Any], key: str, following: str) -> bool:
    """Return whether a flag takes the argument that follows it as its value."""
    if types.get(key) is bool:
        return following.lower() in ("true", "false")
    return key not in ("help", "print_config")


def _is_numbers(hint: Any) -> bool:
    """Whether a key is a list of numbers."""
    plain = plain_type(hint)
    return get_origin(plain) in (list, tuple) and get_args(plain)[0] in (int, float)


def _check_file(path: str, config_class: type, called: str) -> dict[str, Any]:
    """What a config file holds: its keys are written one way, and its groups hold keys."""
    tree = read_yaml(Path(path), f"the {called} {path}")
    for key in tree:
        if not isinstance(key, str) or "." in key or key == "config" or key.startswith("__"):
            raise UserError(f"the {called} {path} has no key {key!r}; groups are written as train: {{steps: 3}}")
    for entry in fields(config_class):
        if is_dataclass(entry.type) and not isinstance(tree.get(entry.name, {}), dict):
            raise UserError(f"{entry.name} is a group of keys, and {path} has {tree[entry.name]!r} for it")
    return tree
