"""What is compared: nets that colour, and the three baselines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from crosschannel.color import rgb_to_lab
from crosschannel.data import ImageBatch, ImageSet
from crosschannel.data.crops import centre_box, cut
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.images import Annotated
from crosschannel.data.order import mix
from crosschannel.data.views import Broken, Draw
from crosschannel.errors import UserError
from crosschannel.evaluation.config import Method
from crosschannel.hub import load_colorizer
from crosschannel.pretext.colorizer import Colorizer
from crosschannel.pretext.upsampling import Upsample

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
class Painter:
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


def load_painters(methods: Sequence[Method], upsample: Upsample, device: torch.device) -> list[Painter]:
    """Load all nets, and say how their predictions reach every pixel.

    Raises:
        UserError: a source that colours nothing.
    """
    found = []
    for method in methods:
        try:
            colorizer = None if method.is_baseline else load_colorizer(method.source, device)
            if colorizer is not None:
                colorizer.upsample = upsample
                if method.temperature is not None and colorizer.task.temperature is None:
                    raise UserError("its net has no temperature")
        except UserError as error:
            raise UserError(f"the method {method.name}: {error}") from None
        found.append(Painter(method, colorizer))
    return found


class WithDonors(Annotated):
    """An ImageSet whose annotations are other encoded images, from which colours are copied.

    Args:
        images: what is evaluated.
        donors: where colours come from; an image is never its own donor, nor one of its name.
        seed: of the choice.
    """

    def __init__(self, images: ImageSet, donors: ImageSet, seed: int):
        super().__init__(images)
        self._donors, self._seed = donors, seed
        if donors is images and len(images) < 2:
            raise UserError("random colours are those of another image, and here is one only")

    def annotation(self, index: int) -> Iterator[bytes]:
        """The bytes of one donor after the other."""
        for attempt in range(_TRIES):
            if self._donors is self._images:  # one of the others
                donor = (index + 1 + mix(self._seed, index, attempt) % (len(self) - 1)) % len(self)
            else:
                donor = mix(self._seed, index, attempt) % len(self._donors)
            if self._donors.names[donor] == self.names[index]:
                continue
            try:
                yield self._donors.read(donor)
            except OSError:
                continue


@dataclass
class PairBatch(ImageBatch):
    """Crops with those of their donors, (N, 3, S, S) uint8, or None."""

    donors: Tensor | None = None

    def pin_memory(self) -> "PairBatch":
        donors = None if self.donors is None else self.donors.pin_memory()
        return PairBatch(self.images.pin_memory(), self.indices, self.broken, donors)


@dataclass(frozen=True)
class Pairs:
    """A view: the centre square, and that of a donor where images have any."""

    size: int
    views: ClassVar[int] = 1

    def __call__(self, image: EncodedImage, annotation: Any, _draw: Draw) -> tuple[np.ndarray, np.ndarray | None]:
        crop = self._crop(image)
        if not isinstance(annotation, Iterator):
            return crop, None
        for data in annotation:
            try:
                return crop, self._crop(EncodedImage(data))
            except BrokenImage:
                continue
        raise BrokenImage("no image that could be read to copy colours from")

    def _crop(self, image: EncodedImage) -> np.ndarray:
        box = centre_box(image.width, image.height, self.size, self.size)
        return cut(image, box, self.size)

    @staticmethod
    def collate(samples: Sequence[tuple[np.ndarray, np.ndarray | None]], indices: Tensor, broken: Broken) -> PairBatch:
        def stacked(crops: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

        if not samples:
            return PairBatch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), indices, broken, None)
        donors = [donor for _, donor in samples if donor is not None]
        return PairBatch(stacked([crop for crop, _ in samples]), indices, broken, stacked(donors) if donors else None)
