"""Linear probes: all layers in one run against a run a layer, against a minimal hand-written loop on the same
torchvision net, and with stored features: `python benchmarks/probe.py`. Needs imagenette below $CROSSCHANNEL_TEST_DATA.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from timing import machine, real_data, table
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
GRIDS = {"conv1": 12, "conv2": 7, "conv3": 5, "conv4": 6, "conv5": 6}  # below 10,000 numbers each
BATCH = 64


class Files(Dataset):
    """What a user would write: Pillow and torchvision's transforms."""

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


def by_hand(root: Path, images: ImageSet, classes: int, device: torch.device, workers: int) -> float:
    """Seconds of the second epoch of a minimal loop: hooks, a pool and a linear layer each, one optimiser."""
    net = alexnet(weights=None).eval().to(device)
    found: dict[str, torch.Tensor] = {}
    for layer, place in MODULES.items():
        pool = nn.AdaptiveAvgPool2d(GRIDS[layer])
        net.features[place].register_forward_hook(
            lambda _m, _i, output, layer=layer, pool=pool: found.update({layer: pool(output)})
        )
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224, device=device))
    heads = nn.ModuleDict(
        {
            layer: nn.Sequential(
                nn.BatchNorm2d(f.shape[1], affine=False), nn.Flatten(), nn.Linear(f[0].numel(), classes)
            )
            for layer, f in found.items()
        }
    ).to(device)
    optimizer = torch.optim.AdamW(heads.parameters(), 1e-3)
    loader = DataLoader(Files(root, images), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        begun = time.perf_counter()
        for pixels, labels in loader:
            with torch.no_grad():
                net(pixels.to(device))
            loss = sum(nn.functional.cross_entropy(heads[layer](found[layer]), labels.to(device)) for layer in LAYERS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - begun


def ours(
    images: tuple[ImageSet, ImageSet], layers: str, precision: str, cache: str, epochs: int, workers: int
) -> tuple[float, list[float]]:
    """Seconds of a whole probe, and of its epochs; the making of stored features counts to the first."""
    ends: list[float] = []
    per_epoch = len(images[0]) // BATCH
    original, steps = LinearProbe.step, 0

    def step(*arguments):
        nonlocal steps
        found = original(*arguments)
        steps += 1
        if steps % per_epoch == 0:
            ends.append(time.perf_counter())
        return found

    config = replace(
        as_config(transfer.linear_probe, "imagenette"),
        cache=cache,
        train=TrainConfig(BATCH, steps=epochs * per_epoch, precision=precision, compile=False),
        runtime=RuntimeConfig(workers, eval_every=10**9, checkpoint_every=10**9, log_every=10**9, tensorboard=False),
    )
    LinearProbe.step = step
    try:
        begun = time.perf_counter()
        transfer.linear_probe("torchvision:alexnet,weights=none", images, layers, config)
        whole = time.perf_counter() - begun
    finally:
        LinearProbe.step = original
    return whole, [end - start for start, end in zip([begun, *ends], ends, strict=False)]


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
    print(machine(), f"{len(train)} training images, AlexNet (torchvision's) at 224 px, batch {BATCH}", sep="; ")

    together, _ = ours((train, val), ",".join(LAYERS), "auto", "off", 2, options.workers)
    alone = sum(ours((train, val), layer, "auto", "off", 2, options.workers)[0] for layer in LAYERS)
    rows = [("five runs", alone, 1.0), ("one run of five layers", together, alone / together)]
    table("Two epochs of all five layers, features computed every time", ("", "s", "times faster"), rows)

    hand = by_hand(root, train, len(train.classes), device, options.workers)
    rows = [("minimal loop with hooks", hand, 1.0)]
    for precision in ("float32", "auto"):
        _, epochs = ours((train, val), ",".join(LAYERS), precision, "off", 3, options.workers)
        rows.append((f"crosschannel, {precision}", epochs[1], hand / epochs[1]))
    table("One epoch of five layers", ("", "s", "times faster"), rows)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CROSSCHANNEL_CACHE"] = folder
        for cache in ("memory", "disk"):
            _, epochs = ours((train, val), ",".join(LAYERS), "auto", cache, 3, options.workers)
            rows.append((cache, epochs[0], epochs[1], epochs[0] / epochs[1]))
    table("Stored features", ("cache", "first epoch, s", "second, s", "times faster"), rows)


if __name__ == "__main__":
    main()
