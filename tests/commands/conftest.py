import pytest

from crosschannel.cli import main

SMALL = [
    "--model.name=timm:test_resnet", "--crop.size=48", "--crop.resize=56", "--train.batch=8", "--train.steps=12",
    "--train.ema=0.9", "--optim.lr=1e-3", "--runtime.workers=0", "--runtime.checkpoint_every=3",
    "--runtime.eval_every=5", "--runtime.log_every=4", "--runtime.tensorboard=false", "--device=cpu",
]  # fmt: skip


@pytest.fixture
def small(photo_folder) -> list[str]:
    """Command of a pretraining of twelve small steps, without --out."""
    return ["pretrain", f"--data={photo_folder}", *SMALL]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, photo_folder):
    """Folder of a finished run of `small` that was never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main(["pretrain", f"--data={photo_folder}", *SMALL, f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="session")
def alexnet_run(tmp_path_factory, photo_folder):
    """Folder of a finished run of an AlexNet without fully connected layers, for tests of its layers."""
    out = tmp_path_factory.mktemp("runs") / "alexnet"
    flags = ["--model.name=alexnet", "--model.fc=0", "--train.steps=2", f"--out={out}"]
    assert main(["pretrain", f"--data={photo_folder}", *SMALL, *flags]) == 0
    return out
