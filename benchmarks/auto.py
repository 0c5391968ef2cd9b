"""Held-out KL of short training runs with each row of the `auto` table: `python benchmarks/auto.py [--seeds 0 1]`.

The precisions and memory formats that `auto` selects should train equally well. All rows start from the same weights
and see the same crops.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from timing import describe_machine, print_table

from crosschannel.cli import main as crosschannel
from crosschannel.training.device import AUTO

REFERENCE = ("float32", False, False)


def kl_ratio(settings: tuple[str, bool, bool], seed: int, steps: int) -> float:
    """Train `--config quickstart` and return the held-out KL, relative to the best constant prediction."""
    precision, channels_last, compiled = settings
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "config": "quickstart",
            "out": f"{folder}/run",
            "seed": seed,
            "train.steps": steps,
            "train.precision": precision,
            "train.channels_last": channels_last,
            "train.compile": compiled,
            "runtime.eval_every": 10**6,
            "runtime.tensorboard": False,
        }
        status = crosschannel(["pretrain", *(f"--{key}={str(value).lower()}" for key, value in flags.items())])
        assert status == 0
        return json.loads((Path(folder) / "run" / "result.json").read_text())["metrics"]["kl_share"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    table = {"reference": REFERENCE, **AUTO}
    ratios = {name: [kl_ratio(row, seed, options.steps) for seed in options.seeds] for name, row in table.items()}
    print(describe_machine(), f"{options.steps} steps of quickstart, seeds {options.seeds}", sep="; ")
    rows = [
        (name, *map(str, table[name]), " ".join(f"{r:.3f}" for r in values), f"{statistics.mean(values):.3f}")
        for name, values in ratios.items()
    ]
    print_table(
        "KL ratio to the best constant prediction on held-out images",
        ("row of `auto`", "precision", "channels_last", "compile", "per seed", "mean"),
        rows,
    )


if __name__ == "__main__":
    main()
