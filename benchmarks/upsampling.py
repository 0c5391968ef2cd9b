"""Error and time of bilinear and edge-aware upsampling: `python benchmarks/upsampling.py [--images 80]`.

No net is needed: the true ab of full-size photographs is reduced to the output grid of a net (every 4th pixel at a
short side of 256) and upsampled again. The error is the distance in ab, near edges (within 3 pixels of a Lab gradient
greater than 10) and elsewhere. Then measures the time of upsampling to 12 megapixels.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from timing import describe_machine, print_table, race, real_data
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.data.folder import list_files
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

STRIDE, SHORT_SIDE = 4, 256
METHODS = ("bilinear", "edges")


class PerfectNet(nn.Module):
    """Stand-in for a net. It returns the true ab / 110, which the caller stores in ``prediction``."""

    def __init__(self):
        super().__init__()
        self.ab = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction


def perfect_colorizer() -> Colorizer:
    """Return a Colorizer of the regression task whose net is perfect."""
    _, task = create("colorization", ColorizationConfig(kind="l2"), NetSpec("colornet"))
    return Colorizer(PerfectNet(), task, SHORT_SIDE)


def near_edges(lab: Tensor) -> Tensor:
    """Return (H, W) bool: whether a pixel is within 3 pixels of an edge."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    gradients = nn.functional.conv2d(
        nn.functional.pad(lab.transpose(0, 1), (1,) * 4, "replicate"), torch.stack((kernel, kernel.T))[:, None]
    )
    edges = (gradients.square().sum((0, 1)).sqrt() > 10).float()[None, None]
    return nn.functional.max_pool2d(edges, 7, 1, 3)[0, 0] > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=80)
    options = parser.parse_args()
    folder, colorizer = real_data("imagenet-full"), perfect_colorizer()
    errors: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
    for name in list_files(folder)[: options.images]:
        rgb = torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1)[None]
        if min(rgb.shape[2:]) <= SHORT_SIDE:
            continue
        lab = rgb_to_lab(rgb)
        colorizer.net.prediction = rgb_to_lab(colorizer._resize_for_net(rgb))[:, 1:, ::STRIDE, ::STRIDE] / 110
        edge_mask = near_edges(lab)
        for method in METHODS:
            colorizer.upsample = method
            error = (colorizer.ab(rgb) - lab[:, 1:]).norm(dim=1)[0]
            errors[method].append(
                (error[edge_mask].mean().item(), error[~edge_mask].mean().item(), error.mean().item())
            )
    rows = []
    means = {method: np.nanmean(np.array(values), 0) for method, values in errors.items()}
    for method, mean in means.items():
        change = 100 * (mean[0] / means["bilinear"][0] - 1)
        rows.append([method, *mean.tolist(), f"{change:+.1f} %"])
    win_rate = np.mean([b[0] < a[0] for a, b in zip(errors["bilinear"], errors["edges"], strict=True)])
    head = ["upsampling", "near edges", "elsewhere", "all pixels", "near edges, change from bilinear"]
    title = f"ab error over {len(errors['edges'])} photographs; edge-aware is better on {win_rate:.0%} of them"
    print_table(f"{title}. {describe_machine()}", head, rows)

    large_image = torch.randint(0, 256, (1, 3, 3000, 4000), dtype=torch.uint8)
    colorizer.net.prediction = torch.randn(1, 2, 64, 86) / 10
    calls = {}
    for method in METHODS:
        calls[f"{method}, ab only"] = lambda method=method: (
            setattr(colorizer, "upsample", method), colorizer.ab(large_image)
        )  # fmt: skip
        calls[f"{method}, complete picture"] = lambda method=method: (
            setattr(colorizer, "upsample", method), colorizer._colour(large_image, None)
        )  # fmt: skip
    seconds = race(calls, rounds=3)
    print_table("12 megapixels, without the net", ["", "s"], [[name, value] for name, value in seconds.items()])


if __name__ == "__main__":
    main()
