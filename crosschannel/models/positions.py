"""Resizing of position embeddings to the image size, for the duration of a forward pass.

The module is not modified. During the forward pass, resized tensors shadow the module's own tensors (and pass gradients
on to them), and attributes that store the image size are set to the current size.
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

# Name or names of position embeddings, or a function (module, height, width) → tensors by dotted name.
ResizePositions = str | Sequence[str] | Callable[[nn.Module, int, int], Mapping[str, Tensor]]
Replacement = tuple[nn.Module, str, Any]  # module, attribute, value

_POSITION_NAMES = re.compile(r"(^|_)pos(ition(al|s)?)?(_|$)|(^|_)pos_?(emb|enc)|^w?pe$")
_SIZE_NAMES = re.compile(
    r"(^|_)(image|img|input|grid|patches|spatial|feature|feat)_?(size|shape|resolution|dims?)$|^(resolution|grid)$"
    r"|^(num|n)_(patches|positions|tokens)$|^(seq|sequence)_?(len|length)$"
)
_ABSENT = object()


class _Side(int):
    """Integer that equals both the height and the width of an image, for modules that compare one size with both."""

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
    """List the attributes to replace in a module for images of another size than in its survey.

    Args:
        model: module with position embeddings.
        survey: survey of the module, with a token grid.
        height, width: size of the images, in pixels.
        names: additional names of position embeddings (dotted names, or their last components); common names are always
            included.
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
        changes += _index_replacements(module, lengths)
        changes += _size_replacements(module, survey, grid, height, width)
    return changes


@contextlib.contextmanager
def temporary_attributes(values: Sequence[Replacement]) -> Iterator[None]:
    """Replace attributes of modules for the duration of a block; parameters and buffers remain registered."""
    previous = [(module, name, vars(module).get(name, _ABSENT)) for module, name, _ in values]
    try:
        for module, name, value in values:
            vars(module)[name] = value
        yield
    finally:
        for module, name, value in previous:
            if value is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = value


def resize(positions: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor | None:
    """Resize position embeddings to another grid, with bicubic interpolation and antialiasing.

    The embeddings of class and register tokens are unchanged.

    Args:
        positions: (…, L, …) for the patches and none, some or all of the other tokens; or (…, h, w, …).
        old: current grid.
        new: target grid.

    Returns:
        Embeddings in the same layout; None if the shape does not fit ``old``.
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
    """List the tensors that have the shape of position embeddings, but no common name for them."""
    return [
        name
        for name, _, _, tensor in _named_tensors(model)
        if not _is_position(name, names) and resize(tensor, survey.grid, survey.grid) is not None
    ]


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raise a UserError if a module lacks one of the position embeddings in ``names``."""
    for target in names:
        if not any(_has_name(name, target) for name, *_ in _named_tensors(model)):
            raise UserError(
                f"resize_positions {target!r}: {type(model).__name__} has no parameter or buffer with that name"
            )


def _interpolate(maps: Tensor, new: TokenGrid) -> Tensor:
    """Interpolate maps (h, w, …) to the size of a grid."""
    x = maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]
    x = x.permute(2, 0, 1)[None].float()
    x = F.interpolate(x, (new.height, new.width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return x.reshape(new.height, new.width, *maps.shape[2:]).to(maps.dtype)


def _grid_of(survey: Survey, height: int, width: int) -> TokenGrid:
    """Return the grid for images of another size: the number of whole patches, but at least 1×1."""
    patch_height, patch_width = survey.patch
    return TokenGrid(
        max(1, height // patch_height), max(1, width // patch_width), survey.grid.before, survey.grid.after
    )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Yield dotted name, module, attribute and tensor of floating-point parameters, buffers and other tensors.

    Linear, convolutional and attention layers are skipped. The weight of an ``nn.Embedding`` has the module's name.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention):
            continue
        for attribute, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                name = path if isinstance(module, nn.Embedding) else f"{path}.{attribute}".removeprefix(".")
                yield name, module, attribute, value


def _is_position(name: str, names: Sequence[str]) -> bool:
    components = [component.lower() for component in name.split(".")[-2:]]
    is_common = any(_POSITION_NAMES.search(component) for component in components) and not any(
        "rel" in component for component in components
    )
    return is_common or any(_has_name(name, target) for target in names)


def _has_name(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target.removesuffix('.weight')}")


def _index_replacements(module: nn.Module, lengths: Mapping[int, int]) -> list[Replacement]:
    """List replacements for stored position indices (0, 1, …), with which modules look up embeddings.

    Args:
        module: module whose tensors are searched.
        lengths: old number of positions → new number.
    """
    tensors = {**module._buffers, **vars(module)}
    changes = []
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and value.numel() in lengths:
            count = lengths[value.numel()]
            if value.shape[-1] == value.numel() and value.flatten().tolist() == list(range(value.numel())):
                indices = torch.arange(count, dtype=value.dtype, device=value.device)
                changes.append((module, name, indices.view(*value.shape[:-1], count)))
    return changes


def _size_replacements(
    module: nn.Module, survey: Survey, grid: TokenGrid, height: int, width: int
) -> list[Replacement]:
    """List replacements for attributes that store the image size, grid size or number of tokens of the survey."""
    old_grid, changes = survey.grid, []
    new_sizes = {
        (survey.height, survey.width): (height, width),
        (old_grid.height, old_grid.width): (grid.height, grid.width),
    }
    patches, new_patches = old_grid.height * old_grid.width, grid.height * grid.width
    new_counts = {patches + extra: new_patches + extra for extra in {0, old_grid.extra}}
    for name, value in vars(module).items():
        if not _SIZE_NAMES.search(name) or isinstance(value, bool):
            continue
        if isinstance(value, tuple | list) and tuple(value) in new_sizes:
            changes.append((module, name, type(value)(new_sizes[tuple(value)])))
        elif isinstance(value, int) and (value, value) in new_sizes:
            changes.append((module, name, _Side(*new_sizes[value, value])))
        elif isinstance(value, int) and value in new_counts:
            changes.append((module, name, new_counts[value]))
    return changes
