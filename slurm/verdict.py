"""Outcome of an attempt, derived from how its ranks ended. The module uses only the standard library."""

from dataclasses import dataclass

from crosschannel.errors import WORKER_LOST
from slurm.job_folder import End

INTERRUPTED = 75  # exit code of a run that was asked to stop and saved a checkpoint
_STOP_SIGNALS = {"SIGTERM", "SIGUSR2", "SIGINT"}  # these end a process that has not installed its handlers yet


@dataclass(frozen=True)
class Verdict:
    """Outcome of an attempt.

    Attributes:
        event: "finished", "interrupted" (asked to stop, can resume), "killed" (a rank was killed externally) or
            "failed".
        cause: description of the first rank that ended in this way.
        code: exit code of the attempt.
    """

    event: str
    cause: str
    code: int


def judge(ends: dict[int, End], ranks: int) -> Verdict:
    """Determine the outcome of an attempt and its cause.

    When a rank dies, the others lose their connections or are terminated. A rank that was killed externally or left no
    end file therefore takes precedence over errors, and the earliest error takes precedence over later ones.

    Args:
        ends: end of each rank, by rank.
        ranks: number of ranks.
    """
    missing = sorted(set(range(ranks)) - set(ends))
    killed = [end for end in ends.values() if _killed(end)]
    errors = [end for end in ends.values() if end not in killed and failed_or_killed(end)]
    # A stop signal may end ranks that have no handlers yet, so that the other ranks lose their connections.
    stopped_early = any(end.told and end.signal in _STOP_SIGNALS for end in ends.values()) and all(
        end.told for end in errors
    )
    if killed:
        end = min(killed, key=lambda end: end.time)
        return Verdict("killed", f"rank {end.rank} on {end.host} was killed ({end.signal or end.words})", 137)
    if missing:
        return Verdict("killed", f"rank {missing[0]} left no exit status (its node or launcher died)", 137)
    if errors and not stopped_early:
        end = min(errors, key=lambda end: (end.told, end.time))
        status = f"exit code {end.code}" if end.signal is None else end.signal
        last_line = f": {end.words}" if end.words else ""
        return Verdict("failed", f"rank {end.rank} on {end.host}: {status}{last_line}", end.code or 1)
    if all(end.code == 0 for end in ends.values()):
        return Verdict("finished", "", 0)
    return Verdict("interrupted", "saved and stopped", INTERRUPTED)


def failed_or_killed(end: End) -> bool:
    """Return whether a rank failed or was killed, so that the other ranks must be stopped."""
    return end.code != 0 and not _stopped(end)


def _stopped(end: End) -> bool:
    return end.code == INTERRUPTED or (end.told and end.signal in {*_STOP_SIGNALS, "SIGKILL"})


def _killed(end: End) -> bool:
    """Return whether a rank was killed externally. Other signals, such as SIGSEGV or SIGABRT, indicate a bug."""
    return not end.told and (end.signal == "SIGKILL" or end.code == WORKER_LOST)
