"""Config of `transfer few-shot`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.types import RUNTIME, Count, Positive, ProperFraction
from transfer.config import FeaturesConfig

_LabelFraction = Annotated[float, Interval(gt=0, le=1)]


@dataclass
class FewShotConfig(FeaturesConfig):
    """Classify with few labels by logistic regression on frozen features."""

    protocol: ClassVar[str] = "few-shot"

    val_share: ProperFraction = 0.05
    """fraction of the images held out for validation if the data has no val/"""
    share: list[_LabelFraction] = field(default_factory=lambda: [0.01, 0.1])
    """fractions of the training images of each class (at least 1 image) to train on; ignored if shots is set"""
    shots: list[Count] = field(default_factory=list)
    """numbers of training images per class to train on; default: the fractions in share"""
    draws: Count = 5
    """number of random draws of training images for each setting; accuracies are averaged over the draws"""
    costs: list[Positive] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0])
    """candidate values of C, the inverse strength of the L2 penalty; a single value is used without cross-validation"""
    folds: Annotated[int, Interval(ge=2, le=100)] = 3
    """number of cross-validation folds for selecting C, at most the number of images of the smallest class; C = 1 if
    that class has only one image"""
    jobs: Annotated[int, Interval(ge=0, le=4096), RUNTIME] = 0
    """number of regressions that each rank fits in parallel; 0: one per CPU core"""

    def check(self) -> None:
        require(len(self.share) + len(self.shots) > 0, "share or shots must have at least one value", self.share)
        require(len(self.costs) > 0, "costs must have at least one value", self.costs)
