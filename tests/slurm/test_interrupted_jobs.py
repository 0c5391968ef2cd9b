"""A real SLURM: two nodes, time-outs, preemption, requeues and kills; each run ends where the uninterrupted one ends.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge.
"""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from cluster import events, last_step, wait, wait_for_step
from launch import launch, pace
from same_end import assert_same_end

from slurm.job_folder import JobFolder

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_two_nodes_train_together(cluster, uninterrupted):
    folder = uninterrupted.parent.parent
    job = JobFolder(uninterrupted).jobs()[-1]
    assert (job.nodes, job.ranks) == (2, 2) and events(uninterrupted) == ["started", "finished"]
    hosts = {rank: end.code for rank, end in JobFolder(uninterrupted).ends(job.id, 0).items()}
    assert hosts == {0: 0, 1: 0}
    said = launch(folder, "status", environment=cluster.environment)
    assert re.search(rf"runs/a +{job.id} +finished +2 +300/300", said)
    assert re.search(r"^\[0\] step \d+/", launch(folder, "logs", "runs/a", environment=cluster.environment), re.M)
    (code,) = (uninterrupted / "slurm" / "code").iterdir()
    assert (code / "crosschannel" / "cli.py").is_file() and json.loads((code / "code.json").read_text())["version"]
    assert cluster.job(job.id).get("JobState", "COMPLETED") == "COMPLETED"


def test_time_out_preemption_and_requeue_in_one_run_end_where_the_uninterrupted_run_ends(
    cluster, two, tmp_path, uninterrupted
):
    run = tmp_path / "runs/a"
    job = two(0.4, "--partition=scavenge", "--signal-before-s=45")
    wait_for_step(cluster, run, 6)
    # Whole minutes, the end 30 to 90 s away. SLURM looks every 30 s and sends the signal up to 30 s early.
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={(cluster.seconds_running(job) + 30) // 60 + 1}")
    wait(cluster, run, "interrupted")
    first = last_step(run)
    assert 6 <= first < 280
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    pace(tmp_path, 0.1)
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
    pace(tmp_path, 0)
    wait(cluster, run, "finished")
    assert events(run).count("started") == 4
    assert_same_end(run, uninterrupted)


def test_a_rank_that_is_killed_ends_all_of_them_and_the_job_starts_again(cluster, two, tmp_path, uninterrupted):
    run = tmp_path / "runs/a"
    job = two(0.2)
    wait_for_step(cluster, run, 6)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    killed = time.monotonic()
    pace(tmp_path, 0)
    wait(cluster, run, "killed", seconds=60)
    assert time.monotonic() - killed < 30
    assert re.search(r"rank \d on \S+ was killed \(SIGKILL\)", JobFolder(run).events()[1]["cause"])
    wait(cluster, run, "finished")
    assert events(run) == ["started", "killed", "requeued", "started", "finished"]
    assert_same_end(run, uninterrupted)


def ranks_of(job: str) -> list[int]:
    """Processes of the command itself that belong to a job."""
    ranks = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = entry.joinpath("cmdline").read_bytes(), entry.joinpath("environ").read_bytes()
            parent = Path(f"/proc/{entry.joinpath('stat').read_text().rsplit(')')[-1].split()[1]}/cmdline").read_bytes()
        except OSError:
            continue
        if b"crosschannel.cli" in command and b"submitit" in parent and f"SLURM_JOB_ID={job}".encode() in environment:
            ranks.append(int(entry.name))
    return ranks
