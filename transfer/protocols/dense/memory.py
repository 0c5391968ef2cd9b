"""Dense nearest neighbours: each point is labelled by the most similar points of the training images.

The method of Balazevic et al., "Towards in-context scene understanding" (NeurIPS 2023), with exact instead of
approximate search.
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
    """Points of training images, searched for nearest neighbours.

    Attributes:
        features: (M, C) float32, on the device of the search.
        labels: (M, K) float32 class frequencies among the pixels around each point; rows sum to 1.
        k: number of neighbours that vote.
        temperature: temperature of the vote weights.
    """

    features: Tensor
    labels: Tensor
    k: int
    temperature: float

    @classmethod
    def from_maps(
        cls,
        maps_and_histograms: Sequence[tuple[Tensor, Tensor]],
        max_points: int,
        seed: int,
        k: int,
        temperature: float,
        device: torch.device,
    ) -> "PointMemory":
        """Build the memory from the points that have labelled pixels.

        Args:
            maps_and_histograms: maps (n, C, g, g) of training images, and the histograms (n, g, g, K) of their labels.
            max_points: maximum number of points, drawn at random; 0: all.
            seed: seed of the draw.
            k, temperature: see the attributes.
            device: device of the search.
        """
        histograms = torch.cat([histogram.flatten(0, 2) for _, histogram in maps_and_histograms])
        labelled = (histograms.sum(1) > 0).nonzero()[:, 0]
        if max_points and len(labelled) > max_points:
            sample = np.sort(epoch_order(len(labelled), seed, 0)[:max_points])
            labelled = labelled[torch.from_numpy(sample)]
        # Maps may be on disk, so they are read one by one.
        images = [image for maps, _ in maps_and_histograms for image in maps]
        features = torch.empty(len(labelled), images[0].shape[0])
        size = images[0][0].numel()
        ends = torch.searchsorted(labelled, torch.arange(len(images) + 1) * size).tolist()
        for index, (start, stop) in enumerate(pairwise(ends)):
            if stop > start:
                features[start:stop] = images[index].flatten(1).T[labelled[start:stop] - index * size]
        return cls(features.to(device), histograms[labelled].to(device), k, temperature)

    def scores(self, maps: Tensor) -> Tensor:
        """Return the class votes of the neighbours for each point of maps: (N, C, g, g) → (N, K, g, g).

        The votes for a point sum to 1 over the K classes.
        """
        n, channels, g, _ = maps.shape
        device = self.features.device
        queries = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        nearest, cosines = neighbours(queries, self.features, min(self.k, len(self.features)), device)
        weights = (cosines.to(device) / self.temperature).softmax(1)
        votes = torch.einsum("qk,qkc->qc", weights, self.labels[nearest.to(device)])
        return votes.view(n, g, g, -1).permute(0, 3, 1, 2)
