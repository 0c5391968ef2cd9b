"""What is compared: nets that colour, and the three baselines."""

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

_TRIES = 20  # donors that are looked at until one can be read


@dataclass
class Pictures:
    """A batch.

    Attributes:
        rgb: (N, 3, S, S) float in [0, 1].
        ab: (N, 2, S, S), theirs.
        donors: (N, 3, S, S) uint8, of other pictures; None where nobody asks.
    """

    rgb: Tensor
    ab: Tensor
    donors: Tensor | None


def _copied(pictures: Pictures) -> Tensor:
    return rgb_to_lab(pictures.donors)[:, 1:]


_BASELINES: dict[str, Callable[[Pictures], Tensor]] = {
    "grey": lambda pictures: torch.zeros_like(pictures.ab),
    "random": _copied,
    "truth": lambda pictures: pictures.ab,
}


@dataclass
class ColorizationMethod:
    """A method that is loaded.

    Attributes:
        method: as it was typed.
        colorizer: its net; None for a baseline.
    """

    method: Method
    colorizer: Colorizer | None

    def __call__(self, pictures: Pictures) -> Tensor:
        """ab (N, 2, S, S), as predicted."""
        if self.colorizer is None:
            return _BASELINES[self.method.source](pictures)
        return self.colorizer.ab(pictures.rgb, self.method.temperature)


def load_methods(methods: Sequence[Method], upsample: Upsample, device: torch.device) -> list[ColorizationMethod]:
    """Load all nets, and say how their predictions reach every pixel.

    Raises:
        UserError: a source that colours nothing.
    """
    found = []
    for method in methods:
        try:
            colorizer = None if method.is_baseline else load_colorizer(method.source, device, upsample=upsample)
            if colorizer is not None and method.temperature is not None and colorizer.decoder.temperature is None:
                raise UserError("its net has no temperature")
        except UserError as error:
            raise UserError(f"the method {method.name}: {error}") from None
        found.append(ColorizationMethod(method, colorizer))
    return found


class WithDonors(AnnotatedImages):
    """Another image set with the field ``donors``: indices of images from which colours are copied, in the order in
    which they are tried.

    Args:
        images: what is evaluated.
        donors: where colours come from; an image is never its own donor, nor one of its name.
        seed: of the choice.
    """

    def __init__(self, images: ImageSet, donors: ImageSet, seed: int):
        super().__init__(images)
        self.donors, self._seed = donors, seed
        if donors is images and len(images) < 2:
            raise UserError("random colours are those of another image, and here is one only")

    def fields(self, index: int) -> Mapping[str, Any]:
        draws = [mix(self._seed, index, attempt) for attempt in range(_TRIES)]
        if self.donors is self._images:  # one of the others
            donors = [(index + 1 + draw % (len(self) - 1)) % len(self) for draw in draws]
        else:
            donors = [draw % len(self.donors) for draw in draws]
        donors = [donor for donor in donors if self.donors.names[donor] != self.names[index]]
        return {**super().fields(index), "donors": donors}


@dataclass
class PairBatch(ImageBatch):
    """Crops with those of their donors, (N, 3, S, S) uint8, or None."""

    donors: Tensor | None


@dataclass(frozen=True)
class Pairs:
    """A view: the centre square, and that of the first donor that can be read.

    Attributes:
        size: side of the squares.
        donors: the images that the field ``donors`` refers to; None: no donors.
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
        raise BrokenImage("no image that could be read to copy colours from")

    def _crop(self, record: Record) -> np.ndarray:
        image = record.image()
        box = centre_box(image.width, image.height, self.size, self.size)
        return crop_and_resize(image, box, self.size)

    @staticmethod
    def collate(samples: Sequence[tuple[np.ndarray, np.ndarray | None]], base: Batch) -> PairBatch:
        donors = [donor for _, donor in samples if donor is not None]
        crops = stack_crops([crop for crop, _ in samples])
        return PairBatch(**vars(base), images=crops, donors=stack_crops(donors) if donors else None)
