"""`transfer segment`: the fully convolutional net against plain PyTorch, its views, and the command line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import base_batch
from devkits import make_devkit, save_mask
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from trained_runs import assert_function_is_command, by_one_and_by_two, figures, killed_and_finished

import transfer
from crosschannel import UserError, load_backbone
from crosschannel.config.load import config_folder
from crosschannel.config.training import TrainConfig
from crosschannel.data import Record, Stream, Subset, load_batches
from crosschannel.data.decode import EncodedImage
from crosschannel.data.order import mix
from crosschannel.data.views import SampleRNG
from crosschannel.runs.result import load_result
from transfer.cli import PROGRAM, main
from transfer.finetuning import prepare
from transfer.pascal.masks import open_masks, read_labels
from transfer.pascal.metrics import segmentation_metrics
from transfer.pascal.segmentation import confusion_of, sum_confusions
from transfer.protocol import Split
from transfer.protocols.segment.net import Segmenter, choose_skips
from transfer.protocols.segment.views import MaskedCrops, WholeImages

pytestmark = pytest.mark.usefixtures("narrow_nets")

NET = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
STEPS = [
    "--train.batch=8", "--train.steps=6", "--train.precision=float32", "--runtime.workers=0", "--runtime.log_every=2",
    "--runtime.checkpoint_every=2", "--runtime.eval_every=4", "--runtime.tensorboard=false", "--fc=8", "--crop=64",
    "--calibrate=false", "--optim.lr=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos, masks=True)


@pytest.fixture(scope="module")
def command(voc) -> list[str]:
    return ["segment", "--config=voc-mini", NET, f"--data={voc}", *STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    out = tmp_path_factory.mktemp("runs") / "segment"
    assert main([*command, f"--out={out}"]) == 0
    return out


def recipe(voc=None, **keys):
    config = PROGRAM.parse("segment", ["--config=paper", "--data=x", "--backbone=x"])
    return replace(config, **keys)


# --- the net


@pytest.fixture(scope="module")
def alexnet():
    return load_backbone("gaussian:alexnet,fc=32,seed=3")


def plain_weights(backbone, score: nn.Conv2d) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    convs = {name: backbone.net.get_submodule(name).conv for name in names} | {"score": score}
    return {
        n: (c.weight.detach().clone().requires_grad_(), c.bias.detach().clone().requires_grad_())
        for n, c in convs.items()
    }


def fixed_deconvolution(classes: int) -> torch.Tensor:
    """(classes, 1, 63, 63): the triangle of a bilinear ×32."""
    line = 1 - (torch.arange(63) - 31).abs() / 32
    return (line[:, None] * line[None])[None, None].repeat(classes, 1, 1, 1)


def plain_fcn(x: torch.Tensor, weights, dropout: float = 0.0) -> torch.Tensor:
    """FCN-32s on AlexNet with operators of PyTorch alone: conv1 padded by 100, a 63×63 deconvolution cropped at 18."""
    height, width = x.shape[2:]
    x = F.relu(F.conv2d(x, *weights["conv1"], stride=4, padding=100))
    x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2, ceil_mode=True), *weights["conv2"], padding=2, groups=2))
    x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2, ceil_mode=True), *weights["conv3"], padding=1))
    x = F.relu(F.conv2d(x, *weights["conv4"], padding=1, groups=2))
    x = F.relu(F.conv2d(x, *weights["conv5"], padding=1, groups=2))
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    x = F.dropout(F.relu(F.conv2d(x, *weights["fc6"])), dropout)
    x = F.dropout(F.relu(F.conv2d(x, *weights["fc7"])), dropout)
    scores = F.conv2d(x, *weights["score"])
    up = F.conv_transpose2d(scores, fixed_deconvolution(scores.shape[1]), stride=32, groups=scores.shape[1])
    return up[:, :, 18 : 18 + height, 18 : 18 + width]


SIZES = [(1, 1), (1, 300), (33, 32), (120, 90), (227, 227), (375, 500), (500, 334), (700, 500), (500, 700)]


@pytest.mark.parametrize("size", SIZES)
def test_fcn_32s_is_plain_pytorchs_at_every_size(alexnet, size):
    net = Segmenter(prepare(alexnet, recipe())[0], 21)
    for parameter in net.score.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0)) * 30
    with torch.no_grad():
        (ours,) = net.eval()([x])
        expected = plain_fcn(x, plain_weights(net.backbone, net.score[0]))
    assert ours.shape == expected.shape == (2, 21, *size)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_ten_steps_are_those_of_plain_pytorch(alexnet, voc, dropout, tmp_path):
    """Whole images one by one, four a step: the mean of losses that are each normalised by an image's pixels."""
    train = TrainConfig(4, accumulate=4, steps=10, precision="float32", channels_last=False, compile=False)
    sets = {"train_set": "2007:trainval", "test_set": "2007:test", "calibrate": False}
    config = recipe(**sets, train=train, dropout=dropout, optim=replace(recipe().optim, lr=1e-3))
    config = replace(config, runtime=replace(config.runtime, workers=0, tensorboard=False))
    split = open_masks(str(voc), config)
    transfer.segment(alexnet, split, config, out=tmp_path / "run")
    backbone, _ = prepare(alexnet, config)
    weights = plain_weights(backbone, Segmenter(backbone, 21).score[0])
    begun = {name: [tensor.detach().clone() for tensor in pair] for name, pair in weights.items()}
    optimizer = torch.optim.SGD(
        [
            {"params": [w for w, _ in weights.values()], "lr": 1e-3, "weight_decay": 5e-4},
            {"params": [b for _, b in weights.values()], "lr": 2e-3},
        ],
        momentum=0.9,
    )
    batches = iter(list(load_batches(Stream(split.train, WholeImages(21), config.seed), 0, 40, 1)))
    for step in range(10):
        torch.manual_seed(mix(config.seed, step, 0) >> 1)
        optimizer.zero_grad()
        for _ in range(4):
            batch = next(batches)
            x = backbone.preprocess(batch.groups[0].images)
            logits = plain_fcn(x, weights, dropout)
            (F.cross_entropy(logits, batch.groups[0].masks.long(), ignore_index=255) / 4).backward()
        optimizer.step()
    kept = load_file(tmp_path / "run" / "net.safetensors")
    for name, pair in weights.items():
        for kind, value in zip(("weight", "bias"), pair, strict=True):
            ours = kept[f"score.0.{kind}" if name == "score" else f"backbone.net.{name}.conv.{kind}"]
            assert (ours - value).abs().max() <= 1e-4, name
            moved = (value - begun[name][kind == "bias"]).abs().max()
            assert (ours - value).abs().max() <= 0.02 * moved, name
    trained = Segmenter(backbone, 21).eval()
    trained.load_state_dict(kept)
    pixels = torch.from_numpy(np.array(Image.open(voc / "VOC2007" / "JPEGImages" / "000050.jpg")))
    x = backbone.preprocess(pixels.permute(2, 0, 1)[None])
    with torch.no_grad():
        expected = plain_fcn(x, weights)
        assert (trained([x])[0] - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
    assert max((weights[name][0] - begun[name][0]).abs().max().item() for name in weights) > 1e-3


def test_fcn_8s_on_vgg_16_adds_the_scores_of_finer_layers_where_they_belong():
    """Against dense bilinear interpolation between the centres of each layer's receptive fields."""
    backbone = load_backbone("gaussian:vgg16,fc=8")
    net = Segmenter(backbone, 3, stride=8, skips=["pool4", "pool3"], upsampling="bilinear").eval()
    assert (net.layers, net.strides, net.pad) == (("fc7", "pool4", "pool3"), [32, 16, 8], 99)
    assert net.origins == [12.5, 7.5 - 99, 3.5 - 99]  # Caffe pads conv1_1 by 100 and crops the ×32 deconvolution at 19
    for parameter in net.score.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 1, 90, 70)
    with torch.no_grad():
        (ours,) = net([x])
        after = [-(length + 198) % 32 for length in (90, 70)]
        padded = F.pad(x, (99, 99 + after[1], 99, 99 + after[0]))
        maps = backbone.features(padded, ["fc7", "pool4", "pool3"])
        scores = [score(maps[layer]).double().numpy()[0] for layer, score in zip(net.layers, net.score, strict=True)]

    def at(level: int, row: float, column: float) -> np.ndarray:
        """Scores of a level and all coarser ones at a place of its own grid's coordinates."""
        grid, (origin, step) = scores[level], (net.origins[level], net.strides[level])
        y, v = (
            np.clip((place - origin) / step, 0, length - 1)
            for place, length in zip((row, column), grid.shape[1:], strict=True)
        )
        top, left = min(int(y), grid.shape[1] - 2), min(int(v), grid.shape[2] - 2)
        total = 0
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = (1 - abs(y - top - i)) * (1 - abs(v - left - j))
            value = grid[:, top + i, left + j]
            if level:
                value = value + at(level - 1, origin + step * (top + i), origin + step * (left + j))
            total = total + weight * value
        return total

    for row, column in ((0, 0), (45, 33), (89, 69), (7, 60)):
        assert ours[0, :, row, column].numpy() == pytest.approx(at(2, row, column), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(
    ("source", "stride", "layers"),
    [
        ("random:timm:test_resnet", 8, ("stage5", "stage4", "stage3")),
        ("random:timm:vit_tiny_patch16_224", 0, ("block12",)),
        ("random:torchvision:resnet18", 16, ("layer4", "layer3")),
        ("random:timm:convnext_atto", 4, ("stage4", "stage3", "stage2", "stage1")),
        ("gaussian:alexnet,fc=8", 8, ("fc7", "conv5", "conv2")),
    ],
)
def test_any_backbone_says_something_of_every_pixel(source, stride, layers):
    backbone = load_backbone(source)
    if hasattr(backbone.net, "take_any_size"):
        backbone.net.take_any_size()
    net = Segmenter(backbone, 4, stride=stride).eval()
    assert net.layers == layers
    with torch.no_grad():
        groups = [torch.randn(2, backbone.input.channels, 40, 61), torch.randn(1, backbone.input.channels, 1, 1)]
        assert [tuple(scores.shape) for scores in net(groups)] == [(2, 4, 40, 61), (1, 4, 1, 1)]


def test_a_vit_of_other_sizes_says_at_its_own_size_what_it_said():
    backbone = load_backbone("random:timm:vit_tiny_patch16_224,seed=2")
    x = torch.randn(1, 3, 224, 224)
    before = backbone.features(x, ["block12"])["block12"]
    backbone.net.take_any_size()
    assert torch.allclose(backbone.features(x, ["block12"])["block12"], before, atol=1e-5)
    assert backbone.features(torch.randn(1, 3, 64, 96), ["block12"])["block12"].shape[2:] == (4, 6)


@pytest.mark.parametrize(
    ("stride", "skips", "words"),
    [
        (2, (), r"stride 2: the layers of this backbone have strides 4, 8, 16, 32; 0 uses only the last one"),
        (0, ("pool9",), r"skips 'pool9': expected layers with a stride below 32; available: conv1, pool1"),
        (0, ("pool5",), r"skips 'pool5'"),
        (8, ("pool2",), r"stride 8: pool2, the finest of skips, has stride 16; set only one of stride and skips"),
    ],
)
def test_layers_that_are_not_there_are_named(alexnet, stride, skips, words):
    with pytest.raises(UserError, match=words):
        choose_skips(alexnet, stride, skips)


# --- views


def test_a_batch_keeps_images_of_one_size_together():
    samples = [
        (np.full((h, w, 3), i, np.uint8), np.full((h, w), i, np.uint8), (h, w))
        for i, (h, w) in enumerate([(2, 3), (4, 3), (2, 3)])
    ]
    batch = WholeImages.collate(samples, base_batch(3))
    assert len(batch) == 3 and [group.positions.tolist() for group in batch.groups] == [[0, 2], [1]]
    assert batch.groups[0].images.shape == (2, 3, 2, 3) and batch.groups[0].images[:, 0, 0, 0].tolist() == [0, 2]
    assert batch.groups[1].masks.tolist() == [[[1] * 3] * 4] and batch.groups[1].image_sizes.tolist() == [[4, 3]]


def record_of(pixels: np.ndarray, mask: np.ndarray) -> Record:
    import io

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Record({"image": file.getvalue()}, fields={"mask": mask})


def test_crops_take_an_image_and_its_mask_alike():
    """Pixels whose grey value is their label stay so wherever they go."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 4, (5, 7)).astype(np.uint8)
    labels = np.kron(coarse, np.ones((24, 24), np.uint8))
    pixels = np.repeat((labels * 60)[..., None], 3, 2)
    seen = set()
    for number in range(40):
        view = MaskedCrops(4, 96, (0.5, 2.0))
        crop, mask, (height, width) = view(record_of(pixels, labels), SampleRNG(0, (0, number)))
        assert crop.shape == (96, 96, 3) and mask.shape == (96, 96)
        assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all() and not crop[height:].any()
        inside = mask[:height, :width]
        assert (inside != 255).all()
        near = np.abs(crop[:height, :width, 0].astype(int) - 60 * inside.astype(int)) < 10
        assert near.mean() > 0.85  # all but the edges of squares, which are blended
        seen.add((height, width))
    assert (96, 96) in seen and len(seen) > 5


def test_a_mirrored_image_has_a_mirrored_mask():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    labels = (pixels[..., 0] > 128).astype(np.uint8)
    found = [WholeImages(2, mirror=True)(record_of(pixels, labels), SampleRNG(0, (0, i))) for i in range(20)]
    mirrored = [not np.array_equal(one[0], pixels) for one in found]
    assert 4 < sum(mirrored) < 16
    for crop, mask, _ in found:
        assert ((crop[..., 0] > 128) == mask).all()


# --- the command


def test_a_run_folder_holds_its_weights_rows_and_pictures(finished, command, voc, capsys):
    names = {p.name for p in finished.iterdir()} - {".lock"}
    written = {"config.yaml", "images.json", "metrics.jsonl", "checkpoints", "samples", "backbone.json"}
    assert names == written | {"predictions.npz", "result.json", "net.safetensors"}
    result = load_result(finished)
    confusions = np.stack([sum_confusions(result.rows["confusion"], row[None], 21)[0] for row in np.eye(20)])
    assert result.n == 20
    for name, confusion in zip(result.rows["names"], confusions, strict=True):
        mask = np.array(Image.open(voc / "VOC2007" / "SegmentationClass" / f"{name.partition('/')[2]}.png"))
        assert (confusion.sum(1) == np.bincount(mask[mask != 255], minlength=21)).all()
    whole = confusions.sum(0)
    union = whole.sum(0) + whole.sum(1) - np.diag(whole)
    assert result.metrics["mean_iu"] == pytest.approx(np.mean((np.diag(whole) / np.maximum(union, 1))[union > 0]))
    assert result.metrics["pixel_accuracy"] == pytest.approx(np.trace(whole) / whole.sum())
    picture = np.asarray(Image.open(finished / "samples" / "segmented-000000006.png"))
    assert picture.shape[1] == 6 * 240 + 5 * 6
    assert main([*command, f"--out={finished}"]) == 0 and "finished" in capsys.readouterr().err


def test_kill_9_and_the_same_command_end_where_the_uninterrupted_run_ends(command, finished, tmp_path):
    out = killed_and_finished(command, tmp_path / "run", "step 2/6", "step 4/6")
    assert figures(out) == figures(finished)


def test_two_ranks_find_what_one_process_finds(command, tmp_path):
    """Whole images of any size, which ranks group differently; dropout is drawn by rank, so it is off."""
    flags = ["--dropout=0", "--crop=0", "--train.steps=4", "--optim.name=sgd"]
    one, two = by_one_and_by_two([*command, *flags], tmp_path)
    (metrics, rows, log), (others, other_rows, other_log) = figures(one), figures(two)
    assert rows["names"] == other_rows["names"]
    losses = [[row["train/loss"] for row in part if "train/loss" in row] for part in (log, other_log)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert metrics["pixel_accuracy"] == pytest.approx(others["pixel_accuracy"], abs=0.01)


def test_the_function_is_the_command_and_leaves_the_backbone_as_it_was(command, finished, voc):
    assert_function_is_command("segment", command, finished, voc)


def test_runs_are_compared_and_reported(finished, command, tmp_path, capsys):
    other = tmp_path / "other"
    assert main([*command, "--seed=3", f"--out={other}"]) == 0
    capsys.readouterr()
    assert main(["compare", str(finished), str(other), "--resamples=200"]) == 0
    said = capsys.readouterr().out
    assert "mean_iu" in said and "fw_iu" in said and "iu/dog" not in said
    page = tmp_path / "page"
    assert main(["report", str(finished), f"--out={page}"]) == 0
    value = 100 * load_result(finished).metrics["mean_iu"]
    assert f"| – | – | – | – | {value:.1f} |" in (page / "report.md").read_text()
    for name in ("pascal-0-20-segment-iu.png", "pascal-0-20-confusion-0.png", "pascal-0-20-segmented-0.png"):
        assert Image.open(page / name).size[0] > 500


def test_the_whole_of_seg11valid_stands_beside_the_published_figures(finished, tmp_path):
    """A run over 736 images that learned from SBD's train is comparable with the last column of Table 2."""
    from crosschannel.runs.result import save_rows

    whole = tmp_path / "whole"
    shutil.copytree(finished, whole)
    result, rows = json.loads((whole / "result.json").read_text()), dict(load_result(finished).rows)
    result |= {"n": 736, "config": result["config"] | {"train_set": "sbd:train", "test_set": "2011:seg11valid"}}
    (whole / "result.json").write_text(json.dumps(result))
    rows["confusion"] = rows["confusion"][np.arange(736) % 20]
    save_rows(whole, rows | {"names": np.array([str(i) for i in range(736)])})
    assert main(["report", str(whole), f"--out={tmp_path / 'page'}"]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    assert "ImageNet labels (published)" in text and "~35*" in text and "35.6" in text


def test_every_packaged_config_is_valid_and_papers_is_the_papers():
    for path in sorted((config_folder() / "transfer" / "segment").glob("*.yaml")):
        PROGRAM.parse("segment", [f"--config={path}", "--data=x", "--backbone=random:runs/a-0"])
    paper, default, modern = (
        PROGRAM.parse("segment", [*flags, "--data=x", "--backbone=x"])
        for flags in (["--config=paper"], [], ["--config=modern"])
    )
    for config in (paper, default):
        optim = config.optim
        assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.clip) == ("sgd", 1e-4, 0.9, 5e-4, 0)
        assert (optim.bias_lr, optim.bias_decay, config.dropout) == (2.0, False, 0.5)
        assert (config.train.batch, config.train.accumulate, config.train.steps) == (20, 20, 150_000)
        assert (config.schedule.kind, config.schedule.every, config.schedule.factor) == ("step", 50_000, 0.1)
        assert (config.pad, config.stride, config.upsampling) == (100, 0, "deconvolution")
        assert (config.crop, config.mirror) == (0, False)
        assert (config.train_set, config.test_set) == ("sbd:train", "2011:seg11valid")
    assert modern.train.steps * 10 == paper.train.steps and modern.schedule.kind == "poly" and modern.mirror


BAD = [
    ("a mask that is gone", lambda f: (f / "SegmentationClass/000003.png").unlink(), [], "lacks", True),
    ("no segmentation sets", lambda f: shutil.rmtree(f / "ImageSets/Segmentation"), [], "unknown image set", True),
    ("SBD that is nowhere", lambda f: None, ["--train-set=sbd:train"], "no SBD", True),
    ("a set that is none", lambda f: None, ["--test-set=sbd"], "test_set must be YEAR:SET or sbd:SET", True),
    ("no such place to train from", lambda f: None, ["--train-from=fc9"], "train_from 'fc9'", True),
    ("no layer of a stride", lambda f: None, ["--stride=2"], "stride 2: the layers of this backbone", False),
    ("no such skip", lambda f: None, ["--skips=conv9"], "skips 'conv9'", False),
    ("scales that do not ascend", lambda f: None, ["--scale=[2,1]"], "scale must be two ascending factors", True),
    ("a batch of more than there is", lambda f: None, ["--train.batch=64"], "training images", False),
]


@pytest.mark.parametrize(("damage", "flags", "words", "early"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_one_sentence(voc, command, tmp_path, capsys, monkeypatch, damage, flags, words, early):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    damage(tmp_path / "VOCdevkit" / "VOC2007")
    if early:
        monkeypatch.setattr("transfer.protocol.load_backbone", None)
    out = tmp_path / "out"
    assert main([*command, f"--data={tmp_path / 'VOCdevkit'}", *flags, f"--out={out}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("transfer: ") and words in error and "Traceback" not in error
    assert not (out / "config.yaml").exists()


@pytest.mark.parametrize(
    ("number", "labels", "words"),
    [
        ("000045", lambda mask: np.zeros((5, 5), np.uint8), r"is 5 × 5, but its image"),
        ("000002", lambda mask: np.full_like(mask, 77), "has the label 77; labels must be 0 to 20, or 255"),
    ],
)
def test_a_bad_mask_ends_the_run_with_its_name_and_nothing_is_lost(
    voc, command, tmp_path, capsys, number, labels, words
):
    """One that is scored, and one that is learned, which a worker reads."""
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    mask = tmp_path / "VOCdevkit" / "VOC2007" / "SegmentationClass" / f"{number}.png"
    good = mask.read_bytes()
    save_mask(mask, labels(np.array(Image.open(mask))))
    run = [*command, f"--data={tmp_path / 'VOCdevkit'}", "--runtime.workers=1", f"--out={tmp_path / 'out'}"]
    assert main(run) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{number}.png" in error and words in error and error.startswith("transfer: ")
    mask.write_bytes(good)
    assert main(run) == 0


def test_masks_of_255_alone_are_neither_learned_nor_scored(voc, command, finished, tmp_path, capsys):
    shutil.copytree(voc, tmp_path / "VOCdevkit")
    masks = tmp_path / "VOCdevkit" / "VOC2007" / "SegmentationClass"
    for path in masks.iterdir():
        if path.stem in ("000001", "000045"):
            save_mask(path, np.full_like(np.array(Image.open(path)), 255))
    out = tmp_path / "run"
    data = f"--data={tmp_path / 'VOCdevkit'}"
    assert main([*command, data, f"--out={out}"]) == 0
    result = load_result(out)
    assert result.n == 20 and not result.rows["confusion"].counts[5] and np.isfinite(result.metrics["mean_iu"])
    for path in masks.iterdir():
        if path.stem >= "000040":
            save_mask(path, np.full_like(np.array(Image.open(path)), 255))
    assert main([*command, data, f"--out={tmp_path / 'none'}"]) == 2
    assert "all mask values are 255" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["random:timm:test_resnet,size=64,resize=72", "random:timm:vit_tiny_patch16_224"])
def test_other_libraries_nets_are_segmented_on(voc, command, source, tmp_path):
    flags = [f"--backbone={source}", "--stride=0", "--crop=64", "--train.steps=2", "--train.batch=4"]
    assert main([*command, *flags, f"--out={tmp_path / 'run'}"]) == 0
    assert load_result(tmp_path / "run").n == 20


def test_a_grey_net_is_given_colours_and_predicts_with_them(voc, command, tmp_path):
    """The row "Lab input" of Table 2."""
    run = tmp_path / "run"
    assert main([*command, "--input=lab", f"--out={run}"]) == 0
    assert load_file(run / "net.safetensors")["backbone.net.conv1.conv.weight"].shape[1] == 3
    picture = voc / "VOC2007" / "JPEGImages" / "000050.jpg"
    found = transfer.load_predictor(run)(picture.read_bytes()).pictures["mask"]
    assert found.size == Image.open(picture).size


def test_labels_are_the_greatest_scores_whatever_the_size_and_in_bands(alexnet, monkeypatch):
    net = Segmenter(prepare(alexnet, recipe())[0], 5, stride=8).eval()
    for parameter in net.score.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 1, 90, 70) * 20
    with torch.no_grad():
        (logits,) = net([x])
        assert torch.equal(net.labels(x), logits.argmax(1))
        large = net.labels(x, 1080, 840)
        monkeypatch.setattr("transfer.interpolation._MAX_SCORES", 5 * 840 * 7)
        assert torch.equal(net.labels(x, 1080, 840), large) and large.shape == (1, 1080, 840)
    same = F.interpolate(net.labels(x)[None].float(), (1080, 840), mode="nearest")[0] == large
    assert same.float().mean() > 0.95


def test_a_net_of_one_size_is_refused_in_one_sentence(voc, command, tmp_path, capsys):
    net = "--backbone=random:timm:swin_tiny_patch4_window7_224"
    assert main([*command, net, "--stride=0", f"--out={tmp_path / 'run'}"]) == 2
    assert "cannot take images of" in capsys.readouterr().err and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "least"), [(8, 0.8), (32, 0.85)])
def test_sixteen_images_are_learned_by_heart(real_data, full_nets, stride, least):
    """At stride 8 what any working decoder reaches; at 32 a share of what the true masks give once they are averaged to
    steps of 32 pixels and brought back (three minutes each on two cores)."""
    flags = [f"--stride={stride}", "--crop=0", "--mirror=false", "--dropout=0", "--optim.lr=1e-3", "--train.steps=300"]
    data = real_data / "voc-mini" / "VOCdevkit"
    config = PROGRAM.parse("segment", ["--config=voc-mini", f"--data={data}", "--backbone=x", *flags])
    split = open_masks(str(data), config)
    images = Subset(split.train, np.arange(16))
    images.classes = split.classes
    both = Split(images, images, split.classes, "sixteen images", allow_overlap=True)
    result = transfer.segment("random:alexnet,fc=0,data=builtin:sample", both, config)
    reached = result.metrics["mean_iu"]
    assert reached > (least if stride == 8 else least * best_at(images, stride))


def best_at(images: Subset, step: int) -> float:
    """Mean IU of the true masks, averaged to a grid and brought back."""
    total = np.zeros((21, 21), np.int64)
    for index in range(len(images)):
        mask = torch.from_numpy(read_labels(images.fields(index)["mask"], EncodedImage(images.read(index)), 21)).long()
        one_hot = F.one_hot(torch.where(mask == 255, 21, mask), 22)[..., :21].permute(2, 0, 1)[None].float()
        small = F.interpolate(one_hot, [-(-side // step) for side in mask.shape], mode="area")
        total += confusion_of(F.interpolate(small, mask.shape, mode="bilinear")[0].argmax(0), mask, 21).numpy()
    return float(segmentation_metrics(total[None])["mean_iu"][0])
