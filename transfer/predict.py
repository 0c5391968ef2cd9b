"""`transfer predict RUN IMAGE|DIR … --out DIR`: predictions of a finished run for pictures.

Segmentation runs yield masks and overlays, detection runs yield pictures with boxes and a table of boxes. All runs
yield a table of class scores and contact sheets.
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
from crosschannel.data.folder import format_count
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

_SHEET_COLUMNS, _SHEET_TILES = 6, 30  # columns, and maximum number of pictures, of a contact sheet
_TILE_SIZE, _LINE_HEIGHT = 160, 14  # in pixels
_MAX_CLASSES, _MIN_SCORE = 3, 0.005  # limits of the class names below a picture; the first has no minimum score
_Tile = tuple[str, dict[str, float], dict[str, tuple[int, int, int]], Image.Image]  # name, scores, colours, thumbnail


def main(config: PredictConfig) -> list[Path]:
    """Run `transfer predict`: write the predictions and return the files.

    Raises:
        UserError: the run stores no weights to predict with, there are no pictures, an output file exists that this
            command did not write, or pictures could not be read (raised after all others are done).
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
        sheets = [out / f"sheet-{number + 1}.png" for number in range(-(-len(pictures) // _SHEET_TILES))]
        for path in (out / "scores.csv", out / "boxes.csv", *sheets):
            outputs.check(path)
        predict = load_predictor(run, config.device, config.layer or "", config.size)
        writer = PredictionWriter(out, outputs)
        try:
            for source, target in progress(pictures, "predicting", len(pictures), console):
                try:
                    data = picture_bytes(source)
                    prediction = predict(data)
                    with convert_name_errors():
                        writer.files += _save(prediction, target, outputs)
                    writer.add(escape_control(source), prediction, _thumbnail(prediction, data))
                except BrokenImage as error:
                    failed.append(str(source))
                    console.print(f"skipped {source}: {error}")
        finally:  # write the predictions so far, even after an error
            writer.close()
    console.print(f"wrote predictions of {format_count(len(pictures) - len(failed), 'picture')} to {out}")
    if failed:
        raise UserError(f"{len(failed)} of {len(pictures)} pictures could not be read, the first is {failed[0]}")
    return writer.files


def load_predictor(
    run: Path | str,
    device: torch.device | str = "cpu",
    layer: str = "",
    size: int = 512,
    backbone: Backbone | nn.Module | None = None,
) -> Predictor:
    """Load a function that predicts for images with a finished run.

    Args:
        run: run folder.
        device: device for predictions.
        layer: layer to predict from, for runs on frozen layers; default: the layer with the best metric.
        size: short side to which larger pictures are resized for a fine-tuned segmentation network, in pixels; 0: no
            resizing.
        backbone: measured backbone, if it was passed to the protocol as a module.

    Returns:
        a function from an encoded image (bytes) to a :class:`~transfer.prediction.Prediction`.

    Raises:
        UserError: the run has not finished, or stores no weights to predict with.

    Example::

        predict = transfer.load_predictor("runs/segment-imagenette-0-VOCdevkit-modern-0")
        mask = predict(open("grey.jpg", "rb").read()).pictures["mask"]
    """
    path = user_path(run)
    check_config(PredictConfig(str(path), ".", layer=layer, size=size))
    result = read_result(path)
    protocol = load_protocol(result.protocol)
    if protocol is None:
        raise UserError(f"{path} is a run of {result.protocol}; `transfer predict` accepts only runs of `transfer`")
    if protocol.predict is None:
        supported = [name for name, entry in PROTOCOLS.items() if entry.load().predict]
        raise UserError(f"{result.protocol} runs store no weights to predict with; use a run of {', '.join(supported)}")
    config = as_config(protocol, str(path / "config.yaml"))
    config.backbone, config.data = result.backbone, result.data
    if hasattr(config, "download"):
        config.download = False
    torch_device = as_device(device)
    wrapped = None if backbone is None else wrap(backbone).to(torch_device).eval()
    return torch.inference_mode()(
        protocol.predict(FinishedRun(path, config, result.metrics, torch_device, layer, size, wrapped))
    )


def _save(prediction: Prediction, target: Path, outputs: Outputs) -> list[Path]:
    """Write ``NAME-KIND.png`` for each picture of a prediction and return the files.

    Args:
        prediction: prediction for an image.
        target: path of the mask, NAME-mask.png.
        outputs: outputs of the command.
    """
    files = []
    for kind, picture in prediction.pictures.items():
        path = target.with_name(f"{target.name.removesuffix('-mask.png')}-{kind}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with outputs.write(path) as partial:
            picture.save(partial, "PNG")
        files.append(path)
    return files


def _thumbnail(prediction: Prediction, data: bytes) -> Image.Image:
    """Return a thumbnail of a prediction's last picture, or of the input image if the prediction has no picture."""
    last = [*prediction.pictures.values()][-1:]
    picture = last[0].copy() if last else Image.fromarray(EncodedImage(data).pixels(2))
    picture.thumbnail((_TILE_SIZE, _TILE_SIZE))
    return picture


class PredictionWriter:
    """Writer of ``scores.csv`` (one row per picture), ``boxes.csv`` (one row per box) and ``sheet-N.png``.

    The contact sheets show the pictures with their highest-scoring classes. Names must be escaped by
    :func:`~crosschannel.console.escape_control`.

    Args:
        out: output folder.
        outputs: outputs of the command.

    Attributes:
        files: files written so far.
    """

    def __init__(self, out: Path, outputs: Outputs):
        self.out, self.outputs, self.files = out, outputs, list[Path]()
        self._scores, self._boxes, self._sheets, self._tiles = io.StringIO(), io.StringIO(), 0, list[_Tile]()

    def add(self, name: str, prediction: Prediction, thumbnail: Image.Image) -> None:
        """Add a picture; write a contact sheet if it is full."""
        if prediction.scores:
            if not self._scores.tell():
                write_rows(self._scores, [["picture", "first", *prediction.scores]])
            first = _ranked(prediction.scores)[0]
            scores = (f"{value:.4f}" for value in prediction.scores.values())
            write_rows(self._scores, [[name, first if prediction.scores[first] else "", *scores]])
        if prediction.boxes is not None:
            if not self._boxes.tell():
                write_rows(self._boxes, [["picture", "class", "score", "left", "top", "right", "bottom"]])
            rows = (
                [name, label, f"{score:.4f}", *(f"{edge:.1f}" for edge in box)]
                for label, score, *box in prediction.boxes
            )
            write_rows(self._boxes, rows)
        self._tiles.append((name, prediction.scores, prediction.colours, thumbnail))
        if len(self._tiles) == _SHEET_TILES:
            self._write_sheet()

    def close(self) -> None:
        """Write the last contact sheet and the tables."""
        if self._tiles:
            self._write_sheet()
        for name, buffer in (("scores.csv", self._scores), ("boxes.csv", self._boxes)):
            if buffer.tell():
                self.files.append(self.outputs.write_text(self.out / name, buffer.getvalue()))

    def _write_sheet(self) -> None:
        self._sheets += 1
        path = self.out / f"sheet-{self._sheets}.png"
        with self.outputs.write(path) as partial:
            _draw_sheet(self._tiles).save(partial, "PNG")
        self.files.append(path)
        self._tiles = []


def _ranked(scores: dict[str, float]) -> list[str]:
    """Return the classes in descending order of score."""
    return sorted(scores, key=scores.__getitem__, reverse=True)


def _draw_sheet(tiles: Sequence[_Tile]) -> Image.Image:
    """Draw a contact sheet: pictures in a grid, with file name and top classes below each."""
    height = _TILE_SIZE + (_MAX_CLASSES + 1) * _LINE_HEIGHT + 8
    columns = min(_SHEET_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * (_TILE_SIZE + 8) + 8, -(-len(tiles) // columns) * height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, scores, colours, picture) in enumerate(tiles):
        left, top = 8 + index % columns * (_TILE_SIZE + 8), 8 + index // columns * height
        sheet.paste(picture, (left + (_TILE_SIZE - picture.width) // 2, top + (_TILE_SIZE - picture.height) // 2))
        top += _TILE_SIZE + 2
        draw.text((left, top), Path(name).name[-24:], fill="#616e7c", font_size=11)
        ranked = [label for label in _ranked(scores)[:_MAX_CLASSES] if scores[label]]
        labels = [label for rank, label in enumerate(ranked) if not rank or scores[label] >= _MIN_SCORE]
        for number, label in enumerate(labels, 1):
            y = top + number * _LINE_HEIGHT
            if label in colours:
                draw.rectangle((left, y + 2, left + 9, y + 11), fill=colours[label])
            text = f"{100 * scores[label]:3.0f} %  {label[:18]}"
            draw.text((left + (14 if colours else 0), y), text, fill="black", font_size=11)
    return sheet
