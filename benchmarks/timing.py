"""Timing side by side, and tables. The sides of a comparison take turns, so that a busy moment of the machine meets
all of them; the best of the rounds stands for each."""

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

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))  # on any machine, unless it is told otherwise


def race(sides: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Seconds of the fastest of ``rounds`` calls of each side, after one that warms it up."""
    for call in sides.values():
        call()
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, call in sides.items():
            begun = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    print(f"\n{title}\n")
    for row in (head, ["-" * width for width in widths], *cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()


def machine() -> str:
    """The processor, its cores in use, and the library's versions, in a line."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    bf16 = ", avx512_bf16" if "avx512_bf16" in cpuinfo else ""
    return f"{model or platform.processor()}, {os.cpu_count()} cores{bf16}{gpu}, torch {torch.__version__}"


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def apart(script: str, *arguments: str) -> dict[str, Any]:
    """The last line of another process' output, as JSON: for peaks of memory and for settings of a whole process."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def real_data(name: str) -> Path:
    """A folder of photographs: below $CROSSCHANNEL_TEST_DATA, or ../shared/data."""
    root = Path(os.environ.get("CROSSCHANNEL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        sys.exit(f"no photographs at {root / name}: set CROSSCHANNEL_TEST_DATA")
    return root / name
