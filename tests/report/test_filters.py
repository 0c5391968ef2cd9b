import numpy as np
import pytest
import torch
from torch import nn

from crosschannel import UserError
from crosschannel.models import AlexNet, Backbone, InputSpec
from crosschannel.models.module_net import ModuleNet
from crosschannel.report import filter_picture


def backbone(kind: str) -> Backbone:
    spec = InputSpec(kind)
    net = AlexNet(in_channels=spec.channels, fc=0)
    nn.init.zeros_(net.conv1.conv.weight)
    return Backbone(net, spec)


def tile(picture: np.ndarray, number: int, columns: int, side: int) -> np.ndarray:
    y, x = divmod(number, columns)
    return picture[y * side : (y + 1) * side - 1, x * side : (x + 1) * side - 1]


def test_weights_are_where_they_belong_and_zero_is_mid_grey():
    net = backbone("grey")
    net.net.conv1.conv.weight.data[17, 0, 2, 3] = 0.5
    net.net.conv1.conv.weight.data[17, 0, 10, 0] = -0.25
    picture = np.asarray(filter_picture(net, columns=10, zoom=2))
    assert picture.shape == (10 * 23, 10 * 23, 3)
    found = tile(picture, 17, 10, 23)
    assert (found[4:6, 6:8] == 255).all() and (found[20:22, 0:2] == 64).all()
    assert (tile(picture, 16, 10, 23) == 128).all()
    assert (tile(picture, 99, 10, 23) == 230).all()  # 96 filters only


def test_lab_filters_have_the_colours_that_excite_them():
    net = backbone("lab")
    net.net.conv1.conv.weight.data[0, 0] = 1  # lightness
    net.net.conv1.conv.weight.data[1, 2] = 1  # b: yellow
    net.net.conv1.conv.weight.data[2, 2] = -1  # blue
    picture = np.asarray(filter_picture(net, columns=8, zoom=1)).astype(int)
    light, yellow, blue = (tile(picture, i, 8, 12)[5, 5] for i in range(3))
    assert light.min() > 250 and np.ptp(light) <= 1
    assert yellow[0] > yellow[2] + 60 and blue[2] > blue[0] + 60


def test_rgb_filters_are_shown_as_they_are():
    net = backbone("rgb")
    net.net.conv1.conv.weight.data[0] = torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    assert list(np.asarray(filter_picture(net, zoom=1))[0, 0]) == [255, 128, 0]


def test_nets_without_such_a_layer_are_refused():
    with pytest.raises(UserError, match="cannot draw filters"):
        filter_picture(Backbone(ModuleNet(nn.Sequential(nn.Linear(3, 3))), InputSpec("rgb")))
