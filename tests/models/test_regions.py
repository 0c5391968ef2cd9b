"""Regions of images on maps: against a pool that looks at every point of the map and asks where it is centred."""

import numpy as np
import pytest
import torch

from crosschannel import UserError, load_backbone
from crosschannel.models.regions import for_regions, plan_regions, pool_regions


def brute_force_pool(maps: torch.Tensor, box: tuple[float, ...], stride: int, origin: float, side: int) -> np.ndarray:
    """Fast R-CNN's pool of one box: the map's points nearest to its first and last pixel are the ends of a grid whose
    cells reach from the floor to the ceiling of their ends; the greatest of each."""
    centres = [origin + stride * np.arange(-100, 200)] * 2
    first = [int(np.abs(c - pixel).argmin()) - 100 for c, pixel in zip(centres, box[:2], strict=True)]
    last = [int(np.abs(c - (pixel - 1)).argmin()) - 100 for c, pixel in zip(centres, box[2:], strict=True)]
    spans = [max(b - a + 1, 1) for a, b in zip(first, last, strict=True)]
    width, height = maps.shape[2], maps.shape[1]
    found = np.zeros((maps.shape[0], side, side))
    for row in range(side):
        for column in range(side):
            cells = []
            for place, span, start, limit in (
                (row, spans[1], first[1], height), (column, spans[0], first[0], width)
            ):  # fmt: skip
                low = start + (place * span) // side
                high = start + -(-((place + 1) * span) // side)
                cells.append(slice(max(0, min(low, limit)), max(0, min(high, limit))))
            part = maps[:, cells[0], cells[1]]
            if part.numel():
                found[:, row, column] = part.amax((1, 2)).numpy()
    return found


BOXES = [(0, 0, 227, 227), (33, 20, 130, 101), (100, 100, 101, 101), (5, 180, 70, 226), (150, 3, 226, 222)]


@pytest.mark.parametrize(("geometry", "origin"), [("padded", 0.0), ("probe", 17.0)])
def test_alexnets_regions_are_those_of_the_right_pixels(geometry, origin):
    backbone = for_regions(load_backbone("random:alexnet,fc=8,seed=1"), geometry)
    plan = plan_regions(backbone)
    assert (plan.layer, plan.resolution, plan.stride, plan.origin) == ("conv5", 6, 16, origin)
    x = torch.randn(1, 1, 227, 227, generator=torch.Generator().manual_seed(0)) * 40
    with torch.no_grad():
        maps = backbone.eval().features(x, ["conv5"])["conv5"]
        found = pool_regions(maps, [torch.tensor(BOXES, dtype=torch.float32)], plan)
    for ours, box in zip(found, BOXES, strict=True):
        assert np.allclose(ours, brute_force_pool(maps[0], box, 16, origin, 6)), box


@pytest.mark.parametrize("geometry", ["padded", "probe"])
def test_a_maps_points_are_where_the_plan_says(geometry):
    """A spot of light moves the points of conv5 around it. Over a whole step of pixels, their middle is on the spot."""
    backbone = for_regions(load_backbone("random:alexnet,fc=8,seed=1"), geometry).eval()
    plan = plan_regions(backbone)
    x, off = torch.zeros(1, 1, 259, 259), []
    with torch.no_grad():
        before = backbone.features(x, ["conv5"])["conv5"]
        for pixel in range(112, 112 + plan.stride):
            x.zero_()[0, 0, pixel, pixel] = 50
            moved = (backbone.features(x, ["conv5"])["conv5"] - before).abs().sum((0, 1)) > 0
            points = plan.origin + plan.stride * moved.any(0).nonzero()[:, 0].double()
            off.append(float(points.mean() - pixel))
    assert abs(np.mean(off)) < 1.5


def test_aligned_regions_are_bilinear_samples_of_where_points_are_centred():
    """On a map that holds its own points' places RoIAlign gives places: those of the box's cells."""
    for source in ("random:timm:vit_tiny_patch16_224", "random:timm:test_resnet"):
        plan = plan_regions(load_backbone(source), pooling="align", resolution=4)
        places = plan.origin + plan.stride * torch.arange(20, dtype=torch.float32)
        maps = places[None, None, None].expand(1, 1, 20, 20)
        (row,) = pool_regions(maps, [torch.tensor([[64.0, 40, 192, 200]])], plan)[0, 0, :1]
        # Cells of 32 pixels from 64 on; a pixel p reaches from p to p + 1.
        assert torch.allclose(row, torch.tensor([80.0, 112, 144, 176]) - 0.5, atol=1e-3), source


@pytest.mark.parametrize(
    ("source", "layer", "head", "resolution", "parts"),
    [
        ("random:alexnet,fc=8", "conv5", "fc", 6, ("fc6", "fc7")),
        ("gaussian:vgg16,fc=8", "conv5_3", "fc", 7, ("fc6", "fc7")),
        ("random:timm:test_resnet", "stage4", "c4", 14, ("stage5",)),
        ("torchvision:resnet18,weights=none", "layer3", "c4", 14, ("layer4",)),
        ("random:timm:vit_tiny_patch16_224", "block12", "mlp", 7, ()),
        ("random:timm:convnext_atto", "stage3", "mlp", 7, ()),
    ],
)
def test_every_kind_of_net_has_its_plan(source, layer, head, resolution, parts):
    plan = plan_regions(load_backbone(source))
    assert (plan.layer, plan.head, plan.resolution, plan.parts) == (layer, head, resolution, parts)
    assert plan.stride == 16


@pytest.mark.parametrize(
    ("source", "keys", "words"),
    [
        ("random:alexnet,fc=8", {"layer": "conv9"}, "unknown layer 'conv9'"),
        ("random:alexnet,fc=8", {"layer": "conv4"}, "head fc needs layer conv5"),
        ("random:alexnet,fc=8", {"resolution": 7}, "fc6 of this backbone requires 6 × 6"),
        ("random:alexnet,fc=8", {"head": "c4"}, "this backbone is not a ResNet"),
        ("random:timm:test_resnet", {"head": "fc"}, "has no fc6"),
    ],
)
def test_what_a_net_does_not_have_is_one_sentence(source, keys, words):
    with pytest.raises(UserError, match=words):
        plan_regions(load_backbone(source), **keys)
