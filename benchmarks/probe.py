"""Linear probes compared with one run per layer and with a minimal script: `python benchmarks/probe.py`.

The script trains on the same layers of the same torchvision net. Also measures the speed-up from cached features. Needs
imagenette below $CROSSCHANNEL_TEST_DATA.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from timing import describe_machine, print_table, real_data
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import alexnet
from torchvision.transforms import v2

import transfer
from crosschannel.config.training import RuntimeConfig, TrainConfig
from crosschannel.data import ImageSet, open_images
from crosschannel.data.images import Subset
from crosschannel.data.order import epoch_order
from crosschannel.training.device import find_device
from crosschannel.training.memory import keep_freed_memory
from transfer.protocol import as_config
from transfer.protocols.linear_probe.task import LinearProbe

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
MODULES = {"conv1": 1, "conv2": 4, "conv3": 7, "conv4": 9, "conv5": 11}  # torchvision's ReLUs
GRIDS = {"conv1": 12, "conv2": 7, "conv3": 5, "conv4": 6, "conv5": 6}  # fewer than 10,000 features each
BATCH = 64


class BaselineImages(Dataset):
    """Input pipeline of a typical script: Pillow and torchvision's transforms."""

    def __init__(self, root: Path, images: ImageSet):
        self.paths, self.labels = [root / "train" / name for name in images.names], images.labels
        self.transform = v2.Compose(
            [
                v2.Resize(256),
                v2.CenterCrop(224),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), int(self.labels[index])


def time_script(root: Path, images: ImageSet, classes: int, device: torch.device, workers: int) -> float:
    """Return the time of the second epoch of a minimal script, in seconds.

    It has a forward hook, a pool and a linear layer per probed layer, and one optimiser.
    """
    net = alexnet(weights=None).eval().to(device)
    features: dict[str, torch.Tensor] = {}
    for layer, index in MODULES.items():
        pool = nn.AdaptiveAvgPool2d(GRIDS[layer])
        net.features[index].register_forward_hook(
            lambda _m, _i, output, layer=layer, pool=pool: features.update({layer: pool(output)})
        )
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224, device=device))
    heads = nn.ModuleDict(
        {
            layer: nn.Sequential(
                nn.BatchNorm2d(f.shape[1], affine=False), nn.Flatten(), nn.Linear(f[0].numel(), classes)
            )
            for layer, f in features.items()
        }
    ).to(device)
    optimizer = torch.optim.AdamW(heads.parameters(), 1e-3)
    loader = DataLoader(
        BaselineImages(root, images), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in range(2):
        start = time.perf_counter()
        for pixels, labels in loader:
            with torch.no_grad():
                net(pixels.to(device))
            loss = sum(
                nn.functional.cross_entropy(heads[layer](features[layer]), labels.to(device)) for layer in LAYERS
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


def time_probe(
    images: tuple[ImageSet, ImageSet], layers: str, precision: str, cache: str, epochs: int, workers: int
) -> tuple[float, list[float]]:
    """Return the time of a complete probe and of each epoch, in seconds. Feature caching is part of the first epoch."""
    ends: list[float] = []
    steps_per_epoch = len(images[0]) // BATCH
    original_step, steps = LinearProbe.step, 0

    def counted_step(*arguments):
        nonlocal steps
        result = original_step(*arguments)
        steps += 1
        if steps % steps_per_epoch == 0:
            ends.append(time.perf_counter())
        return result

    config = replace(
        as_config(transfer.linear_probe, "imagenette"),
        cache=cache,
        train=TrainConfig(BATCH, steps=epochs * steps_per_epoch, precision=precision, compile=False),
        runtime=RuntimeConfig(workers, eval_every=10**9, checkpoint_every=10**9, log_every=10**9, tensorboard=False),
    )
    LinearProbe.step = counted_step
    try:
        start = time.perf_counter()
        transfer.linear_probe("torchvision:alexnet,weights=none", images, layers, config)
        total = time.perf_counter() - start
    finally:
        LinearProbe.step = original_step
    return total, [end - epoch_start for epoch_start, end in zip([start, *ends], ends, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    device, root = find_device("auto"), real_data("imagenette")
    train, val = open_images(str(root))
    train = Subset(train, epoch_order(len(train), 0, 0)[: options.images // BATCH * BATCH])
    val = Subset(val, epoch_order(len(val), 0, 0)[:64])
    print(
        describe_machine(),
        f"{len(train)} training images, torchvision's AlexNet at 224 px, batch {BATCH}",
        sep="; ",
    )

    one_run, _ = time_probe((train, val), ",".join(LAYERS), "auto", "off", 2, options.workers)
    five_runs = sum(time_probe((train, val), layer, "auto", "off", 2, options.workers)[0] for layer in LAYERS)
    rows = [("five layers in five runs", five_runs, 1.0), ("five layers in one run", one_run, five_runs / one_run)]
    print_table("Two epochs, features computed in each", ("", "s", "speed-up"), rows)

    script = time_script(root, train, len(train.classes), device, options.workers)
    rows = [("minimal script with forward hooks", script, 1.0)]
    for precision in ("float32", "auto"):
        _, epochs = time_probe((train, val), ",".join(LAYERS), precision, "off", 3, options.workers)
        rows.append((f"crosschannel, {precision}", epochs[1], script / epochs[1]))
    print_table("One epoch of five layers", ("", "s", "speed-up"), rows)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CROSSCHANNEL_CACHE"] = folder
        for cache in ("memory", "disk"):
            _, epochs = time_probe((train, val), ",".join(LAYERS), "auto", cache, 3, options.workers)
            rows.append((cache, epochs[0], epochs[1], epochs[0] / epochs[1]))
    print_table("Cached features", ("cache", "first epoch, s", "second epoch, s", "speed-up"), rows)


if __name__ == "__main__":
    main()
