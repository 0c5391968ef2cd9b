"""The keys of `transfer classify`; their defaults are those of Krähenbühl et al. (2016), as in the paper's Table 2."""

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
    """Fine-tune a backbone to say which of PASCAL VOC's classes an image shows."""

    protocol: ClassVar[str] = "classify"

    crop: Literal["random-scale", "random-resized"] = "random-scale"
    """random-scale: windows of the image at its own size, up to two source pixels a crop pixel; random-resized: squares
    of a share of its area. The same in tests"""
    area: tuple[AreaFraction, AreaFraction] = (0.1, 0.5)
    """of random-resized"""
    dropout_on: Literal["outputs", "inputs"] = "outputs"
    """apply dropout to the outputs of fc6 and fc7, or to their inputs (DeepCluster)"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of the crops; 0: what the backbone was trained on"""
    mirror: bool = True
    """mirror half of the crops, in tests too"""
    test_crops: Count = 10
    """crops of a test image, whose logits are summed"""
    score_train: bool = False
    """score a crop of each training image too"""
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
        require(self.area[0] <= self.area[1], "area must be two ascending shares within 0..1", self.area)
