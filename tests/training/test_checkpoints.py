import pytest
import torch

from crosschannel import UserError
from crosschannel.training import checkpoints


def save(folder, step, keep=3):
    return checkpoints.save(folder, step, {"net": {"w": torch.full((1000,), float(step))}}, keep)


def test_the_newest_is_loaded_and_the_oldest_dropped(tmp_path):
    for step in (10, 20, 100, 5000):
        save(tmp_path, step)
    assert [int(p.name[5:14]) for p in checkpoints.list_checkpoints(tmp_path)] == [5000, 100, 20]
    state = checkpoints.load(checkpoints.load_latest(tmp_path))
    assert state["step"] == 5000 and (state["net"]["w"] == 5000).all()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage):
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    damage(newest)
    warnings = []
    assert checkpoints.load(checkpoints.load_latest(tmp_path, warnings.append))["step"] == 10
    assert len(warnings) == 1 and str(newest) in warnings[0]


def test_if_all_are_damaged_nothing_is_begun_anew(tmp_path):
    for step in (1, 2):
        truncate(save(tmp_path, step))
    with pytest.raises(UserError, match=r"any of the checkpoints in .* \(2 tried\)"):
        checkpoints.load(checkpoints.load_latest(tmp_path))


def test_a_new_checkpoint_outlives_a_damaged_later_one(tmp_path):
    save(tmp_path, 250)
    truncate(save(tmp_path, 500))
    save(tmp_path, 300, keep=1)
    assert checkpoints.load(checkpoints.load_latest(tmp_path))["step"] == 300
    assert len(checkpoints.list_checkpoints(tmp_path)) == 1


def test_a_half_written_file_is_no_checkpoint(tmp_path):
    assert checkpoints.load_latest(tmp_path) is None
    (tmp_path / "writing.part").write_bytes(b"half")
    assert checkpoints.load_latest(tmp_path) is None


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 7)
    checkpoints.save(tmp_path, 7, {"evaluated": True}, keep=3)
    assert len(checkpoints.list_checkpoints(tmp_path)) == 1
    assert checkpoints.load(checkpoints.load_latest(tmp_path))["evaluated"]


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SCHEMA", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer crosschannel"):
        checkpoints.load(checkpoints.load_latest(tmp_path))


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    import hashlib

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    part = tmp_path / "part"
    torch.save({"schema": 1, "net": Evil()}, part)
    digest = hashlib.sha256(part.read_bytes()).hexdigest()[:16]
    part.rename(tmp_path / f"step-000000001-{digest}.pt")
    warnings = []
    with pytest.raises(UserError, match=r"any of the checkpoints in .* \(1 tried\)"):
        checkpoints.load_latest(tmp_path, warnings.append)
    assert "Weights only" in warnings[0]
    assert not (tmp_path / "owned").exists()
