"""Latency of SLURM jobs: from the command to RUNNING and to the first step, and from a signal to a saved checkpoint.

    python benchmarks/submit.py --out FOLDER [--nodes 2] [--model alexnet] [--partition NAME …]

Run it on a login node, with FOLDER on the shared file system; other flags are passed on to `submit`. Without a
cluster, `--test-cluster` starts the two-node cluster of the tests (requires root).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import describe_machine, print_table

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "slurm")]

from crosschannel.runs.folder import read_metrics  # noqa: E402
from crosschannel.training.checkpoints import list_checkpoints  # noqa: E402
from slurm.job_folder import JobFolder  # noqa: E402


def wait_until(condition: Callable[[], bool], timeout: float = 600) -> float:
    """Wait until a condition holds, and return the waiting time in seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout:
            raise SystemExit(f"the job did not reach the expected state within {timeout:g} s")
        time.sleep(0.05)
    return time.monotonic() - start


def measure(out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Submit a job, wait for its first step, send it SIGUSR2, and return the latencies in seconds."""
    command = [
        sys.executable, "-m", "slurm.cli", "submit", f"--nodes={options.nodes}", *options.submit_flags,
        "--", "crosschannel", "pretrain", "--data=builtin:sample", f"--model.name={options.model}", "--model.fc=0",
        "--train.steps=100000", "--train.batch=32", "--crop.size=96", "--crop.resize=108", "--runtime.log_every=1",
        "--runtime.tensorboard=false", "--runtime.checkpoint_every=100000", f"--out={out}",
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = {"crosschannel-slurm submit": time.monotonic() - start}
    job = JobFolder(out).jobs()[-1].id

    def state() -> str:
        return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()

    wait_until(lambda: state() == "RUNNING")
    seconds["from the command to RUNNING"] = time.monotonic() - start
    wait_until(lambda: bool(read_metrics(out)))
    seconds["from the command to the first step logged"] = time.monotonic() - start
    time.sleep(5)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    to_checkpoint = wait_until(lambda: bool(list_checkpoints(out / "checkpoints")))
    seconds["from SIGUSR2 to a saved checkpoint"] = to_checkpoint
    seconds["from SIGUSR2 to the requeued job"] = to_checkpoint + wait_until(lambda: state() != "RUNNING")
    subprocess.run([sys.executable, "-m", "slurm.cli", "cancel", str(out)], check=True, stderr=subprocess.DEVNULL)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--test-cluster", action="store_true")
    options, options.submit_flags = parser.parse_known_args()
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
        print(describe_machine(), f"{options.nodes} nodes, {options.model}", sep="; ")
        rows = [(interval, ", ".join(f"{seconds[interval]:.1f}" for seconds in rounds)) for interval in rounds[0]]
        print_table("Latencies of consecutive runs", ("", f"s, {len(rounds)} runs"), rows)


if __name__ == "__main__":
    main()
