"""The keys of `transfer few-shot`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.types import RUNTIME, Count, Positive, ProperFraction
from transfer.config import FeaturesConfig

_Share = Annotated[float, Interval(gt=0, le=1)]


@dataclass
class FewShotConfig(FeaturesConfig):
    """Classify with few labels: logistic regression on frozen features."""

    protocol: ClassVar[str] = "few-shot"

    val_share: ProperFraction = 0.05
    """share of the images held out for validation where the data has no val/"""
    share: list[_Share] = field(default_factory=lambda: [0.01, 0.1])
    """shares of the training images of each class, one image at least; not looked at where shots are given"""
    shots: list[Count] = field(default_factory=list)
    """training images a class"""
    draws: Count = 5
    """of each, different images every time"""
    costs: list[Positive] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0])
    """C of the logistic regression to choose among: 1 / C is the strength of the L2 penalty"""
    folds: Annotated[int, Interval(ge=2, le=100)] = 3
    """of the cross-validation that chooses C; fewer where a class has fewer images, and C = 1 where it has one"""
    jobs: Annotated[int, Interval(ge=0, le=4096), RUNTIME] = 0
    """regressions that a rank fits at once; 0: as many as there are cores"""

    def check(self) -> None:
        require(len(self.share) + len(self.shots) > 0, "share or shots must be one or more numbers", self.share)
        require(len(self.costs) > 0, "costs must be one or more numbers", self.costs)
