"""The protocols: a row each. A protocol is a package beside this file: ``config`` (its keys), ``protocol`` (its
``PROTOCOL`` and its function). The command line, the lazy names of ``transfer``, reports, comparisons and the launcher
go by this table. No torch here: help is quick.
"""

from dataclasses import dataclass
from pkgutil import resolve_name

from crosschannel.parsing import Command


@dataclass(frozen=True)
class Entry:
    """Where a protocol is.

    Attributes:
        package: its name below ``transfer.protocols``, which is its function's too.
        config: name of its dataclass.
        help: one line.
    """

    package: str
    config: str
    help: str

    @property
    def module(self) -> str:
        return f"transfer.protocols.{self.package}"

    @property
    def command(self) -> Command:
        """Its row of the command line."""
        return Command(
            f"{self.module}.config:{self.config}", "transfer.protocol:main", self.help, after="transfer.after:measure"
        )

    def load(self):
        """The :class:`~transfer.protocol.Protocol`."""
        return resolve_name(f"{self.module}.protocol:PROTOCOL")


@dataclass(frozen=True)
class Scored:
    """Another command whose runs can be compared and reported.

    Attributes:
        metrics, section: module:function, as a protocol has them.
    """

    metrics: str
    section: str


SCORED = {"evaluate": Scored("crosschannel.evaluation.metrics:metrics", "transfer.colourings:section")}

PROTOCOLS = {
    "linear-probe": Entry("linear_probe", "LinearProbeConfig", "linear classifiers on the layers of a frozen backbone"),
    "knn": Entry("knn", "KNNConfig", "nearest neighbours in the features of a frozen backbone"),
    "few-shot": Entry("few_shot", "FewShotConfig", "logistic regression on frozen features of a few labels"),
    "svm": Entry("svm", "SVMConfig", "linear SVMs on frozen features of PASCAL VOC, with all labels and a few"),
    "classify": Entry("classify", "ClassifyConfig", "fine-tune a backbone to classify PASCAL VOC"),
    "detect": Entry("detect", "DetectConfig", "fine-tune a backbone to find the objects of PASCAL VOC"),
    "segment": Entry("segment", "SegmentConfig", "fine-tune a backbone to segment PASCAL VOC"),
    "dense": Entry("dense", "DenseConfig", "linear and nearest-neighbour segmentation on frozen layers"),
}
