"""`transfer proposals`: compute proposals for the image sets of a devkit, one file per set."""

from pathlib import Path

from crosschannel.console import stderr_console
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.training.device import find_device
from crosschannel.training.ranks import World
from transfer.boxes import from_voc
from transfer.config import ProposalsConfig
from transfer.pascal.config import parse_sets
from transfer.pascal.devkit import VOCImages, devkit_folder
from transfer.proposals.compute import compute_boxes
from transfer.proposals.files import check_pictures, recall
from transfer.proposals.selective_search import MODES, check_opencv


def main(config: ProposalsConfig) -> list[Path]:
    """Run `transfer proposals`: write ``YEAR-SET-METHOD.npz`` for each image set, and return the files.

    Existing proposals are not recomputed.

    Raises:
        UserError: OpenCV or a file of the devkit is missing, or an output exists that this command did not write.
        Interrupted: a signal stopped the command; the same command resumes it.
    """
    check_opencv()
    out, root, mode = Path(config.out), devkit_folder(config.data), MODES[config.method]
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    sets = {f"{year}-{name}": VOCImages(root, [(year, name)]) for year, name in parse_sets(config.sets)}
    outputs = Outputs("transfer proposals", [root], config.overwrite, makes_folders=True)
    console, world = stderr_console(), World(0, 1, find_device("cpu"))
    files = []
    with FolderLock(out), InterruptFlag(last=True) as flag:
        for name, images in sets.items():
            path = out / f"{name}-{config.method}.npz"
            outputs.check(path)
            if path.is_file():
                check_pictures(path, images)
        for name, images in sets.items():
            path = out / f"{name}-{config.method}.npz"
            boxes = compute_boxes(
                images, mode, path, world, config.workers, lambda: flag.is_set, console, outputs.write
            )
            indices = [index for index, image in enumerate(images.names) if image in boxes]
            truths = [from_voc(images.fields(index)["objects"].boxes) for index in indices]
            object_recall = recall(truths, [boxes[images.names[index]] for index in indices])
            mean_count = sum(map(len, boxes.values())) / max(1, len(boxes))
            console.print(
                f"{path}: {len(boxes)} images, {mean_count:.0f} boxes per image, "
                f"recall {100 * object_recall:.1f} % at IoU .5",
            )
            files.append(path)
    return files
