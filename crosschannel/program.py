"""A program: a table of commands. Bad input is caught here: one sentence on stderr and exit code 2."""

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
from crosschannel.console import open_streams, print_stderr
from crosschannel.errors import WORKER_LOST, UserError, file_problem, is_worker_loss
from crosschannel.factories import entry_point_names
from crosschannel.runs.interrupts import EXIT_CODE, Interrupted, restore_handlers
from crosschannel.training.memory import keep_freed_memory
from crosschannel.version import __version__


@dataclass(frozen=True)
class Program:
    """A command-line program.

    Attributes:
        name: name of the executable.
        summary: one line for its help.
        commands: commands by name.
        configs: subfolder of ``configs/`` that holds one folder of packaged configs per command.
        user_command: name → user-defined command, or None if there is none.
        entry_points: entry-point group of user-defined commands.
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
        return sorted(entry_point_names(self.entry_points)) if self.entry_points else []

    def command(self, name: str) -> Command:
        """A command by name.

        Raises:
            UserError: there is none.
        """
        command = self.commands.get(name) or self.user_command(name)
        if command is None:
            candidates = [known for known in self.commands if known.startswith(f"{name} ")] or self.commands
            raise UserError(
                f"unknown command {name!r}; available: {', '.join([*candidates, *self.installed_commands])}"
            )
        return command

    def folder(self, name: str) -> Path:
        """The folder of a command's packaged configs."""
        return self.command(name).configs or config_folder() / self.configs / name

    def invocation(self, words: Sequence[str]) -> Invocation:
        """Parse a command line that begins with a command's name (one or two words), without running the command.

        Raises:
            UserError: there is no such command, or no such config.
        """
        length = 2 if " ".join(words[:2]) in self.commands else 1
        name = " ".join(words[:length])
        return Invocation(self.command(name), name, words[length:], self.folder(name))

    def parse(self, name: str, words: Sequence[str]) -> Any:
        """Parse and check the config of a command, see :meth:`Invocation.load`."""
        return self.invocation([*name.split(), *words]).load()


def usage(program: Program) -> str:
    lines = "\n".join(f"  {name:<14}{command.help}" for name, command in program.commands.items())
    if program.installed_commands:
        lines += f"\n\nfrom installed packages: {', '.join(program.installed_commands)}"
    return (
        f"usage: {program.name} COMMAND [--KEY VALUE …]\n\n"
        f"{program.summary}\n\ncommands:\n{lines}\n\n"
        f"{program.name} COMMAND --help lists a command's keys; --version prints the version;\n"
        "--debug shows tracebacks; --completion prints the line that enables shell completion."
    )


def run_program(
    program: Program,
    argv: list[str] | None = None,
    translate: Callable[[list[str]], list[str]] = lambda argv: argv,
) -> int:
    """Run a command line, and return its exit code.

    0: done; 1: broken pipe; 2: bad input or a file error; 71: a loader worker was killed; 75: interrupted, progress
    saved; 130: Ctrl-C.

    Args:
        program: the program.
        argv: arguments; None takes those of this process, and kills leftover loader workers at the end.
        translate: rewrites the arguments before they are parsed, such as ``resume RUN`` to ``submit``.
    """
    with open_streams(), _kill_leftover_workers() if argv is None else restore_handlers():
        argv = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in split_at_separator(argv)[0]
        try:
            try:
                return _dispatch(program, translate(argv))
            finally:
                sys.stdout.flush()  # here, so that a failure is reported
        except UserError as error:
            if debug:
                traceback.print_exc()
            print_stderr(f"{program.name}: {' '.join(str(error).split())[:2000]}")
            return 2
        except KeyboardInterrupt:
            print_stderr(f"{program.name}: interrupted")
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
            print_stderr(f"{program.name}: {problem}")
            _silence_stdout()
            return 2


@contextlib.contextmanager
def _kill_leftover_workers() -> Iterator[None]:
    """Kill loader workers on exit: they ignore SIGTERM, and Python would wait for them for ever."""
    try:
        yield
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()


def _silence_stdout() -> None:
    """Send stdout to /dev/null if it cannot be flushed, so that the interpreter does not fail on it at exit."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(program: Program, argv: list[str]) -> int:
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
    print_stderr(f"warning: {message}" if category is UserWarning else f"{category.__name__}: {message}")


def _run_command(program: Program, argv: list[str]) -> int:
    """Run a command; raises UserError for bad input."""
    invocation = program.invocation(argv)
    if invocation.common.help:
        print(invocation.help_text(program.name), end="")
        return 0
    if invocation.common.print_config:
        print(invocation.config_text(), end="")
        return 0
    config, is_main = invocation.load(), os.environ.get("RANK", "0") == "0"
    if hasattr(config, "protocol") and is_main:  # print which config a measurement uses
        names = ", ".join(invocation.common.config or ())
        settings = f"config {names}" if names else "no --config, the defaults that --help shows"
        print_stderr(f"{program.name} {invocation.name}: {settings}")
    keep_freed_memory()
    try:
        with _quiet_hooks():
            invocation.command.run(config)
    except Interrupted as interrupt:
        print_stderr(f"stopped by {interrupt}; run the same command again to resume")
        return EXIT_CODE
    except RuntimeError as error:
        if not is_worker_loss(error):
            raise
        print_stderr(
            f"{program.name}: a loader worker was killed, probably out of memory; run the same command again to resume"
        )
        return WORKER_LOST
    following = invocation.command.suggest(config) if is_main else []
    if following:
        print_stderr("\n  ".join(["next:", *following]))
    return 0


@contextlib.contextmanager
def _quiet_hooks() -> Iterator[None]:
    """Silence errors that are reported elsewhere: lost loader workers in finalizers, and TensorBoard's thread."""
    hook, thread_hook = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda args: None if is_worker_loss(args.exc_value) else hook(args)
    threading.excepthook = lambda args: (
        None if type(args.thread).__module__.startswith("tensorboard") else thread_hook(args)
    )
    try:
        yield
    except RuntimeError as error:
        if is_worker_loss(error):  # the rest of the loader may fail while the process ends
            hook = lambda _args: None  # noqa: E731
        raise
    finally:
        sys.unraisablehook, threading.excepthook = hook, thread_hook
