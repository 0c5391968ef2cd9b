"""SLURM's own commands: what is queued, a job's record, requeue, cancel.

Standard library only; no accounting needed.
"""

import os
import re
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Queued:
    """A job in the queue.

    Attributes:
        state: as squeue names it.
        reason: why it waits, or where it runs.
    """

    state: str
    reason: str


def ask(*command: str) -> str | None:
    """The output of a SLURM command; None where there is no such command, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def queue() -> dict[str, Queued] | None:
    """This user's jobs by id (``12`` or ``12_3``); None where the queue cannot be asked."""
    output = ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%R")
    if output is None:
        return None
    found = {}
    for line in output.splitlines():
        job, state, reason = line.split("|", 2)
        found[job] = Queued(state, reason)
    return found


def record(job: str) -> dict[str, str]:
    """What ``scontrol show job`` says of a job, by key; empty where it says nothing."""
    return dict(re.findall(r"(\S+?)=(\S*)", ask("scontrol", "--oneliner", "show", "job", job) or ""))


def requeue(job: str) -> bool:
    """Put a running job back into the queue; whether that went well."""
    return ask("scontrol", "requeue", job) is not None


def cancel(job: str) -> bool:
    """Cancel a job; whether that went well."""
    return ask("scancel", job) is not None


def tell(job: str) -> bool:
    """Send SIGTERM to the ranks of a running job; whether that went well."""
    return ask("scancel", "--signal=TERM", job) is not None
