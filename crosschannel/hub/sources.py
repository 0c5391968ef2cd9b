"""Sources: one string names a backbone everywhere, options after commas.

runs/alexnet-0          FILE.safetensors, .pth, .caffemodel      random:alexnet,input=grey,seed=1
kmeans:alexnet,input=lab,data=DIR      random:SOURCE      torchvision:alexnet,weights=none
timm:resnet50.a1_in1k   timm:resnet50,weights=my.pth      package.module:factory
zoo:eccv16              hf-hub:owner/name
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from crosschannel.errors import UserError

OPTIONS = {
    "path": {"geometry", "input", "size", "resize"},
    "random": {"input", "seed", "data", "norm", "fc", "geometry", "variant", "size", "resize"},
    "kmeans": {"input", "seed", "data", "norm", "fc", "geometry", "variant", "size", "resize"},
    "zoo": {"geometry", "input", "size", "resize"},
    "hf-hub": {"geometry", "input", "size", "resize"},
    "torchvision": {"weights", "size", "resize"},
    "timm": {"weights", "input", "size", "resize"},
    "factory": {"input", "size", "resize"},
}


@dataclass
class Source:
    """A parsed source.

    Attributes:
        kind: path, random, kmeans, torchvision, timm, factory, zoo or hf-hub.
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

    def integer(self, key: str, default: int, least: int = 0) -> int:
        if key not in self.options:
            return default
        value = self.options[key]
        if not value.isdecimal() or not least <= int(value) < 2**63:
            raise UserError(f"{self.text!r}: {key} must be a whole number from {least}, got {value!r}")
        return int(value)

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
    if text and Path(text).expanduser().exists():  # whatever its name looks like
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
        options[key] = value
    return Source(kind, name, text, options)
