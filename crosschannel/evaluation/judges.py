"""Nets that score coloured images: a classifier (semantic interpretability), and LPIPS."""

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
    """Semantic interpretability: whether a classifier predicts the class of a coloured image correctly.

    Args:
        source: source of the classifier.
        classes: class names of the images, by label.
        device: device of the classifier.

    Raises:
        UserError: the images have no classes, the classifier cannot be loaded, or its classes do not match.
    """

    def __init__(self, source: str, classes: tuple[str, ...], device: torch.device):
        if not classes:
            raise UserError("--classifier requires images in class folders, which --data does not have")
        self.classifier = load_classifier(source, device)
        self.outputs = _output_indices(self.classifier, classes, source).to(device)

    def correct(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """Return 1 for a correct top-1 prediction, 0 for a wrong one and -1 without a class label, (N,) float."""
        predicted = self.classifier(rgb).argmax(1)
        correct = (predicted == self.outputs[labels.clamp(min=0)]).float()
        return torch.where(labels >= 0, correct, -1.0)


def _output_indices(classifier: ImageClassifier, classes: tuple[str, ...], source: str) -> Tensor:
    """Return the index of the classifier's output for each class, matched by name if possible, else by order."""
    names = classifier.classes
    if names and all(name in names for name in classes):
        return torch.tensor([names.index(name) for name in classes])
    is_numbered = classes == tuple(str(label) for label in range(len(classes)))  # from shards without class names
    if classifier.outputs == len(classes) and (is_numbered or not names):
        return torch.arange(len(classes))
    first = f" (the first is {names[0]})" if names else ""
    raise UserError(
        f"the classes do not match: the classifier {source} has {classifier.outputs}{first}, --data has {len(classes)} "
        f"(the first is {classes[0]})"
    )


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., CVPR 2018).

    Squared differences between the channel-normalised features of five layers are weighted by channel, averaged over
    positions and summed over layers.

    Args:
        source: ``torchvision:alexnet`` or ``torchvision:vgg16``, with options.
        device: device of the net.

    Raises:
        UserError: LPIPS is not defined for this net, or its weights are not available.
    """

    def __init__(self, source: str, device: torch.device):
        super().__init__()
        parsed_source = parse_source(source)
        if parsed_source.kind != "torchvision" or parsed_source.name not in _LPIPS_LAYERS:
            raise UserError(f"lpips must be torchvision:alexnet or torchvision:vgg16, got {source!r}")
        self.layers = _LPIPS_LAYERS[parsed_source.name]
        self.backbone = load_backbone(source, self.layers, device=device)
        self.weights = [weight.to(device) for weight in lpips_weights(parsed_source.name)]

    @torch.inference_mode()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the distances between two batches of RGB (N, 3, H, W) in [0, 1], (N,)."""
        with wrap_external_errors(f"LPIPS cannot be computed for {first.shape[3]} × {first.shape[2]} pixels"):
            first_features, second_features = self.backbone(first), self.backbone(second)
        distances = torch.zeros(len(first), device=first.device)
        for layer, weight in zip(self.layers, self.weights, strict=True):
            error = (_normalise(first_features[layer]) - _normalise(second_features[layer])).square()
            distances += torch.einsum("nchw,c->nhw", error, weight).mean((1, 2))
        return distances


def _normalise(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + 1e-8).sqrt()


def lpips_weights(name: str) -> list[Tensor]:
    """Load the published channel weights of the five layers from the package torchmetrics.

    Raises:
        UserError: torchmetrics is not installed.
    """
    spec = find_spec("torchmetrics")
    folder = Path(spec.origin).parent / "functional" / "image" / "lpips_models" if spec and spec.origin else None
    if folder is None or not (folder / f"{_LPIPS_FILES[name]}.pth").is_file():
        raise UserError("LPIPS requires the weights in torchmetrics; install them with `pip install torchmetrics`")
    state = read_state(folder / f"{_LPIPS_FILES[name]}.pth")
    return [state[f"lin{index}.model.1.weight"].flatten() for index in range(5)]
