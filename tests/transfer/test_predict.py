"""`transfer predict`: masks and scores of pictures that a run has not seen."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from devkits import make_devkit
from PIL import Image

import transfer
from crosschannel import InputSpec, UserError, load_backbone, wrap
from crosschannel.console import escape_control
from crosschannel.data import open_images
from crosschannel.data.decode import EncodedImage
from crosschannel.files import Outputs
from crosschannel.hub.files import save_backbone
from crosschannel.runs.result import load_result
from transfer.cli import main
from transfer.pascal.segmentation import PALETTE, confusion_of, sum_confusions
from transfer.predict import PredictionWriter, load_predictor
from transfer.prediction import Prediction

pytestmark = pytest.mark.usefixtures("narrow_nets")
SMALL = ["--train.precision=float32", "--runtime.workers=0", "--runtime.tensorboard=false", "--train.steps=4"]
NET = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos, masks=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, voc, photo_folder):
    root = tmp_path_factory.mktemp("runs")
    tuned = ["--config=voc-mini", f"--data={voc}", NET, "--train.batch=8", "--fc=8", "--calibrate=false", *SMALL]
    commands = {
        "segment": ["segment", *tuned, "--crop=64", "--optim.lr=0.01"],
        "classify": ["classify", *tuned, "--test-crops=2"],
        "linear-probe": [
            "linear-probe", "--config=quickstart", f"--data={photo_folder}", NET, "--layer=conv3,conv5",
            "--train.batch=20", "--rates=0.001,0.01", *SMALL,
        ],
        "dense": ["dense", f"--data={voc}", NET, "--config=voc-mini", "--layer=conv3,conv5", "--grid=6", *SMALL],
        "knn": ["knn", f"--data={photo_folder}", NET, "--layer=conv5", "--k=3", "--workers=0"],
    }  # fmt: skip
    for name, words in commands.items():
        assert main([*words, f"--out={root / name}"]) == 0
    return root


@pytest.fixture
def pictures(tmp_path, photos) -> Path:
    """A portrait by its EXIF orientation, a grey PNG with alpha, a picture in a folder, and a broken one."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    Image.fromarray(photos[0][:60, :100]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(photos[1][:50, :70]).convert("LA").save(folder / "grey.png")
    Image.fromarray(photos[2][:40, :300]).save(folder / "more" / "wide.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.mark.parametrize("kind", ["segment", "dense"])
def test_masks_are_of_the_pictures_own_size_and_a_broken_picture_stops_nothing(runs, pictures, kind, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(runs / kind), str(pictures), f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert "1 of 4 pictures could not be read, the first is" in error and "broken.jpg" in error
    for name, size in (("turned", (60, 100)), ("grey", (70, 50)), ("more/wide", (300, 40))):
        mask = Image.open(out / f"{name}-mask.png")
        assert mask.mode == "P" and mask.size == size and Image.open(out / f"{name}-overlay.png").size == size
        assert tuple(mask.getpalette()[45:48]) == tuple(PALETTE[15])
    assert not list(out.glob("broken*"))
    rows = list(csv.reader((out / "scores.csv").open()))
    assert len(rows) == 4 and rows[0][2] == "background" and (out / "sheet-1.png").is_file()
    mask = np.array(Image.open(out / "more" / "wide-mask.png"))
    (wide,) = (row for row in rows if row[0].endswith("wide.jpg"))
    assert float(wide[2]) == pytest.approx((mask == 0).mean(), abs=1e-4)  # shares of the pixels


ODD = [b"caf\xe9", b"caf\xe8", b"\xff\xfe", b"\xed\xa0\x80", "日本".encode(), b'q"u,o', b"new\nline", b"\x1b[31mred"]


@pytest.fixture
def odd_pictures(tmp_path, photos) -> Path:
    """Pictures whose names are not UTF-8, or contain special characters of CSV files and terminals."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for number, name in enumerate(ODD):
        Image.fromarray(photos[number % len(photos)][:40, :50]).save(
            Path(os.fsdecode(bytes(folder) + b"/" + name + b".png"))
        )
    return folder


@pytest.mark.parametrize("kind", ["segment", "classify", "linear-probe"])
def test_a_name_that_is_not_utf_8_has_its_row(runs, odd_pictures, kind, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(runs / kind), str(odd_pictures), f"--out={out}"]) == 0
    rows = list(csv.DictReader(io.StringIO((out / "scores.csv").read_text(encoding="utf-8"), newline="")))
    names = {row["picture"] for row in rows}
    assert names == {escape_control(path) for path in odd_pictures.iterdir()} and len(names) == len(ODD)
    assert not any(set("\x1b\udce9") & set(name) for name in names) and (out / "sheet-1.png").is_file()
    if kind == "segment":
        assert {os.fsencode(path.name) for path in out.glob("*-mask.png")} == {name + b"-mask.png" for name in ODD}


def test_boxes_of_pictures_with_any_name_are_written(tmp_path):
    scores = PredictionWriter(tmp_path, Outputs("transfer predict"))
    for name in ODD:
        found = Prediction({"cat": 0.5}, boxes=[("cat", 0.5, 1.0, 2.0, 3.0, 4.0)] * 2)
        scores.add(escape_control(os.fsdecode(name)), found, Image.new("RGB", (8, 8)))
    scores.close()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "boxes.csv").read_text(encoding="utf-8"), newline="")))
    assert len(rows) == 2 * len(ODD) and {row["right"] for row in rows} == {"3.0"}


@pytest.mark.parametrize("kind", ["segment", "dense"])
def test_predicted_masks_are_those_that_were_scored(runs, voc, kind):
    result = load_result(runs / kind)
    layer = max(("conv3", "conv5"), key=lambda one: result.metrics.get(f"{one}/mean_iu", 0))
    column = result.rows["confusion" if kind == "segment" else f"{layer}/linear"]
    confusions = [sum_confusions(column, row[None], 21)[0] for row in np.eye(20)]
    predict = load_predictor(runs / kind, CPU)
    folder = voc / "VOC2007"
    for row, name in list(enumerate(result.rows["names"]))[:4]:
        name = name.partition("/")[2]
        found = np.array(predict((folder / "JPEGImages" / f"{name}.jpg").read_bytes()).pictures["mask"])
        truth = np.array(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        again = confusion_of(torch.from_numpy(found), torch.from_numpy(truth), 21).numpy()
        assert np.abs(again - confusions[row]).sum() <= 0.002 * again.sum()  # other batches round otherwise


def test_predicted_scores_are_those_that_were_scored(runs, voc, photo_folder):
    images = open_images(str(photo_folder))[1]
    result = load_result(runs / "linear-probe")
    for layer in ("conv3", "conv5"):
        predict = load_predictor(runs / "linear-probe", CPU, layer)
        names = list(result.rows["classes"])
        assert list(images.names) == list(result.rows["names"])
        found = []
        for number in range(len(images)):
            scores = predict(images.read(number)).scores
            assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
            found.append(names.index(max(scores, key=scores.get)))
        assert (np.array(found) == result.rows[f"{layer}/prediction"]).mean() >= 0.9
    result = load_result(runs / "classify")
    predict = load_predictor(runs / "classify", CPU)
    name = result.rows["names"][0].partition("/")[2]
    scores = predict((voc / "VOC2007" / "JPEGImages" / f"{name}.jpg").read_bytes()).scores
    expected = 1 / (1 + np.exp(-result.rows["logits"][0] / 2))  # the first image's crops are drawn alike
    assert list(scores.values()) == pytest.approx(expected, abs=1e-4)


def test_scores_are_a_table_and_a_sheet(runs, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    (pictures / "broken.jpg").unlink()
    assert main(["predict", str(runs / "linear-probe"), str(pictures), "--layer=conv3", f"--out={out}"]) == 0
    rows = list(csv.reader((out / "scores.csv").open()))
    assert rows[0][:3] == ["picture", "first", "class0"] and len(rows) == 4
    assert [Path(row[0]).name for row in rows[1:]] == ["grey.png", "wide.jpg", "turned.jpg"]
    for row in rows[1:]:
        values = [float(value) for value in row[2:]]
        assert sum(values) == pytest.approx(1, abs=1e-3) and rows[0][2 + int(np.argmax(values))] == row[1]
    assert Image.open(out / "sheet-1.png").size[0] == 3 * 168 + 8
    assert main(["predict", str(runs / "linear-probe"), "builtin:sample", f"--out={out}"]) == 0  # its own are replaced
    assert len(list(csv.reader((out / "scores.csv").open()))) == 11


def test_a_large_picture_is_looked_at_smaller_and_its_mask_is_of_full_size(runs, photos):
    file = io.BytesIO()
    Image.fromarray(photos[0]).resize((900, 1200)).save(file, "JPEG")
    small, own = (load_predictor(runs / "segment", size=size)(file.getvalue()) for size in (300, 0))
    masks = [np.array(found.pictures["mask"]) for found in (small, own)]
    assert masks[0].shape == masks[1].shape == (1200, 900) and not np.array_equal(*masks)


def test_a_module_of_ones_own_is_handed_over_again(voc, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential()
    module.stem, module.act, module.last = torch.nn.Conv2d(3, 6, 9, 8), torch.nn.ReLU(), torch.nn.Conv2d(6, 12, 3)
    backbone = wrap(module, InputSpec("rgb", 64, 72))
    for name, kind in (("segment", "SegmentConfig"), ("dense", "DenseConfig")):
        config = getattr(transfer, kind)("", str(voc), train_set="2007:trainval", test_set="2007:test")
        config.runtime.workers, config.runtime.tensorboard = 0, False
        config.train.batch, config.train.accumulate, config.train.steps = 4, 1, 2
        run = tmp_path / name
        getattr(transfer, name)(backbone, str(voc), config=config, out=run)
        data = (voc / "VOC2007" / "JPEGImages" / "000050.jpg").read_bytes()
        assert load_predictor(run, backbone=backbone)(data).pictures["mask"].size == Image.open(io.BytesIO(data)).size
        with pytest.raises(UserError, match="Sequential"):
            load_predictor(run)


def save(path: Path, source: str) -> None:
    backbone = load_backbone(source)
    save_backbone(path, backbone.net, backbone.net.spec, backbone.input, backbone.provenance)


def test_weights_that_have_changed_since_are_refused(voc, runs, photo_folder, tmp_path):
    weights = tmp_path / "trunk.safetensors"
    save(weights, "random:alexnet,fc=0,size=64,resize=72,seed=1")
    flags = [f"--backbone={weights}", f"--data={photo_folder}", "--layer=conv3", "--train.batch=20", *SMALL]
    assert main(["linear-probe", "--config=quickstart", *flags, f"--out={tmp_path / 'run'}"]) == 0
    data = (voc / "VOC2007" / "JPEGImages" / "000050.jpg").read_bytes()
    assert load_predictor(tmp_path / "run")(data).scores
    weights.unlink()
    save(weights, "random:alexnet,fc=0,size=64,resize=72,seed=2")
    with pytest.raises(UserError, match=r"trunk\.safetensors .* has changed since"):
        load_predictor(tmp_path / "run")


def test_the_net_alone_is_enough(runs, voc, pictures, tmp_path, monkeypatch):
    """A fine-tuned net is described in its file: the backbone that it was begun from may be gone."""
    monkeypatch.setattr("transfer.finetuning.load_backbone", None)
    monkeypatch.setattr("transfer.protocol.load_backbone", None)
    for kind in ("segment", "classify"):
        data = io.BytesIO()
        Image.new("RGB", (80, 90)).save(data, "PNG")
        found = load_predictor(runs / kind, CPU)(data.getvalue())
        assert found.pictures or found.scores


def refusals(runs: Path, pictures: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("# crosschannel run: segment\n")
    return [
        ([str(runs / "knn"), str(pictures)], "knn runs store no weights to predict with; use a run of linear-probe"),
        ([str(tmp_path / "nowhere"), str(pictures)], "is not a run folder: it does not exist"),
        ([str(unfinished), str(pictures)], "has no result.json"),
        ([str(runs / "segment")], "no pictures; pass files"),
        ([str(runs / "segment"), str(tmp_path / "none.jpg")], "no such picture or folder"),
        ([str(runs / "linear-probe"), str(pictures), "--layer=conv9"], "'conv9'; available: conv3, conv5"),
        (
            [str(runs / "segment"), str(pictures), "--layer=conv3"],
            "has only one output; --layer is for runs on frozen layers",
        ),
        ([str(runs / "segment"), str(pictures), f"--out={tmp_path / 'file'}"], "is a file; --out takes a folder"),
    ]


def test_what_cannot_be_is_one_sentence(runs, pictures, tmp_path, capsys):
    for words, expected in refusals(runs, pictures, tmp_path):
        assert main(["predict", f"--out={tmp_path / 'out'}", *words]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("transfer: ") and expected in error, error


def test_a_run_whose_files_are_damaged_or_of_an_older_version_says_so(runs, pictures, tmp_path, capsys):
    import shutil

    for kind, file in (("segment", "net.safetensors"), ("linear-probe", "heads.safetensors")):
        run = tmp_path / kind
        shutil.copytree(runs / kind, run)
        (run / file).write_bytes(b"damaged")
        assert main(["predict", str(run), str(pictures), f"--out={tmp_path / 'out'}"]) == 2
        assert f"{file} is damaged" in capsys.readouterr().err
        (run / file).unlink()
        assert main(["predict", str(run), str(pictures), f"--out={tmp_path / 'out'}"]) == 2
        assert f"no {file} in" in capsys.readouterr().err


def test_files_of_others_are_not_overwritten(runs, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "grey-mask.png").write_bytes(b"mine")
    words = ["predict", str(runs / "segment"), str(pictures / "grey.png"), f"--out={out}"]
    assert (
        main(words) == 2
        and "already exists, and its content was not written by `transfer predict`" in capsys.readouterr().err
    )
    assert (out / "grey-mask.png").read_bytes() == b"mine"
    assert main([*words, "--overwrite"]) == 0
    mask = Image.open(out / "grey-mask.png")
    assert EncodedImage((pictures / "grey.png").read_bytes()).width == mask.width
