import re
import sys
from functools import partial
from pathlib import Path

import pytest
from cluster import Cluster, missing, wait
from launch import SMALL, launch, pace

sys.path.insert(0, str(Path(__file__).parents[1] / "commands"))  # same_end.py


STEPS = 300


@pytest.fixture
def small(photo_folder, tmp_path) -> list[str]:
    """A pretraining of small steps, to be started in tmp_path; add --train.steps and --out."""
    pace(tmp_path, 0)
    return ["crosschannel", "pretrain", f"--data={photo_folder}", *SMALL]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(tmp_path):
    """`crosschannel-slurm …` in a folder of the test's own."""
    return partial(launch, tmp_path)


@pytest.fixture
def sl(cluster, tmp_path):
    """`crosschannel-slurm …` on the cluster."""
    return partial(launch, tmp_path, environment=cluster.environment)


def submitted(folder: Path, cluster: Cluster, data: Path, steps: int, *flags: str) -> str:
    """Submit a pretraining of the paced net to ``runs/a`` in a folder; returns its job."""
    command = ["crosschannel", "pretrain", f"--data={data}", *SMALL, "--out=runs/a"]
    said = launch(
        folder, "submit", "--nodes=2", *flags, "--", *command, f"--train.steps={steps}", environment=cluster.environment
    )
    return re.search(r"job (\S+): ", said)[1]


@pytest.fixture
def two(cluster, photo_folder, tmp_path):
    """Submit a two-node pretraining whose steps last so many seconds; returns its job."""

    def submit(pause, *flags, steps=STEPS):
        pace(tmp_path, pause)
        return submitted(tmp_path, cluster, photo_folder, steps, *flags)

    return submit


@pytest.fixture(scope="session")
def uninterrupted(cluster, tmp_path_factory, photo_folder):
    """The two-node run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    pace(folder, 0)
    submitted(folder, cluster, photo_folder, STEPS)
    wait(cluster, folder / "runs/a", "finished")
    return folder / "runs/a"
