"""Run `crosschannel-slurm …` in a process, with a pretraining of adjustable speed to submit."""

import os
import subprocess
import sys
import time
from pathlib import Path

from slurm.job_folder import JobFolder
from slurm.watch import is_active, state_of

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
    """Make each step of paced:net in a folder take at least ``seconds``; also changes a running job."""
    (folder / "paced.py").write_text(PACED)
    (folder / "pause.new").write_text(str(seconds))
    (folder / "pause.new").replace(folder / "pause")


def launch(cwd: Path, *arguments, code: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run `crosschannel-slurm` in a folder, with one thread per rank and a wide terminal; return its output.

    Args:
        code: expected exit status.
    """
    overrides = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    environment = {**(environment or os.environ), **overrides}
    completed = subprocess.run(
        [sys.executable, "-m", "slurm.cli", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert completed.returncode == code, completed.stdout + completed.stderr
    assert "Traceback" not in completed.stderr
    return completed.stdout + completed.stderr


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.2)


def wait_for_the_end(run: Path) -> str:
    folder = JobFolder(run)
    until(lambda: not is_active(folder.jobs()[-1], None))
    return state_of(folder.jobs()[-1], folder, None)


def logged(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0
