"""Checks that every protocol that trains must pass: the same end after `kill -9`, with two ranks, and from Python."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from forked import Forked, check_on_ranks

import transfer
from crosschannel import load_backbone
from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import Ragged, Result, load_result
from transfer.cli import PROGRAM, main


def figures(run: Path):
    """What a run found, without what depends on the clock: metrics, rows and log."""
    rows = np.load(run / "predictions.npz")
    log = [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in read_metrics(run)]
    return json.loads((run / "result.json").read_text())["metrics"], {k: rows[k].tolist() for k in rows.files}, log


def killed_and_finished(command: list[str], out: Path, *marks: str) -> Path:
    """Run a command, kill it as soon as it says each of the marks, then let it end."""
    for mark in marks:
        with Forked(lambda: main([*command, f"--out={out}"])) as process:
            process.wait_for(mark)
    assert not (out / "result.json").exists()
    assert main([*command, f"--out={out}"]) == 0
    return out


def by_one_and_by_two(command: list[str], folder: Path) -> tuple[Path, Path]:
    """The runs of one process and of two ranks."""
    one, two = folder / "one", folder / "two"
    assert main([*command, f"--out={one}"]) == 0
    check_on_ranks(lambda: main([*command, f"--out={two}"]))
    return one, two


def assert_same_result(first: Result, second: Result) -> None:
    """Results are equal in every value and type."""
    assert replace(first) == replace(second) and first.rows.keys() == second.rows.keys()
    for name, column in first.rows.items():
        pair = (column, second.rows[name])
        arrays = [(one.values, one.counts) if isinstance(one, Ragged) else (one,) for one in pair]
        for mine, stored in zip(*arrays, strict=True):
            assert mine.dtype == stored.dtype and np.array_equal(mine, stored), name


def assert_function_is_command(name: str, command: list[str], finished: Path, data: Path) -> None:
    """The function finds what the command has found, and a backbone that it is given stays as it was."""
    config, measure = PROGRAM.parse(name, command[1:]), getattr(transfer, name)
    returned = measure(config.backbone, str(data), config=config, out=finished.parent / f"{name}-called")
    assert returned.metrics == load_result(finished).metrics
    assert_same_result(returned, load_result(finished.parent / f"{name}-called"))
    backbone = load_backbone("random:alexnet,fc=0,size=64,resize=72,seed=1")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    measure(backbone, str(data), config=config, train=replace(config.train, steps=1))
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
