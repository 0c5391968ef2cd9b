"""Where logits sit: what is predicted for a pixel is read from the map at that very pixel."""

import pytest
import torch
from torch import nn

from crosschannel.models import NetSpec, family
from crosschannel.pretext.nets import build_pretext, interpolation


@pytest.mark.parametrize(("stride", "head_stride", "origin"), [(8, 16, 0.0), (8, 16, 7.5), (8, 32, 0.0), (8, 16, 3.0)])
def test_interpolation_reads_a_ramp_at_the_pixel_of_every_target(stride, head_stride, origin):
    points = origin + head_stride * torch.arange(12.0)  # value = pixel
    read = interpolation(20, 12, stride, head_stride, origin) @ points
    assert torch.allclose(read, (stride * torch.arange(20.0)).clamp(origin, points[-1]), atol=1e-4)


def test_between_corner_aligned_grids_it_is_torchs_bilinear():
    x = torch.randn(2, 3, 12, 12)
    matrix = interpolation(23, 12, 8, 16, 0.0)
    expected = nn.functional.interpolate(x, (23, 23), mode="bilinear", align_corners=True)
    assert torch.allclose(matrix @ x @ matrix.T, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_the_first_point_of_the_last_map_is_where_the_table_says(name):
    """The input's influence on a middle point of the last map is centred on origin + stride · index."""
    torch.manual_seed(0)
    pretext = build_pretext(NetSpec(name, **family(name).supported_options(fc=0, norm=False)), 1, 160).eval()
    for module in pretext.net.modules():  # a net that adds up what it sees has its influence in the open
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
            module.weight.data.div_(module.weight[0].numel())
    for layer, module in list(pretext.net.named_children()):
        if isinstance(module, nn.MaxPool2d):
            geometry = (module.kernel_size, module.stride, module.padding)
            setattr(pretext.net, layer, nn.AvgPool2d(*geometry, ceil_mode=True, count_include_pad=False))
    x = torch.ones(1, 1, 160, 160, requires_grad=True)
    features = pretext.net(x)
    index = features.shape[2] // 2
    if "vit" in name:  # attention sees everything: look at the patch embedding alone
        features = pretext.net.model.patch_embed(x).transpose(1, 2).unflatten(2, (10, 10))
    features[0, :, index, index].sum().backward()
    mass = x.grad[0, 0].abs()
    mass = mass / mass.sum()
    centre = (mass.sum(1) @ torch.arange(160.0)).item()
    expected = pretext.origin + pretext.head_stride * index
    assert centre == pytest.approx(expected, abs=0.6 if "resnet" not in name else 4)


@pytest.mark.parametrize("name", ["timm:convnext_atto", "timm:swin_tiny_patch4_window7_224", "timm:resnet18"])
def test_nets_of_patches_and_of_odd_kernels_are_told_apart(name):
    """With random weights and images a middle point's influence scatters around its place, by less than half a step."""
    torch.manual_seed(0)
    pretext = build_pretext(NetSpec(name), 1, 224).eval()
    x = torch.randn(4, 1, 224, 224, requires_grad=True)
    features = pretext.net(x)
    index = features.shape[2] // 2
    features[:, :, index, index].square().sum().backward()
    mass = x.grad.square().sum((0, 1))
    centre = (mass.sum(1) @ torch.arange(224.0) / mass.sum()).item()
    assert centre == pytest.approx(pretext.origin + pretext.head_stride * index, abs=4)


@pytest.mark.parametrize(("name", "unused"), [("timm:vit_tiny_patch16_224", False), ("timm:convnext_atto", True)])
def test_every_trained_parameter_gets_a_gradient(name, unused):
    """DDP refuses nets in which some do not."""
    pretext = build_pretext(NetSpec(name), 4, 64)
    pretext(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in pretext.parameters() if p.requires_grad)
    assert pretext.training and unused == (not all(p.requires_grad for p in pretext.parameters()))
