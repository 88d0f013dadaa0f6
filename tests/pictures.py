"""Small picture files, and preprocess.py with edited settings, for the tests of it."""

import csv
import io
import struct
import zlib

import numpy as np
from conftest import load_script
from PIL import Image

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
QUARTERS = [RED, GREEN, BLUE, YELLOW]


def load_preprocess(**edits):
    """Import preprocess.py afresh with small rows, without checks, and with edits."""
    module = load_script("preprocess.py")
    for name, value in {"IMAGE_SIZE": 64, "CHECKS": False, **edits}.items():
        assert hasattr(module, name), name
        setattr(module, name, value)
    return module


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


def draw_photo(seed=0, width=192, height=128):
    """Return smooth patches of colour with a little noise, as a photo has."""
    random = np.random.default_rng(seed)
    size = (width // 16 + 1, height // 16 + 1)
    patches = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8))
    photo = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC))
    return (photo + random.normal(0, 4, photo.shape)).clip(0, 255).astype(np.uint8)


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


def read_reasons(folder):
    """Return {file: reason} of a run's rejected.csv."""
    table = read_table(folder / "data" / "rejected.csv")
    return {line["file"]: line["reason"] for line in table}


def psnr(first, second):
    return 10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


def assert_message(result, *words):
    """Check that a run ended with one message that has these words."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
