"""A real SLURM: two nodes, preemption, time-outs, kills.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge.
"""

import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from launch import SMALL, launch
from same_end import assert_same_end

from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import load_result
from slurm.job_folder import JobFolder

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

STEPS = 1200  # more than a minute on two ranks: longer than SLURM's shortest time limit


@pytest.fixture
def sl(slurm, cluster, tmp_path):
    """`crosschannel-slurm …` on the cluster."""
    return partial(slurm, environment=cluster.environment)


@pytest.fixture
def two(sl, small):
    """Submit a two-node pretraining; returns its run folder and job."""

    def submit(*flags, steps=STEPS):
        said = sl("submit", "--nodes=2", *flags, "--", *small, f"--train.steps={steps}", "--out=runs/a")
        return re.search(r"job (\S+): ", said)[1]

    return submit


@pytest.fixture(scope="module")
def uninterrupted(cluster, tmp_path_factory, photo_folder):
    """The two-node run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    command = ["crosschannel", "pretrain", f"--data={photo_folder}", *SMALL, f"--train.steps={STEPS}", "--out=runs/a"]
    launch(folder, "submit", "--nodes=2", "--", *command, environment=cluster.environment)
    wait(cluster, folder / "runs/a", "finished")
    return folder / "runs/a"


def events(run) -> list[str]:
    return [event["event"] for event in JobFolder(run).events()]


def last_step(run) -> int:
    return max((row["step"] for row in read_metrics(run)), default=0)


def wait(cluster, run, event, count=1, seconds=400):
    """Until something has happened so often. A job that SLURM holds back after a requeue is let go after some seconds:
    at once its nodes could still take it for the one that they have just ended."""
    held: dict[str, float] = {}

    def there():
        for job in JobFolder(run).jobs():
            if cluster.job(job.id).get("Reason") != "BeginTime":
                held.pop(job.id, None)
            elif time.monotonic() - held.setdefault(job.id, time.monotonic()) > 5:
                cluster.release(job.id)
        if event != "failed":
            assert "failed" not in events(run), JobFolder(run).events()[-1]["cause"]
        return events(run).count(event) >= count

    try:
        cluster.until(there, seconds)
    except AssertionError:
        logs = [f"{path}: {path.read_text()[-2000:]}" for path in (Path(run) / "slurm").glob("*_log.*")]
        raise AssertionError("\n".join([f"no {event!r} in {events(run)}", *logs])) from None


def wait_for_step(cluster, run, step):
    cluster.until(lambda: last_step(run) >= step, 200)


def test_two_nodes_train_together(cluster, uninterrupted):
    folder = uninterrupted.parent.parent
    job = JobFolder(uninterrupted).jobs()[-1]
    assert (job.nodes, job.ranks) == (2, 2) and events(uninterrupted) == ["started", "finished"]
    hosts = {rank: end.code for rank, end in JobFolder(uninterrupted).ends(job.id, 0).items()}
    assert hosts == {0: 0, 1: 0}
    said = launch(folder, "status", environment=cluster.environment)
    assert re.search(rf"runs/a +{job.id} +finished +2 +{STEPS}/{STEPS}", said)
    assert re.search(r"^\[0\] step \d+/", launch(folder, "logs", "runs/a", environment=cluster.environment), re.M)
    (code,) = (uninterrupted / "slurm" / "code").iterdir()
    assert (code / "crosschannel" / "cli.py").is_file() and json.loads((code / "code.json").read_text())["version"]
    assert cluster.job(job.id).get("JobState", "COMPLETED") == "COMPLETED"


def test_time_out_preemption_and_requeue_in_one_run_end_where_the_uninterrupted_run_ends(
    cluster, sl, two, tmp_path, uninterrupted
):
    run = tmp_path / "runs/a"
    job = two("--partition=scavenge", "--signal-before-s=45")
    wait_for_step(cluster, run, 6)
    # Whole minutes, the end 30 to 90 s away. SLURM looks every 30 s and sends the signal up to 30 s early.
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={(cluster.seconds_running(job) + 30) // 60 + 1}")
    wait(cluster, run, "interrupted")
    first = last_step(run)
    assert 6 <= first < STEPS
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait(cluster, run, "started", 2)
    wait_for_step(cluster, run, first + 4)
    rival = ["sbatch", "--parsable", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 4"]
    cluster.ask(*rival)
    wait(cluster, run, "interrupted", 2)
    wait(cluster, run, "started", 3)
    assert int(cluster.job(job)["Restarts"]) == 2  # not requeued twice
    second = last_step(run)
    wait_for_step(cluster, run, second + 4)
    cluster.ask("scontrol", "requeue", job)
    wait(cluster, run, "finished")
    assert events(run).count("started") == 4
    assert_same_end(run, uninterrupted)


def test_a_rank_that_is_killed_ends_all_of_them_and_the_job_starts_again(cluster, sl, two, tmp_path, uninterrupted):
    run = tmp_path / "runs/a"
    job = two()
    wait_for_step(cluster, run, 6)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    killed = time.monotonic()
    wait(cluster, run, "killed", seconds=60)
    assert time.monotonic() - killed < 30
    assert re.search(r"rank \d on \S+ was killed \(SIGKILL\)", JobFolder(run).events()[1]["cause"])
    wait(cluster, run, "finished")
    assert events(run) == ["started", "killed", "requeued", "started", "finished"]
    assert_same_end(run, uninterrupted)


def ranks_of(job: str) -> list[int]:
    """Processes of the command itself that belong to a job."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = entry.joinpath("cmdline").read_bytes(), entry.joinpath("environ").read_bytes()
            parent = Path(f"/proc/{entry.joinpath('stat').read_text().rsplit(')')[-1].split()[1]}/cmdline").read_bytes()
        except OSError:
            continue
        if b"crosschannel.cli" in command and b"submitit" in parent and f"SLURM_JOB_ID={job}".encode() in environment:
            found.append(int(entry.name))
    return found


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
    cluster.until(lambda: job not in cluster.ask("squeue", "-h", "-o", "%i").split(), 60)
    said = sl("status")
    assert "failed" in said and "ZeroDivisionError" in said


def test_a_second_job_on_a_run_folder_is_refused_twice(cluster, sl, small, two, tmp_path):
    run = tmp_path / "runs/a"
    job = two()
    wait_for_step(cluster, run, 2)
    said = sl("submit", "--", *small, f"--train.steps={STEPS}", "--out=runs/a", code=2)
    assert f"runs/a has job {job} already" in said
    (run / "slurm" / "jobs.jsonl").rename(run / "slurm" / "hidden")  # as if it had been started by hand
    sl("submit", "--", *small, f"--train.steps={STEPS}", "--out=runs/a")
    wait(cluster, run, "failed", seconds=90)
    cause = JobFolder(run).events()[-1]["cause"]
    assert "is in use by process" in cause and cause.endswith(f"SLURM job {job}") and "exit code 2" in cause
    (run / "slurm" / "hidden").rename(run / "slurm" / "jobs.jsonl")
    sl("cancel", "runs/a")


def test_a_bad_flag_queues_nothing(cluster, sl, small, tmp_path):
    before = set(cluster.ask("squeue", "-h", "-o", "%i").split())
    assert "no key 'learning_rate'" in sl("submit", "--", *small, "--learning-rate=1", "--out=runs/a", code=2)
    assert "Invalid partition" in sl("submit", "--partition=nowhere", "--", *small, "--out=runs/b", code=2)
    assert set(cluster.ask("squeue", "-h", "-o", "%i").split()) <= before and not (tmp_path / "runs/a").exists()


def test_a_sweep_is_an_array_with_a_folder_a_run(cluster, sl, small, tmp_path):
    said = sl(
        "submit", "--sweep=optim.lr=1e-3,3e-4", "--sweep=seed=0,1", "--", *small, "--train.steps=4", "--out=runs/s"
    )
    assert len(re.findall(r"job \d+_[0-3]: runs/s/optim.lr=", said)) == 4
    runs = sorted((tmp_path / "runs/s").glob("optim*"))
    for run in runs:
        wait(cluster, run, "finished")
    rates = {json.loads((run / "result.json").read_text())["config"]["optim"]["lr"] for run in runs}
    assert len(runs) == 4 and rates == {1e-3, 3e-4}
    assert len(re.findall(r"finished", sl("status", "runs/s"))) == 4
    assert "resuming" not in sl("logs", runs[0])
    assert sl("submit", "--sweep=seed=0", "--sweep=optim.lr=1e-3", "--", *small, "--train.steps=4", "--out=runs/t")


def test_cancel_then_resume_on_one_node(cluster, sl, two, tmp_path):
    run = tmp_path / "runs/a"
    job = two("--tasks-per-node=2", steps=200)
    wait_for_step(cluster, run, 6)
    said = sl("status")
    assert re.search(rf"runs/a +{job} +running +2 +\d+/200 +\d", said)
    assert "saves and ends" in sl("cancel", "runs/a")
    cluster.until(lambda: job not in cluster.ask("squeue", "-h", "-o", "%i").split(), 60)
    assert "cancelled" in sl("status") and list((run / "checkpoints").glob("step-*.pt"))
    sl("resume", "runs/a", "--nodes=1")
    wait(cluster, run, "finished")
    assert "resuming" in sl("logs", "runs/a")
    assert [(job.nodes, job.ranks) for job in JobFolder(run).jobs()] == [(2, 4), (1, 2)]


def test_two_nodes_of_two_ranks_learn_what_one_process_learns(cluster, sl, photo_folder, tmp_path):
    """A net without BatchNorm, grey crops masked: the losses of 20 steps agree to 1e-4."""
    command = [
        "crosschannel", "pretrain", f"--data={photo_folder}", "--model.name=timm:convnext_atto", "--train.batch=16",
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
        "transfer", "linear-probe", "--backbone=random:alexnet,fc=0,size=64", f"--data={photo_folder}", "--layer=conv3",
        "--train.steps=10", "--train.batch=8", "--device=cpu", "--runtime.workers=0", "--train.precision=float32",
        "--norm=none", "--optim.name=sgd", "--optim.lr=1e-4", "--runtime.log_every=1",
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
