"""What comes in from outside: other people's code, files that are not what they are called, names made to harm."""

import io
import os
import struct
import sys
import tarfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crosschannel import UserError, load_backbone
from crosschannel.cli import main
from crosschannel.console import escape_control
from crosschannel.data import CentreCrop, Stream, load_batches, open_images
from crosschannel.data.decode import BrokenImage, EncodedImage, decode
from crosschannel.data.folder import list_files
from crosschannel.data.shards import expand, scan
from crosschannel.hub.state_dicts import read_state
from crosschannel.report import Heading, Listing, Page, Table, Text
from slurm.cli import main as slurm
from transfer.cli import main as transfer

FACTORIES = """
import sys
from torch import nn

def raises(): return {}["missing"]
def needs(width, depth): return nn.Conv2d(3, 4, 3)
def leaves(): sys.exit(0)
def leaves_later(): return Late(SystemExit(0))
def silent(): raise Silent()
def base(): raise BaseException("\x1b[2J")
def one_row(): return Short()
def fails_later(): return Late(KeyError("no such layer"))
def text(): return "a net"
def nothing(): return None
def long(): raise ValueError("x" * 10_000 + "\\n" * 50)

class Silent(Exception):
    def __str__(self): raise RuntimeError("no words")

class Short(nn.Module):
    layers = ("conv",)
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward_features(self, x, layers): return {"conv": self.conv(x)[:1, :, 0, 0]}

class Late(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 4, 3), error
    def forward(self, x):
        raise self.error
"""
SOURCES = [
    "odd:raises", "odd:needs", "odd:leaves", "odd:leaves_later", "odd:fails_later", "odd:text", "odd:nothing",
    "odd:long",
    "odd:gone", "broken:make", "leaving:make", "gone:make", "odd.deeper:make", "sys:exit", "os:getcwd", "builtins:exit",
    "random:odd:leaves", "odd:silent", "odd:base", "odd:one_row",
    "random:odd:needs", "odd:sys.exit", "__main__:x",
]  # fmt: skip


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Modules of a user's in the working folder."""
    (tmp_path / "odd.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("odd", "broken", "leaving"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("source", SOURCES)
def test_other_peoples_code_is_one_sentence(code, photo_folder, capsys, source):
    before = sorted(path.name for path in code.iterdir())
    assert transfer(["knn", f"--backbone={source}", f"--data={photo_folder}", "--workers=0"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("transfer: ") and len(error[-1]) < 600 and "Traceback" not in "".join(error)
    assert sorted(path.name for path in code.iterdir()) == before
    assert transfer(["knn", f"--backbone={source}", f"--data={photo_folder}", "--workers=0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert slurm(
        ["submit", "--dry-run", "--", "transfer", "knn", f"--backbone={source}", f"--data={photo_folder}"]
    ) in (0, 2)


def test_another_size_after_one_that_does_not_fit(code, photo_folder, capsys):
    (code / "mine.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))\n"
    )
    words = ["knn", "--backbone=mine:make", f"--data={photo_folder}", "--workers=0", "--k=[3]", "--out=runs/a"]
    assert transfer(words) == 2 and "cannot take crops of 224 px" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert transfer([*words, "--size=32"]) == 0
    assert transfer(["knn", "--backbone=resnet50", f"--data={photo_folder}"]) == 2
    (code / "runs" / "begun").mkdir()
    (code / "runs" / "begun" / "config.yaml").write_text("# crosschannel run: knn (crosschannel 0.1.0)\n")
    (code / "runs" / "notes.txt").write_text("not a run")
    capsys.readouterr()
    assert transfer(["report", *map(str, sorted(Path("runs").iterdir())), "--out=page"]) == 0
    said = capsys.readouterr().err
    resume = "`transfer knn --config runs/begun/config.yaml --out runs/begun` resumes it"
    assert f"skipped: runs/begun has no result.json: the run has not finished; {resume}" in said
    assert "skipped: runs/notes.txt is not a run folder: it is a file" in said
    assert transfer(["compare", "runs/a", "runs/begun"]) == 2
    assert "two finished run folders, got 1" in capsys.readouterr().err
    assert transfer(["report", "runs/begun", "--out=other"]) == 2 and not Path("other").exists()


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_pictures_of_these_kinds_are_read(kind):
    assert decode(picture(kind)).shape == (4, 4, 3)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO", "TGA", "PCX", "SGI", "ICNS", "IM", "DDS"])
def test_pictures_of_other_kinds_are_not_whatever_they_are_called(kind, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(BrokenImage):
        decode(picture(kind))


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG of a size, and a few bytes that unpack to many."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 5)])
def test_a_bomb_is_refused_at_once(size, tmp_path, finished_run, capsys):
    started = time.monotonic()
    with pytest.raises(BrokenImage):
        EncodedImage(png_of(*size)).pixels()
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    out = tmp_path / "out"
    assert main(["colorize", str(tmp_path / "bomb.png"), f"--model={finished_run}", f"--out={out}"]) == 2
    assert not out.exists() and time.monotonic() - started < 20


def test_a_zip_bomb_for_weights_is_refused_at_once(tmp_path):
    import zipfile

    torch.save({"x": torch.zeros(10)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as bomb:
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member), zipfile.ZIP_DEFLATED)
        bomb.writestr("a/data/9", bytes(1 << 26), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pth").stat().st_size < 100_000
    with pytest.raises(UserError, match="it is a compressed archive"):
        read_state(tmp_path / "b.pth")
    read_state(tmp_path / "a.pth")


def test_pipes_devices_and_folders_among_images_are_broken_images(photo_folder, tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    for number, path in enumerate(sorted((photo_folder / "train").rglob("*.jpg"))[:8]):
        (data / "a" / f"{number}.jpg").write_bytes(path.read_bytes())
    os.mkfifo(data / "a" / "pipe.jpg")
    (data / "a" / "zero.png").symlink_to("/dev/zero")
    (data / "a" / "gone.png").symlink_to("nowhere")
    (data / "a" / "folder.png").mkdir()
    (data / "a" / "self.png").symlink_to("self.png")
    images = open_images(str(data), 0.1)[0]
    assert len(images.content_key()) == 64
    for workers in (0, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = Stream(images, CentreCrop(16, 16))
            batches = list(load_batches(stream, 0, len(images), 4, workers=workers))
        broken = dict(entry for batch in batches for entry in batch.broken)
        reasons = {Path(images.names[index]).stem: why for index, why in broken.items()}
        assert reasons.keys() <= {"pipe", "zero", "gone", "self"} and len(reasons) >= 3
        assert all("not a regular file" in why for name, why in reasons.items() if name in ("pipe", "zero"))


def test_folders_that_name_each_other(tmp_path):
    """By links, in ever more ways: the work is bounded."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").touch()
        for number in range(4):
            (tmp_path / name / f"to{number}").symlink_to(tmp_path / ("b" if name == "a" else "a"))
    started = time.monotonic()
    found = list_files(tmp_path)
    assert {"a/a.jpg", "b/b.jpg", "a/to0/b.jpg"} <= set(found) and len(found) == 10
    before = tmp_path / "deep" / "0"
    before.mkdir(parents=True)
    for depth in range(1, 30):  # two ways down at every level: 2^29 in all
        folder = tmp_path / "deep" / str(depth)
        folder.mkdir()
        for way in ("x", "y"):
            (before / way).symlink_to(folder)
        before = folder
    with pytest.raises(UserError, match="more than 100 paths"):
        list_files(tmp_path / "deep" / "0")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("pattern", ["x-{0..999999999}.tar", "{a,b}" * 40 + ".tar", "{0..9999}{0..9999}.tar"])
def test_patterns_that_name_more_than_there_can_be(pattern):
    started = time.monotonic()
    with pytest.raises(UserError, match="more than 100000 shards"):
        expand(pattern)
    assert time.monotonic() - started < 5


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_images_of_shards_have_one_name_each(tmp_path):
    image = picture("PNG")
    for folder in ("x", "y"):
        write_tar(tmp_path / folder / "a.tar", {"0.png": image, "1.png": image})
    train, val = open_images(f"{tmp_path}/{{x,y}}/a.tar", 0.25)
    names = sorted([*train.names, *val.names])
    assert names == ["x/a.tar/0.png", "x/a.tar/1.png", "y/a.tar/0.png", "y/a.tar/1.png"]
    write_tar(tmp_path / "twice.tar", [("0.png", image), ("0.png", image)])
    train, val = open_images(str(tmp_path / "twice.tar"), 0.5)
    assert sorted([*train.names, *val.names]) == ["twice.tar/0.png", "twice.tar/0.png~2"]
    with pytest.raises(UserError, match="listed twice"):
        open_images(f"{tmp_path}/{{x,x}}/a.tar")


@pytest.mark.parametrize("names", ["a\na\n", "a\n"])
def test_a_list_of_classes_that_does_not_fit_is_said(tmp_path, names):
    image = picture("PNG")
    write_tar(tmp_path / "train.tar", {"0.png": image, "0.cls": b"0", "1.png": image, "1.cls": b"1"})
    (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(UserError, match=r"duplicate|has 1 names, but the largest label is 1"):
        open_images(str(tmp_path), 0.5)


def test_a_class_that_is_no_line_is_refused_before_anything_is_packed(photo_folder, tmp_path, capsys):
    for number, name in enumerate(("a\nb", "c")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for path in sorted((photo_folder / "train" / f"class{number}").iterdir()):
            (tmp_path / "in" / name / path.name).write_bytes(path.read_bytes())
    assert main(["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--val_share=0.3"]) == 2
    assert "cannot be written to classes.txt" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == [
        "in"
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_kinds_of_number_are_said(alexnet_run, tmp_path, dtype):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(alexnet_run / "backbone.safetensors", "pt") as file:
        meta, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name in ("conv1.conv.weight", "conv1.norm.running_var"):
        save_file({**state, name: state[name].to(dtype)}, tmp_path / "b.safetensors", meta)
        if dtype == torch.float8_e4m3fn:
            load_backbone(str(tmp_path / "b.safetensors"))  # coarse, and still numbers
        else:
            with pytest.raises(UserError, match=f"has the wrong dtype for {name}: "):
                load_backbone(str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("label", [b"dog", b"", b"9" * 30, b"-1", b"1" * 10**6, b"\xff", b"1000000"])
def test_a_label_that_is_no_number_of_a_class_is_said(tmp_path, label):
    write_tar(tmp_path / "a.tar", {"0.png": picture("PNG"), "0.cls": label})
    with pytest.raises(UserError, match=r"0\.cls must contain a class index"):
        scan(tmp_path / "a.tar")


def test_nothing_that_is_printed_steers_a_terminal(tmp_path, capsys):
    assert escape_control("a\x1b[31mb\r\x07\x9b\u202e\u2066\ud800\n\té👩‍🔬") == (
        "a\\x1b[31mb\\r\\x07\\x9b\\u202e\\u2066\\ud800\n\té👩‍🔬"
    )
    folder = tmp_path / "\x1b]0;title\x07"
    folder.mkdir()
    for number in range(30):
        (folder / f"\x1b[2J{number}.jpg").write_bytes(b"nothing")
    assert main(["pretrain", f"--data={folder}", f"--out={tmp_path / 'run'}", "--train.batch=4", "--crop.size=16"]) == 2
    assert main(["colorize", str(folder / "\x1b[2J0.jpg"), "--model=\x1b[2J", f"--out={tmp_path / 'out'}"]) == 2
    assert main(["pretrain", "--optim.lr=\x1b[2J"]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out and "\\x1b[2J" in said.err


def test_a_page_carries_no_code_of_others(tmp_path):
    evil = "<script>alert(1)</script>|`x`\x1b"
    blocks = [
        Heading(evil),
        Text(evil),
        Table(evil, [evil, "b"], [[evil, "1"]], 1),
        Listing(evil, f"```\n{evil}\n````"),
    ]
    page = Page(evil, blocks)
    markdown, html, _ = (path.read_text() for path in page.write(tmp_path))
    assert "<script" not in html and "\x1b" not in html + markdown
    outside, fence, inside = markdown.partition("`````")
    assert fence and "<script" not in outside and inside.count("`````") == 1


def test_a_cache_below_a_file(tmp_path, monkeypatch, photo_folder, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "file" / "cache"))
    words = ["knn", "--backbone=random:alexnet,fc=0,size=64", f"--data={photo_folder}", "--cache=disk", "--workers=0"]
    assert transfer([*words, f"--out={tmp_path / 'run'}"]) == 2 and not (tmp_path / "run").exists()
    assert main(["fetch", "zoo:eccv16"]) == 2 and main(["pretrain", "--data=torchvision:imagenette"]) == 2
    assert main(["zoo"]) == 0
    said = capsys.readouterr().err
    assert said.count("Not a directory") + said.count("File exists") == 3 and "Traceback" not in said


@pytest.mark.parametrize("source", ["timm:resnet18,size=7", "timm:vit_tiny_patch16_224,weights=none,size=17"])
def test_a_library_that_refuses_is_one_sentence(source):
    try:
        load_backbone(source if "weights" in source else f"random:{source}")
    except UserError as error:
        assert "\n" not in str(error)
