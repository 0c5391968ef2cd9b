"""Layouts of image folders: training and validation splits, recognised by the names of subfolders."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from crosschannel.data.folder import FolderImages, Listing, format_count, list_files, subfolders
from crosschannel.errors import UserError
from crosschannel.files import read_text

SPLITS = {
    "train": r"train(?:ing|val)?",
    "val": r"val(?:id|idation)?|dev",
    "test": r"test(?:ing)?|eval(?:uation)?",
}
_FILLERS = r"(?:set|data|images?|imgs?|split|[\W\d_])*"  # allowed around a split, as in train2017 or test_set


def split_of(name: str) -> str:
    """Return the split that a folder is named after ("train", "val" or "test"); empty for other names."""
    matches = (
        split for split, pattern in SPLITS.items() if re.fullmatch(f"{_FILLERS}(?:{pattern}){_FILLERS}", name, re.I)
    )
    return next(matches, "")


def split_word(name: str) -> str:
    """Return the split that appears as a word in a file or folder name, as in imagenet-train-0.tar; empty if none."""
    matches = (
        split for split, pattern in SPLITS.items() if re.search(f"(?:^|[^a-z])(?:{pattern})(?:[^a-z]|$)", name, re.I)
    )
    return next(matches, "")


@dataclass(frozen=True)
class Layout:
    """Folders of training and validation images.

    Attributes:
        train: folder of training images.
        val: folder of validation images, or else of test images; None if there is neither.
        unused: names of the other folders, which are ignored.
    """

    train: Path
    val: Path | None = None
    unused: tuple[str, ...] = ()


def find_layout(root: Path) -> Layout:
    """Infer the layout of a folder from the names of its subfolders.

    Raises:
        UserError: it is ambiguous which images are for training, or whether the folders are splits or classes.
    """
    folders = subfolders(root)
    splits: dict[str, list[str]] = {}
    for name in folders:
        if split := split_of(name):
            splits.setdefault(split, []).append(name)
    if not splits:
        _check_classes(root, folders)
        return Layout(root)
    for split, names in splits.items():
        if len(names) > 1:
            raise UserError(
                f"{root} has both {names[0]}/ and {names[1]}/ for {split} images; move one of them elsewhere"
            )
    split_names = {split: names[0] for split, names in splits.items()}
    other_names = [name for name in folders if name not in split_names.values()]
    if "train" not in split_names or (len(split_names) == 1 and other_names):
        _check_incomplete_splits(root, [*split_names.values()], other_names)
    val = split_names.get("val", split_names.get("test"))
    unused = [*other_names, *(name for split, name in split_names.items() if name not in (split_names["train"], val))]
    return Layout(root / split_names["train"], root / val if val else None, tuple(unused))


def _check_incomplete_splits(root: Path, names: list[str], other_names: list[str]) -> None:
    """Raise an error if splits are missing; train/ alone is accepted if no other folder has images."""
    classes = sorted(_folders_with_images(root) & {*other_names})
    if classes:
        raise UserError(
            f"{root} has {names[0]}/, which is named like a split, next to {classes[0]}/; rename {names[0]}/ if it is "
            "a class, otherwise sort the images into train/CLASS/ and val/CLASS/"
        )
    if split_of(names[0]) != "train":
        raise UserError(f"{root} has {names[0]}/ but no train/; pass --data {root / names[0]} to use these images")


def _check_classes(root: Path, folders: list[str]) -> None:
    """Raise an error for folders that would be used as classes although they are named like splits."""
    splits = {name: split_word(name) for name in folders}
    if len({*splits.values()} - {""}) > 1 and all(splits[name] for name in _folders_with_images(root) & {*folders}):
        raise UserError(
            f"{root} has the folders {', '.join(folders)}, which look like splits rather than classes; "
            "rename them to train, val and test, or move them into a folder train/ if they are classes"
        )


def _folders_with_images(root: Path) -> set[str]:
    """Return the names of the subfolders that contain images."""
    return {file.partition("/")[0] for file in list_files(root)}


def open_folder(root: Path) -> tuple[FolderImages, FolderImages | None, str]:
    """Open the training and validation images of a folder.

    Returns:
        Training images, validation images (None if there are none), and a one-line summary.

    Raises:
        UserError: the layout is ambiguous, or the validation images have classes that the training images lack.
    """
    for ilsvrc_root in (root, root / "ILSVRC"):
        if (ilsvrc_root / "Data" / "CLS-LOC" / "train").is_dir():
            train, val = _open_ilsvrc(ilsvrc_root)
            return train, val, _summary(train, val, "Data/CLS-LOC/train", "Data/CLS-LOC/val", ())
    layout = find_layout(root)
    train, val, unused = FolderImages(layout.train), None, layout.unused
    if layout.train == root:
        _check_depth(root, train.listing.files)
        return train, None, _summary(train, None, "", "", ())
    if layout.val is not None:
        val = _open_val(layout.val, train)
        unused += () if val is not None else (layout.val.name,)
    return train, val, _summary(train, val, layout.train.name, layout.val.name if layout.val else "", unused)


def _open_val(folder: Path, train: FolderImages) -> FolderImages | None:
    """Open validation images with the training classes; return None for test images without these classes."""
    if split_of(folder.name) == "val":
        return FolderImages(folder, classes=train.classes)
    try:
        test = FolderImages(folder, classes=train.classes)
    except UserError:  # classes that the training images lack
        return None
    return test if len(test) and (not train.classes or (test.labels >= 0).all()) else None


def _check_depth(root: Path, files: list[str]) -> None:
    """Raise an error if the splits are one level down, in a single subfolder or in every class folder."""
    if any(file.count("/") < 2 for file in files):
        return
    parents = {tuple(file.split("/", 2)[:2]) for file in files}
    splits = {split_of(name) for _, name in parents}
    if len(splits) > 1 and "" not in splits:
        folders = sorted({folder for folder, _ in parents})
        raise UserError(
            f"the splits of {root} are one level down, in {folders[0]}/"
            + (
                f"; pass --data {root / folders[0]}"
                if len(folders) == 1
                else "; arrange them as train/CLASS/ and val/CLASS/"
            )
        )


def _summary(
    train: FolderImages, val: FolderImages | None, train_name: str, val_name: str, unused: tuple[str, ...]
) -> str:
    counts = [format_count(len(train), "training image" if train_name else "image")]
    if train.classes:
        counts[0] += f" in {format_count(len(train.classes), 'class', 'classes')}"
    if train_name:
        counts[0] += f" ({train_name}/)"
    if val is not None:
        counts.append(f"{format_count(len(val), 'validation image')} ({val_name}/)")
    summary = ", ".join(counts)
    if unused:
        summary += f"; ignored: {', '.join(f'{name}/' for name in unused)}"
    skipped = (train.listing + (val.listing if val is not None else Listing())).skipped()
    return summary + (f"; skipped: {skipped}" if skipped else "")


def _open_ilsvrc(root: Path) -> tuple[FolderImages, FolderImages | None]:
    """Open ILSVRC as distributed: images in Data/CLS-LOC/{train/WNID/, val/}, validation labels in separate files."""
    data = root / "Data" / "CLS-LOC"
    train = FolderImages(data / "train")
    if not (data / "val").is_dir():
        return train, None
    return train, FolderImages(data / "val", labels=_ilsvrc_val_labels(root), classes=train.classes)


def _ilsvrc_val_labels(root: Path) -> dict[str, str]:
    """Return the class (WordNet ID) of each validation image by file stem."""
    for table in (root / "LOC_val_solution.csv", root.parent / "LOC_val_solution.csv"):
        if table.is_file():
            try:
                rows = csv.DictReader(read_text(table).splitlines())
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
            except (KeyError, IndexError, AttributeError, csv.Error):
                raise UserError(
                    f"{table} is damaged: every row needs an ImageId, and a PredictionString that starts with a class"
                ) from None
    annotations = root / "Annotations" / "CLS-LOC" / "val"
    matches = ((path.stem, re.search(r"<name>(n\d+)</name>", read_text(path))) for path in annotations.glob("*.xml"))
    return {stem: match[1] for stem, match in matches if match}
