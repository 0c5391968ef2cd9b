"""Regression of ab with the Euclidean loss (Eq. 1), the paper's "L2" variant."""

import torch
from torch import Tensor, nn

from crosschannel.pretext.classification import without_grey_gradient
from crosschannel.pretext.task import (
    PrimaryMetric,
    check_contrast,
    constant_error,
    moments,
)

_UNIT = 110.0  # factor from outputs to ab, as in the released nets


class Regression(nn.Module):
    """Loss ½‖ab − âb‖² at every pixel, in squared ab units; outputs are ab / 110, as in the PyTorch release.

    Args:
        grey_threshold: see :class:`~crosschannel.pretext.classification.Classification`.

    Shape:
        outputs (N, 2, h, w) and ab (N, 2, h, w) → (N, h, w).
    """

    outputs = 2
    primary_metric = PrimaryMetric.ratio("loss_share", "best constant colour")
    score_length = 5

    def __init__(self, grey_threshold: float = 0.0):
        super().__init__()
        self.grey_threshold = grey_threshold

    def forward(self, outputs: Tensor, ab: Tensor) -> Tensor:
        loss = (ab - _UNIT * outputs.float()).square().sum(1) / 2
        return without_grey_gradient(loss, ab, self.grey_threshold)

    @staticmethod
    def ab(outputs: Tensor) -> Tensor:
        """Convert outputs to ab, (N, 2, h, w)."""
        return _UNIT * outputs.float()

    @torch.no_grad()
    def score(self, outputs: Tensor, ab: Tensor) -> Tensor:
        """Return sums for :meth:`metrics`, float64: the loss, then the moments of ab."""
        loss = (ab.double() - self.ab(outputs)).square().sum() / 2
        return torch.cat((loss[None], moments(ab)))

    @staticmethod
    def metrics(sums: Tensor) -> dict[str, float]:
        """Compute ``loss`` per pixel, ``loss_constant`` of the best constant colour, and their ratio ``loss_share``."""
        loss, count, *other_moments = sums.tolist()
        constant = constant_error(count, *other_moments)
        check_contrast(constant / count)
        return {"loss": loss / count, "loss_constant": constant / count, "loss_share": loss / constant}
