"""Load a weights file into a net of another library: without its head, with a different head, under any prefix."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn

from crosschannel.errors import UserError
from crosschannel.hub.files import load_state
from crosschannel.hub.state_dicts import Checkpoint, choose_net


@dataclass
class LoadedWeights:
    """Result of loading a file into a net.

    Attributes:
        note: description of the chosen net and of unused weights; empty if there is nothing to report.
        lacking: modules of the head without weights in the file; they are replaced by identities.
    """

    note: str = ""
    lacking: list[str] = field(default_factory=list)

    @property
    def details(self) -> dict[str, str]:
        """Provenance entry with the note."""
        return {"checkpoint": self.note} if self.note else {}


def load_weights(
    module: nn.Module, checkpoint: Checkpoint, key: str = "", heads: Collection[str] | None = None
) -> LoadedWeights:
    """Load the net of a checkpoint whose names match those of a module, in place.

    Args:
        module: takes all its weights from the file.
        checkpoint: content of the file.
        key: see :func:`~crosschannel.hub.state_dicts.choose_net`.
        heads: children of the module that may be missing or different in the file; weights of modules that the module
            does not have are then ignored too. None: the file must hold exactly the module's weights.

    Raises:
        UserError: missing or unexpected weights, or weights of another shape.
    """
    file, expected = str(checkpoint.path), module.state_dict()
    optional = {name for name in expected if _top_level(name) in (heads or ())}
    uncounted = {name for name in expected if name.endswith("num_batches_tracked")}  # missing in old files
    net = choose_net(checkpoint.tensors, expected.keys() - optional - uncounted, file, key)
    state, known = net.tensors, {_top_level(name) for name in expected} - set(heads or ())
    fits = {name: name in state and state[name].shape == expected[name].shape for name in optional - uncounted}
    lacking = sorted({_owner(name) for name, fit in fits.items() if not fit})
    unused = set() if heads is None else {n for n in state.keys() - expected.keys() if _top_level(n) not in known}
    unused |= {name for name in state if _owner(name) in lacking}
    unchanged = {n: t for n, t in expected.items() if _owner(n) in lacking or (n in uncounted and n not in state)}
    load_state(module, {n: t for n, t in state.items() if n not in unused} | unchanged, file)
    for name in lacking:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    left_out = sorted({_owner(name) if _top_level(name) in (heads or ()) else _top_level(name) for name in unused})
    notes = [net.note, f"left out: {', '.join(left_out)}" if left_out else ""]
    return LoadedWeights("; ".join(filter(None, notes)), lacking)


def from_file(
    build: Callable[..., nn.Module], checkpoint: Checkpoint, key: str = ""
) -> tuple[nn.Module, LoadedWeights]:
    """Build a net with the weights of a file: with the file's number of classes, or without a head.

    The head of a net consists of the children whose weights have a shape that depends on the number of classes.

    Args:
        build: (num_classes=…) → the net; without arguments, the default net.
        checkpoint, key: see :func:`load_weights`.

    Raises:
        UserError: see :func:`load_weights`.
    """
    net = build()
    default = net.state_dict()
    try:
        binary = build(num_classes=2).state_dict()
    except UserError:  # not a classifier
        return net, load_weights(net, checkpoint, key)
    by_class = [name for name, tensor in binary.items() if name not in default or default[name].shape != tensor.shape]
    heads = {_top_level(name) for name in by_class}
    needed = [name for name in default if _top_level(name) not in heads]
    state = choose_net(checkpoint.tensors, needed, str(checkpoint.path), key).tensors
    weights = [state[name] for name in by_class if name in state and state[name].shape[1:] == binary[name].shape[1:]]
    counts = {len(weight) for weight in weights if weight.ndim}
    if len(counts) == 1:
        net = build(num_classes=counts.pop())
    return net, load_weights(net, checkpoint, key, heads)


def _top_level(name: str) -> str:
    return name.partition(".")[0]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
