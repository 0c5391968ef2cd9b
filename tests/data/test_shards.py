import io
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from crosschannel import UserError
from crosschannel.data import CropConfig, CropStream, open_images, open_training_images
from crosschannel.data.shards import expand, write_shards


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


def test_an_index_is_optional_and_a_stale_one_is_ignored(shards, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with_index = open_images(str(tmp_path))[0]
    for sidecar in tmp_path.glob("*.idx"):
        sidecar.write_text("crosschannel-index-1\t17\n999\t9\t0\tgone.jpg\n")
    without = open_images(str(tmp_path))[0]
    assert [without.read(i) for i in range(40)] == [with_index.read(i) for i in range(40)]


def test_a_cut_off_shard_loses_its_last_image_only(shards, tmp_path):
    whole = sorted(shards.glob("train-*.tar"))[0]
    cut = tmp_path / "train-000000.tar"
    count = len(open_training_images(str(whole)))
    with tarfile.open(whole) as tar:
        last = [m for m in tar.getmembers() if m.name.endswith(".jpg")][-1]
    cut.write_bytes(whole.read_bytes()[: last.offset_data + last.size // 2])
    assert len(open_training_images(str(cut))) == count - 1


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
    count, broken = write_shards(open_training_images(str(tmp_path)), out, "train")
    assert count == 1 and [name for name, _ in broken] == ["bad.jpg"]


@pytest.mark.parametrize("content", [b"not a tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_a_file_that_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "x-0.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"x-0\.tar"):
        open_images(str(tmp_path))


def test_brace_patterns():
    assert [str(p) for p in expand("a/t-{008..011}.tar")] == [f"a/t-{i:03d}.tar" for i in (8, 9, 10, 11)]
    assert [str(p) for p in expand("{x,y}-{0..1}.tar")] == ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]


def test_a_stream_over_shards_gives_the_pixels_of_the_folder(shards, photo_folder):
    crop = CropConfig(size=32, resize=40)
    by_pixels = []
    for data in (shards, photo_folder):
        val = open_images(str(data))[1]
        stream = CropStream(val, crop, train=False)
        by_pixels.append(sorted(stream[i][0].tobytes() for i in range(len(val))))
    assert by_pixels[0] == by_pixels[1]
    assert np.frombuffer(by_pixels[0][0], np.uint8).size == 32 * 32 * 3
