"""Backbone: the contract between a net and everything that uses one."""

import contextlib
import copy
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, describe, wrap_external_errors
from crosschannel.models.input_spec import InputSpec, check_input
from crosschannel.models.layers import dense
from crosschannel.models.module_net import ModuleNet, eval_mode, unwrap
from crosschannel.models.pictures import check_pictures, is_traced
from crosschannel.models.positions import ResizePositions


def split_names(names: object) -> list[str]:
    """Split a comma-separated string of names; a list of names stays a list.

    Raises:
        UserError: any other type, or an empty list.
    """
    items = names.split(",") if isinstance(names, str) else names
    if not isinstance(items, list | tuple) or not items or not all(isinstance(name, str) for name in items):
        raise UserError(f"layers are names or patterns, in a list or separated by commas, not {describe(names)}")
    return [name.strip() for name in items]


@dataclass
class Provenance:
    """Where weights come from; what a result needs to say about them."""

    source: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def explain_size_errors(size: int) -> Iterator[None]:
    """A net that cannot take crops of a size says so in one sentence, and how it is told another."""
    told = "SOURCE,size=N or crosschannel.wrap(net, size=N) says what it takes"
    with wrap_external_errors(f"the backbone cannot take crops of {size} px ({told})"):
        yield


def copy_inference_tensors(backbone: "Backbone") -> "Backbone":
    """Return the backbone, or a copy that autograd accepts if its weights were made in ``torch.inference_mode()``.

    Raises:
        UserError: the backbone cannot be copied.
    """
    if not any(tensor.is_inference() for tensor in (*backbone.parameters(), *backbone.buffers())):
        return backbone
    with wrap_external_errors("a backbone with weights made under torch.inference_mode() is copied, which failed"):
        return copy.deepcopy(backbone)


class Backbone(nn.Module):
    """A net with named layers, the input that it was trained on, and where its weights come from.

    Args:
        net: has ``layers`` (names in order) and ``forward_features(x, layers)``.
        input: what ``preprocess`` makes of RGB.
        layers: default layers of ``features``: names or patterns; default all.
        provenance: source and details of the weights.

    Raises:
        UserError: another type of net, input or provenance, or an unknown layer.

    Example::

        backbone = crosschannel.load_backbone("runs/alexnet-imagenet-0")
        maps = backbone(rgb)                                   # {"conv1": (N, 96, 55, 55), …}
        maps = backbone.features(backbone.preprocess(rgb), ["conv5"])
    """

    _has_seen_floats = False  # whether the range of one batch of floats was checked

    def __init__(
        self,
        net: nn.Module,
        input: InputSpec,
        layers: Sequence[str] | None = None,
        provenance: Provenance | None = None,
    ):
        super().__init__()
        if not isinstance(net, nn.Module) or not hasattr(net, "layers") or not hasattr(net, "forward_features"):
            problem = f"{type(net).__name__} without them" if isinstance(net, nn.Module) else describe(net)
            raise UserError(
                f"Backbone takes a net with layers and forward_features, not {problem}; crosschannel.wrap(net) makes a "
                "backbone of any nn.Module"
            )
        check_input(input)
        if not isinstance(provenance, Provenance | None):
            raise UserError(f"provenance is a Provenance, not {describe(provenance)}")
        self.net, self.input, self.provenance = net, input, provenance or Provenance()
        self.layers: tuple[str, ...] = tuple(net.layers)
        self.default_layers = self._known(layers) if layers else self.layers
        self._shapes: dict[str, tuple[int, int]] | None = None

    def _known(self, layers: str | Sequence[str]) -> tuple[str, ...]:
        """Resolve names and patterns to layers, in the order given; layers of one pattern in the net's order."""
        if (
            layers
            and isinstance(layers, list | tuple)
            and all(type(name) is str and name in self.layers for name in layers)
        ):
            return tuple(layers)
        return tuple(dict.fromkeys(layer for name in split_names(layers) for layer in self.find_layers(name)))

    def layer_error(self, name: str) -> UserError:
        """The error that there is no layer of a name: it lists those there are."""
        nested = self._unlisted_layers("*.*") or self._unlisted_layers("*.*.*")
        hint = f", and deeper ones by their dotted names, such as {nested[0]}" if nested else ""
        return UserError(f"no layer {name!r}; this backbone has {', '.join(self.layers)}{hint}")

    def find_layers(self, pattern: str) -> list[str]:
        """List the layers that match a name, "all" or a pattern such as ``conv*``; deeper ones only if no other does.

        Raises:
            UserError: none.
        """
        if pattern == "all":
            return list(self.layers)
        if self.has_layer(pattern):
            return [pattern]
        found = [layer for layer in self.layers if fnmatchcase(layer, pattern)]
        found = found or self._unlisted_layers(pattern)
        if not found:
            raise self.layer_error(pattern)
        return found

    def _unlisted_layers(self, pattern: str) -> list[str]:
        """Layers that match a pattern but are not in ``layers``."""
        return self.net.deeper(pattern) if hasattr(self.net, "deeper") else []

    def find_layer(self, pattern: str) -> str:
        """Return the single layer that matches a name or a pattern.

        Raises:
            UserError: no match, or several.
        """
        matches = self.find_layers(pattern)
        if len(matches) > 1:
            raise UserError(f"layer {pattern!r} fits {', '.join(matches)}; name one of them")
        return matches[0]

    def has_layer(self, name: str) -> bool:
        """Whether features of that name can be had; nets of other libraries may have more than ``layers`` lists."""
        return name in self.layers or getattr(self.net, "has_layer", self.layers.__contains__)(name)

    def choose_layers(self, wanted: str | Sequence[str]) -> tuple[str, ...]:
        """The layers that a user names, in the net's order; deeper ones than the net lists come last.

        Args:
            wanted: "all", or names and patterns such as ``conv*`` and ``blocks.*``, separated by commas or in a list.

        Raises:
            UserError: a name that fits no layer; the message lists those there are.
        """
        found = self._known(wanted)
        listed = [layer for layer in self.layers if layer in found]
        return (*listed, *(layer for layer in found if layer not in listed))

    def preprocess(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W), float in [0, 1] or uint8 → what the net was trained on. Pad after this, where zero is grey.

        Raises:
            UserError: any other batch. The range of floats is checked; on a GPU only for the first batch, since the
                check synchronises.
        """
        if not self._has_seen_floats and isinstance(rgb, Tensor) and rgb.is_floating_point() and not is_traced(rgb):
            check_pictures(rgb)
            self._has_seen_floats = True
        return self.input.preprocess(rgb)

    def features(self, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Feature maps (N, C, h, w) by layer name, each after its norm and ReLU.

        Args:
            x: a preprocessed batch.
            layers: names or patterns; the forward pass stops after the last one.

        Raises:
            UserError: a layer that the net does not have; the message lists those it has.
        """
        return self.net.forward_features(x, self.default_layers if layers is None else self._known(layers))

    @property
    def trunk_layer(self) -> str:
        """The layer that the head stands on: pool5 where there are fc6 and fc7, else the last one that is no
        classifier."""
        if "fc6" in self.layers:
            return self.layers[self.layers.index("fc6") - 1]
        is_classifier = getattr(self.net, "is_classifier", lambda name: False)
        return next((name for name in reversed(self.layers) if not is_classifier(name)), self.layers[-1])

    @property
    def top_layer(self) -> str:
        """The last layer below any classifier: fc7 where there is one, else :attr:`trunk_layer`."""
        return "fc7" if "fc7" in self.layers else self.trunk_layer

    @property
    def body_layers(self) -> tuple[str, ...]:
        """The layers below any classifier."""
        return self.layers[: self.layers.index(self.top_layer) + 1]

    @property
    def map_layers(self) -> list[str]:
        """Those of :attr:`body_layers` that a forward pass reaches and that have more than one position.

        Raises:
            UserError: there are none.
        """
        strides = self.strides
        found = [layer for layer in self.body_layers if layer in strides and 2 * strides[layer] <= self.input.size]
        if not found:
            raise UserError("no layer of this backbone has more than one position")
        return found

    def take_any_size(self) -> None:
        """Let a timm ViT take images of any size, in place: position embeddings are resized for each batch. Those of
        wrapped modules always are."""
        if hasattr(self.net, "take_any_size"):
            self.net.take_any_size()

    @property
    def is_sequential(self) -> bool:
        """Whether the net is a sequence of named layers with known shapes and origins (the built-in nets)."""
        return getattr(self.net, "is_sequential", False)

    @property
    def runs_user_code(self) -> bool:
        """Whether the forward pass is user code, so that its errors are reported as the user's."""
        return getattr(self.net, "runs_user_code", True)

    @property
    def uses_hooks(self) -> bool:
        """Whether features are read by forward hooks, which rules out export."""
        return getattr(self.net, "uses_hooks", False)

    @property
    def exports_any_size(self) -> bool:
        """Whether the exported net accepts images of any size."""
        return getattr(self.net, "exports_any_size", True)

    @property
    def timm_name(self) -> str:
        """timm's name of the net; empty for other nets."""
        return getattr(self.net, "timm_name", "")

    @property
    def wrapped_module(self) -> nn.Module:
        """The wrapped module, or the net itself if it is not wrapped."""
        return getattr(self.net, "wrapped_module", self.net)

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels per patch of a wrapped ViT, down and across; 1 × 1 for any other net."""
        return getattr(self.net, "patch", (1, 1))

    def fully_connected(self, x: Tensor, dropout: float = 0.0, drop_inputs: bool = False) -> Tensor:
        """Apply fc6 and fc7, if the net has them.

        Args:
            x: (N, C, h, w) map of the layer :attr:`trunk_layer`.
            dropout: dropout probability in training mode.
            drop_inputs: drop the inputs of both layers instead of their outputs.

        Returns:
            (N, D, h', w'); x itself for a net without them.
        """
        for name in ("fc6", "fc7"):
            if name in self.layers:
                block = self.net.get_submodule(name)
                if drop_inputs:
                    x = nn.functional.dropout(x, dropout, self.training)
                x = dense(block, x) if self.training else block(x)  # bit-identical to features in eval mode
                if not drop_inputs:
                    x = nn.functional.dropout(x, dropout, self.training)
        return x

    def get_module(self, layer: str) -> nn.Module:
        """The module that a layer's map comes out of."""
        return self.net.get_module(layer) if hasattr(self.net, "get_module") else self.net.get_submodule(layer)

    def head(self, x: Tensor) -> Tensor:
        """What stands above the last pooled map: fc6 and fc7 of an AlexNet, then the mean over positions.

        Args:
            x: (N, C, h, w), of the layer :attr:`trunk_layer`.

        Returns:
            (N, D).
        """
        return self.fully_connected(x).mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """What the net's own classifier says of a preprocessed batch: (N, K).

        Raises:
            UserError: the net has none.
        """
        found = self.net.logits(x) if hasattr(self.net, "logits") else None
        if found is None:
            raise UserError(f"{self.provenance.source or type(self.net).__name__} has no classifier")
        return found

    def parameters_through(self, layer: str) -> set[str]:
        """Names of the parameters that a layer's map depends on; those above it are all others.

        Raises:
            UserError: no such layer.
        """
        named = dict(self.named_parameters())
        wanted = {name: parameter.requires_grad for name, parameter in named.items()}
        try:
            with eval_mode(self), torch.enable_grad():
                self.requires_grad_(True)
                maps = self.features(self._blank(self.input.size), [layer])[layer]
                gradients = torch.autograd.grad(maps.sum(), list(named.values()), allow_unused=True)
        finally:
            for name, parameter in named.items():
                parameter.requires_grad_(wanted[name])
        return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}

    def modules_through(self, layer: str) -> set[str]:
        """Names of the modules without children that run for a layer's map: those whose statistics and dropout it
        depends on.

        Raises:
            UserError: no such layer.
        """
        found: set[str] = set()
        leaves = [(name, module) for name, module in self.named_modules() if not any(module.children())]
        handles = [
            module.register_forward_hook(lambda _m, _i, _o, name=name: found.add(name)) for name, module in leaves
        ]
        try:
            with eval_mode(self), torch.no_grad():
                self.features(self._blank(self.input.size), [layer])
        finally:
            for handle in handles:
                handle.remove()
        return found

    def forward(self, rgb: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """``features(preprocess(rgb))``, in the arithmetic of the weights."""
        x = self.preprocess(rgb)
        first = next(self.parameters(), x)
        return self.features(x.to(first.dtype), layers)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every layer."""
        return {name: channels for name, (channels, _) in self._measure().items()}

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per step of every layer's map."""
        return {name: stride for name, (_, stride) in self._measure().items()}

    def width(self, layer: str) -> int:
        """Channels of any layer's map, including layers below those listed in ``layers``."""
        return (self.channels if layer in self.layers else {}).get(layer) or self._grown([layer])[layer][0]

    def stride(self, layer: str) -> int:
        """Input pixels per step of any layer's map, deeper ones than ``layers`` lists too."""
        return (self.strides if layer in self.layers else {}).get(layer) or self._grown([layer])[layer][1]

    def origin(self, layer: str) -> float:
        """The input pixel (from 0) that the first point of a layer's map is centred on.

        As the net states it; else told by how the map grows. Windows that are padded alike on both sides give maps of
        floor((size + a) / stride) points, whose first one is centred on (stride - a - 1) / 2; those of nets that take
        whole patches tile the image.
        """
        if self.is_sequential:
            return self.net.origins[layer]
        stride = self.stride(layer)
        points = -(-self.input.size // stride)
        side, grows = points, stride

        def has_grown(more: int) -> bool:
            return self._sizes(points * stride + more, [layer])[layer][1] > side

        with eval_mode(self), contextlib.suppress(Exception):  # whatever a user's module raises
            side = self._sizes(points * stride, [layer])[layer][1]
            grows = 1 + bisect_left(range(1, stride), True, key=has_grown)
        return (grows - 1 + (points - side) * stride) / 2

    def _measure(self) -> dict[str, tuple[int, int]]:
        """Channels and stride by layer: as the net states them, else by how much a map grows with the input.

        A map of one position whatever the input (a global mean) counts as growing by one in 128 pixels.
        """
        if self.is_sequential:
            return self.net.shapes  # they change with the geometry
        if self._shapes is None:
            self._shapes = self._grown(self.layers)
        return self._shapes

    def _grown(self, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Channels and stride of some layers, by how much their maps grow."""
        size = self.input.size
        with eval_mode(self):
            with explain_size_errors(size):
                small = self._sizes(size, layers)
            try:
                large = self._sizes(size + 128, layers)
            except Exception:  # a net with a fixed input size, such as a ViT: its maps tile the input
                strides = {name: round(size / side) for name, (_, side) in small.items()}
            else:
                strides = {name: round(128 / max(1, large[name][1] - side)) for name, (_, side) in small.items()}
        return {name: (channels, strides[name]) for name, (channels, _) in small.items()}

    @torch.no_grad()
    def _sizes(self, side: int, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
        maps = self.features(self._blank(side), layers)
        return {name: (m.shape[1], m.shape[3]) for name, m in maps.items()}

    def _blank(self, side: int) -> Tensor:
        """A preprocessed image of zeros."""
        first = next(self.parameters(), torch.zeros(0, device="cpu"))
        return first.new_zeros(1, self.input.channels, side, side)


def wrap(
    module: nn.Module,
    input: InputSpec | None = None,
    layers: Mapping[str, str] | Sequence[str] | None = None,
    source: str = "",
    resize_positions: ResizePositions | None = None,
    **given: Any,
) -> Backbone:
    """Any module as a backbone.

    Args:
        module: takes (N, C, H, W). One that has ``layers`` (names) and ``forward_features(x, layers)`` is taken as it
            is; of any other the named submodules are the layers, as far as a forward pass reaches them and they give
            maps (see :class:`~crosschannel.models.module_net.ModuleNet`). A Backbone is returned unchanged.
            DataParallel, DistributedDataParallel and torch.compile wrappers are removed.
        input: what it was trained on; default RGB with ImageNet's statistics at 224 px.
        layers: public names → submodule names, or only submodule names, in order of execution; default: see above.
        source: what results call it; default the name of its class.
        resize_positions: for a ViT with a fixed image size whose position embeddings have no common name such as
            ``pos_embed``: their name or names (``"embed.table"``), or a function (module, height, width) → tensors by
            dotted name, which replace the module's own in a forward pass on images of that size.
        given: attributes of the input, over what it has: ``size=128, mean=0.5, std=0.5, interpolation="bicubic"``.

    Raises:
        UserError: not an nn.Module, no named submodules, or an invalid input.

    Example::

        backbone = crosschannel.wrap(my_net, size=128)
        transfer.knn(backbone, "torchvision:imagenette")
    """
    if not isinstance(module, nn.Module):
        hint = "; crosschannel.load_backbone(source) loads one by name" if isinstance(module, str) else ""
        raise UserError(f"crosschannel.wrap takes an nn.Module, not {describe(module)}{hint}")
    if input is not None:
        check_input(input)
    if not isinstance(layers, Mapping | list | tuple | None):
        raise UserError(f"layers map public names to submodules, or list submodules, got {describe(layers)}")
    module = unwrap(module)
    if isinstance(module, Backbone):
        return _with_input(module, (input or module.input).changed(**given), layers, resize_positions)
    input = (input or InputSpec("rgb", 224, 256)).changed(**given)
    provenance = Provenance(source or type(module).__name__)
    named = getattr(module, "layers", None)
    if layers is None and isinstance(named, tuple | list) and hasattr(module, "forward_features"):
        return Backbone(module, input, provenance=provenance)
    net = ModuleNet(module, layers, resize_positions)
    if layers is None:
        first = next(module.parameters(), torch.zeros(0, device="cpu"))
        net.discover_layers(first.new_zeros(2, input.channels, input.size, input.size))
    return Backbone(net, input, provenance=provenance)


def _with_input(
    backbone: Backbone, input: InputSpec, layers: object, resize_positions: ResizePositions | None
) -> Backbone:
    """Return a backbone with the given input; the same one if its input is equal."""
    if layers is not None or resize_positions is not None:
        raise UserError("layers and resize_positions are for a module, not for a Backbone; wrap its module")
    if input == backbone.input:
        return backbone
    return Backbone(backbone.net, input, backbone.default_layers, backbone.provenance)
