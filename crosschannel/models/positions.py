"""Position embeddings of one image size, resized for images of another, for the time of a forward pass.

Nothing of the module changes: resized tensors stand in front of its own (and pass gradients on to them), and numbers by
which it insists on one size are those of the images at hand.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.errors import UserError
from crosschannel.models.tokens import Survey, TokenGrid

# A name or names of position embeddings, or (module, height, width) → tensors by dotted name.
ResizePositions = str | Sequence[str] | Callable[[nn.Module, int, int], Mapping[str, Tensor]]
Replacement = tuple[nn.Module, str, Any]  # module, attribute, value

_POSITIONS = re.compile(r"(^|_)pos(ition(al|s)?)?(_|$)|(^|_)pos_?(emb|enc)|^w?pe$")
_SIZES = re.compile(
    r"(^|_)(image|img|input|grid|patches|spatial|feature|feat)_?(size|shape|resolution|dims?)$|^(resolution|grid)$"
    r"|^(num|n)_(patches|positions|tokens)$|^(seq|sequence)_?(len|length)$"
)
_ABSENT = object()


class _Side(int):
    """A number that equals both the height and the width of an image, for modules that compare each with it."""

    def __new__(cls, height: int, width: int) -> "_Side":
        side = super().__new__(cls, height)
        side.width = width
        return side

    def __eq__(self, other: object) -> bool:
        return int(self) == other or self.width == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__


def replacements(model: nn.Module, seen: Survey, height: int, width: int, names: Sequence[str]) -> list[Replacement]:
    """The attributes of a module that are others for images of another size than those of its survey.

    Args:
        model: the module.
        seen: its survey; it has a token grid.
        height, width: of the images, in pixels.
        names: of position embeddings, besides those of usual names; dotted, or their last part.
    """
    grid = _grid_of(seen, height, width)
    found: list[Replacement] = []
    lengths: dict[int, int] = {}  # of embeddings that are looked up by number
    for name, module, attribute, tensor in _named_tensors(model):
        resized = resize(tensor, seen.grid, grid) if _is_position(name, names) else None
        if resized is not None:
            found.append((module, attribute, resized))
            if isinstance(module, nn.Embedding):
                lengths[len(tensor)] = len(resized)
    for module in model.modules():
        found += _indices(module, lengths)
        found += _sizes(module, seen, grid, height, width)
    return found


@contextlib.contextmanager
def replaced(values: Sequence[Replacement]) -> Iterator[None]:
    """Let attributes of modules have other values; parameters and buffers stay registered behind them."""
    before = [(module, name, vars(module).get(name, _ABSENT)) for module, name, _ in values]
    try:
        for module, name, value in values:
            vars(module)[name] = value
        yield
    finally:
        for module, name, value in before:
            if value is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = value


def resize(positions: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor | None:
    """Position embeddings of another grid, bicubic with antialiasing; those of class and register tokens stay.

    Args:
        positions: (…, L, …), of the patches and of none, some or all other tokens, or (…, h, w, …).
        old: the grid that they are of.
        new: the grid that they are to be of.

    Returns:
        the same layout, or None if they are not of ``old``.
    """
    shape = tuple(positions.shape)
    for axis in range(len(shape) - 1):
        if shape[axis : axis + 2] == (old.height, old.width) and len(shape) > 2:
            maps = positions.movedim((axis, axis + 1), (0, 1))
            return _interpolated(maps, new).movedim((0, 1), (axis, axis + 1))
    for axis in range(len(shape)):  # channels are last, if that is possible
        others = [side for number, side in enumerate(shape) if number != axis]
        extra = shape[axis] - old.height * old.width
        if 0 <= extra <= old.extra and math.prod(others) == max(others, default=1) > 1:
            before = extra if not old.after else min(extra, old.before)
            tokens = positions.movedim(axis, 0)
            end = len(tokens) - (extra - before)
            maps = tokens[before:end].unflatten(0, (old.height, old.width))
            patches = _interpolated(maps, new).flatten(0, 1)
            return torch.cat((tokens[:before], patches, tokens[end:])).movedim(0, axis)
    return None


def candidates(model: nn.Module, seen: Survey, names: Sequence[str]) -> list[str]:
    """Names of the tensors that could be position embeddings by their shape, and are not known as such."""
    return [
        name
        for name, _, _, tensor in _named_tensors(model)
        if not _is_position(name, names) and resize(tensor, seen.grid, seen.grid) is not None
    ]


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raise a UserError for a name of position embeddings that a module does not have."""
    for wanted in names:
        if not any(_has_name(name, wanted) for name, *_ in _named_tensors(model)):
            raise UserError(
                f"resize_positions {wanted!r}: {type(model).__name__} has no parameter or buffer of that name"
            )


def _interpolated(maps: Tensor, new: TokenGrid) -> Tensor:
    """(h, w, …) → (height, width, …) of a grid."""
    x = maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]
    x = x.permute(2, 0, 1)[None].float()
    x = F.interpolate(x, (new.height, new.width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return x.reshape(new.height, new.width, *maps.shape[2:]).to(maps.dtype)


def _grid_of(seen: Survey, height: int, width: int) -> TokenGrid:
    """The grid of images of another size: whole patches, one at least."""
    down, across = seen.patch
    return TokenGrid(max(1, height // down), max(1, width // across), seen.grid.before, seen.grid.after)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Parameters, buffers and other tensors of floats of all modules but layers of weights: dotted name, module,
    attribute and tensor. An ``nn.Embedding`` is its weight."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention):
            continue
        for attribute, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                name = path if isinstance(module, nn.Embedding) else f"{path}.{attribute}".removeprefix(".")
                yield name, module, attribute, value


def _is_position(name: str, names: Sequence[str]) -> bool:
    last = [part.lower() for part in name.split(".")[-2:]]
    is_usual = any(_POSITIONS.search(part) for part in last) and not any("rel" in part for part in last)
    return is_usual or any(_has_name(name, wanted) for wanted in names)


def _has_name(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted.removesuffix('.weight')}")


def _indices(module: nn.Module, lengths: Mapping[int, int]) -> list[Replacement]:
    """Stored numbers 0, 1, … by which embeddings are looked up."""
    named = {**module._buffers, **vars(module)}
    found = []
    for name, value in named.items():
        if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and value.numel() in lengths:
            count = lengths[value.numel()]
            if value.shape[-1] == value.numel() and value.flatten().tolist() == list(range(value.numel())):
                numbers = torch.arange(count, dtype=value.dtype, device=value.device)
                found.append((module, name, numbers.view(*value.shape[:-1], count)))
    return found


def _sizes(module: nn.Module, seen: Survey, grid: TokenGrid, height: int, width: int) -> list[Replacement]:
    """Numbers named as sizes that are those of the survey: of its images, of its grid, and of its tokens."""
    old, found = seen.grid, []
    pairs = {(seen.height, seen.width): (height, width), (old.height, old.width): (grid.height, grid.width)}
    patches, new_patches = old.height * old.width, grid.height * grid.width
    counts = {patches + extra: new_patches + extra for extra in {0, old.extra}}
    for name, value in vars(module).items():
        if not _SIZES.search(name) or isinstance(value, bool):
            continue
        if isinstance(value, tuple | list) and tuple(value) in pairs:
            found.append((module, name, type(value)(pairs[tuple(value)])))
        elif isinstance(value, int) and (value, value) in pairs:
            found.append((module, name, _Side(*pairs[value, value])))
        elif isinstance(value, int) and value in counts:
            found.append((module, name, counts[value]))
    return found
