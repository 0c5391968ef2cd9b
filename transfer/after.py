"""What one would type next, after a command of `transfer`. No torch here."""

from pathlib import Path
from typing import Any

from crosschannel.commands.after import typed


def measure(config: Any) -> list[str]:
    report = typed("transfer", "report", config.out, "--out", f"{config.out}-report")
    if config.backbone.startswith(("random:", "gaussian:", "kmeans:")):
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
    return [typed("transfer", "report", *runs, "--out", "report")]


def report(config: Any) -> list[str]:
    first = [typed("transfer", "compare", *config.runs[:2])] if len(config.runs) == 2 else []
    return first if all(Path(run, "predictions.npz").is_file() for run in config.runs) else []


def proposals(config: Any) -> list[str]:
    detect = ("transfer", "detect", "--config", "paper", "--backbone", "BACKBONE", "--data", config.data)
    sets = [name.replace(":", "-") for name in config.sets.split(",")]
    return [typed(*detect, "--proposals", *(f"{config.out}/{name}-{config.method}.npz" for name in sets))]


def predict(config: Any) -> list[str]:
    return [typed("transfer", "report", config.run, "--out", "report")]
