"""ColorNet against a plain re-statement of the paper's table."""

import torch
from torch import nn

from crosschannel.models import ColorNet, NetSpec
from crosschannel.pretext.nets import build_pretext


class Restated(nn.Module):
    """The table of the net, block by block, as nn.Sequential; BatchNorm without scale and shift."""

    def __init__(self):
        super().__init__()

        def block(*convs, norm=None):
            parts = []
            for i, o, stride, dilation in convs:
                parts += [nn.Conv2d(i, o, 3, stride, padding=dilation, dilation=dilation), nn.ReLU()]
            return nn.Sequential(*parts, *([nn.BatchNorm2d(norm, affine=False)] if norm else []))

        self.blocks = nn.Sequential(
            block((1, 64, 1, 1), (64, 64, 2, 1), norm=64),
            block((64, 128, 1, 1), (128, 128, 2, 1), norm=128),
            block((128, 256, 1, 1), (256, 256, 1, 1), (256, 256, 2, 1), norm=256),
            block((256, 512, 1, 1), (512, 512, 1, 1), (512, 512, 1, 1), norm=512),
            block((512, 512, 1, 2), (512, 512, 1, 2), (512, 512, 1, 2), norm=512),
            block((512, 512, 1, 2), (512, 512, 1, 2), (512, 512, 1, 2), norm=512),
            block((512, 512, 1, 1), (512, 512, 1, 1), (512, 512, 1, 1), norm=512),
        )
        self.up = nn.ConvTranspose2d(512, 256, 4, 2, 1)
        self.conv8 = block((256, 256, 1, 1), (256, 256, 1, 1))
        self.out = nn.Conv2d(256, 313, 1)

    def forward(self, x):
        return self.out(self.conv8(torch.relu(self.up(self.blocks(x)))))


def test_the_same_weights_give_the_same_logits():
    torch.manual_seed(0)
    ours, theirs = build_pretext(NetSpec("colornet"), 313).eval(), Restated().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(0, 1), module.running_var.uniform_(0.5, 2)
    own = [t for name, t in ours.state_dict().items() if "num_batches" not in name]
    restated = [t for name, t in theirs.state_dict().items() if "num_batches" not in name]
    assert [t.shape for t in own] == [t.shape for t in restated]
    for a, b in zip(own, restated, strict=True):
        a.copy_(b)
    x = torch.randn(1, 1, 96, 88) * 30
    with torch.no_grad():
        expected = theirs(x)
        assert expected.shape == (1, 313, 24, 22)
        assert (ours(x) - expected).abs().max() < 1e-4


def test_the_parameter_count_is_the_papers_129_megabytes():
    pretext = build_pretext(NetSpec("colornet"), 313)
    convs = {  # in, out, kernel area of every convolution of the table
        "1": [(1, 64), (64, 64)], "2": [(64, 128), (128, 128)], "3": [(128, 256), (256, 256), (256, 256)],
        "4": [(256, 512), *[(512, 512)] * 2], "5": [(512, 512)] * 3, "6": [(512, 512)] * 3, "7": [(512, 512)] * 3,
        "8": [(256, 256)] * 2,
    }  # fmt: skip
    count = sum(9 * i * o + o for rows in convs.values() for i, o in rows)
    count += 16 * 512 * 256 + 256 + 256 * 313 + 313
    assert sum(p.numel() for p in pretext.parameters()) == count == 32_230_393
    assert round(count * 4 / 1e6) == 129


def test_the_layer_table():
    net = ColorNet().eval()
    assert len(net.layers) == 19 and net.layers[0] == "conv1_1" and net.layers[-1] == "conv7_3"
    with torch.no_grad():
        maps = net.forward_features(torch.zeros(1, 1, 64, 64), net.layers)
    sizes = {"conv1_2": (64, 32), "conv2_2": (128, 16), "conv3_3": (256, 8), "conv4_3": (512, 8), "conv7_3": (512, 8)}
    assert {name: tuple(maps[name].shape[1:3]) for name in sizes} == sizes
    dilated = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.dilation == (2, 2)]
    assert dilated == [f"conv{b}_{i}.conv" for b in (5, 6) for i in (1, 2, 3)]
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [f"conv{b}_{2 if b < 3 else 3}.norm" for b in range(1, 8)]


def test_its_batchnorm_cannot_be_absorbed_exactly():
    import pytest

    from crosschannel.models import absorb_batchnorm

    with pytest.raises(ValueError, match="after the ReLU"):
        absorb_batchnorm(ColorNet())
