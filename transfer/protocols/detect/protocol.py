"""PASCAL VOC detection, a column of the paper's Table 2.

The detector is Fast R-CNN (Girshick, ICCV 2015) on selective-search proposals. ResNets can also be evaluated as in MoCo
and VISSL: with Faster R-CNN (Ren et al., NeurIPS 2015), whose head is the last stage.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from crosschannel.config.training import check_ranks
from crosschannel.data import ImageSet, Record, Stream
from crosschannel.data.decode import EncodedImage
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.models import Backbone
from crosschannel.models.regions import BOX_STDS
from crosschannel.training.task import Evaluation
from transfer.boxes import overlaps, picture_size
from transfer.finetuning import (
    announce,
    build_trainable,
    check_choices,
    fit,
    initialisation_crops,
    initialise,
    load_net,
)
from transfer.pascal.detections import box_predictor, detection_metrics, detection_table
from transfer.pascal.devkit import Objects, open_devkit
from transfer.pascal.table2 import pascal_section
from transfer.prediction import FinishedRun, Predictor
from transfer.proposals.compute import cached_boxes
from transfer.proposals.files import Boxes, WithProposals, load_boxes
from transfer.proposals.selective_search import MODES, check_opencv, selective_search
from transfer.protocol import Data, Measurement, Protocol, Split
from transfer.protocols.detect.config import DetectConfig
from transfer.protocols.detect.net import Detector, FastRCNN, encode_boxes
from transfer.protocols.detect.task import (
    Detection,
    detect_in_original_coordinates,
    filter_by_score,
    single_image_batch,
)
from transfer.protocols.detect.views import AllRegions, SampledRegions, candidates, trainable_objects

_MIN_STD = 0.01  # lower bound for the std of box targets, for classes with few targets


def _open(data: Data, config: DetectConfig) -> Split:
    """Open the image sets, and validate the config before the backbone is loaded or proposals are computed."""
    check_engine(config)
    check_choices(config)
    split = open_devkit(data, config)
    if not isinstance(data, str):  # annotations of a devkit have already been checked
        for images in (split.train, split.test):
            _check_objects(images)
    if not config.method:
        boxes = _load_proposals(config)
        split = replace(
            split,
            train=_with_proposals(split.train, boxes, config),
            test=_with_proposals(split.test, boxes, config),
        )
    return split


def _check_objects(images: ImageSet) -> None:
    """Raise a UserError if the objects of an image are not Objects, or a box lies outside its image."""
    for index, name in enumerate(images.names):
        objects = images.fields(index).get("objects")
        if not isinstance(objects, Objects):
            raise UserError(
                f"{name}: fields()['objects'] must be transfer.pascal.devkit.Objects, got {type(objects).__name__}"
            )
        objects.check(picture_size(images, index), name)


def check_engine(config: DetectConfig) -> None:
    """Raise a UserError if the engine, or OpenCV for selective search, is not installed."""
    if config.engine == "detectron2":
        if importlib.util.find_spec("detectron2") is None:
            raise UserError(
                "detectron2 is not installed: pip install 'git+https://github.com/facebookresearch/detectron2' "
                "--no-build-isolation, or use --engine torchvision"
            )
        with wrap_external_errors("detectron2 is installed, but cannot be imported"):
            importlib.import_module("transfer.protocols.detect.with_detectron2")
    if config.method in MODES:
        check_opencv()


def _load_proposals(config: DetectConfig) -> Boxes:
    boxes: dict[str, np.ndarray] = {}
    for path in config.proposal_files:
        boxes |= load_boxes(path, config.most_proposals)
    return boxes


def _with_proposals(images: ImageSet, boxes: Boxes, config: DetectConfig) -> WithProposals:
    return WithProposals(images, boxes, ", ".join(config.proposal_files))


def _measure(measurement: Measurement) -> Evaluation:
    """Fine-tune a detector on a copy of the backbone."""
    world = measurement.world
    config: DetectConfig = measurement.config
    train, test, classes = measurement.split.train, measurement.split.test, measurement.split.classes
    on_gpu = world.device.type == "cuda"
    if config.train.deterministic and on_gpu and config.roi.pooling == "max":
        raise UserError("train.deterministic: RoI max pooling is not deterministic on GPUs; set --roi.pooling align")
    check_ranks(config.train, world.size)
    net, layers_to_init = build_trainable(measurement, _build)
    _check_sizes(net)
    if config.sync_norm and world.size > 1 and on_gpu:
        net = _sync_batch_norm(net)
    if config.method in MODES:
        train, test = (
            _with_proposals(images, _compute_proposals(measurement, images, config), config) for images in (train, test)
        )
    if config.sample.targets == "by-class":
        net.set_target_statistics(*target_statistics(train, len(classes), config))
    plan, engine = net.plan, config.engine
    regions = f"regions of {plan.layer} pooled to {plan.resolution} × {plan.resolution}"
    announce(measurement, net, f"{regions}, head {plan.head}, engine {engine}")
    view = SampledRegions(len(classes), config.sample, tuple(config.scales), config.longest, config.mirror)

    def init_weights(_stream: Stream) -> None:
        torch.manual_seed(config.seed)  # again, because the engines draw different numbers of random values
        initialise(net, layers_to_init, config, initialisation_crops(train, net.backbone.input, config.seed))
        net.reset_scores()

    task = Detection(
        net=net,
        init_weights=init_weights,
        train=train if config.score_train else None,
        test=test,
        classes=classes,
        view=AllRegions(config.test_scale, config.test_longest),
        filter_config=config.keep,
        world=world,
        workers=config.runtime.workers,
    )
    return fit(measurement, task, Stream(train, view, config.seed), config.test_scale)


def _compute_proposals(measurement: Measurement, images: ImageSet, config: DetectConfig) -> Boxes:
    """Run selective search, or load its results from the cache."""
    mode, workers = MODES[config.method], config.runtime.workers
    boxes = cached_boxes(images, mode, measurement.world, workers, measurement.should_stop, measurement.console)
    return {name: image_boxes[: config.most_proposals] for name, image_boxes in boxes.items()}


def _build(config: DetectConfig, backbone: Backbone, classes: int) -> Detector:
    if config.engine == "torchvision":
        return FastRCNN(backbone, classes, config)
    from transfer.protocols.detect.with_detectron2 import DetectronRCNN

    return DetectronRCNN(backbone, classes, config)


def _sync_batch_norm(net: Detector) -> Detector:
    """Convert the BatchNorm layers of a detector to SyncBatchNorm, in place."""
    convert = getattr(net.backbone.net, "convert_sync_batchnorm", nn.SyncBatchNorm.convert_sync_batchnorm)
    return convert(net)


@torch.no_grad()
def _check_sizes(net: Detector) -> None:
    """Raise a UserError if the backbone only accepts images of a fixed size."""
    side, step = net.backbone.input.size, net.plan.step
    height, width = (-(-length // step) * step for length in (side, side + 3 * net.plan.stride))
    blank = torch.zeros(1, net.backbone.input.channels, height, width).to(next(net.parameters()))
    with wrap_external_errors(f"the backbone cannot take images of {width} × {height} px"):
        net.eval().feature_map(blank)


def target_statistics(images: ImageSet, classes: int, config: DetectConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and std of the box targets per class, (K, 4) each.

    They are computed over all foreground regions, including the objects themselves and, if images are mirrored, the
    mirrored regions. Classes without foreground regions get mean 0 and the fixed stds of R-CNN.
    """
    sums, squares, counts = np.zeros((classes, 4)), np.zeros((classes, 4)), np.zeros(classes)
    for index in range(len(images)):
        fields = images.fields(index)
        # Training clips boxes to the image. The statistics skip this, because image sizes would have to be read.
        objects, labels = trainable_objects(fields["objects"], np.inf, np.inf, config.sample.difficult)
        boxes = candidates(fields["proposals"], objects, np.inf, np.inf)
        if not len(objects):
            continue
        ious = overlaps(boxes, objects)
        foreground = np.flatnonzero(ious.max(1) >= config.sample.overlap)
        matched = ious[foreground].argmax(1)
        deltas = encode_boxes(torch.from_numpy(boxes[foreground]), torch.from_numpy(objects[matched])).numpy()
        np.add.at(sums, labels[matched], deltas)
        np.add.at(squares, labels[matched], deltas**2)
        np.add.at(counts, labels[matched], 1)
    has_targets = counts[:, None] > 0
    mean = np.divide(sums, counts[:, None], out=np.zeros_like(sums), where=has_targets)
    if config.mirror:
        mean[:, 0] = 0  # mirrored regions have the opposite horizontal shift
    variance = np.divide(squares, counts[:, None], out=np.zeros_like(sums), where=has_targets) - mean**2
    std = np.where(has_targets, np.sqrt(variance.clip(min=_MIN_STD**2)), np.array(BOX_STDS))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _predictor(run: FinishedRun) -> Predictor:
    run.reject_layer()
    config: DetectConfig = run.config
    check_engine(config)
    propose = _proposal_function(config)
    net, classes, _ = load_net(run, partial(_build, config))
    view = AllRegions(config.test_scale, config.test_longest)

    def detect_objects(image: EncodedImage) -> np.ndarray:
        fields = {"proposals": propose(image.pixels())[: config.most_proposals]} if propose else {}
        (detections,) = detect_in_original_coordinates(
            net, single_image_batch(Record({"image": image.data}, fields=fields), view)
        )
        return filter_by_score(*detections, config.keep).cpu().numpy()

    return box_predictor(detect_objects, classes)


def _proposal_function(config: DetectConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function that computes the proposals of a new picture; None if the detector proposes regions itself.

    If the run used proposal files, selective search runs in its fast mode.
    """
    if config.method == "rpn":
        return None
    check_opencv()
    mode = MODES.get(config.method, "fast")
    return lambda pixels: selective_search(pixels, mode)


detect = Protocol(
    config=DetectConfig,
    open_data=_open,
    measure=_measure,
    metrics=detection_metrics,
    show=detection_table,
    section=pascal_section,
    returns="the average precisions ``map``, ``ap50``, ``ap75``, ``ap`` and ``ap/CLASS``",
    chapter="pascal",
    predict=_predictor,
    annotations="whose field objects is a transfer.pascal.devkit.Objects",
)
