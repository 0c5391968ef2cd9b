"""A real SLURM: jobs on two nodes, arrays, resume, refusals.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge.
"""

import json
import re

import pytest
from cluster import events, wait, wait_for_step
from launch import pace, until

from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import load_result
from slurm.job_folder import JobFolder

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_a_bug_ends_the_job_and_is_not_started_again(cluster, sl, tmp_path):
    (tmp_path / "mine.py").write_text("def net():\n    raise ZeroDivisionError('of mine')\n")
    run = tmp_path / "runs/k"
    sl("submit", "--nodes=2", "--", "transfer", "knn", "--backbone=mine:net", "--data=builtin:sample", "--out=runs/k")
    wait(cluster, run, "failed", seconds=90)
    assert events(run) == ["started", "failed"]
    assert (
        JobFolder(run)
        .events()[-1]["cause"]
        .endswith("exit code 2: transfer: mine:net() failed: ZeroDivisionError: of mine")
    )
    job = JobFolder(run).jobs()[-1].id
    until(lambda: job not in cluster.ask("squeue", "-h", "-o", "%i").split(), 60)
    said = sl("status")
    assert "failed" in said and "ZeroDivisionError" in said


def test_a_second_job_on_a_run_folder_is_refused_twice(cluster, sl, small, two, tmp_path):
    run, again = tmp_path / "runs/a", ["--", *small, "--train.steps=300", "--out=runs/a"]
    job = two(0.5)
    wait_for_step(cluster, run, 2)
    said = sl("submit", *again, code=2)
    assert f"runs/a already has job {job};" in said
    (run / "slurm" / "jobs.jsonl").rename(run / "slurm" / "hidden")  # as if it had been started by hand
    sl("submit", *again)
    wait(cluster, run, "failed", seconds=90)
    cause = JobFolder(run).events()[-1]["cause"]
    assert "is in use by process" in cause and cause.endswith(f"SLURM job {job}") and "exit code 2" in cause
    (run / "slurm" / "hidden").rename(run / "slurm" / "jobs.jsonl")
    sl("cancel", "runs/a")


def test_a_bad_flag_queues_nothing(cluster, sl, small, tmp_path):
    before = set(cluster.ask("squeue", "-h", "-o", "%i").split())
    assert "unknown key 'learning_rate'" in sl("submit", "--", *small, "--learning-rate=1", "--out=runs/a", code=2)
    assert "Invalid partition" in sl("submit", "--partition=nowhere", "--", *small, "--out=runs/b", code=2)
    assert set(cluster.ask("squeue", "-h", "-o", "%i").split()) <= before and not (tmp_path / "runs/a").exists()


def test_a_sweep_is_an_array_with_a_folder_a_run(cluster, sl, small, tmp_path):
    said = sl("submit", "--sweep=optim.lr=1e-3,3e-4", "--sweep=seed=0", "--", *small, "--train.steps=4", "--out=runs/s")
    assert len(re.findall(r"job \d+_[01]: runs/s/optim.lr=", said)) == 2
    runs = sorted((tmp_path / "runs/s").glob("optim*"))
    for run in runs:
        wait(cluster, run, "finished")
    rates = {json.loads((run / "result.json").read_text())["config"]["optim"]["lr"] for run in runs}
    assert len(runs) == 2 and rates == {1e-3, 3e-4}
    assert len(re.findall(r"finished", sl("status", "runs/s"))) == 2
    assert "resuming" not in sl("logs", runs[0])
    assert sl("submit", "--sweep=seed=0", "--sweep=optim.lr=1e-3", "--", *small, "--train.steps=4", "--out=runs/t")


def test_cancel_then_resume_on_one_node(cluster, sl, two, tmp_path):
    run = tmp_path / "runs/a"
    job = two(0.2, steps=200)
    wait_for_step(cluster, run, 6)
    said = sl("status")
    assert re.search(rf"runs/a +{job} +running +2 +\d+/200 +\d", said)
    assert "to save and stop" in sl("cancel", "runs/a")
    until(lambda: job not in cluster.ask("squeue", "-h", "-o", "%i").split(), 60)
    assert "cancelled" in sl("status") and list((run / "checkpoints").glob("step-*.pt"))
    pace(tmp_path, 0)
    sl("resume", "runs/a", "--nodes=1")
    wait(cluster, run, "finished")
    assert "resuming" in sl("logs", "runs/a")
    assert [(job.nodes, job.ranks) for job in JobFolder(run).jobs()] == [(2, 2), (1, 1)]


def test_two_nodes_of_two_ranks_learn_what_one_process_learns(cluster, sl, photo_folder, tmp_path):
    """A net without BatchNorm, grey crops masked: the losses of 20 steps agree to 1e-4."""
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n\ndef net(in_channels=3):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1))\n"
    )
    command = [
        "crosschannel", "pretrain", f"--data={photo_folder}", "--model.name=plain:net", "--train.batch=16",
        "--crop.size=64", "--crop.resize=72", "--objective.grey_threshold=40", "--train.precision=float32",
        "--optim.name=sgd", "--optim.lr=0.01", "--train.steps=20", "--runtime.log_every=1", "--runtime.workers=0",
        "--runtime.tensorboard=false", "--device=cpu",
    ]  # fmt: skip
    losses = []
    for name, flags in (("four", ["--nodes=2", "--tasks-per-node=2"]), ("one", [])):
        sl("submit", *flags, "--", *command, f"--out=runs/{name}")
        wait(cluster, tmp_path / "runs" / name, "finished")
        losses.append([row["train/loss"] for row in read_metrics(tmp_path / "runs" / name) if "train/loss" in row])
    assert len(losses[0]) == 20 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_probes_share_their_work_among_nodes(cluster, sl, photo_folder, tmp_path):
    command = [
        "transfer", "linear-probe", "--backbone=random:alexnet,fc=0,norm=false,size=64", f"--data={photo_folder}",
        "--layer=conv3", "--train.steps=10", "--train.batch=8", "--device=cpu", "--runtime.workers=0", "--norm=none",
        "--train.precision=float32", "--optim.name=sgd", "--optim.lr=1e-4", "--runtime.log_every=1",
    ]  # fmt: skip
    for name, nodes in (("two", 2), ("one", 1)):
        sl("submit", f"--nodes={nodes}", "--", *command, f"--out=runs/{name}")
        wait(cluster, tmp_path / "runs" / name, "finished")
    two, one = (load_result(tmp_path / "runs" / name) for name in ("two", "one"))
    assert two.n == one.n == 10 and two.metrics == one.metrics
    assert (two.rows["conv3/prediction"] == one.rows["conv3/prediction"]).all()
    losses = [
        [row["train/loss"] for row in read_metrics(tmp_path / "runs" / n) if "train/loss" in row]
        for n in ("two", "one")
    ]
    assert len(losses[0]) == 10 and losses[0] == pytest.approx(losses[1], rel=1e-5)
