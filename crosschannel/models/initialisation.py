"""Initial values: Gaussian ones, and from data k-means, unit variance and BatchNorm statistics.

Krähenbühl, Doersch, Donahue, Darrell, "Data-dependent initializations of convolutional neural networks", ICLR 2016.
Batches are preprocessed net inputs (N, C, H, W). Every function works in place.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.models.layers import SplitConv

WeightLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
KEPT = ("fc6", "fc7", "out")  # layers with a start of their own
CAFFENET_ONES = ("conv2", "conv4", "conv5")  # whose biases start at one in CaffeNet


class _InputSeen(Exception):
    pass


def gaussian(net: nn.Module, std: float = 0.01, skip: Sequence[str] = KEPT, ones: Sequence[str] = ()) -> None:
    """N(0, std) weights and zero biases (one in the layers ``ones``), except in the layers named by ``skip``, which
    keep their own start."""
    for name, module in net.named_modules():
        if isinstance(module, WeightLayer) and not _named(name, skip):
            nn.init.normal_(module.weight, std=std)
            _keep_apart(module)
            if module.bias is not None:
                nn.init.constant_(module.bias, float(_named(name, ones)))


def _keep_apart(module: WeightLayer) -> None:
    """Where a layer's channels are not all joined, those that are not stay so."""
    if isinstance(module, SplitConv):
        module.keep_apart()


def _named(name: str, names: Sequence[str]) -> bool:
    return any(part in names for part in name.split("."))


def weight_layers(net: nn.Module, batch: Tensor) -> list[tuple[str, WeightLayer]]:
    """Convolutions and linear layers with their names, in the order in which a forward pass meets them."""
    order: list[tuple[str, WeightLayer]] = []
    handles = [
        module.register_forward_hook(lambda m, _i, _o, name=name: order.append((name, m)))
        for name, module in net.named_modules()
        if isinstance(module, WeightLayer)
    ]
    try:
        with torch.no_grad():
            net(batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _inputs(net: nn.Module, module: nn.Module, batches: Iterable[Tensor]) -> Iterable[Tensor]:
    """What the module is given for each batch; the pass is left there."""
    seen: list[Tensor] = []

    def stop(_module, arguments):
        seen.append(arguments[0])
        raise _InputSeen

    for batch in batches:
        handle = module.register_forward_pre_hook(stop)
        try:
            net(batch)
        except _InputSeen:
            pass
        finally:
            handle.remove()
        yield seen.pop()


@torch.no_grad()
def unit_variance(net: nn.Module, batches: Sequence[Tensor], skip: Sequence[str] = KEPT) -> None:
    """Scale every output channel to unit standard deviation on the batches and set its mean to 0.1.

    Changes the function: for layers that are still untrained.
    """
    net.train()
    for name, module in weight_layers(net, batches[0]):
        if not _named(name, skip):
            _normalise_outputs(module, _inputs(net, module, batches))
    reset_batchnorm(net)


def _normalise_outputs(module: WeightLayer, inputs: Iterable[Tensor], mean_after: float = 0.1) -> None:
    if module.bias is not None:
        module.bias.zero_()
    count, total, squares = 0, 0.0, 0.0
    for x in inputs:
        y = module(x).double()
        y = y.flatten(2).transpose(1, 2).flatten(0, 1) if y.ndim == 4 else y.flatten(0, -2)
        count, total, squares = count + len(y), total + y.sum(0), squares + y.square().sum(0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    per_output = [1] * module.weight.ndim
    per_output[1 if isinstance(module, nn.ConvTranspose2d) else 0] = -1
    module.weight.div_(std.to(module.weight).reshape(per_output))
    if module.bias is not None:
        module.bias.copy_(mean_after - mean / std)


@torch.no_grad()
def kmeans(
    net: nn.Module,
    batches: Sequence[Tensor],
    seed: int = 0,
    max_bytes: int = 500 << 20,
    skip: Sequence[str] = KEPT,
) -> None:
    """Layer by layer, filters become the centres of whitened random patches of the layer's input; then unit variance.

    A layer with more outputs than patches (fc6 and fc7, mostly) gets N(0, 1) weights before that instead.

    Args:
        net: any net of convolutions and linear layers, grouped and dilated ones too.
        batches: inputs; the release's AlexNet saw 10 batches of 80.
        seed: of the patches and of k-means.
        max_bytes: of patches held at a time.
        skip: layers left as they are. Deconvolutions get unit variance.
    """
    kept = {
        module: {key: value.clone() for key, value in module.state_dict().items()}
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _named(name, skip)
    }
    net.train()  # BatchNorm has no statistics yet …
    for module in kept:
        module.eval()  # … but where the layer stays as it is
    generator = np.random.default_rng(seed)
    for name, module in weight_layers(net, batches[0]):
        if _named(name, skip):
            continue
        if isinstance(module, nn.ConvTranspose2d):  # its inputs are no patches
            _normalise_outputs(module, _inputs(net, module, batches))
            continue
        bytes_each = 4 * module.weight[0].numel() * getattr(module, "groups", 1)
        count = max(1, max_bytes // bytes_each // len(batches))
        patches = torch.cat([_patches(module, x, count, generator) for x in _inputs(net, module, batches)])
        groups = getattr(module, "groups", 1)
        per_group = module.weight.shape[0] // groups
        for group, part in enumerate(patches.chunk(groups, 1)):
            target = module.weight[group * per_group : (group + 1) * per_group]
            if len(part) < per_group:
                filters = generator.standard_normal((per_group, target[0].numel()), np.float32)
            else:
                filters = _centres(part.flatten(1).float().cpu().numpy(), per_group, seed)
            target.copy_(torch.from_numpy(filters).reshape(target.shape))
        _keep_apart(module)
        _normalise_outputs(module, _inputs(net, module, batches))
    reset_batchnorm(net)
    for module, state in kept.items():
        module.load_state_dict(state)


def _patches(module: WeightLayer, x: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """Up to ``count`` random receptive fields of the layer: (P, C, kh, kw), or (P, D) for a linear layer."""
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
    """Centre, PCA-whiten along the k directions of greatest variance, L2-normalise, cluster, and map the centres back:
    (P, d) → (k, d) filters, P ≥ k.

    With more directions than filters the whitened patches would be mostly noise of high frequencies, and so would the
    centres.
    """
    from sklearn.cluster import MiniBatchKMeans

    patches = patches - patches.mean(0)
    if len(patches) < patches.shape[1]:  # the same directions from the smaller of both matrices
        values, weights = np.linalg.eigh(patches @ patches.T)
        vectors = patches.T @ weights / np.sqrt(values.clip(1e-12))
    else:
        values, vectors = np.linalg.eigh(patches.T @ patches)
    kept = np.flatnonzero(values > 1e-6)[-k:]  # they ascend
    whiten = vectors[:, kept] / np.sqrt(values[kept] + 1e-3)
    white = patches @ whiten
    white /= np.linalg.norm(white, axis=1, keepdims=True) + 1e-12
    if not len(kept):
        raise UserError(f"k-means has nothing to cluster: {len(patches)} patches of the images are all the same")
    clusters = MiniBatchKMeans(k, batch_size=10 * k, n_init=3, max_iter=100, random_state=seed % 2**32)
    clusters.fit(white)
    return (clusters.cluster_centers_ @ whiten.T).astype(np.float32)


def reset_batchnorm(net: nn.Module) -> None:
    """Forget BatchNorm's running statistics."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


@torch.no_grad()
def estimate_batchnorm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set BatchNorm's statistics to their average over the batches; leaves the net in eval mode."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    reset_batchnorm(net)
    for norm in norms:
        norm.momentum = None  # a cumulative average
    net.train()
    for batch in batches:
        net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
