"""`--init-from`: the weights of another net as the start of this one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.models import Backbone, InputSpec, family, spec_of
from crosschannel.models.adapt import fold_input_scale

# (theirs, ours) → factor of the weights: lightness is a hundred times grey of 0..1, nearly enough.
_SCALES = {
    ("rgb", "intensity"): 1.0,
    ("rgb", "grey"): 0.01,
    ("intensity", "grey"): 0.01,
    ("grey", "intensity"): 100.0,
}


def load_initial_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a pretext net the weights that fit it, in place: its backbone whole, its head as far as it is the same.

    BatchNorm that the other net lacks starts anew.

    Args:
        net: has ``net``, the backbone.
        state: of a pretext net, by name.

    Raises:
        UserError: weights of its backbone are lacking or of another shape.
    """
    own = net.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    has_norm = any(key.endswith("running_mean") for key in state)
    needed = [key for key in own if key.startswith("net.") and (has_norm or not _is_of_a_norm(net, key))]
    lacking = [key for key in needed if key not in fitting]
    if lacking:
        raise UserError(f"--init_from does not fit this net: it lacks {lacking[0]}")
    unused = [key for key in state if key.startswith("net.") and key not in own]
    if any(".norm." in key for key in unused):
        if not any("running_mean" in key for key in own):
            raise UserError("--init_from has BatchNorm: give --model.norm true")
        if family(spec_of(net.net).name).has_option("affine"):
            raise UserError("--init_from has a BatchNorm with a scale and a shift: give --model.affine true too")
    net.load_state_dict({**own, **fitting})


def _is_of_a_norm(net: nn.Module, key: str) -> bool:
    return isinstance(net.get_submodule(key.rpartition(".")[0]), nn.modules.batchnorm._BatchNorm)


def convert_input(input: InputSpec, backbone: Backbone) -> Backbone:
    """The same backbone, in place, for another input: where that can be, its first convolution sees there what it saw.

    Normalised RGB becomes one channel of grey (the sum over channels of weights as they act on RGB in 0..1), grey of
    0..1 lightness of 0..100 and the other way round; a picture of three grey channels is RGB.

    Raises:
        UserError: any other change.
    """
    backbone.input = fold_input_scale(backbone.net, backbone.input)
    theirs, ours = backbone.input.kind, input.kind
    if theirs == ours or (theirs, ours) == ("rgb", "luma"):
        return backbone
    if (theirs, ours) not in _SCALES:
        hint = "; give SOURCE,input=lab" if (theirs, ours) == ("grey", "lab") else ""
        raise UserError(f"--init_from sees {theirs}, and the net to be trained {ours}{hint}")
    first = next(module for module in backbone.net.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.detach()
    if theirs == "rgb":
        std = torch.tensor(backbone.input.std)[:, None, None]
        weight = (weight / std.to(weight)).sum(1, keepdim=True)
    first.weight, first.in_channels = nn.Parameter(weight * _SCALES[theirs, ours]), 1
    return backbone
