"""Feature maps (N, C, h, w) → maps small enough for a linear classifier: (N, C, g, g)."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from crosschannel.errors import UserError

Pooling = Literal["average", "windows", "bilinear", "global", "deepcluster"]
MOST = 10_000  # numbers a layer, exclusive

# layer of AlexNet: (kernel and stride, padding), the paper's "equal kernel and stride", and DeepCluster's
WINDOWS = {"conv1": (6, 3), "conv2": (4, 0), "conv3": (3, 1), "conv4": (3, 1), "conv5": (2, 0)}


def grid(channels: int, side: int, most: int = MOST) -> int:
    """The largest g ≤ side with g² · channels < most (at least 1).

    AlexNet's conv1 … conv5 at a 227 crop: 10, 6, 5, 5, 6.
    """
    g = 1
    while g < side and (g + 1) ** 2 * channels < most:
        g += 1
    return g


def pool(maps: Tensor, layer: str, kind: Pooling) -> Tensor:
    """Pool one layer's maps.

    Args:
        maps: (N, C, h, w) float.
        layer: its name; "windows" pools by name.
        kind: "average": adaptive averages over a g × g grid (see :func:`grid`), for any net; "windows": averages over
            windows of equal kernel and stride, zeros around the map counted in (the paper's, and DeepCluster's; older
            configs call it "deepcluster"): grids of the same sizes on AlexNet's conv1 … conv5 and other numbers;
            "bilinear": a resize to that grid whose corners are the map's corners, as Caffe's interpolation layer has
            it (the release); "global": the mean over positions.

    Returns:
        (N, C, g, g).

    Raises:
        UserError: "windows" for a layer that has none.
    """
    if kind in ("windows", "deepcluster"):
        if layer not in WINDOWS:
            raise UserError(
                f"pooling {kind} is defined for AlexNet's {', '.join(WINDOWS)}, not for {layer!r}: try average"
            )
        kernel, padding = WINDOWS[layer]
        return F.avg_pool2d(maps, kernel, kernel, padding)
    g = 1 if kind == "global" else grid(maps.shape[1], min(maps.shape[2:]))
    if kind == "bilinear":
        return F.interpolate(maps, (g, g), mode="bilinear", align_corners=True)
    return F.adaptive_avg_pool2d(maps, g)
