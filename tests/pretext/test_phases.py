"""A task whose net learns in two phases a step: a generator, and a critic with the backbone."""

import copy
from dataclasses import dataclass

import pytest
import torch
from forked import run_on_ranks
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from crosschannel import pretext
from crosschannel.cli import main
from crosschannel.data import CropConfig, Stream, TrainingCrops, load_batches, open_images
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.pretext.task import Pretext, PrimaryMetric
from crosschannel.runs.folder import read_metrics
from crosschannel.training.checkpoints import list_checkpoints, load

SIDE = 48


@dataclass
class Keys:
    """The generator."""

    width: int = 4
    """of its input"""


class Pair(nn.Module):
    stride = 1

    def __init__(self, net, width):
        super().__init__()
        self.net, self.head = net, nn.Linear(net.out_channels, 1)
        self.generator = nn.Linear(width, 3 * SIDE * SIDE)

    def forward(self, images):
        return self.head(self.net(images).mean((2, 3)))[:, 0]


class Adversary(Pretext):
    """Images and noise → which is which; the generator learns to make noise look like images."""

    keys = Keys
    primary_metric = PrimaryMetric("right", "of the real images are taken for real")
    score_length = 2
    phases = (("generator",), ("net", "head"))

    @staticmethod
    def input_of(config, crop):
        return InputSpec("rgb", crop.size, crop.resize)

    @staticmethod
    def build(config, spec, size, classes):
        return Pair(build_net(spec, size), config.width)

    def losses(self, net, batch, phase=0):
        noise = batch.uniforms(self.config.width).float()
        fake = net.generator(noise).unflatten(1, (3, SIDE, SIDE))
        if phase == 0:
            logits = net(fake)
            return cross_entropy(logits, torch.ones_like(logits), reduction="sum"), logits.new_full((), len(batch))
        real, fake = net(self.input.preprocess(batch.images)), net(fake.detach())
        loss = cross_entropy(real, torch.ones_like(real), reduction="sum")
        return loss + cross_entropy(fake, torch.zeros_like(fake), reduction="sum"), real.new_full((), 2 * len(batch))

    def scores(self, net, batch):
        real = net(self.input.preprocess(batch.images))
        return torch.stack(((real > 0).sum(), torch.tensor(len(batch)))).double()

    def metrics(self, sums):
        right, count = sums.tolist()
        return {"loss": 1 - right / count, "right": right / count}


@pytest.fixture(autouse=True)
def task(monkeypatch, narrow_nets):
    place = f"{__name__}:Adversary"
    monkeypatch.setitem(pretext.TASKS, "adversary", pretext.Entry(place, f"{__name__}:Keys", "a pair"))


def command(photo_folder, out, *flags):
    return [
        "pretrain", "--task=adversary", f"--data={photo_folder}", f"--out={out}", "--model.fc=0", "--model.norm=false",
        f"--crop.size={SIDE}", f"--crop.resize={SIDE}", "--train.batch=8", "--train.steps=4", "--runtime.workers=0",
        "--runtime.log_every=1", "--runtime.checkpoint_every=2", "--runtime.tensorboard=false", "--device=cpu",
        "--runtime.keep=9", "--optim.name=sgd", "--optim.lr=0.05", "--optim.weight_decay=0", "--schedule.kind=constant",
        "--train.precision=float32", "--train.channels_last=false", "--runtime.eval_every=100", *flags,
    ]  # fmt: skip


def test_phase_updates_match_a_hand_written_loop(photo_folder, tmp_path):
    assert main(command(photo_folder, tmp_path / "run")) == 0
    images, crop = open_images(str(photo_folder))[0], CropConfig(SIDE, SIDE)
    torch.manual_seed(0)
    net, task = pretext.create("adversary", Keys(), NetSpec("alexnet", 3, norm=False, fc=0), SIDE)
    modules = [net.generator, nn.ModuleList([net.net, net.head])]
    optimizers = [torch.optim.SGD(module.parameters(), 0.05, momentum=0.9) for module in modules]
    losses = []  # sums over the phases
    for batch in load_batches(Stream(images, TrainingCrops(crop), 0), 0, 32, 8):
        losses.append(0.0)
        for phase, optimizer in enumerate(optimizers):
            before = copy.deepcopy(net.state_dict())
            loss, count = task.losses(net, batch, phase)
            net.zero_grad()
            (loss / count).backward()
            optimizer.step()
            moved = {
                name.partition(".")[0] for name, value in net.state_dict().items() if not value.equal(before[name])
            }
            assert moved <= set(task.phases[phase])
            losses[-1] += (loss / count).item()
    trained = load_file(tmp_path / "run" / "pretext.safetensors")
    assert all(torch.allclose(trained[name], value, atol=1e-6) for name, value in net.state_dict().items())
    logged = [row["train/loss"] for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert logged == pytest.approx(losses, rel=1e-5)


def test_a_resumed_run_gives_the_same_weights_as_an_uninterrupted_one(photo_folder, tmp_path):
    adam = ["--optim.name=adam", "--optim.lr=1e-3", "--train.ema=0.9"]
    for run in ("whole", "part"):
        assert main(command(photo_folder, tmp_path / run, *adam)) == 0
    part = tmp_path / "part"
    for name in ("result.json", "pretext.safetensors", "backbone.safetensors"):
        (part / name).unlink()
    newest, before, *_ = list_checkpoints(part / "checkpoints")
    assert len(load(before)["phases"]) == 1
    newest.unlink()
    assert main(command(photo_folder, part, *adam)) == 0
    first, second = (load_file(tmp_path / run / "pretext.safetensors") for run in ("whole", "part"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_ranks_give_the_same_weights_as_one(photo_folder, tmp_path):
    assert main(command(photo_folder, tmp_path / "one")) == 0
    outcomes = run_on_ranks(lambda: main(command(photo_folder, tmp_path / "two")))
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    one, two = (load_file(tmp_path / run / "pretext.safetensors") for run in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ((("generator",), ("net", "hed")), "the net has no module 'hed'"),
        ((("generator",), ("net",)), "no phase of the task updates head.weight"),
    ],
)
def test_phases_that_do_not_fit_the_net_are_refused(photo_folder, tmp_path, monkeypatch, capsys, phases, words):
    monkeypatch.setattr(Adversary, "phases", phases)
    assert main(command(photo_folder, tmp_path / "run")) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run" / "config.yaml").exists()
