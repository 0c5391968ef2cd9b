"""Nets that judge coloured pictures: a classifier (semantic interpretability), and LPIPS."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.hub import load_backbone, parse_source
from crosschannel.hub.classifiers import ImageClassifier, load_classifier
from crosschannel.hub.state_dicts import read_state

_LPIPS_LAYERS = {
    "alexnet": ("conv1", "conv2", "conv3", "conv4", "conv5"),
    "vgg16": ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"),
}
_LPIPS_FILES = {"alexnet": "alex", "vgg16": "vgg"}


class Interpretability:
    """Whether a classifier knows what a coloured picture shows.

    Args:
        source: of the classifier.
        classes: of the pictures, by label.
        device: where it runs.

    Raises:
        UserError: no such classifier, or one of other classes.
    """

    def __init__(self, source: str, classes: tuple[str, ...], device: torch.device):
        if not classes:
            raise UserError("--classifier needs images in folders of classes; --data has none")
        self.classifier = load_classifier(source, device)
        self.outputs = _outputs_of(self.classifier, classes, source).to(device)

    def right(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """1 where the class of the greatest logit is the picture's, 0 where not, -1 without a class: (N,) float."""
        said = self.classifier(rgb).argmax(1)
        right = (said == self.outputs[labels.clamp(min=0)]).float()
        return torch.where(labels >= 0, right, -1.0)


def _outputs_of(classifier: ImageClassifier, classes: tuple[str, ...], source: str) -> Tensor:
    """The classifier's output of each class of the pictures: by name, else in order."""
    names = classifier.classes
    if names and all(name in names for name in classes):
        return torch.tensor([names.index(name) for name in classes])
    numbered = classes == tuple(str(label) for label in range(len(classes)))  # shards that name no classes
    if classifier.outputs == len(classes) and (numbered or not names):
        return torch.arange(len(classes))
    told = f", {names[0]} the first," if names else ""
    raise UserError(
        f"the classifier {source} tells {classifier.outputs} classes{told} and --data has {len(classes)} others, "
        f"{classes[0]} the first"
    )


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., CVPR 2018): squared differences of unit-length features of five
    layers, weighted by channel, averaged over positions.

    Args:
        source: ``torchvision:alexnet`` or ``torchvision:vgg16``, with options.
        device: where it runs.

    Raises:
        UserError: another net, or its weights cannot be had.
    """

    def __init__(self, source: str, device: torch.device):
        super().__init__()
        parsed = parse_source(source)
        if parsed.kind != "torchvision" or parsed.name not in _LPIPS_LAYERS:
            raise UserError(f"lpips is defined on torchvision:alexnet and torchvision:vgg16, not on {source!r}")
        self.layers = _LPIPS_LAYERS[parsed.name]
        self.backbone = load_backbone(source, self.layers, device=device)
        self.weights = [weight.to(device) for weight in lpips_weights(parsed.name)]

    @torch.inference_mode()
    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] each → (N,)."""
        with wrap_external_errors(f"lpips cannot look at {one.shape[3]} × {one.shape[2]} pixels"):
            ours, theirs = self.backbone(one), self.backbone(two)
        total = torch.zeros(len(one), device=one.device)
        for layer, weight in zip(self.layers, self.weights, strict=True):
            difference = (_unit(ours[layer]) - _unit(theirs[layer])).square()
            total += torch.einsum("nchw,c->nhw", difference, weight).mean((1, 2))
        return total


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + 1e-8).sqrt()


def lpips_weights(name: str) -> list[Tensor]:
    """The published weights of the channels of five layers, from torchmetrics' package.

    Raises:
        UserError: torchmetrics is not there.
    """
    found = find_spec("torchmetrics")
    folder = Path(found.origin).parent / "functional" / "image" / "lpips_models" if found and found.origin else None
    if folder is None or not (folder / f"{_LPIPS_FILES[name]}.pth").is_file():
        raise UserError("LPIPS needs the weights in torchmetrics: pip install torchmetrics")
    state = read_state(folder / f"{_LPIPS_FILES[name]}.pth")
    return [state[f"lin{number}.model.1.weight"].flatten() for number in range(5)]
