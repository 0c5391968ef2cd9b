"""What every command line shares: a dataclass per command is its YAML file, its flags and its help.

A program is a table of commands (see :mod:`crosschannel.cli`); bad input is caught here, once.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from crosschannel.console import open_streams, say
from crosschannel.errors import WORKER_LOST, UserError, file_problem, is_worker_loss
from crosschannel.factories import installed_names
from crosschannel.parsing import Command, config_folder, options_of, parse, typed_flags
from crosschannel.runs.interrupts import EXIT_CODE, Interrupted, handlers_kept
from crosschannel.training.memory import keep_freed_memory
from crosschannel.version import __version__


@dataclass(frozen=True)
class Program:
    """A command line.

    Attributes:
        name: as it is typed.
        summary: one line.
        commands: by name.
        configs: folder of its packaged configs below ``configs``; each command has one of its own in it.
        user_command: name → a user-defined command; None if there is none of that name.
        entry_points: group of the entry points of installed user-defined commands.
    """

    name: str
    summary: str
    commands: dict[str, Command]
    configs: str = ""
    user_command: Callable[[str], Command | None] = lambda name: None
    entry_points: str = ""

    @property
    def installed_commands(self) -> list[str]:
        """Names of user-defined commands that installed packages add."""
        return sorted(installed_names(self.entry_points)) if self.entry_points else []

    def command(self, name: str) -> Command:
        """A command by name.

        Raises:
            UserError: there is none.
        """
        command = self.commands.get(name) or self.user_command(name)
        if command is None:
            there = [known for known in self.commands if known.startswith(f"{name} ")] or self.commands
            raise UserError(f"unknown command {name!r}; available: {', '.join([*there, *self.installed_commands])}")
        return command

    def folder(self, name: str) -> Path:
        """The folder of a command's packaged configs."""
        return self.command(name).configs or config_folder() / self.configs / name

    def parse(self, name: str, argv: list[str]) -> Any:
        """Flags of a command → its config; see :func:`crosschannel.parsing.parse`."""
        return parse(self.command(name), self.name, name, argv, self.folder(name))


def usage(program: Program) -> str:
    lines = "\n".join(f"  {name:<14}{command.help}" for name, command in program.commands.items())
    if program.installed_commands:
        lines += f"\n\nfrom installed packages: {', '.join(program.installed_commands)}"
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
    with open_streams(), _end_of_process() if argv is None else handlers_kept():
        argv = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in argv
        try:
            try:
                return _answer(program, _without_debug(translate(argv)))
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


def _without_debug(argv: list[str]) -> list[str]:
    options = options_of(argv)
    return [word for word in options if word != "--debug"] + argv[len(options) :]


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
        print(__version__)
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return run(program, argv)


def _show_warning(message, category, *_place, **_more) -> None:
    say(f"warning: {message}" if category is UserWarning else f"{category.__name__}: {message}")


def _which_config(argv: list[str]) -> str:
    """The recipe that a command line names, in words."""
    name = typed_flags(argv).get("--config")
    return f"config {name}" if name else "no config, the defaults that --help shows"


def run(program: Program, argv: list[str]) -> int:
    """Parse and run; raises UserError for bad input."""
    name, *rest = argv
    if rest and f"{name} {rest[0]}" in program.commands:  # a command of two words
        name, rest = f"{name} {rest[0]}", rest[1:]
    command = program.command(name)
    if {"-h", "--help"} & set(options_of(rest)):
        from crosschannel.help import help_text

        print(help_text(command, program.name, name, rest, program.folder(name)))
        return 0
    config = program.parse(name, rest)
    if hasattr(config, "protocol") and os.environ.get("RANK", "0") == "0":  # of a measurement: what recipe it is of
        say(f"{program.name} {name}: {_which_config(rest)}")
    function: Callable[[Any], Any] = resolve_name(command.function)

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
    following = resolve_name(command.after)(config) if command.after and os.environ.get("RANK", "0") == "0" else []
    if following:
        say("\n  ".join(["next:", *following]))
    return 0
