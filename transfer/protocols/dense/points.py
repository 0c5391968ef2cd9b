"""The points of a layer's map over a squashed image, and the labels around each."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosschannel.data import ImageSet
from crosschannel.data.decode import BrokenImage
from crosschannel.errors import UserError
from crosschannel.models import Backbone
from transfer.interpolation import greatest, line_weights, nearest, pooled_centres, squashed_places
from transfer.pascal.masks import IGNORED, labels_of

_AT_ONCE = 64  # images


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
        return cls(pooled_centres(backbone.origin(layer), backbone.stride(layer), points, pooled), size)

    def weights(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What the rows and the columns of an image of that size take of the points."""
        rows, columns = (line_weights(self.centres, squashed_places(side, self.size)) for side in (height, width))
        return rows, columns

    def labels(self, scores: Tensor, height: int, width: int) -> Tensor:
        """The greatest of scores (N, K, g, g) at the pixels of an image: (N, height, width)."""
        return greatest(scores, *self.weights(height, width))

    def histograms(self, masks: Tensor, classes: int) -> Tensor:
        """How often each class is among the labelled pixels that are nearest to a point.

        Args:
            masks: (N, L, L) uint8, of squashed images.
            classes: there are.

        Returns:
            (N, g, g, classes) float32; a point without labelled pixels has zeros.
        """
        if len(masks) > _AT_ONCE:
            return torch.cat([self.histograms(part, classes) for part in masks.split(_AT_ONCE)])
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
        UserError: there is none, it does not fit, or the image has gone since its features were computed.
    """
    try:
        record = images.record(index)
        return labels_of(record.fields.get("mask"), record.image(), classes)
    except (BrokenImage, OSError) as error:
        raise UserError(f"the image {images.names[index]} could be read before, and now it cannot: {error}") from None


def small_mask(images: ImageSet, index: int, size: int, classes: int) -> Tensor:
    """The mask of an image (see :func:`mask_at`) as a square, (size, size) uint8, by nearest pixels."""
    labels = mask_at(images, index, classes)
    rows, columns = (nearest(length, size) for length in labels.shape)
    return torch.from_numpy(labels[rows][:, columns])
