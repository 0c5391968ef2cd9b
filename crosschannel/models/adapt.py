"""Adaptation of a backbone for fine-tuning: Lab input, BatchNorm folded into convolutions, and new fc6 and fc7."""

import copy
from dataclasses import replace

import torch

from crosschannel.errors import UserError
from crosschannel.models.backbone import Backbone, Provenance
from crosschannel.models.input_spec import InputSpec
from crosschannel.models.layers import LayeredNet, absorb_batchnorm, can_absorb, widen_to_lab
from crosschannel.models.nets import NetSpec, build_net, family, find_spec


def trainable_copy(backbone: Backbone) -> Backbone:
    """Return a copy of a backbone in float32 with trainable parameters."""
    return copy.deepcopy(backbone).requires_grad_(True).float()


def with_input(backbone: Backbone, kind: str) -> Backbone:
    """Change the input of a backbone from grey to Lab, in place: its first convolution gets zero ab filters.

    Raises:
        UserError: any other change of the input kind.
    """
    current = backbone.input.kind
    if kind == current:
        return backbone
    if kind != "lab" or current != "grey" or not backbone.is_sequential:
        raise UserError(
            f"input {kind}: this backbone has input {current}; only built-in nets can change it, from grey to lab"
        )
    widen_to_lab(backbone.net)
    backbone.input = replace(backbone.input, kind="lab")
    return backbone


def absorbed(backbone: Backbone) -> Backbone:
    """Fold BatchNorm into the preceding convolutions of a backbone, in place, if that is exact in eval mode.

    Backbones for which it is not exact are returned unchanged.
    """
    if backbone.is_sequential and can_absorb(backbone.net):
        absorb_batchnorm(backbone.net)
    return backbone


@torch.no_grad()
def fold_input_scale(net: LayeredNet, input: InputSpec) -> InputSpec:
    """Fold the scale of the input into the net's first convolution, in place; return the input with scale 1.

    This is for export and inference. For fine-tuning, keep the scale in the input: with a folded scale, the first
    convolution would learn too fast, by a factor of 1 / scale².
    """
    if input.scale == 1:
        return input
    net.get_submodule(net.layers[0]).conv.weight.mul_(input.scale)
    return replace(input, scale=1.0)


def without_input_scale(backbone: Backbone) -> Backbone:
    """Return a copy with the input's scale folded into the first convolution; the backbone itself if the scale is 1."""
    if backbone.input.scale == 1:
        return backbone
    result = copy.deepcopy(backbone)
    result.input = fold_input_scale(result.net, result.input)
    return result


def lacks_fc(backbone: Backbone) -> bool:
    """Return whether a backbone lacks fc6 and fc7 although its family has them in transfer protocols."""
    spec = find_spec(backbone.net)
    return spec is not None and bool(family(spec.name).fc) and not spec.options.fc


def with_fc(backbone: Backbone, width: int) -> Backbone:
    """Return a backbone with new fc6 and fc7, in the geometry and at the input size of the transfer protocols."""
    spec = backbone.net.spec.replace(fc=width, geometry="probe")
    net = build_net(spec)
    net.load_state_dict({**net.state_dict(), **backbone.net.state_dict()})
    input = replace(backbone.input, size=family(spec.name).size, resize=256)
    device = next(backbone.parameters()).device
    return Backbone(net, input, provenance=backbone.provenance).to(device)


def build_untrained(spec: NetSpec, input: InputSpec, source: str) -> Backbone:
    """Build an untrained backbone from a net specification."""
    return Backbone(build_net(spec, input.size), input, provenance=Provenance(source))
