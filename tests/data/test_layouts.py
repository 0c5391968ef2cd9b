"""Detection of data files and of splits below a folder."""

import itertools
import json

import pytest

from crosschannel import UserError
from crosschannel.data import open_images
from crosschannel.data.folder import list_files, list_folder
from crosschannel.data.layout import SPLITS, split_of, split_word
from crosschannel.data.open import open_evaluated_images, open_training_images
from crosschannel.files import RECORDS, RUN_HEADER, Outputs


def make(root, *names):
    """Create empty files, which count as pictures by their endings."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def split(folder, classes=("cat", "dog"), count=3):
    return [f"{folder}/{name}/{number}.jpg" for name in classes for number in range(count)]


def names(images):
    return sorted(images.names)


TRAIN = [
    "train",
    "Train",
    "TRAIN",
    "training",
    "Training",
    "trainval",
    "train2017",
    "training_set",
    "images-train",
    "01_train",
]
VAL = ["val", "Val", "valid", "VALIDATION", "dev", "val2017", "valid_images"]
TEST = ["test", "Test", "testing", "eval", "Evaluation", "test_set"]


@pytest.mark.parametrize(("train", "val"), [*itertools.product(TRAIN, VAL + TEST)])
def test_usual_names_of_splits_are_recognised(tmp_path, capsys, train, val):
    data = make(tmp_path, *split(train), *split(val, count=1))
    training, validation = open_images(data)
    assert names(training) == names(open_training_images(data)) == [n.partition("/")[2] for n in split(train)]
    assert len(validation) == len(open_evaluated_images(data)) == 2
    assert training.classes == validation.classes == ("cat", "dog")
    assert f"6 training images in 2 classes ({train}/), 2 validation images ({val}/)" in capsys.readouterr().err


@pytest.mark.parametrize(("val", "test"), [*itertools.product(VAL, TEST)])
def test_test_images_beside_validation_images_are_not_used_and_reported(tmp_path, capsys, val, test):
    data = make(tmp_path, *split("train"), *split(val, count=1), *split(test, count=2))
    assert [len(images) for images in open_images(data)] == [6, 2]
    assert f"({val}/); ignored: {test}/" in capsys.readouterr().err


@pytest.mark.parametrize("files", [["test/1.jpg"], ["test/unknown/1.jpg"], ["test/notes.txt"]], ids=str)
def test_test_images_without_the_classes_are_not_used_for_validation(tmp_path, capsys, files):
    data = make(tmp_path, *split("train"), *files)
    training, validation = open_images(data, 0.2)
    assert sorted(names(training) + names(validation)) == [n.partition("/")[2] for n in split("train")]
    assert "ignored: test/" in capsys.readouterr().err


def test_folders_beside_splits_are_not_used_and_reported(tmp_path, capsys):
    data = make(tmp_path, *split("Train"), *split("Val"), "masks/1.png", "unlabeled/1.jpg", "devkit/readme.txt")
    assert [len(images) for images in open_images(data)] == [6, 6]
    assert "ignored: devkit/, masks/, unlabeled/" in capsys.readouterr().err
    alone = make(tmp_path / "alone", *split("train"), "devkit/readme.txt")
    assert open_training_images(alone).classes == ("cat", "dog")
    assert "(train/); ignored: devkit/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (split("train") + split("Training") + split("val"), "both Training/ and train/ for train images"),
        (split("train") + split("val") + split("valid"), "both val/ and valid/ for val images"),
        (split("val"), r"val/ but no train/; pass --data .*/val"),
        (split("test") + split("val"), r"no train/; pass --data"),
        (["train/1.jpg", "cat/1.jpg", "dog/1.jpg"], "rename train/ if it is a class"),
        (["test/1.jpg", "cat/1.jpg"], "rename test/ if it is a class"),
        (split("imagenet_train") + split("imagenet_val"), "look like splits rather than classes"),
        (split("train-clean") + split("dev-clean") + split("test-clean"), "look like splits rather than classes"),
        (split("photos/train") + split("photos/val"), r"one level down, in photos/; pass --data .*/photos"),
        (
            ["a/train/1.jpg", "a/test/1.jpg", "b/train/1.jpg", "b/test/2.jpg"],
            "one level down, in a/; arrange them as train/CLASS/",
        ),
    ],
)
def test_an_ambiguous_layout_is_refused_with_a_remedy(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        open_images(make(tmp_path, *files))


@pytest.mark.parametrize(
    "classes",
    [
        ("bullet_train", "cat"),
        ("bullet_train", "steam train"),
        ("testudo", "trainer"),
        ("val_gardena", "alps"),
        ("evaluna", "devon"),
    ],
)
def test_class_names_that_contain_words_of_splits_stay_classes(tmp_path, classes):
    data = make(tmp_path, *(f"{name}/{number}.jpg" for name in classes for number in range(3)))
    assert open_training_images(data).classes == tuple(sorted(classes))
    assert [len(images) for images in open_images(data)] == [5, 1]


def test_split_of_and_split_word_agree_on_names_of_splits():
    for kind, known in {"train": TRAIN, "val": VAL, "test": TEST}.items():
        assert {split_of(name) for name in known} == {split_word(name) for name in known} == {kind}
    assert SPLITS.keys() == {"train", "val", "test"}
    for name in ("bullet_train", "trainer", "contest", "interval", "device", "medieval", "1", "data", "", "valley"):
        assert split_of(name) == ""


HIDDEN = [
    ".ipynb_checkpoints",
    ".git",
    ".cache",
    "@eaDir",
    "__MACOSX",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("place", ["", "cat/", "train/", "train/cat/"])
def test_hidden_folders_are_neither_data_nor_classes(tmp_path, capsys, hidden, place):
    files = split("train") + split("val") if place.startswith("train") else split(".")
    data = make(tmp_path, *files, f"{place}{hidden}/1.jpg", f"{place}{hidden}/deep/2.jpg")
    training, validation = open_images(data)
    assert training.classes == validation.classes == ("cat", "dog")
    assert len(training) + len(validation) == len(files)
    if place:
        assert f"skipped: 1 folder ({hidden})" in capsys.readouterr().err


def test_a_hidden_folder_given_as_data_is_read(tmp_path):
    assert len(open_training_images(make(tmp_path / ".cache" / "photos", *split("train")))) == 6
    assert len(open_training_images(make(tmp_path / ".git", "1.jpg", "2.jpg"))) == 2


def test_system_files_are_not_counted(tmp_path, capsys):
    data = make(tmp_path, *split("."), ".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "dog/._0.jpg", ".hidden.jpg")
    assert len(list_files(tmp_path)) == 6
    open_images(data)
    assert "skipped" not in capsys.readouterr().err


def test_files_of_other_endings_are_counted_in_one_line(tmp_path, capsys):
    others = [
        f"cat/{number}.{ending}" for ending, count in (("xyz", 20), ("txt", 5), ("CR2", 1)) for number in range(count)
    ]
    data = make(tmp_path, *split(".", count=4), "dog/9.JPG", *others, "dog/README")
    assert sum(map(len, open_images(data))) == 9
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{data}: 9 images in 2 classes; skipped: 27 files (20 .xyz, 5 .txt, .cr2, without extension)"]


def test_a_folder_without_pictures_is_refused_with_its_endings(tmp_path):
    with pytest.raises(UserError, match=r"no images in .*, only 3 files \(2 \.xyz, \.raw\)"):
        open_images(make(tmp_path, "a.xyz", "b.xyz", "c.raw"))


def test_endings_that_need_another_package_are_listed_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("crosschannel.data.folder.EXTENSIONS", (".jpg",))
    make(tmp_path, "a.heic", "b.avif", "c.jpg")
    text = list_folder(tmp_path).skipped()
    assert "to read .heic: pip install 'crosschannel[heif]'" in text and "to read .avif: pip install" in text


@pytest.mark.parametrize("command", ["crosschannel colorize", "transfer predict", "transfer report", "any other"])
def test_pictures_that_a_command_wrote_are_not_data(tmp_path, capsys, command):
    data = make(tmp_path, *split("."))
    outputs = Outputs(command, makes_folders=True)
    for place in ("cat/0-coloured.png", "made/deep/x.png", "new.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        outputs.write_text(tmp_path / place, "picture")
    assert sum(map(len, open_images(data))) == 6 and open_training_images(data).classes == ("cat", "dog")
    assert "skipped: 3 pictures written by crosschannel" in capsys.readouterr().err
    assert list_files(tmp_path / "made") == ["deep/x.png"]  # read if their folder is given itself
    (tmp_path / "made" / "deep" / RECORDS).unlink()
    assert "made/deep/x.png" in list_files(tmp_path)


def test_folders_that_a_command_wrote_are_not_data(tmp_path, capsys):
    data = make(tmp_path, *split("."), "run/samples/1.png", "study/pictures/1.png", "killed.part/pictures/2.png")
    (tmp_path / "run" / "config.yaml").write_text(f"{RUN_HEADER} knn (crosschannel 0.1.0)\n")
    manifest = {"methods": {}, "photographs": [], "sha256": {}, "data": "x"}
    (tmp_path / "study" / "study.json").write_text(json.dumps(manifest))
    (tmp_path / "killed.part" / RECORDS).write_text('{"command": "crosschannel study build"}\n')
    assert sum(map(len, open_images(data))) == 6
    assert "skipped: 3 folders (" in capsys.readouterr().err
    for folder in ("run", "study", "killed.part"):
        assert len(list_files(tmp_path / folder)) == 1


def test_outputs_of_commands_beside_training_images_are_not_classes(tmp_path):
    data = make(tmp_path, *split("train"), "run/samples/1.png")
    (tmp_path / "run" / "config.yaml").write_text(f"{RUN_HEADER} knn (crosschannel 0.1.0)\n")
    Outputs("crosschannel colorize", makes_folders=True).write_text(tmp_path / "run2.png", "picture")
    (tmp_path / "train-coloured").mkdir()
    Outputs("crosschannel colorize").write_text(tmp_path / "train-coloured" / "1.png", "picture")
    assert len(open_training_images(data)) == 6


@pytest.mark.parametrize("content", ["", "[]", "null", '{"methods": 1}', "\xff", "{", '["command"]'])
def test_invalid_markers_hide_nothing(tmp_path, content):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    for name in ("study.json", "config.yaml", RECORDS):
        (tmp_path / "a" / name).write_text(content, encoding="latin-1")
    assert list_files(tmp_path) == ["a/1.jpg", "b/2.jpg"]


def test_only_rank_0_reports_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    open_images(make(tmp_path, *split("train"), *split("val")))
    assert capsys.readouterr().err == ""
