"""Prediction targets of a protocol, per image or per pixel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classes:
    """One or several classes per image.

    Attributes:
        names: class names, indexed by label.
    """

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.names)} classes"


@dataclass(frozen=True)
class Masks(Classes):
    """One class per pixel: label maps (H, W).

    Attributes:
        ignore_index: label of pixels that the loss and the metrics ignore.
    """

    ignore_index: int = 255


@dataclass(frozen=True)
class Values:
    """Continuous values per image or per pixel, such as depth.

    Attributes:
        name: name of the quantity.
        unit: unit of the quantity, such as "m"; empty if dimensionless.
    """

    name: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.unit}" if self.unit else self.name


Targets = Classes | Values
