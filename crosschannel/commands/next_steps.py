"""Next-step suggestions that need more than a template; templates are in the table of commands (``cli.py``)."""

from pathlib import Path
from typing import Any

from crosschannel.command import format_command


def measure(source: str) -> tuple[str, str]:
    """Templates of commands that measure new weights."""
    probe = f"transfer linear-probe --config imagenette --backbone {source} --data DATA"
    return probe, f"transfer knn --backbone {source} --data DATA"


def pretrain(config: Any) -> list[str]:
    from crosschannel.data.datasets import kind_of

    data = config.data if kind_of(config.data).has_classes(config.data) else "DATA"
    is_sample = data == "builtin:sample"
    recipe, photo = ("quickstart", data) if is_sample else ("imagenette", "photo.jpg")
    steps = [
        format_command(
            "transfer linear-probe --config {recipe} --backbone {out} --data {data}",
            recipe=recipe,
            out=config.out,
            data=data,
        )
    ]
    if (Path(config.out) / "colorizer.safetensors").is_file():
        return [format_command("crosschannel colorize {photo} --model {out}", photo=photo, out=config.out), *steps]
    return [*steps, format_command("crosschannel export {out} --out weights/backbone.safetensors", out=config.out)]


def evaluate(config: Any) -> list[str]:
    from crosschannel.evaluation.config import parse_methods

    names = [method.name for method in parse_methods(config.methods) if method.source != "truth"]
    pair = [f"{config.out}:{name}" for name in names[:2]]
    steps = [format_command("transfer compare {pair}", pair=pair)] if len(pair) == 2 else []
    return [*steps, format_command("transfer report {out} --out {out}-report", out=config.out)]


def export(config: Any) -> list[str]:
    probe = format_command(measure("{out}")[0], out=config.out)
    push = format_command("crosschannel push {backbone} OWNER/NAME", backbone=config.backbone)
    return [probe, push] if config.format == "safetensors" else [push]


def fetch(config: Any) -> list[str]:
    source = config.source if ":" in config.source else f"zoo:{config.source}"
    probe, knn = measure("{source}")
    colorize = "crosschannel colorize photo.jpg --model {source}"
    steps = [colorize, probe] if source == "zoo:eccv16" else [probe, knn]
    return [format_command(step, source=source) for step in steps]


def demo(config: Any) -> list[str]:
    serve = "python -m http.server --directory {static}"
    return [
        format_command(serve if config.static else "crosschannel demo --model {model} --static demo", **vars(config))
    ]
