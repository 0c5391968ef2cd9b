"""Small data sets in the layouts of the PASCAL VOC devkit and of SBD."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def annotation(objects: list[tuple[str, bool]]) -> str:
    entries = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{4 + i}</xmin><ymin>5</ymin>"
        f"<xmax>{40 + i}</xmax><ymax>50</ymax></bndbox></object>"
        for i, (name, difficult) in enumerate(objects)
    )
    return f"<annotation><folder>VOC2007</folder>{entries}</annotation>"


def mask_of(pixels: np.ndarray) -> np.ndarray:
    """Return labels by colour: background if dark, else by brightness and redness; 2 rows of 255 at top and bottom."""
    grey, red = pixels.mean(2), pixels[..., 0].astype(float) - pixels[..., 2]
    labels = np.where(grey < 80, 0, 1 + (grey // 90).astype(int) + 2 * (red > 20)).astype(np.uint8)
    labels[:2], labels[-2:] = 255, 255
    return labels


def save_mask(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels, "P")
    picture.putpalette([(i * 37) % 256 for i in range(768)])
    picture.save(path)


def make_sbd(root: Path, photos: list[np.ndarray], sets: dict[str, list[str]]) -> Path:
    """Make images and labels in the layout of the Semantic Boundaries Dataset; return its dataset folder.

    Args:
        sets: image names of each split.
    """
    from scipy.io import savemat

    folder = root / "benchmark_RELEASE" / "dataset"
    for name in ("img", "cls"):
        (folder / name).mkdir(parents=True)
    for split, names in sets.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in enumerate(names):
            pixels = photos[number % len(photos)][:70, :90]
            Image.fromarray(pixels).save(folder / "img" / f"{name}.jpg", quality=92)
            labels = np.where(mask_of(pixels) == 255, 0, mask_of(pixels))  # SBD has no void border
            struct = np.empty((1, 1), [("Segmentation", "O"), ("Boundaries", "O")])
            struct[0, 0] = (labels, 0)
            savemat(folder / "cls" / f"{name}.mat", {"GTcls": struct})
    return folder


def make_devkit(
    root: Path, photos: list[np.ndarray], train: int = 40, test: int = 20, year: str = "2007", masks: bool = False
) -> Path:
    """Make a VOC devkit of crops of photographs; return the VOCdevkit folder.

    The photograph determines the classes of a crop. Each class has positives in both splits, and every fifth image also
    has a difficult object.
    """
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
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
        labels[name] = {label: 0 for label, difficult in objects if difficult}
        labels[name] |= {label: 1 for label, difficult in objects if not difficult}
        if masks:
            save_mask(
                folder / "SegmentationClass" / f"{name}.png", mask_of(photo[top : top + height, left : left + width])
            )
    for split, names in sets.items():
        if masks:
            (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for label in CLASSES:
            lines = "".join(f"{name} {labels[name].get(label, -1):2d}\n" for name in names)
            (folder / "ImageSets" / "Main" / f"{label}_{split}.txt").write_text(lines)
    return folder.parent
