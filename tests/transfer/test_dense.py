"""`transfer dense`: points, their labels and neighbours against brute force, and the command as a user runs it."""

import re
import shutil

import numpy as np
import pytest
import torch
from devkits import make_devkit, save_mask
from forked import check_on_ranks, run_on_ranks
from PIL import Image
from torch.nn import functional as F
from trained_runs import killed_and_finished

import transfer
from crosschannel import UserError, load_backbone
from crosschannel.config.load import config_folder
from crosschannel.runs.result import load_result
from transfer.cli import PROGRAM, main
from transfer.interpolation import line_weights, pooled_centres, resample, resized_positions
from transfer.neighbours import neighbours
from transfer.pascal.segmentation import sum_confusions
from transfer.protocols.dense.linear import DenseHeads
from transfer.protocols.dense.memory import PointMemory
from transfer.protocols.dense.points import Points

pytestmark = pytest.mark.usefixtures("narrow_nets")
NET = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
STEPS = [
    "--grid=6", "--mask-size=24", "--train.batch=8", "--train.steps=12", "--train.epochs=1", "--layer=conv3,conv5",
    "--k=5", "--runtime.workers=0", "--runtime.log_every=4", "--runtime.checkpoint_every=4",
    "--train.precision=float32", "--runtime.tensorboard=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos, masks=True)


@pytest.fixture(scope="module")
def command(voc) -> list[str]:
    return ["dense", "--config=voc-mini", NET, f"--data={voc}", *STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    out = tmp_path_factory.mktemp("runs") / "dense"
    assert main([*command, f"--out={out}"]) == 0
    return out


# --- points


def test_weights_along_a_line_are_numpys_interpolation():
    centres = torch.tensor([2.0, 5.0, 6.5, 11.0])
    places = torch.linspace(-3, 15, 50)
    values = np.array([1.0, -2.0, 0.5, 4.0])
    found = line_weights(centres, places) @ torch.tensor(values).float()
    assert found.numpy() == pytest.approx(np.interp(places, centres, values), abs=1e-5)
    assert (line_weights(torch.tensor([3.0]), places) == 1).all()
    faded = line_weights(torch.tensor([0.0, 4.0]), torch.tensor([-4.0, -1.0, 0.0, 1.0, 7.0]), fade=4)
    assert faded.tolist() == [[0, 0], [0.75, 0], [1, 0], [0.75, 0.25], [0, 0.25]]


def test_maps_that_tile_an_image_are_upsampled_as_torch_does_it():
    """Patches of a ViT: the centres of equal tiles."""
    maps = torch.randn(2, 3, 4, 4)
    centres = pooled_centres(7.5, 16, 4, 4)
    rows, columns = (line_weights(centres, resized_positions(side, 64)) for side in (50, 90))
    expected = F.interpolate(maps, (50, 90), mode="bilinear", align_corners=False)
    assert torch.allclose(resample(maps, rows, columns), expected, atol=1e-5)


def test_averaged_points_lie_in_the_middle_of_what_they_average():
    line = torch.arange(7, dtype=torch.float64) * 4 + 5
    expected = F.adaptive_avg_pool1d(line[None, None], 3)[0, 0]
    assert torch.allclose(pooled_centres(5, 4, 7, 3), expected)


def test_the_labels_of_a_point_are_those_of_the_pixels_nearest_to_it():
    generator = np.random.default_rng(0)
    points = Points(torch.tensor([5.0, 21.0, 40.0], dtype=torch.float64), 48)
    masks = torch.from_numpy(generator.choice([0, 1, 2, 255], (2, 24, 24)).astype(np.uint8))
    masks[1, 16:, 16:] = 255
    found = points.histograms(masks, 3)
    for n in range(2):
        counts = np.zeros((3, 3, 3))
        for y in range(24):
            for x in range(24):
                i, j = (int(np.abs(points.centres.numpy() - (2 * place + 0.5)).argmin()) for place in (y, x))
                if masks[n, y, x] != 255:
                    counts[i, j, masks[n, y, x]] += 1
        expected = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
        assert found[n].numpy() == pytest.approx(expected)
    assert not found[1, 2, 2].any()


@pytest.mark.parametrize("source", ["gaussian:alexnet,fc=0,geometry=probe,seed=3", "random:timm:vit_tiny_patch16_224"])
def test_the_points_of_a_layer_are_where_it_sees(source):
    """A spot in the image changes the point that is said to lie on it more than any other."""
    backbone = load_backbone(source)
    layer = "conv3" if "alexnet" in source else "block1"
    blank = torch.full((1, 3, backbone.input.size, backbone.input.size), 0.5)
    pooled = backbone(blank, [layer])[layer].shape[3]
    points = Points.from_layer(backbone, layer, pooled, backbone.input.size)
    for i in (3, 6, 9):
        spotted, (y, x) = blank.clone(), (int(points.centres[i]), int(points.centres[i - 2]))
        spotted[:, :, y - 2 : y + 3, x - 2 : x + 3] = 1
        change = (backbone(spotted, [layer])[layer] - backbone(blank, [layer])[layer]).abs().sum(1)[0]
        assert divmod(int(change.argmax()), pooled) == (i, i - 2)


# --- neighbours


def test_equal_cosines_go_by_index_in_chunks_of_any_size():
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(-1, 2, (300, 3), generator=generator).float()  # many are equal
    bank[bank.abs().sum(1) == 0] = 1
    queries = torch.randn(40, 3, generator=generator)
    cosines = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    expected = cosines.sort(dim=1, descending=True, stable=True)
    for chunk in (7, 64, 4096):
        where, best = neighbours(queries, bank, 9, chunk=chunk)
        assert torch.allclose(best, expected.values[:, :9], atol=1e-6)
        tied = torch.gather(cosines, 1, where)
        assert torch.allclose(tied, expected.values[:, :9], atol=1e-6)
        assert (where.sort(1).values.diff(dim=1) > 0).all()  # none twice


def test_a_memory_of_points_votes_as_a_loop_does():
    generator = torch.Generator().manual_seed(1)
    maps, queries = torch.randn(3, 5, 4, 4, generator=generator), torch.randn(2, 5, 4, 4, generator=generator)
    labels = torch.rand(3, 4, 4, 2, generator=generator)
    labels /= labels.sum(-1, keepdim=True)
    labels[0, :2] = 0  # without labelled pixels
    cpu = torch.device("cpu")
    memory = PointMemory.from_maps([(maps[:1], labels[:1]), (maps[1:], labels[1:])], 0, 0, 6, 0.1, cpu)
    assert memory.features.shape == (40, 5)
    found = memory.scores(queries)
    bank = [
        (maps[n, :, i, j], labels[n, i, j])
        for n in range(3)
        for i in range(4)
        for j in range(4)
        if labels[n, i, j].sum()
    ]
    for n, i, j in ((0, 0, 0), (1, 3, 2), (1, 1, 1)):
        query = queries[n, :, i, j]
        ranked = sorted(bank, key=lambda one: -F.cosine_similarity(query, one[0], 0).item())[:6]
        weights = torch.stack([F.cosine_similarity(query, one, 0) / 0.1 for one, _ in ranked]).softmax(0)
        expected = sum(weight * label for weight, (_, label) in zip(weights, ranked, strict=True))
        assert torch.allclose(found[n, :, i, j], expected, atol=1e-5)
    fewer = [PointMemory.from_maps([(maps, labels)], 12, seed, 6, 0.1, cpu).features for seed in (0, 0, 1)]
    assert fewer[0].shape == (12, 5) and torch.equal(fewer[0], fewer[1]) and not torch.equal(fewer[0], fewer[2])


def test_heads_start_from_zero_and_one_is_kept_for_each_layer():
    heads = DenseHeads({"a": 4, "b": 6}, 3, [0.1, 0.01])
    maps = {"a": torch.randn(2, 4, 5, 5), "b": torch.randn(2, 6, 3, 3)}
    assert not any(one.any() for scores in heads(maps).values() for one in scores)
    assert set(heads.rate_factors(0.1).values()) == {1, 0.01 / 0.1}
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    kept = heads.select_rates({"a": 0.01, "b": 0.1}).eval()
    assert torch.equal(kept(maps)["a"][0], heads.eval()(maps)["a"][1])
    assert torch.equal(kept(maps)["b"][0], heads.eval()(maps)["b"][0])


# --- the command


def test_a_run_says_what_every_layer_sees(finished, command, voc, capsys):
    result = load_result(finished)
    assert result.n == 20
    for layer in ("conv3", "conv5"):
        for kind, name in (("linear", "mean_iu"), ("knn", "knn_mean_iu")):
            whole = sum_confusions(result.rows[f"{layer}/{kind}"], np.ones((1, 20)), 21)[0]
            union = whole.sum(0) + whole.sum(1) - np.diag(whole)
            assert result.metrics[f"{layer}/{name}"] == pytest.approx(
                np.mean((np.diag(whole) / np.maximum(union, 1))[union > 0])
            )
        assert result.metrics[f"{layer}/lr"] in (1e-3, 1e-2) and f"{layer}/iu/background" in result.metrics
    mask = np.array(Image.open(voc / "VOC2007" / "SegmentationClass" / "000040.png"))
    first = sum_confusions(result.rows["conv5/knn"], np.eye(20)[:1], 21)[0]
    assert (first.sum(1) == np.bincount(mask[mask != 255], minlength=21)).all()
    always = np.bincount(
        np.concatenate(
            [np.array(Image.open(p)).ravel() for p in sorted((voc / "VOC2007" / "SegmentationClass").iterdir())[40:]]
        ),
        minlength=256,
    )[:255]
    assert result.metrics["conv5/knn_pixel_accuracy"] > always.max() / always.sum()  # the labels follow from colours
    assert main([*command, f"--out={finished}"]) == 0 and "finished" in capsys.readouterr().err


def test_kill_9_and_the_same_command_end_where_the_uninterrupted_run_ends(command, finished, tmp_path):
    out = killed_and_finished(command, tmp_path / "run", "step 4/12", "step 8/12")
    assert load_result(out).metrics == load_result(finished).metrics


def test_two_ranks_find_what_one_process_finds(command, finished, tmp_path):
    check_on_ranks(lambda: main([*command, f"--out={tmp_path / 'two'}"]))
    one, two = load_result(finished), load_result(tmp_path / "two")
    assert list(one.rows["names"]) == list(two.rows["names"])
    each, other = (sum_confusions(run.rows["conv5/knn"], np.eye(20), 21) for run in (one, two))
    assert np.abs(each - other).sum() <= 0.002 * each.sum()
    assert one.metrics["conv5/knn_mean_iu"] == pytest.approx(two.metrics["conv5/knn_mean_iu"], abs=1e-3)
    assert one.metrics["conv5/mean_iu"] == pytest.approx(two.metrics["conv5/mean_iu"], abs=2e-3)


def test_the_cache_on_disk_changes_nothing(command, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    for name in ("first", "again"):
        assert main([*command, "--cache=disk", f"--out={tmp_path / name}"]) == 0
        assert load_result(tmp_path / name).metrics == load_result(finished).metrics
        said = capsys.readouterr().err
        assert "training features: " in said and bool(re.search("features: .* from /", said)) == (name == "again")


def test_a_vit_is_probed_where_it_has_maps(voc, tmp_path):
    flags = [
        "--layer=block6*,block12",
        "--size=0",
        "--config=voc-mini",
        "--train.steps=4",
        "--runtime.workers=0",
        "--k=3",
    ]
    net = "--backbone=random:timm:vit_tiny_patch16_224,seed=1"
    assert main(["dense", f"--data={voc}", *flags, net, f"--out={tmp_path / 'run'}"]) == 0
    layers = {name.partition("/")[0] for name in load_result(tmp_path / "run").metrics}
    assert layers == {"block6", "block12"}  # the class token is no map


def test_a_vit_takes_images_of_another_size_and_stays_as_it_was(voc, tmp_path):
    backbone = load_backbone("random:timm:vit_tiny_patch16_224,seed=1")
    flags = ["--config=voc-mini", "--size=96", "--train.steps=4", "--runtime.workers=0", "--k=3", f"--data={voc}"]
    config = PROGRAM.parse("dense", [*flags, "--backbone=x"])
    result = transfer.dense(backbone, str(voc), "block12", config, out=tmp_path / "run")
    assert len(result.rows["block12/knn"]) == 20 and not backbone.net.model.dynamic_img_size
    picture = voc / "VOC2007" / "JPEGImages" / "000050.jpg"
    found = transfer.load_predictor(tmp_path / "run", backbone=backbone)(picture.read_bytes()).pictures["mask"]
    assert found.size == Image.open(picture).size
    with pytest.raises(UserError, match="cannot take crops of 100 px"):
        transfer.dense(backbone, str(voc), "block12", config, size=100)


def test_neighbours_are_looked_for_among_all_training_images(command, finished, voc):
    """Those that choose a learning rate too: the figure does not depend on how many are tried."""
    config = PROGRAM.parse("dense", command[1:])
    one = transfer.dense(config.backbone, str(voc), "conv5", config, rates=[1e-2])
    assert one.metrics["conv5/knn_mean_iu"] == pytest.approx(load_result(finished).metrics["conv5/knn_mean_iu"])


def test_one_rate_is_not_chosen_and_neighbours_can_be_left_out(command, voc, tmp_path):
    result = transfer.dense(
        "random:alexnet,fc=0,size=64,resize=72,seed=1", str(voc), "conv5",
        PROGRAM.parse("dense", command[1:]), out=tmp_path / "run", rates=[1e-2], k=0,
    )  # fmt: skip
    assert "conv5/mean_iu" in result.metrics and not any("knn" in m or m.endswith("/lr") for m in result.metrics)


def test_runs_are_compared_and_reported_by_layer(finished, command, tmp_path, capsys):
    assert main([*command, "--seed=2", "--memory=200", f"--out={tmp_path / 'other'}"]) == 0
    capsys.readouterr()
    assert main(["compare", str(finished), str(tmp_path / "other"), "--resamples=100"]) == 0
    said = capsys.readouterr().out
    assert "conv5/knn_mean_iu" in said and "conv3/mean_iu" in said and "iu/dog" not in said
    assert main(["report", str(finished), f"--out={tmp_path / 'page'}"]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    value = 100 * load_result(finished).metrics["conv5/knn_mean_iu"]
    assert "Dense probes" in text and "Nearest-neighbour mean IU, %, by layer" in text and f"{value:.1f}" in text


def test_masks_of_255_alone_are_said_before_anything_is_learned(voc, command, tmp_path, capsys):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    masks = sorted((tmp_path / "VOCdevkit" / "VOC2007" / "SegmentationClass").iterdir())
    for part in (masks[:40], masks[40:]):
        kept = [path.read_bytes() for path in part]
        for path in part:
            save_mask(path, np.full_like(np.array(Image.open(path)), 255))
        assert main([*command, f"--data={tmp_path / 'VOCdevkit'}", f"--out={tmp_path / 'run'}"]) == 2
        assert "all mask values are 255" in capsys.readouterr().err
        for path, data in zip(part, kept, strict=True):
            path.write_bytes(data)


def test_two_ranks_hear_of_a_mask_that_one_of_them_cannot_read(voc, command, tmp_path):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    save_mask(tmp_path / "VOCdevkit" / "VOC2007" / "SegmentationClass" / "000041.png", np.zeros((3, 4), np.uint8))
    words = [*command, f"--data={tmp_path / 'VOCdevkit'}", f"--out={tmp_path / 'run'}"]
    outcomes = run_on_ranks(lambda: main(words))
    assert [status for status, _ in outcomes] == [2, 2]
    assert "000041.png is 4 × 3, but its image" in outcomes[0][1]


def test_deeper_layers_than_a_net_lists_can_be_named(voc, tmp_path):
    flags = ["--config=voc-mini", "--size=64", "--train.steps=2", "--runtime.workers=0", "--k=2", f"--data={voc}"]
    net = "--backbone=random:torchvision:resnet18"
    assert main(["dense", *flags, net, "--layer=layer3.0,layer4", f"--out={tmp_path / 'run'}"]) == 0
    assert {"layer3.0/mean_iu", "layer4/knn_mean_iu"} <= set(load_result(tmp_path / "run").metrics)


BAD = [
    (["--layer=fc6", "--backbone=gaussian:alexnet,fc=8"], "layer 'fc6' has a 1 × 1 output"),
    (["--layer=conv5,fc7", "--backbone=gaussian:alexnet,fc=8"], "layer 'fc7' has a 1 × 1 output"),
    (["--layer=conv9"], "unknown layer 'conv9'"),
    (["--rates=0.1,0.1"], "rates must differ"),
    (["--test-set=2007:trainval"], "is in both train_set and test_set"),
    (["--train-set=sbd:train"], "no SBD"),
]


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_input_is_one_sentence(command, flags, words, tmp_path, capsys):
    assert main([*command, *flags, f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error and not (tmp_path / "run" / "config.yaml").exists()


def test_a_mask_that_does_not_fit_is_named(voc, command, tmp_path, capsys):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    save_mask(tmp_path / "VOCdevkit" / "VOC2007" / "SegmentationClass" / "000004.png", np.zeros((3, 4), np.uint8))
    assert main([*command, f"--data={tmp_path / 'VOCdevkit'}", f"--out={tmp_path / 'run'}"]) == 2
    assert "000004.png is 4 × 3, but its image" in capsys.readouterr().err


def test_every_packaged_config_is_valid():
    for path in sorted((config_folder() / "transfer" / "dense").glob("*.yaml")):
        PROGRAM.parse("dense", [f"--config={path}", "--data=x", "--backbone=random:runs/a-0"])
