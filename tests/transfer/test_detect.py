"""`transfer detect` and `transfer proposals`: regions, rules, and the command line."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from devkits import make_devkit
from forked import Forked, run_on_ranks
from PIL import Image
from safetensors.torch import load_file
from scipy.io import savemat
from trained_runs import assert_function_is_command, by_one_and_by_two, figures, killed_and_finished

import transfer
from crosschannel import UserError, load_backbone
from crosschannel.config.load import config_folder
from crosschannel.data import Stream, Subset, load_batches
from crosschannel.data.images import MemoryImages
from crosschannel.models.adapt import absorbed, trainable_copy
from crosschannel.runs.result import load_result
from crosschannel.training.optim import rate
from transfer.boxes import from_voc, overlaps
from transfer.cli import PROGRAM, main
from transfer.pascal.detections import detection_metrics, detection_rows
from transfer.pascal.devkit import Objects, VOCImages
from transfer.proposals.files import WithProposals, load_boxes, recall, save_boxes
from transfer.proposals.selective_search import selective_search
from transfer.protocol import Split
from transfer.protocols.detect.config import FilterConfig, SampleConfig
from transfer.protocols.detect.net import FastRCNN, decode_boxes, encode_boxes
from transfer.protocols.detect.protocol import target_statistics
from transfer.protocols.detect.task import class_candidates, filter_adaptively
from transfer.protocols.detect.views import AllRegions, SampledRegions, sample_regions

pytestmark = pytest.mark.usefixtures("narrow_nets")

STEPS = [
    "--train.batch=4", "--train.steps=6", "--train.precision=float32", "--runtime.workers=0", "--runtime.log_every=2",
    "--runtime.checkpoint_every=2", "--runtime.eval_every=4", "--runtime.tensorboard=false", "--fc=8",
    "--calibrate=false", "--scales=[96,120]", "--longest=200", "--test-scale=110", "--test-longest=200",
    "--keep.score=0.02",
]  # fmt: skip


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos)


@pytest.fixture(scope="module")
def proposals(voc, tmp_path_factory):
    out = tmp_path_factory.mktemp("proposals")
    assert main(["proposals", f"--data={voc}", f"--out={out}", "--workers=0"]) == 0
    return [str(out / f"2007-{name}-selective-search.npz") for name in ("trainval", "test")]


@pytest.fixture(scope="module")
def command(voc, proposals) -> list[str]:
    net = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
    return ["detect", "--config=voc-mini", net, f"--data={voc}", f"--proposals={json.dumps(proposals)}", *STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    out = tmp_path_factory.mktemp("runs") / "detect"
    assert main([*command, f"--out={out}"]) == 0
    return out


# --- boxes and regions


def test_boxes_are_vocs_up_to_where_pixels_are_counted_from():
    """Both ends inside, from 1 on."""
    boxes = np.array([[1.0, 1, 10, 10], [10, 10, 19, 19], [11, 1, 20, 10]])
    found = overlaps(from_voc(boxes), from_voc(boxes))
    assert found[0] == pytest.approx([1, 1 / 199, 0]) and np.array_equal(
        from_voc(boxes) + np.array([1, 1, 0, 0]), boxes
    )


def test_moves_bring_boxes_to_their_targets():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, 2, generator=generator) * 80
    boxes = torch.cat([low, low + 1 + torch.rand(50, 2, 2, generator=generator) * 60], -1)
    there = decode_boxes(boxes[:, :1], encode_boxes(boxes[:, 0], boxes[:, 1])[:, None])
    assert torch.allclose(there[:, 0], boxes[:, 1], atol=1e-3)
    huge = decode_boxes(boxes[:1, :1], torch.tensor([[[0.0, 0, 90, 0]]]))[0, 0]
    assert (huge[2] - huge[0]) / (boxes[0, 0, 2] - boxes[0, 0, 0]) == pytest.approx(62.5)


def test_regions_are_sampled_as_fast_rcnn_does():
    truth, classes = np.array([[10.0, 10, 60, 60], [70, 70, 90, 95]]), np.array([3, 7])
    generator = np.random.default_rng(0)
    low = generator.uniform(0, 60, (400, 2))
    boxes = np.concatenate([truth, np.hstack([low, low + generator.uniform(5, 50, (400, 2))])])
    best = overlaps(boxes, truth).max(1)
    sample = SampleConfig(regions=64)
    found, labels, targets = sample_regions(boxes, truth, classes, 20, sample, np.random.default_rng(1))
    shown = labels < 20
    near = overlaps(found, truth)
    assert len(found) == 64 and shown.sum() == min(16, (best >= 0.5).sum()) > 3
    assert (near.max(1)[shown] >= 0.5).all() and (labels[shown] == classes[near.argmax(1)[shown]]).all()
    assert (targets[shown] == truth[near.argmax(1)[shown]]).all()
    assert ((near.max(1)[~shown] >= 0.1) & (near.max(1)[~shown] < 0.5)).all()
    again = sample_regions(boxes, truth, classes, 20, sample, np.random.default_rng(1))[0]
    assert np.array_equal(found, again)
    everything, labels, _ = sample_regions(
        boxes, truth, classes, 20, SampleConfig(regions=1000, foreground=1.0), np.random.default_rng(1)
    )
    assert len(everything) == (best >= 0.1).sum() and (labels < 20).sum() == (best >= 0.5).sum()
    nothing = sample_regions(boxes, truth[:0], classes[:0], 20, sample, np.random.default_rng(1))
    assert len(nothing[0]) == 0  # no region overlaps what is not there by a tenth
    all_background = replace(sample, background=(0.0, 0.5))
    assert len(sample_regions(boxes, truth[:0], classes[:0], 20, all_background, np.random.default_rng(1))[0]) == 64


def test_a_view_resizes_and_mirrors_an_image_and_its_boxes_alike():
    """A bright square on black stays where its box is."""
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[20:40, 10:50] = 255
    images = memory(pixels, Objects(np.array([[11.0, 21, 50, 40]]), np.array([4]), np.array([False])))
    view = SampledRegions(20, SampleConfig(regions=8), (48, 90, 120), 400)
    seen = set()
    for number in range(24):
        stream = Stream(images, view, number)
        batch = next(load_batches(stream, 0, 1, 1))
        (image,), (regions,) = batch.images, batch.regions
        seen.add((image.shape[1], bool(image[0, :, : image.shape[2] // 2].float().mean() > 60)))
        assert regions.labels[0] == 4 and torch.equal(regions.boxes[0], regions.objects[0])
        left, top, right, bottom = regions.objects[0].tolist()
        rows, columns = (image[0] > 128).nonzero().T
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx(
            [left, top, right, bottom], abs=1
        )
    assert len(seen) == 6  # three sizes, mirrored and not


def memory(pixels, objects, boxes=((10, 20, 50, 40), (0, 0, 30, 30))):
    import io

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")

    class AnnotatedImages(MemoryImages):
        def fields(self, index):
            return {"objects": objects}

    images = AnnotatedImages(["one"], [0], [file.getvalue()])
    return WithProposals(images, {"one": np.array(boxes, np.float32).reshape(-1, 4)}, "a test")


def test_target_statistics_are_those_of_regions_that_show_something(voc, proposals):
    boxes = {name: found for path in proposals for name, found in load_boxes(path).items()}
    images = WithProposals(VOCImages(voc, [("2007", "trainval")]), boxes, "test")
    config = PROGRAM.parse("detect", ["--config=voc-mini", "--data=x", "--backbone=x"])
    config = replace(config, mirror=False)
    mean, deviation = target_statistics(images, 20, config)
    moves: dict[int, list] = {}
    for index in range(len(images)):
        objects, found = images.fields(index).values()
        truth, classes = from_voc(objects.boxes)[~objects.difficult], objects.classes[~objects.difficult]
        for box in [*truth, *found.astype(float)]:
            shared = [float(overlaps(box[None], one[None])[0, 0]) for one in truth]
            if max(shared) >= 0.5:
                one, own = truth[int(np.argmax(shared))], classes[int(np.argmax(shared))]
                w, h = box[2] - box[0], box[3] - box[1]
                tw, th = one[2] - one[0], one[3] - one[1]
                dx, dy = (one[0] + tw / 2 - box[0] - w / 2) / w, (one[1] + th / 2 - box[1] - h / 2) / h
                moves.setdefault(int(own), []).append([dx, dy, np.log(tw / w), np.log(th / h)])
    for number, found in moves.items():
        assert mean[number].numpy() == pytest.approx(np.mean(found, 0), abs=1e-6)
        assert deviation[number].numpy() == pytest.approx(np.maximum(np.std(found, 0), 0.01), abs=1e-6)
    mirrored, _ = target_statistics(images, 20, replace(config, mirror=True))
    assert (mirrored[:, 0] == 0).all() and torch.equal(mirrored[:, 1:], mean[:, 1:])


EDGES = {
    "no proposals": ((), [[11.0, 21, 50, 40]], [False], 1),
    "no objects": (((10, 20, 50, 40),), [], [], 0),
    "neither": ((), [], [], 0),
    "difficult objects alone": (((10, 20, 50, 40),), [[11.0, 21, 50, 40]], [True], 0),
    "boxes a pixel beyond the image": (((-1, -1, 50, 40), (90, 50, 101, 61)), [[0.0, 21, 50, 61]], [False], 2),
    "boxes of one pixel": (((10, 20, 11, 21), (99, 59, 100, 60)), [[11.0, 21, 11, 21]], [False], 2),
}


@pytest.mark.parametrize("boxes, objects, hard, learned", EDGES.values(), ids=EDGES)
def test_odd_images_are_learned_and_scored(boxes, objects, hard, learned):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 100, 3)).astype(np.uint8)
    truth = Objects(np.array(objects, float).reshape(-1, 4), np.zeros(len(objects), np.int64), np.array(hard, bool))
    images = memory(pixels, truth, boxes)
    config = PROGRAM.parse("detect", ["--config=voc-mini", "--data=x", "--backbone=x"])
    net = FastRCNN(absorbed(trainable_copy(load_backbone("random:alexnet,fc=8,seed=1"))), 20, config)
    batch = next(load_batches(Stream(images, SampledRegions(20, config.sample, (90,), 400), 0), 0, 1, 1))
    assert len(batch.regions[0].labels) >= learned and bool((batch.regions[0].labels < 20).any()) == bool(learned)
    loss, count = net.train()(batch)
    loss.backward()
    assert torch.isfinite(loss) and count == len(batch.regions[0].labels) and (loss == 0) == (count == 0)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    test = next(load_batches(Stream(images, AllRegions(90, 400)), 0, 1, 1))
    with torch.no_grad():
        ((found, scores),) = net.eval().detect(test)
    assert len(found) == len(scores) <= len(boxes) and torch.isfinite(found).all()


# --- which detections are kept


def test_the_adaptive_rule_is_fast_rcnns():
    """Against its own way: a heap of scores by class, filled image by image."""
    import heapq

    generator = torch.Generator().manual_seed(0)
    images, classes, config = 7, 3, FilterConfig("adaptive", nms=0.3, most=100)
    everything = []
    for _ in range(images):
        low = torch.rand(180, classes, 2, generator=generator) * 80
        boxes = torch.cat([low, low + 5 + torch.rand(180, classes, 2, generator=generator) * 40], -1)
        everything.append((boxes, torch.rand(180, classes, generator=generator)))
    ours = filter_adaptively([class_candidates(*one, config).numpy() for one in everything], classes, config)
    heaps, thresholds = [[] for _ in range(classes)], [-np.inf] * classes
    kept = [[[] for _ in range(classes)] for _ in range(images)]
    for i, (boxes, scores) in enumerate(everything):
        for j in range(classes):
            order = [k for k in scores[:, j].argsort(descending=True).tolist() if scores[k, j] > thresholds[j]][:100]
            for k in order:
                heapq.heappush(heaps[j], float(scores[k, j]))
                kept[i][j].append((float(scores[k, j]), boxes[k, j].tolist()))
            if len(heaps[j]) > 40 * images:
                while len(heaps[j]) > 40 * images:
                    heapq.heappop(heaps[j])
                thresholds[j] = heaps[j][0]
    for i in range(images):
        expected = []
        for j in range(classes):
            chosen: list = []
            for score, box in sorted((one for one in kept[i][j] if one[0] > thresholds[j]), reverse=True):
                near = [overlaps(np.array([box]), np.array([other]))[0, 0] for _, other in chosen]
                if not near or max(near) <= 0.3:
                    chosen.append((score, box))
            expected += [(score, j, box) for score, box in chosen]
        expected.sort(reverse=True)
        assert [row[0] for row in expected] == pytest.approx(ours[i][:, 1].tolist())
        assert [row[1] for row in expected] == ours[i][:, 0].astype(int).tolist()


def test_figures_of_a_perfect_and_of_an_empty_answer():
    boxes = np.array([[1.0, 1, 20, 20], [30, 30, 60, 50]])
    objects = [Objects(boxes, np.array([0, 2]), np.array([False, False]))] * 3
    perfect = np.concatenate([np.array([[0, 0.9], [2, 0.8]]), from_voc(boxes)], 1)
    ones = np.ones((1, 3))
    found = detection_metrics(detection_rows("abc", ("x", "y", "z"), [perfect] * 3, objects), ones)
    assert all(value[0] == pytest.approx(1) for value in found.values()) and "ap/y" not in found
    none = detection_metrics(detection_rows("abc", ("x", "y", "z"), [np.empty((0, 6))] * 3, objects), ones)
    assert all(value[0] == 0 for value in none.values()) and none.keys() == found.keys()


def test_a_resample_of_images_is_a_weight(finished):
    rows = load_result(finished).rows
    chosen = np.random.default_rng(0).integers(0, 20, 20)
    weights = np.bincount(chosen, minlength=20)[None].astype(float)
    taken = {name: column if name == "classes" else column[chosen] for name, column in rows.items()}
    weighted, expected = detection_metrics(rows, weights), detection_metrics(taken, np.ones((1, 20)))
    # Equal scores of one image twice stand beside each other, once each of weight two.
    assert weighted["map"][0] == pytest.approx(expected["map"][0], abs=0.02)


# --- proposals


def test_selective_search_finds_the_same_boxes_of_the_image_every_time(photos):
    pixels = photos[0][:120, :160]
    for mode in ("fast", "quality"):
        boxes = selective_search(pixels, mode)
        assert np.array_equal(boxes, selective_search(pixels, mode)) and 20 < len(boxes) <= 2000
        assert boxes.min() >= 0 and boxes[:, 2].max() <= 160 and boxes[:, 3].max() <= 120
        assert len(np.unique(boxes, axis=0)) == len(boxes) and (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(selective_search(pixels, "quality", 30)) == 30


def test_recall_is_the_share_of_objects_that_a_box_overlaps():
    truths = [np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), np.array([[0.0, 0, 10, 10]])]
    boxes = [np.array([[0.0, 0, 10, 9]]), np.empty((0, 4))]
    assert recall(truths, boxes) == pytest.approx(1 / 3) and recall(truths, boxes, 0.95) == 0


def test_mat_files_are_read_as_they_were_published(voc, proposals, tmp_path):
    """1-based y₁ x₁ y₂ x₂, both ends inside."""
    boxes = load_boxes(proposals[0])
    names = list(boxes)
    cells, images = np.empty((1, len(names)), object), np.empty((len(names), 1), object)
    for number, name in enumerate(names):
        cells[0, number] = boxes[name][:, [1, 0, 3, 2]] + np.array([1, 1, 0, 0])
        images[number, 0] = name.partition("/")[2]
    savemat(tmp_path / "train.mat", {"boxes": cells, "images": images})
    found = load_boxes(tmp_path / "train.mat")
    again = WithProposals(VOCImages(voc, [("2007", "trainval")]), found, "a file")
    assert all(np.array_equal(again.fields(i)["proposals"], boxes[name]) for i, name in enumerate(names))


def test_proposals_go_on_where_they_were_stopped(voc, tmp_path, proposals, monkeypatch):
    """Killed after a few images; the same command ends with the same file, and looks at no image twice."""
    searched: list[int] = []

    def watched(*arguments):
        searched.append(1)
        return selective_search(*arguments)

    out = tmp_path / "proposals"
    words = ["proposals", f"--data={voc}", f"--out={out}", "--workers=0", "--sets=2007:trainval"]
    parts = out / ".2007-trainval-selective-search.npz.parts"
    with Forked(lambda: main(words)) as process:
        while not list(parts.glob("*.npz")) and process.poll() is None:
            pass
    kept = [load_boxes(path) for path in parts.glob("*.npz") if path.stat().st_size]
    assert kept and not (out / "2007-trainval-selective-search.npz").exists()
    monkeypatch.setattr("transfer.proposals.selective_search.selective_search", watched)
    assert main(words) == 0 and not parts.exists()
    assert len(searched) == 40 - sum(map(len, kept))
    found, expected = (load_boxes(p) for p in (out / "2007-trainval-selective-search.npz", proposals[0]))
    assert list(found) == list(expected) and all(np.array_equal(found[name], expected[name]) for name in found)


def test_without_proposals_they_are_made_once_and_kept(command, proposals, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    words = [word for word in command if not word.startswith("--proposals")]
    assert main([*words, f"--out={tmp_path / 'run'}"]) == 0
    assert figures(tmp_path / "run")[1] == figures(finished)[1]
    assert len(list((tmp_path / "cache" / "proposals").glob("*.npz"))) == 2
    monkeypatch.setattr("transfer.proposals.compute._search", None)
    assert main([*words, "--seed=1", f"--out={tmp_path / 'other'}"]) == 0


# --- the command


def test_a_run_folder_holds_its_weights_rows_and_pictures(finished, command, capsys):
    names = {p.name for p in finished.iterdir()} - {".lock"}
    written = {"config.yaml", "images.json", "metrics.jsonl", "checkpoints", "samples", "backbone.json"}
    assert names == written | {"predictions.npz", "result.json", "net.safetensors", "inputs.json"}
    result = load_result(finished)
    assert result.n == 20 and len(result.rows["detections"]) == 20 and len(result.rows["detections"].values) > 20
    classes = {name for name in result.metrics if name.startswith("ap/")}
    assert result.metrics["map"] == pytest.approx(np.mean([result.metrics[name] for name in classes]))
    assert Image.open(finished / "samples" / "detected-000000006.png").width == 4 * 240 + 3 * 6
    assert main([*command, f"--out={finished}"]) == 0 and "finished" in capsys.readouterr().err


def test_kill_9_and_the_same_command_end_where_the_uninterrupted_run_ends(command, finished, tmp_path):
    out = killed_and_finished(command, tmp_path / "run", "step 2/6", "step 4/6")
    assert figures(out) == figures(finished)
    ours, theirs = (load_file(run / "net.safetensors") for run in (out, finished))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_does_not_go_on_with_other_proposals(command, proposals, tmp_path, capsys):
    copies = [str(tmp_path / Path(path).name) for path in proposals]
    for path, copy in zip(proposals, copies, strict=True):
        shutil.copy(path, copy)
    words = [*command, f"--proposals={json.dumps(copies)}", "--train.steps=2", f"--out={tmp_path / 'run'}"]
    assert main(words) == 0
    save_boxes(Path(copies[1]), {name: boxes[:5] for name, boxes in load_boxes(copies[1]).items()}, {})
    assert main(words) == 2 and "proposals" in capsys.readouterr().err


def test_two_ranks_find_what_one_process_finds(command, tmp_path):
    flags = ["--dropout=0", "--train.steps=4", "--optim.name=sgd"]
    one, two = by_one_and_by_two([*command, *flags], tmp_path)
    (_, rows, log), (_, other_rows, other_log) = figures(one), figures(two)
    assert rows["names"] == other_rows["names"] and rows["objects"] == other_rows["objects"]
    losses = [[row["train/loss"] for row in part if "train/loss" in row] for part in (log, other_log)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    scores = [sorted(row[1] for row in part["detections"]) for part in (rows, other_rows)]
    assert abs(len(scores[0]) - len(scores[1])) <= 0.05 * len(scores[0])
    assert scores[0][-20:] == pytest.approx(scores[1][-20:], rel=1e-2)


def test_a_broken_test_image_is_named_and_left_out(voc, command, finished, tmp_path, monkeypatch):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    (tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000059.jpg").write_bytes(b"no image")
    words = [word for word in command if not word.startswith("--proposals")]
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    flags = [f"--data={tmp_path / 'VOCdevkit'}", f"--out={tmp_path / 'run'}"]
    # Two ranks, one of which has no image in the last round of 19.
    (status, output), (other_status, _) = run_on_ranks(lambda: main([*words, *flags]))
    assert (status, other_status) == (0, 0) and "broken held-out image VOC2007/000059" in output
    result = load_result(tmp_path / "run")
    assert result.n == 19 and set(result.rows["names"]) == set(load_result(finished).rows["names"]) - {"VOC2007/000059"}


def test_the_function_is_the_command_and_leaves_the_backbone_as_it_was(command, finished, voc):
    assert_function_is_command("detect", command, finished, voc)


def test_runs_are_compared_and_reported(finished, command, tmp_path, capsys):
    other = tmp_path / "other"
    assert main([*command, "--seed=3", "--keep.rule=adaptive", f"--out={other}"]) == 0
    capsys.readouterr()
    assert main(["compare", str(finished), str(other), "--resamples=200"]) == 0
    said = capsys.readouterr().out
    assert "map" in said and "11-point/ap75" in said and "ap/dog" not in said
    page = tmp_path / "page"
    assert main(["report", str(finished), f"--out={page}"]) == 0
    value = 100 * load_result(finished).metrics["map"]
    assert f"| – | – | – | {value:.1f} | – |" in (page / "report.md").read_text()
    for name in ("pascal-0-20-detect-ap.png", "pascal-0-20-detected-0.png"):
        assert Image.open(page / name).size[0] > 500


def test_predicted_boxes_are_those_that_were_scored(finished, voc, tmp_path):
    """Where the same proposals are found for a picture."""
    result = load_result(finished)
    predict = transfer.load_predictor(finished)
    place = int(np.argmax(result.rows["detections"].counts))
    path = voc / "VOC2007" / "JPEGImages" / f"{result.rows['names'][place].partition('/')[2]}.jpg"
    found = predict(path.read_bytes())
    rows = result.rows["detections"][np.array([place])].values
    best = rows[np.argsort(-rows[:, 1], kind="stable")]
    assert len(found.boxes) == len(best)
    assert [box[1] for box in found.boxes] == pytest.approx(best[:, 1].tolist(), abs=1e-5)
    assert found.pictures["boxes"].size == Image.open(path).size
    out = tmp_path / "predicted"
    assert main(["predict", str(finished), str(path), f"--out={out}"]) == 0
    lines = (out / "boxes.csv").read_text().splitlines()
    assert lines[0] == "picture,class,score,left,top,right,bottom" and len(lines) == 1 + len(best)
    assert {p.name for p in out.glob("*.png")} == {f"{path.stem}-boxes.png", "sheet-1.png"}


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("random:timm:test_resnet", ["--roi.resolution=4", "--roi.norm=true"]),
        ("torchvision:resnet18,weights=none", ["--roi.resolution=2", "--frozen_norm=true", "--train_from=layer2"]),
        ("random:timm:vit_tiny_patch16_224,size=96,resize=110", ["--roi.pooling=align", "--roi.width=16"]),
        ("random:alexnet,fc=0,size=64,resize=72", ["--input=lab", "--roi.geometry=probe"]),
    ],
)
def test_any_backbone_detects_and_predicts(command, source, flags, tmp_path, voc):
    words = [*command, f"--backbone={source}", "--train.steps=2", *flags, f"--out={tmp_path / 'run'}"]
    assert main(words) == 0
    picture = next((voc / "VOC2007" / "JPEGImages").glob("*.jpg"))
    found = transfer.load_predictor(tmp_path / "run")(picture.read_bytes())
    assert found.boxes and found.pictures["boxes"].size == Image.open(picture).size


def test_frozen_layers_stay_and_others_move(command, tmp_path):
    run = tmp_path / "run"
    assert main([*command, "--train_from=conv3", "--absorb=false", f"--out={run}"]) == 0
    begun, ended = load_backbone("random:alexnet,fc=0,size=64,resize=72,seed=1").net, load_file(run / "net.safetensors")
    for layer, same in (("conv1", True), ("conv2", True), ("conv3", False), ("conv5", False)):
        name = f"{layer}.conv.weight"
        assert torch.equal(begun.state_dict()[name], ended[f"backbone.net.{name}"]) == same, layer


def test_every_packaged_config_is_valid_and_papers_is_the_papers():
    for path in sorted((config_folder() / "transfer" / "detect").glob("*.yaml")):
        PROGRAM.parse("detect", [f"--config={path}", "--data=x", "--backbone=random:runs/a-0"])
    paper, default, faster = (
        PROGRAM.parse("detect", [*flags, "--data=x", "--backbone=x"])
        for flags in (["--config=paper"], [], ["--config=faster-rcnn-c4"])
    )
    for config in (paper, default):
        optim, sample = config.optim, config.sample
        assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.bias_lr) == ("sgd", 1e-3, 0.9, 5e-4, 2)
        assert (config.train.batch, config.train.steps, sample.regions) == (2, 150_000, 64)
        assert (config.schedule.kind, config.schedule.every, config.schedule.factor) == ("step", 50_000, 0.1)
        assert (config.scales, config.longest) == ([480, 576, 688, 864, 1200], 2000)
        assert (config.test_scale, config.test_longest, config.mirror) == (600, 1000, True)
        assert (sample.foreground, sample.overlap, sample.background) == (0.25, 0.5, (0.1, 0.5))
        assert (sample.targets, sample.beta, config.dropout) == ("by-class", 1.0, 0.5)
        assert (config.keep.score, config.keep.nms, config.keep.most) == (0.05, 0.3, 100)
        assert (config.train_set, config.test_set, config.roi.geometry) == ("2007:trainval", "2007:test", "padded")
    assert (paper.sample.difficult, paper.keep.rule) == (True, "adaptive")  # Fast R-CNN's code
    assert (default.sample.difficult, default.keep.rule) == (False, "score")  # py-faster-rcnn's
    assert faster.train_set == "2007:trainval,2012:trainval" and (faster.train.batch, faster.train.steps) == (16, 24000)
    rates = [rate(step, 24000, faster.optim.lr, faster.schedule) for step in (0, 50, 100, 17999, 18000, 22000)]
    assert rates == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 2e-3, 2e-4])
    assert (faster.optim.weight_decay, faster.optim.bias_decay, faster.optim.momentum) == (1e-4, False, 0.9)
    assert (faster.roi.head, faster.roi.pooling, faster.roi.resolution, faster.roi.aligned) == (
        "c4",
        "align",
        14,
        False,
    )
    assert (faster.sync_norm, faster.frozen_norm, faster.train_from) == (True, False, "all")
    sample, keep = faster.sample, faster.keep
    assert (sample.regions, sample.background, sample.difficult, sample.beta) == (512, (0.0, 0.5), True, 0.0)
    assert (keep.score, keep.nms, keep.most, faster.rpn.before, faster.rpn.nms) == (0.05, 0.5, 100, (12000, 6000), 0.7)
    assert (faster.longest, faster.test_scale, faster.test_longest, faster.method) == (1333, 800, 1333, "rpn")
    assert faster.scales == list(range(480, 801, 32)) and faster.rpn.after == (2000, 1000)


BAD = [
    ("proposals of other images", lambda r, p: [f'--proposals=["{p[1]}"]'], "lacks proposals for 40 of the 40", True),
    ("boxes beyond the images", lambda r, p: [f'--proposals=["{far(r, p)}"]'], "does not lie in the image", True),
    ("no such file", lambda r, p: ['--proposals=["none.npz"]'], "none.npz", True),
    ("a file that is none", lambda r, p: [f'--proposals=["{r / "VOCdevkit/VOC2007/JPEGImages/000000.jpg"}"]'],
     "a proposals file must be .npz", True),
    ("rpn with the other engine", lambda r, p: ["--proposals=[rpn]", "--sample.targets=fixed"], "needs engine", True),
    ("a method among files", lambda r, p: [f'--proposals=["{p[0]}","rpn"]'], "proposals must be one of", True),
    ("a norm where there is no last stage", lambda r, p: ["--roi.norm=true"], "roi.norm needs the head c4", False),
    ("a batch that ranks cannot share", lambda r, p: ["--train.accumulate=3"], "must be a multiple", False),
    ("bounds of background", lambda r, p: ["--sample.background=[0.6,0.2]"], "must ascend", True),
    ("no such layer", lambda r, p: ["--roi.layer=conv9"], "unknown layer 'conv9'", False),
    ("another layer than fc6's", lambda r, p: ["--roi.layer=conv3"], "head fc needs layer conv5", False),
    ("another resolution than fc6's", lambda r, p: ["--roi.resolution=7"], "fc6 of this backbone requires", False),
    ("a head that is not there", lambda r, p: ["--roi.head=c4"], "is not a ResNet", False),
    ("a batch of more than there is", lambda r, p: ["--train.batch=64"], "training images", False),
    ("an annotation that is gone", lambda r, p: gone(r), "lacks the annotation", True),
    ("difficult objects alone", lambda r, p: difficult(r), "is a positive of any class", True),
]  # fmt: skip


def far(root, paths):
    found = {name: boxes + 500 for path in paths for name, boxes in load_boxes(path).items()}
    save_boxes(root / "far.npz", found, {})
    return root / "far.npz"


def gone(root):
    (root / "VOCdevkit/VOC2007/Annotations/000003.xml").unlink()
    return []


def difficult(root):
    for path in (root / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        path.write_text(re.sub("<difficult>0", "<difficult>1", path.read_text()))
    return []


@pytest.mark.parametrize(("damage", "words", "early"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_one_sentence(voc, command, proposals, tmp_path, capsys, monkeypatch, damage, words, early):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    flags = damage(tmp_path, proposals)
    if early:
        monkeypatch.setattr("transfer.protocol.load_backbone", None)
    out = tmp_path / "out"
    assert main([*command, f"--data={tmp_path / 'VOCdevkit'}", *flags, f"--out={out}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("transfer: ") and words in error and "Traceback" not in error
    assert not (out / "config.yaml").exists()


def test_a_missing_engine_or_opencv_is_said_before_anything_is_made(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transfer.proposals.compute.compute_boxes", None)
    monkeypatch.setattr("transfer.protocol.load_backbone", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main([*command, "--engine=detectron2", f"--out={tmp_path / 'a'}"]) == 2
    assert "pip install 'git+https://github.com/facebookresearch/detectron2'" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cv2", None)
    words = [word for word in command if not word.startswith("--proposals")]
    for line in ([*words, f"--out={tmp_path / 'b'}"], ["proposals", "--data=x", f"--out={tmp_path / 'c'}"]):
        assert main(line) == 2
        assert "opencv-contrib-python-headless" in capsys.readouterr().err


def test_a_damaged_file_of_proposals_is_one_sentence(proposals, tmp_path):
    data = (tmp_path / "half.npz", tmp_path / "bad.mat")
    for path in data:
        path.write_bytes(Path(proposals[0]).read_bytes()[:2000])
        with pytest.raises(UserError, match="damaged"):
            load_boxes(path)
    savemat(tmp_path / "other.mat", {"x": np.zeros(3)})
    with pytest.raises(UserError, match="lacks the variables images and boxes"):
        load_boxes(tmp_path / "other.mat")


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(real_data, tmp_path, monkeypatch):
    """From random weights, with real proposals (three minutes on two cores)."""
    data = real_data / "voc-mini" / "VOCdevkit"
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path))
    images = VOCImages(data, [("2007", "trainval")])
    eight = Subset(images, np.linspace(0, len(images) - 1, 8).astype(int))
    flags = [
        "--dropout=0", "--mirror=false", "--scales=[288]", "--optim.lr=3e-4", "--optim.weight_decay=0",
        "--sample.regions=128", "--train.batch=8", "--train.steps=300",
    ]  # fmt: skip
    config = PROGRAM.parse("detect", ["--config=voc-mini", f"--data={data}", "--backbone=x", *flags])
    split = Split(eight, eight, images.classes, "eight images", allow_overlap=True)
    result = transfer.detect("random:alexnet,fc=512", split, config)
    assert result.metrics["map"] > 0.6 and result.metrics["ap50"] > 0.6
