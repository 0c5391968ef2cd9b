"""The keys of `transfer dense`."""

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
    """Segment by the layers of a frozen backbone: a linear classifier of every point, and its nearest neighbours."""

    protocol: ClassVar[str] = "dense"

    train_set: SetsWithMasks = "2012:train"
    """image sets that are learned: YEAR:SET of the devkit, sbd:SET of SBD"""
    test_set: SetsWithMasks = "2012:val"
    """image sets that are scored"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of the square that images are resized to; 0: what the backbone was trained on"""
    grid: Annotated[int, Interval(ge=2, le=256)] = 28
    """most points a side of a map; larger ones are averaged"""
    mask_size: Annotated[int, Interval(ge=8, le=1024)] = 112
    """side of the masks that are learned from; scores are of all pixels of the images themselves"""
    rates: list[Positive] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2])
    """learning rates to try, one classifier each in the same pass; one, or none (optim.lr), is not chosen"""
    held_out: ProperFraction = 0.1
    """share of the training images by which a rate is chosen, where there are several"""
    k: Annotated[int, Ge(0)] = 30
    """nearest neighbours that say what a point is; 0: none of that"""
    temperature: Positive = 0.02
    """of their weights"""
    memory: Annotated[int, Ge(0)] = 1_000_000
    """most points of training images among which neighbours are looked for, drawn at random; 0: all"""
    cache: Literal["memory", "disk"] = "memory"
    """where features are kept"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig("adamw", 1e-3, weight_decay=0.01))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("one-cycle", warmup=0.1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(16, epochs=20, compile=False))
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(eval_every=100_000, log_every=50))

    def check(self) -> None:
        super().check()
        require(len(set(self.rates)) == len(self.rates), "rates must differ", self.rates)
