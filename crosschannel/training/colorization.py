"""The pretext task: predict the ab channels of an image from its lightness."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab, rgb_to_lightness
from crosschannel.data import CentreCrop, CropConfig, ImageBatch, ImageSet, Stream, load_batches
from crosschannel.errors import UserError
from crosschannel.models import PretextNet, family, spec_of
from crosschannel.models import initialisation as init
from crosschannel.models.colorizer import Colorizer
from crosschannel.models.pretext import LinearHead
from crosschannel.objectives.classification import Classification
from crosschannel.objectives.regression import Regression
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation

_PICTURES = 8


class Colorization:
    """A task for the loop.

    Args:
        net: the pretext net.
        objective: what its outputs are scored by.
        normalise: "pixels" or "images", what the summed loss is divided by.
        val: held-out images, whose centre crops are scored.
        crop: how they are cropped.
        world: shares out the held-out images.
        initial: "default", "gaussian", "kmeans" or "unit-variance".
        start_state: weights to start from instead, by name; those that fit are taken.
        seed: of the initial weights.
        batch: held-out images a rank scores at once.
        workers: that decode held-out images.
    """

    def __init__(
        self,
        net: PretextNet,
        objective: Classification | Regression,
        normalise: str,
        val: ImageSet,
        crop: CropConfig,
        world: World,
        initial: str,
        start_state: dict[str, Tensor] | None,
        seed: int = 0,
        batch: int = 64,
        workers: int = 0,
    ):
        self.net, self.objective, self.normalise = net, objective.to(world.device), normalise
        self.rate_factors: dict[str, float] = {}
        self.held_out, self.size, self.world = Stream(val, CentreCrop(crop.size, crop.resize)), crop.size, world
        self.initial, self.start_state = initial, start_state
        self.seed, self.batch, self.workers = seed, batch, workers

    def initialise(self, stream: Stream) -> bool:
        """Initial weights; k-means takes a while and is saved."""
        if self.start_state is not None:
            own = self.net.state_dict()
            fitting = {k: v for k, v in self.start_state.items() if k in own and v.shape == own[k].shape}
            lacking = [k for k in own if k.startswith("net.") and k not in fitting]
            if lacking:
                raise UserError(f"--init_from does not fit this net: it lacks {lacking[0]}")
            unused = [k for k in self.start_state if k.startswith("net.") and k not in own]
            affine = family(spec_of(self.net.net).name).has_affine
            if affine and any(".norm." in key for key in unused):
                raise UserError("--init_from has a BatchNorm with a scale and a shift: give --model.affine true too")
            self.net.load_state_dict({**own, **fitting})
            return False
        if self.initial == "gaussian":
            init.gaussian(self.net)
        if self.initial in ("kmeans", "unit-variance"):
            batches = [self.targets(b.images)[0] for b in load_batches(stream, 0, 800, 80)]
            if self.initial == "kmeans":
                init.kmeans(self.net, batches, self.seed)  # the convolutions; fc6 and fc7 keep their own start
                if isinstance(self.net.head, LinearHead):
                    for parameter in self.net.head.parameters():
                        nn.init.zeros_(parameter)
            else:
                init.unit_variance(self.net, batches)
        return self.initial in ("kmeans", "unit-variance")

    def targets(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB → the net's input L - 50 and the ab of every stride-th pixel."""
        images, stride = images.to(self.world.device, non_blocking=True), self.net.stride
        return rgb_to_lightness(images) - 50, rgb_to_lab(images[:, :, ::stride, ::stride])[:, 1:]

    def step(self, net: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        lightness, ab = self.targets(batch.images)
        loss = self.objective(net(lightness), ab)
        count = loss.numel() if self.normalise == "pixels" else len(loss)
        return loss.sum(), loss.new_full((), count)

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        def score(batch: ImageBatch) -> Tensor:
            if not len(batch):
                return torch.zeros((), dtype=torch.float64, device=self.world.device)
            lightness, ab = self.targets(batch.images)
            return self.objective.score(net(lightness), ab)

        held_out = HeldOut(self.held_out, score, self.world, self.batch, self.workers, should_stop)
        sums = torch.zeros(self.objective.score_length, dtype=torch.float64, device=self.world.device)
        for _, scored in held_out:
            sums += scored
        sums = self.world.sum(sums)
        figures = self.objective.metrics(sums)
        share = figures.get("kl_share", figures.get("loss_share"))
        return Evaluation(
            figures,
            len(self.held_out.images) - len(held_out.broken),
            broken=held_out.broken,
            line=f"held-out: loss {figures['loss']:.4f}, {share:.4f} of the best constant's",
            pictures=lambda: self.pictures(net),
        )

    def pictures(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Rows of grey, coloured and true crops of up to eight held-out images, where any can be read."""
        chosen = np.unique(np.linspace(0, len(self.held_out.images) - 1, _PICTURES).astype(int))
        crops = [sample.content for sample in (self.held_out[int(i)] for i in chosen) if sample.is_whole]
        if not crops:
            return {}
        colorizer = Colorizer(net, self.objective, self.size)
        grey = [np.asarray(Image.fromarray(crop).convert("L").convert("RGB")) for crop in crops]
        coloured = [colorizer(crop) for crop in crops]
        return {"step": np.concatenate([np.concatenate(row, 1) for row in (grey, coloured, crops)])}
