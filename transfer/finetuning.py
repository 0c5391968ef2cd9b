"""What all fine-tuning shares: a copy of the backbone that may be trained, what stands on it, where gradients start,
initial values, and the weights that are kept.

Two choices are apart: ``train_from``, below which nothing moves, and ``random_from``, from which weights are new.
"""

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from crosschannel import load_backbone
from crosschannel.config.load import build_stored
from crosschannel.data import CropConfig, ImageSet, Stream, TrainingCrops, load_batches
from crosschannel.errors import UserError
from crosschannel.factories import is_factory
from crosschannel.files import atomic_write
from crosschannel.hub.files import load_state, write_tensors
from crosschannel.hub.sources import known_layers, parse_source
from crosschannel.models import Backbone, InputSpec, NetSpec
from crosschannel.models import initialisation as init
from crosschannel.models.adapt import absorbed, build_untrained, lacks_fc, trainable_copy, with_fc, with_input
from crosschannel.models.calibration import calibrate
from crosschannel.models.nets import find_spec
from crosschannel.training.loop import Loop
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation
from transfer.config import FineTuneConfig
from transfer.features import interpolation_of
from transfer.prediction import FinishedRun
from transfer.protocol import Measurement

WEIGHTS, _FORMAT = "net.safetensors", "crosschannel.finetuned"
N = TypeVar("N", bound="FineTuned")
_CROPS = 80  # that calibration looks at, and ten times as many that k-means does


class FineTuned(nn.Module):
    """A backbone with new layers on it, which are its ``score``.

    Args:
        backbone: a copy to be trained.
        score: new layers on top.
        dropout: after fc6 and fc7, in training mode, whether they are trained or not.

    Attributes:
        input_scale: scalar that preprocessed images are multiplied by, set by calibration and never trained.
    """

    def __init__(self, backbone: Backbone, score: nn.Module, dropout: float):
        super().__init__()
        self.backbone, self.score, self.dropout = backbone, score, dropout
        self.layers: tuple[str, ...] = (backbone.top_layer,)  # that are scored
        self._still: tuple[str, ...] = ()  # modules that stay in eval mode
        self.register_buffer("input_scale", torch.ones(()))
        self.register_load_state_dict_pre_hook(_default_input_scale)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W), uint8 or float in [0, 1] → the net's input."""
        return self.backbone.preprocess(rgb) * self.input_scale

    def train(self, mode: bool = True) -> "FineTuned":
        super().train(mode)
        for name in self._still:
            self.get_submodule(name).eval()
        return self

    def freeze(self, parameters: set[str], modules: set[str]) -> None:
        """Let parameters get no gradients and modules stay in eval mode, by name."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in parameters)
        self._still = tuple(sorted(modules))


def _default_input_scale(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_args: object) -> None:
    """Set a missing scale to 1: weights of earlier versions have it folded into the first convolution."""
    state.setdefault(f"{prefix}input_scale", torch.ones(()))


@dataclass(kw_only=True, eq=False)
class FineTuning:
    """Base class of fine-tuning tasks.

    Attributes:
        net: net to fine-tune.
        init_weights: called with the training stream before training; initialises the net.
        test: images to score.
        classes: their names.
        world: ranks that share the evaluation.
        workers: loader workers for evaluation.
    """

    net: FineTuned
    init_weights: Callable[[Stream], None]
    test: ImageSet
    classes: Sequence[str]
    world: World
    workers: int
    rate_factors: ClassVar[Mapping[str, float]] = MappingProxyType({})

    def initialise(self, stream: Stream) -> bool:
        self.init_weights(stream)
        return True


class FineTunedClassifier(FineTuned):
    """A linear layer on the mean of the backbone's last map, which is fc7's if the backbone has fc7.

    Args:
        backbone, dropout: see :class:`FineTuned`.
        outputs: number of outputs.
        drop_inputs: apply dropout to the inputs of fc6 and fc7 instead of their outputs.

    Shape:
        preprocessed (N, C, H, W) → (N, outputs).
    """

    def __init__(self, backbone: Backbone, outputs: int, dropout: float, drop_inputs: bool = False):
        super().__init__(backbone, nn.Linear(backbone.channels[backbone.top_layer], outputs), dropout)
        self.drop_inputs = drop_inputs

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone.features(x, [self.backbone.trunk_layer])[self.backbone.trunk_layer]
        return self.score(self.backbone.fully_connected(maps, self.dropout, self.drop_inputs).mean((2, 3)))


def check_choices(config: FineTuneConfig) -> None:
    """What can be refused of a config before the net is loaded: where a source says what layers and input it has.

    Raises:
        UserError: no such layer to train from, or another input than the source asks for.
    """
    if not config.backbone:  # a module from Python
        return
    source = parse_source(config.backbone)
    asked = source.options.get("input")
    if config.input and asked and asked != config.input:
        raise UserError(f"input {config.input}: the source {config.backbone!r} says {asked}; say it once")
    layers = known_layers(source)
    if layers:
        fresh = ("fc6", "fc7") if "pool5" in layers and "fc6" not in layers else ()
        _start((*layers, *fresh), config.train_from)
        if config.random_from:
            _start((*layers, *fresh), config.random_from, "random_from")


def prepare(backbone: Backbone, config: FineTuneConfig) -> tuple[Backbone, list[str]]:
    """A copy of a backbone as it is to be fine-tuned, before any initial values are set.

    Args:
        backbone: stays as it is.
        config: input, absorb, fc, random_from and train_from.

    Returns:
        the copy, and names of those of its layers whose weights are to be new.

    Raises:
        UserError: a layer that is not there, or choices that contradict each other.
    """
    copied = with_input(trainable_copy(backbone), config.input or backbone.input.kind)
    if config.absorb:
        copied = absorbed(copied)
    fresh: set[str] = set()
    if lacks_fc(copied):
        copied, fresh = with_fc(copied, config.fc), {"fc6", "fc7"}
    if config.random_from:
        fresh |= _layers_from(copied, config.random_from)
    layers = copied.body_layers
    new, start = [layer for layer in layers if layer in fresh], _start(layers, config.train_from)
    if new and layers.index(new[0]) < start:
        raise UserError(
            f"train_from {config.train_from}: {new[0]} of this net is new and would never be trained; train from "
            f"{new[0]} or all"
        )
    if copied.input.kind != backbone.input.kind and start:
        raise UserError(f"input {config.input}: its new filters are in the first layer; train from all")
    return copied, new


def _start(layers: Sequence[str], name: str, key: str = "train_from") -> int:
    """The place among the layers from which on they are trained, or new; their number where none is.

    Raises:
        UserError: no such layer.
    """
    has_fc = "fc6" in layers
    named = {"all": 0, "head": len(layers), "pool": layers.index("fc6") if has_fc else len(layers)}
    if has_fc:
        named["fc8"] = len(layers)
    named |= {layer: place for place, layer in enumerate(layers)}
    matches = fnmatch.filter(layers, name)
    if name not in named and matches:
        return named[matches[0]]
    if name not in named:
        words = "fc8, fc6, all" if has_fc else "head, all"
        raise UserError(f"{key} {name!r}: give {words}, or a layer: {', '.join(layers)}")
    return named[name]


def _layers_from(backbone: Backbone, name: str) -> set[str]:
    """The layers with weights from a place on.

    Raises:
        UserError: no such layer, or a net whose layers cannot be made anew.
    """
    layers = backbone.body_layers
    found = layers[_start(layers, name, "random_from") :]
    if found and not backbone.is_sequential:
        raise UserError(f"random_from {name}: layers of a net of another library cannot be made anew")
    return {layer for layer in found if any(True for _ in backbone.net.get_submodule(layer).parameters())}


def frozen_parts(net: FineTuned, config: FineTuneConfig) -> tuple[set[str], set[str]]:
    """Names of the parameters that are not trained, and of the modules that stay in eval mode: what is below
    ``train_from``, what a forward pass never reaches, and BatchNorm where it is frozen. Dropout stays active."""
    backbone, layers = net.backbone, net.backbone.body_layers
    start = _start(layers, config.train_from)
    reached = set().union(*map(backbone.parameters_through, net.layers))
    parameters = {name for name, _ in backbone.named_parameters() if name not in reached}
    modules: set[str] = set()
    if start:
        parameters |= backbone.parameters_through(layers[start - 1])
        modules |= backbone.modules_through(layers[start - 1])
    if config.frozen_norm:
        norms = [n for n, m in backbone.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        modules |= set(norms)
        parameters |= {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    modules = {m for m in modules if not isinstance(backbone.get_submodule(m), nn.modules.dropout._DropoutNd)}
    return {f"backbone.{name}" for name in parameters}, {f"backbone.{name}" for name in modules}


def build_trainable(
    measurement: Measurement, build: Callable[[FineTuneConfig, Backbone, int], N]
) -> tuple[N, list[str]]:
    """Build the network on a copy of the backbone, move it to the run's device, and freeze layers below ``train_from``.

    Args:
        measurement: provides the config, the backbone and the classes.
        build: (config, backbone, number of classes) → the network.

    Returns:
        the network, and the names of backbone layers to initialise.
    """
    config = measurement.config
    torch.manual_seed(config.seed)
    backbone, new = prepare(measurement.backbone, config)
    net = build(config, backbone, len(measurement.split.classes)).to(measurement.world.device)
    net.freeze(*frozen_parts(net, config))
    return net, new


def announce(measurement: Measurement, net: FineTuned, details: str) -> None:
    """Print the first trained layer, the number of trainable weights, and details."""
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    measurement.announce(f"training from {measurement.config.train_from}, {trained:,} weights; {details}")


def fit(measurement: Measurement, task: FineTuning, stream: Stream, size: int) -> Evaluation:
    """Run the training loop, save the final network, and return its evaluation.

    Args:
        measurement: provides the config, the ranks and the run folder.
        task: task to train.
        stream: training samples.
        size: side of the crops, in pixels, stored for predictions.
    """
    config, run, world = measurement.config, measurement.run, measurement.world
    loop = Loop(task, stream, config, run, world, measurement.console.quiet)
    evaluation = loop.fit()
    world.broadcast_from_main(lambda: save_net(run.path, loop.evaluated_net, measurement.split.classes, size))
    return evaluation


@torch.no_grad()
def initialise(net: FineTuned, new: Sequence[str], config: FineTuneConfig, stream: Stream) -> None:
    """Set the initial values of new layers, then calibrate, in place.

    Args:
        net: on its device.
        new: layers whose weights are new; what scores is besides.
        config: new_layers, calibrate and the seed.
        stream: of training, for what looks at images.
    """
    fresh = [net.backbone.net.get_submodule(layer) for layer in new]
    for module in (part for layer in (*fresh, net.score) for part in layer.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear):
            if not (module in net.score.modules() and config.new_layers == "default"):  # it has PyTorch's own weights
                nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.1)
    inner = net.backbone.net
    if config.new_layers == "kmeans" and new:
        skip = [layer for layer in net.backbone.layers if layer not in new]
        init.kmeans(inner, list(_crops(net, stream, 10)), config.seed, skip=skip)
    norms = nn.modules.batchnorm._BatchNorm, nn.LocalResponseNorm  # over which no factor passes
    fits = net.backbone.is_sequential and not any(isinstance(module, norms) for module in inner.modules())
    if config.calibrate is True and not fits:
        raise UserError("calibrate: only nets whose layers follow one another, without norms, can be")
    if config.calibrate and fits:
        input = net.backbone.input
        scale = calibrate(inner, list(_crops(net, stream, 1)), _centre(input), config.seed, scale=input.scale)
        net.input_scale.fill_(scale)


def initialisation_crops(images: ImageSet, input: InputSpec, seed: int) -> Stream:
    """Crops of a net's own size for :func:`initialise`, where what is learned from is none."""
    crop = CropConfig(input.size, input.resize)
    return Stream(images, TrainingCrops(crop, interpolation_of(input)), seed)


def _crops(net: FineTuned, stream: Stream, batches: int) -> Iterator[Tensor]:
    """Preprocessed batches of training samples."""
    device = next(net.parameters()).device
    for batch in load_batches(stream, 0, batches * _CROPS, _CROPS):
        yield net.preprocess(batch.images.to(device))


def _centre(input: InputSpec) -> tuple[float, ...] | None:
    """By channel, what was subtracted to make a net's input."""
    if input.kind == "rgb":
        return tuple(mean / std for mean, std in zip(input.mean, input.std, strict=True))
    return {"grey": (50.0,), "lab": (50.0, 0.0, 0.0)}.get(input.kind)


def save_net(run: Path, net: FineTuned, classes: Sequence[str], size: int) -> Path:
    """Write ``net.safetensors``: all weights, with what it takes to use them again.

    Args:
        run: the folder.
        net: as it ended.
        classes: what its outputs are.
        size: side of the crops that it was given.
    """
    backbone = net.backbone
    metadata = {"format": _FORMAT, "schema": "1", "input": json.dumps(asdict(backbone.input))}
    metadata |= {"backbone": backbone.provenance.source, "classes": json.dumps(list(classes)), "size": str(size)}
    spec = find_spec(backbone.net)
    if spec is not None:
        metadata["net"] = json.dumps(spec.to_dict())
    with atomic_write(run / WEIGHTS) as part:
        write_tensors(part, net.state_dict(), metadata)
    return run / WEIGHTS


def load_net(run: FinishedRun, build: Callable[[Backbone, int], N]) -> tuple[N, list[str], int]:
    """The net that a run ended with. Where the file describes it, the backbone that it was begun from is not looked at.

    Args:
        run: a finished one.
        build: (backbone, number of classes) → the net that gets the weights.

    Returns:
        the net at rest on the run's device, its classes, and the side of the crops that it was given.

    Raises:
        UserError: no such weights, or they are damaged.
    """
    path = run.path / WEIGHTS
    if not path.is_file():
        raise UserError(f"no {WEIGHTS} in {run.path}: it is no finished run that fine-tuned a net")
    state, told = run.tensors(WEIGHTS, ("classes", "size", "input"), ("net",))
    classes, size = told["classes"], told["size"]
    if "net" in told:
        spec = build_stored(NetSpec, told["net"], f"{path}: net")
        if is_factory(spec.name) and spec.name not in run.config.backbone:
            load_backbone(run.config.backbone)  # which says what may be called
        input = build_stored(InputSpec, told["input"], f"{path}: input")
        backbone = build_untrained(spec, input, run.config.backbone)
    else:
        backbone = prepare(run.backbone or load_backbone(run.config.backbone), run.config)[0]
    net = build(backbone, len(classes))
    _default_input_scale(net, state, "")
    load_state(net, state, str(path))
    return net.to(run.device).eval().requires_grad_(False), classes, size
