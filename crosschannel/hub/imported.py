"""Imported third-party nets."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from crosschannel.colorize.colorizer import ResizeSpec
from crosschannel.colorize.decoders import Decoder
from crosschannel.files import Writer, atomic_write
from crosschannel.hub.files import load_state, save_backbone, save_pretext
from crosschannel.models import InputSpec, NetSpec
from crosschannel.models.backbone import Provenance
from crosschannel.pretext.task import Pretext

INPUT_KINDS = {1: "grey", 2: "sobel", 3: "rgb"}  # default input kind by the channels of the first convolution


@dataclass
class ImportedNet:
    """A net of this library with the weights of a third-party file.

    Attributes:
        net: backbone net, or backbone with head if the file has the head of a pretext task.
        spec: spec of the net.
        input: input specification of the net.
        format: detected format of the file.
        left_out: names of modules in the file that are not used.
        prefix_note: description of the chosen net; empty if the file holds one net without a prefix.
        task: pretext task of the head; None for a backbone.
        resize_spec: resizing of pictures before the net (colorization only).
        decoder: converts outputs to ab (colorization only).
    """

    net: nn.Module
    spec: NetSpec
    input: InputSpec
    format: str
    left_out: list[str] = field(default_factory=list)
    task: Pretext | None = None
    resize_spec: ResizeSpec = field(default_factory=ResizeSpec)
    prefix_note: str = ""
    decoder: Decoder | None = None

    @property
    def note(self) -> str:
        """Description of the chosen net and of the unused tensors."""
        left_out = f"unused: {', '.join(self.left_out)}" if self.left_out else ""
        return "; ".join(filter(None, [self.prefix_note, left_out]))

    @property
    def has_head(self) -> bool:
        return self.task is not None

    def backbone(self) -> nn.Module:
        return self.net.net if self.has_head else self.net

    def save(self, path: Path, provenance: Provenance, write: Writer = atomic_write) -> None:
        """Write a crosschannel file: a colorizer if there is a head, otherwise a backbone."""
        if self.task is not None:
            save_pretext(
                path, self.net, self.task, self.spec, self.input, provenance, self.resize_spec, write, self.decoder
            )
        else:
            save_backbone(path, self.net, self.spec, self.input, provenance, write)


def load_imported_state(net: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a state dict; reshape matrices of fc6 and fc7 to kernels, and add batch counters that norms lack.

    Args:
        net: net to load into, in place.
        state: tensors by name; changed in place.
        origin: file or source of the state dict, for messages.

    Raises:
        UserError: see :func:`~crosschannel.hub.files.load_state`.
    """
    expected = net.state_dict()
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(tensor))
        elif key.startswith(("fc6.", "fc7.")) and key in state and state[key].numel() == tensor.numel():
            state[key] = state[key].reshape(tensor.shape)
    load_state(net, state, origin)
