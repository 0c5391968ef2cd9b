"""Register AlexNet, VGG-16 and ColorNet as timm models.

Example::

    import crosschannel.timm

    weights = {"file": "runs/alexnet-imagenet-0/backbone.safetensors"}
    timm.create_model("crosschannel_alexnet", num_classes=10, pretrained=True, pretrained_cfg_overlay=weights)

The options of the net (``norm``, ``fc_width``, ``geometry``) are read from the metadata of the file. With
``checkpoint_path=`` timm passes only the tensors, so these options must be passed as arguments.

The models accept RGB in [0, 1] (mean 0 and std 1 in their default configs) and convert it to L - 50. With
``in_chans=1`` they accept L - 50.
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
# Name → (crop size, side of the last map at that size, layers of the feature maps)
_NETS = {
    "alexnet": (227, 1, ("conv1", "conv2", "conv3", "conv4", "conv5")),
    "vgg16": (224, 14, ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")),
    "colornet": (224, 28, ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "conv6_3", "conv7_3")),
}
_MIN_SIZE = 199  # smallest input, in pixels, for which the map below AlexNet's fc6 has 6 × 6 positions

default_cfgs = generate_default_cfgs(
    {
        f"crosschannel_{name}": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, size, size),
            "pool_size": (pool, pool),
            "min_input_size": (3, _MIN_SIZE, _MIN_SIZE) if family(name).fc else None,
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
    """A crosschannel net with the interface of timm models.

    Args:
        name: alexnet, vgg16 or colornet.
        num_classes: number of classes of the classifier on globally pooled features; 0 omits the classifier.
        in_chans: 3 (RGB in [0, 1]) or 1 (L - 50).
        global_pool: "avg", or "" to return feature maps instead of logits.
        drop_rate: dropout probability before the classifier.
        norm: whether the net has BatchNorm, as in pretraining; False for nets with absorbed BatchNorm.
        fc_width: width of fc6 and fc7; 0 omits them. Default: 4096 for AlexNet, 0 for VGG-16.
        geometry: geometry of AlexNet: "probe" (conv1 without padding), or "padded", in which trunks without fc6 are
            trained. None means "probe", but then the weights of a trunk are refused, since they do not determine the
            geometry.

    Raises:
        ValueError: an invalid argument.
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
        _require("drop_rate", drop_rate, _is_number(drop_rate) and 0 <= drop_rate < 1, "at least 0 and less than 1")
        _require("norm", norm, isinstance(norm, bool), "True or False")
        max_width = _MAX_FC_WIDTH if net_family.has_option("fc") else 0
        is_width = _is_count(fc_width) and fc_width <= max_width
        width_rule = f"within 0..{max_width}" if max_width else f"0, since {name} has no fully connected layers"
        _require("fc_width", fc_width, fc_width is None or is_width, width_rule)
        geometries = ("probe", "padded") if net_family.has_option("geometry") else ()
        geometry_rule = " or ".join(map(repr, geometries)) or f"omitted, since {name} has only one geometry"
        _require("geometry", geometry, geometry is None or geometry in geometries, geometry_rule)
        fc_width = net_family.fc if fc_width is None else fc_width
        options = net_family.supported_options(norm=norm, fc=fc_width, geometry=geometry or "probe")
        self.net: LayeredNet = build_net(NetSpec(name, **options))
        self.in_chans, self.lightness = in_chans, Lightness()
        self._fc_width, self._is_ambiguous = fc_width, name == "alexnet" and not fc_width and geometry is None
        self.num_features = self.head_hidden_size = self.net.out_channels
        self.drop_rate, self.grad_checkpointing = drop_rate, False
        self._feature_layers, shapes = _NETS[name][2], self.net.shapes
        self.feature_info = [
            {"num_chs": shapes[layer][0], "reduction": shapes[layer][1], "module": f"net.{layer}"}
            for layer in self._feature_layers
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        _require("num_classes", num_classes, _is_count(num_classes), "a non-negative integer")
        _require("global_pool", global_pool, global_pool in (None, "avg", ""), "'avg' or ''")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("crosschannel nets do not support gradient checkpointing")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^net\.conv1", "blocks": r"^net\.(?:conv|fc)(\d+)"}

    def _preprocess(self, x: Tensor) -> Tensor:
        return self.lightness(x) - 50 if self.in_chans == 3 else x

    def forward_features(self, x: Tensor) -> Tensor:
        return self.net(self._preprocess(x))

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
        """Return intermediate feature maps.

        Args:
            x: batch of images.
            indices: indices of the maps in ``feature_info``. An int selects that many last maps, None all maps.
            norm: ignored.
            stop_early: ignored, since the forward pass always stops after the last required layer.
            output_fmt: "NCHW".
            intermediates_only: whether to omit the features of the last layer.

        Returns:
            The maps, or (features of the last layer, maps).
        """
        _require("output_fmt", output_fmt, output_fmt == "NCHW", "'NCHW'")
        layers = [self._feature_layers[i] for i in self._map_indices(indices)]
        required = layers if intermediates_only else [*layers, self.net.layers[-1]]
        features = self.net.forward_features(self._preprocess(x), required)
        maps = [features[layer] for layer in layers]
        return maps if intermediates_only else (features[self.net.layers[-1]], maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the classifier, for ``features_only``.

        No layers are removed, since the forward pass stops after the last required one.

        Returns:
            Non-negative indices of the maps.
        """
        map_indices = self._map_indices(indices)
        if prune_head:
            self.reset_classifier(0)
        return map_indices

    def _map_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Convert timm's ``out_indices`` to a list of non-negative indices."""
        count = len(self._feature_layers)
        if indices is None:
            return list(range(count))
        is_int = isinstance(indices, int) and not isinstance(indices, bool)
        if is_int and 1 <= indices <= count:
            return list(range(count - indices, count))
        is_list = isinstance(indices, Sequence) and len(indices) > 0
        is_valid = is_list and all(_is_count(i, -count) and i < count for i in indices)
        _require(
            "out_indices",
            indices,
            is_valid,
            f"an int within 1..{count} (last maps), or indices within {-count}..{count - 1}",
        )
        return [i % count for i in indices]

    def check_state(self, names: Collection[str]) -> None:
        """Raise a ValueError if the tensor names of a backbone file do not match the options of this net."""
        has_fc = "fc6.conv.weight" in names
        if has_fc != (self._fc_width > 0) and "conv1.conv.weight" in names:
            problem = "has fc6 and fc7" if has_fc else "has no fc6 (pass fc_width=0)"
            raise ValueError(f"the file {problem}, but this net has fc_width={self._fc_width}; {_HINT}")
        if self._is_ambiguous:
            raise ValueError(f"pass geometry='padded' or 'probe' for a trunk without fc6; {_HINT}")

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Load the state dict of this model, or that of a backbone file, which leaves the classifier unchanged."""
        if not any(key.startswith("net.") for key in state):
            self.check_state(state.keys())
            classifier = {f"fc.{key}": value for key, value in self.fc.state_dict().items()}
            state = {**classifier, **{f"net.{key}": value for key, value in state.items()}}
        return super().load_state_dict(state, strict, assign)


def _require(name: str, value: object, is_valid: bool, rule: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, minimum: int = 0) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= minimum


_HINT = 'alternatively, pretrained=True, pretrained_cfg_overlay={"file": …} reads the options from the file'


def _stored_options(file: str | None) -> dict[str, Any]:
    """Return the name and options of the net in a crosschannel backbone file; empty for any other file."""
    path = Path(file) if file else None
    if path is not None and not path.is_file():
        raise ValueError(f"no weights file {file}")
    if path is None or not is_crosschannel_file(path):
        return {}
    meta = read_weights(path)[1]
    if meta.objective is not None:
        raise ValueError(f"{file} has a head; pass the backbone.safetensors in the same folder")
    spec = meta.net
    if not is_registered(spec):
        raise ValueError(f"{file} holds a {spec.name} with options that crosschannel.timm does not register: {spec}")
    options = spec.options
    stored: dict[str, Any] = {"name": spec.name, "norm": options.norm}
    if family(spec.name).has_option("fc"):
        stored["fc_width"] = options.fc
    if family(spec.name).has_option("geometry"):
        stored["geometry"] = "probe" if options.fc else options.geometry
    return stored


def _filter_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict that timm has read to the names of the model.

    The names are checked here, since timm would load any subset of the tensors.
    """
    if not any(key.startswith("net.") for key in state):
        model.check_state(state.keys())
        classifier = {f"fc.{key}": value for key, value in model.fc.state_dict().items()}
        state = classifier | {f"net.{key}": value for key, value in state.items()}
    unmatched = {key for key in model.state_dict().keys() ^ state.keys() if key.startswith("net.")}
    if unmatched:
        raise ValueError(f"the file does not match this net: only one of them has {min(unmatched)}")
    return dict(state)


def _check_names(name: str, options: Mapping[str, object]) -> None:
    """Raise a TypeError for an argument that neither the net nor timm's model builder accepts."""
    arguments = [key for key in inspect.signature(CrosschannelNet).parameters if key != "name"]
    builder = inspect.signature(build_model_with_cfg).parameters.values()
    known = {*arguments, "features_only", *(entry.name for entry in builder if entry.kind is not entry.VAR_KEYWORD)}
    known |= {"out_indices", "feature_cls"} if options.get("features_only") else set()
    unknown = sorted(options.keys() - known)
    if unknown:
        hint = " without features_only=True" if unknown[0] in ("out_indices", "feature_cls") else ""
        names = f"{', '.join(arguments)}, features_only and out_indices"
        raise TypeError(f"crosschannel_{name} has no argument {unknown[0]!r}{hint or f'; available: {names}'}")


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    _check_names(name, options)
    overlay = options.get("pretrained_cfg_overlay") or {}
    stored = _stored_options(overlay.get("file")) if pretrained else {}
    if stored.pop("name", name) != name:
        raise ValueError(f"{overlay['file']} does not hold a {name} net")
    options = stored | options
    model = build_model_with_cfg(
        CrosschannelNet,
        f"crosschannel_{name}",
        pretrained,
        pretrained_filter_fn=_filter_state,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(len(_NETS[name][2])))},
        name=name,
        **options,
    )
    if options.get("features_only"):
        model._register_load_state_dict_pre_hook(partial(_add_wrapper_prefix, model))
    return model


def _add_wrapper_prefix(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename the tensors of a backbone file, in place, for timm's ``features_only`` wrapper."""
    if not any(key.startswith(("model.", "net.")) for key in state):
        model.model.check_state(state.keys())
    for key in [key for key in state if not prefix and not key.startswith("model.")]:
        state["model." + ("" if key.startswith("net.") else "net.") + key] = state.pop(key)


@register_model
def crosschannel_alexnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """AlexNet without LRN, for inputs of 227 px."""
    return _create("alexnet", pretrained, **options)


@register_model
def crosschannel_vgg16(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG-16 with BatchNorm, without fully connected layers unless ``fc_width=4096``."""
    return _create("vgg16", pretrained, **options)


@register_model
def crosschannel_colornet(pretrained: bool = False, **options: Any) -> nn.Module:
    """ColorNet, the colorization net of the paper's Fig. 2, up to conv7."""
    return _create("colornet", pretrained, **options)
