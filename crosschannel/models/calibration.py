"""Calibration of a pretrained net: rescale its layers so that all learn at the same rate.

Krähenbühl, Doersch, Donahue, Darrell, "Data-dependent initializations of convolutional neural networks", ICLR 2016,
algorithm 2, as used in the release of "Colorful Image Colorization".
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosschannel.models.initialisation import WeightLayer, weight_layers

_TOP_WIDTH = 1000  # number of outputs of the new layer on top


class _Stack(nn.Module):
    """A net between a layer that centres and scales the raw input and a new linear layer on top."""

    def __init__(self, net: nn.Module, example: Tensor, centre: Tensor, scale: float, generator: torch.Generator):
        super().__init__()
        self.centre, self.scale, self.net = centre, scale, net
        channels = example.shape[1]
        self.input = nn.Conv2d(channels, channels, 1, groups=channels).to(example)
        nn.init.constant_(self.input.weight, scale)
        self.input.bias.copy_(-scale * centre)
        output = net(example)
        top = nn.Conv2d(output.shape[1], _TOP_WIDTH, 1) if output.ndim == 4 else nn.Linear(output.shape[1], _TOP_WIDTH)
        top.weight.copy_(torch.randn(top.weight.shape, generator=generator) * 0.01)
        nn.init.ones_(top.bias)
        self.top = top.to(example)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.net(self.input(x / self.scale + self.centre[:, None, None])))


@torch.no_grad()
def calibrate(
    net: nn.Module,
    batches: Sequence[Tensor],
    centre: Sequence[float] | None = None,
    seed: int = 0,
    iterations: int = 10,
    tolerance: float = 0.01,
    scale: float = 1.0,
) -> float:
    """Scale every layer by sqrt(ratio / target), in place, until the ratios of all layers agree.

    The ratio of a layer is sqrt(mean(grad²) / mean(w²)), with N(0, 1) noise as the gradient at the top. The target is
    the geometric mean of all ratios times std^(1/n), where std is the output's standard deviation, averaged over
    channels; std tends to 1. Iteration t takes 1 / t of the step to the mean ratio, which averages over several noise
    samples. With full steps, as in the release, which rely on a single sample, the first layers of a k-means net end up
    about 15 % off.

    Biases are scaled with the input of their layer. The n layers include a 1×1 layer that centres and scales the raw
    input, and a new layer with 1,000 outputs on top (N(0, 0.01) weights, biases 1), which is discarded at the end. In a
    net of convolutions, ReLUs and pools (absorb BatchNorm first), the output changes only by a positive factor if the
    inputs are multiplied by the returned factor.

    Args:
        net: sequential net with output (N, C, h, w) or (N, C).
        batches: inputs; the release used one batch of 80 crops of 227 px.
        centre: value subtracted from each channel of the raw input: (50,) for lightness, (50, 0, 0) for Lab, mean / std
            for RGB; default 0.
        seed: seed of the noise and of the new layer.
        iterations: maximum number of iterations.
        tolerance: stop when |log ratio / log target - 1| is below this value for every layer.
        scale: factor by which the inputs were multiplied after centring.

    Returns:
        Factor by which the net's inputs must be multiplied from now on. Do not fold it into the weights: the first
        layer would then learn 1 / factor² times as fast as the others.

    Raises:
        ValueError: ``centre`` does not have one value per channel.
    """
    if centre is not None and len(centre) != batches[0].shape[1]:
        raise ValueError(f"centre must have one value per channel ({batches[0].shape[1]}), got {len(centre)}")
    net.eval()
    generator = torch.Generator().manual_seed(seed)
    shift = batches[0].new_zeros(batches[0].shape[1]) if centre is None else batches[0].new_tensor(centre)
    stack = _Stack(net, batches[0], shift, scale, generator)
    layers = [module for _, module in weight_layers(stack, batches[0])]
    frozen = [parameter for parameter in stack.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_()
    input_means = [0.0] * len(layers)  # mean |input| of each layer; 0 before the first pass
    _rescale(stack, batches[0], layers, input_means, torch.ones(len(layers)))
    for step in range(1, iterations + 1):
        ratios, std = _gradient_ratios(stack, layers, batches, generator)
        target = ratios.log().mean().exp() * std ** (1 / len(layers))
        if ((ratios.log() / target.log() - 1).abs() < tolerance).all():
            break
        deviations = ratios.log() - ratios.log().mean()
        _rescale(
            stack, batches[0], layers, input_means, (deviations / (2 * step) - std.log() / (2 * len(layers))).exp()
        )
    for parameter in frozen:
        parameter.requires_grad_(False)
    return float(stack.input.weight.flatten()[0]) / scale  # the same for all channels


def _rescale(
    stack: nn.Module, batch: Tensor, layers: Sequence[WeightLayer], input_means: list[float], scales: Tensor
) -> None:
    """Scale the layers during a forward pass, each when its new input is known; update ``input_means`` in place."""

    def make_hook(i: int):
        def rescale(module: WeightLayer, inputs: tuple[Tensor, ...]) -> None:
            input_mean, scale = inputs[0].abs().mean().item(), float(scales[i])
            module.weight.mul_(scale)
            if module.bias is not None:
                module.bias.mul_(scale * input_mean / input_means[i] if input_means[i] else scale)
            input_means[i] = input_mean

        return rescale

    handles = [layer.register_forward_pre_hook(make_hook(i)) for i, layer in enumerate(layers)]
    try:
        stack(batch)
    finally:
        for handle in handles:
            handle.remove()


def _gradient_ratios(
    stack: nn.Module, layers: Sequence[WeightLayer], batches: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return sqrt(mean(grad²) / mean(w²)) of each layer, and the output's std, averaged over channels."""
    squares = torch.zeros(len(layers), dtype=torch.float64)
    moments: Tensor | float = 0.0
    for batch in batches:
        with torch.enable_grad():
            output = stack(batch)
            top_gradient = torch.randn(output.shape, generator=generator).to(output)
            gradients = torch.autograd.grad(output, [layer.weight for layer in layers], top_gradient)
        squares += torch.stack([gradient.double().square().mean() for gradient in gradients]).cpu()
        y = output.detach().double().transpose(0, 1).flatten(1)
        moments = moments + torch.stack((torch.full_like(y[:, 0], y.shape[1]), y.sum(1), y.square().sum(1)))
    count, total, square = moments
    weights = torch.stack([layer.weight.double().square().mean() for layer in layers]).cpu()
    ratios = (squares / len(batches) / weights.clamp(min=1e-30)).clamp(min=1e-30).sqrt()
    return ratios, (square / count - (total / count) ** 2).clamp(min=0).sqrt().mean().cpu()
