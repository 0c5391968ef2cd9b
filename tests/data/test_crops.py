import io

import numpy as np
import pytest
from PIL import Image

from crosschannel.data.crops import CropConfig, centre_box, cut, random_box
from crosschannel.data.order import uniforms


def test_the_centre_box_is_the_middle_of_the_resized_image():
    left, top, right, bottom = centre_box(500, 400, CropConfig(size=192, resize=256))
    side = 400 * 192 / 256
    assert (right - left, bottom - top) == pytest.approx((side, side))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((250, 200))


@pytest.mark.parametrize("train", ["random", "random-resized"])
@pytest.mark.parametrize("size", [(500, 400), (90, 1000), (1, 1), (33, 7)])
def test_training_boxes_stay_inside_and_move(train, size):
    crop = CropConfig(size=176, resize=256, train=train)
    boxes = np.array([random_box(*size, crop, uniforms(5, 1, 0, i)) for i in range(300)])
    assert (boxes[:, :2] >= -1e-9).all()
    assert (boxes[:, 2] <= size[0] + 1e-9).all() and (boxes[:, 3] <= size[1] + 1e-9).all()
    assert (boxes[:, 2] > boxes[:, 0]).all() and (boxes[:, 3] > boxes[:, 1]).all()
    assert len(np.unique(boxes.round(6), axis=0)) > 200


def test_random_resized_boxes_have_the_areas_and_shapes_asked_for():
    crop = CropConfig(train="random-resized", area=(0.2, 0.5), aspect=4 / 3)
    boxes = np.array([random_box(1000, 1000, crop, uniforms(5, 2, 0, i)) for i in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 1e6, width / height
    assert area.min() > 0.199 and area.max() < 0.501 and 0.33 < area.mean() < 0.37
    assert ratio.min() >= 0.749 and ratio.max() <= 1.334 and np.median(ratio) == pytest.approx(1, abs=0.03)


def test_a_cut_equals_cropping_and_resizing_with_pillow(photos):
    image = Image.fromarray(photos[1])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    box = (40.0, 20.0, 240.0, 220.0)
    ours = cut(buffer.getvalue(), image.size, box, 100, mirror=False)
    theirs = np.asarray(image.crop((40, 20, 240, 220)).resize((100, 100), Image.Resampling.BILINEAR))
    assert np.abs(ours[2:-2, 2:-2].astype(int) - theirs[2:-2, 2:-2]).max() <= 1
    assert np.array_equal(cut(buffer.getvalue(), image.size, box, 100, mirror=True), ours[:, ::-1])


def test_a_jpeg_decoded_at_reduced_size_gives_nearly_the_same_cut(photos):
    image = Image.fromarray(photos[0])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    box = (0.0, 0.0, 512.0, 512.0)
    ours = cut(buffer.getvalue(), image.size, box, 96, mirror=False)
    theirs = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_one_pixel_becomes_a_crop():
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (10, 200, 30)).save(buffer, "PNG")
    pixels = cut(buffer.getvalue(), (1, 1), centre_box(1, 1, CropConfig(32, 32)), 32, mirror=False)
    assert pixels.shape == (32, 32, 3) and (pixels == (10, 200, 30)).all()
