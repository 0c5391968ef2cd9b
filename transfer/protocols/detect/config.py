"""Config of `transfer detect`.

The defaults are Fast R-CNN on selective-search proposals, with difficult objects and detection filtering handled as in
py-faster-rcnn. The config ``paper`` handles both as in Fast R-CNN.
"""

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
    """RoI pooling and head."""

    layer: Text = ""
    """layer whose feature map regions are pooled from; default: the last layer below pool5 if the net has fc6, the
    second-to-last stage of a ResNet, otherwise the last layer with a stride of 16 or less"""
    head: Literal["auto", "fc", "c4", "mlp"] = "auto"
    """layers on top of the pooled map. fc: the backbone's fc6 and fc7; c4: a ResNet's last stage; mlp: two new layers;
    auto: the first of these that the backbone supports"""
    pooling: Literal["max", "align"] = "max"
    """pooling operation. max: Fast R-CNN's RoI pooling, which rounds box coordinates; align: RoIAlign"""
    resolution: Annotated[int, Interval(ge=0, le=64)] = 0
    """side of the pooled map, in points; 0: the kernel size of fc6 (AlexNet 6, VGG-16 7), 14 for c4, or 7 for mlp"""
    aligned: bool = True
    """place the points of the feature map at their true centres; false: as if its first cell started at the image's
    corner, as in detectron2"""
    geometry: Literal["padded", "probe"] = "padded"
    """padding of an AlexNet up to pool5. padded: as in pretraining, with the map's points on the pixel grid; probe: as
    in the other protocols"""
    width: Annotated[int, Interval(ge=1, le=65536)] = 1024
    """width of the two layers of the mlp head"""
    norm: bool = False
    """append a BatchNorm to a ResNet's last stage (head c4)"""


@dataclass
class SampleConfig:
    """Training regions and their targets."""

    regions: Count = 64
    """number of regions sampled per image and step"""
    foreground: Fraction = 0.25
    """maximum fraction of the sampled regions that are foreground"""
    overlap: Fraction = 0.5
    """minimum IoU of a foreground region with an object"""
    background: tuple[Fraction, Fraction] = (0.1, 0.5)
    """range of a background region's highest IoU with any object: minimum, and exclusive upper bound"""
    difficult: bool = False
    """train on objects marked difficult, as Fast R-CNN and detectron2 do (py-faster-rcnn does not)"""
    targets: Literal["by-class", "fixed"] = "by-class"
    """normalisation of box targets. by-class: mean and std of each class; fixed: mean 0, std 0.1, 0.1, 0.2 and 0.2"""
    beta: NonNegative = 1.0
    """error at which the smooth L1 loss of the boxes changes from quadratic to linear; 0: L1 loss"""

    def check(self) -> None:
        require(
            self.background[0] < self.background[1] <= self.overlap,
            "sample.background must ascend, and its upper bound must not exceed sample.overlap",
            self.background,
        )


@dataclass
class FilterConfig:
    """Filtering of detections."""

    rule: Literal["score", "adaptive"] = "score"
    """rule for keeping detections. score: those with a score above keep.score (py-faster-rcnn); adaptive: per class,
    the best 40 per image on average (Fast R-CNN)"""
    score: Fraction = 0.05
    """score threshold of the rule score"""
    nms: Fraction = 0.3
    """maximum IoU of two detections of the same class (non-maximum suppression)"""
    most: Count = 100
    """maximum number of detections per image; with the rule adaptive, per image and class"""


@dataclass
class RPNConfig:
    """Region proposal network (Faster R-CNN)."""

    before: tuple[Count, Count] = (12000, 6000)
    """maximum number of proposals per image before non-maximum suppression, in training and at test time"""
    after: tuple[Count, Count] = (2000, 1000)
    """maximum number of proposals per image after non-maximum suppression, in training and at test time"""
    nms: Fraction = 0.7
    """maximum IoU of two proposals (non-maximum suppression)"""
    anchors: list[Count] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """sides of the anchors, in pixels; each is used with the aspect ratios 1:2, 1:1 and 2:1"""


@dataclass
class DetectConfig(PascalConfig, FineTuneConfig):
    """Fine-tune a backbone as an object detector."""

    protocol: ClassVar[str] = "detect"

    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """library that provides the operations and heads; both give the same results, but Faster R-CNN needs detectron2"""
    proposals: Annotated[str | list[str], File(packaged=METHODS)] = "selective-search"
    """source of the proposals: selective-search, selective-search-quality, rpn (Faster R-CNN), or one or more files
    (.npz of `transfer proposals`, or published .mat files)"""
    most_proposals: Count = 2000
    """maximum number of proposals per image; the first ones are used"""
    scales: list[Annotated[int, Interval(ge=16, le=8192)]] = field(default_factory=lambda: [480, 576, 688, 864, 1200])
    """short sides that training images are resized to, in pixels; one is drawn at random for each image"""
    longest: Annotated[int, Interval(ge=16, le=1 << 16)] = 2000
    """maximum long side of resized training images, in pixels"""
    test_scale: Annotated[int, Interval(ge=16, le=8192)] = 600
    """short side that test images are resized to, in pixels"""
    test_longest: Annotated[int, Interval(ge=16, le=1 << 16)] = 1000
    """maximum long side of resized test images, in pixels"""
    mirror: bool = True
    """mirror half of the training images"""
    score_train: bool = False
    """also evaluate on the training images"""
    sync_norm: bool = False
    """synchronise BatchNorm statistics across ranks; GPUs only"""
    roi: RoIConfig = field(default_factory=RoIConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    keep: FilterConfig = field(default_factory=FilterConfig)
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
        """Proposal files; for a built-in method, a list that contains only its name."""
        return [self.proposals] if isinstance(self.proposals, str) else list(self.proposals)

    @property
    def method(self) -> str:
        """Method that computes the proposals, one of ``METHODS``; empty if they are read from files."""
        sources = self.proposal_files
        return sources[0] if len(sources) == 1 and sources[0] in METHODS else ""

    def check(self) -> None:
        super().check()
        require(bool(self.scales), "scales must contain at least one short side", self.scales)
        require(bool(self.rpn.anchors), "rpn.anchors must contain at least one side", self.rpn.anchors)
        sources = self.proposal_files
        require(
            all(sources) and bool(sources) and (len(sources) == 1 or not set(sources) & set(METHODS)),
            f"proposals must be one of {', '.join(METHODS)}, or files",
            ", ".join(sources) or "none",
        )
        if self.method == "rpn":
            require(self.engine == "detectron2", "proposals rpn (Faster R-CNN) needs engine detectron2", self.engine)
            require(self.sample.targets == "fixed", "sample.targets must be fixed with proposals rpn", "by-class")
            require(self.keep.rule == "score", "keep.rule must be score with proposals rpn", self.keep.rule)
        require(not self.roi.norm or self.roi.head in ("auto", "c4"), "roi.norm needs the head c4", self.roi.head)
        require(self.new_layers != "default", "new_layers must be gaussian or kmeans for detection", "default")
