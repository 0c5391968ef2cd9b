import re
import sys
from functools import partial
from pathlib import Path

import pytest
from cluster import Cluster, missing_requirements, wait
from launch import SMALL, launch, pace

sys.path.insert(0, str(Path(__file__).parents[1] / "commands"))  # same_end.py


STEPS = 300


@pytest.fixture
def small(photo_folder, tmp_path) -> list[str]:
    """Command of a pretraining to run in tmp_path, without --train.steps and --out."""
    pace(tmp_path, 0)
    return ["crosschannel", "pretrain", f"--data={photo_folder}", *SMALL]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := missing_requirements():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(tmp_path):
    """Function that runs `crosschannel-slurm …` in tmp_path."""
    return partial(launch, tmp_path)


@pytest.fixture
def sl(cluster, tmp_path):
    """Function that runs `crosschannel-slurm …` in tmp_path, on the cluster."""
    return partial(launch, tmp_path, environment=cluster.environment)


def submit_pretraining(folder: Path, cluster: Cluster, data: Path, steps: int, *flags: str) -> str:
    """Submit a pretraining of the paced net with --out=runs/a in a folder; return its job id."""
    command = ["crosschannel", "pretrain", f"--data={data}", *SMALL, "--out=runs/a"]
    output = launch(
        folder, "submit", "--nodes=2", *flags, "--", *command, f"--train.steps={steps}", environment=cluster.environment
    )
    return re.search(r"job (\S+): ", output)[1]


@pytest.fixture
def two(cluster, photo_folder, tmp_path):
    """Function that submits a two-node pretraining with steps of at least ``pause`` seconds and returns its job id."""

    def submit(pause, *flags, steps=STEPS):
        pace(tmp_path, pause)
        return submit_pretraining(tmp_path, cluster, photo_folder, steps, *flags)

    return submit


@pytest.fixture(scope="session")
def uninterrupted(cluster, tmp_path_factory, photo_folder):
    """Folder of a two-node run that was never interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    pace(folder, 0)
    submit_pretraining(folder, cluster, photo_folder, STEPS)
    wait(cluster, folder / "runs/a", "finished")
    return folder / "runs/a"
