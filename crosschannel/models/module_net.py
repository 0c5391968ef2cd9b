"""Any ``nn.Module`` as a layered net, read by forward hooks."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, describe
from crosschannel.models.positions import (
    Replacement,
    ResizePositions,
    candidates,
    check_names,
    replacements,
    temporary_attributes,
)
from crosschannel.models.tokens import Layout, Survey, survey_outputs, tensor_of

# As torch's optimisers do it: the compiler, whose import takes a second, is loaded at the first call.
_uncompiled = getattr(torch, "_disable_dynamo", torch.compiler.disable)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the net inside DataParallel, DistributedDataParallel (whose forward pass communicates with other ranks) or
    torch.compile (whose graph does not support hooks)."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


class _LastLayerReached(Exception):
    pass


def _summarise(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def _parts(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Dotted names of a module's parts, in order: its children, and those of lists and dicts of modules."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Turn off autocast and its cache; an enclosing autocast would reuse weights that were cast without gradients."""
    off = {"enabled": False, "cache_enabled": False}
    with torch.autocast("cpu", **off), torch.autocast("cuda", **off):
        yield


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Switch every module to eval mode without autocast (fixed statistics, no dropout), then restore its mode."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with no_autocast():
            yield
    finally:
        for module in training:
            module.training = True


class ModuleNet(nn.Module):
    """Any ``nn.Module``: its named submodules are its layers, read by forward hooks.

    Args:
        model: takes (N, C, H, W); it is called as it is and left as soon as the last layer asked for is known.
        layers: public names → submodule names, or only submodule names, in order of execution. Default: every direct
            child; every member of lists and dicts of modules (``blocks.3``); for a net with a single child, the
            children of that child. Deeper submodules are available by dotted name (``layer3.0``).
        resize_positions: see :func:`crosschannel.wrap`.

    Attributes:
        model: the module.
        left_out: listed layers without features → reason; filled in by :meth:`discover_layers`.

    Vectors (N, C) become a map of one position. Tokens (N, L, C) or (L, N, C) become a map of the patches;
    ``NAME_class`` is the class token. Maps (N, h, w, C) are permuted. One forward pass shows the layout of every
    output, see :func:`crosschannel.models.tokens.survey_outputs`. A request for any other output raises an error.
    """

    uses_hooks: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, str] | Sequence[str] | None = None,
        resize_positions: ResizePositions | None = None,
    ):
        super().__init__()
        self.model = model
        names = layers or self._parts()
        self._paths = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if not self._paths:
            raise UserError(f"{type(model).__name__} has no named submodules to take features from")
        if not all(isinstance(name, str) for pair in self._paths.items() for name in pair):
            raise UserError(f"layers are names of submodules, got {describe(layers)}")
        for name in self._paths:
            if not self.has_layer(name):
                raise UserError(f"layer {name!r}: {type(model).__name__} has no submodule {self._paths[name]!r}")
        self.layers = tuple(self._paths)
        self.left_out: dict[str, str] = {}
        self.resize_positions = [resize_positions] if isinstance(resize_positions, str) else resize_positions
        if isinstance(self.resize_positions, list | tuple):
            check_names(model, self.resize_positions)
        elif self.resize_positions is not None and not callable(self.resize_positions):
            raise UserError(f"resize_positions is a name, names or a function, got {type(resize_positions).__name__}")
        self._survey: Survey | None = None
        self._size_error: str | None = None  # set when the first images of another size arrive

    def _parts(self) -> list[str]:
        found = list(_parts(self.model))
        while len(found) == 1 and (inner := list(_parts(self.model.get_submodule(found[0]), f"{found[0]}."))):
            found = inner  # a net in a wrapper
        return found

    def discover_layers(self, x: Tensor) -> None:
        """Look at one forward pass: list the layers that it reaches and that give maps, in order of execution.

        A net that does not take ``x`` keeps its list: what is wrong is said when features are asked for.

        Args:
            x: (N, C, H, W).
        """
        layouts = self._run_survey(x)
        if self._survey.failed:
            self._survey = None
            return
        names = {name: self._path(name) for name in self.layers}
        reasons = {
            name: layouts.get(path, f"layer {name!r} is not reached in a forward pass") for name, path in names.items()
        }
        self.left_out = {name: reason for name, reason in reasons.items() if isinstance(reason, str)}
        order = {path: index for index, path in enumerate(layouts)}
        reached = [name for name in self.layers if name not in self.left_out]
        self.layers = tuple(sorted(reached, key=lambda name: order[names[name]]))
        if not self.layers:
            raise UserError(f"no part of {type(self.model).__name__} gives a feature map (N, C, h, w)")

    def _run_survey(self, x: Tensor) -> dict[str, Layout | str]:
        """Detect the layouts of all outputs for images like ``x``."""
        with eval_mode(self.model), torch.random.fork_rng([x.device] if x.is_cuda else []):
            self._survey = survey_outputs(self.model, x.detach())
        return self._survey.layouts

    @property
    def wrapped_module(self) -> nn.Module:
        """The user's module."""
        return self.model

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels per patch, down and across; 1 × 1 for nets without tokens."""
        return self._survey.patch if self._survey else (1, 1)

    @_uncompiled  # hooks that leave the forward pass are not for compilers
    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the requested layers; the forward pass stops after the last of them.

        Raises:
            UserError: a layer gives no map, or the net does not accept images of this size.
        """
        if self._survey is None or any(self._path(name) not in self._survey.layouts for name in layers):
            self._run_survey(x)
        found: dict[str, Tensor] = {}

        def reader(name: str):
            def read(_module, _inputs, output):
                found[name] = self._as_map(name, output, x).clone()  # an in-place ReLU may follow
                if len(found) == len(set(layers)):
                    raise _LastLayerReached

            return read

        values = self._replacements_for(x)
        handles = [self.get_module(name).register_forward_hook(reader(name)) for name in layers]
        try:
            self._call(x, values)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {name: found[name] for name in layers if name in found}

    def _call(self, x: Tensor, values: Sequence[Replacement]) -> Tensor:
        """Run the model with some attributes replaced."""
        if not values:
            return self.model(x)
        try:
            with temporary_attributes(values):
                return self.model(x)
        except (UserError, _LastLayerReached, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a user's module raises
            raise UserError(self._size_message(*x.shape[2:], _summarise(error))) from error

    def _replacements_for(self, x: Tensor) -> list[Replacement]:
        """Replacements for attributes of a ViT that depend on the image size, such as position embeddings.

        Raises:
            UserError: the model accepts only one image size and has no position embeddings with a known name.
        """
        survey, (height, width) = self._survey, x.shape[2:]
        if survey is None or survey.grid is None or (height, width) == (survey.height, survey.width):
            return []
        if callable(self.resize_positions):
            tensors = self.resize_positions(self.model, height, width) or {}
            owners = {name: name.rpartition(".") for name in tensors}
            return [(self.model.get_submodule(owners[name][0]), owners[name][2], t) for name, t in tensors.items()]
        if not self._size_error_for(x):
            return []
        values = replacements(self.model, survey, height, width, self.resize_positions or ())
        if not values:
            raise UserError(self._size_message(height, width, self._size_error_for(x)))
        return values

    @torch.no_grad()
    def _size_error_for(self, x: Tensor) -> str:
        """Error message of the model for images of another size and aspect ratio; empty if it accepts them
        unchanged."""
        if self._size_error is None:
            step = self._survey.step
            other = x.new_zeros(1, x.shape[1], self._survey.height + step, self._survey.width + 2 * step)
            model = self.model
            if x.is_cuda and any(isinstance(module, nn.Embedding) for module in model.modules()):
                model, other = copy.deepcopy(model).cpu(), other.cpu()  # a GPU does not recover from a wrong index
            try:
                with eval_mode(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
                    model(other)
                self._size_error = ""
            except Exception as error:  # whatever a user's module raises
                self._size_error = _summarise(error)
        return self._size_error

    def _size_message(self, height: int, width: int, error: str) -> str:
        name, survey = type(self.model).__name__, self._survey
        tensors = candidates(self.model, survey, () if callable(self.resize_positions) else self.resize_positions or ())
        remedy = f"resize_positions={tensors[0]!r}) resizes" if tensors else "resize_positions=…) takes a function for"
        return (
            f"{name} takes images of {survey.width} × {survey.height} px, not of {width} × {height} ({error}); if its "
            f"position embeddings have a fixed size, crosschannel.wrap(net, {remedy} them"
        )

    def exclude_layers(self, layers: Mapping[str, str]) -> None:
        """Remove layers from the list; ``layers`` maps names to reasons."""
        self.left_out |= {name: reason for name, reason in layers.items() if name in self.layers}
        self.layers = tuple(name for name in self.layers if name not in layers)

    def has_layer(self, name: str) -> bool:
        """Whether there is a submodule of that name, at any depth."""
        try:
            self.get_module(name)
        except AttributeError:
            return False
        return bool(name)

    def deeper(self, pattern: str) -> list[str]:
        """Dotted names of the submodules that a pattern fits, part by part: ``layer*.0`` is not ``layer1.0.conv1``."""
        wanted = pattern.split(".")
        named = ((name, name.split(".")) for name, _ in self.model.named_modules())
        return [
            name
            for name, parts in named
            if name and len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)) and name not in self.layers
        ]

    def is_classifier(self, name: str) -> bool:
        """Whether a layer is a linear layer, or a sequence that ends in one: what a model says, not what it sees."""
        module = self.get_module(name)
        parts = [part for part in module.modules() if not any(part.children()) and any(True for _ in part.parameters())]
        return isinstance(module, nn.Linear | nn.Sequential) and bool(parts) and isinstance(parts[-1], nn.Linear)

    def get_module(self, name: str) -> nn.Module:
        """The submodule that a layer is."""
        return self.model.get_submodule(self._path(name))

    def _is_token(self, name: str) -> bool:
        """Whether a name means the class token of a submodule, and not a submodule of its own."""
        try:
            self.model.get_submodule(self._paths.get(name, name))
        except AttributeError:
            return name.endswith("_class")
        return False

    def _path(self, name: str) -> str:
        """Dotted name of a layer's submodule."""
        path = self._paths.get(name, name)
        return path.removesuffix("_class") if self._is_token(name) else path

    def _as_map(self, name: str, output: object, x: Tensor) -> Tensor:
        """Convert the output of a submodule to (N, C, h, w)."""
        layout, tensor = self._survey.layouts.get(self._path(name)), tensor_of(output)
        if isinstance(layout, str):
            raise UserError(layout)
        height, width = x.shape[2:]
        feature_map = None
        if tensor is not None and layout is not None:
            feature_map = layout.class_token(tensor) if self._is_token(name) else layout.as_map(tensor, height, width)
        if feature_map is None or len(feature_map) != len(x):
            raise UserError(f"layer {name!r} gives no feature map (N, C, h, w) for images of {width} × {height} px")
        return feature_map

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, self._replacements_for(x))

    def logits(self, x: Tensor) -> Tensor | None:
        """Return the model's own output if it is one vector per image."""
        output = self._call(x, self._replacements_for(x))
        return output if isinstance(output, Tensor) and output.ndim == 2 else None
