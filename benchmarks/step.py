"""Training throughput by net, memory format, precision and compilation: `python benchmarks/step.py [--nets …]`.

Also measures the fraction of a step that is spent outside the network, and peak memory. Each row runs in a new process.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from timing import describe_machine, peak_memory, print_table, run_in_subprocess
from torch import nn

from crosschannel.config.training import RuntimeConfig, ScheduleConfig, TrainConfig, TrainedConfig
from crosschannel.data import Batch, CropConfig, Stream, TrainingCrops, load_batches, open_images
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig
from crosschannel.pretext.pretraining import Pretraining
from crosschannel.runs.folder import RunFolder
from crosschannel.training.device import AUTO, device_kind, find_device
from crosschannel.training.loop import Loop
from crosschannel.training.memory import keep_freed_memory
from crosschannel.training.ranks import World

# net: (description, crop, batch on a CPU, batch on a GPU)
NETS = {
    "alexnet": (NetSpec("alexnet", fc=0), 128, 64, 1024),
    "alexnet-fc": (NetSpec("alexnet", fc=4096), 180, 16, 512),
    "colornet": (NetSpec("colornet"), 176, 4, 128),
    "vgg16": (NetSpec("vgg16"), 176, 4, 256),
    "timm:resnet50": (NetSpec("timm:resnet50"), 128, 16, 512),
}
# variant: (precision, channels_last, compile, keep freed memory)
VARIANTS = {
    "eager, freed memory returned to the system": ("float32", False, False, False),
    "eager": ("float32", False, False, True),
    "channels_last": ("float32", True, False, True),
    "compiled": ("float32", False, True, True),
    "channels_last, compiled": ("float32", True, True, True),
    "bfloat16": ("bfloat16", False, False, True),
    "bfloat16, channels_last": ("bfloat16", True, False, True),
    "bfloat16, channels_last, compiled": ("bfloat16", True, True, True),
}


def measure(name: str, variant: str, device: torch.device, seconds: float) -> dict[str, float]:
    """Measure one row: complete training steps, and steps without colour conversion, targets and loss, on one batch."""
    spec, crop_size, cpu_batch, gpu_batch = NETS[name]
    precision, channels_last, compiled, keep_memory = VARIANTS[variant]
    if keep_memory:
        keep_freed_memory()
    batch_size = gpu_batch if device.type == "cuda" else cpu_batch
    crop = CropConfig(crop_size, round(crop_size * 1.1))
    train_images, val = open_images("builtin:sample")
    world = World(0, 1, device)
    torch.manual_seed(0)
    net, pretext = create("colorization", ColorizationConfig(), spec, crop_size)
    task = Pretraining(net, pretext, val, crop, world, "default")
    options = TrainConfig(batch_size, precision=precision, channels_last=channels_last, compile=compiled, steps=1)
    config = TrainedConfig(
        schedule=ScheduleConfig("constant"), train=options, runtime=RuntimeConfig(0, tensorboard=False)
    )
    stream = Stream(train_images, TrainingCrops(crop), 0)
    loop = Loop(task, stream, config, RunFolder(Path("unused"), "pretrain", hold=False), world)
    model = loop.wrap()
    batch = next(load_batches(stream, 0, batch_size, batch_size))

    def step() -> None:
        loop.update(loop.gradients(model, [batch]))

    total = time_best(step, device, seconds)
    loop.task = NetworkOnly(task, batch)
    network = time_best(step, device, seconds)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
    return {
        "batch": batch_size,
        "images_per_s": batch_size / total,
        "outside_network": 1 - network / total,
        "peak_gib": peak / 2**30,
    }


class NetworkOnly:
    """The task with precomputed inputs and a loss of negligible cost: the mean of the outputs."""

    def __init__(self, task: Pretraining, batch: Batch):
        self.lightness = task.pretext.inputs(batch.images.to(task.world.device))

    def step(self, net: nn.Module, _batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = net(self.lightness)
        return outputs.sum(), torch.tensor(outputs.numel(), device=outputs.device)


def time_best(call, device: torch.device, seconds: float) -> float:
    """Return the time of the fastest call within ``seconds``, after two warm-up calls."""
    best, deadline, count = float("inf"), None, 0
    while deadline is None or time.perf_counter() < deadline or count < 5:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
        if count > 2:
            deadline = deadline or start + seconds
            best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=6.0, help="duration of each measurement")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = find_device(options.device)
    if options.row:
        print(json.dumps(measure(*options.row, device, options.seconds)))
        return
    kind = device_kind(device)
    print(describe_machine(), f"{torch.get_num_threads()} threads; best step within {options.seconds:g} s", sep="; ")
    print(f"`auto` on this device ({kind}): precision, channels_last, compile = {AUTO[kind]}")
    for net in options.nets:
        rows, base_speed = [], None
        for variant in options.variants:
            row = run_in_subprocess(
                sys.argv[0], "--row", net, variant, "--device", options.device, "--seconds", str(options.seconds)
            )
            base_speed = base_speed or row["images_per_s"]
            speed, outside = row["images_per_s"], f"{row['outside_network']:.1%}"
            rows.append((variant, speed, speed / base_speed, outside, f"{row['peak_gib']:.2f}"))
        _, crop, _, _ = NETS[net]
        head = ("", "images/s", "speed-up", "outside the network", "peak memory, GiB")
        print_table(f"{net}, {crop} px, batch {row['batch']:g}", head, rows)


if __name__ == "__main__":
    main()
