"""Third-party nets, re-implemented from their published descriptions: references for imported weights."""

import torch
from torch import nn


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights that preserve the scale of activations, and BatchNorm statistics; return the net in eval mode."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def convs(rows, norm: bool, channels: int) -> list[nn.Module]:
    """Return convolutions with ReLU for rows of (width, kernel, stride, padding), and max-pooling for rows "M"."""
    layers: list[nn.Module] = []
    for row in rows:
        if row == "M":
            layers.append(nn.MaxPool2d(3, 2))
            continue
        layers.append(nn.Conv2d(channels, row[0], row[1], row[2], row[3]))
        layers += [nn.BatchNorm2d(row[0])] if norm else []
        layers.append(nn.ReLU())
        channels = row[0]
    return layers


class DeepCluster(nn.Module):
    """DeepCluster's AlexNet: Sobel stem, BatchNorm, widths 96-256-384-384-256 without groups, fc6, fc7, top layer."""

    def __init__(self, sobel: bool):
        super().__init__()
        rows = [(96, 11, 4, 2), "M", (256, 5, 1, 2), "M", (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1), "M"]
        self.features = nn.Sequential(*convs(rows, True, 2 if sobel else 3))
        fc = [nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
        self.classifier = nn.Sequential(*fc)
        self.top_layer = nn.Linear(4096, 10)
        self.sobel = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)) if sobel else None

    def set_sobel(self) -> None:
        if self.sobel is not None:
            grey, edges = self.sobel
            nn.init.constant_(grey.weight, 1 / 3), nn.init.zeros_(grey.bias), nn.init.zeros_(edges.bias)
            kernels = [[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]]
            edges.weight.data = torch.tensor(kernels, dtype=torch.float32)[:, None]

    def forward(self, x):
        """Return the last pooled map, and fc7 after its ReLU."""
        pool5 = self.features(self.sobel(x) if self.sobel is not None else x)
        return pool5, self.classifier(pool5.flatten(1))


class RotNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(i, o, k, s, p):
            return nn.Sequential(nn.Conv2d(i, o, k, s, p), nn.BatchNorm2d(o), nn.ReLU())

        fc = [
            nn.Flatten(), nn.Linear(9216, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(),
            nn.Linear(4096, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(),
        ]  # fmt: skip
        self._feature_blocks = nn.ModuleList(
            [
                block(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), block(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
                block(192, 384, 3, 1, 1), block(384, 256, 3, 1, 1), block(256, 256, 3, 1, 1), nn.MaxPool2d(3, 2),
                nn.Sequential(*fc), nn.Sequential(nn.Linear(4096, 4)),
            ]
        )  # fmt: skip

    def forward(self, x):
        for i in range(8):
            x = self._feature_blocks[i](x)
        return x, self._feature_blocks[8](x)


class ECCV16(nn.Module):
    """The published PyTorch colorization net. Its input is (L - 50) / 100, its output ab / 110."""

    def __init__(self):
        super().__init__()
        blocks = [
            (1, 64, 2, 2, 1), (64, 128, 2, 2, 1), (128, 256, 3, 2, 1), (256, 512, 3, 1, 1), (512, 512, 3, 1, 2),
            (512, 512, 3, 1, 2), (512, 512, 3, 1, 1),
        ]  # fmt: skip
        for number, (channels, width, count, stride, dilation) in enumerate(blocks, 1):
            layers: list[nn.Module] = []
            for i in range(count):
                step = stride if i == count - 1 else 1
                conv = nn.Conv2d(channels if i == 0 else width, width, 3, step, dilation, dilation)
                layers += [conv, nn.ReLU()]
            setattr(self, f"model{number}", nn.Sequential(*layers, nn.BatchNorm2d(width)))
        self.model8 = nn.Sequential(
            nn.ConvTranspose2d(512, 256, 4, 2, 1), nn.ReLU(), nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.Conv2d(256, 313, 1),
        )  # fmt: skip
        self.model_out = nn.Conv2d(313, 2, 1, bias=False)

    def forward(self, lightness):
        """Return logits and ab at a quarter of the resolution of ``lightness``, which is in [0, 100]."""
        x = (lightness - 50) / 100
        for number in range(1, 9):
            x = getattr(self, f"model{number}")(x)
        return x, self.model_out(x.softmax(1)) * 110
