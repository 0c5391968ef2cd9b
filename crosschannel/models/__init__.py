"""Backbones with named layers, their initialisation, and their adaptation for fine-tuning."""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names

if TYPE_CHECKING:
    from crosschannel.models.alexnet import AlexNet as AlexNet
    from crosschannel.models.backbone import Backbone as Backbone
    from crosschannel.models.backbone import wrap as wrap
    from crosschannel.models.colornet import ColorNet as ColorNet
    from crosschannel.models.input_spec import InputSpec as InputSpec
    from crosschannel.models.layers import LayeredNet as LayeredNet
    from crosschannel.models.layers import absorb_batchnorm as absorb_batchnorm
    from crosschannel.models.layers import widen_to_lab as widen_to_lab
    from crosschannel.models.nets import FAMILIES as FAMILIES
    from crosschannel.models.nets import NetSpec as NetSpec
    from crosschannel.models.nets import build_net as build_net
    from crosschannel.models.nets import family as family
    from crosschannel.models.nets import spec_of as spec_of
    from crosschannel.models.vgg import VGG16 as VGG16

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "crosschannel.models.alexnet": "AlexNet",
        "crosschannel.models.backbone": "Backbone wrap",
        "crosschannel.models.colornet": "ColorNet",
        "crosschannel.models.input_spec": "InputSpec",
        "crosschannel.models.layers": "LayeredNet absorb_batchnorm widen_to_lab",
        "crosschannel.models.nets": "FAMILIES NetSpec build_net family spec_of",
        "crosschannel.models.vgg": "VGG16",
    },
)
