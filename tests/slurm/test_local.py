"""`--profile local`: the same launcher without SLURM, through submitit's local executor."""

import os
import re
import signal
from pathlib import Path

import pytest
from launch import SMALL, launch, logged, pace, until, wait_for_the_end
from same_end import assert_same_end

from crosschannel.runs.result import load_result
from slurm.cli import main
from slurm.job_folder import JobFolder
from transfer.cli import main as transfer

pytestmark = pytest.mark.system


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
    assert re.search(r"runs/a has already finished on .*: nothing to do", said)


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


def test_a_bug_is_named_and_not_started_again(slurm, tmp_path):
    (tmp_path / "mine.py").write_text("def net():\n    raise ZeroDivisionError('of mine')\n")
    slurm("submit", "--profile=local", "--", "transfer", "knn", "--backbone=mine:net", "--data=builtin:sample",
          "--out=runs/k")  # fmt: skip
    assert wait_for_the_end(tmp_path / "runs/k") == "FAILED"
    events = JobFolder(tmp_path / "runs/k").events()
    assert [event["event"] for event in events] == ["started", "failed"]
    assert events[-1]["cause"].endswith("exit code 2: transfer: mine:net() failed: ZeroDivisionError: of mine")
    assert "ZeroDivisionError: of mine" in slurm("status").replace("\n", "")


def test_a_job_runs_the_users_code_as_it_was_submitted(slurm, tmp_path, photo_folder):
    net = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
    (tmp_path / "mine.py").write_text(net)
    slurm("submit", "--profile=local", "--", "transfer", "knn", "--backbone=mine:net,size=32", f"--data={photo_folder}",
          "--out=runs/k", "--k=1", "--workers=0")  # fmt: skip
    (tmp_path / "mine.py").write_text("raise SystemExit('edited')\n")
    assert wait_for_the_end(tmp_path / "runs/k") == "FINISHED"
    (copy,) = (tmp_path / "runs/k/slurm/code").glob("*/mine.py")
    assert "Conv2d" in copy.read_text()


def test_a_probe_behind_the_launcher_finds_what_it_finds_without(slurm, photo_folder, tmp_path):
    command = ["linear-probe", "--config=quickstart", f"--data={photo_folder}", "--layer=conv3", "--train.steps=4",
               "--backbone=random:alexnet,fc=0,norm=false,size=64,resize=72", "--train.batch=20", "--cache=disk",
               "--runtime.workers=0", "--runtime.tensorboard=false", "--device=cpu"]  # fmt: skip
    slurm("submit", "--profile=local", "--", "transfer", *command, "--out=runs/probe")
    assert wait_for_the_end(tmp_path / "runs/probe") == "FINISHED"
    assert transfer([*command, "--cache=off", f"--out={tmp_path / 'alone'}"]) == 0
    assert load_result(tmp_path / "runs/probe").metrics == load_result(tmp_path / "alone").metrics


def test_status_fits_eighty_columns(slurm, finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parent.parent)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["run", "job", "state", "nodes", "step", "loss", "images/s", "left", "starts"]
    assert re.match(r"runs/a +\d+ +finished +1 +60/60 ", lines[2])
