import errno
import multiprocessing
import os
import time

import pytest
import torch
from forked import Forked

from crosschannel import UserError
from crosschannel.data import (
    BrokenImages,
    CentreCrop,
    CropConfig,
    MemoryImages,
    Stream,
    TrainingCrops,
    load_batches,
    open_images,
)
from crosschannel.data.stream import _start_worker

CROP = CropConfig(size=24, resize=32)


@pytest.fixture(scope="module")
def images(photo_folder):
    return open_images(str(photo_folder))[0]


def load(stream, **options):
    return list(load_batches(stream, **options))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(images, workers):
    options = {"start": 30, "stop": 110, "batch": 16}
    alone = load(Stream(images, TrainingCrops(CROP), 5), **options)
    helped = load(Stream(images, TrainingCrops(CROP), 5), workers=workers, **options)
    assert len(alone) == len(helped) == 5
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices)


def test_ranks_share_a_batch_and_together_see_what_one_process_sees(images):
    stream = Stream(images, TrainingCrops(CROP), 1)
    one = load(stream, start=0, stop=96, batch=16)
    ranks = [load(stream, start=0, stop=96, batch=16, rank_slice=slice(r * 4, r * 4 + 4)) for r in range(4)]
    for step, batch in enumerate(one):
        assert torch.equal(torch.cat([ranks[r][step].images for r in range(4)]), batch.images)


def test_a_restart_in_the_middle_goes_on_where_it_stopped(images):
    stream = Stream(images, TrainingCrops(CROP), 1)
    whole = load(stream, start=0, stop=96, batch=16)
    rest = load(Stream(images, TrainingCrops(CROP), 1), start=48, stop=96, batch=16)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[3:], rest, strict=True))


def test_every_epoch_sees_every_image_once_with_new_crops(images):
    stream = Stream(images, TrainingCrops(CROP), 2)
    first, second = (load(stream, start=e * 40, stop=e * 40 + 40, batch=40)[0] for e in (0, 1))
    assert sorted(first.indices.tolist()) == sorted(second.indices.tolist()) == list(range(40))
    order = [second.indices.tolist().index(i) for i in first.indices.tolist()]
    assert not torch.equal(first.images, second.images[order])


def test_crops_are_uint8_and_channels_last(images):
    batch = load(Stream(images, TrainingCrops(CROP), 0), start=0, stop=8, batch=8)[0]
    assert batch.images.shape == (8, 3, 24, 24) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_broken_image_is_replaced_by_a_function_of_the_position(images):
    blobs = [images.read(i) for i in range(40)]
    blobs[3], blobs[17] = b"", b"text"
    damaged = MemoryImages(list(images.names), images.labels, blobs)
    runs = [load(Stream(damaged, TrainingCrops(CROP), 9), start=0, stop=80, batch=20, workers=w) for w in (0, 2)]
    for a, b in zip(*runs, strict=True):
        assert len(a.images) == 20 and torch.equal(a.images, b.images) and a.broken == b.broken
    broken = [index for batch in runs[0] for index, _ in batch.broken]
    assert set(broken) == {3, 17} and broken.count(3) >= 2  # once an epoch at least
    assert "empty" in dict(entry for batch in runs[0] for entry in batch.broken)[3]


def test_validation_leaves_a_broken_image_out(images):
    blobs = [images.read(i) for i in range(10)]
    blobs[4] = b""
    stream = Stream(MemoryImages([str(i) for i in range(10)], [0] * 10, blobs), CentreCrop(CROP.size, CROP.resize))
    batches = load(stream, start=0, stop=10, batch=5)
    assert [b.indices.tolist() for b in batches] == [[0, 1, 2, 3], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_machine_out_of_files_is_not_taken_for_broken_images(images, workers):
    class Exhausted(MemoryImages):
        def read(self, index):
            raise OSError(errno.EMFILE, "Too many open files")

    stream = Stream(Exhausted(["a"] * 9, [0] * 9, [b""] * 9), TrainingCrops(CROP), 0)
    with pytest.raises(UserError, match=r"^could not read images: .*Too many open files"):
        load(stream, start=0, stop=8, batch=4, workers=workers)


def test_too_many_broken_images_stop_the_run():
    tally = BrokenImages(limit=0.01, after=1000)
    tally.count(995, ["a.jpg"] * 5)  # half the limit at 1,000
    tally.count(90, ["b.jpg"] * 5)
    with pytest.raises(UserError, match=r"11 of 1096 .*c\.jpg"):
        tally.count(0, ["c.jpg"])
    assert (tally.seen, tally.broken) == (1095, 10)  # what was not learned from is not counted


def test_a_worker_whose_parent_died_before_it_started_ends():
    """It would wait for ever: torch's workers compare their parent with the one that they have when they start."""

    def worker():
        parent = os.getppid()
        print("begun")
        while os.getppid() == parent:
            time.sleep(0.01)
        _start_worker(0)
        print("waits for work")

    def parent():
        multiprocessing.get_context("fork").Process(target=worker).start()
        time.sleep(60)

    with Forked(parent) as child:
        child.wait_for("begun")
        child.kill()
        assert "waits for work" not in child.stderr.read()
