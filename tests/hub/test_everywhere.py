"""A backbone works wherever a module does."""

import copy
import io
import pickle
import runpy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from crosschannel import load_backbone

RGB = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
SOURCES = [
    "random:alexnet,fc=0,norm=false", "random:vgg16,norm=false", "timm:resnet18,weights=none",
    "random:alexnet,fc=0,norm=false,input=lab",
]  # fmt: skip


@pytest.fixture(params=SOURCES)
def backbone(request):
    return load_backbone(request.param)


def maps(module, layer) -> torch.Tensor:
    with torch.no_grad():
        return module(RGB, [layer])[layer]


def test_copies_and_files(backbone):
    layer = backbone.layers[-1]
    expected = maps(backbone, layer)
    assert torch.equal(maps(copy.deepcopy(backbone), layer), expected)
    assert torch.equal(maps(pickle.loads(pickle.dumps(backbone)), layer), expected)
    buffer = io.BytesIO()
    torch.save(backbone.state_dict(), buffer)
    buffer.seek(0)
    twin = copy.deepcopy(backbone)
    for parameter in twin.parameters():
        parameter.zero_()
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(maps(twin, layer), expected)
    with torch.inference_mode():
        assert torch.equal(backbone(RGB, [layer])[layer], expected)


def test_compile(backbone):
    layer = backbone.layers[-1]
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(RGB, [layer])[layer], maps(backbone, layer), atol=1e-5)


def test_export(backbone):
    program = torch.export.export(backbone, (RGB, list(backbone.layers[-2:])))
    found = program.module()(RGB, list(backbone.layers[-2:]))
    for layer in backbone.layers[-2:]:
        assert torch.allclose(found[layer], maps(backbone, layer), atol=1e-5)


def test_any_other_module_runs_uncompiled_inside_what_is_compiled():
    backbone = load_backbone("torchvision:resnet18,weights=none")
    compiled = torch.compile(backbone, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(RGB, ["layer3"])["layer3"], maps(backbone, "layer3"))


def test_ddp_trains_it(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        backbone = load_backbone("random:alexnet,fc=0,norm=false", frozen=False)
        before = backbone.net.conv1.conv.weight.clone()
        parallel = torch.nn.parallel.DistributedDataParallel(backbone)
        optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
        parallel(RGB, ["pool5"])["pool5"].mean().backward()
        optimizer.step()
        assert not torch.equal(backbone.net.conv1.conv.weight, before)
    finally:
        dist.destroy_process_group()


def test_torch_hub_has_the_same_names(tmp_path):
    root = str(Path(__file__).parents[2])
    model = torch.hub.load(root, "crosschannel_vgg16", source="local", num_classes=3)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    assert {"crosschannel_alexnet", "crosschannel_colornet", "load_backbone"} <= set(
        runpy.run_path(f"{root}/hubconf.py")
    )
