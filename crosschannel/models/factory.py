"""User-defined nets for pretext tasks: ``--model.name package.module:factory``."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.factories import call_factory
from crosschannel.models.backbone import Backbone
from crosschannel.models.input_spec import CHANNELS, InputSpec
from crosschannel.models.module_net import ModuleNet, eval_mode
from crosschannel.models.nets import NetSpec


class FactoryNet(ModuleNet):
    """A net from a user's factory function, up to its last feature map.

    If the factory has a parameter ``in_channels`` or ``in_chans``, the number of input channels is passed to it.
    Otherwise the net's first convolution is replaced by a newly initialised one with that number of input channels.

    Args:
        name: package.module:factory.
        in_channels: number of input channels.
        image_size: side of square inputs, in pixels; default 224.

    Attributes:
        model: the user's module.
        last_stride: stride of the last map, in input pixels.
        last_origin: input pixel on which the first position of the last map is centred.

    Raises:
        UserError: the factory fails, or its net does not accept inputs of this shape or has no feature map.
    """

    computes_past_its_layers: ClassVar[bool] = True  # for example, a classifier

    def __init__(self, name: str, in_channels: int = 3, image_size: int | None = None):
        model = call_factory(name, in_channels)
        resize_positions = None
        if isinstance(model, Backbone):
            model, resize_positions = model.wrapped_module, getattr(model.net, "resize_positions", None)
        if not isinstance(model, nn.Module):
            raise UserError(f"{name} returned {type(model).__name__}, not an nn.Module or a Backbone")
        _set_input_channels(model.requires_grad_(True), in_channels, name)
        super().__init__(model, resize_positions=resize_positions)
        self.name, self.in_channels = name, in_channels
        size = image_size or 224
        kind = next(kind for kind, channels in CHANNELS.items() if channels == in_channels)
        with wrap_external_errors(f"{name} cannot take crops of {size} px"), eval_mode(self):
            blank = torch.zeros(2, in_channels, size, size)
            with torch.no_grad():
                model(blank)
            self.discover_layers(blank)
            backbone = Backbone(self, InputSpec(kind, size, size))
            last = backbone.map_layers[-1]
            self.layers = self.layers[: self.layers.index(last) + 1]
            self.out_channels, self.last_stride = backbone.channels[last], backbone.stride(last)
            self.last_origin = backbone.origin(last)

    @classmethod
    def from_spec(cls, spec: NetSpec, image_size: int | None = None) -> "FactoryNet":
        return cls(spec.name, spec.in_channels, image_size)

    @property
    def spec(self) -> NetSpec:
        return NetSpec(self.name, self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, self.layers[-1:])[self.layers[-1]]


def _set_input_channels(model: nn.Module, channels: int, name: str) -> None:
    """Replace the first convolution, in place, if its number of input channels is not ``channels``."""
    for path, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            if conv.in_channels != channels and conv.groups == 1 and path:
                shape = (conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
                new_conv = nn.Conv2d(channels, *shape, bias=conv.bias is not None, padding_mode=conv.padding_mode)
                parent, _, attribute = path.rpartition(".")
                setattr(model.get_submodule(parent), attribute, new_conv.to(conv.weight))
            return
    raise UserError(
        f"{name} has no convolution to adapt to {channels} input channels; give the factory a parameter in_channels"
    )
