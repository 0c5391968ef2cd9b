"""What a person sees while a run goes on: a progress bar in a terminal, lines in a file; TensorBoard beside it."""

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
    """Rank 0's reports; other ranks (``idle``) neither say nor write anything.

    Args:
        run: the run folder, for TensorBoard's events.
        steps: where the run ends.
        tensorboard: write events.
        idle: do nothing at all.
        quiet: say nothing.
    """

    def __init__(self, run: Path, steps: int, tensorboard: bool = True, idle: bool = False, quiet: bool = False):
        self.steps = steps
        self.console = stderr_console(quiet=idle or quiet)
        self._bar: Progress | None = None
        self._events = run / "tensorboard" if tensorboard and not idle else None
        self._purge: int | None = None
        self._since, self._begun = 0, time.monotonic()

    @contextlib.contextmanager
    def started(self, step: int) -> Iterator[None]:
        """While the run goes on, from a step on."""
        self._purge = step + 1 if step else None
        self._since, self._begun = step, time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[figures]}")
            self._bar = Progress(
                *(TextColumn(c) if isinstance(c, str) else c for c in columns),
                TimeElapsedColumn(),
                "left",
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._bar.add_task("training", total=self.steps, completed=step, figures="")
        try:
            yield
        finally:
            self._close()

    @cached_property
    def _writer(self):
        """TensorBoard's, made when there is something to write: a run that cannot start leaves nothing."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._events), purge_step=self._purge)

    def _to_tensorboard(self, write: Callable[[Any], None]) -> None:
        """What cannot be written ends the events, and nothing else."""
        if self._events is None:
            return
        try:
            write(self._writer)
        except Exception as error:  # the writer's thread passes on whatever it met
            self._events = None
            self.message(f"no more TensorBoard events: {file_problem(error) or error}")

    def message(self, message: str) -> None:
        """A line of its own."""
        self.console.print(message)

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def scalars(self, step: int, values: dict[str, Any], shown: str) -> None:
        """Figures of a step: to TensorBoard, and ``shown`` to the bar or as a line."""

        def add(writer) -> None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, step)

        self._to_tensorboard(add)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, figures=shown)
        else:
            spent = time.monotonic() - self._begun
            left = spent / max(1, step - self._since) * (self.steps - step)
            self.message(f"step {step}/{self.steps}  {shown}  {clock(left)} left")

    def picture(self, step: int, name: str, pixels) -> None:
        """An (H, W, 3) uint8 picture, to TensorBoard."""
        self._to_tensorboard(lambda writer: writer.add_image(name, pixels, step, dataformats="HWC"))

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
        if "_writer" in vars(self):
            self._to_tensorboard(lambda writer: writer.close())
        if sys.stderr is not None:
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
