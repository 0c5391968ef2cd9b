"""Commands (a config dataclass and a function that takes the config) and their invocations from a command line."""

import contextlib
import os
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from crosschannel.config.flags import CommandParser, docstring_title, read_common, terminal_width
from crosschannel.config.keys import flatten, items, keys_of
from crosschannel.config.load import MissingKeysError, build, find_config, merge, nest, read_config, to_yaml
from crosschannel.errors import UserError
from crosschannel.files import user_path


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        config: the config dataclass, or "module:dataclass" without torch imports, so that help is fast. A method
            ``default_out(name, file_values)`` gives the command a run folder: it returns the default of ``out``.
        function: "module:function" that takes the config.
        help: one line for the list of commands.
        positional: names of keys that are positional arguments.
        aliases: keys by alias, without dashes, such as ``{"as": "name"}``.
        next_steps: commands to suggest afterwards, with ``{key}`` for values of the config, or "module:function" that
            returns them.
        selector: key that selects the dataclass, such as ``task``; ``config`` is then "module:function" that takes its
            value (None if it is not set).
        config_flag: name of the flag for a config file, without dashes.
        configs: folder of packaged configs; None uses the program's.
        head, tail: parts of the usage line before and after the flags.
    """

    config: str | type
    function: str
    help: str
    positional: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    next_steps: tuple[str, ...] | str = ()
    selector: str = ""
    config_flag: str = "config"
    configs: Path | None = None
    head: str = ""
    tail: str = ""

    def config_class(self, selected: str | None = None) -> type:
        """Return the config dataclass; if the command has a selector, the one for that value."""
        config = self.config if isinstance(self.config, type) else resolve_name(self.config)
        return config(selected) if self.selector else config

    def run(self, config: Any) -> None:
        """Call the command's function."""
        resolve_name(self.function)(config)

    def suggest(self, config: Any) -> list[str]:
        """Return commands to run next."""
        if isinstance(self.next_steps, str):
            return resolve_name(self.next_steps)(config)
        return [format_command(template, **vars(config)) for template in self.next_steps]


def format_command(template: str, /, **values: Any) -> str:
    """Format a command line, quoted for the shell. A word that is only ``{key}`` becomes one word per list element.

    Trailing slashes of values are dropped, so that ``{out}-report`` works for ``--out runs/a/``.
    """
    values = {key: value.rstrip("/") if isinstance(value, str) else value for key, value in values.items()}
    words: list[str] = []
    for word in template.split():
        value = values.get(word[1:-1]) if word[:1] + word[-1:] == "{}" else None
        words += value if isinstance(value, list) else [word.format_map(values)]
    return shlex.join(words)


class Invocation:
    """A command and the words after its name.

    Args:
        command: the command.
        name: its name.
        words: as typed.
        configs: folder of packaged configs.

    Attributes:
        common: flags that every command has.
        path: the config file that ``--config`` names, the last if there are several; None without it.
        file_values: values from these files, later over earlier ones, as a nested mapping.
        config_class: the config dataclass, chosen by the selector if there is one.

    Raises:
        UserError: there is no such config, or the selector selects nothing.
    """

    def __init__(self, command: Command, name: str, words: Sequence[str], configs: Path):
        self.command, self.name, self.words, self.configs = command, name, words, configs
        self.common = read_common(words, command.config_flag, command.selector)
        self.path, self.file_values = None, {}
        for name_or_file in self.common.config or ():
            self.path = find_config(name_or_file, configs, command.config_flag)
            self.file_values = merge(self.file_values, read_config(self.path, command.config_flag))
        selected = self.common.selector or self.file_values.get(command.selector)
        if not isinstance(selected, str | None):
            raise UserError(f"{command.selector} must be a name, got {selected!r}")
        self.config_class = command.config_class(selected)

    def parser(self, **options: Any) -> CommandParser:
        command = self.command
        return CommandParser(self.config_class, command.positional, command.aliases, command.config_flag, **options)

    def read(self) -> dict[str, Any]:
        """Merge flags over the values of the config file: a nested mapping by key."""
        tree = merge(self.file_values, self.parser().read(self.words))
        expanded = {key: str(user_path(tree[key])) for key in ("out", "model") if str(tree.get(key)).startswith("~")}
        return tree | expanded  # a shell does not expand the ~ of --out=~/x

    def load(self, is_partial: bool = False) -> Any:
        """Build the config: flags over the config file over defaults.

        Args:
            is_partial: allow an empty backbone or data, and leave ``out`` unset. Keys without a default stay required.

        Raises:
            UserError: an unknown key, an invalid value, or a missing key; one sentence.
        """
        config = build(self.config_class, self.read())
        if is_partial:
            return config
        missing = [key.name for key, value in items(config) if key.is_required and value in ("", [])]
        if missing:
            raise MissingKeysError(missing)
        if hasattr(config, "default_out") and config.out is None:
            name = self.path.stem if self.path else self.name
            config = replace(config, out=config.default_out(name, self.file_values))
        if self.path and os.path.realpath(self.path) == os.path.realpath(getattr(config, "out", None) or ""):
            raise UserError(f"--out {config.out} would overwrite the {self.command.config_flag}; give another --out")
        return config

    def config_text(self) -> str:
        """Return the whole config as YAML. A missing value is null, or "" for a backbone or data with that default.

        Raises:
            UserError: as :meth:`load`; if a key without a default is missing, rules between keys are not checked.
        """
        tree = self.read()
        with contextlib.suppress(MissingKeysError):
            build(self.config_class, tree)
        keys = keys_of(self.config_class)
        defaults = nest({key.name: None if key.default is MISSING else key.default for key in keys})
        return to_yaml(merge(defaults, tree))

    def help_text(self, program: str) -> str:
        """Format the usage, the packaged configs, and every key with its default (from ``--config``, if given)."""
        command, flag = self.command, self.command.config_flag
        keys = {key.name: key for key in keys_of(self.config_class)}
        positional = [keys[name] for name in command.positional if not keys[name].is_hidden]
        usage = [f"{program} {self.name}{command.head}"]
        usage += [f"{key.name.upper()} …" if key.element else key.name.upper() for key in positional]
        title = command.help if command.head else docstring_title(self.config_class) or command.help
        lines, end = textwrap.wrap(title, terminal_width()), ""
        if self.configs.is_dir() or hasattr(self.config_class, "default_out"):
            usage.append(f"[--{flag} NAME|FILE]")
            end = f"--print_config prints the full {flag}; --debug shows the traceback of an error."
        listed = list_configs(self.configs)
        if listed:
            lines += ["", f"{flag}s (--{flag} NAME, or a path to a YAML file):", *listed]
        usage_line = " ".join([*usage, f"[--KEY VALUE …]{command.tail}"])
        options = {"usage": usage_line, "description": "\n".join(lines), "epilog": end}
        return self.parser(file_values=flatten(self.file_values), **options).format_help()


def list_configs(folder: Path) -> list[str]:
    """List configs, one a line: the name, and the first sentence of the comment at the top of the file."""
    paths = sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    longest = max((len(path.stem) for path in paths), default=0)
    room = max(20, terminal_width() - longest - 4)
    return [f"  {path.stem:<{longest}}  {textwrap.shorten(_comment(path), room, placeholder=' …')}" for path in paths]


def _comment(path: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"\.(?= [A-Z])|\.$", " ".join(line.lstrip("# ") for line in lines))[0]
