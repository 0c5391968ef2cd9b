"""Wrappers around SLURM commands that list the queue, and that show, requeue and cancel jobs.

The module uses only the standard library, and does not require SLURM's accounting.
"""

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass

SQUEUE_TIMEOUT_S = 15  # time limit for squeue, short because a user waits for the result
_FILTERS = ("SQUEUE_", "SCANCEL_", "SCONTROL_")  # prefixes of the user's variables for filters and output formats


@dataclass(frozen=True)
class QueuedJob:
    """Job in SLURM's queue.

    Attributes:
        state: state as printed by squeue, such as PENDING.
        reason: reason why the job waits, or nodes on which it runs.
    """

    state: str
    reason: str


class SlurmError(Exception):
    """A SLURM command failed; the message gives the reason."""


def run_slurm(*command: str, seconds: float = 60) -> str:
    """Run a SLURM command and return its output, ignoring filters and formats in the user's environment.

    Raises:
        SlurmError: the command does not exist, fails, or exceeds the time limit.
    """
    program, environment = command[0], {k: v for k, v in os.environ.items() if not k.startswith(_FILTERS)}
    try:
        completed = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=seconds, check=True
        )
        return completed.stdout.decode(errors="replace")
    except FileNotFoundError:
        raise SlurmError(f"{program} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{program} did not respond within {seconds:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise SlurmError(f"{program}: {lines[-1].removeprefix(f'{program}: ').removeprefix('error: ')}") from None
    except OSError as error:
        raise SlurmError(f"{program}: {error.strerror}") from None


def _succeeds(*command: str) -> bool:
    """Return whether a SLURM command succeeds."""
    with contextlib.suppress(SlurmError):
        run_slurm(*command)
        return True
    return False


def queue() -> tuple[dict[str, QueuedJob] | None, str]:
    """Return this user's jobs by id (``12`` or ``12_3``) and ""; or None and the reason if squeue fails."""
    try:
        output = run_slurm(
            "squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%R", seconds=SQUEUE_TIMEOUT_S
        )
    except SlurmError as problem:
        return None, str(problem)
    jobs = {}
    for line in output.splitlines():
        job, state, reason = line.split("|", 2)
        jobs[job] = QueuedJob(state, reason)
    return jobs, ""


def job_record(job: str) -> dict[str, str]:
    """Return the fields of ``scontrol show job``; empty if it fails."""
    try:
        return dict(re.findall(r"(\S+?)=(\S*)", run_slurm("scontrol", "--oneliner", "show", "job", job)))
    except SlurmError:
        return {}


def requeue(job: str) -> bool:
    """Put a running job back into the queue, and return whether that succeeded."""
    return _succeeds("scontrol", "requeue", job)


def cancel(job: str) -> bool:
    """Cancel a job, and return whether that succeeded."""
    return _succeeds("scancel", job)


def send_sigterm(job: str) -> bool:
    """Send SIGTERM to the ranks of a running job, and return whether that succeeded."""
    return _succeeds("scancel", "--signal=TERM", job)
