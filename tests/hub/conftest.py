import pytest

from crosschannel.cli import main as crosschannel
from transfer.cli import main as transfer


@pytest.fixture(scope="session")
def finished_run_for_card(tmp_path_factory, photo_folder):
    """Folders of a pretraining of four steps and of a linear probe on it."""
    root = tmp_path_factory.mktemp("card")
    quick = ["--train.steps=4", "--runtime.workers=0", "--runtime.tensorboard=false", f"--data={photo_folder}"]
    assert crosschannel(["pretrain", "--config=quickstart", *quick, "--train.batch=8", f"--out={root / 'run'}"]) == 0
    probe = ["linear-probe", "--config=quickstart", f"--backbone={root / 'run'}", "--layer=conv3,conv5"]
    assert transfer([*probe, *quick, f"--out={root / 'probe'}"]) == 0
    return root / "run", root / "probe"
