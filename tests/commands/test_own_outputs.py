"""Outputs of commands below a folder of data are not data for any later command."""

import shutil

import pytest

from crosschannel.cli import main
from crosschannel.data import open_images
from crosschannel.data.folder import list_files


@pytest.fixture
def data(photo_folder, tmp_path):
    return shutil.copytree(photo_folder, tmp_path / "photos")


def images(data):
    return [list(part.names) for part in open_images(str(data))]


@pytest.mark.parametrize("place", ["", "train", "train/class0"])
def test_outputs_among_the_images_change_no_image_set(finished_run, data, place, capsys):
    before, folder = images(data), data / place
    photo, model = data / "train" / "class0" / "0.jpg", f"--model={finished_run}"
    commands = [
        ["colorize", str(photo), model, f"--out={folder / 'made.png'}"],
        ["colorize", str(photo.parent), model, f"--out={folder / 'coloured'}"],
        ["evaluate", f"--data={data}", "--methods", "grey", "truth", f"--out={folder / 'figures'}", "--limit=4"],
        ["study", "build", f"--data={data}", "--methods", "grey", "donors=random", f"--out={folder / 'study'}",
         "--images=3", "--pairs=2", "--practice=1", "--checks=0", "--size=48"],
        ["export", str(finished_run), f"--out={folder / 'exported' / 'net.safetensors'}"],
    ]  # fmt: skip
    for argv in commands:
        assert main(argv) == 0, (argv, capsys.readouterr().err)
        assert images(data) == before, argv
    pictures = {path.relative_to(data).as_posix() for path in data.rglob("*.png")}
    assert len(pictures) >= 1 + 4 + 3 * 3  # they exist
    assert not pictures & set(list_files(data))
    capsys.readouterr()
    assert main(["colorize", str(photo.parent), model, f"--out={data.parent / 'again'}"]) == 0  # nor coloured
    assert len(list((data.parent / "again").glob("*.png"))) == 4


def test_a_stopped_run_resumes_after_pictures_were_coloured_in_its_data(small, finished_run, data, tmp_path, capsys):
    run = [f"--data={data}" if word.startswith("--data") else word for word in small] + [f"--out={tmp_path / 'run'}"]
    assert main(run) == 0
    (tmp_path / "run" / "result.json").unlink()
    assert main(["colorize", str(data / "train" / "class0"), f"--model={finished_run}"]) == 0
    assert (data / "train" / "class0-coloured").is_dir() and main(run) == 0
    shutil.copy(data / "train/class0/0.jpg", data / "train/class0/another.jpg")
    (tmp_path / "run" / "result.json").unlink()
    assert main(run) == 2
    err = capsys.readouterr().err
    assert "started on other images" in err and "finish the run with the version that started it" in err
