"""timm's names for our nets: ``import crosschannel.timm`` registers them, and

    weights = {"file": "runs/alexnet-imagenet-0/backbone.safetensors"}
    timm.create_model("crosschannel_alexnet", num_classes=10, pretrained=True, pretrained_cfg_overlay=weights)

makes one, of the shape that the file says it has; ``checkpoint_path=`` loads weights into a net whose shape is given
(timm shows a net nothing but the tensors then). They take RGB in [0, 1] (mean 0, std 1 in their default configs) and
turn it into L - 50 themselves, or, with ``in_chans=1``, L - 50 as it is.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from crosschannel.color.lab import Lightness
from crosschannel.hub.files import LICENCE, is_crosschannel_file, read_weights
from crosschannel.models import LayeredNet, NetSpec, build_net, family
from crosschannel.models.nets import is_registered

_MAX_FC_WIDTH = 65536
# net: (side of its crops, side of its last map, layers at which features are taken by default)
_NETS = {
    "alexnet": (227, 1, ("conv1", "conv2", "conv3", "conv4", "conv5")),
    "vgg16": (224, 14, ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")),
    "colornet": (224, 28, ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "conv6_3", "conv7_3")),
}
_LEAST = 199  # pixels, so that AlexNet's fc6 has its 6 × 6 positions

default_cfgs = generate_default_cfgs(
    {
        f"crosschannel_{name}": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, size, size),
            "pool_size": (pool, pool),
            "min_input_size": (3, _LEAST, _LEAST) if family(name).fc else None,
            "crop_pct": size / 256,
            "interpolation": "bilinear",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": f"net.{family(name).first}",
            "classifier": "fc",
            "license": LICENCE,
            "paper_name": "Colorful Image Colorization",
            "paper_ids": "arXiv:1603.08511",
        }
        for name, (size, pool, _) in _NETS.items()
    }
)


class CrosschannelNet(nn.Module):
    """One of our nets with timm's methods.

    Args:
        name: alexnet, vgg16 or colornet.
        num_classes: of the classifier on the mean over positions; 0 for none.
        in_chans: 3 (RGB in [0, 1]) or 1 (L - 50).
        global_pool: "avg", or "" for none.
        drop_rate: of the dropout before the classifier.
        norm: BatchNorm as in pretraining; False once it is absorbed.
        fc_width: of fc6 and fc7 of AlexNet (by default 4096) and VGG-16 (0); 0 leaves them out.
        geometry: of an AlexNet: "probe" (conv1 without padding), or "padded", as trunks without fc6 are trained. None
            is "probe", and takes no weights of a trunk, which may be of either.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        norm: bool = True,
        fc_width: int | None = None,
        geometry: str | None = None,
    ):
        super().__init__()
        net_family = family(name)
        _require("in_chans", in_chans, in_chans in (1, 3), "3 (RGB in [0, 1]) or 1 (L - 50)")
        _require("drop_rate", drop_rate, _is_number(drop_rate) and 0 <= drop_rate < 1, "within 0 … 1")
        _require("norm", norm, isinstance(norm, bool), "True or False")
        most = _MAX_FC_WIDTH if net_family.has_option("fc") else 0
        is_width = _is_count(fc_width) and fc_width <= most
        width_rule = f"within 0..{most}" if most else f"0: {name} has no fully connected layers"
        _require("fc_width", fc_width, fc_width is None or is_width, width_rule)
        geometries = ("probe", "padded") if net_family.has_option("geometry") else ()
        geometry_rule = " or ".join(map(repr, geometries)) or f"left out: {name} has one geometry"
        _require("geometry", geometry, geometry is None or geometry in geometries, geometry_rule)
        fc_width = net_family.fc if fc_width is None else fc_width
        options = net_family.supported_options(norm=norm, fc=fc_width, geometry=geometry or "probe")
        self.net: LayeredNet = build_net(NetSpec(name, **options))
        self.in_chans, self.lightness = in_chans, Lightness()
        self._fc_width, self._is_ambiguous = fc_width, name == "alexnet" and not fc_width and geometry is None
        self.num_features = self.head_hidden_size = self.net.out_channels
        self.drop_rate, self.grad_checkpointing = drop_rate, False
        self._taken, shapes = _NETS[name][2], self.net.shapes
        self.feature_info = [
            {"num_chs": shapes[layer][0], "reduction": shapes[layer][1], "module": f"net.{layer}"}
            for layer in self._taken
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        _require("num_classes", num_classes, _is_count(num_classes), "a whole number from 0")
        _require("global_pool", global_pool, global_pool in (None, "avg", ""), "'avg' or ''")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("these nets are small and have no gradient checkpointing")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^net\.conv1", "blocks": r"^net\.(?:conv|fc)(\d+)"}

    def _input(self, x: Tensor) -> Tensor:
        return self.lightness(x) - 50 if self.in_chans == 3 else x

    def forward_features(self, x: Tensor) -> Tensor:
        return self.net(self._input(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if not self.global_pool:
            return x
        x = nn.functional.dropout(x.mean((2, 3)), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of ``feature_info`` by index (an int: the last so many)."""
        _require("output_fmt", output_fmt, output_fmt == "NCHW", "'NCHW'")
        layers = [self._taken[i] for i in self._map_indices(indices)]
        wanted = layers if intermediates_only else [*layers, self.net.layers[-1]]
        found = self.net.forward_features(self._input(x), wanted)
        maps = [found[layer] for layer in layers]
        return maps if intermediates_only else (found[self.net.layers[-1]], maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the classifier, for ``features_only``; nothing past the last map asked for is computed anyway."""
        selected = self._map_indices(indices)
        if prune_head:
            self.reset_classifier(0)
        return selected

    def _map_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Convert timm's ``out_indices`` to a list of non-negative indices."""
        count = len(self._taken)
        if indices is None:
            return list(range(count))
        is_last = isinstance(indices, int) and not isinstance(indices, bool)
        if is_last and 1 <= indices <= count:
            return list(range(count - indices, count))
        is_list = isinstance(indices, Sequence) and len(indices) > 0
        fits = is_list and all(_is_count(i, -count) and i < count for i in indices)
        _require(
            "out_indices", indices, fits, f"1 … {count} last maps, or indices of maps within {-count} … {count - 1}"
        )
        return [i % count for i in indices]

    def check_state(self, names: Collection[str]) -> None:
        """Raise a ValueError for weights, named as in a backbone file, of a net of another shape than this one."""
        found = "fc6.conv.weight" in names
        if found != (self._fc_width > 0) and "conv1.conv.weight" in names:
            says = "has fc6 and fc7" if found else "has no fc6: give fc_width=0"
            raise ValueError(f"the file {says}, and this net is of fc_width={self._fc_width}; {_HINT}")
        if self._is_ambiguous:
            raise ValueError(f"a trunk without fc6 is of either geometry: give geometry='padded' or 'probe'; {_HINT}")

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """A backbone file has our names and no classifier; the classifier then stays as it is."""
        if not any(key.startswith("net.") for key in state):
            self.check_state(state.keys())
            own = {f"fc.{key}": value for key, value in self.fc.state_dict().items()}
            state = {**own, **{f"net.{key}": value for key, value in state.items()}}
        return super().load_state_dict(state, strict, assign)


def _require(name: str, value: object, is_valid: bool, rule: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, minimum: int = 0) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= minimum


_HINT = 'with pretrained=True, pretrained_cfg_overlay={"file": …} it is read off the file'


def _shape_of(file: str | None) -> dict[str, Any]:
    """Options of a net as a backbone file of ours has it; none for any other file."""
    path = Path(file) if file else None
    if path is not None and not path.is_file():
        raise ValueError(f"no weights file {file}")
    if path is None or not is_crosschannel_file(path):
        return {}
    meta = read_weights(path)[1]
    if meta.objective is not None:
        raise ValueError(f"{file} holds a colorization head: give the backbone.safetensors beside it")
    spec = meta.net
    if not is_registered(spec):
        raise ValueError(f"{file} holds a {spec.name} of another shape than those registered here: {spec}")
    options = spec.options
    shape: dict[str, Any] = {"name": spec.name, "norm": options.norm}
    if family(spec.name).has_option("fc"):
        shape["fc_width"] = options.fc
    if family(spec.name).has_option("geometry"):
        shape["geometry"] = "probe" if options.fc else options.geometry
    return shape


def _by_our_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm loads itself, under the names of the model. (timm takes any subset of them.)"""
    if not any(key.startswith("net.") for key in state):
        model.check_state(state.keys())
        own = {f"fc.{key}": value for key, value in model.fc.state_dict().items()}
        state = own | {f"net.{key}": value for key, value in state.items()}
    odd = {key for key in model.state_dict().keys() ^ state.keys() if key.startswith("net.")}
    if odd:
        raise ValueError(f"the file is of another net: {min(odd)} is in one of both only")
    return dict(state)


def _check_names(name: str, options: Mapping[str, object]) -> None:
    """Raise a TypeError for an argument that neither the nets nor timm's builder accept."""
    arguments = [key for key in inspect.signature(CrosschannelNet).parameters if key != "name"]
    builder = inspect.signature(build_model_with_cfg).parameters.values()
    known = {*arguments, "features_only", *(entry.name for entry in builder if entry.kind is not entry.VAR_KEYWORD)}
    known |= {"out_indices", "feature_cls"} if options.get("features_only") else set()
    unknown = sorted(options.keys() - known)
    if unknown:
        hint = "; it needs features_only=True" if unknown[0] in ("out_indices", "feature_cls") else ""
        names = f"{', '.join(arguments)}, features_only and out_indices"
        raise TypeError(f"crosschannel_{name} has no argument {unknown[0]!r}{hint or f': it has {names}'}")


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    _check_names(name, options)
    overlay = options.get("pretrained_cfg_overlay") or {}
    shape = _shape_of(overlay.get("file")) if pretrained else {}
    if shape.pop("name", name) != name:
        raise ValueError(f"{overlay['file']} holds no {name}")
    options = shape | options
    model = build_model_with_cfg(
        CrosschannelNet,
        f"crosschannel_{name}",
        pretrained,
        pretrained_filter_fn=_by_our_names,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(len(_NETS[name][2])))},
        name=name,
        **options,
    )
    if options.get("features_only"):
        model._register_load_state_dict_pre_hook(partial(_under_the_wrapper, model))
    return model


def _under_the_wrapper(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The names of a backbone file, as timm's wrapper for features has them."""
    if not any(key.startswith(("model.", "net.")) for key in state):
        model.model.check_state(state.keys())
    for key in [key for key in state if not prefix and not key.startswith("model.")]:
        state["model." + ("" if key.startswith("net.") else "net.") + key] = state.pop(key)


@register_model
def crosschannel_alexnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """AlexNet without LRN, 227 px."""
    return _create("alexnet", pretrained, **options)


@register_model
def crosschannel_vgg16(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG-16 with BatchNorm, without fully connected layers unless ``fc_width=4096``."""
    return _create("vgg16", pretrained, **options)


@register_model
def crosschannel_colornet(pretrained: bool = False, **options: Any) -> nn.Module:
    """ColorNet, the colorization net of the paper's Fig. 2, up to conv7."""
    return _create("colornet", pretrained, **options)
