"""What fine-tuning for classification learns and how it is scored: a task for the one loop."""

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
from transfer.pascal.metrics import average_precision, tie_against
from transfer.protocol import MetricArrays, unweighted_metrics

_SHOWN, _SIDE, _FRAME = 5, 96, 4  # pictures of a class, and their pixels


@dataclass(frozen=True)
class RandomScaleCrops:
    """Krähenbühl's crops: a window of ``size`` · s source pixels at the image's own size, s uniform from min(½, s₂) to
    s₂ = min(2, H / size, W / size), anywhere on whole pixels, sampled bilinearly without antialiasing, mirrored half
    the time.

    Attributes:
        size: side of a crop.
        mirror: whether to mirror at all.
        views: crops an image, in evaluations.
    """

    size: int
    mirror: bool = True
    views: int = 1

    def __call__(self, record: Record, rng: SampleRNG) -> np.ndarray:
        image = record.image()
        most = min(2.0, image.height / self.size, image.width / self.size)
        u = rng.uniforms(4)
        side = max(1, round(self.size * (min(0.5, most) + (most - min(0.5, most)) * u[0])))
        left, top = int(u[1] * (image.width - side + 1)), int(u[2] * (image.height - side + 1))
        window = torch.from_numpy(image.pixels()[top : top + side, left : left + side])[None].permute(0, 3, 1, 2)
        crop = F.interpolate(window, (self.size, self.size), mode="bilinear")[0].permute(1, 2, 0).numpy()
        return flip_image(crop) if self.mirror and u[3] < 0.5 else crop

    collate = staticmethod(collate_crops)


@dataclass(kw_only=True, eq=False)
class Classification(FineTuning):
    """Fine-tuning task for classification: 20 sigmoid outputs, cross-entropy summed over classes and averaged over
    images. A class of which an image has difficult objects alone is left out.

    Attributes:
        train: training images.
        view: view of test images, whose logits are summed.
        train_view: view of training images if they are scored too.
        batch: evaluation batch size per rank.
    """

    net: FineTunedClassifier
    train: ImageSet
    view: View
    train_view: View | None
    batch: int

    def step(self, net: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        logits = net(self._input(batch))
        labels = batch.labels.to(self.world.device, non_blocking=True)
        counts, target = labels != IGNORED, (labels == POSITIVE).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, counts.float(), reduction="sum")
        return loss, loss.new_full((), len(batch))

    def _input(self, batch: ImageBatch) -> Tensor:
        return self.net.preprocess(batch.images.to(self.world.device, non_blocking=True))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        rows, broken = self._score(net, self.test, self.view, should_stop)
        figures = unweighted_metrics(metrics, rows)
        if self.train_view is not None:
            trained, _ = self._score(net, self.train, self.train_view, should_stop)
            figures["train/map"] = unweighted_metrics(metrics, trained)["map"]
        scored = sum(name.startswith("ap/") for name in figures)
        line = f"mAP {100 * figures['map']:.1f} over {scored} classes"
        return Evaluation(figures, len(rows["names"]), rows, broken, line, lambda: {"top": self._top(rows)})

    def _score(
        self, net: nn.Module, images: ImageSet, view: View, should_stop: Callable[[], bool]
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Names, labels and logits of images, summed over the crops of each and of the first one alone."""
        none = torch.empty(0, len(self.classes))

        def compute(batch: ImageBatch) -> Tensor:
            return net(self._input(batch)).float().cpu() if len(batch) else none

        held_out = HeldOut(Stream(images, view), compute, self.world, self.batch, self.workers, should_stop)
        indices: list[Tensor] = []
        found: dict[str, list[Tensor]] = {"logits": [none], "one_crop": [none]}
        for batch, logits in held_out:
            owners, counts = torch.unique_consecutive(batch.indices, return_counts=True)
            owner = torch.repeat_interleave(torch.arange(len(owners)), counts)
            indices.append(owners)
            found["logits"].append(torch.zeros(len(owners), logits.shape[1]).index_add_(0, owner, logits))
            found["one_crop"].append(logits[counts.cumsum(0) - counts])
        seen, columns = in_order(self.world, indices, found)
        rows = {
            "names": np.array([images.names[int(i)] for i in seen]),
            "classes": np.array(self.classes),
            "labels": np.asarray(images.labels)[seen.numpy()],
            **{name: column.numpy() for name, column in columns.items()},
        }
        return rows, held_out.broken

    def _top(self, rows: Rows) -> np.ndarray:
        """For every class its likeliest test images in a row: green frames where it is there, red where it is not, grey
        where it is difficult."""
        places = {name: index for index, name in enumerate(self.test.names)}
        colours = {POSITIVE: (39, 174, 96), IGNORED: (154, 165, 177)}
        lines = []
        for number in range(len(self.classes)):
            tiles = [_named(self.classes[number])]
            for row in np.argsort(-rows["logits"][:, number], kind="stable")[:_SHOWN]:
                tile = np.full(
                    (_SIDE, _SIDE, 3), colours.get(int(rows["labels"][row, number]), (192, 57, 43)), np.uint8
                )
                tile[_FRAME:-_FRAME, _FRAME:-_FRAME] = self._thumbnail(places[str(rows["names"][row])])
                tiles.append(tile)
            tiles += [np.full((_SIDE, _SIDE, 3), 255, np.uint8)] * (_SHOWN + 1 - len(tiles))
            lines.append(np.concatenate(tiles, 1))
        columns = 2 if len(lines) > 10 else 1
        lines += [np.full_like(lines[0], 255)] * (-len(lines) % columns)
        half = len(lines) // columns
        return np.concatenate([np.concatenate(lines[c * half : (c + 1) * half]) for c in range(columns)], 1)

    def _thumbnail(self, index: int) -> np.ndarray:
        side = _SIDE - 2 * _FRAME
        try:
            picture = Image.fromarray(EncodedImage(self.test.read(index)).pixels(4))
        except (BrokenImage, OSError):  # it was there a moment ago
            picture = Image.new("RGB", (side, side))
        return np.asarray(picture.resize((side, side)))


def _named(words: str) -> np.ndarray:
    """A tile that says what follows it."""
    tile = Image.new("RGB", (_SIDE, _SIDE), "white")
    ImageDraw.Draw(tile).text((_FRAME, _SIDE // 2 - 6), words, fill="black", font_size=13)
    return np.asarray(tile)


def metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``ap/CLASS`` of every class that has positives, their mean ``map``, and of one crop ``one_crop/map``. Images that
    have difficult objects of a class alone are left out of that class."""
    found: MetricArrays = {}
    for column, name in (("logits", "map"), ("one_crop", "one_crop/map")):
        by_class = {}
        for number, label in enumerate(rows["classes"]):
            labels = rows["labels"][:, number]
            counted, positive = labels != IGNORED, labels == POSITIVE
            if positive.any():
                scores = tie_against(rows[column][counted, number], positive[counted])
                by_class[f"ap/{label}"] = average_precision(scores, positive[counted], weights[:, counted])
        stacked = np.stack(list(by_class.values()))
        known = ~np.isnan(stacked)  # of a resample without positives of a class it is the mean of the others
        found[name] = np.where(known, stacked, 0.0).sum(0) / known.sum(0)
        if column == "logits":
            found |= by_class
    return found
