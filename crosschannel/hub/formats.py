"""Other people's weights: a table a format, from our module names to theirs.

``import`` and ``export`` both read these tables; what a format does to a value besides renaming it stands in
:mod:`crosschannel.hub.convert`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crosschannel.models import InputSpec, NetSpec

IMAGENET = InputSpec("rgb", 224, 256)
_VGG = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
_VGG_PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


@dataclass(frozen=True)
class Format:
    """A published naming of weights.

    Attributes:
        net: what it holds; channels, widths and BatchNorm are read off the tensors.
        input: what its authors feed it; its kind follows the first convolution's channels.
        names: our module → theirs.
        optional: our modules that a file may lack as a whole (fully connected layers).
        left_out: prefixes of theirs that a backbone has no place for.
        whose: its authors.
    """

    net: NetSpec
    input: InputSpec
    names: Mapping[str, str]
    whose: str
    optional: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def _alexnet(places: tuple[int, ...], norms: tuple[int, ...] = (), prefix: str = "features") -> dict[str, str]:
    names = {f"conv{i}.conv": f"{prefix}.{place}" for i, place in enumerate(places, 1)}
    names |= {f"conv{i}.norm": f"{prefix}.{place}" for i, place in enumerate(norms, 1)}
    return names | {"fc6.conv": "classifier.1", "fc7.conv": "classifier.4"}


def _vgg(places: tuple[int, ...], norm: bool) -> dict[str, str]:
    layers = dict(zip(_VGG, places, strict=True))
    names = {f"conv{layer}.conv": f"features.{place}" for layer, place in layers.items()}
    norms = {f"conv{layer}.norm": f"features.{place + 1}" for layer, place in layers.items()} if norm else {}
    return names | norms | {"fc6.conv": "classifier.0", "fc7.conv": "classifier.3"}


def _rotnet() -> dict[str, str]:
    blocks = {"conv1": 0, "conv2": 2, "conv3": 4, "conv4": 5, "conv5": 6}
    names = {f"{layer}.conv": f"_feature_blocks.{block}.0" for layer, block in blocks.items()}
    names |= {f"{layer}.norm": f"_feature_blocks.{block}.1" for layer, block in blocks.items()}
    fc = {"fc6.conv": 1, "fc6.norm": 2, "fc7.conv": 4, "fc7.norm": 5}
    return names | {name: f"_feature_blocks.8.{place}" for name, place in fc.items()}


def _eccv16() -> dict[str, str]:
    counts = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3, 6: 3, 7: 3}  # block: convolutions, each followed by a ReLU; then BatchNorm
    names = {
        f"net.conv{block}_{i}.conv": f"model{block}.{2 * (i - 1)}"
        for block, count in counts.items()
        for i in range(1, count + 1)
    }
    names |= {f"net.conv{block}_{count}.norm": f"model{block}.{2 * count}" for block, count in counts.items()}
    head = {"head.conv8_1": "model8.0", "head.conv8_2": "model8.2", "head.conv8_3": "model8.4", "head.out": "model8.6"}
    return names | head | {"native": "model_out"}


_FC = ("fc6", "fc7")
FORMATS: dict[str, Format] = {
    "torchvision-alexnet": Format(
        NetSpec("alexnet", 3, norm=False, geometry="probe", variant="torchvision"),
        IMAGENET,
        _alexnet((0, 3, 6, 8, 10)),
        "torchvision",
        _FC,
        ("classifier",),
    ),
    "deepcluster-alexnet": Format(
        NetSpec("alexnet", 3, geometry="probe", variant="deepcluster"),
        IMAGENET,
        _alexnet((0, 4, 8, 11, 14), (1, 5, 9, 12, 15)),
        "Caron et al. 2018",
        _FC,
        ("classifier", "sobel", "top_layer"),
    ),
    "rotnet-alexnet": Format(
        NetSpec("alexnet", 3, geometry="probe", variant="rotnet"),
        IMAGENET,
        _rotnet(),
        "Gidaris et al. 2018",
        _FC,
        ("_feature_blocks.9",),
    ),
    "torchvision-vgg16": Format(
        NetSpec("vgg16", 3, norm=False), IMAGENET, _vgg(_VGG_PLAIN, False), "torchvision", _FC, ("classifier",)
    ),
    "torchvision-vgg16_bn": Format(
        NetSpec("vgg16", 3, affine=True),
        IMAGENET,
        _vgg(_VGG_BN, True),
        "torchvision; Caron et al. 2018",
        _FC,
        ("classifier", "sobel", "top_layer"),
    ),
    "eccv16": Format(
        NetSpec("colornet", 1, affine=True),
        InputSpec("grey", 256, 256),
        _eccv16(),
        "Zhang et al. 2016, the PyTorch release",
    ),
}

# `--as NAME`: formats that a name may stand for
FAMILIES = {
    "alexnet": ("torchvision-alexnet", "deepcluster-alexnet", "rotnet-alexnet"),
    "vgg16": ("torchvision-vgg16", "torchvision-vgg16_bn"),
    "colornet": ("eccv16",),
}
