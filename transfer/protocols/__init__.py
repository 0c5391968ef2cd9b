"""Registry of protocols, built in or user-defined; :func:`find_protocol` looks them up.

A built-in protocol is a package beside this file: ``config`` (its keys) and ``protocol`` (the
:class:`~transfer.protocol.Protocol`, which has the package's name). The command line, the lazy names of ``transfer``,
reports, comparisons and the launcher read this table. Does not import torch, to keep ``--help`` fast.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from crosschannel.command import Command
from crosschannel.errors import UserError
from crosschannel.factories import Entry, find_entry, import_object

if TYPE_CHECKING:
    from transfer.protocol import MetricSpec, Protocol

ENTRY_POINTS = "crosschannel.protocols"  # entry-point group for protocols of other packages
SCORED = {"evaluate": "transfer.colorization_section:EVALUATION"}  # other commands whose runs are compared and reported


def _entry(package: str, config: str, help: str) -> Entry:
    module = f"transfer.protocols.{package}"
    return Entry(f"{module}.protocol:{package}", f"{module}.config:{config}", help)


PROTOCOLS = {
    "linear-probe": _entry(
        "linear_probe", "LinearProbeConfig", "linear classifiers on the layers of a frozen backbone"
    ),
    "knn": _entry("knn", "KNNConfig", "nearest neighbours in the features of a frozen backbone"),
    "few-shot": _entry("few_shot", "FewShotConfig", "logistic regression on frozen features with few labels"),
    "svm": _entry("svm", "SVMConfig", "linear SVMs on frozen features, PASCAL VOC, all labels and low-shot"),
    "classify": _entry("classify", "ClassifyConfig", "fine-tune a backbone to classify PASCAL VOC"),
    "detect": _entry("detect", "DetectConfig", "fine-tune a detector on PASCAL VOC"),
    "segment": _entry("segment", "SegmentConfig", "fine-tune a backbone to segment PASCAL VOC"),
    "dense": _entry("dense", "DenseConfig", "linear and nearest-neighbour segmentation on frozen layers"),
}


def find_protocol(name: str) -> Entry | None:
    """Look up a protocol: built in, an installed package's, or ``package.module:protocol``; None for any other name.

    Raises:
        UserError: it cannot be imported, or is not a protocol of that name.
    """
    entry = find_entry(name, PROTOCOLS, ENTRY_POINTS, _user_entry)
    if entry is not None and entry.keys.protocol != name:
        raise UserError(
            f"{entry.keys.__name__}.protocol is {entry.keys.protocol!r}; set it to {name!r}, or use that name"
        )
    return entry


def load_protocol(name: str) -> "Protocol | None":
    """Import a protocol; None for any other name."""
    entry = find_protocol(name)
    return entry and entry.load()


def is_protocol(command: str) -> bool:
    """Whether runs of a command are a protocol's, known here or not."""
    return command not in ("pretrain", *SCORED)


def load_metric_spec(name: str) -> "Protocol | MetricSpec | None":
    """Metric spec of a command; None if its runs store no per-image rows."""
    return resolve_name(SCORED[name]) if name in SCORED else load_protocol(name)


def _user_entry(import_path: str) -> Entry:
    """The entry of a user-defined protocol."""
    protocol = import_object(import_path)
    if not isinstance(protocol, resolve_name("transfer.protocol:Protocol")):
        raise UserError(f"{import_path!r} must be a transfer.protocol.Protocol, got {type(protocol).__name__}")
    return Entry.custom(import_path, protocol.config, protocol.config)


def protocol_command(config: str | type, help: str = "") -> Command:
    """The command of a protocol with that config dataclass, or module:class of it."""
    return Command(config, "transfer.protocol:main", help, next_steps="transfer.next_steps:measure")


def user_command(name: str) -> Command | None:
    """The command of a protocol that is not built in."""
    entry = find_protocol(name)
    return entry and protocol_command(entry.config, entry.help)
