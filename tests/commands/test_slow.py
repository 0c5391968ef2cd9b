"""Long checks: `pytest -m slow`."""

import json

import pytest
import torch

from crosschannel.cli import main
from crosschannel.color import load_prior


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_imagenette_config_learns(real_data, tmp_path):
    """20 minutes on two cores. Its KL on held-out images is at most 0.87 of the best constant prediction's."""
    out = tmp_path / "run"
    assert main(["pretrain", "--config=imagenette", f"--data={real_data / 'imagenette'}", f"--out={out}"]) == 0
    assert json.loads((out / "result.json").read_text())["metrics"]["kl_share"] <= 0.87


@pytest.mark.slow
def test_the_packaged_prior_is_what_the_command_gives(real_data, tmp_path):
    assert main(["prior", "--data", str(real_data / "imagenet-256"), "--out", str(tmp_path / "p.npz")]) == 0
    assert torch.allclose(load_prior(str(tmp_path / "p.npz")).smoothed, load_prior().smoothed, atol=1e-9)
