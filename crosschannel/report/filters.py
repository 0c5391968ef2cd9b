"""Pictures of the filters of a net's first convolution."""

import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.color import lab_to_rgb
from crosschannel.errors import UserError
from crosschannel.models import Backbone

_EXTENT = 50.0  # offset of L, a or b from mid-grey for the largest weight of a filter


@torch.no_grad()
def filter_picture(backbone: Backbone, columns: int = 16, zoom: int = 4) -> Image.Image:
    """Draw the filters of the first convolution, each scaled by its largest weight; zero is mid-grey.

    Args:
        backbone: backbone with grey, Lab or RGB input. Lab filters are drawn in the colours that they respond to.
        columns: number of filters per row.
        zoom: side of a weight, in pixels.

    Returns:
        an RGB picture, with light lines of one pixel between the filters.

    Raises:
        UserError: the first convolution is grouped, or does not have one or three input channels.
    """
    first = next((module for module in backbone.net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels not in (1, 3) or first.groups > 1:
        raise UserError(
            "cannot draw filters: the net must begin with an ungrouped convolution of one or three input channels"
        )
    weight = first.weight.float().cpu()
    tiles = _to_rgb(weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12), backbone.input.kind)
    tiles = tiles.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    tiles = nn.functional.pad(tiles, (0, 1, 0, 1), value=0.9)
    padding = -len(tiles) % columns
    tiles = torch.cat((tiles, torch.full((padding, *tiles.shape[1:]), 0.9)))
    count, channels, height, width = tiles.shape
    rows = tiles.reshape(count // columns, columns, channels, height, width)
    picture = rows.permute(0, 3, 1, 4, 2).reshape(count // columns * height, columns * width, channels)
    return Image.fromarray((picture * 255).round().byte().numpy())


def _to_rgb(filters: Tensor, kind: str) -> Tensor:
    """Convert filters with values in [-1, 1] to RGB in [0, 1]."""
    if filters.shape[1] == 1:
        return (filters.expand(-1, 3, -1, -1) + 1) / 2
    if kind == "lab":
        return lab_to_rgb(filters * _EXTENT + torch.tensor([50.0, 0, 0])[:, None, None])
    return (filters + 1) / 2
