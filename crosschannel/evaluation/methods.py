"""Colorization methods: nets, and the baselines grey, random and truth."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from crosschannel.color import rgb_to_lab
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.colorize.upsampling import Upsample
from crosschannel.data import Batch, ImageBatch, ImageSet, Record, SampleRNG
from crosschannel.data.crops import centre_box, crop_and_resize
from crosschannel.data.decode import BrokenImage
from crosschannel.data.images import AnnotatedImages
from crosschannel.data.order import mix
from crosschannel.data.views import stack_crops
from crosschannel.errors import UserError
from crosschannel.evaluation.config import Method
from crosschannel.hub import load_colorizer

_MAX_DONORS = 20  # maximum number of donors to try per image


@dataclass
class Pictures:
    """A batch of images on the device.

    Attributes:
        rgb: (N, 3, S, S) float in [0, 1].
        ab: true ab, (N, 2, S, S).
        donors: images to copy colours from, (N, 3, S, S) uint8; None without the baseline random.
    """

    rgb: Tensor
    ab: Tensor
    donors: Tensor | None


def _copy_donor_ab(pictures: Pictures) -> Tensor:
    return rgb_to_lab(pictures.donors)[:, 1:]


_BASELINES: dict[str, Callable[[Pictures], Tensor]] = {
    "grey": lambda pictures: torch.zeros_like(pictures.ab),
    "random": _copy_donor_ab,
    "truth": lambda pictures: pictures.ab,
}


@dataclass
class ColorizationMethod:
    """A loaded colorization method.

    Attributes:
        method: the method as passed by the user.
        colorizer: the net; None for a baseline.
    """

    method: Method
    colorizer: Colorizer | None

    def __call__(self, pictures: Pictures) -> Tensor:
        """Predict ab, (N, 2, S, S), which may be outside sRGB."""
        if self.colorizer is None:
            return _BASELINES[self.method.source](pictures)
        return self.colorizer.ab(pictures.rgb, self.method.temperature)


def load_methods(methods: Sequence[Method], upsample: Upsample, device: torch.device) -> list[ColorizationMethod]:
    """Load the nets of all methods.

    Args:
        methods: the methods as typed.
        upsample: upsampling of predictions to all pixels.
        device: device of the nets.

    Raises:
        UserError: a source cannot be loaded, or is not a colorization net.
    """
    loaded_methods = []
    for method in methods:
        try:
            colorizer = None if method.is_baseline else load_colorizer(method.source, device, upsample=upsample)
            if colorizer is not None and method.temperature is not None and colorizer.decoder.temperature is None:
                raise UserError("the net does not support a temperature")
        except UserError as error:
            raise UserError(f"the method {method.name}: {error}") from None
        loaded_methods.append(ColorizationMethod(method, colorizer))
    return loaded_methods


class WithDonors(AnnotatedImages):
    """Image set with a field ``donors``: indices of images to copy colours from, in the order in which to try them.

    Args:
        images: evaluated images.
        donors: images to copy colours from. A donor is neither the image itself nor an image with the same name.
        seed: seed of the choice of donors.
    """

    def __init__(self, images: ImageSet, donors: ImageSet, seed: int):
        super().__init__(images)
        self.donors, self._seed = donors, seed
        if donors is images and len(images) < 2:
            raise UserError("the baseline random copies the colours of another image, but there is only one image")

    def fields(self, index: int) -> Mapping[str, Any]:
        hashes = [mix(self._seed, index, attempt) for attempt in range(_MAX_DONORS)]
        if self.donors is self._images:  # skip the image itself
            donors = [(index + 1 + hash_value % (len(self) - 1)) % len(self) for hash_value in hashes]
        else:
            donors = [hash_value % len(self.donors) for hash_value in hashes]
        donors = [donor for donor in donors if self.donors.names[donor] != self.names[index]]
        return {**super().fields(index), "donors": donors}


@dataclass
class PairBatch(ImageBatch):
    """Crops of images and of their donors, (N, 3, S, S) uint8 each; ``donors`` may be None."""

    donors: Tensor | None


@dataclass(frozen=True)
class Pairs:
    """View that yields the centre squares of an image and of its first readable donor.

    Attributes:
        size: side of the squares, in pixels.
        donors: images that the field ``donors`` refers to; None to read no donors.
    """

    size: int
    donors: ImageSet | None = None
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> tuple[np.ndarray, np.ndarray | None]:
        crop = self._crop(record)
        if self.donors is None:
            return crop, None
        for donor in record.fields["donors"]:
            with contextlib.suppress(BrokenImage, OSError):
                return crop, self._crop(self.donors.record(donor))
        raise BrokenImage("could not read any of the images to copy colours from")

    def _crop(self, record: Record) -> np.ndarray:
        image = record.image()
        box = centre_box(image.width, image.height, self.size, self.size)
        return crop_and_resize(image, box, self.size)

    @staticmethod
    def collate(samples: Sequence[tuple[np.ndarray, np.ndarray | None]], base: Batch) -> PairBatch:
        donors = [donor for _, donor in samples if donor is not None]
        crops = stack_crops([crop for crop, _ in samples])
        return PairBatch(**vars(base), images=crops, donors=stack_crops(donors) if donors else None)
