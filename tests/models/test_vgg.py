import torch
import torchvision

from crosschannel.models import VGG16
from crosschannel.models.module_net import ModuleNet

PLACES = {
    "conv1_1": 1, "conv1_2": 3, "pool1": 4, "conv2_1": 6, "conv2_2": 8, "pool2": 9, "conv3_1": 11, "conv3_2": 13,
    "conv3_3": 15, "pool3": 16, "conv4_1": 18, "conv4_2": 20, "conv4_3": 22, "pool4": 23, "conv5_1": 25, "conv5_2": 27,
    "conv5_3": 29,
}  # fmt: skip


def test_it_is_torchvisions_vgg16_up_to_conv5_3():
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None, init_weights=False).eval()
    ours = VGG16(in_channels=3, norm=False).eval()
    source = [t for name, t in theirs.state_dict().items() if name.startswith("features")]
    for own, other in zip(ours.state_dict().values(), source, strict=True):
        own.copy_(other)
    x = torch.randn(1, 3, 90, 64)  # torchvision's pools round down
    with torch.no_grad():
        named = ModuleNet(theirs, {name: f"features.{place}" for name, place in PLACES.items()})
        maps = ours.forward_features(x, ours.layers)
        expected = named.forward_features(x, ours.layers)
    assert list(maps) == list(expected) == list(ours.layers)
    for name in ours.layers:
        assert torch.allclose(maps[name], expected[name], atol=1e-5), name
