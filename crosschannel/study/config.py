"""The keys of `crosschannel study build | serve | report`. No torch here: help is quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from crosschannel.evaluation.config import parse_methods, source_of
from crosschannel.keys import Device, Host, Line, Out, Part, Seed, Text, at_least, require, within
from crosschannel.runs.config import PlainConfig, path, seed, source
from crosschannel.runs.config import data as photographs
from crosschannel.study.manifest import First, Gamut, Pause

Test = Literal["two-sided", "one-sided"]


@dataclass
class StudyBuildConfig:
    """Make the pictures of a study: photographs as they are, and coloured by every method."""

    data: Text = photographs()
    """a folder of colour images, tar shards, builtin:sample or torchvision:imagenette; of its val/, where it has one"""
    out: Out
    """folder of the study, an empty or new one"""
    methods: list[str] = source(factory=list, loads="colorizer", named=source_of)
    """nets that colour, as [NAME=]SOURCE[,temperature=T], and the baselines random and grey"""
    images: Annotated[int, at_least(1, 100_000)] = 100
    """photographs that are judged, chosen at random; those of practice come on top"""
    pairs: Annotated[int, within(1, 1000)] = 40
    """pairs that a participant judges"""
    practice: Annotated[int, within(0, 100)] = 10
    """pairs before them, with feedback"""
    checks: Annotated[float, within(0, 0.5)] = 0.1
    """share of the pairs whose colours are another photograph's: attention checks"""
    size: Annotated[int, within(32, 1024)] = 256
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
    seed: Seed = seed()
    """of the choice of photographs, and of whose colours the checks have"""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N"""

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

    study: str = path(help="a folder that `crosschannel study build` has made")
    host: Host = "127.0.0.1"
    """address to listen on; 0.0.0.0 means every interface of this machine"""
    port: Annotated[int, within(1, 65535)] = 8000
    """to listen on"""
    title: Line = "Real or fake?"
    """of the pages"""
    contact: Line = ""
    """who is responsible, and how to reach them: on the first page"""
    consent: str = path("", help="a text file whose paragraphs are the first page's, in place of ours")
    codes: str = path("", help="a text file of the participant codes that are let in, one a line; default any code")


@dataclass
class StudyReportConfig:
    """How often people were fooled: rates with intervals, pairwise tests, attention, timing, pictures."""

    study: str = path(help="a folder that `crosschannel study build` has made and `serve` has filled")
    out: Out
    """folder for the page and its tables; files of an earlier report in it are replaced, others are not"""
    attention: Annotated[float, within(0, 1)] = 0.5
    """participants who recognise a smaller share of the attention checks are left out"""
    unfinished: bool = False
    """count the answers of participants who did not come to the end too"""
    resamples: Annotated[int, within(100, 1_000_000)] = 10_000
    """number of bootstrap resamples (of participants, then of the pairs of each)"""
    p_values: Test = "two-sided"
    """p-values for each pair of methods: two-sided, or one-sided as in the paper (one method fools more often than the
    other; ties count half)"""
    level: Part = 0.95
    """of the intervals"""
    overwrite: bool = False
    """replace files that this command has not written"""
    seed: Seed = seed()
    """of the bootstrap"""
    device: Device = "auto"
    """taken as by every command; nothing here needs one"""
