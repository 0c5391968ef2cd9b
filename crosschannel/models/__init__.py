"""Backbones with named layers, and initialisation."""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names

if TYPE_CHECKING:
    from crosschannel.models.alexnet import AlexNet
    from crosschannel.models.backbone import Backbone, wrap
    from crosschannel.models.colornet import ColorNet
    from crosschannel.models.input_spec import InputSpec
    from crosschannel.models.layers import LayeredNet, absorb_batchnorm, widen_to_lab
    from crosschannel.models.nets import FAMILIES, build_net, family, spec_of
    from crosschannel.models.spec import NetSpec
    from crosschannel.models.vgg import VGG16

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "crosschannel.models.alexnet": "AlexNet",
        "crosschannel.models.backbone": "Backbone wrap",
        "crosschannel.models.colornet": "ColorNet",
        "crosschannel.models.input_spec": "InputSpec",
        "crosschannel.models.layers": "LayeredNet absorb_batchnorm widen_to_lab",
        "crosschannel.models.nets": "FAMILIES build_net family spec_of",
        "crosschannel.models.spec": "NetSpec",
        "crosschannel.models.vgg": "VGG16",
    },
)
