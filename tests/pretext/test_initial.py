"""What pretraining starts from."""

import copy

import pytest
import torch
from batches import base_batch

from crosschannel import load_backbone
from crosschannel.data import CropConfig, ImageBatch, MemoryImages
from crosschannel.models import InputSpec, NetSpec
from crosschannel.models import initialisation as init
from crosschannel.pretext import create, pretraining
from crosschannel.pretext.config import ColorizationConfig
from crosschannel.pretext.start import convert_input
from crosschannel.training.ranks import World


@pytest.fixture
def asked(monkeypatch, photos):
    """What the loader of crops was asked for; it gives two batches. Any filters will do."""
    found = []

    def loader(stream, first, count, batch):
        found.append((first, count, batch))
        for photo in photos[:2]:
            crops = [torch.from_numpy(photo[y : y + 64, :64].copy()).permute(2, 0, 1) for y in range(0, 128, 16)]
            yield ImageBatch(**vars(base_batch(8)), images=torch.stack(crops))

    monkeypatch.setattr(pretraining, "load_batches", loader)
    monkeypatch.setattr(init, "_centres", lambda patches, k, seed: patches[:k])
    return found


def task(tmp_path, initial: str) -> pretraining.Pretraining:
    torch.manual_seed(0)
    net, pretext = create("colorization", ColorizationConfig(), NetSpec("alexnet", fc=24))
    world, nothing = World(0, 1, torch.device("cpu")), MemoryImages([], [], [])
    return pretraining.Pretraining(net, pretext, nothing, CropConfig(64, 64), world, initial)


def test_kmeans_starts_the_convolutions_alone_and_the_classifier_from_zeros(asked, tmp_path):
    it = task(tmp_path, "kmeans")
    before = {name: value.clone() for name, value in it.net.named_parameters()}
    assert it.initialise(None)  # it took a while, and is saved
    assert asked == [(0, 800, 80)]  # ten batches of 80 crops
    for name, value in it.net.named_parameters():
        if name.startswith("head."):
            assert not value.any(), name
        elif "fc" in name:  # N(0, .005), biases 1
            assert torch.equal(value, before[name]) and ("weight" in name or (value == 1).all()), name
        elif "weight" in name:
            assert not torch.equal(value, before[name]), name


def test_another_start_leaves_the_classifier(asked, tmp_path):
    it = task(tmp_path, "unit-variance")
    assert it.initialise(None) and it.net.head.out.weight.any()
    assert not task(tmp_path, "default").initialise(None)


def test_rgb_weights_see_grey_as_they_saw_grey_pictures():
    """A first convolution of one channel gives what that of RGB gives of a grey picture, up to the mean's shift."""
    rgb = load_backbone("torchvision:vgg16,weights=none")
    conv = copy.deepcopy(rgb.net.conv1_1.conv)
    narrow = convert_input(InputSpec("intensity"), rgb).net.conv1_1.conv
    one, two = (torch.full((1, 1, 8, 8), value) for value in (0.2, 0.7))
    pictures = [rgb.preprocess(x.expand(-1, 3, -1, -1)) for x in (one, two)]
    assert torch.allclose(conv(pictures[1]) - conv(pictures[0]), narrow(two) - narrow(one), atol=1e-5)
