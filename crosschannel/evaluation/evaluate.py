"""`crosschannel evaluate`: colour every batch with all methods and score it, in one pass over the images.

Rows are saved in parts during the pass, so that an interrupted run resumes at the first missing part.
"""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from crosschannel.config.load import check_config
from crosschannel.console import progress, stderr_console, stdout_console, table
from crosschannel.csv_files import cell_text
from crosschannel.data import ImageSet, Stream, Subset
from crosschannel.data.images import name_fingerprints
from crosschannel.data.open import open_evaluated_images, open_training_images
from crosschannel.data.order import epoch_order
from crosschannel.errors import UserError
from crosschannel.evaluation.config import OWN, EvaluateConfig, parse_methods
from crosschannel.evaluation.cost import cost
from crosschannel.evaluation.evaluator import Evaluator
from crosschannel.evaluation.judges import LPIPS, Interpretability
from crosschannel.evaluation.methods import Pairs, WithDonors, load_methods
from crosschannel.evaluation.metrics import metrics
from crosschannel.evaluation.page import cells, measured, write_page
from crosschannel.evaluation.scores import LEVELS, Q
from crosschannel.files import atomic_write, read_text, user_path
from crosschannel.hub.sources import input_files
from crosschannel.runs.folder import RunFolder
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.runs.result import finish
from crosschannel.stored import LARGEST, read_arrays, read_json
from crosschannel.training.device import find_device
from crosschannel.training.held_out import HeldOut, in_order
from crosschannel.training.isolation import isolated
from crosschannel.training.ranks import PATIENCE, World, joined_world
from crosschannel.training.runs import open_run

_PART_SIZE = 512  # images per part
_EXPLANATION = (
    "AuC: percentage of pixels whose ab is within a threshold of the true ab, averaged over thresholds from 0 to 150; "
    "rebalanced: as if all colours were equally common. The baseline is grey, which predicts no colour."
)


def evaluate(config: EvaluateConfig, flag: InterruptFlag | None = None) -> Path:
    """Evaluate colorization methods, or resume the evaluation, and return the run folder.

    Args:
        config: keys of the command.
        flag: flag that stop signals set; by default a new one for signals received during the call.

    Raises:
        UserError: the config or its input files are invalid.
        Interrupted: stopped by a signal; progress is saved, and the same command resumes the run.
    """
    config = check_config(config, EvaluateConfig)
    path = Path(config.out or config.default_out("evaluate"))
    patience = PATIENCE if flag is None else None
    with isolated(config.seed), joined_world(find_device(config.device), patience) as world:
        console = stderr_console(quiet=not world.is_main)
        with open_run(path, "evaluate", config, world, flag) as run:
            world.broadcast_from_main(lambda: run.check_files(input_files(config)))
            if not run.is_done(config.data):
                images = _open_images(config)
                donors = open_training_images(config.random_from) if config.random_from else images
                world.broadcast_from_main(partial(run.check_images, name_fingerprints(donors, images)))
            if run.finished:
                console.print(f"{path} is finished: nothing to do")
                return path
            _measure(config, images, donors, run, world, console)
    return path


def main(config: EvaluateConfig) -> Path:
    """Run `crosschannel evaluate`; afterwards this process ignores signals, to preserve its exit code."""
    return evaluate(config, InterruptFlag(last=True))


def _open_images(config: EvaluateConfig) -> ImageSet:
    images = open_evaluated_images(config.data)
    if config.limit and config.limit < len(images):
        images = Subset(images, np.sort(epoch_order(len(images), config.seed, 0)[: config.limit]))
    return images


def _measure(
    config: EvaluateConfig, images: ImageSet, donors: ImageSet, run: RunFolder, world: World, console: Console
) -> None:
    methods = parse_methods(config.methods)
    max_images = int(0.9 * LARGEST) // (4 * Q * (len(methods) + 1))  # float32 rows (n, 313): pixels, AuC per method
    if len(images) > max_images:
        raise UserError(
            f"the rows of {len(images)} images and {len(methods)} methods exceed the maximum size of a result file; "
            f"use --limit {max_images}"
        )
    stream = Stream(images, Pairs(config.size))
    if any(method.source == "random" for method in methods):
        stream = Stream(WithDonors(images, donors, config.seed), Pairs(config.size, donors))
    loaded_methods = load_methods(methods, config.upsample, world.device)
    fooled = read_fooled_rates(config.realism) if config.realism else {}
    names = [method.name for method in methods]
    if fooled and not fooled.keys() & set(names):
        raise UserError(
            f"{config.realism} has rates of {', '.join(fooled)}, but the methods are {', '.join(names)}; "
            "name them with NAME=SOURCE"
        )
    interpretability = lpips = None
    if config.classifier:
        interpretability = Interpretability(config.classifier, images.classes, world.device)
    if config.lpips:
        lpips = LPIPS(config.lpips, world.device)
    evaluator = Evaluator(config, loaded_methods, interpretability, lpips, world.device)
    console.print(f"{run.path}: {len(images)} images, {len(methods)} methods")
    world.broadcast_from_main(lambda: run.write_config(config))
    parts = run.path / "parts"
    world.broadcast_from_main(lambda: parts.mkdir(exist_ok=True))
    starts = range(0, len(images), _PART_SIZE)
    for start in progress(starts, "colouring", len(starts)) if world.is_main else starts:
        if not world.broadcast_from_main(partial(_has_part, parts, start)):
            _score_part(evaluator, stream, start, parts, run, world)
    world.broadcast_from_main(lambda: _finish(config, evaluator, stream, fooled, run, console))


def _has_part(parts: Path, start: int) -> bool:
    return (parts / f"{start:09d}.json").is_file()


def _score_part(evaluator: Evaluator, stream: Stream, start: int, parts: Path, run: RunFolder, world: World) -> None:
    """Score the images of a part, and write its rows."""
    config, images = evaluator.config, stream.images
    part_indices = np.arange(start, min(len(images), start + _PART_SIZE))
    held_out = HeldOut(
        Stream(Subset(images, part_indices), stream.view),
        evaluator.score,
        world,
        config.batch,
        config.workers,
        lambda: world.any(run.flag.is_set),
        may_be_empty=True,
    )
    indices: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {}
    level_counts: dict[str, Tensor] = {}
    for batch, (rows, counts) in held_out:
        indices.append(batch.indices)
        for name, column in rows.items():
            columns.setdefault(name, []).append(column)
        for name, levels in counts.items():
            level_counts[name] = level_counts.get(name, 0) + levels
    _add_missing_columns(world, columns)
    scored_indices, rows = in_order(world, indices, columns)
    no_pixels = torch.zeros(Q, LEVELS, dtype=torch.int64, device=world.device)
    levels = {
        f"{name}/levels": world.sum(level_counts.get(name, no_pixels).clone()).cpu().numpy()
        for name in (method.method.name for method in evaluator.methods)
    }
    arrays = {
        "indices": (scored_indices + start).numpy(),
        **{name: column.numpy() for name, column in rows.items()},
        **levels,
    }
    world.broadcast_from_main(lambda: _write_part(parts, start, arrays, held_out.broken))


def _add_missing_columns(world: World, columns: dict[str, list[Tensor]]) -> None:
    """Add empty columns on ranks that scored no image, so that all ranks have the same columns."""
    shapes = {name: (batches[0].shape[1:], batches[0].dtype) for name, batches in columns.items()}
    for rank in world.gather(shapes):
        for name, (shape, dtype) in rank.items():
            columns.setdefault(name, [torch.empty(0, *shape, dtype=dtype, device=world.device)])


def _write_part(parts: Path, start: int, arrays: dict[str, np.ndarray], broken: dict[str, str]) -> None:
    with atomic_write(parts / f"{start:09d}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    with atomic_write(parts / f"{start:09d}.json") as temporary:
        temporary.write_text(json.dumps(broken), encoding="utf-8")


def _read_parts(parts: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """Read all parts: columns by name, pixel counts by method, and reasons by broken image."""
    columns: dict[str, list[np.ndarray]] = {}
    level_counts: dict[str, np.ndarray] = {}
    broken: dict[str, str] = {}
    for path in sorted(parts.glob("*.json")):
        broken |= read_json(path)
        for name, array in read_arrays(path.with_suffix(".npz")).items():
            if name.endswith("/levels"):
                name = name.removesuffix("/levels")
                level_counts[name] = level_counts.get(name, 0) + array
            else:
                columns.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}, level_counts, broken


def _finish(
    config: EvaluateConfig,
    evaluator: Evaluator,
    stream: Stream,
    fooled: dict[str, float],
    run: RunFolder,
    console: Console,
) -> None:
    """Compute the metrics and costs after the last part, and write the report and the result."""
    rows, level_counts, broken = _read_parts(run.path / "parts")
    for name, reason in broken.items():
        console.print(f"broken image {name}: {reason}")
    indices = rows.pop("indices", np.empty(0, np.int64))
    problem = ""
    if not len(indices):
        problem = "none of the images can be read"
    elif (rows["pixels"].sum(0) > 0).sum() < 2:
        problem = f"the images of {config.data} are all grey; use colour images"
    if problem:
        shutil.rmtree(run.path / "parts")  # there is no progress to resume from
        raise UserError(problem)
    rows = {"names": np.array([stream.images.names[int(index)] for index in indices]), **rows}
    values = {name: float(value[0]) for name, value in metrics(rows, np.ones((1, len(indices)))).items()}
    names = [method.method.name for method in evaluator.methods]
    for method in evaluator.methods:
        if method.colorizer is not None:
            costs = cost(method.colorizer, config.size, evaluator.device)
            values |= {f"{method.method.name}/{name}": value for name, value in costs.items()}
    values |= {f"{name}/fooled": rate for name, rate in fooled.items() if name in names}
    page = write_page(run.path, config, rows, level_counts, values, evaluator, stream, indices)
    options = {"prior": config.prior, "random from": config.random_from, "classifier": config.classifier}
    source = ", ".join(
        [*config.methods, *(f"{key} {value}" for key, value in options.items() if value not in (None, OWN))]
    )
    finish(run, config, source, config.data, len(indices), values, rows)
    _print_table(values, names)
    stdout_console().print(_EXPLANATION)
    stdout_console().print(f"report: {page}")


def read_fooled_rates(path: str) -> dict[str, float]:
    """Read the fraction of people fooled by each method, from a ``fooled.csv`` of `crosschannel study report`.

    Raises:
        UserError: the file has another format or invalid rates.
    """
    lines = read_text(user_path(path)).splitlines()
    try:
        rows = list(csv.DictReader(lines))
        rates = {
            cell_text(row["method"]): float(row["fooled"]) for row in rows if float(row["standard_error"] or 0) >= 0
        }
    except (csv.Error, KeyError, TypeError, ValueError, AttributeError):
        rates = {}
    if not rates or not all(0 <= rate <= 1 for rate in rates.values()):
        raise UserError(f"{path} is not a fooled.csv of `crosschannel study report`")
    return rates


def _print_table(values: dict[str, float], names: list[str]) -> None:
    """Print the metrics of all methods as a table on stdout."""
    results = measured("", {name: cells(values, name, {}) for name in names})
    stdout_console(soft_wrap=False).print(table({label: cells for label, *cells in results.rows}, results.head))
