"""Config of `transfer linear-probe`."""

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
    """fraction of the images held out for validation if the data has no val/"""
    pooling: Pooling = "average"
    """pooling of the feature maps to fewer than 10,000 values per layer. average and bilinear (the released code): for
    any net; windows (the paper): for AlexNet; global: mean over positions; deepcluster: alias of windows"""
    norm: Norm = "channel"
    """statistics of the non-affine BatchNorm before each classifier: per channel or per feature; none: no BatchNorm"""
    zero: bool = True
    """initialise the classifiers with zeros instead of PyTorch's default"""
    rates: list[Positive] = field(default_factory=list)
    """candidate learning rates, each with its own classifier, all trained in one pass; if empty: optim.lr"""
    held_out: ProperFraction = 0.1
    """fraction of the training images held out to select the learning rate if there are several candidates"""
    ten_crops: bool = False
    """validate on ten crops per image, averaging their softmax outputs"""
    cache: Cache = "off"
    """where features are cached: off, memory or disk; training features are only cached if crops are not augmented"""
    crop: CropConfig = field(default_factory=lambda: CropConfig(0, 0, "random"))
    """crops of the images; if size or resize is 0, the backbone's input spec determines it"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig("sgd", 0.01, weight_decay=5e-4))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(compile=False))
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(eval_every=5000, checkpoint_every=1000))

    def check(self) -> None:
        require(len(set(self.rates)) == len(self.rates), "rates must differ", self.rates)
