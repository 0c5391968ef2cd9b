"""`--init-from`: initialise a pretext net with the weights of another net."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.models import Backbone, InputSpec, family, spec_of
from crosschannel.models.adapt import fold_input_scale

# (source input, target input) → factor for the weights of the first convolution. Lightness is about 100 × grey in 0..1.
_SCALES = {
    ("rgb", "intensity"): 1.0,
    ("rgb", "grey"): 0.01,
    ("intensity", "grey"): 0.01,
    ("grey", "intensity"): 100.0,
}


def load_initial_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load matching weights into a pretext net, in place: all of the backbone, and matching tensors of the head.

    If ``state`` has no BatchNorm, the net's BatchNorm layers keep their initial values.

    Args:
        net: pretext net; ``net.net`` is the backbone.
        state: state dict of a pretext net.

    Raises:
        UserError: weights of the backbone are missing or differ in shape.
    """
    initial = net.state_dict()
    matching = {k: v for k, v in state.items() if k in initial and v.shape == initial[k].shape}
    has_norm = any(key.endswith("running_mean") for key in state)
    required = [key for key in initial if key.startswith("net.") and (has_norm or not _is_norm_tensor(net, key))]
    missing = [key for key in required if key not in matching]
    if missing:
        raise UserError(f"--init_from does not match this net: {missing[0]} is missing or differs in shape")
    unused = [key for key in state if key.startswith("net.") and key not in initial]
    if any(".norm." in key for key in unused):
        if not any("running_mean" in key for key in initial):
            raise UserError("--init_from has BatchNorm; set --model.norm true")
        if family(spec_of(net.net).name).has_option("affine"):
            raise UserError("--init_from has BatchNorm with scale and shift; also set --model.affine true")
    net.load_state_dict({**initial, **matching})


def _is_norm_tensor(net: nn.Module, key: str) -> bool:
    return isinstance(net.get_submodule(key.rpartition(".")[0]), nn.modules.batchnorm._BatchNorm)


def convert_input(input: InputSpec, backbone: Backbone) -> Backbone:
    """Adapt the first convolution of a backbone to another input, in place, so that its outputs change little.

    Normalised RGB is converted to one channel of grey: the weights, rescaled for RGB in 0..1, are summed over channels.
    For grey in 0..1 instead of lightness in 0..100, or vice versa, the weights are multiplied by a constant. Luma in
    three channels needs no conversion from RGB.

    Raises:
        UserError: any other conversion.
    """
    backbone.input = fold_input_scale(backbone.net, backbone.input)
    source, target = backbone.input.kind, input.kind
    if source == target or (source, target) == ("rgb", "luma"):
        return backbone
    if (source, target) not in _SCALES:
        hint = "; try SOURCE,input=lab" if (source, target) == ("grey", "lab") else ""
        raise UserError(f"--init_from has {source} input, which cannot be converted to {target}{hint}")
    first = next(module for module in backbone.net.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.detach()
    if source == "rgb":
        std = torch.tensor(backbone.input.std)[:, None, None]
        weight = (weight / std.to(weight)).sum(1, keepdim=True)
    first.weight, first.in_channels = nn.Parameter(weight * _SCALES[source, target]), 1
    return backbone
