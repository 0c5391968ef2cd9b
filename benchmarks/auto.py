"""Does every choice of the `auto` table train equally well? A short training in each arithmetic, several seeds, from
the same weights on the same crops: `python benchmarks/auto.py [--steps 100] [--seeds 0 1]`."""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from timing import machine, table

from crosschannel.cli import main as crosschannel
from crosschannel.training.device import AUTO

REFERENCE = ("float32", False, False)


def share(choice: tuple[str, bool, bool], seed: int, steps: int) -> float:
    """The held-out KL as a share of the best constant's, after so many steps of `--config quickstart`."""
    precision, channels_last, compiled = choice
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
        code = crosschannel(["pretrain", *(f"--{key}={str(value).lower()}" for key, value in flags.items())])
        assert code == 0
        return json.loads((Path(folder) / "run" / "result.json").read_text())["metrics"]["kl_share"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    choices = {"reference": REFERENCE, **AUTO}
    shares = {kind: [share(choice, seed, options.steps) for seed in options.seeds] for kind, choice in choices.items()}
    print(machine(), f"{options.steps} steps of quickstart, seeds {options.seeds}", sep="; ")
    rows = [
        (kind, *map(str, choices[kind]), " ".join(f"{s:.3f}" for s in values), f"{statistics.mean(values):.3f}")
        for kind, values in shares.items()
    ]
    table(
        "Held-out share of the best constant's KL",
        ("device", "precision", "channels_last", "compile", "by seed", "mean"),
        rows,
    )


if __name__ == "__main__":
    main()
