"""The filters of a net's first layer as a picture."""

import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.color import lab_to_rgb
from crosschannel.errors import UserError
from crosschannel.models import Backbone

_EXTENT = 50.0  # of L around mid-grey, and of a and b, that a filter's largest weight is shown as


@torch.no_grad()
def filter_picture(backbone: Backbone, columns: int = 16, zoom: int = 4) -> Image.Image:
    """The first convolution's filters side by side, each scaled by its largest weight; zero is mid-grey.

    Args:
        backbone: of grey, Lab or RGB input. Lab filters are shown in the colours that excite them.
        columns: filters a row.
        zoom: side of a weight, in pixels.

    Returns:
        an RGB picture; a light line of one pixel is around each filter.

    Raises:
        UserError: a net whose first convolution takes other channels than its input has.
    """
    first = next((module for module in backbone.net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels not in (1, 3) or first.groups > 1:
        raise UserError("only the filters of a convolution on one or three channels make a picture")
    weight = first.weight.float().cpu()
    tiles = _shown(weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12), backbone.input.kind)
    tiles = tiles.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    tiles = nn.functional.pad(tiles, (0, 1, 0, 1), value=0.9)
    lacking = -len(tiles) % columns
    tiles = torch.cat((tiles, torch.full((lacking, *tiles.shape[1:]), 0.9)))
    count, channels, height, width = tiles.shape
    rows = tiles.reshape(count // columns, columns, channels, height, width)
    picture = rows.permute(0, 3, 1, 4, 2).reshape(count // columns * height, columns * width, channels)
    return Image.fromarray((picture * 255).round().byte().numpy())


def _shown(filters: Tensor, kind: str) -> Tensor:
    """Filters in -1 … 1 as RGB in 0 … 1."""
    if filters.shape[1] == 1:
        return (filters.expand(-1, 3, -1, -1) + 1) / 2
    if kind == "lab":
        return lab_to_rgb(filters * _EXTENT + torch.tensor([50.0, 0, 0])[:, None, None])
    return (filters + 1) / 2
