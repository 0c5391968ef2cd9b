"""Caffemodels → our nets, by the names of their layers: AlexNets and the colorization nets of the release.

Linear operations next to a convolution are folded into it: BatchNorm and Scale of an AlexNet, and groups that our net
does not have. The scale of an input layer becomes the scale of the net's :class:`~crosschannel.models.InputSpec`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crosschannel.color.quantizer import ab_bins
from crosschannel.colorize.decoders import BinDecoder
from crosschannel.errors import UserError
from crosschannel.hub.caffe import CaffeLayer
from crosschannel.hub.imported import KINDS, Imported, load_imported_state
from crosschannel.models import AlexNet, InputSpec, NetSpec, build_net
from crosschannel.models.alexnet import VARIANTS
from crosschannel.models.colornet import colornet_rows
from crosschannel.models.layers import LRN
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

CAFFE_MEAN = (122.679, 116.669, 104.007)  # of ImageNet in 0..255, RGB: what Caffe's reference nets subtract
_CONVS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_FC = ("fc6", "fc7")
_EPS = 1e-5
# Layers that centre and scale the input: the channels of Lab that they are given.
_INPUTS = {"data_l": (0,), "data_l_meansub": (0,), "data_lab": (0, 1, 2), "data_ab": (1, 2)}
_ASIDE = ("data_ab_ss",)  # on the way to the targets, not on the net's
_OTHERS = ("Sigmoid", "TanH", "ELU", "PReLU", "BNLL", "AbsVal", "Power", "Exp", "Log", "MVN")  # where ours have ReLUs
_SHARPENING = 2.606  # of the release's logits before the softmax: T = .3837


def from_caffe(path: Path, layers: Sequence[CaffeLayer], input: str | None) -> Imported:
    """The net of a caffemodel: ColorNet where a layer is called as its classifier, else an AlexNet.

    Raises:
        UserError: a layer that no such net has, weights of other shapes, or a norm that cannot be absorbed.
    """
    if any(layer.name == "conv8_313" for layer in layers):
        if input not in (None, "grey"):
            raise UserError(f"{path}: a colorization net is given lightness alone, and not input {input!r}")
        return _colornet(path, layers)
    return _alexnet(path, layers, input)


def _tensors(layer: CaffeLayer) -> list[Tensor]:
    return [torch.from_numpy(blob.copy()) for blob in layer.blobs]


def _alexnet(path: Path, layers: Sequence[CaffeLayer], input: str | None) -> Imported:
    """conv1 … conv5, fc6, fc7 by name; LRN by its place; the slope of its ReLUs."""
    state, data, left_out = _alexnet_state(path, layers)
    lacking = [name for name in _CONVS if f"{name}.conv.weight" not in state]
    if lacking:
        raise UserError(f"{path} is not an AlexNet: no convolution of it is called {lacking[0]}")
    groups = {layer.name: layer.parameters.get("groups", 1) for layer in layers}
    if not _has_fc(state, groups):
        left_out += [name for name in _FC if f"{name}.conv.weight" in state]
        state = {key: value for key, value in state.items() if not key.startswith(_FC)}
    is_lab, scale = _fold_input(path, state, data)
    spec = _alexspec_of(path, layers, state)
    if is_lab and _never_meet(state, groups):
        spec = spec.replace(variant="split-brain")
    kind = input or ("lab" if is_lab else KINDS.get(spec.in_channels))
    if kind not in ("grey", "lab", "rgb") or InputSpec(kind).channels != spec.in_channels or (is_lab and kind == "rgb"):
        raise UserError(f"{path}: its conv1 takes {spec.in_channels} channels, which input {kind!r} does not have")
    if kind == "rgb":  # Caffe's channels are BGR
        state["conv1.conv.weight"] = state["conv1.conv.weight"].flip(1)
    net = build_net(spec)
    _ungroup(state, groups, net)
    load_imported_state(net, state, str(path))
    _check_strides(path, layers, net)
    mean, std = tuple(value / 255 for value in CAFFE_MEAN), (1 / 255,) * 3
    if spec.options.variant == "bigan":  # (x - 127.5) / 127.5
        mean, std = (0.5,) * 3, (0.5,) * 3
    size = 224 if VARIANTS[spec.options.variant].pad else 227
    input = InputSpec(kind, size, 256, mean=mean, std=std, scale=scale)
    return Imported(net.eval(), spec, input, "caffe", left_out)


def _alexnet_state(
    path: Path, layers: Sequence[CaffeLayer]
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]], list[str]]:
    """Our names with weights, norms absorbed; the layers of the input; and the names of layers that are left out: those
    of a branch that shares weights (conv1_p), and whatever follows the net."""
    state: dict[str, Tensor] = {}
    data: dict[str, list[Tensor]] = {}
    read: dict[str, list[Tensor]] = {}
    left_out: list[str] = []
    unknown, owner, between = "", "", ""
    for layer in layers:
        if owner:
            _check_function(path, layer)
        if layer.type in ("ReLU", "Pooling", "LRN"):
            between = layer.type
        if not layer.blobs or layer.name in _ASIDE:
            continue
        blobs = _tensors(layer)
        if owner and layer.type in ("BatchNorm", "Scale"):
            if between:
                raise UserError(
                    f"{path}: {layer.name} normalises after {between}; only what follows {owner} can be absorbed"
                )
            _absorb(state, owner, layer, blobs)
            continue
        between = ""
        owner = layer.name if layer.name in (*_CONVS, *_FC) else ""
        if layer.name in _INPUTS or layer.name == "conv1_ab":
            data[layer.name] = blobs
        elif owner and unknown:
            raise UserError(f"{path}: {unknown} is a layer before {owner} that no AlexNet here has")
        elif owner:
            read[owner] = blobs
            state |= _convolution(owner, blobs)
        else:
            left_out.append(layer.name)
            twin = read.get(layer.name.rpartition("_")[0], ())
            is_twin = len(twin) == len(blobs) and all(map(torch.equal, twin, blobs))
            unknown = unknown or ("" if is_twin else layer.name)
    return state, data, left_out


def _check_function(path: Path, layer: CaffeLayer) -> None:
    """What stands between the convolutions is what our nets have there."""
    stated = layer.parameters
    if layer.type in _OTHERS:
        raise UserError(f"{path}: {layer.name} is a {layer.type}, and our AlexNets have ReLUs")
    if layer.type == "Pooling" and stated.get("method", 0) != 0:
        raise UserError(f"{path}: {layer.name} does not take the maximum, as our AlexNets' pools do")
    if layer.type == "LRN" and stated:
        ours = LRN(layer.name)
        theirs = (stated.get("size", 5), stated.get("alpha", 1.0), stated.get("beta", 0.75))
        if any(abs(a / b - 1) > 1e-3 for a, b in zip(theirs, (ours.size, ours.alpha, ours.beta), strict=True)):
            raise UserError(f"{path}: {layer.name} has the constants {theirs}, and ours are those of Krizhevsky et al.")


def _convolution(name: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    """Weight and bias; old files write matrices and vectors with leading ones."""
    weight = blobs[0][0, 0] if blobs[0].ndim == 4 and blobs[0].shape[:2] == (1, 1) else blobs[0]
    bias = blobs[1].flatten() if len(blobs) > 1 else torch.zeros(len(weight))
    return {f"{name}.conv.weight": weight, f"{name}.conv.bias": bias}


def _statistics(blobs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of a BatchNorm: sums over so many batches, and the number of these."""
    factor = 1 / blobs[2].item() if blobs[2].item() else 0.0
    return blobs[0].flatten() * factor, blobs[1].flatten() * factor


def _absorb(state: dict[str, Tensor], name: str, layer: CaffeLayer, blobs: list[Tensor]) -> None:
    """Fold a BatchNorm or a Scale into the convolution before it."""
    if layer.type == "BatchNorm":
        mean, variance = _statistics(blobs)
        scale = (variance + layer.parameters.get("eps", _EPS)).rsqrt()
        shift = -mean * scale
    else:
        scale, shift = blobs[0].flatten(), blobs[1].flatten() if len(blobs) > 1 else torch.zeros(1)
    weight, bias = f"{name}.conv.weight", f"{name}.conv.bias"
    if len(scale) != len(state[weight]) or shift.numel() not in (1, len(scale)):
        raise UserError(f"the norm after {name} has {len(scale)} channels where {name} has {len(state[weight])}")
    state[weight] = state[weight] * scale.reshape(-1, *[1] * (state[weight].ndim - 1))
    state[bias] = state[bias] * scale + shift


def _has_fc(state: dict[str, Tensor], groups: dict[str, int]) -> bool:
    """Whether fc6 and fc7 are those of one image at 227 px, and more than zeros (BiGAN's): context prediction's fc6
    looks at a 96 px patch, and its fc7 at two patches."""
    outputs = 36 * len(state["conv5.conv.weight"])
    for name in _FC:
        weight = state.get(f"{name}.conv.weight")
        if weight is None or weight[0].numel() * groups[name] != outputs or not weight.any():
            return False
        outputs = len(weight)
    return True


def _fold_input(path: Path, state: dict[str, Tensor], data: dict[str, list[Tensor]]) -> tuple[bool, float]:
    """Return whether the input layers (y = w · x + b per channel) make the input Lab, and their scale of L; fold the
    relative scales of a and b into conv1."""
    weight, bias = "conv1.conv.weight", "conv1.conv.bias"
    colour = data.pop("conv1_ab", None)  # a separate conv1 for ab; the outputs are added
    matrices = {name: _input_matrix(path, name, blobs) for name, blobs in data.items()}
    scale = _lightness_scale(matrices)
    matrices = {name: matrix / scale for name, matrix in matrices.items()}
    if colour is not None:
        mixed = matrices.pop("data_ab", torch.eye(2) / scale)
        state[weight] = torch.cat((state[weight], torch.einsum("okhw,kc->ochw", colour[0], mixed)), 1)
        state[bias] = state[bias] + (colour[1].flatten() if len(colour) > 1 else 0)
    for name, matrix in matrices.items():
        channels = list(_INPUTS[name])
        if max(channels) >= state[weight].shape[1]:
            raise UserError(f"{path}: {name} gives more channels than conv1 takes")
        folded = state[weight].clone()
        folded[:, channels] = torch.einsum("okhw,kc->ochw", state[weight][:, channels], matrix)
        state[weight] = folded
    return colour is not None or any(name in ("data_lab", "data_ab") for name in data), scale


def _lightness_scale(matrices: dict[str, Tensor]) -> float:
    """Factor on L in the input layers; 1 if they skip or invert L."""
    scales = (matrix[0, 0].item() for name, matrix in matrices.items() if 0 in _INPUTS[name])
    scale = next(scales, 1.0)
    return scale if scale > 0 else 1.0


def _input_matrix(path: Path, name: str, blobs: list[Tensor]) -> Tensor:
    """The weights of a layer on the input as (channels out, channels in); its biases must centre L on 50 and nothing
    else, since only then zero padding is the same before and after it."""
    channels = _INPUTS[name]
    weight = blobs[0].flatten(1) if blobs[0].ndim == 4 else blobs[0].reshape(-1, 1)
    matrix = weight if weight.shape[1] == len(channels) else torch.diag(weight.flatten())
    if matrix.shape[1] != len(channels):
        raise UserError(f"{path}: {name} takes {matrix.shape[1]} channels and not {len(channels)}")
    bias = blobs[1].flatten() if len(blobs) > 1 else torch.zeros(len(matrix))
    centre = torch.tensor([50.0 if channel == 0 else 0.0 for channel in channels])
    if bias.shape != matrix.shape[:1] or not torch.allclose(bias, -matrix @ centre, rtol=1e-2, atol=1e-2):
        raise UserError(f"{path}: {name} does not centre L on 50 (and a, b on 0): it cannot be folded into conv1")
    return matrix


def _alexspec_of(path: Path, layers: Sequence[CaffeLayer], state: dict[str, Tensor]) -> NetSpec:
    """Which AlexNet it is: by its widths, the groups of conv2, the place of LRN and the slope of its ReLUs."""
    kinds = [layer.type for layer in layers if layer.type in ("LRN", "Pooling")]
    lrn = "" if "LRN" not in kinds else "before-pool" if kinds[0] == "LRN" else "after-pool"
    slopes = {round(layer.parameters.get("slope", 0.0), 6) for layer in layers if layer.type == "ReLU"} or {0.0}
    widths = tuple(len(state[f"{name}.conv.weight"]) for name in _CONVS)
    groups = widths[0] / max(1, state["conv2.conv.weight"].shape[1])
    known = {name: variant for name, variant in VARIANTS.items() if variant.ceil}
    fits = (
        name for name, v in known.items() if (v.widths, v.groups, v.lrn, {v.slope}) == (widths, groups, lrn, slopes)
    )
    variant = next(fits, None)
    if variant is None:
        shape = f"{'-'.join(map(str, widths))}, conv2 in {groups:g} groups, " + (f"LRN {lrn}" if lrn else "no LRN")
        shape += "" if slopes == {0.0} else f", ReLUs of slope {', '.join(f'{slope:g}' for slope in sorted(slopes))}"
        raise UserError(f"{path}: no AlexNet here is {shape}; there are {', '.join(known)}")
    fc, fc7 = (len(state.get(f"{name}.conv.weight", ())) for name in _FC)
    channels = state["conv1.conv.weight"].shape[1]
    return NetSpec(
        "alexnet", channels, norm=False, fc=fc, geometry="probe", variant=variant, fc7=0 if fc7 == fc else fc7
    )


def _ungroup(state: dict[str, Tensor], groups: dict[str, int], net: AlexNet) -> None:
    """Weights in more groups than our layer has, as split-brain nets may have them: blocks on the diagonal."""
    for name in (*_CONVS, *_FC):
        weight = state.get(f"{name}.conv.weight")
        if weight is None or weight.ndim != 4:
            continue
        ours = net.get_submodule(name).conv
        times = groups[name] // ours.groups
        if times > 1 and weight.shape[1] * times == ours.weight.shape[1]:
            wide = weight.new_zeros(ours.weight.shape)
            rows, columns = len(wide) // groups[name], weight.shape[1]
            for group in range(groups[name]):
                part, place = slice(group * rows, (group + 1) * rows), group % times * columns
                wide[part, place : place + columns] = weight[part]
            state[f"{name}.conv.weight"] = wide


def _never_meet(state: dict[str, Tensor], groups: dict[str, int]) -> bool:
    """Whether a net of Lab is two halves, of L and of ab: all layers in two groups, conv1 with zeros in between."""
    weight = state["conv1.conv.weight"]
    half = len(weight) // 2
    apart = weight.shape[1] == 3 and not weight[:half, 1:].any() and not weight[half:, :1].any()
    present = [name for name in (*_CONVS[1:], *_FC) if f"{name}.conv.weight" in state]
    return apart and all(groups[name] == 2 for name in present)


def _check_strides(path: Path, layers: Sequence[CaffeLayer], net: AlexNet) -> None:
    """Strides that a file states are those of the net that its weights are put into. (Padding may differ: the protocols
    put nets that were trained with any padding into one geometry.)"""
    for layer in layers:
        if layer.name in _CONVS and layer.parameters:
            conv = net.get_submodule(layer.name).conv
            for key, ours in (("stride", conv.stride[0]), ("dilation", conv.dilation[0])):
                theirs = layer.parameters.get(key, 1)
                if theirs != ours:
                    raise UserError(f"{path}: {layer.name} has {key} {theirs}, and our AlexNet has {ours} there")


def _colornet(path: Path, layers: Sequence[CaffeLayer]) -> Imported:
    """A colorization net of the release (v0, v1, v2, with and without rebalancing): conv1_1 (or bw_conv1_1) … conv8_3,
    conv8_313, BatchNorm as conv1_2norm …; bins and sharpening where the file has them."""
    ours = {row.name: f"net.{row.name}" for row in colornet_rows()}
    normed = [row.name for row in colornet_rows() if row.norm]
    head = {name: f"head.{name}" for name in ("conv8_1", "conv8_2", "conv8_3")} | {"conv8_313": "head.out"}
    state: dict[str, Tensor] = {}
    scale, sharpening = 1.0, _SHARPENING
    has_scale, norm = False, ""
    for layer in layers:
        name = layer.name.removeprefix("bw_")
        if not layer.blobs or name in _ASIDE:
            continue
        blobs = _tensors(layer)
        block = name.removesuffix("norm")
        if name in ours or name in head:
            place = head.get(name) or f"{ours[name]}.conv"
            state |= {f"{place}.weight": blobs[0], f"{place}.bias": blobs[1].flatten()}
            norm = ""
        elif layer.type == "BatchNorm" and block in normed:
            norm = f"{ours[block]}.norm"
            mean, variance = _statistics(blobs)
            more = layer.parameters.get("eps", _EPS) - _EPS  # our layer adds its own
            state |= {f"{norm}.running_mean": mean, f"{norm}.running_var": (variance + more).clamp(min=0)}
        elif layer.type == "Scale" and norm:
            has_scale = True
            state |= {f"{norm}.weight": blobs[0].flatten(), f"{norm}.bias": blobs[1].flatten()}
        elif name in ("data_l", "data_l_meansub"):
            scale = _input_matrix(path, name, blobs).item()
        elif name == "conv8_313_rh":
            sharpening = blobs[0].flatten()[0].item()
        elif name in ("class8_ab", "pr_ab"):
            _check_bins(path, name, blobs[0])
        else:
            raise UserError(f"{path}: {layer.name} is a layer that no colorization net here has")
    if not sharpening > 0:
        raise UserError(f"{path}: conv8_313_rh scales the logits by {sharpening:g}")
    spec = NetSpec("colornet", 1, affine=has_scale)
    net, task = create("colorization", ColorizationConfig(), spec)
    load_imported_state(net, state, str(path))
    if not scale > 0:
        raise UserError(f"{path}: its input layer scales L by {scale:g}, not by a positive factor")
    return Imported(
        net.eval(),
        spec,
        InputSpec("grey", 256, 256, scale=scale),
        "caffe",
        task=task,
        decoder=BinDecoder(task.objective.quantizer, 1 / sharpening),
    )


def _check_bins(path: Path, name: str, weight: Tensor) -> None:
    """The ab of the classes are the 313 published ones, in their order."""
    grid = ab_bins().T
    if not weight.any():  # filled in by the release's script
        return
    if weight.numel() != grid.numel() or not torch.allclose(weight.reshape(grid.shape), grid.to(weight), atol=0.1):
        raise UserError(f"{path}: {name} holds other colours than the 313 published bins")
