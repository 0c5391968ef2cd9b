"""Nets that are not ours, behind the same two attributes: ``layers`` and ``forward_features``."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, describe, foreign
from crosschannel.models.positions import (
    Replacement,
    ResizePositions,
    candidates,
    check_names,
    replaced,
    replacements,
)
from crosschannel.models.spec import NetSpec
from crosschannel.models.tokens import Layout, Survey, survey, tensor_of


class TimmNet(nn.Module):
    """A timm model. Its layers are its stages (``stage1`` …) for CNNs.

    For ViTs they are its blocks, after the net's final norm: ``block1``, … the patch tokens as maps, and where there is
    a class token ``block1_class``, … as maps of one position.

    Args:
        name: timm's model name.
        in_channels: of the input; timm sums pretrained stem weights for 1.
        pretrained: load timm's weights (downloads).
        image_size: side of square inputs, for nets with position embeddings.
    """

    computes_past_its_layers: ClassVar[bool] = True  # such as a final norm

    def __init__(self, name: str, in_channels: int = 3, pretrained: bool = False, image_size: int | None = None):
        super().__init__()
        check_timm_name(name)
        import timm

        self.name, self.in_channels = name, in_channels
        options: dict[str, object] = {"num_classes": 0, "in_chans": in_channels}
        with foreign(f"timm could not create {name!r}"):
            self.model = timm.create_model(name, pretrained=pretrained, **options)
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"timm's {name!r} does not give its intermediate features")
        self.set_image_size(image_size)
        count = len(self.model.feature_info)
        patches = hasattr(self.model, "patch_embed") and hasattr(self.model, "blocks")
        self.kind = "block" if patches else "stage"
        self.has_class_token = patches and getattr(self.model, "cls_token", None) is not None
        kinds = ("_class", "") if self.has_class_token else ("",)
        self.layers = tuple(f"{self.kind}{i}{kind}" for i in range(1, count + 1) for kind in kinds)
        self.out_channels = self.model.feature_info[-1]["num_chs"]

    @property
    def spec(self) -> NetSpec:
        return NetSpec(f"timm:{self.name}", self.in_channels)

    @property
    def last_stride(self) -> int:
        """Input pixels per step of the last map."""
        return self.model.feature_info[-1]["reduction"]

    @property
    def last_origin(self) -> float:
        """The pixel that the last map's first point is centred on."""
        first = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        # Patches that do not overlap (ViT, ConvNeXt, Swin), or odd kernels that pad their half.
        return (self.last_stride - 1) / 2 if first.kernel_size[0] % 2 == 0 else 0.0

    def part(self, layer: str) -> nn.Module:
        """The module that a layer's map comes out of."""
        number = int(layer.removesuffix("_class").removeprefix(self.kind)) - 1
        return self.model.get_submodule(self.model.feature_info[number]["module"])

    def set_image_size(self, side: int | None) -> None:
        """Take square inputs of a side: position embeddings are resized. None leaves the net as it is."""
        if side and hasattr(self.model, "set_input_size"):
            with foreign(f"timm's {self.name!r} cannot be of {side} px"):
                self.model.set_input_size(img_size=side)

    def take_any_size(self) -> None:
        """Let a ViT take images of other sizes than its own, of whole patches: its positions are resized for each."""
        if getattr(self.model, "dynamic_img_size", None) is False and getattr(self.model, "rope", None) is None:
            from timm.layers import Format

            embed = self.model.patch_embed
            embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
            self.model.dynamic_img_size = True

    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers asked for; nothing past the last of them is computed."""
        numbers = [int(layer.removesuffix("_class").removeprefix(self.kind)) - 1 for layer in layers]
        indices = sorted(set(numbers))
        options = {"norm": True} if self.kind == "block" else {}
        if self.has_class_token:
            options["return_prefix_tokens"] = True
        maps = self.model.forward_intermediates(
            x, indices=indices, stop_early=True, intermediates_only=True, output_fmt="NCHW", **options
        )
        found: dict[str, Tensor] = {}
        for i, feature in zip(indices, maps, strict=True):
            name = f"{self.kind}{i + 1}"
            if self.has_class_token:
                feature, prefix = feature
                found[f"{name}_class"] = prefix[:, 0, :, None, None]
            found[name] = feature
        return {name: feature for name, feature in found.items() if name in layers}

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, self.layers[-1:])[self.layers[-1]]


def check_timm_name(name: str) -> None:
    """Raise a UserError unless timm is there and has a model of that name and tag."""
    try:
        import timm
    except ImportError:
        raise UserError("timm nets need timm: pip install 'crosschannel[timm]'") from None
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        close = timm.list_models(f"*{model[:6]}*")[:3]
        raise UserError(f"timm has no model {name!r}" + (f"; it has {', '.join(close)}" if close else ""))
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm's {model} has no tag {tag!r}; it has {', '.join(tags) or 'none'}")


def unwrapped(module: nn.Module) -> nn.Module:
    """The net inside DataParallel, DistributedDataParallel (whose forward pass talks to other ranks) or torch.compile
    (whose graph has no place for hooks)."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


class _LastLayerReached(Exception):
    pass


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def _parts(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Dotted names of a module's parts, in order: its children, and those of lists and dicts of modules."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Autocast off, its cache too: weights that are cast without gradients would be reused by whoever turned it on."""
    off = {"enabled": False, "cache_enabled": False}
    with torch.autocast("cpu", **off), torch.autocast("cuda", **off):
        yield


@contextlib.contextmanager
def at_rest(net: nn.Module) -> Iterator[None]:
    """Every module in eval mode and no autocast, and afterwards as it was: statistics do not move, dropout is off."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with no_autocast():
            yield
    finally:
        for module in training:
            module.training = True


class ModuleNet(nn.Module):
    """Any ``nn.Module``: its named submodules are its layers, read by forward hooks.

    Args:
        model: takes (N, C, H, W); it is called as it is and left as soon as the last layer asked for is known.
        layers: public names → submodule names, or these alone, in order of execution; default: every direct child by
            its name, of lists and dicts of modules every member (``blocks.3``), and of a net that is one child that
            child's. Deeper ones can be asked for by their dotted names (``layer3.0``).
        resize_positions: see :func:`crosschannel.wrap`.

    Attributes:
        left_out: listed layers without features, and why, once :meth:`settle` has looked.

    Vectors (N, C) are a map of one position. Tokens (N, L, C) or (L, N, C) are a map of the patches; ``NAME_class`` is
    the class token. Maps (N, h, w, C) are turned. The layout of every output is read off one forward pass, see
    :func:`crosschannel.models.tokens.survey`. Any other output is an error when it is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, str] | Sequence[str] | None = None,
        resize_positions: ResizePositions | None = None,
    ):
        super().__init__()
        self.model = model
        names = layers or self._parts()
        self._paths = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if not self._paths:
            raise UserError(f"{type(model).__name__} has no named submodules to take features from")
        if not all(isinstance(name, str) for pair in self._paths.items() for name in pair):
            raise UserError(f"layers are names of submodules, got {describe(layers)}")
        for name in self._paths:
            if not self.has_layer(name):
                raise UserError(f"layer {name!r}: {type(model).__name__} has no submodule {self._paths[name]!r}")
        self.layers = tuple(self._paths)
        self.left_out: dict[str, str] = {}
        self.resize_positions = [resize_positions] if isinstance(resize_positions, str) else resize_positions
        if isinstance(self.resize_positions, list | tuple):
            check_names(model, self.resize_positions)
        elif self.resize_positions is not None and not callable(self.resize_positions):
            raise UserError(f"resize_positions is a name, names or a function, got {type(resize_positions).__name__}")
        self._survey: Survey | None = None
        self._misfit: str | None = None  # known once images of another size have come

    def _parts(self) -> list[str]:
        found = list(_parts(self.model))
        while len(found) == 1 and (inner := list(_parts(self.model.get_submodule(found[0]), f"{found[0]}."))):
            found = inner  # a net in a wrapper
        return found

    def settle(self, x: Tensor) -> None:
        """Look at one forward pass: list the layers that it reaches and that give maps, in order of execution.

        A net that does not take ``x`` keeps its list: what is wrong is said when features are asked for.

        Args:
            x: (N, C, H, W).
        """
        layouts = self._look_at(x)
        if self._survey.failed:
            self._survey = None
            return
        names = {name: self._path(name) for name in self.layers}
        reasons = {
            name: layouts.get(path, f"layer {name!r} is not reached in a forward pass") for name, path in names.items()
        }
        self.left_out = {name: why for name, why in reasons.items() if isinstance(why, str)}
        order = {path: place for place, path in enumerate(layouts)}
        reached = [name for name in self.layers if name not in self.left_out]
        self.layers = tuple(sorted(reached, key=lambda name: order[names[name]]))
        if not self.layers:
            raise UserError(f"no part of {type(self.model).__name__} gives a feature map (N, C, h, w)")

    def _look_at(self, x: Tensor) -> dict[str, Layout | str]:
        """The layouts of all outputs for images like ``x``."""
        with at_rest(self.model), torch.random.fork_rng([x.device] if x.is_cuda else []):
            self._survey = survey(self.model, x.detach())
        return self._survey.layouts

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels of a patch, down and across; 1 × 1 for nets without tokens."""
        return self._survey.patch if self._survey else (1, 1)

    @torch.compiler.disable  # hooks that leave the forward pass are not for compilers
    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers asked for; the forward pass is left at the last of them.

        Raises:
            UserError: a layer gives no map, or the net does not take images of this size.
        """
        if self._survey is None or any(self._path(name) not in self._survey.layouts for name in layers):
            self._look_at(x)
        found: dict[str, Tensor] = {}

        def reader(name: str):
            def read(_module, _inputs, output):
                found[name] = self._as_map(name, output, x).clone()  # an in-place ReLU may follow
                if len(found) == len(set(layers)):
                    raise _LastLayerReached

            return read

        values = self._values_for(x)
        handles = [self.part(name).register_forward_hook(reader(name)) for name in layers]
        try:
            self._call(x, values)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {name: found[name] for name in layers if name in found}

    def _call(self, x: Tensor, values: Sequence[Replacement]) -> Tensor:
        """The model's own output, with other values of some attributes."""
        if not values:
            return self.model(x)
        try:
            with replaced(values):
                return self.model(x)
        except (UserError, _LastLayerReached, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a user's module raises
            raise UserError(self._refusal(*x.shape[2:], _in_words(error))) from error

    def _values_for(self, x: Tensor) -> list[Replacement]:
        """The attributes of a ViT that are others for images of this size: its position embeddings.

        Raises:
            UserError: it takes images of one size only, and has no position embeddings of a known name.
        """
        seen, (height, width) = self._survey, x.shape[2:]
        if seen is None or seen.grid is None or (height, width) == (seen.height, seen.width):
            return []
        if callable(self.resize_positions):
            tensors = self.resize_positions(self.model, height, width) or {}
            owners = {name: name.rpartition(".") for name in tensors}
            return [(self.model.get_submodule(owners[name][0]), owners[name][2], t) for name, t in tensors.items()]
        if not self._misfit_of(x):
            return []
        found = replacements(self.model, seen, height, width, self.resize_positions or ())
        if not found:
            raise UserError(self._refusal(height, width, self._misfit_of(x)))
        return found

    @torch.no_grad()
    def _misfit_of(self, x: Tensor) -> str:
        """The model's complaint about images of another size and other proportions than its own; empty if it takes
        them as it is."""
        if self._misfit is None:
            step = self._survey.step
            other = x.new_zeros(1, x.shape[1], self._survey.height + step, self._survey.width + 2 * step)
            model = self.model
            if x.is_cuda and any(isinstance(module, nn.Embedding) for module in model.modules()):
                model, other = copy.deepcopy(model).cpu(), other.cpu()  # a GPU does not recover from a wrong index
            try:
                with at_rest(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
                    model(other)
                self._misfit = ""
            except Exception as error:  # whatever a user's module raises
                self._misfit = _in_words(error)
        return self._misfit

    def _refusal(self, height: int, width: int, complaint: str) -> str:
        name, seen = type(self.model).__name__, self._survey
        others = candidates(self.model, seen, () if callable(self.resize_positions) else self.resize_positions or ())
        how = f"resize_positions={others[0]!r}) resizes" if others else "resize_positions=…) takes a function for"
        return (
            f"{name} takes images of {seen.width} × {seen.height} px, not of {width} × {height} ({complaint}); if its "
            f"position embeddings are of one size, crosschannel.wrap(net, {how} them"
        )

    def leave_out(self, layers: Mapping[str, str]) -> None:
        """List some layers no more: names → why."""
        self.left_out |= {name: why for name, why in layers.items() if name in self.layers}
        self.layers = tuple(name for name in self.layers if name not in layers)

    def has_layer(self, name: str) -> bool:
        """Whether there is a submodule of that name, at any depth."""
        try:
            self.part(name)
        except AttributeError:
            return False
        return bool(name)

    def deeper(self, pattern: str) -> list[str]:
        """Dotted names of the submodules that a pattern fits, part by part: ``layer*.0`` is not ``layer1.0.conv1``."""
        wanted = pattern.split(".")
        named = ((name, name.split(".")) for name, _ in self.model.named_modules())
        return [
            name
            for name, parts in named
            if name and len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)) and name not in self.layers
        ]

    def is_classifier(self, name: str) -> bool:
        """Whether a layer is a linear layer, or a sequence that ends in one: what a model says, not what it sees."""
        module = self.part(name)
        parts = [part for part in module.modules() if not any(part.children()) and any(True for _ in part.parameters())]
        return isinstance(module, nn.Linear | nn.Sequential) and bool(parts) and isinstance(parts[-1], nn.Linear)

    def part(self, name: str) -> nn.Module:
        """The submodule that a layer is."""
        return self.model.get_submodule(self._path(name))

    def _is_token(self, name: str) -> bool:
        """Whether a name means the class token of a submodule, and not a submodule of its own."""
        try:
            self.model.get_submodule(self._paths.get(name, name))
        except AttributeError:
            return name.endswith("_class")
        return False

    def _path(self, name: str) -> str:
        """The submodule of a layer, by its dotted name."""
        path = self._paths.get(name, name)
        return path.removesuffix("_class") if self._is_token(name) else path

    def _as_map(self, name: str, output: object, x: Tensor) -> Tensor:
        """The output of a submodule, as (N, C, h, w)."""
        layout, tensor = self._survey.layouts.get(self._path(name)), tensor_of(output)
        if isinstance(layout, str):
            raise UserError(layout)
        height, width = x.shape[2:]
        found = None
        if tensor is not None and layout is not None:
            found = layout.class_token(tensor) if self._is_token(name) else layout.as_map(tensor, height, width)
        if found is None or len(found) != len(x):
            raise UserError(f"layer {name!r} gives no feature map (N, C, h, w) of images of {width} × {height} px")
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, self._values_for(x))

    def logits(self, x: Tensor) -> Tensor | None:
        """The model's own output, if that is a vector an image."""
        output = self._call(x, self._values_for(x))
        return output if isinstance(output, Tensor) and output.ndim == 2 else None
