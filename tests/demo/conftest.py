"""A small net that colours."""

from pathlib import Path

import pytest

from crosschannel.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory, photo_folder) -> Path:
    """AlexNet's trunk after twenty steps: its colours are nothing, but they are colours."""
    out = tmp_path_factory.mktemp("demo") / "run"
    words = ["pretrain", f"--data={photo_folder}", "--model.fc=0", "--crop.size=48", "--crop.resize=56"]
    words += [
        "--train.batch=8",
        "--train.steps=20",
        "--optim.lr=1e-3",
        "--runtime.workers=0",
        "--runtime.tensorboard=false",
    ]
    assert main([*words, "--device=cpu", f"--out={out}"]) == 0
    return out
