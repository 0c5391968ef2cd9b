"""Colorizer, which predicts the colours of pictures of any size and keeps their lightness."""

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
from crosschannel.colorize.upsampling import PICTURE_SIGMA, Upsample, lightness_at_points, upsample_rows
from crosschannel.data import Batch
from crosschannel.data.decode import BrokenImage, broken_image, decode, to_rgb
from crosschannel.data.views import stack_crops
from crosschannel.errors import UserError, describe, wrap_external_errors
from crosschannel.files import read_bytes, user_path
from crosschannel.models.backbone import Provenance
from crosschannel.models.pictures import check_pictures
from crosschannel.pretext.task import Pretext, as_arrays, stack_rows

_STRIP_ELEMENTS = 1 << 21  # upsampled values held in memory at a time
MAX_ASPECT_RATIO = 4  # maximum long side / short side of the net's input
Gamut = Literal["map", "clip"]


@dataclass(frozen=True)
class ResizeSpec:
    """Resizing of pictures for a net, and alignment of its outputs. Published nets use their authors' settings.

    Attributes:
        interpolation: "bilinear" or "bicubic", for resizing pictures to the input of the net.
        squash: whether pictures are squashed to squares.
        half_pixel: whether a prediction is aligned with the centre of a block of ``stride`` pixels (``interpolate``
            without aligned corners); otherwise with the first pixel of the block.
    """

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    squash: bool = False
    half_pixel: bool = False


class Colorizer(nn.Module):
    """A pretext net with the decoder that converts its outputs to colours.

    Args:
        net: net that maps inputs of the task to predictions at every ``task.stride``-th pixel.
        task: pretext task of the net.
        size: short side that pictures are resized to for the net, in pixels.
        provenance: origin of the weights.
        resize_spec: resizing and alignment settings.
        decoder: decoder of the outputs to ab; by default the task's decoder.
        saturation: factor by which ab is multiplied; 1 keeps the predicted values.
        gamut: "map" moves colours outside sRGB towards grey at the same lightness, "clip" clips the channels.
        upsample: "edges" upsamples predictions so that colours stop at edges, "bilinear" as in the paper.

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
        """Return the predictions for pictures, without resizing them.

        Args:
            rgb: (N, 3, H, W), uint8 or float in [0, 1].
            temperature: T > 0 of the annealed mean; None selects the net's default decoding.

        Returns:
            (N, C, h, w), for every ``task.stride``-th pixel; ab for most tasks.

        Raises:
            UserError: an invalid batch, an invalid temperature, a temperature for a decoder without one, or damaged
                weights.
        """
        check_pictures(rgb)
        return self._predict_maps(self.task.inputs(rgb), temperature)

    @torch.inference_mode()
    def predict_ab(self, lightness: Tensor, temperature: float | None = None) -> Tensor:
        """Predict ab from lightness, for nets with lightness input.

        Args:
            lightness: (N, 1, H, W), L in 0..100.
            temperature: see :meth:`predict`.

        Returns:
            ab (N, 2, h, w).

        Raises:
            UserError: the input of the net is not lightness; for other errors see :meth:`predict`.
        """
        if not isinstance(lightness, Tensor) or lightness.ndim != 4 or lightness.shape[1] != 1 or not lightness.numel():
            shape = tuple(lightness.shape) if isinstance(lightness, Tensor) else describe(lightness)
            raise UserError(f"lightness must be a tensor (N, 1, H, W) with L in 0..100, got {shape}")
        if self.task.input.kind != "grey":
            raise UserError(f"the input of this net is {self.task.input.kind}, not lightness; pass RGB")
        return self._predict_maps(lightness - 50, temperature)

    def _predict_maps(self, inputs: Tensor, temperature: float | None) -> Tensor:
        """Run the net on inputs of the task and decode its outputs to maps."""
        if temperature is not None and not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        height, width = inputs.shape[2:]
        with wrap_external_errors(f"this net cannot process {width} × {height} pixels"):
            outputs = self.net(inputs)
        maps = self.decoder.to_maps(outputs, temperature)
        if not maps.isfinite().all():
            raise UserError("this net predicts NaN or infinite colours; its weights are damaged")
        return maps

    @torch.inference_mode()
    def ab(self, rgb: Tensor, temperature: float | None = None) -> Tensor:
        """Return ab for every pixel of a batch, on the same device. Colours may be outside the sRGB gamut.

        Args:
            rgb: (N, 3, H, W), uint8 or float in [0, 1].
            temperature: see :meth:`predict`.

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
        """Colour a picture or a batch of pictures.

        Args:
            image: a Pillow image; a file name; a uint8 array (H, W), (H, W, 3) or (N, H, W, 3); or a tensor
                (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1]. Only the lightness is used.
            temperature: T > 0 of the annealed mean; None selects the net's default decoding.

        Returns:
            The coloured pictures in the type of the input (tensors on the same device); a Pillow image for a file name.

        Raises:
            UserError: an unsupported type, an empty or damaged picture, an invalid temperature, or a temperature for a
                decoder without one.
        """
        if isinstance(image, str | os.PathLike):
            return self(Image.fromarray(_read_pixels(image)), temperature)
        if isinstance(image, Image.Image):
            return Image.fromarray(self._colour_array(_to_pixels(image), temperature))
        if isinstance(image, np.ndarray):
            return self._colour_array(image, temperature)
        if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] != 3 and image.shape[3] == 3:
            return self(image.permute(0, 3, 1, 2), temperature).permute(0, 2, 3, 1)
        if not isinstance(image, Tensor):
            types = "a Pillow image, a file name, an array or a tensor"
            raise UserError(f"image must be {types}, got {describe(image)}")
        check_pictures(image)
        rgb = image if image.dtype == torch.uint8 else image.float().clamp(0, 1)
        return self._colour(rgb, temperature).to(image.dtype)

    def _colour_array(self, array: np.ndarray, temperature: float | None) -> np.ndarray:
        """Colour a uint8 array (H, W, 3) or (N, H, W, 3); (H, W) becomes (H, W, 3)."""
        rgb = np.repeat(array[:, :, None], 3, 2) if array.ndim == 2 else array
        if rgb.dtype != np.uint8 or rgb.ndim not in (3, 4) or rgb.shape[-1] != 3:
            raise UserError(f"arrays must be uint8 (H, W), (H, W, 3) or (N, H, W, 3), got {array.shape} {array.dtype}")
        batch = stack_crops(rgb if rgb.ndim == 4 else [rgb])
        check_pictures(batch)
        coloured = as_arrays(self._colour(batch.to(next(self.parameters()).device), temperature))
        return coloured if rgb.ndim == 4 else coloured[0]

    @torch.inference_mode()
    def _colour(self, rgb: Tensor, temperature: float | None) -> Tensor:
        """Colour pictures (N, 3, H, W), uint8 or float, strip by strip."""
        out = torch.empty_like(rgb)
        for rows, lightness, ab in self._strips(rgb, temperature):
            lab = torch.cat((lightness, ab * self.saturation), 1)
            coloured = lab_to_rgb(fit_gamut(lab) if self.gamut == "map" else lab)
            out[:, :, rows] = (coloured * 255).round().byte() if out.dtype == torch.uint8 else coloured
        return out

    def _strips(self, rgb: Tensor, temperature: float | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield strips of coloured pictures: rows, lightness (N, 1, R, W) and predicted ab (N, 2, R, W)."""
        resized = self._resize_for_net(rgb)
        resized_lightness = rgb_to_lightness(resized)
        maps = self._predict_resized(resized, resized_lightness, temperature)
        scale = (resized.shape[2] / rgb.shape[2], resized.shape[3] / rgb.shape[3])
        for rows in _strip_rows(maps, rgb):
            strip = rgb[:, :, rows]
            lightness = rgb_to_lightness(strip)
            strip_maps = maps[:, :, rows]
            if resized.shape[2:] != rgb.shape[2:]:
                guides = (resized_lightness, lightness) if self.upsample == "edges" else None
                strip_maps = upsample_rows(maps, rows, rgb.shape[3], scale, 0.5, guides, PICTURE_SIGMA)
            yield rows, lightness, self.decoder.to_ab(strip_maps, strip / 255 if strip.dtype == torch.uint8 else strip)

    def _predict_resized(self, resized: Tensor, lightness: Tensor, temperature: float | None) -> Tensor:
        """Return predictions for resized pictures, upsampled to every pixel; ``lightness`` is the pictures' own."""
        maps, stride = self._predict_maps(self.task.inputs(resized), temperature), self.task.stride
        height, width = resized.shape[2:]
        guides = None
        if self.upsample == "edges":
            guides = lightness_at_points(lightness, stride, self.resize_spec.half_pixel), lightness
        offset = 0.5 if self.resize_spec.half_pixel else 0.5 / stride
        return upsample_rows(maps, slice(0, height), width, (1 / stride, 1 / stride), offset, guides)

    def _resize_for_net(self, rgb: Tensor) -> Tensor:
        """Resize pictures to the input of the net: uint8 pictures with Pillow, float pictures with torch."""
        width, height = self._input_size(rgb.shape[3], rgb.shape[2])
        if (height, width) == rgb.shape[2:]:
            return rgb
        mode = self.resize_spec.interpolation
        if rgb.dtype == torch.uint8:
            pictures = (Image.fromarray(array) for array in as_arrays(rgb))
            resized = [picture.resize((width, height), Image.Resampling[mode.upper()]) for picture in pictures]
            return stack_crops([np.asarray(picture) for picture in resized]).to(rgb.device)
        return nn.functional.interpolate(rgb, (height, width), mode=mode, antialias=True).clamp(0, 1)

    def _input_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of the net's input.

        The short side is ``size`` and the aspect ratio is kept up to 1 : 4, with sides rounded to multiples of 8.
        """
        if self.resize_spec.squash:
            return self.size, self.size
        factor = self.size / min(width, height)
        max_side = MAX_ASPECT_RATIO * self.size
        w, h = (min(max_side, max(8, round(side * factor / 8) * 8)) for side in (width, height))
        return w, h


def validation_pictures(net: nn.Module, task: Pretext, batch: Batch) -> np.ndarray | None:
    """Return rows of pictures for a held-out batch.

    The rows are grey, coloured and original crops if the task has a decoder, otherwise the output of ``task.pictures``.
    """
    if not task.decoder:
        return task.pictures(net, batch)
    crops = as_arrays(batch.images)
    colorizer = Colorizer(net, task, len(crops[0]))
    grey = [np.asarray(Image.fromarray(crop).convert("L").convert("RGB")) for crop in crops]
    return stack_rows(grey, [colorizer(crop) for crop in crops], crops)


def _read_pixels(path: str | os.PathLike) -> np.ndarray:
    """Read a picture file; return its upright pixels, (H, W, 3) uint8."""
    try:
        return decode(read_bytes(user_path(os.fspath(path))))
    except (BrokenImage, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"could not read the picture {os.fspath(path)!r}: {reason}") from None


def _to_pixels(picture: Image.Image) -> np.ndarray:
    if 0 in picture.size:
        raise UserError(f"a picture must have at least one pixel, got {picture.width} × {picture.height}")
    try:
        return np.asarray(to_rgb(picture))
    except Exception as error:  # decoders raise all kinds of exceptions for damaged data
        raise UserError(f"could not read the picture: {broken_image(error)}") from None


def _strip_rows(maps: Tensor, rgb: Tensor) -> Iterator[slice]:
    """Split the rows of pictures into strips whose upsampled maps are small enough to hold in memory."""
    rows = max(1, _STRIP_ELEMENTS // (rgb.shape[3] * maps.shape[0] * maps.shape[1]))
    for top in range(0, rgb.shape[2], rows):
        yield slice(top, min(rgb.shape[2], top + rows))
