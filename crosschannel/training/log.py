"""Progress of a training run: a progress bar in a terminal, lines in a log file, and TensorBoard events."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crosschannel.console import stderr_console
from crosschannel.errors import file_problem


class TrainingLog:
    """Log of messages, metrics and pictures of a training run.

    Args:
        run: run folder, to which TensorBoard events are written.
        steps: optimiser steps of the complete run.
        tensorboard: write TensorBoard events.
        idle: neither print nor write (all ranks except rank 0).
        quiet: print nothing.
    """

    def __init__(self, run: Path, steps: int, tensorboard: bool = True, idle: bool = False, quiet: bool = False):
        self.steps = steps
        self.console = stderr_console(quiet=idle or quiet)
        self._bar: Progress | None = None
        self._event_folder = run / "tensorboard" if tensorboard and not idle else None
        self._purge_step: int | None = None
        self._start_step, self._start_time = 0, time.monotonic()

    @contextlib.contextmanager
    def progress(self, step: int) -> Iterator[None]:
        """Show a progress bar, starting at a step, for the duration of the block."""
        self._purge_step = step + 1 if step else None
        self._start_step, self._start_time = step, time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[metrics]}")
            self._bar = Progress(
                *(TextColumn(c) if isinstance(c, str) else c for c in columns),
                TimeElapsedColumn(),
                "left",
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._bar.add_task("training", total=self.steps, completed=step, metrics="")
        try:
            yield
        finally:
            self._close()

    @cached_property
    def _writer(self):
        """TensorBoard writer, created on first use, so that a run that fails to start leaves no files."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._event_folder), purge_step=self._purge_step)

    def _to_tensorboard(self, write: Callable[[Any], None]) -> None:
        """Write to TensorBoard. An error turns TensorBoard off and does not stop the run."""
        if self._event_folder is None:
            return
        try:
            write(self._writer)
        except Exception as error:  # the writer re-raises errors of any type from its thread
            self._event_folder = None
            self.message(f"TensorBoard logging stopped: {file_problem(error) or error}")

    def message(self, message: str) -> None:
        """Print a message on a new line."""
        self.console.print(message)

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def scalars(self, step: int, values: dict[str, Any], text: str) -> None:
        """Log the metrics of a step: ``values`` to TensorBoard, and ``text`` in the progress bar or on a line."""

        def add(writer) -> None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, step)

        self._to_tensorboard(add)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, metrics=text)
        else:
            elapsed = time.monotonic() - self._start_time
            remaining = elapsed / max(1, step - self._start_step) * (self.steps - step)
            self.message(f"step {step}/{self.steps}  {text}  {clock(remaining)} left")

    def picture(self, step: int, name: str, pixels) -> None:
        """Log a picture, (H, W, 3) uint8, to TensorBoard."""
        self._to_tensorboard(lambda writer: writer.add_image(name, pixels, step, dataformats="HWC"))

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
        if "_writer" in vars(self):
            self._to_tensorboard(lambda writer: writer.close())
        if sys.stderr is not None:
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """Format seconds as hours:minutes:seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
