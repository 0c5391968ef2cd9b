"""What two runs must share to be the same run."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import read_result
from crosschannel.training import checkpoints


def equal(a, b) -> bool:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_end(run: Path, reference: Path) -> None:
    """Weights, optimiser state and the log of two finished runs are the same, bit for bit."""
    for name in ("backbone.safetensors", "colorizer.safetensors"):
        assert equal(load_file(run / name), load_file(reference / name)), name
    results = [vars(read_result(path)) for path in (run, reference)]
    assert all(results[0][key] == results[1][key] for key in ("n", "metrics", "protocol", "seed"))
    states = [checkpoints.load(checkpoints.newest(path / "checkpoints")) for path in (run, reference)]
    assert equal(*states)
    logs = [[{k: v for k, v in row.items() if k != "train/images_per_s"} for row in read_metrics(path)] for path in
            (run, reference)]  # fmt: skip
    assert logs[0] == logs[1]
