"""`transfer classify`, `svm` and `few-shot` as a user runs them: run folders, resume, ranks, bad input, reports."""

import io
import shutil

import numpy as np
import pytest
import torch
from devkits import annotation, make_devkit
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC
from trained_runs import by_one_and_by_two, figures, killed_and_finished

import transfer
from crosschannel import UserError
from crosschannel.config.load import config_folder
from crosschannel.data import Record
from crosschannel.data.views import Squashed
from crosschannel.models import InputSpec
from crosschannel.runs.result import load_result
from transfer.cli import PROGRAM, main
from transfer.linear_models import project_onto_span
from transfer.protocol import Split
from transfer.protocols.few_shot.protocol import draw_images
from transfer.protocols.few_shot.regression import predict
from transfer.protocols.svm.classifiers import choose_cost
from transfer.protocols.svm.protocol import _view, best_on_test, draw_labels

pytestmark = pytest.mark.usefixtures("narrow_nets")
NET = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
STEPS = [
    "--train.batch=8", "--train.steps=6", "--train.precision=float32", "--runtime.workers=0", "--runtime.log_every=2",
    "--runtime.checkpoint_every=2", "--runtime.eval_every=4", "--runtime.tensorboard=false", "--test-crops=2", "--fc=8",
    "--calibrate=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos)


@pytest.fixture(scope="module")
def command(voc) -> list[str]:
    return ["classify", "--config=voc-mini", NET, f"--data={voc}", *STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    out = tmp_path_factory.mktemp("runs") / "classify"
    assert main([*command, f"--out={out}"]) == 0
    return out


def test_a_run_folder_holds_its_weights_rows_and_pictures(finished, command, capsys):
    names = {p.name for p in finished.iterdir()} - {".lock"}
    written = {"config.yaml", "images.json", "metrics.jsonl", "checkpoints", "samples", "backbone.json"}
    assert names == written | {"predictions.npz", "result.json", "net.safetensors"}
    result = load_result(finished)
    assert result.n == 20 and "train/map" in result.metrics
    assert sum(name.startswith("ap/") for name in result.metrics) == 20
    rows = result.rows
    assert rows["logits"].shape == rows["one_crop"].shape == rows["labels"].shape == (20, 20)
    for column, name in (("logits", "map"), ("one_crop", "one_crop/map")):
        by_class = []
        for number in range(20):
            counted = rows["labels"][:, number] >= 0
            truth = rows["labels"][counted, number] == 1
            scores = rows[column][counted, number].astype(np.float64) - 1e-5 * truth
            by_class.append(average_precision_score(truth, scores))
        assert result.metrics[name] == pytest.approx(np.mean(by_class))
    assert result.metrics["ap/dog"] == pytest.approx(
        average_precision_score(*[(rows[k][rows["labels"][:, 11] >= 0, 11]) for k in ("labels", "logits")])
    )
    picture = np.asarray(Image.open(finished / "samples" / "top-000000006.png"))
    assert picture.shape == (10 * 96, 2 * 6 * 96, 3)
    assert main([*command, f"--out={finished}"]) == 0 and "finished" in capsys.readouterr().err


def test_kill_9_and_the_same_command_end_where_the_uninterrupted_run_ends(command, finished, tmp_path):
    out = killed_and_finished(command, tmp_path / "run", "step 2/6", "step 4/6")
    assert figures(out) == figures(finished)


def test_two_ranks_find_what_one_process_finds(command, finished, tmp_path):
    """Dropout is drawn by rank, so it is off."""
    one, two = by_one_and_by_two([*command, "--dropout=0"], tmp_path)
    (metrics, rows, log), (others, other_rows, other_log) = figures(one), figures(two)
    assert rows["names"] == other_rows["names"] and rows["labels"] == other_rows["labels"]
    assert np.allclose(rows["logits"], other_rows["logits"], atol=1e-3)
    losses = [[row["train/loss"] for row in part if "train/loss" in row] for part in (log, other_log)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert metrics["map"] == pytest.approx(others["map"], abs=0.02)


def test_the_function_is_the_command(command, finished, voc):
    config = PROGRAM.parse("classify", command[1:])
    result = transfer.classify(config.backbone, str(voc), config=config)
    assert result.metrics == load_result(finished).metrics and result.config["train_from"] == "all"


def test_runs_are_compared_with_an_interval_over_images(finished, command, tmp_path, capsys):
    other = tmp_path / "other"
    assert main([*command, "--seed=3", f"--out={other}"]) == 0
    capsys.readouterr()
    assert main(["compare", str(finished), str(other), "--resamples=200"]) == 0
    said = capsys.readouterr().out
    assert "one_crop/map" in said and "ap/dog" not in said


def test_the_report_has_table_2s_column_and_bars_by_class(finished, tmp_path):
    assert main(["report", str(finished), f"--out={tmp_path / 'page'}"]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    value = 100 * load_result(finished).metrics["map"]
    assert f"| – | – | {value:.1f} | – | – |" in text and "20 images: not comparable" in text
    assert Image.open(tmp_path / "page" / "pascal-0-20-classify-ap.png").size[0] > 500


def test_every_packaged_config_is_valid():
    for protocol in ("classify", "svm"):
        for path in sorted((config_folder() / "transfer" / protocol).glob("*.yaml")):
            config = PROGRAM.parse(protocol, [f"--config={path}", "--data=x", "--backbone=random:runs/a-0"])
            assert config.out == f"runs/{protocol}-random-a-0-x-{path.stem}-0"


def test_the_published_recipes_follow_their_sources_to_the_letter():
    paper, default, theirs = (
        PROGRAM.parse("classify", [*flags, "--data=x", "--backbone=x"])
        for flags in (["--config=paper"], [], ["--config=deepcluster"])
    )
    for config in (paper, default):
        optim = config.optim
        assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.clip) == ("sgd", 1e-3, 0.9, 1e-6, 10)
        assert (optim.bias_lr, optim.bias_decay, config.dropout) == (2.0, True, 0.5)
        assert (config.train.batch, config.train.steps) == (16, 80_000)
        assert (config.schedule.kind, config.schedule.every, config.schedule.factor) == ("step", 10_000, 0.5)
        assert (config.crop, config.test_crops, config.mirror) == ("random-scale", 10, True)
        assert (config.train_set, config.test_set) == ("2007:trainval", "2007:test")
    assert (theirs.crop, theirs.area) == ("random-resized", (0.1, 0.5))
    assert (theirs.train_set, theirs.test_set) == ("2007:trainval", "2007:test")  # its other split is train → val
    assert (theirs.optim.lr, theirs.schedule.every, theirs.frozen_norm) == (3e-3, 5000, True)
    assert (theirs.optim.bias_lr, theirs.optim.bias_decay, theirs.optim.clip) == (1.0, True, 10.0)
    assert (theirs.train_from, theirs.random_from, theirs.new_layers) == ("fc6", "fc6", "default")
    assert (theirs.dropout, theirs.dropout_on, paper.dropout_on) == (0.5, "inputs", "outputs")
    vissl, fair = (PROGRAM.parse("svm", [f"--config={c}", "--data=x", "--backbone=x"]) for c in ("vissl", "fair"))
    assert vissl.costs == [0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000] and vissl.folds == 3
    assert fair.costs == [10.0**e for e in range(-7, 3)] + [0.5**e for e in range(4, 20)]
    assert vissl.low_shot == fair.low_shot == [1, 2, 4, 8, 16, 32, 64, 96] and fair.choose == vissl.choose == "test"
    plain = PROGRAM.parse("svm", ["--data=x", "--backbone=x"])
    assert plain.choose == "cross-validation" and plain.resize_first and vissl.resize_first and fair.resize_first


BAD = [
    ("an image that is gone", lambda f: (f / "JPEGImages/000003.jpg").unlink(), [], "000003.jpg"),
    ("an annotation that is no XML", lambda f: (f / "Annotations/000003.xml").write_text("x"), [], "is damaged"),
    (
        "a class outside the 20",
        lambda f: (f / "Annotations/000003.xml").write_text(annotation([("cake", False)])),
        [],
        "not one of PASCAL's 20",
    ),
    ("an empty set", lambda f: (f / "ImageSets/Main/test.txt").write_text(""), [], "is empty"),
    ("a year that is not there", lambda f: None, ["--train-set=2012:trainval"], "has no VOC2012"),
    ("a set that is none", lambda f: None, ["--test-set=trainval"], "test_set must be YEAR:SET"),
    ("a set that is learned and scored", lambda f: None, ["--test-set=2007:trainval"], "is in both"),
    ("no such place to train from", lambda f: None, ["--train-from=fc9"], "train_from 'fc9'"),
    ("two inputs", lambda f: None, ["--backbone=random:alexnet,input=grey", "--input=lab"], "set only one"),
    ("a batch of more than there is", lambda f: None, ["--train.batch=64"], "training images"),
    ("crops that are too small", lambda f: None, ["--size=32"], "32 px"),
]


@pytest.mark.parametrize(("damage", "flags", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_one_sentence_before_any_net_is_loaded(
    voc, command, tmp_path, capsys, monkeypatch, damage, flags, words
):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    damage(tmp_path / "VOCdevkit" / "VOC2007")
    if not any(flag.startswith(("--train.batch", "--size")) for flag in flags):
        monkeypatch.setattr("transfer.protocol.load_backbone", None)  # these depend on the net
    out = tmp_path / "out"
    assert main([*command, f"--data={tmp_path / 'VOCdevkit'}", *flags, f"--out={out}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("transfer: ") and words in error and "Traceback" not in error
    assert not (out / "config.yaml").exists()


# --- SVMs


def test_a_rotation_onto_the_span_changes_no_svm():
    generator = np.random.default_rng(0)
    x, z = generator.normal(size=(40, 300)), generator.normal(size=(25, 300))
    y = np.where(x[:, 0] > 0, 1, -1)
    short, directions = project_onto_span(x)
    other = z @ directions
    assert project_onto_span(generator.normal(size=(9, 4)))[1] is None
    assert short.shape == (40, 40) and np.allclose(short @ short.T, x @ x.T) and np.allclose(short @ other.T, x @ z.T)
    for cost in (0.1, 10):
        options = {"C": cost, "random_state": 0, "tol": 1e-8, "max_iter": 100_000, "class_weight": {1: 2, -1: 1}}
        whole = LinearSVC(**options).fit(x, y).decision_function(z)
        assert np.allclose(LinearSVC(**options).fit(short, y).decision_function(other), whole, atol=1e-4)


def test_low_shot_draws_what_it_says():
    labels = np.zeros((400, 3), np.int8)
    labels[:30, 0], labels[20:90, 1], labels[80:95, 2], labels[95:200, 2] = 1, 1, 1, -1
    seen = [draw_labels(labels, 4, 0, draw) for draw in range(5)]
    for drawn in seen:
        for number in range(3):
            assert (drawn[:, number] == 1).sum() == 4 and (drawn[:, number] == 0).sum() == 76
            assert (labels[drawn[:, number] == 1, number] == 1).all()
            assert (labels[drawn[:, number] == 0, number] == 0).all()
    assert not np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], draw_labels(labels, 4, 0, 0))


def test_c_is_chosen_on_training_images_and_is_1_for_one_positive():
    generator = np.random.default_rng(1)
    x, positive = generator.normal(size=(60, 8)), np.arange(60) % 4 == 0
    assert choose_cost(x, positive, [0.1, 10.0], 3, 0) in (0.1, 10.0)
    assert choose_cost(x, np.arange(60) == 5, [0.1, 10.0], 3, 0) == 1.0
    assert choose_cost(x, np.arange(60) == 5, [0.1], 3, 0) == 0.1
    assert choose_cost(x, np.arange(60) < 2, [0.1, 10.0], 3, 0) in (0.1, 10.0)  # two folds


def test_one_cost_is_chosen_by_mean_test_ap_over_all_draws():
    """Costs 0 and 2 are best on single draws, cost 1 is best over both."""
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 1]])
    good, bad = truth + 0.0, 1.0 - truth
    fair = good + np.array([[0, 0], [0, -0.4], [-0.4, 0], [0.8, 0.8], [0, 0]])
    scores = np.stack([[good, fair, bad], [bad, fair, good]])
    scores[0, 0, 3] += 1e-3  # slightly below perfect
    chosen = best_on_test(scores, truth)
    assert np.array_equal(chosen, scores[:, 1])


def test_the_short_side_is_resized_before_images_are_squashed(photos):
    encoded = io.BytesIO()
    Image.fromarray(photos[0][:300, :420]).save(encoded, "PNG")
    record = Record({"image": encoded.getvalue()})
    rgb = torch.from_numpy(photos[0][:300, :420].copy()).permute(2, 0, 1)[None].float()
    short = torch.nn.functional.interpolate(rgb, (256, 358), mode="bilinear", antialias=True)
    expected = torch.nn.functional.interpolate(short, (224, 224), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    twice, once = (Squashed(224, resize=resize)(record, None) for resize in (256, 0))
    assert np.abs(twice - expected.numpy()).max() <= 2  # both steps round to 8 bits
    energy = [np.square(np.diff(one.astype(float), axis=1)).mean() for one in (once, twice)]
    assert energy[0] > 1.05 * energy[1]
    view = _view(PROGRAM.parse("svm", ["--data=x", "--backbone=x"]), InputSpec("rgb", 224, 256))
    assert (view.size, view.resize) == (224, 256)


@pytest.fixture(scope="module")
def svm_command(voc) -> list[str]:
    flags = ["--layer=conv3,conv5", "--costs=1,10", "--low-shot=1,2,4", "--draws=2", "--workers=0", "--pooling=global"]
    return ["svm", NET, f"--data={voc}", "--precision=float32", *flags]


def test_svms_are_scikit_learns_and_what_cannot_be_filled_is_named(svm_command, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*svm_command, "--jobs=1", f"--out={out}"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "low-shot 4 is skipped: aeroplane has" in said and "low-shot 2 is skipped" in said
    result = load_result(out)
    assert {f"{layer}/{kind}" for layer in ("conv3", "conv5") for kind in ("svm_map", "low_shot/1")} == set(
        result.metrics
    )
    assert result.rows["conv5/svm"].shape == (20, 20) and result.rows["conv5/low_shot/1"].shape == (20, 2, 20)
    again = tmp_path / "again"
    assert main([*svm_command, "--jobs=2", f"--out={again}"]) == 0
    assert load_result(again).metrics == result.metrics  # whatever runs at once


def test_an_svm_run_goes_on_with_the_layers_that_are_missing(svm_command, tmp_path, monkeypatch, capsys):
    from transfer.protocols.svm import protocol

    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main([*svm_command, "--jobs=1", f"--out={whole}"]) == 0
    original, calls = protocol._classify, []

    def classify(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(protocol, "_classify", classify)
    assert main([*svm_command, "--jobs=1", f"--out={out}"]) == 130
    monkeypatch.setattr(protocol, "_classify", original)
    assert main([*svm_command, "--jobs=1", f"--out={out}"]) == 0 and len(calls) == 2
    assert figures(out)[:2] == figures(whole)[:2]


def test_two_ranks_train_the_svms_that_one_process_trains(svm_command, tmp_path):
    one, two = map(load_result, by_one_and_by_two([*svm_command, "--jobs=1"], tmp_path))
    assert one.metrics == pytest.approx(two.metrics, abs=1e-6)


def test_fairs_choice_looks_at_test_images_and_is_no_worse_there(svm_command, tmp_path, capsys):
    assert main([*svm_command, "--jobs=1", f"--out={tmp_path / 'a'}"]) == 0
    assert main([*svm_command, "--jobs=1", "--choose=test", f"--out={tmp_path / 'b'}"]) == 0
    a, b = (load_result(tmp_path / name).metrics for name in "ab")
    assert b["conv5/low_shot/1"] >= a["conv5/low_shot/1"] - 1e-9 and a["conv5/svm_map"] == b["conv5/svm_map"]
    assert "C selected on test images" in " ".join(capsys.readouterr().out.split())


# --- few labels


def test_a_draw_is_so_many_images_of_each_class():
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 200])
    assert np.bincount(labels[draw_images(labels, "shots/7", 0, 0)]).tolist() == [7] * 5
    assert np.bincount(labels[draw_images(labels, "share/0.1", 0, 0)]).tolist() == [1, 2, 3, 4, 20]
    assert np.bincount(labels[draw_images(labels, "share/0.01", 0, 0)]).tolist() == [1, 1, 1, 1, 2]
    assert not np.array_equal(draw_images(labels, "shots/7", 0, 0), draw_images(labels, "shots/7", 0, 1))


def test_predictions_are_those_of_scikit_learns_logistic_regression():
    generator = np.random.default_rng(2)
    bank, labels = generator.normal(size=(60, 200)), np.arange(60) % 3
    bank[np.arange(60), labels] += 3
    test, chosen = generator.normal(size=(30, 200)), np.arange(5, 50)
    mean, scale = bank[chosen].mean(0), bank[chosen].std()
    reference = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit((bank[chosen] - mean) / scale, labels[chosen])
    found = predict(bank, test, chosen, labels[chosen], [0.1], 3, 0)
    assert (found == reference.predict((test - mean) / scale)).mean() > 0.95


def test_few_shot_leaves_a_run_that_says_what_it_found(photo_folder, tmp_path, capsys):
    command = ["few-shot", NET, f"--data={photo_folder}", "--layer=conv5", "--pooling=global"]
    command += ["--workers=0", "--jobs=1"]
    assert main([*command, "--shots=1,3", "--draws=3", f"--out={tmp_path / 'run'}"]) == 0
    assert "shots 3" in capsys.readouterr().out
    result = load_result(tmp_path / "run")
    assert set(result.metrics) == {"conv5/shots/1", "conv5/shots/3"} and result.n == 10
    assert result.rows["conv5/shots/3"].shape == (10, 3)
    assert result.metrics["conv5/shots/3"] == pytest.approx(result.rows["conv5/shots/3"].mean())
    assert main([*command, "--share=0.5", "--draws=2", f"--out={tmp_path / 'share'}"]) == 0
    assert set(load_result(tmp_path / "share").metrics) == {"conv5/share/0.5"}
    assert main([*command, "--shots=9", f"--out={tmp_path / 'bad'}"]) == 2
    assert "class0 has 4, got 9" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run"), f"--out={tmp_path / 'page'}"]) == 0
    assert "| conv5 |" in (tmp_path / "page" / "report.md").read_text().replace("backbone | conv5", "| conv5")


def test_images_that_are_there_can_be_measured_too(photo_folder):
    """Labels are (n, classes); any classes will do."""
    from crosschannel.data import MemoryImages, open_images

    folder = open_images(str(photo_folder))[0]
    blobs = [folder.read(i) for i in range(40)]
    labels = (np.arange(40)[:, None] % [2, 3, 5] == 0).astype(np.int8)
    images = MemoryImages([str(i) for i in range(40)], labels, blobs, ("a", "b", "c"))
    flags = [flag for flag in STEPS if not flag.startswith("--runtime.eval")]
    config = PROGRAM.parse("classify", ["--config=voc-mini", "--backbone=b", "--data=d", *flags])
    net = NET.partition("=")[2]
    split = Split(images, images, images.classes, "images from memory", allow_overlap=True)
    result = transfer.classify(net, split, config=config)
    assert {"ap/a", "ap/b", "ap/c", "map"} <= set(result.metrics) and result.data == "images from memory"
    flat = MemoryImages(["a"], [0], blobs[:1], ("a", "b", "c"))
    with pytest.raises(UserError, match=r"labels must be \(1, 3\), got \(1,\)"):
        transfer.classify(net, (flat, flat), config=config)
    none = MemoryImages(["a"], np.zeros((1, 3)), blobs[:1], ("a", "b", "c"))
    with pytest.raises(UserError, match="is a positive of any class"):
        transfer.classify(net, (images, none), config=config)


def test_fresh_nets_get_their_statistics_from_the_training_images_alone(voc, command, tmp_path, monkeypatch):
    from crosschannel.hub import untrained

    seen, original = [], untrained.training_batches

    def batches(data, *arguments, **options):
        seen.append(list(data.names))
        return original(data, *arguments, **options)

    monkeypatch.setattr(untrained, "training_batches", batches)
    assert main([*command, "--train.steps=1", f"--out={tmp_path / 'run'}"]) == 0
    assert seen == [[f"VOC2007/{i:06d}" for i in range(40)]]


def test_runs_of_one_backbone_are_one_row_of_table_2(finished, command, tmp_path):
    other = tmp_path / "fc6"
    assert main([*command, "--train-from=fc6", f"--out={other}"]) == 0
    assert main(["report", str(finished), str(other), f"--out={tmp_path / 'page'}"]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    fc6, whole = (100 * load_result(run).metrics["map"] for run in (other, finished))
    assert f"| – | {fc6:.1f} | {whole:.1f} | – | – |" in text and "over 20 classes" in text
    assert (tmp_path / "page" / "pascal-0-20-top-1.png").is_file()


def test_the_net_that_a_run_ended_with_is_loaded_again(finished):
    from transfer.finetuning import FineTunedClassifier, load_net
    from transfer.prediction import FinishedRun

    config = PROGRAM.parse("classify", [f"--config={finished / 'config.yaml'}", "--out=new"])
    run = FinishedRun(finished, config, {}, torch.device("cpu"))
    net, classes, size = load_net(run, lambda backbone, count: FineTunedClassifier(backbone, count, 0.5))
    assert len(classes) == 20 and size == 227
    kept = load_file(finished / "net.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items()) and not net.training
