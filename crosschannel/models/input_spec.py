"""Specification of a net's input: channels, crop size, resize and normalisation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab, rgb_to_lightness
from crosschannel.config.keys import keys_of
from crosschannel.config.load import check_value, require
from crosschannel.config.types import Pattern, Positive, Side
from crosschannel.errors import UserError, describe
from crosschannel.models.pictures import check_pictures

InputKind = Literal["grey", "lab", "rgb", "sobel", "intensity", "luma"]
_MODES = "nearest|nearest-exact|bilinear|bicubic|box|hamming|lanczos|random"
CHANNELS = {"grey": 1, "lab": 3, "rgb": 3, "sobel": 2, "intensity": 1, "luma": 3}
# Rejects values for RGB in 0..255 (ImageNet: 57 to 58). May exceed 1, because calibration divides std by a factor.
_MAX_STD = 50.0
LUMA = (0.299, 0.587, 0.114)  # RGB weights of luma in ITU-R BT.601


@dataclass(frozen=True)
class InputSpec:
    """Specification of the input that a net was trained on.

    Attributes:
        kind: "grey" (L - 50), "lab" (L - 50, a, b), "rgb" (normalised by mean and std), "sobel" (horizontal and
            vertical derivatives of the channel mean of normalised RGB, as in DeepCluster), "intensity" (the channel
            mean of normalised RGB, as in Larsson et al.) or "luma" (luma in all three channels, normalised as RGB).
        size: side of square crops, in pixels.
        resize: length to which the short side of an image is resized before the centre crop, in pixels.
        interpolation: interpolation mode of the resize.
        mean: mean of RGB in [0, 1]; not used for "grey" and "lab".
        std: standard deviation of RGB in [0, 1]; not used for "grey" and "lab".
        scale: factor applied to all channels of "grey" and "lab"; differs from 1 for rescaled nets from the literature.
            It is part of the input and never trained.

    Raises:
        UserError: an invalid value, such as a mean for RGB in 0..255, or a crop larger than ``resize``.
    """

    kind: InputKind = "grey"
    size: Side = 227
    resize: Side = 256
    interpolation: Annotated[str, Pattern(_MODES, "an interpolation mode of torch or timm")] = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        for key in ("size", "resize"):
            if isinstance(getattr(self, key), Integral) and not isinstance(getattr(self, key), bool):
                object.__setattr__(self, key, int(getattr(self, key)))  # accept NumPy integers
        for key in ("mean", "std"):
            object.__setattr__(self, key, _as_tuple(getattr(self, key)))
        for key in keys_of(InputSpec):
            object.__setattr__(self, key.name, check_value(f"input {key.name}", getattr(self, key.name), key.hint))
        self.check()

    def check(self) -> None:
        require(len(self.mean) == len(self.std) == 3, "mean and std must have three values", (self.mean, self.std))
        require(self.resize >= self.size, f"input resize must be at least its size, {self.size}", self.resize)
        if self.kind not in ("grey", "lab"):
            rule = "input mean must be within 0..1, for RGB in [0, 1], such as 0.485 (divide by 255)"
            require(all(0 <= value <= 1 for value in self.mean), rule, self.mean)
            rule = f"input std must be at most {_MAX_STD:g}, for RGB in [0, 1], such as 0.229 (divide by 255)"
            require(all(value <= _MAX_STD for value in self.std), rule, self.std)

    @staticmethod
    def upgrade(tree: Mapping[str, Any]) -> dict[str, Any]:
        """Convert attributes stored by an earlier version, which ignored a ``resize`` below the crop size."""
        tree = dict(tree)
        size, resize = tree.get("size"), tree.get("resize")
        if isinstance(size, int) and isinstance(resize, int):
            tree["resize"] = max(size, resize)
        return tree

    @property
    def channels(self) -> int:
        return CHANNELS[self.kind]

    def changed(self, **overrides: Any) -> "InputSpec":
        """Return a copy with other attributes. ``resize`` is scaled with ``size`` unless it is given.

        Args:
            overrides: new values of attributes; None means no change. A single number for mean or std applies to all
                channels.

        Raises:
            UserError: unknown attribute or invalid value.
        """
        overrides = {key: value for key, value in overrides.items() if value is not None}
        names = [entry.name for entry in fields(self)]
        for key in overrides.keys() - set(names):
            raise UserError(f"unknown input attribute {key!r}; available: {', '.join(names)}")
        for key in overrides.keys() & {"mean", "std"}:
            if isinstance(overrides[key], Real) and not isinstance(overrides[key], bool):
                overrides[key] = (float(overrides[key]),) * 3
        size = overrides.get("size")
        if isinstance(size, Integral) and not isinstance(size, bool):
            overrides.setdefault("resize", max(size, round(size * self.resize / self.size)))
        return replace(self, **overrides)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """Convert (N, 3, H, W) RGB, float in [0, 1] or uint8, to the net's input, (N, ``channels``, H, W) float.

        Raises:
            UserError: invalid batch. The range of floats is checked only on the CPU, where the check is fast.
        """
        check_pictures(rgb, check_range=isinstance(rgb, Tensor) and rgb.device.type == "cpu")
        if self.kind in ("grey", "lab"):
            x = rgb_to_lightness(rgb) - 50 if self.kind == "grey" else centre_lightness(rgb_to_lab(rgb))
            return x if self.scale == 1 else x * self.scale
        rgb = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb
        if self.kind == "luma":
            rgb = sum(weight * channel for weight, channel in zip(LUMA, rgb.split(1, 1), strict=True))
        mean, std = (torch.tensor(v).to(rgb)[:, None, None] for v in (self.mean, self.std))
        normalised = (rgb - mean) / std
        if self.kind in ("rgb", "luma"):
            return normalised
        intensity = normalised.mean(1, keepdim=True)
        return sobel(intensity) if self.kind == "sobel" else intensity


def _as_tuple(values: Any) -> Any:
    """Convert a list, an array or a tensor of numbers to a tuple; return anything else unchanged."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        return values
    return tuple(value.item() if hasattr(value, "item") else value for value in values)


def check_input(input: object) -> None:
    """Raise a UserError if a value is not an InputSpec."""
    if not isinstance(input, InputSpec):
        example = 'crosschannel.InputSpec("rgb", 224, 256)'
        raise UserError(f"an input must be an InputSpec, such as {example}, not {describe(input)}")


def sobel(grey: Tensor) -> Tensor:
    """Apply Sobel filters with zero padding, (N, 1, H, W) → (N, 2, H, W): left minus right, and above minus below."""
    left_right = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).to(grey)
    return nn.functional.conv2d(grey, torch.stack((left_right, left_right.T))[:, None], padding=1)


def centre_lightness(lab: Tensor) -> Tensor:
    """Subtract 50 from the L channel of L or Lab, so that zero is mid-grey."""
    return torch.cat((lab[:, :1] - 50, lab[:, 1:]), 1)
