"""Measure what a backbone has learned: linear probes on frozen layers, kNN, and comparisons of runs.

Every protocol is a function first and a command second; the names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transfer.comparison import compare
    from transfer.protocols.knn import KNNConfig, knn
    from transfer.protocols.linear_probe import LinearProbeConfig, linear_probe
    from transfer.result import Result

__all__ = ["KNNConfig", "LinearProbeConfig", "Result", "compare", "knn", "linear_probe"]

_LAZY = {
    "KNNConfig": "transfer.protocols.knn",
    "LinearProbeConfig": "transfer.protocols.linear_probe",
    "Result": "transfer.result",
    "compare": "transfer.comparison",
    "knn": "transfer.protocols.knn",
    "linear_probe": "transfer.protocols.linear_probe",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'transfer' has no attribute {name!r}")
