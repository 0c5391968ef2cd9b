import io
import re
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from crosschannel import UserError
from crosschannel.data import CentreCrop, CropConfig, Stream, open_images, open_training_images
from crosschannel.data.shards import expand, format_index, scan
from crosschannel.data.write_shards import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory, photo_folder):
    out = tmp_path_factory.mktemp("shards")
    for split, images in zip(("train", "val"), open_images(str(photo_folder)), strict=True):
        write_shards(images, out, split, shard_bytes=40_000)
    (out / "classes.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    return out


def test_shards_hold_the_same_bytes_and_labels(shards, photo_folder):
    folder, tars = open_images(str(photo_folder)), open_images(str(shards))
    for plain, packed in zip(folder, tars, strict=True):
        expected = sorted((plain.read(i), int(plain.labels[i])) for i in range(len(plain)))
        assert sorted((packed.read(i), int(packed.labels[i])) for i in range(len(packed))) == expected
        assert packed.classes == plain.classes
    assert len(list(shards.glob("train-*.tar"))) > 1


def test_webdataset_reads_what_we_write(shards):
    samples = list(webdataset.WebDataset([str(p) for p in sorted(shards.glob("train-*.tar"))], shardshuffle=False))
    assert len(samples) == 40
    assert all(int(s["cls"]) in range(10) and Image.open(io.BytesIO(s["jpg"])).size == (96, 80) for s in samples)


def test_we_read_what_webdataset_writes(tmp_path, photos):
    with webdataset.TarWriter(str(tmp_path / "set-000.tar")) as writer:
        for i in range(6):
            writer.write({"__key__": f"dir/sample{i}", "png": photos[0][: 40 + i, :50], "cls": i % 3, "json": {"a": i}})
    train, val = open_images(str(tmp_path / "set-{000..000}.tar"), val_share=0.2)
    assert len(train) == 5 and len(val) == 1
    label = int(train.names[0].split("sample")[1][0]) % 3
    assert train.labels[0] == label


def copied(shards, folder):
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return sorted(folder.glob("*.idx"))


def replace_rows(text):
    return text.replace(".jpg", ".png", 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "crosschannel-index-1\t17\n999\t9\t0\tgone.jpg\n",
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(text.split("\n")[:-3]) + "\n",
        lambda text: "",
        lambda text: text.replace("\t", "\tabc", 1),
        replace_rows,
    ],
    ids=["of another shard", "cut in a line", "cut between lines", "empty", "a size that is none", "changed"],
)
def test_an_index_is_optional_and_one_that_does_not_fit_is_made_anew(shards, tmp_path, damage):
    sidecars = copied(shards, tmp_path)
    with_index = open_images(str(tmp_path))[0]
    for sidecar in sidecars:
        sidecar.write_text(damage(sidecar.read_text()))
    without = open_images(str(tmp_path))[0]
    assert [without.read(i) for i in range(40)] == [with_index.read(i) for i in range(40)]


def test_an_index_of_an_earlier_shard_of_the_same_size_is_noticed(tmp_path):
    def tar(names):
        with tarfile.open(tmp_path / "train-000000.tar", "w:") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 100 + len(name)
                file.addfile(info, io.BytesIO(bytes(info.size)))

    tar(["a.jpg", "b.jpg"])
    rows = scan(tmp_path / "train-000000.tar")
    size = (tmp_path / "train-000000.tar").stat().st_size
    (tmp_path / "train-000000.tar.idx").write_text(format_index(rows, size))
    assert [*open_training_images(str(tmp_path)).names] == ["train-000000.tar/a.jpg", "train-000000.tar/b.jpg"]
    tar(["cc.jpg", "dd.jpg"])
    assert (tmp_path / "train-000000.tar").stat().st_size == size
    assert [*open_training_images(str(tmp_path)).names] == ["train-000000.tar/cc.jpg", "train-000000.tar/dd.jpg"]


def test_a_cut_off_shard_loses_its_last_image_only_and_says_so(shards, tmp_path):
    whole = sorted(shards.glob("train-*.tar"))[0]
    cut = tmp_path / "train-000000.tar"
    count = len(open_training_images(str(whole)))
    with tarfile.open(whole) as tar:
        last = [m for m in tar.getmembers() if m.name.endswith(".jpg")][-1]
    cut.write_bytes(whole.read_bytes()[: last.offset_data + last.size // 2])
    with pytest.warns(UserWarning, match="damaged or truncated"):
        assert len(open_training_images(str(cut))) == count - 1


def test_a_damaged_header_loses_what_follows_and_says_so(shards, tmp_path):
    whole = sorted(shards.glob("train-*.tar"))[0]
    with tarfile.open(whole) as tar:
        third = [m for m in tar.getmembers() if m.name.endswith(".jpg")][2]
    data = bytearray(whole.read_bytes())
    data[third.offset : third.offset + 512] = b"\xff" * 512
    (tmp_path / "train-000000.tar").write_bytes(data)
    with pytest.warns(UserWarning, match=rf"at byte {third.offset} \(readable images: 2\)"):
        assert len(open_training_images(str(tmp_path))) == 2


def test_shards_are_told_apart_by_the_words_in_their_names(shards, tmp_path):
    whole = sorted(shards.glob("train-*.tar"))[0].read_bytes()
    names = ["imagenet-train-0.tar", "imagenet-train-1.tar", "imagenet-validation-0.tar", "imagenet_test_0.tar"]
    for name in names:
        (tmp_path / name).write_bytes(whole)
    train, val = open_images(str(tmp_path))
    assert {n.split("/")[0] for n in train.names} == set(names[:2])
    assert {n.split("/")[0] for n in val.names} == {names[2]}
    (tmp_path / "retrained-0.tar").write_bytes(whole)  # not a word of its own
    with pytest.raises(UserError, match=r"retrained-0\.tar is named neither"):
        open_images(str(tmp_path))


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation")])
def test_shards_in_train_and_val_folders(shards, tmp_path, names):
    for split, name in zip(("train", "val"), names, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000.tar").write_bytes(sorted(shards.glob(f"{split}-*.tar"))[0].read_bytes())
    (tmp_path / "imagenet-train.tar").write_bytes(b"the archive that it all came from")
    train, val = open_images(str(tmp_path))
    assert len(train) > 5 and len(val) == 10


def test_validation_shards_alone_are_no_training_set(shards, tmp_path):
    (tmp_path / "val-0.tar").write_bytes(sorted(shards.glob("val-*.tar"))[0].read_bytes())
    with pytest.raises(UserError, match="no training shards"):
        open_images(str(tmp_path))


def test_resizing_keeps_small_images_and_shapes(tmp_path, photos):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir(), out.mkdir()
    Image.fromarray(photos[0]).save(source / "large.png")
    Image.fromarray(photos[1][:50, :60]).save(source / "small.png")
    Image.fromarray(photos[2]).save(source / "wide.jpg")
    train, val = open_images(str(source))
    write_shards(train, out, "train", size=128)
    write_shards(val, out, "val", size=128)
    sizes = set()
    for images in open_images(str(out)):
        sizes |= {Image.open(io.BytesIO(images.read(i))).size for i in range(len(images))}
    assert sizes == {(128, 128), (60, 50), (192, 128)}


def test_broken_images_are_left_out_and_named(tmp_path, photo_folder):
    (tmp_path / "bad.jpg").write_text("text")
    (tmp_path / "good.jpg").write_bytes((photo_folder / "val/class0/4.jpg").read_bytes())
    (tmp_path / "good2.jpg").write_bytes((photo_folder / "val/class1/4.jpg").read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    shards, broken = write_shards(open_training_images(str(tmp_path)), out, "train")
    assert len(shards) == 1 and [name for name, _ in broken] == ["bad.jpg"]


@pytest.mark.parametrize("content", [b"not a tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_a_file_that_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "x-0.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"x-0\.tar"):
        open_images(str(tmp_path))


def test_brace_patterns():
    assert expand("a/t-{008..011}.tar") == [f"a/t-{i:03d}.tar" for i in (8, 9, 10, 11)]
    assert expand("{x,y}-{0..1}.tar") == ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]
    with pytest.raises(UserError, match="is empty"):
        expand("x-{5..1}.tar")


def test_a_stream_over_shards_gives_the_pixels_of_the_folder(shards, photo_folder):
    crop = CropConfig(size=32, resize=40)
    by_pixels = []
    for data in (shards, photo_folder):
        val = open_images(str(data))[1]
        stream = Stream(val, CentreCrop(crop.size, crop.resize))
        by_pixels.append(sorted(stream[i].content.tobytes() for i in range(len(val))))
    assert by_pixels[0] == by_pixels[1]
    assert np.frombuffer(by_pixels[0][0], np.uint8).size == 32 * 32 * 3


def tar(path, members):
    with tarfile.open(path, "w:") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return str(path)


def members_read(path):
    return [name.partition("/")[2] for name in open_training_images(path).names]


@pytest.mark.parametrize(
    "added",
    ["._0000.jpg", "./._0000.jpg", "._0000.cls", ".DS_Store", "PaxHeaders.123/0000.jpg", "./PaxHeader/0000.jpg",
     "__MACOSX/0000.jpg", "__MACOSX/._0000.jpg", ".ipynb_checkpoints/0000.jpg", "@eaDir/0000.jpg", "Thumbs.db"],
)  # fmt: skip
def test_members_that_archivers_and_systems_add_are_not_data(tmp_path, added):
    real = [("0000.jpg", b"image"), ("0000.cls", b"1"), ("0001.jpg", b"image"), ("0001.cls", b"0")]
    path = tar(tmp_path / "train.tar", [(added, b"Mac OS X" + bytes(90)), *real, (added, b"again")])
    images = open_training_images(path)
    assert members_read(path) == ["0000.jpg", "0001.jpg"] and images.labels.tolist() == [1, 0]


def test_a_hidden_folder_above_the_members_of_a_shard_hides_none(tmp_path):
    assert (
        len(members_read(tar(tmp_path / "a.tar", [("home/me/.cache/x/0.jpg", b"1"), ("home/me/.cache/x/1.jpg", b"2")])))
        == 2
    )


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        (("jpg", "seg.png"), "jpg"),
        (("depth.png", "JPG", "seg.png"), "JPG"),
        (("input.jpg", "seg.png"), "input.jpg"),
        (("seg.png", "image.jpeg", "json"), "image.jpeg"),
        (("Input.JPG", "output.jpg", "mask.tif"), "Input.JPG"),
        (("png", "input.jpg"), "png"),
        (("rgb.webp", "semantic.instance.png"), "rgb.webp"),
        (("left.jpg", "json"), "left.jpg"),
    ],
)
def test_the_input_image_of_a_sample_with_several_is_read(tmp_path, endings, expected):
    content = [(f"dir/{key:04d}.{ending}", b"x") for key in range(5) for ending in (*endings, "cls")]
    content = [(name, str(number % 3).encode()) for number, (name, _) in enumerate(content)]
    path = tar(tmp_path / "a.tar", content)
    images = open_training_images(path)
    assert members_read(path) == [f"dir/{key:04d}.{expected}" for key in range(5)]
    labels = [int(data) for name, data in content if name.endswith(".cls")]
    assert images.labels.tolist() == labels


@pytest.mark.parametrize(
    "endings", [("left.jpg", "right.jpg"), ("jpg", "png"), ("input.jpg", "image.jpg"), ("seg.png", "depth.png", "cls")]
)
def test_a_sample_with_an_ambiguous_input_image_is_named(tmp_path, endings):
    content = [("a/0001.jpg", b"x"), *((f"a/0002.{ending}", b"1") for ending in endings)]
    with pytest.raises(
        UserError, match=r"a\.tar: the sample a/0002 has several images .*rename the input image to a/0002\.jpg"
    ):
        open_images(tar(tmp_path / "a.tar", content))


def test_a_sample_without_its_input_image_is_named_rather_than_replaced_by_its_mask(tmp_path):
    content = [("1.input.jpg", b"x"), ("1.seg.png", b"x"), ("2.seg.png", b"x")]
    with pytest.raises(UserError, match=r"the sample of 2\.seg\.png lacks the input image"):
        open_images(tar(tmp_path / "a.tar", content))


def test_dots_in_file_names_do_not_make_samples(tmp_path):
    names = ["2021.05.06.jpg", "2021.05.07.jpg", "2021.jpg", "photo (1).2.jpg", "cat.small.jpg", "dog.large.jpg"]
    assert members_read(tar(tmp_path / "a.tar", [(name, b"x") for name in names])) == names


@pytest.mark.parametrize(
    ("name", "program"),
    [("x.tar.gz", "gunzip"), ("x.TGZ", "gunzip"), ("x.tar.bz2", "bunzip2"), ("x.tar.xz", "unxz"),
     ("x.tar.zst", "unzstd"), ("x.zip", "unzip"), ("x-{000..009}.tar.gz", "gunzip")],
)  # fmt: skip
def test_the_error_for_a_compressed_archive_tells_how_to_unpack_it(tmp_path, name, program):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UserError, match=rf"{re.escape(name)} is compressed: its images .*; unpack it: {program} /.*"):
        open_images(str(tmp_path / name))
    with pytest.raises(
        UserError, match=rf"https://host/x/{re.escape(name)} is compressed.*: {program} {re.escape(name)}"
    ):
        open_images(f"https://host/x/{name}")
    with pytest.raises(UserError, match=rf"no images in .*only 1 file .*unpack it: {program} "):
        open_images(str(tmp_path))


@pytest.mark.parametrize(("compression", "program"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_the_error_for_a_compressed_shard_named_tar_tells_how_to_unpack_it(tmp_path, compression, program):
    with tarfile.open(tmp_path / "x.tar", f"w:{compression}") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(
        UserError, match=rf"compressed despite its name; unpack it: mv .*x\.tar\.{compression} && {program}"
    ):
        open_images(str(tmp_path))


def test_test_shards_are_for_validation_or_not_used(shards, tmp_path, capsys):
    whole = sorted(shards.glob("train-*.tar"))[0].read_bytes()
    for name in ("x-train-0.tar", "x-train-1.tar", "x-test-0.tar", "._x-train-0.tar"):
        (tmp_path / name).write_bytes(whole)
    train, val = open_images(str(tmp_path))
    assert {n.split("/")[0] for n in train.names} == {"x-train-0.tar", "x-train-1.tar"}
    assert {n.split("/")[0] for n in val.names} == {"x-test-0.tar"}
    assert "training images (2 shards), " in capsys.readouterr().err
    (tmp_path / "x-dev-0.tar").write_bytes(whole)
    assert {n.split("/")[0] for n in open_images(str(tmp_path))[1].names} == {"x-dev-0.tar"}
    assert "validation images (1 shard); ignored: 1 test shard" in capsys.readouterr().err
