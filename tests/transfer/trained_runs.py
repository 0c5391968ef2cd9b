"""Checks for every protocol that trains: identical results after `kill -9`, on two ranks, and from Python."""

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
    """Return the metrics, predictions and log of a run, without values that depend on the clock."""
    rows = np.load(run / "predictions.npz")
    log = [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in read_metrics(run)]
    return json.loads((run / "result.json").read_text())["metrics"], {k: rows[k].tolist() for k in rows.files}, log


def killed_and_finished(command: list[str], out: Path, *marks: str) -> Path:
    """Run a command once per mark and kill it as soon as it prints the mark; then run it to completion."""
    for mark in marks:
        with Forked(lambda: main([*command, f"--out={out}"])) as process:
            process.wait_for(mark)
    assert not (out / "result.json").exists()
    assert main([*command, f"--out={out}"]) == 0
    return out


def by_one_and_by_two(command: list[str], folder: Path) -> tuple[Path, Path]:
    """Run a command in one process and on two ranks; return both run folders."""
    one, two = folder / "one", folder / "two"
    assert main([*command, f"--out={one}"]) == 0
    check_on_ranks(lambda: main([*command, f"--out={two}"]))
    return one, two


def assert_same_result(first: Result, second: Result) -> None:
    """Check that two results are equal in all values and dtypes."""
    assert replace(first) == replace(second) and first.rows.keys() == second.rows.keys()
    for name, column in first.rows.items():
        pair = (column, second.rows[name])
        arrays = [(rows.values, rows.counts) if isinstance(rows, Ragged) else (rows,) for rows in pair]
        for a, b in zip(*arrays, strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b), name


def assert_function_is_command(name: str, command: list[str], finished: Path, data: Path) -> None:
    """Check that the function returns the command's result, and leaves the weights of a backbone unchanged."""
    config, protocol = PROGRAM.parse(name, command[1:]), getattr(transfer, name)
    returned = protocol(config.backbone, str(data), config=config, out=finished.parent / f"{name}-called")
    assert returned.metrics == load_result(finished).metrics
    assert_same_result(returned, load_result(finished.parent / f"{name}-called"))
    backbone = load_backbone("random:alexnet,fc=0,size=64,resize=72,seed=1")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    protocol(backbone, str(data), config=config, train=replace(config.train, steps=1))
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
