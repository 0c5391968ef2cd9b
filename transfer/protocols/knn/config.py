"""Config of `transfer knn`."""

from dataclasses import dataclass, field
from typing import ClassVar

from crosschannel.config.load import require
from crosschannel.config.types import Count, Positive, ProperFraction
from transfer.config import FeaturesConfig, Pooling


@dataclass
class KNNConfig(FeaturesConfig):
    """Classify by nearest neighbours in the features of a frozen backbone."""

    protocol: ClassVar[str] = "knn"

    val_share: ProperFraction = 0.05
    """fraction of the images held out for validation if the data has no val/"""
    k: list[Count] = field(default_factory=lambda: [20])
    """numbers of neighbours that vote, each evaluated separately"""
    temperature: list[Positive] = field(default_factory=lambda: [0.07])
    """temperatures of the vote weights, exp(cosine / temperature), each evaluated separately"""
    pooling: Pooling = "global"
    """pooling of the feature maps. global: mean over positions; average or bilinear: to a grid with fewer than 10,000
    values per layer"""

    def check(self) -> None:
        require(
            len(self.k) > 0 and len(set(self.k)) == len(self.k),
            "k must have at least one value and no value twice",
            self.k,
        )
        require(len(self.temperature) > 0, "temperature must have at least one value", self.temperature)
