import io

import numpy as np
import pytest
from PIL import Image

from crosschannel.data import CropConfig
from crosschannel.data.crops import centre_box, crop_and_resize, random_box
from crosschannel.data.decode import EncodedImage
from crosschannel.data.order import uniforms


def png(pixels: np.ndarray) -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


def test_the_centre_box_is_the_middle_of_the_resized_image():
    left, top, right, bottom = centre_box(500, 400, 192, 256)
    side = 400 * 192 / 256
    assert (right - left, bottom - top) == pytest.approx((side, side))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((250, 200))


@pytest.mark.parametrize("train", ["random", "random-in-centre", "random-resized"])
@pytest.mark.parametrize("size", [(500, 400), (90, 1000), (1, 1), (33, 7)])
def test_training_boxes_stay_inside_and_move(train, size):
    crop = CropConfig(size=176, resize=256, kind=train)
    boxes = np.array([random_box(*size, crop, uniforms(5, 1, 0, i)) for i in range(300)])
    assert boxes.dtype == int and (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= size[0]).all() and (boxes[:, 3] <= size[1]).all()
    assert (boxes[:, 2] > boxes[:, 0]).all() and (boxes[:, 3] > boxes[:, 1]).all()
    assert len(np.unique(boxes, axis=0)) > min(200, 2 * size[0] * size[1] // 100)


def test_every_place_of_a_random_crop_is_as_likely():
    crop = CropConfig(size=176, resize=256)
    lefts = [random_box(256, 300, crop, uniforms(5, 3, 0, i))[0] for i in range(81 * 200)]
    counts = np.bincount(lefts, minlength=81)
    assert len(counts) == 81 and abs(counts - 200).max() < 5 * 200**0.5


def test_a_crop_in_the_centre_is_a_random_crop_of_the_centre_square():
    """DeepCluster's: short side 256, the centre 256², a random 224² of it."""
    crop = CropConfig(size=224, resize=256, kind="random-in-centre")
    boxes = np.array([random_box(256, 400, crop, uniforms(5, 3, 0, i)) for i in range(33 * 33 * 4)])
    assert (boxes[:, 2:] - boxes[:, :2] == 224).all()
    lefts, tops = np.unique(boxes[:, 0]), np.unique(boxes[:, 1])
    assert list(lefts) == list(range(33)) and list(tops) == list(range(72, 72 + 33))


def test_a_crop_of_an_image_of_the_right_size_is_a_copy(photos):
    image = photos[1][:256]
    crop = CropConfig(size=176, resize=256)
    box = random_box(image.shape[1], 256, crop, [0.37, 0.61, 0, 0])
    assert np.array_equal(crop_and_resize(png(image), box, 176), image[box[1] : box[3], box[0] : box[2]])


def test_random_resized_boxes_have_the_areas_and_shapes_asked_for():
    crop = CropConfig(kind="random-resized", area=(0.2, 0.5), aspect=4 / 3)
    boxes = np.array([random_box(1000, 1000, crop, uniforms(5, 2, 0, i)) for i in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 1e6, width / height
    assert area.min() > 0.199 and area.max() < 0.501 and 0.33 < area.mean() < 0.37
    assert ratio.min() >= 0.747 and ratio.max() <= 1.337  # on whole pixels
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


def test_a_cut_equals_cropping_and_resizing_with_pillow(photos):
    image = Image.fromarray(photos[1])
    box = (40, 20, 240, 220)
    ours = crop_and_resize(png(photos[1]), box, 100)
    theirs = np.asarray(image.crop((40, 20, 240, 220)).resize((100, 100), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.array_equal(crop_and_resize(png(photos[1]), box, 100, mirror=True), ours[:, ::-1])


def test_a_jpeg_decoded_at_reduced_size_gives_nearly_the_same_cut(photos):
    image = Image.fromarray(photos[0])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    ours = crop_and_resize(EncodedImage(buffer.getvalue()), (0, 0, 512, 512), 96)
    theirs = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_one_pixel_becomes_a_crop():
    pixels = crop_and_resize(png(np.array([[[10, 200, 30]]], np.uint8)), centre_box(1, 1, 32, 32), 32)
    assert pixels.shape == (32, 32, 3) and (pixels == (10, 200, 30)).all()
