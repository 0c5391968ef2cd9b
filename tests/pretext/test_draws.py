"""Random numbers of a task depend on the sample alone: not on ranks, batches, workers or a broken image beside it."""

import io

import numpy as np
import pytest
import torch
from forked import run_on_ranks
from PIL import Image

from crosschannel.data import CropConfig, MemoryImages
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import JigsawConfig, RotationConfig
from crosschannel.pretext.pretraining import Pretraining
from crosschannel.training.ranks import World, joined_world

TASKS = {
    "jigsaw": JigsawConfig(tile=28, permutations=10, width=8, hidden=16, grey=0.5),
    "rotation": RotationConfig(),
}
COUNT = 26
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blobs(photos):
    blobs = []
    for number in range(COUNT):
        file = io.BytesIO()
        photo = photos[number % len(photos)]
        Image.fromarray(photo[number : number + 96, number : number + 110]).save(file, "PNG")
        blobs.append(file.getvalue())
    return blobs


def figures(name, blobs, world, batch, workers=0, indices=None):
    """Held-out figures of an untrained net."""
    torch.manual_seed(0)
    net, task = create(name, TASKS[name], NetSpec("alexnet", 3, fc=0), 84)
    images = MemoryImages([f"{i}" for i in range(COUNT)], [0] * COUNT, blobs)
    pretraining = Pretraining(net.eval(), task, images, CropConfig(84, 90), world, "default", None, 0, batch, workers)
    return pretraining.evaluate(net, lambda: False)


@pytest.mark.parametrize("name", TASKS)
def test_figures_depend_on_neither_batches_nor_workers(narrow_net, blobs, name):
    world = World(0, 1, CPU)
    expected = figures(name, blobs, world, 6).metrics
    for batch, workers in ((64, 0), (6, 2), (1, 0)):
        assert figures(name, blobs, world, batch, workers).metrics == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_figures_do_not_depend_on_ranks(narrow_net, blobs, tmp_path, ranks):
    def on_a_rank() -> int:
        with joined_world(CPU, 60) as world:
            for name in TASKS:
                found = figures(name, blobs, world, 6).metrics
                if world.is_main:
                    np.save(tmp_path / f"{name}.npy", [found["loss"], found["top1"]])
        return 0

    outcomes = run_on_ranks(on_a_rank, ranks)
    assert [status for status, _ in outcomes] == [0] * ranks, outcomes
    for name in TASKS:
        alone = figures(name, blobs, World(0, 1, CPU), 6).metrics
        assert np.load(tmp_path / f"{name}.npy").tolist() == pytest.approx([alone["loss"], alone["top1"]], rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_a_broken_image_does_not_change_the_scores_of_others(narrow_net, blobs, name):
    """The total minus the score of image 7 equals the total without it."""
    world = World(0, 1, CPU)
    torch.manual_seed(0)
    net, task = create(name, TASKS[name], NetSpec("alexnet", 3, fc=0), 84)
    whole, damaged = (MemoryImages([f"{i}" for i in range(COUNT)], [0] * COUNT, part)
                      for part in (blobs, [*blobs[:7], b"no image", *blobs[8:]]))  # fmt: skip
    net.eval()
    sums = []
    for images in (whole, damaged):
        stream = Pretraining(net, task, images, CropConfig(84, 90), world, "default").held_out
        batch = stream.collate(stream.__getitems__(list(range(COUNT))))
        sums.append(task.scores(net, batch))
    stream = Pretraining(net, task, whole, CropConfig(84, 90), world, "default").held_out
    alone = task.scores(net, stream.collate([stream[7]]))
    assert torch.allclose(sums[0] - alone, sums[1], rtol=1e-5)
