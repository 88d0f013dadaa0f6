"""Tests of preprocess.py: its functions, and the script run as a user runs it."""

import contextlib
import csv
import hashlib
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
import zlib

import cv2
import numpy as np
import pytest
from conftest import copy_script, load_script, run_script
from PIL import Image

preprocess = load_script("preprocess.py")

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
TRUNCATED = ("jpg", "png", "webp", "bmp", "tiff", "gif", "avif")
unix = pytest.mark.skipif(os.name != "posix", reason="needs signals and terminals")


def draw_quarters(width=192, height=128):
    """Return a picture, red and green above blue and yellow."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = RED
    image[: height // 2, width // 2 :] = GREEN
    image[height // 2 :, : width // 2] = BLUE
    image[height // 2 :, width // 2 :] = YELLOW
    return image


def draw_noise(seed=0, width=192, height=128, channels=3):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(image, kind, **options):
    """Return the bytes of a picture file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def make_png(width, height, depth, color_type, lines):
    """Return the bytes of a PNG file that Pillow cannot write."""

    def chunk(name, data):
        size, check = struct.pack(">I", len(data)), zlib.crc32(name + data)
        return size + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def read(path, least_side=128):
    return preprocess.read_image(path, least_side, 1, 10**8)


SETTINGS = {
    "image_size": 64, "color": "rgb", "fit": "crop", "margin": 1.15, "confidence": 2.0,
    "checks": False, "border_levels": 8, "min_contrast": 6.0, "max_aspect": 4.0,
    "min_side": 64, "max_pixels": 50_000_000, "min_sharpness": 0.3, "hash_bits": 8,
    "max_difference": 0.065, "mirror": True,
}  # fmt: skip


def make_settings(**edits):
    return types.SimpleNamespace(**SETTINGS | edits)


def make_row(source, **edits):
    return preprocess.make_row("x", source, make_settings(**edits))


def corners(image, inset=8):
    """Return the colours near the four corners, line by line."""
    places = [(y, x) for y in (inset, -inset) for x in (inset, -inset)]
    return [tuple(image[place].tolist()) for place in places]


def assert_corners(image, colors, tolerance=0):
    difference = np.subtract(corners(image), colors)
    assert np.abs(difference).max() <= tolerance, corners(image)


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def psnr(first, second):
    return 10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


# ----------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------
KINDS = {  # ending: Pillow's format, options, largest difference of a colour
    "JPG": ("JPEG", {"quality": 95}, 6),
    "Jpeg": ("JPEG", {"quality": 95, "progressive": True}, 6),
    "png": ("PNG", {}, 0),
    "webp": ("WEBP", {"lossless": True}, 0),
    "bmp": ("BMP", {}, 0),
    "tif": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "TIFF": ("TIFF", {}, 0),
    "gif": ("GIF", {}, 0),
    "avif": ("AVIF", {"quality": 95}, 8),
}


@pytest.mark.parametrize("ending", KINDS)
def test_every_kind_of_file_is_read_in_rgb(tmp_path, ending):
    kind, options, tolerance = KINDS[ending]
    (tmp_path / f"x.{ending}").write_bytes(encode(draw_quarters(), kind, **options))
    image, width, height = read(tmp_path / f"x.{ending}")
    assert image.dtype == np.uint8 and image.shape == (128, 192, 3)
    assert (width, height) == (192, 128)
    assert_corners(image, [RED, GREEN, BLUE, YELLOW], tolerance)


@pytest.mark.parametrize("ending", ["JPG", "png", "webp", "TIFF", "avif"])
@pytest.mark.parametrize(
    "orientation, expected",
    [
        (1, [RED, GREEN, BLUE, YELLOW]),
        (2, [GREEN, RED, YELLOW, BLUE]),
        (3, [YELLOW, BLUE, GREEN, RED]),
        (4, [BLUE, YELLOW, RED, GREEN]),
        (5, [RED, BLUE, GREEN, YELLOW]),
        (6, [BLUE, RED, YELLOW, GREEN]),
        (7, [YELLOW, GREEN, BLUE, RED]),
        (8, [GREEN, YELLOW, RED, BLUE]),
    ],
)
def test_exif_orientation_is_honoured(tmp_path, ending, orientation, expected):
    kind, options, tolerance = KINDS[ending]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(draw_quarters(), kind, exif=exif, **options)
    (tmp_path / f"x.{ending}").write_bytes(data)
    image, width, height = read(tmp_path / f"x.{ending}")
    assert (width, height) == ((192, 128) if orientation < 5 else (128, 192))
    assert image.shape == (height, width, 3)
    assert_corners(image, expected, tolerance)


def test_a_large_jpeg_is_decoded_smaller_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(draw_quarters(1206, 806), "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(data)
    image, width, height = read(tmp_path / "x.jpg", 128)
    assert (width, height) == (806, 1206)
    assert image.shape == (302, 202, 3)  # a quarter, not the eighth: 128 at the least
    assert_corners(image, [BLUE, RED, YELLOW, GREEN], 6)
    row = make_row(tmp_path / "x.jpg")
    assert row.box == (0, 200, 806, 806)  # in pixels of the file
    assert_corners(row.pixels, [BLUE, RED, YELLOW, GREEN], 6)


def test_decoding_smaller_costs_little(tmp_path):
    noise = draw_noise(1, 60, 40).astype(np.float32)
    photo = cv2.resize(noise, (1200, 800), interpolation=cv2.INTER_CUBIC)
    photo += np.random.default_rng(2).normal(0, 20, photo.shape)
    photo = photo.clip(0, 255).astype(np.uint8)
    (tmp_path / "x.jpg").write_bytes(encode(photo, "JPEG", quality=90))
    whole = np.asarray(Image.open(tmp_path / "x.jpg"))
    box = preprocess.choose_box(1200, 800, "crop")
    assert box == (200, 0, 800, 800)
    expected = preprocess.cut(whole, (200, 0, 1000, 800), 64)
    for fit, least in (("subject", 40), ("crop", 34)):  # at 1/4 and at 1/8 of the size
        row = make_row(
            tmp_path / "x.jpg", fit=fit, confidence=99
        )  # the centre for both
        assert row.box == box
        assert psnr(row.pixels, expected) > least


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0not at all",
        b"Exif\0\0II*\0\xff\xff\xff\xff" + 50 * b"\x99",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_passed_over(tmp_path, kind, exif):
    (tmp_path / "x").write_bytes(encode(draw_quarters(), kind, exif=exif))
    image, width, height = read(tmp_path / "x")
    assert (width, height) == (192, 128)
    assert_corners(image, [RED, GREEN, BLUE, YELLOW], 30)  # lossy ones too


def test_transparent_pixels_lie_on_white(tmp_path):
    alpha = np.full((128, 192, 1), 255, np.uint8)
    alpha[:64, :96], alpha[64:, :96] = 0, 128
    rgba = np.dstack([draw_quarters(), alpha])
    expected = [WHITE, GREEN, (127, 127, 255), YELLOW]
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        (tmp_path / kind).write_bytes(encode(rgba, kind, **options))
        assert_corners(read(tmp_path / kind)[0], expected)
    Image.fromarray(rgba).convert("LA").save(tmp_path / "la.png")
    greys = [(value,) * 3 for value in (255, 150, 142, 226)]
    assert_corners(read(tmp_path / "la.png")[0], greys)


def test_palette_and_transparency_entries(tmp_path):
    image = Image.fromarray(draw_quarters())
    palette = image.quantize(4)
    entries = [palette.getpixel((x, y)) for y in (8, 120) for x in (8, 184)]
    assert sorted(entries) == [0, 1, 2, 3]
    alphas = bytearray(4)
    for entry, alpha in zip(entries, (0, 255, 128, 255), strict=True):
        alphas[entry] = alpha
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "entry.png", transparency=entries[0])
    palette.save(tmp_path / "bytes.png", transparency=bytes(alphas))
    image.save(tmp_path / "color.png", transparency=RED)
    palette.save(tmp_path / "entry.gif", transparency=entries[0])
    for name, first, third in [
        ("plain.png", RED, BLUE),
        ("entry.png", WHITE, BLUE),
        ("bytes.png", WHITE, (127, 127, 255)),
        ("color.png", WHITE, BLUE),
        ("entry.gif", WHITE, BLUE),
    ]:
        assert_corners(read(tmp_path / name)[0], [first, GREEN, third, YELLOW])


def test_grey_bilevel_and_cmyk(tmp_path):
    image = Image.fromarray(draw_quarters())
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("L").save(tmp_path / "grey.jpg", quality=95)
    greys = [(value,) * 3 for value in (76, 150, 29, 226)]
    assert_corners(read(tmp_path / "grey.png")[0], greys)
    assert_corners(read(tmp_path / "grey.jpg")[0], greys, 2)
    Image.fromarray(draw_quarters()[..., 0]).convert("1").save(tmp_path / "bit.png")
    assert_corners(read(tmp_path / "bit.png")[0], [WHITE, BLACK, BLACK, WHITE])
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)  # inverted: Adobe's
    image.convert("CMYK").save(tmp_path / "cmyk.tiff")
    for name in ("cmyk.jpg", "cmyk.tiff"):
        assert_corners(read(tmp_path / name)[0], [RED, GREEN, BLUE, YELLOW], 6)


def test_16_bits_and_floats(tmp_path):
    ramp = np.linspace(0, 65535, 128 * 128).reshape(128, 128)
    expected = (ramp.astype(np.uint16) / 257).round()
    for name in ("grey.png", "grey.tiff"):
        cv2.imwrite(str(tmp_path / name), ramp.astype(np.uint16))
        image, *_ = read(tmp_path / name)
        assert image.dtype == np.uint8
        assert np.array_equal(image, np.dstack([expected] * 3))
    dark = np.full((128, 128), 257 * 10, np.uint16)  # is not stretched to white
    cv2.imwrite(str(tmp_path / "dark.png"), dark)
    assert (read(tmp_path / "dark.png")[0] == 10).all()
    cv2.imwrite(str(tmp_path / "float.tiff"), (ramp / 65535).astype(np.float32))
    assert np.abs(read(tmp_path / "float.tiff")[0][..., 0] - expected).max() <= 1
    quarters = draw_quarters()[..., ::-1].astype(np.uint16) * 257
    for name in ("rgb.png", "rgb.tiff"):
        cv2.imwrite(str(tmp_path / name), quarters)
        assert_corners(read(tmp_path / name)[0], [RED, GREEN, BLUE, YELLOW])
    line = b"\0" + struct.pack(">HH", 0, 257 * 128) * 64  # black, half transparent
    (tmp_path / "la.png").write_bytes(make_png(64, 64, 16, 4, line * 64))
    assert (read(tmp_path / "la.png")[0] == 127).all()


def test_a_float_tiff_with_gaps_makes_no_noise(tmp_path, recwarn):
    holes = np.full((64, 64), 0.5, np.float32)
    holes[:32], holes[60:] = np.nan, 1
    cv2.imwrite(str(tmp_path / "holes.tiff"), holes)
    image, *_ = read(tmp_path / "holes.tiff")
    assert image[0, 0, 0] == 0 and image[40, 0, 0] == 128 and image[63, 0, 0] == 255
    assert not recwarn.list


def test_of_several_frames_the_first_is_taken(tmp_path):
    image = Image.fromarray(draw_quarters())
    for name, options in [
        ("x.gif", {}),
        ("x.webp", {"lossless": True}),
        ("x.png", {}),
        ("x.tiff", {}),
        ("x.avif", {"quality": 95}),
        ("x.jpg", {"format": "MPO", "quality": 95}),
    ]:
        frames = [image.rotate(180)]
        image.save(tmp_path / name, save_all=True, append_images=frames, **options)
        with Image.open(tmp_path / name) as file:
            assert file.n_frames == 2
        assert_corners(read(tmp_path / name)[0], [RED, GREEN, BLUE, YELLOW], 8)


def test_bounds_are_checked_before_decoding(tmp_path):
    (tmp_path / "x.png").write_bytes(make_png(2000, 3000, 8, 2, b""))
    with pytest.raises(ValueError, match="too large: 2000 x 3000"):
        preprocess.read_image(tmp_path / "x.png", 64, 64, 5_999_999)
    (tmp_path / "y.png").write_bytes(make_png(63, 500, 8, 2, b""))
    with pytest.raises(ValueError, match="too small: 63 x 500"):
        preprocess.read_image(tmp_path / "y.png", 64, 64, 6_000_000)


# ----------------------------------------------------------------------------
# Cutting and resizing
# ----------------------------------------------------------------------------
def test_boxes():
    assert preprocess.choose_box(850, 567, "crop") == (141, 0, 567, 567)
    assert preprocess.choose_box(567, 850, "crop") == (0, 141, 567, 567)
    assert preprocess.choose_box(850, 567, "pad") == (0, -142, 850, 850)
    assert preprocess.choose_box(567, 850, "pad") == (-142, 0, 850, 850)
    assert preprocess.choose_box(850, 567, "stretch") == (0, 0, 850, 567)


def test_shrinking_averages_areas():
    image = draw_noise(3, 320, 320)
    blocks = image.reshape(64, 5, 64, 5, 3).mean(axis=(1, 3))
    small = preprocess.cut(image, (0, 0, 320, 320), 64)
    assert np.abs(small - blocks).max() <= 0.51
    wide = draw_noise(4, 640, 32)  # shrinks in width, grows in height
    stretched = preprocess.cut(wide, (0, 0, 640, 32), 64)
    means = wide.reshape(32, 64, 10, 3).mean(axis=2)
    assert np.abs(stretched.reshape(32, 2, 64, 3).mean(axis=1) - means).mean() < 6


def test_equal_size_is_a_copy_and_enlarging_is_smooth():
    image = draw_noise(5, 64, 64)
    assert np.array_equal(preprocess.cut(image, (0, 0, 64, 64), 64), image)
    step = np.zeros((4, 4, 3), np.uint8)
    step[:, 2:] = 200
    large = preprocess.cut(step, (0, 0, 4, 4), 64)[32, :, 0].astype(int)
    assert large[0] == 0 and large[-1] == 200
    assert len(set(large.tolist())) > 8  # no blocks of repeated pixels


def test_crop_takes_the_middle_and_pad_keeps_all():
    image = draw_noise(8, 200, 100)
    crop = preprocess.cut(image, (50, 0, 150, 100), 100)
    assert np.array_equal(crop, image[:, 50:150])
    image[[0, -1]], image[:, [0, -1]] = (10, 20, 30), (10, 20, 30)
    image[0, :50] = 255  # a part of the border does not change its median
    pad = preprocess.cut(image, (0, -50, 200, 150), 200)
    assert np.array_equal(pad[50:150], image)
    assert (pad[:50] == (10, 20, 30)).all() and (pad[150:] == (10, 20, 30)).all()
    pad = preprocess.cut(image.swapaxes(0, 1), (-50, 0, 150, 200), 100)
    small = preprocess.resize(image, 100, 50)
    assert np.array_equal(pad[:, 25:75], small.swapaxes(0, 1))


def test_an_extreme_strip_takes_no_memory():
    strip = np.full((1, 60_000, 3), 7, np.uint8)
    left, top, width, height = preprocess.choose_box(60_000, 1, "pad")
    pad = preprocess.cut(strip, (left, top, left + width, top + height), 64)
    assert pad.shape == (64, 64, 3) and (pad == 7).all()


def test_colours_of_arrays():
    grey = draw_noise(6, 28, 28, 1)
    for source in (grey, grey[..., 0]):
        row = make_row(source, image_size=28, color="gray")
        assert (row.name, row.reason, row.box) == ("x", "", (0, 0, 28, 28))
        assert np.array_equal(row.pixels, grey)  # the bounds are for files
    row = make_row(grey, image_size=28)
    assert np.array_equal(row.pixels, np.dstack([grey] * 3))
    row = make_row(draw_quarters(64, 64), image_size=28, color="gray")
    assert row.pixels.shape == (28, 28, 1)
    assert [color[0] for color in corners(row.pixels, 4)] == [76, 150, 29, 226]


# ----------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------
def test_array_counts_what_was_written(tmp_path):
    images = [draw_noise(seed, 28, 28) for seed in range(3)]
    views = [draw_noise(seed, 128, 128) for seed in range(2)]
    rows = [
        preprocess.Row("a", "", images[0], (0, 0, 9, 9), view=views[0]),
        preprocess.Row("b", "torn"),
        preprocess.Row("c", "", images[1], (1, 2, 3, 3), view=views[1]),
    ]
    file = io.BytesIO()
    written, rejected = preprocess.write_array(
        tmp_path / "x", rows, (28, 28, 3), True, file
    )
    array = np.load(tmp_path / "x", allow_pickle=False)
    assert array.shape == (4, 28, 28, 3) and array.dtype == np.uint8
    assert np.array_equal(array[2], images[1])
    assert np.array_equal(array[3], images[1][:, ::-1])
    assert [(row.name, row.box) for row in written] == [
        ("a", (0, 0, 9, 9)),
        ("c", (1, 2, 3, 3)),
    ]
    assert [(row.name, row.reason) for row in rejected] == [("b", "torn")]
    assert file.getvalue() == np.array(views).tobytes()
    preprocess.write_array(tmp_path / "x", rows, (28, 28, 3), False, file)
    assert np.array_equal(np.load(tmp_path / "x"), images[:2])


@pytest.mark.parametrize("step", [1, 2])
def test_rows_are_taken_out_of_an_array(tmp_path, step):
    images = np.array([draw_noise(seed, 28, 28) for seed in range(6 * step)])
    np.save(tmp_path / "x.npy", images)
    preprocess.keep_rows(tmp_path / "x.npy", [1, 2, 5], (28, 28, 3), step)
    groups = images.reshape(6, step, 28, 28, 3)[[1, 2, 5]]
    np.save(tmp_path / "y.npy", groups.reshape(-1, 28, 28, 3))
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy"))
    size = (tmp_path / "x.npy").stat().st_size
    assert size == (tmp_path / "y.npy").stat().st_size


def test_rows_keep_their_order_whatever_the_threads():
    sources = [(str(number), draw_noise(number, 40, 40)) for number in range(50)]
    alone = list(preprocess.make_rows(sources, make_settings(), 1))
    assert [row.name for row in alone] == [str(number) for number in range(50)]
    for threads in (2, 7, 100):
        rows = preprocess.make_rows(sources, make_settings(), threads)
        for row, expected in zip(rows, alone, strict=True):
            assert row.name == expected.name
            assert np.array_equal(row.pixels, expected.pixels)


def test_no_more_pictures_are_made_than_memory_needs():
    taken = []

    class Sources(list):
        def __iter__(self):
            for source in super().__iter__():
                taken.append(source)
                yield source

    sources = Sources(("x", draw_noise(0, 40, 40)) for _ in range(100))
    rows = preprocess.make_rows(sources, make_settings(), 2)
    for done in range(1, 101):
        next(rows)
        assert len(taken) <= done + 8  # four for each thread


def test_order_is_shuffled_but_for_x_test(tmp_path):
    train = np.arange(50, dtype=np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8)
    np.savez(tmp_path / "x.npz", x_test=train[:7] + 100, x_train=train, y_train=[1])
    sources = preprocess.list_sources(tmp_path / "x.npz", 0)
    values = [int(image[0, 0]) for _, image in sources]
    assert sorted(values[:50]) == list(range(50)) and values[:50] != list(range(50))
    assert values[50:] == list(range(100, 107))
    assert [name for name, _ in sources[50:52]] == ["x_test[0]", "x_test[1]"]
    assert all(name == f"x_train[{image[0, 0]}]" for name, image in sources[:50])
    again = preprocess.list_sources(tmp_path / "x.npz", 0)
    assert [name for name, _ in again] == [name for name, _ in sources]
    other = preprocess.list_sources(tmp_path / "x.npz", 1)
    assert [name for name, _ in other] != [name for name, _ in sources]


# ----------------------------------------------------------------------------
# Subjects
# ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scenes():
    """Return athletes on cluttered backgrounds: [(picture, true box)]."""
    athletes = load_script("tests/draw_athletes.py")
    draw_scene = load_script("tests/bench_prepare.py").draw_scene
    return [draw_scene(5, index, athletes) for index in range(16)]


def test_the_square_holds_the_athletes(scenes, tmp_path):
    whole, centred, areas = 0, 0, []
    for picture, (left, top, width, height) in scenes:
        Image.fromarray(picture).save(tmp_path / "x.png")
        for fit in ("subject", "crop"):
            row = make_row(tmp_path / "x.png", fit=fit, checks=True)
            x, y, side, _ = row.box
            inside = x <= left and y <= top
            inside &= left + width <= x + side and top + height <= y + side
            whole += inside and fit == "subject"
            centred += inside and fit == "crop"
        row = make_row(tmp_path / "x.png", fit="subject", checks=True)
        areas.append(row.box[2] ** 2 / max(width, height) ** 2)
    assert whole >= 15 and centred <= 10
    assert np.median(areas) < 1.8  # close about them: 1.32 is the margin alone


def test_what_is_cut_is_what_the_box_says(scenes, tmp_path):
    picture, _ = scenes[0]
    framed = np.pad(picture, ((40, 20), (30, 10), (0, 0)), constant_values=7)
    Image.fromarray(framed).save(tmp_path / "x.png")
    for fit in ("subject", "crop", "pad"):
        row = make_row(tmp_path / "x.png", fit=fit, checks=True)
        left, top, side, _ = row.box
        inner = picture[max(0, top - 40) : top - 40 + side]
        inner = inner[:, max(0, left - 30) : left - 30 + side]
        if fit == "subject":  # no border came with it
            assert min(left - 30, top - 40) >= 0
            assert left - 30 + side <= picture.shape[1]
        if inner.shape[:2] == (side, side):
            assert psnr(row.pixels, preprocess.resize(inner, 64, 64)) > 45


def test_a_subject_decoded_smaller_has_its_box_in_pixels_of_the_file(tmp_path):
    picture = np.full((2400, 3200, 3), (90, 100, 110), np.uint8)
    skin = np.array([150, 105, 80]) + draw_noise(0, 20, 20) // 3
    picture[1200:2000, 1600:2400] = skin.repeat(40, axis=0).repeat(40, axis=1)
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        image.draft(None, (128, 128))
        assert image.width == 3200 / 8  # or this test says nothing
    for checks in (False, True):
        row = make_row(tmp_path / "x.jpg", fit="subject", checks=checks)
        left, top, side, _ = row.box
        assert max(abs(left + side / 2 - 2000), abs(top + side / 2 - 1600)) < 40
        assert 800 <= side < 1.4 * 800  # with the checks all around it is trimmed
        assert np.abs(row.pixels[32, 32] - (192.0, 147, 122)).max() < 60


def test_without_a_subject_the_centre_is_taken(tmp_path):
    Image.fromarray(draw_noise(1, 400, 300)).save(tmp_path / "x.png")
    row = make_row(tmp_path / "x.png", fit="subject")
    assert row.box == (50, 0, 300, 300) and row.confidence < 2
    flat = np.full((300, 400, 3), 90, np.uint8)
    subject, confidence = preprocess.find_subject(flat)
    assert confidence < 2 and np.isfinite(subject).all()


def test_squares_are_moved_rather_than_padded():
    def choose(*subject, width=850, height=567):
        return preprocess.choose_box(width, height, "subject", subject, 1.15)

    assert choose(300, 100, 400, 300) == (235, 85, 230, 230)
    assert choose(0, 0, 100, 200) == (0, 0, 230, 230)
    assert choose(750, 400, 850, 567) == (658, 375, 192, 192)
    assert choose(200, 0, 400, 560) == (6, -14, 588, 588)  # 5 % about it, no more
    assert choose(0, 100, 850, 400) == (0, -175, 850, 850)  # all of it


# ----------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------
def test_uniform_borders_are_trimmed():
    photo = draw_noise(2, 100, 80)
    framed = np.full((120, 150, 3), 200, np.uint8)
    framed[30:110, 5:105] = photo
    noise = np.random.default_rng(0).integers(-2, 3, framed.shape)
    framed = np.where(framed == 200, framed + noise, framed).astype(np.uint8)
    assert tuple(preprocess.trim(framed, 8)) == (5, 30, 105, 110)
    assert tuple(preprocess.trim(photo, 8)) == (0, 0, 100, 80)
    flat = np.full((50, 60, 3), 9, np.uint8)
    assert tuple(preprocess.trim(flat, 8)) == (0, 0, 60, 50)


def test_unfit_pictures_say_why(tmp_path):
    strip, small = draw_noise(1, 410, 100), np.full((300, 300, 3), 250, np.uint8)
    small[100:140, 100:150] = draw_noise(2, 50, 40)
    grey = 128 + draw_noise(3, 200, 200) // 25  # a deviation of 3
    for image, words in (
        (strip, "too long: 410 x 100, above MAX_ASPECT"),
        (small, "too small: 50 x 40 within its border"),
        (grey, "uniform: contrast"),
    ):
        Image.fromarray(image).save(tmp_path / "x.png")
        assert words in make_row(tmp_path / "x.png", checks=True).reason
        assert make_row(tmp_path / "x.png").pixels is not None  # without the checks
    Image.fromarray(strip[:, :400]).save(tmp_path / "x.png")
    assert make_row(tmp_path / "x.png", checks=True, min_contrast=0).reason == ""


def change(picture, kind):
    """Return a copy of a picture as the web is full of, uint8 (H, W, 3)."""
    height, width = picture.shape[:2]
    if kind == "JPEG 50":
        data = io.BytesIO(encode(picture, "JPEG", quality=50))
        return np.asarray(Image.open(data))
    if kind == "0.5x":
        return preprocess.resize(picture, width // 2, height // 2)
    if kind == "mirror":
        return picture[:, ::-1]
    if kind == "5 % crop":
        return picture[height // 30 :, : -width // 25]
    return cv2.convertScaleAbs(picture, alpha=1.25)


KINDS_OF_COPIES = ("JPEG 50", "0.5x", "mirror", "5 % crop", "brightness")


@pytest.fixture(scope="module")
def checked(scenes, tmp_path_factory):
    """Run the script on scenes, copies of them, athletes that are alike, and others."""
    folder = tmp_path_factory.mktemp("checked")
    assert run_script("tests/draw_athletes.py", folder, NUM_IMAGES=40).returncode == 0
    (folder / "data" / "raw" / "factors.csv").unlink()
    for number, (picture, _) in enumerate(scenes[:10]):
        kind = KINDS_OF_COPIES[number % 5]
        for name, image in (
            (number, picture),
            (f"copy{number}", change(picture, kind)),
        ):
            path = folder / "data" / "raw" / f"scene-{name}.png"
            Image.fromarray(image).save(path)
    blurred = cv2.GaussianBlur(scenes[10][0], (0, 0), 14)
    Image.fromarray(blurred).save(folder / "data" / "raw" / "blurred.png")
    edits = {"INPUT": "data/raw", "IMAGE_SIZE": 64, "FIT": "subject", "CHECKS": True}
    result = run_script("preprocess.py", folder, MIRROR=True, SEED=0, **edits)
    assert result.returncode == 0, result.stderr
    return folder


def test_copies_are_rejected_and_the_largest_stays(checked, scenes):
    table = read_table(checked / "data" / "rejected.csv")
    rejected = {line["file"]: line["reason"] for line in table}
    assert rejected.pop("blurred.png").startswith("blurred: sharpness")
    pairs = {
        frozenset((name, reason.removeprefix("a near-duplicate of ")))
        for name, reason in rejected.items()
    }
    names = [(f"scene-{i}.png", f"scene-copy{i}.png") for i in range(10)]
    assert pairs == set(map(frozenset, names))  # and no athlete for another
    for number in range(10):
        if KINDS_OF_COPIES[number % 5] in ("0.5x", "5 % crop"):
            assert f"scene-copy{number}.png" in rejected


def test_what_is_left_is_in_step(checked, scenes):
    index = read_table(checked / "data" / "images.csv")
    images = np.load(checked / "data" / "images.npy", allow_pickle=False)
    assert images.shape == (100, 64, 64, 3) and len(index) == 100
    assert [int(line["row"]) for line in index] == list(range(100))
    assert np.array_equal(images[1::2], images[::2, :, ::-1])
    data = (checked / "data" / "images.npy").read_bytes()
    assert index[0]["images_id"] == hashlib.sha256(data).hexdigest()[:16]
    for line in index[::2]:
        path = checked / "data" / "raw" / line["file"]
        row = make_row(path, fit="subject", checks=True)
        assert np.array_equal(images[int(line["row"])], row.pixels)
        box = tuple(int(line[x]) for x in ("left", "top", "width", "height"))
        assert box == row.box and float(line["confidence"]) == row.confidence


def test_figures_show_boxes_and_reasons(checked):
    for name, count in (("fitted", 48), ("rejected", 11)):
        with Image.open(checked / "figures" / f"{name}.png") as file:
            sheet = np.asarray(file)
        assert sheet.shape[1] == 8 * 160
        lines = -(-count // 8)
        assert sheet.shape[0] == lines * 172 + 20
        green = (sheet == (0, 255, 0)).all(axis=2)
        for number in range(count):
            top, left = number // 8 * 172, number % 8 * 160
            assert green[top : top + 160, left : left + 160].sum() > 100


def test_pixels_decide_not_hashes(checked):
    """The hashes of athletes are alike: without pixels some would go."""
    paths = sorted((checked / "data" / "raw").glob("0*.jpg"))
    rows = [make_row(path, checks=True) for path in paths]
    pairs = preprocess.find_similar(np.array([row.hashes for row in rows]), 8)
    assert len(pairs) > 10
    views = np.array([row.view for row in rows])
    assert preprocess.find_faults(rows, views, make_settings(), 2) == {}


def test_clusters_keep_one(scenes):
    pictures = [picture for picture, _ in scenes[:2] for _ in range(7)]
    views = np.array([preprocess.resize(picture, 128, 128) for picture in pictures])
    rows = [
        preprocess.Row(
            str(number),
            area=1000 - abs(number - 3),
            sharpness=1,
            hashes=preprocess.hash_view(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)),
        )
        for number, view in enumerate(views)
    ]
    faults = preprocess.find_faults(rows, views, make_settings(), 2)
    assert faults == {
        **{number: "a near-duplicate of 3" for number in range(7) if number != 3},
        **{number: "a near-duplicate of 7" for number in range(8, 14)},
    }


def test_arrays_are_neither_checked_nor_searched(tmp_path):
    images = np.zeros((6, 28, 28), np.uint8)  # uniform or copies,
    images[3:, 4:24, 18:22] = 255  # with a subject at the edge
    np.savez(tmp_path / "x.npz", x_train=images[:0], x_test=images)
    edits = {"INPUT": "x.npz", "IMAGE_SIZE": 28, "CHECKS": True, "MIRROR": False}
    result = run_script("preprocess.py", tmp_path, COLOR="gray", FIT="subject", **edits)
    assert result.returncode == 0
    assert "(6 inputs): crop to 28 x 28 x 1, without checks" in result.stdout
    assert np.array_equal(np.load(tmp_path / "data/images.npy")[..., 0], images)


# ----------------------------------------------------------------------------
# The script on a folder of good and bad files
# ----------------------------------------------------------------------------
REASONS = {  # file: what its reason has to say
    "empty.jpg": "an empty file",
    "page.jpg": "not an image",
    "program.png": "not an image",
    "script.jpg": "not an image",  # PostScript is not handed to Ghostscript
    "noise.png": "damaged",
    "tiny.png": "too small: 1 x 1",
    "huge.png": "too large: 20000 x 20000",
    "notes.txt": "not a picture by its name",
    "picture": "not a picture by its name",
    ".hidden.png": "not a picture by its name",
    ".cache/inside.png": "not a picture by its name",
    **{f"torn.{ending}": "" for ending in TRUNCATED},
    "torn.jpg": "truncated",
    "torn.png": "truncated",
}
LINKS = ("broken.png", "itself.png", "deep/loop", "pipe.jpg")
NAMES = (
    "deep/er/日本語 写真.png",
    "deep/er/💪🏽.PNG",
    'deep/er/ lead, "quoted" %s {x} [1].png',
    f"deep/{'x' * 251}.png",
    "really_a_png.jpg",
)


def fill(folder):
    """Make a folder with good and bad files; return the names of the good ones."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".cache").mkdir()
    good = [name for name in NAMES if os.name == "posix" or '"' not in name]
    if os.name == "posix":
        good.append("deep/new\nline.png")
    png = encode(draw_quarters(), "PNG")
    for name in [*good, "picture", ".hidden.png", ".cache/inside.png", "x.csv"]:
        (folder / name).write_bytes(png)
    for number in range(12):
        jpeg = encode(draw_noise(number, 100, 80), "JPEG")
        (folder / f"{number:06}.jpg").write_bytes(jpeg)
        good.append(f"{number:06}.jpg")
    for name in ("manifest.jsonl", "failed.jsonl", "CREDITS.md", "factors.csv"):
        (folder / name).write_text("ours", encoding="utf-8")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<!doctype html><title>Not found</title>")
    (folder / "program.png").write_bytes(b"\x7fELF" + bytes(2000))
    (folder / "script.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"
    )
    noise = draw_noise(7, 200, 200)
    damaged = bytearray(encode(noise, "PNG"))
    damaged[5000:5100] = bytes(100)
    (folder / "noise.png").write_bytes(damaged)
    (folder / "tiny.png").write_bytes(encode(noise[:1, :1], "PNG"))
    (folder / "huge.png").write_bytes(make_png(20_000, 20_000, 8, 2, bytes(100)))
    for ending in TRUNCATED:
        kind = {"jpg": "JPEG"}.get(ending, ending.upper())
        data = encode(noise, kind)
        (folder / f"torn.{ending}").write_bytes(data[: len(data) * 6 // 10])
    if os.name == "posix":
        (folder / "broken.png").symlink_to("nowhere.png")
        (folder / "itself.png").symlink_to("itself.png")
        (folder / "deep" / "loop").symlink_to("..", target_is_directory=True)
        os.mkfifo(folder / "pipe.jpg")
    return good


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the script on a folder of good and bad files; share what it left."""
    folder = tmp_path_factory.mktemp("finished")
    good = fill(folder / "data" / "raw")
    settings = {"INPUT": "data/raw", "OUTPUT_FILE": "data/images.npy", "SEED": 0}
    settings |= {"IMAGE_SIZE": 64, "COLOR": "rgb", "FIT": "crop", "MIRROR": True}
    settings |= {"MIN_SIDE": 64, "MAX_PIXELS": 50_000_000, "FIGURE_DIR": "figures"}
    settings |= {"CHECKS": False}  # many of the good ones are equal
    result = run_script("preprocess.py", folder, **settings)
    assert result.returncode == 0, result.stderr
    return {
        "folder": folder,
        "good": good,
        "settings": settings,
        "result": result,
        "images": np.load(folder / "data" / "images.npy", allow_pickle=False),
        "index": read_table(folder / "data" / "images.csv"),
    }


def test_script_writes_the_array(finished):
    images = finished["images"]
    assert images.dtype == np.uint8
    assert images.shape == (2 * len(finished["good"]), 64, 64, 3)
    assert np.array_equal(images[1::2], images[::2, :, ::-1])
    assert not np.array_equal(images[0], images[2])


def test_script_writes_the_index(finished):
    index, images = finished["index"], finished["images"]
    assert list(index[0]) == (
        "row file mirrored left top width height confidence images_id".split()
    )
    assert [int(line["row"]) for line in index] == list(range(len(images)))
    assert [line["mirrored"] for line in index] == ["0", "1"] * len(finished["good"])
    files = [line["file"] for line in index]
    assert files[::2] == files[1::2]
    assert sorted(files[::2]) == sorted(finished["good"])
    assert files[::2] != sorted(files[::2])  # shuffled
    box = [(line["left"], line["top"], line["width"], line["height"]) for line in index]
    assert box[files.index("000003.jpg")] == ("10", "0", "80", "80")
    assert box[files.index("really_a_png.jpg")] == ("32", "0", "128", "128")


def test_index_carries_the_id_of_the_array(finished):
    data = (finished["folder"] / "data" / "images.npy").read_bytes()
    expected = hashlib.sha256(data).hexdigest()[:16]
    assert {line["images_id"] for line in finished["index"]} == {expected}


def test_rows_show_the_files_that_the_index_names(finished):
    rows = {
        line["file"]: finished["images"][int(line["row"])]
        for line in [line for line in finished["index"] if line["mirrored"] == "0"]
    }
    for name in NAMES:
        if name in rows:
            assert_corners(rows[name], [RED, GREEN, BLUE, YELLOW])
    for number in range(12):
        path = finished["folder"] / "data" / "raw" / f"{number:06}.jpg"
        whole = np.asarray(Image.open(path))[:, 10:90]
        expected = cv2.resize(whole, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(rows[path.name], expected)


def test_rejected_files_are_named_with_their_reason(finished):
    table = read_table(finished["folder"] / "data" / "rejected.csv")
    rejected = {line["file"]: line["reason"] for line in table}
    expected = dict(REASONS)
    if os.name == "posix":
        expected |= dict.fromkeys(LINKS, "no file")
    assert sorted(rejected) == sorted(expected)
    for name, words in expected.items():
        assert rejected[name] and words in rejected[name], name
    assert list(rejected) == sorted(rejected)


def test_script_draws_the_first_images(finished):
    with Image.open(finished["folder"] / "figures" / "dataset.png") as file:
        sheet = np.asarray(file.convert("RGB"))
    assert sheet.shape[1] == 640 and sheet.shape[0] >= 640
    originals = finished["images"][::2]
    for number, image in enumerate(originals):
        top, left = number // 10 * 64, number % 10 * 64
        assert np.array_equal(sheet[top : top + 64, left : left + 64], image)
    assert (sheet[192:640] == 255).all()


def test_script_says_what_it_did(finished):
    first, *_, last = finished["result"].stdout.splitlines()
    assert "data/raw" in first and "64 x 64 x 3" in first
    count = len(finished["images"])
    assert last.startswith(
        f"Wrote {os.path.join('data', 'images.npy')} (uint8, {count}"
    )
    assert f"{len(REASONS) + 4 * (os.name == 'posix')} rejected" in (
        finished["result"].stdout
    )
    left = [path.name for path in (finished["folder"] / "data").iterdir()]
    assert sorted(left) == ["images.csv", "images.npy", "raw", "rejected.csv"]


def test_same_seed_gives_the_same_bytes(finished):
    folder = finished["folder"]
    before = (folder / "data" / "images.npy").read_bytes()
    result = run_script("preprocess.py", folder, **finished["settings"])
    assert result.returncode == 0
    assert (folder / "data" / "images.npy").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text(tmp_path):
    raw = os.fsencode(tmp_path / "raw")
    os.mkdir(raw)
    for name in (b"\xff\xfe.png", b"\xfd"):
        with open(os.path.join(raw, name), "wb") as file:
            file.write(encode(draw_quarters(), "PNG"))
    result = run_script(
        "preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=28, CHECKS=False
    )
    assert result.returncode == 0
    table = read_table(tmp_path / "data" / "images.csv")
    assert {line["file"] for line in table} == {"\\udcff\\udcfe.png"}
    assert read_table(tmp_path / "data" / "rejected.csv")[0]["file"] == "\\udcfd"


@pytest.mark.parametrize("color, channels", [("gray", 1), ("rgb", 3)])
def test_an_npz_file_goes_the_same_way(tmp_path, color, channels):
    train, test = draw_noise(1, 28, 28 * 40, 1), draw_noise(2, 28, 28 * 10, 1)
    train, test = train.reshape(40, 28, 28), test.reshape(10, 28, 28)
    np.savez(tmp_path / "digits.npz", x_train=train, x_test=test)
    result = run_script(
        "preprocess.py",
        tmp_path,
        INPUT="digits.npz",
        IMAGE_SIZE=28,
        COLOR=color,
        MIRROR=color == "rgb",
    )
    assert result.returncode == 0
    images = np.load(tmp_path / "data" / "images.npy")
    if color == "rgb":
        assert np.array_equal(images[1::2], images[::2, :, ::-1])
        images = images[::2]
    assert images.shape == (50, 28, 28, channels)
    assert (images == images[..., :1]).all()
    assert np.array_equal(images[40:, ..., 0], test)
    order = [
        int(line["file"][8:-1])
        for line in read_table(tmp_path / "data" / "images.csv")
        if line["file"].startswith("x_train") and line["mirrored"] == "0"
    ]
    assert np.array_equal(images[:40, ..., 0], train[order])


# ----------------------------------------------------------------------------
# What a user can mend
# ----------------------------------------------------------------------------
def assert_message(result, *words):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    "edits",
    [
        {"INPUT": 5},
        {"OUTPUT_FILE": "data/images.txt"},
        {"FIGURE_DIR": None},
        {"IMAGE_SIZE": "256"},
        {"IMAGE_SIZE": 256.0},
        {"IMAGE_SIZE": 30},
        {"COLOR": ["rgb"]},
        {"FIT": "squeeze"},
        {"MIRROR": "yes"},
        {"MIN_SIDE": 64.5},
        {"MAX_PIXELS": -1},
        {"SEED": None},
        {"CHECKS": 1},
        {"MARGIN": 0.9},
        {"CONFIDENCE": "high"},
        {"BORDER_LEVELS": 8.5},
        {"MIN_CONTRAST": None},
        {"MAX_ASPECT": 0},
        {"MIN_SHARPNESS": True},
        {"HASH_BITS": -1},
        {"MAX_DIFFERENCE": -0.1},
    ],
    ids=str,
)
def test_wrong_settings(tmp_path, edits):
    result = run_script("preprocess.py", tmp_path, **edits)
    name, value = next(iter(edits.items()))
    assert_message(result, name, repr(value), "expected", "preprocess.py")
    assert result.stdout == "" and not (tmp_path / "data").exists()


def test_missing_and_wrong_input(tmp_path):
    def run(source):
        return run_script("preprocess.py", tmp_path, INPUT=source)

    assert_message(run("nowhere"), str(tmp_path / "nowhere"), "Run scrape.py first")
    (tmp_path / "notes.txt").write_text("no array")
    assert_message(run("notes.txt"), str(tmp_path / "notes.txt"), ".npz")
    np.savez(tmp_path / "y.npz", y_train=np.zeros(3))
    assert_message(run("y.npz"), "y_train", "no x_train")
    np.savez(tmp_path / "floats.npz", x_train=np.zeros((3, 28, 28)))
    assert_message(run("floats.npz"), "float64 (3, 28, 28)", "uint8 (N, H, W)")
    (tmp_path / "empty").mkdir()
    assert_message(run("empty"), str(tmp_path / "empty"), "0 rejected", "scrape.py")


def test_broken_npz_files(tmp_path):
    def load(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return preprocess.load_arrays(tmp_path / "x.npz")

    with pytest.raises(ValueError, match=r"uint8 \(3, 784\)"):
        load(x_train=np.zeros((3, 784), np.uint8))
    with pytest.raises(ValueError, match="x_test is int64"):
        load(x_train=np.zeros((3, 28, 28), np.uint8), x_test=np.zeros((3, 28, 28), int))
    with pytest.raises(ValueError, match="allow_pickle"):
        load(x_train=np.array([{}]))
    load(x_train=draw_noise())
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[300:400] = bytes(100)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        preprocess.load_arrays(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", draw_noise())
    with pytest.raises(ValueError, match="no such folder or .npz file"):
        preprocess.load_arrays(tmp_path / "x.npy")


def test_no_usable_file_is_an_error_and_keeps_the_earlier_array(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "page.jpg").write_text("<html>")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    result = run_script("preprocess.py", tmp_path, INPUT="raw")
    assert_message(result, str(tmp_path / "raw"), "1 rejected", "'page.jpg': not an im")
    assert (tmp_path / "data" / "images.npy").read_bytes() == b"earlier"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "images.npy",
        "rejected.csv",
    ]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["rejected.png"]
    table = read_table(tmp_path / "data" / "rejected.csv")
    assert [line["file"] for line in table] == ["page.jpg"]


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.png").write_bytes(encode(draw_quarters(), "PNG"))
    (tmp_path / "file").touch()
    for name in ("OUTPUT_FILE", "FIGURE_DIR"):
        edits = {name: "file/images.npy" if name == "OUTPUT_FILE" else "file"}
        result = run_script("preprocess.py", tmp_path, INPUT="raw", **edits)
        assert_message(result, "Cannot write", str(tmp_path / "file"))
        assert not list(tmp_path.glob("data/*images*"))


def test_mnist_without_the_web(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):  # nothing listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    result = run_script("preprocess.py", tmp_path, INPUT="mnist")
    assert_message(result, "Cannot use mnist", "URL fetch failure", ".npz")


def test_damaged_pictures_give_a_row_or_a_reason(tmp_path):
    bench = load_script("tests/bench_preprocess.py")
    random = np.random.default_rng(1)
    seeds = bench.make_seeds(random)
    good = 0
    with preprocess.hold_back_stderr(pass_on=False):  # libtiff's complaints
        for number in range(500):
            ending = list(seeds)[number % len(seeds)]
            path = tmp_path / f"x.{ending}"
            path.write_bytes(bench.damage(seeds[ending], random))
            row = make_row(path, fit="subject", checks=True, max_pixels=10**6)
            assert (row.pixels is None) == bool(row.reason)
            good += not row.reason
    assert 10 < good < 490


def test_ycck_and_animated_and_unreadable(tmp_path):
    image = Image.fromarray(draw_quarters()).convert("CMYK")
    image.save(tmp_path / "x.jpg", quality=95)
    data = (tmp_path / "x.jpg").read_bytes()
    place = data.index(b"Adobe") + 11  # 0: CMYK; 2: YCCK, as Photoshop writes
    assert data[place] in (0, 2)
    (tmp_path / "y.jpg").write_bytes(data[:place] + b"\2" + data[place + 1 :])
    with Image.open(tmp_path / "y.jpg") as file:
        expected = np.asarray(file.convert("RGB"))
    assert np.array_equal(read(tmp_path / "y.jpg")[0], expected)
    assert not np.array_equal(read(tmp_path / "x.jpg")[0], expected)


@unix
def test_files_that_vanish_or_may_not_be_read(tmp_path):
    gone = make_row(tmp_path / "gone.png")
    assert "no file" in gone.reason
    path = tmp_path / "x.png"
    path.write_bytes(encode(draw_quarters(), "PNG"))
    path.chmod(0)
    row = make_row(path)
    assert row.reason.startswith("damaged or unreadable") or os.geteuid() == 0


@unix
def test_two_runs_at_once(slow):
    command = [sys.executable, "preprocess.py"]
    for number in range(40, 400):
        (slow / "raw" / f"{number}.png").unlink()
    runs = [
        subprocess.Popen(command, cwd=slow, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in runs:
        assert process.communicate(timeout=120)[1] == b"" and process.returncode == 0
    data = (slow / "data" / "images.npy").read_bytes()
    images_id = hashlib.sha256(data).hexdigest()[:16]
    index = read_table(slow / "data" / "images.csv")
    assert len(index) == 80 and {line["images_id"] for line in index} == {images_id}
    left = sorted(path.name for path in (slow / "data").iterdir())
    assert left == ["images.csv", "images.npy", "rejected.csv"]


# ----------------------------------------------------------------------------
# Stopped in the middle
# ----------------------------------------------------------------------------
@pytest.fixture
def slow(tmp_path):
    """Make a folder that takes the script some seconds, and an earlier array."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "0.png").write_bytes(encode(draw_noise(0, 1500, 1500), "PNG"))
    for number in range(1, 400):
        try:
            os.link(raw / "0.png", raw / f"{number}.png")
        except OSError:
            shutil.copy(raw / "0.png", raw / f"{number}.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    copy_script("preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=64, CHECKS=False)
    return tmp_path


def start_and_wait_for_rows(folder):
    """Start the script and return it when its temporary file has grown."""
    command = [sys.executable, "preprocess.py"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    temporary = folder / "data" / f".{process.pid}-images.npy"
    deadline = time.monotonic() + 60
    while not (temporary.exists() and temporary.stat().st_size > 8000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process, temporary


@unix
def test_interrupt_keeps_the_earlier_array(slow):
    process, temporary = start_and_wait_for_rows(slow)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("Stopped") and len(stderr.splitlines()) == 1
    assert (slow / "data" / "images.npy").read_bytes() == b"earlier"
    assert [path.name for path in (slow / "data").iterdir()] == ["images.npy"]


@unix
def test_kill_keeps_the_earlier_array_and_is_cleared_up_later(slow):
    process, temporary = start_and_wait_for_rows(slow)
    process.kill()
    process.communicate(timeout=60)
    assert (slow / "data" / "images.npy").read_bytes() == b"earlier"
    assert temporary.exists()
    for number in range(1, 400):
        (slow / "raw" / f"{number}.png").unlink()
    other = slow / "data" / ".1-images.npy"  # of a run that is under way
    other.write_bytes(b"other")
    old = time.time() - 3600
    os.utime(temporary, (old, old))
    result = run_script("preprocess.py", slow, INPUT="raw", IMAGE_SIZE=64, CHECKS=False)
    assert result.returncode == 0
    assert np.load(slow / "data" / "images.npy").shape == (2, 64, 64, 3)
    assert not temporary.exists()
    assert other.read_bytes() == b"other"


@unix
def test_a_full_disk_is_one_message(tmp_path):
    resource = pytest.importorskip("resource")
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(20):
        (raw / f"{number}.png").write_bytes(encode(draw_noise(number), "PNG"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    copy_script("preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=128)

    def limit():  # a file of 300 kB at most: the array gets 2 MB
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    result = subprocess.run(
        [sys.executable, "-B", "preprocess.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert_message(result, "Cannot write", str(tmp_path / "data" / "images.npy"))
    assert (tmp_path / "data" / "images.npy").read_bytes() == b"earlier"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["images.npy"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    def measure(count):
        """Return the most anonymous memory that a run over count files takes, in MB."""
        folder = tmp_path / str(count)
        (folder / "raw").mkdir(parents=True)
        source = folder / "raw" / "0.jpg"
        source.write_bytes(encode(draw_noise(0, 300, 300), "JPEG"))
        for number in range(1, count):
            os.link(source, folder / "raw" / f"{number}.jpg")
        copy_script("preprocess.py", folder, INPUT="raw", IMAGE_SIZE=256, MIRROR=True)
        process = subprocess.Popen([sys.executable, "preprocess.py"], cwd=folder)
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as f:
                sizes = [line.split()[1] for line in f if line.startswith("RssAnon")]
                peak = max([peak, *map(int, sizes)])
            time.sleep(0.01)
        assert process.returncode == 0
        return peak / 1000

    few, many = measure(40), measure(400)  # arrays of 16 and of 157 MB
    assert many - few < 25, (few, many)


@unix
def test_what_libraries_write_does_not_break_the_live_line(tmp_path):
    import pty

    (tmp_path / "raw").mkdir()
    bits = Image.fromarray(draw_noise(0, 300, 300)[..., 0]).convert("1")
    file = io.BytesIO()
    bits.save(file, "TIFF", compression="group4")
    data = bytearray(file.getvalue())
    for place in range(300, len(data) - 1000, 500):
        data[place] ^= 0x55
    (tmp_path / "raw" / "damaged.tiff").write_bytes(data)
    for number in range(30):
        png = encode(draw_noise(number), "PNG")
        (tmp_path / "raw" / f"{number}.png").write_bytes(png)
    copy_script("preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=64)
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "preprocess.py"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # Linux ends it so
        while data := os.read(main, 65536):
            output += data
    os.close(main)
    assert process.wait(60) == 0
    before, _, after = output.partition(b"Fax4Decode")
    assert after, output  # libtiff did complain, and nothing of it is lost
    assert b"100%" in before and b"a second" in before
    assert b"a second" not in after and b"Wrote" in after
