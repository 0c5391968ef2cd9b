"""`crosschannel study build`: what is shown, and that files tell nothing."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from crosschannel.cli import main
from crosschannel.errors import UserError
from crosschannel.study.manifest import CHECK, MANIFEST, PICTURES, TRUTH, check_pictures, read_study


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def test_all_pictures_of_a_photograph_have_its_lightness_and_other_colours(built):
    folder, manifest = read_study(built)
    check_pictures(folder, manifest)
    assert (manifest.pairs, manifest.practice, manifest.checks) == (6, 2, 2)
    assert len(manifest.photographs) == 9 and sum(p.practice for p in manifest.photographs) == 2
    assert manifest.methods == {"grey": "grey", "donors": "donors=random"}
    for photograph in manifest.photographs:
        assert photograph.files.keys() == {TRUTH, CHECK, "grey", "donors"}
        shown = {key: pixels(folder / PICTURES / file) for key, file in photograph.files.items()}
        assert all(picture.shape == (64, 64, 3) for picture in shown.values())
        lightness = {key: rgb2lab(picture / 255)[..., 0] for key, picture in shown.items()}
        assert all(np.abs(found - lightness[TRUTH]).mean() < 0.5 for found in lightness.values())
        assert np.ptp(shown["grey"], axis=2).max() <= 1 and np.ptp(shown[TRUTH], axis=2).max() > 20
        assert np.array_equal(shown[CHECK], shown["donors"]) and np.abs(shown[CHECK] - shown[TRUTH]).mean() > 3


def test_names_and_lengths_of_files_tell_nothing(built):
    files = list((built / PICTURES).iterdir())
    assert len(files) == 9 * 4 and len({file.stat().st_size for file in files}) == 1
    assert all(re.fullmatch(r"[0-9a-f]{32}\.png", file.name) for file in files)


def test_grey_photographs_and_broken_ones_are_left_out_and_named(photo_folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(photo_folder / "val", data)
    Image.open(next(data.rglob("*.jpg"))).convert("L").save(data / "a-grey-scan.jpg")
    (data / "broken.jpg").write_bytes(b"no picture")
    words = ["study", "build", f"--data={data}", "--methods", "grey", "--images=10", "--pairs=3", "--practice=0"]
    assert main([*words, "--size=64", f"--out={tmp_path / 's'}"]) == 0
    said = capsys.readouterr().err
    left_out = read_study(tmp_path / "s")[1].left_out
    assert left_out["a-grey-scan.jpg"] == "it is grey" and "broken.jpg" in left_out
    assert "excluded a-grey-scan.jpg: it is grey" in said and "excluded broken.jpg" in said
    assert main([*words, "--images=11", "--size=64", f"--out={tmp_path / 't'}"]) == 2
    assert "reduce --images" in capsys.readouterr().err
    assert not (tmp_path / "t").exists() and not (tmp_path / "t.part").exists()


def test_colours_outside_srgb_are_mapped_or_clipped_as_colorize_does(photo_folder, tmp_path):
    """Other photographs' colours at a lightness that cannot have them: mapping keeps lightness, clipping does not."""
    images = {}
    for gamut, more in (("map", []), ("clip", ["--gamut=clip"])):
        out = tmp_path / gamut
        args = ["study", "build", f"--data={photo_folder}", "--methods", "grey", f"--out={out}", "--size=64"]
        assert main([*args, "--images=3", "--pairs=3", "--practice=0", "--checks=0.34", *more]) == 0
        folder, manifest = read_study(out)
        assert manifest.gamut == gamut
        images[gamut] = {
            key: [pixels(folder / PICTURES / photograph.files[key]) for photograph in manifest.photographs]
            for key in (TRUTH, CHECK)
        }
    assert np.array_equal(images["map"][TRUTH], images["clip"][TRUTH])
    lightness = rgb2lab(np.array(images["map"][TRUTH]) / 255)[..., 0]
    off = {gamut: np.abs(rgb2lab(np.array(images[gamut][CHECK]) / 255)[..., 0] - lightness).max() for gamut in images}
    assert off["map"] < 1 < off["clip"]


def test_a_study_has_the_order_and_pauses_of_the_paper_by_default(built, photo_folder, tmp_path):
    _, manifest = read_study(built)
    assert (manifest.first, manifest.before_ms, manifest.between_ms) == ("left", 900, 600)
    args = ["study", "build", f"--data={photo_folder}", "--methods", "grey", "--images=3", "--pairs=3", "--practice=0"]
    more = ["--checks=0", "--size=64", "--first=random", "--before_ms=0", "--between_ms=250"]
    assert main([*args, *more, f"--out={tmp_path / 's'}"]) == 0
    _, manifest = read_study(tmp_path / "s")
    assert (manifest.first, manifest.before_ms, manifest.between_ms) == ("random", 0, 250)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--before_ms=-1"], "before_ms"),
        (["--between_ms=60001"], "between_ms"),
        (["--first=right"], "first"),
        (["--gamut=none"], "gamut"),
        (["--methods", "truth"], "methods must not be truth"),
        (["--methods", "check=grey"], "methods must not be truth"),
        (["--methods", "grey", "--images=3", "--pairs=4"], "is fewer than --pairs"),
        (["--methods", "a=random:alexnet"], "the method a"),
        ([], "no methods"),
    ],
)
def test_bad_input_is_one_sentence(more, words, photo_folder, tmp_path, capsys):
    out = tmp_path / "s"
    assert main(["study", "build", f"--data={photo_folder}", f"--out={out}", "--images=4", "--pairs=3", *more]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not out.exists()


def test_a_folder_that_is_not_empty_is_left_alone(photo_folder, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["study", "build", f"--data={photo_folder}", "--methods", "grey", f"--out={tmp_path}"]) == 2
    assert "not an empty folder" in capsys.readouterr().err and (tmp_path / "mine.txt").read_text() == "mine"


def test_damage_is_found(study):
    folder, manifest = study
    file = folder / PICTURES / manifest.photographs[0].files[TRUTH]
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="missing or damaged"):
        check_pictures(folder, manifest)
    tree = json.loads((folder / MANIFEST).read_text())
    for change in (
        {"photographs": tree["photographs"][:3]},
        {"photographs": "many"},
        {"methods": {**tree["methods"], "third": "third"}},
        {"sha256": {}},
        {"colours": 3},
        {"before_ms": -1},
        {"first": "right"},
        {"gamut": 3},
    ):
        (folder / MANIFEST).write_text(json.dumps({**tree, **change}))
        with pytest.raises(UserError, match="damaged"):
            read_study(folder)
    with pytest.raises(UserError, match="is not a study"):
        read_study(folder / PICTURES)


def test_study_alone_says_what_there_is(capsys):
    assert main(["study"]) == 2
    assert "available: study build, study serve, study report" in capsys.readouterr().err
