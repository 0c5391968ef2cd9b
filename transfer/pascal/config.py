"""Keys of every protocol on PASCAL VOC."""

import re
from dataclasses import dataclass
from typing import Annotated

from crosschannel.config.types import RUNTIME, Data, File, Pattern, Text
from crosschannel.errors import UserError
from transfer.config import SETS, MeasureConfig

Sets = Annotated[str, SETS]
_WITH_SBD = Pattern(
    r"(\d{4}|sbd):[\w-]+(,(\d{4}|sbd):[\w-]+)*", "YEAR:SET or sbd:SET, such as 2012:train, or several by commas"
)
SetsWithMasks = Annotated[str, _WITH_SBD]


@dataclass
class PascalConfig(MeasureConfig):
    """Keys of every protocol on PASCAL VOC."""

    data: Annotated[Text, Data("download")] = ""
    """the VOCdevkit folder (VOC2007 and the like are in it)"""
    train_set: Sets = "2007:trainval"
    """image sets that are learned, such as 2007:trainval,2012:trainval"""
    test_set: Sets = "2007:test"
    """image sets that are scored"""
    download: Annotated[bool, RUNTIME] = False
    """fetch what is not there from the archives that torchvision knows, with their checksums"""

    def check(self) -> None:
        twice = set(named_sets(self.train_set)) & set(named_sets(self.test_set))
        if twice:
            raise UserError(f"{':'.join(min(twice))} is in both train_set and test_set")


@dataclass
class MasksConfig(PascalConfig):
    """Keys of every protocol on PASCAL VOC's segmentation masks."""

    train_set: SetsWithMasks = "sbd:train"
    """image sets that are learned: YEAR:SET of the devkit, sbd:SET of SBD"""
    test_set: SetsWithMasks = "2011:seg11valid"
    """image sets that are scored; 2011:seg11valid is VOC2011's val without what SBD's train has"""
    sbd: Annotated[Text | None, File(download="download")] = None
    """folder of the Semantic Boundaries Dataset (img, cls, train.txt are in it, or in dataset); default
    benchmark_RELEASE/dataset in the devkit or beside it"""

    def check(self) -> None:
        super().check()
        for year, name in (one for sets in (self.train_set, self.test_set) for one in named_sets(sets)):
            if name == "seg11valid" and year != "2011":
                raise UserError(f"{year}:{name}: seg11valid is a set of 2011")


def named_sets(sets: str) -> list[tuple[str, str]]:
    """(year, image set) of each that is named."""
    return [tuple(one.split(":")) for one in re.split(",", sets)]
