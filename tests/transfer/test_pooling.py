import pytest
import torch

from crosschannel import UserError, load_backbone
from transfer.features import FrozenFeatures
from transfer.pooling import WINDOWS, grid, pool

CONVS = ["conv1", "conv2", "conv3", "conv4", "conv5"]
SIDES = dict(zip(CONVS, (55, 27, 13, 13, 13), strict=True))
WIDTHS = dict(zip(CONVS, (96, 256, 384, 384, 256), strict=True))


@pytest.fixture(scope="module")
def alexnet():
    return load_backbone("random:alexnet,fc=0,norm=false")


@pytest.mark.parametrize("kind", ["average", "bilinear"])
def test_alexnets_shapes_at_227_are_the_papers(alexnet, kind):
    features = FrozenFeatures(alexnet, [*CONVS, "pool1", "pool2", "pool5"], kind, torch.device("cpu"))
    assert features.shapes() == {
        "conv1": (96, 10, 10), "conv2": (256, 6, 6), "conv3": (384, 5, 5), "conv4": (384, 5, 5), "conv5": (256, 6, 6),
        "pool1": (96, 10, 10), "pool2": (256, 6, 6), "pool5": (256, 6, 6),
    }  # fmt: skip


@pytest.mark.parametrize("layer", CONVS)
def test_windows_are_means_with_the_zeros_around_a_map_counted_in(layer):
    """Adaptive averages have a grid of the same size, and other numbers."""
    maps = torch.rand(1, 2, SIDES[layer], SIDES[layer], generator=torch.Generator().manual_seed(0))
    kernel, pad = {"conv1": (6, 3), "conv2": (4, 0), "conv3": (3, 1), "conv4": (3, 1), "conv5": (2, 0)}[layer]
    padded = torch.nn.functional.pad(maps, (pad,) * 4)
    count = (padded.shape[2] - kernel) // kernel + 1
    places = [slice(i * kernel, (i + 1) * kernel) for i in range(count)]
    expected = torch.stack([padded[:, :, y, x].mean((2, 3)) for y in places for x in places], 2).unflatten(
        2, (count,) * 2
    )
    found = pool(maps, layer, "windows")
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(pool(maps, layer, "deepcluster"), found)  # as older configs call it
    adaptive = pool(maps.repeat(1, WIDTHS[layer] // 2, 1, 1), layer, "average")[:, :2]
    assert adaptive.shape == expected.shape and not torch.allclose(adaptive, expected, atol=1e-2)


def test_deepclusters_windows_give_its_shapes():
    """On maps of the sizes that its AlexNet has at a 224 crop (conv1 is padded there): 9600, 9216, 9600, 9600, 9216."""
    sizes = {"conv1": (96, 55), "conv2": (256, 27), "conv3": (384, 13), "conv4": (384, 13), "conv5": (256, 13)}
    for layer, (channels, side) in sizes.items():
        maps = torch.rand(2, channels, side, side)
        kernel, _, padding = WINDOWS["deepcluster"][layer]
        pooled = pool(maps, layer, "deepcluster")
        assert torch.equal(pooled, torch.nn.AvgPool2d(kernel, stride=kernel, padding=padding)(maps))
        assert pooled[0].numel() == {96: 9600, 256: 9216, 384: 9600}[channels]
    with pytest.raises(UserError, match="not defined for layer 'pool1'"):
        pool(torch.rand(1, 1, 9, 9), "pool1", "deepcluster")


def test_a_last_stage_without_stride_has_a_different_window():
    maps = torch.rand(1, 3, 14, 14)
    assert torch.allclose(pool(maps, "stage5", "vissl"), torch.nn.AvgPool2d(12, 2)(maps))  # 2 × 2 × 2048 < 10,000
    assert pool(maps[:, :, :7, :7], "stage5", "vissl").shape == (1, 3, 2, 2)


def test_the_grid_is_the_largest_below_ten_thousand():
    for channels in (1, 3, 64, 96, 256, 384, 512, 2048, 4096, 20_000):
        for side in (1, 4, 7, 14, 60, 200):
            fitting = [g for g in range(1, side + 1) if g * g * channels < 10_000]
            assert grid(channels, side) == max(fitting, default=1)


def test_average_is_the_mean_of_every_cell():
    maps = torch.rand(2, 384, 10, 10)  # cells of 2 × 2
    cells = maps.reshape(2, 384, 5, 2, 5, 2).mean((3, 5))
    assert torch.allclose(pool(maps, "any", "average"), cells, atol=1e-6)
    assert torch.allclose(pool(maps, "any", "global")[..., 0, 0], maps.mean((2, 3)), atol=1e-6)


def test_bilinear_keeps_the_corners_and_is_exact_on_planes():
    """Corner i of g lies at i · (side − 1) / (g − 1), so a map that is linear in its place is sampled exactly."""
    side, g = 13, 5
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    maps = (2.0 * y + 3.0 * x).expand(1, 384, side, side)
    places = torch.arange(g) * (side - 1) / (g - 1)
    expected = 2 * places[:, None] + 3 * places[None]
    assert torch.allclose(pool(maps, "any", "bilinear"), expected.expand(1, 384, g, g), atol=1e-4)
