"""Crops of evaluations: ten of them, other interpolations, and the order of a stream without its pixels."""

import io
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from crosschannel.data import CropConfig, MemoryImages, Stream, TenCrops, TrainingCrops, load_batches, open_images
from crosschannel.data.crops import crop_and_resize
from crosschannel.data.decode import EncodedImage
from crosschannel.data.images import Subset
from crosschannel.data.views import IndexOnly


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def two():
    """Two images of 10 × 14 noise, which crops of 8 from 10 copy pixel by pixel."""
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (10, 14, 3), dtype=np.uint8) for _ in range(2)]
    return pixels, MemoryImages(["a.png", "b.png"], [0, 1], [png(p) for p in pixels], ("a", "b"))


def test_ten_crops_are_corners_centre_and_their_mirrors(two):
    pixels, images = two
    stream = Stream(images, TenCrops(8, 10))
    batches = list(load_batches(stream, 0, 20, 10))
    for image, batch in zip(pixels, batches, strict=True):
        expected = [image[t : t + 8, x : x + 8] for t, x in ((0, 0), (0, 6), (2, 0), (2, 6), (1, 3))]
        expected += [crop[:, ::-1] for crop in expected]
        assert torch.equal(batch.images, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert [batch.indices.tolist() for batch in batches] == [[0] * 10, [1] * 10]


def test_interpolation_is_torchs(two):
    pixels, _ = two
    for mode in ("bilinear", "bicubic"):
        ours = crop_and_resize(EncodedImage(png(pixels[0])), (0, 0, 10, 10), 6, interpolation=mode)
        batch = torch.from_numpy(pixels[0][:, :10]).permute(2, 0, 1)[None].float()
        theirs = torch.nn.functional.interpolate(batch, (6, 6), mode=mode, antialias=True).clamp(0, 255)
        assert np.abs(ours.astype(int) - theirs[0].permute(1, 2, 0).numpy()).max() <= 1.01


def test_an_index_stream_has_the_order_of_the_stream_it_stands_for(photo_folder):
    images = open_images(str(photo_folder))[0]
    pixels, order = (
        list(load_batches(Stream(images, view, 3), 16, 96, 16))
        for view in (TrainingCrops(CropConfig(8, 10)), IndexOnly())
    )
    assert [b.indices.tolist() for b in pixels] == [b.indices.tolist() for b in order]


def test_the_content_key_follows_the_images(photo_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(photo_folder / "train", folder)  # times of change are copied
    keys = [open_images(str(folder))[0].content_key() for _ in range(2)]
    assert keys[0] == keys[1]
    picture = next(open_images(str(folder))[0].names.__iter__())
    stat = (folder / picture).stat()
    os.utime(folder / picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert open_images(str(folder))[0].content_key() != keys[0]

    memory = [MemoryImages(["a"], [0], [blob]) for blob in (b"1", b"1", b"2")]
    assert memory[0].content_key() == memory[1].content_key() != memory[2].content_key()
    both = MemoryImages(["a", "b"], [0, 0], [b"1", b"2"])
    parts = [Subset(both, np.array(indices)).content_key() for indices in ([0], [1], [0])]
    assert parts[0] == parts[2] != parts[1]


def test_the_content_key_of_shards_follows_the_shards(photo_folder, tmp_path):
    from crosschannel.cli import main

    assert main(["shard", str(photo_folder), str(tmp_path / "shards")]) == 0
    key = open_images(str(tmp_path / "shards"))[0].content_key()
    assert open_images(str(tmp_path / "shards"))[0].content_key() == key
    shard = next((tmp_path / "shards").glob("*train*.tar"))
    os.utime(shard, ns=(1, 1))
    assert open_images(str(tmp_path / "shards"))[0].content_key() != key
