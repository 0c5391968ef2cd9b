"""`crosschannel study build`: write the pictures of a study, under random file names."""

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
from crosschannel.data.folder import format_count
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

_GREY_CHROMA = 10.0  # pixels up to this chroma count as grey
_MIN_COLOURED = 0.01  # photographs with a smaller fraction of coloured pixels count as grey
_CHECK = ColorizationMethod(Method(CHECK, "random"), None)


def build(config: StudyBuildConfig) -> Path:
    """Build a study, and return its folder.

    Raises:
        UserError: the data are missing, a method is not a colorization model, there are too few photographs in colour,
            or the output folder is not empty.
    """
    out, methods, device = Path(config.out), parse_methods(config.methods), find_device(config.device)
    with atomic_folder(out, "crosschannel study build", rf"{PICTURES}|{re.escape(MANIFEST)}") as temp_folder:
        images = open_evaluated_images(config.data)
        loaded_methods = load_methods(methods, config.upsample, device)
        checks = max(round(config.pairs * config.checks), int(config.checks > 0))
        fakes = [*loaded_methods, *[_CHECK] * bool(checks)]
        required = config.images + config.practice
        (temp_folder / PICTURES).mkdir()
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
        evaluator = Evaluator(EvaluateConfig(config.data, gamut=config.gamut), fakes, None, None, device)
        candidates = _select_photographs(config, images, evaluator, manifest.left_out)
        for _ in progress(range(required), "colouring", required):
            name, pictures = next(candidates, ("", None))
            if pictures is None:
                raise UserError(
                    f"only {len(manifest.photographs)} of the {len(images)} images of {config.data!r} are readable and "
                    f"in colour, but images + practice is {required}; reduce --images"
                )
            photograph = Photograph(name, len(manifest.photographs) < config.practice, {})
            for key, data in _encode_versions(evaluator, pictures):
                photograph.files[key] = f"{secrets.token_hex(16)}.png"
                (temp_folder / PICTURES / photograph.files[key]).write_bytes(data)
                manifest.sha256[photograph.files[key]] = hashlib.sha256(data).hexdigest()
            manifest.photographs.append(photograph)
        manifest.write(temp_folder)
    console = stderr_console()
    for name, reason in manifest.left_out.items():
        console.print(f"excluded {name}: {reason}")
    console.print(
        f"{out}: {format_count(config.images, 'photograph')} coloured by {format_count(len(methods), 'method')}, "
        f"and {config.practice} for practice",
    )
    return out


def _select_photographs(
    config: StudyBuildConfig, images: ImageSet, evaluator: Evaluator, exclusion_reasons: dict[str, str]
) -> Iterator[tuple[str, Pictures]]:
    """Yield the names and pictures (batches of one) of colour photographs, in random order.

    The reasons for excluding other images are added to ``exclusion_reasons``, by name.
    """
    stream = Stream(WithDonors(images, images, config.seed), Pairs(config.size, images))
    for index in map(int, epoch_order(len(images), config.seed, 0)):
        batch = stream.collate([stream[index]])
        if isinstance(batch, UserError):
            raise batch
        if not len(batch):
            exclusion_reasons[escape_control(images.names[index])] = batch.broken[0][1]
            continue
        pictures = evaluator.pictures(batch)
        chroma = pictures.ab.norm(dim=1)
        if (chroma > _GREY_CHROMA).float().mean() < _MIN_COLOURED:
            exclusion_reasons[escape_control(images.names[index])] = "it is grey"
        else:
            yield escape_control(images.names[index]), pictures


@torch.inference_mode()
def _encode_versions(evaluator: Evaluator, pictures: Pictures) -> Iterator[tuple[str, bytes]]:
    """Yield the photograph and its coloured versions, as keys of :attr:`Photograph.files` and contents of PNG files.

    The files are uncompressed and of equal length, so that their size does not reveal the fake.
    """
    lightness = evaluator.lightness(pictures)
    versions = {TRUTH: pictures.rgb}
    versions |= {method.method.name: evaluator.coloured(lightness, method(pictures)) for method in evaluator.methods}
    lengths = set()
    for key, rgb in versions.items():
        file = io.BytesIO()
        Image.fromarray(as_array(rgb)).save(file, "PNG", compress_level=0)
        lengths.add(len(file.getvalue()))
        yield key, file.getvalue()
    if len(lengths) != 1:
        raise RuntimeError(f"the files of a photograph's versions differ in length: {sorted(lengths)}")
