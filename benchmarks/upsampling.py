"""Do colours stop at edges? `python benchmarks/upsampling.py [--images 80]`.

No net is needed: the true ab of full-size photographs are brought down to the grid that a net predicts (every 4th pixel
of a picture of short side 256) and up again, bilinearly and by lightness. The error is the distance in ab, near edges
(within 3 pixels of a step of Lab greater than 10) and elsewhere; then the time for 12 megapixels.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from timing import machine, race, real_data, table
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.data.folder import list_files
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

STRIDE, SHORT = 4, 256
WAYS = ("bilinear", "edges")


class TrueColours(nn.Module):
    """In place of a net: what it would say if it were right."""

    def __init__(self):
        super().__init__()
        self.ab = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.said


def colorizer() -> Colorizer:
    """One of a regression whose net says the true ab / 110."""
    _, task = create("colorization", ColorizationConfig(kind="l2"), NetSpec("colornet"))
    return Colorizer(TrueColours(), task, SHORT)


def near_edges(lab: Tensor) -> Tensor:
    """(H, W) bool: within 3 pixels of an edge."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    steps = nn.functional.conv2d(
        nn.functional.pad(lab.transpose(0, 1), (1,) * 4, "replicate"), torch.stack((kernel, kernel.T))[:, None]
    )
    edges = (steps.square().sum((0, 1)).sqrt() > 10).float()[None, None]
    return nn.functional.max_pool2d(edges, 7, 1, 3)[0, 0] > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=80)
    arguments = parser.parse_args()
    folder, net = real_data("imagenet-full"), colorizer()
    errors: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for name in list_files(folder)[: arguments.images]:
        rgb = torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1)[None]
        if min(rgb.shape[2:]) <= SHORT:
            continue
        lab = rgb_to_lab(rgb)
        net.net.said = rgb_to_lab(net._resize_for_net(rgb))[:, 1:, ::STRIDE, ::STRIDE] / 110
        near = near_edges(lab)
        for way in WAYS:
            net.upsample = way
            error = (net.ab(rgb) - lab[:, 1:]).norm(dim=1)[0]
            errors[way].append((error[near].mean().item(), error[~near].mean().item(), error.mean().item()))
    rows = []
    means = {way: np.nanmean(np.array(found), 0) for way, found in errors.items()}
    for way, mean in means.items():
        change = 100 * (mean[0] / means["bilinear"][0] - 1)
        rows.append([way, *mean.tolist(), f"{change:+.1f} %"])
    better = np.mean([b[0] < a[0] for a, b in zip(errors["bilinear"], errors["edges"], strict=True)])
    head = ["upsampling", "near edges", "elsewhere", "everywhere", "near edges, against bilinear"]
    table(
        f"ab error over {len(errors['edges'])} photographs; edges win on {better:.0%} of them. {machine()}", head, rows
    )

    big = torch.randint(0, 256, (1, 3, 3000, 4000), dtype=torch.uint8)
    net.net.said = torch.randn(1, 2, 64, 86) / 10
    sides = {}
    for way in WAYS:
        sides[f"{way}, ab alone"] = lambda way=way: (setattr(net, "upsample", way), net.ab(big))
        sides[f"{way}, whole picture"] = lambda way=way: (setattr(net, "upsample", way), net._colour(big, None))
    seconds = race(sides, rounds=3)
    table("12 megapixels, without the net", ["", "s"], [[name, value] for name, value in seconds.items()])


if __name__ == "__main__":
    main()
