"""`crosschannel study build`: the pictures of a study, under names that say nothing."""

import hashlib
import io
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from crosschannel.console import escape_control, progress, stderr_console
from crosschannel.data import ImageSet, Stream
from crosschannel.data.open import open_evaluated_images
from crosschannel.data.order import epoch_order
from crosschannel.errors import UserError
from crosschannel.evaluation.config import EvaluateConfig, Method, parse_methods
from crosschannel.evaluation.evaluator import Evaluator
from crosschannel.evaluation.methods import ColorizationMethod, Pairs, Pictures, WithDonors, load_methods
from crosschannel.evaluation.scores import as_array
from crosschannel.files import atomic_folder
from crosschannel.study.config import StudyBuildConfig
from crosschannel.study.manifest import CHECK, MANIFEST, PICTURES, TRUTH, Manifest, Photograph
from crosschannel.training.device import find_device
from crosschannel.version import __version__

_GREY = 10.0  # the greatest chroma that any pixel of a photograph has which is left out as grey …
_SHARE = 0.01  # … but for so many of its pixels
_CHECK = ColorizationMethod(Method(CHECK, "random"), None)


def build(config: StudyBuildConfig) -> Path:
    """Make a study; returns its folder.

    Raises:
        UserError: no data, a method that colours nothing, too few photographs in colour, or a folder that is not empty.
    """
    out, methods, device = Path(config.out), parse_methods(config.methods), find_device(config.device)
    with atomic_folder(out, "crosschannel study build", rf"{PICTURES}|{re.escape(MANIFEST)}") as part:
        images = open_evaluated_images(config.data)
        loaded = load_methods(methods, config.upsample, device)
        checks = max(round(config.pairs * config.checks), int(config.checks > 0))
        shown = [*loaded, *[_CHECK] * bool(checks)]
        wanted = config.images + config.practice
        (part / PICTURES).mkdir()
        manifest = Manifest(
            data=config.data,
            methods=dict(zip((method.name for method in methods), config.methods, strict=True)),
            size=config.size,
            pairs=config.pairs,
            practice=config.practice,
            checks=checks,
            left_out={},
            sha256={},
            version=__version__,
            photographs=[],
            gamut=config.gamut,
            first=config.first,
            before_ms=config.before_ms,
            between_ms=config.between_ms,
        )
        evaluator = Evaluator(EvaluateConfig(config.data, gamut=config.gamut), shown, None, None, device)
        found = _photographs(config, images, evaluator, manifest.left_out)
        for _ in progress(range(wanted), "colouring", wanted):
            name, pictures = next(found, ("", None))
            if pictures is None:
                raise UserError(
                    f"only {len(manifest.photographs)} of the {len(images)} images of {config.data!r} are photographs "
                    f"in colour that can be read, and images + practice is {wanted}: give fewer --images"
                )
            photograph = Photograph(name, len(manifest.photographs) < config.practice, {})
            for key, data in _encoded(evaluator, pictures):
                photograph.files[key] = f"{secrets.token_hex(16)}.png"
                (part / PICTURES / photograph.files[key]).write_bytes(data)
                manifest.sha256[photograph.files[key]] = hashlib.sha256(data).hexdigest()
            manifest.photographs.append(photograph)
        manifest.write(part)
    console = stderr_console()
    for name, why in manifest.left_out.items():
        console.print(f"left out {name}: {why}")
    console.print(
        f"{out}: {config.images} photographs by {len(methods)} methods, {config.practice} more to practise on",
    )
    return out


def _photographs(
    config: StudyBuildConfig, images: ImageSet, evaluator: Evaluator, left_out: dict[str, str]
) -> Iterator[tuple[str, Pictures]]:
    """Photographs in colour, in random order, each a batch of one; others are noted."""
    stream = Stream(WithDonors(images, images, config.seed), Pairs(config.size, images))
    for index in map(int, epoch_order(len(images), config.seed, 0)):
        batch = stream.collate([stream[index]])
        if isinstance(batch, UserError):
            raise batch
        if not len(batch):
            left_out[escape_control(images.names[index])] = batch.broken[0][1]
            continue
        pictures = evaluator.pictures(batch)
        chroma = pictures.ab.norm(dim=1)
        if (chroma > _GREY).float().mean() < _SHARE:
            left_out[escape_control(images.names[index])] = "it is grey"
        else:
            yield escape_control(images.names[index]), pictures


@torch.inference_mode()
def _encoded(evaluator: Evaluator, pictures: Pictures) -> Iterator[tuple[str, bytes]]:
    """The photograph and all that is made of it as files of one size: nothing is compressed, so that nothing can be
    told from how well it could be."""
    lightness = evaluator.lightness(pictures)
    found = {TRUTH: pictures.rgb}
    found |= {painter.method.name: evaluator.coloured(lightness, painter(pictures)) for painter in evaluator.methods}
    lengths = set()
    for key, rgb in found.items():
        file = io.BytesIO()
        Image.fromarray(as_array(rgb)).save(file, "PNG", compress_level=0)
        lengths.add(len(file.getvalue()))
        yield key, file.getvalue()
    if len(lengths) != 1:
        raise RuntimeError(f"files of one picture differ in length: {sorted(lengths)}")
