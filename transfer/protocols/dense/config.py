"""Config of `transfer dense`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from crosschannel.config.load import require
from crosschannel.config.training import OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig, TrainedConfig
from crosschannel.config.types import Positive, ProperFraction
from transfer.config import FrozenConfig
from transfer.pascal.config import MasksConfig, SetsWithMasks


@dataclass
class DenseConfig(MasksConfig, TrainedConfig, FrozenConfig):
    """Segment images with linear and nearest-neighbour classifiers on the feature maps of a frozen backbone."""

    protocol: ClassVar[str] = "dense"

    train_set: SetsWithMasks = "2012:train"
    """training image sets, comma-separated: YEAR:SET of the devkit, or sbd:SET of SBD"""
    test_set: SetsWithMasks = "2012:val"
    """test image sets, comma-separated"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of the square that images are resized to, in pixels; 0: the size that the backbone was trained on"""
    grid: Annotated[int, Interval(ge=2, le=256)] = 28
    """maximum side of the feature maps, in points; larger maps are average-pooled"""
    mask_size: Annotated[int, Interval(ge=8, le=1024)] = 112
    """side of the training masks, in pixels; test masks keep their original size"""
    rates: list[Positive] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2])
    """candidate learning rates, each with its own classifier, all trained in one pass; if empty: optim.lr"""
    held_out: ProperFraction = 0.1
    """fraction of the training images held out to select the learning rate if there are several candidates"""
    k: Annotated[int, Ge(0)] = 30
    """number of nearest neighbours that vote for the class of a point; 0 skips the nearest-neighbour evaluation"""
    temperature: Positive = 0.02
    """temperature of the vote weights, softmax(cosine / temperature)"""
    memory: Annotated[int, Ge(0)] = 1_000_000
    """maximum number of training points to search for neighbours, drawn at random; 0: all"""
    cache: Literal["memory", "disk"] = "memory"
    """where features are cached: memory or disk"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig("adamw", 1e-3, weight_decay=0.01))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("one-cycle", warmup=0.1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(16, epochs=20, compile=False))
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(eval_every=100_000, log_every=50))

    def check(self) -> None:
        super().check()
        require(len(set(self.rates)) == len(self.rates), "rates must differ", self.rates)
