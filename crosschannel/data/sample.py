"""The built-in sample dataset: crops of colour photographs that ship with scikit-image and scikit-learn.

Each of the ten photographs is a class. Training crops come from the left 70 % of the photograph, validation crops from
the right 30 %, so that the splits share no pixels.
"""

import io
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from crosschannel.data.decode import open_picture
from crosschannel.data.images import MemoryImages
from crosschannel.data.order import uniforms

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
_SHORT_SIDE, _CROP_SIDE, _TRAIN_FRACTION = 448, 128, 0.7
_TRAIN_CROPS, _VAL_CROPS = 48, 12


@lru_cache(maxsize=1)
def photographs() -> MemoryImages:
    """Return the ten photographs uncropped, for colorization."""
    # find_spec does not import the packages
    folders = {name: find_spec(name).submodule_search_locations[0] for name in ("skimage", "sklearn")}
    blobs = [Path(folders[package], name).read_bytes() for package, name in PHOTOGRAPHS.values()]
    names = [f"{key}{name[name.rindex('.') :]}" for key, (_, name) in PHOTOGRAPHS.items()]
    return MemoryImages(names, range(len(blobs)), blobs, tuple(PHOTOGRAPHS))


@lru_cache(maxsize=1)
def sample_images() -> tuple[MemoryImages, MemoryImages]:
    """Return 480 training and 120 validation crops of 128 px, encoded as PNG."""
    splits: dict[str, tuple[list[str], list[int], list[bytes]]] = {"train": ([], [], []), "val": ([], [], [])}
    source = photographs()
    for label, name in enumerate(PHOTOGRAPHS):
        photo = open_picture(source.read(label)).convert("RGB")
        scale = _SHORT_SIDE / min(photo.size)
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
        border = int(photo.width * _TRAIN_FRACTION)
        for split, left, right, count in (
            ("train", 0, border, _TRAIN_CROPS),
            ("val", border, photo.width, _VAL_CROPS),
        ):
            names, labels, blobs = splits[split]
            for i in range(count):
                u = uniforms(2, label, split == "val", i)
                x = left + int(u[0] * (right - left - _CROP_SIDE + 1))
                y = int(u[1] * (photo.height - _CROP_SIDE + 1))
                names.append(f"{split}/{name}/{i:03d}.png")
                labels.append(label)
                blobs.append(_png(np.asarray(photo.crop((x, y, x + _CROP_SIDE, y + _CROP_SIDE)))))
    return MemoryImages(*splits["train"], tuple(PHOTOGRAPHS)), MemoryImages(*splits["val"], tuple(PHOTOGRAPHS))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
