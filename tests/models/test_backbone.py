import pytest
import torch
import torchvision
from skimage.color import rgb2lab
from torch import nn

from crosschannel import UserError
from crosschannel.models import VGG16, AlexNet, Backbone, ColorNet, InputSpec, wrap
from crosschannel.models.module_net import ModuleNet
from crosschannel.models.timm_net import TimmNet

RGB = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_preprocessing_is_what_each_kind_says():
    lab = torch.from_numpy(rgb2lab(RGB.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2).float()
    lab[:, 0] -= 50
    assert torch.allclose(InputSpec("lab").preprocess(RGB), lab, atol=1e-3)
    assert torch.allclose(InputSpec("grey").preprocess(RGB), lab[:, :1], atol=1e-3)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.allclose(InputSpec("rgb").preprocess(RGB), normalise(RGB), atol=1e-6)


def test_mid_grey_is_zero():
    grey = torch.full((1, 3, 4, 4), 0.46633)  # L = 50
    assert InputSpec("grey").preprocess(grey).abs().max() < 0.01


def test_repr_is_one_line_with_source_input_layers_and_size():
    net = nn.Sequential(nn.Conv2d(3, 100, 3), nn.Conv2d(100, 100, 10))
    text = repr(wrap(net, size=64))
    assert text == "Backbone(Sequential: rgb input of 64 px, 2 layers (0 … 1), 1.0 M parameters)"


def test_calling_it_is_features_of_preprocess():
    backbone = Backbone(AlexNet(fc=0), InputSpec("grey", 64)).eval()
    with torch.no_grad():
        called = backbone(RGB, ["conv2", "conv5"])
        apart = backbone.features(backbone.preprocess(RGB), ["conv2", "conv5"])
    assert list(called) == ["conv2", "conv5"]
    assert all(torch.equal(called[name], apart[name]) for name in called)


@pytest.mark.parametrize(
    "net", [AlexNet(fc=0), AlexNet(fc=0, geometry="probe", variant="caffenet"), VGG16(), ColorNet()]
)
def test_what_a_net_states_of_its_maps_is_so(net):
    net.eval()
    with torch.no_grad():
        small, large = (net.forward_features(torch.zeros(1, 1, side, side), net.layers) for side in (224, 256))
    for name, (channels, stride) in net.shapes.items():
        assert small[name].shape[1] == channels
        assert large[name].shape[3] - small[name].shape[3] == 32 // stride
    if isinstance(net, AlexNet) and net.geometry == "padded":
        assert (net.shapes["pool5"][1], net.set_geometry("probe").shapes["pool5"][1]) == (16, 32)


def test_channels_and_strides():
    backbone = Backbone(AlexNet(), InputSpec("grey", 180))
    assert backbone.channels["conv5"] == 256 and backbone.channels["fc7"] == 4096
    assert (backbone.strides["conv1"], backbone.strides["pool1"], backbone.strides["conv5"]) == (4, 8, 16)
    assert backbone.training  # measuring left the mode alone
    probe = Backbone(AlexNet(geometry="probe"), InputSpec("grey", 227))
    assert [probe.strides[n] for n in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5")] == [4, 8, 8, 16, 16, 32]
    vit = Backbone(TimmNet("vit_tiny_patch16_224"), InputSpec("rgb", 224))
    strides = {name.partition("_")[2]: stride for name, stride in vit.strides.items()}
    assert strides == {"": 16, "class": 224} and set(vit.channels.values()) == {192}


def test_an_unknown_layer_lists_those_there_are():
    backbone = Backbone(AlexNet(fc=0), InputSpec())
    with pytest.raises(UserError, match=r"unknown layer 'conv9'.*conv1, pool1"):
        backbone.features(torch.zeros(1, 1, 64, 64), ["conv9"])


def test_the_head_of_an_alexnet_is_fc6_and_fc7():
    backbone = Backbone(AlexNet(geometry="probe", norm=False), InputSpec("grey", 227)).eval()
    with torch.no_grad():
        maps = backbone.features(torch.randn(1, 1, 227, 227), ["pool5", "fc7"])
        assert torch.equal(backbone.head(maps["pool5"]), maps["fc7"].flatten(1))


def test_timm_stages_and_blocks_are_maps():
    for name, kind, step in (("resnet18", "stage", 1), ("vit_tiny_patch16_224", "block", 2)):
        net = TimmNet(name, in_channels=1, image_size=64).eval()
        with torch.no_grad():
            maps = net.forward_features(torch.randn(2, 1, 64, 64), net.layers)
        assert tuple(maps) == net.layers
        assert [name for name in maps if "_" not in name] == [f"{kind}{i}" for i in range(1, 1 + len(maps) // step)]
        assert all(m.ndim == 4 and m.shape[0] == 2 for m in maps.values())
        assert maps[net.layers[-1]].shape[1] == net.out_channels


def test_a_vit_gives_its_class_and_patch_tokens_after_its_final_norm():
    torch.manual_seed(0)
    net = TimmNet("vit_tiny_patch16_224", image_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = net.model.forward_features(x)  # timm's own: all blocks, then the norm
        maps = net.forward_features(x, ["block12_class", "block12"])
        early = net.forward_features(x, ["block3_class"])
    assert maps["block12_class"].shape == (2, 192, 1, 1) and maps["block12"].shape == (2, 192, 4, 4)
    assert torch.allclose(maps["block12_class"][..., 0, 0], tokens[:, 0], atol=1e-5)
    assert torch.allclose(maps["block12"].flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)
    assert list(early) == ["block3_class"]
    assert TimmNet("samvit_base_patch16").layers[:2] == ("block1", "block2")  # a ViT without a class token


def test_tokens_and_channels_last_maps_of_any_module_become_maps():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    vit = torchvision.models.VisionTransformer(64, 16, 2, 2, 8, 16).eval()
    net = ModuleNet(vit)
    with torch.no_grad():
        found = net.forward_features(x, ["encoder", "encoder_class", "encoder.layers.encoder_layer_0"])
        tokens = vit.encoder(torch.cat((vit.class_token.expand(2, -1, -1), vit._process_input(x)), 1))
    assert torch.equal(found["encoder_class"][:, :, 0, 0], tokens[:, 0])
    assert torch.equal(found["encoder"].flatten(2).transpose(1, 2), tokens[:, 1:])
    assert found["encoder.layers.encoder_layer_0"].shape == (2, 8, 4, 4)
    swin = torchvision.models.swin_t(weights=None).eval()
    with torch.no_grad():
        last = ModuleNet(swin).forward_features(x, ["features"])["features"]
        assert torch.equal(last, swin.features(x).permute(0, 3, 1, 2))
    backbone = Backbone(net, InputSpec("rgb", 64))
    assert (
        backbone.channels["encoder"] == 8 and backbone.has_layer("encoder.ln") and not backbone.has_layer("encoder.x")
    )
    with pytest.raises(UserError, match="'conv_proj_class' has no feature map"):
        backbone(torch.rand(1, 3, 64, 64), ["conv_proj_class"])

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Identity()

        def forward(self, x):
            return self.tokens(x.flatten(2).permute(2, 0, 1))  # (L, N, C)

    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(ModuleNet(SequenceFirst()).forward_features(x, ["tokens"])["tokens"], x)
    with pytest.raises(UserError, match=r"unknown layer 'encoder\.x'"):
        backbone(torch.rand(1, 3, 64, 64), ["encoder.x"])


def test_a_net_without_parameters_is_a_backbone_too():
    backbone = Backbone(ModuleNet(nn.Sequential(nn.AvgPool2d(8))), InputSpec("rgb", 64))
    assert backbone(RGB)["0"].shape == (2, 3, 8, 8) and backbone.channels == {"0": 3}


def test_timm_features_are_timms_own():
    import timm

    torch.manual_seed(0)
    net = TimmNet("resnet18").eval()
    reference = timm.create_model("resnet18", features_only=True).eval()
    reference.load_state_dict(net.model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = net.forward_features(x, net.layers), reference(x)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.values(), theirs, strict=True))


def test_any_module_with_named_parts_can_be_wrapped_and_is_left_early():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.act = nn.ReLU(inplace=True)
            self.late = nn.Conv2d(4, 5, 3)

        def forward(self, x):
            y = self.late(self.act(self.stem(x)))
            raise AssertionError("computed to the end") if self.training else None
            return y

    net = ModuleNet(Net())
    assert net.layers == ("stem", "act", "late")
    maps = net.forward_features(RGB, ["stem", "act"])
    assert (maps["stem"] < 0).any() and torch.equal(maps["act"], maps["stem"].relu())


def test_a_module_without_maps_says_so():
    net = ModuleNet(nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(12, 4)))
    with pytest.raises(UserError, match="no feature map"):
        net.forward_features(torch.zeros(1, 3, 2, 2), ["0"])
    assert net.forward_features(torch.zeros(1, 3, 2, 2), ["2"])["2"].shape == (1, 4, 1, 1)  # vectors: one position
    with pytest.raises(UserError, match="no named submodules"):
        ModuleNet(nn.ReLU())


@pytest.mark.parametrize(
    ("net", "layer"),
    [
        (AlexNet(fc=0, norm=False, geometry="probe"), "pool2"),
        (AlexNet(fc=0, norm=False, geometry="padded"), "conv3"),
        (AlexNet(fc=0, norm=False, geometry="probe", variant="torchvision"), "pool2"),
        (VGG16(norm=False), "pool3"),
        (TimmNet("resnet18", 1), "stage3"),
        (TimmNet("convnext_atto", 1), "stage2"),
        (TimmNet("vit_tiny_patch16_224", 1), "block1"),
    ],
    ids=lambda value: getattr(value, "timm_name", type(value).__name__) if isinstance(value, nn.Module) else value,
)
def test_the_origin_of_a_map_is_the_middle_of_what_its_first_point_sees(net, layer):
    """Of nets whose weights are all positive a point sees a column of pixels where a spike in it shows."""
    side = 112 if isinstance(net, VGG16) else 224
    backbone = Backbone(net, InputSpec("grey", side)).eval()
    if "vit" in backbone.timm_name:
        assert backbone.origin(layer) == 7.5 and backbone.strides[layer] == 16  # patches: every one sees all
        return
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1e-2)
        for module in net.modules():  # which would take the mean away
            if type(module).__name__.startswith("LayerNorm"):
                module.forward = lambda x: x
        spikes = torch.zeros(side, 1, 64, side)
        spikes[torch.arange(side), :, :, torch.arange(side)] = 1.0
        blank = backbone.features(torch.zeros(1, 1, 64, side), [layer])[layer][0, :, 1]
        maps = torch.cat([backbone.features(part, [layer])[layer][:, :, 1] for part in spikes.split(32)])
    seen = (maps - blank).abs().amax(1) > 0  # (pixel, point)
    middle = seen.shape[1] // 2
    pixels = seen[:, middle].nonzero()[:, 0]
    assert pixels[0] > 0 and pixels[-1] < side - 1  # it does not reach the edges
    place = backbone.origin(layer) + backbone.strides[layer] * middle
    assert place == (pixels[0] + pixels[-1]).item() / 2
