"""Import third-party weights: state dicts by name tables (``.pth``, ``.safetensors``), and caffemodels by layer."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from crosschannel.colorize.colorizer import ResizeSpec
from crosschannel.colorize.decoders import BinDecoder
from crosschannel.errors import UserError
from crosschannel.hub.caffe import read_caffemodel
from crosschannel.hub.caffe_nets import from_caffe
from crosschannel.hub.formats import FAMILIES, FORMATS, Format
from crosschannel.hub.imported import INPUT_KINDS, ImportedNet, load_imported_state
from crosschannel.hub.state_dicts import choose_net, has_net, read_state
from crosschannel.models import build_net, family
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

_AB_SCALE = 110.0  # nets of the PyTorch release map (L - 50) / 100 to ab / 110
_L_SCALE = 100.0
_RESIZE_SPEC = ResizeSpec("bicubic", squash=True, half_pixel=True)  # resizing in the PyTorch release


def import_weights(path: Path, name: str | None = None, input: str | None = None, key: str = "") -> ImportedNet:
    """Import the net of a weights file in any supported format.

    Args:
        path: a ``.pth``, ``.safetensors`` or ``.caffemodel`` file.
        name: format or family (alexnet, vgg16, colornet) of the file; default: detected from its tensor names.
        input: "grey", "lab" or "rgb"; default: RGB for three input channels, grey for one.
        key: see :func:`~crosschannel.hub.state_dicts.choose_net`.

    Raises:
        UserError: a missing or damaged file, an unknown format, or weights that do not match it; the message names a
            missing or unexpected tensor, or one of the wrong shape.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if name and name not in FORMATS and name not in FAMILIES and name != "caffe":
        known = ", ".join([*FAMILIES, *FORMATS, "caffe"])
        raise UserError(f"unknown format {name!r}; available: {known}")
    if path.suffix == ".caffemodel" or name == "caffe":
        if key:
            raise UserError(f"{path} is a caffemodel, which holds a single net; key applies to checkpoints only")
        layers = read_caffemodel(path)
        with _explain_shape_errors(path):
            imported = from_caffe(path, layers, input)
        if name in FAMILIES and name != imported.spec.name:
            raise UserError(f"{path} holds a net of the family {imported.spec.name}, not {name}")
        return imported
    tensors = read_state(path)
    format = _detect_format(path, tensors, name, key)
    net = choose_net(tensors, _required_names(FORMATS[format]), str(path), key)
    with _explain_shape_errors(path):
        return replace(import_state(net.tensors, format, str(path), input), prefix_note=net.note)


def _required_names(format: Format) -> list[str]:
    """Return the parameter names that a file of the format must contain, as written in the file."""
    return [
        f"{stored_name}.weight"
        for module, stored_name in format.names.items()
        if not module.startswith(format.optional)
    ]


@contextlib.contextmanager
def _explain_shape_errors(path: Path) -> Iterator[None]:
    """Report errors from tensors of inconsistent shapes as a UserError about the file."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} holds tensors of inconsistent shapes: {reason}") from error


def _detect_format(path: Path, tensors: Mapping[str, Tensor], name: str | None, key: str) -> str:
    """Return the largest format whose required names are all in the file."""
    candidates = FAMILIES.get(name, (name,)) if name else tuple(FORMATS)
    matches = [format for format in candidates if has_net(tensors, _required_names(FORMATS[format]), str(path), key)]
    if matches:
        return max(matches, key=lambda format: len(FORMATS[format].names))
    if name in FORMATS:
        return name  # loading reports the missing names
    examples = ", ".join(list(tensors)[:3])
    kind = f"any format of the family {name}" if name else "any known format"
    raise UserError(f"the names in {path} ({examples}, …) do not match {kind}; available formats: {', '.join(FORMATS)}")


def import_state(state: Mapping[str, Tensor], name: str, source: str, input: str | None = None) -> ImportedNet:
    """Import a state dict of a supported format.

    Args:
        state: tensors by their names in the file.
        name: name of the format, a key of ``FORMATS``.
        source: origin of the state dict, for messages.
        input: see :func:`import_weights`.

    Raises:
        UserError: weights that do not match the format; the message names a missing or unexpected tensor, or one of the
            wrong shape.
    """
    format = FORMATS[name]
    has_head = any(module.startswith("head.") for module in format.names)
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    stored_modules = {key.rpartition(".")[0] for key in state}
    has_optional = all(
        stored_name in stored_modules
        for module, stored_name in format.names.items()
        if module.startswith(format.optional)
    )
    for module, stored_name in format.names.items():
        if module.startswith(format.optional) and not has_optional:
            continue  # an incomplete set belongs to the head of another task
        for key in [key for key in state if key.rpartition(".")[0] == stored_name]:
            renamed[f"{module}.{key.rpartition('.')[2]}"] = state[key]
            used.add(key)
    first_weight = next((value for value in renamed.values() if value.ndim == 4), None)
    native = renamed.pop("native.weight", None)
    if first_weight is None or (has_head and native is None):
        missing = format.names["native"] if renamed else next(iter(format.names.values()))
        raise UserError(f"{source} lacks {missing}, which the format {name} requires")
    spec, spec_input = _net_and_input_spec(source, format, renamed, first_weight.shape[1], input)
    extra = [key for key in state if key not in used]
    unknown = [key for key in extra if not key.startswith(tuple(f"{prefix}." for prefix in format.ignored))]
    if unknown:
        raise UserError(
            f"{source} has {unknown[0]} (and {len(unknown) - 1} more), which the format {name} does not include"
        )
    net, task = create("colorization", ColorizationConfig(), spec) if has_head else (build_net(spec), None)
    decoder = None
    if task is not None:
        spec_input = replace(spec_input, scale=1 / _L_SCALE)
        if native.shape != (2, 313, 1, 1):
            raise UserError(f"{source}: {format.names['native']} has shape {tuple(native.shape)}, not (2, 313, 1, 1)")
        decoder = BinDecoder(task.objective.quantizer, native=native[:, :, 0, 0] * _AB_SCALE)
    load_imported_state(net, renamed, source)
    left_out = sorted({key.rpartition(".")[0] for key in extra})
    return ImportedNet(
        net.eval(), spec, spec_input, name, left_out, task, _RESIZE_SPEC if task else ResizeSpec(), decoder=decoder
    )


def _net_and_input_spec(source: str, format: Format, state: dict[str, Tensor], channels: int, input: str | None):
    """Derive the specs of the net and its input from the shapes of the tensors."""
    kind = input or INPUT_KINDS.get(channels)
    if kind is None or replace(format.input, kind=kind).channels != channels:
        raise UserError(
            f"{source}: the first convolution has {channels} input channels, which does not match input {kind!r}"
        )
    fc = len(state["fc6.conv.weight"]) if "fc6.conv.weight" in state else 0
    options = family(format.net.name).supported_options(fc=fc)
    return format.net.replace(channels, **options), replace(format.input, kind=kind)
