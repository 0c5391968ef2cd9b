"""The keys of `crosschannel study build | serve | report`. No torch here: help is quick."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from crosschannel.config.load import require
from crosschannel.config.training import CommandConfig, PlainConfig
from crosschannel.config.types import Data, File, Fraction, Host, Line, Out, ProperFraction, Source, Text
from crosschannel.evaluation.config import parse_methods, source_of
from crosschannel.study.manifest import First, Gamut, Pause

Test = Literal["two-sided", "one-sided"]


@dataclass
class StudyBuildConfig(CommandConfig):
    """Make the pictures of a study: photographs as they are, and coloured by every method."""

    data: Annotated[Text, Data()]
    """a folder of colour images, tar shards, builtin:sample or torchvision:imagenette; of its val/, where it has one"""
    out: Out
    """folder of the study, an empty or new one"""
    methods: Annotated[list[str], Source("colorizer", source_of)] = field(default_factory=list)
    """nets that colour, as [NAME=]SOURCE[,temperature=T], and the baselines random and grey"""
    images: Annotated[int, Interval(ge=1, le=100_000)] = 100
    """photographs that are judged, chosen at random; those of practice come on top"""
    pairs: Annotated[int, Interval(ge=1, le=1000)] = 40
    """pairs that a participant judges"""
    practice: Annotated[int, Interval(ge=0, le=100)] = 10
    """pairs before them, with feedback"""
    checks: Annotated[float, Interval(ge=0, le=0.5)] = 0.1
    """share of the pairs whose colours are another photograph's: attention checks"""
    size: Annotated[int, Interval(ge=32, le=1024)] = 256
    """photographs are reduced to this short side and cropped to its centre square"""
    upsample: Literal["bilinear", "edges"] = "bilinear"
    """how predictions reach every pixel: bilinear, as in the paper, or edges, as `crosschannel colorize` does"""
    gamut: Gamut = "map"
    """treatment of colours outside sRGB: map moves them towards grey at the same lightness, clip clips channels (as in
    the paper)"""
    first: First = "left"
    """first picture of a pair: left (as in the paper) or random"""
    before_ms: Pause = 900
    """pause before the first picture of a pair, in ms"""
    between_ms: Pause = 600
    """pause between the two pictures of a pair, in ms"""

    def check(self) -> None:
        chosen = parse_methods(self.methods)
        for method in chosen:
            fake = method.source != "truth" and method.name not in ("truth", "check")
            require(
                fake, "the truth is in every pair: methods are what is fake, and not called truth or check", method.name
            )
        require(self.images >= self.pairs, "images must be at least pairs: nobody sees a photograph twice", self.images)


@dataclass
class StudyServeConfig(PlainConfig):
    """Serve a study: consent, practice, pairs, and a code at the end; answers are kept in the study's folder."""

    study: Annotated[str, File()]
    """a folder that `crosschannel study build` has made"""
    host: Host = "127.0.0.1"
    """address to listen on; 0.0.0.0 means every interface of this machine"""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """to listen on"""
    title: Line = "Real or fake?"
    """of the pages"""
    contact: Line = ""
    """who is responsible, and how to reach them: on the first page"""
    consent: Annotated[str, File()] = ""
    """a text file whose paragraphs are the first page's, in place of ours"""
    codes: Annotated[str, File()] = ""
    """a text file of the participant codes that are let in, one a line; default any code"""


@dataclass
class StudyReportConfig(CommandConfig):
    """How often people were fooled: rates with intervals, pairwise tests, attention, timing, pictures."""

    ignored = ("device",)

    study: Annotated[str, File()]
    """a folder that `crosschannel study build` has made and `serve` has filled"""
    out: Out
    """folder for the page and its tables; files of an earlier report in it are replaced, others are not"""
    attention: Fraction = 0.5
    """participants who recognise a smaller share of the attention checks are left out"""
    unfinished: bool = False
    """count the answers of participants who did not come to the end too"""
    resamples: Annotated[int, Interval(ge=100, le=1_000_000)] = 10_000
    """number of bootstrap resamples (of participants, then of the pairs of each)"""
    p_values: Test = "two-sided"
    """p-values for each pair of methods: two-sided, or one-sided as in the paper (one method fools more often than the
    other; ties count half)"""
    level: ProperFraction = 0.95
    """of the intervals"""
    overwrite: bool = False
    """replace files that this command has not written"""
