"""Commands and their invocation from a command line. A command has a config dataclass and a function."""

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

from crosschannel.config.flags import CommandParser, docstring_title, parse_common_flags, terminal_width
from crosschannel.config.keys import flatten, items, keys_of
from crosschannel.config.load import MissingKeysError, build, find_config, merge, nest, read_config, to_yaml
from crosschannel.errors import UserError
from crosschannel.files import user_path


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        config: config dataclass, or "module:dataclass" in a module that does not import torch, so that help is fast. A
            method ``default_out(name, file_values)`` marks a command with a run folder and returns the default of
            ``out``.
        function: "module:function" that runs the command; its argument is the config.
        help: one-line description for the list of commands.
        positional: names of the keys that are positional arguments.
        aliases: key names by alias, without dashes, such as ``{"as": "name"}``.
        next_steps: templates of commands to suggest afterwards, with ``{key}`` for values of the config, or
            "module:function" that returns the commands.
        selector: key that selects the dataclass, such as ``task``. ``config`` is then a "module:function" whose
            argument is the value of that key, or None if it is not set.
        config_flag: name of the flag for config files, without dashes.
        configs: folder of packaged configs; None uses the program's folder.
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

    def config_class(self, selector_value: str | None = None) -> type:
        """Return the config dataclass, chosen by the value of the selector if the command has one."""
        config = self.config if isinstance(self.config, type) else resolve_name(self.config)
        return config(selector_value) if self.selector else config

    def run(self, config: Any) -> None:
        """Run the command with a config."""
        resolve_name(self.function)(config)

    def suggest(self, config: Any) -> list[str]:
        """Return commands to run next."""
        if isinstance(self.next_steps, str):
            return resolve_name(self.next_steps)(config)
        return [format_command(template, **vars(config)) for template in self.next_steps]


def format_command(template: str, /, **values: Any) -> str:
    """Format a command line, quoted for the shell.

    A ``{key}`` that is a word by itself expands to one word per element of a list. Trailing slashes of values are
    dropped, so that ``{out}-report`` works for ``--out runs/a/``.
    """
    values = {key: value.rstrip("/") if isinstance(value, str) else value for key, value in values.items()}
    words: list[str] = []
    for word in template.split():
        value = values.get(word[1:-1]) if word[:1] + word[-1:] == "{}" else None
        words += value if isinstance(value, list) else [word.format_map(values)]
    return shlex.join(words)


class Invocation:
    """Command with its command-line arguments.

    Args:
        command: command to invoke.
        name: name of the command.
        argv: arguments after the name of the command.
        configs: folder of packaged configs.

    Attributes:
        common: values of the flags that every command accepts.
        path: config file of ``--config``, the last one if there are several, or None.
        file_values: values of all config files as a nested mapping; later files override earlier ones.
        config_class: config dataclass, chosen by the selector if the command has one.

    Raises:
        UserError: an unknown config, or an invalid value of the selector.
    """

    def __init__(self, command: Command, name: str, argv: Sequence[str], configs: Path):
        self.command, self.name, self.argv, self.configs = command, name, argv, configs
        self.common = parse_common_flags(argv, command.config_flag, command.selector)
        self.path, self.file_values = None, {}
        for name_or_file in self.common.config or ():
            self.path = find_config(name_or_file, configs, command.config_flag)
            self.file_values = merge(self.file_values, read_config(self.path, command.config_flag))
        selector_value = self.common.selector or self.file_values.get(command.selector)
        if not isinstance(selector_value, str | None):
            raise UserError(f"{command.selector} must be a name, got {selector_value!r}")
        self.config_class = command.config_class(selector_value)

    def parser(self, **options: Any) -> CommandParser:
        command = self.command
        return CommandParser(self.config_class, command.positional, command.aliases, command.config_flag, **options)

    def read(self) -> dict[str, Any]:
        """Merge the flags over the values of the config files, as a nested mapping."""
        tree = merge(self.file_values, self.parser().read(self.argv))
        expanded = {key: str(user_path(tree[key])) for key in ("out", "model") if str(tree.get(key)).startswith("~")}
        return tree | expanded  # shells do not expand the ~ in --out=~/x

    def load(self, is_partial: bool = False) -> Any:
        """Build the config. Flags override config files, which override defaults.

        Args:
            is_partial: whether to allow an empty backbone or data, and to leave ``out`` unset. Keys without a default
                remain required.

        Raises:
            UserError: an unknown key, an invalid value, or a missing required key.
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
            raise UserError(f"--out {config.out} would overwrite the {self.command.config_flag}; choose another --out")
        return config

    def config_text(self) -> str:
        """Return the full config as YAML. Missing values are null, or "" for a backbone or data whose default is "".

        Raises:
            UserError: as for :meth:`load`. If a required key is missing, the cross-key rules are not checked.
        """
        tree = self.read()
        with contextlib.suppress(MissingKeysError):
            build(self.config_class, tree)
        keys = keys_of(self.config_class)
        defaults = nest({key.name: None if key.default is MISSING else key.default for key in keys})
        return to_yaml(merge(defaults, tree))

    def help_text(self, program: str) -> str:
        """Format the usage, the packaged configs, and every key with its default or its value in ``--config``."""
        command, flag = self.command, self.command.config_flag
        keys = {key.name: key for key in keys_of(self.config_class)}
        positional = [keys[name] for name in command.positional if not keys[name].is_hidden]
        usage = [f"{program} {self.name}{command.head}"]
        usage += [f"{key.name.upper()} …" if key.element else key.name.upper() for key in positional]
        title = command.help if command.head else docstring_title(self.config_class) or command.help
        lines, epilog = textwrap.wrap(title, terminal_width()), ""
        if self.configs.is_dir() or hasattr(self.config_class, "default_out"):
            usage.append(f"[--{flag} NAME|FILE]")
            epilog = f"--print_config prints the full {flag}; --debug prints the traceback of errors."
        config_lines = list_configs(self.configs)
        if config_lines:
            lines += ["", f"{flag}s (--{flag} NAME, or a path to a YAML file):", *config_lines]
        usage_line = " ".join([*usage, f"[--KEY VALUE …]{command.tail}"])
        options = {"usage": usage_line, "description": "\n".join(lines), "epilog": epilog}
        return self.parser(file_values=flatten(self.file_values), **options).format_help()


def list_configs(folder: Path) -> list[str]:
    """List the configs in a folder, one per line, with the first sentence of the comment at the top of the file."""
    paths = sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    indent = max((len(path.stem) for path in paths), default=0)
    width = max(20, terminal_width() - indent - 4)
    return [f"  {path.stem:<{indent}}  {textwrap.shorten(_summary(path), width, placeholder=' …')}" for path in paths]


def _summary(path: Path) -> str:
    """Return the first sentence of the comment at the top of a YAML file."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"\.(?= [A-Z])|\.$", " ".join(line.lstrip("# ") for line in lines))[0]
