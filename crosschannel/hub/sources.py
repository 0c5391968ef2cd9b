"""Sources: one string names a backbone everywhere, options after commas.

runs/alexnet-0          FILE.safetensors, .pth, .caffemodel      random:alexnet,input=grey,seed=1
gaussian:alexnet,input=grey            kmeans:alexnet,input=lab,data=DIR      random:SOURCE
torchvision:alexnet,weights=none
timm:resnet50.a1_in1k   timm:resnet50,weights=my.pth      package.module:factory
zoo:eccv16              hf-hub:owner/name
"""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crosschannel.errors import UserError, foreign
from crosschannel.files import user_path
from crosschannel.keys import FC_WIDTH, SEED, SIDE, Range

_FRESH_OPTIONS = {"input", "seed", "fc", "geometry", "variant", "size", "resize"}
OPTIONS = {
    "path": {"geometry", "input", "size", "resize"},
    "random": _FRESH_OPTIONS | {"data", "norm"},
    "gaussian": _FRESH_OPTIONS,
    "kmeans": _FRESH_OPTIONS | {"data", "norm"},
    "zoo": {"geometry", "input", "size", "resize"},
    "hf-hub": {"geometry", "input", "size", "resize"},
    "torchvision": {"weights", "size", "resize"},
    "timm": {"weights", "input", "size", "resize"},
    "factory": {"input", "size", "resize"},
}
FRESH = ("random", "gaussian", "kmeans")  # kinds of untrained nets, whose name may be a source again
RANGES: dict[str, Range] = {"size": SIDE, "resize": SIDE, "seed": SEED, "fc": FC_WIDTH}  # of whole numbers


@dataclass
class Source:
    """A parsed source.

    Attributes:
        kind: path, random, gaussian, kmeans, torchvision, timm, factory, zoo or hf-hub.
        name: what follows the kind.
        options: the rest, by key.
        text: as the user wrote it.
        licence: of published weights, once they are fetched.
    """

    kind: str
    name: str
    text: str
    options: dict[str, str] = field(default_factory=dict)
    licence: str = ""

    def integer(self, key: str, default: int) -> int:
        value = self.options.get(key)
        return default if value is None else int(value)

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.options.get(key, default)
        if value not in allowed:
            raise UserError(f"{self.text!r}: {key} must be one of {', '.join(allowed)}, got {value!r}")
        return value


def parse_source(text: str) -> Source:
    """Read a source string.

    Raises:
        UserError: an empty name, an option without a value, or one that this kind does not have.
    """
    if "\0" in text:
        raise UserError(f"the source {text!r} holds a NUL character")
    if text and user_path(text).exists():  # whatever its name looks like
        return Source("path", text, text)
    head, *pairs = text.split(",")
    kind, colon, name = head.partition(":")
    if not colon or kind not in OPTIONS:
        kind, name = ("factory" if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", head) else "path"), head
    if not name:
        raise UserError(f"the source {text!r} names nothing")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise UserError(f"{text!r}: {pair!r} is not an option; options look like seed=1")
        if key not in OPTIONS[kind]:
            raise UserError(f"{text!r}: no option {key!r}; there are {', '.join(sorted(OPTIONS[kind]))}")
        rule = RANGES.get(key)
        if rule and not (value.isascii() and value.isdecimal() and len(value) < 20 and rule.holds(int(value))):
            raise UserError(f"{text!r}: {key} must be a whole number {rule.words}, got {value!r}")
        options[key] = value
    return Source(kind, name, text, options)


def source_files(text: str) -> dict[str, Path]:
    """The files that a source is read from by path, as far as they are there: weights, and the module of a factory."""
    source = parse_source(text)
    found: dict[str, Path] = {}
    if source.kind in FRESH:
        found |= source_files(source.name)
    elif source.kind == "path":
        path = user_path(source.name)
        names = ("backbone.safetensors", "colorizer.safetensors")
        found |= {name: path / name for name in names} if path.is_dir() else {"weights": path}
    elif source.kind == "factory":
        with foreign(f"cannot find {source.name!r}"), working_folder_importable():
            spec = importlib.util.find_spec(source.name.partition(":")[0])
        found |= {"module": Path(spec.origin)} if spec and spec.origin else {}
    if "weights" in source.options:
        found["weights"] = user_path(source.options["weights"])
    return {key: path for key, path in found.items() if path.is_file()}


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """What stands in the working folder can be named, as with ``python -m``."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.pop(0)
