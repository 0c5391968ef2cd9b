"""The layout of a module's outputs, read off one forward pass: which are maps, and where the patches of a ViT lie among
its tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

_IMAGES = 4  # of a survey: one, and the same with another first, last pixel of the first row, and last pixel
_MAX_REPEATS = 16  # of a token, so that its map has one stride


@dataclass(frozen=True)
class TokenGrid:
    """The patches of an image among the tokens of a ViT.

    Attributes:
        height, width: of the grid, in patches.
        before, after: class and register tokens in front of the patches, and behind them.
    """

    height: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def extra(self) -> int:
        return self.before + self.after

    @property
    def length(self) -> int:
        return self.height * self.width + self.extra

    def halved(self) -> "TokenGrid":
        return TokenGrid(math.ceil(self.height / 2), math.ceil(self.width / 2), self.before, self.after)


@dataclass(frozen=True)
class Layout:
    """The layout of an output, and the way from there to a map (N, C, h, w).

    Attributes:
        kind: "vector" (N, C), "map" (N, C, h, w), "channels_last" (N, h, w, C), "tokens" (N, L, C) or "sequence_first"
            (L, N, C).
        patch: pixels per token, down and across.
        before, after: see :class:`TokenGrid`.
        repeat: copies of every row and column, so that patches that are not square give a map of one stride.
    """

    kind: Literal["vector", "map", "channels_last", "tokens", "sequence_first"]
    patch: tuple[float, float] = (1.0, 1.0)
    before: int = 0
    after: int = 0
    repeat: tuple[int, int] = (1, 1)

    def as_map(self, output: Tensor, height: int, width: int) -> Tensor | None:
        """(N, C, h, w) of an output for images of ``height`` × ``width`` pixels; None if it has another layout."""
        if output.ndim != {"vector": 2, "map": 4, "channels_last": 4}.get(self.kind, 3):
            return None
        if self.kind == "vector":
            return output[:, :, None, None]
        if self.kind == "channels_last":
            output = output.permute(0, 3, 1, 2)
        elif self.kind != "map":
            tokens = self._batch_first(output)
            grid = self._grid(tokens.shape[1], height, width)
            if grid is None:
                return None
            patches = tokens[:, self.before : tokens.shape[1] - self.after]
            output = patches.transpose(1, 2).unflatten(2, grid)
        for dim, times in zip((2, 3), self.repeat, strict=True):
            output = output.repeat_interleave(times, dim) if times > 1 else output
        return output

    def class_token(self, output: Tensor) -> Tensor | None:
        """The first token in front of the patches, else the last one behind them, as a map of one position."""
        if self.kind not in ("tokens", "sequence_first") or not self.before + self.after or output.ndim != 3:
            return None
        return self._batch_first(output)[:, 0 if self.before else -1, :, None, None]

    def _batch_first(self, output: Tensor) -> Tensor:
        return output.transpose(0, 1) if self.kind == "sequence_first" else output

    def _grid(self, length: int, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of the patches; nets drop what is no whole patch, or pad it."""
        rows, columns = (
            (math.floor(side / step + 1e-6), math.ceil(side / step - 1e-6))
            for side, step in zip((height, width), self.patch, strict=True)
        )
        count = length - self.before - self.after
        return next(((h, w) for h in rows for w in columns if h * w == count), None)


@dataclass
class Survey:
    """The outputs of a module's parts for images of one size.

    Attributes:
        height, width: of the images.
        layouts: by dotted name, in order of execution; a string says why an output is no map.
        grid: the patches among all tokens; None for nets without.
        failed: the module does not take such images, or fails at some part.
    """

    height: int
    width: int
    layouts: dict[str, Layout | str] = field(default_factory=dict)
    grid: TokenGrid | None = None
    failed: bool = False

    def levels(self) -> Iterator[TokenGrid]:
        """The grid, and those of hierarchical nets that halve it; nothing for nets without."""
        grid = self.grid
        while grid is not None:
            yield grid
            grid = grid.halved() if grid.height * grid.width > 1 else None

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels of a patch, down and across."""
        if self.grid is None:
            return 1, 1
        return round(self.height / self.grid.height), round(self.width / self.grid.width)

    @property
    def step(self) -> int:
        """Pixels that the sides of images have to be multiples of: those of the coarsest tokens."""
        patches = [layout.patch for layout in self.layouts.values() if isinstance(layout, Layout)]
        sides = {round(side) for patch in patches if patch < (self.height, self.width) for side in patch}
        return math.lcm(*self.patch, *sides)


@torch.no_grad()
def survey(model: nn.Module, x: Tensor) -> Survey:
    """Look at the outputs of all parts of a module in eval mode, in one forward pass.

    Tokens are matched with places by what changes in them, before they see each other, if one pixel changes: the first
    pixel lies in the first patch, the last pixel of the first row in the last patch of that row, and the last pixel in
    the last patch. Tokens that no pixel changes are class and register tokens.

    Args:
        model: takes (N, C, H, W).
        x: of that shape; only shape, type and device count.
    """
    images = _images(x)
    shapes: dict[str, tuple[int, ...] | None] = {}
    grids: dict[int, TokenGrid] = {}

    def read(name: str, output: object) -> None:
        tensor = tensor_of(output)
        shapes.setdefault(name, None if tensor is None else tuple(tensor.shape))
        look(tensor)

    def look(tensor: Tensor | None) -> None:
        grid = None if tensor is None or not tensor.is_floating_point() else _token_grid(tensor)
        if grid is not None and grid.height <= x.shape[2] and grid.width <= x.shape[3]:
            grids.setdefault(grid.length, grid)

    def look_at_inputs(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        for value in (*args, *kwargs.values()):
            look(tensor_of(value))

    handles = []
    for name, module in model.named_modules(remove_duplicate=False):
        handles.append(module.register_forward_pre_hook(look_at_inputs, with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _m, _i, output, name=name: read(name, output)))
    found = Survey(*x.shape[2:])
    try:
        model(images)
    except Exception:  # whatever a user's module raises
        found.failed = True
    finally:
        for handle in handles:
            handle.remove()
    first = next(iter(grids.values()), None)  # before class and register tokens join
    alike = [g for g in grids.values() if first and (g.height, g.width) == (first.height, first.width)]
    found.grid = max(alike, key=lambda grid: grid.extra, default=None)
    is_unclear = any(shape and _is_unclear(shape, found) for shape in shapes.values())
    other = _shapes_at_other_height(model, images[:1]) if is_unclear else {}
    for name, shape in shapes.items():
        found.layouts[name] = _layout(name, shape, found, grids, other.get(name))
    return found


def tensor_of(output: object) -> Tensor | None:
    """The tensor of an output: itself, alone in a tuple, or Hugging Face's ``last_hidden_state``."""
    if isinstance(output, tuple | list):
        values = [value for value in output if value is not None]
        output = values[0] if len(values) == 1 else None
    output = getattr(output, "last_hidden_state", output)
    return output if isinstance(output, Tensor) else None


def _images(x: Tensor) -> Tensor:
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    images = noise.repeat(_IMAGES, 1, 1, 1)
    for number, (row, column) in enumerate(((0, 0), (0, -1), (-1, -1)), 1):
        images[number, :, row, column] += 10
    return images


def _token_grid(tokens: Tensor) -> TokenGrid | None:
    """The patches of :func:`_images` among tokens; None if these have seen each other, or are none."""
    if tokens.ndim != 3 or _IMAGES not in tokens.shape[:2]:
        return None
    tokens = tokens if len(tokens) == _IMAGES else tokens.transpose(0, 1)
    change = (tokens[1:] - tokens[:1]).abs().amax(2).float()
    changed = change > 1e-3 * change.amax(1, keepdim=True)
    if not change.isfinite().all() or changed.all(1).any() or not changed.any(1).all():
        return None
    first, corner, last = (row.nonzero()[:, 0].tolist() for row in changed)
    end = next(i for i in corner if i + 1 not in corner)  # patches that overlap see a pixel several times
    width, count = end - first[0] + 1, last[-1] - first[0] + 1
    if width < 1 or count % width:
        return None
    return TokenGrid(count // width, width, first[0], tokens.shape[1] - last[-1] - 1)


def _layout(
    name: str, shape: tuple[int, ...] | None, seen: Survey, grids: dict[int, TokenGrid], other: tuple[int, ...] | None
) -> Layout | str:
    """The layout of an output of that shape; ``other`` is its shape for an image of another height."""
    reason = f"layer {name!r} gives no feature map (N, C, h, w)"
    if shape is None or len(shape) not in (2, 3, 4) or _IMAGES not in shape[: 2 if len(shape) == 3 else 1]:
        return reason
    if len(shape) == 2:
        return Layout("vector")
    if len(shape) == 4:
        return _map_layout(name, shape, seen, other)
    kind, length = ("tokens", shape[1]) if shape[0] == _IMAGES else ("sequence_first", shape[0])
    grid = _grid_of_length(length, seen, grids)
    if grid is None:
        return f"{reason}: {length} tokens are no grid of patches"
    repeat = _repeats(grid, seen)
    if repeat is None:
        return f"{reason}: patches of {seen.patch[0]} × {seen.patch[1]} px have no common stride"
    patch = seen.height / grid.height, seen.width / grid.width
    return Layout(kind, patch, grid.before, grid.after, repeat)


def _map_layout(name: str, shape: tuple[int, ...], seen: Survey, other: tuple[int, ...] | None) -> Layout | str:
    first, last = _fits(shape[2:], seen), _fits(shape[1:3], seen)
    if first and last and other is not None and len(other) == 4:
        first, last = other[1] == shape[1], other[1] != shape[1]
    is_last = last and not first
    sides = shape[1:3] if is_last else shape[2:]
    grid = next((grid for grid in seen.levels() if (grid.height, grid.width) == sides), None)
    repeat = _repeats(grid, seen) if grid else None
    return Layout("channels_last" if is_last else "map", repeat=repeat or (1, 1))


def _is_unclear(shape: tuple[int, ...], seen: Survey) -> bool:
    """Whether a map could have its channels first or last."""
    return len(shape) == 4 and shape[1] > 1 and _fits(shape[2:], seen) and _fits(shape[1:3], seen)


def _fits(sides: tuple[int, ...], seen: Survey) -> bool:
    """Whether a map may have these sides: those of patches, or of the images' proportions."""
    is_grid = any((grid.height, grid.width) == sides for grid in seen.levels())
    return is_grid or sides[0] * seen.width == sides[1] * seen.height


def _grid_of_length(length: int, seen: Survey, grids: dict[int, TokenGrid]) -> TokenGrid | None:
    """The patches among so many tokens."""
    if length in grids:
        return grids[length]
    if seen.grid is not None:
        patches = [TokenGrid(level.height, level.width) for level in seen.levels()]
        exact = next((level for level in (*seen.levels(), *patches) if level.length == length), None)
        extra = length - patches[0].length
        return exact or (TokenGrid(seen.grid.height, seen.grid.width, extra) if extra > 0 else None)
    side = math.isqrt(length)
    extra = length - side * side
    return TokenGrid(side, side, extra) if seen.height == seen.width and extra <= 1 else None


def _repeats(grid: TokenGrid, seen: Survey) -> tuple[int, int] | None:
    """Copies of rows and columns that make patches square; None if it takes too many."""
    down, across = seen.height / grid.height, seen.width / grid.width
    if abs(down - across) < 0.1 * max(down, across):
        return 1, 1
    down, across = round(down), round(across)
    step = math.gcd(down, across)
    repeat = down // step, across // step
    return repeat if math.prod(repeat) <= _MAX_REPEATS else None


def _shapes_at_other_height(model: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs for an image of half or twice the height; none for modules of one size."""
    for other in (image[:, :, : image.shape[2] // 2], image.repeat(1, 1, 2, 1)):
        shapes: dict[str, tuple[int, ...]] = {}

        def read(name: str, output: object) -> None:
            if (tensor := tensor_of(output)) is not None:
                shapes.setdefault(name, tuple(tensor.shape))  # noqa: B023 (read in this round)

        handles = [
            module.register_forward_hook(lambda _m, _i, output, name=name: read(name, output))
            for name, module in model.named_modules(remove_duplicate=False)
        ]
        try:
            model(other)
        except Exception:  # whatever a user's module raises
            continue
        finally:
            for handle in handles:
                handle.remove()
        return shapes
    return {}
