"""What every command line shares: a dataclass per command is its YAML file, its flags and its help.

A program is a table of commands (see :mod:`crosschannel.cli`); bad input is caught here, once.
"""

import contextlib
import multiprocessing
import os
import re
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import crosschannel
from crosschannel.console import open_streams, say
from crosschannel.errors import WORKER_LOST, UserError, file_problem
from crosschannel.files import user_path
from crosschannel.keys import check_config
from crosschannel.stored import check_yaml, read_yaml


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        module: where its config and its function are.
        config: name of its dataclass; a method ``default_out(name)`` of it fills in a missing ``out``.
        function: takes the config.
        help: one line.
        positional: keys that are given by place.
        aliases: flags by other names than their keys', such as ``--as``.
        configs: folder of its packaged configs, where that is not the program's.
    """

    module: str
    config: str
    function: str
    help: str
    positional: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    configs: Path | None = None


@dataclass(frozen=True)
class Program:
    """A command line.

    Attributes:
        name: as it is typed.
        summary: one line.
        commands: by name.
        configs: folder of its packaged configs below ``configs``; each command has one of its own in it.
    """

    name: str
    summary: str
    commands: dict[str, Command]
    configs: str = ""


def config_folder() -> Path:
    """Where the packaged configs are: in the wheel, or at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(name: str, folder: Path) -> Path:
    """A config file: a path, or the name of one of those in a folder.

    Raises:
        UserError: neither; the message lists the packaged ones.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
    raise UserError(f"no config {name!r}: neither a file nor a packaged one ({known})")


def usage(program: Program) -> str:
    lines = "\n".join(f"  {name:<14}{command.help}" for name, command in program.commands.items())
    return (
        f"usage: {program.name} COMMAND [--config NAME|FILE] [--key value …]\n\n"
        f"{program.summary}\n\ncommands:\n{lines}\n\n"
        f"{program.name} COMMAND --help lists a command's keys; --version prints the version;\n"
        "--debug shows the traceback of an error."
    )


def main(
    program: Program,
    argv: list[str] | None = None,
    translate: Callable[[list[str]], list[str]] = lambda argv: argv,
) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved.

    Args:
        program: its commands.
        argv: the arguments; None takes this process's, which then ends here.
        translate: a program's own way of typing → flags.
    """
    from crosschannel.training.interrupts import handlers_kept

    with open_streams(), _end_of_process() if argv is None else handlers_kept():
        argv = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in argv
        try:
            try:
                return _answer(program, [word for word in translate(argv) if word != "--debug"])
            finally:
                sys.stdout.flush()  # now, where it can be said that it failed
        except UserError as error:
            if debug:
                traceback.print_exc()
            say(f"{program.name}: {' '.join(str(error).split())[:2000]}")
            return 2
        except KeyboardInterrupt:
            say(f"{program.name}: interrupted")
            return 130
        except BrokenPipeError:
            _silence_stdout()
            return 1
        except (OSError, MemoryError) as error:
            problem = file_problem(error)
            if not problem:
                raise
            if debug:
                traceback.print_exc()
            say(f"{program.name}: {problem}")
            _silence_stdout()
            return 2


@contextlib.contextmanager
def _end_of_process() -> Iterator[None]:
    """Afterwards no loader worker is left: they ignore SIGTERM, and Python would wait for them for ever."""
    try:
        yield
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()


def _silence_stdout() -> None:
    """What cannot be written now is not tried again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(program: Program, argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(program))
        return 0 if argv else 2
    if argv[0] == "--version":
        print(crosschannel.__version__)
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return run(program, argv)


def _show_warning(message, category, *_place, **_more) -> None:
    say(f"warning: {message}" if category is UserWarning else f"{category.__name__}: {message}")


def run(program: Program, argv: list[str]) -> int:
    """Parse and run; raises UserError for bad input."""
    name, *rest = argv
    if name not in program.commands:
        raise UserError(f"no command {name!r}; there are {', '.join(program.commands)}")
    module = import_module(program.commands[name].module)
    config = parse(program, name, rest)
    function: Callable[[Any], Any] = getattr(module, program.commands[name].function)

    from crosschannel.data.stream import is_worker_loss
    from crosschannel.training.device import keep_freed_memory
    from crosschannel.training.interrupts import EXIT_CODE, Interrupted

    keep_freed_memory()
    hook = sys.unraisablehook  # torch hears of a lost worker anywhere, in a finaliser too; it will ask again
    sys.unraisablehook = lambda what: None if is_worker_loss(what.exc_value) else hook(what)
    thread_hook = threading.excepthook  # TensorBoard's thread fails alone; who gives it something hears of it
    threading.excepthook = lambda what: (
        None if type(what.thread).__module__.startswith("tensorboard") else thread_hook(what)
    )
    try:
        function(config)
    except Interrupted as told:
        say(f"stopped by {told}; the same command goes on from what is saved")
        return EXIT_CODE
    except RuntimeError as error:
        if not is_worker_loss(error):
            raise
        hook = lambda _what: None  # noqa: E731  (what is left of the loader may fall apart as the process ends)
        say(f"{program.name}: a loader worker was killed (for its memory, most often); the same command goes on")
        return WORKER_LOST
    finally:
        sys.unraisablehook, threading.excepthook = hook, thread_hook
    return 0


def parse(program: Program, name: str, argv: list[str]) -> Any:
    """Flags (over a config file) → the dataclass of a program's command.

    Raises:
        UserError: an unknown key, a bad value, a missing file; one sentence.
    """
    from argparse import SUPPRESS, ArgumentError

    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        def format_help(self) -> str:
            """A key's range stands where its type stands."""
            return re.sub(r"Annotated\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", r"\1", super().format_help())

        def _print_message(self, message: str, file: Any = None) -> None:
            """As argparse's, which says nothing of output that nobody takes."""
            print(message, end="", file=file)

    _read_yaml_strictly()
    command = program.commands[name]
    config_class, positional = getattr(import_module(command.module), command.config), command.positional
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    many = {entry.name for entry in fields(config_class) if entry.type == list[str]}
    places = "".join(f" {key.upper()}{' …' if key in many else ''}" for key in positional)
    parser = Parser(
        prog=f"{program.name} {name}",
        usage=f"{program.name} {name}{places} [--config NAME|FILE] [--KEY VALUE …]",
        description=command.help if sys.flags.optimize > 1 else config_class.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file, or the name of a packaged config")
    parser.add_class_arguments(config_class, skip=set(positional), fail_untyped=True)
    _add_positionals(parser, config_class, positional)
    for action in parser._actions:
        if type(action).__name__ == "_ActionConfigLoad":  # --optim FILE and the like: possible, not worth a line
            action.help = SUPPRESS
    configs = command.configs or config_folder() / program.configs / name
    argv, path = _prepare(argv, configs, command.aliases, parser, config_class)
    try:
        values = parser.instantiate(parser.parse_args(argv))
    except ArgumentError as error:
        raise UserError(_one_sentence(str(error), _keys(parser))) from None
    except Exception as error:  # of a library that reads what a user typed
        raise UserError(f"the command line cannot be read: {type(error).__name__}: {error}") from error
    keys = {entry.name for entry in fields(config_class)}
    config = config_class(**{key: value for key, value in vars(values).items() if key in keys})
    if getattr(config, "out", "") is None:
        config.out = config.default_out(Path(path).stem or name)
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
            kind: dict[str, Any] = {"type": entry.type}
            if entry.type == list[str]:
                kind = {"type": str, "nargs": "+"}
                if entry.default_factory is not MISSING:
                    kind |= {"nargs": "*", "default": entry.default_factory()}
            parser.add_argument(entry.name, metavar=entry.name.upper(), help=entry.metadata["help"], **kind)


def _prepare(
    argv: list[str], configs: Path, aliases: dict[str, str], parser: Any, config_class: type
) -> tuple[list[str], str]:
    """Flags by their keys, with '_' for '-', `--config` as a path, and switches with a value; the config's path
    besides."""
    types = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    groups = {key.rpartition(".")[0] for key in types}
    prepared, path = [], ""
    rest = deque(argv)
    while rest:
        argument = rest.popleft()
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            value = value if equals else rest.popleft() if rest else ""
            path = str(find_config(value, configs))
            _check_file(path, config_class)
            prepared += ["--config", path]
        elif flag.startswith("--"):
            key = flag[2:].replace("-", "_")
            key = aliases.get(key, key)
            following = rest[0] if rest and not equals else value
            if type(None) in get_args(types.get(key)) and following == "" and (equals or rest):
                raise UserError(f"{key} must not be empty")  # it would be read as if it had not been given
            if key in groups and not following.startswith("{"):  # it would be read as the name of a file
                member = next(name for name in types if name.startswith(f"{key}."))
                raise UserError(f"{key} is a group of keys: give one of them, such as --{member}")
            alone = types.get(key) is bool and not equals and following.lower() not in ("true", "false")
            prepared.append(f"--{key}{equals}{value}" + ("=true" if alone else ""))
        else:
            prepared.append(argument)
    return prepared, path


def _check_file(path: str, config_class: type) -> None:
    """The keys of a config file are written one way, and its groups hold keys."""
    tree = read_yaml(Path(path), f"the config {path}")
    for key in tree:
        if not isinstance(key, str) or "." in key or key == "config" or key.startswith("__"):
            raise UserError(f"the config {path} has no key {key!r}; groups are written as train: {{steps: 3}}")
    for entry in fields(config_class):
        if is_dataclass(entry.type) and not isinstance(tree.get(entry.name, {}), dict):
            raise UserError(f"{entry.name} is a group of keys, and {path} has {tree[entry.name]!r} for it")
