"""Formats of third-party weights: one table per format that maps our module names to those in the file.

Import and export share these tables. Conversions of values are in :mod:`crosschannel.hub.convert`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crosschannel.models import InputSpec, NetSpec

IMAGENET = InputSpec("rgb", 224, 256)
_VGG = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
_VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG_BN_INDICES = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


@dataclass(frozen=True)
class Format:
    """Weight names in the files of a publication or a library.

    Attributes:
        net: spec of the net; input channels and the width of fc6 are read from the tensors.
        input: input of the net; its kind depends on the channels of the first convolution.
        names: stored module names by our module names.
        authors: library or publication that uses the format.
        optional: prefixes of our modules that a file has all or none of (fully connected layers).
        ignored: prefixes of stored names that a backbone does not need.
    """

    net: NetSpec
    input: InputSpec
    names: Mapping[str, str]
    authors: str
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def _alexnet(convs: tuple[int, ...], norms: tuple[int, ...] = (), prefix: str = "features") -> dict[str, str]:
    """Return the name table of an AlexNet, given the indices of its convolutions and norms."""
    names = {f"conv{i}.conv": f"{prefix}.{index}" for i, index in enumerate(convs, 1)}
    names |= {f"conv{i}.norm": f"{prefix}.{index}" for i, index in enumerate(norms, 1)}
    return names | {"fc6.conv": "classifier.1", "fc7.conv": "classifier.4"}


def _vgg(convs: tuple[int, ...], norm: bool) -> dict[str, str]:
    """Return the name table of a VGG-16, given the indices of its convolutions."""
    layers = dict(zip(_VGG, convs, strict=True))
    names = {f"conv{layer}.conv": f"features.{index}" for layer, index in layers.items()}
    norms = {f"conv{layer}.norm": f"features.{index + 1}" for layer, index in layers.items()} if norm else {}
    return names | norms | {"fc6.conv": "classifier.0", "fc7.conv": "classifier.3"}


def _rotnet() -> dict[str, str]:
    blocks = {"conv1": 0, "conv2": 2, "conv3": 4, "conv4": 5, "conv5": 6}
    names = {f"{layer}.conv": f"_feature_blocks.{block}.0" for layer, block in blocks.items()}
    names |= {f"{layer}.norm": f"_feature_blocks.{block}.1" for layer, block in blocks.items()}
    fc = {"fc6.conv": 1, "fc6.norm": 2, "fc7.conv": 4, "fc7.norm": 5}
    return names | {name: f"_feature_blocks.8.{index}" for name, index in fc.items()}


def _eccv16() -> dict[str, str]:
    # Convolutions per block, each followed by a ReLU; BatchNorm follows the last one.
    counts = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3, 6: 3, 7: 3}
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
        NetSpec("vgg16", 3, norm=False), IMAGENET, _vgg(_VGG_INDICES, False), "torchvision", _FC, ("classifier",)
    ),
    "torchvision-vgg16_bn": Format(
        NetSpec("vgg16", 3, affine=True),
        IMAGENET,
        _vgg(_VGG_BN_INDICES, True),
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

# Formats of each family, for `--as FAMILY`
FAMILIES = {
    "alexnet": ("torchvision-alexnet", "deepcluster-alexnet", "rotnet-alexnet"),
    "vgg16": ("torchvision-vgg16", "torchvision-vgg16_bn"),
    "colornet": ("eccv16",),
}
