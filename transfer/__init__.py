"""Measure what a backbone has learned: probes on frozen layers, fine-tuning, and comparisons of runs.

Every protocol is a function first and a command second; the names below are imported on first use.
"""

from typing import TYPE_CHECKING

from transfer.protocols import PROTOCOLS

if TYPE_CHECKING:
    from crosschannel.runs.result import Result, load_result
    from transfer.comparison import compare
    from transfer.predict import load_predictor
    from transfer.protocols.classify.config import ClassifyConfig
    from transfer.protocols.classify.protocol import classify
    from transfer.protocols.dense.config import DenseConfig
    from transfer.protocols.dense.protocol import dense
    from transfer.protocols.detect.config import DetectConfig
    from transfer.protocols.detect.protocol import detect
    from transfer.protocols.few_shot.config import FewShotConfig
    from transfer.protocols.few_shot.protocol import few_shot
    from transfer.protocols.knn.config import KNNConfig
    from transfer.protocols.knn.protocol import knn
    from transfer.protocols.linear_probe.config import LinearProbeConfig
    from transfer.protocols.linear_probe.protocol import linear_probe
    from transfer.protocols.segment.config import SegmentConfig
    from transfer.protocols.segment.protocol import segment
    from transfer.protocols.svm.config import SVMConfig
    from transfer.protocols.svm.protocol import svm

_LAZY = {
    "Result": "crosschannel.runs.result",
    "compare": "transfer.comparison",
    "load_predictor": "transfer.predict",
    "load_result": "crosschannel.runs.result",
}
for _entry in PROTOCOLS.values():
    _LAZY |= {_entry.package: f"{_entry.module}.protocol", _entry.config: f"{_entry.module}.config"}

__all__ = [
    "ClassifyConfig",
    "DenseConfig",
    "DetectConfig",
    "FewShotConfig",
    "KNNConfig",
    "LinearProbeConfig",
    "Result",
    "SVMConfig",
    "SegmentConfig",
    "classify",
    "compare",
    "dense",
    "detect",
    "few_shot",
    "knn",
    "linear_probe",
    "load_predictor",
    "load_result",
    "segment",
    "svm",
]


def __getattr__(name: str):
    from crosschannel.parsing import named

    if name in _LAZY:
        return named(f"{_LAZY[name]}:{name}")
    raise AttributeError(f"module 'transfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
