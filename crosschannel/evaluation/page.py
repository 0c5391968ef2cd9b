"""Report page of an evaluation: measured and published results as in Table 1, error curves, and a gallery."""

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
from crosschannel.evaluation.plots import auc_by_image_count, error_curves, labelled_rows
from crosschannel.evaluation.scores import MAX_THRESHOLD, as_array
from crosschannel.files import Writer
from crosschannel.report import Block, Figure, Heading, Listing, Page, Table, Text
from crosschannel.runs.resampling import intervals
from crosschannel.runs.result import Rows

GALLERY = "gallery.png"
TEMPERATURES = (1.0, 0.77, 0.58, 0.38, 0.29, 0.14, 0.01)  # as in the paper's Fig. 4, where the last one is the mode
_CONFIDENCE = 0.95  # level of the confidence intervals
_QUANTILES = {"best": 1.0, "median": 0.5, "worst": 0.0}  # images of the gallery, by quantile of the raw AuC


def write_page(
    folder: Path,
    config: EvaluateConfig,
    rows: Rows,
    level_counts: Mapping[str, np.ndarray],
    values: Mapping[str, float],
    evaluator: Evaluator,
    stream: Stream,
    indices: np.ndarray,
) -> Path:
    """Write the report page, with its plots and tables.

    Args:
        folder: the run folder.
        config: config of the evaluation.
        rows: columns with one row per image.
        level_counts: pixel counts by true bin and error level, (313, 152), for every method.
        values: metrics by name.
        evaluator: evaluator that colours the images of the gallery.
        stream: stream of the images.
        indices: indices of the rows in the stream.

    Returns:
        Path of ``report.html``.
    """
    page = Page("Evaluation of colorization methods")
    names = [method.method.name for method in evaluator.methods]
    page.add(Text(_introduction(config, len(rows["names"]))))
    page.add(*_tables(config, rows, values, names))
    weights = None if evaluator.bin_weights is None else evaluator.bin_weights.cpu().numpy()

    def draw(write: Writer) -> None:
        error_curves(folder / "curves.png", level_counts, weights, write)

    page.add(
        Heading("Error curves"),
        Figure(folder / "curves.png", "Percentage of pixels whose ab is within a given distance of the true ab.", draw),
    )
    if config.prior == OWN and len(rows["names"]) >= 20:
        plot = folder / "photographs.png"
        caption = "Rebalanced AuC of random subsets of the images. It is usually too high if rare colours are missing."
        plotted_names = [method.method.name for method in evaluator.methods if method.method.source != "truth"]
        page.add(Figure(plot, caption, lambda write: auc_by_image_count(plot, rows, plotted_names, config.seed, write)))
    page.add(*_gallery(folder, rows, evaluator, stream, indices))
    page.add(Listing("Config of this run", to_yaml(config)))
    page.write(folder)
    return folder / "report.html"


def _introduction(config: EvaluateConfig, images: int) -> str:
    prior = (
        "the colours of the evaluated images, so that all bins have equal weight"
        if config.prior == OWN
        else f"the prior {config.prior}"
    )
    return (
        f"{images:,} images of {config.data}, {config.size} × {config.size} pixels. AuC is the percentage of pixels "
        f"whose ab is within a distance t of the true ab, averaged over t = 0 … {MAX_THRESHOLD}. Rebalanced AuC "
        f"corrects for {prior}. The published results are for 10,000 ImageNet images. Their top-1 accuracy is that of "
        "Caffe's VGG-16, which reaches 68.3 % on the true images (torchvision's VGG-16: about 71.6 %), so compare "
        "values relative to the true images."
    )


def cells(values: Mapping[str, float], method: str, intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    """Format the metrics of a method as cells, in the order of :data:`~crosschannel.evaluation.metrics.FIGURES`."""
    formatted_values = []
    for name, (_, factor, decimals) in FIGURES.items():
        key = f"{method}/{name}"
        text = f"{factor * values[key]:.{decimals}f}" if key in values else "–"
        low, high = (factor * bound for bound in intervals.get(key, (0.0, 0.0)))
        formatted_values.append(text if low == high else f"{text} ({low:.{decimals}f} to {high:.{decimals}f})")
    return formatted_values


def measured(caption: str, rows: Mapping[str, Sequence[str]]) -> Table:
    """Create a table of methods from :func:`cells` by label, omitting columns that are empty for all methods."""
    columns = [index for index in range(len(FIGURES)) if any(row[index] != "–" for row in rows.values())]
    head = ["Method", *(list(FIGURES.values())[index][0] for index in columns)]
    return Table(caption, head, [[label, *(row[index] for index in columns)] for label, row in rows.items()])


def _tables(config: EvaluateConfig, rows: Rows, values: Mapping[str, float], names: Sequence[str]) -> list[Block]:
    bounds = intervals(
        lambda weights: metrics(rows, weights), len(rows["names"]), config.resamples, _CONFIDENCE, config.seed
    )
    published_rows = [
        [name, *map(published.cell, published.HEAD, (*row, published.FOOLED.get(name)))]
        for name, row in published.TABLE_1.items()
    ]
    return [
        measured(
            f"Measured results, with {_CONFIDENCE:.0%} confidence intervals (bootstrap over images) in parentheses",
            {name: cells(values, name, bounds) for name in names},
        ),
        Table(
            "Published results (Zhang et al. 2016, Table 1)",
            ["Method", *published.HEAD],
            published_rows,
            published=len(published_rows),
        ),
    ]


def _gallery(folder: Path, rows: Rows, evaluator: Evaluator, stream: Stream, indices: np.ndarray) -> list[Block]:
    """Create the gallery: the best, median and worst image of the first net, and one image at several temperatures."""
    nets = [method for method in evaluator.methods if method.colorizer is not None]
    reference = (nets or evaluator.methods)[0].method.name
    auc = rows[f"{reference}/auc"].sum(1) / rows["pixels"].sum(1)
    order = np.argsort(auc, kind="stable")
    selected_rows = {title: int(order[round(quantile * (len(order) - 1))]) for title, quantile in _QUANTILES.items()}
    labels, pictures = [], []
    for title, row in selected_rows.items():
        coloured = _colour_image(evaluator, stream, int(indices[row]))
        labels.append(f"{title}: {rows['names'][row]}, raw AuC {100 * auc[row]:.1f} %")
        pictures.append(list(coloured.values()))
    heads = list(coloured)
    gallery = folder / GALLERY
    caption = f"Images with the best, median and worst raw AuC of {reference}: truth, lightness, and every method."
    blocks: list[Block] = [
        Heading("Gallery"),
        Figure(gallery, caption, lambda write: labelled_rows(gallery, pictures, heads, labels, write)),
    ]
    annealed_method = next((method for method in nets if method.colorizer.decoder.temperature is not None), None)
    if annealed_method is not None:
        strip = _colour_at_temperatures(annealed_method, evaluator, stream, int(indices[selected_rows["median"]]))
        path = folder / "temperatures.png"
        strip_heads = [f"T = {temperature:g}" for temperature in TEMPERATURES]
        caption = (
            f"The median image by {annealed_method.method.name} at several temperatures of the annealed mean, "
            "from the mean (T = 1) towards the mode (T → 0), as in Fig. 4 of the paper."
        )
        blocks.append(Figure(path, caption, lambda write: labelled_rows(path, [strip], strip_heads, [""], write)))
    return blocks


@torch.inference_mode()
def _colour_image(evaluator: Evaluator, stream: Stream, index: int) -> dict[str, np.ndarray]:
    """Colour an image with every method; return pictures (S, S, 3) uint8 by column title."""
    pictures = evaluator.pictures(stream.collate([stream[index]]))
    lightness = evaluator.lightness(pictures)
    batches = {"truth": pictures.rgb, "lightness": evaluator.coloured(lightness, torch.zeros_like(pictures.ab))}
    for method in evaluator.methods:
        if method.method.source not in ("truth", "grey"):
            batches[method.method.name] = evaluator.coloured(lightness, method(pictures))
    return {name: as_array(rgb) for name, rgb in batches.items()}


@torch.inference_mode()
def _colour_at_temperatures(
    method: ColorizationMethod, evaluator: Evaluator, stream: Stream, index: int
) -> list[np.ndarray]:
    """Colour an image at each of :data:`TEMPERATURES`."""
    pictures = evaluator.pictures(stream.collate([stream[index]]))
    lightness = evaluator.lightness(pictures)
    predictions = (method.colorizer.ab(pictures.rgb, temperature) for temperature in TEMPERATURES)
    return [as_array(evaluator.coloured(lightness, ab)) for ab in predictions]
