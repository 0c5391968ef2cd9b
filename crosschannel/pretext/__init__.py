"""Registry of pretext tasks, built-in and user-defined; see :func:`find_task`.

A built-in task is a module of this package with a config dataclass in :mod:`crosschannel.pretext.config`. Does not
import torch, to keep ``--help`` fast.
"""

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from crosschannel.errors import UserError
from crosschannel.factories import Entry, entry_point_names, find_entry, import_object

if TYPE_CHECKING:
    from torch import nn

    from crosschannel.models import NetSpec
    from crosschannel.pretext.task import Pretext

ENTRY_POINTS = "crosschannel.tasks"  # entry-point group for tasks of other packages


def _entry(import_path: str, config: str, help: str) -> Entry:
    return Entry(f"crosschannel.pretext.{import_path}", f"crosschannel.pretext.config:{config}", help)


TASKS: dict[str, Entry] = {
    "colorization": _entry("colorization:Colorization", "ColorizationConfig", "ab from lightness (Zhang et al. 2016)"),
    "larsson": _entry("larsson:Larsson", "LarssonConfig", "hue and chroma from grey (Larsson et al. 2016)"),
    "dahl": _entry("dahl:Dahl", "DahlConfig", "UV from grey (a reimplementation of Dahl 2016)"),
    "autoencoder": _entry("autoencoder:Autoencoder", "AutoencoderConfig", "reconstruction of RGB through a bottleneck"),
    "split-brain": _entry("split_brain:SplitBrain", "SplitBrainConfig", "ab from L and L from ab (Zhang et al. 2017)"),
    "rotation": _entry("rotation:Rotation", "RotationConfig", "angle of a rotated image (Gidaris et al. 2018)"),
    "jigsaw": _entry("jigsaw:Jigsaw", "JigsawConfig", "order of shuffled image tiles (Noroozi and Favaro 2016)"),
    "labels": _entry("labels:Labels", "LabelsConfig", "supervised classification; image folders are the classes"),
}


def find_task(name: str) -> Entry:
    """Look up a built-in task, a task registered by an installed package, or ``package.module:Task``.

    Raises:
        UserError: the task is unknown or cannot be imported.
    """
    entry = find_entry(name, TASKS, ENTRY_POINTS, _user_entry)
    if entry is not None:
        return entry
    known = "; ".join(
        [f"{task} ({builtin.help})" for task, builtin in TASKS.items()] + sorted(entry_point_names(ENTRY_POINTS))
    )
    raise UserError(f"unknown pretext task {name!r}; available: {known}; or package.module:Task")


def _user_entry(import_path: str) -> Entry:
    """Import and check a user-defined task, and return its registry entry."""
    from crosschannel.pretext.task import Pretext

    task_class = import_object(import_path)
    is_task = isinstance(task_class, type) and issubclass(task_class, Pretext)
    keys = getattr(task_class, "keys", None)
    if not is_task or not isinstance(keys, type) or not is_dataclass(keys):
        raise UserError(
            f"{import_path!r} must be a subclass of crosschannel.pretext.task.Pretext with a dataclass as keys"
        )
    missing = [name for name in ("primary_metric", "score_length") if not hasattr(task_class, name)]
    missing += [name for name in ("build", "metrics") if getattr(task_class, name) is getattr(Pretext, name)]
    if missing:
        raise UserError(f"the task {import_path!r} must define {', '.join(missing)}")
    if task_class.decoder:
        import_object(task_class.decoder)
    return Entry.custom(import_path, keys, task_class)


def create(
    name: str, config: Any, spec: "NetSpec", size: int | None = None, classes: Sequence[str] = ()
) -> "tuple[nn.Module, Pretext]":
    """Build the untrained net of a task, and the task itself.

    Args:
        name: name of the task.
        config: config of the task.
        spec: architecture of the backbone.
        size: side of the input, in pixels, for nets with a fixed input size.
        classes: class names of the images, by label.
    """
    task_class = find_task(name).load()
    net = task_class.build(config, spec, size, classes)
    task = task_class(config, net.stride, classes)
    task.name = name
    return net, task
