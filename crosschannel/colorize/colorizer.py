"""Colorizer: a picture of any size in, the same picture with predicted colours out, its lightness kept."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.color import fit_gamut, lab_to_rgb, rgb_to_lightness
from crosschannel.colorize.decoders import Decoder, build_decoder
from crosschannel.colorize.upsampling import SIGMA_OF_PICTURES, Upsample, lightness_at_points, upsample_rows
from crosschannel.data import Batch
from crosschannel.data.decode import BrokenImage, broken_image, decode, to_rgb
from crosschannel.data.views import stack_crops
from crosschannel.errors import UserError, describe, wrap_external_errors
from crosschannel.files import read_bytes, user_path
from crosschannel.models.backbone import Provenance
from crosschannel.models.pictures import check_pictures
from crosschannel.pretext.task import Pretext, as_arrays, stack_rows

_STRIP_NUMBERS = 1 << 21  # of upsampled maps held at a time
LONGEST = 4  # the net sees at most this many times its short side
Gamut = Literal["map", "clip"]


@dataclass(frozen=True)
class ResizeSpec:
    """How a net looks at a picture, and where its predictions lie: published nets keep their authors' ways.

    Attributes:
        interpolation: "bilinear" or "bicubic", of the picture that it sees.
        squash: it sees a square whatever the picture's shape.
        half_pixel: a prediction stands at the centre of a block of ``stride`` pixels (``interpolate`` without aligned
            corners); else on the block's first pixel.
    """

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    squash: bool = False
    half_pixel: bool = False


class Colorizer(nn.Module):
    """A pretext net with its decode.

    Args:
        net: inputs of the task → what is predicted at every ``task.stride``-th pixel.
        task: pretext task.
        size: short side, in pixels, at which the net looks at a picture.
        provenance: of the weights.
        resize_spec: how it looks at pictures.
        decoder: converts outputs to ab; by default the task's decoder.
        saturation: factor on ab; 1 leaves them as predicted.
        gamut: "map": colours outside sRGB move towards grey at the same lightness; "clip": channels are clipped.
        upsample: "edges": predictions reach every pixel so that colours stop at edges; "bilinear": as in the paper.

    Example::

        colorizer = crosschannel.load_colorizer("runs/colornet-imagenet-0")
        colorizer(Image.open("grey.jpg")).save("coloured.png")
    """

    def __init__(
        self,
        net: nn.Module,
        task: Pretext,
        size: int = 256,
        provenance: Provenance | None = None,
        resize_spec: ResizeSpec | None = None,
        decoder: Decoder | None = None,
        saturation: float = 1.0,
        gamut: Gamut = "map",
        upsample: Upsample = "edges",
    ):
        super().__init__()
        self.decoder = build_decoder(task) if decoder is None else decoder
        self.net, self.task, self.size, self.resize_spec = net, task, size, resize_spec or ResizeSpec()
        self.provenance = provenance or Provenance()
        self.saturation, self.gamut, self.upsample = saturation, gamut, upsample

    @torch.inference_mode()
    def predict(self, rgb: Tensor, temperature: float | None = None) -> Tensor:
        """What is predicted of pictures at the size that they have.

        Args:
            rgb: (N, 3, H, W), uint8 or float in [0, 1].
            temperature: T > 0 of the annealed mean; None takes the net's own decode.

        Returns:
            (N, C, h, w), of every ``task.stride``-th pixel; ab for most tasks.

        Raises:
            UserError: any other batch; a temperature that is not above 0, or for a net that has none; damaged weights.
        """
        check_pictures(rgb)
        return self._decoded(self.task.inputs(rgb), temperature)

    @torch.inference_mode()
    def predict_ab(self, lightness: Tensor, temperature: float | None = None) -> Tensor:
        """The same of lightness alone, for a net that sees nothing else.

        Args:
            lightness: (N, 1, H, W), L in 0..100.
            temperature: as for :meth:`predict`.

        Returns:
            ab (N, 2, h, w).

        Raises:
            UserError: the net sees something else; or as :meth:`predict`.
        """
        if not isinstance(lightness, Tensor) or lightness.ndim != 4 or lightness.shape[1] != 1 or not lightness.numel():
            shape = tuple(lightness.shape) if isinstance(lightness, Tensor) else describe(lightness)
            raise UserError(f"lightness is a tensor (N, 1, H, W), L in 0..100; got {shape}")
        if self.task.input.kind != "grey":
            raise UserError(f"this net sees {self.task.input.kind} and not lightness alone; give it RGB")
        return self._decoded(lightness - 50, temperature)

    def _decoded(self, inputs: Tensor, temperature: float | None) -> Tensor:
        if temperature is not None and not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        height, width = inputs.shape[2:]
        with wrap_external_errors(f"this net cannot look at {width} × {height} pixels"):
            outputs = self.net(inputs)
        maps = self.decoder.to_maps(outputs, temperature)
        if not maps.isfinite().all():
            raise UserError("this net gives colours that are no numbers: its weights are damaged")
        return maps

    @torch.inference_mode()
    def ab(self, rgb: Tensor, temperature: float | None = None) -> Tensor:
        """ab of every pixel of a batch, on its device: as predicted, whether sRGB can show it or not.

        Args:
            rgb: (N, 3, H, W), uint8 or float in [0, 1].
            temperature: as for :meth:`predict`.

        Returns:
            (N, 2, H, W) float32.
        """
        check_pictures(rgb)
        return torch.cat([ab for _, _, ab in self._strips(rgb, temperature)], 2)

    @property
    def exports_any_size(self) -> bool:
        """Whether the exported net accepts pictures of any size."""
        return getattr(self.net.net, "exports_any_size", True)

    def forward(self, image, temperature: float | None = None):
        """Colour an image or a batch and return the same type; for a file name, a Pillow image.

        Args:
            image: a Pillow image; a file name; a uint8 array (H, W), (H, W, 3) or (N, H, W, 3); or a tensor
                (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1], which stays on its device. Only its lightness is
                used.
            temperature: T > 0 of the annealed mean; None takes the net's own decode.

        Raises:
            UserError: any other type; an empty or damaged picture; a temperature that is not above 0, or for a net that
                has none.
        """
        if isinstance(image, str | os.PathLike):
            return self(Image.fromarray(_pixels_of_file(image)), temperature)
        if isinstance(image, Image.Image):
            return Image.fromarray(self._colour_array(_pixels_of_picture(image), temperature))
        if isinstance(image, np.ndarray):
            return self._colour_array(image, temperature)
        if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] != 3 and image.shape[3] == 3:
            return self(image.permute(0, 3, 1, 2), temperature).permute(0, 2, 3, 1)
        if not isinstance(image, Tensor):
            kinds = "a Pillow image, a file name, an array or a tensor"
            raise UserError(f"a colorizer takes {kinds}, not {describe(image)}")
        check_pictures(image)
        rgb = image if image.dtype == torch.uint8 else image.float().clamp(0, 1)
        return self._colour(rgb, temperature).to(image.dtype)

    def _colour_array(self, array: np.ndarray, temperature: float | None) -> np.ndarray:
        """Colour a uint8 array (H, W, 3) or (N, H, W, 3); (H, W) becomes (H, W, 3)."""
        rgb = np.repeat(array[:, :, None], 3, 2) if array.ndim == 2 else array
        if rgb.dtype != np.uint8 or rgb.ndim not in (3, 4) or rgb.shape[-1] != 3:
            raise UserError(f"an array is (H, W), (H, W, 3) or (N, H, W, 3), uint8; got {array.shape} {array.dtype}")
        batch = stack_crops(rgb if rgb.ndim == 4 else [rgb])
        check_pictures(batch)
        coloured = as_arrays(self._colour(batch.to(next(self.parameters()).device), temperature))
        return coloured if rgb.ndim == 4 else coloured[0]

    @torch.inference_mode()
    def _colour(self, rgb: Tensor, temperature: float | None) -> Tensor:
        """(N, 3, H, W), uint8 or float, in colour; a strip at a time."""
        out = torch.empty_like(rgb)
        for rows, lightness, ab in self._strips(rgb, temperature):
            lab = torch.cat((lightness, ab * self.saturation), 1)
            coloured = lab_to_rgb(fit_gamut(lab) if self.gamut == "map" else lab)
            out[:, :, rows] = (coloured * 255).round().byte() if out.dtype == torch.uint8 else coloured
        return out

    def _strips(self, rgb: Tensor, temperature: float | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Strips of pictures: their rows, lightness (N, 1, R, W) and predicted ab (N, 2, R, W)."""
        small = self._small(rgb)
        seen = rgb_to_lightness(small)
        maps = self._look_at(small, seen, temperature)
        scale = (small.shape[2] / rgb.shape[2], small.shape[3] / rgb.shape[3])
        for rows in _rows_at_a_time(maps, rgb):
            part = rgb[:, :, rows]
            lightness = rgb_to_lightness(part)
            found = maps[:, :, rows]
            if small.shape[2:] != rgb.shape[2:]:
                guides = (seen, lightness) if self.upsample == "edges" else None
                found = upsample_rows(maps, rows, rgb.shape[3], scale, 0.5, guides, SIGMA_OF_PICTURES)
            yield rows, lightness, self.decoder.to_ab(found, part / 255 if part.dtype == torch.uint8 else part)

    def _look_at(self, small: Tensor, lightness: Tensor, temperature: float | None) -> Tensor:
        """What is predicted of pictures as the net sees them, of that lightness, at each of their pixels."""
        maps, stride = self._decoded(self.task.inputs(small), temperature), self.task.stride
        height, width = small.shape[2:]
        guides = None
        if self.upsample == "edges":
            guides = lightness_at_points(lightness, stride, self.resize_spec.half_pixel), lightness
        offset = 0.5 if self.resize_spec.half_pixel else 0.5 / stride
        return upsample_rows(maps, slice(0, height), width, (1 / stride, 1 / stride), offset, guides)

    def _small(self, rgb: Tensor) -> Tensor:
        """Pictures as the net sees them: those of 8 bits resized by Pillow, to 8 bits, others by torch."""
        width, height = self._working_size(rgb.shape[3], rgb.shape[2])
        if (height, width) == rgb.shape[2:]:
            return rgb
        mode = self.resize_spec.interpolation
        if rgb.dtype == torch.uint8:
            pictures = (Image.fromarray(array) for array in as_arrays(rgb))
            resized = [picture.resize((width, height), Image.Resampling[mode.upper()]) for picture in pictures]
            return stack_crops([np.asarray(picture) for picture in resized]).to(rgb.device)
        return nn.functional.interpolate(rgb, (height, width), mode=mode, antialias=True).clamp(0, 1)

    def _working_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the net sees: the short side is ``size``, the shape is kept up to 1 : 4."""
        if self.resize_spec.squash:
            return self.size, self.size
        factor = self.size / min(width, height)
        longest = LONGEST * self.size
        w, h = (min(longest, max(8, round(side * factor / 8) * 8)) for side in (width, height))
        return w, h


def validation_pictures(net: nn.Module, task: Pretext, batch: Batch) -> np.ndarray | None:
    """Rows of pictures of a held-out batch: grey, coloured and true crops if the task colours, else the task's own."""
    if not task.decoder:
        return task.pictures(net, batch)
    crops = as_arrays(batch.images)
    colorizer = Colorizer(net, task, len(crops[0]))
    grey = [np.asarray(Image.fromarray(crop).convert("L").convert("RGB")) for crop in crops]
    return stack_rows(grey, [colorizer(crop) for crop in crops], crops)


def _pixels_of_file(path: str | os.PathLike) -> np.ndarray:
    """Read a picture from a file as (H, W, 3) uint8, turned upright."""
    try:
        return decode(read_bytes(user_path(os.fspath(path))))
    except (BrokenImage, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the picture {os.fspath(path)!r}: {reason}") from None


def _pixels_of_picture(picture: Image.Image) -> np.ndarray:
    if 0 in picture.size:
        raise UserError(f"a picture has at least one pixel, got {picture.width} × {picture.height}")
    try:
        return np.asarray(to_rgb(picture))
    except Exception as error:  # decoders raise whatever they like on bytes they cannot read
        raise UserError(f"the picture cannot be read: {broken_image(error)}") from None


def _rows_at_a_time(maps: Tensor, rgb: Tensor) -> Iterator[slice]:
    """Rows whose upsampled maps are few enough to be held at a time."""
    rows = max(1, _STRIP_NUMBERS // (rgb.shape[3] * maps.shape[0] * maps.shape[1]))
    for top in range(0, rgb.shape[2], rows):
        yield slice(top, min(rgb.shape[2], top + rows))
