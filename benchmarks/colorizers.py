"""What colouring costs: our ColorNet against our net of Larsson et al., 256², beside the paper's Table 1:
`python benchmarks/colorizers.py`. Weights are random; they cost the same. Then the memory of training Larsson's net at
128 pixels of a crop, against a hypercolumn of every 4th pixel.
"""

import json
import sys

import torch
from timing import apart, machine, peak_memory, table

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
HEAD = ["", "parameters MB", "paper", "features MB", "paper", "runtime ms", "times full", "paper"]


def costs() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, rows = {}, []
    for name, (task, config, spec, _) in NETS.items():
        net, pretext = create(task, config, spec)
        found[name] = cost(Colorizer(net.eval(), pretext, 256).to(device).requires_grad_(False), 256, device)
    for name, (*_, published) in NETS.items():
        parameters, features, runtime = TABLE_1[published][3:]
        mine = found[name]
        rows.append([
            name, mine["parameters_mb"], parameters, mine["features_mb"], features,
            mine["runtime_ms"], mine["runtime_ms"] / found["full"]["runtime_ms"], runtime / TABLE_1["full"][5],
        ])  # fmt: skip
    table(f"One picture of 256², batch 1, float32. {machine()}", HEAD, rows)


def step(everywhere: bool) -> None:
    """Peak memory of one forward and backward pass of 2 crops: sparse, or with hypercolumns on the whole grid."""
    net, task = create("larsson", LarssonConfig(locations=56 * 56 if everywhere else 128), NetSpec("vgg16", 1, fc=4096))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    before = peak_memory()
    labels = torch.zeros(2, dtype=torch.int64)
    task.loss(net.train()(task.inputs(images)), task.targets(images, labels)).sum().backward()
    print(json.dumps({"mib": (peak_memory() - before) / 2**20}))


def main() -> None:
    if len(sys.argv) > 1:
        return step(sys.argv[1] == "everywhere")
    costs()
    rows = [[words, apart(__file__, which)["mib"]] for words, which in
            (("128 pixels a crop", "sparse"), ("every 4th pixel", "everywhere"))]  # fmt: skip
    table("Memory of a training step of Larsson's net, 2 crops of 224 px, gradients included", ["", "MiB"], rows)
    return None


if __name__ == "__main__":
    main()
