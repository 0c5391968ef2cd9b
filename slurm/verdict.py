"""From how the ranks ended to what happens next. Standard library only."""

from dataclasses import dataclass

from crosschannel.errors import WORKER_LOST
from slurm.job_folder import End

INTERRUPTED = 75  # the exit code of a run that was told to stop, has saved and will go on
_BY_SIGNAL = {"SIGTERM", "SIGUSR2", "SIGINT"}  # what ends a process that was told to stop before it could listen


@dataclass(frozen=True)
class Verdict:
    """What became of an attempt.

    Attributes:
        event: "finished", "interrupted" (told to stop; goes on), "killed" (a rank died from outside) or "failed".
        cause: of the rank that ended first in that way.
        code: exit code of the attempt.
    """

    event: str
    cause: str
    code: int


def judge(ends: dict[int, End], ranks: int) -> Verdict:
    """The one cause of an attempt's end.

    A rank that dies takes the others with it: they lose their connections or are ended. So a rank that was killed
    from outside, or left no word at all, comes before errors, and of errors the earliest counts.

    Args:
        ends: by rank.
        ranks: how many there were.
    """
    missing = sorted(set(range(ranks)) - set(ends))
    killed = [end for end in ends.values() if _killed(end)]
    errors = [end for end in ends.values() if end not in killed and ended_badly(end)]
    # Some may have saved, or lost their connections, while others were not yet listening.
    surprised = any(end.told and end.signal in _BY_SIGNAL for end in ends.values()) and all(end.told for end in errors)
    if killed:
        end = min(killed, key=lambda end: end.time)
        return Verdict("killed", f"rank {end.rank} on {end.host} was killed ({end.signal or end.words})", 137)
    if missing:
        return Verdict("killed", f"rank {missing[0]} ended without a word (its node or its launcher died)", 137)
    if errors and not surprised:
        end = min(errors, key=lambda end: (end.told, end.time))
        how = f"exit code {end.code}" if end.signal is None else end.signal
        words = f": {end.words}" if end.words else ""
        return Verdict("failed", f"rank {end.rank} on {end.host}: {how}{words}", end.code or 1)
    if all(end.code == 0 for end in ends.values()):
        return Verdict("finished", "", 0)
    return Verdict("interrupted", "told to stop, and saved", INTERRUPTED)


def ended_badly(end: End) -> bool:
    """Whether the other ranks have nothing to wait for."""
    return end.code != 0 and not _stopped(end)


def _stopped(end: End) -> bool:
    return end.code == INTERRUPTED or (end.told and end.signal in {*_BY_SIGNAL, "SIGKILL"})


def _killed(end: End) -> bool:
    """From outside: other signals that nobody sent (SIGSEGV, SIGABRT) are bugs."""
    return not end.told and (end.signal == "SIGKILL" or end.code == WORKER_LOST)
