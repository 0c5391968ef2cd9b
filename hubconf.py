"""Entry points of ``torch.hub.load(REPOSITORY, "crosschannel_alexnet", num_classes=10)``, named as in timm."""

dependencies = ["torch", "torchvision", "timm", "safetensors", "numpy", "PIL", "rich", "simplejpeg", "huggingface_hub"]


def _create(name: str, pretrained: bool, **options):
    import timm

    import crosschannel.timm  # noqa: F401  (registers the models)

    return timm.create_model(name, pretrained=pretrained, **options)


def crosschannel_alexnet(pretrained: bool = False, **options):
    """AlexNet without LRN. Options are passed to ``timm.create_model``, for example ``checkpoint_path``."""
    return _create("crosschannel_alexnet", pretrained, **options)


def crosschannel_vgg16(pretrained: bool = False, **options):
    """Convolutional layers of VGG-16. Options are passed to ``timm.create_model``."""
    return _create("crosschannel_vgg16", pretrained, **options)


def crosschannel_colornet(pretrained: bool = False, **options):
    """ColorNet up to conv7. Options are passed to ``timm.create_model``."""
    return _create("crosschannel_colornet", pretrained, **options)


def load_backbone(source: str, **options):
    """Load a backbone with ``crosschannel.load_backbone``."""
    from crosschannel import load_backbone

    return load_backbone(source, **options)
