"""In-memory images (arrays, tensors, Pillow images, PyTorch datasets) as an ImageSet."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from crosschannel.data.decode import to_rgb
from crosschannel.data.images import ImageSet, Names
from crosschannel.errors import UserError, describe, wrap_external_errors

_PIXELS = "uint8 pixels or floats in [0, 1], (N, H, W, 3) or (N, 3, H, W)"
_TOLERANCE = 1e-3  # for resized floats outside [0, 1]


class PixelImages(ImageSet):
    """An ImageSet of pictures in memory or computed by index; each is losslessly encoded when it is read.

    Args:
        picture: function from index to (H, W, 3) uint8.
        names: unique image names.
        labels: class indices, (n,), or (n, classes).
        classes: class names.
    """

    def __init__(self, picture: Callable[[int], np.ndarray], names: Sequence[str], labels: np.ndarray, classes=()):
        if labels.ndim == 2 and not classes:
            classes = map(str, range(labels.shape[1]))
        self.names, self.labels, self.classes = Names(names), labels, tuple(classes)
        self._picture = picture

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self._picture(index)).save(buffer, "BMP")
        return buffer.getvalue()

    def content_key(self) -> str:
        return sha256(b"".join(sha256(self.read(index)).digest() for index in range(len(self)))).hexdigest()


def _checked(images: ImageSet, part: str) -> ImageSet:
    """An ImageSet of the user's; lists of names and labels are converted.

    Raises:
        UserError: it lacks names or labels, these differ in length, or it is empty.
    """
    names, labels = getattr(images, "names", None), getattr(images, "labels", None)
    if names is None or labels is None:
        lacking = "names" if names is None else "labels"
        raise UserError(f"{part}: {type(images).__name__} has no {lacking}, which an ImageSet must have")
    if not isinstance(names, Names):
        images.names = Names(map(str, names))
    if not isinstance(labels, np.ndarray):
        images.labels = np.asarray(labels, np.int64)
    if not len(images) or len(images.labels) != len(images.names):
        raise UserError(
            f"{part}: {type(images).__name__} has {len(images.names)} names and {len(images.labels)} labels"
        )
    return images


def holds_images(value: object) -> bool:
    """Whether a value looks like images for :func:`as_image_set`, which may still refuse its contents."""
    return isinstance(value, ImageSet) or _is_dataset(value) or _is_labelled(value)


def as_image_set(value: Any, part: str = "images") -> ImageSet:
    """Convert in-memory images to an ImageSet.

    Args:
        value: an ImageSet; a pair (images, labels) whose images are an array, a tensor or a list of pictures; or a
            map-style PyTorch dataset, or a list, of (image, label). A picture is a Pillow image, or uint8 or floats in
            [0, 1] of shape (H, W, 3), (3, H, W), (H, W) or (1, H, W). Labels are class indices, (n,), or (n, classes).
        part: name of the images, such as "train", for image names and messages.

    Raises:
        UserError: any other value.
    """
    if isinstance(value, ImageSet):
        return _checked(value, part)
    if holds_images(value):
        images = _from_dataset(value, part) if _is_dataset(value) else _from_pair(*value, part)
        if not len(images):
            raise UserError(f"{part}: no images")
        images.read(0)  # refuse invalid pictures at once
        return images
    raise UserError(
        f"{part} must be an ImageSet, (images, labels) or a map-style Dataset of (image, label), got {describe(value)}"
    )


def _is_dataset(value: object) -> bool:
    if isinstance(value, Dataset):
        return not isinstance(value, IterableDataset) and hasattr(value, "__len__")
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_example, value))


def _is_example(value: object) -> bool:
    """Whether a value is (image, label)."""
    return (
        isinstance(value, list | tuple) and len(value) == 2 and np.ndim(_array(value[1])) == 0 and _is_picture(value[0])
    )


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim in (2, 3))


def _is_labelled(value: object) -> bool:
    """Whether a value is (images, labels)."""
    if not (isinstance(value, list | tuple) and len(value) == 2):
        return False
    images, labels = value
    are_labels = isinstance(labels, Tensor | np.ndarray) and labels.ndim in (1, 2)
    are_labels |= isinstance(labels, list | tuple | range) and not any(_is_picture(label) for label in labels)
    return are_labels and (isinstance(images, Tensor | np.ndarray) or _is_list_of_pictures(images))


def _is_list_of_pictures(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_picture, value))


def _from_pair(images: Any, labels: Any, part: str) -> PixelImages:
    """Image set of (images, labels). Names contain a digest of the pixels, so that a resumed run detects changes."""
    labels = _labels(labels, part)
    if len(labels) != len(images):
        raise UserError(f"{part}: {len(images)} images and {len(labels)} labels")
    if isinstance(images, Tensor | np.ndarray):
        images = _channels_last(images, part)
    picture = partial(_picture, images, part)
    digests = (blake2b(picture(i).tobytes(), digest_size=4).hexdigest() for i in range(len(images)))
    return PixelImages(picture, [f"{i:06d}-{digest}" for i, digest in enumerate(digests)], labels)


def _from_dataset(dataset: Any, part: str) -> PixelImages:
    """Image set of a dataset of (image, label), whose images are read on demand."""
    labels = _dataset_labels(dataset, part)
    classes = getattr(dataset, "classes", ())
    is_named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    count = labels.shape[1] if labels.ndim == 2 else labels.max(initial=-1) + 1
    if not is_named or len(classes) < count:
        classes = ()
    names = [f"{part}/{i:06d}" for i in range(len(labels))]
    return PixelImages(partial(_dataset_picture, dataset, part), names, labels, classes)


def _dataset_labels(dataset: Any, part: str) -> np.ndarray:
    """Labels of a dataset: its ``targets`` or ``labels``, as in torchvision, if they match its items; else its items'.

    Raises:
        UserError: an item is not (image, label).
    """
    if type(dataset) is Subset:
        return _dataset_labels(dataset.dataset, part)[np.asarray(dataset.indices, np.int64)]
    count = len(dataset)
    for name in ("targets", "labels"):
        label_array = _array(getattr(dataset, name, None))
        if np.ndim(label_array) in (1, 2) and len(label_array) == count and label_array.dtype.kind in "iu":
            ends = sorted({0, count - 1}) if count else []
            if all(np.array_equal(label_array[i], _array(_example(dataset, i, part)[1])) for i in ends):
                return label_array.astype(np.int64)
    return _labels([_array(_example(dataset, i, part)[1]) for i in range(count)], part)


def _example(dataset: Any, index: int, part: str) -> tuple[Any, Any]:
    with wrap_external_errors(f"{part}: item {index} of {type(dataset).__name__} cannot be read"):
        example = dataset[index]
    if not (isinstance(example, list | tuple) and len(example) == 2):
        raise UserError(f"{part}: item {index} of {type(dataset).__name__} is not (image, label): {describe(example)}")
    return example


def _dataset_picture(dataset: Any, part: str, index: int) -> np.ndarray:
    return _pixels(_example(dataset, index, part)[0], f"{part}: image {index}")


def _picture(images: Any, part: str, index: int) -> np.ndarray:
    return _pixels(images[index], f"{part}: image {index}")


def _labels(labels: Any, part: str) -> np.ndarray:
    """Convert labels to int64, (n,) or (n, classes)."""
    array = _array(labels)
    if array is None or array.ndim not in (1, 2) or (array.size and array.dtype.kind not in "iu"):
        kind = "of different lengths" if array is None else f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{part}: labels are class numbers (n,), whole numbers from 0, or (n, classes); got {kind}")
    return array.astype(np.int64)


def _array(value: Any) -> np.ndarray | None:
    """Convert a value to an array; None for ragged values and other objects."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    return None if array.dtype == object else array


def _channels_last(images: Any, part: str) -> np.ndarray:
    """Convert a batch to (N, H, W, 3) or (N, H, W).

    If a shape fits both layouts, tensors are channels-first and arrays channels-last.
    """
    pixels = _array(images)
    is_tensor = isinstance(images, Tensor)
    if pixels.ndim == 4 and 3 in (pixels.shape[1], pixels.shape[3]):
        channels_first = pixels.shape[1] == 3 and (is_tensor or pixels.shape[3] != 3)
        return pixels.transpose(0, 2, 3, 1) if channels_first else pixels
    if pixels.ndim == 4 and 1 in (pixels.shape[1], pixels.shape[3]):
        return pixels[:, 0] if pixels.shape[1] == 1 and (is_tensor or pixels.shape[3] != 1) else pixels[..., 0]
    if pixels.ndim == 3:
        return pixels
    raise UserError(f"{part} must be {_PIXELS}; got {pixels.dtype} of shape {pixels.shape}")


def _pixels(picture: Any, name: str) -> np.ndarray:
    """Convert a picture to (H, W, 3) uint8.

    Raises:
        UserError: the value is not a picture.
    """
    if isinstance(picture, Image.Image):
        return np.array(to_rgb(picture))
    if not isinstance(picture, Tensor | np.ndarray):
        raise UserError(f"{name} must be a Pillow image, an array or a tensor, got {describe(picture)}")
    pixels = picture if picture.ndim == 2 else _channels_last(picture[None], name)[0]
    pixels = _array(pixels)
    if pixels.dtype.kind == "f":
        if not (pixels.size and pixels.min() >= -_TOLERANCE and pixels.max() <= 1 + _TOLERANCE):  # or NaN
            low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
            raise UserError(
                f"{name} has floats from {low:.3g} to {high:.3g}: give RGB in [0, 1], not normalised, or uint8"
            )
        pixels = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8 or not pixels.size:
        raise UserError(f"{name} must be uint8 or floats in [0, 1], got {pixels.dtype} of shape {pixels.shape}")
    return np.ascontiguousarray(np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels)
