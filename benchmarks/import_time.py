"""Time of imports, `--help` and loading a saved backbone, each in a new process: `python benchmarks/import_time.py`."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import describe_machine, print_table

from crosschannel.hub import save_backbone
from crosschannel.models import AlexNet, InputSpec, NetSpec
from crosschannel.models.backbone import Provenance

_TIMED = """
import json, sys, time
start = time.perf_counter()
{code}
print(json.dumps(time.perf_counter() - start))
"""


def time_code(code: str, runs: int, setup: str = "") -> float:
    """Return the median time of a piece of code in a new process, in seconds; ``setup`` is not timed."""
    script = setup + _TIMED.format(code=code)
    outputs = [subprocess.check_output([sys.executable, "-c", script], text=True) for _ in range(runs)]
    return statistics.median(json.loads(output.splitlines()[-1]) for output in outputs)


def time_process(*arguments: str, runs: int) -> float:
    """Return the median duration of a Python process with these arguments, in seconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    print(describe_machine(), f"median of {options.runs} processes", sep="; ")
    torch_import = time_code("import torch", options.runs)
    rows = [("import torch", torch_import, 1.0)]
    for code in (
        "import crosschannel",
        "import crosschannel; crosschannel.load_backbone",
        "import transfer; transfer.linear_probe",
        "import timm",
    ):
        seconds = time_code(code, options.runs)
        rows.append((code, seconds, seconds / torch_import))
    print_table("Imports", ("", "s", "relative to `import torch`"), rows)
    torch_process = time_process("-c", "import torch", runs=options.runs)
    rows = [("python -c 'import torch'", torch_process, 1.0)]
    for command in ("crosschannel.cli --help", "crosschannel.cli pretrain --help", "transfer.cli detect --help"):
        seconds = time_process("-m", *command.split(), runs=options.runs)
        rows.append((command.replace(".cli", ""), seconds, seconds / torch_process))
    print_table("Help, complete processes", ("", "s", "relative to `import torch`"), rows)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, fc in (("without fc6 and fc7", 0), ("with fc6 and fc7", 4096)):
            path = Path(folder) / f"{fc}.safetensors"
            save_backbone(path, AlexNet(fc=fc), NetSpec("alexnet", fc=fc), InputSpec(), Provenance())
            setup = "import crosschannel; load = crosschannel.load_backbone\n"
            seconds = time_code(f"load({str(path)!r})", options.runs, setup)
            rows.append((f"AlexNet {name}", path.stat().st_size / 2**20, seconds))
    print_table("load_backbone, imports excluded", ("", "MiB", "s"), rows)


if __name__ == "__main__":
    main()
