"""Keys that protocols share, and those of the commands on finished runs. No torch here: help is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.training import CommandConfig, PlainConfig, TrainedConfig, slug
from crosschannel.config.types import (
    RUNTIME,
    Count,
    Data,
    File,
    Fraction,
    FractionBelowOne,
    Out,
    Pattern,
    ProperFraction,
    Source,
    Text,
    Workers,
)

Pooling = Literal["average", "windows", "vissl", "bilinear", "global", "deepcluster"]
Cache = Literal["off", "memory", "disk"]
SETS = Pattern(r"\d{4}:[\w-]+(,\d{4}:[\w-]+)*", "YEAR:SET, such as 2007:trainval, or several by commas")
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class MeasureConfig(CommandConfig):
    """Keys of every protocol."""

    protocol: ClassVar[str]

    backbone: Annotated[Text, Source()] = ""
    """a source: run folder, weights file, random:…, timm:…, torchvision:…, package.module:factory"""
    data: Annotated[Text, Data()] = ""
    """labelled images: a folder with train/CLASS/ and val/CLASS/, ILSVRC, shards, torchvision:imagenette or
    builtin:sample"""
    out: Annotated[Out | None, RUNTIME] = None
    """run folder; default runs/PROTOCOL-BACKBONE-LAYER-DATA-CONFIG-SEED"""

    def default_out(self, name: str, recipe: Mapping[str, Any] = MappingProxyType({})) -> str:
        """A run folder that names protocol, backbone, images, config and seed, and the layer where it is another than
        its recipe's."""
        config, data = name if name != self.protocol else "default", slug(self.data.rpartition(":")[2])
        layer = getattr(self, "layer", "")
        own = [] if layer == recipe.get("layer", "all" if layer else "") else [slug(layer.replace("*", ""))]
        parts = [slug(self.protocol), slug(self.backbone), *own]
        return f"runs/{'-'.join([*parts, *dict.fromkeys([data, config])])}-{self.seed}"


@dataclass
class FrozenConfig(MeasureConfig):
    """Keys of every protocol that reads layers of a frozen backbone."""

    layer: Text = "all"
    """one layer, several (comma separated), patterns such as conv*, or all"""


@dataclass
class FeaturesConfig(FrozenConfig):
    """Keys of every protocol that computes features once and learns from them without a loop."""

    pooling: Pooling = "average"
    """to fewer than 10,000 numbers: average or bilinear for any net; windows (the paper's) for AlexNet; vissl (its
    windows) for AlexNets and ResNets; global, the mean over positions"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of what the backbone is given; 0: what it was trained on"""
    cache: Literal["memory", "disk"] = "memory"
    """where features are kept"""
    precision: Precision = "auto"
    """arithmetic of the forward pass; auto: by device"""
    batch: Annotated[Count, RUNTIME] = 64
    """images a rank computes at once"""
    workers: Annotated[Workers, RUNTIME] = 2
    """processes per rank that decode images"""
    broken_limit: Annotated[Fraction, RUNTIME] = 0.01
    """greatest share of broken images, once 1,000 were seen"""


@dataclass
class FineTuneConfig(TrainedConfig, MeasureConfig):
    """Keys of every protocol that trains the backbone, or what stands on it."""

    train_from: Text = "all"
    """where gradients start: fc8 (or head, the new classifier alone), fc6 (or pool, all above the last pooled map), all
    or any layer; what is below stays as it is"""
    random_from: Text = ""
    """where weights are new: fc6, or any layer of a net of ours; none: the classifier, and what the backbone lacks"""
    new_layers: Literal["gaussian", "kmeans", "default"] = "gaussian"
    """N(0, 0.01) with bias 0.1; kmeans: so the classifier, and k-means below it; default: but for the classifier's
    weights, which are PyTorch's"""
    input: Literal["grey", "lab"] | None = None
    """lab gives a grey net's first convolution ab filters of zero, to be trained; default the backbone's own input"""
    absorb: bool = True
    """fold BatchNorm into the convolutions before it, where that is exact (our AlexNet and VGG-16)"""
    calibrate: Literal["auto"] | bool = "auto"
    """rescale all layers so that they learn alike; auto: where layers follow one another and there is no BatchNorm"""
    frozen_norm: bool = False
    """keep BatchNorm's statistics, scale and shift as they are"""
    fc: Annotated[int, Interval(ge=1, le=65536)] = 4096
    """width of the fc6 and fc7 that an AlexNet's trunk is given"""
    dropout: FractionBelowOne = 0.5
    """after fc6 and fc7"""


@dataclass
class CompareConfig(CommandConfig):
    """Compare two finished runs on the same images."""

    ignored = ("device",)

    runs: Annotated[list[str], File()] = field(default_factory=list)
    """two run folders; of `crosschannel evaluate`: RUN:METHOD"""
    resamples: Annotated[int, Interval(ge=1, le=10_000_000)] = 10_000
    """of the bootstrap over images"""
    level: ProperFraction = 0.95
    """of the interval"""


@dataclass
class PredictConfig(CommandConfig):
    """Say of pictures what a finished run has learned to say: masks, boxes or scores."""

    ignored = ("seed",)

    run: Annotated[str, File()]
    """a finished run folder"""
    out: Out
    """folder for what is predicted"""
    images: Annotated[list[str], File(packaged=("builtin:sample",))] = field(default_factory=list)
    """picture files, folders of them, or builtin:sample"""
    layer: Text | None = None
    """of a run on frozen layers; default its best one"""
    size: Annotated[int, Interval(ge=0, le=65536)] = 512
    """short side at which a fine-tuned segmentation looks at larger pictures; 0: their own. Masks are of full size"""
    overwrite: bool = False
    """replace files that this command has not written; pictures that are read stay in any case"""


@dataclass
class ProposalsConfig(PlainConfig):
    """Find boxes that may hold an object in the images of a VOC devkit, a file an image set."""

    data: Annotated[Text, Data()]
    """the VOCdevkit folder (VOC2007 and the like are in it)"""
    out: Out
    """folder for the files, YEAR-SET-METHOD.npz"""
    sets: Annotated[str, SETS] = "2007:trainval,2007:test"
    """image sets, by commas"""
    method: Literal["selective-search", "selective-search-quality"] = "selective-search"
    """selective search in its fast mode, or in the one of quality, which takes four times as long"""
    workers: Workers = 2
    """processes that search"""
    overwrite: bool = False
    """replace files that this command has not written"""


@dataclass
class ReportConfig(PlainConfig):
    """Gather finished runs into report.md, report.html and tables.tex, with plots."""

    out: Out
    """folder for the page; files of an earlier report in it are replaced, others are not"""
    runs: Annotated[list[str], File()] = field(default_factory=list)
    """run folders, of any protocol"""
    title: str = "What the backbones learned"
    """of the page"""
    label: list[str] = field(default_factory=list)
    """RUN=TEXT or BACKBONE=TEXT: name of a run on the page; repeat the flag for further runs"""
    overwrite: bool = False
    """replace files that no report has written"""
