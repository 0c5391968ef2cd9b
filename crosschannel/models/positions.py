"""Position embeddings that are resized to the size of the images during a forward pass.

The module itself does not change: resized tensors temporarily shadow its own (and pass gradients on to them), and
attributes that store the image size take the current one.
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

# Name or names of position embeddings, or (module, height, width) → tensors by dotted name.
ResizePositions = str | Sequence[str] | Callable[[nn.Module, int, int], Mapping[str, Tensor]]
Replacement = tuple[nn.Module, str, Any]  # module, attribute, value

_POSITIONS = re.compile(r"(^|_)pos(ition(al|s)?)?(_|$)|(^|_)pos_?(emb|enc)|^w?pe$")
_SIZES = re.compile(
    r"(^|_)(image|img|input|grid|patches|spatial|feature|feat)_?(size|shape|resolution|dims?)$|^(resolution|grid)$"
    r"|^(num|n)_(patches|positions|tokens)$|^(seq|sequence)_?(len|length)$"
)
_ABSENT = object()


class _Side(int):
    """Integer that equals both the height and the width of an image, for modules that compare it with each."""

    def __new__(cls, height: int, width: int) -> "_Side":
        side = super().__new__(cls, height)
        side.width = width
        return side

    def __eq__(self, other: object) -> bool:
        return int(self) == other or self.width == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__


def replacements(model: nn.Module, survey: Survey, height: int, width: int, names: Sequence[str]) -> list[Replacement]:
    """List the attributes of a module to replace for images that differ in size from those of its survey.

    Args:
        model: the module.
        survey: its survey; it has a token grid.
        height, width: size of the images, in pixels.
        names: further names of position embeddings, dotted or only their last part; common names are always included.
    """
    grid = _grid_of(survey, height, width)
    changes: list[Replacement] = []
    lengths: dict[int, int] = {}  # old → new number of rows of an nn.Embedding
    for name, module, attribute, tensor in _named_tensors(model):
        resized = resize(tensor, survey.grid, grid) if _is_position(name, names) else None
        if resized is not None:
            changes.append((module, attribute, resized))
            if isinstance(module, nn.Embedding):
                lengths[len(tensor)] = len(resized)
    for module in model.modules():
        changes += _indices(module, lengths)
        changes += _sizes(module, survey, grid, height, width)
    return changes


@contextlib.contextmanager
def temporary_attributes(values: Sequence[Replacement]) -> Iterator[None]:
    """Replace attributes of modules temporarily; parameters and buffers stay registered behind them."""
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
    """Resize position embeddings to another grid, bicubic with antialiasing; class and register tokens keep theirs.

    Args:
        positions: (…, L, …), with the patches and none, some or all of the other tokens, or (…, h, w, …).
        old: their current grid.
        new: the target grid.

    Returns:
        Embeddings in the same layout, or None if the shape does not fit ``old``.
    """
    shape = tuple(positions.shape)
    for axis in range(len(shape) - 1):
        if shape[axis : axis + 2] == (old.height, old.width) and len(shape) > 2:
            maps = positions.movedim((axis, axis + 1), (0, 1))
            return _interpolate(maps, new).movedim((0, 1), (axis, axis + 1))
    for axis in range(len(shape)):  # prefer channels last
        other_sides = [side for index, side in enumerate(shape) if index != axis]
        extra = shape[axis] - old.height * old.width
        if 0 <= extra <= old.extra and math.prod(other_sides) == max(other_sides, default=1) > 1:
            before = extra if not old.after else min(extra, old.before)
            tokens = positions.movedim(axis, 0)
            end = len(tokens) - (extra - before)
            maps = tokens[before:end].unflatten(0, (old.height, old.width))
            patches = _interpolate(maps, new).flatten(0, 1)
            return torch.cat((tokens[:before], patches, tokens[end:])).movedim(0, axis)
    return None


def candidates(model: nn.Module, survey: Survey, names: Sequence[str]) -> list[str]:
    """Names of tensors whose shape fits position embeddings but whose name does not."""
    return [
        name
        for name, _, _, tensor in _named_tensors(model)
        if not _is_position(name, names) and resize(tensor, survey.grid, survey.grid) is not None
    ]


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raise a UserError if a module lacks one of the named position embeddings."""
    for wanted in names:
        if not any(_has_name(name, wanted) for name, *_ in _named_tensors(model)):
            raise UserError(
                f"resize_positions {wanted!r}: {type(model).__name__} has no parameter or buffer of that name"
            )


def _interpolate(maps: Tensor, new: TokenGrid) -> Tensor:
    """Interpolate (h, w, …) to the size of a grid, (height, width, …)."""
    x = maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]
    x = x.permute(2, 0, 1)[None].float()
    x = F.interpolate(x, (new.height, new.width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return x.reshape(new.height, new.width, *maps.shape[2:]).to(maps.dtype)


def _grid_of(survey: Survey, height: int, width: int) -> TokenGrid:
    """Grid of images of another size: whole patches, at least one."""
    down, across = survey.patch
    return TokenGrid(max(1, height // down), max(1, width // across), survey.grid.before, survey.grid.after)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Yield dotted name, module, attribute and tensor of all floating-point parameters, buffers and other tensors,
    except those of linear, convolutional and attention layers. An ``nn.Embedding`` has the name of its module."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention):
            continue
        for attribute, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                name = path if isinstance(module, nn.Embedding) else f"{path}.{attribute}".removeprefix(".")
                yield name, module, attribute, value


def _is_position(name: str, names: Sequence[str]) -> bool:
    parts = [part.lower() for part in name.split(".")[-2:]]
    is_common = any(_POSITIONS.search(part) for part in parts) and not any("rel" in part for part in parts)
    return is_common or any(_has_name(name, wanted) for wanted in names)


def _has_name(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted.removesuffix('.weight')}")


def _indices(module: nn.Module, lengths: Mapping[int, int]) -> list[Replacement]:
    """Replace stored index tensors (0, 1, …) that look up embeddings."""
    tensors = {**module._buffers, **vars(module)}
    changes = []
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and value.numel() in lengths:
            count = lengths[value.numel()]
            if value.shape[-1] == value.numel() and value.flatten().tolist() == list(range(value.numel())):
                indices = torch.arange(count, dtype=value.dtype, device=value.device)
                changes.append((module, name, indices.view(*value.shape[:-1], count)))
    return changes


def _sizes(module: nn.Module, survey: Survey, grid: TokenGrid, height: int, width: int) -> list[Replacement]:
    """Replace size attributes that equal the image size, grid size or number of tokens of the survey."""
    old, changes = survey.grid, []
    pairs = {(survey.height, survey.width): (height, width), (old.height, old.width): (grid.height, grid.width)}
    patches, new_patches = old.height * old.width, grid.height * grid.width
    counts = {patches + extra: new_patches + extra for extra in {0, old.extra}}
    for name, value in vars(module).items():
        if not _SIZES.search(name) or isinstance(value, bool):
            continue
        if isinstance(value, tuple | list) and tuple(value) in pairs:
            changes.append((module, name, type(value)(pairs[tuple(value)])))
        elif isinstance(value, int) and (value, value) in pairs:
            changes.append((module, name, _Side(*pairs[value, value])))
        elif isinstance(value, int) and value in counts:
            changes.append((module, name, counts[value]))
    return changes
