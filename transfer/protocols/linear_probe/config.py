"""The keys of `transfer linear-probe`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from crosschannel.config.load import require
from crosschannel.config.training import CropConfig, OptimConfig, RuntimeConfig, TrainConfig, TrainedConfig
from crosschannel.config.types import Positive, ProperFraction
from transfer.config import Cache, FrozenConfig, Pooling

Norm = Literal["channel", "feature", "none"]


@dataclass
class LinearProbeConfig(TrainedConfig, FrozenConfig):
    """Train linear classifiers on the layers of a frozen backbone."""

    protocol: ClassVar[str] = "linear-probe"

    val_share: ProperFraction = 0.05
    """share of the images held out for validation where the data has no val/"""
    pooling: Pooling = "average"
    """to fewer than 10,000 numbers: average, or bilinear (the release), for any net; windows (the paper), for AlexNet;
    global; deepcluster is windows"""
    norm: Norm = "channel"
    """statistics of the affine-free BatchNorm before each classifier: by channel, by feature, or none of it"""
    zero: bool = True
    """start from zero weights rather than PyTorch's"""
    rates: list[Positive] = field(default_factory=list)
    """learning rates to try, one classifier each in the same pass; none: optim.lr alone"""
    held_out: ProperFraction = 0.1
    """share of the training images by which a rate is chosen, where there are several"""
    ten_crops: bool = False
    """validate on ten crops an image, their softmax outputs averaged"""
    cache: Cache = "off"
    """keep features: off, memory or disk; training features are kept only where crops are not augmented"""
    crop: CropConfig = field(default_factory=lambda: CropConfig(0, 0, "random"))
    """crops; size and resize of 0: what the backbone was trained on"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig("sgd", 0.01, weight_decay=5e-4))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(compile=False))
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(eval_every=5000, checkpoint_every=1000))

    def check(self) -> None:
        require(len(set(self.rates)) == len(self.rates), "rates must differ", self.rates)
