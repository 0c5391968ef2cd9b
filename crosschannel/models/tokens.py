"""Detection of output layouts in one forward pass: which outputs are maps, and which tokens of a ViT are patches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

_IMAGES = 4  # images per survey: a noise image, and three copies with one changed pixel each
_MAX_REPEATS = 16  # maximum copies of a token that give its map the same stride in both directions


@dataclass(frozen=True)
class TokenGrid:
    """Grid of patches among the tokens of a ViT.

    Attributes:
        height, width: size of the grid, in patches.
        before, after: number of class and register tokens before and after the patches.
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
    """Layout of an output, and its conversion to a map (N, C, h, w).

    Attributes:
        kind: "vector" (N, C), "map" (N, C, h, w), "channels_last" (N, h, w, C), "tokens" (N, L, C) or "sequence_first"
            (L, N, C).
        patch: pixels per token, vertically and horizontally.
        before, after: see :class:`TokenGrid`.
        repeat: numbers of copies of each row and each column, so that non-square patches have the same stride in both
            directions.
    """

    kind: Literal["vector", "map", "channels_last", "tokens", "sequence_first"]
    patch: tuple[float, float] = (1.0, 1.0)
    before: int = 0
    after: int = 0
    repeat: tuple[int, int] = (1, 1)

    def as_map(self, output: Tensor, height: int, width: int) -> Tensor | None:
        """Convert an output for images of ``height`` × ``width`` pixels to (N, C, h, w).

        Returns None if the output does not have this layout.
        """
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
        """Return the first token before the patches, or else the last token after them, as a 1×1 map; None if there
        is neither."""
        if self.kind not in ("tokens", "sequence_first") or not self.before + self.after or output.ndim != 3:
            return None
        return self._batch_first(output)[:, 0 if self.before else -1, :, None, None]

    def _batch_first(self, output: Tensor) -> Tensor:
        return output.transpose(0, 1) if self.kind == "sequence_first" else output

    def _grid(self, length: int, height: int, width: int) -> tuple[int, int] | None:
        """Return rows and columns of patches; None if ``length`` does not fit. Models drop or pad partial patches."""
        rows, columns = (
            (math.floor(side / step + 1e-6), math.ceil(side / step - 1e-6))
            for side, step in zip((height, width), self.patch, strict=True)
        )
        count = length - self.before - self.after
        return next(((h, w) for h in rows for w in columns if h * w == count), None)


@dataclass
class Survey:
    """Layouts of the outputs of all submodules for images of one size.

    Attributes:
        height, width: size of the images, in pixels.
        layouts: layouts by dotted name, in order of execution; a string is the reason why an output is not a map.
        grid: grid of patches among all tokens; None for models without tokens.
        failed: whether the forward pass raised an error.
    """

    height: int
    width: int
    layouts: dict[str, Layout | str] = field(default_factory=dict)
    grid: TokenGrid | None = None
    failed: bool = False

    def levels(self) -> Iterator[TokenGrid]:
        """Yield the grid and its successive halvings, as in hierarchical models; yield nothing without tokens."""
        grid = self.grid
        while grid is not None:
            yield grid
            grid = grid.halved() if grid.height * grid.width > 1 else None

    @property
    def patch(self) -> tuple[int, int]:
        """Patch size in pixels, vertically and horizontally."""
        if self.grid is None:
            return 1, 1
        return round(self.height / self.grid.height), round(self.width / self.grid.width)

    @property
    def step(self) -> int:
        """Number of pixels that must divide image sides: the patch size of the coarsest tokens."""
        patches = [layout.patch for layout in self.layouts.values() if isinstance(layout, Layout)]
        sides = {round(side) for patch in patches if patch < (self.height, self.width) for side in patch}
        return math.lcm(*self.patch, *sides)


@torch.no_grad()
def survey_outputs(model: nn.Module, x: Tensor) -> Survey:
    """Detect the layouts of all outputs of a module in eval mode, in one forward pass.

    Changing single pixels locates tokens in the image, as long as tokens have not been mixed: the first pixel affects
    the first patch, the last pixel of the first row affects the last patch of that row, and the last pixel affects the
    last patch. Tokens that no pixel affects are class and register tokens.

    Args:
        model: module that accepts (N, C, H, W).
        x: (N, C, H, W); only its shape, dtype and device matter.
    """
    images = _images(x)
    shapes: dict[str, tuple[int, ...] | None] = {}
    grids: dict[int, TokenGrid] = {}

    def record(name: str, output: object) -> None:
        tensor = tensor_of(output)
        shapes.setdefault(name, None if tensor is None else tuple(tensor.shape))
        detect_grid(tensor)

    def detect_grid(tensor: Tensor | None) -> None:
        grid = None if tensor is None or not tensor.is_floating_point() else _token_grid(tensor)
        if grid is not None and grid.height <= x.shape[2] and grid.width <= x.shape[3]:
            grids.setdefault(grid.length, grid)

    def detect_input_grids(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        for value in (*args, *kwargs.values()):
            detect_grid(tensor_of(value))

    handles = []
    for name, module in model.named_modules(remove_duplicate=False):
        handles.append(module.register_forward_pre_hook(detect_input_grids, with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _m, _i, output, name=name: record(name, output)))
    survey = Survey(*x.shape[2:])
    try:
        model(images)
    except Exception:  # a user's module may raise any error
        survey.failed = True
    finally:
        for handle in handles:
            handle.remove()
    first_grid = next(iter(grids.values()), None)  # before class and register tokens are added
    same_size = [
        g for g in grids.values() if first_grid and (g.height, g.width) == (first_grid.height, first_grid.width)
    ]
    survey.grid = max(same_size, key=lambda grid: grid.extra, default=None)
    is_ambiguous = any(shape and _is_ambiguous(shape, survey) for shape in shapes.values())
    other_shapes = _shapes_at_other_height(model, images[:1]) if is_ambiguous else {}
    for name, shape in shapes.items():
        survey.layouts[name] = _layout(name, shape, survey, grids, other_shapes.get(name))
    return survey


def tensor_of(output: object) -> Tensor | None:
    """Return the tensor of an output: the output itself, the only item of a tuple, or its ``last_hidden_state``."""
    if isinstance(output, tuple | list):
        values = [value for value in output if value is not None]
        output = values[0] if len(values) == 1 else None
    output = getattr(output, "last_hidden_state", output)
    return output if isinstance(output, Tensor) else None


def _images(x: Tensor) -> Tensor:
    """Return a noise image and three copies with a changed first pixel, last pixel of the first row, and last pixel."""
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu").to(x)
    images = noise.repeat(_IMAGES, 1, 1, 1)
    for index, (row, column) in enumerate(((0, 0), (0, -1), (-1, -1)), 1):
        images[index, :, row, column] += 10
    return images


def _token_grid(tokens: Tensor) -> TokenGrid | None:
    """Locate the patches of :func:`_images` among tokens; None if the tokens are mixed or the tensor has no tokens."""
    if tokens.ndim != 3 or _IMAGES not in tokens.shape[:2]:
        return None
    tokens = tokens if len(tokens) == _IMAGES else tokens.transpose(0, 1)
    change = (tokens[1:] - tokens[:1]).abs().amax(2).float()
    changed = change > 1e-3 * change.amax(1, keepdim=True)
    if not change.isfinite().all() or changed.all(1).any() or not changed.any(1).all():
        return None
    first, corner, last = (row.nonzero()[:, 0].tolist() for row in changed)
    end = next(i for i in corner if i + 1 not in corner)  # a pixel may lie in several overlapping patches
    width, count = end - first[0] + 1, last[-1] - first[0] + 1
    if width < 1 or count % width:
        return None
    return TokenGrid(count // width, width, first[0], tokens.shape[1] - last[-1] - 1)


def _layout(
    name: str,
    shape: tuple[int, ...] | None,
    survey: Survey,
    grids: dict[int, TokenGrid],
    other_shape: tuple[int, ...] | None,
) -> Layout | str:
    """Return the layout of an output, or the reason why it is not a map.

    ``shape`` is the output's shape in the survey, ``other_shape`` its shape for an image of another height.
    """
    reason = f"layer {name!r} has no feature map (N, C, h, w)"
    if shape is None or len(shape) not in (2, 3, 4) or _IMAGES not in shape[: 2 if len(shape) == 3 else 1]:
        return reason
    if len(shape) == 2:
        return Layout("vector")
    if len(shape) == 4:
        return _map_layout(name, shape, survey, other_shape)
    kind, length = ("tokens", shape[1]) if shape[0] == _IMAGES else ("sequence_first", shape[0])
    grid = _grid_of_length(length, survey, grids)
    if grid is None:
        return f"{reason}: its {length} tokens do not form a grid of patches"
    repeat = _repeats(grid, survey)
    if repeat is None:
        return f"{reason}: patches of {survey.patch[0]} × {survey.patch[1]} px have no common stride"
    patch = survey.height / grid.height, survey.width / grid.width
    return Layout(kind, patch, grid.before, grid.after, repeat)


def _map_layout(name: str, shape: tuple[int, ...], survey: Survey, other_shape: tuple[int, ...] | None) -> Layout | str:
    fits_first, fits_last = _fits(shape[2:], survey), _fits(shape[1:3], survey)
    if fits_first and fits_last and other_shape is not None and len(other_shape) == 4:
        fits_first, fits_last = other_shape[1] == shape[1], other_shape[1] != shape[1]
    channels_last = fits_last and not fits_first
    sides = shape[1:3] if channels_last else shape[2:]
    grid = next((grid for grid in survey.levels() if (grid.height, grid.width) == sides), None)
    repeat = _repeats(grid, survey) if grid else None
    return Layout("channels_last" if channels_last else "map", repeat=repeat or (1, 1))


def _is_ambiguous(shape: tuple[int, ...], survey: Survey) -> bool:
    """Return whether a map could be channels-first or channels-last."""
    return len(shape) == 4 and shape[1] > 1 and _fits(shape[2:], survey) and _fits(shape[1:3], survey)


def _fits(sides: tuple[int, ...], survey: Survey) -> bool:
    """Return whether a map may have these sides: those of a patch grid, or the aspect ratio of the images."""
    is_grid = any((grid.height, grid.width) == sides for grid in survey.levels())
    return is_grid or sides[0] * survey.width == sides[1] * survey.height


def _grid_of_length(length: int, survey: Survey, grids: dict[int, TokenGrid]) -> TokenGrid | None:
    """Return the grid of patches in a sequence with ``length`` tokens; None if there is no such grid."""
    if length in grids:
        return grids[length]
    if survey.grid is not None:
        patches = [TokenGrid(level.height, level.width) for level in survey.levels()]
        exact = next((level for level in (*survey.levels(), *patches) if level.length == length), None)
        extra = length - patches[0].length
        return exact or (TokenGrid(survey.grid.height, survey.grid.width, extra) if extra > 0 else None)
    side = math.isqrt(length)
    extra = length - side * side
    return TokenGrid(side, side, extra) if survey.height == survey.width and extra <= 1 else None


def _repeats(grid: TokenGrid, survey: Survey) -> tuple[int, int] | None:
    """Return the numbers of copies of rows and columns that make patches square; None if too many are needed."""
    height, width = survey.height / grid.height, survey.width / grid.width
    if abs(height - width) < 0.1 * max(height, width):
        return 1, 1
    height, width = round(height), round(width)
    step = math.gcd(height, width)
    repeat = height // step, width // step
    return repeat if math.prod(repeat) <= _MAX_REPEATS else None


def _shapes_at_other_height(model: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shapes of outputs by name for an image of half or twice the height; empty if both fail."""
    for resized in (image[:, :, : image.shape[2] // 2], image.repeat(1, 1, 2, 1)):
        shapes: dict[str, tuple[int, ...]] = {}

        def record(name: str, output: object) -> None:
            if (tensor := tensor_of(output)) is not None:
                shapes.setdefault(name, tuple(tensor.shape))  # noqa: B023 (called within this iteration)

        handles = [
            module.register_forward_hook(lambda _m, _i, output, name=name: record(name, output))
            for name, module in model.named_modules(remove_duplicate=False)
        ]
        try:
            model(resized)
        except Exception:  # a user's module may raise any error
            continue
        finally:
            for handle in handles:
                handle.remove()
        return shapes
    return {}
