"""Cost of colorization compared with the paper's Table 1: `python benchmarks/colorizers.py`.

Measures ColorNet and our implementation of Larsson et al. on one picture of 256² pixels. Weights are random, since they
do not affect the cost. Then measures the memory of training Larsson's net with 128 pixels per crop, compared with a
hypercolumn at every 4th pixel.
"""

import json
import sys

import torch
from timing import describe_machine, peak_memory, print_table, run_in_subprocess

from crosschannel.colorize.colorizer import Colorizer
from crosschannel.evaluation.cost import cost
from crosschannel.evaluation.published import TABLE_1
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig, LarssonConfig

NETS = {
    "full": ("colorization", ColorizationConfig(), NetSpec("colornet"), "full"),
    "L2": ("colorization", ColorizationConfig(kind="l2"), NetSpec("colornet"), "L2"),
    "Larsson et al.": ("larsson", LarssonConfig(), NetSpec("vgg16", 1, fc=4096), "Larsson et al. 2016"),
}
HEAD = ["", "parameters, MB", "paper", "features, MB", "paper", "runtime, ms", "relative to full", "paper"]


def print_costs() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    costs, rows = {}, []
    for name, (task, config, spec, _) in NETS.items():
        net, pretext = create(task, config, spec)
        costs[name] = cost(Colorizer(net.eval(), pretext, 256).to(device).requires_grad_(False), 256, device)
    for name, (*_, published) in NETS.items():
        parameters, features, runtime = TABLE_1[published][3:]
        measured = costs[name]
        rows.append([
            name, measured["parameters_mb"], parameters, measured["features_mb"], features, measured["runtime_ms"],
            measured["runtime_ms"] / costs["full"]["runtime_ms"], runtime / TABLE_1["full"][5],
        ])  # fmt: skip
    print_table(f"One picture of 256² pixels, float32, batch 1. {describe_machine()}", HEAD, rows)


def print_step_memory(dense: bool) -> None:
    """Print the peak memory of a forward and backward pass of 2 crops: at sampled pixels, or at every 4th pixel."""
    net, task = create("larsson", LarssonConfig(locations=56 * 56 if dense else 128), NetSpec("vgg16", 1, fc=4096))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    before = peak_memory()
    labels = torch.zeros(2, dtype=torch.int64)
    task.loss(net.train()(task.inputs(images)), task.targets(images, labels)).sum().backward()
    print(json.dumps({"mib": (peak_memory() - before) / 2**20}))


def main() -> None:
    if len(sys.argv) > 1:
        return print_step_memory(sys.argv[1] == "dense")
    print_costs()
    rows = [[pixels, run_in_subprocess(__file__, mode)["mib"]] for pixels, mode in
            (("128 pixels per crop", "sparse"), ("every 4th pixel", "dense"))]  # fmt: skip
    print_table("Memory of a training step of Larsson's net: 2 crops of 224 px, including gradients", ["", "MiB"], rows)
    return None


if __name__ == "__main__":
    main()
