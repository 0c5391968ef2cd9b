"""Config of `transfer segment`. The defaults are those of the paper's Table 2: FCN-32s on whole images."""

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
    """Fine-tune a backbone as a fully convolutional network for semantic segmentation."""

    protocol: ClassVar[str] = "segment"

    stride: Annotated[int, Interval(ge=0, le=64)] = 0
    """output stride of the finest score map, in pixels (32, 16 and 8: FCN-32s, FCN-16s and FCN-8s); 0: scores of the
    last layer only"""
    skips: Text | None = None
    """lower layers whose score maps are added, comma-separated (VGG-16 as published: pool4,pool3); default: the last
    layer of each stride"""
    pad: Annotated[int, Interval(ge=0, le=1024)] = 100
    """zero padding around the preprocessed image, including that of the first convolution; only for nets with fc6"""
    upsampling: Literal["deconvolution", "bilinear"] = "deconvolution"
    """upsampling of the scores beyond the outermost points of the map. deconvolution: fade to zero, as in FCN's fixed
    deconvolution; bilinear: constant"""
    crop: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of random square crops of the training images, in pixels; 0: whole images at their original size"""
    scale: tuple[_Factor, _Factor] = (0.5, 2.0)
    """minimum and maximum factor by which training images and masks are resized before they are cropped"""
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
