"""Suggested next steps that depend on the config. Those that are plain templates are in ``cli.py``."""

from pathlib import Path
from typing import Any

from crosschannel.command import format_command


def probe_templates(source: str) -> tuple[str, str]:
    """Return templates of the linear-probe and k-NN commands for a source."""
    probe = f"transfer linear-probe --config imagenette --backbone {source} --data DATA"
    return probe, f"transfer knn --backbone {source} --data DATA"


def pretrain(config: Any) -> list[str]:
    """Suggest probing the backbone, and colorizing a picture or exporting the weights."""
    from crosschannel.data.datasets import kind_of

    data = config.data if kind_of(config.data).has_classes(config.data) else "DATA"
    is_sample = data == "builtin:sample"
    probe_config, photo = ("quickstart", data) if is_sample else ("imagenette", "photo.jpg")
    steps = [
        format_command(
            "transfer linear-probe --config {probe_config} --backbone {out} --data {data}",
            probe_config=probe_config,
            out=config.out,
            data=data,
        )
    ]
    if (Path(config.out) / "colorizer.safetensors").is_file():
        return [format_command("crosschannel colorize {photo} --model {out}", photo=photo, out=config.out), *steps]
    return [*steps, format_command("crosschannel export {out} --out weights/backbone.safetensors", out=config.out)]


def evaluate(config: Any) -> list[str]:
    """Suggest comparing the first two methods, and writing a report."""
    from crosschannel.evaluation.config import parse_methods

    names = [method.name for method in parse_methods(config.methods) if method.source != "truth"]
    runs = [f"{config.out}:{name}" for name in names[:2]]
    steps = [format_command("transfer compare {runs}", runs=runs)] if len(runs) == 2 else []
    return [*steps, format_command("transfer report {out} --out {out}-report", out=config.out)]


def export(config: Any) -> list[str]:
    """Suggest probing the exported file if it can be loaded, and uploading the backbone."""
    probe = format_command(probe_templates("{out}")[0], out=config.out)
    push = format_command("crosschannel push {backbone} OWNER/NAME", backbone=config.backbone)
    return [probe, push] if config.format == "safetensors" else [push]


def fetch(config: Any) -> list[str]:
    """Suggest commands that use the downloaded weights."""
    source = config.source if ":" in config.source else f"zoo:{config.source}"
    probe, knn = probe_templates("{source}")
    colorize = "crosschannel colorize photo.jpg --model {source}"
    steps = [colorize, probe] if source == "zoo:eccv16" else [probe, knn]
    return [format_command(step, source=source) for step in steps]


def demo(config: Any) -> list[str]:
    """Suggest serving the static demo, or building one."""
    serve = "python -m http.server --directory {static}"
    return [
        format_command(serve if config.static else "crosschannel demo --model {model} --static demo", **vars(config))
    ]
