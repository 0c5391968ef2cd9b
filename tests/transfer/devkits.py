"""A small devkit of photographs, in the layout of VOC2007."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def annotation(objects: list[tuple[str, bool]]) -> str:
    entries = "".join(
        f"<object><name>{name}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{4 + i}</xmin><ymin>5</ymin>"
        f"<xmax>{40 + i}</xmax><ymax>50</ymax></bndbox></object>"
        for i, (name, hard) in enumerate(objects)
    )
    return f"<annotation><folder>VOC2007</folder>{entries}</annotation>"


def make_devkit(root: Path, photos: list[np.ndarray], train: int = 40, test: int = 20, year: str = "2007") -> Path:
    """Images whose classes follow from the photograph that they are cut from: every class has positives in each part,
    and every fifth image a difficult object too. Returns the VOCdevkit folder."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    sets: dict[str, list[str]] = {"trainval": [], "test": []}
    labels: dict[str, dict[str, int]] = {}
    for number in range(train + test):
        photo = photos[number % len(photos)]
        height, width = int(generator.integers(60, 120)), int(generator.integers(60, 120))
        top, left = (
            int(generator.integers(0, photo.shape[0] - height)),
            int(generator.integers(0, photo.shape[1] - width)),
        )
        name = f"{number:06d}"
        Image.fromarray(photo[top : top + height, left : left + width]).save(
            folder / "JPEGImages" / f"{name}.jpg", quality=92
        )
        objects = [(CLASSES[number % 20], False), (CLASSES[(number % len(photos)) * 2 % 20], False)]
        if number % 5 == 0:
            objects.append((CLASSES[(number + 7) % 20], True))
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(objects))
        sets["trainval" if number < train else "test"].append(name)
        labels[name] = {label: 0 for label, hard in objects if hard} | {label: 1 for label, hard in objects if not hard}
    for part, names in sets.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for label in CLASSES:
            lines = "".join(f"{name} {labels[name].get(label, -1):2d}\n" for name in names)
            (folder / "ImageSets" / "Main" / f"{label}_{part}.txt").write_text(lines)
    return folder.parent
