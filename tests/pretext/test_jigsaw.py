"""Jigsaw puzzles: tiles, orders, the siamese net, and its pictures."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import base_batch
from PIL import Image
from scipy.spatial.distance import cdist

from crosschannel import UserError, load_backbone
from crosschannel.cli import main
from crosschannel.data import CropConfig, Record, SampleRNG
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import JigsawConfig
from crosschannel.pretext.jigsaw import TileBatch, Tiles, distant_permutations, mosaic, shuffle_tiles

CONFIG = JigsawConfig(tile=28, permutations=10, width=8, hidden=16, dropout=0.0)


@pytest.fixture
def jigsaw(narrow_net):
    torch.manual_seed(0)
    return create("jigsaw", CONFIG, NetSpec("alexnet", 3, fc=0), 84)


def tiles_of(pixels, view, number=0):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return view(Record({"image": file.getvalue()}), SampleRNG(0, (number,)))


@pytest.fixture
def batch(photos):
    view = Tiles(CropConfig(84, 90), 28, train=False)
    samples = [tiles_of(photo[:100, :120], view, number) for number, photo in enumerate(photos[:4])]
    return view.collate(samples, base_batch(4))


def test_each_permutation_is_as_far_as_possible_from_those_before_it():
    chosen = distant_permutations(40)
    assert len({tuple(row) for row in chosen}) == 40 and (np.sort(chosen, 1) == np.arange(9)).all()
    others = np.random.default_rng(0).permuted(np.tile(np.arange(9), (2000, 1)), axis=1)
    for count in range(1, 40):
        distance = 9 * cdist(chosen[count : count + 1], chosen[:count], "hamming").sum()
        assert distance >= 9 * cdist(others, chosen[:count], "hamming").sum(1).max() - 1e-9
    assert np.array_equal(distant_permutations(12), chosen[:12])  # more permutations keep the first ones


def test_tiles_lie_anywhere_in_their_cells():
    """Pixels hold their own place."""
    y, x = np.mgrid[:150, :150]
    pixels = np.stack((y, x, np.zeros_like(y)), -1).astype(np.uint8)
    corners = []
    for number in range(200):
        tiles = tiles_of(pixels, Tiles(CropConfig(150, 150), 40, train=False), number)
        assert tiles.shape == (9, 40, 40, 3)
        for place, tile in enumerate(tiles):
            row, column = divmod(place, 3)
            top, left = tile[0, 0, :2].astype(int) - (50 * row, 50 * column)
            assert np.array_equal(tile[..., :2], np.mgrid[:40, :40].transpose(1, 2, 0) + tile[0, 0, :2])
            corners.append((top, left))
    assert np.min(corners) == 0 and np.max(corners) == 10  # 0 to the cell less the tile, both included


def test_the_net_sees_the_tiles_in_the_order_of_their_permutation(jigsaw, batch):
    net, task = jigsaw
    net.eval()
    tiles, orders = task.net_inputs(batch), torch.tensor([0, 3, 9, 3])
    by_hand = torch.stack([tiles[i][net.permutations[order]] for i, order in enumerate(orders)])
    with torch.no_grad():
        assert torch.equal(net(tiles, orders), net(by_hand))
        features = [torch.cat([net.fc6(net.net(tile[None]).flatten(1)).relu()[0] for tile in one]) for one in by_hand]
        expected = net.out(net.fc7(torch.stack(features)).relu())
    assert torch.allclose(net(by_hand), expected, atol=1e-5)


@pytest.mark.parametrize(("norm", "mean", "std"), [("mean", 0, None), ("mean-std", 0, 1)])
def test_each_tile_is_normalised_by_itself(batch, norm, mean, std):
    _, task = create("jigsaw", replace(CONFIG, tile_norm=norm), NetSpec("alexnet", 3, fc=0), 84)
    x = task.net_inputs(batch)
    assert x.mean((3, 4)).abs().max() < 1e-3
    if std:
        assert torch.allclose(x.std((2, 3, 4)), torch.ones(4, 9), atol=0.05)
    else:  # pixels in 0..255
        raw = batch.tiles.float()
        assert torch.allclose(x, raw - raw.mean((3, 4), keepdim=True), atol=1e-2)


def test_a_share_of_images_is_converted_to_grey(batch):
    _, task = create("jigsaw", replace(CONFIG, grey=0.5, tile_norm="none"), NetSpec("alexnet", 3, fc=0), 84)
    many = TileBatch(**vars(base_batch(200)), tiles=batch.tiles[:1].expand(200, -1, -1, -1, -1))
    tiles, orders = task._tiles_and_labels(many)
    deviations = tiles * torch.tensor(task.input.std)[:, None, None] + torch.tensor(task.input.mean)[:, None, None]
    is_grey = ((deviations[:, :, 0] - deviations[:, :, 1]).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    assert 0.4 < is_grey < 0.6 and set(orders.tolist()) == set(range(10))


def test_the_inverse_permutation_restores_the_tiles(jigsaw, batch):
    net, task = jigsaw
    picture = task.pictures(net.eval(), batch)
    truth = mosaic(batch.tiles)
    height, width = truth.shape[2:]
    assert picture.shape == (3 * height, 4 * width, 3)
    assert np.array_equal(picture[2 * height :, :width], truth[0].permute(1, 2, 0).numpy())
    for order in net.permutations:  # the inverse undoes it
        seen = shuffle_tiles(batch.tiles, order.expand(4, -1))
        assert torch.equal(shuffle_tiles(seen, order.argsort().expand(4, -1)), batch.tiles)


def test_conv1_has_stride_two_on_tiles_and_four_in_transfer(narrow_nets, photo_folder, tmp_path):
    with torch.device("meta"):
        net, _ = create("jigsaw", replace(CONFIG, tile=64), NetSpec("alexnet", 3, fc=0), 255)
        assert net.net(torch.empty(1, 3, 64, 64)).shape[2:] == (3, 3)  # as in the release: 27, 13, 13, 6, 6, 3
    run = tmp_path / "run"
    assert main(["pretrain", "--task=jigsaw", f"--data={photo_folder}", f"--out={run}", "--model.fc=0",
                 "--crop.size=84", "--crop.resize=90", "--objective.tile=28", "--objective.permutations=4",
                 "--objective.width=4", "--objective.hidden=0", "--train.batch=4", "--train.steps=1",
                 "--runtime.workers=0", "--runtime.tensorboard=false", "--device=cpu"]) == 0  # fmt: skip
    assert load_backbone(str(run)).net.get_submodule("conv1").conv.stride == (4, 4)


def test_tiles_that_do_not_fit_are_refused(capsys):
    words = ["pretrain", "--task=jigsaw", "--data=builtin:sample", "--model.fc=0"]
    assert main([*words, "--crop.size=90", "--crop.resize=90", "--objective.tile=31"]) == 2
    assert "objective.tile must be at most a third of crop.size (90), got 31" in capsys.readouterr().err
    with pytest.raises(UserError, match="this net cannot take tiles of 9 px"):
        create("jigsaw", replace(CONFIG, tile=9), NetSpec("alexnet", 3, fc=0), 84)


@pytest.mark.parametrize("task", ["jigsaw", "rotation"])
def test_a_timm_net_trains_and_its_run_is_a_backbone(photo_folder, tmp_path, task):
    own = ["--objective.tile=32", "--objective.permutations=4", "--objective.width=4", "--objective.hidden=8"]
    assert main(["pretrain", f"--task={task}", f"--data={photo_folder}", f"--out={tmp_path / 'run'}",
                 "--model.name=timm:test_resnet", "--model.fc=0", "--crop.size=96", "--crop.resize=96",
                 "--train.batch=4", "--train.steps=2", "--runtime.workers=0", "--runtime.tensorboard=false",
                 "--device=cpu", *(own if task == "jigsaw" else [])]) == 0  # fmt: skip
    assert load_backbone(str(tmp_path / "run")).layers[-1].startswith("stage")
