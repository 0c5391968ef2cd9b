"""Config of `transfer svm`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.types import RUNTIME, Count, LegacyDefault, Positive
from transfer.config import FeaturesConfig
from transfer.pascal.config import PascalConfig


@dataclass
class SVMConfig(PascalConfig, FeaturesConfig):
    """Train linear SVMs on frozen features of PASCAL VOC, with all or few (low-shot) labels."""

    protocol: ClassVar[str] = "svm"

    costs: list[Positive] = field(default_factory=lambda: [0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000])
    """candidate values of C (default: VISSL's); a single value is used without cross-validation"""
    folds: Annotated[int, Interval(ge=2, le=100)] = 3
    """number of cross-validation folds for selecting C, at most the number of positives of the class; C = 1 if the
    class has only one positive"""
    choose: Literal["cross-validation", "test"] = "cross-validation"
    """how low-shot SVMs select C. cross-validation: per class, on training images; test: one C per k, by the test mAP
    averaged over draws, which is optimistic (FAIR and VISSL)"""
    resize_first: Annotated[bool, LegacyDefault(False)] = True
    """resize the short side (to 256 for 224 px) before squashing the image to a square, as FAIR and VISSL do"""
    full: bool = True
    """train SVMs with all labels"""
    low_shot: list[Count] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 96])
    """numbers of positives per class (k) for low-shot SVMs, which also get 19 k negatives; a k that is too large for
    any class is skipped"""
    draws: Count = 5
    """number of random draws of training images for each k; APs are averaged over the draws"""
    jobs: Annotated[int, Interval(ge=0, le=4096), RUNTIME] = 0
    """number of classes that each rank trains in parallel; 0: one per CPU core"""

    def check(self) -> None:
        super().check()
        require(len(self.costs) > 0, "costs must have at least one value", self.costs)
        require(len(set(self.low_shot)) == len(self.low_shot), "low_shot must not repeat values", self.low_shot)
        require(self.full or self.low_shot, "nothing to do: set full or low_shot", self.low_shot)
