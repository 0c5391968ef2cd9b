"""A command line: a table of commands. Bad input is caught here, once: one sentence on stderr and exit code 2."""

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosschannel.command import Command, Invocation
from crosschannel.completion import complete, completion_script
from crosschannel.config.flags import split_at_separator
from crosschannel.config.load import config_folder
from crosschannel.console import open_streams, say
from crosschannel.errors import WORKER_LOST, UserError, file_problem, is_worker_loss
from crosschannel.factories import installed_names
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

    def invoke(self, words: Sequence[str]) -> Invocation:
        """Find the command that a command line begins with; its name is one word, or two.

        Raises:
            UserError: there is no such command, or no such config.
        """
        name = " ".join(words[:2]) if " ".join(words[:2]) in self.commands else words[0]
        return Invocation(self.command(name), name, words[len(name.split()) :], self.folder(name))

    def parse(self, name: str, words: Sequence[str]) -> Any:
        """The config of a command line, see :meth:`Invocation.load`."""
        return self.invoke([*name.split(), *words]).load()


def usage(program: Program) -> str:
    lines = "\n".join(f"  {name:<14}{command.help}" for name, command in program.commands.items())
    if program.installed_commands:
        lines += f"\n\nfrom installed packages: {', '.join(program.installed_commands)}"
    return (
        f"usage: {program.name} COMMAND [--config NAME|FILE] [--key value …]\n\n"
        f"{program.summary}\n\ncommands:\n{lines}\n\n"
        f"{program.name} COMMAND --help lists a command's keys; --version prints the version;\n"
        "--debug shows the traceback of an error; --completion prints a line for .bashrc or .zshrc."
    )


def run_program(
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
        debug = "--debug" in split_at_separator(argv)[0]
        try:
            try:
                return _answer(program, translate(argv))
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
        print(__version__)
        return 0
    if argv[0] == "--completion":
        print(completion_script(program))
        return 0
    if argv[0] == "--complete":
        print("\n".join(complete(program)))
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run_command(program, argv)


def _show_warning(message, category, *_place, **_more) -> None:
    say(f"warning: {message}" if category is UserWarning else f"{category.__name__}: {message}")


def _run_command(program: Program, argv: list[str]) -> int:
    """Run a command; raises UserError for bad input."""
    invocation = program.invoke(argv)
    if invocation.common.help:
        print(invocation.help_text(program.name), end="")
        return 0
    if invocation.common.print_config:
        print(invocation.config_text(), end="")
        return 0
    config, is_main = invocation.load(), os.environ.get("RANK", "0") == "0"
    if hasattr(config, "protocol") and is_main:  # state the recipe of a measurement
        recipe = invocation.common.config
        settings = f"config {recipe}" if recipe else "no config, the defaults that --help shows"
        say(f"{program.name} {invocation.name}: {settings}")
    keep_freed_memory()
    try:
        with _hooks():
            invocation.command.run(config)
    except Interrupted as interrupt:
        say(f"stopped by {interrupt}; the same command goes on from what is saved")
        return EXIT_CODE
    except RuntimeError as error:
        if not is_worker_loss(error):
            raise
        say(f"{program.name}: a loader worker was killed (for its memory, most often); the same command goes on")
        return WORKER_LOST
    following = invocation.command.suggest(config) if is_main else []
    if following:
        say("\n  ".join(["next:", *following]))
    return 0


@contextlib.contextmanager
def _hooks() -> Iterator[None]:
    """Silence errors that are reported elsewhere: of lost loader workers in finalizers, and of TensorBoard's thread."""
    hook, thread_hook = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda args: None if is_worker_loss(args.exc_value) else hook(args)
    threading.excepthook = lambda args: (
        None if type(args.thread).__module__.startswith("tensorboard") else thread_hook(args)
    )
    try:
        yield
    except RuntimeError as error:
        if is_worker_loss(error):  # what is left of the loader may fail while the process ends
            hook = lambda _args: None  # noqa: E731
        raise
    finally:
        sys.unraisablehook, threading.excepthook = hook, thread_hook
