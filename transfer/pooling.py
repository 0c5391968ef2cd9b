"""Pooling of feature maps (N, C, h, w) to maps (N, C, g, g) that are small enough for a linear classifier."""

from torch import Tensor
from torch.nn import functional as F

from crosschannel.errors import UserError
from transfer.config import Pooling

MAX_DIMENSIONS = 10_000  # exclusive upper bound on the pooled dimensions per layer

# Layer → (kernel, stride, padding). "windows": the paper ("equal kernel and stride") and DeepCluster. "vissl": FAIR's
# benchmark and VISSL; timm's stage1 is the stem of a ResNet.
WINDOWS = {
    "windows": {"conv1": (6, 6, 3), "conv2": (4, 4, 0), "conv3": (3, 3, 1), "conv4": (3, 3, 1), "conv5": (2, 2, 0)},
    "vissl": {
        **{"conv1": (19, 4, 0), "conv2": (12, 3, 0), "conv3": (9, 1, 0), "conv4": (9, 1, 0), "conv5": (8, 1, 0)},
        **{"stage1": (10, 10, 4), "stage2": (16, 8, 0), "stage3": (13, 5, 0), "stage4": (8, 3, 0), "stage5": (6, 1, 0)},
    },
}
# Exceptions by side of the map, for ResNets whose last stage has no stride.
_WINDOWS_BY_SIDE = {("vissl", "stage5", 14): (12, 2, 0)}
WINDOWS["deepcluster"] = WINDOWS["windows"]  # former name, for old configs


def grid(channels: int, side: int, limit: int = MAX_DIMENSIONS) -> int:
    """Return the largest g ≤ side with g² · channels < limit, at least 1.

    AlexNet's conv1 … conv5 with 227 px crops: 10, 6, 5, 5, 6.
    """
    g = 1
    while g < side and (g + 1) ** 2 * channels < limit:
        g += 1
    return g


def pool(maps: Tensor, layer: str, kind: Pooling | int) -> Tensor:
    """Pool the maps of a layer.

    Kinds of pooling:

    - "average": adaptive average pooling to a g × g grid (see :func:`grid`), for any backbone.
    - "bilinear": bilinear resize to the same grid with aligned corners, like Caffe's interpolation layer (the
      authors' code).
    - "windows" (formerly "deepcluster"): average pooling with equal kernel and stride, padding included in the average
      (the paper and DeepCluster). For AlexNet's conv1 … conv5, it has the same grids as "average" but different values.
    - "vissl": average pooling with VISSL's windows, for AlexNets at 227 px and the stages of ResNets at 224 px.
    - "global": mean over all positions.
    - an integer: adaptive average pooling to at most this side; smaller maps are returned unchanged.

    Args:
        maps: (N, C, h, w) float.
        layer: name of the layer, which determines the windows of "windows" and "vissl".
        kind: kind of pooling.

    Returns:
        pooled maps (N, C, g, g).

    Raises:
        UserError: "windows" or "vissl" is not defined for the layer.
    """
    if isinstance(kind, int):
        sides = [min(side, kind) for side in maps.shape[2:]]
        return maps if sides == list(maps.shape[2:]) else F.adaptive_avg_pool2d(maps, sides)
    if kind in WINDOWS:
        windows = WINDOWS[kind]
        if layer not in windows:
            raise UserError(
                f"pooling {kind} is not defined for layer {layer!r}, only for {', '.join(windows)}; use pooling average"
            )
        return F.avg_pool2d(maps, *_WINDOWS_BY_SIDE.get((kind, layer, maps.shape[-1]), windows[layer]))
    g = 1 if kind == "global" else grid(maps.shape[1], min(maps.shape[2:]))
    if kind == "bilinear":
        return F.interpolate(maps, (g, g), mode="bilinear", align_corners=True)
    return F.adaptive_avg_pool2d(maps, g)
