"""Fine-tuning, shared by the protocols that train the backbone: copying, freezing, initialising, saving and loading.

Layers below ``train_from`` are frozen, and layers from ``random_from`` up are re-initialised; the two config keys are
independent of each other.
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
Net = TypeVar("Net", bound="FineTuned")
_CROPS = 80  # crops for calibration; k-means uses ten times as many


class FineTuned(nn.Module):
    """A backbone with a head, stored as ``score``.

    Args:
        backbone: copy of the backbone to train.
        score: head.
        dropout: dropout probability after fc6 and fc7 in training mode; applies to frozen layers too.

    Attributes:
        layers: backbone layers that the head reads.
        input_scale: scalar factor of the preprocessed images, set by calibration and never trained.
    """

    def __init__(self, backbone: Backbone, score: nn.Module, dropout: float):
        super().__init__()
        self.backbone, self.score, self.dropout = backbone, score, dropout
        self.layers: tuple[str, ...] = (backbone.top_layer,)
        self._eval_modules: tuple[str, ...] = ()  # names of the modules that train() leaves in eval mode
        self.register_buffer("input_scale", torch.ones(()))
        self.register_load_state_dict_pre_hook(_default_input_scale)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """Convert RGB images (N, 3, H, W), uint8 or float in [0, 1], to the input of the net."""
        return self.backbone.preprocess(rgb) * self.input_scale

    def train(self, mode: bool = True) -> "FineTuned":
        super().train(mode)
        for name in self._eval_modules:
            self.get_submodule(name).eval()
        return self

    def freeze(self, parameters: set[str], modules: set[str]) -> None:
        """Disable the gradients of the named parameters, and keep the named modules in eval mode."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in parameters)
        self._eval_modules = tuple(sorted(modules))


def _default_input_scale(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_args: object) -> None:
    """Set a missing input scale to 1: files of earlier versions have it folded into the first convolution."""
    state.setdefault(f"{prefix}input_scale", torch.ones(()))


@dataclass(kw_only=True, eq=False)
class FineTuning:
    """Base class of fine-tuning tasks.

    Attributes:
        net: net to fine-tune.
        init_weights: initialises the net before training, given the training stream.
        test: test images.
        classes: class names.
        world: ranks that share the evaluation.
        workers: number of loader workers for evaluation.
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
    """A linear classifier on the spatial mean of the backbone's top layer (fc7 if the backbone has one).

    Args:
        backbone, dropout: see :class:`FineTuned`.
        outputs: number of outputs.
        drop_inputs: apply dropout to the inputs of fc6 and fc7 instead of their outputs.

    Shape:
        preprocessed images (N, C, H, W) → logits (N, outputs).
    """

    def __init__(self, backbone: Backbone, outputs: int, dropout: float, drop_inputs: bool = False):
        super().__init__(backbone, nn.Linear(backbone.channels[backbone.top_layer], outputs), dropout)
        self.drop_inputs = drop_inputs

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone.features(x, [self.backbone.trunk_layer])[self.backbone.trunk_layer]
        return self.score(self.backbone.fully_connected(maps, self.dropout, self.drop_inputs).mean((2, 3)))


def check_choices(config: FineTuneConfig) -> None:
    """Validate a config before the backbone is loaded, as far as the layers and the input follow from its source.

    Raises:
        UserError: ``train_from`` or ``random_from`` names an unknown layer, or ``input`` contradicts the source.
    """
    if not config.backbone:  # a module passed from Python
        return
    source = parse_source(config.backbone)
    source_input = source.options.get("input")
    if config.input and source_input and source_input != config.input:
        raise UserError(
            f"input {config.input} contradicts input={source_input} in the source {config.backbone!r}; set only one"
        )
    layers = known_layers(source)
    if layers:
        added = ("fc6", "fc7") if "pool5" in layers and "fc6" not in layers else ()
        _first_index((*layers, *added), config.train_from)
        if config.random_from:
            _first_index((*layers, *added), config.random_from, "random_from")


def prepare(backbone: Backbone, config: FineTuneConfig) -> tuple[Backbone, list[str]]:
    """Copy a backbone and adapt the copy's layers and input for fine-tuning, before new layers are initialised.

    Args:
        backbone: backbone to copy; not modified.
        config: provides input, absorb, fc, random_from and train_from.

    Returns:
        the copy, and the names of its layers to initialise.

    Raises:
        UserError: a layer does not exist, or keys contradict each other.
    """
    copied = with_input(trainable_copy(backbone), config.input or backbone.input.kind)
    if config.absorb:
        copied = absorbed(copied)
    untrained: set[str] = set()
    if lacks_fc(copied):
        copied, untrained = with_fc(copied, config.fc), {"fc6", "fc7"}
    if config.random_from:
        untrained |= _layers_to_reset(copied, config.random_from)
    layers = copied.body_layers
    new, start = [layer for layer in layers if layer in untrained], _first_index(layers, config.train_from)
    if new and layers.index(new[0]) < start:
        raise UserError(
            f"train_from {config.train_from} would freeze the newly initialised layer {new[0]}; set train_from to "
            f"{new[0]} or all"
        )
    if copied.input.kind != backbone.input.kind and start:
        raise UserError(f"input {config.input} adds filters to the first layer; set train_from to all")
    return copied, new


def _first_index(layers: Sequence[str], name: str, key: str = "train_from") -> int:
    """Return the index of the first layer to train or re-initialise; len(layers) if there is none.

    Raises:
        UserError: unknown layer.
    """
    has_fc = "fc6" in layers
    indices = {"all": 0, "head": len(layers), "pool": layers.index("fc6") if has_fc else len(layers)}
    if has_fc:
        indices["fc8"] = len(layers)
    indices |= {layer: index for index, layer in enumerate(layers)}
    matches = fnmatch.filter(layers, name)
    if name not in indices and matches:
        return indices[matches[0]]
    if name not in indices:
        choices = "fc8, fc6, all" if has_fc else "head, all"
        raise UserError(f"{key} {name!r} is unknown; choose {choices} or a layer: {', '.join(layers)}")
    return indices[name]


def _layers_to_reset(backbone: Backbone, name: str) -> set[str]:
    """Return the names of the layers with weights from ``name`` up.

    Raises:
        UserError: unknown layer, or a backbone whose layers cannot be re-initialised.
    """
    layers = backbone.body_layers
    selected = layers[_first_index(layers, name, "random_from") :]
    if selected and not backbone.is_sequential:
        raise UserError(f"random_from {name}: only layers of the built-in architectures can be re-initialised")
    return {layer for layer in selected if any(True for _ in backbone.net.get_submodule(layer).parameters())}


def frozen_names(net: FineTuned, config: FineTuneConfig) -> tuple[set[str], set[str]]:
    """Return the names of the parameters to freeze and of the modules to keep in eval mode.

    They include everything below ``train_from``, parameters that the forward pass does not use and, with
    ``frozen_norm``, all BatchNorm layers. Dropout layers are never frozen.
    """
    backbone, layers = net.backbone, net.backbone.body_layers
    start = _first_index(layers, config.train_from)
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
    measurement: Measurement, build: Callable[[FineTuneConfig, Backbone, int], Net]
) -> tuple[Net, list[str]]:
    """Build the network on a copy of the backbone, move it to the run's device, and freeze layers below ``train_from``.

    Args:
        measurement: provides the config, the backbone and the classes.
        build: (config, backbone, number of classes) → network.

    Returns:
        the network, and the names of the backbone layers to initialise.
    """
    config = measurement.config
    torch.manual_seed(config.seed)
    backbone, new = prepare(measurement.backbone, config)
    net = build(config, backbone, len(measurement.split.classes)).to(measurement.world.device)
    net.freeze(*frozen_names(net, config))
    return net, new


def announce(measurement: Measurement, net: FineTuned, details: str) -> None:
    """Print the first trained layer, the number of trainable parameters, and ``details``."""
    count = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    measurement.announce(f"training from {measurement.config.train_from}, {count:,} trainable parameters; {details}")


def fit(measurement: Measurement, task: FineTuning, stream: Stream, size: int) -> Evaluation:
    """Run the training loop, save the final network, and return its evaluation.

    Args:
        measurement: provides the config, the ranks and the run folder.
        task: fine-tuning task.
        stream: training samples.
        size: side of the crops in pixels, stored with the weights for predictions.
    """
    config, run, world = measurement.config, measurement.run, measurement.world
    loop = Loop(task, stream, config, run, world, measurement.console.quiet)
    evaluation = loop.fit()
    world.broadcast_from_main(lambda: save_net(run.path, loop.evaluated_net, measurement.split.classes, size))
    return evaluation


@torch.no_grad()
def initialise(net: FineTuned, new: Sequence[str], config: FineTuneConfig, stream: Stream) -> None:
    """Initialise the head and the new layers, then calibrate the backbone, in place.

    Args:
        net: network, on its device.
        new: backbone layers to initialise; the head always is.
        config: provides new_layers, calibrate and seed.
        stream: training samples, for k-means and calibration.

    Raises:
        UserError: ``calibrate`` is true, but the backbone does not support calibration.
    """
    layers = [net.backbone.net.get_submodule(layer) for layer in new]
    for module in (submodule for layer in (*layers, net.score) for submodule in layer.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear):
            if not (module in net.score.modules() and config.new_layers == "default"):  # keep PyTorch's default weights
                nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.1)
    backbone_net = net.backbone.net
    if config.new_layers == "kmeans" and new:
        skip = [layer for layer in net.backbone.layers if layer not in new]
        init.kmeans(backbone_net, list(_crops(net, stream, 10)), config.seed, skip=skip)
    norms = nn.modules.batchnorm._BatchNorm, nn.LocalResponseNorm  # their output does not scale with their input
    can_calibrate = net.backbone.is_sequential and not any(
        isinstance(module, norms) for module in backbone_net.modules()
    )
    if config.calibrate is True and not can_calibrate:
        raise UserError("calibrate true needs a built-in architecture without normalisation layers; use auto or false")
    if config.calibrate and can_calibrate:
        input = net.backbone.input
        scale = calibrate(backbone_net, list(_crops(net, stream, 1)), _centre(input), config.seed, scale=input.scale)
        net.input_scale.fill_(scale)


def initialisation_crops(images: ImageSet, input: InputSpec, seed: int) -> Stream:
    """Return a stream of crops for :func:`initialise`, for protocols that do not train on crops."""
    crop = CropConfig(input.size, input.resize)
    return Stream(images, TrainingCrops(crop, interpolation_of(input)), seed)


def _crops(net: FineTuned, stream: Stream, batches: int) -> Iterator[Tensor]:
    """Yield preprocessed batches of training samples."""
    device = next(net.parameters()).device
    for batch in load_batches(stream, 0, batches * _CROPS, _CROPS):
        yield net.preprocess(batch.images.to(device))


def _centre(input: InputSpec) -> tuple[float, ...] | None:
    """Return the per-channel offset that preprocessing subtracts, in units of the net's input; None if unknown."""
    if input.kind == "rgb":
        return tuple(mean / std for mean, std in zip(input.mean, input.std, strict=True))
    return {"grey": (50.0,), "lab": (50.0, 0.0, 0.0)}.get(input.kind)


def save_net(run: Path, net: FineTuned, classes: Sequence[str], size: int) -> Path:
    """Write ``net.safetensors``: all weights, and the metadata needed to rebuild the network.

    Args:
        run: run folder.
        net: trained network.
        classes: class names of the outputs.
        size: side of the training crops, in pixels.
    """
    backbone = net.backbone
    metadata = {"format": _FORMAT, "schema": "1", "input": json.dumps(asdict(backbone.input))}
    metadata |= {"backbone": backbone.provenance.source, "classes": json.dumps(list(classes)), "size": str(size)}
    spec = find_spec(backbone.net)
    if spec is not None:
        metadata["net"] = json.dumps(spec.to_dict())
    with atomic_write(run / WEIGHTS) as partial:
        write_tensors(partial, net.state_dict(), metadata)
    return run / WEIGHTS


def load_net(run: FinishedRun, build: Callable[[Backbone, int], Net]) -> tuple[Net, list[str], int]:
    """Load the network that a run trained.

    If the file describes the architecture, the backbone that the run started from is not needed.

    Args:
        run: finished run.
        build: (backbone, number of classes) → network that receives the weights.

    Returns:
        the network in eval mode on the run's device, its class names, and the side of the training crops in pixels.

    Raises:
        UserError: the weights are missing or damaged.
    """
    path = run.path / WEIGHTS
    if not path.is_file():
        raise UserError(f"no {WEIGHTS} in {run.path}; only finished fine-tuning runs have this file")
    state, metadata = run.tensors(WEIGHTS, ("classes", "size", "input"), ("net",))
    classes, size = metadata["classes"], metadata["size"]
    if "net" in metadata:
        spec = build_stored(NetSpec, metadata["net"], f"{path}: net")
        if is_factory(spec.name) and spec.name not in run.config.backbone:
            load_backbone(run.config.backbone)  # raises unless the source permits this user code to run
        input = build_stored(InputSpec, metadata["input"], f"{path}: input")
        backbone = build_untrained(spec, input, run.config.backbone)
    else:
        backbone = prepare(run.backbone or load_backbone(run.config.backbone), run.config)[0]
    net = build(backbone, len(classes))
    _default_input_scale(net, state, "")
    load_state(net, state, str(path))
    return net.to(run.device).eval().requires_grad_(False), classes, size
