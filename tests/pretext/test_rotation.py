"""The rotation task against NumPy's rotations and a plain loop."""

import numpy as np
import pytest
import torch
from batches import base_batch

from crosschannel.data import ImageBatch
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import RotationConfig
from crosschannel.pretext.rotation import rotate_all, rotation_labels


@pytest.fixture
def batch(photos):
    images = torch.from_numpy(np.stack([photo[:64, 40:104] for photo in photos[:3]])).permute(0, 3, 1, 2)
    return ImageBatch(**vars(base_batch(3)), images=images)


@pytest.fixture
def rotation(narrow_net):
    torch.manual_seed(0)
    return create("rotation", RotationConfig(), NetSpec("alexnet", 3, fc=0), 64)


def test_all_four_rotations_are_numpys(batch):
    turned = rotate_all(batch.images)
    expected = [np.rot90(image, turn, (1, 2)) for turn in range(4) for image in batch.images.numpy()]
    assert np.array_equal(turned.numpy(), np.stack(expected))
    assert rotation_labels(torch.zeros(12, 4)).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_loss_and_score_are_those_of_a_loop_over_images_and_rotations(rotation, batch):
    net, task = rotation
    net.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for image in batch.images.numpy():
            for turn in range(4):
                seen = torch.from_numpy(np.rot90(image, turn, (1, 2)).copy())[None]
                logits = net(task.input.preprocess(seen))[0].double()
                loss += float(logits.logsumexp(0) - logits[turn])
                right += int(logits.argmax() == turn)
        summed, count = task.losses(net, batch)
        figures = task.metrics(task.scores(net, batch))
    assert count == 12 and summed.item() == pytest.approx(loss, rel=1e-5)
    assert figures == {"loss": pytest.approx(loss / 12, rel=1e-5), "top1": right / 12}


def test_pictures_are_rotated_back_by_the_predicted_angle(rotation, batch):
    net, task = rotation
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.out.bias[1] = 1  # it always says one quarter turn
    picture = task.pictures(net.eval(), batch)
    seen, back = picture[:64], picture[64:]
    assert picture.shape == (128, 3 * 64, 3)
    image = batch.images[1].permute(1, 2, 0).numpy()
    assert np.array_equal(seen[:, 64:128], np.rot90(image)) and np.array_equal(back[:, 64:128], image)
    assert np.array_equal(back[:, :64], np.rot90(seen[:, :64], -1))
