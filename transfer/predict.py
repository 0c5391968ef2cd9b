"""`transfer predict RUN IMAGE|DIR … --out DIR`: what a finished run says of pictures that it has not seen.

Masks of a segmentation, with the pictures under their colours; boxes of a detection, drawn and in a table; scores of a
classification; and of all of them a table of scores and contact sheets.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

from crosschannel import wrap
from crosschannel.config.load import check_config
from crosschannel.console import escape_control, progress, stderr_console
from crosschannel.csv_files import write_rows
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.pictures import convert_name_errors, list_pictures, output_paths, picture_bytes
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, user_path
from crosschannel.models import Backbone
from crosschannel.runs.result import read_result
from crosschannel.training.device import as_device
from transfer.config import PredictConfig
from transfer.prediction import FinishedRun, Prediction, Predictor
from transfer.protocol import as_config
from transfer.protocols import PROTOCOLS, load_protocol

_COLUMNS, _ON_A_SHEET, _TILE, _LINES, _LINE = 6, 30, 160, 3, 14  # of a contact sheet, and its pixels
_LEAST = 0.005  # of what is named on it
Scored = tuple[str, dict[str, float], dict[str, tuple[int, int, int]], Image.Image]  # name, scores, colours, thumbnail


def main(config: PredictConfig) -> list[Path]:
    """`transfer predict`: write what is predicted; returns the files.

    Raises:
        UserError: a run that keeps nothing to predict with, no pictures, an output that would replace what is not this
            command's own; or, after all others are done, pictures that could not be read.
    """
    config = check_config(config, PredictConfig)
    run, out = user_path(config.run), Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    pictures = output_paths(((source, out / stem) for source, stem in list_pictures(config.images)), "-mask.png")
    inputs = [run, *(source for source, _ in pictures if isinstance(source, Path))]
    outputs = Outputs("transfer predict", inputs, config.overwrite, makes_folders=True)
    console, failed = stderr_console(), []
    with FolderLock(out), torch.inference_mode():
        sheets = [out / f"sheet-{number + 1}.png" for number in range(-(-len(pictures) // _ON_A_SHEET))]
        for path in (out / "scores.csv", out / "boxes.csv", *sheets):
            outputs.check(path)
        predict = load_predictor(run, config.device, config.layer or "", config.size)
        scores = Scores(out, outputs)
        try:
            for source, target in progress(pictures, "predicting", len(pictures), console):
                try:
                    data = picture_bytes(source)
                    found = predict(data)
                    with convert_name_errors():
                        scores.written += _save(found, target, outputs)
                    scores.add(escape_control(source), found, _thumbnail(found, data))
                except BrokenImage as error:
                    failed.append(str(source))
                    console.print(f"nothing of {source}: {error}")
        finally:  # what was found is not lost with what follows
            scores.close()
    console.print(f"{len(pictures) - len(failed)} pictures predicted in {out}")
    if failed:
        raise UserError(f"{len(failed)} of {len(pictures)} pictures could not be read, the first is {failed[0]}")
    return scores.written


def load_predictor(
    run: Path | str,
    device: torch.device | str = "cpu",
    layer: str = "",
    size: int = 512,
    backbone: Backbone | nn.Module | None = None,
) -> Predictor:
    """What a finished run says of images.

    Args:
        run: its folder.
        device: where to compute.
        layer: of a run on frozen layers; default its best one.
        size: short side at which a fine-tuned segmentation looks at larger pictures; 0: their own.
        backbone: that the run measured, where it was no source but a module of yours.

    Returns:
        a function of an encoded image (bytes) to a :class:`~transfer.prediction.Prediction`.

    Raises:
        UserError: the run has not finished, or keeps nothing to predict with.

    Example::

        predict = transfer.load_predictor("runs/segment-imagenette-0-VOCdevkit-modern-0")
        mask = predict(open("grey.jpg", "rb").read()).pictures["mask"]
    """
    path = user_path(run)
    check_config(PredictConfig(str(path), ".", layer=layer, size=size))
    result = read_result(path)
    protocol = load_protocol(result.protocol)
    if protocol is None:
        raise UserError(f"{path} is a run of {result.protocol}: `transfer predict` takes runs of `transfer`")
    if protocol.predict is None:
        able = [name for name, entry in PROTOCOLS.items() if entry.load().predict]
        raise UserError(f"a {result.protocol} run keeps nothing to predict with; runs of {', '.join(able)} do")
    config = as_config(protocol, str(path / "config.yaml"))
    config.backbone, config.data = result.backbone, result.data
    if hasattr(config, "download"):
        config.download = False
    found = as_device(device)
    given = None if backbone is None else wrap(backbone).to(found).eval()
    return torch.inference_mode()(
        protocol.predict(FinishedRun(path, config, result.metrics, found, layer, size, given))
    )


def _save(found: Prediction, target: Path, outputs: Outputs) -> list[Path]:
    """``NAME-KIND.png`` for every picture of a prediction; ``target`` is that of its mask."""
    written = []
    for kind, picture in found.pictures.items():
        path = target.with_name(f"{target.name.removesuffix('-mask.png')}-{kind}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with outputs.write(path) as part:
            picture.save(part, "PNG")
        written.append(path)
    return written


def _thumbnail(found: Prediction, data: bytes) -> Image.Image:
    """The last picture of a prediction, else the image itself."""
    shown = [*found.pictures.values()][-1:]
    picture = shown[0].copy() if shown else Image.fromarray(EncodedImage(data).pixels(2))
    picture.thumbnail((_TILE, _TILE))
    return picture


class Scores:
    """``scores.csv``, a row a picture, ``boxes.csv``, a row a box that is found, and ``sheet-N.png``, the pictures with
    their likeliest (or largest) classes. Names are escaped by :func:`~crosschannel.console.escape_control`.

    Args:
        out: the folder.
        outputs: of the command.

    Attributes:
        written: files.
    """

    def __init__(self, out: Path, outputs: Outputs):
        self.out, self.outputs, self.written = out, outputs, list[Path]()
        self._text, self._boxes, self._sheets, self._waiting = io.StringIO(), io.StringIO(), 0, list[Scored]()

    def add(self, name: str, found: Prediction, thumbnail: Image.Image) -> None:
        if found.scores:
            if not self._text.tell():
                write_rows(self._text, [["picture", "first", *found.scores]])
            first = _ranked(found.scores)[0]
            scores = (f"{value:.4f}" for value in found.scores.values())
            write_rows(self._text, [[name, first if found.scores[first] else "", *scores]])
        if found.boxes is not None:
            if not self._boxes.tell():
                write_rows(self._boxes, [["picture", "class", "score", "left", "top", "right", "bottom"]])
            rows = (
                [name, label, f"{score:.4f}", *(f"{edge:.1f}" for edge in box)] for label, score, *box in found.boxes
            )
            write_rows(self._boxes, rows)
        self._waiting.append((name, found.scores, found.colours, thumbnail))
        if len(self._waiting) == _ON_A_SHEET:
            self._write_sheet()

    def close(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._write_sheet()
        for name, text in (("scores.csv", self._text), ("boxes.csv", self._boxes)):
            if text.tell():
                self.written.append(self.outputs.write_text(self.out / name, text.getvalue()))

    def _write_sheet(self) -> None:
        self._sheets += 1
        path = self.out / f"sheet-{self._sheets}.png"
        with self.outputs.write(path) as part:
            _sheet(self._waiting).save(part, "PNG")
        self.written.append(path)
        self._waiting = []


def _ranked(by_class: dict[str, float]) -> list[str]:
    return sorted(by_class, key=by_class.__getitem__, reverse=True)


def _sheet(scores: Sequence[Scored]) -> Image.Image:
    height = _TILE + (_LINES + 1) * _LINE + 8
    columns = min(_COLUMNS, len(scores))
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, -(-len(scores) // columns) * height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, by_class, colours, picture) in enumerate(scores):
        left, top = 8 + place % columns * (_TILE + 8), 8 + place // columns * height
        sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
        top += _TILE + 2
        draw.text((left, top), Path(name).name[-24:], fill="#616e7c", font_size=11)
        ranked = [one for one in _ranked(by_class)[:_LINES] if by_class[one]]
        shown = [one for number, one in enumerate(ranked) if not number or by_class[one] >= _LEAST]
        for number, one in enumerate(shown, 1):
            line = top + number * _LINE
            if one in colours:
                draw.rectangle((left, line + 2, left + 9, line + 11), fill=colours[one])
            words = f"{100 * by_class[one]:3.0f} %  {one[:18]}"
            draw.text((left + (14 if colours else 0), line), words, fill="black", font_size=11)
    return sheet
