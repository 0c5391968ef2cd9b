"""Dense nearest neighbours: what the points of training images most like a point are labelled.

Balazevic et al., "Towards in-context scene understanding" (NeurIPS 2023), with exact neighbours.
"""

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
        features: (M, C) float32.
        labels: (M, K) float32, how often each class is among the pixels around a point; rows sum to 1.
        k: neighbours that vote.
        temperature: of their weights.
        device: where products are computed.
    """

    features: Tensor
    labels: Tensor
    k: int
    temperature: float
    device: torch.device

    @classmethod
    def of(
        cls, maps: Tensor, histograms: Tensor, most: int, seed: int, k: int, temperature: float, device: torch.device
    ) -> "PointMemory":
        """The points that have labelled pixels.

        Args:
            maps: (n, C, g, g) of training images.
            histograms: (n, g, g, K) of their labels.
            most: so many of them, drawn at random; 0: all.
            seed: of the draw.
            k, temperature, device: see the class.
        """
        n, channels, g, _ = maps.shape
        labelled = (histograms.flatten(0, 2).sum(1) > 0).nonzero()[:, 0]
        if most and len(labelled) > most:
            drawn = np.sort(epoch_order(len(labelled), seed, 0)[:most])
            labelled = labelled[torch.from_numpy(drawn)]
        features = torch.empty(len(labelled), channels)
        ends = torch.searchsorted(labelled, torch.arange(n + 1) * g * g).tolist()
        for image, (start, stop) in enumerate(pairwise(ends)):  # maps may be on disk: one at a time
            features[start:stop] = maps[image].flatten(1).T[labelled[start:stop] - image * g * g]
        return cls(features, histograms.flatten(0, 2)[labelled], k, temperature, device)

    def scores(self, maps: Tensor) -> Tensor:
        """What neighbours say of the points of maps: (N, C, g, g) → (N, K, g, g), which sum to 1 over K."""
        n, channels, g, _ = maps.shape
        queries = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        nearest, cosines = neighbours(queries, self.features, min(self.k, len(self.features)), self.device)
        weights = (cosines / self.temperature).softmax(1)
        voted = torch.einsum("qk,qkc->qc", weights, self.labels[nearest])
        return voted.view(n, g, g, -1).permute(0, 3, 1, 2).to(self.device)
