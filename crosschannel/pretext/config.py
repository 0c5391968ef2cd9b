"""The keys of each pretext task. No torch here: help is quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from crosschannel.config.training import CropConfig
from crosschannel.config.types import Count, File, Fraction, FractionBelowOne, LegacyDefault, NonNegative, Text
from crosschannel.errors import UserError

PRIORS = ("imagenet-256", "imagenet-256-k10")  # that ship with the package
Normalise = Literal["pixels", "images"]


@dataclass
class ColorizationConfig:
    """What is predicted."""

    kind: Literal["class", "l2"] = "class"
    """class: classification over 313 ab bins; l2: regression of ab in units of 110, as the release's nets have it"""
    lam: Fraction = 0.5
    """λ of the class weights: 0.5 rebalanced, 1 plain classification; 0 needs a prior of many images"""
    uniform: Literal["all", "seen"] = "all"
    """bins that λ is spread over: all, or those that the prior saw (the release)"""
    neighbours: Annotated[int, Interval(ge=1, le=313)] = 5
    """bins that a target colour is spread over (the release: 10)"""
    sigma: Annotated[float, Interval(gt=0, le=1000)] = 5.0
    """standard deviation of that spread, in ab units"""
    prior: Annotated[Text, File(packaged=PRIORS)] = "imagenet-256"
    """the packaged ab prior, or a file written by `crosschannel prior`"""
    grey_threshold: NonNegative = 0.0
    """crops with all |a|, |b| within it give no gradient (the release: 5); 0 keeps all"""
    normalise: Normalise = "pixels"
    """divide the summed loss by all target pixels of the batch, or by its images"""

    def check(self) -> None:
        if self.kind == "class" and self.lam == 0 and self.prior in PRIORS:
            raise UserError(
                f"the packaged prior {self.prior} is of 600 photographs, too few for a lam of 0: estimate one of your "
                "images with `crosschannel prior`"
            )


@dataclass
class LarssonConfig:
    """What is predicted, and where."""

    locations: Count = 128
    """pixels of a crop that are trained on"""
    margin: Annotated[float, Interval(ge=0, le=0.49)] = 0.2727
    """share of the crop's side at each edge in which none of them lies (the release: [96, 256) of 352 pixels)"""
    window: Annotated[int, Interval(ge=1, le=63)] = 7
    """side of the square around a location whose colours are its target, in pixels"""
    width: Count = 1024
    """channels between the hypercolumn and the two distributions"""
    dropout: FractionBelowOne = 0.5
    """after fc6, fc7 and that layer"""
    normalise: Normalise = "pixels"
    """divide the summed loss by all locations of the batch, or by its images"""


@dataclass
class DahlConfig:
    """How it is scored."""

    blurs: bool = True
    """compare UV after blurs of 3×3 and 5×5 too"""
    normalise: Normalise = "pixels"
    """divide the summed loss by all pixels of the batch, or by its images"""


@dataclass
class AutoencoderConfig:
    """How it is scored."""

    normalise: Normalise = "pixels"
    """divide the summed loss by all pixels of the batch, or by its images"""


@dataclass
class SplitBrainConfig:
    """What the two halves predict."""

    neighbours: Annotated[int, Interval(ge=1, le=313), LegacyDefault(5)] = 1
    """ab bins that a target colour is spread over; 1 (as published) is one-hot"""
    sigma: Annotated[float, Interval(gt=0, le=1000)] = 5.0
    """standard deviation of that spread, in ab units"""
    lightness_bins: Annotated[int, Interval(ge=2, le=1000), LegacyDefault(100)] = 50
    """bins of equal width over L in 0..100; 50 as published"""
    normalise: Normalise = "pixels"
    """divide the summed loss by all target pixels of the batch, or by its images"""


@dataclass
class LabelsConfig:
    """What it sees, and how it is scored."""

    input: Literal["grey", "lab", "rgb"] = "rgb"
    """grey: lightness alone; lab; rgb: normalised by ImageNet's mean and deviation"""
    dropout: FractionBelowOne = 0.5
    """after fc6 and fc7, or before the classifier of a net without them"""
    smoothing: FractionBelowOne = 0.0
    """label smoothing"""


@dataclass
class RotationConfig:
    """Rotation classifier."""

    dropout: FractionBelowOne = 0.0
    """dropout rate after fc6 and fc7, or before the classifier of a net without them"""


@dataclass
class JigsawConfig:
    """Jigsaw puzzles and the head of the net."""

    tile: Annotated[int, Interval(ge=8, le=1024)] = 64
    """side of a tile, in pixels; it is placed at random in its cell, a third of the crop's side"""
    permutations: Annotated[int, Interval(ge=2, le=10000)] = 1000
    """number of permutations (classes), chosen for large Hamming distances"""
    width: Count = 1024
    """units of fc6, which sees one tile"""
    hidden: Annotated[int, Ge(0)] = 4096
    """units of fc7, which sees all tiles; 0 leaves it out"""
    dropout: FractionBelowOne = 0.5
    """dropout rate after fc6 and fc7"""
    tile_norm: Literal["mean", "mean-std", "none"] = "mean-std"
    """mean: subtract each tile's mean by channel, pixels in 0..255 (the release); mean-std: also divide by its standard
    deviation"""
    grey: Fraction = 0.0
    """share of images that are converted to grey"""

    def check_crop(self, crop: CropConfig) -> None:
        if self.tile > crop.size // 3:
            raise UserError(f"objective.tile must be at most a third of crop.size ({crop.size}), got {self.tile}")
