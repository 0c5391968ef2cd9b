"""What an importer gives: a net in our module, from somebody's file."""

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

KINDS = {1: "grey", 2: "sobel", 3: "rgb"}  # of inputs, by the first convolution's channels


@dataclass
class Imported:
    """A net in our module, from somebody's file.

    Attributes:
        net: a backbone net, or that of a task where the file holds its head.
        spec, input: its description.
        format: what the file was taken for.
        left_out: names in the file that a backbone has no place for.
        prefix_note: description of the chosen net; empty if the file holds one net without a prefix.
        task: its pretext task; None for a backbone.
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
        """Description of the chosen net and of the names left out."""
        left_out = f"left out: {', '.join(self.left_out)}" if self.left_out else ""
        return "; ".join(filter(None, [self.prefix_note, left_out]))

    @property
    def has_head(self) -> bool:
        return self.task is not None

    def backbone(self) -> nn.Module:
        return self.net.net if self.has_head else self.net

    def save(self, path: Path, provenance: Provenance, write: Writer = atomic_write) -> None:
        """Write one of our files: a colorizer where there is a head, else a backbone."""
        if self.task is not None:
            save_pretext(
                path, self.net, self.task, self.spec, self.input, provenance, self.resize_spec, write, self.decoder
            )
        else:
            save_backbone(path, self.net, self.spec, self.input, provenance, write)


def load_imported_state(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state whose fully connected layers may be matrices and whose norms may not count batches."""
    own = net.state_dict()
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(tensor))
        elif key.startswith(("fc6.", "fc7.")) and key in state and state[key].numel() == tensor.numel():
            state[key] = state[key].reshape(tensor.shape)
    load_state(net, state, what)
