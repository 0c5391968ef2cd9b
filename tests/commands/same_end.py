"""Comparison of finished runs that must be identical."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import read_result
from crosschannel.training import checkpoints


def equal(a, b) -> bool:
    """Return whether nested dicts and lists of tensors are bit-identical."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def without_speed(row: dict) -> dict:
    """Return a row of the log without the value that depends on the clock."""
    return {key: value for key, value in row.items() if key != "train/images_per_s"}


def assert_same_end(run: Path, reference: Path, log: bool = True) -> None:
    """Check that two finished runs have equal weights, metrics and checkpoints.

    Args:
        log: whether their logs must be equal too; false if rows are known to be missing.
    """
    for name in ("backbone.safetensors", "colorizer.safetensors"):
        assert equal(load_file(run / name), load_file(reference / name)), name
    results = [vars(read_result(path)) for path in (run, reference)]
    assert all(results[0][key] == results[1][key] for key in ("n", "metrics", "protocol", "seed"))
    states = [checkpoints.load(checkpoints.list_checkpoints(path / "checkpoints")[0]) for path in (run, reference)]
    assert equal(*states)
    if log:
        logs = [[without_speed(row) for row in read_metrics(path)] for path in (run, reference)]
        assert logs[0] == logs[1]
