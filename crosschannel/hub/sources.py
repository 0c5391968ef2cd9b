"""Sources: one string names a backbone everywhere, options after commas.

runs/alexnet-0          FILE.safetensors, .pth, .caffemodel      random:alexnet,input=grey,seed=1
gaussian:alexnet,input=grey            kmeans:alexnet,input=lab,data=DIR      random:SOURCE
torchvision:alexnet,weights=none
timm:resnet50.a1_in1k   timm:resnet50,weights=my.pth      package.module:factory,weights=my.pth,size=128,mean=0.5
zoo:eccv16              hf-hub:owner/name
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from crosschannel.config.flags import parse_text
from crosschannel.config.keys import input_paths, sources, values_of_role
from crosschannel.config.load import check_value
from crosschannel.config.types import Data, FCWidth, Seed, Side
from crosschannel.data.datasets import import_path_of
from crosschannel.errors import UserError, describe, wrap_external_errors
from crosschannel.factories import is_factory, working_folder_importable
from crosschannel.files import user_path


@dataclass(frozen=True)
class SourceKind:
    """A kind of source.

    Attributes:
        loader: module:function of (source, images for statistics) → net, input, provenance.
        options: that may follow its name.
        is_fresh: untrained nets, whose name may be a source again.
        is_fetched: loading one downloads weights, unless an option names a file of them or says none.
        of_a_library: whose nets are not ours.
        of_the_user: whose code is the user's.
    """

    loader: str
    options: frozenset[str]
    is_untrained: bool = False
    is_fetched: bool = False
    is_library: bool = False
    is_user_code: bool = False

    @property
    def load(self) -> Callable[["Source", Any], Any]:
        return resolve_name(f"crosschannel.hub.{self.loader}")


_LOOK = frozenset({"size", "resize", "mean", "std", "interpolation"})  # attributes of a net's input
_FILE = _LOOK | {"geometry", "input", "key"}
_FRESH = _LOOK | {"input", "seed", "fc", "geometry", "variant"}
KINDS = {
    "path": SourceKind("from_files:load_path", _FILE),
    "zoo": SourceKind("from_files:load_path", _FILE, is_fetched=True),
    "hf-hub": SourceKind("from_files:load_path", _FILE, is_fetched=True),
    "random": SourceKind("untrained:load_random", _FRESH | {"data", "norm"}, is_untrained=True),
    "gaussian": SourceKind("untrained:load_gaussian", _FRESH, is_untrained=True),
    "kmeans": SourceKind("untrained:load_kmeans", _FRESH | {"data", "norm"}, is_untrained=True),
    "torchvision": SourceKind(
        "libraries:load_torchvision", _LOOK | {"weights", "key"}, is_fetched=True, is_library=True
    ),
    "timm": SourceKind("libraries:load_timm", _LOOK | {"weights", "key", "input"}, is_fetched=True, is_library=True),
    "factory": SourceKind(
        "libraries:load_factory", _LOOK | {"weights", "key", "input"}, is_library=True, is_user_code=True
    ),
}
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin", ".caffemodel")  # suffixes of weights files
OPTION_TYPES: dict[str, Any] = {  # options that are not strings
    "size": Side,
    "resize": Side,
    "mean": tuple[float, ...],
    "std": tuple[float, ...],
    "seed": Seed,
    "fc": FCWidth,
    "norm": bool,
}


@dataclass
class Source:
    """A parsed source.

    Attributes:
        kind: path, random, gaussian, kmeans, torchvision, timm, factory, zoo or hf-hub.
        name: what follows the kind.
        options: the remaining options by name, with values of the types in :data:`OPTION_TYPES`.
        text: as the user wrote it.
        licence: of published weights, once they are fetched.
        untrained: build the net without its weights, but with their input.
    """

    kind: str
    name: str
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    untrained: bool = False

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.options.get(key, default)
        if value not in allowed:
            raise UserError(f"{self.text!r}: {key} must be one of {', '.join(allowed)}, got {value!r}")
        return value

    def input_options(self) -> dict[str, Any]:
        """The attributes of a net's input that its options name, see :meth:`InputSpec.changed`."""
        return {key: value for key, value in self.options.items() if key in _LOOK}


def parse_source(text: str | os.PathLike[str]) -> Source:
    """Parse a source string or a path.

    Raises:
        UserError: another type, an empty name, an option without a value, or an option that this kind does not have.
    """
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    if not isinstance(text, str):
        hint = "; crosschannel.wrap makes a backbone of a module" if hasattr(text, "forward") else ""
        raise UserError(
            f"a source is a name such as 'runs/a' or 'timm:resnet50', or a path, not {describe(text)}{hint}"
        )
    if "\0" in text:
        raise UserError(f"the source {text!r} holds a NUL character")
    if text and user_path(text).exists():  # whatever its name looks like
        return Source("path", text, text)
    head, *pairs = text.split(",")
    kind, colon, name = head.partition(":")
    if not colon or kind not in KINDS:
        kind, name = ("factory" if is_factory(head) else "path"), head
    if not name:
        raise UserError(f"the source {text!r} names nothing")
    options, known = {}, KINDS[kind].options
    if KINDS[kind].is_untrained:  # a twin is made as the other is, whatever its weights
        known |= KINDS[parse_source(name).kind].options
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise UserError(f"{text!r}: {pair!r} is not an option; options look like seed=1")
        if key not in known:
            raise UserError(f"{text!r}: no option {key!r}; there are {', '.join(sorted(known))}")
        options[key] = _parse_option(key, value, text)
    return Source(kind, name, text, options)


def _parse_option(key: str, text: str, source: str) -> Any:
    """Parse the value of an option by its type; mean and std are one number, or three separated by colons."""
    name, hint = f"{source!r}: {key}", OPTION_TYPES.get(key, str)
    if key not in ("mean", "std"):
        return check_value(name, parse_text(text, hint, name), hint)
    try:
        numbers = tuple(map(float, text.split(":")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise UserError(f"{name} is a number, or three such as 0.485:0.456:0.406, got {text!r}")
    return check_value(name, numbers * (3 // len(numbers)), hint)


def inner_source(source: Source) -> Source:
    """What a fresh net is the twin of; any other source itself."""
    return parse_source(source.name) if KINDS[source.kind].is_untrained else source


def source_paths(source: Source) -> list[str]:
    """The weights that a source names by a path, which may not be there."""
    from crosschannel.models import FAMILIES

    named = inner_source(source)
    is_path = named.kind == "path" and (named is source or named.name not in FAMILIES)
    weights = [source.options["weights"]] if names_a_file(source) else []
    return [named.name, *weights] if is_path else weights


def is_fetched(source: Source) -> bool:
    """Whether loading a source downloads its weights."""
    named = inner_source(source)
    if named is not source:  # of its twin the description at most
        return KINDS[named.kind].is_fetched and not KINDS[named.kind].is_library
    given = source.options.get("weights", "").lower() == "none" or names_a_file(source)
    return KINDS[source.kind].is_fetched and not given


def known_layers(source: Source) -> tuple[str, ...]:
    """The layers of a net of ours, as far as they can be told without loading it; empty for any other."""
    import torch

    from crosschannel.hub.files import is_ours, read_metadata
    from crosschannel.models import FAMILIES, NetSpec, build_net
    from crosschannel.models.input_spec import CHANNELS

    if KINDS[source.kind].is_untrained and source.name in FAMILIES:
        channels = CHANNELS.get(source.options.get("input", "grey"), 1)
        row = FAMILIES[source.name]
        options = {
            "fc": source.options.get("fc", row.fc),
            "variant": source.options.get("variant", row.options.variant),
        }
        with torch.device("meta"):
            return tuple(build_net(NetSpec(source.name, channels, **row.supported_options(**options))).layers)
    named = inner_source(source)
    path = user_path(named.name) if named.kind == "path" else Path()
    path = path / "backbone.safetensors" if path.is_dir() else path
    return tuple(read_metadata(path).layers) if path.is_file() and is_ours(path) else ()


def names_a_file(source: Source) -> bool:
    """Whether the option ``weights`` is a path: but for torchvision's, which may be the name of published ones."""
    weights = "none" if KINDS[source.kind].is_untrained else source.options.get("weights", "none")
    is_path = source.kind != "torchvision" or Path(weights).suffix in WEIGHTS or user_path(weights).is_file()
    return weights.lower() != "none" and is_path


def source_files(text: str) -> dict[str, Path]:
    """The files that a source is read from by path, as far as they are there: weights, and the module of a factory."""
    source = parse_source(text)
    found: dict[str, Path] = {}
    if KINDS[source.kind].is_untrained:
        found |= source_files(source.name)
    elif source.kind == "path":
        path = user_path(source.name)
        names = ("backbone.safetensors", "colorizer.safetensors", "pretext.safetensors")
        found |= {name: path / name for name in names} if path.is_dir() else {"weights": path}
    elif source.kind == "factory":
        with wrap_external_errors(f"cannot find {source.name!r}"), working_folder_importable():
            spec = importlib.util.find_spec(source.name.partition(":")[0])
        found |= {"module": Path(spec.origin)} if spec and spec.origin else {}
    if "weights" in source.options and not KINDS[source.kind].is_untrained:
        found["weights"] = user_path(source.options["weights"])
    return {key: path for key, path in found.items() if path.is_file()}


def user_imports(config: Any) -> dict[str, str]:
    """Import paths (``package.module:name``) of user-defined nets, tasks, protocols and data, by config key."""
    names = {"model.name": getattr(getattr(config, "model", None), "name", "")}
    names |= {key: getattr(config, key, "") for key in ("task", "protocol")}
    named = {key: name for key, name in names.items() if is_factory(name)}
    return named | {key: path for key, data in values_of_role(config, Data).items() if (path := import_path_of(data))}


def user_packages(config: Any) -> list[str]:
    """Top-level packages and modules of user-defined factories, tasks, protocols and data."""
    inner = [inner_source(parse_source(source)) for _, _, source in sources(config)]
    names = [source.name for source in inner if KINDS[source.kind].is_user_code]
    names += user_imports(config).values()
    return list(dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in names))


def input_files(config: Any) -> dict[str, Path]:
    """The files that a command reads by path besides its images, by key, as far as they are there."""
    found = {f"{key} {name}": path for key, _, source in sources(config) for name, path in source_files(source).items()}
    named = {
        f"{key} {number}" if number else key: user_path(name)
        for key, names in input_paths(config).items()
        for number, name in enumerate(names)
    }
    for key, own in user_imports(config).items():
        found |= {f"{key} {what}": path for what, path in source_files(own).items()}
    return found | {key: path for key, path in named.items() if path.is_file()}
