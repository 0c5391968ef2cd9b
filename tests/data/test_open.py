import functools
import hashlib
import http.server
import shutil
import tarfile
import threading

import numpy as np
import pytest
from torchvision.datasets import Imagenette

from crosschannel import UserError
from crosschannel.data import open_images
from crosschannel.data.images import Names


def names(images):
    return [images.names[i] for i in range(len(images))]


def test_train_and_val_are_honoured_with_classes_from_the_first_level(photo_folder):
    train, val = open_images(str(photo_folder))
    assert len(train) == 40 and len(val) == 10
    assert train.classes == val.classes == tuple(sorted(f"class{i}" for i in range(10)))
    for images in (train, val):
        for i in range(len(images)):
            assert images.names[i].split("/")[0] == images.classes[images.labels[i]]
            assert images.read(i)[:2] == b"\xff\xd8"


def test_any_depth_and_case_and_stray_files(photo_folder, tmp_path):
    picture = photo_folder / "train" / "class0" / "0.jpg"
    for name in ("a.JPG", "b/c/d/e.jpeg", "b/f.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "b" / "._f.JPEG").write_text("a resource fork")
    (tmp_path / "b" / "up").symlink_to(tmp_path)  # a loop
    (tmp_path / "again").symlink_to(tmp_path / "b" / "c")  # no loop
    train, val = open_images(str(tmp_path), val_share=0.3)
    assert sorted(names(train) + names(val)) == ["a.JPG", "again/d/e.jpeg", "b/c/d/e.jpeg", "b/f.JPEG"]


def test_a_copy_that_a_launcher_made_is_read_under_the_name_of_the_data(photo_folder, tmp_path, monkeypatch):
    shutil.copytree(photo_folder, tmp_path / "copy")
    monkeypatch.setenv("CROSSCHANNEL_STAGED_DATA", f"/gone\n{tmp_path / 'copy'}")
    assert len(open_images("/gone")[0]) == 40
    with pytest.raises(UserError, match="no data at '/other'"):
        open_images("/other")


def test_archives_beside_the_folders_of_images_are_no_shards(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "data")
    with tarfile.open(tmp_path / "data" / "ILSVRC2012_img_train.tar", "w") as tar:
        tar.add(photo_folder / "train" / "class0", "class0")
    train, val = open_images(str(tmp_path / "data"))
    assert len(train) == 40 and len(val) == 10 and train.classes


def test_a_folder_may_be_called_anything(photo_folder, tmp_path):
    for name in ("br{a,b}ces", "photos.tar", "with space, and ünïcode"):
        shutil.copytree(photo_folder, tmp_path / name)
        assert len(open_images(str(tmp_path / name))[0]) == 40


def test_a_fixed_share_is_held_out_by_name(photo_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(photo_folder / "train", folder)
    train, val = open_images(str(folder), val_share=0.25)
    assert len(val) == 10 and len(train) == 30 and not set(names(train)) & set(names(val))
    again = open_images(str(folder), val_share=0.25)[1]
    assert names(again) == names(val)
    shutil.copy(folder / names(train)[0], folder / "one-more.jpg")
    assert len(set(names(open_images(str(folder), val_share=0.25)[1])) & set(names(val))) >= 9


def test_the_raw_ilsvrc_layout_with_both_kinds_of_labels(photo_folder, tmp_path):
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for synset in ("n01440764", "n02102040"):
        (data / "train" / synset).mkdir(parents=True)
        for i in range(3):
            shutil.copy(photo_folder / "train/class0/0.jpg", data / "train" / synset / f"{synset}_{i}.JPEG")
    (data / "val").mkdir()
    for i in (1, 2):
        shutil.copy(photo_folder / "train/class1/1.jpg", data / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    annotations = tmp_path / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    annotations.mkdir(parents=True)
    for i, synset in ((1, "n02102040"), (2, "n01440764")):
        (annotations / f"ILSVRC2012_val_0000000{i}.xml").write_text(
            f"<annotation><object><name>{synset}</name></object></annotation>"
        )
    train, val = open_images(str(tmp_path))
    assert len(train) == 6 and train.labels.tolist() == [0, 0, 0, 1, 1, 1] and val.labels.tolist() == [1, 0]
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000001,n01440764 1 2 3 4 \n"
        "ILSVRC2012_val_00000002,n02102040 1 2 3 4\n"
    )
    assert open_images(str(tmp_path / "ILSVRC"))[1].labels.tolist() == [0, 1]


def test_a_class_that_train_lacks_is_named(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "d")
    shutil.copytree(tmp_path / "d/val/class0", tmp_path / "d/val/stranger")
    with pytest.raises(UserError, match="stranger"):
        open_images(str(tmp_path / "d"))


def test_the_embedded_sample_keeps_train_and_val_apart():
    train, val = open_images("builtin:sample")
    assert (len(train), len(val), len(train.classes)) == (480, 120, 10)
    assert np.bincount(train.labels).tolist() == [48] * 10 and np.bincount(val.labels).tolist() == [12] * 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere/at/all", "no such folder"),
        ("builtin:other", "builtin:sample"),
        ("torchvision:cifar", "torchvision:imagenette"),
        ("shards/train-{000000..000003}.tar", "no such shard"),
    ],
)
def test_data_that_is_not_there_is_one_sentence(data, message):
    with pytest.raises(UserError, match=message):
        open_images(data)


def test_an_empty_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        open_images(str(tmp_path))
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        open_images(str(tmp_path / "x.jpg"))
    with pytest.raises(UserError, match="only one image"):
        open_images(str(tmp_path))


@pytest.fixture
def web(tmp_path):
    """A local HTTP server over a folder: (folder, address)."""
    root = tmp_path / "web"
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_imagenette_comes_through_torchvision(monkeypatch, tmp_path, photo_folder, web):
    """torchvision's own download code, pointed at a small local archive."""
    folder, address = web
    archive = folder / "imagenette2-320.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for split in ("train", "val"):
            for label, synset in enumerate(Imagenette._WNID_TO_CLASS):
                for picture in (photo_folder / split / f"class{label}").iterdir():
                    tar.add(picture, f"imagenette2-320/{split}/{synset}/{picture.stem}.JPEG")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(Imagenette, "_ARCHIVES", {"320px": (f"{address}/{archive.name}", md5)})
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        train, val = open_images("torchvision:imagenette")
        assert len(train) == 40 and len(val) == 10 and len(train.classes) == 10
        archive.unlink(missing_ok=True)


def test_a_failed_download_is_one_sentence(monkeypatch, tmp_path, web):
    monkeypatch.setattr(Imagenette, "_ARCHIVES", {"320px": (f"{web[1]}/gone.tgz", "0" * 32)})
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="could not download"):
        open_images("torchvision:imagenette")


def test_names_are_a_list_in_one_buffer():
    words = ["a", "", "ünïcode/ß.jpg", "undecodable-\udcff", "z" * 300]
    packed = Names(words)
    assert list(packed) == words and len(packed) == 5
    assert packed.fingerprint() != Names(words[::-1]).fingerprint() != Names(["ab"]).fingerprint()
    assert Names(["ab", "c"]).fingerprint() != Names(["a", "bc"]).fingerprint()
