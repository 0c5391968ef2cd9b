"""Types of config keys: a range or pattern is annotated-types metadata, which pydantic checks and help prints.

    lr: Annotated[float, Gt(0)] = 1e-3
    data: Annotated[Text, Data()] = ""

A key is part of a run's *science* (it changes the result, so a resumed run refuses another value) unless it is marked
``RUNTIME``. Roles mark the keys that name a backbone, images or files, so that no code depends on names of keys.
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
    """Markers of a key; unlike roles, they have no attributes."""

    RUNTIME = "may change when a run is resumed"
    SEED = "random seed: runs that differ only here are repetitions"
    HIDDEN = "not shown in help"


RUNTIME, SEED, HIDDEN = Mark.RUNTIME, Mark.SEED, Mark.HIDDEN


@dataclass(frozen=True)
class Source:
    """Role of a key that names a backbone, or several (see :mod:`crosschannel.hub.sources`).

    Attributes:
        loads: kind of object that the source is loaded as.
        extract: function that takes the source out of the key's value; returns "" if there is none.
    """

    loads: Literal["backbone", "colorizer", "classifier"] = "backbone"
    extract: Callable[[str], str] = str


@dataclass(frozen=True)
class Data:
    """Role of a key that names a data set. A resumed run may use another path: images are compared by their names.

    Attributes:
        download: name of the boolean key that allows a download; empty if there is none.
    """

    download: str = ""


@dataclass(frozen=True)
class File:
    """Role of a key that names files or folders to read.

    Attributes:
        packaged: values that name files of the package, not paths.
        download: as in :class:`Data`; files with it may have another path when a run is resumed.
    """

    packaged: tuple[str, ...] = ()
    download: str = ""


@dataclass(frozen=True)
class LegacyDefault:
    """Value to assume for runs that predate the key, if it differs from the default."""

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
