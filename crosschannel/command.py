"""A command: the dataclass of its keys and a function that takes it; and one invocation of it, as typed."""

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
from crosschannel.config.keys import flatten, keys_of
from crosschannel.config.load import MissingKeysError, build, find_config, merge, nest, read_config, to_yaml
from crosschannel.errors import UserError
from crosschannel.files import user_path


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        config: the dataclass of its keys, or module:dataclass, which does not import torch, so that help is fast. A
            method ``default_out(name, recipe)`` makes it a command with a run folder: the default of ``out``.
        function: module:function that takes the config.
        help: one line.
        positional: keys that are positional arguments.
        aliases: key by other name of its flag, such as ``--as``.
        next_steps: commands to type afterwards, with ``{key}`` for values of the config, or module:function that
            returns them.
        selector: a key that selects the others: ``config`` is then module:function of its value (None without one).
        config_flag: what the command calls a config; its flag.
        configs: folder of its packaged configs, unless it is the program's.
        head, tail: parts of its usage before and after the flags.
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

    def keys(self, selected: str | None = None) -> type:
        """The dataclass of its keys; with a selector, for that value."""
        config = self.config if isinstance(self.config, type) else resolve_name(self.config)
        return config(selected) if self.selector else config

    def run(self, config: Any) -> None:
        """Call its function."""
        resolve_name(self.function)(config)

    def suggest(self, config: Any) -> list[str]:
        """Commands to type afterwards."""
        if isinstance(self.next_steps, str):
            return resolve_name(self.next_steps)(config)
        return [fill(template, **vars(config)) for template in self.next_steps]


def fill(template: str, **values: Any) -> str:
    """Put values into a command, quoted for a shell; a list that is a whole word becomes several words."""
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
        path: the config file that ``--config`` names; None without it.
        recipe: the layer of that file.
        keys: dataclass of the command's keys, as the selector's flag or the recipe selects it.

    Raises:
        UserError: there is no such config, or the selector selects nothing.
    """

    def __init__(self, command: Command, name: str, words: Sequence[str], configs: Path):
        self.command, self.name, self.words, self.configs = command, name, words, configs
        self.common = read_common(words, command.config_flag, command.selector)
        self.path, self.recipe = None, {}
        if self.common.config is not None:
            self.path = find_config(self.common.config, configs, command.config_flag)
            self.recipe = read_config(self.path, command.config_flag)
        selected = self.common.selector or self.recipe.get(command.selector)
        if not isinstance(selected, str | None):
            raise UserError(f"{command.selector} must be a name, got {selected!r}")
        self.keys = command.keys(selected)

    def parser(self, **options: Any) -> CommandParser:
        command = self.command
        return CommandParser(self.keys, command.positional, command.aliases, command.config_flag, **options)

    def read(self) -> dict[str, Any]:
        """Flags over the recipe: a nested mapping by key."""
        tree = merge(self.recipe, self.parser().read(self.words))
        home = {key: str(user_path(tree[key])) for key in ("out", "model") if str(tree.get(key)).startswith("~")}
        return tree | home  # a shell does not expand the ~ of --out=~/x

    def load(self, is_partial: bool = False) -> Any:
        """Build the config: flags over the recipe over defaults.

        Args:
            is_partial: allow required keys to be missing, and leave ``out`` at its default.

        Raises:
            UserError: an unknown key, an invalid value, or a missing key; one sentence.
        """
        tree = self.read()
        config = build(self.keys, tree)
        if is_partial:
            return config
        missing = [key.name for key in keys_of(self.keys) if key.is_required and not tree.get(key.name)]
        if missing:
            raise MissingKeysError(missing)
        if hasattr(config, "default_out") and config.out is None:
            config = replace(config, out=config.default_out(self.path.stem if self.path else self.name, self.recipe))
        if self.path and os.path.realpath(self.path) == os.path.realpath(getattr(config, "out", None) or ""):
            raise UserError(f"{self.path} is the {self.command.config_flag}; give another --out")
        return config

    def config_text(self) -> str:
        """The whole config as YAML; required keys that are missing are null.

        Raises:
            UserError: as :meth:`load`, unless keys are missing.
        """
        with contextlib.suppress(MissingKeysError):
            self.load(is_partial=True)
        defaults = nest({key.name: None if key.default is MISSING else key.default for key in keys_of(self.keys)})
        return to_yaml(merge(defaults, self.read()))

    def help_text(self, program: str) -> str:
        """Help: usage, packaged configs, and every key with its default, that of the recipe if one is named."""
        command, flag, keys = self.command, self.command.config_flag, {key.name: key for key in keys_of(self.keys)}
        places = [name for name in command.positional if not keys[name].is_hidden]
        usage = [
            f"{program} {self.name}{command.head}",
            *(name.upper() + " …" * bool(keys[name].element) for name in places),
        ]
        title = command.help if command.head else docstring_title(self.keys) or command.help
        lines, end = textwrap.wrap(title, terminal_width()), ""
        if self.configs.is_dir() or hasattr(self.keys, "default_out"):
            usage.append(f"[--{flag} NAME|FILE]")
            end = f"--print_config prints the whole {flag}, --debug an error's traceback."
        listed = list_configs(self.configs)
        if listed:
            lines += ["", f"{flag}s (--{flag} NAME, or a YAML file of yours):", *listed]
        usage_line = " ".join([*usage, f"[--KEY VALUE …]{command.tail}"])
        options = {"usage": usage_line, "description": "\n".join(lines), "epilog": end}
        return self.parser(recipe=flatten(self.recipe), **options).format_help()


def list_configs(folder: Path) -> list[str]:
    """A line for every config in a folder: its name, and the first sentence of the comment at its top."""
    paths = sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    longest = max((len(path.stem) for path in paths), default=0)
    room = max(20, terminal_width() - longest - 4)
    return [f"  {path.stem:<{longest}}  {textwrap.shorten(_comment(path), room, placeholder=' …')}" for path in paths]


def _comment(path: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"\.(?= [A-Z])|\.$", " ".join(line.lstrip("# ") for line in lines))[0]
