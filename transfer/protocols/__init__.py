"""Registry of protocols, built in or user-defined; :func:`find_protocol` looks them up.

A built-in protocol is a package beside this file: ``config`` (its keys) and ``protocol`` (the
:class:`~transfer.protocol.Protocol`, which has the package's name). The command line, the lazy names of ``transfer``,
reports, comparisons and the launcher read this table. Does not import torch, to keep ``--help`` fast.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from crosschannel.errors import UserError
from crosschannel.factories import Entry, find_entry, import_object
from crosschannel.parsing import Command

if TYPE_CHECKING:
    from transfer.protocol import Protocol, Scored

ENTRY_POINTS = "crosschannel.protocols"  # group of the entry points of other packages' protocols
SCORED = {"evaluate": "transfer.colourings:EVALUATION"}  # other commands whose runs are compared and reported


def _row(package: str, config: str, help: str) -> Entry:
    module = f"transfer.protocols.{package}"
    return Entry(f"{module}.protocol:{package}", f"{module}.config:{config}", help)


PROTOCOLS = {
    "linear-probe": _row("linear_probe", "LinearProbeConfig", "linear classifiers on the layers of a frozen backbone"),
    "knn": _row("knn", "KNNConfig", "nearest neighbours in the features of a frozen backbone"),
    "few-shot": _row("few_shot", "FewShotConfig", "logistic regression on frozen features of a few labels"),
    "svm": _row("svm", "SVMConfig", "linear SVMs on frozen features of PASCAL VOC, with all labels and a few"),
    "classify": _row("classify", "ClassifyConfig", "fine-tune a backbone to classify PASCAL VOC"),
    "detect": _row("detect", "DetectConfig", "fine-tune a backbone to find the objects of PASCAL VOC"),
    "segment": _row("segment", "SegmentConfig", "fine-tune a backbone to segment PASCAL VOC"),
    "dense": _row("dense", "DenseConfig", "linear and nearest-neighbour segmentation on frozen layers"),
}


def find_protocol(name: str) -> Entry | None:
    """The row of a protocol: ours, an installed package's, or ``package.module:protocol``; None for any other name.

    Raises:
        UserError: it cannot be imported, or is not a protocol of that name.
    """
    row = find_entry(name, PROTOCOLS, ENTRY_POINTS, _user_row)
    if row is not None and row.keys.protocol != name:
        raise UserError(
            f"{row.import_path!r} is the protocol {row.keys.protocol!r}: {row.keys.__name__}.protocol must be {name!r}"
        )
    return row


def load_protocol(name: str) -> "Protocol | None":
    """Import a protocol; None for any other name."""
    row = find_protocol(name)
    return row and row.load()


def load_scored(name: str) -> "Protocol | Scored | None":
    """How to compute and show the figures of a command's runs; None for runs without rows of images."""
    return resolve_name(SCORED[name]) if name in SCORED else load_protocol(name)


def _user_row(import_path: str) -> Entry:
    """The row of a user-defined protocol."""
    protocol = import_object(import_path)
    if not isinstance(protocol, resolve_name("transfer.protocol:Protocol")):
        raise UserError(f"{import_path!r} must be a transfer.protocol.Protocol, got {type(protocol).__name__}")
    keys = protocol.config
    doc = (keys.__doc__ or "").strip() or import_path
    return Entry(import_path, f"{keys.__module__}:{keys.__qualname__}", doc.splitlines()[0])


def command_of(row: Entry) -> Command:
    """A protocol as a command."""
    return Command(row.config, "transfer.protocol:main", row.help, after="transfer.after:measure")


def user_command(name: str) -> Command | None:
    """The command of a protocol that is not built in."""
    row = find_protocol(name)
    return row and command_of(row)
