"""Configs of the commands: a dataclass defines the YAML keys, flags and help of a command.

Does not import torch, so that help is fast.
"""

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
    """Model."""

    name: str = "alexnet"
    """architecture: alexnet, colornet, vgg16, timm:NAME, or a user-defined package.module:factory"""
    fc: FCWidth = 4096
    """width of fc6 and fc7: AlexNet, and VGG-16 in tasks that keep these layers; 0 omits them"""
    norm: bool = True
    """use BatchNorm; set to false for initial weights without BatchNorm"""
    affine: bool = False
    """ColorNet, VGG-16: give BatchNorm a learnable scale and shift, as in the released ColorNet"""
    variant: Text = "crosschannel"
    """variant of AlexNet: crosschannel, caffenet (with LRN; use with norm: false), rotnet (64-192-384-256-256, no
    groups), …"""
    init: Literal["default", "gaussian", "kmeans", "unit-variance"] = "default"
    """weight initialisation; kmeans and unit-variance are computed from training images"""

    def check(self) -> None:
        from crosschannel.models import FAMILIES, family

        supported = [name for name, entry in FAMILIES.items() if entry.has_option("affine")]
        affine_is_valid = family(self.name).has_option("affine") or not self.affine
        require(affine_is_valid, f"model.affine applies to {' and '.join(supported)} only", self.name)
        variant_is_valid = family(self.name).has_option("variant") or self.variant == ModelConfig.variant
        require(variant_is_valid, "model.variant applies to alexnet only", self.variant)
        require(self.variant != "split-brain", "this model.variant is reserved for --task split-brain", self.variant)


@dataclass
class PretrainConfig(TrainedConfig):
    """Pretrain a model on a pretext task, such as predicting colour from lightness."""

    data: Annotated[Text, Data()]
    """images: a folder, tar shards, builtin:sample, torchvision:imagenette or package.module:function"""
    task: Text = "colorization"
    """pretext task (`--task list` lists all); `--task NAME --help` lists the keys of its objective"""
    out: Annotated[Out | None, RUNTIME] = None
    """run folder; default runs/CONFIG-DATA-SEED"""
    init_from: Annotated[Text | None, Source()] = None
    """source of the initial weights: a run folder, a weights file, kmeans:alexnet, …"""
    val_share: ProperFraction = 0.05
    """fraction of the images to hold out for validation if the data has no val/ split"""
    val_images: Count = 10000
    """maximum number of images per evaluation"""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ColorizationConfig = field(default_factory=ColorizationConfig)
    crop: CropConfig = field(default_factory=CropConfig)

    def default_out(self, name: str, file_values: Mapping[str, Any] = MappingProxyType({})) -> str:
        """Return the default run folder, named after config, images and seed.

        The images are omitted if the config file sets ``data``, or if its own name already contains theirs.
        """
        label = slug(self.data.rpartition(":")[2]).strip(".")
        suffix = [] if not label or file_values.get("data") == self.data or label in name.split("-") else [label]
        return f"runs/{'-'.join([name, *suffix])}-{self.seed}"

    def check(self) -> None:
        size, resize = self.crop.size, self.crop.resize
        require(8 <= size <= resize, f"crop.size must be within 8..crop.resize ({resize})", size)
        find_task(self.task)
        if hasattr(self.objective, "check_crop"):
            self.objective.check_crop(self.crop)


@cache
def pretrain_keys(task: str | None) -> type[PretrainConfig]:
    """Return the config dataclass of `crosschannel pretrain --task NAME`.

    Raises:
        UserError: an unknown task.
    """
    if task in (None, PretrainConfig.task):
        return PretrainConfig
    objective = find_task(task).keys
    task_type = Annotated[Text, LegacyDefault(PretrainConfig.task)]  # for runs older than the key
    fields = [("task", task_type, field(default=task))]
    fields += [("objective", objective, field(default_factory=objective))]
    namespace = {"__module__": __name__, "__doc__": PretrainConfig.__doc__}
    return make_dataclass("PretrainConfig", fields, bases=(PretrainConfig,), namespace=namespace)


@dataclass
class ColorizeConfig(CommandConfig):
    """Colorize pictures or folders of pictures, and preserve their size and lightness."""

    ignored = ("seed",)

    model: Annotated[str, Source("colorizer")] = "zoo:eccv16"
    """source of the model: a run folder, its colorizer.safetensors, zoo:eccv16 (the paper's model, downloaded once),
    hf-hub:owner/name or an eccv16 .pth file"""
    out: Out | None = None
    """output folder, or output file (.png, .jpg) of a single picture; default photo-coloured.png next to photo.jpg, and
    the folder scans-coloured next to the folder scans"""
    images: Annotated[list[str], File(packaged=("builtin:sample",))] = field(default_factory=list)
    """picture files, folders of pictures, or builtin:sample"""
    temperature: Positive | None = None
    """temperature of the annealed mean: 1 is the mean, lower is more vivid; default: the model's own, usually 0.38"""
    saturation: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """factor applied to the predicted ab values; 1 leaves them unchanged, 0 gives grey"""
    upsample: Literal["edges", "bilinear"] = "edges"
    """upsampling of the predictions to full resolution. edges: colours stop at edges of the picture; bilinear: as in
    the paper"""
    gamut: Literal["map", "clip"] = "map"
    """treatment of colours outside sRGB. map: move towards grey at constant lightness; clip: clip the RGB channels"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """short side of the model's input, in pixels; 0 uses the model's own input size"""
    format: Literal["png", "jpeg"] | None = None
    """format of the output files; default: by the extension of --out, else png"""
    overwrite: bool = False
    """replace files that this command did not write; input pictures are never replaced"""


@dataclass
class PriorConfig(CommandConfig):
    """Estimate the frequency of each of the 313 ab bins in a set of images."""

    data: Annotated[str, Data()]
    """images: a folder, tar shards, builtin:sample or torchvision:imagenette"""
    out: Out
    """output file (.npz)"""
    size: Side = 256
    """side to which the centre square of larger images is downscaled, in pixels"""
    neighbours: Annotated[int, Interval(ge=1, le=313)] = 5
    """number of nearest bins that each colour is spread over"""
    sigma: Annotated[float, Interval(gt=0, le=1000)] = 5.0
    """standard deviation of the Gaussian that weights these bins, in ab units"""
    limit: Annotated[int, Ge(0)] = 0
    """number of images to use, chosen at random; 0 uses all"""
    overwrite: bool = False
    """replace a file that this command did not write"""


@dataclass
class ShardConfig(CommandConfig):
    """Pack images into indexed tar shards (webdataset layout), optionally downscaled."""

    ignored = ("device",)

    data: Annotated[str, Data()]
    """images: a folder, tar shards, builtin:sample or torchvision:imagenette"""
    out: str
    """output folder, new or empty"""
    size: Annotated[int, Interval(ge=0, le=65536)] = 0
    """short side to which larger images are downscaled, in pixels; 0 copies the files unchanged"""
    shard_mb: Annotated[int, Interval(ge=1, le=1 << 20)] = 256
    """size at which a shard is closed and the next one started, in MiB"""
    val_share: ProperFraction = 0.05
    """fraction of the images to hold out for validation if the data has no val/ split"""


@dataclass
class ExportConfig(PlainConfig):
    """Export a backbone to other libraries, with a model card."""

    backbone: Annotated[str, Source()]
    """source of the backbone, such as a run folder"""
    out: Out
    """output file"""
    format: Literal["safetensors", "torchvision", "timm", "onnx", "detectron2"] = "safetensors"
    """output format: safetensors (crosschannel's own), torchvision (VGG-16, and AlexNets that match torchvision's),
    timm, onnx or detectron2"""
    part: Literal["backbone", "colorizer"] = "backbone"
    """part to export. backbone: feature maps; colorizer: the full model with its decoder (onnx only): lightness in,
    colour distribution and ab out"""
    licence: str | None = None
    """licence identifier of the weights, as used on the Hugging Face Hub; default: the licence stored in the weights
    file (crosschannel runs: bsd-2-clause)"""
    layer: Text = "all"
    """outputs of an onnx file: a layer, several separated by commas, a pattern such as conv*, or all"""
    probes: Annotated[list[str], File()] = field(default_factory=list)
    """run folders of finished probes of this backbone, for a table in the model card"""
    card: bool = True
    """write a model card, README.md, next to the file"""
    overwrite: bool = False
    """replace files that this command did not write; input files are never replaced"""

    def check(self) -> None:
        require(self.part == "backbone" or self.format == "onnx", "part colorizer requires format onnx", self.format)
        require(self.part == "backbone" or self.layer == "all", "part colorizer requires layer all", self.layer)


@dataclass
class PushConfig(PlainConfig):
    """Upload a backbone (and its colorization head) with a model card to the Hugging Face Hub."""

    backbone: Annotated[str, Source()]
    """source of the backbone, such as a run folder"""
    repository: str
    """repository on the Hub, owner/name"""
    licence: str | None = None
    """licence of the weights, as spelled on the Hub; default: the licence stored in the weights file (crosschannel
    runs: bsd-2-clause)"""
    probes: Annotated[list[str], File()] = field(default_factory=list)
    """run folders of finished probes of this backbone, for a table in the model card"""
    private: bool = False
    """create a private repository"""


@dataclass
class ImportConfig(PlainConfig):
    """Convert a third-party .pth, .safetensors or .caffemodel file to a crosschannel file."""

    file: Annotated[str, File()]
    """weights file to convert"""
    out: Out
    """output file (.safetensors)"""
    name: str | None = None
    """(also --as) architecture (alexnet, vgg16, colornet, caffe) or format of the weights; default: inferred from the
    tensor names"""
    input: Literal["grey", "lab", "rgb"] | None = None
    """input colour space; needed only if the first convolution does not determine it"""
    key: str = ""
    """entry to read from a checkpoint with several models, such as state_dict or teacher; default: averaged weights if
    present"""
    licence: str = "unknown"
    """licence of the weights, stored in the metadata"""
    overwrite: bool = False
    """replace a file that this command did not write; input files are never replaced"""


@dataclass
class ZooConfig(PlainConfig):
    """List the published weights that are available as `zoo:NAME`."""


@dataclass
class LayersConfig(PlainConfig):
    """List the layers of a backbone, with their channels and strides."""

    backbone: Annotated[str, Source()]
    """source of the backbone: a run folder, timm:NAME, package.module:factory, …"""


@dataclass
class ConfigsConfig(PlainConfig):
    """List the packaged configs, grouped by command."""


@dataclass
class FetchConfig(PlainConfig):
    """Download the weights of a source to the local cache, for use on nodes without a network."""

    source: str
    """source of the weights: zoo:NAME (or NAME), hf-hub:owner/name, torchvision:NAME or timm:NAME"""
