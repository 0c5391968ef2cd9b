"""Config keys shared by protocols, and configs of the commands for finished runs. Does not import torch, to keep
``--help`` fast."""

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
SETS = Pattern(r"\d{4}:[\w-]+(,\d{4}:[\w-]+)*", "YEAR:SET, such as 2007:trainval, or several separated by commas")
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class MeasureConfig(CommandConfig):
    """Keys of every protocol."""

    protocol: ClassVar[str]

    backbone: Annotated[Text, Source()] = ""
    """source of the backbone: run folder, weights file, random:…, timm:…, torchvision:… or package.module:factory"""
    data: Annotated[Text, Data()] = ""
    """labelled images: a folder with train/CLASS/ and val/CLASS/, ILSVRC, shards, torchvision:imagenette or
    builtin:sample"""
    out: Annotated[Out | None, RUNTIME] = None
    """run folder; default: runs/PROTOCOL-BACKBONE-LAYER-DATA-CONFIG-SEED"""

    def default_out(self, name: str, recipe: Mapping[str, Any] = MappingProxyType({})) -> str:
        """Return the default run folder, named after protocol, backbone, data, config and seed.

        The layer is part of the name if it differs from the config's.

        Args:
            name: name of the packaged config, or of the protocol if there is none.
            recipe: keys that the packaged config sets.
        """
        config, data = name if name != self.protocol else "default", slug(self.data.rpartition(":")[2])
        layer = getattr(self, "layer", "")
        layer_part = [] if layer == recipe.get("layer", "all" if layer else "") else [slug(layer.replace("*", ""))]
        parts = [slug(self.protocol), slug(self.backbone), *layer_part]
        return f"runs/{'-'.join([*parts, *dict.fromkeys([data, config])])}-{self.seed}"


@dataclass
class FrozenConfig(MeasureConfig):
    """Keys of protocols that measure layers of a frozen backbone."""

    layer: Text = "all"
    """layers to measure: names or patterns such as conv*, separated by commas, or all"""


@dataclass
class FeaturesConfig(FrozenConfig):
    """Keys of protocols that compute features once and then fit models to them, without a training loop."""

    pooling: Pooling = "average"
    """pooling of feature maps to fewer than 10,000 dimensions. average, bilinear: any backbone; windows: AlexNet, the
    paper's windows; vissl: AlexNet and ResNets, VISSL's windows; global: mean over positions"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """side of the input images, in pixels; 0: the backbone's input size"""
    cache: Literal["memory", "disk"] = "memory"
    """where to store the features; disk: later runs reuse them"""
    precision: Precision = "auto"
    """precision of the forward pass; auto: chosen by device"""
    batch: Annotated[Count, RUNTIME] = 64
    """images per batch and rank"""
    workers: Annotated[Workers, RUNTIME] = 2
    """processes per rank that decode images"""
    broken_limit: Annotated[Fraction, RUNTIME] = 0.01
    """maximum fraction of broken images, checked after the first 1,000"""


@dataclass
class FineTuneConfig(TrainedConfig, MeasureConfig):
    """Keys of protocols that fine-tune the backbone or train a new classifier on it."""

    train_from: Text = "all"
    """first trained layer; layers below it are frozen. fc8 or head: only the new classifier; fc6 or pool: all layers
    above the last pooled map; all: every layer; or the name of a layer"""
    random_from: Text = ""
    """re-initialise from this layer up (fc6, or any layer of a built-in architecture); default: only the classifier and
    layers that the backbone lacks"""
    new_layers: Literal["gaussian", "kmeans", "default"] = "gaussian"
    """initialisation of new layers. gaussian: N(0, 0.01) weights, biases of 0.1; kmeans: gaussian for the classifier,
    k-means below it; default: gaussian, but PyTorch's default weights for the classifier"""
    input: Literal["grey", "lab"] | None = None
    """colour space of the input; lab adds ab filters, initialised to zero, to the first layer of a greyscale backbone;
    default: the backbone's input"""
    absorb: bool = True
    """fold BatchNorm into the preceding convolutions if that is exact (built-in AlexNet and VGG-16)"""
    calibrate: Literal["auto"] | bool = "auto"
    """rescale weights so that all layers learn at the same rate; auto: only built-in architectures without
    normalisation layers"""
    frozen_norm: bool = False
    """freeze the statistics, scale and shift of BatchNorm layers"""
    fc: Annotated[int, Interval(ge=1, le=65536)] = 4096
    """width of fc6 and fc7, if they are added to an AlexNet or VGG-16 that lacks them"""
    dropout: FractionBelowOne = 0.5
    """dropout probability after fc6 and fc7"""


@dataclass
class CompareConfig(CommandConfig):
    """Compare two finished runs on the same images."""

    ignored = ("device",)

    runs: Annotated[list[str], File()] = field(default_factory=list)
    """two run folders, or RUN:METHOD for runs of `crosschannel evaluate`"""
    resamples: Annotated[int, Interval(ge=1, le=10_000_000)] = 10_000
    """number of bootstrap resamples of the images"""
    level: ProperFraction = 0.95
    """confidence level of the intervals"""


@dataclass
class PredictConfig(CommandConfig):
    """Predict masks, boxes or class scores for pictures with a finished run."""

    ignored = ("seed",)

    run: Annotated[str, File()]
    """a finished run folder"""
    out: Out
    """output folder"""
    images: Annotated[list[str], File(packaged=("builtin:sample",))] = field(default_factory=list)
    """picture files, folders of pictures, or builtin:sample"""
    layer: Text | None = None
    """layer to predict from, for runs on frozen layers; default: the layer with the best metric"""
    size: Annotated[int, Interval(ge=0, le=65536)] = 512
    """short side to which larger pictures are resized for a fine-tuned segmentation network, in pixels; 0: no resizing.
    Masks have the size of the picture"""
    overwrite: bool = False
    """replace files that this command did not write; input pictures are never replaced"""


@dataclass
class ProposalsConfig(PlainConfig):
    """Compute object proposals for the images of a VOC devkit, one file per image set."""

    data: Annotated[Text, Data()]
    """VOCdevkit folder, which contains VOC2007 or other years"""
    out: Out
    """output folder for the files YEAR-SET-METHOD.npz"""
    sets: Annotated[str, SETS] = "2007:trainval,2007:test"
    """image sets, separated by commas"""
    method: Literal["selective-search", "selective-search-quality"] = "selective-search"
    """selective search in fast mode, or in quality mode, which takes four times as long"""
    workers: Workers = 2
    """number of processes"""
    overwrite: bool = False
    """replace files that this command did not write"""


@dataclass
class ReportConfig(PlainConfig):
    """Write report.md, report.html and tables.tex, with plots, from finished runs."""

    out: Out
    """output folder; only files of an earlier report are replaced"""
    runs: Annotated[list[str], File()] = field(default_factory=list)
    """run folders of any command"""
    title: str = "Transfer results"
    """title of the page"""
    label: list[str] = field(default_factory=list)
    """display name of a run, RUN=TEXT or BACKBONE=TEXT; can be repeated"""
    overwrite: bool = False
    """replace files that no report wrote"""
