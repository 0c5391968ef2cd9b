"""Labels: supervised classification, with image folders as classes.

Used for the supervised baselines in the paper's tables and for its greyscale classifier.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crosschannel.config.training import CropConfig
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec, build_net, family
from crosschannel.pretext.config import LabelsConfig
from crosschannel.pretext.nets import freeze_unused
from crosschannel.pretext.task import PairTask, PrimaryMetric


class ClassificationNet(nn.Module):
    """A backbone, global average pooling of its last map, and one linear layer.

    Args:
        net: the backbone.
        classes: number of classes.
        dropout: dropout rate after fc6 and fc7, or before the linear layer if the backbone has neither.

    Shape:
        (N, C, H, W) → (N, classes).
    """

    stride = 1

    def __init__(self, net: nn.Module, classes: int, dropout: float = 0.5):
        super().__init__()
        self.net, self.dropout = net, dropout
        self.out = nn.Linear(net.out_channels, classes)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        layers = getattr(self.net, "layers", ())
        if "fc7" in layers:
            for name in layers:
                x = self.net.get_submodule(name)(x)
                if name in ("fc6", "fc7"):
                    x = nn.functional.dropout(x, self.dropout, self.training)
            return self.out(x.mean((2, 3)))
        return self.out(nn.functional.dropout(self.net(x).mean((2, 3)), self.dropout, self.training))


def build_classifier(spec: NetSpec, size: int | None, classes: int, dropout: float) -> ClassificationNet:
    """Build an untrained classifier on a backbone.

    An AlexNet with fc6 is built in the geometry of the transfer protocols.
    """
    if spec.options.fc and family(spec.name).has_option("geometry"):
        spec = spec.replace(geometry="probe")
    net = ClassificationNet(build_net(spec, size), classes, dropout)
    if getattr(net.net, "computes_past_its_layers", False):
        freeze_unused(net, torch.zeros(1, spec.in_channels, size or 224, size or 224))
    return net


class Labels(PairTask):
    """Predict the class of an image; the loss is cross-entropy. Images without a class give no gradient."""

    name = "labels"
    needs_fc: ClassVar[bool] = True
    is_classifier: ClassVar[bool] = True
    primary_metric = PrimaryMetric("top1", "top-1 accuracy")
    score_length = 4

    @staticmethod
    def input_of(config: LabelsConfig, crop: CropConfig) -> InputSpec:
        return InputSpec(config.input, crop.size, crop.resize)

    @staticmethod
    def build(config: LabelsConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> ClassificationNet:
        if len(classes) < 2:
            raise UserError(f"the task labels requires images in folders of at least two classes, got {len(classes)}")
        return build_classifier(spec, size, len(classes), config.dropout)

    def count(self, loss: Tensor, targets: Tensor) -> Tensor:
        """Return the number of images that have a class."""
        return (targets >= 0).sum().clamp(min=1).to(loss)

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        return labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            outputs.float(), targets, ignore_index=-1, reduction="none", label_smoothing=self.config.smoothing
        )

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return sums over images that have a class: count, cross-entropy, correct top-1, correct top-5."""
        outputs, targets = outputs[targets >= 0].double(), targets[targets >= 0]
        loss = nn.functional.cross_entropy(outputs, targets, reduction="sum")
        correct = outputs.topk(min(5, outputs.shape[1])).indices == targets[:, None]
        return torch.stack((loss.new_tensor(len(targets)), loss, correct[:, 0].sum(), correct.any(1).sum())).double()

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute ``loss``, ``top1`` and ``top5``."""
        count, loss, top1, top5 = sums.tolist()
        if not count:
            raise UserError("none of the held-out images has a class")
        return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}

    def details(self) -> dict[str, Any]:
        return {"pretext": self.name, "classes": len(self.classes)}
