"""`crosschannel COMMAND …`: a dataclass per command is its YAML file, its flags and its help."""

import errno
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import crosschannel
from crosschannel.errors import UserError

# command: (module, config, function, positional arguments, one line of help)
COMMANDS: dict[str, tuple[str, str, str, tuple[str, ...], str]] = {
    "pretrain": ("pretrain", "PretrainConfig", "pretrain", (), "learn a representation from unlabelled images"),
    "colorize": ("colorize", "ColorizeConfig", "colorize", ("images",), "colour pictures with a trained net"),
    "prior": ("prior", "PriorConfig", "estimate_prior", (), "estimate the ab prior of a collection of images"),
    "shard": ("shard", "ShardConfig", "shard", ("data", "out"), "pack images into indexed tar shards"),
}


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_FILE_ERRORS = _DISK_ERRORS | {
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "EMFILE", "ENFILE", "ENAMETOOLONG", "ELOOP")
}


def config_folder() -> Path:
    """Where the packaged configs are: in the wheel, or at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(name: str, command: str) -> Path:
    """A config file: a path, or the name of a packaged one.

    Raises:
        UserError: neither; the message lists the packaged ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = config_folder() / command
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
    raise UserError(f"no config {name!r}: neither a file nor a packaged one ({known})")


def usage() -> str:
    lines = "\n".join(f"  {name:<10}{entry[-1]}" for name, entry in COMMANDS.items())
    return (
        "usage: crosschannel COMMAND [--config NAME|FILE] [--key value …]\n\n"
        f"{crosschannel.__doc__.splitlines()[0]}\n\ncommands:\n{lines}\n\n"
        "crosschannel COMMAND --help lists a command's keys; --version prints the version;\n"
        "--debug shows the traceback of an error."
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(crosschannel.__version__)
        return 0
    debug = "--debug" in argv
    warnings.showwarning = _show_warning
    try:
        return run([argument for argument in argv if argument != "--debug"])
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"crosschannel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("crosschannel: interrupted", file=sys.stderr)
        return 130


def _show_warning(message, category, *_place, **_more) -> None:
    print(f"crosschannel: {message}" if category is UserWarning else f"{category.__name__}: {message}", file=sys.stderr)


def run(argv: list[str]) -> int:
    """Parse and run; raises UserError for bad input."""
    command, *rest = argv
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
    module_name, config_name, function_name, positional, _ = COMMANDS[command]
    module = import_module(f"crosschannel.commands.{module_name}")
    config = parse(command, getattr(module, config_name), rest, positional)
    function: Callable[[Any], Any] = getattr(module, function_name)

    from crosschannel.training.device import keep_freed_memory
    from crosschannel.training.interrupts import EXIT_CODE, Interrupted

    keep_freed_memory()
    try:
        function(config)
    except Interrupted as signal:
        print(f"stopped by {signal}; saved, and the same command goes on from here", file=sys.stderr)
        return EXIT_CODE
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.filename and error.errno in _FILE_ERRORS:
            raise UserError(f"{error.filename}: {error.strerror}") from error
        if error.errno in _DISK_ERRORS:
            raise UserError(f"cannot write: {error.strerror}") from error
        raise
    return 0


def parse(command: str, config_class: type, argv: list[str], positional: tuple[str, ...] = ()) -> Any:
    """Flags (over a config file) → the command's dataclass.

    Raises:
        UserError: an unknown key, a bad value, a missing file; one sentence.
    """
    from argparse import SUPPRESS, ArgumentError

    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    places = "".join(f" {name.upper()}{' …' if name == 'images' else ''}" for name in positional)
    parser = ArgumentParser(
        prog=f"crosschannel {command}",
        usage=f"crosschannel {command}{places} [--config NAME|FILE] [--KEY VALUE …]",
        description=config_class.__doc__,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file, or the name of a packaged config")
    parser.add_class_arguments(config_class, skip=set(positional), fail_untyped=True)
    _add_positionals(parser, config_class, positional)
    for action in parser._actions:
        if type(action).__name__ == "_ActionConfigLoad":  # --optim FILE and the like: possible, not worth a line
            action.help = SUPPRESS
    argv, name = _prepare(argv, command)
    try:
        namespace = parser.parse_args(argv)
        values = parser.instantiate(namespace)
    except ArgumentError as error:
        raise UserError(_one_sentence(str(error), _keys(parser))) from None
    names = {entry.name for entry in fields(config_class)}
    config = config_class(**{key: value for key, value in vars(values).items() if key in names})
    if name and getattr(config, "out", "") is None:
        config.out = f"runs/{name}-{config.seed}"
    for key in ("out", "model"):  # a shell leaves the ~ of --out=~/x to us
        if getattr(config, key, None) and isinstance(getattr(config, key), str):
            setattr(config, key, str(Path(getattr(config, key)).expanduser()))
    return config


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
        (r"Expected a <class 'tuple'>", "expected two numbers such as [0.5, 1.0]"),
        (r"Expected a <class 'list'>", "expected a list such as [1, 2]"),
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
            many = {"nargs": "+", "type": str} if entry.type == list[str] else {"type": entry.type}
            parser.add_argument(entry.name, metavar=entry.name.upper(), help=entry.metadata["help"], **many)


def _prepare(argv: list[str], command: str) -> tuple[list[str], str | None]:
    """Flags with '_' for '-', and `--config` as a path; the config's name besides."""
    prepared, name = [], None
    argv = iter(argv)
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            value = value if equals else next(argv, "")
            path = find_config(value, command)
            name = path.stem
            prepared += ["--config", str(path)]
        elif flag.startswith("--"):
            prepared.append("--" + flag[2:].replace("-", "_") + equals + value)
        else:
            prepared.append(argument)
    return prepared, name


if __name__ == "__main__":
    sys.exit(main())
