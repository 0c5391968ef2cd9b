"""Other people's weight files → our nets: ``.pth`` and ``.safetensors`` state dicts by table, caffemodels by layer."""

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
from crosschannel.hub.imported import KINDS, Imported, load_imported_state
from crosschannel.hub.state_dicts import choose_net, has_net, read_state
from crosschannel.models import build_net, family
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

_AB_SCALE = 110.0  # of the release's Python nets: (L - 50) / 100 in, ab / 110 out
_L_SCALE = 100.0
_LOOK = ResizeSpec("bicubic", squash=True, half_pixel=True)  # of the release's Python code


def import_weights(path: Path, name: str | None = None, input: str | None = None, key: str = "") -> Imported:
    """Read a file of any format that we know.

    Args:
        path: a ``.pth``, ``.safetensors`` or ``.caffemodel`` file.
        name: a format or a family (alexnet, vgg16, colornet); default by its keys.
        input: "grey", "lab" or "rgb", where the channels leave it open; default RGB for three, grey for one.
        key: see :func:`~crosschannel.hub.state_dicts.choose_net`.

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
        if key:
            raise UserError(f"{path} is a caffemodel and holds one net; key is for checkpoints")
        layers = read_caffemodel(path)
        with _of_the_right_shapes(path):
            found = from_caffe(path, layers, input)
        if name in FAMILIES and name != found.spec.name:
            raise UserError(f"{path} holds an {found.spec.name}, not a {name}")
        return found
    tensors = read_state(path)
    format = _detect(path, tensors, name, key)
    net = choose_net(tensors, _needed(FORMATS[format]), str(path), key)
    with _of_the_right_shapes(path):
        return replace(import_state(net.tensors, format, str(path), input), prefix_note=net.note)


def _needed(format: Format) -> list[str]:
    """Parameter names that a file of the format must contain, as written in the file."""
    return [f"{theirs}.weight" for ours, theirs in format.names.items() if not ours.startswith(format.optional)]


@contextlib.contextmanager
def _of_the_right_shapes(path: Path) -> Iterator[None]:
    """What tensors of any shape can lead to is a fault of the file, in one sentence."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} holds tensors that do not fit together: {reason}") from error


def _detect(path: Path, tensors: Mapping[str, Tensor], name: str | None, key: str) -> str:
    """The format with the most names in the file, among those whose convolutions and norms are all there."""
    wanted = FAMILIES.get(name, (name,)) if name else tuple(FORMATS)
    fitting = [candidate for candidate in wanted if has_net(tensors, _needed(FORMATS[candidate]), str(path), key)]
    if fitting:
        return max(fitting, key=lambda candidate: len(FORMATS[candidate].names))
    if name in FORMATS:
        return name  # loading it will say what is missing
    some = ", ".join(list(tensors)[:3])
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
    net, task = create("colorization", ColorizationConfig(), spec) if head else (build_net(spec), None)
    decoder = None
    if task is not None:
        spec_input = replace(spec_input, scale=1 / _L_SCALE)
        if native.shape != (2, 313, 1, 1):
            raise UserError(f"{source}: {format.names['native']} is of shape {tuple(native.shape)}, not (2, 313, 1, 1)")
        decoder = BinDecoder(task.objective.quantizer, native=native[:, :, 0, 0] * _AB_SCALE)
    load_imported_state(net, ours, source)
    left_out = sorted({key.rpartition(".")[0] for key in extra})
    return Imported(
        net.eval(), spec, spec_input, name, left_out, task, _LOOK if task else ResizeSpec(), decoder=decoder
    )


def _describe(source: str, format: Format, ours: dict[str, Tensor], channels: int, input: str | None):
    """The net's and its input's description, as the tensors have it."""
    kind = input or KINDS.get(channels)
    if kind is None or replace(format.input, kind=kind).channels != channels:
        raise UserError(
            f"{source}: its first convolution takes {channels} channels, which input {kind!r} does not have"
        )
    fc = len(ours["fc6.conv.weight"]) if "fc6.conv.weight" in ours else 0
    options = family(format.net.name).supported_options(fc=fc)
    return format.net.replace(channels, **options), replace(format.input, kind=kind)
