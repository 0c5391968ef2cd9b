import pytest
import torch

from crosschannel.models import AlexNet, NetSpec, absorb_batchnorm, widen_to_lab
from crosschannel.models import initialisation as init
from crosschannel.pretext.nets import build_pretext

PROBE = {
    "conv1": (96, 55), "pool1": (96, 27), "conv2": (256, 27), "pool2": (256, 13), "conv3": (384, 13),
    "conv4": (384, 13), "conv5": (256, 13), "pool5": (256, 6), "fc6": (4096, 1), "fc7": (4096, 1),
}  # fmt: skip
PADDED = {
    "conv1": (96, 45), "pool1": (96, 23), "conv2": (256, 23), "pool2": (256, 12), "conv3": (384, 12),
    "conv4": (384, 12), "conv5": (256, 12), "pool5": (256, 12), "fc6": (4096, 12), "fc7": (4096, 12),
}  # fmt: skip


@pytest.fixture(scope="module")
def net() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet().eval()


@pytest.mark.parametrize(("geometry", "side", "sizes"), [("probe", 227, PROBE), ("padded", 180, PADDED)])
def test_maps_have_the_published_sizes_in_both_geometries(net, geometry, side, sizes):
    with torch.no_grad():
        maps = net.set_geometry(geometry).forward_features(torch.zeros(1, 1, side, side), net.layers)
    assert {name: (m.shape[1], m.shape[2]) for name, m in maps.items()} == sizes
    assert all(m.shape[2] == m.shape[3] for m in maps.values())


def test_one_set_of_weights_serves_both_geometries(net):
    fresh = AlexNet(geometry="probe")
    fresh.load_state_dict(net.set_geometry("padded").state_dict())
    x = torch.randn(1, 1, 227, 227)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), net.set_geometry("probe")(x))


def test_the_parameters_are_caffenets(net):
    weights = {
        "conv1": (96, 1, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3), "fc6": (4096, 256, 6, 6), "fc7": (4096, 4096, 1, 1),
    }  # fmt: skip
    assert {name: tuple(net.get_submodule(name).conv.weight.shape) for name in weights} == weights
    assert net.fc6.conv.bias.mean() == 1 and net.fc6.conv.weight.std().item() == pytest.approx(0.005, rel=0.01)


def test_padded_maps_sit_on_the_pixel_grid():
    """A spot at pixel (16k, 16k) lights conv1, pool1 and pool2 at indices 4k, 2k and k, in their middle."""
    net = AlexNet(norm=False, fc=0).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(1e-3), module.bias.zero_()
    x = torch.zeros(1, 1, 161, 161)
    x[..., 80, 80] = 1
    with torch.no_grad():
        maps = net.forward_features(x, ["conv1", "pool1", "pool2", "conv5"])
    for name, stride in (("conv1", 4), ("pool1", 8), ("pool2", 16), ("conv5", 16)):
        mass = maps[name][0, 0]
        position = torch.arange(len(mass)).float()
        assert (mass.sum(0) @ position / mass.sum()).item() == pytest.approx(80 / stride, abs=1e-3), name


def test_absorbing_batchnorm_leaves_the_function_unchanged():
    torch.manual_seed(1)
    net = AlexNet(fc=64)
    for _ in range(3):
        net.train()(torch.randn(4, 1, 128, 128) * 20 + 5)
    net.conv3.norm.running_var.mul_(1e-6)  # small variances, such as those of dead filters, meet eps
    x = torch.randn(2, 1, 128, 128) * 20
    with torch.no_grad():
        before = net.eval().forward_features(x, net.layers)
        after = absorb_batchnorm(net).forward_features(x, net.layers)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    for name, expected in before.items():
        assert (after[name] - expected).abs().max() < 1e-4 * max(1, expected.abs().max()), name


def test_a_grey_net_widened_to_lab_ignores_colour_at_first(net):
    grey = AlexNet(fc=0).eval()
    init.gaussian(grey)
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = grey(x[:, :1])
        lab = widen_to_lab(grey)
        assert torch.equal(lab(x), expected)
    assert lab.conv1.conv.weight.shape == (96, 3, 11, 11) and (lab.conv1.conv.weight[:, 1:] == 0).all()
    with pytest.raises(ValueError, match="only a grey net"):
        widen_to_lab(lab)


def test_nothing_past_the_last_layer_is_computed(net):
    calls = []
    handles = [net.get_submodule(name).register_forward_hook(lambda *_, n=name: calls.append(n)) for name in net.layers]
    with torch.no_grad():
        maps = net.forward_features(torch.zeros(1, 1, 128, 128), ["pool1", "conv3"])
    for handle in handles:
        handle.remove()
    assert calls == ["conv1", "pool1", "conv2", "pool2", "conv3"] and list(maps) == ["pool1", "conv3"]


@pytest.mark.parametrize(("side", "target"), [(180, 23), (128, 16), (96, 12), (129, 17), (64, 8)])
def test_logits_cover_every_8th_pixel(side, target):
    pretext = build_pretext(NetSpec("alexnet", fc=0), 313).eval()
    with torch.no_grad():
        assert pretext(torch.zeros(1, 1, side, side)).shape == (1, 313, target, target)
