"""Convert caffemodels to this library's nets, by layer name: AlexNets and the released colorization nets.

BatchNorm and Scale of an AlexNet are folded into the preceding convolution. Grouped weights become block-diagonal if
our layer has fewer groups. The scale of an input layer becomes the scale of the net's
:class:`~crosschannel.models.InputSpec`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crosschannel.color.quantizer import ab_bins
from crosschannel.colorize.decoders import BinDecoder
from crosschannel.errors import UserError
from crosschannel.hub.caffe import CaffeLayer
from crosschannel.hub.imported import INPUT_KINDS, ImportedNet, load_imported_state
from crosschannel.models import AlexNet, InputSpec, NetSpec, build_net
from crosschannel.models.alexnet import VARIANTS
from crosschannel.models.colornet import colornet_rows
from crosschannel.models.layers import LRN
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

CAFFE_MEAN = (122.679, 116.669, 104.007)  # ImageNet mean in 0..255, RGB, which Caffe's reference nets subtract
_CONVS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_FC = ("fc6", "fc7")
_EPS = 1e-5  # Caffe's default for BatchNorm
# Layers that centre and scale the input, and the indices of their Lab channels.
_INPUT_LAYERS = {"data_l": (0,), "data_l_meansub": (0,), "data_lab": (0, 1, 2), "data_ab": (1, 2)}
_TARGET_LAYERS = ("data_ab_ss",)  # layers that compute the training targets, not part of the net
# Unsupported layer types: the ReLU is the only non-linearity of our nets.
_UNSUPPORTED_TYPES = ("Sigmoid", "TanH", "ELU", "PReLU", "BNLL", "AbsVal", "Power", "Exp", "Log", "MVN")
_SHARPENING = 2.606  # factor on the release's logits before the softmax: T = 0.3837


def from_caffe(path: Path, layers: Sequence[CaffeLayer], input: str | None) -> ImportedNet:
    """Build the net of a caffemodel: ColorNet if the file has a layer ``conv8_313``, otherwise an AlexNet.

    Args:
        path: path of the file, for messages.
        layers: layers of the file.
        input: "grey", "lab" or "rgb"; None derives it from the layers.

    Raises:
        UserError: an unsupported layer, weights of the wrong shape, or a norm that cannot be absorbed.
    """
    if any(layer.name == "conv8_313" for layer in layers):
        if input not in (None, "grey"):
            raise UserError(f"{path}: a colorization net has lightness input (grey), not input {input!r}")
        return _colornet(path, layers)
    return _alexnet(path, layers, input)


def _tensors(layer: CaffeLayer) -> list[Tensor]:
    return [torch.from_numpy(blob.copy()) for blob in layer.blobs]


def _alexnet(path: Path, layers: Sequence[CaffeLayer], input: str | None) -> ImportedNet:
    """Build an AlexNet from the layers conv1 … conv5, fc6 and fc7; the other layers determine its variant."""
    state, input_layers, left_out = _alexnet_state(path, layers)
    missing = [name for name in _CONVS if f"{name}.conv.weight" not in state]
    if missing:
        raise UserError(f"{path} is not an AlexNet: it has no convolution named {missing[0]}")
    groups = {layer.name: layer.parameters.get("groups", 1) for layer in layers}
    if not _has_fc(state, groups):
        left_out += [name for name in _FC if f"{name}.conv.weight" in state]
        state = {key: value for key, value in state.items() if not key.startswith(_FC)}
    is_lab, scale = _fold_input(path, state, input_layers)
    spec = _alexnet_spec(path, layers, state)
    if is_lab and _is_split(state, groups):
        spec = spec.replace(variant="split-brain")
    kind = input or ("lab" if is_lab else INPUT_KINDS.get(spec.in_channels))
    if kind not in ("grey", "lab", "rgb") or InputSpec(kind).channels != spec.in_channels or (is_lab and kind == "rgb"):
        raise UserError(f"{path}: conv1 has {spec.in_channels} input channels, which does not match input {kind!r}")
    if kind == "rgb":  # Caffe stores channels as BGR
        state["conv1.conv.weight"] = state["conv1.conv.weight"].flip(1)
    net = build_net(spec)
    _expand_groups(state, groups, net)
    load_imported_state(net, state, str(path))
    _check_strides(path, layers, net)
    mean, std = tuple(value / 255 for value in CAFFE_MEAN), (1 / 255,) * 3
    if spec.options.variant == "bigan":  # (x - 127.5) / 127.5
        mean, std = (0.5,) * 3, (0.5,) * 3
    size = 224 if VARIANTS[spec.options.variant].pad else 227
    input = InputSpec(kind, size, 256, mean=mean, std=std, scale=scale)
    return ImportedNet(net.eval(), spec, input, "caffe", left_out)


def _alexnet_state(
    path: Path, layers: Sequence[CaffeLayer]
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]], list[str]]:
    """Return the weights under our names, the input layers, and the names of the layers left out.

    Norms are absorbed. The layers left out belong to a branch that shares weights (``conv1_p``) or follow the net.
    """
    state: dict[str, Tensor] = {}
    input_layers: dict[str, list[Tensor]] = {}
    blobs_by_name: dict[str, list[Tensor]] = {}
    left_out: list[str] = []
    unknown, conv, operation = "", "", ""  # unsupported layer, last convolution, last operation after it
    for layer in layers:
        if conv:
            _check_operation(path, layer)
        if layer.type in ("ReLU", "Pooling", "LRN"):
            operation = layer.type
        if not layer.blobs or layer.name in _TARGET_LAYERS:
            continue
        blobs = _tensors(layer)
        if conv and layer.type in ("BatchNorm", "Scale"):
            if operation:
                raise UserError(
                    f"{path}: {layer.name} follows {operation}; only a norm directly after {conv} can be absorbed"
                )
            _absorb(state, conv, layer, blobs)
            continue
        operation = ""
        conv = layer.name if layer.name in (*_CONVS, *_FC) else ""
        if layer.name in _INPUT_LAYERS or layer.name == "conv1_ab":
            input_layers[layer.name] = blobs
        elif conv and unknown:
            raise UserError(f"{path}: layer {unknown} before {conv} is not part of any supported AlexNet")
        elif conv:
            blobs_by_name[conv] = blobs
            state |= _conv_state(conv, blobs)
        else:
            left_out.append(layer.name)
            original = blobs_by_name.get(layer.name.rpartition("_")[0], ())
            is_shared = len(original) == len(blobs) and all(map(torch.equal, original, blobs))
            unknown = unknown or ("" if is_shared else layer.name)
    return state, input_layers, left_out


def _check_operation(path: Path, layer: CaffeLayer) -> None:
    """Raise a UserError for an operation between the convolutions that our AlexNets do not have."""
    parameters = layer.parameters
    if layer.type in _UNSUPPORTED_TYPES:
        raise UserError(f"{path}: {layer.name} is of type {layer.type}; AlexNets are supported with ReLUs only")
    if layer.type == "Pooling" and parameters.get("method", 0) != 0:
        raise UserError(f"{path}: {layer.name} is not max pooling; AlexNets are supported with max pooling only")
    if layer.type == "LRN" and parameters:
        expected = LRN(layer.name)
        constants = (parameters.get("size", 5), parameters.get("alpha", 1.0), parameters.get("beta", 0.75))
        if any(
            abs(a / b - 1) > 1e-3
            for a, b in zip(constants, (expected.size, expected.alpha, expected.beta), strict=True)
        ):
            raise UserError(
                f"{path}: {layer.name} has the constants {constants}; only those of Krizhevsky et al. are supported"
            )


def _conv_state(name: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    """Return weight and bias. Old files store matrices and vectors with leading dimensions of size 1."""
    weight = blobs[0][0, 0] if blobs[0].ndim == 4 and blobs[0].shape[:2] == (1, 1) else blobs[0]
    bias = blobs[1].flatten() if len(blobs) > 1 else torch.zeros(len(weight))
    return {f"{name}.conv.weight": weight, f"{name}.conv.bias": bias}


def _statistics(blobs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and variance of a BatchNorm, which stores sums over batches and the number of batches."""
    factor = 1 / blobs[2].item() if blobs[2].item() else 0.0
    return blobs[0].flatten() * factor, blobs[1].flatten() * factor


def _absorb(state: dict[str, Tensor], name: str, layer: CaffeLayer, blobs: list[Tensor]) -> None:
    """Fold a BatchNorm or a Scale into the preceding convolution, in place."""
    if layer.type == "BatchNorm":
        mean, variance = _statistics(blobs)
        scale = (variance + layer.parameters.get("eps", _EPS)).rsqrt()
        shift = -mean * scale
    else:
        scale, shift = blobs[0].flatten(), blobs[1].flatten() if len(blobs) > 1 else torch.zeros(1)
    weight, bias = f"{name}.conv.weight", f"{name}.conv.bias"
    if len(scale) != len(state[weight]) or shift.numel() not in (1, len(scale)):
        raise UserError(f"the norm after {name} has {len(scale)} channels, but {name} has {len(state[weight])}")
    state[weight] = state[weight] * scale.reshape(-1, *[1] * (state[weight].ndim - 1))
    state[bias] = state[bias] * scale + shift


def _has_fc(state: dict[str, Tensor], groups: dict[str, int]) -> bool:
    """Whether fc6 and fc7 apply to a single image of 227 px and are not all zeros.

    In BiGAN they are zeros; in context prediction fc6 applies to a 96 px patch, and fc7 to two patches.
    """
    outputs = 36 * len(state["conv5.conv.weight"])
    for name in _FC:
        weight = state.get(f"{name}.conv.weight")
        if weight is None or weight[0].numel() * groups[name] != outputs or not weight.any():
            return False
        outputs = len(weight)
    return True


def _fold_input(path: Path, state: dict[str, Tensor], input_layers: dict[str, list[Tensor]]) -> tuple[bool, float]:
    """Fold the input layers (y = w · x + b per channel), divided by their scale of L, into conv1, in place.

    Returns:
        Whether the input is Lab, and the scale of L.
    """
    weight, bias = "conv1.conv.weight", "conv1.conv.bias"
    ab_conv = input_layers.pop("conv1_ab", None)  # a separate conv1 for ab, whose output is added
    matrices = {name: _input_matrix(path, name, blobs) for name, blobs in input_layers.items()}
    scale = _lightness_scale(matrices)
    matrices = {name: matrix / scale for name, matrix in matrices.items()}
    if ab_conv is not None:
        ab_matrix = matrices.pop("data_ab", torch.eye(2) / scale)
        state[weight] = torch.cat((state[weight], torch.einsum("okhw,kc->ochw", ab_conv[0], ab_matrix)), 1)
        state[bias] = state[bias] + (ab_conv[1].flatten() if len(ab_conv) > 1 else 0)
    for name, matrix in matrices.items():
        channels = list(_INPUT_LAYERS[name])
        if max(channels) >= state[weight].shape[1]:
            raise UserError(f"{path}: {name} has more output channels than conv1 has input channels")
        folded = state[weight].clone()
        folded[:, channels] = torch.einsum("okhw,kc->ochw", state[weight][:, channels], matrix)
        state[weight] = folded
    return ab_conv is not None or any(name in ("data_lab", "data_ab") for name in input_layers), scale


def _lightness_scale(matrices: dict[str, Tensor]) -> float:
    """Return the factor of the input layers on L; 1 if they omit or invert L."""
    scales = (matrix[0, 0].item() for name, matrix in matrices.items() if 0 in _INPUT_LAYERS[name])
    scale = next(scales, 1.0)
    return scale if scale > 0 else 1.0


def _input_matrix(path: Path, name: str, blobs: list[Tensor]) -> Tensor:
    """Return the weights of an input layer as a matrix (output channels, input channels).

    Raises:
        UserError: the wrong number of channels, or biases that do not centre L on 50 and a, b on 0. Such a layer cannot
            be folded, since conv1 pads its output with zeros.
    """
    channels = _INPUT_LAYERS[name]
    weight = blobs[0].flatten(1) if blobs[0].ndim == 4 else blobs[0].reshape(-1, 1)
    matrix = weight if weight.shape[1] == len(channels) else torch.diag(weight.flatten())
    if matrix.shape[1] != len(channels):
        raise UserError(f"{path}: {name} has {matrix.shape[1]} input channels instead of {len(channels)}")
    bias = blobs[1].flatten() if len(blobs) > 1 else torch.zeros(len(matrix))
    centre = torch.tensor([50.0 if channel == 0 else 0.0 for channel in channels])
    if bias.shape != matrix.shape[:1] or not torch.allclose(bias, -matrix @ centre, rtol=1e-2, atol=1e-2):
        raise UserError(f"{path}: {name} does not centre L on 50 and a, b on 0, so it cannot be folded into conv1")
    return matrix


def _alexnet_spec(path: Path, layers: Sequence[CaffeLayer], state: dict[str, Tensor]) -> NetSpec:
    """Determine the AlexNet variant from the widths, the groups of conv2, the position of LRN and the ReLU slope."""
    types = [layer.type for layer in layers if layer.type in ("LRN", "Pooling")]
    lrn = "" if "LRN" not in types else "before-pool" if types[0] == "LRN" else "after-pool"
    slopes = {round(layer.parameters.get("slope", 0.0), 6) for layer in layers if layer.type == "ReLU"} or {0.0}
    widths = tuple(len(state[f"{name}.conv.weight"]) for name in _CONVS)
    groups = widths[0] / max(1, state["conv2.conv.weight"].shape[1])
    caffe_variants = {name: variant for name, variant in VARIANTS.items() if variant.ceil}
    matches = (
        name
        for name, v in caffe_variants.items()
        if (v.widths, v.groups, v.lrn, {v.slope}) == (widths, groups, lrn, slopes)
    )
    variant = next(matches, None)
    if variant is None:
        shape = f"{'-'.join(map(str, widths))}, {groups:g} groups in conv2, " + (f"LRN {lrn}" if lrn else "no LRN")
        shape += "" if slopes == {0.0} else f", ReLUs of slope {', '.join(f'{slope:g}' for slope in sorted(slopes))}"
        raise UserError(f"{path}: unsupported AlexNet ({shape}); supported variants: {', '.join(caffe_variants)}")
    fc, fc7 = (len(state.get(f"{name}.conv.weight", ())) for name in _FC)
    channels = state["conv1.conv.weight"].shape[1]
    return NetSpec(
        "alexnet", channels, norm=False, fc=fc, geometry="probe", variant=variant, fc7=0 if fc7 == fc else fc7
    )


def _expand_groups(state: dict[str, Tensor], groups: dict[str, int], net: AlexNet) -> None:
    """Make weights block-diagonal, in place, if they have more groups than our layer, as in some split-brain nets."""
    for name in (*_CONVS, *_FC):
        weight = state.get(f"{name}.conv.weight")
        if weight is None or weight.ndim != 4:
            continue
        conv = net.get_submodule(name).conv
        factor = groups[name] // conv.groups
        if factor > 1 and weight.shape[1] * factor == conv.weight.shape[1]:
            expanded = weight.new_zeros(conv.weight.shape)
            rows, columns = len(expanded) // groups[name], weight.shape[1]
            for group in range(groups[name]):
                block, start = slice(group * rows, (group + 1) * rows), group % factor * columns
                expanded[block, start : start + columns] = weight[block]
            state[f"{name}.conv.weight"] = expanded


def _is_split(state: dict[str, Tensor], groups: dict[str, int]) -> bool:
    """Whether a Lab net consists of independent halves for L and ab.

    This is the case if each filter of conv1 reads either L or ab, and all other layers have two groups.
    """
    weight = state["conv1.conv.weight"]
    half = len(weight) // 2
    is_conv1_split = weight.shape[1] == 3 and not weight[:half, 1:].any() and not weight[half:, :1].any()
    names = [name for name in (*_CONVS[1:], *_FC) if f"{name}.conv.weight" in state]
    return is_conv1_split and all(groups[name] == 2 for name in names)


def _check_strides(path: Path, layers: Sequence[CaffeLayer], net: AlexNet) -> None:
    """Raise a UserError if a stride or dilation in the file differs from that of our AlexNet.

    Padding may differ: the protocols evaluate all nets in the same geometry, whatever their padding in training.
    """
    for layer in layers:
        if layer.name in _CONVS and layer.parameters:
            conv = net.get_submodule(layer.name).conv
            for key, expected in (("stride", conv.stride[0]), ("dilation", conv.dilation[0])):
                value = layer.parameters.get(key, 1)
                if value != expected:
                    raise UserError(f"{path}: {layer.name} has {key} {value}; expected {expected}")


def _colornet(path: Path, layers: Sequence[CaffeLayer]) -> ImportedNet:
    """Build a released colorization net (v0, v1 or v2, with or without rebalancing).

    Its layers are conv1_1 (or bw_conv1_1) … conv8_3 and conv8_313, with BatchNorm as conv1_2norm etc. The ab
    bins and the sharpening factor of the logits are optional; the bins are checked, and the factor is read.
    """
    modules = {row.name: f"net.{row.name}" for row in colornet_rows()}
    normalised = [row.name for row in colornet_rows() if row.norm]
    head = {name: f"head.{name}" for name in ("conv8_1", "conv8_2", "conv8_3")} | {"conv8_313": "head.out"}
    state: dict[str, Tensor] = {}
    scale, sharpening = 1.0, _SHARPENING
    has_scale, norm = False, ""
    for layer in layers:
        name = layer.name.removeprefix("bw_")
        if not layer.blobs or name in _TARGET_LAYERS:
            continue
        blobs = _tensors(layer)
        block = name.removesuffix("norm")
        if name in modules or name in head:
            conv = head.get(name) or f"{modules[name]}.conv"
            state |= {f"{conv}.weight": blobs[0], f"{conv}.bias": blobs[1].flatten()}
            norm = ""
        elif layer.type == "BatchNorm" and block in normalised:
            norm = f"{modules[block]}.norm"
            mean, variance = _statistics(blobs)
            extra_eps = layer.parameters.get("eps", _EPS) - _EPS  # our layer adds _EPS
            state |= {f"{norm}.running_mean": mean, f"{norm}.running_var": (variance + extra_eps).clamp(min=0)}
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
            raise UserError(f"{path}: layer {layer.name} is not part of any supported colorization net")
    if not sharpening > 0:
        raise UserError(f"{path}: conv8_313_rh scales the logits by {sharpening:g}; the factor must be positive")
    spec = NetSpec("colornet", 1, affine=has_scale)
    net, task = create("colorization", ColorizationConfig(), spec)
    load_imported_state(net, state, str(path))
    if not scale > 0:
        raise UserError(f"{path}: the input layer scales L by {scale:g}; the factor must be positive")
    return ImportedNet(
        net.eval(),
        spec,
        InputSpec("grey", 256, 256, scale=scale),
        "caffe",
        task=task,
        decoder=BinDecoder(task.objective.quantizer, 1 / sharpening),
    )


def _check_bins(path: Path, name: str, weight: Tensor) -> None:
    """Raise a UserError unless the ab bins are the 313 published ones, in the same order."""
    grid = ab_bins().T
    if not weight.any():  # all zeros: placeholders that the release's script overwrites
        return
    if weight.numel() != grid.numel() or not torch.allclose(weight.reshape(grid.shape), grid.to(weight), atol=0.1):
        raise UserError(f"{path}: the ab bins in {name} differ from the 313 published ones")
