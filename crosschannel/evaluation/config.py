"""The keys of `crosschannel evaluate`, and how a method is written. No torch here: help is quick."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from crosschannel.config.load import require
from crosschannel.config.training import CommandConfig, slug
from crosschannel.config.types import RUNTIME, Count, Data, File, Out, Source, Text, Workers
from crosschannel.errors import UserError

BASELINES = ("grey", "random", "truth")
OWN = "own"  # the prior of the evaluated images


@dataclass(frozen=True)
class Method:
    """A method as it is typed: ``[NAME=]SOURCE[,temperature=T]``, or a baseline.

    Attributes:
        name: what its figures are called by.
        source: of its net; a baseline's own name.
        temperature: of the annealed mean; None takes the net's own decode.
    """

    name: str
    source: str
    temperature: float | None = None

    @property
    def is_baseline(self) -> bool:
        return self.source in BASELINES


def parse_method(text: str) -> Method:
    """Read a method.

    Raises:
        UserError: it names nothing, or its temperature is no number above 0.
    """
    named = re.fullmatch(r"([A-Za-z0-9][\w.+-]*)=(.*)", text, re.DOTALL)
    name, source = named.groups() if named else ("", text)
    source, comma, heat = source.partition(",temperature=")
    heat, _, rest = heat.partition(",")
    source += f",{rest}" if rest else ""
    temperature = None
    if comma:
        try:
            temperature = float(heat)
        except ValueError:
            temperature = 0.0
        if not 0 < temperature <= 1e9:
            raise UserError(f"the method {text!r} needs a temperature above 0, got {heat!r}")
    if not source:
        raise UserError(f"the method {text!r} names no source")
    plain = source.partition(",")[0].rstrip("/")
    name = name or re.sub(r"[^\w.+-]", "-", Path(plain.rpartition(":")[2]).name or "net")
    return Method(name, source, temperature)


def parse_methods(texts: list[str]) -> list[Method]:
    """Read all methods of a command.

    Raises:
        UserError: none, or two of one name.
    """
    if not texts:
        raise UserError("no methods: give sources of nets that colour, or baselines such as grey and random")
    methods = [parse_method(text) for text in texts]
    names = [method.name for method in methods]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    require(twice is None, "two methods have one name; write them as NAME=SOURCE", twice)
    return methods


def source_of(text: str) -> str:
    """The source that a method names; empty for a baseline."""
    method = parse_method(text)
    return "" if method.is_baseline else method.source


@dataclass
class EvaluateConfig(CommandConfig):
    """Score colourings: Table 1 of any nets that colour, beside grey, random colours and the truth."""

    data: Annotated[Text, Data()]
    """a folder of colour images, tar shards, builtin:sample or torchvision:imagenette; all of its val/, where it has
    one, else all of it"""
    methods: Annotated[list[str], Source("colorizer", source_of)] = field(default_factory=lambda: list(BASELINES))
    """nets that colour, as [NAME=]SOURCE[,temperature=T], and the baselines grey, random and truth"""
    out: Annotated[Out | None, RUNTIME] = None
    """run folder; default runs/evaluate-DATA-SEED"""
    random_from: Annotated[Text | None, Data()] = None
    """images that the baseline random copies colours from; default other images of --data"""
    prior: Annotated[Text, File(packaged=(OWN,))] = OWN
    """what rebalances: own, the evaluated images' own colours (every bin counts the same), or a file written by
    `crosschannel prior`"""
    classifier: Annotated[Text | None, Source("classifier")] = None
    """a net whose top-1 on the coloured pictures is scored (semantic interpretability): a run of the task labels,
    timm:NAME or torchvision:NAME; classes are the folders of --data"""
    lpips: Annotated[Text | None, Source()] = None
    """torchvision:alexnet or torchvision:vgg16: report LPIPS on its features"""
    realism: Annotated[Text | None, File()] = None
    """fooled.csv of a `crosschannel study report`: how many people the methods fooled, for the table"""
    size: Annotated[int, Interval(ge=16, le=2048)] = 256
    """images are reduced to this short side and cropped to its centre square"""
    limit: Annotated[int, Ge(0)] = 0
    """score so many images, chosen at random; 0 takes all"""
    upsample: Literal["bilinear", "edges"] = "bilinear"
    """how predictions reach every pixel: bilinear, as in the paper, or edges, as `crosschannel colorize` does"""
    gamut: Literal["map", "clip"] = "map"
    """colours that sRGB cannot show in the pictures that are judged: map moves them towards grey, clip clips channels;
    AuC is of ab as predicted"""
    resamples: Annotated[int, Interval(ge=1, le=100000)] = 1000
    """of the bootstrap of the page's intervals"""
    batch: Annotated[Count, RUNTIME] = 16
    """images scored at a time"""
    workers: Annotated[Workers, RUNTIME] = 2
    """processes that decode images"""

    def default_out(self, name: str, _recipe: Mapping[str, Any] = MappingProxyType({})) -> str:
        return f"runs/{name}-{slug(self.data.rpartition(':')[2])}-{self.seed}"

    def check(self) -> None:
        parse_methods(self.methods)
