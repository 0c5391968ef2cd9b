"""Colorizer: a picture of any size in, the same picture with predicted colours out, its lightness kept."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.color import fit_gamut, lab_to_rgb, rgb_to_lab, rgb_to_lightness
from crosschannel.data.decode import to_rgb
from crosschannel.errors import UserError
from crosschannel.models.backbone import Provenance, centre_lightness
from crosschannel.models.pretext import PretextNet
from crosschannel.objectives.classification import Classification
from crosschannel.objectives.regression import Regression

_STRIP_PIXELS = 1 << 20  # of the full picture held in float at a time
_LONGEST = 4  # the net sees at most this many times its short side


class Colorizer(nn.Module):
    """A pretext net with its decode.

    Args:
        net: L - 50 → predictions at every ``net.stride``-th pixel.
        objective: turns predictions into ab.
        size: short side, in pixels, at which the net looks at a picture.
        temperature: of the annealed mean when a call names none.
        provenance: of the weights.
        native: (2, 313) ab of every bin, where the net has a decode of its own: the expectation of these under plain
            softmax is what a call without a temperature gives.

    Example::

        colorizer = crosschannel.load_colorizer("runs/colornet-0")
        colorizer(Image.open("grey.jpg")).save("coloured.png")
    """

    def __init__(
        self,
        net: PretextNet,
        objective: Classification | Regression,
        size: int = 256,
        temperature: float = 0.38,
        provenance: Provenance | None = None,
        native: Tensor | None = None,
    ):
        super().__init__()
        self.register_buffer("native", native)
        self.net, self.objective, self.size, self.temperature = net, objective, size, temperature
        self.provenance = provenance or Provenance()

    @torch.inference_mode()
    def predict_ab(self, lightness: Tensor, temperature: float | None = None) -> Tensor:
        """L (N, 1, H, W) in 0..100 → ab (N, 2, h, w) on every ``net.stride``-th pixel."""
        outputs = self.net(centre_lightness(lightness))
        if temperature is None and self.native is not None:
            return torch.einsum("cq,nqhw->nchw", self.native, outputs.float().softmax(1))
        return self.objective.decode(outputs, self.temperature if temperature is None else temperature)

    def forward(self, image, temperature: float | None = None):
        """Colour an image; the same kind comes back.

        Args:
            image: a Pillow image, a uint8 array (H, W) or (H, W, 3), or a float batch (N, 3, H, W) in [0, 1].
                Only its lightness is used.
            temperature: T > 0 of the annealed mean; None takes the net's own.

        Raises:
            UserError: a temperature that is not above 0, or one for a net that has none.
        """
        if temperature is not None and not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        if temperature is not None and isinstance(self.objective, Regression):
            raise UserError("this net regresses ab and has no temperature")
        if isinstance(image, Tensor):
            if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
                raise UserError(
                    f"a batch must be (N, 3, H, W), float in [0, 1]; got {tuple(image.shape)} {image.dtype}"
                )
            arrays = (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            coloured = torch.from_numpy(np.stack([self._colour(array, temperature) for array in arrays]))
            return (coloured.permute(0, 3, 1, 2).float() / 255).to(image)
        if isinstance(image, Image.Image):
            return Image.fromarray(self._colour(np.asarray(to_rgb(image)), temperature))
        array = np.asarray(image)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
            raise UserError(f"an array must be (H, W) or (H, W, 3), uint8; got {array.shape} {array.dtype}")
        return self._colour(np.repeat(array[:, :, None], 3, 2) if array.ndim == 2 else array, temperature)

    def _colour(self, rgb: np.ndarray, temperature: float | None) -> np.ndarray:
        device = next(self.parameters()).device
        height, width = rgb.shape[:2]
        small = Image.fromarray(rgb).resize(self._working_size(width, height), Image.Resampling.BILINEAR)
        lightness = rgb_to_lightness(_as_batch(np.asarray(small), device))
        ab = self.predict_ab(lightness, temperature)
        if not ab.isfinite().all():
            raise UserError("this net gives colours that are no numbers: its weights are damaged")
        scale = (small.height / height, small.width / width)
        out = np.empty_like(rgb)
        for rows in _strips(height, width):
            lab = rgb_to_lab(_as_batch(rgb[rows], device))
            lab[:, 1:] = sample_ab(ab, rows, width, scale, self.net.stride)
            strip = (lab_to_rgb(fit_gamut(lab)) * 255).round().byte()
            out[rows] = strip[0].permute(1, 2, 0).cpu().numpy()
        return out

    def _working_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the net sees: the short side is ``size``, the shape is kept up to 1 : 4."""
        factor = self.size / min(width, height)
        longest = _LONGEST * self.size
        w, h = (min(longest, max(8, round(side * factor / 8) * 8)) for side in (width, height))
        return w, h


def _as_batch(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].to(device)


def _strips(height: int, width: int) -> Iterator[slice]:
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(height, top + rows))


def sample_ab(ab: Tensor, rows: slice, width: int, scale: tuple[float, float], stride: int) -> Tensor:
    """Bilinear ab of some rows of the full picture.

    Args:
        ab: (1, 2, h, w), whose points sit on every stride-th pixel of the net's input, the first on pixel 0.
        rows: of the full picture.
        width: of the full picture.
        scale: pixels of the net's input per pixel of the full picture, vertically and horizontally.
        stride: pixels of the net's input per step of the ab grid.

    Returns:
        (1, 2, rows, width); what lies past the last point repeats it.
    """

    def positions(pixels: Tensor, factor: float, count: int) -> Tensor:
        centres = (pixels + 0.5) * factor - 0.5  # in pixels of the net's input, the first one's centre at 0
        return (centres / stride).clamp(0, count - 1) / max(1, count - 1) * 2 - 1

    h, w = ab.shape[2:]
    y = positions(torch.arange(rows.start, rows.stop, device=ab.device), scale[0], h)
    x = positions(torch.arange(width, device=ab.device), scale[1], w)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].to(ab)
    return nn.functional.grid_sample(ab, grid, align_corners=True, padding_mode="border")
