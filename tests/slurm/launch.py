"""`crosschannel-slurm …` as a process, and a command small enough to submit."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SMALL = [
    "--model.name=paced:net", "--crop.size=48", "--crop.resize=56", "--train.batch=8", "--optim.lr=1e-3",
    "--runtime.workers=1", "--runtime.checkpoint_every=1000", "--runtime.eval_every=1000", "--runtime.log_every=2",
    "--runtime.tensorboard=false", "--device=cpu", "--train.precision=float32",
]  # fmt: skip

PACED = """
import time
from pathlib import Path

from torch import nn

PAUSE = Path("pause").resolve()


class Net(nn.Sequential):
    def forward(self, x):
        time.sleep(float(PAUSE.read_text()))
        return super().forward(x)


def net(in_channels=3):
    return Net(nn.Conv2d(in_channels, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
"""


def pace(folder: Path, seconds: float) -> None:
    """Let steps of paced:net in a folder last so long at least: a run is as long as a test needs it."""
    (folder / "paced.py").write_text(PACED)
    (folder / "pause.new").write_text(str(seconds))
    (folder / "pause.new").replace(folder / "pause")


def launch(cwd: Path, *words, code: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run it in a folder, with one thread a rank, on a wide terminal; returns its output."""
    more = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    environment = {**(environment or os.environ), **more}
    done = subprocess.run(
        [sys.executable, "-m", "slurm.cli", *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr
