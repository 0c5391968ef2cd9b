"""timm models as nets with named layers."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.models.nets import NetSpec


class TimmNet(nn.Module):
    """A timm model with its stages or blocks as layers.

    The layers of a CNN are its stages: ``stage1``, …. The layers of a ViT are its blocks, after the model's final norm:
    ``block1``, … are maps of the patch tokens. If the model has a class token, ``block1_class``, … are 1×1
    maps of that token.

    Args:
        name: timm's model name.
        in_channels: number of input channels; for 1, timm sums the pretrained stem weights over RGB.
        pretrained: whether to load timm's weights, which may download them.
        image_size: side of square inputs in pixels, for models with position embeddings.
    """

    computes_past_its_layers: ClassVar[bool] = True  # for example, a final norm
    runs_user_code: ClassVar[bool] = False

    def __init__(self, name: str, in_channels: int = 3, pretrained: bool = False, image_size: int | None = None):
        super().__init__()
        check_timm_name(name)
        import timm

        self.timm_name, self.in_channels = name, in_channels
        options: dict[str, object] = {"num_classes": 0, "in_chans": in_channels}
        with wrap_external_errors(f"timm could not create {name!r}"):
            self.model = timm.create_model(name, pretrained=pretrained, **options)
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"timm's {name!r} does not provide intermediate features")
        self.set_image_size(image_size)
        count = len(self.model.feature_info)
        is_vit = hasattr(self.model, "patch_embed") and hasattr(self.model, "blocks")
        self.kind = "block" if is_vit else "stage"
        self.exports_any_size = not is_vit  # position embeddings have a fixed size, unless they are resized
        self.has_class_token = is_vit and getattr(self.model, "cls_token", None) is not None
        suffixes = ("_class", "") if self.has_class_token else ("",)
        self.layers = tuple(f"{self.kind}{i}{suffix}" for i in range(1, count + 1) for suffix in suffixes)
        self.out_channels = self.model.feature_info[-1]["num_chs"]

    @classmethod
    def from_spec(cls, spec: NetSpec, image_size: int | None = None) -> "TimmNet":
        return cls(spec.name.removeprefix("timm:"), spec.in_channels, image_size=image_size)

    @property
    def spec(self) -> NetSpec:
        return NetSpec(f"timm:{self.timm_name}", self.in_channels)

    @property
    def last_stride(self) -> int:
        """Stride of the last map, in input pixels."""
        return self.model.feature_info[-1]["reduction"]

    @property
    def last_origin(self) -> float:
        """Input pixel on which the first position of the last map is centred."""
        first_conv = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        # An even kernel means patches without overlap (ViT, ConvNeXt, Swin); odd kernels are padded by half their size.
        return (self.last_stride - 1) / 2 if first_conv.kernel_size[0] % 2 == 0 else 0.0

    @staticmethod
    def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
        """Convert BatchNorm to SyncBatchNorm in place, including timm's BatchNorm with fused activation."""
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)

    def get_module(self, layer: str) -> nn.Module:
        """Return the module whose output is the map of a layer."""
        index = int(layer.removesuffix("_class").removeprefix(self.kind)) - 1
        return self.model.get_submodule(self.model.feature_info[index]["module"])

    def set_image_size(self, side: int | None) -> None:
        """Resize position embeddings for square inputs with the given side in pixels; None keeps the current size."""
        if side and hasattr(self.model, "set_input_size"):
            with wrap_external_errors(f"timm's {self.timm_name!r} cannot take images of {side} px"):
                self.model.set_input_size(img_size=side)

    def take_any_size(self) -> None:
        """Let a ViT accept images of any size in whole patches: position embeddings are resized for each batch."""
        if getattr(self.model, "dynamic_img_size", None) is False and getattr(self.model, "rope", None) is None:
            from timm.layers import Format

            embed = self.model.patch_embed
            embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
            self.model.dynamic_img_size = True

    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of the requested layers; the forward pass stops after the last of them."""
        layer_indices = [int(layer.removesuffix("_class").removeprefix(self.kind)) - 1 for layer in layers]
        indices = sorted(set(layer_indices))
        options = {"norm": True} if self.kind == "block" else {}
        if self.has_class_token:
            options["return_prefix_tokens"] = True
        maps = self.model.forward_intermediates(
            x, indices=indices, stop_early=True, intermediates_only=True, output_fmt="NCHW", **options
        )
        features: dict[str, Tensor] = {}
        for i, feature in zip(indices, maps, strict=True):
            name = f"{self.kind}{i + 1}"
            if self.has_class_token:
                feature, prefix = feature
                features[f"{name}_class"] = prefix[:, 0, :, None, None]
            features[name] = feature
        return {name: feature for name, feature in features.items() if name in layers}

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, self.layers[-1:])[self.layers[-1]]


def check_timm_name(name: str) -> None:
    """Raise a UserError unless timm is installed and has a model with that name and tag."""
    try:
        import timm
    except ImportError:
        raise UserError("timm nets require timm: pip install 'crosschannel[timm]'") from None
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        similar = timm.list_models(f"*{model[:6]}*")[:3]
        raise UserError(f"timm has no model {name!r}" + (f"; similar names: {', '.join(similar)}" if similar else ""))
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm's {model} has no tag {tag!r}; available tags: {', '.join(tags) or 'none'}")
