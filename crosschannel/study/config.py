"""Config keys of `crosschannel study build`, `serve` and `report`. Does not import torch, to keep ``--help`` fast."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.training import CommandConfig, PlainConfig
from crosschannel.config.types import Data, File, Fraction, Host, Line, Out, ProperFraction, Source, Text
from crosschannel.errors import UserError
from crosschannel.evaluation.config import parse_methods, source_of
from crosschannel.study.manifest import First, Gamut, Pause

Test = Literal["two-sided", "one-sided"]


@dataclass
class StudyBuildConfig(CommandConfig):
    """Build the pictures of a study: original photographs, and the same photographs coloured by each method."""

    data: Annotated[Text, Data()]
    """colour images: a folder, tar shards, builtin:sample or torchvision:imagenette; only val/ is used if it exists"""
    out: Out
    """folder of the study, which must be new or empty"""
    methods: Annotated[list[str], Source("colorizer", source_of)] = field(default_factory=list)
    """colorization models, as [NAME=]SOURCE[,temperature=T], and the baselines random and grey"""
    images: Annotated[int, Interval(ge=1, le=100_000)] = 100
    """number of photographs to judge, chosen at random, in addition to those for practice"""
    pairs: Annotated[int, Interval(ge=1, le=1000)] = 40
    """number of pairs that each participant judges after the practice pairs"""
    practice: Annotated[int, Interval(ge=0, le=100)] = 10
    """number of practice pairs, which come first and give feedback"""
    checks: Annotated[float, Interval(ge=0, le=0.5)] = 0.1
    """fraction of the pairs that are attention checks, in which the fake has the colours of another photograph"""
    size: Annotated[int, Interval(ge=32, le=1024)] = 256
    """side of the pictures, in pixels; photographs are resized to this short side and centre-cropped"""
    upsample: Literal["bilinear", "edges"] = "bilinear"
    """upsampling of predictions to full size: bilinear, as in the paper, or edges, as in `crosschannel colorize`"""
    gamut: Gamut = "map"
    """treatment of colours outside sRGB: map moves them towards grey at the same lightness, clip clips each channel (as
    in the paper)"""
    first: First = "left"
    """which picture of a pair is shown first: left (as in the paper) or random"""
    before_ms: Pause = 900
    """pause before the first picture of a pair, in ms"""
    between_ms: Pause = 600
    """pause between the two pictures of a pair, in ms"""

    def check(self) -> None:
        methods = parse_methods(self.methods)
        for method in methods:
            is_fake = method.source != "truth" and method.name not in ("truth", "check")
            require(
                is_fake,
                "methods must not be truth (part of every pair) and must not be named truth or check",
                method.name,
            )
        if self.images < self.pairs:
            raise UserError(
                f"--images {self.images} is fewer than --pairs {self.pairs}; a participant sees each photograph once"
            )


@dataclass
class StudyServeConfig(PlainConfig):
    """Serve a study as web pages: consent, practice, pairs, completion code. Answers are stored in the study folder."""

    study: Annotated[str, File()]
    """study folder written by `crosschannel study build`"""
    host: Host = "127.0.0.1"
    """address to listen on; 0.0.0.0: all interfaces of this machine"""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """port to listen on"""
    title: Line = "Real or fake?"
    """title of the pages"""
    contact: Line = ""
    """name and contact of the researcher, shown on all pages"""
    consent: Annotated[str, File()] = ""
    """text file with paragraphs for the first page, in place of the default text"""
    codes: Annotated[str, File()] = ""
    """text file with the accepted participant codes, one per line; default: accept any code"""


@dataclass
class StudyReportConfig(CommandConfig):
    """Report how often people were fooled: rates with intervals, pairwise tests, attention, timing and pictures."""

    ignored = ("device",)

    study: Annotated[str, File()]
    """study folder that contains answers"""
    out: Out
    """folder for the page and its tables; files of an earlier report are replaced, other files are not"""
    attention: Fraction = 0.5
    """minimum fraction of attention checks that participants must recognise to be included"""
    unfinished: bool = False
    """include participants who did not finish"""
    resamples: Annotated[int, Interval(ge=100, le=1_000_000)] = 10_000
    """number of bootstrap resamples; each resamples participants, then pairs within each participant"""
    p_values: Test = "two-sided"
    """p-values for pairs of methods: two-sided, or one-sided as in the paper (one method fools more often than the
    other; ties count half)"""
    level: ProperFraction = 0.95
    """confidence level of the intervals"""
    overwrite: bool = False
    """replace files that this command did not write"""
