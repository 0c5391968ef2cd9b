"""On a real cluster: seconds from the command to RUNNING and to the first step, from a signal to a saved checkpoint.

`python benchmarks/submit.py --out FOLDER [--nodes 2] [--model alexnet] [--partition NAME …]` on a login node, any
flags of `submit` included; the folder is on the shared file system. Without a cluster, `--test-cluster` starts that of
the tests (root).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import machine, table

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "slurm")]

from crosschannel.runs.folder import read_metrics  # noqa: E402
from crosschannel.training.checkpoints import found  # noqa: E402
from slurm.job_folder import JobFolder  # noqa: E402


def until(condition: Callable[[], bool], seconds: float = 600) -> float:
    """Wait for something; how long that took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise SystemExit("it did not come to pass")
        time.sleep(0.05)
    return time.monotonic() - begun


def measure(out: Path, options: argparse.Namespace) -> dict[str, float]:
    """One submission, from the command to a checkpoint after SIGUSR2."""
    command = [
        sys.executable, "-m", "slurm.cli", "submit", f"--nodes={options.nodes}", *options.more,
        "--", "crosschannel", "pretrain", "--data=builtin:sample", f"--model.name={options.model}", "--model.fc=0",
        "--train.steps=100000", "--train.batch=32", "--crop.size=96", "--crop.resize=108", "--runtime.log_every=1",
        "--runtime.tensorboard=false", "--runtime.checkpoint_every=100000", f"--out={out}",
    ]  # fmt: skip
    begun = time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    spent = {"the command itself": time.monotonic() - begun}
    job = JobFolder(out).jobs()[-1].id

    def state() -> str:
        return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()

    until(lambda: state() == "RUNNING")
    spent["command to RUNNING"] = time.monotonic() - begun
    until(lambda: bool(read_metrics(out)))
    spent["command to the first step"] = time.monotonic() - begun
    time.sleep(5)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    spent["signal to a saved checkpoint"] = until(lambda: bool(found(out / "checkpoints")))
    spent["signal to back in the queue"] = spent["signal to a saved checkpoint"] + until(lambda: state() != "RUNNING")
    subprocess.run([sys.executable, "-m", "slurm.cli", "cancel", str(out)], check=True, stderr=subprocess.DEVNULL)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--test-cluster", action="store_true")
    options, options.more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        cluster = None
        if options.test_cluster:
            from cluster import Cluster

            cluster = Cluster(Path(scratch) / "cluster")
            os.environ.update(cluster.environment)
        out = options.out or Path(scratch)
        os.environ["PYTHONPATH"] = str(ROOT)
        try:
            rounds = [measure(out / f"run-{i}", options) for i in range(options.repeats)]
        finally:
            if cluster:
                cluster.stop()
        print(machine(), f"{options.nodes} nodes, {options.model}", sep="; ")
        rows = [(what, " ".join(f"{spent[what]:.1f}" for spent in rounds)) for what in rounds[0]]
        table("Seconds, one run after the other", ("what", "s"), rows)


if __name__ == "__main__":
    main()
