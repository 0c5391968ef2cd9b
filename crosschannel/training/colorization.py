"""The pretext task: predict the ab channels of an image from its lightness."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab, rgb_to_lightness
from crosschannel.data import Batch, CropConfig, CropStream, ImageSet, crop_loader
from crosschannel.errors import UserError, file_problem
from crosschannel.files import written_whole
from crosschannel.models import VGG16, ColorNet, PretextNet
from crosschannel.models import initialisation as init
from crosschannel.models.colorizer import Colorizer
from crosschannel.models.pretext import LinearHead
from crosschannel.objectives import Classification, Regression
from crosschannel.training.interrupts import Interrupted
from crosschannel.training.log import TrainingLog
from crosschannel.training.ranks import World

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
        samples: a folder for pictures of held-out images.
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
        samples: Path,
        seed: int = 0,
        batch: int = 64,
        workers: int = 0,
    ):
        self.net, self.objective, self.normalise = net, objective.to(world.device), normalise
        self.rate_factors: dict[str, float] = {}
        self.val, self.crop, self.world = val, crop, world
        self.initial, self.start_state, self.samples = initial, start_state, samples
        self.seed, self.batch, self.workers = seed, batch, workers
        self.broken: dict[int, str] = {}  # held-out images that the last evaluation could not read, and why
        self._named: set[int] = set()

    def initialise(self, stream: CropStream) -> bool:
        """Initial weights; k-means takes a while and is saved."""
        if self.start_state is not None:
            own = self.net.state_dict()
            fitting = {k: v for k, v in self.start_state.items() if k in own and v.shape == own[k].shape}
            lacking = [k for k in own if k.startswith("net.") and k not in fitting]
            if lacking:
                raise UserError(f"--init_from does not fit this net: it lacks {lacking[0]}")
            unused = [k for k in self.start_state if k.startswith("net.") and k not in own]
            if any(".norm." in key for key in unused) and isinstance(self.net.net, ColorNet | VGG16):
                raise UserError("--init_from has a BatchNorm with a scale and a shift: give --model.affine true too")
            self.net.load_state_dict({**own, **fitting})
            return False
        if self.initial == "gaussian":
            init.gaussian(self.net)
        if self.initial in ("kmeans", "unit-variance"):
            batches = [self.targets(b.images)[0] for b in crop_loader(stream, 0, 800, 80)]
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

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        lightness, ab = self.targets(batch.images)
        loss = self.objective(net(lightness), ab)
        count = loss.numel() if self.normalise == "pixels" else len(loss)
        return loss.sum(), loss.new_full((), count)

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float]:
        stream = CropStream(self.val, self.crop, train=False)
        sums = torch.zeros(self.objective.score_length, dtype=torch.float64, device=self.world.device)
        broken: list[tuple[int, str]] = []
        own, pin = self.world.share(self.batch), self.world.device.type == "cuda"
        loader = crop_loader(stream, 0, len(self.val), self.batch * self.world.size, own, self.workers, pin)
        for batch in self.world.together(loader):
            if should_stop():
                raise Interrupted
            broken += batch.broken
            if len(batch.images):
                lightness, ab = self.targets(batch.images)
                sums += self.objective.score(net(lightness), ab)
        sums = self.world.sum(sums)
        self.broken = dict(entry for rank in self.world.gather(broken) for entry in rank)
        if not sums[0]:
            raise UserError("none of the held-out images can be read")
        return {**self.objective.metrics(sums), "images": len(self.val) - len(self.broken)}

    def report(self, net: nn.Module, step: int, figures: dict[str, float], log: TrainingLog) -> str:
        """Name broken held-out images (once); write a picture of others: lightness, predicted colours, truth."""
        for index in self.broken.keys() - self._named:
            log.say(f"broken held-out image {self.val.names[index]}: {self.broken[index]}")
        self._named |= self.broken.keys()
        grid = self.picture(net)
        if grid is not None:
            log.picture(step, "held-out", grid)
            try:
                self.samples.mkdir(exist_ok=True)
                with written_whole(self.samples / f"step-{step:09d}.png") as part:
                    Image.fromarray(grid).save(part, "PNG")
            except (UserError, OSError) as error:  # a picture is no reason to stop
                log.say(f"no picture of step {step}: {file_problem(error) or error}")
        share = figures.get("kl_share", figures.get("loss_share"))
        return f"held-out: loss {figures['loss']:.4f}, {share:.4f} of the best constant's"

    def picture(self, net: nn.Module) -> np.ndarray | None:
        """Rows of grey, coloured and true crops of up to eight held-out images: (H, W, 3) uint8."""
        stream = CropStream(self.val, self.crop, train=False)
        chosen = np.unique(np.linspace(0, len(self.val) - 1, _PICTURES).astype(int))
        crops = [crop for crop, _, _ in (stream[int(i)] for i in chosen) if crop is not None]
        if not crops:
            return None
        colorizer = Colorizer(net, self.objective, self.crop.size)
        grey = [np.asarray(Image.fromarray(crop).convert("L").convert("RGB")) for crop in crops]
        coloured = [colorizer(crop) for crop in crops]
        return np.concatenate([np.concatenate(row, 1) for row in (grey, coloured, crops)])
