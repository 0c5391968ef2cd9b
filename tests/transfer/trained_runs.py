"""What the tests of every protocol that trains ask of a run: the same end after `kill -9`, with two ranks, and behind
the launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from crosschannel.runs.folder import read_metrics
from slurm.cli import main as slurm
from transfer.cli import main

MODULE = [sys.executable, "-m", "transfer.cli"]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "transfer.cli"]


def figures(run: Path):
    """What a run found, without what depends on the clock: metrics, rows and log."""
    rows = np.load(run / "predictions.npz")
    log = [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in read_metrics(run)]
    return json.loads((run / "result.json").read_text())["metrics"], {k: rows[k].tolist() for k in rows.files}, log


def killed_and_finished(command: list[str], out: Path, *marks: str) -> Path:
    """Run a command, kill it as soon as it says each of the marks, then let it end."""
    for mark in marks:
        process = subprocess.Popen([*MODULE, *command, f"--out={out}"], stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if mark in line:
                break
        process.kill()
        process.wait()
    assert not (out / "result.json").exists()
    assert main([*command, f"--out={out}"]) == 0
    return out


def by_one_and_by_two(command: list[str], folder: Path) -> tuple[Path, Path]:
    """The runs of one process and of two ranks."""
    runs, environment = (folder / "one", folder / "two"), {**os.environ, "OMP_NUM_THREADS": "1"}
    for start, run in zip((MODULE, RANKS), runs, strict=True):
        subprocess.run([*start, *command, f"--out={run}"], check=True, env=environment)
    return runs


def launched(command: list[str], out: Path) -> Path:
    """The run of a command behind the launcher, without SLURM."""
    assert slurm(["submit", "--profile=local", "--", "transfer", *command, f"--out={out}"]) == 0
    logs = [sys.executable, "-m", "slurm.cli", "logs", str(out), "--follow"]
    subprocess.run(logs, timeout=120, check=True, capture_output=True)
    return out
