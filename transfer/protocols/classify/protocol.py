"""PASCAL VOC classification, the columns "fc8", "fc6-8" and "all" of the paper's Table 2.

Like the paper, the protocol follows Krähenbühl et al., "Data-dependent initializations of convolutional neural
networks" (ICLR 2016). The config ``deepcluster`` has the settings of Caron et al., "Deep clustering" (ECCV 2018).
"""

from functools import partial

import torch

from crosschannel.data import CropConfig, Stream, TrainingCrops, View
from crosschannel.errors import UserError
from crosschannel.models import Backbone, InputSpec
from crosschannel.training.task import Evaluation
from transfer.chance import random_ranking
from transfer.features import interpolation_of
from transfer.finetuning import FineTunedClassifier, announce, build_trainable, check_choices, fit, initialise, load_net
from transfer.pascal.devkit import open_devkit
from transfer.pascal.table2 import ap_table, pascal_section
from transfer.prediction import FinishedRun, Prediction, Predictor, class_scores, load_views
from transfer.protocol import Data, Measurement, Protocol, Split
from transfer.protocols.classify.config import ClassifyConfig
from transfer.protocols.classify.task import Classification, RandomScaleCrops, compute_metrics


def _open(data: Data, config: ClassifyConfig) -> Split:
    """Open the image sets, and validate the config before the backbone is loaded."""
    split = open_devkit(data, config)
    check_choices(config)
    return split


def _measure(measurement: Measurement) -> Evaluation:
    """Fine-tune a classifier on a copy of the backbone."""
    split, world = measurement.split, measurement.world
    config: ClassifyConfig = measurement.config
    net, layers_to_init = build_trainable(measurement, _build)
    input = net.backbone.input
    size = config.size or input.size
    _check_size(net.backbone, size)
    announce(measurement, net, f"crops of {size} px")
    task = Classification(
        net=net,
        init_weights=partial(initialise, net, layers_to_init, config),
        train=split.train,
        test=split.test,
        classes=split.classes,
        view=_view(config, input, size, config.test_crops),
        train_view=_view(config, input, size, 1) if config.score_train else None,
        world=world,
        batch=max(40, config.train.batch // world.size),
        workers=config.runtime.workers,
    )
    return fit(measurement, task, Stream(split.train, _view(config, input, size, 1), config.seed), size)


def _build(config: ClassifyConfig, backbone: Backbone, classes: int) -> FineTunedClassifier:
    return FineTunedClassifier(backbone, classes, config.dropout, config.dropout_on == "inputs")


def _view(config: ClassifyConfig, input: InputSpec, size: int, views: int) -> View:
    if config.crop == "random-scale":
        return RandomScaleCrops(size, config.mirror, views)
    crop = CropConfig(size, size, "random-resized", config.area, 1.0, config.mirror)
    return TrainingCrops(crop, interpolation_of(input), views)


def _check_size(backbone: Backbone, size: int) -> None:
    """Raise a UserError if the crops are too small for the backbone."""
    blank = torch.zeros(1, backbone.input.channels, size, size).to(next(backbone.parameters()))
    try:
        with torch.no_grad():
            backbone.eval().fully_connected(backbone.features(blank, [backbone.trunk_layer])[backbone.trunk_layer])
    except RuntimeError as error:
        raise UserError(f"the backbone cannot take crops of {size} px: {str(error).splitlines()[0]}") from None


def _predictor(run: FinishedRun) -> Predictor:
    run.reject_layer()
    config: ClassifyConfig = run.config
    net, classes, size = load_net(run, partial(_build, config))
    view = _view(config, net.backbone.input, size, config.test_crops)

    def predict(data: bytes) -> Prediction:
        logits = net(net.preprocess(load_views(data, view).images.to(run.device)))
        return class_scores(logits.mean(0).sigmoid(), classes)

    return predict


classify = Protocol(
    config=ClassifyConfig,
    open_data=_open,
    measure=_measure,
    metrics=compute_metrics,
    show=ap_table,
    section=pascal_section,
    returns="the average precisions ``map``, ``one_crop/map`` and ``ap/CLASS``",
    positional_key="train_from",
    chapter="pascal",
    predict=_predictor,
    chance_level=random_ranking,
)
