"""Jigsaw: predict how an image's tiles are permuted (Noroozi, Favaro, "Unsupervised Learning of Visual Representations
by Solving Jigsaw Puzzles", ECCV 2016).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from crosschannel.data import Batch, CentreCrop, CropConfig, Record, SampleRNG, TrainingCrops
from crosschannel.data.order import mix
from crosschannel.data.views import stack_crops
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.models import InputSpec, NetSpec, build_net, family
from crosschannel.models.input_spec import LUMA
from crosschannel.pretext.config import JigsawConfig
from crosschannel.pretext.nets import freeze_unused
from crosschannel.pretext.task import Pretext, PrimaryMetric, as_arrays, stack_rows

GRID = 3
TILES = GRID * GRID
_CAFFE_MEAN = (123 / 255, 117 / 255, 104 / 255)
_GAP = 2  # width of the white border around each tile in pictures, in pixels
_MAX_FLATTENED = 9  # maps with at most this many positions are flattened, larger ones are average-pooled


@dataclass
class TileBatch(Batch):
    """Tiles of crops, in their original order.

    Attributes:
        tiles: (N, 9, 3, t, t) uint8 RGB, row by row.
    """

    tiles: Tensor


@dataclass(frozen=True)
class Tiles:
    """View of nine tiles, each cut at a random position from one of 3×3 cells of a crop, which leaves gaps.

    Attributes:
        crop: settings of the crop.
        side: side of a tile, in pixels.
        train: whether to take a training crop instead of the centre crop.
    """

    crop: CropConfig
    side: int
    train: bool
    views: ClassVar[int] = 1

    def __call__(self, record: Record, rng: SampleRNG) -> np.ndarray:
        view = TrainingCrops(self.crop) if self.train else CentreCrop(self.crop.size, self.crop.resize)
        pixels, cell = view(record, rng), self.crop.size // GRID
        offsets = rng.generator().integers(0, cell - self.side + 1, (TILES, 2))
        corners = offsets + cell * np.array([divmod(tile, GRID) for tile in range(TILES)])
        return np.stack([pixels[y : y + self.side, x : x + self.side] for y, x in corners])

    @staticmethod
    def collate(samples: Sequence[np.ndarray], base: Batch) -> TileBatch:
        tiles = stack_crops([tile for sample in samples for tile in sample])
        return TileBatch(**vars(base), tiles=tiles.unflatten(0, (len(samples), TILES)))


@lru_cache(maxsize=4)
def distant_permutations(count: int) -> np.ndarray:
    """Select permutations of nine tiles with large Hamming distances between them, (count, 9) int64.

    Greedy, as in the paper: each permutation has the largest sum of Hamming distances to those selected before it.
    """
    candidates = np.array(list(itertools.permutations(range(TILES))), np.int8).T.copy()
    distances = np.zeros(candidates.shape[1], np.int32)
    selected = [mix(0) % len(distances)]
    while len(selected) < count:
        for row in candidates:
            distances += row != row[selected[-1]]
        distances[selected[-1]] = -len(distances) * TILES  # never select it again
        selected.append(int(distances.argmax()))
    return candidates[:, selected].T.astype(np.int64)


class JigsawNet(nn.Module):
    """A backbone and fc6 shared by all nine tiles, then fc7 on their concatenation and a classifier of permutations.

    Args:
        net: the backbone.
        channels: number of channels of a tile.
        config: config of the task.

    Shape:
        tiles (N, 9, C, t, t) and permutation indices (N,) → logits (N, permutations). Without indices the tiles keep
        their order.
    """

    stride = 1

    def __init__(self, net: nn.Module, channels: int, config: JigsawConfig):
        super().__init__()
        self.net, self.dropout = net, config.dropout
        self.register_buffer("permutations", torch.from_numpy(distant_permutations(config.permutations)))
        net.eval()
        with torch.no_grad(), wrap_external_errors(f"this net cannot take tiles of {config.tile} px"):
            features = self._flatten_or_pool(net(torch.zeros(1, channels, config.tile, config.tile))).shape[1]
        net.train()
        self.fc6 = nn.Linear(features, config.width)
        self.fc7 = nn.Linear(TILES * config.width, config.hidden) if config.hidden else nn.Identity()
        self.out = nn.Linear(config.hidden or TILES * config.width, config.permutations)
        for layer in (self.fc6, self.fc7) if config.hidden else (self.fc6,):
            nn.init.normal_(layer.weight, std=0.005)
            nn.init.ones_(layer.bias)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    @staticmethod
    def _flatten_or_pool(maps: Tensor) -> Tensor:
        return maps.flatten(1) if maps.shape[2] * maps.shape[3] <= _MAX_FLATTENED else maps.mean((2, 3))

    def forward(self, tiles: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            tiles = shuffle_tiles(tiles, self.permutations[labels])
        x = self.fc6(self._flatten_or_pool(self.net(tiles.flatten(0, 1)))).relu()
        x = dropout(x, self.dropout, self.training).unflatten(0, (-1, TILES)).flatten(1)
        if isinstance(self.fc7, nn.Linear):
            x = dropout(self.fc7(x).relu(), self.dropout, self.training)
        return self.out(x)


def shuffle_tiles(tiles: Tensor, permutations: Tensor) -> Tensor:
    """Permute tiles (N, 9, …) by permutations (N, 9): position i gets tile ``permutations[i]``."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], permutations]


class Jigsaw(Pretext):
    """Predict the permutation by which nine tiles are shuffled."""

    name = "jigsaw"
    rows: ClassVar[tuple[str, ...]] = ("shuffled tiles", "reordered as predicted", "truth")
    score_length = 4

    @property
    def primary_metric(self) -> PrimaryMetric:
        chance = 1 / self.config.permutations
        return PrimaryMetric("top1", f"top-1 accuracy (chance: {chance:.2g})", chance, "chance")

    @staticmethod
    def input_of(config: JigsawConfig, crop: CropConfig) -> InputSpec:
        if config.tile_norm == "mean":
            return InputSpec("rgb", crop.size, crop.resize, mean=_CAFFE_MEAN, std=(1 / 255,) * 3)
        return InputSpec("rgb", crop.size, crop.resize)

    @staticmethod
    def build(config: JigsawConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> JigsawNet:
        if spec.options.fc:
            raise UserError(f"the task jigsaw adds its own fc6; set model.fc to 0 (got {spec.options.fc})")
        is_alexnet = family(spec.name).has_option("geometry")
        net = build_net(spec.replace(geometry="probe") if is_alexnet else spec, config.tile)
        if is_alexnet:  # a smaller stride, since tiles are small; transfer restores stride 4
            net.get_submodule("conv1").conv.stride = (2, 2)
        jigsaw = JigsawNet(net, spec.in_channels, config)
        if getattr(net, "computes_past_its_layers", False):
            freeze_unused(jigsaw, torch.zeros(1, TILES, spec.in_channels, config.tile, config.tile))
        return jigsaw

    def view(self, crop: CropConfig, train: bool) -> Tiles:
        return Tiles(crop, self.config.tile, train)

    def example_input(self, size: int) -> Tensor:
        return torch.zeros(1, TILES, self.input.channels, self.config.tile, self.config.tile)

    def net_inputs(self, batch: TileBatch) -> Tensor:
        """Return the normalised tiles, (N, 9, 3, t, t)."""
        x = self.input.preprocess(batch.tiles.flatten(0, 1))
        if self.config.tile_norm != "none":
            x = x - x.mean((2, 3), keepdim=True)
        if self.config.tile_norm == "mean-std":
            x = x / x.std((1, 2, 3), keepdim=True).clamp(min=1e-2)
        return x.unflatten(0, batch.tiles.shape[:2])

    def _tiles_and_labels(self, batch: TileBatch) -> tuple[Tensor, Tensor]:
        """Return normalised tiles and the indices of the permutations to shuffle them by, (N,)."""
        uniforms = batch.uniforms(2).to(batch.tiles.device, non_blocking=True)
        if self.config.grey:
            luma = sum(weight * channel for weight, channel in zip(LUMA, batch.tiles.split(1, 2), strict=True))
            luma = luma.round().byte().expand_as(batch.tiles)
            is_grey = (uniforms[:, 1] < self.config.grey)[:, None, None, None, None]
            batch = replace(batch, tiles=torch.where(is_grey, luma, batch.tiles))
        return self.net_inputs(batch), (uniforms[:, 0] * self.config.permutations).long()

    def losses(self, net: nn.Module, batch: TileBatch, phase: int = 0) -> tuple[Tensor, Tensor]:
        tiles, labels = self._tiles_and_labels(batch)
        loss = cross_entropy(net(tiles, labels).float(), labels, reduction="sum")
        return loss, loss.new_full((), len(labels))

    @torch.no_grad()
    def scores(self, net: nn.Module, batch: TileBatch) -> Tensor:
        """Return sums over images: count, cross-entropy, correct permutations, fractions of correctly placed tiles."""
        tiles, labels = self._tiles_and_labels(batch)
        logits = net(tiles, labels).double()
        predicted = logits.argmax(1)
        correct_tiles = (net.permutations[predicted] == net.permutations[labels]).double().mean(1).sum()
        loss = cross_entropy(logits, labels, reduction="sum")
        return torch.stack((loss.new_tensor(len(labels)), loss, (predicted == labels).sum().double(), correct_tiles))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute ``loss``, ``top1`` (accuracy on permutations) and ``tiles`` (fraction of correctly placed tiles)."""
        count, loss, correct, tiles = sums.tolist()
        return {"loss": loss / count, "top1": correct / count, "tiles": tiles / count}

    @torch.inference_mode()
    def pictures(self, net: nn.Module, batch: TileBatch) -> np.ndarray:
        tiles, labels = self._tiles_and_labels(batch)
        predicted = net(tiles, labels).argmax(1)
        shuffled = shuffle_tiles(batch.tiles, net.permutations[labels])
        reordered = shuffle_tiles(shuffled, net.permutations[predicted].argsort(1))
        return stack_rows(*(as_arrays(mosaic(tiles)) for tiles in (shuffled, reordered, batch.tiles)))


def mosaic(tiles: Tensor) -> Tensor:
    """Join tiles into pictures with white gaps and a white frame: (N, 9, 3, t, t) uint8 → (N, 3, H, W)."""
    framed = nn.functional.pad(tiles, (_GAP,) * 4, value=255).unflatten(1, (GRID, GRID))
    pictures = framed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # from (N, row, column, 3, y, x)
    return nn.functional.pad(pictures, (2 * _GAP,) * 4, value=255)
