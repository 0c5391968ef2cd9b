"""The ``slurm`` folder of a run: its submission, jobs and events, and how each rank ended.

The module uses only the standard library, because the batch script imports it and may run outside the job's container.
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
    """End of one rank of an attempt.

    Attributes:
        rank: global rank.
        code: exit code; None if a signal ended the process.
        signal: name of that signal; None if the process exited.
        told: whether the rank had been asked to stop.
        time: time of the end, in seconds since the epoch.
        host: name of the node.
        words: last line of the rank's log.
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
    """Event of a job.

    Attributes:
        time: seconds since the epoch.
        job: job id.
        attempt: index of the attempt.
        event: "started", "interrupted", "killed", "requeued", "failed", "finished" or "cancelled".
        cause: human-readable cause or detail.
    """

    time: float
    job: str
    attempt: int
    event: str
    cause: str = ""


@dataclass(frozen=True)
class Job:
    """Submission of a run.

    Attributes:
        id: job id of SLURM (``12`` or ``12_3``) or of the local executor.
        cluster: "slurm" or "local".
        nodes, ranks: number of nodes and of ranks.
        logs: folder of the ranks' logs.
        host: name of the submitting machine.
        time: time of the submission, in seconds since the epoch.
    """

    id: str
    cluster: str
    nodes: int
    ranks: int
    logs: str
    host: str
    time: float


def _parse_rows(kind: type[T], rows: Iterable[dict[str, Any]]) -> Iterator[T]:
    """Yield a dataclass instance for each valid row. Rows with missing, unknown or wrongly typed fields are skipped.

    pydantic is not used, because it may not be available to a batch script.
    """
    hints = get_type_hints(kind)
    for row in rows:
        is_valid = all(_has_type(row.get(name), hint) for name, hint in hints.items() if name in row)
        with contextlib.suppress(TypeError):  # missing or unknown fields
            if is_valid:
                yield kind(**row)


def _has_type(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) and "\0" not in str(value)


def no_jobs_reason(run: str) -> str:
    """Return an error message for a folder without jobs. It suggests a run below the folder, if there is one."""
    runs = sorted(path.parents[1] for path in Path(run).glob("*/slurm/jobs.jsonl"))
    if runs:
        return f"{run} is a folder of runs ({len(runs)} with jobs); choose one, such as {shlex.quote(str(runs[0]))}"
    cause = "it was not submitted by crosschannel-slurm" if Path(run).is_dir() else "the folder does not exist"
    return f"{run} has no jobs: {cause}"


class JobFolder:
    """The ``slurm`` folder of a run.

    Args:
        run: run folder.
    """

    def __init__(self, run: Path | str):
        self.run = Path(run)
        self.path = self.run / "slurm"

    def jobs(self) -> list[Job]:
        """Return all submissions of the run, oldest first."""
        jobs = _parse_rows(Job, read_rows(self.path / "jobs.jsonl"))
        return [job for job in jobs if re.fullmatch(r"\d+(_\d+)?", job.id)]

    def add_job(self, job: Job) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        append_line(self.path / "jobs.jsonl", asdict(job))

    def events(self, job: str | None = None) -> list[dict[str, Any]]:
        """Return the events of one job, or of all jobs, oldest first, as dicts with the fields of :class:`Event`."""
        events = _parse_rows(Event, read_rows(self.path / "events.jsonl"))
        return [asdict(event) for event in events if job in (None, event.job)]

    def add_event(self, job: str, attempt: int, event: str, cause: str = "") -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        append_line(self.path / "events.jsonl", asdict(Event(time.time(), job, attempt, event, cause)))

    def ends(self, job: str, attempt: int) -> dict[int, End]:
        """Return the ends of the ranks of an attempt that have ended so far, by rank."""
        paths = (self.path / "ends").glob(f"{job}-{attempt}-*.json")
        return {end.rank: end for end in _parse_rows(End, chain.from_iterable(map(read_rows, paths)))}

    def write_end(self, job: str, attempt: int, end: End) -> None:
        folder = self.path / "ends"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{job}-{attempt}-{end.rank}.json", json.dumps(asdict(end)))

    def failure_marker(self, job: str, attempt: int) -> Path:
        """Return the path of a file that exists once a rank failed or was killed; it saves reading all end files."""
        return self.path / "ends" / f"{job}-{attempt}.bad"

    def attempts(self, job: str, rank: int) -> int:
        """Return the number of attempts of a job that have ended on a rank."""
        return len(list((self.path / "ends").glob(f"{job}-*-{rank}.json")))
