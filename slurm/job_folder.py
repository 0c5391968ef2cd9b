"""What a run folder's ``slurm`` folder holds: the submission, the jobs, how every rank ended, what happened.

Nothing but the standard library is needed, as for everything that the batch script itself runs: it may be outside the
job's container.
"""

import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from crosschannel.files import append_line, write_text
from crosschannel.stored import read_rows

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """How one rank of one attempt ended.

    Attributes:
        rank: its number.
        code: exit code; None where a signal ended it.
        signal: name of that signal.
        told: it had been told to stop before.
        time: seconds since the epoch.
        host: where it ran.
        words: the last line that it wrote.
    """

    rank: int
    code: int | None
    signal: str | None
    told: bool
    time: float
    host: str
    words: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: "started", "interrupted", "killed", "requeued", "failed", "finished",
    "cancelled", at a time in seconds since the epoch."""

    time: float
    job: str
    attempt: int
    event: str
    cause: str = ""


@dataclass(frozen=True)
class Job:
    """One submission of a run.

    Attributes:
        id: as SLURM (``12`` or ``12_3``) or the local executor names it.
        cluster: "slurm" or "local".
        nodes, ranks: that it has.
        logs: folder of the files that its ranks write.
        host: where it was submitted from.
        time: when.
    """

    id: str
    cluster: str
    nodes: int
    ranks: int
    logs: str
    host: str
    time: float


def _known(kind: type[T], rows: Iterable[dict[str, Any]]) -> Iterator[T]:
    """Rows with the right fields and types; damaged ones are left out. (A batch script may not have pydantic.)"""
    hints = get_type_hints(kind)
    for row in rows:
        is_whole = all(_is_of_type(row.get(name), hint) for name, hint in hints.items() if name in row)
        with contextlib.suppress(TypeError):  # a field is missing, or unknown
            if is_whole:
                yield kind(**row)


def _is_of_type(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) and "\0" not in str(value)


def no_jobs(run: str) -> str:
    """Explain in one sentence why a folder has no jobs, and which run to name instead."""
    runs = sorted(path.parents[1] for path in Path(run).glob("*/slurm/jobs.jsonl"))
    if runs:
        return f"{run} holds {len(runs)} runs with jobs; name one of them, such as {shlex.quote(str(runs[0]))}"
    reason = "it was not submitted by crosschannel-slurm" if Path(run).is_dir() else "there is no such folder"
    return f"{run} has no jobs: {reason}"


class JobFolder:
    """The ``slurm`` folder of a run.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path | str):
        self.run = Path(run)
        self.path = self.run / "slurm"

    def jobs(self) -> list[Job]:
        """All submissions of the run, oldest first."""
        jobs = _known(Job, read_rows(self.path / "jobs.jsonl"))
        return [job for job in jobs if re.fullmatch(r"\d+(_\d+)?", job.id)]

    def add_job(self, job: Job) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        append_line(self.path / "jobs.jsonl", asdict(job))

    def events(self, job: str | None = None) -> list[dict[str, Any]]:
        """What happened (to one job, or to all), oldest first: ``time``, ``job``, ``attempt``, ``event``, ``cause``."""
        found = _known(Event, read_rows(self.path / "events.jsonl"))
        return [asdict(event) for event in found if job in (None, event.job)]

    def add_event(self, job: str, attempt: int, event: str, cause: str = "") -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        append_line(self.path / "events.jsonl", asdict(Event(time.time(), job, attempt, event, cause)))

    def ends(self, job: str, attempt: int) -> dict[int, End]:
        """How the ranks of an attempt ended, so far."""
        paths = (self.path / "ends").glob(f"{job}-{attempt}-*.json")
        return {end.rank: end for end in _known(End, chain.from_iterable(map(read_rows, paths)))}

    def write_end(self, job: str, attempt: int, end: End) -> None:
        folder = self.path / "ends"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{job}-{attempt}-{end.rank}.json", json.dumps(asdict(end)))

    def bad_mark(self, job: str, attempt: int) -> Path:
        """A file that is there once a rank of an attempt has ended badly: the others need not read all ends."""
        return self.path / "ends" / f"{job}-{attempt}.bad"

    def attempts(self, job: str, rank: int) -> int:
        """How many attempts of a job a rank has ended."""
        return len(list((self.path / "ends").glob(f"{job}-*-{rank}.json")))
