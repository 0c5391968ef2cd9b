"""Fine-tuning task for semantic segmentation: loss and evaluation."""

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
from transfer.pascal.segmentation import PALETTE, confusion_of, iou_metrics, side_by_side, sparse_confusions
from transfer.protocol import MetricArrays, unweighted_metrics
from transfer.protocols.segment.net import Segmenter
from transfer.protocols.segment.views import MaskBatch, SizeGroup, WholeImages, group_sizes

_BATCH = 4  # images per evaluation batch and rank; images of the same size share a forward pass
_MAX_EXAMPLES = 8  # test images visualised after an evaluation


@dataclass(kw_only=True, eq=False)
class Segmentation(FineTuning):
    """Fine-tuning task for semantic segmentation.

    The loss is the cross-entropy, averaged over the labelled pixels of an image, then over images.
    """

    net: Segmenter

    def step(self, net: nn.Module, batch: MaskBatch) -> tuple[Tensor, Tensor]:
        logits = net([self.preprocess_group(group) for group in batch.groups])
        losses = []
        for scores, group in zip(logits, batch.groups, strict=True):
            truth = group.masks.to(scores.device, non_blocking=True).long()
            by_pixel = F.cross_entropy(scores.float(), truth, ignore_index=IGNORED, reduction="none")
            # An image without labelled pixels has a loss of 0, and still counts in the mean over images.
            losses.append((by_pixel.sum((1, 2)) / (truth != IGNORED).sum((1, 2)).clamp(min=1)).sum())
        loss = torch.stack(losses).sum()
        return loss, loss.new_full((), len(batch))

    def preprocess_group(self, group: SizeGroup) -> Tensor:
        """Preprocess the images of a group, and set their padding to zero, which is mid-grey or the mean colour."""
        x = self.net.preprocess(group.images.to(self.world.device, non_blocking=True))
        for image, (height, width) in zip(x, group.image_sizes.tolist(), strict=True):
            image[:, height:], image[:, :, width:] = 0, 0
        return x

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        count = len(self.classes)
        empty = torch.zeros(0, count, count, dtype=torch.int64)

        def compute(batch: MaskBatch) -> Tensor:
            confusions = empty.new_zeros(len(batch), count, count)
            for group in batch.groups:
                predicted = net.labels(self.preprocess_group(group))
                truth = group.masks.to(predicted.device, non_blocking=True)
                by_image = [confusion_of(p, t, count) for p, t in zip(predicted, truth, strict=True)]
                confusions[group.positions] = torch.stack(by_image).cpu()
            return confusions

        stream = Stream(self.test, WholeImages(count))
        held_out = HeldOut(stream, compute, self.world, _BATCH, self.workers, should_stop)
        batch_indices, batch_confusions = [], [empty]
        for batch, confusions in held_out:
            batch_indices.append(batch.indices)
            batch_confusions.append(confusions)
        indices, columns = in_order(self.world, batch_indices, {"confusion": batch_confusions})
        rows = {
            "names": np.array([self.test.names[int(i)] for i in indices]),
            "classes": np.array(self.classes),
            "confusion": sparse_confusions(columns["confusion"].numpy()),
        }
        if not len(rows["confusion"].values):
            raise UserError(
                f"none of the {len(rows['names'])} test images has a labelled pixel: all mask values are 255"
            )
        metrics = unweighted_metrics(compute_metrics, rows)
        line = f"mean IU {100 * metrics['mean_iu']:.1f}  pixel accuracy {100 * metrics['pixel_accuracy']:.1f}"
        return Evaluation(metrics, len(rows["names"]), rows, held_out.broken, line, lambda: self._visualise(net))

    def _visualise(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Show test images, their ground truth and the predictions in PASCAL's colours, two images per row."""
        triplets, view = [], WholeImages(len(self.classes))
        for index in np.linspace(0, len(self.test) - 1, min(_MAX_EXAMPLES, len(self.test))).astype(int):
            try:
                pixels, labels, size = view(self.test.record(int(index)), SampleRNG(0, ()))
            except (BrokenImage, OSError):
                continue
            (group,) = group_sizes([(pixels, labels, size)])
            predicted = net.labels(self.preprocess_group(group))[0].cpu().numpy()
            triplets.append([pixels, PALETTE[labels], PALETTE[predicted]])
        rows = [[picture for triplet in triplets[i : i + 2] for picture in triplet] for i in range(0, len(triplets), 2)]
        return {"segmented": side_by_side(rows)} if rows else {}


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return ``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu`` and ``iu/CLASS`` over all pixels."""
    return iou_metrics(rows["confusion"], weights, rows["classes"])
