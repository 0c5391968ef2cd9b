"""`crosschannel prior`: estimate the ab prior of a set of images."""

import datetime
from pathlib import Path

import torch

from crosschannel.color import ABPrior, PriorEstimator
from crosschannel.commands.config import PriorConfig
from crosschannel.console import progress, stderr_console
from crosschannel.data import open_training_images
from crosschannel.data.crops import centre_box, crop_and_resize
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.order import epoch_order
from crosschannel.errors import UserError
from crosschannel.files import Outputs, user_path
from crosschannel.training.device import find_device
from crosschannel.version import __version__


def estimate_prior(config: PriorConfig) -> ABPrior:
    """Estimate the prior in one pass over the (training) images, in constant memory, and write it to a file.

    Raises:
        UserError: no image can be read, or an invalid output file.
    """
    inputs = [path for path in (user_path(config.data),) if path.exists()]
    out, outputs = Path(config.out), Outputs("crosschannel prior", inputs, config.overwrite)
    outputs.check(out)
    device = find_device(config.device)
    images = open_training_images(config.data)
    indices = epoch_order(len(images), config.seed, 0)[: config.limit or None]
    estimator = PriorEstimator(config.neighbours, config.sigma, device)
    console, broken = stderr_console(), 0
    for index in progress(indices, "ab prior", len(indices)):
        try:
            image = EncodedImage(images.read(int(index)))
            side = min(image.width, image.height)
            box = centre_box(image.width, image.height, side, side)
            pixels = crop_and_resize(image, box, min(side, config.size))
        except (BrokenImage, OSError) as error:
            broken += 1
            console.print(f"broken image {images.names[int(index)]}: {error}")
            continue
        estimator.add(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))
    if not estimator.images:
        raise UserError(f"none of the {len(indices)} images in {config.data!r} can be read")
    prior = estimator.prior(
        data=Path(config.data).name or config.data,
        size=config.size,
        broken=broken,
        version=__version__,
        date=datetime.date.today().isoformat(),
    )
    prior.save(out, outputs.write)
    occupied_bins = int((prior.smoothed > 0).sum())
    summary = f"{out}: {estimator.images} images, {estimator.pixels} pixels, {occupied_bins} of 313 bins are occupied"
    console.print(summary)
    return prior
