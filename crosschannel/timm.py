"""timm's names for our nets: ``import crosschannel.timm`` registers them, and

    timm.create_model("crosschannel_alexnet", num_classes=10, checkpoint_path="backbone.safetensors")

makes one. They take RGB in [0, 1] (mean 0, std 1 in their default configs) and turn it into L - 50 themselves, or, with
``in_chans=1``, L - 50 as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from crosschannel.hub.files import LICENCE
from crosschannel.models import InputSpec, LayeredNet, NetSpec, build_net
from crosschannel.models.build import classic_fc

# net: (side of its crops, layers at which features are taken by default)
_NETS = {
    "alexnet": (227, ("conv1", "conv2", "conv3", "conv4", "conv5")),
    "vgg16": (224, ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")),
    "colornet": (224, ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "conv6_3", "conv7_3")),
}

default_cfgs = generate_default_cfgs(
    {
        f"crosschannel_{name}": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, size, size),
            "pool_size": None,
            "crop_pct": round(size / 256, 3),
            "interpolation": "bilinear",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": f"net.{'conv1' if name == 'alexnet' else 'conv1_1'}.conv",
            "classifier": "fc",
            "license": LICENCE,
            "paper_name": "Colorful Image Colorization",
            "paper_ids": "arXiv:1603.08511",
        }
        for name, (size, _) in _NETS.items()
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
        geometry: of an AlexNet: "probe" (conv1 without padding), or "padded", as trunks without fc6 are trained.
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
        geometry: str = "probe",
    ):
        super().__init__()
        if in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 3 (RGB in [0, 1]) or 1 (L - 50), got {in_chans}")
        fc_width = classic_fc(name) if fc_width is None else fc_width
        self.net: LayeredNet = build_net(NetSpec(name, 1, norm, fc_width, geometry))
        self.in_chans, self.input = in_chans, InputSpec("grey")
        self.num_features = self.head_hidden_size = self.net.out_channels
        self.drop_rate, self.grad_checkpointing = drop_rate, False
        self._taken, shapes = _NETS[name][1], self.net.shapes
        self.feature_info = [
            {"num_chs": shapes[layer][0], "reduction": shapes[layer][1], "module": f"net.{layer}"}
            for layer in self._taken
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
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
        x = self.input.preprocess(x) if self.in_chans == 3 else x
        return x.to(next(self.net.parameters()).dtype)

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
        count = len(self._taken)
        chosen = list(range(count)[-indices:]) if isinstance(indices, int) else list(indices or range(count))
        layers = [self._taken[i] for i in chosen]
        wanted = layers if intermediates_only else [*layers, self.net.layers[-1]]
        found = self.net.forward_features(self._input(x), wanted)
        maps = [found[layer] for layer in layers]
        return maps if intermediates_only else (found[self.net.layers[-1]], maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the classifier, for ``features_only``; nothing past the last map asked for is computed anyway."""
        if prune_head:
            self.reset_classifier(0)
        count = len(self._taken)
        return list(range(count)[-indices:]) if isinstance(indices, int) else [i % count for i in indices]

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """A backbone file has our names and no classifier; the classifier then stays as it is."""
        if not any(key.startswith("net.") for key in state):
            own = {f"fc.{key}": value for key, value in self.fc.state_dict().items()}
            state = {**own, **{f"net.{key}": value for key, value in state.items()}}
        return super().load_state_dict(state, strict, assign)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    model = build_model_with_cfg(
        CrosschannelNet,
        f"crosschannel_{name}",
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(len(_NETS[name][1])))},
        name=name,
        **options,
    )
    if options.get("features_only"):
        model._register_load_state_dict_pre_hook(_under_the_wrapper)
    return model


def _under_the_wrapper(state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The names of a backbone file, as timm's wrapper for features has them."""
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
