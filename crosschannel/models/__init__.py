"""Backbones with named layers, pretext heads, colorization nets and initialisation."""

from crosschannel.models.alexnet import AlexNet
from crosschannel.models.backbone import Backbone, InputSpec
from crosschannel.models.build import NET_NAMES, NetSpec, build_net
from crosschannel.models.colornet import ColorNet
from crosschannel.models.layers import LayeredNet, absorb_batchnorm, widen_to_lab
from crosschannel.models.pretext import PretextNet, build_pretext
from crosschannel.models.vgg import VGG16

__all__ = [
    "NET_NAMES",
    "VGG16",
    "AlexNet",
    "Backbone",
    "ColorNet",
    "InputSpec",
    "LayeredNet",
    "NetSpec",
    "PretextNet",
    "absorb_batchnorm",
    "build_net",
    "build_pretext",
    "widen_to_lab",
]
