"""Backbones with named layers, and initialisation."""

from crosschannel.models.alexnet import AlexNet
from crosschannel.models.backbone import Backbone, wrap
from crosschannel.models.colornet import ColorNet
from crosschannel.models.input_spec import InputSpec
from crosschannel.models.layers import LayeredNet, absorb_batchnorm, widen_to_lab
from crosschannel.models.nets import FAMILIES, build_net, family, spec_of
from crosschannel.models.spec import NetSpec
from crosschannel.models.vgg import VGG16

__all__ = [
    "FAMILIES",
    "VGG16",
    "AlexNet",
    "Backbone",
    "ColorNet",
    "InputSpec",
    "LayeredNet",
    "NetSpec",
    "absorb_batchnorm",
    "build_net",
    "family",
    "spec_of",
    "widen_to_lab",
    "wrap",
]
