"""Load image classifiers: runs of the task ``labels``, models of timm and torchvision, and user-defined factories."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.hub.libraries import timm_model, torchvision_model
from crosschannel.hub.load import has_head, load_backbone, load_pretext
from crosschannel.hub.sources import parse_source
from crosschannel.models import InputSpec

_IMAGENET_CLASSES = 1000


class ImageClassifier(nn.Module):
    """An image classifier on RGB.

    Args:
        net: maps a preprocessed batch to logits (N, K).
        preprocess: maps RGB in [0, 1] to a preprocessed batch.
        input: input specification, which provides the resize and crop sizes.
        classes: class names by index; empty if they are unknown.
        device: device of the net.

    Attributes:
        outputs: number of classes K.

    Raises:
        UserError: the net fails on a blank image.
    """

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        preprocess: Callable[[Tensor], Tensor],
        input: InputSpec,
        classes: tuple[str, ...],
        device: torch.device | str,
    ):
        super().__init__()
        self.net, self.preprocess, self.input, self.classes = net, preprocess, input, classes
        with torch.inference_mode(), wrap_external_errors("could not run the classifier"):
            self.outputs = self(torch.zeros(1, 3, input.size, input.size, device=device)).shape[1]
        if self.outputs == _IMAGENET_CLASSES and not classes:
            self.classes = imagenet_classes()

    @torch.inference_mode()
    def forward(self, rgb: Tensor) -> Tensor:
        """Return the logits (N, K) of square RGB images (N, 3, S, S) in [0, 1].

        Images are resized to ``input.resize`` and centre-cropped to ``input.size``.
        """
        size, resize = self.input.size, self.input.resize
        if rgb.shape[2] != resize:
            mode = self.input.interpolation if self.input.interpolation in ("bilinear", "bicubic") else "bicubic"
            rgb = nn.functional.interpolate(rgb, (resize, resize), mode=mode, antialias=True).clamp(0, 1)
        start = (resize - size) // 2
        return self.net(self.preprocess(rgb[:, :, start : start + size, start : start + size]))


def load_classifier(source: str, device: torch.device | str = "cpu") -> ImageClassifier:
    """Load the image classifier of a source.

    Raises:
        UserError: the source does not exist or has no classifier.
    """
    parsed = parse_source(source)
    if parsed.kind in ("torchvision", "timm"):
        loaded = torchvision_model(parsed) if parsed.kind == "torchvision" else timm_model(parsed)
        if loaded.missing:
            raise UserError(f"{source} has no classifier: its file has no weights for {', '.join(loaded.missing)}")
        return _frozen_classifier(loaded.model, loaded.input, (), device)
    if has_head(source):
        checkpoint = load_pretext(source)
        if not checkpoint.task.is_classifier:
            raise UserError(f"{source} has no classifier: it was trained on the task {checkpoint.task.name}")
        return _frozen_classifier(checkpoint.net, checkpoint.input, checkpoint.task.classes, device)
    backbone = load_backbone(source, device=device)
    return ImageClassifier(backbone.logits, backbone.preprocess, backbone.input, (), device)


def _frozen_classifier(
    model: nn.Module, input: InputSpec, classes: tuple[str, ...], device: torch.device | str
) -> ImageClassifier:
    model = model.to(device).eval().requires_grad_(False)
    return ImageClassifier(model, input.preprocess, input, classes, device)


def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1,000 classes in the standard order; empty if timm is not installed."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return ()
    return tuple(ImageNetInfo().label_names())
