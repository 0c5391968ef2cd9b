"""Config keys shared by all protocols on PASCAL VOC."""

import re
from dataclasses import dataclass
from typing import Annotated

from crosschannel.config.types import RUNTIME, Data, File, Pattern, Text
from crosschannel.errors import UserError
from transfer.config import SETS, MeasureConfig

Sets = Annotated[str, SETS]
_WITH_SBD = Pattern(
    r"(\d{4}|sbd):[\w-]+(,(\d{4}|sbd):[\w-]+)*",
    "YEAR:SET or sbd:SET, such as 2012:train, or several separated by commas",
)
SetsWithMasks = Annotated[str, _WITH_SBD]


@dataclass
class PascalConfig(MeasureConfig):
    """Keys of every protocol on PASCAL VOC."""

    data: Annotated[Text, Data("download")] = ""
    """VOCdevkit folder, with VOC2007, VOC2012, …"""
    train_set: Sets = "2007:trainval"
    """image sets to train on, such as 2007:trainval,2012:trainval"""
    test_set: Sets = "2007:test"
    """image sets to test on"""
    download: Annotated[bool, RUNTIME] = False
    """download missing years from torchvision's URLs and verify their checksums"""

    def check(self) -> None:
        duplicates = set(parse_sets(self.train_set)) & set(parse_sets(self.test_set))
        if duplicates:
            raise UserError(f"{':'.join(min(duplicates))} is in both train_set and test_set")


@dataclass
class MasksConfig(PascalConfig):
    """Keys of every protocol on the segmentation masks of PASCAL VOC."""

    train_set: SetsWithMasks = "sbd:train"
    """image sets to train on: YEAR:SET of the devkit or sbd:SET of SBD"""
    test_set: SetsWithMasks = "2011:seg11valid"
    """image sets to test on; 2011:seg11valid is VOC2011's val minus the images of SBD's train"""
    sbd: Annotated[Text | None, File(download="download")] = None
    """folder of the Semantic Boundaries Dataset, with img, cls and train.txt in it or in its subfolder dataset;
    default: benchmark_RELEASE/dataset inside or next to the devkit"""

    def check(self) -> None:
        super().check()
        for year, name in (entry for sets in (self.train_set, self.test_set) for entry in parse_sets(sets)):
            if name == "seg11valid" and year != "2011":
                raise UserError(f"unknown image set {year}:{name}: seg11valid exists for 2011 only")


def parse_sets(sets: str) -> list[tuple[str, str]]:
    """Parse a comma-separated list of image sets into pairs (year, set name)."""
    return [tuple(entry.split(":")) for entry in re.split(",", sets)]
