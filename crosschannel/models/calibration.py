"""Calibration of a loaded net: rescale its layers so that all learn at the same rate.

Krähenbühl, Doersch, Donahue, Darrell, "Data-dependent initializations of convolutional neural networks", ICLR 2016,
algorithm 2, as the colorization release ran it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosschannel.models.initialisation import WeightLayer, weight_layers

_TOP = 1000  # outputs of the fresh layer on top


class _Stack(nn.Module):
    """A net between a layer that centres and scales its raw input and a fresh linear layer."""

    def __init__(self, net: nn.Module, example: Tensor, centre: Tensor, scale: float, generator: torch.Generator):
        super().__init__()
        self.centre, self.scale, self.net = centre, scale, net
        channels = example.shape[1]
        self.input = nn.Conv2d(channels, channels, 1, groups=channels).to(example)
        nn.init.constant_(self.input.weight, scale)
        self.input.bias.copy_(-scale * centre)
        output = net(example)
        top = nn.Conv2d(output.shape[1], _TOP, 1) if output.ndim == 4 else nn.Linear(output.shape[1], _TOP)
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
    """Scale every layer by sqrt(ratio / target), in place, until all ratios are alike.

    ratio = sqrt(mean(grad²) / mean(w²)) with N(0, 1) noise as the gradient at the top; target = the geometric mean of
    all layers' ratios · std^(1/n), std the mean over channels of the output's standard deviations, which tends to 1.
    Steps towards the mean ratio shrink as 1 / t, which averages the draws of the noise: a single one, as the release's
    full steps have it, leaves the first layers of a k-means net some 15 % off.
    Biases follow the scale of their layer's input. The n layers include a 1×1 layer that centres and scales the raw
    input, and a new layer of 1,000 outputs on top (N(0, 0.01), biases 1), which is dropped at the end. For a net of
    convolutions, ReLUs and pools (absorb BatchNorm first), the function stays the same up to one positive factor if the
    inputs are multiplied by the returned factor.

    Args:
        net: layers follow one another; its output is (N, C, h, w) or (N, C).
        batches: inputs; the release took one of 80 crops of 227 px.
        centre: value subtracted from each channel of the raw input: (50,) for lightness, (50, 0, 0) for Lab, mean / std
            for RGB; default 0.
        seed: seed of the noise and of the new layer.
        iterations: maximum number of iterations.
        tolerance: stop once every |log ratio / log target - 1| is below it.
        scale: factor by which the inputs were multiplied after centring.

    Returns:
        Factor by which the net's inputs must be multiplied from now on. Keep it out of the weights: if it is folded
        into the first layer, that layer learns 1 / factor² times as fast as the others.

    Raises:
        ValueError: ``centre`` does not have one value per channel.
    """
    if centre is not None and len(centre) != batches[0].shape[1]:
        raise ValueError(f"centre must have {batches[0].shape[1]} numbers, one a channel, got {len(centre)}")
    net.eval()
    generator = torch.Generator().manual_seed(seed)
    shift = batches[0].new_zeros(batches[0].shape[1]) if centre is None else batches[0].new_tensor(centre)
    stack = _Stack(net, batches[0], shift, scale, generator)
    layers = [module for _, module in weight_layers(stack, batches[0])]
    frozen = [parameter for parameter in stack.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_()
    seen = [0.0] * len(layers)  # mean |input| of every layer, from the first pass on
    _rescale(stack, batches[0], layers, seen, torch.ones(len(layers)))
    for step in range(1, iterations + 1):
        ratios, std = _learning_rates(stack, layers, batches, generator)
        target = ratios.log().mean().exp() * std ** (1 / len(layers))
        if ((ratios.log() / target.log() - 1).abs() < tolerance).all():
            break
        apart = ratios.log() - ratios.log().mean()
        _rescale(stack, batches[0], layers, seen, (apart / (2 * step) - std.log() / (2 * len(layers))).exp())
    for parameter in frozen:
        parameter.requires_grad_(False)
    return float(stack.input.weight.flatten()[0]) / scale  # the same for all channels


def _rescale(stack: nn.Module, batch: Tensor, layers: Sequence[WeightLayer], seen: list[float], scales: Tensor) -> None:
    """Scale the layers in a forward pass, each once its input is known; ``seen`` becomes what they are given now."""

    def scale(i: int):
        def change(module: WeightLayer, inputs: tuple[Tensor, ...]) -> None:
            now, factor = inputs[0].abs().mean().item(), float(scales[i])
            module.weight.mul_(factor)
            if module.bias is not None:
                module.bias.mul_(factor * now / seen[i] if seen[i] else factor)
            seen[i] = now

        return change

    handles = [layer.register_forward_pre_hook(scale(i)) for i, layer in enumerate(layers)]
    try:
        stack(batch)
    finally:
        for handle in handles:
            handle.remove()


def _learning_rates(
    stack: nn.Module, layers: Sequence[WeightLayer], batches: Sequence[Tensor], noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """sqrt(mean(grad²) / mean(w²)) of every layer, and the mean of the output channels' standard deviations."""
    squares = torch.zeros(len(layers), dtype=torch.float64)
    moments: Tensor | float = 0.0
    for batch in batches:
        with torch.enable_grad():
            output = stack(batch)
            top = torch.randn(output.shape, generator=noise).to(output)
            gradients = torch.autograd.grad(output, [layer.weight for layer in layers], top)
        squares += torch.stack([gradient.double().square().mean() for gradient in gradients]).cpu()
        y = output.detach().double().transpose(0, 1).flatten(1)
        moments = moments + torch.stack((torch.full_like(y[:, 0], y.shape[1]), y.sum(1), y.square().sum(1)))
    count, total, square = moments
    weights = torch.stack([layer.weight.double().square().mean() for layer in layers]).cpu()
    ratios = (squares / len(batches) / weights.clamp(min=1e-30)).clamp(min=1e-30).sqrt()
    return ratios, (square / count - (total / count) ** 2).clamp(min=0).sqrt().mean().cpu()
