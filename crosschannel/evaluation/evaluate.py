"""One pass over images: every method colours a batch on the device, everything is scored there, a row an image is kept.

Rows are written in parts as they come, so that a run that was stopped goes on with the first part that is not there.
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

_PART = 512  # images of a part
_MEANING = (
    "AuC: the share of pixels whose colour is within a threshold of the truth, averaged over thresholds of 0 to 150; "
    "rebalanced: as if all colours were equally common. What grey reaches is worth nothing."
)


def evaluate(config: EvaluateConfig, flag: InterruptFlag | None = None) -> Path:
    """Score (or resume scoring) colorization methods; returns the run folder.

    Args:
        config: keys of the command.
        flag: stop signals; default: those received during the call.

    Raises:
        UserError: bad input.
        Interrupted: told to stop; what is done is kept, and the same command goes on.
    """
    config = check_config(config, EvaluateConfig)
    path = Path(config.out or config.default_out("evaluate"))
    patience = PATIENCE if flag is None else None
    with isolated(config.seed), joined_world(find_device(config.device), patience) as world:
        console = stderr_console(quiet=not world.is_main)
        with open_run(path, "evaluate", config, world, flag) as run:
            world.broadcast_from_main(lambda: run.check_files(input_files(config)))
            if not run.is_done(config.data):
                images = _images(config)
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


def _images(config: EvaluateConfig) -> ImageSet:
    images = open_evaluated_images(config.data)
    if config.limit and config.limit < len(images):
        images = Subset(images, np.sort(epoch_order(len(images), config.seed, 0)[: config.limit]))
    return images


def _measure(
    config: EvaluateConfig, images: ImageSet, donors: ImageSet, run: RunFolder, world: World, console: Console
) -> None:
    methods = parse_methods(config.methods)
    most = int(0.9 * LARGEST) // (4 * Q * (len(methods) + 1))  # pixels by bin, and the same of each method
    if len(images) > most:
        raise UserError(
            f"{len(images)} images by {len(methods)} methods give more rows than a result holds: give --limit {most}"
        )
    stream = Stream(images, Pairs(config.size))
    if any(method.source == "random" for method in methods):
        stream = Stream(WithDonors(images, donors, config.seed), Pairs(config.size, donors))
    loaded = load_methods(methods, config.upsample, world.device)
    fooled = people_fooled(config.realism) if config.realism else {}
    names = [method.name for method in methods]
    if fooled and not fooled.keys() & set(names):
        raise UserError(
            f"{config.realism} is of {', '.join(fooled)}, and the methods are {', '.join(names)}: "
            "write them as NAME=SOURCE"
        )
    interpretability = lpips = None
    if config.classifier:
        interpretability = Interpretability(config.classifier, images.classes, world.device)
    if config.lpips:
        lpips = LPIPS(config.lpips, world.device)
    evaluator = Evaluator(config, loaded, interpretability, lpips, world.device)
    console.print(f"{run.path}: {len(images)} images, {len(methods)} methods")
    world.broadcast_from_main(lambda: run.write_config(config))
    parts = run.path / "parts"
    world.broadcast_from_main(lambda: parts.mkdir(exist_ok=True))
    starts = range(0, len(images), _PART)
    for start in progress(starts, "colouring", len(starts)) if world.is_main else starts:
        if not world.broadcast_from_main(partial(_is_there, parts, start)):
            _score_part(evaluator, stream, start, parts, run, world)
    world.broadcast_from_main(lambda: _finish(config, evaluator, stream, fooled, run, console))


def _is_there(parts: Path, start: int) -> bool:
    return (parts / f"{start:09d}.json").is_file()


def _score_part(evaluator: Evaluator, stream: Stream, start: int, parts: Path, run: RunFolder, world: World) -> None:
    """Score some images and write their rows."""
    config, images = evaluator.config, stream.images
    chosen = np.arange(start, min(len(images), start + _PART))
    held_out = HeldOut(
        Stream(Subset(images, chosen), stream.view),
        evaluator.score,
        world,
        config.batch,
        config.workers,
        lambda: world.any(run.flag.is_set),
        may_be_empty=True,
    )
    indices: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {}
    curves: dict[str, Tensor] = {}
    for batch, (rows, counts) in held_out:
        indices.append(batch.indices)
        for name, column in rows.items():
            columns.setdefault(name, []).append(column)
        for name, levels in counts.items():
            curves[name] = curves.get(name, 0) + levels
    _fill_in(world, columns)
    found, rows = in_order(world, indices, columns)
    nothing = torch.zeros(Q, LEVELS, dtype=torch.int64, device=world.device)
    levels = {
        f"{name}/levels": world.sum(curves.get(name, nothing).clone()).cpu().numpy()
        for name in (painter.method.name for painter in evaluator.methods)
    }
    arrays = {"indices": (found + start).numpy(), **{name: column.numpy() for name, column in rows.items()}, **levels}
    world.broadcast_from_main(lambda: _write_part(parts, start, arrays, held_out.broken))


def _fill_in(world: World, columns: dict[str, list[Tensor]]) -> None:
    """Give a rank that has seen no image the columns of the others, empty."""
    shapes = {name: (parts[0].shape[1:], parts[0].dtype) for name, parts in columns.items()}
    for rank in world.gather(shapes):
        for name, (shape, dtype) in rank.items():
            columns.setdefault(name, [torch.empty(0, *shape, dtype=dtype, device=world.device)])


def _write_part(parts: Path, start: int, arrays: dict[str, np.ndarray], broken: dict[str, str]) -> None:
    with atomic_write(parts / f"{start:09d}.npz") as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    with atomic_write(parts / f"{start:09d}.json") as part:
        part.write_text(json.dumps(broken), encoding="utf-8")


def _read_parts(parts: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """All columns, all curves, all broken images."""
    columns: dict[str, list[np.ndarray]] = {}
    curves: dict[str, np.ndarray] = {}
    broken: dict[str, str] = {}
    for path in sorted(parts.glob("*.json")):
        broken |= read_json(path)
        for name, array in read_arrays(path.with_suffix(".npz")).items():
            if name.endswith("/levels"):
                name = name.removesuffix("/levels")
                curves[name] = curves.get(name, 0) + array
            else:
                columns.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}, curves, broken


def _finish(
    config: EvaluateConfig,
    evaluator: Evaluator,
    stream: Stream,
    fooled: dict[str, float],
    run: RunFolder,
    console: Console,
) -> None:
    """Figures, costs, the page and the result of a pass that is over."""
    rows, curves, broken = _read_parts(run.path / "parts")
    for name, reason in broken.items():
        console.print(f"broken image {name}: {reason}")
    indices = rows.pop("indices", np.empty(0, np.int64))
    problem = ""
    if not len(indices):
        problem = "none of the images can be read"
    elif (rows["pixels"].sum(0) > 0).sum() < 2:
        problem = f"the images of {config.data} are all grey: there is no colour to compare with"
    if problem:
        shutil.rmtree(run.path / "parts")  # nobody wants to go on with them
        raise UserError(problem)
    rows = {"names": np.array([stream.images.names[int(index)] for index in indices]), **rows}
    figures = {name: float(values[0]) for name, values in metrics(rows, np.ones((1, len(indices)))).items()}
    names = [painter.method.name for painter in evaluator.methods]
    for painter in evaluator.methods:
        if painter.colorizer is not None:
            found = cost(painter.colorizer, config.size, evaluator.device)
            figures |= {f"{painter.method.name}/{name}": value for name, value in found.items()}
    figures |= {f"{name}/fooled": rate for name, rate in fooled.items() if name in names}
    page = write_page(run.path, config, rows, curves, figures, evaluator, stream, indices)
    told = {"prior": config.prior, "random from": config.random_from, "classifier": config.classifier}
    what = ", ".join([*config.methods, *(f"{key} {value}" for key, value in told.items() if value not in (None, OWN))])
    finish(run, config, what, config.data, len(indices), figures, rows)
    _show(figures, names)
    stdout_console().print(_MEANING)
    stdout_console().print(f"page: {page}")


def people_fooled(path: str) -> dict[str, float]:
    """What `crosschannel study report` found, by method.

    Raises:
        UserError: the file is none of its.
    """
    lines = read_text(user_path(path)).splitlines()
    try:
        rows = list(csv.DictReader(lines))
        found = {
            cell_text(row["method"]): float(row["fooled"]) for row in rows if float(row["standard_error"] or 0) >= 0
        }
    except (csv.Error, KeyError, TypeError, ValueError, AttributeError):
        found = {}
    if not found or not all(0 <= rate <= 1 for rate in found.values()):
        raise UserError(f"{path} is no fooled.csv of `crosschannel study report`")
    return found


def _show(figures: dict[str, float], names: list[str]) -> None:
    """The measured table on stdout."""
    found = measured("", {name: cells(figures, name, {}) for name in names})
    stdout_console(soft_wrap=False).print(table({label: cells for label, *cells in found.rows}, found.head))
