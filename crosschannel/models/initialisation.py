"""Weight initialisation (Gaussian, k-means or unit variance), and estimation of BatchNorm statistics.

Krähenbühl, Doersch, Donahue, Darrell, "Data-dependent initializations of convolutional neural networks", ICLR 2016.
Batches are preprocessed net inputs (N, C, H, W). All functions modify the net in place.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.models.layers import SplitConv

WeightLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
SKIPPED = ("fc6", "fc7", "out")  # layers that keep their default initialisation
CAFFENET_ONES = ("conv2", "conv4", "conv5")  # layers whose biases start at one in CaffeNet


class _InputReached(Exception):
    pass


def gaussian(net: nn.Module, std: float = 0.01, skip: Sequence[str] = SKIPPED, ones: Sequence[str] = ()) -> None:
    """Set weights to N(0, std) and biases to zero.

    Args:
        net: net with convolutions and linear layers.
        std: standard deviation of the weights.
        skip: names of layers that are left unchanged.
        ones: names of layers whose biases are set to one.
    """
    for name, module in net.named_modules():
        if isinstance(module, WeightLayer) and not _is_listed(name, skip):
            nn.init.normal_(module.weight, std=std)
            _mask_split_weights(module)
            if module.bias is not None:
                nn.init.constant_(module.bias, float(_is_listed(name, ones)))


def _mask_split_weights(module: WeightLayer) -> None:
    """Reset the weights between the halves of a :class:`SplitConv` to zero."""
    if isinstance(module, SplitConv):
        module.mask_weights()


def _is_listed(name: str, names: Sequence[str]) -> bool:
    """Return whether a component of a dotted name is in ``names``."""
    return any(component in names for component in name.split("."))


def weight_layers(net: nn.Module, batch: Tensor) -> list[tuple[str, WeightLayer]]:
    """List convolutions and linear layers with their names, in the order of a forward pass."""
    executed: list[tuple[str, WeightLayer]] = []
    handles = [
        module.register_forward_hook(lambda m, _i, _o, name=name: executed.append((name, m)))
        for name, module in net.named_modules()
        if isinstance(module, WeightLayer)
    ]
    try:
        with torch.no_grad():
            net(batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(executed))


def _inputs(net: nn.Module, module: nn.Module, batches: Iterable[Tensor]) -> Iterable[Tensor]:
    """Yield the input of a module for each batch; the forward pass stops there."""
    captured: list[Tensor] = []

    def stop(_module, arguments):
        captured.append(arguments[0])
        raise _InputReached

    for batch in batches:
        handle = module.register_forward_pre_hook(stop)
        try:
            net(batch)
        except _InputReached:
            pass
        finally:
            handle.remove()
        yield captured.pop()


@torch.no_grad()
def unit_variance(net: nn.Module, batches: Sequence[Tensor], skip: Sequence[str] = SKIPPED) -> None:
    """Rescale layers so that every output channel has unit standard deviation and mean 0.1 on the batches.

    This changes the function that the net computes, so it is meant for untrained layers.
    """
    net.train()
    for name, module in weight_layers(net, batches[0]):
        if not _is_listed(name, skip):
            _normalise_outputs(module, _inputs(net, module, batches))
    reset_batchnorm(net)


def _normalise_outputs(module: WeightLayer, inputs: Iterable[Tensor], target_mean: float = 0.1) -> None:
    """Rescale a layer so that every output channel has unit standard deviation and the target mean."""
    if module.bias is not None:
        module.bias.zero_()
    count, total, squares = 0, 0.0, 0.0
    for x in inputs:
        y = module(x).double()
        y = y.flatten(2).transpose(1, 2).flatten(0, 1) if y.ndim == 4 else y.flatten(0, -2)
        count, total, squares = count + len(y), total + y.sum(0), squares + y.square().sum(0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    std_shape = [1] * module.weight.ndim
    std_shape[1 if isinstance(module, nn.ConvTranspose2d) else 0] = -1
    module.weight.div_(std.to(module.weight).reshape(std_shape))
    if module.bias is not None:
        module.bias.copy_(target_mean - mean / std)


@torch.no_grad()
def kmeans(
    net: nn.Module,
    batches: Sequence[Tensor],
    seed: int = 0,
    max_bytes: int = 500 << 20,
    skip: Sequence[str] = SKIPPED,
) -> None:
    """Initialise each layer in turn: set its weights to k-means centres of whitened random patches of its input, then
    rescale it to unit variance.

    A layer with more outputs than patches (usually fc6 and fc7) gets N(0, 1) weights instead of k-means centres.
    Transposed convolutions keep their weights and are only rescaled to unit variance.

    Args:
        net: net of convolutions and linear layers; convolutions may be grouped and dilated.
        batches: inputs; the release used 10 batches of 80 images for AlexNet.
        seed: seed for patches and k-means.
        max_bytes: maximum memory for patches.
        skip: names of layers that are left unchanged.
    """
    skipped_norms = {
        module: {key: value.clone() for key, value in module.state_dict().items()}
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_listed(name, skip)
    }
    net.train()  # BatchNorm has no running statistics yet, …
    for module in skipped_norms:
        module.eval()  # … except in skipped layers
    generator = np.random.default_rng(seed)
    for name, module in weight_layers(net, batches[0]):
        if _is_listed(name, skip):
            continue
        if isinstance(module, nn.ConvTranspose2d):  # has no input patches to cluster
            _normalise_outputs(module, _inputs(net, module, batches))
            continue
        bytes_per_patch = 4 * module.weight[0].numel() * getattr(module, "groups", 1)
        count = max(1, max_bytes // bytes_per_patch // len(batches))
        patches = torch.cat([_patches(module, x, count, generator) for x in _inputs(net, module, batches)])
        groups = getattr(module, "groups", 1)
        per_group = module.weight.shape[0] // groups
        for group, group_patches in enumerate(patches.chunk(groups, 1)):
            target = module.weight[group * per_group : (group + 1) * per_group]
            if len(group_patches) < per_group:
                filters = generator.standard_normal((per_group, target[0].numel()), np.float32)
            else:
                filters = _centres(group_patches.flatten(1).float().cpu().numpy(), per_group, seed)
            target.copy_(torch.from_numpy(filters).reshape(target.shape))
        _mask_split_weights(module)
        _normalise_outputs(module, _inputs(net, module, batches))
    reset_batchnorm(net)
    for module, state in skipped_norms.items():
        module.load_state_dict(state)


def _patches(module: WeightLayer, x: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """Sample up to ``count`` receptive fields of a layer: (P, C, kh, kw), or (P, D) for a linear layer."""
    if isinstance(module, nn.Linear):
        rows = x.flatten(0, -2)
        return rows[torch.from_numpy(generator.permutation(len(rows))[:count]).to(x.device)]
    (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
    ph, pw = module.padding
    x = nn.functional.pad(x, (pw, pw, ph, ph))
    h, w = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    chosen = torch.from_numpy(generator.permutation(len(x) * h * w)[:count]).to(x.device)
    image, row, column = chosen // (h * w), chosen // w % h, chosen % w
    rows = (row * sh)[:, None] + dh * torch.arange(kh, device=x.device)
    columns = (column * sw)[:, None] + dw * torch.arange(kw, device=x.device)
    return x[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _centres(patches: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Compute filters (k, d) from patches (P, d), where P ≥ k, by k-means on whitened patches.

    Patches are centred, PCA-whitened along the k directions of greatest variance, L2-normalised and clustered; the
    cluster centres are mapped back to pixels. With more directions than filters, the whitened patches, and hence the
    centres, would be mostly high-frequency noise.
    """
    from sklearn.cluster import MiniBatchKMeans

    patches = patches - patches.mean(0)
    if len(patches) < patches.shape[1]:  # the smaller Gram matrix has the same principal directions
        values, weights = np.linalg.eigh(patches @ patches.T)
        vectors = patches.T @ weights / np.sqrt(values.clip(1e-12))
    else:
        values, vectors = np.linalg.eigh(patches.T @ patches)
    components = np.flatnonzero(values > 1e-6)[-k:]  # eigenvalues ascend
    whitening = vectors[:, components] / np.sqrt(values[components] + 1e-3)
    whitened = patches @ whitening
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True) + 1e-12
    if not len(components):
        raise UserError(f"k-means has nothing to cluster: all {len(patches)} image patches are identical")
    clusters = MiniBatchKMeans(k, batch_size=10 * k, n_init=3, max_iter=100, random_state=seed % 2**32)
    clusters.fit(whitened)
    return (clusters.cluster_centers_ @ whitening.T).astype(np.float32)


def reset_batchnorm(net: nn.Module) -> None:
    """Reset BatchNorm's running statistics."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


@torch.no_grad()
def estimate_batchnorm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set BatchNorm's running statistics to their average over the batches; leave the net in eval mode."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    reset_batchnorm(net)
    for norm in norms:
        norm.momentum = None  # cumulative average
    net.train()
    for batch in batches:
        net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
