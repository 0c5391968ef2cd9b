"""Sampling points of a feature map in the coordinates of the squashed image, and the labels around each point."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosschannel.data import ImageSet
from crosschannel.data.decode import BrokenImage
from crosschannel.errors import UserError
from crosschannel.models import Backbone
from transfer.interpolation import line_weights, nearest_indices, pooled_centres, resampled_argmax, resized_positions
from transfer.pascal.masks import IGNORED, read_labels

_MASK_BATCH = 64  # masks per chunk of :meth:`Points.histograms`


@dataclass(frozen=True)
class Points:
    """Square grid of sampling points.

    Attributes:
        centres: (g,) coordinates of the points along either axis, in pixels of the squashed image.
        size: side of the squashed image, in pixels.
    """

    centres: Tensor
    size: int

    @classmethod
    def from_layer(cls, backbone: Backbone, layer: str, pooled_side: int, size: int) -> "Points":
        """Locate the points of a layer's map of a square image.

        Args:
            backbone: backbone of the layer.
            layer: name of the layer.
            pooled_side: side of the map after average pooling, in points.
            size: side of the image, in pixels.
        """
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=next(backbone.parameters()).device)
        with torch.no_grad():
            points = backbone(blank, [layer])[layer].shape[3]
        return cls(pooled_centres(backbone.origin(layer), backbone.stride(layer), points, pooled_side), size)

    def weights(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the row weights (height, g) and column weights (width, g) that resample the grid to an image."""
        rows, columns = (line_weights(self.centres, resized_positions(side, self.size)) for side in (height, width))
        return rows, columns

    def labels(self, scores: Tensor, height: int, width: int) -> Tensor:
        """Resample scores (N, K, g, g) to the pixels of an image, and return the best class: (N, height, width)."""
        return resampled_argmax(scores, *self.weights(height, width))

    def histograms(self, masks: Tensor, classes: int) -> Tensor:
        """Return the class frequencies among the labelled pixels that are nearest to each point.

        Args:
            masks: (N, L, L) uint8 masks of squashed images.
            classes: number of classes.

        Returns:
            (N, g, g, classes) float32; all zeros for points without labelled pixels.
        """
        if len(masks) > _MASK_BATCH:
            return torch.cat([self.histograms(chunk, classes) for chunk in masks.split(_MASK_BATCH)])
        positions = resized_positions(masks.shape[1], self.size)
        cell = torch.searchsorted((self.centres[1:] + self.centres[:-1]) / 2, positions).to(masks.device)
        g = len(self.centres)
        owner = (cell[:, None] * g + cell)[None] + g * g * torch.arange(len(masks), device=masks.device)[:, None, None]
        bins = owner * classes + masks.long()
        counts = torch.bincount(bins[masks != IGNORED], minlength=len(masks) * g * g * classes)
        counts = counts.view(len(masks), g, g, classes).float()
        return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def mask_at(images: ImageSet, index: int, classes: int) -> np.ndarray:
    """Read the mask of an image at its original size, (H, W) uint8.

    Raises:
        UserError: the mask is missing or does not fit the image, or the image became unreadable.
    """
    try:
        record = images.record(index)
        return read_labels(record.fields.get("mask"), record.image(), classes)
    except (BrokenImage, OSError) as error:
        raise UserError(f"the image {images.names[index]} became unreadable during the run: {error}") from None


def small_mask(images: ImageSet, index: int, size: int, classes: int) -> Tensor:
    """Read the mask of an image (see :func:`mask_at`) and squash it to (size, size) uint8 with nearest-neighbour
    interpolation."""
    labels = mask_at(images, index, classes)
    rows, columns = (nearest_indices(length, size) for length in labels.shape)
    return torch.from_numpy(labels[rows][:, columns])
