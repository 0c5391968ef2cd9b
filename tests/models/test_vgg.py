import torch
import torchvision

from crosschannel.models import VGG16
from crosschannel.models.wrapped import TORCHVISION_LAYERS, ModuleNet


def test_it_is_torchvisions_vgg16_up_to_conv5_3():
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None, init_weights=False).eval()
    ours = VGG16(in_channels=3, norm=False).eval()
    source = [t for name, t in theirs.state_dict().items() if name.startswith("features")]
    for own, other in zip(ours.state_dict().values(), source, strict=True):
        own.copy_(other)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        named = ModuleNet(theirs, TORCHVISION_LAYERS["vgg16"])
        maps = ours.forward_features(x, ours.layers)
        expected = named.forward_features(x, ours.layers)
    assert list(maps) == list(expected) == list(ours.layers)
    for name in ours.layers:
        assert torch.allclose(maps[name], expected[name], atol=1e-5), name
