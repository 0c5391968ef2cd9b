"""Proposals and their pictures: a box outside its picture is refused, with file, picture and number."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from devkits import make_devkit
from PIL import Image
from scipy.io import savemat

from crosschannel import UserError
from crosschannel.data.images import Subset
from transfer.cli import main
from transfer.pascal.devkit import VOCImages
from transfer.proposals.files import WithProposals, load_boxes, load_digests, save_boxes

WIDTH, HEIGHT = 100, 60
GOOD = [[0, 0, 100, 60], [10, 20, 50, 40], [99, 59, 100, 60]]


@pytest.fixture
def images(tmp_path, photos) -> Subset:
    """Three pictures of 100 × 60 pixels."""
    root = make_devkit(tmp_path, photos, 3, 2)
    for path in (root / "VOC2007" / "JPEGImages").glob("*.jpg"):
        Image.fromarray(photos[0][:HEIGHT, :WIDTH]).save(path)
    return VOCImages(root, [("2007", "trainval")])


def npz(path: Path, boxes: dict[str, np.ndarray]) -> Path:
    """Write a file as another program might, floats included."""
    save_boxes(path, {}, {})
    arrays = dict(np.load(path))
    arrays |= {
        "names": np.array(list(boxes)),
        "counts": np.array([len(one) for one in boxes.values()]),
        "boxes": np.concatenate([np.asarray(one, np.float64).reshape(-1, 4) for one in boxes.values()]),
        "digests": np.array([""] * len(boxes)),
    }
    np.savez(path, **arrays)
    return path


def mat(path: Path, boxes: dict[str, np.ndarray]) -> Path:
    """Write a file like the published selective search: y₁ x₁ y₂ x₂ from 1, both ends inside."""
    cells, names = np.empty((1, len(boxes)), object), np.empty((len(boxes), 1), object)
    for number, (name, one) in enumerate(boxes.items()):
        rows = np.asarray(one).reshape(-1, 4)
        cells[0, number] = rows[:, [1, 0, 3, 2]] + np.array([1, 1, 0, 0])
        names[number, 0] = name.partition("/")[2]
    savemat(path, {"boxes": cells, "images": names})
    return path


WRITERS = {"proposals.npz": npz, "proposals.mat": mat}
BAD = {
    "nan": ([np.nan, 1, 20, 20], "is not finite"),
    "infinite": ([1, 1, np.inf, 20], "is not finite"),
    "swapped": ([50, 40, 10, 20], "has no area"),
    "swapped in y": ([10, 40, 50, 20], "has no area"),
    "empty": ([10, 20, 10, 40], "has no area"),
    "x and y exchanged": ([20, 10, 40, 90], r"\(x₁ y₁ x₂ y₂ 20 10 40 90\) does not lie in the image"),
    "beyond the right edge": ([60, 10, 102, 50], "does not lie in the image, which is 100 × 60"),
    "left of the picture": ([-30, 10, -5, 50], "does not lie in the image"),
    "reaching in from the left": ([-3, 10, 50, 50], "does not lie in the image"),
    "of a picture three times as large": ([120, 90, 240, 170], "does not lie in the image"),
    "corner, width and height": ([80, 40, 15, 15], "has no area"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("case", BAD)
def test_a_proposal_outside_its_picture_is_refused(images, tmp_path, name, case):
    box, words = BAD[case]
    boxes = {image: np.array(GOOD, float) for image in images.names}
    boxes[images.names[2]] = np.array([*GOOD, box], float)
    path = WRITERS[name](tmp_path / name, boxes)
    with pytest.raises(UserError, match=rf"{name}: proposal 4 for VOC2007/000002 .*{words}"):
        WithProposals(images, load_boxes(path), str(path))


@pytest.mark.parametrize("name", WRITERS)
def test_shares_of_the_sides_are_refused(images, tmp_path, name):
    shares = np.array([[0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], [0.5, 0.5, 0.6, 0.7]])
    path = WRITERS[name](tmp_path / name, dict.fromkeys(images.names, shares))
    with pytest.raises(UserError, match="coordinates must be in pixels, not fractions of its sides"):
        WithProposals(images, load_boxes(path), str(path))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("boxes", [GOOD, [[0, 0, 1, 1], [-1, -1, 101, 61]], [[0.5, 1.25, 99.75, 60]], []])
def test_proposals_in_the_picture_are_unchanged(images, tmp_path, name, boxes):
    expected = np.array(boxes, np.float32).reshape(-1, 4)
    path = WRITERS[name](tmp_path / name, dict.fromkeys(images.names, expected.astype(float)))
    found = WithProposals(images, load_boxes(path), str(path))
    assert all(np.array_equal(found.fields(index)["proposals"], expected) for index in range(3))


CELLS = {
    "complex": np.array([[1, 1, 20, 20]]) + 0j,
    "four rows": np.arange(20.0).reshape(4, 5),
    "five columns": np.ones((4, 5)),
    "words": np.array(["1 1 20 20"]),
}


@pytest.mark.parametrize("case", CELLS)
def test_cells_without_boxes_are_refused_by_name(tmp_path, case):
    cells, names = np.empty((1, 2), object), np.empty((2, 1), object)
    cells[0, 0], cells[0, 1] = np.array([[1.0, 1, 20, 20]]), CELLS[case]
    names[0, 0], names[1, 0] = "000001", "000002"
    savemat(tmp_path / "a.mat", {"boxes": cells, "images": names})
    with pytest.raises(UserError, match=r"a\.mat: the proposals for 000002 must be \(P, 4\) real numbers"):
        load_boxes(tmp_path / "a.mat")


def test_arrays_without_boxes_are_reported_as_damaged(images, tmp_path):
    path = npz(tmp_path / "a.npz", dict.fromkeys(images.names, np.array(GOOD)))
    arrays = dict(np.load(path))
    for odd in (
        {"boxes": arrays["boxes"] + 0j},
        {"boxes": arrays["boxes"].astype(str)},
        {"boxes": arrays["boxes"].T},
        {"names": arrays["names"][:, None], "counts": arrays["counts"][:, None]},
        {"counts": arrays["counts"].astype(float)},
    ):
        np.savez(tmp_path / "odd.npz", **(arrays | odd))
        with pytest.raises(UserError, match=r"odd\.npz is damaged"):
            load_boxes(tmp_path / "odd.npz")


def test_an_image_that_is_listed_twice_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", {"VOC2007/000001": np.array(GOOD), "VOC2007/000002": np.array(GOOD)})
    np.savez(path, **(dict(np.load(path)) | {"names": np.array(["VOC2007/000001"] * 2)}))
    with pytest.raises(UserError, match=r"a\.npz lists VOC2007/000001 twice"):
        load_boxes(path)


# --- `transfer proposals`


@pytest.fixture(scope="module")
def two_devkits(tmp_path_factory, photos) -> tuple[Path, Path]:
    """Two devkits whose pictures differ but have the same names and sizes."""
    first = make_devkit(tmp_path_factory.mktemp("first"), photos, 4, 2)
    second = tmp_path_factory.mktemp("second") / "VOCdevkit"
    shutil.copytree(first, second)
    for path in (second / "VOC2007" / "JPEGImages").glob("*.jpg"):
        Image.fromarray(np.array(Image.open(path))[::-1]).save(path)
    return first, second


def proposals(devkit: Path, out: Path, *flags: str) -> int:
    words = ["proposals", f"--data={devkit}", f"--out={out}", "--workers=0", "--sets=2007:trainval", *flags]
    return main(words)


def test_a_file_for_other_pictures_of_the_same_names_is_refused_and_unchanged(two_devkits, tmp_path, capsys):
    first, second = two_devkits
    path = tmp_path / "2007-trainval-selective-search.npz"
    assert proposals(first, tmp_path) == 0 and len(load_digests(path)) == 4
    before = path.read_bytes()
    for flags in ([], ["--overwrite"]):
        assert proposals(second, tmp_path, *flags) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{path} has proposals for another image named VOC2007/000000; delete it or choose" in error
    shutil.copytree(first, tmp_path / "copy")  # the same pictures at another place and time
    assert proposals(tmp_path / "copy", tmp_path) == 0 and path.read_bytes() == before


def test_a_file_of_an_earlier_version_is_refused_if_its_boxes_do_not_fit(two_devkits, tmp_path, capsys):
    first, _ = two_devkits
    path = tmp_path / "2007-trainval-selective-search.npz"
    assert proposals(first, tmp_path) == 0
    boxes = load_boxes(path)
    save_boxes(path, boxes, {"method": "selective-search-fast"})
    assert proposals(first, tmp_path, "--overwrite") == 0
    save_boxes(path, {name: array * 3 for name, array in boxes.items()}, {"method": "selective-search-fast"})
    assert proposals(first, tmp_path, "--overwrite") == 2
    assert "does not lie in the image" in capsys.readouterr().err


def test_partial_results_for_other_pictures_are_not_used(two_devkits, tmp_path):
    first, second = two_devkits
    expected, out = tmp_path / "expected", tmp_path / "out"
    assert proposals(second, expected) == 0
    images = VOCImages(first, [("2007", "trainval")])
    digests = {name: "0123456789abcdef" for name in images.names}
    parts = out / ".2007-trainval-selective-search.npz.parts"
    for number, stored in enumerate((digests, {})):
        parts.mkdir(parents=True, exist_ok=True)
        left = dict.fromkeys(images.names, np.array([[0, 0, 9, 9]]))
        save_boxes(parts / f"{number}.npz", left, {}, digests=stored)
    assert proposals(second, out) == 0
    found, wanted = (load_boxes(one / "2007-trainval-selective-search.npz") for one in (out, expected))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_set_of_only_broken_pictures_is_refused(two_devkits, tmp_path, capsys):
    shutil.copytree(two_devkits[0], tmp_path / "VOCdevkit")
    for path in (tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg"):
        path.write_bytes(b"no picture")
    assert proposals(tmp_path / "VOCdevkit", tmp_path / "out") == 2
    assert "images is readable" in capsys.readouterr().err and not (tmp_path / "out").exists()
