"""Read and write this library's weights files: safetensors with the metadata needed to rebuild the net.

Every file has the metadata ``format`` ("crosschannel.backbone"; "crosschannel.colorizer" for a net with a colorization
head; "crosschannel.pretext" for a net with any other head), ``schema``, ``net``, ``input``, ``layers`` and
``provenance``. Files of nets with a head also have ``task``, ``objective``, ``classes``, ``temperature`` and ``look``.
All values but ``format`` are JSON.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from crosschannel.colorize.colorizer import ResizeSpec
from crosschannel.colorize.decoders import Decoder, build_decoder
from crosschannel.config.load import build_stored
from crosschannel.config.types import Count, Positive
from crosschannel.errors import UserError
from crosschannel.files import Writer, atomic_write
from crosschannel.models.backbone import Provenance
from crosschannel.models.input_spec import InputSpec
from crosschannel.models.nets import FAMILIES, NetSpec, build_net, family
from crosschannel.pretext import TASKS
from crosschannel.pretext.task import Pretext
from crosschannel.stored import parse_json

LICENCE = "bsd-2-clause"  # licence of weights that this library trained from scratch
_HEAD_KEYS = ("task", "objective", "classes", "temperature", "look")
SCHEMA = 4  # earlier: 1 has fc 4096 for nets without fc6; 2 has only colorization; 3 has no input scale
COLORIZER, PRETEXT = "colorizer.safetensors", "pretext.safetensors"  # net with a colorization head or another head


@dataclass(frozen=True)
class Metadata:
    """Metadata of a weights file.

    Attributes:
        format: "crosschannel.backbone", "crosschannel.colorizer" or "crosschannel.pretext".
        schema: version of the metadata.
        net: spec of the net.
        input: input specification of the net.
        layers: layer names of the backbone.
        provenance: source and details of the weights.
        objective: config of the task; None for a backbone.
        task: name of the pretext task.
        classes: class names by label, for tasks that need them.
        temperature: temperature of the decoder; None if it has none.
        look: resizing of pictures before the net, for colorizers.
    """

    format: str
    schema: Count
    net: NetSpec
    input: InputSpec
    layers: list[str]
    provenance: Provenance
    objective: Any = None
    task: str = "colorization"
    classes: list[str] = field(default_factory=list)
    temperature: Positive | None = 0.38
    look: ResizeSpec = field(default_factory=ResizeSpec)


def save_backbone(
    path: Path, net: nn.Module, spec: NetSpec, input: InputSpec, provenance: Provenance, write: Writer = atomic_write
) -> None:
    """Write a backbone as trained, including its BatchNorm layers.

    Args:
        path: output file.
        net: net of the backbone.
        spec: spec of the net.
        input: input specification of the net.
        provenance: source and details of the weights.
        write: opens the output file.
    """
    meta = Metadata("crosschannel.backbone", SCHEMA, spec, input, list(net.layers), provenance)
    _write(path, net.state_dict(), meta, write)


def save_pretext(
    path: Path,
    net: nn.Module,
    task: Pretext,
    spec: NetSpec,
    input: InputSpec,
    provenance: Provenance,
    resize_spec: ResizeSpec | None = None,
    write: Writer = atomic_write,
    decoder: Decoder | None = None,
) -> None:
    """Write the net of a pretext task: the backbone, its head and, for tasks that predict colours, the decoder.

    Args:
        path: output file.
        net: net with backbone and head.
        task: pretext task.
        spec: spec of the backbone.
        input: input specification of the backbone.
        provenance: source and details of the weights.
        resize_spec: resizing of pictures before the net.
        write: opens the output file.
        decoder: decoder of a colorization task; default: the task's own.
    """
    format = "crosschannel.colorizer" if task.decoder else "crosschannel.pretext"
    if decoder is None and task.decoder:
        decoder = build_decoder(task)
    temperature, tensors = (decoder.temperature, decoder.decoder_state()) if decoder else (None, {})
    task_fields = (task.config, task.name, list(task.classes), temperature, resize_spec or ResizeSpec())
    meta = Metadata(format, SCHEMA, spec, input, list(net.net.layers), provenance, *task_fields)
    _write(path, {**net.state_dict(), **tensors}, meta, write)


def _write(path: Path, state: Mapping[str, Tensor], meta: Metadata, write: Writer) -> None:
    values = asdict(meta) | {"net": meta.net.to_dict()}
    values = {key: value for key, value in values.items() if meta.objective is not None or key not in _HEAD_KEYS}
    metadata = {key: value if key == "format" else json.dumps(value) for key, value in values.items()}
    with write(path) as partial_file:
        write_tensors(partial_file, state, metadata)


def write_tensors(file: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file directly, since a killed ``safetensors.torch.save_file`` leaves a temporary file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    file.write_bytes(save(tensors, metadata))


def read_weights(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Read the tensors and metadata of one of this library's files.

    Raises:
        UserError: the file is missing, truncated, not in safetensors format, or not written by this library.
    """
    meta = read_metadata(path)
    with _open_safetensors(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check_shapes(meta.net, state, "net." if meta.objective is not None else "", path)
    return state, meta


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of one of this library's files.

    Raises:
        UserError: see :func:`read_weights`.
    """
    with _open_safetensors(path) as file:
        metadata = file.metadata() or {}
    if not metadata.get("format", "").startswith("crosschannel."):
        raise UserError(f"{path} was not written by crosschannel: its metadata lacks a crosschannel format")
    origin = f"the metadata of {path}"
    known = {key: text for key, text in metadata.items() if key in {entry.name for entry in fields(Metadata)}}
    tree = {key: text if key == "format" else parse_json(text, f"{origin}: {key}") for key, text in known.items()}
    if isinstance(tree.get("schema"), int) and tree["schema"] > SCHEMA:
        raise UserError(f"{path} was written by a newer crosschannel (schema {tree['schema']}); update crosschannel")
    meta = build_stored(Metadata, tree, origin)
    if "details" not in tree["provenance"]:
        raise UserError(f"{origin} is damaged: provenance lacks details")
    if (meta.format == "crosschannel.backbone") != (meta.objective is None):
        fault = "lacks an objective" if meta.objective is None else "cannot have an objective"
        raise UserError(f"{origin} is damaged: a {meta.format} file {fault}")
    if meta.objective is not None and meta.task in TASKS:  # user-defined tasks: only load_pretext imports their code
        meta = replace(meta, objective=build_stored(TASKS[meta.task].keys, meta.objective, f"{origin}: objective"))
    net_family = family(meta.net.name)
    if meta.schema == 1 and not net_family.fc:
        meta = replace(meta, net=meta.net.replace(**net_family.supported_options(fc=0)))
    return meta


def _check_shapes(spec: NetSpec, state: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Raise a UserError unless the tensors match the net in the metadata, before memory for it is allocated."""
    if spec.name not in FAMILIES:
        return
    with torch.device("meta"):
        expected = build_net(spec).state_dict()
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    _compare(expected, {key: value for key, value in tensors.items() if key in expected or not prefix}, str(path))


def is_crosschannel_file(path: Path) -> bool:
    """Whether a file is in one of this library's formats, according to its metadata."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format", "").startswith("crosschannel.")
    except (SafetensorError, OSError, ValueError):
        return False


def is_own_format(path: Path) -> bool:
    """Whether :func:`read_weights` should read a file.

    It should read safetensors files of this library and those whose tensor names match no third-party format, even if
    they are damaged, so that :func:`read_weights` reports the damage.
    """
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = [f".{name}" for name in file.keys()]  # noqa: SIM118
            is_third_party = any(
                key in name for key in (".features.", "._feature_blocks.", ".model1.") for name in names
            )
    except (SafetensorError, OSError, ValueError):
        return True
    return ("format" in metadata and metadata["format"].startswith("crosschannel.")) or not is_third_party


def load_state(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a state dict into a module after checking names, shapes, dtypes and values.

    Args:
        module: module to load into, in place.
        state: tensors by name.
        origin: file or source of the state dict, for messages.

    Raises:
        UserError: a missing or unexpected tensor, or one of the wrong shape or dtype; a value that is not finite; a
            negative variance.
    """
    expected = module.state_dict()
    _compare(expected, state, origin)
    for name, tensor in state.items():
        if expected[name].is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
            raise UserError(
                f"{origin} has the wrong dtype for {name}: {tensor.dtype}, but the net has {expected[name].dtype}"
            )
        tensor = tensor.to(expected[name].dtype)
        if not tensor.isfinite().all():
            raise UserError(f"{origin} has values that are not finite in {name}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{origin} has a negative variance in {name}")
    state = OrderedDict(state)
    state._metadata = getattr(expected, "_metadata", None)  # module versions, which some torchvision modules read
    with torch.no_grad():
        module.load_state_dict(state)


def _compare(expected: dict[str, Tensor], state: dict[str, Tensor], origin: str) -> None:
    """Raise a UserError unless the names and shapes of a state dict match."""
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    for problem, keys in (("lacks", missing), ("has the unexpected tensor", unexpected)):
        if keys:
            raise UserError(f"{origin} {problem} {keys[0]} (and {len(keys) - 1} more); is it for another net?")
    for key in expected:
        shape, stored_shape = tuple(expected[key].shape), tuple(state[key].shape)
        if shape != stored_shape:
            raise UserError(f"{origin} has the wrong shape for {key}: {stored_shape}, but the net has {shape}")
