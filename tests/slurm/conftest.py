import sys
from functools import partial
from pathlib import Path

import pytest
from cluster import Cluster, missing
from launch import SMALL, launch

sys.path.insert(0, str(Path(__file__).parents[1] / "commands"))  # same_end.py


@pytest.fixture
def small(photo_folder) -> list[str]:
    """A pretraining of small steps; add --train.steps and --out."""
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
