"""The keys of `transfer detect`; their defaults are Fast R-CNN on selective search, with py-faster-rcnn's rules for
difficult objects and detections (the config ``paper`` has Fast R-CNN's)."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.training import OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig
from crosschannel.config.types import Count, File, Fraction, NonNegative, Text
from transfer.config import FineTuneConfig
from transfer.pascal.config import PascalConfig

METHODS = ("selective-search", "selective-search-quality", "rpn")


@dataclass
class RoIConfig:
    """How regions are looked at."""

    layer: Text = ""
    """whose map they are pooled from; default the last one below pool5 where there is fc6, the last stage but one of
    ResNets, else the last of a stride of 16 or less"""
    head: Literal["auto", "fc", "c4", "mlp"] = "auto"
    """fc: the backbone's fc6 and fc7; c4: a ResNet's last stage; mlp: two new layers; auto: the first that there is"""
    pooling: Literal["max", "align"] = "max"
    """max: Fast R-CNN's, with rounded ends; align: RoIAlign"""
    resolution: Annotated[int, Interval(ge=0, le=64)] = 0
    """side of what is pooled; 0: what fc6 covers (AlexNet 6, VGG 7), 14 for c4, 7 for mlp"""
    aligned: bool = True
    """take the map's points where they are centred; false: as detectron2 has it"""
    geometry: Literal["padded", "probe"] = "padded"
    """of an AlexNet's trunk; padded: on the pixel grid"""
    width: Annotated[int, Interval(ge=1, le=65536)] = 1024
    """of the two layers of mlp"""
    norm: bool = False
    """a BatchNorm after a ResNet's last stage"""


@dataclass
class SampleConfig:
    """Which regions are learned from, and what they are to say."""

    regions: Count = 64
    """of an image and step"""
    foreground: Fraction = 0.25
    """greatest share of them that shows objects"""
    overlap: Fraction = 0.5
    """least intersection over union of a region with the object that it shows"""
    background: tuple[Fraction, Fraction] = (0.1, 0.5)
    """of regions that show none: at least, and less than"""
    difficult: bool = False
    """learn objects marked difficult too (Fast R-CNN and detectron2 do; py-faster-rcnn does not)"""
    targets: Literal["by-class", "fixed"] = "by-class"
    """of boxes: less the mean of their class, divided by its deviation; fixed: divided by .1, .1, .2, .2"""
    beta: NonNegative = 1.0
    """where the boxes' loss turns from squares to absolute values; 0: absolute values"""

    def check(self) -> None:
        require(
            self.background[0] < self.background[1] <= self.overlap,
            "sample.background must ascend, and end at sample.overlap at most",
            self.background,
        )


@dataclass
class KeepConfig:
    """Which detections are kept."""

    rule: Literal["score", "adaptive"] = "score"
    """score: those above it (py-faster-rcnn); adaptive: of each class the best 40 an image, over all images (Fast
    R-CNN)"""
    score: Fraction = 0.05
    """of the rule of that name"""
    nms: Fraction = 0.3
    """greatest overlap of two of one class"""
    most: Count = 100
    """of an image; adaptive: of an image and class"""


@dataclass
class RPNConfig:
    """Faster R-CNN's proposals."""

    before: tuple[Count, Count] = (12000, 6000)
    """boxes of an image before suppression: in training, in tests"""
    after: tuple[Count, Count] = (2000, 1000)
    """and after it"""
    nms: Fraction = 0.7
    """greatest overlap of two"""
    anchors: list[Count] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """sides, in pixels; each in the shapes 1:2, 1:1 and 2:1"""


@dataclass
class DetectConfig(PascalConfig, FineTuneConfig):
    """Fine-tune a backbone to find objects."""

    protocol: ClassVar[str] = "detect"

    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """whose operations and heads: both compute the same; Faster R-CNN is detectron2's"""
    proposals: Annotated[str | list[str], File(packaged=METHODS)] = "selective-search"
    """selective-search, selective-search-quality, rpn (Faster R-CNN), or files, one or a list: .npz of `transfer
    proposals`, .mat as published"""
    most_proposals: Count = 2000
    """of an image, the first ones"""
    scales: list[Annotated[int, Interval(ge=16, le=8192)]] = field(default_factory=lambda: [480, 576, 688, 864, 1200])
    """short sides of training images, one by chance …"""
    longest: Annotated[int, Interval(ge=16, le=1 << 16)] = 2000
    """… unless the long side would pass this"""
    test_scale: Annotated[int, Interval(ge=16, le=8192)] = 600
    """short side of images that are scored …"""
    test_longest: Annotated[int, Interval(ge=16, le=1 << 16)] = 1000
    """… unless the long side would pass this"""
    mirror: bool = True
    """mirror half of the training images"""
    score_train: bool = False
    """score the training images as well"""
    sync_norm: bool = False
    """BatchNorm over all ranks' images, on GPUs"""
    roi: RoIConfig = field(default_factory=RoIConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig("sgd", 1e-3, momentum=0.9, weight_decay=5e-4, bias_lr=2.0)
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("step", every=50_000, factor=0.1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(2, steps=150_000, compile=False))
    runtime: RuntimeConfig = field(
        default_factory=lambda: RuntimeConfig(4, eval_every=50_000, checkpoint_every=1000, log_every=100)
    )

    @property
    def proposal_files(self) -> list[str]:
        """What holds the proposals; with a method its name."""
        return [self.proposals] if isinstance(self.proposals, str) else list(self.proposals)

    @property
    def method(self) -> str:
        """How proposals are had, of ``METHODS``; empty where files hold them."""
        named = self.proposal_files
        return named[0] if len(named) == 1 and named[0] in METHODS else ""

    def check(self) -> None:
        super().check()
        require(bool(self.scales), "scales must name a short side at least", self.scales)
        require(bool(self.rpn.anchors), "rpn.anchors must name a side at least", self.rpn.anchors)
        named = self.proposal_files
        require(
            all(named) and bool(named) and (len(named) == 1 or not set(named) & set(METHODS)),
            f"proposals must be one of {', '.join(METHODS)}, or files",
            ", ".join(named) or "none",
        )
        if self.method == "rpn":
            require(self.engine == "detectron2", "proposals rpn (Faster R-CNN) needs engine detectron2", self.engine)
            require(self.sample.targets == "fixed", "with proposals rpn, sample.targets must be fixed", "by-class")
            require(self.keep.rule == "score", "with proposals rpn, keep.rule must be score", self.keep.rule)
        require(not self.roi.norm or self.roi.head in ("auto", "c4"), "roi.norm is for the head c4", self.roi.head)
        require(self.new_layers != "default", "new_layers is of fc6 and fc7 here: gaussian or kmeans", "default")
