"""One cause for the end of all ranks, whatever order they died in."""

import pytest

from slurm.after import judge_attempt
from slurm.job_folder import End, JobFolder
from slurm.verdict import judge


def end(rank, code=None, signal=None, told=False, time=0.0, words=""):
    return End(rank, code, signal, told, time, f"n{rank}", words)


CASES = [
    ("all done", [end(0, 0), end(1, 0)], "finished", 0, ""),
    ("all saved", [end(0, 75, told=True), end(1, 75)], "interrupted", 75, "saved"),
    ("ended by the signal before it could listen", [end(0, None, "SIGUSR2", True), end(1, 75, told=True)],
     "interrupted", 75, "saved"),
    ("done on one, told on the other", [end(0, 0), end(1, None, "SIGTERM", True)], "interrupted", 75, ""),
    ("a bug, and the other lost its connection", [end(0, 1, time=2, words="ValueError: x"), end(1, 1, time=3)],
     "failed", 1, "rank 0 on n0: exit code 1: ValueError: x"),
    ("a bug, and the other was ended", [end(0, 1, time=2), end(1, None, "SIGKILL", True, 9)], "failed", 1, "rank 0"),
    ("bad input", [end(0, 2, words="no data"), end(1, 2, time=1)], "failed", 2, "no data"),
    ("a crash", [end(0, None, "SIGSEGV", time=1), end(1, 1, time=2)], "failed", 1, "rank 0 on n0: SIGSEGV"),
    ("kill -9, seen second", [end(0, 1, time=1), end(1, None, "SIGKILL", time=2)], "killed", 137,
     "rank 1 on n1 was killed"),
    ("no memory on both", [end(0, None, "SIGKILL", time=3), end(1, None, "SIGKILL", time=2)], "killed", 137, "rank 1"),
    ("kill -9 and an abort in the other's threads", [end(0, None, "SIGABRT", time=1), end(1, None, "SIGKILL", time=2)],
     "killed", 137, "rank 1"),
    ("a loader worker was killed", [end(0, 71, words="a loader worker"), end(1, 2, time=1)], "killed", 137, "loader"),
    ("a node that left no word", [end(0, 1)], "killed", 137, "rank 1 left no exit status"),
]  # fmt: skip


@pytest.mark.parametrize(("ends", "event", "code", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_cause_of_an_end(ends, event, code, words):
    verdict = judge({one.rank: one for one in ends}, 2)
    assert (verdict.event, verdict.code) == (event, code) and words in verdict.cause


def test_killed_ranks_start_again_so_often_and_interrupted_ones_for_ever(tmp_path):
    folder, again = JobFolder(tmp_path), []
    for attempt in range(4):
        folder.write_end("7", attempt, end(0, None, "SIGKILL"))
        again.append(judge_attempt(folder, "7", attempt, 1, limit=2)[0])
    assert again == [True, True, False, False]
    for attempt in range(4, 9):
        folder.write_end("7", attempt, end(0, 75, told=True))
        assert judge_attempt(folder, "7", attempt, 1, limit=2)[0]
    folder.write_end("7", 9, end(0, 1, words="ZeroDivisionError"))
    assert not judge_attempt(folder, "7", 9, 1, limit=2)[0]
    assert [event["event"] for event in folder.events("7")][:4] == ["killed", "killed", "killed", "failed"]


def test_a_cancelled_job_is_not_started_again(tmp_path):
    folder = JobFolder(tmp_path)
    folder.add_event("7", 0, "cancelled")
    folder.write_end("7", 0, end(0, 75, told=True))
    assert not judge_attempt(folder, "7", 0, 1, limit=2)[0]
