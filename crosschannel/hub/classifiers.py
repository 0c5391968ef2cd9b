"""Sources that tell classes: runs of the task labels, timm's and torchvision's own classifiers, a factory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.hub.libraries import timm_model, torchvision_model
from crosschannel.hub.load import has_head, load_backbone, load_pretext
from crosschannel.hub.sources import parse_source
from crosschannel.models import InputSpec

_IMAGENET = 1000


class ImageClassifier(nn.Module):
    """A net that tells classes, from RGB.

    Args:
        net: preprocessed batch → logits (N, K).
        preprocess: RGB in [0, 1] → what it takes.
        input: its size and resize.
        classes: names by output; empty where they are not known.
        device: its device.

    Attributes:
        outputs: K.
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
        with torch.inference_mode(), wrap_external_errors("the classifier cannot be run"):
            self.outputs = self(torch.zeros(1, 3, input.size, input.size, device=device)).shape[1]
        if self.outputs == _IMAGENET and not classes:
            self.classes = imagenet_classes()

    @torch.inference_mode()
    def forward(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, S, S) in [0, 1], square → logits (N, K): its short side becomes ``input.resize``, its centre of
        ``input.size`` is looked at."""
        size, resize = self.input.size, self.input.resize
        if rgb.shape[2] != resize:
            mode = self.input.interpolation if self.input.interpolation in ("bilinear", "bicubic") else "bicubic"
            rgb = nn.functional.interpolate(rgb, (resize, resize), mode=mode, antialias=True).clamp(0, 1)
        start = (resize - size) // 2
        return self.net(self.preprocess(rgb[:, :, start : start + size, start : start + size]))


def load_classifier(source: str, device: torch.device | str = "cpu") -> ImageClassifier:
    """Load a net that tells classes.

    Raises:
        UserError: no such source, or one without a classifier.
    """
    parsed = parse_source(source)
    if parsed.kind in ("torchvision", "timm"):
        loaded = torchvision_model(parsed) if parsed.kind == "torchvision" else timm_model(parsed)
        if loaded.lacking:
            raise UserError(f"{source} has no classifier: its file has no weights for {', '.join(loaded.lacking)}")
        return _frozen(loaded.model, loaded.input, (), device)
    if has_head(source):
        whole = load_pretext(source)
        if not whole.task.is_classifier:
            raise UserError(f"{source} is a net of the task {whole.task.name}, which tells no classes")
        return _frozen(whole.net, whole.input, whole.task.classes, device)
    backbone = load_backbone(source, device=device)
    return ImageClassifier(backbone.logits, backbone.preprocess, backbone.input, (), device)


def _frozen(
    model: nn.Module, input: InputSpec, classes: tuple[str, ...], device: torch.device | str
) -> ImageClassifier:
    model = model.to(device).eval().requires_grad_(False)
    return ImageClassifier(model, input.preprocess, input, classes, device)


def imagenet_classes() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1,000 classes in their usual order; empty without timm, which has the list."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return ()
    return tuple(ImageNetInfo().label_names())
