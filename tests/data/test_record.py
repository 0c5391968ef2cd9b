"""Records with several files, and what batches carry."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from crosschannel.config.training import CropConfig
from crosschannel.data import Batch, CentreCrop, ImageSet, Record, Stream, TrainingCrops, load_batches
from crosschannel.data.images import AnnotatedImages, MemoryImages, Names
from crosschannel.data.open import hold_out
from crosschannel.data.views import map_tensors, stack_crops


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


class FramePairs(ImageSet):
    """Two frames a record: the first has red = index, the second red = index + 100."""

    def __init__(self, count: int):
        self.names, self.labels = Names(f"clip{i}" for i in range(count)), np.arange(count)

    def files(self, index):
        return {"image": png(index), "later": png(index + 100)}

    def fields(self, index):
        return {"gap": index % 3}

    def content_key(self):
        return "frames"


@dataclass
class FrameBatch(Batch):
    frames: torch.Tensor
    gaps: torch.Tensor


@dataclass(frozen=True)
class BothFrames:
    size: int
    views = 1

    def __call__(self, record, draw):
        crop = CentreCrop(self.size, self.size)
        later = Record({"image": record.files["later"]})
        return np.stack([crop(record, draw), crop(later, draw)]), record.fields["gap"]

    @staticmethod
    def collate(samples, base):
        frames = stack_crops([frame for pair, _ in samples for frame in pair]).unflatten(0, (len(samples), 2))
        return FrameBatch(**vars(base), frames=frames, gaps=torch.tensor([gap for _, gap in samples]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_may_have_several_files_and_fields(workers):
    train, held_out = hold_out(FramePairs(30), 0.3)
    assert len(train) == 21
    for images in (train, AnnotatedImages(held_out)):
        for batch in load_batches(Stream(images, BothFrames(8)), 0, len(images), 4, workers=workers):
            clips = torch.tensor([int(images.names[i].removeprefix("clip")) for i in batch.indices.tolist()])
            assert torch.equal(batch.labels, clips) and torch.equal(batch.gaps, clips % 3)
            assert torch.equal(batch.frames[:, 0, 0, 4, 4], clips) and torch.equal(
                batch.frames[:, 1, 0, 4, 4], clips + 100
            )


def images_of(count, broken=()):
    return MemoryImages(
        [f"{i}" for i in range(count)], range(count), [b"x" if i in broken else png(i) for i in range(count)]
    )


def by_sample(stream, batch, share=slice(None), total=24, workers=0):
    """Random numbers and labels of each sample, in order."""
    by_index = {}
    for loaded in load_batches(stream, 0, total, batch, share, workers):
        rows = zip(loaded.indices.tolist(), loaded.labels.tolist(), loaded.uniforms(3).tolist(), strict=True)
        for index, label, numbers in rows:
            by_index.setdefault(index, []).append((label, numbers))
    return by_index


@pytest.mark.parametrize("seed", [None, 5])
def test_random_numbers_belong_to_the_sample(seed):
    view = TrainingCrops(CropConfig(8, 10))
    images = images_of(12)
    expected = by_sample(Stream(images, view, seed), 6, total=12)
    assert set(expected) == set(range(12)) and all(label == index for index, [(label, _)] in expected.items())
    assert len({tuple(numbers) for [(_, numbers)] in expected.values()}) == 12
    for batch, workers in ((4, 0), (12, 0), (6, 2)):
        assert by_sample(Stream(images, view, seed), batch, total=12, workers=workers) == expected
    halves = [by_sample(Stream(images, view, seed), 6, part, 12) for part in (slice(0, 3), slice(3, 6))]
    assert {**halves[0], **halves[1]} == expected


def test_a_broken_image_changes_the_numbers_of_no_other_sample():
    view, damaged = TrainingCrops(CropConfig(8, 10)), images_of(12, broken=(7,))
    for seed in (None, 5):
        expected = by_sample(Stream(images_of(12), view, seed), 6, total=12)
        found = by_sample(Stream(damaged, view, seed), 6, total=12)
        assert all(found[index][0] == expected[index][0] or len(found[index]) > 1 for index in found)
        same = [index for index in found if expected[index][0] in found[index]]
        assert same == [index for index in found] and 7 not in found
    assert {len(v) for v in found.values()} == {1, 2}  # in training another image takes its place


def test_random_numbers_differ_between_epochs():
    drawn = by_sample(Stream(images_of(12), TrainingCrops(CropConfig(8, 10)), 5), 6, total=24)
    assert all(first != second for [(_, first), (_, second)] in drawn.values())


def test_uniforms_are_in_range_and_uncorrelated():
    batch = next(load_batches(Stream(images_of(40), TrainingCrops(CropConfig(8, 10)), 1), 0, 4000, 4000))
    numbers = batch.uniforms(2)
    assert numbers.shape == (4000, 2) and numbers.min() >= 0 and numbers.max() < 1
    assert numbers.mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert abs(np.corrcoef(numbers.T.numpy())[0, 1]) < 0.05


def test_map_tensors_leaves_other_fields_and_the_input_unchanged():
    batch = FrameBatch(
        torch.arange(2), torch.arange(2), torch.arange(2), [(3, "broken")], torch.ones(2, 2), torch.ones(2)
    )
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert isinstance(doubled, FrameBatch) and doubled.broken == [(3, "broken")] and doubled.frames.sum() == 8
    assert batch.frames.sum() == 4
