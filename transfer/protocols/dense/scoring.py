"""Masks as they are learned from, and how what a frozen layer says of test images is scored, at their own size."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from crosschannel.errors import UserError
from crosschannel.runs.result import Ragged, Rows
from crosschannel.training.held_out import in_order
from crosschannel.training.ranks import World
from transfer.feature_cache import StoredFeatures
from transfer.pascal.masks import IGNORED
from transfer.pascal.segmentation import confusion_of, iou_figures, sparse
from transfer.protocol import MetricArrays
from transfer.protocols.dense.points import Points, mask_at, small_mask

AT_ONCE, _MASKS = 8, 64  # images of an evaluation, and whose masks are read


def read_masks(
    features: StoredFeatures, size: int, classes: int, world: World, should_stop: Callable[[], bool]
) -> Tensor:
    """The masks of all images as squares, (n, size, size) uint8; the ranks share the reading.

    Raises:
        UserError: a mask is missing or does not fit, or none of their pixels is labelled.
        Interrupted: told to stop.
    """
    images, found = features.images, [torch.empty(0, size, size, dtype=torch.uint8)]

    def read(part: slice) -> Tensor:
        masks = (small_mask(images, int(index), size, classes)[None] for index in features.indices[part])
        return torch.cat([found[0], *masks])

    for mine in world.zip_ranks(read(part) for part in features.shares(_MASKS, world, should_stop)):
        found.append(world.concatenate(mine.to(world.device)).cpu())
    masks = torch.cat(found)
    if not (masks != IGNORED).any():
        raise UserError(f"no pixel of {len(masks)} images is labelled: all of their masks are {IGNORED}")
    return masks


def score_test_images(
    test: StoredFeatures,
    scores: Callable[[slice], dict[str, Tensor]],
    points: Mapping[str, Points],
    classes: Sequence[str],
    world: World,
    should_stop: Callable[[], bool],
    kind: str,
) -> Rows:
    """``LAYER/kind``: pixels of every test image at its own size, by true and predicted class, as
    :func:`~transfer.pascal.segmentation.sparse` has them.

    Args:
        test: features of the images.
        scores: rows → (N, K, g, g) by layer.
        points: of the maps of those layers.
        classes: K names.
        world: shares out the images.
        should_stop: asked before every batch.
        kind: of what is scored.

    Raises:
        UserError: a mask does not fit, or none of their pixels is labelled.
        Interrupted: told to stop.
    """
    count = len(classes)
    none = torch.empty(0, count, count, dtype=torch.int64)

    def confusions(part: slice) -> dict[str, Tensor]:
        if part.start == part.stop:
            return dict.fromkeys(points, none)
        masks = [torch.from_numpy(mask_at(test.images, int(i), count)).to(world.device) for i in test.indices[part]]
        found = {}
        for layer, maps in scores(part).items():
            labels = [points[layer].labels(one[None], *mask.shape)[0] for one, mask in zip(maps, masks, strict=True)]
            found[layer] = torch.stack([confusion_of(*pair, count) for pair in zip(labels, masks, strict=True)]).cpu()
        return found

    seen, columns = [torch.empty(0, dtype=torch.int64)], {layer: [none] for layer in points}
    parts = test.shares(AT_ONCE, world, should_stop)
    for part, found in world.zip_ranks((part, confusions(part)) for part in parts):
        seen.append(test.indices[part])
        for layer, one in found.items():
            columns[layer].append(one)
    indices, ordered = in_order(world, seen, columns)
    rows = {
        "names": np.array([test.images.names[int(i)] for i in indices]),
        "classes": np.array(classes),
        **{f"{layer}/{kind}": sparse(column.numpy()) for layer, column in ordered.items()},
    }
    if not any(len(column.values) for column in rows.values() if isinstance(column, Ragged)):
        raise UserError(f"no pixel of {len(indices)} test images is labelled: all of their masks are {IGNORED}")
    return rows


def metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``LAYER/mean_iu``, ``LAYER/pixel_accuracy`` and ``LAYER/iu/CLASS`` of the linear classifiers;
    ``LAYER/knn_mean_iu`` and ``LAYER/knn_pixel_accuracy`` of nearest neighbours."""
    found: MetricArrays = {}
    for name, column in rows.items():
        layer, _, kind = name.rpartition("/")
        if kind in ("linear", "knn"):
            figures = iou_figures(column, weights, rows["classes"])
            start = f"{layer}/" if kind == "linear" else f"{layer}/knn_"
            kept = {"mean_iu", "pixel_accuracy"} | {one for one in figures if kind == "linear" and "/" in one}
            found |= {start + one: values for one, values in figures.items() if one in kept}
    return found
