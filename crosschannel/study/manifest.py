"""Study folder, with pictures and a manifest that lists them with their checksums."""

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
TRUTH, CHECK = "truth", "check"  # keys of a photograph's files, in addition to the names of methods


@dataclass
class Photograph:
    """A photograph of a study.

    Attributes:
        name: name in the image set.
        practice: whether it is used for practice.
        files: files below ``pictures``, by :data:`TRUTH`, method name and :data:`CHECK` (fake for attention checks).
    """

    name: str
    practice: bool
    files: dict[str, str]


@dataclass
class Manifest:
    """Content of ``study.json``. The defaults apply to studies built before these fields existed.

    Attributes:
        data: source of the photographs.
        methods: methods as typed on the command line, by name.
        size: side of all pictures, in pixels.
        pairs: number of pairs that each participant judges.
        practice: number of practice pairs.
        checks: number of attention checks among ``pairs``.
        left_out: reason for each excluded photograph (grey or unreadable), by name.
        sha256: checksum of each picture, by file name.
        version: version of crosschannel.
        photographs: photographs of the study.
        gamut: treatment of colours outside sRGB, as in `crosschannel colorize`.
        first: which picture of a pair is shown first.
        before_ms, between_ms: pauses before the first picture and between the two, in ms.
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
    """Return the folder and the manifest of a study.

    Raises:
        UserError: the folder is not a study, or its manifest is damaged.
    """
    folder = user_path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a study: it has no {MANIFEST}; create a study with `crosschannel study build`"
        )
    manifest = build_stored(Manifest, read_json(path), str(path))
    files = {file for photograph in manifest.photographs for file in photograph.files.values()}
    required_keys = {TRUTH, *manifest.methods, *[CHECK] * bool(manifest.checks)}
    is_complete = all(required_keys <= photograph.files.keys() for photograph in manifest.photographs)
    if not is_complete or files != manifest.sha256.keys() or any(Path(file).name != file for file in files):
        raise UserError(f"{path} is damaged: it does not list all pictures")
    practice = sum(photograph.practice for photograph in manifest.photographs)
    if practice < manifest.practice or len(manifest.photographs) - practice < manifest.pairs:
        raise UserError(f"{path} is damaged: it has too few photographs")
    return folder, manifest


def check_pictures(folder: Path, manifest: Manifest) -> None:
    """Verify the checksum of each picture.

    Raises:
        UserError: a picture is missing or damaged.
    """
    for file, expected in manifest.sha256.items():
        path = folder / PICTURES / file
        if not path.is_file() or digest(path) != expected:
            raise UserError(f"{path} is missing or damaged; rebuild the study")
