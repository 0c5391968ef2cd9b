import numpy as np
import pytest
import torch
from torch import nn

from crosschannel.models import AlexNet
from crosschannel.models import initialisation as init
from crosschannel.models.calibration import calibrate


@pytest.fixture
def batch(photos):
    crops = [torch.from_numpy(p[y : y + 96, x : x + 96].copy()) for p in photos for y in (0, 150) for x in (0, 200)]
    return torch.stack([crop.float().mean(2)[None] * 100 / 255 - 50 for crop in crops][:8])


def uncalibrated(batch, fc=0) -> AlexNet:
    """A trunk whose layers are of very different scales, or with fc6 and fc7 the net at 227 px."""
    torch.manual_seed(0)
    net = AlexNet(fc=fc, norm=False)
    init.unit_variance(net, [batch])
    with torch.no_grad():
        for scale, name in zip((9, 0.2, 3, 0.5, 2), ("conv1", "conv2", "conv3", "conv4", "conv5"), strict=True):
            net.get_submodule(name).conv.weight.mul_(scale)
    return net.eval()


@pytest.mark.parametrize("fc", [0, 24])
def test_the_function_survives_up_to_one_positive_factor(batch, fc):
    net = uncalibrated(batch, fc)
    with torch.no_grad():
        before = net(batch)
    scale = calibrate(net, [batch], [50.0])
    with torch.no_grad():
        after = net(scale * batch)
    factor = (before * after).sum() / after.square().sum()
    assert factor > 0 and not torch.allclose(before, after, rtol=0.1)
    assert (before - factor * after).abs().max() < 1e-4 * before.abs().max()


def restated(net: AlexNet, lightness: torch.Tensor, seed: int, iterations: int = 10) -> tuple[dict, list[float]]:
    """The release's procedure, layer by layer, with steps that shrink: data_l on L, the net, fc8_; the scale that every
    layer ends with, and the output's standard deviation at every iteration."""
    generator = torch.Generator().manual_seed(seed)
    data = nn.Conv2d(1, 1, 1)
    nn.init.ones_(data.weight), nn.init.constant_(data.bias, -50)
    top = nn.Conv2d(net.out_channels, 1000, 1)
    top.weight.data = torch.randn(top.weight.shape, generator=generator) * 0.01
    nn.init.ones_(top.bias)
    modules = [data]
    for name in net.layers:
        block = net.get_submodule(name)
        modules += [block.conv, nn.ReLU()] if hasattr(block, "conv") else [block]
    modules.append(top)
    weighted = [module for module in modules if hasattr(module, "weight")]
    start = {id(module): module.weight.detach().norm().item() for module in weighted}

    def bottoms() -> list[float]:
        x, found = lightness, []
        for module in modules:
            if hasattr(module, "weight"):
                found.append(float(np.mean(np.abs(x.detach().numpy()))))
            x = module(x)
        return found

    def output() -> torch.Tensor:
        return nn.Sequential(*modules)(lightness)

    def deviation(y: torch.Tensor) -> float:
        return float(y.detach().transpose(0, 1).flatten(1).std(1, correction=0).mean())

    previous, deviations = bottoms(), []
    for step in range(1, iterations + 1):
        y = output()
        deviations.append(deviation(y))
        gradients = torch.autograd.grad(y, [m.weight for m in weighted], torch.randn(y.shape, generator=generator))
        pairs = zip(gradients, weighted, strict=True)
        ratios = np.array([(g.square().mean() / m.weight.square().mean()).sqrt().item() for g, m in pairs])
        target = np.exp(np.mean(np.log(ratios))) * deviations[-1] ** (1 / len(ratios))
        if np.all(np.abs(np.log(ratios) / np.log(target) - 1) < 0.01):
            break
        x = lightness
        index = 0
        with torch.no_grad():
            for module in modules:
                if hasattr(module, "weight"):
                    now = float(x.abs().mean())
                    module.bias *= now / previous[index]
                    previous[index] = now
                    mean = np.exp(np.mean(np.log(ratios)))
                    scale = float((ratios[index] / mean) ** (1 / (2 * step)) * np.sqrt(mean / target))
                    module.weight *= scale
                    module.bias *= scale
                    index += 1
                x = module(x)
    scales = [module.weight.detach().norm().item() / start[id(module)] for module in weighted]
    return dict(
        zip(["input", *(name for name in net.layers if "pool" not in name)], scales[:-1], strict=True)
    ), deviations


def test_it_is_the_releases_procedure_to_a_percent(batch):
    ours, theirs = uncalibrated(batch), uncalibrated(batch)
    before = {name: block.conv.weight.norm().item() for name, block in ours.named_children() if "conv" in name}
    scale_of_input = calibrate(ours, [batch], [50.0], seed=3)
    expected, deviations = restated(theirs, batch + 50, seed=3)
    assert scale_of_input == pytest.approx(expected.pop("input"), rel=0.01)
    for name, scale in expected.items():
        assert ours.get_submodule(name).conv.weight.norm().item() / before[name] == pytest.approx(scale, rel=0.01), name
    assert abs(deviations[-1] - 1) < 0.1 < abs(deviations[0] - 1)  # it tends to one


def test_all_layers_learn_at_the_same_rate(batch):
    net = uncalibrated(batch)

    def spread(scale: float) -> float:
        convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        y = net(scale * batch)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
        gradients = torch.autograd.grad(y, [conv.weight for conv in convs], noise)
        pairs = zip(gradients, convs, strict=True)
        ratios = [(g.square().mean() / conv.weight.square().mean()).sqrt().item() for g, conv in pairs]
        return max(ratios) / min(ratios)

    before = spread(1)
    scale = calibrate(net, [batch], [50.0])
    assert before > 10 and spread(scale) < 1.2


def test_input_scale_counts_like_a_scale_of_the_first_layer(batch):
    """Moving a factor of 3 from conv1 to the inputs gives the same function after calibration."""
    plain, scaled = uncalibrated(batch), uncalibrated(batch)
    with torch.no_grad():
        scaled.conv1.conv.weight.div_(3)
    factor = calibrate(plain, [batch], [50.0])
    more = calibrate(scaled, [3 * batch], [50.0], scale=3.0)
    assert 3 * more == pytest.approx(factor, rel=0.02)
    with torch.no_grad():
        assert torch.allclose(plain(factor * batch), scaled(more * 3 * batch), rtol=0.05, atol=0.05)


def test_a_frozen_net_stays_frozen_and_vectors_will_do(batch):
    net = uncalibrated(batch).requires_grad_(False)
    before = net.conv1.conv.weight.clone()
    calibrate(net, [batch], iterations=1)
    assert not torch.equal(net.conv1.conv.weight, before)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    plain = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    calibrate(plain, [batch, batch.flip(0)])
    assert plain(batch).isfinite().all()
    with pytest.raises(ValueError, match="centre must have one value per channel"):
        calibrate(plain, [batch], [50.0, 0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["gaussian", "kmeans"])
def test_rates_are_alike_over_draws_of_the_noise(photos, start):
    """One draw tells the rate of a k-means net's first layer to some 17 percent, so twelve are averaged."""
    corners = [(y, x) for y in (0, 60, 150) for x in (0, 100, 200)]
    crops = [torch.from_numpy(photo[y : y + 96, x : x + 96].copy()) for photo in photos for y, x in corners]
    grey = [crop.float().mean(2)[None] for crop in crops if crop.shape == (96, 96, 3)][:60]
    images = torch.stack(grey) * 100 / 255 - 50
    torch.manual_seed(0)
    net = AlexNet(fc=64, norm=False, geometry="padded")
    if start == "kmeans":
        init.kmeans(net, [images, images], skip=())
    else:
        init.gaussian(net, skip=())
    output = net.eval()(calibrate(net, [images], [50.0]) * images)
    weights = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    squares = np.zeros(len(weights))
    for seed in range(12):
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
        gradients = torch.autograd.grad(output, weights, noise, retain_graph=True)
        pairs = zip(gradients, weights, strict=True)
        squares += [(gradient.square().mean() / weight.square().mean()).item() for gradient, weight in pairs]
    rates = np.sqrt(squares)
    assert (abs(rates / np.median(rates) - 1) < 0.1).all(), rates
