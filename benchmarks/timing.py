"""Timing of alternatives, and Markdown tables.

Alternatives run in turn, so that other load on the machine affects all of them, and the fastest round of each is used.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))  # the default does not depend on the machine


def race(alternatives: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Return the time of the fastest of ``rounds`` calls of each alternative, in seconds, after a warm-up call."""
    for call in alternatives.values():
        call()
    best = dict.fromkeys(alternatives, float("inf"))
    for _ in range(rounds):
        for name, call in alternatives.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    print(f"\n{title}\n")
    for row in (head, ["-" * width for width in widths], *cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()


def describe_machine() -> str:
    """Return a line with the processor, its number of cores, the GPU if any, and torch's version."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    bf16 = ", avx512_bf16" if "avx512_bf16" in cpuinfo else ""
    return f"{model or platform.processor()}, {os.cpu_count()} cores{bf16}{gpu}, torch {torch.__version__}"


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def run_in_subprocess(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in a new process, and return the last line of its output, parsed as JSON.

    Measurements of peak memory and with process-wide settings require a new process.
    """
    command = [sys.executable, script, *arguments]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(completed.stdout.splitlines()[-1])


def real_data(name: str) -> Path:
    """Return a folder of photographs below $CROSSCHANNEL_TEST_DATA (default ../shared/data)."""
    root = Path(os.environ.get("CROSSCHANNEL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        sys.exit(f"no photographs at {root / name}; set CROSSCHANNEL_TEST_DATA")
    return root / name
