"""Command-line programs, each a table of commands. Bad input is reported in one sentence on stderr with exit code 2."""

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
        summary: one-line description for its help.
        commands: commands by name.
        configs: subfolder of ``configs/`` with one folder of packaged configs per command.
        user_command: function that returns the user-defined command with a given name, or None.
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
        """Names of the user-defined commands in installed packages."""
        return sorted(entry_point_names(self.entry_points)) if self.entry_points else []

    def command(self, name: str) -> Command:
        """Return a command by name.

        Raises:
            UserError: an unknown command.
        """
        command = self.commands.get(name) or self.user_command(name)
        if command is None:
            candidates = [known for known in self.commands if known.startswith(f"{name} ")] or self.commands
            raise UserError(
                f"unknown command {name!r}; available: {', '.join([*candidates, *self.installed_commands])}"
            )
        return command

    def folder(self, name: str) -> Path:
        """Return the folder of a command's packaged configs."""
        return self.command(name).configs or config_folder() / self.configs / name

    def invocation(self, argv: Sequence[str]) -> Invocation:
        """Create the invocation of a command line that starts with the name of a command (one or two words).

        Raises:
            UserError: an unknown command or config.
        """
        length = 2 if " ".join(argv[:2]) in self.commands else 1
        name = " ".join(argv[:length])
        return Invocation(self.command(name), name, argv[length:], self.folder(name))

    def parse(self, name: str, argv: Sequence[str]) -> Any:
        """Parse and validate the config of a command; see :meth:`Invocation.load`."""
        return self.invocation([*name.split(), *argv]).load()


def usage(program: Program) -> str:
    """Format the help of a program."""
    lines = "\n".join(f"  {name:<14}{command.help}" for name, command in program.commands.items())
    if program.installed_commands:
        lines += f"\n\nfrom installed packages: {', '.join(program.installed_commands)}"
    return (
        f"usage: {program.name} COMMAND [--KEY VALUE …]\n\n"
        f"{program.summary}\n\ncommands:\n{lines}\n\n"
        f"{program.name} COMMAND --help lists the keys of a command; --version prints the version;\n"
        "--debug prints tracebacks; --completion prints the line that enables shell completion."
    )


def run_program(
    program: Program,
    argv: list[str] | None = None,
    translate: Callable[[list[str]], list[str]] = lambda argv: argv,
) -> int:
    """Run a command line and return its exit code.

    Exit codes are 0: done; 1: broken pipe; 2: bad input or a file error; 71: a loader worker was killed; 75:
    interrupted after saving; 130: Ctrl-C.

    Args:
        program: program to run.
        argv: arguments. If None, ``sys.argv`` is used and leftover loader workers are killed on exit.
        translate: function that rewrites the arguments before parsing, for example from ``resume RUN`` to ``submit …``.
    """
    with open_streams(), _kill_leftover_workers() if argv is None else restore_handlers():
        argv = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in split_at_separator(argv)[0]
        try:
            try:
                return _dispatch(program, translate(argv))
            finally:
                sys.stdout.flush()  # inside the try block, so that a write error is reported
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
    """Kill loader workers on exit. They ignore SIGTERM, and Python would wait for them forever."""
    try:
        yield
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()


def _silence_stdout() -> None:
    """Redirect stdout to /dev/null if it cannot be flushed, since the interpreter would report an error at exit."""
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


def _show_warning(message, category, *_location, **_options) -> None:
    print_stderr(f"warning: {message}" if category is UserWarning else f"{category.__name__}: {message}")


def _run_command(program: Program, argv: list[str]) -> int:
    """Run a command and return its exit code. Raises UserError for bad input."""
    invocation = program.invocation(argv)
    if invocation.common.help:
        print(invocation.help_text(program.name), end="")
        return 0
    if invocation.common.print_config:
        print(invocation.config_text(), end="")
        return 0
    config, is_main = invocation.load(), os.environ.get("RANK", "0") == "0"
    if hasattr(config, "protocol") and is_main:  # results depend on the config, so print which config is used
        names = ", ".join(invocation.common.config or ())
        settings = f"config {names}" if names else "no --config; using the defaults in --help"
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
    next_steps = invocation.command.suggest(config) if is_main else []
    if next_steps:
        print_stderr("\n  ".join(["next:", *next_steps]))
    return 0


@contextlib.contextmanager
def _quiet_hooks() -> Iterator[None]:
    """Silence errors that are reported elsewhere: those of killed loader workers, and those of TensorBoard's thread."""
    hook, thread_hook = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda args: None if is_worker_loss(args.exc_value) else hook(args)
    threading.excepthook = lambda args: (
        None if type(args.thread).__module__.startswith("tensorboard") else thread_hook(args)
    )
    try:
        yield
    except RuntimeError as error:
        if is_worker_loss(error):  # other parts of the loader may fail during shutdown
            hook = lambda _args: None  # noqa: E731
        raise
    finally:
        sys.unraisablehook, threading.excepthook = hook, thread_hook
