import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import transfer
from transfer.cli import main
from transfer.neighbours import neighbours
from transfer.protocol import Split
from transfer.protocols.knn.protocol import vote

BACKBONE = "random:alexnet,fc=0,size=64,resize=72,seed=1"


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 24, generator=generator) for n in (500, 90))
    return bank, queries, torch.randint(0, 7, (500,), generator=generator)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_are_scikit_learns(rows, k):
    bank, queries, labels = rows
    temperature = 0.07
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.numpy(), labels.numpy())
    nearest, cosines = neighbours(queries, bank, k, chunk=64)
    ranked = vote(labels[nearest], cosines, temperature, 7)
    assert (ranked[:, 0].numpy() == reference.predict(queries.numpy())).all()


def test_chunks_change_nothing_and_ties_go_to_the_lower_index(rows):
    bank, queries, _ = rows
    whole, parts = (neighbours(queries, bank, 9, chunk=chunk) for chunk in (10_000, 7))
    assert torch.equal(whole[0], parts[0]) and torch.allclose(whole[1], parts[1], atol=1e-6)
    twice = torch.cat((bank[:3], bank[:3], bank[:3]))
    indices, cosines = neighbours(bank[1:2] * 5, twice, 3, chunk=2)
    assert indices.tolist() == [[1, 4, 7]] and torch.allclose(cosines, torch.ones(1, 3), atol=1e-6)


def test_a_small_temperature_does_not_overflow():
    ranked = vote(torch.tensor([[3, 1, 1]]), torch.tensor([[0.9, 0.8, 0.8]]), 1e-4, 5)
    assert ranked[0, 0] == 3


def test_the_command_leaves_a_run_that_says_what_it_found(photo_folder, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["knn", f"--backbone={BACKBONE}", f"--data={photo_folder}", "--layer=conv2,conv5", "--workers=0"]
    assert main([*command, "--k=[1,5]", "--temperature=[0.07,1]", f"--out={out}"]) == 0
    assert "conv5" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    expected = {f"{layer}/knn{k}{t}" for layer in ("conv2", "conv5") for k in (1, 5) for t in ("", "/t1")}
    assert set(result["metrics"]) == expected and result["n"] == 10 and result["protocol"] == "knn"
    rows = np.load(out / "predictions.npz")
    assert all(rows[name].mean() == pytest.approx(value) for name, value in result["metrics"].items())
    assert main([*command, "--k=[1,5]", "--temperature=[0.07,1]", f"--out={out}"]) == 0
    assert "finished" in capsys.readouterr().err


def test_the_function_finds_a_training_image_among_its_own(photo_folder):
    """Validation images that stand in the training set are their own nearest neighbours."""
    from crosschannel.data import open_images

    train = open_images(str(photo_folder))[0]
    split = Split(train, train, train.classes, "images from memory", allow_overlap=True)
    result = transfer.knn(BACKBONE, split, ["conv5"], transfer.KNNConfig("", "", k=[1], workers=0))
    assert result.metrics == {"conv5/knn1": 1.0} and result.data == "images from memory"
