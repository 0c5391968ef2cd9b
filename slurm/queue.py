"""SLURM's own commands: what is queued, a job's record, requeue, cancel.

Standard library only; no accounting needed.
"""

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass

PATIENCE_S = 15  # time limit for squeue: a person waits for the answer
_FILTERS = ("SQUEUE_", "SCANCEL_", "SCONTROL_")  # prefixes of variables that filter or format what a user sees


@dataclass(frozen=True)
class Queued:
    """A job in the queue.

    Attributes:
        state: as squeue names it.
        reason: why it waits, or where it runs.
    """

    state: str
    reason: str


class NoAnswer(Exception):
    """SLURM does not answer; the message gives the reason."""


def ask(*command: str, seconds: float = 60) -> str:
    """Run a SLURM command and return its output; filters and formats in the user's variables have no effect.

    Raises:
        NoAnswer: there is no such command, it fails, or it takes too long.
    """
    program, environment = command[0], {k: v for k, v in os.environ.items() if not k.startswith(_FILTERS)}
    try:
        completed = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=seconds, check=True
        )
        return completed.stdout.decode(errors="replace")
    except FileNotFoundError:
        raise NoAnswer(f"there is no {program} here") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{program} has not answered for {seconds:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise NoAnswer(f"{program}: {lines[-1].removeprefix(f'{program}: ').removeprefix('error: ')}") from None
    except OSError as error:
        raise NoAnswer(f"{program}: {error.strerror}") from None


def _succeeds(*command: str) -> bool:
    """Return whether a SLURM command succeeds."""
    with contextlib.suppress(NoAnswer):
        ask(*command)
        return True
    return False


def queue() -> tuple[dict[str, Queued] | None, str]:
    """This user's jobs by id (``12`` or ``12_3``); None, and the reason, if SLURM does not answer."""
    try:
        output = ask(
            "squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%R", seconds=PATIENCE_S
        )
    except NoAnswer as problem:
        return None, str(problem)
    found = {}
    for line in output.splitlines():
        job, state, reason = line.split("|", 2)
        found[job] = Queued(state, reason)
    return found, ""


def record(job: str) -> dict[str, str]:
    """What ``scontrol show job`` says of a job, by key; empty where it says nothing."""
    try:
        return dict(re.findall(r"(\S+?)=(\S*)", ask("scontrol", "--oneliner", "show", "job", job)))
    except NoAnswer:
        return {}


def requeue(job: str) -> bool:
    """Put a running job back into the queue; whether that went well."""
    return _succeeds("scontrol", "requeue", job)


def cancel(job: str) -> bool:
    """Cancel a job; whether that went well."""
    return _succeeds("scancel", job)


def send_sigterm(job: str) -> bool:
    """Send SIGTERM to the ranks of a running job; whether that went well."""
    return _succeeds("scancel", "--signal=TERM", job)
