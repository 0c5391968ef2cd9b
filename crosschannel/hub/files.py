"""Our weights files: safetensors, with enough metadata to build the net again.

Metadata (all strings, JSON where it is structured): ``format`` ("crosschannel.backbone", "crosschannel.colorizer", or
"crosschannel.pretext" for the whole net of a task that colours nothing), ``schema``, ``net``, ``input``, ``layers``,
``provenance``; a whole net has ``task``, ``objective``, ``classes``, ``temperature`` and ``look`` besides.
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

LICENCE = "bsd-2-clause"  # of weights that were trained here from nothing
_OF_A_HEAD = ("task", "objective", "classes", "temperature", "look")
SCHEMA = 4  # 1: nets other than AlexNet said fc 4096 and had none; 2: only colorization; 3: no input scale
COLORIZER, PRETEXT = "colorizer.safetensors", "pretext.safetensors"  # a run's whole net, by whether its task colours


@dataclass(frozen=True)
class Metadata:
    """What a file of ours says of itself.

    Attributes:
        format: "crosschannel.backbone", "crosschannel.colorizer" or "crosschannel.pretext".
        schema: version of this list.
        net, input, layers, provenance: of the backbone.
        objective: keys of the task; None for a backbone.
        task: what was trained.
        classes: names by label, of a task that needs them.
        temperature: of the decode; None where it has none.
        look: of a colorizer.
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
    """Write a backbone as trained, BatchNorm included."""
    meta = Metadata("crosschannel.backbone", SCHEMA, spec, input, list(net.layers), provenance)
    _write(path, net.state_dict(), meta, write)


def save_pretext(
    path: Path,
    net: nn.Module,
    task: Pretext,
    spec: NetSpec,
    input: InputSpec,
    provenance: Provenance,
    look: ResizeSpec | None = None,
    write: Writer = atomic_write,
    decoder: Decoder | None = None,
) -> None:
    """Write the whole net of a task: a backbone with its head, and the decoder if it predicts colours."""
    kind = "crosschannel.colorizer" if task.decoder else "crosschannel.pretext"
    if decoder is None and task.decoder:
        decoder = build_decoder(task)
    temperature, tensors = (decoder.temperature, decoder.decoder_state()) if decoder else (None, {})
    task_fields = (task.config, task.name, list(task.classes), temperature, look or ResizeSpec())
    meta = Metadata(kind, SCHEMA, spec, input, list(net.net.layers), provenance, *task_fields)
    _write(path, {**net.state_dict(), **tensors}, meta, write)


def _write(path: Path, state: Mapping[str, Tensor], meta: Metadata, write: Writer) -> None:
    values = asdict(meta) | {"net": meta.net.to_dict()}
    described = {k: value for k, value in values.items() if meta.objective is not None or k not in _OF_A_HEAD}
    texts = {key: value if key == "format" else json.dumps(value) for key, value in described.items()}
    with write(path) as part:
        write_tensors(part, state, texts)


def write_tensors(file: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in place; safetensors' own ``save_file`` makes a temporary file, which a kill leaves."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    file.write_bytes(save(tensors, metadata))


def read_weights(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Tensors and metadata of one of our files.

    Raises:
        UserError: the file is missing, cut off, no safetensors, or not ours.
    """
    meta = read_metadata(path)
    with _whole(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check_shapes(meta.net, state, "net." if meta.objective is not None else "", path)
    return state, meta


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A safetensors file, open."""
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None


def read_metadata(path: Path) -> Metadata:
    """What one of our files says of itself.

    Raises:
        UserError: as for :func:`read_weights`.
    """
    with _whole(path) as file:
        texts = file.metadata() or {}
    if not texts.get("format", "").startswith("crosschannel."):
        raise UserError(f"{path} was not written by crosschannel: its metadata names no crosschannel format")
    what = f"the metadata of {path}"
    known = {key: text for key, text in texts.items() if key in {entry.name for entry in fields(Metadata)}}
    tree = {key: text if key == "format" else parse_json(text, f"{what}: {key}") for key, text in known.items()}
    if isinstance(tree.get("schema"), int) and tree["schema"] > SCHEMA:
        raise UserError(f"{path} was written by a newer crosschannel (schema {tree['schema']}); update it")
    meta = build_stored(Metadata, tree, what)
    if "details" not in tree["provenance"]:
        raise UserError(f"{what} is damaged: its provenance has no details")
    if (meta.format == "crosschannel.backbone") != (meta.objective is None):
        fault = "needs an objective" if meta.objective is None else "has no objective"
        raise UserError(f"{what} is damaged: a {meta.format} {fault}")
    if meta.objective is not None and meta.task in TASKS:  # code of others is imported by load_pretext alone
        meta = replace(meta, objective=build_stored(TASKS[meta.task].keys, meta.objective, f"{what}: objective"))
    row = family(meta.net.name)
    if meta.schema == 1 and not row.fc:
        meta = replace(meta, net=meta.net.replace(**row.supported_options(fc=0)))
    return meta


def _check_shapes(spec: NetSpec, state: dict[str, Tensor], prefix: str, path: Path) -> None:
    """The tensors are of the net that the metadata describes, before anything of its size is made."""
    if spec.name not in FAMILIES:
        return
    with torch.device("meta"):
        own = build_net(spec).state_dict()
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    _compare(own, {key: value for key, value in found.items() if key in own or not prefix}, str(path))


def is_crosschannel_file(path: Path) -> bool:
    """Whether a file's metadata says that this library has written it."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format", "").startswith("crosschannel.")
    except (SafetensorError, OSError, ValueError):
        return False


def is_ours(path: Path) -> bool:
    """Whether a file is to be read by :func:`read_weights`: safetensors whose metadata does not name another writer.

    A damaged file counts as ours, so that the reader says what is wrong with it.
    """
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = [f".{name}" for name in file.keys()]  # noqa: SIM118
            known = any(part in name for part in (".features.", "._feature_blocks.", ".model1.") for name in names)
    except (SafetensorError, OSError, ValueError):
        return True
    return ("format" in metadata and metadata["format"].startswith("crosschannel.")) or not known


def load_state(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """``load_state_dict`` that says in one sentence what does not fit, or cannot be weights."""
    own = module.state_dict()
    _compare(own, state, what)
    for name, tensor in state.items():
        if own[name].is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
            raise UserError(f"{what} has {name} as {tensor.dtype}, and the net as {own[name].dtype}")
        tensor = tensor.to(own[name].dtype)
        if not tensor.isfinite().all():
            raise UserError(f"{what} holds numbers that are not finite, in {name}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{what} holds a negative variance, in {name}")
    state = OrderedDict(state)
    state._metadata = getattr(own, "_metadata", None)  # module versions, which some torchvision modules read
    with torch.no_grad():
        module.load_state_dict(state)


def _compare(own: dict[str, Tensor], state: dict[str, Tensor], what: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for problem, keys in (("lacks", missing), ("has the unexpected", extra)):
        if keys:
            raise UserError(f"{what} {problem} {keys[0]} (and {len(keys) - 1} more); is it for another net?")
    for key in own:
        ours, theirs = tuple(own[key].shape), tuple(state[key].shape)
        if ours != theirs:
            raise UserError(f"{what} has the wrong shape for {key}: {theirs} where the net has {ours}")
