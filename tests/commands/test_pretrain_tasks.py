"""`crosschannel pretrain --task NAME` as a user runs it."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crosschannel import load_backbone, load_colorizer
from crosschannel.cli import main
from crosschannel.hub import load_pretext
from crosschannel.pretext import TASKS
from crosschannel.runs.folder import RunFolder
from crosschannel.runs.result import read_result
from crosschannel.training import checkpoints
from transfer.cli import main as transfer_main

pytestmark = pytest.mark.usefixtures("narrow_nets")
ROOT = Path(__file__).parents[2]
NETS = {
    "larsson": [
        "--model.name=vgg16",
        "--model.fc=16",
        "--objective.locations=8",
        "--objective.width=16",
        "--optim.lr=0.02",
    ],
    "dahl": ["--model.name=vgg16", "--model.fc=0"],
    "jigsaw": [
        "--model.fc=0",
        "--crop.size=84",
        "--crop.resize=90",
        "--objective.tile=26",
        "--objective.permutations=6",
        "--objective.width=4",
        "--objective.hidden=8",
    ],
    "labels": ["--model.fc=0", "--objective.input=grey"],
}
SMALL = [
    "--crop.size=32", "--crop.resize=36", "--train.batch=4", "--train.steps=4", "--runtime.workers=0",
    "--runtime.checkpoint_every=2", "--runtime.eval_every=3", "--runtime.log_every=2", "--runtime.tensorboard=false",
    "--val_images=4", "--device=cpu",
]  # fmt: skip
OTHERS = [name for name in TASKS if name != "colorization"]


def command(task, photo_folder, out, *flags):
    own = NETS.get(task, ["--model.fc=0"])
    return ["pretrain", f"--task={task}", f"--data={photo_folder}", f"--out={out}", *SMALL, *own, *flags]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, photo_folder):
    """A finished run of every task but colorization."""
    root = tmp_path_factory.mktemp("tasks")
    for task in OTHERS:
        assert main(command(task, photo_folder, root / task)) == 0
    return root


@pytest.fixture(scope="module")
def alexnet_run(tmp_path_factory, photo_folder):
    """A finished run of colorization, as narrow as the others."""
    out = tmp_path_factory.mktemp("colorization") / "run"
    assert main(command("colorization", photo_folder, out)) == 0
    return out


@pytest.mark.parametrize("task", OTHERS)
def test_a_run_keeps_its_net_and_what_it_is(runs, task):
    run = runs / task
    result = read_result(run)
    whole = load_pretext(str(run))
    assert result.config["task"] == whole.task.name == task
    assert {"loss", whole.task.primary_metric.name} <= result.metrics.keys()
    name = "colorizer.safetensors" if whole.task.decoder else "pretext.safetensors"
    assert (run / name).is_file() and (run / "curve.png").is_file()
    assert bool(list((run / "samples").glob("*.png")) if (run / "samples").exists() else []) == (task != "labels")
    backbone = load_backbone(f"{run},geometry=padded" if "vgg" not in str(NETS.get(task)) else str(run))
    details = backbone.provenance.details
    assert details["pretext"] == task and details["licence"] == "bsd-2-clause"
    rgb = torch.rand(2, 3, 64, 64)
    assert torch.equal(backbone.preprocess(rgb), whole.task.input.preprocess(rgb))
    if task == "jigsaw":  # whose conv1 has stride 2 on tiles
        assert all(
            torch.equal(value, whole.net.net.state_dict()[name]) for name, value in backbone.net.state_dict().items()
        )
        return
    layer = backbone.layers[0]
    expected = whole.net.eval().net.forward_features(backbone.preprocess(rgb), [layer])[layer]
    assert torch.equal(backbone(rgb, [layer])[layer], expected)


@pytest.mark.parametrize("task", OTHERS)
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(runs, photo_folder, tmp_path, monkeypatch, task):
    from crosschannel.pretext.pretraining import Pretraining

    original, steps = Pretraining.step, []

    def told(self, net, batch, phase=0):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(self, net, batch)

    arguments = command(task, photo_folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "step", told)
        assert main(arguments) == 75
    assert checkpoints.load(checkpoints.load_latest(RunFolder(tmp_path / "run", "pretrain", hold=False).checkpoints))
    assert main(arguments) == 0
    ours, theirs = (load_file(path / "backbone.safetensors") for path in (tmp_path / "run", runs / task))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_result(tmp_path / "run").metrics == read_result(runs / task).metrics


@pytest.mark.parametrize("task", [name for name in OTHERS if TASKS[name].load().decoder])
def test_what_colours_colours_pictures(runs, tmp_path, photos, task):
    Image.fromarray(photos[1][:90, :70]).convert("L").save(tmp_path / "grey.png")
    flags = [str(tmp_path / "grey.png"), f"--model={runs / task}", f"--out={tmp_path / 'out'}"]
    assert main(["colorize", *flags]) == 0
    coloured = np.asarray(Image.open(tmp_path / "out" / "grey.png"))
    assert coloured.shape == (90, 70, 3) and np.ptp(coloured.astype(int), 2).max() > 3


def test_what_does_not_says_so(runs, tmp_path, photos, capsys):
    Image.fromarray(photos[1][:90, :70]).save(tmp_path / "x.png")
    for task in ("autoencoder", "labels"):
        assert main(["colorize", str(tmp_path / "x.png"), f"--model={runs / task}", f"--out={tmp_path / 'o'}"]) == 2
        assert f"was trained on the task {task}, which does not predict colours" in capsys.readouterr().err


def test_a_split_brain_net_is_probed_as_any_other_and_so_is_its_untrained_twin(runs, photo_folder, tmp_path):
    for source in (runs / "split-brain", f"random:{runs / 'split-brain'}"):
        out = tmp_path / str(source).replace("/", "-").replace(":", "-")
        flags = [f"--backbone={source}", f"--data={photo_folder}", "--layer=conv5", f"--out={out}", "--cache=off"]
        flags += ["--train.steps=4", "--train.batch=8", "--runtime.workers=0", "--runtime.tensorboard=false"]
        assert transfer_main(["linear-probe", "--config=quickstart", *flags]) == 0
    backbone = load_backbone(f"random:{runs / 'split-brain'}")
    maps = backbone.features(torch.randn(1, 3, 64, 64).requires_grad_(), ["conv5"])["conv5"]
    assert maps.shape[1] == load_backbone(str(runs / "split-brain")).channels["conv5"] and backbone.input.kind == "lab"


def test_labels_start_from_a_colorization_run(alexnet_run, photo_folder, tmp_path):
    out = tmp_path / "labels"
    flags = ["--train.steps=1", "--optim.lr=1e-12", f"--init-from={alexnet_run}"]
    assert main(command("labels", photo_folder, out, *flags)) == 0
    ours, theirs = (load_file(path / "backbone.safetensors") for path in (out, alexnet_run))
    assert torch.allclose(ours["conv3.conv.weight"], theirs["conv3.conv.weight"], atol=1e-6)


@pytest.mark.slow
def test_larsson_starts_from_rgb_weights(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("crosschannel.models.vgg._BLOCKS", ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None)
    torch.save(model.state_dict(), tmp_path / "vgg16.pth")
    flags = ["--train.steps=1", "--optim.lr=1e-12", f"--init-from={tmp_path / 'vgg16.pth'}", "--model.fc=64"]
    larsson = tmp_path / "larsson"
    assert main([word for word in command("larsson", photo_folder, larsson, *flags) if word != "--model.fc=16"]) == 0
    state = load_file(larsson / "backbone.safetensors")
    assert torch.allclose(state["conv3_1.conv.weight"], model.features[10].weight, atol=1e-6)
    assert torch.allclose(state["fc6.conv.weight"].flatten(1), model.classifier[0].weight, atol=1e-6)
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    summed = (model.features[0].weight / std).sum(1, keepdim=True)
    assert torch.allclose(state["conv1_1.conv.weight"], summed, atol=1e-5)


def test_every_task_has_its_own_keys(photo_folder, capsys):
    assert main(["pretrain", "--task=larsson", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--objective.locations" in said and "--objective.lam" not in said
    for flags, words in (
        (["--task=puzzle"], "unknown pretext task 'puzzle'"),
        (["--task=larsson", "--objective.lam=1"], "unknown key 'objective.lam'"),
        (["--task=larsson"], "the task larsson requires model.name vgg16"),
        (["--task=autoencoder"], "model.fc must be 0"),
        (["--task=dahl", "--model.name=vgg16", "--objective.blurs=3"], "objective.blurs"),
    ):
        assert main(["pretrain", f"--data={photo_folder}", "--out=unused-run", *flags]) == 2
        assert words in capsys.readouterr().err


def test_a_config_says_which_task_it_is_of(photo_folder, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [f"--data={photo_folder}", f"--out={out}", *SMALL, "--objective.lightness_bins=50", "--model.fc=0"]
    assert main(["pretrain", "--config=split-brain", *flags]) == 0
    assert read_result(out).config["objective"]["lightness_bins"] == 50
    assert main(["pretrain", f"--config={out / 'config.yaml'}", f"--out={out}"]) == 0
    assert "is finished" in capsys.readouterr().err


def test_labels_need_folders_of_classes(tmp_path, photos, capsys):
    for i in range(8):
        Image.fromarray(photos[i % 4][:50, :50]).save(tmp_path / f"{i}.png")
    assert main(command("labels", tmp_path, tmp_path / "run")) == 2
    assert "requires images in folders of at least two classes" in capsys.readouterr().err


def test_colorizers_of_schema_2_load_as_before(alexnet_run, tmp_path, photos):
    """Files that were written when colorization was the only task have no task, classes or look."""
    path = alexnet_run / "colorizer.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    old = {key: text for key, text in metadata.items() if key not in ("task", "classes", "look")}
    old["schema"] = json.dumps(2)
    save_file(load_file(path), tmp_path / "old.safetensors", old)
    ours, theirs = load_colorizer(str(alexnet_run)), load_colorizer(str(tmp_path / "old.safetensors"))
    assert np.array_equal(ours(photos[0]), theirs(photos[0]))
    backbone = load_backbone(str(tmp_path / "old.safetensors"))
    assert torch.equal(backbone.net.conv1.conv.weight, ours.net.net.conv1.conv.weight)


def test_a_colorizer_becomes_onnx(finished_run, tmp_path, photos, capsys):
    import onnxruntime

    out = tmp_path / "net.onnx"
    assert main(["export", str(finished_run), "--format=onnx", "--part=colorizer", f"--out={out}"]) == 0
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    lightness = 100 * torch.rand(3, 1, 72, 99)
    distribution, ab = session.run(None, {"lightness": lightness.numpy()})
    colorizer = load_colorizer(str(finished_run))
    assert np.abs(ab - colorizer.predict_ab(lightness).numpy()).max() < 1e-2
    assert distribution.shape == (3, 313, 9, 13) and np.allclose(distribution.sum(1), 1, atol=1e-4)
    capsys.readouterr()
    assert main(["export", str(finished_run), "--part=colorizer", f"--out={tmp_path / 'x.safetensors'}"]) == 2
    assert "part colorizer requires format onnx" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in OTHERS if TASKS[name].load().decoder])
def test_colorizers_of_other_tasks_become_onnx_too(runs, tmp_path, task):
    import onnxruntime

    out = tmp_path / "net.onnx"
    flags = ["--format=onnx", "--part=colorizer", f"--out={out}", "--card=false"]
    assert main(["export", str(runs / task), *flags]) == 0
    lightness = 100 * torch.rand(1, 1, 64, 72)
    found = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    *_, ab = found.run(None, {"lightness": lightness.numpy()})
    stride = load_pretext(str(runs / task)).task.stride
    assert ab.shape == (1, 2, -(-64 // stride), -(-72 // stride)) and np.isfinite(ab).all()


def test_an_old_run_without_a_task_goes_on_as_colorization_and_as_nothing_else(small, finished_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = run / "config.yaml"
    config.write_text("".join(line for line in config.open() if not line.startswith(("task:", "  norm:"))))
    assert main([*small, f"--out={run}"]) == 0 and "is finished" in capsys.readouterr().err
    assert main([*small, f"--out={run}", "--task=labels", "--objective.input=grey"]) == 2
    assert "task was 'colorization' and is now 'labels'" in capsys.readouterr().err


def test_packaged_configs_name_no_weights():
    for path in (ROOT / "configs" / "pretrain").glob("*.yaml"):
        assert "init_from" not in yaml.safe_load(path.read_text()), path.name
