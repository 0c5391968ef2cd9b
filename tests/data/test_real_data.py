"""The input path on real data sets, where they are at hand."""

import io

import numpy as np
import torch
from PIL import Image

from crosschannel.color import load_prior, rebalancing_weights
from crosschannel.data import CentreCrop, CropConfig, Stream, TrainingCrops, load_batches, open_images
from crosschannel.data.decode import decode


def test_imagenette_is_read_whole(real_data):
    train, val = open_images(str(real_data / "imagenette"))
    assert (len(train), len(val)) == (6000, 1000)
    assert np.bincount(train.labels).tolist() == [600] * 10 and np.bincount(val.labels).tolist() == [100] * 10
    batches = list(load_batches(Stream(train, TrainingCrops(CropConfig(64, 72)), 0), 0, 512, 128, workers=2))
    assert sum(len(b.images) for b in batches) == 512 and not any(b.broken for b in batches)


def test_raw_photographs_decode_as_pillow_decodes_them(real_data):
    train, val = open_images(str(real_data / "imagenet-full"))
    for images in (train, val):
        for i in range(0, len(images), 8):
            data = images.read(i)
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
            ours = decode(data)
            assert ours.shape == expected.shape and np.abs(ours - expected).mean() < 1


def test_the_packaged_prior_fits_other_photographs(real_data):
    """Its expected weight on images that it was not estimated from is near 1, as it is on its own."""
    from crosschannel.color import ABQuantizer, rgb_to_lab

    _, val = open_images(str(real_data / "imagenette"))
    weights, total = rebalancing_weights(load_prior().smoothed), []
    for batch in load_batches(Stream(val, CentreCrop(64, 64)), 0, 1000, 100):
        indices, _ = ABQuantizer(1).encode(rgb_to_lab(batch.images)[:, 1:, ::4, ::4])
        total.append(weights[indices].mean())
    assert 0.7 < torch.stack(total).mean() < 1.4
