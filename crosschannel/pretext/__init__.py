"""The pretext tasks: a row each. A task is a file beside this one (what it sees, what it predicts, how that is scored)
and a dataclass of keys in :mod:`crosschannel.pretext.config`. The command line, the loop, saved nets and colorizers go
by this table. No torch here: help is quick.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from crosschannel.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from crosschannel.models import NetSpec
    from crosschannel.pretext.task import Pretext


@dataclass(frozen=True)
class Entry:
    """Where a task is.

    Attributes:
        place: module:class below this package.
        config: name of the dataclass of its keys.
        help: one line.
    """

    place: str
    config: str
    help: str

    @property
    def keys(self) -> type:
        """The dataclass of its keys."""
        return getattr(import_module("crosschannel.pretext.config"), self.config)

    def load(self) -> "type[Pretext]":
        """The :class:`~crosschannel.pretext.task.Pretext`."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(f"crosschannel.pretext.{module}"), name)


TASKS: dict[str, Entry] = {
    "colorization": Entry("colorization:Colorization", "ColorizationConfig", "ab from lightness (Zhang et al. 2016)"),
    "larsson": Entry("larsson:Larsson", "LarssonConfig", "hue and chroma from grey (Larsson et al. 2016)"),
    "dahl": Entry("dahl:Dahl", "DahlConfig", "UV from grey, a reconstruction of Dahl 2016"),
    "autoencoder": Entry("autoencoder:Autoencoder", "AutoencoderConfig", "the picture itself, through a bottleneck"),
    "split-brain": Entry("split_brain:SplitBrain", "SplitBrainConfig", "ab from L and L from ab (Zhang et al. 2017)"),
    "labels": Entry("labels:Labels", "LabelsConfig", "the classes of the images' folders: supervised"),
}


def task_row(name: str) -> Entry:
    """The row of a task.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        known = "; ".join(f"{task} ({row.help})" for task, row in TASKS.items())
        raise UserError(f"no pretext task {name!r}: there are {known}")
    return TASKS[name]


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
    task = task_row(name).load()
    net = task.build(config, spec, size, classes)
    return net, task(config, net.stride, classes)
