"""What a run folder's ``slurm`` folder holds: the submission, the jobs, how every rank ended, what happened.

Standard library only, as for everything that the batch script itself runs: it may be outside the job's container.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
        return [Job(**row) for row in _rows(self.path / "jobs.jsonl")]

    def add_job(self, job: Job) -> None:
        _append(self.path / "jobs.jsonl", asdict(job))

    def events(self, job: str | None = None) -> list[dict[str, Any]]:
        """What happened (to one job, or to all), oldest first: ``time``, ``job``, ``attempt``, ``event``, ``cause``."""
        return [row for row in _rows(self.path / "events.jsonl") if job in (None, row["job"])]

    def add_event(self, job: str, attempt: int, event: str, cause: str = "") -> None:
        row = {"time": time.time(), "job": job, "attempt": attempt, "event": event, "cause": cause}
        _append(self.path / "events.jsonl", row)

    def ends(self, job: str, attempt: int) -> dict[int, End]:
        """How the ranks of an attempt ended, so far."""
        found = {}
        for path in (self.path / "ends").glob(f"{job}-{attempt}-*.json"):
            end = End(**json.loads(path.read_text()))
            found[end.rank] = end
        return found

    def write_end(self, job: str, attempt: int, end: End) -> None:
        folder = self.path / "ends"
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{job}-{attempt}-{end.rank}.part"
        part.write_text(json.dumps(asdict(end)))
        part.replace(part.with_suffix(".json"))

    def bad_mark(self, job: str, attempt: int) -> Path:
        """A file that is there once a rank of an attempt has ended badly: the others need not read all ends."""
        return self.path / "ends" / f"{job}-{attempt}.bad"

    def attempts(self, job: str, rank: int) -> int:
        """How many attempts of a job a rank has ended."""
        return len(list((self.path / "ends").glob(f"{job}-*-{rank}.json")))


def _append(path: Path, row: dict[str, Any]) -> None:
    """One write a line, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(row) + "\n").encode())
    finally:
        os.close(handle)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # cut off
            continue
    return rows
