"""`crosschannel prior`: the ab prior of a collection of images."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import torch

import crosschannel
from crosschannel.color import ABPrior, PriorEstimator
from crosschannel.console import progress, stderr_console
from crosschannel.data import CropConfig, open_training_images
from crosschannel.data.crops import centre_box, cut
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.order import epoch_order
from crosschannel.errors import UserError
from crosschannel.training.device import find_device


@dataclass
class PriorConfig:
    """Estimate how often each of the 313 ab bins occurs in a collection of images."""

    data: str
    """a folder of images, tar shards, builtin:sample or torchvision:imagenette"""
    out: str
    """the file to write (.npz)"""
    size: int = 256
    """images are reduced to this short side and cropped to its centre square"""
    neighbours: int = 5
    """bins that a colour is spread over"""
    sigma: float = 5.0
    """standard deviation of that spread, in ab units"""
    limit: int = 0
    """look at so many images, chosen at random; 0 takes all"""
    seed: int = 0
    """of that choice"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


def estimate_prior(config: PriorConfig) -> ABPrior:
    """Stream the (training) images once, in constant memory, and write the prior.

    Raises:
        UserError: no image can be read, or a key is out of range.
    """
    if config.size < 1:
        raise UserError(f"size must be at least 1, got {config.size}")
    if not 1 <= config.neighbours <= 313:
        raise UserError(f"neighbours must be within 1..313, got {config.neighbours}")
    if not config.sigma > 0:
        raise UserError(f"sigma must be above 0, got {config.sigma}")
    if config.limit < 0:
        raise UserError(f"limit must not be negative, got {config.limit}")
    out = Path(config.out)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"cannot write {out}: " + ("it is a folder" if out.is_dir() else f"no folder {out.parent}"))
    device = find_device(config.device)
    images = open_training_images(config.data)
    chosen = epoch_order(len(images), config.seed, 0)[: config.limit or None]
    estimator = PriorEstimator(config.neighbours, config.sigma, device)
    console, broken = stderr_console(), 0
    for index in progress(chosen, "ab prior", len(chosen)):
        try:
            image = EncodedImage(images.read(int(index)))
            side = min(image.width, image.height)
            box = centre_box(image.width, image.height, CropConfig(side, side))
            pixels = cut(image, box, min(side, config.size))
        except (BrokenImage, FileNotFoundError) as error:
            broken += 1
            console.print(f"broken image {images.names[int(index)]}: {error}", markup=False)
            continue
        estimator.add(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))
    if not estimator.images:
        raise UserError(f"none of the {len(chosen)} images in {config.data!r} can be read")
    prior = estimator.prior(
        data=Path(config.data).name or config.data,
        size=config.size,
        broken=broken,
        version=crosschannel.__version__,
        date=datetime.date.today().isoformat(),
    )
    prior.save(out)
    seen = int((prior.smoothed > 0).sum())
    console.print(f"{out}: {estimator.images} images, {estimator.pixels} pixels, {seen} of 313 bins seen")
    return prior
