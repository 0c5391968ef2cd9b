"""Dense nearest neighbours: what the points of training images most like a point are labelled.

Balazevic et al., "Towards in-context scene understanding" (NeurIPS 2023), with exact neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from crosschannel.data.order import epoch_order
from transfer.neighbours import neighbours


@dataclass(frozen=True)
class PointMemory:
    """Points of training images.

    Attributes:
        features: (M, C) float32, on the device where products are computed.
        labels: (M, K) float32, how often each class is among the pixels around a point; rows sum to 1.
        k: neighbours that vote.
        temperature: of their weights.
    """

    features: Tensor
    labels: Tensor
    k: int
    temperature: float

    @classmethod
    def of(
        cls,
        parts: Sequence[tuple[Tensor, Tensor]],
        most: int,
        seed: int,
        k: int,
        temperature: float,
        device: torch.device,
    ) -> "PointMemory":
        """The points that have labelled pixels.

        Args:
            parts: maps (n, C, g, g) of training images, and histograms (n, g, g, K) of their labels.
            most: so many points, drawn at random; 0: all.
            seed: of the draw.
            k, temperature: see the class.
            device: where products are computed.
        """
        histograms = torch.cat([part.flatten(0, 2) for _, part in parts])
        labelled = (histograms.sum(1) > 0).nonzero()[:, 0]
        if most and len(labelled) > most:
            drawn = np.sort(epoch_order(len(labelled), seed, 0)[:most])
            labelled = labelled[torch.from_numpy(drawn)]
        images = [image for maps, _ in parts for image in maps]  # they may be on disk: each is read where it is needed
        features = torch.empty(len(labelled), images[0].shape[0])
        size = images[0][0].numel()
        ends = torch.searchsorted(labelled, torch.arange(len(images) + 1) * size).tolist()
        for number, (start, stop) in enumerate(pairwise(ends)):
            if stop > start:
                features[start:stop] = images[number].flatten(1).T[labelled[start:stop] - number * size]
        return cls(features.to(device), histograms[labelled].to(device), k, temperature)

    def scores(self, maps: Tensor) -> Tensor:
        """What neighbours say of the points of maps: (N, C, g, g) → (N, K, g, g), which sum to 1 over K."""
        n, channels, g, _ = maps.shape
        device = self.features.device
        queries = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        nearest, cosines = neighbours(queries, self.features, min(self.k, len(self.features)), device)
        weights = (cosines.to(device) / self.temperature).softmax(1)
        voted = torch.einsum("qk,qkc->qc", weights, self.labels[nearest.to(device)])
        return voted.view(n, g, g, -1).permute(0, 3, 1, 2)
