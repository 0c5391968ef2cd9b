"""An arbitrary ``nn.Module`` as a net with named layers, whose features are read by forward hooks."""

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

# Like torch's optimisers, load the compiler (whose import takes a second) at the first call.
_disable_compile = getattr(torch, "_disable_dynamo", torch.compiler.disable)


def unwrap(module: nn.Module) -> nn.Module:
    """Remove DataParallel, DistributedDataParallel and torch.compile wrappers.

    The forward pass of DistributedDataParallel communicates with other ranks, and compiled graphs do not support hooks.
    """
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


def _child_names(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a module's children, in order; ModuleLists and ModuleDicts are expanded."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _child_names(child, f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Turn off autocast and its cache: an enclosing autocast would reuse weights that were cast without gradients."""
    disabled = {"enabled": False, "cache_enabled": False}
    with torch.autocast("cpu", **disabled), torch.autocast("cuda", **disabled):
        yield


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Switch all modules to eval mode and turn off autocast, then restore the mode of each module."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with no_autocast():
            yield
    finally:
        for module in training:
            module.training = True


class ModuleNet(nn.Module):
    """A net whose layers are the named submodules of a module; forward hooks read their outputs.

    All outputs are converted to maps (N, C, h, w). Vectors (N, C) become 1×1 maps. Tokens (N, L, C) or (L, N, C) become
    maps of the patches, and ``NAME_class`` is the class token of layer ``NAME``. Channels-last maps (N, h, w, C) are
    permuted. The layout of each output is detected in one forward pass, see
    :func:`crosschannel.models.tokens.survey_outputs`. Requests for outputs of other types raise an error.

    Args:
        model: module that accepts (N, C, H, W). It is not modified; its forward pass stops after the last requested
            layer.
        layers: layer names → submodule names, or submodule names, in order of execution. Default: all direct children,
            where ModuleLists and ModuleDicts are replaced by their members (``blocks.3``), and a module with a single
            child by that child. Nested submodules are available by dotted name (``layer3.0``).
        resize_positions: see :func:`crosschannel.wrap`.

    Attributes:
        model: the module.
        left_out: reasons why excluded layers have no features, by layer name; filled in by :meth:`discover_layers`.
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
        names = layers or self._default_names()
        self._paths = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if not self._paths:
            raise UserError(f"{type(model).__name__} has no named submodules to take features from")
        if not all(isinstance(name, str) for pair in self._paths.items() for name in pair):
            raise UserError(f"layers must be names of submodules, got {describe(layers)}")
        for name in self._paths:
            if not self.has_layer(name):
                raise UserError(f"layer {name!r}: {type(model).__name__} has no submodule {self._paths[name]!r}")
        self.layers = tuple(self._paths)
        self.left_out: dict[str, str] = {}
        self.resize_positions = [resize_positions] if isinstance(resize_positions, str) else resize_positions
        if isinstance(self.resize_positions, list | tuple):
            check_names(model, self.resize_positions)
        elif self.resize_positions is not None and not callable(self.resize_positions):
            raise UserError(
                f"resize_positions must be a name, names or a function, got {type(resize_positions).__name__}"
            )
        self._survey: Survey | None = None
        self._size_error: str | None = None  # determined for the first batch of another size

    def _default_names(self) -> list[str]:
        names = list(_child_names(self.model))
        while len(names) == 1 and (inner := list(_child_names(self.model.get_submodule(names[0]), f"{names[0]}."))):
            names = inner  # the single child wraps the actual net
        return names

    def discover_layers(self, x: Tensor) -> None:
        """Run one forward pass and list the layers that it reaches and whose outputs are maps, in order of execution.

        If the forward pass fails, the list is unchanged, and the error is raised when features are requested.

        Args:
            x: (N, C, H, W); only its shape, dtype and device matter.
        """
        layouts = self._run_survey(x)
        if self._survey.failed:
            self._survey = None
            return
        paths = {name: self._path(name) for name in self.layers}
        reasons = {
            name: layouts.get(path, f"layer {name!r} is not reached in a forward pass") for name, path in paths.items()
        }
        self.left_out = {name: reason for name, reason in reasons.items() if isinstance(reason, str)}
        order = {path: index for index, path in enumerate(layouts)}
        reached = [name for name in self.layers if name not in self.left_out]
        self.layers = tuple(sorted(reached, key=lambda name: order[paths[name]]))
        if not self.layers:
            raise UserError(f"no submodule of {type(self.model).__name__} returns a feature map (N, C, h, w)")

    def _run_survey(self, x: Tensor) -> dict[str, Layout | str]:
        """Detect the layouts of all outputs for images with the shape of ``x``."""
        with eval_mode(self.model), torch.random.fork_rng([x.device] if x.is_cuda else []):
            self._survey = survey_outputs(self.model, x.detach())
        return self._survey.layouts

    @property
    def wrapped_module(self) -> nn.Module:
        """The user's module."""
        return self.model

    @property
    def patch(self) -> tuple[int, int]:
        """Patch size in pixels, vertically and horizontally; (1, 1) for nets without tokens."""
        return self._survey.patch if self._survey else (1, 1)

    @_disable_compile  # compilers do not support hooks that abort the forward pass
    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of the requested layers; the forward pass stops after the last of them.

        Raises:
            UserError: the output of a layer is not a map, or the net does not accept images of this size.
        """
        if self._survey is None or any(self._path(name) not in self._survey.layouts for name in layers):
            self._run_survey(x)
        features: dict[str, Tensor] = {}

        def make_hook(name: str):
            def read_output(_module, _inputs, output):
                features[name] = self._as_map(name, output, x).clone()  # an in-place ReLU may follow
                if len(features) == len(set(layers)):
                    raise _LastLayerReached

            return read_output

        changes = self._replacements_for(x)
        handles = [self.get_module(name).register_forward_hook(make_hook(name)) for name in layers]
        try:
            self._call(x, changes)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {name: features[name] for name in layers if name in features}

    def _call(self, x: Tensor, changes: Sequence[Replacement]) -> Tensor:
        """Run the model with some attributes temporarily replaced."""
        if not changes:
            return self.model(x)
        try:
            with temporary_attributes(changes):
                return self.model(x)
        except (UserError, _LastLayerReached, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a user's module may raise any error
            raise UserError(self._size_message(*x.shape[2:], _summarise(error))) from error

    def _replacements_for(self, x: Tensor) -> list[Replacement]:
        """List replacements for the attributes of a ViT that depend on the image size, such as position embeddings.

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
        changes = replacements(self.model, survey, height, width, self.resize_positions or ())
        if not changes:
            raise UserError(self._size_message(height, width, self._size_error_for(x)))
        return changes

    @torch.no_grad()
    def _size_error_for(self, x: Tensor) -> str:
        """Return the model's error message for images of another size and aspect ratio; empty if it accepts them."""
        if self._size_error is None:
            step = self._survey.step
            resized = x.new_zeros(1, x.shape[1], self._survey.height + step, self._survey.width + 2 * step)
            model = self.model
            if x.is_cuda and any(isinstance(module, nn.Embedding) for module in model.modules()):
                # CUDA does not recover from an invalid index.
                model, resized = copy.deepcopy(model).cpu(), resized.cpu()
            try:
                with eval_mode(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
                    model(resized)
                self._size_error = ""
            except Exception as error:  # a user's module may raise any error
                self._size_error = _summarise(error)
        return self._size_error

    def _size_message(self, height: int, width: int, error: str) -> str:
        name, survey = type(self.model).__name__, self._survey
        tensors = candidates(self.model, survey, () if callable(self.resize_positions) else self.resize_positions or ())
        remedy = f"resize_positions={tensors[0]!r})" if tensors else "resize_positions=FUNCTION)"
        return (
            f"{name} accepts images of {survey.width} × {survey.height} px, not of {width} × {height} ({error}); if "
            f"its position embeddings have a fixed size, resize them with crosschannel.wrap(net, {remedy}"
        )

    def exclude_layers(self, layers: Mapping[str, str]) -> None:
        """Move layers from ``self.layers`` to ``left_out``; ``layers`` maps their names to reasons."""
        self.left_out |= {name: reason for name, reason in layers.items() if name in self.layers}
        self.layers = tuple(name for name in self.layers if name not in layers)

    def has_layer(self, name: str) -> bool:
        """Return whether a layer or submodule of that name exists, at any depth."""
        try:
            self.get_module(name)
        except AttributeError:
            return False
        return bool(name)

    def nested_matches(self, pattern: str) -> list[str]:
        """List unlisted submodules whose dotted names match a pattern, component by component.

        ``layer*.0`` matches ``layer1.0``, but not ``layer1.0.conv1``.
        """
        patterns = pattern.split(".")
        split_paths = ((name, name.split(".")) for name, _ in self.model.named_modules())
        return [
            name
            for name, parts in split_paths
            if name
            and len(parts) == len(patterns)
            and all(map(fnmatchcase, parts, patterns))
            and name not in self.layers
        ]

    def is_classifier(self, name: str) -> bool:
        """Return whether a layer is a classifier: a linear layer, or a Sequential that ends in one."""
        module = self.get_module(name)
        leaves = [
            leaf for leaf in module.modules() if not any(leaf.children()) and any(True for _ in leaf.parameters())
        ]
        return isinstance(module, nn.Linear | nn.Sequential) and bool(leaves) and isinstance(leaves[-1], nn.Linear)

    def get_module(self, name: str) -> nn.Module:
        """Return the submodule of a layer."""
        return self.model.get_submodule(self._path(name))

    def _is_class_token(self, name: str) -> bool:
        """Return whether a name refers to the class token of a submodule, and not to a submodule."""
        try:
            self.model.get_submodule(self._paths.get(name, name))
        except AttributeError:
            return name.endswith("_class")
        return False

    def _path(self, name: str) -> str:
        """Return the dotted name of a layer's submodule."""
        path = self._paths.get(name, name)
        return path.removesuffix("_class") if self._is_class_token(name) else path

    def _as_map(self, name: str, output: object, x: Tensor) -> Tensor:
        """Convert the output of a submodule to (N, C, h, w)."""
        layout, tensor = self._survey.layouts.get(self._path(name)), tensor_of(output)
        if isinstance(layout, str):
            raise UserError(layout)
        height, width = x.shape[2:]
        feature_map = None
        if tensor is not None and layout is not None:
            feature_map = (
                layout.class_token(tensor) if self._is_class_token(name) else layout.as_map(tensor, height, width)
            )
        if feature_map is None or len(feature_map) != len(x):
            raise UserError(f"layer {name!r} has no feature map (N, C, h, w) for images of {width} × {height} px")
        return feature_map

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, self._replacements_for(x))

    def logits(self, x: Tensor) -> Tensor | None:
        """Return the model's own output if it is one vector per image, else None."""
        output = self._call(x, self._replacements_for(x))
        return output if isinstance(output, Tensor) and output.ndim == 2 else None
