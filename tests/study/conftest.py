"""Small studies of the embedded photographs."""

from pathlib import Path

import pytest

from crosschannel.cli import main
from crosschannel.study.manifest import Manifest, read_study


@pytest.fixture(scope="session")
def built(tmp_path_factory, photo_folder) -> Path:
    """A study of two methods that need no net: 6 pairs, of which 2 are checks, and 2 for practice."""
    out = tmp_path_factory.mktemp("studies") / "study"
    command = ["study", "build", f"--data={photo_folder}", "--methods", "grey", "donors=random", f"--out={out}"]
    assert main([*command, "--images=7", "--pairs=6", "--practice=2", "--checks=0.34", "--size=64"]) == 0
    return out


@pytest.fixture
def study(built, tmp_path) -> tuple[Path, Manifest]:
    """A copy of ``built`` without answers, and its manifest."""
    import shutil

    return read_study(shutil.copytree(built, tmp_path / "study"))
