"""Nets that are not ours, behind the same two attributes: ``layers`` and ``forward_features``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, foreign
from crosschannel.models.spec import NetSpec


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
        try:
            import timm
        except ImportError:
            raise UserError("timm nets need timm: pip install 'crosschannel[timm]'") from None
        self.name, self.in_channels = name, in_channels
        options: dict[str, object] = {"num_classes": 0, "in_chans": in_channels}
        if not timm.is_model(name.split(".")[0]):
            close = timm.list_models(f"*{name.split('.')[0][:6]}*")[:3]
            raise UserError(f"timm has no model {name!r}" + (f"; it has {', '.join(close)}" if close else ""))
        with foreign(f"timm could not create {name!r}"):
            self.model = timm.create_model(name, pretrained=pretrained, **options)
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"timm's {name!r} does not give its intermediate features")
        if image_size and hasattr(self.model, "set_input_size"):
            with foreign(f"timm's {name!r} cannot be of {image_size} px"):
                self.model.set_input_size(img_size=image_size)
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


class _LastLayerReached(Exception):
    pass


def _parts(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Dotted names of a module's parts, in order: its children, and those of lists and dicts of modules."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name


class ModuleNet(nn.Module):
    """Any ``nn.Module``: its named submodules are its layers, read by forward hooks.

    Args:
        model: takes (N, C, H, W); it is called as it is and left as soon as the last layer asked for is known.
        layers: public names → submodule names, in order of execution; default: every direct child by its name, of
            lists and dicts of modules every member (``blocks.3``), and of a net that is one child that child's.
            Deeper ones can be asked for by their dotted names (``layer3.0``).

    Attributes:
        left_out: listed layers that features cannot be had of, and why, once :meth:`settle` has looked.

    What gives vectors (N, C) is a map of one position. Tokens (N, L, C) are a square map, without the class token
    where there is one more (that is ``NAME_class``). Of square inputs, maps (N, h, h, C) are known to have their
    channels last. What gives anything else is an error when it is asked for.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, str] | None = None):
        super().__init__()
        self.model = model
        self._paths = dict(layers) if layers else {name: name for name in self._parts()}
        if not self._paths:
            raise UserError(f"{type(model).__name__} has no named submodules to take features from")
        self.layers = tuple(self._paths)
        self.left_out: dict[str, str] = {}

    def _parts(self) -> list[str]:
        found = list(_parts(self.model))
        while len(found) == 1 and (inner := list(_parts(self.model.get_submodule(found[0]), f"{found[0]}."))):
            found = inner  # a net in a wrapper
        return found

    @torch.no_grad()
    def settle(self, x: Tensor) -> None:
        """Look at one forward pass: list the layers that it reaches and that give maps, in order of execution.

        A net that does not take ``x`` keeps its list: what is wrong is said when features are asked for.

        Args:
            x: (N, C, H, W), N > 1.
        """
        reached: dict[str, str] = {}

        def reader(name: str):
            def read(_module, _inputs, output):
                try:
                    self._as_map(name, output, x)
                except UserError as error:
                    reached.setdefault(name, str(error))
                else:
                    reached.setdefault(name, "")

            return read

        handles = [self.part(name).register_forward_hook(reader(name)) for name in self.layers]
        try:
            self.model(x)
        except Exception:
            return
        finally:
            for handle in handles:
                handle.remove()
        unused = {name: f"layer {name!r} is not reached in a forward pass" for name in self.layers}
        self.left_out = {name: why for name, why in (unused | reached).items() if why}
        self.layers = tuple(name for name in reached if name not in self.left_out)
        if not self.layers:
            raise UserError(f"no part of {type(self.model).__name__} gives a feature map (N, C, h, w)")

    @torch.compiler.disable  # hooks that leave the forward pass are not for compilers
    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers asked for; the forward pass is left at the last of them."""
        found: dict[str, Tensor] = {}

        def reader(name: str):
            def read(_module, _inputs, output):
                found[name] = self._as_map(name, output, x).clone()  # an in-place ReLU may follow
                if len(found) == len(set(layers)):
                    raise _LastLayerReached

            return read

        handles = [self.part(name).register_forward_hook(reader(name)) for name in layers]
        try:
            self.model(x)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {name: found[name] for name in layers if name in found}

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
        path = self._paths.get(name, name)
        return self.model.get_submodule(path.removesuffix("_class") if self._is_token(name) else path)

    def _is_token(self, name: str) -> bool:
        """Whether a name means the class token of a submodule, and not a submodule of its own."""
        try:
            self.model.get_submodule(self._paths.get(name, name))
        except AttributeError:
            return name.endswith("_class")
        return False

    def _as_map(self, name: str, output: object, x: Tensor) -> Tensor:
        """What a submodule gave, as (N, C, h, w)."""
        if isinstance(output, Tensor) and len(output) == len(x):
            side = math.isqrt(output.shape[1])
            extra = output.shape[1] - side * side
            if self._is_token(name):
                if output.ndim == 3 and extra == 1:
                    return output[:, 0, :, None, None]
            elif output.ndim == 2:
                return output[:, :, None, None]
            elif output.ndim == 3 and extra <= 1:
                return output[:, extra:].transpose(1, 2).unflatten(2, (side, side))
            elif output.ndim == 4:
                return output.permute(0, 3, 1, 2) if self._channels_are_last(name, output, x) else output
        raise UserError(f"layer {name!r} gives no feature map (N, C, h, w)")

    def _channels_are_last(self, name: str, output: Tensor, x: Tensor) -> bool:
        """Told by a square input, whose maps are square."""
        height, width, last = output.shape[1:]
        if x.shape[2] != x.shape[3] or height != width:
            return False
        if last == width and any(type(module).__name__ == "Permute" for module in self.model.modules()):
            raise UserError(
                f"layer {name!r}: at this size its {last} channels cannot be told from its sides; take another"
            )
        return last != width

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def logits(self, x: Tensor) -> Tensor | None:
        """What the model itself gives, where that is a vector an image."""
        output = self.model(x)
        return output if isinstance(output, Tensor) and output.ndim == 2 else None
