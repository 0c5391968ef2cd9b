"""The page of an evaluation: Table 1 with the published figures apart, error curves, and a gallery."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from crosschannel.config.load import to_yaml
from crosschannel.data import Stream
from crosschannel.evaluation import published
from crosschannel.evaluation.config import OWN, EvaluateConfig
from crosschannel.evaluation.evaluator import Evaluator
from crosschannel.evaluation.methods import ColorizationMethod
from crosschannel.evaluation.metrics import FIGURES, metrics
from crosschannel.evaluation.plots import error_curves, labelled_rows, over_photographs
from crosschannel.evaluation.scores import FARTHEST, as_array
from crosschannel.files import Writer
from crosschannel.report import Block, Figure, Heading, Listing, Page, Table, Text
from crosschannel.runs.resampling import intervals
from crosschannel.runs.result import Rows

GALLERY = "gallery.png"
TEMPERATURES = (1.0, 0.77, 0.58, 0.38, 0.29, 0.14, 0.01)  # of the paper's Fig. 4, whose last is the mode
_LEVEL = 0.95
_SHOWN = {"best": 1.0, "median": 0.5, "worst": 0.0}  # pictures of the gallery, by their rank


def write_page(
    folder: Path,
    config: EvaluateConfig,
    rows: Rows,
    curves: Mapping[str, np.ndarray],
    figures: Mapping[str, float],
    evaluator: Evaluator,
    stream: Stream,
    indices: np.ndarray,
) -> Path:
    """Write ``report.html`` and its kin.

    Args:
        folder: the run folder.
        config: of the evaluation.
        rows: a row an image.
        curves: by method, pixels by true bin and level of error, (313, 152).
        figures: what the rows give.
        evaluator: what coloured them.
        stream: of the images.
        indices: of the rows, into the stream.
    """
    page = Page("How good the colours are")
    names = [painter.method.name for painter in evaluator.methods]
    page.add(Text(_setting(config, len(rows["names"]))))
    page.add(*_tables(config, rows, figures, names))
    weights = None if evaluator.weights is None else evaluator.weights.cpu().numpy()

    def draw(write: Writer) -> None:
        error_curves(folder / "curves.png", curves, weights, write)

    page.add(
        Heading("Error curves"),
        Figure(folder / "curves.png", "Share of pixels whose ab is within a distance of the truth, by distance.", draw),
    )
    if config.prior == OWN and len(rows["names"]) >= 20:
        many = folder / "photographs.png"
        words = (
            "Rebalanced AuC of so many photographs: with few, rare colours are seldom seen, and the figure is too good."
        )
        shown = [painter.method.name for painter in evaluator.methods if painter.method.source != "truth"]
        page.add(Figure(many, words, lambda write: over_photographs(many, rows, shown, config.seed, write)))
    page.add(*_gallery(folder, rows, evaluator, stream, indices))
    page.add(Listing("How it was obtained", to_yaml(config)))
    page.write(folder)
    return folder / "report.html"


def _setting(config: EvaluateConfig, images: int) -> str:
    prior = (
        "the evaluated images' own colours, so that every bin counts the same"
        if config.prior == OWN
        else f"the prior {config.prior}"
    )
    return (
        f"{images:,} images of {config.data}, {config.size} × {config.size}. AuC: the share of pixels whose ab is "
        f"within t of the truth, averaged over t = 0 … {FARTHEST}; rebalanced by {prior}. The published figures are of "
        "10,000 ImageNet photographs; their top-1 is that of Caffe's VGG-16, whose top-1 on the true pictures is "
        "68.3 % (about 71.6 % for torchvision's VGG-16: compare ratios to the truth's top-1)."
    )


def cells(figures: Mapping[str, float], method: str, intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    """The figures of a method in the order of :data:`~crosschannel.evaluation.metrics.FIGURES`."""
    found = []
    for name, (_, factor, digits) in FIGURES.items():
        key = f"{method}/{name}"
        text = f"{factor * figures[key]:.{digits}f}" if key in figures else "–"
        low, high = (factor * end for end in intervals.get(key, (0.0, 0.0)))
        found.append(text if low == high else f"{text} ({low:.{digits}f} to {high:.{digits}f})")
    return found


def measured(caption: str, rows: Mapping[str, Sequence[str]]) -> Table:
    """A table of methods by label, without the columns that none of them has."""
    filled = [number for number in range(len(FIGURES)) if any(row[number] != "–" for row in rows.values())]
    head = ["method", *(list(FIGURES.values())[number][0] for number in filled)]
    return Table(caption, head, [[label, *(row[number] for number in filled)] for label, row in rows.items()])


def _tables(config: EvaluateConfig, rows: Rows, figures: Mapping[str, float], names: Sequence[str]) -> list[Block]:
    found = intervals(lambda weights: metrics(rows, weights), len(rows["names"]), config.resamples, _LEVEL, config.seed)
    theirs = [
        [name, *map(published.cell, published.HEAD, (*values, published.FOOLED.get(name)))]
        for name, values in published.TABLE_1.items()
    ]
    return [
        measured(
            f"Measured; in brackets {_LEVEL:.0%} intervals over images",
            {name: cells(figures, name, found) for name in names},
        ),
        Table("Published (Zhang et al. 2016, Table 1)", ["method", *published.HEAD], theirs, published=len(theirs)),
    ]


def _gallery(folder: Path, rows: Rows, evaluator: Evaluator, stream: Stream, indices: np.ndarray) -> list[Block]:
    """Pictures by how well the first net coloured them, and one of them at several temperatures."""
    nets = [painter for painter in evaluator.methods if painter.colorizer is not None]
    judge = (nets or evaluator.methods)[0].method.name
    auc = rows[f"{judge}/auc"].sum(1) / rows["pixels"].sum(1)
    order = np.argsort(auc, kind="stable")
    chosen = {words: int(order[round(rank * (len(order) - 1))]) for words, rank in _SHOWN.items()}
    labels, pictures = [], []
    for words, row in chosen.items():
        coloured = _coloured(evaluator, stream, int(indices[row]))
        labels.append(f"{words}: {rows['names'][row]}, AuC {100 * auc[row]:.1f} %")
        pictures.append(list(coloured.values()))
    heads = list(coloured)
    gallery = folder / GALLERY
    words = f"By the raw AuC of {judge}. Truth, lightness, then every method."
    blocks: list[Block] = [
        Heading("Gallery"),
        Figure(gallery, words, lambda write: labelled_rows(gallery, pictures, heads, labels, write)),
    ]
    heated = next((painter for painter in nets if painter.colorizer.decoder.temperature is not None), None)
    if heated is not None:
        strip, path = _strip(heated, evaluator, stream, int(indices[chosen["median"]])), folder / "temperatures.png"
        heads_of_strip = [f"T = {temperature:g}" for temperature in TEMPERATURES]
        words = f"{heated.method.name}: from the mean (T = 1) towards the mode, as the paper's Fig. 4."
        blocks.append(Figure(path, words, lambda write: labelled_rows(path, [strip], heads_of_strip, [""], write)))
    return blocks


@torch.inference_mode()
def _coloured(evaluator: Evaluator, stream: Stream, index: int) -> dict[str, np.ndarray]:
    """One picture by every method, (S, S, 3) uint8."""
    pictures = evaluator.pictures(stream.collate([stream[index]]))
    lightness = evaluator.lightness(pictures)
    found = {"truth": pictures.rgb, "lightness": evaluator.coloured(lightness, torch.zeros_like(pictures.ab))}
    for painter in evaluator.methods:
        if painter.method.source not in ("truth", "grey"):
            found[painter.method.name] = evaluator.coloured(lightness, painter(pictures))
    return {name: as_array(rgb) for name, rgb in found.items()}


@torch.inference_mode()
def _strip(painter: ColorizationMethod, evaluator: Evaluator, stream: Stream, index: int) -> list[np.ndarray]:
    """One picture at every temperature."""
    pictures = evaluator.pictures(stream.collate([stream[index]]))
    lightness = evaluator.lightness(pictures)
    colours = (painter.colorizer.ab(pictures.rgb, temperature) for temperature in TEMPERATURES)
    return [as_array(evaluator.coloured(lightness, ab)) for ab in colours]
