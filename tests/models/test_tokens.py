"""Maps from the tokens of wrapped ViTs at any image size and aspect ratio, compared with the patches themselves."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from crosschannel import UserError, wrap
from crosschannel.models.positions import resize
from crosschannel.models.regions import plan_regions
from crosschannel.models.tokens import TokenGrid

SIZE, WIDTH = 48, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y, y, y)[0]


class ViT(nn.Module):
    """ViT with class and register tokens first, last or missing, patches of any shape and any form of positions."""

    def __init__(self, patch=(8, 8), tokens="c", name="pos_embed", form="sequence", linear=False, asserts=False):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.tokens, self.name, self.form, self.asserts = patch, tokens, name, form, asserts
        self.grid = (SIZE // patch[0], SIZE // patch[1])
        self.embed = nn.Linear(3 * patch[0] * patch[1], WIDTH) if linear else nn.Conv2d(3, WIDTH, patch, patch)
        self.extra = nn.Parameter(torch.randn(len(tokens), WIDTH))
        count = self.grid[0] * self.grid[1] + len(tokens.replace("r", ""))
        self.image_size = SIZE
        if form == "sequence":
            setattr(self, name, nn.Parameter(torch.randn(1, count, WIDTH)))
        elif form == "map":
            setattr(self, name, nn.Parameter(torch.randn(1, WIDTH, *self.grid)))
        elif form == "tensor":
            setattr(self, name, torch.randn(count, WIDTH))
        elif form == "embedding":
            setattr(self, name, nn.Embedding(count, WIDTH))
            self.register_buffer("position_ids", torch.arange(count)[None], persistent=False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 10)

    def patches(self, x):
        """(N, WIDTH, h, w), before positions."""
        if isinstance(self.embed, nn.Conv2d):
            return self.embed(x)
        (n, c, height, width), (down, across) = x.shape, self.patch
        x = x.reshape(n, c, height // down, down, width // across, across)
        return self.embed(x.permute(0, 2, 4, 1, 3, 5).flatten(3)).permute(0, 3, 1, 2)

    def forward(self, x):
        if self.asserts:
            assert x.shape[2] == self.image_size and x.shape[3] == self.image_size
        positions = getattr(self, self.name) if self.form != "none" else 0
        positions = positions(self.position_ids) if self.form == "embedding" else positions
        x = self.patches(x) + (positions if self.form == "map" else 0)
        x = x.flatten(2).transpose(1, 2)
        classes = self.extra[[i for i, kind in enumerate(self.tokens) if kind == "c"]].expand(len(x), -1, -1)
        x = torch.cat((x, classes), 1) if self.tokens.startswith("r") else torch.cat((classes, x), 1)
        x = x + (0 if self.form == "map" else positions)
        if "r" in self.tokens:
            index = 1 if self.tokens.startswith("c") else -1  # next to the class token, on the side of the patches
            registers = self.extra[[i for i, kind in enumerate(self.tokens) if kind == "r"]].expand(len(x), -1, -1)
            x = torch.cat((x[:, :index], registers, x[:, index:]), 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


SHAPES = [(48, 48), (32, 80), (96, 64), (80, 32)]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tokens": ""},
        {"tokens": "crrrr"},
        {"tokens": "rrc"},
        {"linear": True},
        {"patch": (16, 8)},
        {"patch": (8, 16), "linear": True, "tokens": ""},
        {"form": "map"},
        {"form": "embedding", "name": "position_embedding"},
        {"form": "tensor", "name": "pos_embedding"},
        {"name": "position_embeddings", "asserts": True},
        {"name": "positional_embedding"},
        {"name": "positions"},
    ],
    ids=str,
)
def test_tokens_become_maps_of_their_patches_at_any_size_and_aspect_ratio(keys):
    vit = ViT(**keys).eval()
    backbone = wrap(vit, size=SIZE)
    with torch.no_grad():  # blocks add nothing and positions are constant, so tokens equal patches
        for block in vit.blocks:
            block.attention.out_proj.weight.zero_()
            block.attention.out_proj.bias.zero_()
        position = getattr(vit, vit.name)
        (position.weight if isinstance(position, nn.Embedding) else position).fill_(1.0)
    for shape in SHAPES:
        x = torch.randn(2, 3, *shape)
        with torch.no_grad():
            feature_map = backbone.features(x, ["blocks.1"])["blocks.1"]
            patches = vit.patches(x) + 1
        step = min(vit.patch)
        expected = patches.repeat_interleave(vit.patch[0] // step, 2).repeat_interleave(vit.patch[1] // step, 3)
        assert torch.allclose(feature_map, expected, atol=1e-4), shape
    assert backbone.strides["blocks.1"] == step and backbone.origin("blocks.1") == (step - 1) / 2
    plan = plan_regions(backbone, "blocks.1")
    assert plan.step % vit.patch[0] == plan.step % vit.patch[1] == 0


@pytest.mark.parametrize(("tokens", "index"), [("c", 0), ("crr", 0), ("rrc", -1), ("", None)])
def test_class_token_is_the_first_before_or_the_last_after_the_patches(tokens, index):
    vit = ViT(tokens=tokens).eval()
    backbone, captured = wrap(vit, size=SIZE), {}
    vit.blocks[1].register_forward_hook(lambda _m, _i, output: captured.update(tokens=output))
    x = torch.randn(2, 3, SIZE, SIZE)
    if index is None:
        with pytest.raises(UserError, match="has no feature map"):
            backbone.features(x, ["blocks.1_class"])
        return
    with torch.no_grad():
        token = backbone.features(x, ["blocks.1_class"])["blocks.1_class"][:, :, 0, 0]
    assert torch.equal(token, captured["tokens"][:, index])


def test_positions_are_resized_as_in_timm():
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, 1 + 36, WIDTH, requires_grad=True)
    for sides in ((6, 6), (4, 10), (12, 8), (1, 3)):
        ours = resize(positions, TokenGrid(6, 6, before=5), TokenGrid(*sides, before=5))
        assert torch.allclose(ours, resample_abs_pos_embed(positions, list(sides), [6, 6]), atol=1e-5)
        assert torch.equal(ours[:, 0], positions[:, 0])
    ours.sum().backward()
    assert positions.grad.abs().sum() > 0
    last = resize(positions, TokenGrid(6, 6, after=1), TokenGrid(4, 10, after=1))
    assert torch.equal(last[:, -1], positions[:, -1]) and last.shape == (1, 41, WIDTH)
    assert resize(torch.randn(1, 99, WIDTH), TokenGrid(6, 6, 1), TokenGrid(4, 10, 1)) is None


def test_a_module_that_interpolates_its_positions_is_left_alone():
    class Interpolates(ViT):
        def forward(self, x):
            sides = [side // step for side, step in zip(x.shape[2:], self.patch, strict=True)]
            grid = self.table.transpose(1, 2).unflatten(2, self.grid)
            self.resized = F.interpolate(grid, sides, mode="bilinear").flatten(2).transpose(1, 2)
            x = self.patches(x).flatten(2).transpose(1, 2) + self.resized
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    vit = Interpolates(tokens="", name="table")
    backbone = wrap(vit.eval(), size=SIZE)
    x = torch.randn(1, 3, 32, 80)
    with torch.no_grad():
        feature_map = backbone.features(x, ["blocks.0"])["blocks.0"]
        tokens = vit.blocks[0](vit.patches(x).flatten(2).transpose(1, 2) + vit.resized)
    assert torch.equal(feature_map.flatten(2).transpose(1, 2), tokens)


def test_positions_with_an_uncommon_name_need_a_name_or_a_function():
    vit = ViT(name="table").eval()
    x = torch.randn(1, 3, 32, 80)
    with pytest.raises(
        UserError, match=r"ViT accepts images of 48 × 48 px, not of 80 × 32 .*resize_positions='table'\)"
    ):
        wrap(vit, size=SIZE).features(x)
    calls = []

    def resized(module, height, width):
        calls.append((height, width))
        return {"table": resize(module.table, TokenGrid(6, 6, 1), TokenGrid(height // 8, width // 8, 1))}

    with torch.no_grad():
        nets = [wrap(vit, size=SIZE, resize_positions=option) for option in ("table", resized)]
        by_name, by_function = (net.features(x, ["blocks.1"])["blocks.1"] for net in nets)
    assert torch.equal(by_name, by_function) and calls == [(32, 80)] and vit.table.shape == (1, 37, WIDTH)
    for wrong, message in (("tables", "no parameter or buffer"), (7, "a name, names or a function")):
        with pytest.raises(UserError, match=message):
            wrap(vit, size=SIZE, resize_positions=wrong)


def test_gradients_reach_the_original_positions():
    vit = ViT()
    wrap(vit, size=SIZE).features(torch.randn(1, 3, 32, 80), ["blocks.1"])["blocks.1"].square().sum().backward()
    assert vit.pos_embed.grad.abs().sum() > 0 and "pos_embed" not in vars(vit)


def test_torchvision_vit_takes_any_size_despite_its_assertion():
    vit = torchvision.models.VisionTransformer(SIZE, 8, 2, 2, WIDTH, 32).eval()
    backbone = wrap(vit, size=SIZE)
    assert backbone(torch.rand(2, 3, 32, 80), ["encoder"])["encoder"].shape == (2, WIDTH, 4, 10)
    assert vit.image_size == SIZE and type(vit.image_size) is int and vit.encoder.pos_embedding.shape[1] == 37


class HuggingFaceViT(nn.Module):
    """ViT with the names, tuples and checks of transformers."""

    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.patch_embeddings = nn.Module()
            self.patch_embeddings.projection = nn.Conv2d(3, WIDTH, 8, 8)
            self.position_embeddings = nn.Parameter(torch.randn(1, 37, WIDTH))
            self.image_size = (SIZE, SIZE)

        def forward(self, x):
            if tuple(x.shape[2:]) != self.image_size:
                raise ValueError(f"Input image size ({x.shape[2:]}) does not match the model")
            x = self.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
            return torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.position_embeddings

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, hidden_states):
            return (self.block(hidden_states),)

    def __init__(self):
        super().__init__()
        self.embeddings, self.encoder = self.Embeddings(), nn.Module()
        self.encoder.layer = nn.ModuleList(self.Layer() for _ in range(2))
        self.layernorm = nn.LayerNorm(WIDTH)

    def forward(self, pixel_values):
        x = self.embeddings(pixel_values)
        for layer in self.encoder.layer:
            x = layer(hidden_states=x)[0]
        return {"last_hidden_state": self.layernorm(x)}


def test_a_hugging_face_vit_takes_any_size():
    backbone = wrap(HuggingFaceViT().eval(), size=SIZE)
    maps = backbone(torch.rand(2, 3, 32, 80), ["embeddings", "encoder.layer.1", "layernorm", "layernorm_class"])
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(4, 10)] * 3 + [(1, 1)]


def test_halved_tokens_and_channels_last_maps_follow_the_image():
    class Hierarchical(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.first = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
            self.merge, self.last = nn.Linear(32, 16), nn.ReLU()

        def forward(self, x):
            x = self.embed(x)
            sides = x.shape[2:]
            x = self.first(x.flatten(2).transpose(1, 2))
            x = F.pixel_unshuffle(x.transpose(1, 2).unflatten(2, sides), 2)
            self.merged = self.merge(x.flatten(2).transpose(1, 2)), x.shape[2:]
            return self.last(self.merged[0].unflatten(1, x.shape[2:]))  # (N, h, w, C)

    net = Hierarchical()
    backbone = wrap(net, size=64)  # 8 × 8 positions of 16 channels, and 16 × 16 of 8
    assert backbone.strides == {"embed": 4, "first": 4, "merge": 8, "last": 8}
    with torch.no_grad():
        maps = backbone.features(torch.randn(1, 3, 32, 96))
    tokens, sides = net.merged
    expected = tokens.transpose(1, 2).unflatten(2, sides)
    assert torch.equal(maps["merge"], expected) and torch.equal(maps["last"], expected.relu())
    assert maps["first"].shape == (1, 8, 8, 24)


@pytest.mark.parametrize("channels", [16, 24])
def test_layout_is_detected_if_channels_are_as_many_as_positions(channels):
    """With 16 × 16 positions and 16 channels, an image of another height shows which axis holds the channels."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.turned = nn.Conv2d(3, channels, 4, 4), nn.Identity()

        def forward(self, x):
            return self.turned(self.embed(x).permute(0, 2, 3, 1))

    with torch.no_grad():
        maps = wrap(Last(), size=64).features(torch.randn(2, 3, 64, 64))
    assert torch.equal(maps["embed"], maps["turned"])


def test_vectors_as_long_as_a_token_sequence_are_not_tokens():
    net = nn.Sequential(nn.Conv2d(3, 36, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(36, 37))
    maps = wrap(net, size=SIZE)(torch.rand(3, 3, SIZE, SIZE))
    assert maps["2"].shape == (3, 36, 1, 1) and maps["3"].shape == (3, 37, 1, 1)
