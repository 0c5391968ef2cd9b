"""`--profile local`: jobs that are cancelled, end at their time limit, or wait for their turn."""

import itertools
import re

import pytest
from launch import logged, pace, until, wait_for_the_end

from slurm.job_folder import JobFolder

pytestmark = pytest.mark.system


def test_cancel_saves_and_resume_goes_on_with_fewer_ranks(slurm, small, tmp_path):
    run, command = tmp_path / "runs/a", [*small, "--train.steps=250", "--out=runs/a"]
    pace(tmp_path, 0.2)
    slurm("submit", "--profile=local", "--tasks-per-node=2", "--", *command)
    until(lambda: logged(run) >= 3)
    assert "has job" in slurm("submit", "--profile=local", "--", *command, code=2)
    assert "to save and stop" in slurm("cancel", "runs/a")
    assert wait_for_the_end(run) == "CANCELLED"
    assert list((run / "checkpoints").glob("*.pt"))
    pace(tmp_path, 0)
    slurm("resume", "runs/a", "--tasks-per-node=1")
    assert "resuming" in slurm("logs", "runs/a", "-f")
    assert wait_for_the_end(run) == "FINISHED"
    assert [job.ranks for job in JobFolder(run).jobs()] == [2, 1]
    assert len(list((run / "slurm" / "code").iterdir())) == 1  # the copy that it began with


def test_a_time_limit_is_an_interrupt_and_the_run_goes_on(slurm, small, tmp_path):
    """With lines of the user's before Python, and the data copied first."""
    run, hours = tmp_path / "runs/a", 50 / 3600
    pace(tmp_path, 0.1)
    slurm("submit", "--profile=local", f"--hours={hours}", "--signal-before-s=25", f"--scratch={tmp_path}/scratch",
          "--setup=[export WORD=said, 'echo $WORD >&2']", "--", *small, "--train.steps=100000",
          "--out=runs/a")  # fmt: skip
    until(lambda: len(JobFolder(run).events()) >= 3, seconds=180)
    assert [event["event"] for event in JobFolder(run).events()[:3]] == ["started", "interrupted", "started"]
    until((run / "config.yaml").is_file)
    slurm("cancel", "runs/a")
    assert wait_for_the_end(run) == "CANCELLED"
    assert "said" in slurm("logs", "runs/a").splitlines()
    assert "data: " + small[2].removeprefix("--data=") in (run / "config.yaml").read_text()  # as it was named
    assert len(list((tmp_path / "scratch").glob("crosschannel-*/train/*/*"))) == 40


def test_a_sweep_takes_turns(slurm, small, tmp_path):
    said = slurm("submit", "--profile=local", "--sweep=seed=0,1", "--parallel=1", "--", *small, "--train.steps=6",
                 "--out=rates")  # fmt: skip
    runs = [tmp_path / "rates" / f"seed={seed}" for seed in range(2)]
    lines = said.splitlines()
    assert [line.partition(": ")[2] for line in lines if line.startswith("job ")] == [
        f"rates/seed={i}" for i in range(2)
    ]
    assert "status: crosschannel-slurm status rates" in lines and "cancel: crosschannel-slurm cancel rates" in lines
    assert "logs:   crosschannel-slurm logs rates/seed=0 -f" in lines
    assert [wait_for_the_end(run) for run in runs] == ["FINISHED"] * 2
    times = sorted(tuple(event["time"] for event in JobFolder(run).events()) for run in runs)
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(times))  # never two at once


def test_one_that_waits_for_its_turn_can_be_cancelled(slurm, small, tmp_path):
    pace(tmp_path, 0.1)
    slurm("submit", "--profile=local", "--sweep=seed=0,1", "--", *small, "--train.steps=100000", "--out=rates")
    first, second = (tmp_path / "rates" / f"seed={seed}" for seed in (0, 1))
    until(lambda: logged(first) or logged(second))
    waiting, running = (second, first) if logged(first) else (first, second)
    until(lambda: re.search(rf"{waiting.name} +\d+ +pending", slurm("status", "rates")))
    assert logged(waiting) == 0
    slurm("cancel", f"rates/{waiting.name}")
    assert wait_for_the_end(waiting) == "CANCELLED" and logged(waiting) == 0
    slurm("cancel", f"rates/{running.name}")
    assert wait_for_the_end(running) == "CANCELLED"
