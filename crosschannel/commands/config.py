"""The keys of every command: a dataclass is its YAML file, its flags and its help. No torch here: help is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from crosschannel.config.load import require
from crosschannel.config.training import CommandConfig, CropConfig, PlainConfig, TrainedConfig, slug
from crosschannel.config.types import (
    RUNTIME,
    Count,
    Data,
    FCWidth,
    File,
    LegacyDefault,
    Out,
    Positive,
    ProperFraction,
    Side,
    Source,
    Text,
)
from crosschannel.pretext import find_task
from crosschannel.pretext.config import ColorizationConfig


@dataclass
class ModelConfig:
    """The net."""

    name: str = "alexnet"
    """alexnet, colornet, vgg16, timm:NAME, or package.module:factory, a function of yours"""
    fc: FCWidth = 4096
    """width of AlexNet's fc6 and fc7, and of VGG-16's in tasks that use them; 0 leaves them out"""
    norm: bool = True
    """BatchNorm; false for weights that have none"""
    affine: bool = False
    """ColorNet's and VGG-16's BatchNorm has a scale and a shift, as the released ColorNet's has"""
    variant: Text = "crosschannel"
    """variant of AlexNet: crosschannel, caffenet (LRN, for norm: false), rotnet (64-192-384-256-256, no groups), …"""
    init: Literal["default", "gaussian", "kmeans", "unit-variance"] = "default"
    """initial weights; kmeans and unit-variance look at training images"""

    def check(self) -> None:
        from crosschannel.models import FAMILIES, family

        able = [name for name, row in FAMILIES.items() if row.has_option("affine")]
        fits = family(self.name).has_option("affine") or not self.affine
        require(fits, f"model.affine is for {' and '.join(able)}", self.name)
        has_variants = family(self.name).has_option("variant") or self.variant == ModelConfig.variant
        require(has_variants, "model.variant applies to alexnet only", self.variant)
        require(self.variant != "split-brain", "this model.variant belongs to --task split-brain", self.variant)


@dataclass
class PretrainConfig(TrainedConfig):
    """Learn a representation by predicting a part of an image from another."""

    data: Annotated[Text, Data()]
    """a folder of images, tar shards, builtin:sample, torchvision:imagenette or package.module:function"""
    task: Text = "colorization"
    """what is learned (`--task list` names all); each has an objective of its own, see --task NAME --help"""
    out: Annotated[Out | None, RUNTIME] = None
    """run folder; default runs/CONFIG-DATA-SEED"""
    init_from: Annotated[Text | None, Source()] = None
    """a source (run folder, weights file, kmeans:alexnet, …) whose weights to start from"""
    val_share: ProperFraction = 0.05
    """share of the images held out where the data has no val/"""
    val_images: Count = 10000
    """most images that an evaluation looks at"""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ColorizationConfig = field(default_factory=ColorizationConfig)
    crop: CropConfig = field(default_factory=CropConfig)

    def default_out(self, name: str, recipe: Mapping[str, Any] = MappingProxyType({})) -> str:
        """A run folder that names config, images and seed; images that the config names, or is called after, it does
        not."""
        images = slug(self.data.rpartition(":")[2]).strip(".")
        own = [] if not images or recipe.get("data") == self.data or images in name.split("-") else [images]
        return f"runs/{'-'.join([name, *own])}-{self.seed}"

    def check(self) -> None:
        size, resize = self.crop.size, self.crop.resize
        require(8 <= size <= resize, f"crop.size must be within 8..crop.resize ({resize})", size)
        find_task(self.task)
        if hasattr(self.objective, "check_crop"):
            self.objective.check_crop(self.crop)


@cache
def pretrain_keys(task: str | None) -> type[PretrainConfig]:
    """The keys of `crosschannel pretrain --task NAME`.

    Raises:
        UserError: there is no such task.
    """
    if task in (None, PretrainConfig.task):
        return PretrainConfig
    objective = find_task(task).keys
    task_type = Annotated[Text, LegacyDefault(PretrainConfig.task)]  # runs from before there were several tasks
    own = [("task", task_type, field(default=task))]
    own += [("objective", objective, field(default_factory=objective))]
    named = {"__module__": __name__, "__doc__": PretrainConfig.__doc__}
    return make_dataclass("PretrainConfig", own, bases=(PretrainConfig,), namespace=named)


@dataclass
class ColorizeConfig(CommandConfig):
    """Colour pictures: files or folders in, files of the same size out, their lightness kept."""

    ignored = ("seed",)

    model: Annotated[str, Source("colorizer")] = "zoo:eccv16"
    """a run folder, its colorizer.safetensors, zoo:eccv16 (the paper's net, downloaded once), hf-hub:owner/name or an
    eccv16 .pth"""
    out: Out | None = None
    """folder for the coloured pictures, or of a single one the file (.png, .jpg); default photo-coloured.png beside
    photo.jpg, and the folder scans-coloured beside scans"""
    images: Annotated[list[str], File(packaged=("builtin:sample",))] = field(default_factory=list)
    """picture files, folders of them, or builtin:sample"""
    temperature: Positive | None = None
    """of the annealed mean: lower is more vivid, 1 is the mean; default the net's own (0.38)"""
    saturation: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """what the predicted ab are multiplied by; 1 leaves them, 0 is grey"""
    upsample: Literal["edges", "bilinear"] = "edges"
    """how predictions reach every pixel: edges: so that colours stop at them; bilinear: as in the paper"""
    gamut: Literal["map", "clip"] = "map"
    """colours that sRGB cannot show: map moves them towards grey and keeps their lightness, clip clips channels"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """short side at which the net looks at a picture; 0 takes the net's own"""
    format: Literal["png", "jpeg"] | None = None
    """of the files written; default by the ending of --out, else png"""
    overwrite: bool = False
    """replace files that this command has not written; pictures to be coloured stay in any case"""


@dataclass
class PriorConfig(CommandConfig):
    """Estimate how often each of the 313 ab bins occurs in a collection of images."""

    data: Annotated[str, Data()]
    """a folder of images, tar shards, builtin:sample or torchvision:imagenette"""
    out: Out
    """the file to write (.npz)"""
    size: Side = 256
    """images are reduced to this short side and cropped to its centre square"""
    neighbours: Annotated[int, Interval(ge=1, le=313)] = 5
    """bins that a colour is spread over"""
    sigma: Annotated[float, Interval(gt=0, le=1000)] = 5.0
    """standard deviation of that spread, in ab units"""
    limit: Annotated[int, Ge(0)] = 0
    """look at so many images, chosen at random; 0 takes all"""
    overwrite: bool = False
    """replace a file that this command has not written"""


@dataclass
class ShardConfig(CommandConfig):
    """Pack images into tar shards (webdataset layout) with an index, optionally reduced in size."""

    ignored = ("device",)

    data: Annotated[str, Data()]
    """a folder of images, tar shards, builtin:sample or torchvision:imagenette"""
    out: str
    """an empty or new folder"""
    size: Annotated[int, Interval(ge=0, le=65536)] = 0
    """reduce larger images to this short side; 0 keeps the files as they are"""
    shard_mb: Annotated[int, Interval(ge=1, le=1 << 20)] = 256
    """megabytes of a shard"""
    val_share: ProperFraction = 0.05
    """share held out for validation where the data has no val/"""


@dataclass
class ExportConfig(PlainConfig):
    """Write a backbone for other libraries, with a model card beside it."""

    backbone: Annotated[str, Source()]
    """a source, such as a run folder"""
    out: Out
    """the file to write"""
    format: Literal["safetensors", "torchvision", "timm", "onnx", "detectron2"] = "safetensors"
    """safetensors (ours), torchvision (VGG-16, and AlexNets of its shape), timm, onnx, or detectron2"""
    part: Literal["backbone", "colorizer"] = "backbone"
    """what of it: colorizer is the whole net with its decode, for onnx: lightness in, distribution and ab out"""
    licence: str | None = None
    """of the weights, as the Hugging Face Hub spells it; default what their file says (runs of ours: bsd-2-clause)"""
    layer: Text = "all"
    """maps that an onnx file gives: one layer, several (by commas), patterns such as conv*, or all"""
    probes: Annotated[list[str], File()] = field(default_factory=list)
    """finished probe runs of this backbone, for a table in the card"""
    card: bool = True
    """write README.md beside the file"""
    overwrite: bool = False
    """replace files that this command has not written; what it reads stays in any case"""

    def check(self) -> None:
        require(self.part == "backbone" or self.format == "onnx", "part colorizer is for format onnx", self.format)
        require(self.part == "backbone" or self.layer == "all", "part colorizer has no layers to choose", self.layer)


@dataclass
class PushConfig(PlainConfig):
    """Upload a backbone (and its colorization head) with a model card to the Hugging Face Hub."""

    backbone: Annotated[str, Source()]
    """a source, such as a run folder"""
    repository: str
    """owner/name"""
    licence: str | None = None
    """of the weights, as the Hub spells it; default what their file says (runs of ours: bsd-2-clause)"""
    probes: Annotated[list[str], File()] = field(default_factory=list)
    """finished probe runs of this backbone, for a table in the card"""
    private: bool = False
    """create a private repository"""


@dataclass
class ImportConfig(PlainConfig):
    """Read a .pth, .safetensors or .caffemodel file of somebody else's and write one of ours."""

    file: Annotated[str, File()]
    """the weights file"""
    out: Out
    """the .safetensors file to write"""
    name: str | None = None
    """(also --as) what it is: alexnet, vgg16, colornet, caffe, or a format; default by the names in it"""
    input: Literal["grey", "lab", "rgb"] | None = None
    """grey, lab or rgb, where the first convolution's channels leave it open"""
    key: str = ""
    """entry to read from a checkpoint of several nets, such as state_dict or teacher; default: averaged weights"""
    licence: str = "unknown"
    """of the weights, for the metadata"""
    overwrite: bool = False
    """replace a file that this command has not written; what it reads stays in any case"""


@dataclass
class ZooConfig(PlainConfig):
    """List the weights that `zoo:NAME` knows."""


@dataclass
class LayersConfig(PlainConfig):
    """List the layers of a backbone, with their channels and strides."""

    backbone: Annotated[str, Source()]
    """a source: a run folder, timm:NAME, package.module:factory …"""


@dataclass
class ConfigsConfig(PlainConfig):
    """List the packaged configs, those of every command in its own group."""


@dataclass
class FetchConfig(PlainConfig):
    """Download the weights of a source into its cache, so that a node without a network finds them."""

    source: str
    """zoo:NAME (or NAME), hf-hub:owner/name, torchvision:NAME or timm:NAME"""
