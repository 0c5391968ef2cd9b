import numpy as np
import torch
from PIL import Image
from range_server import make_server, start_server

from crosschannel.cli import main
from crosschannel.color import PriorEstimator, load_prior
from crosschannel.data import open_images, remote


def test_the_prior_command_equals_the_estimator(tmp_path, photos):
    (tmp_path / "in").mkdir()
    estimator = PriorEstimator()
    for i in range(3):
        pixels = photos[i][:64, :64]
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
        estimator.add(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
    (tmp_path / "in" / "broken.png").write_bytes(b"no")
    out = tmp_path / "prior.npz"
    assert main(["prior", "--data", str(tmp_path / "in"), "--out", str(out)]) == 0
    prior = load_prior(str(out))
    assert torch.allclose(prior.smoothed, estimator.prior().smoothed)
    assert prior.provenance["images"] == 3 and prior.provenance["broken"] == 1 and prior.provenance["data"] == "in"


def test_a_prior_of_ones_own_trains(tmp_path, photo_folder, small):
    out = tmp_path / "prior.npz"
    assert main(["prior", "--data", str(photo_folder), "--out", str(out), "--limit", "12", "--size", "32"]) == 0
    assert load_prior(str(out)).provenance["pixels"] == 12 * 32 * 32
    options = [f"--objective.prior={out}", "--train.steps=2", f"--out={tmp_path / 'run'}"]
    assert main([*small, *options]) == 0


def test_shards_train_like_their_folder(tmp_path, photo_folder, small):
    out = tmp_path / "shards"
    assert main(["shard", str(photo_folder), str(out), "--size", "60"]) == 0
    train, val = open_images(str(out))
    assert (len(train), len(val)) == (40, 10) and train.classes == tuple(f"class{i}" for i in range(10))
    assert sorted(np.bincount(train.labels)) == [4] * 10
    assert main(["pretrain", *small[2:], f"--data={out}", "--train.steps=3", f"--out={tmp_path / 'a'}"]) == 0
    pattern = str(out / "train-{000000..000000}.tar")
    assert main(["pretrain", *small[2:], f"--data={pattern}", "--train.steps=3", f"--out={tmp_path / 'b'}"]) == 0


def test_a_killed_shard_leaves_nothing_that_passes_for_shards(tmp_path, photo_folder, monkeypatch, capsys):
    from crosschannel.commands import shard

    def killed(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shard, "write_shards", killed)
        assert main(["shard", str(photo_folder), str(out)]) == 130
    assert not out.exists() and "Traceback" not in capsys.readouterr().err
    assert main(["shard", str(photo_folder), str(out)]) == 0
    assert [len(images) for images in open_images(str(out))] == [40, 10] and list(tmp_path.iterdir()) == [out]


def test_nothing_but_broken_images_makes_no_shards(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(b"no")
    assert main(["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--val-share", "0.3"]) == 2
    assert "none of the 6 train images" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_without_val_is_split_once_and_the_same_way(tmp_path, photo_folder):
    assert main(["shard", str(photo_folder / "train"), str(tmp_path / "s"), "--val-share", "0.25"]) == 0
    assert [len(images) for images in open_images(str(tmp_path / "s"))] == [30, 10]


def test_a_server_that_stays_away_ends_the_run_saved_and_it_goes_on_later(
    photo_folder, small, tmp_path, monkeypatch, capsys
):
    shards = tmp_path / "shards"
    assert main(["shard", str(photo_folder), str(shards)]) == 0
    port = make_server(shards).server_address[1]  # free a moment ago
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    server = start_server(shards, port)
    run = ["pretrain", *small[2:], f"--data=http://127.0.0.1:{port}", "--runtime.checkpoint_every=100"]
    reads = []

    def count_down(ranges):
        reads.extend(ranges)
        if len(reads) >= 70 and len(reads) - len(ranges) < 70:
            server.kill()
            server.wait()
        return original(ranges)

    original = remote.read_ranges
    monkeypatch.setattr("crosschannel.data.shards.read_ranges", count_down)
    assert main([*run, f"--out={tmp_path / 'run'}"]) == 2
    assert "was unavailable" in capsys.readouterr().err.splitlines()[-1]
    assert list((tmp_path / "run" / "checkpoints").glob("step-00000000[1-9]*"))
    server = start_server(shards, port)
    assert main([*run, f"--out={tmp_path / 'run'}"]) == 0
    assert "resuming" in capsys.readouterr().err
    server.kill()
