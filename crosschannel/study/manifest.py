"""What a study's folder holds: its pictures, and a manifest that names each with its checksum."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from crosschannel.config.load import build_stored
from crosschannel.errors import UserError
from crosschannel.files import STUDY, digest, user_path, write_text
from crosschannel.stored import read_json

MANIFEST, PICTURES = STUDY, "pictures"
Gamut = Literal["map", "clip"]
First = Literal["left", "random"]
Pause = Annotated[int, Interval(ge=0, le=60_000)]
TRUTH, CHECK = "truth", "check"  # what an image's files are called by, beside the methods' names


@dataclass
class Photograph:
    """A photograph of a study.

    Attributes:
        name: in the image set that it is from.
        practice: whether it is one of those to practise on.
        files: below ``pictures``, by method, :data:`TRUTH` and :data:`CHECK` (the colours of another photograph).
    """

    name: str
    practice: bool
    files: dict[str, str]


@dataclass
class Manifest:
    """What ``study.json`` says.

    Attributes:
        data: where the photographs are from.
        methods: by name, as they were typed.
        size: side of all pictures.
        pairs, practice, checks: how many pairs a participant judges, how many to practise, and how many of the former
            are attention checks.
        left_out: photographs that are grey, or could not be read, and why.
        sha256: of every picture, by its file.
        version: of crosschannel.
        photographs: all that are shown.
        gamut: treatment of colours outside sRGB, as in `crosschannel colorize`.
        first: first picture of a pair.
        before_ms, between_ms: pauses before the first picture and between the two, in ms.

    The defaults hold for studies built before these fields existed.
    """

    data: str
    methods: dict[str, str]
    size: int
    pairs: int
    practice: int
    checks: int
    left_out: dict[str, str]
    sha256: dict[str, str]
    version: str
    photographs: list[Photograph]
    gamut: Gamut = "map"
    first: First = "random"
    before_ms: Pause = 400
    between_ms: Pause = 400

    def write(self, folder: Path) -> None:
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def read_study(folder: str | Path) -> tuple[Path, Manifest]:
    """A study's folder and its manifest.

    Raises:
        UserError: it is none, or damaged.
    """
    folder = user_path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no study: it has no {MANIFEST}; crosschannel study build makes one")
    manifest = build_stored(Manifest, read_json(path), str(path))
    named = {file for photograph in manifest.photographs for file in photograph.files.values()}
    needed = {TRUTH, *manifest.methods, *[CHECK] * bool(manifest.checks)}
    whole = all(needed <= photograph.files.keys() for photograph in manifest.photographs)
    if not whole or named != manifest.sha256.keys() or any(Path(file).name != file for file in named):
        raise UserError(f"{path} is damaged: it does not name all pictures")
    practice = sum(photograph.practice for photograph in manifest.photographs)
    if practice < manifest.practice or len(manifest.photographs) - practice < manifest.pairs:
        raise UserError(f"{path} is damaged: it has too few photographs")
    return folder, manifest


def check_pictures(folder: Path, manifest: Manifest) -> None:
    """Compare every picture with its checksum.

    Raises:
        UserError: one is missing or damaged.
    """
    for file, expected in manifest.sha256.items():
        path = folder / PICTURES / file
        if not path.is_file() or digest(path) != expected:
            raise UserError(f"{path} is missing or damaged: build the study again")
