"""Load weights files into models of other libraries.

Tensor names may have a prefix, and the head may be missing or different.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn

from crosschannel.errors import UserError
from crosschannel.hub.files import load_state
from crosschannel.hub.state_dicts import Checkpoint, choose_net


@dataclass
class LoadedWeights:
    """Result of loading a weights file into a model.

    Attributes:
        note: description of the chosen net and of unused weights; may be empty.
        missing: modules of the head without weights in the file, replaced by identities.
    """

    note: str = ""
    missing: list[str] = field(default_factory=list)

    @property
    def details(self) -> dict[str, str]:
        """Provenance details with the note."""
        return {"checkpoint": self.note} if self.note else {}


def load_weights(
    module: nn.Module, checkpoint: Checkpoint, key: str = "", heads: Collection[str] | None = None
) -> LoadedWeights:
    """Load the net of a checkpoint that matches a module's parameter names into the module.

    Args:
        module: module to load into, in place.
        checkpoint: content of the weights file.
        key: see :func:`~crosschannel.hub.state_dicts.choose_net`.
        heads: children of the module that may be missing or different in the file; weights of other modules that
            ``module`` does not have are then ignored. None: the file must hold exactly the module's weights.

    Raises:
        UserError: missing or unexpected weights, or weights of the wrong shape.
    """
    file, expected = str(checkpoint.path), module.state_dict()
    optional = {name for name in expected if _top_level(name) in (heads or ())}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # missing in old files
    net = choose_net(checkpoint.tensors, expected.keys() - optional - counters, file, key)
    state, known = net.tensors, {_top_level(name) for name in expected} - set(heads or ())
    matches = {name: name in state and state[name].shape == expected[name].shape for name in optional - counters}
    missing = sorted({_parent(name) for name, is_match in matches.items() if not is_match})
    unused = set() if heads is None else {n for n in state.keys() - expected.keys() if _top_level(n) not in known}
    unused |= {name for name in state if _parent(name) in missing}
    unchanged = {n: t for n, t in expected.items() if _parent(n) in missing or (n in counters and n not in state)}
    load_state(module, {n: t for n, t in state.items() if n not in unused} | unchanged, file)
    for name in missing:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    unused_modules = sorted(
        {_parent(name) if _top_level(name) in (heads or ()) else _top_level(name) for name in unused}
    )
    notes = [net.note, f"unused: {', '.join(unused_modules)}" if unused_modules else ""]
    return LoadedWeights("; ".join(filter(None, notes)), missing)


def from_file(
    build: Callable[..., nn.Module], checkpoint: Checkpoint, key: str = ""
) -> tuple[nn.Module, LoadedWeights]:
    """Build a model with the weights of a file: with the file's number of classes, or without a head if it has none.

    The head consists of all children with weights whose shape depends on the number of classes.

    Args:
        build: function that builds the model, optionally with ``num_classes``.
        checkpoint, key: see :func:`load_weights`.

    Raises:
        UserError: see :func:`load_weights`.
    """
    net = build()
    default_state = net.state_dict()
    try:
        two_class_state = build(num_classes=2).state_dict()
    except UserError:  # not a classifier
        return net, load_weights(net, checkpoint, key)
    per_class = [
        name
        for name, tensor in two_class_state.items()
        if name not in default_state or default_state[name].shape != tensor.shape
    ]
    heads = {_top_level(name) for name in per_class}
    required = [name for name in default_state if _top_level(name) not in heads]
    state = choose_net(checkpoint.tensors, required, str(checkpoint.path), key).tensors
    weights = [
        state[name] for name in per_class if name in state and state[name].shape[1:] == two_class_state[name].shape[1:]
    ]
    counts = {len(weight) for weight in weights if weight.ndim}
    if len(counts) == 1:
        net = build(num_classes=counts.pop())
    return net, load_weights(net, checkpoint, key, heads)


def _top_level(name: str) -> str:
    return name.partition(".")[0]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
