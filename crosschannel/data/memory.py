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

_PIXELS = "uint8 or floats in [0, 1], of shape (N, H, W, 3) or (N, 3, H, W)"
_TOLERANCE = 1e-3  # resizing may move floats slightly out of [0, 1]


class PixelImages(ImageSet):
    """An ImageSet of decoded images, in memory or computed by index. Reading an image encodes it losslessly.

    Args:
        load_pixels: function that returns the pixels of an image by index, (H, W, 3) uint8.
        names: unique image names.
        labels: class indices, (n,), or multi-label rows, (n, classes).
        classes: class names in label order.
    """

    def __init__(self, load_pixels: Callable[[int], np.ndarray], names: Sequence[str], labels: np.ndarray, classes=()):
        if labels.ndim == 2 and not classes:
            classes = map(str, range(labels.shape[1]))
        self.names, self.labels, self.classes = Names(names), labels, tuple(classes)
        self._load_pixels = load_pixels

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self._load_pixels(index)).save(buffer, "BMP")
        return buffer.getvalue()

    def content_key(self) -> str:
        return sha256(b"".join(sha256(self.read(index)).digest() for index in range(len(self)))).hexdigest()


def _check_image_set(images: ImageSet, name: str) -> ImageSet:
    """Check a user-defined ImageSet, and convert its names and labels if they are lists.

    Raises:
        UserError: names or labels are missing or differ in length, or the set is empty.
    """
    names, labels = getattr(images, "names", None), getattr(images, "labels", None)
    if names is None or labels is None:
        missing = "names" if names is None else "labels"
        raise UserError(f"{name}: {type(images).__name__} has no {missing}, which an ImageSet requires")
    if not isinstance(names, Names):
        images.names = Names(map(str, names))
    if not isinstance(labels, np.ndarray):
        images.labels = np.asarray(labels, np.int64)
    if not len(images) or len(images.labels) != len(images.names):
        raise UserError(
            f"{name}: {type(images).__name__} has {len(images.names)} names and {len(images.labels)} labels; "
            "every image needs a name and a label"
        )
    return images


def holds_images(value: object) -> bool:
    """Whether :func:`as_image_set` supports the type of a value; its contents may still be invalid."""
    return isinstance(value, ImageSet) or _is_dataset(value) or _is_pair(value)


def as_image_set(value: Any, name: str = "images") -> ImageSet:
    """Convert in-memory images to an ImageSet.

    Args:
        value: an ImageSet; a pair (images, labels) whose images are an array, a tensor or a list of images; or a
            map-style PyTorch dataset, or a list, of (image, label). An image is a Pillow image, or an array or tensor,
            uint8 or floats in [0, 1], of shape (H, W, 3), (3, H, W), (H, W) or (1, H, W). Labels are class indices,
            (n,), or multi-label rows, (n, classes).
        name: name of the set, such as "train", for image names and error messages.

    Raises:
        UserError: the value has another type, or its images or labels are invalid.
    """
    if isinstance(value, ImageSet):
        return _check_image_set(value, name)
    if holds_images(value):
        images = _from_dataset(value, name) if _is_dataset(value) else _from_pair(*value, name)
        if not len(images):
            raise UserError(f"{name}: no images")
        images.read(0)  # fail early if the images are invalid
        return images
    raise UserError(
        f"{name} must be an ImageSet, (images, labels) or a map-style Dataset of (image, label), got {describe(value)}"
    )


def _is_dataset(value: object) -> bool:
    if isinstance(value, Dataset):
        return not isinstance(value, IterableDataset) and hasattr(value, "__len__")
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_example, value))


def _is_example(value: object) -> bool:
    """Whether a value is (image, label)."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and np.ndim(_as_array(value[1])) == 0
        and _is_image(value[0])
    )


def _is_image(value: object) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim in (2, 3))


def _is_pair(value: object) -> bool:
    """Whether a value is (images, labels)."""
    if not (isinstance(value, list | tuple) and len(value) == 2):
        return False
    images, labels = value
    has_labels = isinstance(labels, Tensor | np.ndarray) and labels.ndim in (1, 2)
    has_labels |= isinstance(labels, list | tuple | range) and not any(_is_image(label) for label in labels)
    return has_labels and (isinstance(images, Tensor | np.ndarray) or _is_list_of_images(images))


def _is_list_of_images(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_image, value))


def _from_pair(images: Any, labels: Any, name: str) -> PixelImages:
    """Build an ImageSet from (images, labels). Names include a digest of the pixels, to detect changes on resume."""
    labels = _as_labels(labels, name)
    if len(labels) != len(images):
        raise UserError(f"{name}: {len(images)} images and {len(labels)} labels")
    if isinstance(images, Tensor | np.ndarray):
        images = _channels_last(images, name)
    load_pixels = partial(_load_item, images, name)
    digests = (blake2b(load_pixels(i).tobytes(), digest_size=4).hexdigest() for i in range(len(images)))
    return PixelImages(load_pixels, [f"{i:06d}-{digest}" for i, digest in enumerate(digests)], labels)


def _from_dataset(dataset: Any, name: str) -> PixelImages:
    """Build an ImageSet of a dataset of (image, label), whose images are loaded on demand."""
    labels = _dataset_labels(dataset, name)
    classes = getattr(dataset, "classes", ())
    has_class_names = isinstance(classes, list | tuple) and all(isinstance(class_name, str) for class_name in classes)
    num_classes = labels.shape[1] if labels.ndim == 2 else labels.max(initial=-1) + 1
    if not has_class_names or len(classes) < num_classes:
        classes = ()
    names = [f"{name}/{i:06d}" for i in range(len(labels))]
    return PixelImages(partial(_load_example, dataset, name), names, labels, classes)


def _dataset_labels(dataset: Any, name: str) -> np.ndarray:
    """Return the labels of a dataset.

    They are its ``targets`` or ``labels`` (as in torchvision) if the first and the last item agree with them; otherwise
    they are read from all items.

    Raises:
        UserError: an item is not (image, label).
    """
    if type(dataset) is Subset:
        return _dataset_labels(dataset.dataset, name)[np.asarray(dataset.indices, np.int64)]
    count = len(dataset)
    for attribute in ("targets", "labels"):
        label_array = _as_array(getattr(dataset, attribute, None))
        if np.ndim(label_array) in (1, 2) and len(label_array) == count and label_array.dtype.kind in "iu":
            checked_indices = sorted({0, count - 1}) if count else []
            if all(
                np.array_equal(label_array[i], _as_array(_get_example(dataset, i, name)[1])) for i in checked_indices
            ):
                return label_array.astype(np.int64)
    return _as_labels([_as_array(_get_example(dataset, i, name)[1]) for i in range(count)], name)


def _get_example(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    with wrap_external_errors(f"{name}: could not read item {index} of {type(dataset).__name__}"):
        example = dataset[index]
    if not (isinstance(example, list | tuple) and len(example) == 2):
        raise UserError(
            f"{name}: item {index} of {type(dataset).__name__} must be (image, label), got {describe(example)}"
        )
    return example


def _load_example(dataset: Any, name: str, index: int) -> np.ndarray:
    return _as_pixels(_get_example(dataset, index, name)[0], f"{name}: image {index}")


def _load_item(images: Any, name: str, index: int) -> np.ndarray:
    return _as_pixels(images[index], f"{name}: image {index}")


def _as_labels(labels: Any, name: str) -> np.ndarray:
    """Convert labels to int64, (n,) or (n, classes)."""
    array = _as_array(labels)
    if array is None or array.ndim not in (1, 2) or (array.size and array.dtype.kind not in "iu"):
        description = "rows of different lengths" if array is None else f"{array.dtype} of shape {array.shape}"
        raise UserError(
            f"{name}: labels must be integer class indices (n,), or integers (n, classes); got {description}"
        )
    return array.astype(np.int64)


def _as_array(value: Any) -> np.ndarray | None:
    """Convert a value to an array; return None for ragged sequences and non-numeric objects."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    return None if array.dtype == object else array


def _channels_last(images: Any, name: str) -> np.ndarray:
    """Convert a batch to (N, H, W, 3) or (N, H, W).

    If the shape fits both layouts, a tensor is assumed to be channels-first and an array channels-last.
    """
    pixels = _as_array(images)
    is_tensor = isinstance(images, Tensor)
    if pixels.ndim == 4 and 3 in (pixels.shape[1], pixels.shape[3]):
        channels_first = pixels.shape[1] == 3 and (is_tensor or pixels.shape[3] != 3)
        return pixels.transpose(0, 2, 3, 1) if channels_first else pixels
    if pixels.ndim == 4 and 1 in (pixels.shape[1], pixels.shape[3]):
        return pixels[:, 0] if pixels.shape[1] == 1 and (is_tensor or pixels.shape[3] != 1) else pixels[..., 0]
    if pixels.ndim == 3:
        return pixels
    raise UserError(f"{name} must be {_PIXELS}; got {pixels.dtype} of shape {pixels.shape}")


def _as_pixels(image: Any, name: str) -> np.ndarray:
    """Convert an image to (H, W, 3) uint8.

    Raises:
        UserError: the value is not an image.
    """
    if isinstance(image, Image.Image):
        return np.array(to_rgb(image))
    if not isinstance(image, Tensor | np.ndarray):
        raise UserError(f"{name} must be a Pillow image, an array or a tensor, got {describe(image)}")
    pixels = image if image.ndim == 2 else _channels_last(image[None], name)[0]
    pixels = _as_array(pixels)
    if pixels.dtype.kind == "f":
        if not (pixels.size and pixels.min() >= -_TOLERANCE and pixels.max() <= 1 + _TOLERANCE):  # or NaN
            low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
            raise UserError(
                f"{name} has floats from {low:.3g} to {high:.3g}; pass RGB in [0, 1], before normalisation, or uint8"
            )
        pixels = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8 or not pixels.size:
        raise UserError(f"{name} must be uint8 or floats in [0, 1], got {pixels.dtype} of shape {pixels.shape}")
    return np.ascontiguousarray(np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels)
