"""Measure what a backbone has learned: probes on frozen layers, fine-tuning, and comparisons of runs.

Every protocol is a function first and a command second; the names below are imported on first use.
"""

from transfer.protocols import PROTOCOLS

_LAZY = {
    "Result": "crosschannel.runs.result",
    "compare": "transfer.comparison",
    "load_predictor": "transfer.predict",
    "load_result": "crosschannel.runs.result",
}
for _entry in PROTOCOLS.values():
    _LAZY |= {_entry.package: f"{_entry.module}.protocol", _entry.config: f"{_entry.module}.config"}

__all__ = list(_LAZY)


def __getattr__(name: str):
    from crosschannel.parsing import named

    if name in _LAZY:
        return named(f"{_LAZY[name]}:{name}")
    raise AttributeError(f"module 'transfer' has no attribute {name!r}")
