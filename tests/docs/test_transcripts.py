"""The sessions that the how-tos show: every command is typed in their order, on small stand-ins, and says what the page
says it does. Numbers may differ, and `…` stands for anything."""

import hashlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from crosschannel.cli import main as crosschannel
from crosschannel.hub import zoo
from slurm.cli import main as slurm
from transfer.cli import main as transfer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
PROGRAMS = {"crosschannel": crosschannel, "transfer": transfer, "crosschannel-slurm": slurm}
SESSIONS = [
    (page.stem, number, text)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for number, text in enumerate(re.findall(r"```console\n(.*?)```", page.read_text(), re.S))
]


def test_the_four_ways_in_are_shown():
    assert {page for page, _, _ in SESSIONS} >= {"backbones", "colorize", "pretrain", "slurm", "weights"}


@pytest.fixture
def place(request, tmp_path, monkeypatch, photos, photo_folder):
    """A folder with the files that the pages assume; large weights only if a session names them."""
    from torchvision.models import alexnet

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("mynets", None)
    Path("photos").symlink_to(photo_folder)
    Path("scans").mkdir()
    for name, photo in zip(("photo.jpg", "scans/a.png", "scans/b.png"), photos, strict=False):
        Image.fromarray(photo[:96, :120]).convert("L").save(name)
    for page, language, name in (("backbones", "python", "mynets.py"), ("slurm", "yaml", "mine.yaml")):
        for block in re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S):
            if block.startswith(f"# {name}"):
                Path(name).write_text(block)
    if Path("mynets.py").is_file():
        import mynets

        torch.save({"model": mynets.net().state_dict(), "epoch": 7}, "checkpoint.pth")
    session = request.node.callspec.params["text"]
    if "alexnet.pth" in session:
        torch.save(alexnet(weights=None).state_dict(), "alexnet.pth")
    if any(words in session for words in ("eccv16", "zoo", "colorize", "evaluate")):  # the default of --model
        published(tmp_path / "cache" / "weights", monkeypatch)
    yield tmp_path
    sys.modules.pop("mynets", None)


def published(folder: Path, monkeypatch) -> None:
    """zoo:eccv16 as if it had been fetched: a net of its shape with random weights."""
    from published_nets import ECCV16, randomise

    folder.mkdir(parents=True)
    entry = zoo.ZOO["eccv16"]
    path = zoo.cached_path(entry)
    torch.save(randomise(ECCV16()).state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(zoo.ZOO, "eccv16", zoo.Entry(entry.url, digest, entry.description, entry.licence, entry.format))


def plain(line: str) -> str:
    """A line without what differs from machine to machine: numbers, and how far columns are apart."""
    line = re.sub(r"[─━┃│┏┓┗┛┡┩└┘┳┻╇┴┬┼]+", " ", line)
    return " ".join(re.sub(r"[-+]?\d[\d.,:]*", "#", line).split())


def fits(expected: str, line: str) -> bool:
    parts = [re.escape(part) for part in plain(expected).split("…")]
    return re.fullmatch(".*".join(parts), plain(line)) is not None


def marks(page: str) -> list:
    return [pytest.mark.system] if page == "slurm" else []  # it runs jobs


@pytest.mark.parametrize(
    ("page", "number", "text"),
    [pytest.param(*session, id=f"{session[0]}-{session[1]}", marks=marks(session[0])) for session in SESSIONS],
)
def test_a_session_goes_as_it_is_shown(page, number, text, place, capsys):
    for step in re.split(r"^\$ ", text, flags=re.M)[1:]:
        typed, *shown = step.rstrip("\n").splitlines()
        program, *words = shlex.split(typed, comments=True)
        capsys.readouterr()
        code = PROGRAMS[program](words)
        said = capsys.readouterr()
        lines = [*said.out.splitlines(), *said.err.splitlines()]
        assert code == 0, said.err
        for expected in filter(None, map(str.strip, shown)):
            found = any(fits(expected, line) for line in lines)
            assert expected == "…" or found, "\n".join([f"{expected!r} is not in", *lines])
