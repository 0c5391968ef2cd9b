"""What fine-tuning for segmentation learns and how it is scored: a task for the one loop."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import ImageSet, Stream
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.errors import UserError
from crosschannel.runs.result import Rows
from crosschannel.training.held_out import HeldOut, in_order
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation
from transfer.pascal.masks import IGNORED, labels_of
from transfer.pascal.segmentation import PALETTE, confusion_of, iou_figures, side_by_side
from transfer.protocol import Figures, figures_of
from transfer.protocols.segment.net import Segmenter
from transfer.protocols.segment.views import MaskBatch, WholeImages

_AT_ONCE = 4  # whole images in an evaluation: those of one size are one pass
_SHOWN = 8


class Segmentation:
    """The task: cross-entropy over classes, averaged over an image's pixels less those labelled 255, and over images.

    Args:
        net: what is trained.
        initialise: (stream) → sets the initial values.
        test: images with masks.
        classes: their names.
        world: shares out the images of evaluations.
        workers: that decode for evaluations.
    """

    def __init__(
        self,
        net: Segmenter,
        initialise: Callable[[Stream], None],
        test: ImageSet,
        classes: Sequence[str],
        world: World,
        workers: int,
    ):
        self.net, self.rate_factors, self._initialise = net, {}, initialise
        self.test, self.classes, self.world, self.workers = test, tuple(classes), world, workers

    def initialise(self, stream: Stream) -> bool:
        self._initialise(stream)
        return True

    def step(self, net: nn.Module, batch: MaskBatch) -> tuple[Tensor, Tensor]:
        groups = batch.by_size()
        logits = net([self.input_of(batch, places) for places in groups])
        losses = []
        for scores, places in zip(logits, groups, strict=True):
            truth = torch.stack([batch.masks[place] for place in places]).to(scores.device, non_blocking=True).long()
            by_pixel = F.cross_entropy(scores.float(), truth, ignore_index=IGNORED, reduction="none")
            # An image without any labelled pixel gives nothing, and counts as one.
            losses.append((by_pixel.sum((1, 2)) / (truth != IGNORED).sum((1, 2)).clamp(min=1)).sum())
        loss = torch.stack(losses).sum()
        return loss, loss.new_full((), len(batch))

    def input_of(self, batch: MaskBatch, places: Sequence[int]) -> Tensor:
        """Preprocessed images of one size; what is no image is zero: mid-grey, or the mean."""
        pixels = torch.stack([batch.images[place] for place in places])
        x = self.net.backbone.preprocess(pixels.to(self.world.device, non_blocking=True))
        for i, place in enumerate(places):
            height, width = batch.inside[place]
            x[i, :, height:], x[i, :, :, width:] = 0, 0
        return x

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        count = len(self.classes)

        def compute(batch: MaskBatch) -> Tensor:
            found = torch.zeros(len(batch), count, count, dtype=torch.int64, device=self.world.device)
            for places in batch.by_size():
                (logits,) = net([self.input_of(batch, places)])
                for place, predicted in zip(places, logits.argmax(1), strict=True):
                    found[place] = confusion_of(predicted, batch.masks[place].to(predicted.device), count)
            return found

        stream = Stream(self.test, WholeImages(count))
        held_out = HeldOut(stream, compute, self.world, _AT_ONCE, self.workers, should_stop)
        indices, confusions = [], [torch.zeros(0, count, count, dtype=torch.int64, device=self.world.device)]
        for batch, found in held_out:
            indices.append(batch.indices)
            confusions.append(found)
        seen, columns = in_order(self.world, indices, {"confusion": confusions})
        rows = {
            "names": np.array([self.test.names[int(i)] for i in seen]),
            "classes": np.array(self.classes),
            "confusion": columns["confusion"].numpy().astype(np.int32),
        }
        if not rows["confusion"].any():
            raise UserError(f"no pixel of the {len(rows['names'])} test images is labelled: all of their masks are 255")
        figures = figures_of(metrics, rows)
        line = f"mean IU {100 * figures['mean_iu']:.1f}  pixel accuracy {100 * figures['pixel_accuracy']:.1f}"
        return Evaluation(
            figures, len(rows["names"]), rows, held_out.broken, line, lambda: {"segmented": self._pictures(net)}
        )

    def _pictures(self, net: nn.Module) -> np.ndarray:
        """Test images, their truth and what is predicted, in PASCAL's colours; two images a row."""
        trios, view = [], WholeImages(len(self.classes))
        for index in np.linspace(0, len(self.test) - 1, min(_SHOWN, len(self.test))).astype(int):
            try:
                image = EncodedImage(self.test.read(int(index)))
                pixels, labels = image.pixels(), labels_of(self.test.annotation(int(index)), image, view.classes)
            except (BrokenImage, OSError):
                continue
            batch = view.collate([(pixels, labels, labels.shape)], torch.tensor([index]), [])
            (logits,) = net([self.input_of(batch, [0])])
            trios.append([pixels, PALETTE[labels], PALETTE[logits[0].argmax(0).cpu().numpy()]])
        half = -(-len(trios) // 2)
        return side_by_side([[*trios[i], *(trios[i + half] if i + half < len(trios) else [])] for i in range(half)])


def metrics(rows: Rows, weights: np.ndarray) -> Figures:
    """``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu`` and ``iu/CLASS``, of pixels summed over images."""
    return iou_figures(rows["confusion"], weights, rows["classes"])
