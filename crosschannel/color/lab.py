"""Conversion between sRGB and CIE Lab (D65 white, 2° observer), for batches of images on any device.

The constants are those of the sRGB standard (IEC 61966-2-1) and CIE 15, rounded as in scikit-image, so that the results
agree with scikit-image to float32 accuracy.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosschannel.color.chunks import cache_sized_chunks

_RGB_TO_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
)
_WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
_TO_XYZ = (_RGB_TO_XYZ / _WHITE[:, None]).tolist()  # linear RGB → XYZ relative to the white point
_FROM_XYZ = (torch.linalg.inv(_RGB_TO_XYZ) * _WHITE).tolist()  # XYZ relative to the white point → linear RGB
_EPSILON = 0.008856  # XYZ value up to which a line replaces the cube root
_EPSILON_ROOT = 0.2068966  # the same threshold after the cube root
_SLOPE = 7.787
_KNEE = 0.04045  # sRGB value up to which the sRGB curve is a line


def _check_shape(image: Tensor, name: str) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"{name} must have shape (N, 3, H, W), got {tuple(image.shape)}")


def _apply_matrix(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """Apply a colour matrix to every pixel, as sums, because a GPU may compute matrix products in TF32."""
    x, y, z = image.unbind(1)
    rows = [(x * row[0]).add_(y, alpha=row[1]).add_(z, alpha=row[2]) for row in matrix]
    return torch.stack(rows, 1)


def _power(x: Tensor, exponent: float) -> Tensor:
    """Compute x ** exponent for positive x, in half the time of ``pow``."""
    return torch.exp2(torch.log2(x) * exponent)


def _linearise(rgb: Tensor) -> Tensor:
    """Convert sRGB to linear RGB: a line up to the knee, then a power.

    Each branch is clamped to its value at the knee outside its range, and the branches are summed. Selecting with a
    mask would take longer than the arithmetic.
    """
    curved = _power(rgb.clamp(min=_KNEE).add_(0.055).mul_(1 / 1.055), 2.4)
    return (rgb.clamp(max=_KNEE) * (1 / 12.92)).add_(curved).sub_(_KNEE / 12.92)


def _lab_f(xyz: Tensor) -> Tensor:
    """Apply the function f of CIE Lab: a line up to ε, then the cube root, which starts slightly above the line."""
    line = _SLOPE * _EPSILON + 16 / 116
    step = _EPSILON ** (1 / 3) - line
    is_above = (xyz - _EPSILON).mul_(1e30).clamp_(0, 1)  # 1 above ε, otherwise 0
    root = _power(xyz.clamp(min=_EPSILON), 1 / 3)
    return (xyz.clamp(max=_EPSILON) * _SLOPE).add_(root).add_(is_above, alpha=step).sub_(line + step - 16 / 116)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB to Lab.

    Args:
        rgb: (N, 3, H, W), float in [0, 1] or uint8 in [0, 255].

    Returns:
        (N, 3, H, W), with L in [0, 100] and a and b within about ±110. The dtype is that of the input, or float32 for
        uint8. Half-precision input is converted in float32, and the result is rounded.

    Raises:
        ValueError: the shape is not (N, 3, H, W).
    """
    return _convert(rgb, _linear_to_lab)


def rgb_to_lightness(rgb: Tensor) -> Tensor:
    """Convert sRGB to lightness, in a third of the time of :func:`rgb_to_lab`.

    Args:
        rgb: (N, 3, H, W), float in [0, 1] or uint8 in [0, 255].

    Returns:
        (N, 1, H, W), L in [0, 100]; equal to ``rgb_to_lab(rgb)[:, :1]`` up to rounding.

    Raises:
        ValueError: the shape is not (N, 3, H, W).
    """
    return _convert(rgb, _linear_to_lightness)


class Lightness(nn.Module):
    """Module version of :func:`rgb_to_lightness` for float images, for ``torch.jit.script`` and ``torch.fx``.

    Shape:
        (N, 3, H, W) float in [0, 1] → (N, 1, H, W), L in [0, 100], of the same dtype.
    """

    def __init__(self):
        super().__init__()
        self.knee, self.epsilon, self.slope = _KNEE, _EPSILON, _SLOPE
        self.weights: list[float] = _TO_XYZ[1]

    def forward(self, rgb: Tensor) -> Tensor:
        x = rgb.float()
        curved = ((x.clamp(min=self.knee) + 0.055) / 1.055) ** 2.4
        linear = torch.where(x > self.knee, curved, x / 12.92)
        red, green, blue = linear[:, 0:1], linear[:, 1:2], linear[:, 2:3]
        y = red * self.weights[0] + green * self.weights[1] + blue * self.weights[2]
        root = torch.where(y > self.epsilon, y.clamp(min=self.epsilon) ** (1 / 3), y * self.slope + 16 / 116)
        return (root * 116 - 16).to(rgb.dtype)


def _convert(rgb: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Convert sRGB to linear RGB and apply a function to it, in chunks."""
    _check_shape(rgb, "rgb")
    if rgb.dtype == torch.uint8:
        table = _linearise(torch.arange(256, device=rgb.device, dtype=torch.float32) / 255)
        dtype, linear = torch.float32, lambda chunk: table.index_select(0, chunk.reshape(-1).int()).view(chunk.shape)
    else:
        dtype, linear, rgb = rgb.dtype, _linearise, rgb.to(torch.promote_types(rgb.dtype, torch.float32))
    return torch.cat([function(linear(chunk)) for chunk in cache_sized_chunks(rgb.contiguous())[0]]).to(dtype)


def _linear_to_lab(linear: Tensor) -> Tensor:
    x, y, z = _lab_f(_apply_matrix(linear, _TO_XYZ)).unbind(1)
    return torch.stack(((y * 116).sub_(16), (x - y).mul_(500), (y - z).mul_(200)), 1)


def _linear_to_lightness(linear: Tensor) -> Tensor:
    return (_lab_f(_apply_matrix(linear, _TO_XYZ[1:2])) * 116).sub_(16)


def _lab_to_rgb_unclipped(lab: Tensor) -> Tensor:
    y = (lab[:, 0] + 16) / 116
    f = torch.stack((y + lab[:, 1] / 500, y, (y - lab[:, 2] / 200).clamp(min=0)), 1)
    xyz = torch.where(f > _EPSILON_ROOT, f**3, (f - 16 / 116) / _SLOPE)
    linear = _apply_matrix(xyz, _FROM_XYZ)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert Lab to sRGB, clipped to [0, 1].

    Args:
        lab: (N, 3, H, W) float, L in [0, 100].

    Returns:
        (N, 3, H, W) in [0, 1], in the dtype of the input. Colours outside the sRGB gamut are clipped per channel, which
        changes their lightness; apply :func:`fit_gamut` first to preserve it.

    Raises:
        ValueError: the shape is not (N, 3, H, W).
    """
    _check_shape(lab, "lab")
    promoted_lab = lab.to(torch.promote_types(lab.dtype, torch.float32))
    return _lab_to_rgb_unclipped(promoted_lab).clamp(0, 1).to(lab.dtype)


def fit_gamut(lab: Tensor, steps: int = 10) -> Tensor:
    """Move colours outside the sRGB gamut towards grey until they are inside, preserving L and hue.

    Args:
        lab: (N, 3, H, W) float.
        steps: number of bisection steps; 10 leave an error below 0.1 % of the chroma.

    Returns:
        (N, 3, H, W), with the same L, and ab scaled per pixel by a factor in [0, 1].
    """
    _check_shape(lab, "lab")
    tolerance = 2e-4  # allows for rounded matrices; a twentieth of an 8-bit step
    rgb = _lab_to_rgb_unclipped(lab)
    is_outside = ((rgb < -tolerance) | (rgb > 1 + tolerance)).any(1)
    if not is_outside.any():
        return lab
    pixels = lab.permute(0, 2, 3, 1)[is_outside].T[None, :, :, None]
    low, high = torch.zeros_like(pixels[:, :1]), torch.ones_like(pixels[:, :1])
    for _ in range(steps):
        factor = (low + high) / 2
        rgb = _lab_to_rgb_unclipped(torch.cat((pixels[:, :1], pixels[:, 1:] * factor), 1))
        fits = ((rgb >= -tolerance) & (rgb <= 1 + tolerance)).all(1, keepdim=True)
        low, high = torch.where(fits, factor, low), torch.where(fits, high, factor)
    fitted_lab = lab.permute(0, 2, 3, 1).clone()
    fitted_lab[is_outside] = torch.cat((pixels[:, :1], pixels[:, 1:] * low), 1)[0, :, :, 0].T
    return fitted_lab.permute(0, 3, 1, 2).contiguous()
