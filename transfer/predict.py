"""`transfer predict RUN IMAGE|DIR … --out DIR`: what a finished run says of pictures that it has not seen.

Masks of a segmentation, with the pictures under their colours; scores of a classification, as a table and contact
sheets.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from crosschannel.console import progress, stderr_console
from crosschannel.data.decode import BrokenImage, EncodedImage, broken
from crosschannel.data.pictures import named_pictures, only_this_name, picture_bytes, targets
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, user_path
from crosschannel.runs.result import read_result
from crosschannel.training.device import find_device
from transfer.config import PredictConfig
from transfer.prediction import Prediction, Predictor
from transfer.protocol import as_config
from transfer.protocols import PROTOCOLS

_COLUMNS, _ROWS, _TILE, _LINES, _LINE = 6, 5, 160, 3, 14  # of a contact sheet, and its pixels
Scored = tuple[str, Prediction, Image.Image]  # name, what is said, thumbnail


def main(config: PredictConfig) -> list[Path]:
    """`transfer predict`: write what is predicted; returns the files.

    Raises:
        UserError: a run that keeps nothing to predict with, no pictures, an output that would replace what is not this
            command's own; or, after all others are done, pictures that could not be read.
    """
    run, out = user_path(config.run), Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    pictures = targets(named_pictures(config.images), out, "")
    inputs = [run, *(source for source, _ in pictures if isinstance(source, Path))]
    outputs = Outputs("transfer predict", inputs, config.overwrite, makes_folders=True)
    console, failed = stderr_console(), []
    written: list[Path] = []
    scores: list[Scored] = []
    with FolderLock(out), torch.inference_mode():
        predict = predictor_of(run, find_device(config.device), config.layer or "")
        try:
            for source, target in progress(pictures, "predicting", len(pictures), console):
                try:
                    data = _read(source)
                    found = predict(data)
                    with only_this_name():
                        written += _save(found, target, outputs)
                    if found.scores:
                        scores.append((str(target.relative_to(out)), found, _thumbnail(data)))
                except BrokenImage as error:
                    failed.append(str(source))
                    console.print(f"nothing of {source}: {error}", markup=False)
        finally:  # what was found is not lost with what follows
            written += _save_scores(scores, out, outputs)
    console.print(f"{len(pictures) - len(failed)} pictures predicted in {out}", markup=False)
    if failed:
        raise UserError(f"{len(failed)} of {len(pictures)} pictures could not be read, the first is {failed[0]}")
    return written


def predictor_of(run: Path, device: torch.device, layer: str = "") -> Predictor:
    """What a finished run says of images.

    Args:
        run: its folder.
        device: where to compute.
        layer: of a run on frozen layers; default its best one.

    Raises:
        UserError: it has not finished, or keeps nothing to predict with.
    """
    result = read_result(run)
    if result.protocol not in PROTOCOLS:
        raise UserError(f"{run} is a run of {result.protocol}: `transfer predict` takes runs of `transfer`")
    protocol = PROTOCOLS[result.protocol].load()
    if protocol.predict is None:
        able = [name for name, entry in PROTOCOLS.items() if entry.load().predict]
        raise UserError(f"a {result.protocol} run keeps nothing to predict with; runs of {', '.join(able)} do")
    config = as_config(protocol, str(run / "config.yaml"))
    config.backbone, config.data = result.backbone, result.data
    return protocol.predict(run, config, device, layer)


def _read(source: Path | str) -> bytes:
    try:
        return picture_bytes(source)
    except OSError as error:
        raise broken(error) from None


def _save(found: Prediction, target: Path, outputs: Outputs) -> list[Path]:
    """``NAME-KIND.png`` for every picture of a prediction."""
    written = []
    for kind, picture in found.pictures.items():
        path = target.with_name(f"{target.name}-{kind}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with outputs.write(path) as part:
            picture.save(part, "PNG")
        written.append(path)
    return written


def _thumbnail(data: bytes) -> Image.Image:
    picture = Image.fromarray(EncodedImage(data).pixels(4))
    picture.thumbnail((_TILE, _TILE))
    return picture


def _save_scores(scores: Sequence[Scored], out: Path, outputs: Outputs) -> list[Path]:
    """``scores.csv``, a row a picture, and ``sheet-N.png``, the pictures with their likeliest classes."""
    if not scores:
        return []
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    classes = list(scores[0][1].scores)
    table.writerow(["picture", "likeliest", *classes])
    for name, found, _ in scores:
        table.writerow([name, _likeliest(found)[0], *(f"{found.scores[label]:.4f}" for label in classes)])
    written = [outputs.write_text(out / "scores.csv", text.getvalue())]
    for start in range(0, len(scores), _COLUMNS * _ROWS):
        path = out / f"sheet-{start // (_COLUMNS * _ROWS) + 1}.png"
        with outputs.write(path) as part:
            _sheet(scores[start : start + _COLUMNS * _ROWS]).save(part, "PNG")
        written.append(path)
    return written


def _likeliest(found: Prediction) -> list[str]:
    return sorted(found.scores, key=found.scores.__getitem__, reverse=True)


def _sheet(scores: Sequence[Scored]) -> Image.Image:
    height = _TILE + (_LINES + 1) * _LINE + 8
    columns = min(_COLUMNS, len(scores))
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, -(-len(scores) // columns) * height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, found, picture) in enumerate(scores):
        left, top = 8 + place % columns * (_TILE + 8), 8 + place // columns * height
        sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
        lines = [name[-24:], *(f"{100 * found.scores[one]:3.0f} %  {one[:18]}" for one in _likeliest(found)[:_LINES])]
        for number, line in enumerate(lines):
            fill = "black" if number else "#616e7c"
            draw.text((left, top + _TILE + 2 + number * _LINE), line, fill=fill, font_size=11)
    return sheet
