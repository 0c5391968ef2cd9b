"""The end of a batch script: why the ranks ended, said once, and whether the job goes back into the queue.

``python -m slurm.after CODE RANKS LIMIT RUN…``: srun's exit code, ranks, restarts allowed, and one run or one an array
task. Standard library only.
"""

import os
import signal
import sys
import time

from slurm import queue
from slurm.job_folder import JobFolder
from slurm.verdict import INTERRUPTED, Verdict, judge


def settle(
    folder: JobFolder, job: str, attempt: int, ranks: int, limit: int, write: bool = True
) -> tuple[bool, Verdict]:
    """Judge an attempt.

    Args:
        folder: of the run.
        job, attempt: which one.
        ranks: how many it had.
        limit: how often a killed attempt is started again.
        write: put the verdict into the run's events.

    Returns:
        whether it is to be started again, and the verdict.
    """
    verdict = judge(folder.ends(job, attempt), ranks)
    return decide(folder, job, attempt, verdict, limit, write), verdict


def decide(folder: JobFolder, job: str, attempt: int, verdict: Verdict, limit: int, write: bool = True) -> bool:
    """Whether an attempt with this verdict is followed by another one."""
    kills, cancelled = 0, False
    for event in folder.events(job):
        cancelled |= event["event"] == "cancelled"
        if event["attempt"] < attempt and event["event"] in ("killed", "interrupted"):  # the latter has got on
            kills = kills + 1 if event["event"] == "killed" else 0
    again = not cancelled and (verdict.event == "interrupted" or (verdict.event == "killed" and kills < limit))
    if write and cancelled and verdict.event in ("interrupted", "killed"):
        folder.add_event(job, attempt, "cancelled", "it has ended")
    elif write:
        folder.add_event(job, attempt, verdict.event, verdict.cause)
        if verdict.event == "killed" and not again:
            folder.add_event(job, attempt, "failed", f"killed {kills + 1} times in a row; not started again")
    return again


def main(arguments: list[str]) -> int:
    """Settle the attempt that this batch script ran; returns its exit code."""
    code, ranks, limit = map(int, arguments[:3])
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    folder = JobFolder(arguments[3 + (index if array else 0)])
    _wait_for_all(folder, job, attempt, ranks)
    ends = folder.ends(job, attempt)
    verdict = judge(ends, ranks)
    if len(ends) < ranks and code in (128 + signal.SIGTERM, 128 + signal.SIGUSR2):
        verdict = Verdict("interrupted", "told to stop before it had begun", INTERRUPTED)
    elif not ends and code in (126, 127):
        verdict = Verdict("failed", f"srun cannot start Python (exit code {code}); see the logs", code)
    again = decide(folder, job, attempt, verdict, limit)
    print(f"{time.strftime('%F %T')} job {job}: {verdict.event}: {verdict.cause}", file=sys.stderr, flush=True)
    if again and _is_ours_to_requeue(job, attempt):
        folder.add_event(job, attempt, "requeued")
        if not queue.requeue(job) and _is_ours_to_requeue(job, attempt):
            cause = "scontrol could not requeue the job; `crosschannel-slurm resume` can"
            folder.add_event(job, attempt, "failed", cause)
            print(f"{cause}: {folder.run}", file=sys.stderr)
    return verdict.code


def _wait_for_all(folder: JobFolder, job: str, attempt: int, ranks: int, seconds: float = 15) -> None:
    """A network file system may show what other nodes wrote a little later."""
    deadline = time.monotonic() + seconds
    while len(folder.ends(job, attempt)) < ranks and time.monotonic() < deadline:
        time.sleep(1)


def _is_ours_to_requeue(job: str, attempt: int) -> bool:
    """SLURM has not done it already, and is not cancelling the job."""
    known = queue.record(job)
    return known.get("JobState", "RUNNING") == "RUNNING" and int(known.get("Restarts", attempt)) == attempt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
