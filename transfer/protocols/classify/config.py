"""Config of `transfer classify`. The defaults follow Krähenbühl et al. (2016), as does Table 2 of the paper."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.training import AreaFraction, OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig
from crosschannel.config.types import Count
from transfer.config import FineTuneConfig
from transfer.pascal.config import PascalConfig


@dataclass
class ClassifyConfig(PascalConfig, FineTuneConfig):
    """Fine-tune a backbone for multi-label classification of PASCAL VOC."""

    protocol: ClassVar[str] = "classify"

    crop: Literal["random-scale", "random-resized"] = "random-scale"
    """kind of crop, for training and test images. random-scale: a random window of the image with up to two source
    pixels per crop pixel; random-resized: a square with a random fraction of the image's area"""
    area: tuple[AreaFraction, AreaFraction] = (0.1, 0.5)
    """minimum and maximum fraction of the image's area that a random-resized crop covers"""
    dropout_on: Literal["outputs", "inputs"] = "outputs"
    """where dropout is applied: to the outputs of fc6 and fc7, or to their inputs (DeepCluster)"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of the crops, in pixels; 0: the size that the backbone was trained on"""
    mirror: bool = True
    """mirror half of the crops, in training and at test time"""
    test_crops: Count = 10
    """number of random crops per test image, whose logits are summed"""
    score_train: bool = False
    """also evaluate on one crop of each training image"""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            "sgd", 1e-3, momentum=0.9, weight_decay=1e-6, bias_lr=2.0, bias_decay=True, clip=10.0
        )
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("step", every=10_000, factor=0.5))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(16, steps=80_000, compile=False))
    runtime: RuntimeConfig = field(
        default_factory=lambda: RuntimeConfig(4, eval_every=10_000, checkpoint_every=1000, log_every=100)
    )

    def check(self) -> None:
        super().check()
        require(self.area[0] <= self.area[1], "area must be two ascending fractions within 0..1", self.area)
