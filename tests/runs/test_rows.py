"""Valid arrays of a run's ``predictions.npz``: any other is refused in one sentence that names it."""

import numpy as np
import pytest

from crosschannel import UserError
from crosschannel.runs.result import Ragged, load_rows, missing_file, save_rows

N = 4
NAMES = np.array([f"{number}.jpg" for number in range(N)])
GOOD = {
    "names": NAMES, "classes": np.array(["a", "b", "c"]), "conv1/top1": np.ones(N, bool), "scores": np.zeros((N, 3)),
    "confusion": np.zeros((N, 3, 3), np.int32), "boxes": Ragged(np.zeros((5, 4)), np.array([2, 0, 3, 0])),
}  # fmt: skip
BAD = {
    "names": [
        NAMES.reshape(2, 2), NAMES.reshape(N, 1), NAMES[None], np.array("a.jpg"), NAMES.astype("S"), np.arange(N),
        np.zeros((N, 2)), NAMES[:0], NAMES[:2], np.array([], "U1"), np.zeros(N, "M8[s]"),
    ],
    "classes": [np.array([["a", "b"]]), np.array("a"), np.arange(3), np.zeros((3, 2)), np.array([b"a"])],
    "scores": [np.array(1.0), NAMES, np.zeros(N, complex), np.zeros((N, 2), "M8[s]"), np.zeros((N + 1, 3)),
               np.zeros((0, N)), np.zeros(N, [("a", "f4")])],
    "boxes": [Ragged(np.zeros((5, 4)), counts) for counts in (
        np.array([[2, 3], [0, 0]]), np.array(5), np.array([5.0, 0, 0, 0]), np.array([6, -1, 0, 0]), np.array([5]),
        np.array([2, 0, 3]), np.array(["5"]))],
}  # fmt: skip


def test_written_rows_are_read_back(tmp_path):
    save_rows(tmp_path, GOOD)
    rows = load_rows(tmp_path, N)
    assert rows.keys() == GOOD.keys() and rows["names"].tolist() == NAMES.tolist()
    assert rows["boxes"].counts.tolist() == [2, 0, 3, 0] and rows["boxes"].values.shape == (5, 4)


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in BAD for number in range(len(BAD[name]))])
def test_an_array_of_another_shape_or_type_is_refused_in_one_sentence(tmp_path, name, number):
    save_rows(tmp_path, GOOD | {name: BAD[name][number]})
    with pytest.raises(UserError, match=r"predictions\.npz is damaged") as caught:
        load_rows(tmp_path, N)
    assert "\n" not in str(caught.value)


def test_rows_without_names_are_refused(tmp_path):
    save_rows(tmp_path, {name: column for name, column in GOOD.items() if name != "names"})
    with pytest.raises(UserError, match="a row for each of the 4 images"):
        load_rows(tmp_path, N)


def test_a_missing_result_is_explained_with_the_remedy(tmp_path):
    run = tmp_path / "a run"
    assert missing_file(run, "result.json") == f"{run} is not a run folder: it does not exist"
    run.mkdir()
    assert missing_file(run, "result.json") == f"{run} has no result.json: it is not a run folder"
    for command, program in (("pretrain", "crosschannel"), ("evaluate", "crosschannel"), ("knn", "transfer")):
        (run / "config.yaml").write_text(f"# crosschannel run: {command} (crosschannel 0.1.0)\nseed: 0\n")
        resume = f"{program} {command} --config '{run}/config.yaml' --out '{run}'"
        message = f"{run} has no result.json: the run has not finished; `{resume}` resumes it"
        assert missing_file(run, "result.json") == message
    assert missing_file(run / "config.yaml", "x") == f"{run}/config.yaml is not a run folder: it is a file"
    (run / "result.json").touch()
    assert missing_file(run, "backbone.safetensors").endswith("it is a finished run of `knn`")
