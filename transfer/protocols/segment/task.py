"""What fine-tuning for segmentation learns and how it is scored: a task for the one loop."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import Stream
from crosschannel.data.decode import BrokenImage
from crosschannel.data.views import SampleRNG
from crosschannel.errors import UserError
from crosschannel.runs.result import Rows
from crosschannel.training.held_out import HeldOut, in_order
from crosschannel.training.task import Evaluation
from transfer.finetuning import FineTuning
from transfer.pascal.masks import IGNORED
from transfer.pascal.segmentation import PALETTE, confusion_of, iou_figures, side_by_side, sparse
from transfer.protocol import MetricArrays, unweighted_metrics
from transfer.protocols.segment.net import Segmenter
from transfer.protocols.segment.views import MaskBatch, SizeGroup, WholeImages, group_sizes

_AT_ONCE = 4  # whole images in an evaluation: those of one size are one pass
_SHOWN = 8


@dataclass(kw_only=True, eq=False)
class Segmentation(FineTuning):
    """Fine-tuning task for segmentation: cross-entropy averaged over an image's labelled pixels, then over images."""

    net: Segmenter

    def step(self, net: nn.Module, batch: MaskBatch) -> tuple[Tensor, Tensor]:
        logits = net([self.input_of(group) for group in batch.groups])
        losses = []
        for scores, group in zip(logits, batch.groups, strict=True):
            truth = group.masks.to(scores.device, non_blocking=True).long()
            by_pixel = F.cross_entropy(scores.float(), truth, ignore_index=IGNORED, reduction="none")
            # An image without any labelled pixel gives nothing, and counts as one.
            losses.append((by_pixel.sum((1, 2)) / (truth != IGNORED).sum((1, 2)).clamp(min=1)).sum())
        loss = torch.stack(losses).sum()
        return loss, loss.new_full((), len(batch))

    def input_of(self, group: SizeGroup) -> Tensor:
        """Preprocessed images; what is no image is zero: mid-grey, or the mean."""
        x = self.net.preprocess(group.images.to(self.world.device, non_blocking=True))
        for one, (height, width) in zip(x, group.inside.tolist(), strict=True):
            one[:, height:], one[:, :, width:] = 0, 0
        return x

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        count = len(self.classes)
        none = torch.zeros(0, count, count, dtype=torch.int64)

        def compute(batch: MaskBatch) -> Tensor:
            found = none.new_zeros(len(batch), count, count)
            for group in batch.groups:
                predicted = net.labels(self.input_of(group))
                truth = group.masks.to(predicted.device, non_blocking=True)
                one_by_one = [confusion_of(p, t, count) for p, t in zip(predicted, truth, strict=True)]
                found[group.places] = torch.stack(one_by_one).cpu()
            return found

        stream = Stream(self.test, WholeImages(count))
        held_out = HeldOut(stream, compute, self.world, _AT_ONCE, self.workers, should_stop)
        indices, confusions = [], [none]
        for batch, found in held_out:
            indices.append(batch.indices)
            confusions.append(found)
        seen, columns = in_order(self.world, indices, {"confusion": confusions})
        rows = {
            "names": np.array([self.test.names[int(i)] for i in seen]),
            "classes": np.array(self.classes),
            "confusion": sparse(columns["confusion"].numpy()),
        }
        if not len(rows["confusion"].values):
            raise UserError(f"no pixel of the {len(rows['names'])} test images is labelled: all of their masks are 255")
        figures = unweighted_metrics(metrics, rows)
        line = f"mean IU {100 * figures['mean_iu']:.1f}  pixel accuracy {100 * figures['pixel_accuracy']:.1f}"
        return Evaluation(figures, len(rows["names"]), rows, held_out.broken, line, lambda: self._pictures(net))

    def _pictures(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Test images, their truth and what is predicted, in PASCAL's colours; two images a row."""
        trios, view = [], WholeImages(len(self.classes))
        for index in np.linspace(0, len(self.test) - 1, min(_SHOWN, len(self.test))).astype(int):
            try:
                pixels, labels, size = view(self.test.record(int(index)), SampleRNG(0, ()))
            except (BrokenImage, OSError):
                continue
            (group,) = group_sizes([(pixels, labels, size)])
            predicted = net.labels(self.input_of(group))[0].cpu().numpy()
            trios.append([pixels, PALETTE[labels], PALETTE[predicted]])
        rows = [[picture for trio in trios[i : i + 2] for picture in trio] for i in range(0, len(trios), 2)]
        return {"segmented": side_by_side(rows)} if rows else {}


def metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu`` and ``iu/CLASS``, of pixels summed over images."""
    return iou_figures(rows["confusion"], weights, rows["classes"])
