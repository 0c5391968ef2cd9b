"""A net of the user's own as the pretext tasks need it: ``--model.name package.module:factory``."""

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
    """What a factory of the user's returns, up to its last map.

    A factory that takes ``in_channels`` (or ``in_chans``) is given it; else the first convolution is replaced by one of
    the same shape with so many channels, freshly initialised.

    Args:
        name: package.module:factory.
        in_channels: of the input.
        image_size: side of square inputs.

    Attributes:
        model: the user's module.
        last_stride, last_origin: input pixels per step of the last map, and the pixel that its first point is centred
            on.

    Raises:
        UserError: the factory fails, or its net cannot take such inputs, or has no map.
    """

    computes_past_its_layers: ClassVar[bool] = True  # such as a classifier

    def __init__(self, name: str, in_channels: int = 3, image_size: int | None = None):
        made = call_factory(name, in_channels)
        resize_positions = None
        if isinstance(made, Backbone):
            made, resize_positions = made.wrapped_module, getattr(made.net, "resize_positions", None)
        if not isinstance(made, nn.Module):
            raise UserError(f"{name} returned {type(made).__name__}, not an nn.Module or a Backbone")
        _widen(made.requires_grad_(True), in_channels, name)
        super().__init__(made, resize_positions=resize_positions)
        self.name, self.in_channels = name, in_channels
        size = image_size or 224
        kind = next(kind for kind, channels in CHANNELS.items() if channels == in_channels)
        with wrap_external_errors(f"{name} cannot take crops of {size} px"), eval_mode(self):
            blank = torch.zeros(2, in_channels, size, size)
            with torch.no_grad():
                made(blank)
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


def _widen(model: nn.Module, channels: int, name: str) -> None:
    """Let the first convolution take so many channels, in place."""
    for place, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            if conv.in_channels != channels and conv.groups == 1 and place:
                shape = (conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
                fresh = nn.Conv2d(channels, *shape, bias=conv.bias is not None, padding_mode=conv.padding_mode)
                parent, _, name_there = place.rpartition(".")
                setattr(model.get_submodule(parent), name_there, fresh.to(conv.weight))
            return
    raise UserError(f"{name} has no convolution that could see {channels} channels: let it take in_channels")
