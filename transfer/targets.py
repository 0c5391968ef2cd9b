"""Targets of a protocol: what it predicts of an image or of each of its pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classes:
    """Classes of an image, one or several.

    Attributes:
        names: by label.
    """

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.names)} classes"


@dataclass(frozen=True)
class Masks(Classes):
    """A class of each pixel: labels (H, W).

    Attributes:
        ignored: label of pixels that are neither learned nor scored.
    """

    ignored: int = 255


@dataclass(frozen=True)
class Values:
    """Numbers: of an image or of each of its pixels, such as depth.

    Attributes:
        name: of the quantity.
        unit: of the numbers, such as "m"; empty if they have none.
    """

    name: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.unit}" if self.unit else self.name


Targets = Classes | Values
