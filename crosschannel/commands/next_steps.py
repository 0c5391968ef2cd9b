"""Commands to type next that depend on more than a config's values; the others are in the table of commands."""

from pathlib import Path
from typing import Any

from crosschannel.command import fill


def pretrain(config: Any) -> list[str]:
    from crosschannel.data.datasets import kind_of

    data = config.data if kind_of(config.data).has_classes(config.data) else "DATA"
    is_sample = data == "builtin:sample"
    recipe, photo = ("quickstart", data) if is_sample else ("imagenette", "photo.jpg")
    steps = [
        fill(
            "transfer linear-probe --config {recipe} --backbone {out} --data {data}",
            recipe=recipe,
            out=config.out,
            data=data,
        )
    ]
    if (Path(config.out) / "colorizer.safetensors").is_file():
        return [fill("crosschannel colorize {photo} --model {out}", photo=photo, out=config.out), *steps]
    return [*steps, fill("crosschannel export {out} --out weights/backbone.safetensors", out=config.out)]


def evaluate(config: Any) -> list[str]:
    from crosschannel.evaluation.config import parse_methods

    names = [method.name for method in parse_methods(config.methods) if method.source != "truth"]
    pair = [f"{config.out}:{name}" for name in names[:2]]
    steps = [fill("transfer compare {pair}", pair=pair)] if len(pair) == 2 else []
    return [*steps, fill("transfer report {out} --out {out}-report", out=config.out)]


def export(config: Any) -> list[str]:
    probe = fill("transfer linear-probe --config imagenette --backbone {out} --data DATA", out=config.out)
    push = fill("crosschannel push {backbone} OWNER/NAME", backbone=config.backbone)
    return [probe, push] if config.format == "safetensors" else [push]


def fetch(config: Any) -> list[str]:
    source = config.source if ":" in config.source else f"zoo:{config.source}"
    steps = ["crosschannel colorize photo.jpg --model {source}"] if source == "zoo:eccv16" else []
    steps += ["transfer linear-probe --config imagenette --backbone {source} --data DATA"]
    steps += ["transfer knn --backbone {source} --data DATA"]
    return [fill(step, source=source) for step in steps[:2]]


def demo(config: Any) -> list[str]:
    served = "python -m http.server --directory {static}"
    return [fill(served if config.static else "crosschannel demo --model {model} --static demo", **vars(config))]
