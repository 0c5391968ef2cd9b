"""Registry of the built-in and user-defined evaluation protocols.

Each built-in protocol is a package in this folder. Its module ``config`` defines the config dataclass. Its module
``protocol`` defines the :class:`~transfer.protocol.Protocol`, in a variable named after the package. The command line,
the lazily imported names of ``transfer``, reports, comparisons and the launcher read this registry. It does not import
torch, to keep ``--help`` fast.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from crosschannel.command import Command
from crosschannel.errors import UserError
from crosschannel.factories import Entry, find_entry, import_object

if TYPE_CHECKING:
    from transfer.protocol import MetricSpec, Protocol

ENTRY_POINTS = "crosschannel.protocols"  # entry-point group for protocols of other packages
_METRIC_SPECS = {"evaluate": "transfer.colorization_section:EVALUATION"}  # for commands that are not protocols


def _entry(package: str, config: str, help: str) -> Entry:
    module = f"transfer.protocols.{package}"
    return Entry(f"{module}.protocol:{package}", f"{module}.config:{config}", help)


PROTOCOLS = {
    "linear-probe": _entry(
        "linear_probe", "LinearProbeConfig", "train linear classifiers on the layers of a frozen backbone"
    ),
    "knn": _entry(
        "knn", "KNNConfig", "classify images by nearest neighbours in the feature space of a frozen backbone"
    ),
    "few-shot": _entry("few_shot", "FewShotConfig", "fit logistic regressions to frozen features with few labels"),
    "svm": _entry("svm", "SVMConfig", "train linear SVMs on frozen PASCAL VOC features, with all or few labels"),
    "classify": _entry("classify", "ClassifyConfig", "fine-tune a backbone for PASCAL VOC classification"),
    "detect": _entry("detect", "DetectConfig", "fine-tune a backbone for PASCAL VOC detection"),
    "segment": _entry("segment", "SegmentConfig", "fine-tune a backbone for PASCAL VOC segmentation"),
    "dense": _entry(
        "dense", "DenseConfig", "segment images with linear and nearest-neighbour classifiers on frozen layers"
    ),
}


def find_protocol(name: str) -> Entry | None:
    """Look up a built-in protocol, an entry point or ``package.module:protocol`` by name; None if there is none.

    Raises:
        UserError: the protocol cannot be imported, or its config declares a different name.
    """
    entry = find_entry(name, PROTOCOLS, ENTRY_POINTS, _user_entry)
    if entry is not None and entry.keys.protocol != name:
        raise UserError(
            f"{entry.keys.__name__}.protocol is {entry.keys.protocol!r}; set it to {name!r}, or use the declared name"
        )
    return entry


def load_protocol(name: str) -> "Protocol | None":
    """Import a protocol; None if there is no protocol with this name."""
    entry = find_protocol(name)
    return entry and entry.load()


def is_protocol(command: str) -> bool:
    """Return whether a command runs a protocol, including a protocol that is not installed here."""
    return command not in ("pretrain", *_METRIC_SPECS)


def load_metric_spec(name: str) -> "Protocol | MetricSpec | None":
    """Import the metric spec of a command; None if its runs store no per-image rows."""
    return resolve_name(_METRIC_SPECS[name]) if name in _METRIC_SPECS else load_protocol(name)


def _user_entry(import_path: str) -> Entry:
    """Return the registry entry of a user-defined protocol."""
    protocol = import_object(import_path)
    if not isinstance(protocol, resolve_name("transfer.protocol:Protocol")):
        raise UserError(f"{import_path!r} must be a transfer.protocol.Protocol, got {type(protocol).__name__}")
    return Entry.custom(import_path, protocol.config, protocol.config)


def protocol_command(config: str | type, help: str = "") -> Command:
    """Return the command of a protocol.

    Args:
        config: config dataclass of the protocol, or its import path ``module:class``.
        help: one-line description of the command.
    """
    return Command(config, "transfer.protocol:main", help, next_steps="transfer.next_steps:measure")


def user_command(name: str) -> Command | None:
    """Return the command of a protocol that is not built in; None if there is no protocol with this name."""
    entry = find_protocol(name)
    return entry and protocol_command(entry.config, entry.help)
