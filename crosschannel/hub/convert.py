"""Other people's weight files → our nets: ``.pth`` and ``.safetensors`` state dicts by table, caffemodels by layer."""

import contextlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.files import Writer, written_whole
from crosschannel.hub.caffe import CaffeLayer, read_caffemodel
from crosschannel.hub.files import load_state, save_backbone, save_colorizer
from crosschannel.hub.formats import FAMILIES, FORMATS, Format
from crosschannel.models import AlexNet, InputSpec, NetSpec, PretextNet, build_net, build_pretext
from crosschannel.models.alexnet import VARIANTS
from crosschannel.models.backbone import Provenance
from crosschannel.objectives import ObjectiveConfig

WEIGHTS = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".caffemodel")
_KINDS = {1: "grey", 2: "sobel", 3: "rgb"}  # by the first convolution's channels
_AB_SCALE = 110.0  # of the release's Python nets: (L - 50) / 100 in, ab / 110 out
_L_SCALE = 100.0
_CAFFE_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
_CAFFE_EPS = 1e-5
CAFFE_MEAN = (122.679, 116.669, 104.007)  # of ImageNet in 0..255, RGB: what Caffe's reference nets subtract


@dataclass
class Imported:
    """A net in our module, from somebody's file.

    Attributes:
        net: a backbone net, or a PretextNet where the file holds a colorization head.
        spec, input: its description.
        format: what the file was taken for.
        left_out: names in the file that a backbone has no place for.
        native: (2, 313) ab of every bin as the net's own decode has them; None for backbones.
    """

    net: nn.Module
    spec: NetSpec
    input: InputSpec
    format: str
    left_out: list[str] = field(default_factory=list)
    native: Tensor | None = None

    def backbone(self) -> nn.Module:
        return self.net.net if isinstance(self.net, PretextNet) else self.net

    def save(self, path: Path, provenance: Provenance, write: Writer = written_whole) -> None:
        """Write one of our files: a colorizer where there is a head, else a backbone."""
        described = (path, self.net, self.spec, self.input)
        if isinstance(self.net, PretextNet):
            save_colorizer(*described, ObjectiveConfig(), provenance, native=self.native, write=write)
        else:
            save_backbone(*described, provenance, write)


def import_weights(path: Path, name: str | None = None, input: str | None = None) -> Imported:
    """Read a file of any format that we know.

    Args:
        path: a ``.pth``, ``.safetensors`` or ``.caffemodel`` file.
        name: a format or a family (alexnet, vgg16, colornet); default by its keys.
        input: "grey", "lab" or "rgb", where the channels leave it open; default RGB for three, grey for one.

    Raises:
        UserError: no such file or format, a damaged file, or weights that do not fit; the message says what is
            missing, extra or of another shape.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if name and name not in FORMATS and name not in FAMILIES and name != "caffe":
        known = ", ".join([*FAMILIES, *FORMATS, "caffe"])
        raise UserError(f"no format {name!r}: there are {known}")
    if path.suffix == ".caffemodel" or name == "caffe":
        layers = read_caffemodel(path)
        with _of_the_right_shapes(path):
            return _from_caffe(path, layers, input)
    state = read_state(path)
    with _of_the_right_shapes(path):
        return import_state(state, _detect(path, state, name), str(path), input)


@contextlib.contextmanager
def _of_the_right_shapes(path: Path) -> Iterator[None]:
    """What tensors of any shape can lead to is a fault of the file, in one sentence."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} holds tensors that do not fit together: {reason}") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a ``.safetensors`` file or of a ``.pth``, of which nothing but tensors is unpickled.

    Wrappers (``state_dict``, ``model``, ``network``) and the prefix ``module.`` are taken off.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":
            raise UserError(f"{path} is not a weights file but a web page: the download did not work")
    if _is_bomb(path):
        raise UserError(f"{path} is not a weights file: unpacked it would be larger than it says")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on bytes they cannot read
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors, and nothing else is unpickled"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a weights file: {reason}") from None
    for wrapper in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {
        key.removeprefix("module.").replace(".module.", "."): value
        for key, value in items
        if isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)
    }
    if len(tensors) < sum(isinstance(v, Tensor) and isinstance(k, str) and _is_plain(v) for k, v in items):
        raise UserError(f"{path} holds two tensors of one name, with and without 'module.'")
    if not tensors:
        raise UserError(f"{path} holds no named tensors")
    return tensors


def _is_bomb(path: Path) -> bool:
    """Whether a zip file has compressed members: torch stores tensors as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False  # not a zip file, or one that torch will not read either


def _is_plain(tensor: Tensor) -> bool:
    """Real numbers that are all in the file: not sparse, quantised, complex, without data, or repeated by strides."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _detect(path: Path, state: Mapping[str, Tensor], name: str | None) -> str:
    """The format with the most names in the file, among those whose convolutions and norms are all there."""

    def fits(format: Format) -> bool:
        needed = (theirs for ours, theirs in format.names.items() if not ours.startswith(format.optional))
        return all(f"{theirs}.weight" in state for theirs in needed)

    wanted = FAMILIES.get(name, (name,)) if name else tuple(FORMATS)
    found = [key for key in wanted if fits(FORMATS[key])]
    if found:
        return max(found, key=lambda key: len(FORMATS[key].names))
    if name in FORMATS:
        return name  # loading it will say what is missing
    some = ", ".join(list(state)[:3])
    kind = f"of the family {name}" if name else "that is known"
    raise UserError(f"{path} has no naming {kind} (it has {some}, …); known are {', '.join(FORMATS)}")


def import_state(state: Mapping[str, Tensor], name: str, source: str, input: str | None = None) -> Imported:
    """A state dict of a format that we know.

    Args:
        state: tensors by their authors' names.
        name: a key of ``FORMATS``.
        source: where it comes from, for messages.
        input: as for :func:`import_weights`.

    Raises:
        UserError: weights that do not fit; the message says what is missing, extra or of another shape.
    """
    format = FORMATS[name]
    head = any(ours.startswith("head.") for ours in format.names)
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    modules = {key.rpartition(".")[0] for key in state}
    whole = all(theirs in modules for own, theirs in format.names.items() if own.startswith(format.optional))
    for own, theirs in format.names.items():
        if own.startswith(format.optional) and not whole:
            continue  # the head of another task
        for key in [key for key in state if key.rpartition(".")[0] == theirs]:
            ours[f"{own}.{key.rpartition('.')[2]}"] = state[key]
            used.add(key)
    first = next((value for value in ours.values() if value.ndim == 4), None)
    native = ours.pop("native.weight", None)
    if first is None or (head and native is None):
        lacking = format.names["native"] if ours else next(iter(format.names.values()))
        raise UserError(f"{source} lacks {lacking} of {name}")
    spec, spec_input = _describe(source, format, ours, first.shape[1], input)
    extra = [key for key in state if key not in used]
    unknown = [key for key in extra if not key.startswith(tuple(f"{prefix}." for prefix in format.left_out))]
    if unknown:
        raise UserError(f"{source} has {unknown[0]} (and {len(unknown) - 1} more), which {name} has no place for")
    net = build_pretext(spec, 313) if head else build_net(spec)
    if head:
        key = next(iter(net.state_dict()))
        ours[key] = ours[key] / _L_SCALE
        if native.shape != (2, 313, 1, 1):
            raise UserError(f"{source}: {format.names['native']} is of shape {tuple(native.shape)}, not (2, 313, 1, 1)")
        native = native[:, :, 0, 0] * _AB_SCALE
    _load(net, ours, source)
    return Imported(net.eval(), spec, spec_input, name, sorted({key.rpartition(".")[0] for key in extra}), native)


def _describe(source: str, format: Format, ours: dict[str, Tensor], channels: int, input: str | None):
    """The net's and its input's description, as the tensors have it."""
    kind = input or _KINDS.get(channels)
    if kind is None or replace(format.input, kind=kind).channels != channels:
        raise UserError(
            f"{source}: its first convolution takes {channels} channels, which input {kind!r} does not have"
        )
    fc = len(ours["fc6.conv.weight"]) if "fc6.conv.weight" in ours else 0
    return replace(format.net, in_channels=channels, fc=fc), replace(format.input, kind=kind)


def _load(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state whose fully connected layers may be matrices and whose norms may not count batches."""
    own = net.state_dict()
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(tensor))
        elif key.startswith(("fc6.", "fc7.")) and key in state and state[key].numel() == tensor.numel():
            state[key] = state[key].reshape(tensor.shape)
    load_state(net, state, what)


def _from_caffe(path: Path, layers: list[CaffeLayer], input: str | None) -> Imported:
    """An AlexNet of Caffe's: conv1 … conv5, fc6, fc7 by name, LRN by its place, BatchNorm and Scale absorbed."""
    state: dict[str, Tensor] = {}
    left_out, owner, between = [], "", ""
    for layer in layers:
        if layer.type in ("ReLU", "Pooling", "LRN"):
            between = layer.type
        blobs = [torch.from_numpy(blob.copy()) for blob in layer.blobs]
        if layer.type in ("Convolution", "InnerProduct"):
            owner = layer.name if layer.name in _CAFFE_LAYERS else ""
            between = ""
            if owner and blobs:
                state |= _caffe_convolution(owner, blobs)
                continue
        elif owner and between and layer.type in ("BatchNorm", "Scale") and blobs:
            raise UserError(
                f"{path}: {layer.name} normalises after {between}; only what follows {owner} can be absorbed"
            )
        elif owner and layer.type == "BatchNorm" and len(blobs) == 3:
            factor = 1 / blobs[2].item() if blobs[2].item() else 0.0  # the first two are sums over so many batches
            mean, scale = blobs[0].flatten() * factor, (blobs[1].flatten() * factor + _CAFFE_EPS).rsqrt()
            _absorb(state, owner, scale, -mean * scale)
            continue
        elif owner and layer.type == "Scale" and blobs:
            _absorb(state, owner, blobs[0].flatten(), blobs[1].flatten() if len(blobs) > 1 else torch.zeros(1))
            continue
        if blobs:
            left_out.append(layer.name)
    lacking = [name for name in _CAFFE_LAYERS[:5] if f"{name}.conv.weight" not in state]
    if lacking:
        raise UserError(f"{path} is not an AlexNet: no convolution of it is called {lacking[0]}")
    spec = _caffe_spec(path, layers, state)
    kind = input or _KINDS.get(spec.in_channels)
    if kind not in ("grey", "lab", "rgb") or InputSpec(kind).channels != spec.in_channels:
        raise UserError(f"{path}: its conv1 takes {spec.in_channels} channels, which input {kind!r} does not have")
    if kind == "rgb":  # Caffe's channels are BGR
        state["conv1.conv.weight"] = state["conv1.conv.weight"].flip(1)
    net = build_net(spec)
    _load(net, state, str(path))
    _check_strides(path, layers, net)
    mean, std = tuple(value / 255 for value in CAFFE_MEAN), (1 / 255,) * 3
    size = 224 if VARIANTS[spec.variant].pad else 227
    return Imported(net.eval(), spec, InputSpec(kind, size, 256, mean=mean, std=std), "caffe", left_out)


def _check_strides(path: Path, layers: list[CaffeLayer], net: AlexNet) -> None:
    """Strides that a file states are those of the net that its weights are put into. (Padding may differ: the protocols
    put nets that were trained with any padding into one geometry.)"""
    for layer in layers:
        if layer.name in _CAFFE_LAYERS[:5] and layer.parameters:
            conv = net.get_submodule(layer.name).conv
            for key, ours in (("stride", conv.stride[0]), ("dilation", conv.dilation[0])):
                theirs = layer.parameters.get(key, 1)
                if theirs != ours:
                    raise UserError(f"{path}: {layer.name} has {key} {theirs}, and our AlexNet has {ours} there")


def _caffe_convolution(name: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    """Weight and bias; old files write matrices and vectors with leading ones."""
    weight = blobs[0][0, 0] if blobs[0].ndim == 4 and blobs[0].shape[:2] == (1, 1) else blobs[0]
    bias = blobs[1].flatten() if len(blobs) > 1 else torch.zeros(len(weight))
    return {f"{name}.conv.weight": weight, f"{name}.conv.bias": bias}


def _absorb(state: dict[str, Tensor], name: str, scale: Tensor, shift: Tensor) -> None:
    """Fold scale · x + shift into the convolution before it."""
    weight, bias = f"{name}.conv.weight", f"{name}.conv.bias"
    if len(scale) != len(state[weight]) or shift.numel() not in (1, len(scale)):
        raise UserError(f"the norm after {name} has {len(scale)} channels where {name} has {len(state[weight])}")
    state[weight] = state[weight] * scale.reshape(-1, *[1] * (state[weight].ndim - 1))
    state[bias] = state[bias] * scale + shift


def _caffe_spec(path: Path, layers: list[CaffeLayer], state: dict[str, Tensor]) -> NetSpec:
    """Which AlexNet it is: by its widths, the groups of conv2 and the place of LRN."""
    kinds = [layer.type for layer in layers if layer.type in ("LRN", "Pooling")]
    lrn = "" if "LRN" not in kinds else "before-pool" if kinds[0] == "LRN" else "after-pool"
    widths = tuple(len(state[f"{name}.conv.weight"]) for name in _CAFFE_LAYERS[:5])
    groups = widths[0] / max(1, state["conv2.conv.weight"].shape[1])
    known = {name: variant for name, variant in VARIANTS.items() if variant.ceil}
    fits = (name for name, v in known.items() if (v.widths, v.groups, v.lrn) == (widths, groups, lrn))
    variant = next(fits, None)
    if variant is None:
        shape = f"{'-'.join(map(str, widths))}, conv2 in {groups:g} groups, " + (f"LRN {lrn}" if lrn else "no LRN")
        raise UserError(f"{path}: no AlexNet here is {shape}; there are {', '.join(known)}")
    fc = len(state["fc6.conv.weight"]) if "fc6.conv.weight" in state else 0
    channels = state["conv1.conv.weight"].shape[1]
    return NetSpec("alexnet", channels, norm=False, fc=fc, geometry="probe", variant=variant)
