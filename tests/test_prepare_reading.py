"""preprocess.py: what it makes of the bytes of a picture file."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import load_script
from pictures import (
    BLACK,
    BLUE,
    GREEN,
    QUARTERS,
    RED,
    WHITE,
    YELLOW,
    assert_corners,
    draw_photo,
    draw_quarters,
    encode,
    load_preprocess,
    make_png,
)
from PIL import Image, ImageCms

preprocess = load_preprocess(MIN_SIDE=1)
unix = pytest.mark.skipif(os.name != "posix", reason="needs Unix permissions")


def read(path, least_side=128):
    """Return the pixels of a picture, and its upright width and height in the file."""
    picture = preprocess.read_picture(path, least_side)
    return picture.pixels, picture.box.width, picture.box.height


def why_not(path):
    with pytest.raises(preprocess.Rejected) as caught:
        preprocess.read_source(path, 64)
    return str(caught.value)


# ----------------------------------------------------------------------------
# Kinds of files
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
    assert_corners(image, QUARTERS, tolerance)


NAMES = (
    "x.jfif",
    "x.jpe",
    "x.mpo",
    "X.JPG",
    "d.jpg?w=400",
    "picture",
    "x.png",
    "a.b.c",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_known_by_its_content(tmp_path, name):
    (tmp_path / name).write_bytes(encode(draw_quarters(), "JPEG", quality=95))
    assert_corners(read(tmp_path / name)[0], QUARTERS, 6)


BOX = b"\0\0\0\x18ftyp"
OTHERS = {  # name: bytes, words of the reason
    "x.heic": (BOX + b"heic\0\0\0\0mif1heic", "HEIC: not supported, convert it to"),
    "x.jpg": (BOX + b"mif1\0\0\0\0mif1heic", "HEIC: not supported, convert it to JPEG"),
    "x.jxl": (b"\xff\x0a\xfa\x7f", "JPEG XL: not supported, convert it to JPEG"),
    "y.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL: not supported, convert it"),
    "x.svg": (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG: not supported"),
    "y.svg": (b"\xef\xbb\xbf \n<SVG/>", "SVG: not supported, convert it to PNG"),
    "x.psd": (b"8BPS\0\1", "PSD: not supported, convert it to JPEG"),
    "x.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000: not supported"),
    "x.pdf": (b"%PDF-1.7", "PDF: not supported"),
    "x.mp4": (BOX + b"isom", "a film, not a picture"),
    "x.html": (b"\n<!DOCTYPE HTML><title>Gone</title>", "a web page, not a picture"),
    "x.txt": (b"words", "not a picture, or of an unknown kind"),
    "x.png": (b"\x89PNG\r\n\x1a\n", "PNG: damaged or cut short"),
    "z.webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
    "e.jpg": (b"", "an empty file"),
    ".x.jpg": (b"anything", "a hidden file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_named(tmp_path, name):
    data, words = OTHERS[name]
    if data:
        data += bytes(100)
    (tmp_path / name).write_bytes(data)
    reason = why_not(tmp_path / name)
    assert words in reason
    assert "scrape.py" not in reason


def test_reasons_are_words_for_a_person(tmp_path):
    """No numbers of decoders, no addresses in memory, no Python."""
    bench = load_script("tests/bench_preprocess.py")
    random = np.random.default_rng(3)
    seeds = bench.make_seeds(random)
    reasons = set()
    with preprocess.quiet():  # libtiff's complaints
        for number in range(200):
            ending = list(seeds)[number % len(seeds)]
            path = tmp_path / f"x.{ending}"
            path.write_bytes(bench.damage(seeds[ending], random))
            reasons.add(preprocess.make_row("x", path).reason.partition(":")[0])
    known = {"", "damaged", "cut short", "too large", "too small", "an empty file"}
    known |= {"JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF", "a film, not a pic"}
    assert reasons - known <= {"not a picture, or of an unknown kind"}
    assert len(reasons) > 3


@pytest.mark.slow
def test_damaged_pictures_give_a_row_or_a_reason(tmp_path):
    """What is read of them must not trouble the steps that follow."""
    module = load_preprocess(CHECKS=True, MIN_SIDE=16, MAX_PIXELS=10**6)
    bench = load_script("tests/bench_preprocess.py")
    random = np.random.default_rng(1)
    seeds = bench.make_seeds(random)
    good = 0
    with module.quiet():
        for number in range(500):
            ending = list(seeds)[number % len(seeds)]
            path = tmp_path / f"x.{ending}"
            path.write_bytes(bench.damage(seeds[ending], random))
            row = module.make_row("x", path)
            assert (row.pixels is None) == bool(row.reason)
            good += not row.reason
    assert 10 < good < 490


@unix
def test_files_that_vanish_or_may_not_be_read(tmp_path):
    assert "no file" in why_not(tmp_path / "gone.png")
    path = tmp_path / "x.png"
    path.write_bytes(encode(draw_quarters(), "PNG"))
    path.chmod(0)
    if os.geteuid() != 0:
        assert why_not(path) == "cannot be read: Permission denied"
        tmp_path.chmod(0o444)  # its files can be listed, not opened
        reason = preprocess.make_row("x", path).reason
        tmp_path.chmod(0o755)
        assert reason.startswith(("cannot be read: ", "no file"))
    # A name that is too long stands for all that the system refuses.
    reason = preprocess.make_row("x", tmp_path / ("x" * 300)).reason
    assert reason.startswith(("cannot be read: ", "no file"))


# ----------------------------------------------------------------------------
# Orientation, size, cut ends
# ----------------------------------------------------------------------------
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
    assert_corners(image, QUARTERS, 30)  # lossy ones too


def test_a_large_jpeg_is_decoded_smaller_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(draw_quarters(1206, 806), "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(data)
    image, width, height = read(tmp_path / "x.jpg", 128)
    assert (width, height) == (806, 1206)
    assert image.shape == (302, 202, 3)  # a quarter, not the eighth: 128 at the least
    assert_corners(image, [BLUE, RED, YELLOW, GREEN], 6)
    row = preprocess.make_row("x", tmp_path / "x.jpg")
    assert row.box == (0, 200, 806, 1006)  # in pixels of the file
    assert_corners(row.pixels, [BLUE, RED, YELLOW, GREEN], 6)


def test_bounds_are_checked_before_decoding(tmp_path):
    module = load_preprocess(MAX_PIXELS=5_999_999)
    (tmp_path / "x.png").write_bytes(make_png(2000, 3000, 8, 2, b""))
    with pytest.raises(module.Rejected, match="too large: 2000 x 3000"):
        module.read_picture(tmp_path / "x.png", 64)
    (tmp_path / "y.png").write_bytes(make_png(63, 500, 8, 2, b""))
    with pytest.raises(module.Rejected, match="too small: 63 x 500"):
        module.read_picture(tmp_path / "y.png", 64)


def test_of_a_jpeg_it_counts_what_is_decoded(tmp_path):
    image = draw_quarters(3000, 2000)
    (tmp_path / "x.jpg").write_bytes(encode(image, "JPEG"))
    (tmp_path / "p.jpg").write_bytes(encode(image, "JPEG", progressive=True))
    (tmp_path / "x.png").write_bytes(encode(image, "PNG"))
    module = load_preprocess(MAX_PIXELS=100_000)  # an eighth has 375 x 250
    picture = module.read_picture(tmp_path / "x.jpg", 200)
    assert picture.pixels.shape == (250, 375, 3)
    assert_corners(picture.pixels, QUARTERS, 6)
    for path, least in (("x.jpg", 400), ("p.jpg", 200), ("x.png", 200)):
        with pytest.raises(module.Rejected, match="too large: 3000 x 2000"):
            module.read_picture(tmp_path / path, least)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_a_jpeg_that_lacks_only_its_last_bytes_is_used(tmp_path, options):
    data = encode(draw_photo(1, 600, 400), "JPEG", quality=90, **options)
    (tmp_path / "whole.jpg").write_bytes(data)
    whole = read(tmp_path / "whole.jpg")[0].astype(int)
    for missing in (1, 2, 3, 60):
        (tmp_path / "x.jpg").write_bytes(data[:-missing])
        image = read(tmp_path / "x.jpg")[0]
        assert np.mean(np.abs(image - whole) > 8) < 0.01
    for left in (0.97, 0.9, 0.5, 0.05):
        (tmp_path / "x.jpg").write_bytes(data[: round(left * len(data))])
        assert "cut short" in why_not(tmp_path / "x.jpg")


# ----------------------------------------------------------------------------
# Colours and depths
# ----------------------------------------------------------------------------
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
        assert_corners(read(tmp_path / name)[0], QUARTERS, 6)


def test_ycck(tmp_path):
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
        assert_corners(read(tmp_path / name)[0], QUARTERS)
    line = b"\0" + struct.pack(">HH", 0, 257 * 128) * 64  # black, half transparent
    (tmp_path / "la.png").write_bytes(make_png(64, 64, 16, 4, line * 64))
    assert (read(tmp_path / "la.png")[0] == 127).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_deep_files_are_scaled_by_what_they_hold(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 128 * 128).reshape(128, 128)
    expected = (ramp.round() * (255 / (2**bits - 1))).round()
    cv2.imwrite(str(tmp_path / "x.png"), ramp.round().astype(np.uint16))
    Image.fromarray(ramp.round().astype(np.int32)).save(tmp_path / "x.tiff")
    for name in ("x.png", "x.tiff"):
        with Image.open(tmp_path / name) as image:
            assert image.mode[0] == "I"
        assert np.abs(read(tmp_path / name)[0] - expected[..., None]).max() <= 1


@pytest.mark.parametrize("name", ["x.png", "x.tiff"])
def test_deep_colours_are_scaled_too_and_turned(tmp_path, name):
    quarters = draw_quarters().astype(np.uint16) * 16 + 7  # 12 bits
    cv2.imwrite(str(tmp_path / name), quarters[..., ::-1])
    assert_corners(read(tmp_path / name)[0], QUARTERS, 1)
    alpha = np.full((128, 192), 65_535, np.uint16)
    alpha[:, 96:] = 0
    bgra = np.dstack([quarters[..., ::-1], alpha])
    cv2.imwrite(str(tmp_path / f"alpha {name}"), bgra)
    see_through = [RED, WHITE, BLUE, WHITE]
    assert_corners(read(tmp_path / f"alpha {name}")[0], see_through, 1)
    if name == "x.png":  # an EXIF block put in before the pixels
        data = (tmp_path / name).read_bytes()
        exif = b"eXIfMM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
        chunk = struct.pack(">I", len(exif) - 4) + exif
        chunk += struct.pack(">I", zlib.crc32(exif))
        (tmp_path / name).write_bytes(data[:33] + chunk + data[33:])
        assert_corners(read(tmp_path / name)[0], QUARTERS[::-1], 1)


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
        assert_corners(read(tmp_path / name)[0], QUARTERS, 8)


# ----------------------------------------------------------------------------
# Colour profiles
# ----------------------------------------------------------------------------
# Red, green and blue of light with a white of D50, as columns (X, Y, Z).
SRGB = ((0.4361, 0.3851, 0.1431), (0.2225, 0.7169, 0.0606), (0.0139, 0.0971, 0.7141))
P3 = ((0.5151, 0.2920, 0.1571), (0.2412, 0.6922, 0.0666), (-0.0011, 0.0419, 0.7841))
ADOBE = ((0.6097, 0.2053, 0.1492), (0.3111, 0.6257, 0.0632), (0.0195, 0.0609, 0.7446))
PROPHOTO = ((0.7977, 0.1352, 0.0313), (0.2880, 0.7119, 0.0001), (0, 0, 0.8249))


def number(value):
    """Return an ICC number: 16 bits before the point and 16 after it."""
    return struct.pack(">i", round(value * 65536))


def make_profile(space, tags):
    """Return the bytes of an ICC profile, version 2, with tags {name: bytes}."""
    tags = {b"desc": make_text(b"test"), b"cprt": b"text\0\0\0\0none\0"} | tags
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + number(0.9642) + number(1) + number(0.8249)
    table = struct.pack(">I", len(tags))
    body = b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI", start + len(body), b"lcms", 0x02400000)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header += kind + space + b"XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header += b"acsp" + bytes(28) + number(0.9642) + number(1) + number(0.8249)
    return header.ljust(128, b"\0") + table + body


def make_text(text):
    size = struct.pack(">I", len(text) + 1)
    return b"desc\0\0\0\0" + size + text + bytes(1 + 4 + 4 + 2 + 1 + 67)


def make_rgb_profile(matrix, curve):
    """Return a profile with these primaries and a curve, (1024,), of 0..1."""
    points = struct.pack(">I", len(curve))
    points += (np.asarray(curve) * 65535).round().astype(">u2").tobytes()
    tags = {}
    for place, name in enumerate((b"r", b"g", b"b")):
        column = b"".join(number(line[place]) for line in matrix)
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + column
        tags[name + b"TRC"] = b"curv\0\0\0\0" + points
    return make_profile(b"RGB ", tags)


def to_light(values):
    """Undo the curve of sRGB, 0..1."""
    values = np.asarray(values, float)
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def draw_muted(seed=0):
    """Return colours that every profile has, float (128, 192, 3), 0..1, and 8 bits."""
    photo = 60 + draw_photo(seed) // 2
    return to_light(photo / 255), photo


def assert_same(path, photo, least=1.0):
    image, *_ = read(path)
    assert np.abs(image.astype(int) - photo).mean() < least


LEVELS = np.linspace(0, 1, 1024)
PROFILES = {
    "Display P3": (P3, to_light(LEVELS), to_light),
    "Adobe RGB": (ADOBE, LEVELS**2.2, lambda values: values**2.2),
    "ProPhoto": (PROPHOTO, LEVELS**1.8, lambda values: values**1.8),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("name", PROFILES)
def test_colour_profiles_are_converted(tmp_path, name, kind):
    matrix, curve, _ = PROFILES[name]
    light, photo = draw_muted()
    light = light @ np.array(SRGB).T @ np.linalg.inv(matrix).T
    stored = np.interp(light, curve, LEVELS)
    stored = (255 * stored).round().astype(np.uint8)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = options.get(kind, {})
    profile = make_rgb_profile(matrix, curve)
    data = encode(stored, kind, icc_profile=profile, **options)
    (tmp_path / "x").write_bytes(data)
    assert_same(tmp_path / "x", photo)
    (tmp_path / "x").write_bytes(encode(stored, kind, **options))
    assert np.abs(read(tmp_path / "x")[0].astype(int) - photo).mean() > 2


def make_cmyk_profile():
    """Return a profile in which C, M and Y take away red, green and blue of sRGB.

    The curves of the inks give light; between them all is straight, so that two points
    along each axis are enough.
    """
    curve = (to_light(1 - LEVELS[::4]) * 65535).round().astype(">u2")
    corners = np.zeros((2, 2, 2, 2, 3))
    for place in np.ndindex(2, 2, 2, 2):
        light = np.array(place[:3]) * place[3]
        corners[place] = np.array(SRGB) @ light
    table = (corners * 32768).round().clip(0, 65535).astype(">u2")
    data = b"mft2\0\0\0\0" + struct.pack(">BBBB", 4, 3, 2, 0)
    for value in (1, 0, 0, 0, 1, 0, 0, 0, 1):
        data += number(value)
    data += struct.pack(">HH", len(curve), 2)
    data += 4 * curve.tobytes() + table.tobytes() + 3 * struct.pack(">HH", 0, 65535)
    return make_profile(b"CMYK", {b"A2B0": data})


def test_a_cmyk_jpeg_with_a_profile(tmp_path):
    _, photo = draw_muted()
    cmyk = np.dstack([255 - photo, np.zeros(photo.shape[:2], np.uint8)])
    image = Image.fromarray(cmyk, "CMYK")
    profile = make_cmyk_profile()
    image.save(tmp_path / "x.jpg", quality=100, subsampling=0, icc_profile=profile)
    assert_same(tmp_path / "x.jpg", photo)
    half = np.full((64, 64, 4), (0, 0, 0, 128), np.uint8)  # black: not what Pillow does
    image = Image.fromarray(half, "CMYK")
    image.save(tmp_path / "x.jpg", quality=100, icc_profile=profile)
    assert np.abs(read(tmp_path / "x.jpg")[0].astype(int) - 127).max() <= 2


def test_grey_pictures_with_a_profile(tmp_path):
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256)  # straight
    profile = make_profile(b"GRAY", {b"kTRC": curve})
    greys = np.full((64, 64), 128, np.uint8)
    (tmp_path / "x.png").write_bytes(encode(greys, "PNG", icc_profile=profile))
    assert np.abs(read(tmp_path / "x.png")[0].astype(int) - 188).max() <= 1


def test_profiles_that_say_nothing_are_ignored(tmp_path):
    photo = draw_photo()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    p3 = make_rgb_profile(P3, to_light(LEVELS))
    broken = [b"none", p3[:200], p3[:300] + bytes(len(p3) - 300), make_cmyk_profile()]
    for profile in (srgb, *broken):
        (tmp_path / "x.png").write_bytes(encode(photo, "PNG", icc_profile=profile))
        assert np.array_equal(read(tmp_path / "x.png")[0], photo)


def test_a_profile_under_transparency_and_orientation(tmp_path):
    """Colours are converted on white, and the picture is turned all the same."""
    exif = Image.Exif()
    exif[0x0112] = 3
    rgba = np.dstack([draw_quarters(), np.full((128, 192), 255, np.uint8)])
    rgba[:64, :96, 3] = 0
    profile = make_rgb_profile(SRGB, LEVELS)  # straight: a half becomes 188
    rgba[64:, :96, :3] = 128
    data = encode(rgba, "PNG", icc_profile=profile, exif=exif)
    (tmp_path / "x.png").write_bytes(data)
    expected = [YELLOW, (188, 188, 188), GREEN, WHITE]
    assert_corners(read(tmp_path / "x.png")[0], expected, 2)
