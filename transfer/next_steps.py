"""Suggestions for the next command, if a template is not enough. Does not import torch."""

import contextlib
from pathlib import Path
from typing import Any

from crosschannel.command import format_command
from crosschannel.errors import UserError
from crosschannel.runs.result import UNTRAINED, read_result
from transfer.protocols import PROTOCOLS

_REPORT = "transfer report {runs} --out {out}-report"


def measure(config: Any) -> list[str]:
    trained_run = config.out.removesuffix("-random")
    if not config.backbone.startswith(UNTRAINED):
        baseline = "transfer {protocol} --config {out}/config.yaml --backbone random:{backbone} --out {out}-random"
        baseline = format_command(baseline, protocol=config.protocol, out=config.out, backbone=config.backbone)
        return [baseline, format_command(_REPORT, runs=[config.out], out=config.out)]
    if trained_run == config.out or not Path(trained_run, "result.json").is_file():
        return [format_command(_REPORT, runs=[config.out], out=config.out)]
    pair = [trained_run, config.out]
    return [format_command("transfer compare {runs}", runs=pair), format_command(_REPORT, runs=pair, out=trained_run)]


def compare(config: Any) -> list[str]:
    runs = dict.fromkeys(run if "/" in run.rpartition(":")[2] else run.rpartition(":")[0] or run for run in config.runs)
    stricter = format_command("transfer compare {runs} --level 0.99 --resamples 100000", runs=config.runs)
    return [format_command("transfer report {runs} --out report", runs=list(runs)), stricter]


def report(config: Any) -> list[str]:
    is_pair = len(config.runs) == 2 and all(Path(run, "predictions.npz").is_file() for run in config.runs)
    steps = [format_command("transfer compare {runs}", runs=config.runs)] if is_pair else []
    by_backbone: dict[str, list[str]] = {}
    for run in config.runs:
        with contextlib.suppress(UserError):  # the report has already listed unreadable runs
            result = read_result(Path(run))
            if result.protocol in PROTOCOLS and not result.backbone.startswith(UNTRAINED):
                by_backbone.setdefault(result.backbone, []).append(run)
    card = "crosschannel export {backbone} --out weights/backbone.safetensors --probes {runs}"
    cards = [format_command(card, backbone=backbone, runs=runs) for backbone, runs in by_backbone.items()]
    return [*steps, *cards[:1]]


def proposals(config: Any) -> list[str]:
    files = [f"{config.out}/{name.replace(':', '-')}-{config.method}.npz" for name in config.sets.split(",")]
    detect = "transfer detect --config paper --backbone BACKBONE --data {data} --proposals {files}"
    return [format_command(step, data=config.data, files=files) for step in (detect, f"{detect} --engine detectron2")]
