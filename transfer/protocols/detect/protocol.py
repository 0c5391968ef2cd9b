"""PASCAL VOC detection, a column of the paper's Table 2.

Girshick, "Fast R-CNN" (ICCV 2015) on selective search's proposals, and for ResNets the protocol of MoCo and VISSL:
Ren et al., "Faster R-CNN" (NeurIPS 2015) with the last stage as its head.
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
from transfer.pascal.detections import box_predictor, detection_figures, detection_table
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
    batch_of,
    detect_in_original_coordinates,
    filter_by_score,
)
from transfer.protocols.detect.views import AllRegions, SampledRegions, candidates, trainable_objects

_LEAST_DEVIATION = 0.01  # of the box targets of a class that has hardly any


def _open(data: Data, config: DetectConfig) -> Split:
    """The image sets; what can be refused of the config is, before any net is loaded or proposals are made."""
    check_engine(config)
    check_choices(config)
    split = open_devkit(data, config)
    if not isinstance(data, str):  # a devkit's annotations are checked as they are read
        for images in (split.train, split.test):
            _check_objects(images)
    if not config.method:
        boxes = _of_files(config)
        split = replace(split, train=_with(split.train, boxes, config), test=_with(split.test, boxes, config))
    return split


def _check_objects(images: ImageSet) -> None:
    """Raise a UserError if the objects of an image are not Objects, or an object does not lie in its picture."""
    for index, name in enumerate(images.names):
        objects = images.fields(index).get("objects")
        if not isinstance(objects, Objects):
            raise UserError(
                f"{name}: fields()['objects'] must be transfer.pascal.devkit.Objects, got {type(objects).__name__}"
            )
        objects.check(picture_size(images, index), name)


def check_engine(config: DetectConfig) -> None:
    """Raise a UserError where the engine, or what makes proposals, is not installed."""
    if config.engine == "detectron2":
        if importlib.util.find_spec("detectron2") is None:
            raise UserError(
                "engine detectron2 needs detectron2: pip install 'git+https://github.com/facebookresearch/detectron2' "
                "--no-build-isolation; --engine torchvision needs nothing more"
            )
        with wrap_external_errors("detectron2 is installed and cannot be imported"):
            importlib.import_module("transfer.protocols.detect.with_detectron2")
    if config.method in MODES:
        check_opencv()


def _of_files(config: DetectConfig) -> Boxes:
    found: dict[str, np.ndarray] = {}
    for path in config.proposal_files:
        found |= load_boxes(path, config.most_proposals)
    return found


def _with(images: ImageSet, boxes: Boxes, config: DetectConfig) -> WithProposals:
    return WithProposals(images, boxes, ", ".join(config.proposal_files))


def _measure(measurement: Measurement) -> Evaluation:
    """Fine-tune a detector on a copy of the backbone."""
    world = measurement.world
    config: DetectConfig = measurement.config
    train, test, classes = measurement.split.train, measurement.split.test, measurement.split.classes
    on_gpu = world.device.type == "cuda"
    if config.train.deterministic and on_gpu and config.roi.pooling == "max":
        raise UserError("train.deterministic: max pooling of regions is not, on GPUs; give --roi.pooling align")
    check_ranks(config.train, world.size)
    net, new = build_trainable(measurement, _build)
    _check_map(net)
    if config.sync_norm and world.size > 1 and on_gpu:
        net = _synchronised(net)
    if config.method in MODES:
        train, test = (_with(images, _made(measurement, images, config), config) for images in (train, test))
    if config.sample.targets == "by-class":
        net.set_targets(*target_statistics(train, len(classes), config))
    plan, engine = net.plan, config.engine
    regions = f"{plan.resolution} × {plan.resolution} regions of {plan.layer}"
    announce(measurement, net, f"{regions}, head {plan.head}, engine {engine}")
    view = SampledRegions(len(classes), config.sample, tuple(config.scales), config.longest, config.mirror)

    def init_weights(_stream: Stream) -> None:
        torch.manual_seed(config.seed)  # engines have drawn differently by now
        initialise(net, new, config, initialisation_crops(train, net.backbone.input, config.seed))
        net.reset_scores()

    task = Detection(
        net=net,
        init_weights=init_weights,
        train=train if config.score_train else None,
        test=test,
        classes=classes,
        view=AllRegions(config.test_scale, config.test_longest),
        keep=config.keep,
        world=world,
        workers=config.runtime.workers,
    )
    return fit(measurement, task, Stream(train, view, config.seed), config.test_scale)


def _made(measurement: Measurement, images: ImageSet, config: DetectConfig) -> Boxes:
    """Proposals that are made, or were, on this machine."""
    mode, workers = MODES[config.method], config.runtime.workers
    boxes = cached_boxes(images, mode, measurement.world, workers, measurement.should_stop, measurement.console)
    return {name: found[: config.most_proposals] for name, found in boxes.items()}


def _build(config: DetectConfig, backbone: Backbone, classes: int) -> Detector:
    if config.engine == "torchvision":
        return FastRCNN(backbone, classes, config)
    from transfer.protocols.detect.with_detectron2 import DetectronRCNN

    return DetectronRCNN(backbone, classes, config)


def _synchronised(net: Detector) -> Detector:
    """Convert the detector's BatchNorm to SyncBatchNorm, in place."""
    own = getattr(net.backbone.net, "convert_sync_batchnorm", nn.SyncBatchNorm.convert_sync_batchnorm)
    return own(net)


@torch.no_grad()
def _check_map(net: Detector) -> None:
    """Raise a UserError for a net that does not take images of any size."""
    side, step = net.backbone.input.size, net.plan.step
    height, width = (-(-length // step) * step for length in (side, side + 3 * net.plan.stride))
    blank = torch.zeros(1, net.backbone.input.channels, height, width).to(next(net.parameters()))
    with wrap_external_errors(f"the backbone cannot take images of {width} × {height} px"):
        net.eval().map_of(blank)


def target_statistics(images: ImageSet, classes: int, config: DetectConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of box targets by class, (K, 4) each, over all regions that show an object (the objects
    themselves among them), mirrored ones too. A class of which none is shown has R-CNNs' fixed ones."""
    sums, squares, counts = np.zeros((classes, 4)), np.zeros((classes, 4)), np.zeros(classes)
    for index in range(len(images)):
        fields = images.fields(index)
        # What lies outside of an image is cut off when it is learned; its size is not looked up for a mean.
        truth, labels = trainable_objects(fields["objects"], np.inf, np.inf, config.sample.difficult)
        boxes = candidates(fields["proposals"], truth, np.inf, np.inf)
        if not len(truth):
            continue
        shared = overlaps(boxes, truth)
        rows = np.flatnonzero(shared.max(1) >= config.sample.overlap)
        matched = shared[rows].argmax(1)
        moves = encode_boxes(torch.from_numpy(boxes[rows]), torch.from_numpy(truth[matched])).numpy()
        np.add.at(sums, labels[matched], moves)
        np.add.at(squares, labels[matched], moves**2)
        np.add.at(counts, labels[matched], 1)
    known = counts[:, None] > 0
    mean = np.divide(sums, counts[:, None], out=np.zeros_like(sums), where=known)
    if config.mirror:
        mean[:, 0] = 0  # as many to the left as to the right
    variance = np.divide(squares, counts[:, None], out=np.zeros_like(sums), where=known) - mean**2
    deviation = np.where(known, np.sqrt(variance.clip(min=_LEAST_DEVIATION**2)), np.array(BOX_STDS))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


def _predictor(run: FinishedRun) -> Predictor:
    run.refuse_layer()
    config: DetectConfig = run.config
    check_engine(config)
    find = _finder(config)
    net, classes, _ = load_net(run, partial(_build, config))
    view = AllRegions(config.test_scale, config.test_longest)

    def detections(image: EncodedImage) -> np.ndarray:
        fields = {"proposals": find(image.pixels())[: config.most_proposals]} if find else {}
        (found,) = detect_in_original_coordinates(net, batch_of(Record({"image": image.data}, fields=fields), view))
        return filter_by_score(*found, config.keep).cpu().numpy()

    return box_predictor(detections, classes)


def _finder(config: DetectConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes proposals of new pictures; files of them are taken for those of selective search's fast mode."""
    if config.method == "rpn":
        return None
    check_opencv()
    mode = MODES.get(config.method, "fast")
    return lambda pixels: selective_search(pixels, mode)


detect = Protocol(
    config=DetectConfig,
    open_data=_open,
    measure=_measure,
    metrics=detection_figures,
    show=detection_table,
    section=pascal_section,
    returns="``map``, ``ap50``, ``ap75``, ``ap`` and ``ap/CLASS``",
    chapter="pascal",
    predict=_predictor,
    annotations="whose field objects is a transfer.pascal.devkit.Objects",
)
