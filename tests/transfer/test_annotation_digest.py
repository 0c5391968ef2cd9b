"""A run records its annotations, and is not resumed with others."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from devkits import make_devkit, save_mask

from crosschannel import UserError
from crosschannel.data.images import MemoryImages
from crosschannel.runs.folder import RunFolder
from transfer.annotation_digest import annotation_digest
from transfer.cli import main
from transfer.pascal.annotations import Objects
from transfer.pascal.devkit import VOCImages
from transfer.pascal.masks import MaskedImages
from transfer.proposals.files import WithProposals

OBJECTS = Objects(np.array([[1.0, 1, 20, 30]]), np.array([4]), np.array([False]))
MASK = np.zeros((4, 5), np.uint8)
CHANGES = {
    "a box": (OBJECTS, replace(OBJECTS, boxes=OBJECTS.boxes + 1)),
    "a class": (OBJECTS, replace(OBJECTS, classes=np.array([5]))),
    "a flag": (OBJECTS, replace(OBJECTS, difficult=np.array([True]))),
    "a label": (np.int64(3), np.int64(4)),
    "a plain number": (3, 4),
    "a pixel": (MASK, np.eye(4, 5, dtype=np.uint8)),
    "a shape": (MASK, MASK.T),
    "a tensor": (torch.tensor(MASK), torch.ones(4, 5)),
    "a proposal": ((OBJECTS, np.array([[0.0, 0, 9, 9]])), (OBJECTS, np.array([[0.0, 0, 9, 8]]))),
    "a list": ([[0, 1]], [[1, 1]]),
}


class One(MemoryImages):
    def __init__(self, annotation: object):
        super().__init__(["one"], [0], [b""])
        self.value = annotation

    def fields(self, index: int) -> dict[str, object]:
        return {"value": self.value}


@pytest.mark.parametrize("case", CHANGES)
def test_any_change_of_an_annotation_changes_the_digest(case):
    before, after = CHANGES[case]
    assert annotation_digest(One(before)) == annotation_digest(One(before)) != annotation_digest(One(after))


def test_a_change_of_labels_changes_the_digest():
    digests = {annotation_digest(MemoryImages(["a", "b"], labels, [b""] * 2)) for labels in ([0, 1], [1, 1], [1, 0])}
    assert len(digests) == 3


def test_annotations_of_unknown_types_are_left_out():
    assert annotation_digest(One(object())) == annotation_digest(One(object()))


@pytest.fixture
def voc(tmp_path, photos) -> Path:
    return make_devkit(tmp_path, photos, 6, 4, masks=True)


def test_the_digest_of_a_devkit_depends_on_content_not_on_time_or_place(voc, tmp_path):
    def digest(root: Path) -> str:
        return annotation_digest(VOCImages(root, [("2007", "trainval")]))

    before, path = digest(voc), voc / "VOC2007" / "Annotations" / "000002.xml"
    path.write_text(path.read_text().replace("><", ">\n  <"))  # the same objects
    os.utime(path, (1, 1))
    voc.rename(tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == before
    path = tmp_path / "elsewhere" / "VOC2007" / "Annotations" / "000002.xml"
    path.write_text(path.read_text().replace("<ymax>50", "<ymax>49"))
    assert digest(tmp_path / "elsewhere") != before


def test_a_change_of_a_mask_file_or_of_proposals_changes_the_digest(voc):
    folder = voc / "VOC2007"
    places = [("a", folder / "JPEGImages" / "000001.jpg", folder / "SegmentationClass" / "000001.png")]
    before = annotation_digest(MaskedImages(places))
    save_mask(places[0][2], np.zeros((70, 70), np.uint8))
    assert annotation_digest(MaskedImages(places)) != before
    images = VOCImages(voc, [("2007", "test")])
    digests = [
        annotation_digest(WithProposals(images, dict.fromkeys(images.names, np.array([[0, 0, 20, side]])), "a test"))
        for side in (20, 21)
    ]
    assert digests[0] != digests[1] != annotation_digest(images)


SETS = (MemoryImages(["a"], [0], [b""]), MemoryImages(["b"], [0], [b""]))
NAMES = {part: images.names.fingerprint() for part, images in zip(("train", "val"), SETS, strict=True)}


def stopped(path: Path, text: str) -> RunFolder:
    """Make a stopped run with the given ``images.json``."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("# crosschannel run: svm (crosschannel 0)\nseed: 0\n")
    (path / "images.json").write_text(text)
    return RunFolder(path, "svm", hold=False)


def test_other_annotations_are_refused_when_a_run_is_resumed(tmp_path):
    stored = json.dumps(NAMES | {"train_annotations": "1", "val_annotations": "2"})
    run = stopped(tmp_path / "run", stored)
    run.check_images(NAMES, {"train": "1", "val": "2"})
    run.check_images(NAMES)  # as a command without annotations does
    for digests, part in (({"train": "0", "val": "2"}, "training"), ({"train": "1", "val": "0"}, "test")):
        with pytest.raises(
            UserError, match=f"the annotations of the {part} images have changed since .*run was started"
        ):
            run.check_images(NAMES, digests)


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    run = stopped(tmp_path / "run", json.dumps(NAMES))
    run.check_images(NAMES, {"train": "1", "val": "2"})
    with pytest.raises(UserError, match="other images"):
        run.check_images({"train": NAMES["val"], "val": NAMES["train"]}, {"train": "1", "val": "2"})


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"train": [1]}'])
def test_an_invalid_list_of_images_counts_as_other_images(tmp_path, text):
    with pytest.raises(UserError, match="other images"):
        stopped(tmp_path / "run", text).check_images(NAMES, {"train": "1"})


def test_a_stopped_run_refuses_changed_annotations_and_resumes_with_the_old_ones(tmp_path, photos, capsys):
    data, out = make_devkit(tmp_path, photos), tmp_path / "run"
    backbone = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
    words = ["svm", "--config=voc-mini", backbone, f"--data={data}", "--layer=conv1,conv5", "--costs=[1]",
             "--folds=2", "--low-shot=[]", "--workers=0", "--jobs=1", f"--out={out}"]  # fmt: skip
    assert main(words) == 0
    expected = json.loads((out / "result.json").read_text())["metrics"]

    def stop() -> None:
        """Put the run into the state after one of two layers."""
        (out / "result.json").unlink(missing_ok=True)
        (out / "checkpoints" / "layer-0").mkdir(parents=True, exist_ok=True)

    for part, name in (("training", "000003"), ("test", "000043")):
        stop()
        path = data / "VOC2007" / "Annotations" / f"{name}.xml"
        before = path.read_text()
        path.write_text(before.replace("<difficult>0", "<difficult>1", 1))
        capsys.readouterr()
        assert main(words) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"the annotations of the {part} images have changed since {out} was started; restore them, or" in error
        path.write_text(before)
    stored = json.loads((out / "images.json").read_text())
    assert set(stored) == {"train", "val", "train_annotations", "val_annotations"}
    (out / "images.json").write_text(json.dumps({key: stored[key] for key in ("train", "val")}))  # an older file
    assert main(words) == 0
    assert json.loads((out / "result.json").read_text())["metrics"] == expected
    assert json.loads((out / "images.json").read_text()) == stored
