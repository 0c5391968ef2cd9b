"""The keys of `transfer segment`; their defaults are those of the paper's Table 2: FCN-32s on whole images."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.training import OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig
from crosschannel.config.types import Text
from transfer.config import FineTuneConfig
from transfer.pascal.config import MasksConfig

_Factor = Annotated[float, Interval(ge=0.05, le=20)]


@dataclass
class SegmentConfig(MasksConfig, FineTuneConfig):
    """Fine-tune a backbone to say of which class every pixel is: a fully convolutional net."""

    protocol: ClassVar[str] = "segment"

    stride: Annotated[int, Interval(ge=0, le=64)] = 0
    """of the finest scores, in pixels: 32, 16 and 8 are FCN-32s, 16s and 8s; 0: of the last layer alone"""
    skips: Text | None = None
    """layers that finer scores are added from, by commas (pool4,pool3 as published for VGG-16); default the last layer
    of each stride"""
    pad: Annotated[int, Interval(ge=0, le=1024)] = 100
    """zeros around the preprocessed image of nets with fc6, the first convolution's own counted in; others have none"""
    upsampling: Literal["deconvolution", "bilinear"] = "deconvolution"
    """deconvolution: FCN's fixed one, by which scores fade beyond the first and last point of the map; bilinear: the
    outermost scores go on"""
    crop: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of random square crops of training images; 0: whole images at their own size"""
    scale: tuple[_Factor, _Factor] = (0.5, 2.0)
    """least and greatest factor by which images and masks are resized before they are cropped"""
    mirror: bool = False
    """mirror half of the training images"""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig("sgd", 1e-4, momentum=0.9, weight_decay=5e-4, bias_lr=2.0)
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("step", every=50_000, factor=0.1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(20, accumulate=20, steps=150_000, compile=False))
    runtime: RuntimeConfig = field(
        default_factory=lambda: RuntimeConfig(4, eval_every=10_000, checkpoint_every=1000, log_every=100)
    )

    def check(self) -> None:
        super().check()
        require(self.scale[0] <= self.scale[1], "scale must be two ascending factors within 0.05..20", self.scale)
