"""The table of protocols, and what follows from it."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

import transfer
from crosschannel import UserError
from crosschannel.config.keys import science, values_of_role
from crosschannel.config.types import Data, Source
from crosschannel.data import MemoryImages, Record, Stream, load_batches
from crosschannel.data.views import SampleRNG
from crosschannel.training.task import Evaluation
from transfer.cli import PROGRAM
from transfer.protocol import as_config, unweighted_metrics, weighted_mean
from transfer.protocols import PROTOCOLS
from transfer.protocols.classify.task import RandomScaleCrops


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_a_function_and_a_command_with_the_same_defaults(name):
    entry = PROTOCOLS[name]
    protocol = entry.load()
    assert protocol.name == protocol.config.protocol == name
    assert callable(protocol) and getattr(transfer, protocol.__name__) is protocol
    assert getattr(transfer, protocol.config.__name__) is protocol.config is entry.keys
    typed = replace(PROGRAM.parse(name, ["--backbone=b", "--data=d"]), backbone="", data="", out=None)
    assert as_config(protocol, None) == typed == protocol.config()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_roles_say_what_a_key_names(name):
    config = PROGRAM.parse(name, ["--backbone=random:alexnet", "--data=photos", "--seed=3"])
    assert values_of_role(config, Source) == {"backbone": "random:alexnet"}
    assert values_of_role(config, Data) == {"data": "photos"}
    apart = science(config, asdict(config))
    assert not {"backbone", "data", "seed", "out", "device"} & set(apart) and apart


def test_figures_are_those_of_images_that_count_once():
    row = np.array([True, False, True, True])
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 0, 2], [0, 4, 0, 0]])
    assert weighted_mean(row, weights).tolist() == [0.75, 1.0, 0.0]
    rows = {"names": np.array(list("abcd")), "x/top1": row}
    assert unweighted_metrics(lambda r, w: {"x": weighted_mean(r["x/top1"], w)}, rows) == {"x": 0.75}


def test_random_scale_windows_have_the_scales_and_places_asked_for(photos):
    """s from min(½, s₂) to s₂ = min(2, H / size, W / size); anywhere; half of them mirrored."""
    import io

    from PIL import Image

    ramp = np.zeros((300, 400, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(400) * 255 // 399, (np.arange(300) * 255 // 299)[:, None]
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    view, scales, mirrored, lefts = RandomScaleCrops(100), [], 0, []
    for number in range(400):
        crop = view(Record({"image": buffer.getvalue()}), SampleRNG(0, (number,))).astype(float)
        assert crop.shape == (100, 100, 3)
        across = (crop[50, -1, 0] - crop[50, 0, 0]) / 255 * 399
        down = (crop[-1, 50, 1] - crop[0, 50, 1]) / 255 * 299
        mirrored += across < 0
        scales.append(down / 99)
        assert abs(across) == pytest.approx(down, abs=4)
        lefts.append(min(crop[50, 0, 0], crop[50, -1, 0]) / 255 * 399)
    assert min(scales) == pytest.approx(0.5, abs=0.05) and max(scales) == pytest.approx(2.0, abs=0.05)
    assert np.mean(scales) == pytest.approx(1.25, abs=0.08) and 160 < mirrored < 240
    assert min(lefts) < 15 and max(lefts) > 250
    small = RandomScaleCrops(500)(Record({"image": buffer.getvalue()}), SampleRNG(0, (1,)))  # s₂ = 0.6
    assert small.shape == (500, 500, 3)


def test_test_crops_are_the_same_in_every_run_and_differ_within_an_image(photo_folder):
    from crosschannel.data import open_images

    images: MemoryImages = open_images(str(photo_folder))[1]
    stream = Stream(images, RandomScaleCrops(48, views=3))
    first, again = (list(load_batches(stream, 0, stream.count, 6, workers=w)) for w in (0, 2))
    assert all((a.images == b.images).all() for a, b in zip(first, again, strict=True))
    assert first[0].indices.tolist() == [0, 0, 0, 1, 1, 1]
    assert (first[0].images[0] != first[0].images[1]).any()


@pytest.mark.parametrize(
    ("rows", "figure", "words"),
    [
        ({"names": ["a"]}, 1.0, "must have a row for each of the 20 images"),
        ({"x": np.zeros(20)}, 1.0, "must have a row for each of the 20 images"),
        ({"names": [str(i) for i in range(20)]}, np.float32(0.5), ""),
    ],
)
def test_rows_and_figures_are_checked_before_a_run_is_finished(photo_folder, tmp_path, rows, figure, words):
    protocol = replace(transfer.knn, measure=lambda m: _written(m, Evaluation({"x": figure}, 20, rows)))
    call = partial(protocol, "random:alexnet,fc=0,size=64,resize=72", str(photo_folder), out=tmp_path / "run")
    if words:
        with pytest.raises(UserError, match=words):
            call()
        assert not (tmp_path / "run" / "result.json").exists()
    else:
        assert call().metrics == {"x": 0.5}


def _written(measurement, evaluation):
    measurement.run.write_config(measurement.config)
    return evaluation
