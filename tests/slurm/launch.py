"""`crosschannel-slurm …` as a process, and a command small enough to submit."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SMALL = [
    "--model.fc=0", "--crop.size=48", "--crop.resize=56", "--train.batch=8", "--optim.lr=1e-3", "--runtime.workers=1",
    "--runtime.checkpoint_every=1000", "--runtime.eval_every=1000", "--runtime.log_every=2",
    "--runtime.tensorboard=false", "--device=cpu", "--train.precision=float32",
]  # fmt: skip


def launch(cwd: Path, *words, code: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run it in a folder, with one thread a rank; returns what it said."""
    environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "slurm.cli", *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr
