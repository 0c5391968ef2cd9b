"""`--profile local`: the same launcher without SLURM, through submitit's local executor."""

import itertools
import os
import re
import signal
import time
from pathlib import Path

import pytest
from launch import SMALL, launch, pace
from same_end import assert_same_end

from crosschannel.runs.result import load_result
from slurm.cli import main
from slurm.job_folder import JobFolder
from slurm.watch import is_active, state_of
from transfer.cli import main as transfer

pytestmark = pytest.mark.system


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass within {seconds} s"
        time.sleep(0.2)


def wait_for_the_end(run: Path) -> str:
    folder = JobFolder(run)
    until(lambda: not is_active(folder.jobs()[-1], None))
    return state_of(folder.jobs()[-1], folder, None)


def logged(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def children_of(job: str) -> list[int]:
    """Processes of the command itself, one a rank: children of the launchers, which are children of the job."""

    def below(parent):
        return [
            int(pid) for task in Path(f"/proc/{parent}/task").glob("*/children") for pid in task.read_text().split()
        ]

    return [child for launcher in below(job) for child in below(launcher)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, photo_folder):
    """The same run on two ranks, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    command = ["crosschannel", "pretrain", f"--data={photo_folder}", *SMALL, "--train.steps=60", "--out=runs/a"]
    pace(folder, 0)
    launch(folder, "submit", "--profile=local", "--tasks-per-node=2", "--", *command)
    assert wait_for_the_end(folder / "runs/a") == "FINISHED"
    return folder / "runs/a"


def test_a_run_on_two_ranks_ends_and_is_shown(finished):
    folder = finished.parent.parent
    said = launch(folder, "status")
    assert re.search(r"runs/a +\d+ +finished +1 +60/60 +[\d.]+ +\d+ +- +1", said)
    assert (finished / "backbone.safetensors").is_file()
    said = launch(folder, "logs", "runs/a")
    assert re.search(r"^\[0\] step 60/60", said, re.M) and "[1] " in said
    said = launch(folder, "submit", "--profile=local", "--", *_typed(finished))
    assert re.search(r"runs/a is finished, on .*: nothing to do", said)


def _typed(run):
    return ["crosschannel", "pretrain", f"--config={run / 'slurm' / 'config.yaml'}"]


def test_a_killed_rank_ends_all_and_the_run_starts_again_and_ends_the_same(slurm, small, tmp_path, finished):
    run, command = tmp_path / "runs/a", [*small, "--train.steps=60", "--out=runs/a"]
    pace(tmp_path, 0.1)
    slurm("submit", "--profile=local", "--tasks-per-node=2", "--", *command)
    job = JobFolder(run).jobs()[-1].id
    until(lambda: logged(run) >= 3)
    os.kill(children_of(job)[1], signal.SIGKILL)
    pace(tmp_path, 0)
    assert wait_for_the_end(run) == "FINISHED"
    events = [(event["event"], event["attempt"]) for event in JobFolder(run).events()]
    assert events == [("started", 0), ("killed", 0), ("started", 1), ("finished", 1)]
    assert "was killed (SIGKILL)" in JobFolder(run).events()[1]["cause"]
    assert_same_end(run, finished)


def test_cancel_saves_and_resume_goes_on_with_fewer_ranks(slurm, small, tmp_path):
    run, command = tmp_path / "runs/a", [*small, "--train.steps=250", "--out=runs/a"]
    pace(tmp_path, 0.2)
    slurm("submit", "--profile=local", "--tasks-per-node=2", "--", *command)
    until(lambda: logged(run) >= 3)
    assert "has job" in slurm("submit", "--profile=local", "--", *command, code=2)
    assert "saves and ends" in slurm("cancel", "runs/a")
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
    run, hours = tmp_path / "runs/a", 35 / 3600
    pace(tmp_path, 0.1)
    slurm("submit", "--profile=local", f"--hours={hours}", "--signal-before-s=10", f"--scratch={tmp_path}/scratch",
          "--setup=[export WORD=said, 'echo $WORD >&2']", "--", *small, "--train.steps=100000",
          "--out=runs/a")  # fmt: skip
    until(lambda: len(JobFolder(run).events()) >= 3)
    assert [event["event"] for event in JobFolder(run).events()[:3]] == ["started", "interrupted", "started"]
    until((run / "config.yaml").is_file)
    slurm("cancel", "runs/a")
    assert wait_for_the_end(run) == "CANCELLED"
    assert "said" in slurm("logs", "runs/a").splitlines()
    assert "data: " + small[2].removeprefix("--data=") in (run / "config.yaml").read_text()  # as it was named
    assert len(list((tmp_path / "scratch").glob("crosschannel-*/train/*/*"))) == 40


def test_a_bug_is_named_and_not_started_again(slurm, tmp_path):
    (tmp_path / "mine.py").write_text("def net():\n    raise ZeroDivisionError('of mine')\n")
    slurm("submit", "--profile=local", "--", "transfer", "knn", "--backbone=mine:net", "--data=builtin:sample",
          "--out=runs/k")  # fmt: skip
    assert wait_for_the_end(tmp_path / "runs/k") == "FAILED"
    events = JobFolder(tmp_path / "runs/k").events()
    assert [event["event"] for event in events] == ["started", "failed"]
    assert events[-1]["cause"].endswith("exit code 2: transfer: mine:net() failed: ZeroDivisionError: of mine")
    assert "ZeroDivisionError: of mine" in slurm("status").replace("\n", "")


def test_a_probe_behind_the_launcher_finds_what_it_finds_without(slurm, photo_folder, tmp_path):
    command = ["linear-probe", "--config=quickstart", f"--data={photo_folder}", "--layer=conv3", "--train.steps=4",
               "--backbone=random:alexnet,fc=0,norm=false,size=64,resize=72", "--train.batch=20", "--cache=disk",
               "--runtime.workers=0", "--runtime.tensorboard=false", "--device=cpu"]  # fmt: skip
    slurm("submit", "--profile=local", "--", "transfer", *command, "--out=runs/probe")
    assert wait_for_the_end(tmp_path / "runs/probe") == "FINISHED"
    assert transfer([*command, "--cache=off", f"--out={tmp_path / 'alone'}"]) == 0
    assert load_result(tmp_path / "runs/probe").metrics == load_result(tmp_path / "alone").metrics


def test_a_sweep_takes_turns(slurm, small, tmp_path):
    said = slurm("submit", "--profile=local", "--sweep=seed=0,1,2", "--parallel=1", "--", *small, "--train.steps=6",
                 "--out=rates")  # fmt: skip
    runs = [tmp_path / "rates" / f"seed={seed}" for seed in range(3)]
    lines = said.splitlines()
    assert [line.partition(": ")[2] for line in lines if line.startswith("job ")] == [
        f"rates/seed={i}" for i in range(3)
    ]
    assert "status: crosschannel-slurm status rates" in lines and "cancel: crosschannel-slurm cancel rates" in lines
    assert "logs:   crosschannel-slurm logs rates/seed=0 -f" in lines
    assert [wait_for_the_end(run) for run in runs] == ["FINISHED"] * 3
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


def test_status_fits_eighty_columns(slurm, finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parent.parent)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["run", "job", "state", "nodes", "step", "loss", "images/s", "left", "starts"]
    assert re.match(r"runs/a +\d+ +finished +1 +60/60 ", lines[2])
