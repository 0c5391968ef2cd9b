"""detectron2's engine against ours, and detectron2's own models, evaluator and configs against both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2_sources import add_detectron2
from devkits import CLASSES, make_devkit

import transfer
from crosschannel import load_backbone
from crosschannel.cli import main as crosschannel
from crosschannel.data import Stream, load_batches
from crosschannel.data.views import map_tensors
from crosschannel.models.adapt import trainable_copy
from crosschannel.models.regions import pool_regions
from crosschannel.runs.result import load_result
from transfer.cli import PROGRAM, main
from transfer.pascal.detections import detection_metrics, detection_rows
from transfer.pascal.devkit import Objects, VOCImages
from transfer.proposals.files import WithProposals, save_boxes
from transfer.protocols.detect.config import DetectConfig, FilterConfig
from transfer.protocols.detect.net import FastRCNN
from transfer.protocols.detect.task import filter_by_score
from transfer.protocols.detect.views import AllRegions, SampledRegions

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def detectron2():
    return add_detectron2()


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos)


def some_boxes(images, generator) -> dict[str, np.ndarray]:
    """Boxes around the objects, and anywhere."""
    found = {}
    for index, name in enumerate(images.names):
        near = np.repeat(images.fields(index)["objects"].boxes, 6, 0)
        near = near + generator.integers(-12, 12, near.shape)
        anywhere = generator.integers(0, 60, (20, 4))
        boxes = np.concatenate([near, anywhere]).clip(0, 60)
        found[name] = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), boxes[:, 2:] + 1], 1).astype(np.int32)
    return found


@pytest.fixture(scope="module")
def proposals(voc, tmp_path_factory):
    path = tmp_path_factory.mktemp("proposals") / "all.npz"
    images = VOCImages(voc, [("2007", "trainval"), ("2007", "test")])
    save_boxes(path, some_boxes(images, np.random.default_rng(0)), {"method": "test"})
    return path


def recipe(**keys) -> DetectConfig:
    config = PROGRAM.parse("detect", ["--config=voc-mini", "--data=x", "--backbone=x"])
    config.dropout, config.train.precision, config.train.channels_last = 0.0, "float32", False
    return replace(config, **keys)


@pytest.fixture(scope="module")
def batches(voc, proposals):
    """Four training batches and one of a test."""
    from transfer.proposals.files import load_boxes

    images = WithProposals(VOCImages(voc, [("2007", "trainval")]), load_boxes(proposals), "test")
    config = recipe()
    train = Stream(images, SampledRegions(20, config.sample, (96, 120), 200), 0)
    test = Stream(images, AllRegions(110, 200))
    return list(load_batches(train, 0, 40, 4)), next(load_batches(test, 0, 3, 3))


def engines(source: str, **keys):
    """Both, with the same weights."""
    from transfer.protocols.detect.with_detectron2 import DetectronRCNN

    nets = [
        kind(trainable_copy(load_backbone(source)), 20, recipe(engine=engine, **keys))
        for kind, engine in ((FastRCNN, "torchvision"), (DetectronRCNN, "detectron2"))
    ]
    generator = torch.Generator().manual_seed(1)
    statistics = torch.randn(20, 4, generator=generator) * 0.1, torch.rand(20, 4, generator=generator) + 0.1
    nets[0].set_target_statistics(*statistics)
    for layer in (nets[0].score.box_predictor.cls_score, nets[0].score.box_predictor.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.05, generator=generator)
    nets[1].load_state_dict(nets[0].state_dict())
    return nets


SOURCES = [
    "gaussian:alexnet,fc=32,size=96,resize=110,input=grey,seed=1",
    "gaussian:alexnet,fc=32,size=96,resize=110,input=lab,seed=1",
    "random:timm:test_resnet,size=96,resize=110,seed=1",
    "random:timm:vit_tiny_patch16_224,size=96,resize=110,seed=1",
]


@pytest.mark.parametrize("pooling", ["max", "align"])
@pytest.mark.parametrize("source", SOURCES)
def test_both_engines_give_the_same_features_scores_boxes_and_losses(source, pooling, batches):
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    from crosschannel.models.regions import align_boxes

    roi = replace(recipe().roi, pooling=pooling, resolution=0 if "alexnet" in source else 4)
    ours, theirs = engines(source, roi=roi)
    train, test = batches
    for net in (ours, theirs):
        net.eval()  # BatchNorm's statistics stay
    with torch.no_grad():
        loss, count = ours(train[0])
        other, other_count = theirs(train[0])
        assert count == other_count == sum(len(one.boxes) for one in train[0].regions) > 20
        assert (loss - other).abs() / count <= 1e-4 and loss / count > 0.5
        inputs = ours.inputs(test.images, torch.device("cpu"))
        maps, boxes = ours.feature_map(inputs.x), [one.boxes for one in test.regions]
        kind = {"max": "ROIPool", "align": "ROIAlignV2"}[pooling]
        pooler = ROIPooler(theirs.plan.resolution, (1 / theirs.plan.stride,), 0, kind)
        pooled = pooler([maps], [Boxes(align_boxes(one, theirs.plan)) for one in boxes])
        expected = pool_regions(maps, boxes, ours.plan)
        assert (pooled - expected).abs().max() <= 1e-4 * expected.abs().max()
        for mine, yours in zip(ours.detect(test), theirs.detect(test), strict=True):
            assert len(mine[0]) and (mine[1] - yours[1]).abs().max() <= 1e-4
            assert (mine[0] - yours[0]).abs().max() <= 1e-4 * 110


def test_weights_stay_together_over_ten_steps(batches):
    ours, theirs = engines(SOURCES[0])
    begun = {name: value.clone() for name, value in ours.named_parameters()}
    for net in (ours, theirs):
        optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
        for batch in batches[0]:
            loss, count = net.train()(batch)
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
    others = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        scale = (value - begun[name]).abs().max()
        assert scale > 0, name
        assert (value - others[name]).abs().max() <= 1e-3 * max(1.0, float(value.abs().max())), name
        assert (value - others[name]).norm() <= 1e-2 * (value - begun[name]).norm(), name


@pytest.mark.parametrize("frozen", ["", "fc6"])
def test_a_batch_without_regions_has_a_gradient_of_zero(frozen, batches):
    """All ranks step together, whatever they have."""
    for net in engines(SOURCES[0]):
        if frozen:
            net.requires_grad_(False)
            net.backbone.get_module(frozen).requires_grad_(True)
            net.score.requires_grad_(True)
        batch = batches[0][0]
        empty = map_tensors(batch.regions, lambda tensor: tensor[:0])
        loss, count = net.train()(replace(batch, regions=empty))
        loss.backward()
        assert loss == count == 0
        used = [p for p in net.parameters() if p.requires_grad]
        assert all(p.grad is not None and (p.grad == 0).all() for p in used)


def test_what_is_kept_is_what_detectron2_keeps():
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 20, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 5 + torch.rand(300, 20, 2, generator=generator) * 60], -1)
    boxes = boxes.clamp(max=100)
    scores = torch.rand(300, 21, generator=generator).pow(8).softmax(1)
    config = FilterConfig(score=0.055, nms=0.3, most=100)
    ours = filter_by_score(boxes, scores[:, :-1], config)
    (theirs,), _ = fast_rcnn_inference([boxes.flatten(1)], [scores], [(100, 100)], 0.055, 0.3, 100)
    assert len(ours) == len(theirs.scores) > 20
    assert torch.equal(ours[:, 0].long(), theirs.pred_classes) and torch.equal(ours[:, 1], theirs.scores)
    assert torch.equal(ours[:, 2:], theirs.pred_boxes.tensor)


def test_ap_is_detectron2s_evaluators_at_its_rounding(tmp_path):
    """Its files round scores to three decimals and boxes to one; difficult objects and duplicates are among them."""
    from detectron2.evaluation.pascal_voc_evaluation import voc_eval

    generator = np.random.default_rng(4)
    names, detections, objects = [], [], []
    for number in range(30):
        count = int(generator.integers(1, 6))
        low = generator.integers(1, 60, (count, 2))
        boxes = np.hstack([low, low + generator.integers(8, 40, (count, 2))]).astype(float)
        classes, difficult = generator.integers(0, 3, count), generator.random(count) < 0.25
        near = np.repeat(boxes, 3, 0) + generator.normal(0, 3, (3 * count, 4))
        far = np.hstack([c := generator.uniform(1, 60, (4, 2)), c + generator.uniform(5, 40, (4, 2))])
        found = np.round(np.concatenate([near, far]), 1)
        scores = (generator.permutation(900)[: len(found)] * 30 + number) / 1e5 + 0.01
        labels = np.concatenate([np.repeat(classes, 3), generator.integers(0, 3, 4)])
        names.append(f"{number:06d}")
        objects.append(Objects(boxes, classes, difficult))
        found[:, :2] -= 1  # from VOC's pixels to ours
        detections.append(np.concatenate([labels[:, None], np.round(scores, 5)[:, None], found], 1))
        entries = "".join(
            f"<object><name>{CLASSES[c]}</name><pose>x</pose><truncated>0</truncated><difficult>{int(d)}</difficult>"
            f"<bndbox><xmin>{b[0]:.0f}</xmin><ymin>{b[1]:.0f}</ymin><xmax>{b[2]:.0f}</xmax><ymax>{b[3]:.0f}</ymax>"
            "</bndbox></object>"
            for b, c, d in zip(boxes, classes, difficult, strict=True)
        )
        (tmp_path / f"{number:06d}.xml").write_text(f"<annotation>{entries}</annotation>")
    # Its levels of recall .3, .6 and .7 are greater by a rounding error: no recall is exactly a tenth.
    found = [sum(int(((o.classes == k) & ~o.difficult).sum()) for o in objects) for k in range(3)]
    assert all(count % 10 for count in found), found
    (tmp_path / "set.txt").write_text("\n".join(names))
    figures = detection_metrics(detection_rows(names, CLASSES[:3], detections, objects), np.ones((1, 30)))
    aps = {}
    for number, name in enumerate(CLASSES[:3]):
        lines = [
            f"{image} {score:.5f} " + " ".join(f"{v:.1f}" for v in (box[0] + 1, box[1] + 1, box[2], box[3]))
            for image, rows in zip(names, detections, strict=True)
            for label, score, *box in rows.tolist()
            if label == number
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        for eleven in (True, False):
            for threshold in (0.5, 0.75):
                aps[number, eleven, threshold] = voc_eval(
                    str(tmp_path / "{}.txt"), str(tmp_path / "{}.xml"), str(tmp_path / "set.txt"), name,
                    ovthresh=threshold, use_07_metric=eleven,
                )[2]  # fmt: skip
        assert figures[f"ap/{name}"][0] == pytest.approx(aps[number, True, 0.5]) and 0.05 < aps[number, True, 0.5] < 1
    for figure, eleven, threshold in (
        ("map", True, 0.5), ("11-point/ap75", True, 0.75), ("ap50", False, 0.5), ("ap75", False, 0.75)
    ):  # fmt: skip
        assert figures[figure][0] == pytest.approx(np.mean([aps[n, eleven, threshold] for n in range(3)])), figure


def plain_config(source: str):
    """A config of detectron2's that names a source."""
    from detectron2.config import get_cfg

    from crosschannel.detectron2 import add_crosschannel_config, pixel_mean

    cfg = get_cfg()
    add_crosschannel_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.CROSSCHANNEL.SOURCE, cfg.INPUT.FORMAT = "cpu", source, "RGB"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_crosschannel_backbone", "CrosschannelROIHeads"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = pixel_mean(load_backbone(source)), [1.0, 1.0, 1.0]
    cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME = True, "PrecomputedProposals"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "ROIPool", 20
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.05, 0.3
    return cfg


@pytest.mark.parametrize("source", SOURCES)
def test_a_plain_detectron2_config_makes_the_same_detector(source, batches):
    """GeneralizedRCNN, with its own preprocessing, padding, sampling of scores and rescaling."""
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances

    cfg = plain_config(source)
    cfg.MODEL.CROSSCHANNEL.DROPOUT = 0.0
    model = build_model(cfg).eval()
    ours, _ = engines(source)
    ours.eval()
    ours.score.box_predictor.target_mean.zero_()
    ours.score.box_predictor.target_std.copy_(torch.tensor([0.1, 0.1, 0.2, 0.2]))
    model.roi_heads.box_predictor.load_state_dict(ours.score.box_predictor.state_dict())
    model.roi_heads.neck.load_state_dict(ours.score.neck.state_dict())
    _, test = batches
    config = FilterConfig(score=0.05, nms=0.3, most=100)
    for number, (image, regions) in enumerate(zip(test.images, test.regions, strict=True)):
        size = tuple(image.shape[1:])
        given = Instances(size, proposal_boxes=Boxes(regions.boxes), objectness_logits=torch.zeros(len(regions.boxes)))
        with torch.no_grad():
            (found,) = model([{"image": image, "proposals": given, "height": size[0], "width": size[1]}])
            boxes, scores = ours.detect(replace_images(test, number))[0]
        limits = torch.tensor([size[1], size[0]] * 2)
        kept = filter_by_score(torch.minimum(boxes.clamp(min=0), limits), scores, config)
        theirs = found["instances"]
        assert len(theirs) == len(kept) > 0
        assert torch.allclose(theirs.scores, kept[:, 1], atol=1e-4)
        assert torch.allclose(theirs.pred_boxes.tensor, kept[:, 2:], atol=0.02)


def replace_images(batch, number):
    """One image of a batch."""
    part = slice(number, number + 1)
    return replace(
        batch, images=batch.images[part], regions=batch.regions[part], original_sizes=batch.original_sizes[part],
        indices=batch.indices[part],
    )  # fmt: skip


def test_a_plain_detectron2_config_trains_faster_rcnn_on_any_source(batches):
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = plain_config(SOURCES[0])
    cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME = False, "RPN"
    cfg.MODEL.RPN.IN_FEATURES = ["conv5"]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32, 32
    model = build_model(cfg).train()
    batch = batches[0][0]
    inputs = [
        {
            "image": image,
            "instances": Instances(tuple(image.shape[1:]), gt_boxes=Boxes(one.objects), gt_classes=one.classes),
        }
        for image, one in zip(batch.images, batch.regions, strict=True)
    ]
    with EventStorage():
        losses = model(inputs)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_an_exported_file_is_what_a_plain_config_loads(tmp_path, batches):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    out, source = tmp_path / "alexnet.pkl", "random:alexnet,fc=32,seed=1,data=builtin:sample"
    words = ["export", source, "--format=detectron2", f"--out={out}", "--card=false"]
    assert crosschannel(words) == 0
    expected = build_model(plain_config(source))
    other = build_model(plain_config(source.replace("seed=1", "seed=7")))
    name = "backbone.source.net.conv1.conv.weight"
    assert not torch.equal(other.state_dict()[name], expected.state_dict()[name])
    DetectionCheckpointer(other).load(str(out))
    for name, value in expected.state_dict().items():
        if "box_predictor" not in name:
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.fixture(scope="module")
def command(voc, proposals):
    return [
        "detect", "--config=voc-mini", "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1", f"--data={voc}",
        f'--proposals=["{proposals}"]', "--fc=8", "--calibrate=false", "--scales=[96,120]", "--longest=200",
        "--test-scale=110", "--test-longest=200", "--train.batch=4", "--train.steps=6", "--train.precision=float32",
        "--runtime.workers=0", "--runtime.log_every=2", "--runtime.checkpoint_every=2", "--runtime.tensorboard=false",
    ]  # fmt: skip


def test_the_engine_is_a_key(command, tmp_path):
    for engine in ("torchvision", "detectron2"):
        assert (
            main([*command, f"--engine={engine}", "--dropout=0", "--keep.score=0.02", f"--out={tmp_path / engine}"])
            == 0
        )
    ours, theirs = (load_result(tmp_path / engine) for engine in ("torchvision", "detectron2"))
    for name, value in ours.metrics.items():
        assert theirs.metrics[name] == pytest.approx(value, abs=1e-3), name
    scores = [result.rows["detections"].values for result in (ours, theirs)]
    assert len(scores[0]) and abs(len(scores[0]) - len(scores[1])) <= 0.02 * len(scores[0]) + 1


@pytest.mark.slow
def test_faster_rcnn_c4_is_one_flag(tmp_path, real_data):
    """Two steps and an evaluation on real pictures."""
    devkit = real_data / "voc-mini" / "VOCdevkit"
    out = tmp_path / "run"
    few = few_of(devkit, tmp_path, 4)
    words = [
        "detect", "--config=faster-rcnn-c4", "--backbone=random:timm:resnet50", f"--data={few}",
        "--train_set=2007:trainval", "--train.batch=2", "--train.steps=2",
        "--schedule.milestones=[]", "--schedule.rates=[]", "--sample.regions=24", "--rpn.after=[200,40]",
        "--scales=[160]", "--test_scale=160", "--longest=260", "--test_longest=260", "--runtime.workers=0",
        "--runtime.log_every=1", "--runtime.tensorboard=false", f"--out={out}",
    ]  # fmt: skip
    assert main(words) == 0
    result = load_result(out)
    assert result.n == 4 and {"map", "ap50", "ap75", "ap", "11-point/ap"} <= result.metrics.keys()
    again = transfer.load_predictor(out)((few / "VOC2007" / "JPEGImages" / f"{first_of(few)}.jpg").read_bytes())
    assert set(again.pictures) == {"boxes"} and all(score > 0.01 for _, score, *_ in again.boxes)


def few_of(devkit, folder, count):
    """The same devkit with so many images in each set."""
    few = folder / "VOCdevkit" / "VOC2007"
    few.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (few / name).symlink_to(devkit / "VOC2007" / name)
    (few / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("trainval", "test"):
        lines = (devkit / "VOC2007" / "ImageSets" / "Main" / f"{name}.txt").read_text().splitlines()[:count]
        (few / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return few.parent


def first_of(devkit) -> str:
    return (devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt").read_text().split()[0]


def test_the_snippet_of_the_docs_runs():
    import re
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "detect.md"
    (block,) = re.findall(r"```python test=detectron2\n(.*?)```", page.read_text(), re.S)
    names: dict = {"crosschannel": __import__("crosschannel")}
    exec(compile(block.replace("runs/alexnet-imagenet-0", "random:alexnet,fc=8,seed=1"), str(page), "exec"), names)
    detector = names["detector"].eval()
    with torch.no_grad():
        (found,) = detector([{"image": torch.randint(0, 255, (3, 120, 160)), "height": 120, "width": 160}])
    assert found["instances"].image_size == (120, 160)
