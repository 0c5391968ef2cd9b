import pytest

from transfer.cli import main

BACKBONE = "random:alexnet,fc=0,size=64,resize=72,seed=1"
SMALL = [
    f"--backbone={BACKBONE}", "--config=quickstart", "--layer=conv3,conv5", "--train.batch=20", "--train.steps=24",
    "--train.epochs=1", "--runtime.workers=0", "--runtime.checkpoint_every=4", "--runtime.log_every=4",
    "--runtime.tensorboard=false", "--device=cpu",
]  # fmt: skip


@pytest.fixture
def small(photo_folder) -> list[str]:
    """Command of a linear probe of 24 small steps on 40 photographs, without --out."""
    return ["linear-probe", *SMALL, f"--data={photo_folder}"]


@pytest.fixture(scope="module")
def finished_probe(tmp_path_factory, photo_folder):
    """Folder of a finished, uninterrupted run of `small`, with the widths that the test module uses."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main(["linear-probe", *SMALL, f"--data={photo_folder}", f"--out={out}"]) == 0
    return out
