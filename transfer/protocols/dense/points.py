"""The points of a layer's map over a squashed image, and the labels around each."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosschannel.data import ImageSet
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.models import Backbone
from transfer.interpolation import line_weights, pooled_centres, resample, squashed_places
from transfer.pascal.masks import IGNORED, labels_of
from transfer.protocols.segment.views import nearest


@dataclass(frozen=True)
class Points:
    """A square grid of points.

    Attributes:
        centres: (g,) where they are along either axis, in pixels of the squashed image.
        size: side of the squashed image.
    """

    centres: Tensor
    size: int

    @classmethod
    def of(cls, backbone: Backbone, layer: str, pooled: int, size: int) -> "Points":
        """Those of a layer's map of square images of ``size`` pixels, averaged to ``pooled`` points a side."""
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=next(backbone.parameters()).device)
        with torch.no_grad():
            points = backbone(blank, [layer])[layer].shape[3]
        return cls(pooled_centres(backbone.origin(layer), backbone.strides[layer], points, pooled), size)

    def upsampled(self, maps: Tensor, height: int, width: int) -> Tensor:
        """(N, K, g, g) → (N, K, height, width), at the pixels of an image of that size."""
        rows, columns = (line_weights(self.centres, squashed_places(side, self.size)) for side in (height, width))
        return resample(maps, rows, columns)

    def histograms(self, masks: Tensor, classes: int) -> Tensor:
        """How often each class is among the labelled pixels that are nearest to a point.

        Args:
            masks: (N, L, L) uint8, of squashed images.
            classes: there are.

        Returns:
            (N, g, g, classes) float32; a point without labelled pixels has zeros.
        """
        places = squashed_places(masks.shape[1], self.size)
        cell = torch.searchsorted((self.centres[1:] + self.centres[:-1]) / 2, places).to(masks.device)
        g = len(self.centres)
        owner = (cell[:, None] * g + cell)[None] + g * g * torch.arange(len(masks), device=masks.device)[:, None, None]
        bins = owner * classes + masks.long()
        counts = torch.bincount(bins[masks != IGNORED], minlength=len(masks) * g * g * classes)
        counts = counts.view(len(masks), g, g, classes).float()
        return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def mask_at(images: ImageSet, index: int, classes: int) -> np.ndarray:
    """The mask of an image at its own size, (H, W) uint8.

    Raises:
        UserError: there is none, or it does not fit.
        BrokenImage: the image itself cannot be read.
    """
    return labels_of(images.annotation(index), EncodedImage(images.read(index)), classes)


def small_masks(images: ImageSet, size: int, classes: int) -> Tensor:
    """The masks of all images as squares: (n, size, size) uint8, each pixel the nearest of the mask's. An image that
    cannot be read has 255 everywhere.

    Raises:
        UserError: a mask is missing, or does not fit.
    """
    found = np.full((len(images), size, size), IGNORED, np.uint8)
    for index in range(len(images)):
        try:
            labels = mask_at(images, index, classes)
        except (BrokenImage, OSError):
            continue
        rows, columns = (nearest(length, size) for length in labels.shape)
        found[index] = labels[rows][:, columns]
    return torch.from_numpy(found)
