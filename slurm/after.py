"""Last step of a batch script: determine why the ranks ended, and requeue the job if it should be restarted.

Usage: ``python -m slurm.after CODE RANKS LIMIT RUN…``, with srun's exit code, the number of ranks, the maximum number
of restarts, and the run folder (one per task of an array). Uses only the standard library.
"""

import os
import signal
import sys
import time

from slurm import queue
from slurm.job_folder import JobFolder
from slurm.verdict import INTERRUPTED, Verdict, judge


def judge_attempt(
    folder: JobFolder, job: str, attempt: int, ranks: int, limit: int, write: bool = True
) -> tuple[bool, Verdict]:
    """Determine the outcome of an attempt and whether to restart the job.

    Args:
        folder: job folder of the run.
        job: job id.
        attempt: index of the attempt.
        ranks: number of ranks.
        limit: maximum number of restarts in a row after a kill.
        write: record the verdict in the run's events.

    Returns:
        whether to restart the job, and the verdict.
    """
    verdict = judge(folder.ends(job, attempt), ranks)
    return decide(folder, job, attempt, verdict, limit, write), verdict


def decide(folder: JobFolder, job: str, attempt: int, verdict: Verdict, limit: int, write: bool = True) -> bool:
    """Return whether to restart the job after an attempt with this verdict.

    For the arguments, see :func:`judge_attempt`.
    """
    kills, cancelled = 0, False  # kills in a row: an interrupted attempt saved its progress and resets the count
    for event in folder.events(job):
        cancelled |= event["event"] == "cancelled"
        if event["attempt"] < attempt and event["event"] in ("killed", "interrupted"):
            kills = kills + 1 if event["event"] == "killed" else 0
    should_restart = not cancelled and (verdict.event == "interrupted" or (verdict.event == "killed" and kills < limit))
    if write and cancelled and verdict.event in ("interrupted", "killed"):
        folder.add_event(job, attempt, "cancelled", "stopped")
    elif write:
        folder.add_event(job, attempt, verdict.event, verdict.cause)
        if verdict.event == "killed" and not should_restart:
            folder.add_event(job, attempt, "failed", f"killed {kills + 1}× in a row; not restarted")
    return should_restart


def main(arguments: list[str]) -> int:
    """Judge the attempt of the surrounding batch script, requeue its job if necessary, and return the exit code."""
    code, ranks, limit = map(int, arguments[:3])
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    folder = JobFolder(arguments[3 + (index if array else 0)])
    _wait_for_ends(folder, job, attempt, ranks)
    ends = folder.ends(job, attempt)
    verdict = judge(ends, ranks)
    if len(ends) < ranks and code in (128 + signal.SIGTERM, 128 + signal.SIGUSR2):
        verdict = Verdict("interrupted", "stopped before it started", INTERRUPTED)
    elif not ends and code in (126, 127):
        verdict = Verdict("failed", f"srun could not start Python (exit code {code}); see the logs", code)
    should_restart = decide(folder, job, attempt, verdict, limit)
    print(f"{time.strftime('%F %T')} job {job}: {verdict.event}: {verdict.cause}", file=sys.stderr, flush=True)
    if should_restart and _needs_requeue(job, attempt):
        folder.add_event(job, attempt, "requeued")
        if not queue.requeue(job) and _needs_requeue(job, attempt):
            cause = "scontrol could not requeue the job; resume it with `crosschannel-slurm resume`"
            folder.add_event(job, attempt, "failed", cause)
            print(f"{cause}: {folder.run}", file=sys.stderr)
    return verdict.code


def _wait_for_ends(folder: JobFolder, job: str, attempt: int, ranks: int, seconds: float = 15) -> None:
    """Wait for the end files of all ranks. On a network file system, files of other nodes may appear with a delay."""
    deadline = time.monotonic() + seconds
    while len(folder.ends(job, attempt)) < ranks and time.monotonic() < deadline:
        time.sleep(1)


def _needs_requeue(job: str, attempt: int) -> bool:
    """Return whether the job is still running: SLURM is not cancelling it, and has not requeued it already."""
    record = queue.job_record(job)
    return record.get("JobState", "RUNNING") == "RUNNING" and int(record.get("Restarts", attempt)) == attempt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
