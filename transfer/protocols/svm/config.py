"""The keys of `transfer svm`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.types import RUNTIME, Count, LegacyDefault, Positive
from transfer.config import FeaturesConfig
from transfer.pascal.config import PascalConfig


@dataclass
class SVMConfig(PascalConfig, FeaturesConfig):
    """Train linear SVMs on frozen features of PASCAL VOC, with all labels and with a few."""

    protocol: ClassVar[str] = "svm"

    costs: list[Positive] = field(default_factory=lambda: [0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000])
    """C of the SVM to choose among (VISSL's)"""
    folds: Annotated[int, Interval(ge=2, le=100)] = 3
    """of the cross-validation; fewer where a class has fewer positives, and C = 1 where it has one"""
    choose: Literal["cross-validation", "test"] = "cross-validation"
    """how low-shot chooses C: cross-validation for each class on training images; test, as FAIR and VISSL do, one C for
    each k by the test mAP averaged over draws, which is optimistic"""
    resize_first: Annotated[bool, LegacyDefault(False)] = True
    """resize the short side (256 for 224 px) before the image is squashed to a square, as FAIR and VISSL do"""
    full: bool = True
    """with all labels"""
    low_shot: list[Count] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 96])
    """positives a class, each with 19 times as many negatives; those that some class cannot fill are left out"""
    draws: Count = 5
    """of each"""
    jobs: Annotated[int, Interval(ge=0, le=4096), RUNTIME] = 0
    """classes that a rank trains at once; 0: as many as there are cores"""

    def check(self) -> None:
        super().check()
        require(len(self.costs) > 0, "costs must be one or more numbers", self.costs)
        require(len(set(self.low_shot)) == len(self.low_shot), "low_shot must differ", self.low_shot)
        require(self.full or self.low_shot, "nothing to do: give full or low_shot", self.low_shot)
