"""Decoders, which convert the outputs of a colorization net to ab for every pixel of a picture."""

import math
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from crosschannel.color import ABQuantizer, rgb_to_lab
from crosschannel.color.quantizer import Q
from crosschannel.errors import UserError
from crosschannel.models.input_spec import LUMA
from crosschannel.pretext.colorization import Colorization
from crosschannel.pretext.dahl import rgb_to_yuv
from crosschannel.pretext.hypercolumn import BINS
from crosschannel.pretext.regression import Regression
from crosschannel.pretext.split_brain import Halves, SplitBrain
from crosschannel.pretext.task import Pretext

TEMPERATURE = 0.38  # T of the annealed mean in the paper
_FADING_THRESHOLD = 0.03  # the chroma is faded if the mean of p · e^{iθ} over the bins has a smaller magnitude


class Decoder(nn.Module):
    """Base class of decoders, which convert the outputs of a net to maps, and upsampled maps to ab.

    Args:
        task: task of the net.

    Attributes:
        temperature: default T of the annealed mean; None for decoders without a temperature.
    """

    temperature: float | None = None

    def __init__(self, task: Pretext | None = None):
        super().__init__()

    def to_maps(self, outputs: Any, temperature: float | None = None) -> Tensor:
        """Convert outputs to maps (N, C, h, w), with one point for every ``stride``-th pixel.

        Raises:
            UserError: a temperature is passed to a decoder without one.
        """
        raise NotImplementedError

    def to_ab(self, maps: Tensor, rgb: Tensor) -> Tensor:
        """Convert upsampled maps to ab.

        Args:
            maps: (N, C, H, W), upsampled.
            rgb: (N, 3, H, W) float in [0, 1]; only its lightness may be used.

        Returns:
            ab (N, 2, H, W).
        """
        return maps

    def distribution(self, outputs: Any) -> Tensor | None:
        """Return the probabilities of the 313 ab bins, (N, 313, h, w); None if the net does not predict them."""
        return None

    def decoder_state(self) -> dict[str, Tensor]:
        """Return the tensors of the decoder that are saved together with the weights."""
        return {}

    def load_decoder_state(self, tensors: dict[str, Tensor], temperature: float | None, source: str) -> None:
        """Restore the decoder from the tensors of a file.

        Raises:
            UserError: a tensor is unexpected or invalid; the message starts with ``source``.
        """
        if tensors:
            raise UserError(f"{source} has the unexpected tensor {min(tensors)}; the file may belong to another net")
        if self.temperature is not None and temperature is not None:
            self.temperature = temperature


class BinDecoder(Decoder):
    """Decoder of logits of the 313 ab bins, by the annealed mean.

    Args:
        quantizer: quantizer with the bins.
        temperature: default T of the annealed mean.
        native: (2, 313) ab values of the bins. If set, and no temperature is passed, the mean of these values under
            the softmax is used instead of the annealed mean.
    """

    def __init__(self, quantizer: ABQuantizer, temperature: float = TEMPERATURE, native: Tensor | None = None):
        super().__init__()
        self.quantizer, self.temperature = quantizer, temperature
        self.register_buffer("native", native)

    def to_maps(self, outputs: Tensor, temperature: float | None = None) -> Tensor:
        if temperature is None and self.native is not None:
            return torch.einsum("cq,nqhw->nchw", self.native, outputs.float().softmax(1))
        return self.quantizer.decode(outputs, self.temperature if temperature is None else temperature)

    def distribution(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)

    def decoder_state(self) -> dict[str, Tensor]:
        return {} if self.native is None else {"native": self.native}

    def load_decoder_state(self, tensors: dict[str, Tensor], temperature: float | None, source: str) -> None:
        native = tensors.pop("native", None)
        super().load_decoder_state(tensors, temperature, source)
        if native is None:
            return
        if native.shape != (2, Q) or not native.is_floating_point() or not native.abs().max() < 1e3:
            raise UserError(f"{source} contains an invalid decoder: native must be (2, {Q}) ab values")
        self.native = native


class RegressionDecoder(Decoder):
    """Decoder of regressed ab, in the units of :class:`~crosschannel.pretext.regression.Regression`."""

    def to_maps(self, outputs: Tensor, temperature: float | None = None) -> Tensor:
        refuse_temperature(temperature, "this net regresses ab")
        return Regression.ab(outputs)


def colorization_decoder(task: Colorization) -> Decoder:
    """Build the decoder for the objective of a colorization task."""
    if isinstance(task.objective, Regression):
        return RegressionDecoder()
    return BinDecoder(task.objective.quantizer)


class SplitBrainDecoder(BinDecoder):
    """Decoder of the ab predictions of the half-net with lightness input."""

    def __init__(self, task: SplitBrain):
        super().__init__(task.quantizer)

    def to_maps(self, outputs: Halves, temperature: float | None = None) -> Tensor:
        return super().to_maps(outputs.ab, temperature)

    def distribution(self, outputs: Halves) -> Tensor:
        return super().distribution(outputs.ab)


class LarssonDecoder(Decoder):
    """Decoder of distributions of hue and chroma, as in Larsson et al. (2016).

    The hue is the circular mean. The chroma is the median, faded if the hue is uncertain. Both are converted to RGB
    with V = L + C/2 and S = C/V, and RGB is shifted to the mean of the input.
    """

    def to_maps(self, outputs: Tensor, temperature: float | None = None) -> Tensor:
        """Return the probabilities of hue and chroma, (N, 64, h, w)."""
        refuse_temperature(temperature, "this net decodes to the median chroma and the mean hue")
        return torch.cat([logits.softmax(1) for logits in outputs.float().split(BINS, 1)], 1)

    def to_ab(self, maps: Tensor, rgb: Tensor) -> Tensor:
        hue, chroma = maps.split(BINS, 1)
        grey = rgb.mean(1)
        angles = (torch.arange(BINS, device=maps.device) + 0.5) * (2 * math.pi / BINS)
        x, y = torch.einsum("nqhw,q->nhw", hue, angles.cos()), torch.einsum("nqhw,q->nhw", hue, angles.sin())
        certainty = (x * x + y * y).sqrt().clamp(max=_FADING_THRESHOLD * BINS) / (_FADING_THRESHOLD * BINS)
        faded_chroma = median(chroma) * certainty
        value = grey + faded_chroma / 2
        saturation = torch.where(value > 0, faded_chroma / value.clamp(min=1e-6), 0).clamp(0, 1)
        coloured = hsv_to_rgb(torch.atan2(y, x) / (2 * math.pi) % 1, saturation, value)
        return rgb_to_lab((coloured + (grey - coloured.mean(1))[:, None]).clamp(0, 1))[:, 1:]


class DahlDecoder(Decoder):
    """Decoder of regressed UV in 0..1, combined with the luma of the picture."""

    def to_maps(self, outputs: Tensor, temperature: float | None = None) -> Tensor:
        refuse_temperature(temperature, "this net regresses UV")
        return outputs.float().sigmoid()

    def to_ab(self, maps: Tensor, rgb: Tensor) -> Tensor:
        luma = rgb_to_yuv(rgb)[:, :1]
        return rgb_to_lab(yuv_to_rgb(torch.cat((luma, maps), 1)))[:, 1:]


def build_decoder(task: Pretext) -> Decoder:
    """Build the decoder of a task that predicts colours."""
    return resolve_name(task.decoder)(task)


def refuse_temperature(temperature: float | None, reason: str) -> None:
    """Raise a UserError if a temperature is passed to a decoder without one."""
    if temperature is not None:
        raise UserError(f"{reason} and has no temperature")


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert HSV, (N, H, W) each, to RGB (N, 3, H, W) without clipping."""
    steps = (torch.tensor([5.0, 3.0, 1.0]).to(hue)[:, None, None] + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(steps, 4 - steps).clamp(0, 1))


def median(probabilities: Tensor) -> Tensor:
    """Return medians of distributions over equal bins in 0..1, interpolated within bins: (N, Q, H, W) → (N, H, W)."""
    q = probabilities.shape[1]
    cumulative = probabilities.cumsum(1)
    index = (cumulative < 0.5).sum(1, keepdim=True).clamp(max=q - 1)
    mass = probabilities.gather(1, index)
    mass_below = cumulative.gather(1, index) - mass
    fraction = ((0.5 - mass_below) / mass.clamp(min=1e-12)).clamp(0, 1)
    return ((index + fraction) / q)[:, 0]


def yuv_to_rgb(yuv: Tensor) -> Tensor:
    """Invert :func:`~crosschannel.pretext.dahl.rgb_to_yuv`, and clip to [0, 1]."""
    y, u, v = yuv.unbind(1)
    blue, red = y + 2 * (1 - LUMA[2]) * (u - 0.5), y + 2 * (1 - LUMA[0]) * (v - 0.5)
    green = (y - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return torch.stack((red, green, blue), 1).clamp(0, 1)
