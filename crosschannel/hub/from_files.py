"""Load sources that are files: this library's files, third-party files, and published files to download."""

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
from crosschannel.hub.files import Metadata, is_own_format, load_state, read_weights
from crosschannel.hub.huggingface import fetch_repository
from crosschannel.hub.sources import WEIGHTS, Source
from crosschannel.models import FAMILIES, InputSpec, NetSpec, build_net, family, widen_to_lab
from crosschannel.models.backbone import Provenance
from crosschannel.runs.result import missing_file
from crosschannel.stored import read_yaml

LoadedNet = tuple[nn.Module, InputSpec, Provenance]


def weights_path(source: Source, name: str) -> Path:
    """Return the weights file of a source that is a path.

    Args:
        source: a file or a run folder.
        name: name of the file in a run folder.

    Raises:
        UserError: the file does not exist or is not a weights file.
    """
    path = user_path(source.name)
    if path.is_dir():
        if not (path / name).is_file():
            if source.text.startswith("hf-hub:"):
                hint = "only crosschannel nets can be loaded from hf-hub: (use timm:NAME for timm nets)"
                raise UserError(f"{source.text} has no {name}: {hint}")
            raise UserError(missing_file(path, name))
        return path / name
    if not path.exists():
        raise UserError(f"unknown source {source.text!r}: no such file or run folder{_suggest_source(source.name)}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    if path.suffix not in WEIGHTS:
        raise UserError(f"{path} is not a run folder or a weights file ({', '.join(WEIGHTS)})")
    return path


def _suggest_source(name: str) -> str:
    """Return a suggested source for a name without a prefix, as text; empty if there is none."""
    import torchvision

    if name in FAMILIES:
        return f"; did you mean random:{name}?"
    with contextlib.suppress(ImportError):
        import timm

        if timm.is_model(name.partition(".")[0]):
            return f"; did you mean timm:{name}?"
    return f"; did you mean torchvision:{name}?" if name in torchvision.models.list_models() else ""


def fetch_weights(source: Source) -> Source:
    """Download the weights of a ``zoo:`` or ``hf-hub:`` source; return the local path as a source."""
    if source.kind == "zoo":
        path = zoo.fetch(source.name)
        return replace(source, kind="path", name=str(path), licence=zoo.ZOO[source.name].licence)
    if source.kind == "hf-hub":
        return replace(source, kind="path", name=str(fetch_repository(source.name)))
    return source


def read_own_file(path: Path, source: Source) -> tuple[dict[str, Tensor], Metadata]:
    """Read the tensors and metadata of one of this library's files.

    A user-defined net is accepted only in a run folder whose config names its factory, and never in a download: loading
    weights must not import code that the user did not choose.

    Raises:
        UserError: any other file of a user-defined net; see also :func:`~crosschannel.hub.files.read_weights`.
    """
    state, meta = read_weights(path)
    check_user_code(path, source, meta.net.name, "model.name")
    return state, meta


def check_user_code(path: Path, source: Source, name: str, key: str) -> None:
    """Refuse user-defined code that a weights file requires, unless the config of its run folder names it, too.

    Args:
        path: weights file.
        source: source of the file.
        name: name of the net or task; built-in names are always accepted.
        key: config key of the net or the task.

    Raises:
        UserError: the file was downloaded, or the config in the same folder does not have that name.
    """
    if not is_factory(name):
        return
    config = path.parent / "config.yaml"
    configured = flatten(read_yaml(config)).get(key) if config.is_file() else None
    if source.text.startswith(("hf-hub:", "zoo:")) or configured != name:
        rule = "which is imported only if the config of a local run folder names it"
        raise UserError(f"{source.text} needs the user-defined code {name}, {rule}")


def load_path(source: Source, _data: object) -> LoadedNet:
    """Load a weights file or the backbone of a run folder."""
    path = weights_path(source, "backbone.safetensors")
    if not is_own_format(path):
        return _load_third_party(path, source)
    if "key" in source.options:
        raise UserError(
            f"{source.text!r}: {path.name} is a crosschannel file with a single net; key applies to checkpoints only"
        )
    state, meta = read_own_file(path, source)
    if meta.objective is not None:
        state = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}
    spec, input = apply_source_options(source, meta.net, meta.input)
    net = build_net(spec, input.size)
    load_state(net, state, source.name)
    if source.options.get("input", input.kind) != input.kind:
        source.choice("input", ("grey", "lab") if input.kind == "grey" else (input.kind,), input.kind)
        net, input = widen_to_lab(net), replace(input, kind="lab")
    return net, input, Provenance(source.text, meta.provenance.details)


def _load_third_party(path: Path, source: Source) -> LoadedNet:
    """Load a third-party file; the option ``input=lab`` marks three input channels as Lab."""
    kind = source.options.get("input") and source.choice("input", ("grey", "lab", "rgb"), "rgb")
    imported = import_weights(path, input=kind, key=source.options.get("key", ""))
    spec, input = apply_source_options(source, imported.spec, imported.input)
    net = imported.backbone()
    if family(spec.name).has_option("geometry"):
        net.set_geometry(spec.options.geometry)
    details = {"format": imported.format, "file": path.name, "preprocessing": f"the format {imported.format}"}
    details |= {"checkpoint": imported.note} if imported.note else {}
    details |= {"licence": source.licence} if source.licence else {}
    return net, input, Provenance(source.text, details)


def apply_source_options(source: Source, spec: NetSpec, input: InputSpec) -> tuple[NetSpec, InputSpec]:
    """Apply the geometry and input options of a source.

    Without a geometry option, an AlexNet with fc6 gets the geometry of the transfer protocols and 227 px crops; a trunk
    keeps the geometry in which it was trained.
    """
    options = spec.options
    geometry = source.choice("geometry", ("probe", "padded"), "probe" if options.fc else options.geometry)
    net_family = family(spec.name)
    if net_family.has_option("geometry"):
        spec = spec.replace(geometry=geometry)
        if options.fc and options.geometry == "padded" and geometry == "probe":
            input = replace(input, size=net_family.size, resize=256)
    return spec, resize_input(source, input)


def resize_input(source: Source, input: InputSpec) -> InputSpec:
    """Apply the input options of a source. If only ``size`` is set, ``resize`` is raised to it if necessary."""
    options = source.input_options()
    if "size" in options:
        options.setdefault("resize", max(options["size"], input.resize))
    return input.changed(**options)
