"""PASCAL VOC segmentation, the last column of the paper's Table 2.

Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation" (CVPR 2015): FCN-32s on AlexNet.
Other backbones get the same decoder, optionally with the skip connections of FCN-16s and FCN-8s.
"""

from functools import partial

import torch
from torch import nn

from crosschannel.data import Stream
from crosschannel.data.decode import EncodedImage
from crosschannel.errors import wrap_external_errors
from crosschannel.models import Backbone
from crosschannel.training.task import Evaluation
from transfer.chance import constant_class
from transfer.finetuning import (
    announce,
    build_trainable,
    check_choices,
    fit,
    initialisation_crops,
    initialise,
    load_net,
)
from transfer.pascal.masks import open_masks
from transfer.pascal.segmentation import iou_table, mask_predictor
from transfer.pascal.table2 import pascal_section
from transfer.prediction import FinishedRun, Predictor
from transfer.protocol import Data, Measurement, Protocol, Split
from transfer.protocols.segment.config import SegmentConfig
from transfer.protocols.segment.net import Segmenter
from transfer.protocols.segment.task import Segmentation, compute_metrics
from transfer.protocols.segment.views import MaskedCrops, WholeImages


def _open(data: Data, config: SegmentConfig) -> Split:
    """Open the image sets, and validate the config before the backbone is loaded."""
    split = open_masks(data, config)
    check_choices(config)
    return split


def _measure(measurement: Measurement) -> Evaluation:
    """Fine-tune a fully convolutional network on a copy of the backbone."""
    split = measurement.split
    config: SegmentConfig = measurement.config
    net, layers_to_init = build_trainable(measurement, _build)
    _check_sizes(net, config.crop)
    announce(measurement, net, f"stride {net.strides[-1]} ({', '.join(net.layers)})")
    view = WholeImages(len(split.classes), config.mirror)
    if config.crop:
        view = MaskedCrops(len(split.classes), config.crop, config.scale, config.mirror)

    def init_weights(_stream: Stream) -> None:
        initialise(net, layers_to_init, config, initialisation_crops(split.train, net.backbone.input, config.seed))
        net.zero_scores()

    task = Segmentation(
        net=net,
        init_weights=init_weights,
        test=split.test,
        classes=split.classes,
        world=measurement.world,
        workers=config.runtime.workers,
    )
    return fit(measurement, task, Stream(split.train, view, config.seed), config.crop)


def _build(config: SegmentConfig, backbone: Backbone, classes: int) -> Segmenter:
    backbone.take_any_size()
    skips = [name.strip() for name in config.skips.split(",")] if config.skips else []
    return Segmenter(backbone, classes, config.dropout, config.stride, skips, config.pad, config.upsampling)


def _check_sizes(net: Segmenter, crop: int) -> None:
    """Raise a UserError if the backbone only accepts images of a fixed size, or the crops are too small for it."""
    side = net.backbone.input.size
    for height, width in ((side, side + 40), (crop or 1, crop or 1)):
        blank = torch.zeros(1, net.backbone.input.channels, height, width).to(next(net.parameters()))
        hint = " (`transfer dense` resizes images to the backbone's own size)" if width > height else ""
        with wrap_external_errors(f"the backbone cannot take images of {width} × {height} px{hint}"), torch.no_grad():
            net.eval()([blank])


def _predictor(run: FinishedRun) -> Predictor:
    run.reject_layer()
    net, classes, _ = load_net(run, partial(_build, run.config))

    def labels(image: EncodedImage) -> torch.Tensor:
        x = torch.from_numpy(image.pixels()).permute(2, 0, 1)[None].to(run.device)
        short_side = min(image.height, image.width)
        if run.size and short_side > run.size:
            size = [max(1, round(side * run.size / short_side)) for side in (image.height, image.width)]
            x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        return net.labels(net.preprocess(x), image.height, image.width)[0]

    return mask_predictor(labels, classes)


segment = Protocol(
    config=SegmentConfig,
    open_data=_open,
    measure=_measure,
    metrics=compute_metrics,
    show=iou_table,
    section=pascal_section,
    returns="``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu`` and ``iu/CLASS``",
    chapter="pascal",
    predict=_predictor,
    chance_level=constant_class,
    annotations="whose field mask is (H, W) integers",
)
