"""A small colorization run."""

from pathlib import Path

import pytest

from crosschannel.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory, photo_folder) -> Path:
    """Run folder of an AlexNet without fc6 and fc7 after twenty steps: too few for meaningful colours."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = ["pretrain", f"--data={photo_folder}", "--model.fc=0", "--crop.size=48", "--crop.resize=56"]
    command += [
        "--train.batch=8",
        "--train.steps=20",
        "--optim.lr=1e-3",
        "--runtime.workers=0",
        "--runtime.tensorboard=false",
    ]
    assert main([*command, "--device=cpu", f"--out={out}"]) == 0
    return out
