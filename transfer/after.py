"""What one would type next, after a command of `transfer`. No torch here."""

import contextlib
from pathlib import Path
from typing import Any

from crosschannel.commands.after import typed
from crosschannel.errors import UserError
from crosschannel.runs.result import UNTRAINED, read_result
from transfer.protocols import PROTOCOLS


def measure(config: Any) -> list[str]:
    report = typed("transfer", "report", config.out, "--out", f"{config.out}-report")
    if config.backbone.startswith(UNTRAINED):
        first = config.out.removesuffix("-random")
        pair = (first, config.out)
        if first == config.out or not (Path(first) / "result.json").is_file():
            return [report]
        return [typed("transfer", "compare", *pair), typed("transfer", "report", *pair, "--out", f"{first}-report")]
    recipe = ("transfer", config.protocol, "--config", f"{config.out}/config.yaml")
    twin = typed(*recipe, "--backbone", f"random:{config.backbone}", "--out", f"{config.out}-random")
    return [twin, report]


def compare(config: Any) -> list[str]:
    runs = dict.fromkeys(run if "/" in run.rpartition(":")[2] else run.rpartition(":")[0] or run for run in config.runs)
    finer = typed("transfer", "compare", *config.runs, "--level", 0.99, "--resamples", 100_000)
    return [typed("transfer", "report", *runs, "--out", "report"), finer]


def report(config: Any) -> list[str]:
    pair = len(config.runs) == 2 and all(Path(run, "predictions.npz").is_file() for run in config.runs)
    by_backbone: dict[str, list[str]] = {}
    for run in config.runs:
        with contextlib.suppress(UserError):  # named in the report's messages
            result = read_result(Path(run))
            if result.protocol in PROTOCOLS and not result.backbone.startswith(UNTRAINED):
                by_backbone.setdefault(result.backbone, []).append(run)
    cards = [
        typed("crosschannel", "export", backbone, "--out", "weights/backbone.safetensors", "--probes", *runs)
        for backbone, runs in by_backbone.items()
    ]
    return [*[typed("transfer", "compare", *config.runs)] * pair, *cards[:1]]


def proposals(config: Any) -> list[str]:
    detect = ("transfer", "detect", "--config", "paper", "--backbone", "BACKBONE", "--data", config.data)
    sets = [name.replace(":", "-") for name in config.sets.split(",")]
    found = ("--proposals", *(f"{config.out}/{name}-{config.method}.npz" for name in sets))
    return [typed(*detect, *found), typed(*detect, *found, "--engine", "detectron2")]


def predict(config: Any) -> list[str]:
    report = typed("transfer", "report", config.run, "--out", "report")
    return [report, typed("transfer", "compare", config.run, "RUN")]
