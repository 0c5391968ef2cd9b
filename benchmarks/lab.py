"""sRGB → Lab compared with scikit-image, OpenCV and kornia: `python benchmarks/lab.py`.

Needs the optional dependencies `benchmarks`.
"""

import argparse

import cv2
import kornia
import numpy as np
import torch
from skimage.color import rgb2lab
from timing import describe_machine, print_table, race

from crosschannel.color import rgb_to_lab, rgb_to_lightness

SHAPE = (64, 3, 176, 176)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    pixels = torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = {"uint8": pixels, "float32": pixels.float() / 255}
    truth = rgb2lab(pixels.permute(0, 2, 3, 1).numpy().astype(np.float64) / 255)
    print(describe_machine(), f"{SHAPE[0]} images of {SHAPE[2]}²; best of 7 alternating runs", sep="; ")
    for threads in options.threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        for dtype, rgb in inputs.items():
            images = rgb.permute(0, 2, 3, 1).contiguous().numpy()
            converters = {
                "scikit-image": lambda images=images: rgb2lab(images),
                "kornia": lambda rgb=rgb: kornia.color.rgb_to_lab(
                    rgb if rgb.is_floating_point() else rgb.float() / 255
                ),
                "OpenCV (a loop over images)": lambda images=images: np.stack([opencv_lab(image) for image in images]),
                "crosschannel": lambda rgb=rgb: rgb_to_lab(rgb),
                "crosschannel, L only": lambda rgb=rgb: rgb_to_lightness(rgb),
            }
            if options.compile:
                compiled = torch.compile(rgb_to_lab)
                converters["crosschannel, compiled"] = lambda rgb=rgb, compiled=compiled: compiled(rgb)
            times = race(converters, rounds=7)
            rows = []
            for name, seconds in times.items():
                lab = converters[name]()
                lab = lab.permute(0, 2, 3, 1).numpy() if isinstance(lab, torch.Tensor) else lab
                error = np.abs(lab - truth[..., : lab.shape[-1]]).max()
                rows.append((name, 1e3 * seconds / SHAPE[0], times["scikit-image"] / seconds, f"{error:.0e}"))
            head = ("", "ms per image", "speed-up", "maximum error")
            print_table(f"{dtype} input, {threads} thread{'s' * (threads > 1)}", head, rows)


def opencv_lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image if image.dtype == np.float32 else np.float32(image) / 255, cv2.COLOR_RGB2LAB)


if __name__ == "__main__":
    main()
