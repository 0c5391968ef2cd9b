"""Feature maps (N, C, h, w) → maps small enough for a linear classifier: (N, C, g, g)."""

from torch import Tensor
from torch.nn import functional as F

from crosschannel.errors import UserError
from transfer.config import Pooling

MOST = 10_000  # numbers a layer, exclusive

# layer: (kernel, stride, padding). The paper's "equal kernel and stride", and DeepCluster's; and those of FAIR's
# benchmark and VISSL, where timm's stage1 is a ResNet's stem.
WINDOWS = {
    "windows": {"conv1": (6, 6, 3), "conv2": (4, 4, 0), "conv3": (3, 3, 1), "conv4": (3, 3, 1), "conv5": (2, 2, 0)},
    "vissl": {
        **{"conv1": (19, 4, 0), "conv2": (12, 3, 0), "conv3": (9, 1, 0), "conv4": (9, 1, 0), "conv5": (8, 1, 0)},
        **{"stage1": (10, 10, 4), "stage2": (16, 8, 0), "stage3": (13, 5, 0), "stage4": (8, 3, 0), "stage5": (6, 1, 0)},
    },
}
_WIDE = {("vissl", "stage5", 14): (12, 2, 0)}  # for maps of this side, from a last stage without stride
WINDOWS["deepcluster"] = WINDOWS["windows"]  # as older configs call it


def grid(channels: int, side: int, most: int = MOST) -> int:
    """The largest g ≤ side with g² · channels < most (at least 1).

    AlexNet's conv1 … conv5 at a 227 crop: 10, 6, 5, 5, 6.
    """
    g = 1
    while g < side and (g + 1) ** 2 * channels < most:
        g += 1
    return g


def pool(maps: Tensor, layer: str, kind: Pooling | int) -> Tensor:
    """Pool one layer's maps.

    Args:
        maps: (N, C, h, w) float.
        layer: its name; "windows" and "vissl" pool by name.
        kind: "average": adaptive averages over a g × g grid (see :func:`grid`), for any net; "windows": averages over
            windows of equal kernel and stride, zeros around the map counted in (the paper's, and DeepCluster's; older
            configs call it "deepcluster"): grids of the same sizes on AlexNet's conv1 … conv5 and other numbers;
            "vissl": averages over its windows, for AlexNets at 227 px and the stages of ResNets at 224 px;
            "bilinear": a resize to that grid whose corners are the map's corners, as Caffe's interpolation layer has
            it (the release); "global": the mean over positions; a number: as maps of that many points a side at most,
            larger ones by adaptive averages.

    Returns:
        (N, C, g, g).

    Raises:
        UserError: "windows" or "vissl" for a layer that has none.
    """
    if isinstance(kind, int):
        sides = [min(side, kind) for side in maps.shape[2:]]
        return maps if sides == list(maps.shape[2:]) else F.adaptive_avg_pool2d(maps, sides)
    if kind in WINDOWS:
        known = WINDOWS[kind]
        if layer not in known:
            raise UserError(f"pooling {kind} is defined for {', '.join(known)}, not for {layer!r}: try average")
        return F.avg_pool2d(maps, *_WIDE.get((kind, layer, maps.shape[-1]), known[layer]))
    g = 1 if kind == "global" else grid(maps.shape[1], min(maps.shape[2:]))
    if kind == "bilinear":
        return F.interpolate(maps, (g, g), mode="bilinear", align_corners=True)
    return F.adaptive_avg_pool2d(maps, g)
