"""Sources that are files: ours, somebody else's, published ones that are fetched first."""

import contextlib
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from crosschannel.config.keys import flatten
from crosschannel.errors import UserError
from crosschannel.factories import is_factory
from crosschannel.files import user_path
from crosschannel.hub import zoo
from crosschannel.hub.convert import import_weights
from crosschannel.hub.files import Metadata, is_ours, load_state, read_weights
from crosschannel.hub.huggingface import fetch_repository
from crosschannel.hub.sources import WEIGHTS, Source
from crosschannel.models import FAMILIES, InputSpec, NetSpec, build_net, family, widen_to_lab
from crosschannel.models.backbone import Provenance
from crosschannel.runs.result import missing_file
from crosschannel.stored import read_yaml

Loaded = tuple[nn.Module, InputSpec, Provenance]


def weights_path(source: Source, name: str) -> Path:
    path = user_path(source.name)
    if path.is_dir():
        if not (path / name).is_file():
            if source.text.startswith("hf-hub:"):
                hint = "only crosschannel nets load from hf-hub:; load timm's as timm:NAME"
                raise UserError(f"{source.text} has no {name}: {hint}")
            raise UserError(missing_file(path, name))
        return path / name
    if not path.exists():
        raise UserError(f"no source {source.text!r}: neither a file or run folder nor a known kind{_hint(source.name)}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    if path.suffix not in WEIGHTS:
        raise UserError(f"{path} is not a run folder or a weights file ({', '.join(WEIGHTS)})")
    return path


def _hint(name: str) -> str:
    """What a name that is no source was likely to mean."""
    import torchvision

    if name in FAMILIES:
        return f"; did you mean random:{name}?"
    with contextlib.suppress(ImportError):
        import timm

        if timm.is_model(name.partition(".")[0]):
            return f"; did you mean timm:{name}?"
    return f"; did you mean torchvision:{name}?" if name in torchvision.models.list_models() else ""


def fetch_weights(source: Source) -> Source:
    """Weights that are somewhere else as a path on this machine."""
    if source.kind == "zoo":
        path = zoo.fetch(source.name)
        return replace(source, kind="path", name=str(path), licence=zoo.ZOO[source.name].licence)
    if source.kind == "hf-hub":
        return replace(source, kind="path", name=str(fetch_repository(source.name)))
    return source


def read_ours(path: Path, source: Source) -> tuple[dict[str, Tensor], Metadata]:
    """Tensors and metadata of one of our files.

    Weights are data: a net of the user's own is made for the file of a run whose config names its factory, and for
    none that was fetched.

    Raises:
        UserError: another file of such a net; see :func:`~crosschannel.hub.files.read_weights`.
    """
    state, meta = read_weights(path)
    check_code(path, source, meta.net.name, "model.name")
    return state, meta


def check_code(path: Path, source: Source, name: str, key: str) -> None:
    """Refuse to import user code that a weights file names, unless it is in a run folder whose config names it too.

    Args:
        path: the weights.
        source: their source.
        name: of a net or a task; built-in ones pass.
        key: the key of the config.

    Raises:
        UserError: the file was fetched, or no config beside it has that name.
    """
    if not is_factory(name):
        return
    config = path.parent / "config.yaml"
    named = flatten(read_yaml(config)).get(key) if config.is_file() else None
    if source.text.startswith(("hf-hub:", "zoo:")) or named != name:
        whose = "code of somebody's that is called only for the run folder of a pretraining here"
        raise UserError(f"{source.text} is a net of {name}, {whose}")


def load_path(source: Source, _data: object) -> Loaded:
    path = weights_path(source, "backbone.safetensors")
    if not is_ours(path):
        return _load_imported(path, source)
    if "key" in source.options:
        raise UserError(f"{source.text!r}: {path.name} is a crosschannel file with one net; key is for checkpoints")
    state, meta = read_ours(path, source)
    if meta.objective is not None:
        state = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}
    spec, input = apply_source_options(source, meta.net, meta.input)
    net = build_net(spec, input.size)
    load_state(net, state, source.name)
    if source.options.get("input", input.kind) != input.kind:
        source.choice("input", ("grey", "lab") if input.kind == "grey" else (input.kind,), input.kind)
        net, input = widen_to_lab(net), replace(input, kind="lab")
    return net, input, Provenance(source.text, meta.provenance.details)


def _load_imported(path: Path, source: Source) -> Loaded:
    """Somebody else's file; ``input=lab`` says what three channels of a caffemodel are."""
    kind = source.options.get("input") and source.choice("input", ("grey", "lab", "rgb"), "rgb")
    found = import_weights(path, input=kind, key=source.options.get("key", ""))
    spec, input = apply_source_options(source, found.spec, found.input)
    net = found.backbone()
    if family(spec.name).has_option("geometry"):
        net.set_geometry(spec.options.geometry)
    details = {"format": found.format, "file": path.name, "preprocessing": f"the format {found.format}"}
    details |= {"checkpoint": found.note} if found.note else {}
    details |= {"licence": source.licence} if source.licence else {}
    return net, input, Provenance(source.text, details)


def apply_source_options(source: Source, spec: NetSpec, input: InputSpec) -> tuple[NetSpec, InputSpec]:
    """Geometry and input as the source asks for them.

    Else an AlexNet with fc6 is the net of the transfer protocols, at 227 px whatever it was pretrained on; a trunk
    stays as it was trained.
    """
    options = spec.options
    geometry = source.choice("geometry", ("probe", "padded"), "probe" if options.fc else options.geometry)
    row = family(spec.name)
    if row.has_option("geometry"):
        spec = spec.replace(geometry=geometry)
        if options.fc and options.geometry == "padded" and geometry == "probe":
            input = replace(input, size=row.size, resize=256)
    return spec, resize_input(source, input)


def resize_input(source: Source, input: InputSpec) -> InputSpec:
    """The input as the source's options have it; a size alone leaves what images are resized to, where that will do."""
    look = source.input_options()
    if "size" in look:
        look.setdefault("resize", max(look["size"], input.resize))
    return input.changed(**look)
