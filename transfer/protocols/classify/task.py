"""Fine-tuning task for multi-label classification: crops, loss and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import ImageBatch, ImageSet, Record, Stream, View
from crosschannel.data.crops import flip_image
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.views import SampleRNG, collate_crops
from crosschannel.runs.result import Rows
from crosschannel.training.held_out import HeldOut, in_order
from crosschannel.training.task import Evaluation
from transfer.finetuning import FineTunedClassifier, FineTuning
from transfer.pascal.annotations import IGNORED, POSITIVE
from transfer.pascal.metrics import average_precision, break_ties_against_positives
from transfer.protocol import MetricArrays, unweighted_metrics

_TOP, _TILE, _FRAME = 5, 96, 4  # images shown per class; side of a tile and width of its frame, in pixels


@dataclass(frozen=True)
class RandomScaleCrops:
    """Random crops of Krähenbühl et al.: a square window of the image, resized to the crop size.

    The side of the window is s · ``size`` source pixels, with s uniform from min(½, s₂) to s₂ = min(2, H / size,
    W / size). Its position is uniform over whole pixels. The window is resized bilinearly without antialiasing, and
    mirrored half of the time.

    Attributes:
        size: side of the crops, in pixels.
        mirror: whether to mirror half of the crops.
        views: number of crops per image.
    """

    size: int
    mirror: bool = True
    views: int = 1

    def __call__(self, record: Record, rng: SampleRNG) -> np.ndarray:
        image = record.image()
        max_scale = min(2.0, image.height / self.size, image.width / self.size)
        u = rng.uniforms(4)
        side = max(1, round(self.size * (min(0.5, max_scale) + (max_scale - min(0.5, max_scale)) * u[0])))
        left, top = int(u[1] * (image.width - side + 1)), int(u[2] * (image.height - side + 1))
        window = torch.from_numpy(image.pixels()[top : top + side, left : left + side])[None].permute(0, 3, 1, 2)
        crop = F.interpolate(window, (self.size, self.size), mode="bilinear")[0].permute(1, 2, 0).numpy()
        return flip_image(crop) if self.mirror and u[3] < 0.5 else crop

    collate = staticmethod(collate_crops)


@dataclass(kw_only=True, eq=False)
class Classification(FineTuning):
    """Fine-tuning task for multi-label classification.

    The loss is the binary cross-entropy of one sigmoid output per class, summed over classes and averaged over images.
    An image with only difficult objects of a class is ignored for that class.

    Attributes:
        train: training images.
        view: view of the test images; the logits of an image's crops are summed.
        train_view: view of the training images when they are evaluated; None to evaluate only test images.
        batch: evaluation batch size per rank.
    """

    net: FineTunedClassifier
    train: ImageSet
    view: View
    train_view: View | None
    batch: int

    def step(self, net: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        logits = net(self._preprocess(batch))
        labels = batch.labels.to(self.world.device, non_blocking=True)
        valid, target = labels != IGNORED, (labels == POSITIVE).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, valid.float(), reduction="sum")
        return loss, loss.new_full((), len(batch))

    def _preprocess(self, batch: ImageBatch) -> Tensor:
        return self.net.preprocess(batch.images.to(self.world.device, non_blocking=True))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        rows, broken = self._score(net, self.test, self.view, should_stop)
        metrics = unweighted_metrics(compute_metrics, rows)
        if self.train_view is not None:
            train_rows, _ = self._score(net, self.train, self.train_view, should_stop)
            metrics["train/map"] = unweighted_metrics(compute_metrics, train_rows)["map"]
        count = sum(name.startswith("ap/") for name in metrics)
        line = f"mAP {100 * metrics['map']:.1f} over {count} classes"
        return Evaluation(metrics, len(rows["names"]), rows, broken, line, lambda: {"top": self._top_images(rows)})

    def _score(
        self, net: nn.Module, images: ImageSet, view: View, should_stop: Callable[[], bool]
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the names, labels and logits of images, and the error message of each broken image by name.

        The column ``logits`` is summed over the crops of each image; ``one_crop`` has the logits of the first crop.
        """
        empty = torch.empty(0, len(self.classes))

        def compute(batch: ImageBatch) -> Tensor:
            return net(self._preprocess(batch)).float().cpu() if len(batch) else empty

        held_out = HeldOut(Stream(images, view), compute, self.world, self.batch, self.workers, should_stop)
        batch_indices: list[Tensor] = []
        batches: dict[str, list[Tensor]] = {"logits": [empty], "one_crop": [empty]}
        for batch, logits in held_out:
            image_indices, counts = torch.unique_consecutive(batch.indices, return_counts=True)
            owner = torch.repeat_interleave(torch.arange(len(image_indices)), counts)
            batch_indices.append(image_indices)
            batches["logits"].append(torch.zeros(len(image_indices), logits.shape[1]).index_add_(0, owner, logits))
            batches["one_crop"].append(logits[counts.cumsum(0) - counts])
        indices, columns = in_order(self.world, batch_indices, batches)
        rows = {
            "names": np.array([images.names[int(i)] for i in indices]),
            "classes": np.array(self.classes),
            "labels": np.asarray(images.labels)[indices.numpy()],
            **{name: column.numpy() for name, column in columns.items()},
        }
        return rows, held_out.broken

    def _top_images(self, rows: Rows) -> np.ndarray:
        """Show the highest-scoring test images of each class in one row.

        Frames are green for positives, red for negatives, and grey for images with only difficult objects of the class.
        """
        index_by_name = {name: index for index, name in enumerate(self.test.names)}
        colours = {POSITIVE: (39, 174, 96), IGNORED: (154, 165, 177)}
        strips = []
        for label in range(len(self.classes)):
            tiles = [_text_tile(self.classes[label])]
            for row in np.argsort(-rows["logits"][:, label], kind="stable")[:_TOP]:
                tile = np.full((_TILE, _TILE, 3), colours.get(int(rows["labels"][row, label]), (192, 57, 43)), np.uint8)
                tile[_FRAME:-_FRAME, _FRAME:-_FRAME] = self._thumbnail(index_by_name[str(rows["names"][row])])
                tiles.append(tile)
            tiles += [np.full((_TILE, _TILE, 3), 255, np.uint8)] * (_TOP + 1 - len(tiles))
            strips.append(np.concatenate(tiles, 1))
        columns = 2 if len(strips) > 10 else 1
        strips += [np.full_like(strips[0], 255)] * (-len(strips) % columns)
        height = len(strips) // columns
        return np.concatenate([np.concatenate(strips[c * height : (c + 1) * height]) for c in range(columns)], 1)

    def _thumbnail(self, index: int) -> np.ndarray:
        side = _TILE - 2 * _FRAME
        try:
            thumbnail = Image.fromarray(EncodedImage(self.test.read(index)).pixels(4))
        except (BrokenImage, OSError):  # the file was removed or changed after it was scored
            thumbnail = Image.new("RGB", (side, side))
        return np.asarray(thumbnail.resize((side, side)))


def _text_tile(text: str) -> np.ndarray:
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    ImageDraw.Draw(tile).text((_FRAME, _TILE // 2 - 6), text, fill="black", font_size=13)
    return np.asarray(tile)


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the AP of each class with positives, ``ap/CLASS``, and the means ``map`` and ``one_crop/map``.

    ``one_crop/map`` uses only the first crop of each image. Images with only difficult objects of a class are ignored
    for that class.
    """
    metrics: MetricArrays = {}
    for column, name in (("logits", "map"), ("one_crop", "one_crop/map")):
        by_class = {}
        for label, class_name in enumerate(rows["classes"]):
            labels = rows["labels"][:, label]
            valid, positive = labels != IGNORED, labels == POSITIVE
            if positive.any():
                scores = break_ties_against_positives(rows[column][valid, label], positive[valid])
                by_class[f"ap/{class_name}"] = average_precision(scores, positive[valid], weights[:, valid])
        aps = np.stack(list(by_class.values()))
        defined = ~np.isnan(aps)  # the AP of a class is undefined in resamples without positives of that class
        metrics[name] = np.where(defined, aps, 0.0).sum(0) / defined.sum(0)
        if column == "logits":
            metrics |= by_class
    return metrics
