"""Reading a VOC devkit, and what is said where it is not whole."""

import functools
import hashlib
import http.server
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosschannel import UserError
from transfer.pascal.annotations import IGNORED, POSITIVE
from transfer.pascal.config import PascalConfig
from transfer.pascal.devkit import CLASSES, VOCImages, open_devkit

sys.path.insert(0, str(Path(__file__).parents[1]))
from devkits import annotation, make_devkit


@pytest.fixture
def small(tmp_path, photos):
    return make_devkit(tmp_path, photos)


def config(**keys) -> PascalConfig:
    return PascalConfig("backbone", "data", **keys)


def read_class_set(folder: Path, name: str, label: str) -> dict[str, int]:
    """The per-class file of an image set: POSITIVE, NEGATIVE or IGNORED by image."""
    rows = (folder / "ImageSets" / "Main" / f"{label}_{name}.txt").read_text().split()
    meanings = {"1": POSITIVE, "-1": 0, "0": IGNORED}
    return {image: meanings[value] for image, value in zip(rows[::2], rows[1::2], strict=True)}


def test_labels_are_those_of_the_class_files(small):
    images = VOCImages(small, [("2007", "trainval"), ("2007", "test")])
    assert len(images) == 60 and images.names[0] == "VOC2007/000000" and images.labels.shape == (60, 20)
    for number, label in enumerate(CLASSES):
        listed = read_class_set(small / "VOC2007", "trainval", label) | read_class_set(small / "VOC2007", "test", label)
        assert images.labels[:, number].tolist() == [listed[name.partition("/")[2]] for name in images.names]


def test_a_class_with_difficult_objects_alone_is_ignored(small):
    (small / "VOC2007" / "Annotations" / "000000.xml").write_text(
        annotation([("dog", True), ("cat", True), ("cat", False)])
    )
    labels = VOCImages(small, [("2007", "trainval")]).labels[0]
    assert labels[CLASSES.index("dog")] == IGNORED and labels[CLASSES.index("cat")] == POSITIVE
    assert (np.delete(labels, [CLASSES.index("dog"), CLASSES.index("cat")]) == 0).all()


def test_years_and_sets_are_joined_and_any_folder_above_will_do(small, photos, tmp_path):
    make_devkit(tmp_path / "other", photos, 6, 4, "2012")
    shutil.move(tmp_path / "other" / "VOCdevkit" / "VOC2012", small / "VOC2012")
    for root in (small, small.parent):
        split = open_devkit(str(root), config(train_set="2007:trainval,2012:trainval"))
        assert len(split.train) == 46 and len(split.test) == 20
        assert split.train.names[45] == "VOC2012/000005"


@pytest.mark.parametrize("sets", ["2007:trainval", "2007:trainval,2012:trainval"])
def test_the_folder_of_a_year_is_accepted(small, photos, tmp_path, sets, monkeypatch):
    make_devkit(tmp_path / "other", photos, 6, 4, "2012", masks=True)
    shutil.move(tmp_path / "other" / "VOCdevkit" / "VOC2012", small / "VOC2012")
    expected = open_devkit(str(small), config(train_set=sets)).train.names.fingerprint()
    (tmp_path / "link").symlink_to(small / "VOC2007")
    monkeypatch.chdir(small / "VOC2007")
    for data in (small / "VOC2007", small / "VOC2012", tmp_path / "link", ".", f"{small}/VOC2007/"):
        assert open_devkit(str(data), config(train_set=sets)).train.names.fingerprint() == expected


def test_the_folder_of_a_year_stands_for_its_devkit_even_if_data_are_staged(small, tmp_path, monkeypatch):
    copy = tmp_path / "crosschannel-0-abc"
    shutil.copytree(small / "VOC2007", copy)
    monkeypatch.setenv("CROSSCHANNEL_STAGED_DATA", f"{small / 'VOC2007'}\n{copy}")
    assert len(open_devkit(str(small / "VOC2007"), config()).train) == 40


def test_the_folder_of_a_year_under_another_name_is_refused(small):
    (small / "VOC2007").rename(small / "mine")
    with pytest.raises(UserError, match="it is the folder of one year, and must be named VOC2007"):
        open_devkit(str(small / "mine"), config())


ENCODINGS = {
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "both": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "no final line end": lambda text: text.rstrip("\n").encode(),
    "a second column": lambda text: text.replace("\n", "  1\n").encode(),
}  # fmt: skip


@pytest.mark.parametrize("case", ENCODINGS)
def test_image_sets_from_any_editor_are_read(small, case):
    path = small / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    expected = open_devkit(str(small), config()).train.names.fingerprint()
    path.write_bytes(ENCODINGS[case](path.read_text()))
    assert open_devkit(str(small), config()).train.names.fingerprint() == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_image_sets_that_are_not_utf_8_are_refused(small, encoding):
    path = small / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(UserError, match=r"trainval\.txt is damaged: not UTF-8 text"):
        open_devkit(str(small), config())


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".Jpeg", ".png", ".PNG", ".webp", ".tif"])
def test_images_may_have_other_extensions(small, ending):
    from transfer.pascal.masks import MaskedImages

    folder = small / "VOC2007" / "JPEGImages"
    for path in folder.glob("*[05].jpg"):
        Image.open(path).save(path.with_suffix(ending))
        path.unlink()
    images = VOCImages(small, [("2007", "trainval")])
    assert images.image_path(5).name == f"000005{ending}" and images.image_path(6).name == "000006.jpg"
    assert images.names[5] == "VOC2007/000005" and images.read(5)
    assert MaskedImages([("a", images.image_path(5), images.image_path(6))]).read(0) == images.read(5)


def test_a_jpg_is_preferred_to_other_images_of_the_same_name(small):
    folder = small / "VOC2007" / "JPEGImages"
    Image.new("RGB", (3, 3)).save(folder / "000005.png")
    assert VOCImages(small, [("2007", "trainval")]).image_path(5).name == "000005.jpg"


def test_boxes_are_those_of_the_files(small):
    images = VOCImages(small, [("2007", "test")])
    objects = images.fields(0)["objects"]
    assert objects.boxes[0].tolist() == [4, 5, 40, 50] and objects.difficult.sum() == 1


DAMAGE = {
    "an image is gone": (lambda f: (f / "JPEGImages/000003.jpg").unlink(), r"lacks .*000003\.jpg"),
    "images are gone": (lambda f: shutil.rmtree(f / "JPEGImages"), r"lacks .* and 39 more images"),
    "an annotation is gone": (lambda f: (f / "Annotations/000003.xml").unlink(), r"lacks the annotation .*000003"),
    "no XML": (lambda f: (f / "Annotations/000003.xml").write_text("{}"), r"000003\.xml is damaged"),
    "a box without an edge": (
        lambda f: (f / "Annotations/000003.xml").write_text(annotation([("dog", False)]).replace("xmax", "x")),
        r"000003\.xml is damaged",
    ),
    "a class of others": (
        lambda f: (f / "Annotations/000003.xml").write_text(annotation([("zebra", False)])),
        r"class 'zebra', which is not one of PASCAL's 20",
    ),
    "an empty set": (lambda f: (f / "ImageSets/Main/trainval.txt").write_text("\n"), r"trainval\.txt is empty"),
    "no such set": (lambda f: (f / "ImageSets/Main/trainval.txt").unlink(), r"unknown image set .*; available: test"),
    "no such year": (lambda f: f.rename(f.with_name("VOC2012")), r"has no VOC2007/ImageSets: it has VOC2012"),
    "no devkit": (lambda f: shutil.rmtree(f), r"it is not a VOC devkit; --download true"),
    "an image twice": (
        lambda f: (f / "ImageSets/Main/trainval.txt").write_text("000003\n000003\n"),
        r"list an image twice: VOC2007/000003",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_missing_or_damaged_is_one_sentence(small, name):
    damage, words = DAMAGE[name]
    damage(small / "VOC2007")
    with pytest.raises(UserError, match=words):
        open_devkit(str(small), config())


def test_what_is_not_there_is_fetched_once_and_checked(small, tmp_path, monkeypatch):
    """From an archive with the names and checksums that torchvision keeps: here a small one behind a local server."""
    from torchvision.datasets import voc

    archive = tmp_path / "VOCtrainval.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(small / "VOC2007", "VOCdevkit/VOC2007")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = {
        "url": f"http://127.0.0.1:{server.server_address[1]}/{archive.name}",
        "filename": archive.name,
        "base_dir": "VOCdevkit/VOC2007",
        "md5": hashlib.md5(archive.read_bytes()).hexdigest(),
    }
    monkeypatch.setitem(voc.DATASET_YEAR_DICT, "2007", entry)
    monkeypatch.setitem(voc.DATASET_YEAR_DICT, "2007-test", entry)
    place = tmp_path / "new" / "VOCdevkit"
    split = open_devkit(str(place), config(download=True))
    assert len(split.train) == 40 and (place / "VOC2007").is_dir()
    archive.unlink()
    assert len(open_devkit(str(place), config(download=True)).test) == 20  # nothing is fetched again
    with pytest.raises(UserError, match="there is no archive of VOC1999"):
        open_devkit(str(place), config(download=True, test_set="1999:test"))
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(UserError, match="could not download VOC2007 from"):
        open_devkit(str(place), config(download=True))
    server.shutdown()


def test_real_images_agree_with_their_class_files(real_data):
    root = real_data / "voc-mini" / "VOCdevkit"
    split = open_devkit(str(root), config())
    assert (len(split.train), len(split.test)) == (160, 128)
    for part, images in (("trainval", split.train), ("test", split.test)):
        for number, label in enumerate(CLASSES):
            listed = read_class_set(root / "VOC2007", part, label)
            assert [listed[name.partition("/")[2]] for name in images.names] == images.labels[:, number].tolist()
            assert (images.labels[:, number] == POSITIVE).any()
