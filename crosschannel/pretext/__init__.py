"""Registry of pretext tasks, built in or user-defined; :func:`find_task` looks them up.

A built-in task is a module of this package and a dataclass of keys in :mod:`crosschannel.pretext.config`. Does not
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

ENTRY_POINTS = "crosschannel.tasks"  # group of the entry points of other packages' tasks


def _entry(import_path: str, config: str, help: str) -> Entry:
    return Entry(f"crosschannel.pretext.{import_path}", f"crosschannel.pretext.config:{config}", help)


TASKS: dict[str, Entry] = {
    "colorization": _entry("colorization:Colorization", "ColorizationConfig", "ab from lightness (Zhang et al. 2016)"),
    "larsson": _entry("larsson:Larsson", "LarssonConfig", "hue and chroma from grey (Larsson et al. 2016)"),
    "dahl": _entry("dahl:Dahl", "DahlConfig", "UV from grey, a reconstruction of Dahl 2016"),
    "autoencoder": _entry("autoencoder:Autoencoder", "AutoencoderConfig", "the picture itself, through a bottleneck"),
    "split-brain": _entry("split_brain:SplitBrain", "SplitBrainConfig", "ab from L and L from ab (Zhang et al. 2017)"),
    "rotation": _entry("rotation:Rotation", "RotationConfig", "quarter turns of the image (Gidaris et al. 2018)"),
    "jigsaw": _entry("jigsaw:Jigsaw", "JigsawConfig", "the order of the image's tiles (Noroozi and Favaro 2016)"),
    "labels": _entry("labels:Labels", "LabelsConfig", "the classes of the images' folders: supervised"),
}


def find_task(name: str) -> Entry:
    """Look up a task: built in, an installed package's, or ``package.module:Task``.

    Raises:
        UserError: there is no such task, or it cannot be imported.
    """
    entry = find_entry(name, TASKS, ENTRY_POINTS, _user_entry)
    if entry is not None:
        return entry
    known = "; ".join([f"{task} ({row.help})" for task, row in TASKS.items()] + sorted(entry_point_names(ENTRY_POINTS)))
    raise UserError(f"no pretext task {name!r}: there are {known}; or package.module:Task")


def _user_entry(import_path: str) -> Entry:
    """The entry of a user-defined task."""
    from crosschannel.pretext.task import Pretext

    task_class = import_object(import_path)
    is_task = isinstance(task_class, type) and issubclass(task_class, Pretext)
    keys = getattr(task_class, "keys", None)
    if not is_task or not isinstance(keys, type) or not is_dataclass(keys):
        raise UserError(f"{import_path!r} must be a crosschannel.pretext.task.Pretext whose keys is a dataclass")
    lacking = [name for name in ("primary_metric", "score_length") if not hasattr(task_class, name)]
    lacking += [name for name in ("build", "metrics") if getattr(task_class, name) is getattr(Pretext, name)]
    if lacking:
        raise UserError(f"the task {import_path!r} must define {', '.join(lacking)}")
    if task_class.decoder:
        import_object(task_class.decoder)
    return Entry.custom(import_path, keys, task_class)


def create(
    name: str, config: Any, spec: "NetSpec", size: int | None = None, classes: Sequence[str] = ()
) -> "tuple[nn.Module, Pretext]":
    """The untrained net of a task, and the task.

    Args:
        name: of the task.
        config: its keys.
        spec: of the backbone.
        size: side of square inputs, for nets that must know it.
        classes: of the images, by label.
    """
    task_class = find_task(name).load()
    net = task_class.build(config, spec, size, classes)
    task = task_class(config, net.stride, classes)
    task.name = name
    return net, task
