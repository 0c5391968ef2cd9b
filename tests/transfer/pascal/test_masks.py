"""Images with masks: the devkit's and SBD's files, the sets that may stand together, and what is refused."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from devkits import make_devkit, make_sbd, mask_of, save_mask
from PIL import Image

from crosschannel import UserError
from crosschannel.data import Subset
from crosschannel.data.decode import EncodedImage
from crosschannel.data.images import AnnotatedImages
from transfer.cli import PROGRAM
from transfer.disjoint import check_disjoint
from transfer.pascal.masks import CLASSES, MaskedImages, MaskFile, open_masks, read_labels
from transfer.pascal.segmentation import (
    PALETTE,
    confusion_of,
    iou_metrics,
    palette_image,
    sparse_confusions,
    sum_confusions,
)
from transfer.targets import Masks


def config(**keys):
    parsed = PROGRAM.parse("segment", ["--data=x", "--backbone=x"])
    return replace(parsed, **keys)


@pytest.fixture
def voc(tmp_path, photos) -> Path:
    return make_devkit(tmp_path, photos, masks=True)


@pytest.fixture
def years(tmp_path, photos) -> Path:
    """VOC2012 with all images, VOC2011 with a list alone, and SBD beside them; 2012's images are called 000000 …"""
    root = make_devkit(tmp_path, photos, 30, 10, "2012", masks=True)
    listed = root / "VOC2011" / "ImageSets" / "Segmentation"
    listed.mkdir(parents=True)
    (listed / "val.txt").write_text("".join(f"{i:06d}\n" for i in range(5, 20)))
    make_sbd(tmp_path, photos, {"train": [f"{i:06d}" for i in range(12)], "val": [f"{i:06d}" for i in range(12, 15)]})
    return root


def test_masks_are_those_of_the_files(voc):
    split = open_masks(str(voc), config(train_set="2007:trainval", test_set="2007:test"))
    assert (len(split.train), len(split.test)) == (40, 20) and split.classes == CLASSES and len(CLASSES) == 21
    image = EncodedImage(split.test.read(3))
    labels = read_labels(split.test.fields(3)["mask"], image, 21)
    expected = np.array(Image.open(voc / "VOC2007" / "SegmentationClass" / "000043.png"))
    assert labels.shape == (image.height, image.width) and (labels == expected).all() and (labels[0] == 255).all()


def test_another_label_can_be_the_ignored_one(voc):
    split = open_masks(str(voc), config(train_set="2007:trainval", test_set="2007:test"))

    class Shifted(AnnotatedImages):
        """Label 0 is ignored, classes count from 1, as in ADE20K."""

        def fields(self, index):
            mask = super().fields(index)["mask"].read().astype(np.int64)
            return {"mask": np.where(mask == 255, 0, mask + 1)}

    names = ("nothing", *CLASSES)
    train, test = Shifted(split.train), Shifted(split.test)
    train.classes = test.classes = names
    shifted = replace(split, train=train, test=test, targets=Masks(names, ignore_index=0))
    opened = open_masks(shifted, config())
    assert opened.classes == names
    for index in range(3):
        image = EncodedImage(split.test.read(index))
        before, after = (read_labels(one.test.fields(index)["mask"], image, 22) for one in (split, opened))
        assert ((before == 255) == (after == 255)).all() and (after[after != 255] == before[before != 255] + 1).all()

    class Signed(AnnotatedImages):
        """int8 masks whose ignore label is -1."""

        def fields(self, index):
            return {"mask": np.array([[-1, 0], [1, 2]], np.int8)}

    signed = replace(split, train=Signed(split.train), test=Signed(split.test), targets=Masks(CLASSES, ignore_index=-1))
    assert open_masks(signed, config()).test.fields(0)["mask"].tolist() == [[255, 0], [1, 2]]
    with pytest.raises(UserError, match="contains the label 255, which cannot be a class; the ignored label is 0"):
        open_masks(replace(split, targets=Masks(CLASSES, ignore_index=0)), config()).test.fields(0)


def test_seg11valid_is_what_the_rule_says(years):
    split = open_masks(str(years), config())
    assert [Path(name).name for name in split.train.names] == [f"{i:06d}" for i in range(12)]
    assert split.train.names[0] == "SBD/000000"
    assert [Path(name).name for name in split.test.names] == [f"{i:06d}" for i in range(12, 20)]
    assert split.test.names[0] == "VOC2011/000012"  # 2012's files
    labels = read_labels(split.train.fields(0)["mask"], EncodedImage(split.train.read(0)), 21)
    assert labels.shape == (70, 90) and labels.max() <= 5 and labels.dtype == np.uint8
    elsewhere = years.parent / "elsewhere"
    shutil.move(years.parent / "benchmark_RELEASE", elsewhere)
    for place in (elsewhere, elsewhere / "dataset"):
        assert len(open_masks(str(years), config(sbd=str(place))).test) == 8
    with pytest.raises(
        UserError, match=r"found no SBD folder \(img, cls, train\.txt\) in or next to .*; set --sbd to it"
    ):
        open_masks(str(years), config())


def test_the_published_lists_give_736_images(tmp_path):
    """Where CROSSCHANNEL_SBD_LISTS names a folder with voc11_val.txt, sbd_train.txt and seg11valid.txt."""
    lists = os.environ.get("CROSSCHANNEL_SBD_LISTS")
    if not lists:
        pytest.skip("CROSSCHANNEL_SBD_LISTS names no folder of the published lists")
    from transfer.pascal.masks import _seg11valid

    segmentation = tmp_path / "VOC2011" / "ImageSets" / "Segmentation"
    segmentation.mkdir(parents=True)
    (tmp_path / "cls").mkdir()
    shutil.copy(Path(lists) / "voc11_val.txt", segmentation / "val.txt")
    shutil.copy(Path(lists) / "sbd_train.txt", tmp_path / "train.txt")
    found = _seg11valid([tmp_path], config(sbd=str(tmp_path)))
    assert len(found) == 736 and found == (Path(lists) / "seg11valid.txt").read_text().split()


def test_images_that_are_learned_are_not_scored(years):
    (years / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_text(
        "000005\n000006\n000007\n000008\n000009\n000010\n000011\n000030\n"
    )
    words = r"7 of the 8 test images .* are training images, such as VOC2012/000005: .* 2011:seg11valid is"
    with pytest.raises(UserError, match=words):
        check_disjoint(open_masks(str(years), config(test_set="2012:val")))
    check_disjoint(open_masks(str(years), config()))


def test_2007s_images_are_known_by_the_names_that_later_years_give_them(tmp_path, photos):
    root = make_devkit(tmp_path, photos, 12, 8, masks=True)
    make_devkit(tmp_path, photos, 12, 8, "2012", masks=True)
    later = root / "VOC2012"
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (later / folder / f"000003.{ending}").rename(later / folder / f"2007_000003.{ending}")
    (later / "ImageSets/Segmentation/train.txt").write_text("2007_000003\n")
    with pytest.raises(UserError, match=r"1 of the 12 test images .* such as VOC2007/000003"):
        check_disjoint(open_masks(str(root), config(train_set="2012:train", test_set="2007:trainval")))


def test_what_is_there_is_not_fetched(years, monkeypatch):
    def unreachable(*_arguments, **_options):
        raise AssertionError("something is fetched")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unreachable)
    assert len(open_masks(str(years), config(download=True)).test) == 8


def test_what_is_not_there_is_fetched(years, tmp_path, monkeypatch):
    asked = []

    def fetch(url, place, filename, md5):
        asked.append((filename, md5))
        shutil.move(tmp_path / "kept", years.parent / "benchmark_RELEASE")

    shutil.move(years.parent / "benchmark_RELEASE", tmp_path / "kept")
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    assert len(open_masks(str(years), config(download=True)).test) == 8
    assert asked == [("benchmark.tgz", "82b4d87ceb2ed10f6038a1cba92111cb")]


def test_masks_of_ones_own_classes(tmp_path, photos):
    Image.fromarray(photos[0][:20, :30]).save(tmp_path / "a.jpg")
    save_mask(tmp_path / "a.png", np.ones((20, 30), np.uint8))
    images = MaskedImages([("a", tmp_path / "a.jpg", tmp_path / "a.png")], ("ground", "sky"))
    split = open_masks((images, images), config())
    assert split.classes == ("ground", "sky")
    with pytest.raises(UserError, match="300 classes are too many"):
        read_labels(images.fields(0)["mask"], EncodedImage(images.read(0)), 300)


def test_what_is_missing_is_named_at_once(voc, years):
    masks = voc / "VOC2007" / "SegmentationClass"
    (masks / "000003.png").unlink()
    sets = {"train_set": "2007:trainval", "test_set": "2007:test"}
    with pytest.raises(UserError, match=r"the devkit lacks .*SegmentationClass/000003\.png listed in its image sets"):
        open_masks(str(voc), config(**sets))
    shutil.rmtree(masks)
    with pytest.raises(UserError, match=r"000000\.png and 39 more masks"):
        open_masks(str(voc), config(**sets))
    with pytest.raises(UserError, match="unknown image set 2012:seg11valid: seg11valid exists for 2011 only"):
        PROGRAM.parse("segment", ["--data=x", "--backbone=x", "--test-set=2012:seg11valid"])
    with pytest.raises(UserError, match=r"unknown image set .*nope\.txt; available: train, val"):
        open_masks(str(years), config(train_set="sbd:nope"))


def encoded(height: int, width: int) -> EncodedImage:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return EncodedImage(file.getvalue())


def test_masks_that_do_not_fit_are_one_sentence_that_names_the_file(tmp_path):
    path, image = tmp_path / "a.png", encoded(2, 3)
    with pytest.raises(UserError, match=r"lacks the mask .*a\.png"):
        read_labels(MaskFile(path), image, 21)
    save_mask(path, np.array([[0, 12, 255], [20, 255, 1]], np.uint8))
    assert read_labels(MaskFile(path), image, 21).tolist() == [[0, 12, 255], [20, 255, 1]]
    with pytest.raises(UserError, match=r"the mask .*a\.png is 3 × 2, but its image is 4 × 2"):
        read_labels(MaskFile(path), encoded(2, 4), 21)
    save_mask(path, np.full((2, 3), 21, np.uint8))
    with pytest.raises(UserError, match=r"the mask .*a\.png has the label 21; labels must be 0 to 20, or 255"):
        read_labels(MaskFile(path), image, 21)
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"the mask .*a\.png is damaged"):
        read_labels(MaskFile(path), image, 21)
    (tmp_path / "a.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"the mask .*a\.mat is damaged"):
        read_labels(MaskFile(tmp_path / "a.mat"), image, 21)
    for odd, words in ((3, r"must be \(H, W\) integers, got int64 of shape \(\)"), (np.ones((2, 3)), "got float64")):
        with pytest.raises(UserError, match=words):
            read_labels(odd, image, 21)
    with pytest.raises(UserError, match=r"the mask of an image has the label -1"):
        read_labels(np.full((2, 3), -1), image, 3)


def test_a_subset_keeps_its_masks(voc):
    images = open_masks(str(voc), config(train_set="2007:trainval", test_set="2007:test")).train
    part = Subset(images, np.array([7, 2]))
    assert part.fields(0) == images.fields(7) and part.names[1] == images.names[2]


def test_the_palette_is_pascals():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for label, colour in known.items():
        assert tuple(PALETTE[label]) == colour
    picture = palette_image(np.array([[0, 15], [255, 20]]))
    assert picture.mode == "P" and np.array(picture).tolist() == [[0, 15], [255, 20]]
    assert picture.convert("RGB").getpixel((1, 0)) == (192, 128, 128)


def test_mean_iu_is_torchmetrics_and_scikit_learns_on_random_masks_with_ignored_pixels():
    import torch
    from sklearn.metrics import confusion_matrix, jaccard_score

    torchmetrics = pytest.importorskip("torchmetrics")
    generator = np.random.default_rng(0)
    truth = generator.choice([0, 1, 2, 3, 255], (6, 20, 30), p=[0.4, 0.2, 0.1, 0.1, 0.2])
    predicted = np.where(
        generator.random(truth.shape) < 0.6, np.where(truth == 255, 1, truth), generator.integers(0, 5, truth.shape)
    )
    confusions = np.stack(
        [confusion_of(torch.tensor(p), torch.tensor(t), 5).numpy() for p, t in zip(predicted, truth, strict=True)]
    )
    for t, p, found in zip(truth, predicted, confusions, strict=True):
        counted = t != 255
        assert (confusion_matrix(t[counted], p[counted], labels=range(5)) == found).all()
    column = sparse_confusions(confusions)
    assert (sum_confusions(column, np.eye(6), 5) == confusions).all() and (column[np.array([4, 1])].counts > 0).all()
    figures = iou_metrics(column, np.ones((1, 6)), "abcde")
    counted = truth != 255
    expected = jaccard_score(truth[counted], predicted[counted], average=None, labels=range(5))
    assert [figures[f"iu/{name}"][0] for name in "abcde"] == pytest.approx(expected)
    index = torchmetrics.JaccardIndex("multiclass", num_classes=5, ignore_index=255)
    assert figures["mean_iu"][0] == pytest.approx(index(torch.tensor(predicted), torch.tensor(truth)).item(), abs=1e-6)
    weights = np.array([[2.0, 0, 1, 0, 0, 3]])  # a resample of whole images
    repeated = np.repeat(np.arange(6), weights[0].astype(int))
    again = iou_metrics(column[repeated], np.ones((1, 6)), "abcde")
    assert iou_metrics(column, weights, "abcde")["mean_iu"] == pytest.approx(again["mean_iu"])


def test_labels_follow_from_colours():
    assert set(np.unique(mask_of(np.zeros((9, 9, 3), np.uint8)))) == {0, 255}
