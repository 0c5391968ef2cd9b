"""Seconds of imports and of loading a saved backbone, in processes of their own: `python benchmarks/import_time.py`."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
