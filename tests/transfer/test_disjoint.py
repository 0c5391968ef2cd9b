"""No image is both learned and scored, in any protocol and from any source of images."""

import io
from pathlib import Path

import numpy as np
import pytest
from devkits import make_devkit
from PIL import Image

import transfer
from crosschannel import UserError
from crosschannel.data.folder import FolderImages
from crosschannel.data.images import AnnotatedImages, MemoryImages, Subset
from transfer.cli import main
from transfer.disjoint import check_disjoint, shared_images, voc_name
from transfer.protocol import Split
from transfer.protocols import PROTOCOLS

BACKBONE = "random:alexnet,fc=0,size=64,resize=72,seed=1"
VOC = ["classify", "svm", "detect", "segment", "dense"]
FOLDERS = ["linear-probe", "knn", "few-shot"]


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos) -> Path:
    root = make_devkit(tmp_path_factory.mktemp("voc"), photos, masks=True)
    sets = root / "VOC2007" / "ImageSets"
    for kind in ("Main", "Segmentation"):
        names = (sets / kind / "trainval.txt").read_text().split()
        tested = (sets / kind / "test.txt").read_text().split()
        (sets / kind / "val.txt").write_text("\n".join(names[20:]))
        (sets / kind / "mixed.txt").write_text("\n".join([*tested, names[7]]))
    return root


def test_these_tests_cover_all_protocols():
    assert set(PROTOCOLS) == {*VOC, *FOLDERS}


@pytest.mark.parametrize("protocol", VOC)
@pytest.mark.parametrize(("tested", "words"), [("val", "20 of the 20"), ("mixed", "1 of the 21")])
def test_image_sets_that_share_images_are_refused(voc, tmp_path, capsys, monkeypatch, protocol, tested, words):
    monkeypatch.setattr("transfer.protocol.load_backbone", None)
    flags = ["--train-set=2007:trainval", f"--test-set=2007:{tested}", f"--backbone={BACKBONE}", f"--data={voc}"]
    assert main([protocol, *flags, f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{words} test images" in error and "are training images, such as VOC2007/0000" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", FOLDERS)
def test_folders_that_share_images_are_refused(photo_folder, tmp_path, capsys, monkeypatch, protocol):
    monkeypatch.setattr("transfer.protocol.load_backbone", None)
    (tmp_path / "train").symlink_to(photo_folder / "train")
    (tmp_path / "val").symlink_to(photo_folder / "train")
    assert main([protocol, f"--backbone={BACKBONE}", f"--data={tmp_path}", f"--out={tmp_path / 'run'}"]) == 2
    count = len(FolderImages(photo_folder / "train"))
    assert f"{count} of the {count} test images" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", FOLDERS)
def test_image_sets_from_python_that_share_images_are_refused(photo_folder, monkeypatch, protocol):
    monkeypatch.setattr("transfer.protocol.load_backbone", None)
    images = FolderImages(photo_folder / "train")
    function = getattr(transfer, protocol.replace("-", "_"))
    with pytest.raises(UserError, match=r"are training images.*allow_overlap=True"):
        function(BACKBONE, (images, images))


def test_overlap_can_be_allowed(photo_folder):
    images = FolderImages(photo_folder / "train")
    split = Split(images, images, images.classes, "training images", allow_overlap=True)
    result = transfer.knn(BACKBONE, split, layers="conv5", k=[1], workers=0)
    assert result.metrics["conv5/knn1"] == 1  # each image is its own neighbour


def memory(names: list[str], seeds: list[int]) -> MemoryImages:
    blobs = []
    for seed in seeds:
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        blobs.append(file.getvalue())
    return MemoryImages(names, [0] * len(names), blobs)


class Wrapped(AnnotatedImages):
    pass


PAIRS = {
    "the same names of other images": (memory(["a", "b"], [0, 1]), memory(["a", "b"], [2, 3]), []),
    "the same images": (memory(["a", "b"], [0, 1]), memory(["b", "a"], [1, 0]), ["b", "a"]),
    "copies under other names": (memory(["a", "b"], [0, 1]), memory(["c"], [0]), []),
    "one of many": (memory([*"abcdefg"], [*range(7)]), memory(["f", "x", "y"], [5, 8, 9]), ["f"]),
    "the same file from another folder": (memory(["train/dog/1.jpg"], [0]), memory(["dog/1.jpg"], [0]), ["dog/1.jpg"]),
    "the same name in another class": (memory(["cat/1.jpg", "dog/1.jpg"], [0, 1]), memory(["cow/1.jpg"], [2]), []),
    "a copy in another class": (memory(["cat/1.jpg", "dog/1.jpg"], [0, 1]), memory(["a/1.jpg"], [1]), ["a/1.jpg"]),
    "parts of one set": (
        Subset(memory([*"abcd"], [*range(4)]), np.array([0, 1, 2])),
        Subset(memory([*"abcd"], [*range(4)]), np.array([2, 3])),
        ["c"],
    ),
    "wrapped": (Wrapped(memory(["a"], [0])), Subset(Wrapped(memory(["a"], [0])), np.array([0])), ["a"]),
    "two years of VOC": (memory(["VOC2012/2007_000032"], [0]), memory(["VOC2007/000032"], [1]), ["VOC2007/000032"]),
    "SBD and VOC": (memory(["SBD/2008_000002"], [0]), memory(["VOC2011/2008_000002"], [1]), ["VOC2011/2008_000002"]),
    "numbers of two years": (memory(["VOC2007/000032"], [0]), memory(["VOC2012/000032"], [1]), []),
    "a folder named like an image set of VOC": (memory(["VOC2007/000032"], [0]), memory(["2007_000032"], [1]), []),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_images_are_the_same_by_name_and_content(case):
    train, test, expected = PAIRS[case]
    assert shared_images(train, test) == expected
    if expected:
        with pytest.raises(UserError, match=f"{len(expected)} of the {len(test)} test images"):
            check_disjoint(Split(train, test, ("a",), "images from memory"))


def test_splits_of_one_set_share_exactly_their_intersection():
    images = memory([f"{i}.png" for i in range(40)], [*range(40)])
    generator = np.random.default_rng(0)
    for _ in range(20):
        train, test = (generator.choice(40, 12, replace=False) for _ in range(2))
        expected = [f"{i}.png" for i in test if i in set(train.tolist())]
        assert shared_images(Subset(images, train), Subset(images, test)) == expected


def test_unreadable_images_are_not_shared(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.jpg").symlink_to(tmp_path / "nowhere")
    assert shared_images(FolderImages(tmp_path / "train"), FolderImages(tmp_path / "val")) == []


def test_few_images_are_compared_over_a_network():
    """Names repeat in every shard, and each read waits for the network."""

    class Remote(MemoryImages):
        remote, reads = True, 0

        def read(self, index: int) -> bytes:
            Remote.reads += 1
            return b"%d %d" % (id(self), index)

    names = [f"{i:05d}.jpg" for i in range(5000)]
    assert shared_images(*(Remote(names, [0] * 5000, [b""] * 5000) for _ in range(2))) == []
    assert 60 < Remote.reads < 200


def test_names_of_voc_are_shared_between_years():
    assert voc_name("VOC2007/000032") == voc_name("VOC2012/2007_000032") == voc_name("SBD/2007_000032") == "2007_000032"
    assert voc_name("train/dog/1.jpg") is None and voc_name("VOC2012/a/b") is None
