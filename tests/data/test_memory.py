"""In-memory images: every form gives the same pixels and labels, and invalid images are refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from crosschannel import ImageSet, UserError
from crosschannel.data import MemoryImages
from crosschannel.data.decode import decode
from crosschannel.data.memory import as_image_set

X = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


class Examples(Dataset):
    """A dataset like torchvision's CIFAR10, with a transform."""

    classes = ("ant", "bee", "cat")

    def __init__(self, transform=Image.fromarray):
        self.transform, self.targets = transform, Y.tolist()

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return self.transform(X[index]), int(Y[index])


class WrongTargets(Examples):
    """A dataset whose ``targets`` differ from the labels of its items."""

    def __init__(self):
        super().__init__()
        self.targets = (Y + 1).tolist()


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    "value",
    [
        (X, Y),
        [X, Y.tolist()],
        (X.transpose(0, 3, 1, 2), Y),
        (torch.from_numpy(X), torch.from_numpy(Y)),
        (torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(Y).short()),
        (X / 255, Y),
        (torch.stack([to_tensor(x) for x in X]), Y),
        ((X / 255).astype(np.float32) * 1.0001, Y),
        ([Image.fromarray(x) for x in X], Y.tolist()),
        (list(X), range(6)),
        ([Image.fromarray(x).convert("RGBA") for x in X], Y),
        Examples(),
        Examples(to_tensor),
        Examples(lambda x: x),
        WrongTargets(),
        Subset(Examples(), range(6)),
        [(Image.fromarray(x), int(y)) for x, y in zip(X, Y, strict=True)],
        [(to_tensor(x), torch.tensor(y)) for x, y in zip(X, Y, strict=True)],
    ],
)
def test_every_form_gives_its_pixels_and_labels(value):
    images = as_image_set(value)
    assert isinstance(images, ImageSet) and len(images) == len(set(images.names)) == 6
    assert all(np.array_equal(decode(images.read(i)), X[i]) for i in range(6))
    labels = range(6) if isinstance(value, tuple) and isinstance(value[1], range) else Y
    assert images.labels.tolist() == list(labels) == [images.label(i) for i in range(6)]
    assert images.content_key() == as_image_set((X, Y)).content_key()


@pytest.mark.parametrize("grey", [X[..., 0], X[:, None, :, :, 0], X[..., :1], torch.from_numpy(X[:, None, :, :, 0])])
def test_grey_images_have_three_equal_channels(grey):
    assert np.array_equal(decode(as_image_set((grey, Y)).read(2)), np.stack([X[2, ..., 0]] * 3, -1))


def test_a_shape_that_fits_both_layouts_is_read_as_its_library_does():
    small = X[:, :3, :3]
    for pixels in (small, torch.from_numpy(small).permute(0, 3, 1, 2)):
        assert np.array_equal(decode(as_image_set((pixels, Y)).read(1)), small[1])


def test_names_and_classes():
    assert as_image_set(Examples()).classes == Examples.classes
    assert as_image_set((X, np.eye(3, dtype=int)[Y])).classes == ("0", "1", "2")
    first, other = as_image_set((X, Y)), as_image_set((255 - X, Y))
    assert list(first.names) == list(as_image_set((X, Y)).names) and not set(first.names) & set(other.names)


def test_an_image_set_is_returned_unchanged():
    images: ImageSet = MemoryImages(["a"], [0], [b"x"])
    assert as_image_set(images) is images


class Unreadable(Examples):
    def __getitem__(self, index):
        raise OSError("no disk")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got None"),
        (X, "got numpy.ndarray of shape"),
        ((X, X), "got tuple"),
        ((X, None), "got tuple"),
        (Examples, r"the class Examples \(pass an instance\)"),
        ((X, Y[:3]), "6 images and 3 labels"),
        ((X[:0], Y[:0]), "images: no images"),
        ((X, Y / 2), "labels must be integer class indices"),
        ((X, ["a"] * 6), "labels must be integer class indices"),
        ((X, [[0], [0, 1], [], [], [], []]), "labels must be integer class indices"),
        ((X.astype(int), Y), "image 0 must be uint8 or floats"),
        ((X > 9, Y), "image 0 must be uint8 or floats"),
        ((X.astype(float), Y), "floats from 0 to 255; pass RGB"),
        ((X / 128 - 1, Y), "before normalisation"),
        ((X * np.nan, Y), "before normalisation"),
        ((np.zeros((6, 8, 8, 4), np.uint8), Y), r"got uint8 of shape \(6, 8, 8, 4\)"),
        ((X.reshape(6, -1), Y), "images must be uint8 or floats"),
        (Unreadable(), "could not read item 0 of Unreadable: OSError: no disk"),
        (Examples(lambda x: {"pixels": x}), "a Pillow image, an array or a tensor, got dict"),
        (Examples(lambda x: to_tensor(x) * 4 - 2), "before normalisation"),
    ],
)
def test_invalid_images_are_refused(value, message):
    with pytest.raises(UserError, match=message):
        as_image_set(value, "images")
