import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from same_end import assert_same_end

from crosschannel import load_backbone, load_colorizer
from crosschannel.cli import PROGRAM, main
from crosschannel.config.load import check_config, config_folder
from crosschannel.runs.folder import read_metrics
from crosschannel.training import checkpoints

ALEXNET = ["--model.name=alexnet", "--model.fc=0"]


def test_a_run_folder_holds_what_the_docs_say(finished_run):
    names = {p.name for p in finished_run.iterdir()} - {".lock"}
    assert names == {
        "config.yaml", "images.json", "metrics.jsonl", "checkpoints", "samples", "backbone.safetensors",
        "colorizer.safetensors", "curve.png", "result.json",
    }  # fmt: skip
    result = json.loads((finished_run / "result.json").read_text())
    assert set(result) == {"protocol", "backbone", "data", "config", "seed", "n", "version", "metrics", "science"}
    assert result["n"] == 10 and result["metrics"]["kl_share"] > 0
    rows = read_metrics(finished_run)
    assert [r["step"] for r in rows if "val/kl" in r] == [5, 10, 12]
    assert [r["step"] for r in rows if "train/loss" in r] == [4, 8, 12]
    assert len(checkpoints.list_checkpoints(finished_run / "checkpoints")) == 2
    picture = np.asarray(Image.open(finished_run / "samples" / "step-000000012.png"))
    assert picture.shape == (3 * 48, 8 * 48, 3)


def test_what_it_learned_says_whose_it_is(finished_run):
    assert load_backbone(str(finished_run)).provenance.details["licence"] == "bsd-2-clause"


def test_what_it_learned_loads(alexnet_run):
    backbone = load_backbone(f"{alexnet_run},geometry=padded", layers=["conv5"])
    assert backbone(torch.rand(1, 3, 64, 64))["conv5"].shape == (1, 256, 5, 5)
    assert backbone.provenance.details["steps"] == 2 and backbone.input.size == 48
    colorizer = load_colorizer(str(alexnet_run))
    assert colorizer(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 3)


def test_a_finished_run_says_so_and_exits_0(small, finished_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.name != ".lock"}
    assert main([*small, f"--out={finished_run}"]) == 0
    assert "finished" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.name != ".lock"}


def test_its_config_alone_runs_it_again(finished_run, tmp_path):
    assert main(["pretrain", f"--config={finished_run / 'config.yaml'}", f"--out={tmp_path / 'again'}"]) == 0
    assert_same_end(tmp_path / "again", finished_run)


def test_a_changed_science_key_is_refused_and_a_runtime_key_is_not(small, finished_run, tmp_path, capsys):
    assert main([*small, f"--out={finished_run}", "--optim.lr=0.5"]) == 2
    assert "optim.lr was 0.001 and is now 0.5" in capsys.readouterr().err
    assert main([*small, f"--out={finished_run}", "--runtime.workers=3"]) == 0


def test_other_images_are_refused_on_resume(small, finished_run, photo_folder, tmp_path, capsys):
    import shutil

    out, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished_run, out)
    (out / "result.json").unlink()
    shutil.copytree(photo_folder, data)
    assert main(["pretrain", f"--data={data}", *small[2:], f"--out={out}"]) == 0  # the same images elsewhere
    (out / "result.json").unlink()
    next((data / "val" / "class0").iterdir()).unlink()
    assert main(["pretrain", f"--data={data}", *small[2:], f"--out={out}"]) == 2
    assert "other images" in capsys.readouterr().err
    assert main(["pretrain", f"--data={data}", *small[2:], f"--out={finished_run}"]) == 2  # a finished run neither
    assert "other images" in capsys.readouterr().err


def test_a_run_of_an_older_version_resumes(small, finished_run, tmp_path):
    """A config without keys that came later, and no result yet."""
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    (out / "result.json").unlink()
    tree = yaml.safe_load((out / "config.yaml").read_text())
    del tree["optim"]["clip"], tree["train"]["deterministic"], tree["val_images"]
    (out / "config.yaml").write_text("# crosschannel run: pretrain (crosschannel 0.0.9)\n" + yaml.safe_dump(tree))
    assert main([*small, f"--out={out}"]) == 0
    assert_same_end(out, finished_run)


def test_auto_is_written_down_at_first_start(finished_run):
    stored = yaml.safe_load((finished_run / "config.yaml").read_text())["train"]
    assert stored["precision"] in ("float32", "bfloat16") and stored["channels_last"] is True
    assert stored["compile"] is False


@pytest.mark.parametrize(
    "options",
    [
        ["--objective.kind=l2"],
        ["--objective.lam=1", "--objective.neighbours=10", "--objective.grey_threshold=5"],
        ["--model.name=colornet", "--objective.normalise=images", "--crop.size=32", "--crop.resize=40"],
        ["--model.name=vgg16", "--model.affine=true", "--crop.size=32", "--crop.resize=40"],
        ["--model.name=timm:resnet18"],
        [*ALEXNET, "--model.init=kmeans", "--optim.name=adam", "--schedule.kind=cosine"],
        [
            "--model.name=alexnet",
            "--model.fc=0",
            "--model.init=unit-variance",
            "--optim.name=sgd",
            "--optim.clip=1",
            "--train.accumulate=2",
        ],
        ["--data=builtin:sample"],
    ],
    ids=["l2", "plain classes", "colornet", "vgg16", "timm", "k-means", "unit variance and sgd", "sample"],
)
def test_every_kind_of_net_objective_and_start_trains(small, tmp_path, narrow_net, options):
    out = tmp_path / "run"
    assert main([*small, "--train.steps=3", *options, f"--out={out}"]) == 0
    figures = json.loads((out / "result.json").read_text())["metrics"]
    assert np.isfinite(list(figures.values())).all()
    load_backbone(str(out))
    assert load_colorizer(str(out))(Image.new("RGB", (33, 21), "grey")).size == (33, 21)


def test_l2_fine_tuning_starts_from_the_full_net(small, alexnet_run, tmp_path):
    out = tmp_path / "l2-ft"
    options = [*ALEXNET, "--optim.lr=1e-12", "--train.steps=1", "--train.ema=0"]
    options += ["--objective.kind=l2", f"--init-from={alexnet_run}"]
    assert main([*small, *options, f"--out={out}"]) == 0
    ours, theirs = (load_backbone(str(run)).net.conv3.conv.weight for run in (out, alexnet_run))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_start_with_an_affine_batchnorm_is_not_cut_down(small, narrow_net, tmp_path, capsys):
    """As the released ColorNet has it: its scale and shift are taken too, or it is refused."""
    sizes = ["--model.name=colornet", "--crop.size=32", "--crop.resize=40", "--train.steps=1", "--train.ema=0"]
    affine, out = "--model.affine=true", tmp_path / "tuned"
    assert main([*small, *sizes, affine, f"--out={tmp_path / 'start'}"]) == 0
    tune = [*small, *sizes, "--optim.lr=1e-12", f"--init-from={tmp_path / 'start'}", f"--out={out}"]
    assert main(tune) == 2
    assert "--model.affine true" in capsys.readouterr().err
    assert main([*tune, affine]) == 0
    ours, theirs = (load_backbone(str(run)).net.conv3_3.norm.weight for run in (out, tmp_path / "start"))
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.equal(theirs, torch.ones_like(theirs))


@pytest.mark.parametrize("kind", ["class", "l2"])
def test_grey_photographs_alone_are_refused_in_a_sentence(small, tmp_path, photos, capsys, kind):
    for i in range(16):
        path = tmp_path / "grey" / ("val" if i < 4 else "train") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[i % 4]).convert("L").save(path)
    command = ["pretrain", f"--data={tmp_path / 'grey'}", *small[2:], f"--objective.kind={kind}"]
    assert main([*command, f"--out={tmp_path / 'run'}"]) == 2
    assert "all of one colour" in capsys.readouterr().err


def test_it_learns(photo_folder, tmp_path):
    """A few dozen steps beat the best constant colour on held-out parts of the photographs."""
    out = tmp_path / "run"
    words = ["pretrain", "--config=quickstart", f"--data={photo_folder}", "--model.name=timm:test_resnet"]
    words += ["--crop.size=48", "--crop.resize=56", "--optim.lr=3e-3", "--train.batch=16", "--train.steps=80"]
    assert main([*words, "--runtime.eval_every=20", "--runtime.workers=0", f"--out={out}"]) == 0
    shares = [row["val/kl_share"] for row in read_metrics(out) if "val/kl_share" in row]
    assert shares[-1] < 0.97 and shares[-1] < shares[0]


@pytest.mark.parametrize("path", sorted((config_folder() / "pretrain").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_packaged_config_is_valid(path):
    config = PROGRAM.parse("pretrain", [f"--config={path}", "--data=photos"])
    check_config(config)
    assert config.out == f"runs/{path.stem}-photos-0"


def test_the_papers_configs_follow_it_to_the_letter():
    colornet = PROGRAM.parse("pretrain", ["--config", "colornet-paper", "--data=x"])
    assert (colornet.train.batch, colornet.train.steps, colornet.crop.size, colornet.crop.resize) == (
        40,
        450_000,
        176,
        256,
    )
    assert (colornet.optim.name, colornet.optim.betas, colornet.optim.weight_decay) == ("adam", (0.9, 0.99), 1e-3)
    assert (colornet.optim.lr, colornet.schedule.milestones) == (3e-5, [200_000, 375_000])
    assert colornet.schedule.rates == [1e-5, 3e-6] and colornet.objective.normalise == "images"
    alexnet = PROGRAM.parse("pretrain", ["--config", "alexnet-paper", "--data=x"])
    assert (alexnet.train.batch, alexnet.train.steps, alexnet.crop.size) == (80, 450_000, 180)
    assert (alexnet.optim.betas, alexnet.optim.bias_lr, alexnet.optim.bias_decay) == ((0.9, 0.999), 2.0, False)
    assert (alexnet.objective.neighbours, alexnet.objective.uniform) == (10, "seen")
    assert alexnet.schedule.rates == [1e-5, 3e-6, 1e-6] and alexnet.objective.normalise == "pixels"
