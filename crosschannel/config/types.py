"""Types of config keys: a range or pattern is annotated-types metadata, which pydantic checks and help prints.

    lr: Annotated[float, Gt(0)] = 1e-3
    data: Annotated[Text, Data()] = ""

A key is *science* (it changes the result; a resumed run refuses another value) unless it is marked ``RUNTIME``. Roles
tell the launcher, the cache and reports which keys name a backbone, images or files, so that no code goes by key names.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Predicate


class Pattern(Predicate):
    """Regular expression that a string matches as a whole, with the phrase for messages and help."""

    phrase: str

    def __init__(self, regex: str, phrase: str):
        object.__setattr__(self, "func", re.compile(regex, re.DOTALL).fullmatch)
        object.__setattr__(self, "phrase", phrase)


class Mark(Enum):
    """Properties of a key without parameters."""

    RUNTIME = "a resumed run may change it"
    SEED = "runs that differ in it alone are repetitions"
    HIDDEN = "not in help"


RUNTIME, SEED, HIDDEN = Mark.RUNTIME, Mark.SEED, Mark.HIDDEN


@dataclass(frozen=True)
class Source:
    """Role of a key that names a backbone, or several (see :mod:`crosschannel.hub.sources`).

    Attributes:
        loads: the kind of object to load.
        extract: value of the key → source in it, empty if there is none.
    """

    loads: Literal["backbone", "colorizer", "classifier"] = "backbone"
    extract: Callable[[str], str] = str


@dataclass(frozen=True)
class Data:
    """Role of a key that names images. They are identified by their names, so a resumed run finds them elsewhere.

    Attributes:
        download: the key that allows missing images to be downloaded.
    """

    download: str = ""


@dataclass(frozen=True)
class File:
    """Role of a key that names files or folders to read.

    Attributes:
        packaged: values that stand for files of the package.
        download: for images, which may move between resumes: the key that allows a download.
    """

    packaged: tuple[str, ...] = ()
    download: str = ""


@dataclass(frozen=True)
class LegacyDefault:
    """Value that runs had before the key existed, if the default differs."""

    value: Any


Count = Annotated[int, Ge(1)]
Workers = Annotated[int, Interval(ge=0, le=1024)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
ProperFraction = Annotated[float, Interval(gt=0, lt=1)]
FractionBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Side = Annotated[int, Interval(ge=1, le=4096)]  # of an image that a net sees, in pixels
FCWidth = Annotated[int, Interval(ge=0, le=65536)]
Seed = Annotated[int, Ge(0), SEED]
Device = Annotated[str, Pattern(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N"), RUNTIME]
Text = Annotated[str, Pattern("[^\ud800-\udfff]*", "UTF-8 text")]  # for strings that are written to files
Out = Annotated[str, Pattern("[^\ud800-\udfff]+", "the name of a file or folder, in UTF-8")]
Line = Annotated[str, Pattern(r"[^\n\r]*", "one line")]
Host = Annotated[
    str,
    Pattern(
        # A full IPv4 address, an IPv6 address, or a name. The last label of a name must not look like a number, since
        # the system also parses 0, 127.1 and 0x7f000001 as addresses.
        r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.(?!$)|$)){4}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[\w.-]+)?"
        r"|([A-Za-z0-9_-]{1,63}\.)*(?=[A-Za-z_]|[A-Za-z0-9_-]*[g-wyzG-WYZ_-])[A-Za-z0-9_-]{1,63}",
        "a host name or a full IP address, such as 127.0.0.1 (this machine only) or 0.0.0.0 (every interface)",
    ),
]
