"""Source strings, which specify backbones in configs, commands and Python. Commas separate the options.

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
        loader: ``module:function`` that maps (source, images for statistics) to (net, input, provenance).
        options: names of the supported options.
        is_untrained: nets without trained weights; the name may be another source.
        is_fetched: loading downloads weights, unless the option ``weights`` is a file or ``none``.
        is_library: nets of other libraries or user code.
        is_user_code: nets of a user-defined factory.
    """

    loader: str
    options: frozenset[str]
    is_untrained: bool = False
    is_fetched: bool = False
    is_library: bool = False
    is_user_code: bool = False

    @property
    def load(self) -> Callable[["Source", Any], Any]:
        """The imported loader."""
        return resolve_name(f"crosschannel.hub.{self.loader}")


_INPUT_OPTIONS = frozenset({"size", "resize", "mean", "std", "interpolation"})  # attributes of InputSpec
_FILE_OPTIONS = _INPUT_OPTIONS | {"geometry", "input", "key"}
_UNTRAINED_OPTIONS = _INPUT_OPTIONS | {"input", "seed", "fc", "geometry", "variant"}
KINDS = {
    "path": SourceKind("from_files:load_path", _FILE_OPTIONS),
    "zoo": SourceKind("from_files:load_path", _FILE_OPTIONS, is_fetched=True),
    "hf-hub": SourceKind("from_files:load_path", _FILE_OPTIONS, is_fetched=True),
    "random": SourceKind("untrained:load_random", _UNTRAINED_OPTIONS | {"data", "norm"}, is_untrained=True),
    "gaussian": SourceKind("untrained:load_gaussian", _UNTRAINED_OPTIONS, is_untrained=True),
    "kmeans": SourceKind("untrained:load_kmeans", _UNTRAINED_OPTIONS | {"data", "norm"}, is_untrained=True),
    "torchvision": SourceKind(
        "libraries:load_torchvision", _INPUT_OPTIONS | {"weights", "key"}, is_fetched=True, is_library=True
    ),
    "timm": SourceKind(
        "libraries:load_timm", _INPUT_OPTIONS | {"weights", "key", "input"}, is_fetched=True, is_library=True
    ),
    "factory": SourceKind(
        "libraries:load_factory", _INPUT_OPTIONS | {"weights", "key", "input"}, is_library=True, is_user_code=True
    ),
}
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin", ".caffemodel")  # suffixes of weights files
OPTION_TYPES: dict[str, Any] = {  # types of the options that are not strings
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
        name: name without the kind and the options.
        text: the original string.
        options: options by name, with values of the types in :data:`OPTION_TYPES`.
        licence: licence of published weights, once they are downloaded.
        untrained: build the net with the input spec stored with its weights, but leave it untrained.
    """

    kind: str
    name: str
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    untrained: bool = False

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """Return the value of an option that has a fixed set of values.

        Raises:
            UserError: any other value.
        """
        value = self.options.get(key, default)
        if value not in allowed:
            raise UserError(f"{self.text!r}: {key} must be one of {', '.join(allowed)}, got {value!r}")
        return value

    def input_options(self) -> dict[str, Any]:
        """Return the options that are attributes of the input, for :meth:`InputSpec.changed`."""
        return {key: value for key, value in self.options.items() if key in _INPUT_OPTIONS}


def parse_source(text: str | os.PathLike[str]) -> Source:
    """Parse a source string or a path.

    Raises:
        UserError: neither a string nor a path, a NUL character, an empty name, or an unknown or invalid option.
    """
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    if not isinstance(text, str):
        hint = "; use crosschannel.wrap to make a backbone from a module" if hasattr(text, "forward") else ""
        raise UserError(
            f"a source must be a string, such as 'runs/a' or 'timm:resnet50', or a path, not {describe(text)}{hint}"
        )
    if "\0" in text:
        raise UserError(f"the source {text!r} contains a NUL character")
    if text and user_path(text).exists():  # existing files take precedence, even if they contain commas or colons
        return Source("path", text, text)
    head, *pairs = text.split(",")
    kind, colon, name = head.partition(":")
    if not colon or kind not in KINDS:
        kind, name = ("factory" if is_factory(head) else "path"), head
    if not name:
        raise UserError(f"the source {text!r} has an empty name")
    options, known = {}, KINDS[kind].options
    if KINDS[kind].is_untrained:  # options of the inner source are allowed, too
        known |= KINDS[parse_source(name).kind].options
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise UserError(f"{text!r}: invalid option {pair!r}; options have the form seed=1")
        if key not in known:
            raise UserError(f"{text!r}: unknown option {key!r}; available: {', '.join(sorted(known))}")
        options[key] = _parse_option(key, value, text)
    return Source(kind, name, text, options)


def _parse_option(key: str, text: str, source: str) -> Any:
    """Parse the value of an option according to its type; mean and std are one number or three, joined by colons."""
    name, hint = f"{source!r}: {key}", OPTION_TYPES.get(key, str)
    if key not in ("mean", "std"):
        return check_value(name, parse_text(text, hint, name), hint)
    try:
        numbers = tuple(map(float, text.split(":")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise UserError(f"{name} must be a number, or three numbers such as 0.485:0.456:0.406, got {text!r}")
    return check_value(name, numbers * (3 // len(numbers)), hint)


def inner_source(source: Source) -> Source:
    """Return the source that defines the architecture of an untrained net; return any other source unchanged."""
    return parse_source(source.name) if KINDS[source.kind].is_untrained else source


def source_paths(source: Source) -> list[str]:
    """Return the paths of weights in a source, whether or not they exist."""
    from crosschannel.models import FAMILIES

    inner = inner_source(source)
    is_path = inner.kind == "path" and (inner is source or inner.name not in FAMILIES)
    weights = [source.options["weights"]] if has_weights_file(source) else []
    return [inner.name, *weights] if is_path else weights


def is_fetched(source: Source) -> bool:
    """Whether loading a source downloads its weights."""
    inner = inner_source(source)
    if inner is not source:  # an untrained net needs at most the spec that is stored with the weights
        return KINDS[inner.kind].is_fetched and not KINDS[inner.kind].is_library
    is_local = source.options.get("weights", "").lower() == "none" or has_weights_file(source)
    return KINDS[source.kind].is_fetched and not is_local


def known_layers(source: Source) -> tuple[str, ...]:
    """Return the layers of one of this library's nets, if they are known without loading it; empty otherwise."""
    import torch

    from crosschannel.hub.files import is_own_format, read_metadata
    from crosschannel.models import FAMILIES, NetSpec, build_net
    from crosschannel.models.input_spec import CHANNELS

    if KINDS[source.kind].is_untrained and source.name in FAMILIES:
        channels = CHANNELS.get(source.options.get("input", "grey"), 1)
        net_family = FAMILIES[source.name]
        options = {
            "fc": source.options.get("fc", net_family.fc),
            "variant": source.options.get("variant", net_family.options.variant),
        }
        with torch.device("meta"):
            return tuple(build_net(NetSpec(source.name, channels, **net_family.supported_options(**options))).layers)
    inner = inner_source(source)
    path = user_path(inner.name) if inner.kind == "path" else Path()
    path = path / "backbone.safetensors" if path.is_dir() else path
    return tuple(read_metadata(path).layers) if path.is_file() and is_own_format(path) else ()


def has_weights_file(source: Source) -> bool:
    """Whether the option ``weights`` is a path; for torchvision it may be the name of published weights instead."""
    weights = "none" if KINDS[source.kind].is_untrained else source.options.get("weights", "none")
    is_path = source.kind != "torchvision" or Path(weights).suffix in WEIGHTS or user_path(weights).is_file()
    return weights.lower() != "none" and is_path


def source_files(text: str) -> dict[str, Path]:
    """Return the existing local files of a source: weights, and the module of a factory."""
    source = parse_source(text)
    files: dict[str, Path] = {}
    if KINDS[source.kind].is_untrained:
        files |= source_files(source.name)
    elif source.kind == "path":
        path = user_path(source.name)
        names = ("backbone.safetensors", "colorizer.safetensors", "pretext.safetensors")
        files |= {name: path / name for name in names} if path.is_dir() else {"weights": path}
    elif source.kind == "factory":
        with wrap_external_errors(f"could not find {source.name!r}"), working_folder_importable():
            spec = importlib.util.find_spec(source.name.partition(":")[0])
        files |= {"module": Path(spec.origin)} if spec and spec.origin else {}
    if "weights" in source.options and not KINDS[source.kind].is_untrained:
        files["weights"] = user_path(source.options["weights"])
    return {key: path for key, path in files.items() if path.is_file()}


def user_imports(config: Any) -> dict[str, str]:
    """Return the import paths (``package.module:name``) of user-defined nets, tasks, protocols and data, by key."""
    names = {"model.name": getattr(getattr(config, "model", None), "name", "")}
    names |= {key: getattr(config, key, "") for key in ("task", "protocol")}
    imports = {key: name for key, name in names.items() if is_factory(name)}
    return imports | {key: path for key, data in values_of_role(config, Data).items() if (path := import_path_of(data))}


def user_packages(config: Any) -> list[str]:
    """Return the top-level packages and modules of user-defined factories, tasks, protocols and data."""
    inner = [inner_source(parse_source(source)) for _, _, source in sources(config)]
    names = [source.name for source in inner if KINDS[source.kind].is_user_code]
    names += user_imports(config).values()
    return list(dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in names))


def input_files(config: Any) -> dict[str, Path]:
    """Return the existing files other than images that a command reads, by config key."""
    files = {f"{key} {name}": path for key, _, source in sources(config) for name, path in source_files(source).items()}
    paths = {
        f"{key} {index}" if index else key: user_path(name)
        for key, names in input_paths(config).items()
        for index, name in enumerate(names)
    }
    for key, import_path in user_imports(config).items():
        files |= {f"{key} {name}": path for name, path in source_files(import_path).items()}
    return files | {key: path for key, path in paths.items() if path.is_file()}
