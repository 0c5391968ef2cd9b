"""Weights of a file for a net of another library: without its head, with another one, under any prefix."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn

from crosschannel.errors import UserError
from crosschannel.hub.files import load_state
from crosschannel.hub.state_dicts import Checkpoint, choose_net


@dataclass
class LoadedWeights:
    """The result of loading a file into a net.

    Attributes:
        note: which net of the file it was and what stays unused, in words; empty if there is nothing to say.
        lacking: modules of the head that the file has no weights for; they are replaced by identities.
    """

    note: str = ""
    lacking: list[str] = field(default_factory=list)

    @property
    def details(self) -> dict[str, str]:
        """The note for a provenance."""
        return {"checkpoint": self.note} if self.note else {}


def load_weights(
    module: nn.Module, checkpoint: Checkpoint, key: str = "", heads: Collection[str] | None = None
) -> LoadedWeights:
    """Load the net of a checkpoint whose names are those of a module, in place.

    Args:
        module: takes all its weights from the file.
        checkpoint: the file.
        key: see :func:`~crosschannel.hub.state_dicts.choose_net`.
        heads: children of the module that may be missing in the file, or be others there; modules that it does not have
            at all are then left out, too. None: the file must hold exactly the module's weights.

    Raises:
        UserError: what is missing, left over or of another shape.
    """
    what, own = str(checkpoint.path), module.state_dict()
    optional = {name for name in own if _top(name) in (heads or ())}
    uncounted = {name for name in own if name.endswith("num_batches_tracked")}  # of old files
    net = choose_net(checkpoint.tensors, own.keys() - optional - uncounted, what, key)
    state, known = net.tensors, {_top(name) for name in own} - set(heads or ())
    fits = {name: name in state and state[name].shape == own[name].shape for name in optional - uncounted}
    lacking = sorted({_module(name) for name, fit in fits.items() if not fit})
    unused = set() if heads is None else {n for n in state.keys() - own.keys() if _top(n) not in known}
    unused |= {name for name in state if _module(name) in lacking}
    blank = {n: t for n, t in own.items() if _module(n) in lacking or (n in uncounted and n not in state)}
    load_state(module, {n: t for n, t in state.items() if n not in unused} | blank, what)
    for name in lacking:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    left_out = sorted({_module(name) if _top(name) in (heads or ()) else _top(name) for name in unused})
    notes = [net.note, f"left out: {', '.join(left_out)}" if left_out else ""]
    return LoadedWeights("; ".join(filter(None, notes)), lacking)


def from_file(
    build: Callable[..., nn.Module], checkpoint: Checkpoint, key: str = ""
) -> tuple[nn.Module, LoadedWeights]:
    """Build a net with the weights of a file: with as many classes as it has, or without its head.

    A net's head are its children with weights whose shape depends on the number of classes.

    Args:
        build: (num_classes=…) → the net; without arguments its default one.
        checkpoint, key: see :func:`load_weights`.

    Raises:
        UserError: as :func:`load_weights`.
    """
    net = build()
    own = net.state_dict()
    try:
        other = build(num_classes=2).state_dict()
    except UserError:  # no net of classes
        return net, load_weights(net, checkpoint, key)
    by_class = [name for name, tensor in other.items() if name not in own or own[name].shape != tensor.shape]
    heads = {_top(name) for name in by_class}
    needed = [name for name in own if _top(name) not in heads]
    state = choose_net(checkpoint.tensors, needed, str(checkpoint.path), key).tensors
    weights = [state[name] for name in by_class if name in state and state[name].shape[1:] == other[name].shape[1:]]
    counts = {len(weight) for weight in weights if weight.ndim}
    if len(counts) == 1:
        net = build(num_classes=counts.pop())
    return net, load_weights(net, checkpoint, key, heads)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
