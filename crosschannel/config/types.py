"""Types of config keys. Ranges and patterns are annotated-types metadata, which pydantic validates and help prints.

    lr: Annotated[float, Gt(0)] = 1e-3
    data: Annotated[Text, Data()] = ""

Keys affect the results of a run, so a resumed run rejects changed values, unless the key is marked ``RUNTIME``. Roles
mark the keys that name a backbone, images or files, so that code does not depend on key names.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Predicate


class Pattern(Predicate):
    """Regular expression that the entire string must match, and a phrase that describes it in messages and help."""

    phrase: str

    def __init__(self, regex: str, phrase: str):
        object.__setattr__(self, "func", re.compile(regex, re.DOTALL).fullmatch)
        object.__setattr__(self, "phrase", phrase)


class Mark(Enum):
    """Mark of a key. Unlike a role, a mark has no attributes."""

    RUNTIME = "may change when a run is resumed"
    SEED = "random seed; runs that differ only in it are repetitions"
    HIDDEN = "not shown in help"


RUNTIME, SEED, HIDDEN = Mark.RUNTIME, Mark.SEED, Mark.HIDDEN


@dataclass(frozen=True)
class Source:
    """Role of a key that names one or several backbones (see :mod:`crosschannel.hub.sources`).

    Attributes:
        loads: kind of object that is loaded from the source.
        extract: function that extracts the source from the key's value, or returns "" if the value contains none.
    """

    loads: Literal["backbone", "colorizer", "classifier"] = "backbone"
    extract: Callable[[str], str] = str


@dataclass(frozen=True)
class Data:
    """Role of a key that names a data set. A resumed run may use another path, since images are compared by name.

    Attributes:
        download: name of the boolean key that permits downloading the data, or "".
    """

    download: str = ""


@dataclass(frozen=True)
class File:
    """Role of a key that names input files or folders.

    Attributes:
        packaged: values that refer to packaged files instead of paths.
        download: as in :class:`Data`; if it is set, a resumed run may use another path.
    """

    packaged: tuple[str, ...] = ()
    download: str = ""


@dataclass(frozen=True)
class LegacyDefault:
    """Default for runs that are older than the key, if it differs from the current default."""

    value: Any


Count = Annotated[int, Ge(1)]
Workers = Annotated[int, Interval(ge=0, le=1024)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
ProperFraction = Annotated[float, Interval(gt=0, lt=1)]
FractionBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Side = Annotated[int, Interval(ge=1, le=4096)]  # side of a model's input image, in pixels
FCWidth = Annotated[int, Interval(ge=0, le=65536)]
Seed = Annotated[int, Ge(0), SEED]
Device = Annotated[str, Pattern(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N"), RUNTIME]
Text = Annotated[str, Pattern("[^\ud800-\udfff]*", "UTF-8 text")]  # strings that are written to files
Out = Annotated[str, Pattern("[^\ud800-\udfff]+", "the name of a file or folder, in UTF-8")]
Line = Annotated[str, Pattern(r"[^\n\r]*", "one line")]
Host = Annotated[
    str,
    Pattern(
        # A complete IPv4 address, an IPv6 address, or a host name. The last label of a host name must not look like a
        # number, since the system also parses 0, 127.1 and 0x7f000001 as addresses.
        r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.(?!$)|$)){4}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[\w.-]+)?"
        r"|([A-Za-z0-9_-]{1,63}\.)*(?=[A-Za-z_]|[A-Za-z0-9_-]*[g-wyzG-WYZ_-])[A-Za-z0-9_-]{1,63}",
        "a host name or a full IP address, such as 127.0.0.1 (this machine only) or 0.0.0.0 (every interface)",
    ),
]
