"""A page of runs: what is averaged, what is marked as published, what is never mixed."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosschannel.files import atomic_write
from crosschannel.runs.result import load_result, save_rows
from transfer.cli import main
from transfer.groups import group
from transfer.pascal.plots import plot_confusion_matrix
from transfer.pascal.published import TABLE_2
from transfer.pascal.segmentation import sparse_confusions
from transfer.protocols.linear_probe.published import IMAGENET_PROBES

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def make_run(path, protocol="linear-probe", backbone="runs/a-0", seed=0, n=1000, classes=10, value=0.5, **config):
    """A finished run folder as the commands write it, with given figures."""
    path.mkdir(parents=True)
    metrics = {f"{layer}/top1": value for layer in LAYERS}
    metrics |= {f"{layer}/top1/c{i}": value for layer in LAYERS for i in range(classes)}
    if protocol != "linear-probe":
        metrics = {"knn": {f"{layer}/knn20": value for layer in LAYERS}, "pretrain": {"kl_share": value}}.get(
            protocol, {"map": value, "ap50": value, "mean_iu": value}
        )
    result = {
        "protocol": protocol, "backbone": backbone, "data": "/data/imagenette", "config": {"seed": seed, **config},
        "seed": seed, "n": n, "version": "0.1.0", "metrics": metrics,
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps(result))
    (path / "config.yaml").write_text("# crosschannel run\n")
    return str(path)


def report(tmp_path, *runs):
    assert main(["report", *runs, f"--out={tmp_path / 'out'}"]) == 0
    return {name: (tmp_path / "out" / name).read_text() for name in ("report.md", "report.html", "tables.tex")}


def test_seeds_are_averaged_and_other_settings_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / f"r{s}", seed=s, value=0.5 + 0.01 * s) for s in range(3)]
    runs += [make_run(tmp_path / "b", pooling="bilinear", value=0.1)]
    groups = group([(path, load_result(path)) for path in runs])
    assert [len(entry.runs) for entry in groups] == [3, 1]
    assert groups[0].mean_and_std("conv1/top1") == pytest.approx((0.51, 0.01))
    assert groups[1].label == "runs/a-0 (pooling=bilinear)"
    text = report(tmp_path, *runs)["report.md"]
    assert "51.0 ± 1.0" in text and "| 10.0 | 10.0 |" in text


@pytest.mark.parametrize(
    ("protocol", "key", "then", "now"),
    [
        ("svm", "resize_first", False, True),
        ("pretrain", "optim.nesterov", False, True),
        ("knn", "pooling", "global", "average"),
    ],
)
def test_old_runs_get_the_legacy_default_of_a_new_key(tmp_path, protocol, key, then, now):
    """Such runs lack the key; they are as runs that have the value of that time, and differ from others."""
    science = {"older": {"unrelated_key": 1}, "same": {"unrelated_key": 1, key: then}}
    science["other"] = {"unrelated_key": 1, key: now}
    runs = []
    for name, values in science.items():
        result = load_result(make_run(tmp_path / name, protocol))
        result.science = values
        runs.append((tmp_path / name, result))
    groups = group(runs)
    assert [len(entry.runs) for entry in groups] == [2, 1]
    assert groups[1].label.endswith(f"({key}={now})")


def test_backbones_are_told_apart_by_their_recipes_too(tmp_path):
    """But not by what follows from the net."""
    runs = [make_run(tmp_path / "a", lr=0.1, layer="conv5"), make_run(tmp_path / "b", backbone="b", lr=1, layer="x")]
    labels = [entry.label for entry in group([(path, load_result(path)) for path in runs])]
    assert labels == ["runs/a-0 (lr=0.1)", "b (lr=1)"]


def test_detection_and_classification_have_figures_by_class_of_their_own(tmp_path):
    runs = [make_run(tmp_path / protocol, protocol, n=128) for protocol in ("classify", "detect")]
    for run, value in zip(runs, (0.25, 0.75), strict=True):
        stored = json.loads((Path(run) / "result.json").read_text())
        stored["metrics"] |= {"ap/dog": value}
        (Path(run) / "result.json").write_text(json.dumps(stored))
    text = report(tmp_path, *runs)["report.md"]
    for words, value in (("classification", "25.0"), ("detection", "75.0")):
        part = text.partition(f"**Average precision of {words} per class")[2].partition("\n\n**")[0]
        assert f"| dog | {value} |" in part and part.count("dog") == 1
    assert text.count("segmentation") == 2 and "VOC07" not in text  # a column, and the sentence above it


def test_pretraining_tasks_have_tables_of_their_own(tmp_path):
    runs = [make_run(tmp_path / task, "pretrain", task=task) for task in ("colorization", "labels")]
    stored = json.loads((tmp_path / "labels" / "result.json").read_text())
    (tmp_path / "labels" / "result.json").write_text(json.dumps(stored | {"metrics": {"top1": 0.25}}))
    text = report(tmp_path, *runs)["report.md"]
    assert "Pretraining with the task labels on imagenette" in text and "| 0.2500 |" in text and "– |" not in text


def test_a_choice_on_the_test_images_is_said(tmp_path):
    run = make_run(tmp_path / "a", "svm", choose="test")
    stored = json.loads((tmp_path / "a" / "result.json").read_text())
    stored["metrics"] = {"conv5/svm_map": 0.5, "conv5/low_shot/4": 0.25}
    (tmp_path / "a" / "result.json").write_text(json.dumps(stored))
    text = report(tmp_path, run)["report.md"]
    words = "Low-shot SVM mAP at k = 4, %, by layer (imagenette, 1,000 images)"
    assert f"**{words}; C is selected on the test images**" in text and text.count("selected on the test images") == 1


def test_next_comes_a_card_of_one_trained_backbone(tmp_path, capsys):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", backbone="random:runs/a-0")]
    runs += [make_run(tmp_path / "c", "pretrain")]
    report(tmp_path, *runs)
    said = capsys.readouterr().err.replace("\n", "")
    assert f"crosschannel export runs/a-0 --out weights/backbone.safetensors --probes {runs[0]}" in said
    assert runs[1] not in said.partition("export")[2] and runs[2] not in said.partition("export")[2]


def test_a_confusion_matrix_of_many_classes_shows_the_largest(tmp_path):
    classes = [f"class {i}" for i in range(150)]
    pixels = sparse_confusions(np.diag(np.arange(150))[None])
    plot_confusion_matrix(tmp_path / "c.png", {"classes": np.array(classes), "confusion": pixels}, atomic_write)
    assert max(Image.open(tmp_path / "c.png").size) < 2500


def test_random_twins_of_several_seeds_are_one_row(tmp_path):
    runs = [make_run(tmp_path / f"r{s}", backbone=f"random:runs/a-0,seed={s}", seed=s) for s in (1, 2)]
    assert report(tmp_path, *runs)["report.md"].count("| random:runs/a-0 |") == 1


def test_published_figures_share_a_table_with_imagenet_runs_only(tmp_path):
    small = report(tmp_path / "small", make_run(tmp_path / "a"))["report.md"]
    assert "(published)" not in small and "their values are not comparable" in small
    large = report(tmp_path / "large", make_run(tmp_path / "b", n=50_000, classes=1000))
    for name, values in IMAGENET_PROBES.items():
        assert f"*{name} (published)* | " + " | ".join(f"*{v}*" for v in values) in large["report.md"]
    assert "not comparable" not in large["report.md"] and r"\midrule" in large["tables.tex"]


def test_the_axis_of_a_small_scale_plot_says_so(tmp_path, monkeypatch):
    """The measured panel names its data; the published one is a panel of its own that names ImageNet."""
    from matplotlib.figure import Figure

    drawn = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), original(self, *a, **k)))
    report(tmp_path, make_run(tmp_path / "a"))
    left, right = drawn[0].axes
    assert "imagenette, 1,000 images of 10 classes" in left.get_ylabel() and "ImageNet" in right.get_ylabel()
    assert {line.get_linestyle() for line in left.lines} == {"-"} and {x.get_linestyle() for x in right.lines} == {":"}
    assert right.lines[0].get_ydata().tolist() == list(IMAGENET_PROBES["ImageNet labels"])


def test_pascal_runs_fill_their_column_of_table_2(tmp_path):
    runs = [
        make_run(tmp_path / start, "classify", n=4952, value=value, train_from=start)
        for start, value in (("fc8", 0.524), ("fc6", 0.615), ("all", 0.659))
    ]
    text = report(tmp_path, *runs)["report.md"]
    assert (
        "| runs/a-0 | 52.4 | 61.5 | 65.9 | – | – |" in text and "*~35*" in text and "Zhang et al. 2016, Table 2" in text
    )
    assert all(f"*{name} (published)*" in text for name in TABLE_2)


def test_pascal_runs_on_some_images_have_a_table_of_their_own(tmp_path):
    runs = [make_run(tmp_path / f"c{n}", "classify", n=n, value=n / 10_000, train_from="fc8") for n in (128, 4952)]
    text = report(tmp_path, *runs)["report.md"]
    apart = text.index("128 images: not comparable with results on all of PASCAL VOC")
    assert (
        "| runs/a-0 | 1.3 | – |" in text[apart:] and "(published)" not in text[apart : text.index("| runs/a-0 | 1.3")]
    )
    assert "| runs/a-0 | 49.5 | – |" in text and text.count("*ImageNet labels (published)*") == 1


def test_nets_of_other_layers_share_a_page(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", backbone="timm:resnet18")]
    stored = json.loads((tmp_path / "b" / "result.json").read_text())
    stored["metrics"] = {name.replace("conv", "stage"): value for name, value in stored["metrics"].items()}
    (tmp_path / "b" / "result.json").write_text(json.dumps(stored))
    text = report(tmp_path, *runs, f"--label={runs[0]}=ours", "--label=timm:resnet18=theirs")["report.md"]
    assert "| backbone | conv1 | conv2 | conv3 | conv4 | conv5 |" in text
    assert "| backbone | stage1 | stage2 | stage3 | stage4 | stage5 |" in text
    assert "| ours | 50.0 | 50.0 |" in text and "| theirs | 50.0 |" in text and "– |" not in text
    assert "by relative depth" in text and (tmp_path / "out" / "linear-probe-0-depth.png").is_file()
    assert text.count("(published)") == 0 and "Dotted" in text.partition("stage1")[0]  # beside nets of such layers


def test_a_label_of_nothing_is_refused(tmp_path, capsys):
    assert main(["report", make_run(tmp_path / "a"), f"--out={tmp_path / 'out'}", "--label=gone=x"]) == 2
    assert "the label 'gone=x' matches none of the runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("{a}=x {a}=y", "{a}: one row of the report has two labels, 'x' and 'y'; keep one of them"),
        ("{a}=x runs/a-0=y", "one row of the report has two labels, 'x' and 'y'"),
        ("{b1}=x {b2}=y", "{b1}, {b2}: one row of the report has two labels, 'x' and 'y'"),
        ("{a}=x {b1}=x", "{a} and {b1} have the same label 'x'; give them different labels"),
        ("{b2}=runs/a-0", "{a} and {b1} have the same label 'runs/a-0'"),
    ],
)
def test_labels_that_collide_are_refused_by_name(tmp_path, capsys, labels, words):
    runs = {"a": make_run(tmp_path / "a"), "b1": make_run(tmp_path / "b1", backbone="other", seed=1)}
    runs["b2"] = make_run(tmp_path / "b2", backbone="other", seed=2)
    flags = [f"--label={label}" for label in labels.format(**runs).split()]
    assert main(["report", *runs.values(), f"--out={tmp_path / 'out'}", *flags]) == 2
    assert words.format(**runs) in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_one_label_for_all_seeds_of_a_row_is_accepted(tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in (1, 2)]
    assert "| ours | 50.0 ± 0.0" in report(tmp_path, *runs, *(f"--label={run}=ours" for run in runs))["report.md"]


def test_what_a_net_has_over_its_random_twin_has_an_interval(tmp_path):
    """Hand-made rows: 60 of 100 images right against 40, paired."""
    runs = [make_run(tmp_path / "a", n=100), make_run(tmp_path / "r", backbone="random:runs/a-0", n=100)]
    for run, right in zip(runs, (60, 40), strict=True):
        stored = json.loads((tmp_path / run / "result.json").read_text())
        stored["metrics"] = {"conv1/top1": right / 100}
        (tmp_path / run / "result.json").write_text(json.dumps(stored))
        rows = {"names": np.array([f"{i}.jpg" for i in range(100)]), "labels": np.zeros(100, np.int64)}
        save_rows(Path(run), rows | {"conv1/top1": np.arange(100) < right})
    caption = "Gain over random initialisation, percentage points, 95 % CI (linear-probe"
    found = report(tmp_path, *runs)["report.md"].partition(caption)[2]
    ((more, low, high),) = re.findall(r"\| runs/a-0 \| \+([\d.]+) \(\+([\d.]+) to \+([\d.]+)\) \|", found)
    draws = np.random.default_rng(0).binomial(100, 0.2, 100_000)  # of the twenty images that they differ on
    assert float(more) == 20
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx([float(low), float(high)], abs=1.5)


def test_any_protocol_has_its_place_and_says_how_it_was_obtained(tmp_path):
    runs = [make_run(tmp_path / p, p) for p in ("linear-probe", "knn", "pretrain")]
    pages = report(tmp_path, *runs)
    for protocol, run in zip(("linear-probe", "knn", "pretrain"), runs, strict=True):
        program = "crosschannel" if protocol == "pretrain" else "transfer"
        assert f"{program} {protocol} --config {run}/config.yaml --out NEW" in pages["report.md"]
    assert "kl_share" in pages["report.md"] and "20-NN top-1 accuracy" in pages["tables.tex"]


def test_the_html_is_well_formed_and_carries_its_plots(tmp_path):
    html = report(tmp_path, make_run(tmp_path / "a", backbone="<b>&|"))["report.html"]
    stack, void = [], {"meta", "img"}

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in void:
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Checker().feed(html)
    assert not stack and "data:image/png;base64," in html and "&lt;b&gt;&amp;|" in html
    assert not re.search(r"https?://", html)  # nothing is fetched


def test_a_real_run_and_its_predictions(finished_probe, tmp_path):
    pages = report(tmp_path, str(finished_probe))
    top1 = load_result(finished_probe).metrics["conv3/top1"]
    assert f"{100 * top1:.1f}" in pages["report.md"] and "photos" in pages["report.md"]
