"""The loop on a small net without BatchNorm: what must be equal is equal, whatever the split of the work."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import check_on_ranks

from crosschannel import UserError
from crosschannel.config.training import OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig, TrainedConfig
from crosschannel.data import CropConfig, MemoryImages, Stream, TrainingCrops, open_images
from crosschannel.models import AlexNet
from crosschannel.pretext.colorization import Colorization
from crosschannel.pretext.config import ColorizationConfig
from crosschannel.pretext.nets import LinearHead, PretextNet
from crosschannel.pretext.pretraining import Pretraining
from crosschannel.runs.folder import RunFolder, read_metrics
from crosschannel.training import checkpoints
from crosschannel.training.device import AUTO, device_kind, find_device, resolve_auto
from crosschannel.training.loop import Loop
from crosschannel.training.ranks import World, join_world, leave_world

pytestmark = pytest.mark.usefixtures("narrow_nets")

CROP = CropConfig(size=64, resize=72)


def train(data, out, world=None, images=None, grey_threshold=0.0, optim=None, runtime=None, **train_options) -> Loop:
    world = world or World(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    net = PretextNet(AlexNet(norm=False, fc=0), LinearHead(64, 313), stride=8, head_stride=16)
    folder, val = open_images(str(data))
    stream = Stream(images or folder, TrainingCrops(CROP), 3)
    pretext = Colorization(ColorizationConfig(grey_threshold=grey_threshold), net.stride)
    run = RunFolder(Path(out), "pretrain")
    task = Pretraining(net, pretext, val, CROP, world, "default")
    options = {"batch": 16, "steps": 4, "precision": "float32", "channels_last": False, "compile": False}
    config = TrainedConfig(
        optim=optim or OptimConfig("sgd", lr=0.01, momentum=0.5),
        schedule=ScheduleConfig("constant"),
        train=TrainConfig(**{**options, **train_options}),
        runtime=runtime or RuntimeConfig(workers=0, log_every=1, tensorboard=False),
    )
    loop = Loop(task, stream, config, run, world)
    loop.fit()
    return loop


def weights(loop):
    return torch.cat([p.detach().flatten() for p in loop.net.parameters()])


@pytest.mark.parametrize("grey_threshold", [0.0, 40.0])
def test_accumulation_changes_nothing_but_rounding(photo_folder, tmp_path, grey_threshold):
    whole = train(photo_folder, tmp_path / "whole", grey_threshold=grey_threshold)
    parts = train(photo_folder, tmp_path / "parts", grey_threshold=grey_threshold, accumulate=4)
    difference = (weights(whole) - weights(parts)).abs().max()
    assert difference < 1e-6 and not torch.equal(weights(whole), torch.zeros_like(weights(whole)))
    losses = [[r["train/loss"] for r in read_metrics(run.run.path) if "train/loss" in r] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process_does(photo_folder, tmp_path, size):
    """gloo ranks against one process over twenty steps, to rounding; grey crops are masked on one rank more than on
    another. What the ranks see is disjoint, and together it is the one process's batch."""
    seen = {"one": []}
    with pytest.MonkeyPatch.context() as patch:
        note_indices(patch.setattr, seen["one"])
        one = train(photo_folder, tmp_path / "one", grey_threshold=40.0, steps=20)

    def rank() -> int:
        world, seen = join_world(torch.device("cpu")), []
        note_indices(setattr, seen)
        train(photo_folder, tmp_path / str(world.rank), world, grey_threshold=40.0, steps=20)
        (tmp_path / f"{world.rank}.json").write_text(json.dumps(seen))
        leave_world()
        return 0

    check_on_ranks(rank, size)
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    for whole, *parts in zip(seen["one"], *shares, strict=True):
        assert sorted(index for part in parts for index in part) == sorted(whole)
        assert {len(part) for part in parts} == {16 // size}
    rows, expected = (
        [r["train/loss"] for r in read_metrics(tmp_path / run) if "train/loss" in r] for run in ("0", "one")
    )
    assert len(rows) == 20 and rows == pytest.approx(expected, rel=1e-4)
    state = checkpoints.load(checkpoints.load_latest(tmp_path / "0" / "checkpoints"))["net"]
    several = torch.cat([state[name].flatten() for name, _ in one.net.named_parameters()])
    assert (several - weights(one)).abs().max() < 1e-5


def note_indices(set_attribute, seen: list) -> None:
    """Let every step of a pretraining note which images it is given."""
    original = Pretraining.step

    def step(self, net, batch):
        seen.append(batch.indices.tolist())
        return original(self, net, batch)

    set_attribute(Pretraining, "step", step)


def test_the_average_follows_the_weights(photo_folder, tmp_path):
    loop = train(photo_folder, tmp_path / "a", ema=0.9)
    averaged = torch.cat([p.flatten() for p in loop.evaluated_net.parameters()])
    assert loop.evaluated_net is not loop.net and 0 < (averaged - weights(loop)).abs().max() < 0.1


def test_clipping_bounds_the_step(photo_folder, tmp_path):
    torch.manual_seed(0)
    start = torch.cat([p.detach().flatten() for p in AlexNet(norm=False, fc=0).parameters()])
    optim = OptimConfig("sgd", lr=1.0, momentum=0, weight_decay=0, clip=1e-3)
    moved = weights(train(photo_folder, tmp_path / "a", optim=optim, steps=1))[: len(start)] - start
    assert moved.norm().item() <= 1.01e-3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_train(photo_folder, tmp_path, precision):
    loop = train(photo_folder, tmp_path / "a", precision=precision, channels_last=True)
    assert weights(loop).isfinite().all() and weights(loop).dtype == torch.float32
    assert loop.evaluation.metrics["loss"] < 12


def test_a_batch_that_does_not_divide_is_refused(photo_folder, tmp_path):
    with pytest.raises(UserError, match=r"multiple of ranks × accumulate"):
        train(photo_folder, tmp_path / "a", accumulate=5)


def test_a_diverging_run_stops_with_one_sentence(photo_folder, tmp_path):
    with pytest.raises(UserError, match=r"the loss became (nan|inf)"):
        train(photo_folder, tmp_path / "a", optim=OptimConfig("sgd", lr=1e8), steps=20)


def test_too_many_broken_images_stop_a_run_which_is_saved(photo_folder, tmp_path):
    blobs = [b""] * 10 + [open_images(str(photo_folder))[0].read(i) for i in range(30)]
    images = MemoryImages([f"{i}.jpg" for i in range(40)], [0] * 40, blobs)
    with pytest.raises(UserError, match="images read so far are broken"):
        train(photo_folder, tmp_path / "a", images=images, steps=100)
    assert checkpoints.load(checkpoints.load_latest(tmp_path / "a" / "checkpoints"))["step"] > 40


def test_images_that_vanish_end_a_run_which_is_saved_and_goes_on_once_they_are_back(photo_folder, tmp_path):
    class Vanishing(MemoryImages):
        left = 100

        def read(self, index):
            self.left -= 1
            if self.left < 0:
                raise FileNotFoundError(f"{index}.jpg")
            return super().read(index)

    folder = open_images(str(photo_folder))[0]
    images = Vanishing(list(folder.names), folder.labels, [folder.read(i) for i in range(40)])
    with pytest.raises(UserError, match="no readable image"):
        train(photo_folder, tmp_path / "a", images=images, steps=20)
    state = checkpoints.load(checkpoints.load_latest(tmp_path / "a" / "checkpoints"))
    assert state["step"] == 6 and state["broken"] == [96, 0]  # nothing was learned from what was left
    Vanishing.left = 10**6
    resumed, whole = (train(photo_folder, tmp_path / run, steps=20) for run in "ab")
    assert torch.equal(weights(resumed), weights(whole))


def test_broken_held_out_images_are_named_and_not_counted(photo_folder, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(photo_folder, folder)
    (folder / "val" / "class0" / "text.jpg").write_text("no picture")
    loop = train(folder, tmp_path / "a")
    assert capsys.readouterr().err.count("broken held-out image class0/text.jpg: not an image") == 1
    assert len(loop.evaluation.broken) == 1 and loop.evaluation.n == 10


def test_an_environment_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE must be a whole number, got 'many'"):
        join_world(torch.device("cpu"))


def test_auto_is_what_the_run_began_with_else_of_a_fixed_table(tmp_path):
    config, world = TrainedConfig(train=TrainConfig(precision="float16")), World(0, 1, torch.device("cpu"))
    with RunFolder(tmp_path / "run", "pretrain") as run:
        train = resolve_auto(config, run, world).train
        assert (train.precision, train.channels_last, train.compile) == (
            "float16",
            *AUTO[device_kind(world.device)][1:],
        )
        run.write_config(TrainedConfig(train=TrainConfig(channels_last=False, compile=True)))
        run.log_metrics(1, loss=1.0)
    with RunFolder(tmp_path / "run", "pretrain") as run:
        train = resolve_auto(config, run, world).train
        assert (train.precision, train.channels_last, train.compile) == ("float16", False, True)


def test_an_unknown_device_is_one_sentence():
    for name in ("cuda:99", "abacus"):
        with pytest.raises(UserError, match=f"(unknown device '{name}'|device '{name}' is not available)"):
            find_device(name)


__all__ = ["join_world", "leave_world"]
