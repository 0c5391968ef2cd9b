"""Config of `crosschannel evaluate`, and parser of its methods. Does not import torch, to keep ``--help`` fast."""

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
OWN = "own"  # value of ``prior`` for the colours of the evaluated images


@dataclass(frozen=True)
class Method:
    """A colorization method as passed by the user: ``[NAME=]SOURCE[,temperature=T]``, or a baseline.

    Attributes:
        name: prefix of the method's metrics.
        source: source of the net, or name of the baseline.
        temperature: temperature of the annealed mean; None for the default of the net's decoder.
    """

    name: str
    source: str
    temperature: float | None = None

    @property
    def is_baseline(self) -> bool:
        return self.source in BASELINES


def parse_method(text: str) -> Method:
    """Parse a method.

    Raises:
        UserError: the source is empty, or the temperature is not a number above 0.
    """
    match = re.fullmatch(r"([A-Za-z0-9][\w.+-]*)=(.*)", text, re.DOTALL)
    name, source = match.groups() if match else ("", text)
    source, separator, value = source.partition(",temperature=")
    value, _, options = value.partition(",")
    source += f",{options}" if options else ""
    temperature = None
    if separator:
        try:
            temperature = float(value)
        except ValueError:
            temperature = 0.0
        if not 0 < temperature <= 1e9:
            raise UserError(f"the method {text!r} needs a temperature above 0, got {value!r}")
    if not source:
        raise UserError(f"the method {text!r} has no source")
    path = source.partition(",")[0].rstrip("/")
    name = name or re.sub(r"[^\w.+-]", "-", Path(path.rpartition(":")[2]).name or "net")
    return Method(name, source, temperature)


def parse_methods(texts: list[str]) -> list[Method]:
    """Parse all methods of a command.

    Raises:
        UserError: there are no methods, or their names are not unique.
    """
    if not texts:
        raise UserError("no methods; pass sources of colorization nets, or baselines such as grey and random")
    methods = [parse_method(text) for text in texts]
    names = [method.name for method in methods]
    duplicate = next((name for index, name in enumerate(names) if name in names[:index]), None)
    require(duplicate is None, "names of methods must be unique (use NAME=SOURCE)", duplicate)
    return methods


def source_of(text: str) -> str:
    """Return the source of a method; empty for a baseline."""
    method = parse_method(text)
    return "" if method.is_baseline else method.source


@dataclass
class EvaluateConfig(CommandConfig):
    """Evaluate colorization methods as in the paper's Table 1, with grey, random and true colours as baselines."""

    data: Annotated[Text, Data()]
    """folder of colour images, tar shards, builtin:sample or torchvision:imagenette; uses the images in val/ if there
    are any, else all images"""
    methods: Annotated[list[str], Source("colorizer", source_of)] = field(default_factory=lambda: list(BASELINES))
    """colorization nets, as [NAME=]SOURCE[,temperature=T], and any of the baselines grey, random and truth"""
    out: Annotated[Out | None, RUNTIME] = None
    """run folder; default runs/evaluate-DATA-SEED"""
    random_from: Annotated[Text | None, Data()] = None
    """images from which the `random` baseline copies colours; default other images of --data"""
    prior: Annotated[Text, File(packaged=(OWN,))] = OWN
    """colour distribution that rebalanced AuC corrects for. own: the prior of the evaluated images, so that all bins
    weigh equally, or a file written by `crosschannel prior`"""
    classifier: Annotated[Text | None, Source("classifier")] = None
    """classifier whose top-1 accuracy on the coloured images is reported (semantic interpretability): a run of the
    `labels` task, timm:NAME or torchvision:NAME; its classes are matched to the folders of --data"""
    lpips: Annotated[Text | None, Source()] = None
    """net for LPIPS, torchvision:alexnet or torchvision:vgg16; default: LPIPS is not computed"""
    realism: Annotated[Text | None, File()] = None
    """fooled.csv of a `crosschannel study report`; adds the percentage of people fooled by each method to the table"""
    size: Annotated[int, Interval(ge=16, le=2048)] = 256
    """side of the images, in pixels: their short side is resized to it, and the centre square is cropped"""
    limit: Annotated[int, Ge(0)] = 0
    """number of images to evaluate, chosen at random; 0 for all"""
    upsample: Literal["bilinear", "edges"] = "bilinear"
    """upsampling of predictions to all pixels: bilinear, as in the paper, or edges, as in `crosschannel colorize`"""
    gamut: Literal["map", "clip"] = "map"
    """treatment of colours outside sRGB in the coloured images: map moves them towards grey, clip clips RGB channels;
    AuC always uses the predicted ab"""
    resamples: Annotated[int, Interval(ge=1, le=100000)] = 1000
    """number of bootstrap resamples for the confidence intervals in the report"""
    batch: Annotated[Count, RUNTIME] = 16
    """number of images that are coloured and scored at a time"""
    workers: Annotated[Workers, RUNTIME] = 2
    """number of processes that decode images"""

    def default_out(self, name: str, _recipe: Mapping[str, Any] = MappingProxyType({})) -> str:
        return f"runs/{name}-{slug(self.data.rpartition(':')[2])}-{self.seed}"

    def check(self) -> None:
        parse_methods(self.methods)
