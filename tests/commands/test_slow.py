"""Long checks: `pytest -m slow`."""

import json

import numpy as np
import pytest
import torch

from crosschannel.cli import main
from crosschannel.color import load_prior
from transfer.cli import main as transfer


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_imagenette_config_learns(real_data, tmp_path):
    """25 minutes on two cores. Its KL on held-out images is at most 0.87 of the best constant prediction's, and linear
    classifiers read more out of its layers than out of a random net's: mean of three seeds, in points. (docs/probe.md
    has 6.8 7.0 10.1 10.0 11.6; other machines round otherwise, and a figure's standard error over images is 1.6.)"""
    data, out = f"--data={real_data / 'imagenette'}", tmp_path / "run"
    assert main(["pretrain", "--config=imagenette", data, f"--out={out}"]) == 0
    assert json.loads((out / "result.json").read_text())["metrics"]["kl_share"] <= 0.87

    def probe(source: str, seed: int) -> np.ndarray:
        run = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        flags = ["--layer=conv*", f"--seed={seed}", f"--backbone={source}", data, f"--out={run}"]
        assert transfer(["linear-probe", "--config=imagenette", *flags]) == 0
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        return np.array([100 * metrics[f"conv{i}/top1"] for i in range(1, 6)])

    learned = np.mean([probe(str(out), seed) for seed in range(3)], 0)
    random = np.mean([probe(f"random:{out},seed={seed}", seed) for seed in range(3)], 0)
    assert (learned - random >= [4, 5, 8, 8, 9.5]).all(), (learned, random)


@pytest.mark.slow
def test_the_packaged_prior_is_what_the_command_gives(real_data, tmp_path):
    assert main(["prior", "--data", str(real_data / "imagenet-256"), "--out", str(tmp_path / "p.npz")]) == 0
    assert torch.allclose(load_prior(str(tmp_path / "p.npz")).smoothed, load_prior().smoothed, atol=1e-9)
