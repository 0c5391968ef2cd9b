"""The interface through which all other code uses nets: a backbone with named layers."""

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
    """Split a comma-separated string of layer names; also accepts a list of names.

    Raises:
        UserError: any other type, or an empty list.
    """
    items = names.split(",") if isinstance(names, str) else names
    if not isinstance(items, list | tuple) or not items or not all(isinstance(name, str) for name in items):
        raise UserError(f"layers must be names or patterns, in a list or separated by commas, not {describe(names)}")
    return [name.strip() for name in items]


@dataclass
class Provenance:
    """Origin of weights, as recorded in results.

    Attributes:
        source: source string.
        details: further information about the weights.
    """

    source: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def explain_size_errors(size: int) -> Iterator[None]:
    """Turn errors of a forward pass into a UserError that explains how to set the crop size."""
    remedy = "set another size with SOURCE,size=N or crosschannel.wrap(net, size=N)"
    with wrap_external_errors(f"the backbone cannot take crops of {size} px ({remedy})"):
        yield


def copy_inference_tensors(backbone: "Backbone") -> "Backbone":
    """Return a copy of the backbone if its weights were created in ``torch.inference_mode()``, since autograd does not
    support such weights; else the backbone itself.

    Raises:
        UserError: the backbone cannot be copied.
    """
    if not any(tensor.is_inference() for tensor in (*backbone.parameters(), *backbone.buffers())):
        return backbone
    with wrap_external_errors("could not copy the backbone, whose weights were created in torch.inference_mode()"):
        return copy.deepcopy(backbone)


class Backbone(nn.Module):
    """A net with named layers, the specification of its input, and the origin of its weights.

    Args:
        net: module with ``layers`` (names in order) and ``forward_features(x, layers)``.
        input: specification of the input that the net was trained on; ``preprocess`` converts RGB to it.
        layers: names or patterns of the layers that ``features`` returns by default; default: all layers.
        provenance: origin of the weights.

    Raises:
        UserError: invalid type of net, input or provenance, or an unknown layer.

    Example::

        backbone = crosschannel.load_backbone("runs/alexnet-imagenet-0")
        maps = backbone(rgb)                                   # {"conv1": (N, 96, 55, 55), …}
        maps = backbone.features(backbone.preprocess(rgb), ["conv5"])
    """

    _range_checked = False  # whether the value range of a float batch has been checked

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
                f"Backbone requires a net with layers and forward_features, not {problem}; crosschannel.wrap(net) "
                "turns any nn.Module into a backbone"
            )
        check_input(input)
        if not isinstance(provenance, Provenance | None):
            raise UserError(f"provenance must be a Provenance, not {describe(provenance)}")
        self.net, self.input, self.provenance = net, input, provenance or Provenance()
        self.layers: tuple[str, ...] = tuple(net.layers)
        self.default_layers = self._resolve_layers(layers) if layers else self.layers
        self._shapes: dict[str, tuple[int, int]] | None = None

    def _resolve_layers(self, layers: str | Sequence[str]) -> tuple[str, ...]:
        """Resolve names and patterns to layer names.

        The result follows the order of ``layers``; layers that match the same pattern follow the net's order.
        """
        if (
            layers
            and isinstance(layers, list | tuple)
            and all(type(name) is str and name in self.layers for name in layers)
        ):
            return tuple(layers)
        return tuple(dict.fromkeys(layer for name in split_names(layers) for layer in self.find_layers(name)))

    def layer_error(self, name: str) -> UserError:
        """Return the error for an unknown layer, which lists the available layers."""
        nested = self._unlisted_layers("*.*") or self._unlisted_layers("*.*.*")
        hint = f", and nested submodules by their dotted names, such as {nested[0]}" if nested else ""
        return UserError(f"unknown layer {name!r}; available: {', '.join(self.layers)}{hint}")

    def find_layers(self, pattern: str) -> list[str]:
        """List the layers that match a name, "all" or a pattern such as ``conv*``.

        Nested submodules that ``layers`` does not list are matched only if no listed layer matches.

        Raises:
            UserError: no layer matches.
        """
        if pattern == "all":
            return list(self.layers)
        if self.has_layer(pattern):
            return [pattern]
        matches = [layer for layer in self.layers if fnmatchcase(layer, pattern)]
        matches = matches or self._unlisted_layers(pattern)
        if not matches:
            raise self.layer_error(pattern)
        return matches

    def _unlisted_layers(self, pattern: str) -> list[str]:
        """List the nested submodules that match a pattern and are not in ``layers``."""
        return self.net.nested_matches(pattern) if hasattr(self.net, "nested_matches") else []

    def find_layer(self, pattern: str) -> str:
        """Return the single layer that matches a name or a pattern.

        Raises:
            UserError: no layer matches, or several do.
        """
        matches = self.find_layers(pattern)
        if len(matches) > 1:
            raise UserError(f"layer {pattern!r} matches {', '.join(matches)}; choose one of them")
        return matches[0]

    def has_layer(self, name: str) -> bool:
        """Return whether features of a layer are available; it may be a nested submodule that is not in ``layers``."""
        return name in self.layers or getattr(self.net, "has_layer", self.layers.__contains__)(name)

    def choose_layers(self, wanted: str | Sequence[str]) -> tuple[str, ...]:
        """Resolve a user's choice of layers, in the net's order; nested submodules not in ``layers`` come last.

        Args:
            wanted: "all", or names and patterns such as ``conv*`` and ``blocks.*``, separated by commas or in a list.

        Raises:
            UserError: a name or pattern matches no layer; the message lists the available layers.
        """
        matches = self._resolve_layers(wanted)
        listed = [layer for layer in self.layers if layer in matches]
        return (*listed, *(layer for layer in matches if layer not in listed))

    def __repr__(self) -> str:
        """Summarise the backbone in one line; ``print(backbone.net)`` shows its modules."""
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        layers = f"{len(self.layers)} layers ({self.layers[0]} … {self.layers[-1]})"
        image = f"{self.input.kind} input of {self.input.size} px"
        return f"Backbone({self.provenance.source}: {image}, {layers}, {millions:.1f} M parameters)"

    def preprocess(self, rgb: Tensor) -> Tensor:
        """Convert RGB (N, 3, H, W), float in [0, 1] or uint8, to the input that the net was trained on.

        Pad images with zeros after this step, not before: zero is grey in the result.

        Raises:
            UserError: invalid batch. The range of floats is checked; on a GPU only for the first batch, since the check
                synchronises.
        """
        if not self._range_checked and isinstance(rgb, Tensor) and rgb.is_floating_point() and not is_traced(rgb):
            check_pictures(rgb)
            self._range_checked = True
        return self.input.preprocess(rgb)

    def features(self, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute feature maps (N, C, h, w) by layer name, each after its norm and ReLU.

        Args:
            x: preprocessed batch.
            layers: names or patterns; the forward pass stops after the last of these layers.

        Raises:
            UserError: unknown layer; the message lists the available layers.
        """
        return self.net.forward_features(x, self.default_layers if layers is None else self._resolve_layers(layers))

    @property
    def trunk_layer(self) -> str:
        """Layer below the head: pool5 if the net has fc6 and fc7, else the last layer that is not a classifier."""
        if "fc6" in self.layers:
            return self.layers[self.layers.index("fc6") - 1]
        is_classifier = getattr(self.net, "is_classifier", lambda name: False)
        return next((name for name in reversed(self.layers) if not is_classifier(name)), self.layers[-1])

    @property
    def top_layer(self) -> str:
        """Last layer that is not a classifier: fc7 if the net has it, else :attr:`trunk_layer`."""
        return "fc7" if "fc7" in self.layers else self.trunk_layer

    @property
    def body_layers(self) -> tuple[str, ...]:
        """All layers up to :attr:`top_layer`."""
        return self.layers[: self.layers.index(self.top_layer) + 1]

    @property
    def map_layers(self) -> list[str]:
        """Body layers that a forward pass reaches and whose maps are larger than 1×1.

        Raises:
            UserError: there are no such layers.
        """
        strides = self.strides
        layers = [layer for layer in self.body_layers if layer in strides and 2 * strides[layer] <= self.input.size]
        if not layers:
            raise UserError("this backbone has no layer with a map larger than 1×1")
        return layers

    def take_any_size(self) -> None:
        """Let a timm ViT accept images of any size, in place: position embeddings are resized for each batch.

        For wrapped modules, they are always resized.
        """
        if hasattr(self.net, "take_any_size"):
            self.net.take_any_size()

    @property
    def is_sequential(self) -> bool:
        """Whether the net is a sequence of layers with known shapes and origins (one of the built-in nets)."""
        return getattr(self.net, "is_sequential", False)

    @property
    def runs_user_code(self) -> bool:
        """Whether the forward pass is user code, whose errors are reported as such."""
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
        """timm's name for the net; empty for other nets."""
        return getattr(self.net, "timm_name", "")

    @property
    def wrapped_module(self) -> nn.Module:
        """The wrapped module, or the net itself if it is not wrapped."""
        return getattr(self.net, "wrapped_module", self.net)

    @property
    def patch(self) -> tuple[int, int]:
        """Patch size of a wrapped ViT in pixels, vertically and horizontally; (1, 1) for other nets."""
        return getattr(self.net, "patch", (1, 1))

    def fully_connected(self, x: Tensor, dropout: float = 0.0, drop_inputs: bool = False) -> Tensor:
        """Apply fc6 and fc7, if the net has them.

        Args:
            x: (N, C, h, w) map of the layer :attr:`trunk_layer`.
            dropout: dropout probability in training mode.
            drop_inputs: apply dropout to the inputs of both layers instead of their outputs.

        Returns:
            (N, D, h', w'); x itself for a net without fc6 and fc7.
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
        """Return the module whose output is the map of a layer."""
        return self.net.get_module(layer) if hasattr(self.net, "get_module") else self.net.get_submodule(layer)

    def head(self, x: Tensor) -> Tensor:
        """Apply the layers above the trunk: fc6 and fc7, if the net has them, then the mean over positions.

        Args:
            x: (N, C, h, w) map of the layer :attr:`trunk_layer`.

        Returns:
            (N, D).
        """
        return self.fully_connected(x).mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the net's own classifier for a preprocessed batch, (N, K).

        Raises:
            UserError: the net has no classifier.
        """
        logits = self.net.logits(x) if hasattr(self.net, "logits") else None
        if logits is None:
            raise UserError(f"{self.provenance.source or type(self.net).__name__} has no classifier")
        return logits

    def parameters_through(self, layer: str) -> set[str]:
        """Return the names of the parameters that a layer's map depends on; all others are above the layer.

        Raises:
            UserError: unknown layer.
        """
        parameters = dict(self.named_parameters())
        requires_grad = {name: parameter.requires_grad for name, parameter in parameters.items()}
        try:
            with eval_mode(self), torch.enable_grad():
                self.requires_grad_(True)
                maps = self.features(self._blank(self.input.size), [layer])[layer]
                gradients = torch.autograd.grad(maps.sum(), list(parameters.values()), allow_unused=True)
        finally:
            for name, parameter in parameters.items():
                parameter.requires_grad_(requires_grad[name])
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def modules_through(self, layer: str) -> set[str]:
        """Return the names of the leaf modules that run to compute a layer's map, such as its BatchNorm and dropout.

        Raises:
            UserError: unknown layer.
        """
        executed: set[str] = set()
        leaves = [(name, module) for name, module in self.named_modules() if not any(module.children())]
        handles = [
            module.register_forward_hook(lambda _m, _i, _o, name=name: executed.add(name)) for name, module in leaves
        ]
        try:
            with eval_mode(self), torch.no_grad():
                self.features(self._blank(self.input.size), [layer])
        finally:
            for handle in handles:
                handle.remove()
        return executed

    def forward(self, rgb: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return ``features(preprocess(rgb))``, computed in the dtype of the weights."""
        x = self.preprocess(rgb)
        reference = next(self.parameters(), x)
        return self.features(x.to(reference.dtype), layers)

    @property
    def channels(self) -> dict[str, int]:
        """Number of channels by layer."""
        return {name: channels for name, (channels, _) in self._measure().items()}

    @property
    def strides(self) -> dict[str, int]:
        """Stride of the map by layer, in input pixels."""
        return {name: stride for name, (_, stride) in self._measure().items()}

    def width(self, layer: str) -> int:
        """Return the number of channels of a layer or nested submodule."""
        return (self.channels if layer in self.layers else {}).get(layer) or self._measure_growth([layer])[layer][0]

    def stride(self, layer: str) -> int:
        """Return the stride of the map of a layer or nested submodule, in input pixels."""
        return (self.strides if layer in self.layers else {}).get(layer) or self._measure_growth([layer])[layer][1]

    def origin(self, layer: str) -> float:
        """Return the input pixel (counted from 0) on which the first position of a layer's map is centred.

        Built-in nets know this value. For other nets it is derived from the size of the map for different input sizes:
        windows with equal padding on both sides give floor((size + a) / stride) positions, of which the first is
        centred on (stride - a - 1) / 2. Nets that accept only whole patches tile the image.
        """
        if self.is_sequential:
            return self.net.origins[layer]
        stride = self.stride(layer)
        positions = -(-self.input.size // stride)
        side, extra_pixels = positions, stride

        def has_grown(extra: int) -> bool:
            return self._sizes(positions * stride + extra, [layer])[layer][1] > side

        with eval_mode(self), contextlib.suppress(Exception):  # a user's module may raise any error
            side = self._sizes(positions * stride, [layer])[layer][1]
            extra_pixels = 1 + bisect_left(range(1, stride), True, key=has_grown)
        return (extra_pixels - 1 + (positions - side) * stride) / 2

    def _measure(self) -> dict[str, tuple[int, int]]:
        """Return channels and stride by layer; measured unless the net is built-in.

        A map that is 1×1 for any input size (a global mean) gets a stride of 128.
        """
        if self.is_sequential:
            return self.net.shapes  # not cached, because they depend on the geometry
        if self._shapes is None:
            self._shapes = self._measure_growth(self.layers)
        return self._shapes

    def _measure_growth(self, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return channels and stride by layer; the stride follows from how much the map grows with the input."""
        size = self.input.size
        with eval_mode(self):
            with explain_size_errors(size):
                small = self._sizes(size, layers)
            try:
                large = self._sizes(size + 128, layers)
            except Exception:  # a net with a fixed input size, such as a ViT, whose maps tile the input
                strides = {name: round(size / side) for name, (_, side) in small.items()}
            else:
                strides = {name: round(128 / max(1, large[name][1] - side)) for name, (_, side) in small.items()}
        return {name: (channels, strides[name]) for name, (channels, _) in small.items()}

    @torch.no_grad()
    def _sizes(self, side: int, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return channels and side of the maps for a square input."""
        maps = self.features(self._blank(side), layers)
        return {name: (m.shape[1], m.shape[3]) for name, m in maps.items()}

    def _blank(self, side: int) -> Tensor:
        """Return zeros in the shape of a preprocessed image."""
        reference = next(self.parameters(), torch.zeros(0, device="cpu"))
        return reference.new_zeros(1, self.input.channels, side, side)


def wrap(
    module: nn.Module,
    input: InputSpec | None = None,
    layers: Mapping[str, str] | Sequence[str] | None = None,
    source: str = "",
    resize_positions: ResizePositions | None = None,
    **overrides: Any,
) -> Backbone:
    """Turn any module into a backbone.

    Args:
        module: module that accepts (N, C, H, W). If it has ``layers`` (names) and ``forward_features(x, layers)``,
            these are used. For any other module, the layers are the named submodules that a forward pass reaches and
            whose outputs are feature maps (see :class:`~crosschannel.models.module_net.ModuleNet`). A Backbone is
            returned unchanged. DataParallel, DistributedDataParallel and torch.compile wrappers are removed.
        input: specification of the input that the module was trained on; default: RGB at 224 px, with ImageNet's
            mean and std.
        layers: layer names → submodule names, or submodule names, in order of execution; default: see ``module``.
        source: name of the backbone in results; default: the name of the module's class.
        resize_positions: only for ViTs with a fixed image size whose position embeddings lack a common name such as
            ``pos_embed``: their name or names (``"embed.table"``), or a function (module, height, width) → tensors by
            dotted name, which replace the module's own tensors in a forward pass on images of that size.
        overrides: attributes that override those of ``input``: ``size=128, mean=0.5, interpolation="bicubic"``.

    Raises:
        UserError: not an nn.Module, no named submodules, or an invalid input.

    Example::

        backbone = crosschannel.wrap(my_net, size=128)
        transfer.knn(backbone, "torchvision:imagenette")
    """
    if not isinstance(module, nn.Module):
        hint = "; crosschannel.load_backbone(source) loads a backbone by name" if isinstance(module, str) else ""
        raise UserError(f"crosschannel.wrap requires an nn.Module, not {describe(module)}{hint}")
    if input is not None:
        check_input(input)
    if not isinstance(layers, Mapping | list | tuple | None):
        raise UserError(f"layers must map layer names to submodules, or list submodules, got {describe(layers)}")
    module = unwrap(module)
    if isinstance(module, Backbone):
        return _with_input(module, (input or module.input).changed(**overrides), layers, resize_positions)
    input = (input or InputSpec("rgb", 224, 256)).changed(**overrides)
    provenance = Provenance(source or type(module).__name__)
    module_layers = getattr(module, "layers", None)
    if layers is None and isinstance(module_layers, tuple | list) and hasattr(module, "forward_features"):
        return Backbone(module, input, provenance=provenance)
    net = ModuleNet(module, layers, resize_positions)
    if layers is None:
        reference = next(module.parameters(), torch.zeros(0, device="cpu"))
        net.discover_layers(reference.new_zeros(2, input.channels, input.size, input.size))
    return Backbone(net, input, provenance=provenance)


def _with_input(
    backbone: Backbone, input: InputSpec, layers: object, resize_positions: ResizePositions | None
) -> Backbone:
    """Return a backbone with another input; the backbone itself if its input is the same."""
    if layers is not None or resize_positions is not None:
        raise UserError("layers and resize_positions are for a module, not for a Backbone; wrap its module instead")
    if input == backbone.input:
        return backbone
    return Backbone(backbone.net, input, backbone.default_layers, backbone.provenance)
