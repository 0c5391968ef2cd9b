import pytest
import torch
from torch import nn

from crosschannel import UserError
from crosschannel.models import AlexNet, ColorNet, NetSpec
from crosschannel.models import initialisation as init
from crosschannel.pretext.nets import build_pretext


@pytest.fixture
def batches(photos):
    crops = [torch.from_numpy(p[y : y + 96, x : x + 96].copy()) for p in photos for y in (0, 150) for x in (0, 200)]
    lightness = [crop.float().mean(2)[None] * 100 / 255 - 50 for crop in crops]
    return list(torch.stack(lightness).split(8))


@pytest.fixture
def few(batches):
    """Images for k-means, whose time goes with the patches."""
    return [batch[:, :, 20:60, 20:60] for batch in batches[:2]]


class Small(nn.Module):
    """Strided, grouped and dilated convolutions, pools and a linear layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
            nn.Conv2d(16, 24, 3, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def layer_outputs(net, batches):
    """Every weight layer's outputs over the batches, as (values, channels)."""
    outputs: dict[str, list] = {}
    handles = [
        m.register_forward_hook(lambda m, i, o, n=n: outputs.setdefault(n, []).append(o.detach().clone()))
        for n, m in net.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for handle in handles:
        handle.remove()
    joined = {n: torch.cat(o) for n, o in outputs.items()}
    return {n: o.movedim(1, -1).reshape(-1, o.shape[1]) for n, o in joined.items()}


@pytest.mark.parametrize("method", [init.unit_variance, init.kmeans])
def test_every_channel_has_unit_std_and_mean_one_tenth(method, few):
    torch.manual_seed(0)
    net = Small()
    method(net, few)
    for name, values in layer_outputs(net, few).items():
        assert torch.allclose(values.std(0, correction=0), torch.ones(values.shape[1]), atol=0.02), name
        assert torch.allclose(values.mean(0), torch.full((values.shape[1],), 0.1), atol=0.02), name


def test_kmeans_filters_follow_the_images_and_the_seed(few):
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(3)
        nets.append(Small())
        init.kmeans(nets[-1], few, seed=seed)
    first = [net.layers[0].weight.detach().flatten(1) for net in nets]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    filters = nn.functional.normalize(first[0] - first[0].mean(1, keepdim=True))
    off = filters @ filters.T - torch.eye(12)
    assert off.abs().max() < 0.999  # distinct


def test_kmeans_centres_are_cluster_centres_of_whitened_patches():
    """On patches from k tight clusters each filter responds most to its own cluster."""
    import numpy as np

    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(20, 20)))[0][:4]
    patches = directions[generator.integers(0, 4, 4000)] + generator.normal(0, 0.02, (4000, 20))
    filters = init._centres(patches.astype(np.float32), 4, seed=0)
    responses = filters @ (directions - directions.mean(0)).T
    assert sorted(responses.argmax(1)) == [0, 1, 2, 3]


def test_few_patches_of_many_numbers_have_their_directions_from_the_smaller_matrix():
    import numpy as np

    scales = np.linspace(0.1, 3, 40, dtype=np.float32)
    patches = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32) * scales
    padded = np.concatenate([patches, np.zeros((60, 40), np.float32)], 1)  # more numbers than patches
    wide, narrow = init._centres(padded, 8, seed=0), init._centres(patches, 8, seed=0)
    assert np.abs(wide[:, 40:]).max() < 1e-5
    directions = np.linalg.svd(patches - patches.mean(0))[2][:8]
    for filters in (wide[:, :40], narrow):
        assert ((filters @ directions.T) ** 2).sum(1) == pytest.approx((filters**2).sum(1), rel=1e-3)


def test_images_of_one_colour_have_nothing_to_cluster(few):
    with pytest.raises(UserError, match="nothing to cluster"):
        init.kmeans(Small(), [torch.zeros_like(batch) for batch in few])


def test_kmeans_filters_lie_on_the_directions_of_greatest_variance(few):
    """As many directions of each layer's patches as it has filters: all of the filters' energy, in every layer."""
    torch.manual_seed(0)
    net = Small()
    init.kmeans(net, few)
    for name, module in init.weight_layers(net, few[0]):
        inputs = list(init._inputs(net, module, few))
        for group in range(groups := getattr(module, "groups", 1)):
            filters = module.weight.detach().flatten(1).chunk(groups)[group].double()
            parts = [x.chunk(groups, 1)[group] for x in inputs]
            if isinstance(module, nn.Conv2d):
                unfold = nn.Unfold(module.kernel_size, module.dilation, module.padding, module.stride)
                parts = [unfold(part).transpose(1, 2).flatten(0, 1) for part in parts]
            patches = torch.cat(parts).detach().double()
            patches = patches - patches.mean(0)
            directions = torch.linalg.eigh(patches.T @ patches).eigenvectors[:, -len(filters) :]
            share = (filters @ directions).square().sum() / filters.square().sum()
            assert len(filters) < patches.shape[1] and share >= 0.999, (name, group, float(share))


def test_a_layer_with_more_outputs_than_samples_starts_from_noise(batches):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc6 = nn.Linear(1024, 300)

        def forward(self, x):
            return self.fc6(x[:, :, ::3, ::3].flatten(1))

    net = Wide()
    before = net.fc6.weight.clone()
    init.kmeans(net, batches)
    assert torch.equal(net.fc6.weight, before)  # kept, as in pretraining
    init.kmeans(net, batches, skip=())
    rows = net.fc6.weight.detach()
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    assert abs((rows**4).mean() - 3) < 0.1  # normal
    assert (rows @ rows.T / 1024 - torch.eye(300)).abs().max() < 0.2  # independent
    values = layer_outputs(net, batches)["fc6"]
    assert torch.allclose(values.std(0, correction=0), torch.ones(300), atol=1e-3)


def test_unit_variance_runs_on_alexnet_and_colornet(batches, narrow_net):
    for net in (AlexNet(fc=0), AlexNet(fc=0, norm=False), ColorNet()):
        init.unit_variance(net, batches[:2])
        with torch.no_grad():
            assert net.eval()(batches[0]).isfinite().all()


@pytest.mark.slow
def test_the_decoder_of_colornet_starts_at_unit_variance_too(batches):
    pretext = build_pretext(NetSpec("colornet"), 313)
    before = pretext.head.out.weight.clone()
    init.unit_variance(pretext, batches[:2])
    outputs = layer_outputs(pretext, batches[:2])
    for name in ("head.conv8_1", "head.conv8_2", "head.conv8_3", "net.conv5_2.conv"):
        assert torch.allclose(outputs[name].std(0), torch.ones(outputs[name].shape[1]), atol=0.02), name
    assert torch.equal(pretext.head.out.weight, before)


def test_a_skipped_layer_keeps_its_weights(batches):
    net = AlexNet(fc=32)
    before = net.fc6.conv.weight.clone()
    init.unit_variance(net, batches[:1])
    init.gaussian(net)
    assert torch.equal(net.fc6.conv.weight, before) and (net.fc6.conv.bias == 1).all()
    assert net.conv2.conv.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_estimated_batchnorm_is_the_average_over_batches(batches):
    net = AlexNet(fc=0)
    init.gaussian(net)
    init.estimate_batchnorm(net, batches)
    with torch.no_grad():
        outputs = torch.stack([net.conv1.conv(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(net.conv1.norm.running_mean, outputs, rtol=1e-3, atol=1e-5)
    assert not net.training and net.conv1.norm.momentum == 0.1
