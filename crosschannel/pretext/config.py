"""Config dataclasses of the built-in pretext tasks. Does not import torch, to keep ``--help`` fast."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from crosschannel.config.training import CropConfig
from crosschannel.config.types import Count, File, Fraction, FractionBelowOne, LegacyDefault, NonNegative, Text
from crosschannel.errors import UserError

PRIORS = ("imagenet-256", "imagenet-256-k10")  # priors packaged with crosschannel
Normalise = Literal["pixels", "images"]


@dataclass
class ColorizationConfig:
    """Colorization objective."""

    kind: Literal["class", "l2"] = "class"
    """class: classification into 313 ab bins; l2: regression of ab, in units of 110 as in the released nets"""
    lam: Fraction = 0.5
    """λ of the class weights: 0.5 rebalances rare colours, 1 disables rebalancing; 0 requires a prior estimated from
    many images"""
    uniform: Literal["all", "seen"] = "all"
    """bins over which λ is spread: all (the paper), or those seen in the prior (the release)"""
    neighbours: Annotated[int, Interval(ge=1, le=313)] = 5
    """number of nearest bins over which a target colour is spread (10 in the released code)"""
    sigma: Annotated[float, Interval(gt=0, le=1000)] = 5.0
    """std of the Gaussian weights of these bins, in ab units"""
    prior: Annotated[Text, File(packaged=PRIORS)] = "imagenet-256"
    """packaged ab prior, or a file written by `crosschannel prior`"""
    grey_threshold: NonNegative = 0.0
    """ignore crops in which no |a| or |b| exceeds this value, in ab units (the release: 5); 0 keeps all crops"""
    normalise: Normalise = "pixels"
    """pixels: average the loss over all target pixels of a batch; images: sum it per image and average over images"""

    def check(self) -> None:
        if self.kind == "class" and self.lam == 0 and self.prior in PRIORS:
            raise UserError(
                f"the packaged prior {self.prior} is from 600 photographs, too few for a lam of 0; estimate a prior "
                "on your images with `crosschannel prior`"
            )


@dataclass
class LarssonConfig:
    """Hypercolumn classifier of hue and chroma."""

    locations: Count = 128
    """number of random pixels per crop at which the loss is computed"""
    margin: Annotated[float, Interval(ge=0, le=0.49)] = 0.2727
    """border in which no pixels are sampled, as a fraction of the crop's side (the release samples 96 to 255 of 352)"""
    window: Annotated[int, Interval(ge=1, le=63)] = 7
    """side of the window around a pixel, in pixels; the colour histogram of the window is the target"""
    width: Count = 1024
    """number of units of the hidden layer between hypercolumn and output"""
    dropout: FractionBelowOne = 0.5
    """dropout rate after fc6, fc7 and the hidden layer"""
    normalise: Normalise = "pixels"
    """pixels: average the loss over all sampled pixels of a batch; images: sum it per image and average over images"""


@dataclass
class DahlConfig:
    """Regression loss on UV."""

    blurs: bool = True
    """average the loss over UV and two blurred versions of it (3×3 and 5×5)"""
    normalise: Normalise = "pixels"
    """pixels: average the loss over all pixels of a batch; images: sum it per image and average over images"""


@dataclass
class AutoencoderConfig:
    """Reconstruction loss."""

    normalise: Normalise = "pixels"
    """pixels: average the loss over all pixels of a batch; images: sum it per image and average over images"""


@dataclass
class SplitBrainConfig:
    """Targets and loss of the two halves of the net."""

    neighbours: Annotated[int, Interval(ge=1, le=313), LegacyDefault(5)] = 1
    """number of nearest ab bins over which a target colour is spread; 1 (as published) is one-hot"""
    sigma: Annotated[float, Interval(gt=0, le=1000)] = 5.0
    """std of the Gaussian weights of these bins, in ab units"""
    lightness_bins: Annotated[int, Interval(ge=2, le=1000), LegacyDefault(100)] = 50
    """number of equal-width bins of L in 0..100 (published: 50)"""
    normalise: Normalise = "pixels"
    """pixels: average the loss over all target pixels of a batch; images: sum it per image and average over images"""


@dataclass
class LabelsConfig:
    """Supervised classifier."""

    input: Literal["grey", "lab", "rgb"] = "rgb"
    """input channels. grey: lightness; lab: Lab; rgb: RGB, normalised by ImageNet's mean and std"""
    dropout: FractionBelowOne = 0.5
    """dropout rate after fc6 and fc7, or before the classifier of a net without them"""
    smoothing: FractionBelowOne = 0.0
    """label smoothing factor"""


@dataclass
class RotationConfig:
    """Rotation classifier."""

    dropout: FractionBelowOne = 0.0
    """dropout rate after fc6 and fc7, or before the classifier of a net without them"""


@dataclass
class JigsawConfig:
    """Jigsaw puzzles and their classifier."""

    tile: Annotated[int, Interval(ge=8, le=1024)] = 64
    """side of a tile, in pixels; each tile is cut at random from its cell, a third of the crop wide and high"""
    permutations: Annotated[int, Interval(ge=2, le=10000)] = 1000
    """number of permutations (classes), chosen for large Hamming distances"""
    width: Count = 1024
    """width of fc6, which is applied to each tile"""
    hidden: Annotated[int, Ge(0)] = 4096
    """width of fc7, which combines all tiles; 0 removes it"""
    dropout: FractionBelowOne = 0.5
    """dropout rate after fc6 and fc7"""
    tile_norm: Literal["mean", "mean-std", "none"] = "mean-std"
    """normalisation per tile. mean: subtract the channel means, with pixels in 0..255 (the release); mean-std: also
    divide by the tile's std"""
    grey: Fraction = 0.0
    """fraction of images that are converted to greyscale"""

    def check_crop(self, crop: CropConfig) -> None:
        if self.tile > crop.size // 3:
            raise UserError(f"objective.tile must be at most a third of crop.size ({crop.size}), got {self.tile}")
