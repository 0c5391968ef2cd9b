"""Training masks of dense probes, and the evaluation of their predictions at the original size of test images."""

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
from transfer.pascal.segmentation import confusion_of, iou_metrics, sparse_confusions
from transfer.protocol import MetricArrays
from transfer.protocols.dense.points import Points, mask_at, small_mask

TEST_BATCH, _MASK_BATCH = 8, 64  # images per batch, for evaluation and for reading masks


def read_masks(
    features: StoredFeatures, size: int, classes: int, world: World, should_stop: Callable[[], bool]
) -> Tensor:
    """Read the masks of all images, squashed to (n, size, size) uint8; the ranks share the work.

    Raises:
        UserError: a mask is missing or does not fit its image, or no pixel is labelled.
        Interrupted: ``should_stop`` returned True.
    """
    images, batches = features.images, [torch.empty(0, size, size, dtype=torch.uint8)]

    def read(rows: slice) -> Tensor:
        masks = (small_mask(images, int(index), size, classes)[None] for index in features.indices[rows])
        return torch.cat([batches[0], *masks])

    for rank_masks in world.zip_ranks(read(rows) for rows in features.rank_slices(_MASK_BATCH, world, should_stop)):
        batches.append(world.concatenate(rank_masks.to(world.device)).cpu())
    masks = torch.cat(batches)
    if not (masks != IGNORED).any():
        raise UserError(f"none of the {len(masks)} training images has a labelled pixel: all mask values are {IGNORED}")
    return masks


def score_test_images(
    test: StoredFeatures,
    score: Callable[[slice], dict[str, Tensor]],
    points: Mapping[str, Points],
    classes: Sequence[str],
    world: World,
    should_stop: Callable[[], bool],
    kind: str,
) -> Rows:
    """Compute the confusion matrix of each test image at its original size.

    Args:
        test: features of the test images.
        score: computes scores (N, K, g, g) by layer for a slice of the features.
        points: sampling points of the maps by layer.
        classes: K class names.
        world: ranks that share the images.
        should_stop: checked before every batch.
        kind: kind of classifier, "linear" or "knn".

    Returns:
        names, classes, and as ``LAYER/kind`` the confusion matrices, from
        :func:`~transfer.pascal.segmentation.sparse_confusions`.

    Raises:
        UserError: a mask is missing or does not fit its image, or no pixel is labelled.
        Interrupted: ``should_stop`` returned True.
    """
    count = len(classes)
    empty = torch.empty(0, count, count, dtype=torch.int64)

    def confusions(rows: slice) -> dict[str, Tensor]:
        if rows.start == rows.stop:
            return dict.fromkeys(points, empty)
        masks = [torch.from_numpy(mask_at(test.images, int(i), count)).to(world.device) for i in test.indices[rows]]
        by_layer = {}
        for layer, scores in score(rows).items():
            labels = [points[layer].labels(s[None], *mask.shape)[0] for s, mask in zip(scores, masks, strict=True)]
            by_layer[layer] = torch.stack(
                [confusion_of(*pair, count) for pair in zip(labels, masks, strict=True)]
            ).cpu()
        return by_layer

    batch_indices, columns = [torch.empty(0, dtype=torch.int64)], {layer: [empty] for layer in points}
    batches = test.rank_slices(TEST_BATCH, world, should_stop)
    for rows, by_layer in world.zip_ranks((rows, confusions(rows)) for rows in batches):
        batch_indices.append(test.indices[rows])
        for layer, layer_confusions in by_layer.items():
            columns[layer].append(layer_confusions)
    indices, ordered = in_order(world, batch_indices, columns)
    rows = {
        "names": np.array([test.images.names[int(i)] for i in indices]),
        "classes": np.array(classes),
        **{f"{layer}/{kind}": sparse_confusions(column.numpy()) for layer, column in ordered.items()},
    }
    if not any(len(column.values) for column in rows.values() if isinstance(column, Ragged)):
        raise UserError(f"none of the {len(indices)} test images has a labelled pixel: all mask values are {IGNORED}")
    return rows


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the IUs and pixel accuracies by layer.

    For linear classifiers these are ``LAYER/mean_iu``, ``LAYER/pixel_accuracy`` and ``LAYER/iu/CLASS``, for nearest
    neighbours ``LAYER/knn_mean_iu`` and ``LAYER/knn_pixel_accuracy``.
    """
    metrics: MetricArrays = {}
    for name, column in rows.items():
        layer, _, kind = name.rpartition("/")
        if kind in ("linear", "knn"):
            layer_metrics = iou_metrics(column, weights, rows["classes"])
            prefix = f"{layer}/" if kind == "linear" else f"{layer}/knn_"
            selected = {"mean_iu", "pixel_accuracy"} | {m for m in layer_metrics if kind == "linear" and "/" in m}
            metrics |= {prefix + metric: values for metric, values in layer_metrics.items() if metric in selected}
    return metrics
