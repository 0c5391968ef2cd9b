"""Backbone: the contract between a net and everything that uses one."""

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab, rgb_to_lightness
from crosschannel.errors import UserError, foreign
from crosschannel.keys import SIDE, Spelling, above, check_config, require
from crosschannel.models.layers import LayeredNet, dense
from crosschannel.models.wrapped import ModuleNet

InputKind = Literal["grey", "lab", "rgb", "sobel", "intensity", "luma"]
_MODES = "nearest|nearest-exact|bilinear|bicubic|box|hamming|lanczos|random"
CHANNELS = {"grey": 1, "lab": 3, "rgb": 3, "sobel": 2, "intensity": 1, "luma": 3}
LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601


@dataclass(frozen=True)
class InputSpec:
    """What a net was trained on.

    Attributes:
        kind: "grey" (L - 50), "lab" (L - 50, a, b), "rgb" (normalised by mean and std), "sobel" (horizontal and
            vertical derivatives of the mean of normalised RGB, as DeepCluster has them), "intensity" (that mean, as
            Larsson et al. have it) or "luma" (normalised RGB of a grey picture: three times its luma).
        size: side of its square crops, in pixels.
        resize: short side that an image is resized to before its centre is cropped.
        interpolation: of that resize.
        mean: of RGB in [0, 1], for all but "grey" and "lab".
        std: of the same.
        scale: factor on every channel of "grey" and "lab"; rescaled nets of the literature have one other than 1. It
            belongs to the input and is never trained.
    """

    kind: InputKind = "grey"
    size: Annotated[int, SIDE] = 227
    resize: Annotated[int, SIDE] = 256
    interpolation: Annotated[str, Spelling(_MODES, "one that torch or timm has")] = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, ...], above(0)] = (0.229, 0.224, 0.225)
    scale: Annotated[float, above(0)] = 1.0

    def check(self) -> None:
        require(len(self.mean) == len(self.std) == 3, "mean and std must have three numbers", (self.mean, self.std))

    @property
    def channels(self) -> int:
        return CHANNELS[self.kind]

    def changed(self, **given: Any) -> "InputSpec":
        """The same with other attributes; ``resize`` follows ``size`` in proportion, unless it is given.

        Args:
            given: attributes; None and what is not given stay. One number for mean or std is that of all channels.

        Raises:
            UserError: an attribute that cannot be.
        """
        given = {key: value for key, value in given.items() if value is not None}
        for key in given.keys() & {"mean", "std"}:
            given[key] = (float(given[key]),) * 3 if isinstance(given[key], int | float) else tuple(given[key])
        if "size" in given:
            given.setdefault("resize", max(given["size"], round(given["size"] * self.resize / self.size)))
        changed = replace(self, **given)
        check_config(changed)
        return changed

    def preprocess(self, rgb: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, float in [0, 1] or uint8 → the net's input, (N, ``channels``, H, W) float."""
        if self.kind in ("grey", "lab"):
            x = rgb_to_lightness(rgb) - 50 if self.kind == "grey" else centre_lightness(rgb_to_lab(rgb))
            return x if self.scale == 1 else x * self.scale
        rgb = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb
        if self.kind == "luma":
            rgb = sum(weight * channel for weight, channel in zip(LUMA, rgb.split(1, 1), strict=True))
        mean, std = (torch.tensor(v).to(rgb)[:, None, None] for v in (self.mean, self.std))
        normalised = (rgb - mean) / std
        if self.kind in ("rgb", "luma"):
            return normalised
        mean_of_rgb = normalised.mean(1, keepdim=True)
        return sobel(mean_of_rgb) if self.kind == "sobel" else mean_of_rgb


def sobel(grey: Tensor) -> Tensor:
    """(N, 1, H, W) → (N, 2, H, W): left less right and upper less lower neighbours, zeros around."""
    left_right = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).to(grey)
    return nn.functional.conv2d(grey, torch.stack((left_right, left_right.T))[:, None], padding=1)


def centre_lightness(lab: Tensor) -> Tensor:
    """L or Lab with 50 subtracted from L, so that zero is mid-grey."""
    return torch.cat((lab[:, :1] - 50, lab[:, 1:]), 1)


@dataclass
class Provenance:
    """Where weights come from; what a result needs to say about them."""

    source: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def taking(size: int) -> Iterator[None]:
    """A net that cannot take crops of a size says so in one sentence, and how it is told another."""
    told = "SOURCE,size=N or crosschannel.wrap(net, size=N) says what it takes"
    with foreign(f"the backbone cannot take crops of {size} px ({told})"):
        yield


@contextlib.contextmanager
def at_rest(net: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards as it was: statistics do not move, dropout is off."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Backbone(nn.Module):
    """A net with named layers, the input that it was trained on, and where its weights come from.

    Args:
        net: has ``layers`` (names in order) and ``forward_features(x, layers)``.
        input: what ``preprocess`` makes of RGB.
        layers: what ``features`` gives when it is not told; default all.
        provenance: source and details of the weights.

    Example::

        backbone = crosschannel.load_backbone("runs/alexnet-imagenet-0")
        maps = backbone(rgb)                                   # {"conv1": (N, 96, 55, 55), …}
        maps = backbone.features(backbone.preprocess(rgb), ["conv5"])
    """

    _has_seen_floats = False  # whose range was looked at

    def __init__(
        self,
        net: nn.Module,
        input: InputSpec,
        layers: Sequence[str] | None = None,
        provenance: Provenance | None = None,
    ):
        super().__init__()
        self.net, self.input, self.provenance = net, input, provenance or Provenance()
        self.layers: tuple[str, ...] = tuple(net.layers)
        self.default_layers = self._known(layers) if layers else self.layers
        self._shapes: dict[str, tuple[int, int]] | None = None

    def _known(self, layers: Sequence[str]) -> tuple[str, ...]:
        layers = [layers] if isinstance(layers, str) else layers
        for name in layers:
            if not self.has_layer(name):
                raise self.no_layer(name)
        return tuple(layers)

    def no_layer(self, name: str) -> UserError:
        """The error that there is no layer of a name: it lists those there are."""
        nested = self.net.deeper("*.*") or self.net.deeper("*.*.*") if isinstance(self.net, ModuleNet) else []
        hint = f", and deeper ones by their dotted names, such as {nested[0]}" if nested else ""
        return UserError(f"no layer {name!r}; this backbone has {', '.join(self.layers)}{hint}")

    def find_layers(self, pattern: str) -> list[str]:
        """The layers that a name or a pattern such as ``conv*`` fits: of those listed, else of deeper ones.

        Raises:
            UserError: none.
        """
        found = [layer for layer in self.layers if fnmatchcase(layer, pattern)]
        if not found and self.has_layer(pattern):
            found = [pattern]
        if not found and isinstance(self.net, ModuleNet):
            found = self.net.deeper(pattern)
        if not found:
            raise self.no_layer(pattern)
        return found

    def has_layer(self, name: str) -> bool:
        """Whether features of that name can be had; nets of other libraries may have more than ``layers`` lists."""
        return name in self.layers or getattr(self.net, "has_layer", self.layers.__contains__)(name)

    def choose_layers(self, wanted: str) -> tuple[str, ...]:
        """The layers that a user names, in the net's order; deeper ones than the net lists come last.

        Args:
            wanted: "all", or names and patterns such as ``conv*`` and ``blocks.*`` by commas.

        Raises:
            UserError: a name that fits no layer; the message lists those there are.
        """
        patterns = [name.strip() for name in wanted.split(",")]
        fitting = [self.find_layers("*" if pattern == "all" else pattern) for pattern in patterns]
        found = dict.fromkeys(layer for layers in fitting for layer in layers)
        listed = [layer for layer in self.layers if layer in found]
        return (*listed, *(layer for layer in found if layer not in listed))

    def preprocess(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W), float in [0, 1] or uint8 → what the net was trained on. Pad after this, where zero is grey.

        Raises:
            UserError: it is no such batch; the range of floats is looked at once.
        """
        if not isinstance(rgb, Tensor):
            raise UserError(
                f"a backbone takes a batch of pictures, a tensor (N, 3, H, W), not {type(rgb).__name__}; "
                "torchvision.transforms.functional.pil_to_tensor(picture)[None] makes one"
            )
        if rgb.ndim != 4 or rgb.shape[1] != 3:
            raise UserError(f"a backbone takes a batch of RGB pictures (N, 3, H, W), got {tuple(rgb.shape)}")
        if not self._has_seen_floats and rgb.is_floating_point() and rgb.numel() and not _is_traced(rgb):
            if rgb.max() > 2:
                raise UserError(f"floats are RGB in [0, 1], got up to {rgb.max():g}: divide by 255, or give uint8")
            self._has_seen_floats = True
        return self.input.preprocess(rgb)

    def features(self, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Feature maps (N, C, h, w) by layer name, each after its norm and ReLU.

        Args:
            x: a preprocessed batch.
            layers: names; nothing past the last one is computed.

        Raises:
            UserError: a layer that the net does not have; the message lists those it has.
        """
        return self.net.forward_features(x, self.default_layers if layers is None else self._known(layers))

    @property
    def trunk(self) -> str:
        """The layer that the head stands on: pool5 where there are fc6 and fc7, else the last one that is no
        classifier."""
        if "fc6" in self.layers:
            return self.layers[self.layers.index("fc6") - 1]
        is_classifier = getattr(self.net, "is_classifier", lambda name: False)
        return next((name for name in reversed(self.layers) if not is_classifier(name)), self.layers[-1])

    @property
    def top(self) -> str:
        """The last layer below any classifier: fc7 where there is one, else :attr:`trunk`."""
        return "fc7" if "fc7" in self.layers else self.trunk

    @property
    def body(self) -> tuple[str, ...]:
        """The layers below any classifier."""
        return self.layers[: self.layers.index(self.top) + 1]

    @property
    def maps(self) -> list[str]:
        """Those of :attr:`body` that a forward pass reaches and that have more than one position.

        Raises:
            UserError: there are none.
        """
        strides = self.strides
        found = [layer for layer in self.body if layer in strides and 2 * strides[layer] <= self.input.size]
        if not found:
            raise UserError("no layer of this backbone has more than one position")
        return found

    def fully_connected(self, x: Tensor, dropout: float = 0.0, drop_inputs: bool = False) -> Tensor:
        """Apply fc6 and fc7, if the net has them.

        Args:
            x: (N, C, h, w) map of the layer :attr:`trunk`.
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
                x = dense(block, x) if self.training else block(x)  # in eval mode bit-equal to features
                if not drop_inputs:
                    x = nn.functional.dropout(x, dropout, self.training)
        return x

    def part(self, layer: str) -> nn.Module:
        """The module that a layer's map comes out of."""
        return self.net.part(layer) if hasattr(self.net, "part") else self.net.get_submodule(layer)

    def head(self, x: Tensor) -> Tensor:
        """What stands above the last pooled map: fc6 and fc7 of an AlexNet, then the mean over positions.

        Args:
            x: (N, C, h, w), of the layer :attr:`trunk`.

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
            with at_rest(self), torch.enable_grad():
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
            with at_rest(self), torch.no_grad():
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

    def stride(self, layer: str) -> int:
        """Input pixels per step of any layer's map, deeper ones than ``layers`` lists too."""
        return (self.strides if layer in self.layers else {}).get(layer) or self._grown([layer])[layer][1]

    def origin(self, layer: str) -> float:
        """The input pixel (from 0) that the first point of a layer's map is centred on.

        As the net states it; else told by how the map grows. Windows that are padded alike on both sides give maps of
        floor((size + a) / stride) points, whose first one is centred on (stride - a - 1) / 2; those of nets that take
        whole patches tile the image.
        """
        if isinstance(self.net, LayeredNet):
            return self.net.origins[layer]
        stride = self.stride(layer)
        points = -(-self.input.size // stride)
        side, grows = points, stride

        def has_grown(more: int) -> bool:
            return self._sizes(points * stride + more, [layer])[layer][1] > side

        with at_rest(self), contextlib.suppress(RuntimeError, AssertionError):
            side = self._sizes(points * stride, [layer])[layer][1]
            grows = 1 + bisect_left(range(1, stride), True, key=has_grown)
        return (grows - 1 + (points - side) * stride) / 2

    def _measure(self) -> dict[str, tuple[int, int]]:
        """Channels and stride by layer: as the net states them, else by how much a map grows with the input.

        A map of one position whatever the input (a global mean) counts as growing by one in 128 pixels.
        """
        if isinstance(self.net, LayeredNet):
            return self.net.shapes  # they change with the geometry
        if self._shapes is None:
            self._shapes = self._grown(self.layers)
        return self._shapes

    def _grown(self, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Channels and stride of some layers, by how much their maps grow."""
        size = self.input.size
        with at_rest(self):
            with taking(size):
                small = self._sizes(size, layers)
            try:
                large = self._sizes(size + 128, layers)
            except (RuntimeError, AssertionError):  # a net of one size, such as a ViT: its maps tile the input
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
        blank = torch.zeros(1, self.input.channels, side, side)
        return blank.to(next(self.parameters(), blank))


def _is_traced(x: Tensor) -> bool:
    """Whether a tensor has no values to be asked for: what is called is being written down as a graph."""
    is_written_down = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.jit.is_scripting()
    return is_written_down or x.is_meta or type(x) is not Tensor


def wrap(
    module: nn.Module,
    input: InputSpec | None = None,
    layers: Mapping[str, str] | None = None,
    source: str = "",
    **given: Any,
) -> Backbone:
    """Any module as a backbone.

    Args:
        module: takes (N, C, H, W). One that has ``layers`` (names) and ``forward_features(x, layers)`` is taken as it
            is; of any other the named submodules are the layers, as far as a forward pass reaches them and they give
            maps (see :class:`~crosschannel.models.wrapped.ModuleNet`). A Backbone is returned unchanged.
        input: what it was trained on; default RGB with ImageNet's statistics at 224 px.
        layers: public names → submodule names, in order of execution; default see above.
        source: what results call it; default the name of its class.
        given: attributes of the input, over what it has: ``size=128, mean=0.5, std=0.5, interpolation="bicubic"``.

    Raises:
        UserError: it has no named submodules, or an input cannot be so.

    Example::

        backbone = crosschannel.wrap(my_net, size=128)
        transfer.knn(backbone, "torchvision:imagenette")
    """
    if isinstance(module, Backbone):
        if not given and input is None:
            return module
        changed = (input or module.input).changed(**given)
        return Backbone(module.net, changed, module.default_layers, module.provenance)
    input = (input or InputSpec("rgb", 224, 256)).changed(**given)
    provenance = Provenance(source or type(module).__name__)
    named = getattr(module, "layers", None)
    if layers is None and isinstance(named, tuple | list) and hasattr(module, "forward_features"):
        return Backbone(module, input, provenance=provenance)
    net = ModuleNet(module, layers)
    if layers is None:
        first = next(module.parameters(), torch.zeros(0))
        blank = torch.zeros(2, input.channels, input.size, input.size).to(first)
        with at_rest(module), torch.random.fork_rng([first.device] if first.is_cuda else []):
            net.settle(blank)
    return Backbone(net, input, provenance=provenance)
