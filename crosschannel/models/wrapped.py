"""Nets that are not ours, behind the same two attributes: ``layers`` and ``forward_features``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError


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
        try:
            self.model = timm.create_model(name, pretrained=pretrained, **options)
        except (RuntimeError, OSError) as error:
            raise UserError(f"timm could not create {name!r}: {error}".splitlines()[0]) from None
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"timm's {name!r} does not give its intermediate features")
        if image_size and hasattr(self.model, "set_input_size"):
            self.model.set_input_size(img_size=image_size)
        count = len(self.model.feature_info)
        patches = hasattr(self.model, "patch_embed") and hasattr(self.model, "blocks")
        self.kind = "block" if patches else "stage"
        self.has_class_token = patches and getattr(self.model, "cls_token", None) is not None
        kinds = ("_class", "") if self.has_class_token else ("",)
        self.layers = tuple(f"{self.kind}{i}{kind}" for i in range(1, count + 1) for kind in kinds)
        self.out_channels = self.model.feature_info[-1]["num_chs"]

    @property
    def last_stride(self) -> int:
        """Input pixels per step of the last map."""
        return self.model.feature_info[-1]["reduction"]

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


class ModuleNet(nn.Module):
    """Any ``nn.Module``: its named submodules are its layers, read by forward hooks.

    Args:
        model: takes (N, C, H, W); it is called as it is and left as soon as the last layer asked for is known.
        layers: public names → submodule names, in order of execution; default: every direct child by its name.

    What gives vectors (N, C) is a map of one position; what gives anything else is an error when it is asked for.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, str] | None = None):
        super().__init__()
        self.model = model
        self._paths = dict(layers) if layers else {name: name for name, _ in model.named_children()}
        if not self._paths:
            raise UserError(f"{type(model).__name__} has no named submodules to take features from")
        self.layers = tuple(self._paths)

    @torch.compiler.disable  # hooks that leave the forward pass are not for compilers
    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers asked for; the forward pass is left at the last of them."""
        found: dict[str, Tensor] = {}

        def reader(name: str):
            def read(_module, _inputs, output):
                if not isinstance(output, Tensor) or output.ndim not in (2, 4):
                    raise UserError(f"layer {name!r} gives no feature map (N, C, h, w)")
                output = output if output.ndim == 4 else output[:, :, None, None]
                found[name] = output.clone()  # an in-place ReLU may follow
                if len(found) == len(set(layers)):
                    raise _LastLayerReached

            return read

        handles = [self.model.get_submodule(self._paths[name]).register_forward_hook(reader(name)) for name in layers]
        try:
            self.model(x)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {name: found[name] for name in self.layers if name in found}

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SequentialNet(nn.Module):
    """A model whose ``features`` are one ``nn.Sequential``, such as torchvision's AlexNet and VGG.

    Args:
        model: has ``features``.
        layers: public names → ``features.N``, in order.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, str]):
        super().__init__()
        self.model = model
        self._places = {name: int(path.rpartition(".")[2]) for name, path in layers.items()}
        self.layers = tuple(layers)

    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers asked for; nothing past the last of them is computed."""
        places = {self._places[layer]: layer for layer in layers}
        found: dict[str, Tensor] = {}
        for place, module in enumerate(self.model.features[: max(places) + 1]):
            x = module(x)
            if place in places:
                found[places[place]] = x
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, self.layers[-1:])[self.layers[-1]]


# torchvision's AlexNet and VGG-16 by the names that the literature uses: ReLU outputs and pools.
TORCHVISION_LAYERS: dict[str, dict[str, str]] = {
    "alexnet": {
        name: f"features.{i}"
        for name, i in {
            "conv1": 1, "pool1": 2, "conv2": 4, "pool2": 5, "conv3": 7, "conv4": 9, "conv5": 11, "pool5": 12,
        }.items()
    },
    "vgg16": {
        name: f"features.{i}"
        for name, i in {
            "conv1_1": 1, "conv1_2": 3, "pool1": 4, "conv2_1": 6, "conv2_2": 8, "pool2": 9, "conv3_1": 11,
            "conv3_2": 13, "conv3_3": 15, "pool3": 16, "conv4_1": 18, "conv4_2": 20, "conv4_3": 22, "pool4": 23,
            "conv5_1": 25, "conv5_2": 27, "conv5_3": 29, "pool5": 30,
        }.items()
    },
}  # fmt: skip
