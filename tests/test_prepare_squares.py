"""preprocess.py: the content of a picture, and the square that is cut out of it."""

import cv2
import numpy as np
import pytest
from conftest import load_script
from pictures import draw_noise, draw_photo, encode, load_preprocess, psnr
from PIL import Image

preprocess = load_preprocess(MIN_SIDE=1)
Box, Picture = preprocess.Box, preprocess.Picture


def picture_of(image, width=None, height=None):
    """Return a Picture, perhaps as of a larger file."""
    return Picture(image, width or image.shape[1], height or image.shape[0])


def cut(image, box, size, **options):
    picture = picture_of(image)
    return preprocess.cut(picture, Box(*box), picture.box, size, **options)


# ----------------------------------------------------------------------------
# Which box
# ----------------------------------------------------------------------------
def choose(fit, width, height, content=None, room=None, people=None):
    preprocess.FIT = fit
    whole = Box(0, 0, width, height)
    return preprocess.choose_box(content or whole, room or whole, people)


def test_boxes():
    assert choose("crop", 850, 567) == (141, 0, 708, 567)
    assert choose("crop", 567, 850) == (0, 141, 567, 708)
    assert choose("pad", 850, 567) == (0, -142, 850, 708)
    assert choose("pad", 567, 850) == (-142, 0, 708, 850)
    assert choose("stretch", 850, 567) == (0, 0, 850, 567)


def test_squares_about_people_are_moved_rather_than_padded():
    def about(*people, width=850, height=567):
        return choose("person", width, height, people=Box(*people))

    assert about(300, 100, 400, 300) == (235, 85, 465, 315)  # 1.15 times 200
    assert about(0, 0, 100, 200) == (0, 0, 230, 230)
    assert about(750, 400, 850, 567) == (658, 375, 850, 567)
    assert about(200, 0, 400, 500) == (16, 0, 583, 567)  # the margin shrinks to fit
    assert about(200, 7, 400, 567) == (0, -21, 616, 595)  # but not to less than 1.1
    assert about(0, 100, 850, 400) == (0, -175, 850, 675)  # all of it
    assert about(9.1, 9.1, 9.2, 9.2).width == 1


def test_a_square_about_content_may_take_in_its_ground():
    """The white about an athlete is as good as the athlete is whole."""
    content = Box(400, 100, 456, 564)
    assert choose("crop", 800, 800, content) == (161, 65, 695, 599)
    assert choose("pad", 800, 800, content) == (161, 65, 695, 599)
    content = Box(700, 100, 756, 564)
    assert choose("crop", 800, 800, content) == (266, 65, 800, 599)
    framed = Box(30, 40, 430, 340)  # a photo: nothing of its frame
    assert choose("crop", 800, 800, framed, framed) == (80, 40, 380, 340)
    assert choose("pad", 800, 800, framed, framed) == (30, -10, 430, 390)


# ----------------------------------------------------------------------------
# Content
# ----------------------------------------------------------------------------
def test_frames_and_bars_are_left_out():
    module = load_preprocess()
    photo = draw_noise(2, 100, 80)
    framed = np.full((120, 150, 3), 200, np.uint8)
    framed[30:110, 5:105] = photo
    noise = np.random.default_rng(0).integers(-2, 3, framed.shape)
    framed = np.where(framed == 200, framed + noise, framed).astype(np.uint8)
    inner = (5, 30, 105, 110)
    assert module.find_content(picture_of(framed)) == (inner, inner)
    whole = (0, 0, 100, 80)
    assert module.find_content(picture_of(photo)) == (whole, whole)
    flat = np.full((50, 60, 3), 9, np.uint8)
    assert module.find_content(picture_of(flat)) == ((0, 0, 60, 50), (0, 0, 60, 50))
    for halves in (flat.copy(), flat.copy().swapaxes(0, 1)):  # a flag
        halves[:25] = 200
        whole = Box(0, 0, halves.shape[1], halves.shape[0])
        assert module.find_content(picture_of(halves)) == (whole, whole)
    bars = np.pad(photo, ((20, 20), (0, 0), (0, 0)))
    inner = (0, 20, 100, 100)
    assert module.find_content(picture_of(bars)) == (inner, inner)


def test_content_is_in_pixels_of_the_file():
    module = load_preprocess()
    framed = np.full((100, 200, 3), 255, np.uint8)
    framed[10:90, 20:180] = draw_noise(2, 160, 80)
    inner = (80, 40, 720, 360)
    assert module.find_content(picture_of(framed, 800, 400)) == (inner, inner)


def test_a_figure_on_an_even_ground_may_have_more_of_it():
    module = load_preprocess()
    image = np.full((800, 800, 3), 255, np.uint8)
    cv2.ellipse(image, (428, 332), (70, 232), 0, 0, 360, (90, 60, 50), -1)
    content, room = module.find_content(picture_of(image))
    assert content == (358, 100, 499, 565)
    assert room == (0, 0, 800, 800)
    narrow = np.full((800, 800, 3), 255, np.uint8)  # no photo has such a shape
    narrow[100:564, 400:456] = draw_noise(1, 56, 464)
    content, room = module.find_content(picture_of(narrow))
    assert content == (400, 100, 456, 564)
    assert room == (0, 0, 800, 800)


def draw_athlete(number, width, height):
    """Return a drawn figure on white with room beside it, and its true Box."""
    athletes = load_script("tests/draw_athletes.py")
    factors = athletes.draw_factors(7, number) | {"people": 1}
    stage = athletes.draw_picture(factors, 300, 400)
    empty = athletes.draw_stage(300, 400, factors["light"])
    empty = (255 * empty).round().astype(int)
    is_figure = np.abs(stage.astype(int) - empty).max(axis=2) > 24
    image = np.full((height, width, 3), 255, np.uint8)
    random = np.random.default_rng(number)
    top, left = random.integers(0, height - 400), random.integers(0, width - 300)
    part = image[top : top + 400, left : left + 300]
    part[is_figure] = stage[is_figure]
    inked = np.argwhere((image < 247).any(axis=2))
    (top, left), (bottom, right) = inked.min(axis=0), inked.max(axis=0) + 1
    return image, Box(int(left), int(top), int(right), int(bottom))


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_athletes_on_white_stay_whole(tmp_path, fit):
    module = load_preprocess(FIT=fit, CHECKS=True)
    whole = 0
    for number in range(20):
        image, figure = draw_athlete(number, *[(600, 450), (450, 700)][number % 2])
        (tmp_path / "x.jpg").write_bytes(encode(image, "JPEG", quality=92))
        row = module.make_row("x", tmp_path / "x.jpg")
        assert row.reason == ""
        box = row.box
        inside = box.left <= figure.left and box.top <= figure.top
        whole += inside and box.right >= figure.right and box.bottom >= figure.bottom
        assert box.left >= 0 and box.top >= 0  # nothing is made up
        assert box.right <= image.shape[1] and box.bottom <= image.shape[0]
    assert whole == 20


def test_narrow_content_is_not_too_small(tmp_path):
    module = load_preprocess(CHECKS=True)
    image = np.full((800, 800, 3), 255, np.uint8)
    image[100:564, 400:456] = draw_photo(1, 56, 464)
    Image.fromarray(image).save(tmp_path / "x.png")
    row = module.make_row("x", tmp_path / "x.png")
    assert row.reason == ""
    assert row.box == (161, 65, 695, 599)
    assert (row.pixels[:, :24] == 255).all() and (row.pixels[:, 40:] == 255).all()
    expected = preprocess.resize(image[65:599, 161:695], 64, 64)
    assert np.array_equal(row.pixels, expected)


def test_what_is_cut_is_what_the_box_says(tmp_path):
    """With a frame about it the box is in pixels of the file; the frame is not seen."""
    photo = draw_photo(3, 400, 300)
    framed = np.pad(photo, ((40, 20), (30, 10), (0, 0)), constant_values=7)
    Image.fromarray(framed).save(tmp_path / "x.png")
    for fit, expected in (
        ("crop", (80, 40, 380, 340)),
        ("pad", (30, -10, 430, 390)),
        ("stretch", (30, 40, 430, 340)),
    ):
        module = load_preprocess(FIT=fit, CHECKS=True)
        row = module.make_row("x", tmp_path / "x.png")
        assert row.box == expected
        if fit == "crop":
            inner = preprocess.resize(photo[:, 50:350], 64, 64)
            assert np.array_equal(row.pixels, inner)
        assert row.pixels.min(axis=2).max(axis=1).min() > 7  # no line of the frame
    module = load_preprocess(CHECKS=False)  # the frame comes with it
    assert module.make_row("x", tmp_path / "x.png").box == (40, 0, 400, 360)


# ----------------------------------------------------------------------------
# Cutting and resizing
# ----------------------------------------------------------------------------
def test_shrinking_averages_areas():
    image = draw_noise(3, 320, 320)
    blocks = image.reshape(64, 5, 64, 5, 3).mean(axis=(1, 3))
    assert np.abs(cut(image, (0, 0, 320, 320), 64) - blocks).max() <= 0.51
    wide = draw_noise(4, 640, 32)  # shrinks in width, grows in height
    stretched = cut(wide, (0, 0, 640, 32), 64)
    means = wide.reshape(32, 64, 10, 3).mean(axis=2)
    assert np.abs(stretched.reshape(32, 2, 64, 3).mean(axis=1) - means).mean() < 6


def test_equal_size_is_a_copy_and_enlarging_is_smooth():
    image = draw_noise(5, 64, 64)
    assert np.array_equal(cut(image, (0, 0, 64, 64), 64), image)
    step = np.zeros((4, 4, 3), np.uint8)
    step[:, 2:] = 200
    large = cut(step, (0, 0, 4, 4), 64)[32, :, 0].astype(int)
    assert large[0] == 0 and large[-1] == 200
    assert len(set(large.tolist())) > 8  # no blocks of repeated pixels


def test_crop_takes_the_middle_and_pad_keeps_all():
    image = draw_noise(8, 200, 100)
    assert np.array_equal(cut(image, (50, 0, 150, 100), 100), image[:, 50:150])
    image[[0, -1]], image[:, [0, -1]] = (10, 20, 30), (10, 20, 30)
    image[0, :50] = 255  # a part of the border does not change its median
    pad = cut(image, (0, -50, 200, 150), 200)
    assert np.array_equal(pad[50:150], image)
    assert (pad[:50] == (10, 20, 30)).all() and (pad[150:] == (10, 20, 30)).all()
    pad = cut(image.swapaxes(0, 1), (-50, 0, 150, 200), 100)
    small = preprocess.resize(image, 100, 50)
    assert np.array_equal(pad[:, 25:75], small.swapaxes(0, 1))
    pad = cut(image, (0, -50, 200, 150), 200, color=(1, 2, 3))
    assert (pad[:50] == (1, 2, 3)).all()


def test_only_what_lies_in_the_room_is_seen():
    image = draw_noise(8, 200, 100)
    room = Box(50, 0, 150, 100)
    square = Box(0, -50, 200, 150)
    pad = preprocess.cut(picture_of(image), square, room, 200, color=(1, 2, 3))
    assert np.array_equal(pad[50:150, 50:150], image[:, 50:150])
    assert (pad[:, :50] == (1, 2, 3)).all() and (pad[:, 150:] == (1, 2, 3)).all()


def test_a_picture_decoded_smaller_is_cut_in_pixels_of_the_file():
    image = draw_noise(1, 100, 50)
    picture = picture_of(image, 800, 400)
    small = preprocess.cut(picture, Box(400, 0, 800, 400), picture.box, 50)
    assert np.array_equal(small, image[:, 50:])


def test_an_extreme_strip_takes_no_memory():
    strip = np.full((1, 60_000, 3), 7, np.uint8)
    pad = cut(strip, choose("pad", 60_000, 1), 64)
    assert pad.shape == (64, 64, 3) and (pad == 7).all()


def test_decoding_smaller_costs_little(tmp_path):
    noise = draw_noise(1, 60, 40).astype(np.float32)
    photo = cv2.resize(noise, (1200, 800), interpolation=cv2.INTER_CUBIC)
    photo += np.random.default_rng(2).normal(0, 20, photo.shape)
    photo = photo.clip(0, 255).astype(np.uint8)
    (tmp_path / "x.jpg").write_bytes(encode(photo, "JPEG", quality=90))
    whole = np.asarray(Image.open(tmp_path / "x.jpg"))
    expected = cut(whole, (200, 0, 1000, 800), 64)
    module = load_preprocess(FIT="crop")
    row = module.make_row("x", tmp_path / "x.jpg")
    assert row.box == (200, 0, 1000, 800)
    assert psnr(row.pixels, expected) > 40


def test_colours_of_arrays():
    grey = draw_noise(6, 28, 28, 1)
    module = load_preprocess(IMAGE_SIZE=28, COLOR="gray", CHECKS=True)
    for source in (grey, grey[..., 0]):
        row = module.make_row("x", source)
        assert (row.name, row.reason, row.box) == ("x", "", (0, 0, 28, 28))
        assert np.array_equal(row.pixels, grey)  # the bounds are for files
    color = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    row = module.make_row("x", color)
    assert row.pixels.shape == (28, 28, 1) and (row.pixels == 76).all()
    module = load_preprocess(IMAGE_SIZE=28)
    assert np.array_equal(module.make_row("x", grey).pixels, np.dstack([grey] * 3))
