"""Seconds of imports, of help and of loading a saved backbone, in processes of their own:
`python benchmarks/import_time.py`."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine, table

from crosschannel.hub import save_backbone
from crosschannel.models import AlexNet, InputSpec, NetSpec
from crosschannel.models.backbone import Provenance

_TIMED = """
import json, sys, time
begun = time.perf_counter()
{code}
print(json.dumps(time.perf_counter() - begun))
"""


def seconds(code: str, runs: int, before: str = "") -> float:
    """The median over processes."""
    script = before + _TIMED.format(code=code)
    outputs = [subprocess.check_output([sys.executable, "-c", script], text=True) for _ in range(runs)]
    return statistics.median(json.loads(output.splitlines()[-1]) for output in outputs)


def process(*words: str, runs: int) -> float:
    """The median of whole processes."""
    found = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    print(machine(), f"median of {options.runs} processes", sep="; ")
    torch = seconds("import torch", options.runs)
    rows = [("import torch", torch, 1.0)]
    for code in (
        "import crosschannel",
        "import crosschannel; crosschannel.load_backbone",
        "import transfer; transfer.linear_probe",
        "import timm",
    ):
        took = seconds(code, options.runs)
        rows.append((code, took, took / torch))
    table("Imports", ("", "s", "times import torch"), rows)
    whole = process("-c", "import torch", runs=options.runs)
    rows = [("python -c 'import torch'", whole, 1.0)]
    for words in ("crosschannel.cli --help", "crosschannel.cli pretrain --help", "transfer.cli detect --help"):
        took = process("-m", *words.split(), runs=options.runs)
        rows.append((words.replace(".cli", ""), took, took / whole))
    table("Help, whole processes", ("", "s", "times import torch"), rows)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, fc in (("trunk", 0), ("with fc6 and fc7", 4096)):
            path = Path(folder) / f"{fc}.safetensors"
            save_backbone(path, AlexNet(fc=fc), NetSpec("alexnet", fc=fc), InputSpec(), Provenance())
            before = "import crosschannel; load = crosschannel.load_backbone\n"
            took = seconds(f"load({str(path)!r})", options.runs, before)
            rows.append((f"AlexNet, {name}", path.stat().st_size / 2**20, took))
    table("load_backbone after imports", ("", "MiB", "s"), rows)


if __name__ == "__main__":
    main()
