"""What an importer gives: a net in our module, from somebody's file."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from crosschannel.files import Writer, written_whole
from crosschannel.hub.files import load_state, save_backbone, save_colorizer
from crosschannel.models import InputSpec, NetSpec, PretextNet
from crosschannel.models.backbone import Provenance
from crosschannel.objectives.config import ObjectiveConfig

KINDS = {1: "grey", 2: "sobel", 3: "rgb"}  # of inputs, by the first convolution's channels


@dataclass
class Imported:
    """A net in our module, from somebody's file.

    Attributes:
        net: a backbone net, or a PretextNet where the file holds a colorization head.
        spec, input: its description.
        format: what the file was taken for.
        left_out: names in the file that a backbone has no place for.
        native: (2, 313) ab of every bin, where the net's own decode is their expectation under plain softmax.
        temperature: of its annealed mean otherwise.
    """

    net: nn.Module
    spec: NetSpec
    input: InputSpec
    format: str
    left_out: list[str] = field(default_factory=list)
    native: Tensor | None = None
    temperature: float = 0.38

    @property
    def has_head(self) -> bool:
        return isinstance(self.net, PretextNet)

    def backbone(self) -> nn.Module:
        return self.net.net if isinstance(self.net, PretextNet) else self.net

    def save(self, path: Path, provenance: Provenance, write: Writer = written_whole) -> None:
        """Write one of our files: a colorizer where there is a head, else a backbone."""
        described = (path, self.net, self.spec, self.input)
        if self.has_head:
            save_colorizer(*described, ObjectiveConfig(), provenance, self.temperature, self.native, write)
        else:
            save_backbone(*described, provenance, write)


def load_named(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state whose fully connected layers may be matrices and whose norms may not count batches."""
    own = net.state_dict()
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(tensor))
        elif key.startswith(("fc6.", "fc7.")) and key in state and state[key].numel() == tensor.numel():
            state[key] = state[key].reshape(tensor.shape)
    load_state(net, state, what)
