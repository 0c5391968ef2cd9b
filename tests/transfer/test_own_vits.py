"""User-defined ViTs in the protocols that use images of other sizes and aspect ratios than the net's."""

import sys

import numpy as np
import pytest
from devkits import make_devkit

import transfer
from transfer.cli import main
from transfer.proposals.files import save_boxes

MODULE = """
import torch
from torch import nn


class ViT(nn.Module):
    def __init__(self, patch=(16, 16), name="pos_embed", registers=0):
        super().__init__()
        torch.manual_seed(0)
        self.img_size, self.name, self.registers = 64, name, registers
        self.embed = nn.Conv2d(3, 16, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1 + registers, 16))
        setattr(self, name, nn.Parameter(torch.randn(1, 1 + (64 // patch[0]) * (64 // patch[1]), 16)))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.blocks = nn.ModuleList([layer, nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        assert x.shape[2] == self.img_size and x.shape[3] == self.img_size
        first = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([first[:, :1], self.embed(x).flatten(2).transpose(1, 2)], 1) + getattr(self, self.name)
        x = torch.cat([x[:, :1], first[:, 1:], x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def vit():
    return ViT()


def oblong():
    return ViT((16, 8), registers=2)


def unusual():
    return ViT(name="table")


def named():
    import crosschannel

    return crosschannel.wrap(ViT(name="table"), size=64, resize_positions="table")
"""


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    root = tmp_path_factory.mktemp("voc")
    voc = make_devkit(root, photos, train=4, test=4, masks=True)
    corners = np.array([[5, 5, 40, 50], [0, 0, 30, 30], [20, 10, 55, 58]])
    save_boxes(root / "boxes.npz", {f"{number:06d}": corners for number in range(8)}, {})
    return voc


@pytest.fixture
def own(tmp_path, monkeypatch, voc):
    """Return a function for the command line of a protocol on a net in mynets.py."""
    (tmp_path / "mynets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mynets", None)
    words = {
        "segment": ["--crop=48", "--stride=0", "--train.steps=1", "--train.batch=2"],
        "detect": [f"--proposals={voc.parent / 'boxes.npz'}", "--scales=[48,64]", "--longest=120", "--test_scale=56",
                   "--test_longest=120", "--train.steps=1", "--train.batch=2"],
        "dense": ["--size=96", "--grid=6", "--mask_size=24", "--k=3", "--train.epochs=1", "--train.batch=2"],
    }  # fmt: skip
    common = [
        "--config=voc-mini",
        f"--data={voc}",
        "--runtime.workers=0",
        "--runtime.tensorboard=false",
        "--device=cpu",
    ]
    yield lambda protocol, net: [protocol, f"--backbone=mynets:{net},size=64", *common, *words[protocol], "--out=run"]
    sys.modules.pop("mynets", None)


FIGURES = {"segment": "mean_iu", "detect": "map", "dense": "blocks.1/mean_iu"}


@pytest.mark.parametrize("net", ["vit", "oblong", "named"])
@pytest.mark.parametrize("protocol", FIGURES)
def test_vits_of_a_fixed_size_are_measured_on_images_of_any_size(own, protocol, net, capsys):
    assert main(own(protocol, net)) == 0, capsys.readouterr().err
    assert 0 <= transfer.load_result("run").metrics[FIGURES[protocol]] <= 1


@pytest.mark.parametrize("protocol", FIGURES)
def test_positions_of_an_unusual_name_are_refused_with_the_remedy(own, protocol, capsys):
    assert main(own(protocol, "unusual")) == 2
    said = capsys.readouterr().err
    assert "accepts images of 64 × 64 px" in said
    assert "resize them with crosschannel.wrap(net, resize_positions='table')" in said
