"""Turn pictures into one array of equal squares, each followed by its mirror.

    python preprocess.py

Reads   the pictures below INPUT, a folder: JPEG, PNG, WebP, BMP, TIFF, GIF and AVIF,
        known by their content, whatever their names are; and manifest.jsonl and
        factors.csv there, what is known of them. Or an .npz file with uint8 `x_train`
        and perhaps `x_test`, `y_train` and `y_test`. Or MNIST.
        PERSON_MODEL, with FIT = "person": fetched once where it is not there.
Writes  OUTPUT_FILE: uint8 (N, H, W, C), 0..255, RGB (C = 3) or grey (C = 1); with
        MIRROR, row 2i is a picture and row 2i + 1 its left-right mirror.
        images.csv beside it: for each row the file, whether it is mirrored, the box in
        pixels of the upright picture that became the row, with FIT = "person" the share
        of the picture that the largest person covers, the id of the array, and what is
        known of the picture: keyword, label, the columns of factors.csv, folder.
        rejected.csv beside it: each file that did not become a row, and why.
        FIGURE_DIR/dataset.png: the first pictures, 10 x 10.
        FIGURE_DIR/fitted.png, rejected.png: a sample of the originals with the squares
        that were cut, and of the rejected ones with the reasons: look at both.
Exits   with 0: done; 1: a message says what to mend; 130: stopped by Ctrl-C.

Stopped, it leaves earlier files as they were. Rows are written as they are made, so
that memory stays flat however many there are. While it runs, it needs 49 kB a picture
on the disk of OUTPUT_FILE besides the array. 300 pictures take 3 s on two cores.

The file in order: reading a picture; its content; squares; the people in it; its row;
copies; faults beside the others; the inputs; figures; files; checks of the settings;
messages; main().
"""

import collections
import concurrent.futures
import contextlib
import csv
import functools
import glob
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from pathlib import Path

try:
    import cv2
    import numpy as np
    import rich.progress
    from PIL import Image, ImageCms, ImageDraw, ImageOps, UnidentifiedImageError
except KeyboardInterrupt:  # the imports take seconds
    if __name__ != "__main__":
        raise
    sys.exit(130)

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
INPUT = "data/raw"  # a folder; an .npz file with x_train (and x_test); or "mnist"
OUTPUT_FILE = "data/images.npy"  # images.csv and rejected.csv are put beside it
FIGURE_DIR = "figures"

# Data
IMAGE_SIZE = 256  # side in pixels, a multiple of 4; twice the side, four times the work
COLOR = "rgb"  # or "gray": one channel instead of three
# "crop": the square in the centre; "person": the square about the people; "pad": all
# of it, with borders; "stretch": all of it, squeezed into a square
FIT = "crop"
MARGIN = 1.15  # side of the square, of the people or content: 1 cuts off feet and fists
BACKGROUND = "keep"  # or "gray", with FIT = "person": only the people keep colours
MIRROR = True  # add the left-right mirror of each picture: twice the rows
MIN_SIDE = 64  # pixels; pictures with a shorter side are rejected
MAX_PIXELS = 50_000_000  # of a picture; larger ones would fill the memory
SEED = 0  # order of the pictures; training holds the last rows out

# People, for FIT = "person"
MIN_PERSON = 0.02  # share of the picture; if the largest covers less, it is rejected
PERSON_MODEL = "data/person.tflite"  # fetched once, or put there by hand
PERSON_MODEL_URL = (  # for another model, edit address and hash together
    "https://storage.googleapis.com/mediapipe-assets/"
    "selfie_segmentation.tflite?generation=1683332563830600"
)
PERSON_MODEL_SHA256 = "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c"

# Checks of files, not of arrays
CHECKS = True  # False: borders are kept, and nothing below is checked
BORDER_LEVELS = 8  # of 255, by which a border's colours may differ: the noise of JPEG
MIN_CONTRAST = 6.0  # standard deviation of the greys, of 255: a photo has 30 to 80
MAX_ASPECT = 4.0  # longer by shorter side; banners have more, a lying athlete has 3.5
MIN_SHARPNESS = 0.3  # of the median of all; higher rejects more as blurred
HASH_BITS = 10  # of 63, by which copies may differ; higher compares more pairs, slower
MAX_DIFFERENCE = 0.08  # of tones; higher takes more for copies that were cut or scaled
MAX_EXACT_DIFFERENCE = 0.18  # the same for copies that were neither: only tones changed
# ----------------------------------------------------------------------------


# ----------------------------------------------------------------------------
# Reading a picture
# ----------------------------------------------------------------------------
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # Pillow's names
SIGNATURES = (  # (where, bytes, what a file is that has them there)
    (4, b"ftyphei", "HEIC: not supported, convert it to JPEG"),
    (4, b"ftyphev", "HEIC: not supported, convert it to JPEG"),
    (4, b"ftypmif1", "HEIC: not supported, convert it to JPEG"),
    (4, b"ftypmsf1", "HEIC: not supported, convert it to JPEG"),
    (0, b"\xff\x0a", "JPEG XL: not supported, convert it to JPEG"),
    (4, b"JXL \r\n\x87\n", "JPEG XL: not supported, convert it to JPEG"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000: not supported, convert it to JPEG"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000: not supported, convert it to JPEG"),
    (0, b"8BPS", "PSD: not supported, convert it to JPEG"),
    (0, b"%PDF", "PDF: not supported, convert it to JPEG"),
    (0, b"%!PS", "PostScript: not supported, convert it to JPEG"),
    (0, b"\0\0\1\0", "an icon: not supported, convert it to PNG"),
    (4, b"ftypcrx", "a raw photo: not supported, convert it to JPEG"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo: not supported, convert it to JPEG"),
    (4, b"ftypavi", "AVIF: damaged or cut short"),
    (4, b"ftyp", "a film, not a picture"),
    (0, b"\x1a\x45\xdf\xa3", "a film, not a picture"),
    (0, b"\xff\xd8", "JPEG: damaged or cut short"),
    (0, b"\x89PNG", "PNG: damaged or cut short"),
    (8, b"WEBP", "WebP: damaged or cut short"),
    (0, b"BM", "BMP: damaged or cut short"),
    (0, b"II*\0", "TIFF: damaged or cut short"),
    (0, b"MM\0*", "TIFF: damaged or cut short"),
    (0, b"GIF8", "GIF: damaged or cut short"),
)


class Rejected(ValueError):
    """Why an input becomes no row, in words for a person."""


class Box(collections.namedtuple("Box", "left top right bottom")):
    """A rectangle in pixels of the upright picture; it may jut out of the picture."""

    @property
    def width(self):
        return self.right - self.left

    @property
    def height(self):
        return self.bottom - self.top


class Picture:
    """An upright picture.

    Attributes:
        pixels: uint8 (H, W, 3), RGB; of a JPEG perhaps a half, a quarter or an eighth
            of the size in the file.
        box: all of it, in pixels of the upright picture in the file.
    """

    def __init__(self, pixels, width, height):
        self.pixels = pixels
        self.box = Box(0, 0, width, height)


def read_source(source, least_side):
    """Return the Picture of an input, a path or an array, or raise Rejected.

    Args:
        source: a Path, or uint8 (H, W) or (H, W, 1 or 3).
        least_side: see read_picture.
    """
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2]
        pixels = np.broadcast_to(np.atleast_3d(source), (height, width, 3))
        return Picture(pixels, width, height)
    if source.name.startswith("."):
        raise Rejected("a hidden file: its name begins with a dot")
    if not source.is_file():
        raise Rejected("no file: a broken link, a device, a folder not entered")
    if source.stat().st_size == 0:
        raise Rejected("an empty file")
    return read_picture(source, least_side)


def read_picture(path, least_side):
    """Read a picture as a person would see it: upright, on white, 8 bits, in sRGB.

    Args:
        path: a file.
        least_side: a JPEG may be decoded to a half, a quarter or an eighth, as long as
            its shorter side keeps so many pixels. It takes a third of the time.

    Returns:
        A Picture. Of several frames it is the first.

    Raises:
        Rejected: there is none, and why.
    """
    try:
        return decode_picture(path, least_side)
    except Rejected:
        raise
    except UnidentifiedImageError:
        raise Rejected(explain_unknown(path)) from None
    except MemoryError:
        raise Rejected("too large for the memory of this machine") from None
    except Exception as error:  # for damaged bytes Pillow's decoders raise nearly any
        if getattr(error, "errno", None):  # the system's: it may not be read
            raise Rejected(f"cannot be read: {describe_error(error)}") from None
        if "truncated" in str(error):
            return read_cut_jpeg(path, least_side)
        raise Rejected("damaged: its pixels cannot be decoded") from None


def decode_picture(file, least_side):
    """Decode a path or an open file to a Picture, or raise nearly anything."""
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise Rejected(f"too small: {width} x {height}, below MIN_SIDE")
        # Only JPEG can do this; the others stay as they are.
        image.draft(None, (least_side, least_side))
        decoded = image.size
        in_memory = decoded
        if "progressive" in image.info:  # JPEG keeps all of its waves
            in_memory = (width, height)
        if math.prod(in_memory) > MAX_PIXELS:
            raise Rejected(f"too large: {width} x {height}, above MAX_PIXELS")
        upright = image
        # Such a tile is named "RGB;16B", "RGBA;16B" or alike.
        is_deep = f"{image.mode};16" in str(image.tile)
        if is_deep and image.mode in ("RGB", "RGBA"):
            upright = read_deep_colors(image, file)
        upright.load()
        with contextlib.suppress(Exception):  # a damaged EXIF block says nothing
            ImageOps.exif_transpose(upright, in_place=True)
        if upright.size != decoded:  # it lay on its side
            width, height = height, width
        return Picture(to_srgb(upright), width, height)


def read_deep_colors(image, path):
    """Read colours of 16 bits, of which Pillow itself keeps only the upper 8.

    Args:
        image: the file, opened by Pillow.
        path: its path.

    Returns:
        A Pillow image of 8 bits with what `image` knows of profile and orientation, or
        `image` itself where OpenCV cannot read it.
    """
    data = np.fromfile(path, np.uint8)
    colors = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    channels = len(image.getbands())
    if colors is None or colors.dtype != np.uint16 or colors.shape[2:] != (channels,):
        return image
    deep = Image.fromarray(scale_deep(cv2.cvtColor(colors[..., :3], cv2.COLOR_BGR2RGB)))
    if channels == 4:
        alpha = scale_deep(colors[..., 3])
        deep.putalpha(Image.fromarray(alpha))
    deep.info["icc_profile"] = image.info.get("icc_profile")
    with contextlib.suppress(Exception):
        deep.info["exif"] = image.getexif().tobytes()
    return deep


def read_cut_jpeg(path, least_side):
    """Read a JPEG whose last bytes are missing, or raise Rejected if it lacks more.

    Two different ends are put to what is there. Where they make different pixels, the
    pixels of the file are missing.
    """
    start = path.read_bytes().rstrip(b"\xff")  # of a pair of bytes, it may be the half
    pictures = []
    # The first end lets the decoder repeat the last colour, the second makes noise.
    for end in (b"", 20_000 * b"\x5a\xa5"):
        file = io.BytesIO(start + end + b"\xff\xd9")
        try:
            pictures.append(decode_picture(file, least_side))
        except Exception:
            raise Rejected("cut short: a part of the file is missing") from None
    first, second = pictures
    # A hundredth is a line of blocks or two at the bottom: it hardly shows.
    missing = np.mean((first.pixels != second.pixels).any(axis=2))
    if missing > 0.01:
        raise Rejected("cut short: a part of the file is missing")
    return first


def explain_unknown(path):
    """Return what a file is that Pillow does not take for a picture of FORMATS."""
    with open(path, "rb") as file:
        start = file.read(4096)
    # Text may begin with a mark of its encoding, and with blank lines.
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for place, signature, kind in SIGNATURES:
        if start[place:].startswith(signature):
            return kind
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture"
    if b"<svg" in text:
        return "SVG: not supported, convert it to PNG"
    return "not a picture, or of an unknown kind"


def to_srgb(image):
    """Turn a Pillow image, decoded, to sRGB on white: uint8 (H, W, 3)."""
    profile = image.info.get("icc_profile")
    if image.mode[0] in "IF":  # 16 or 32 bits, grey
        image = Image.fromarray(scale_deep(np.asarray(image)))
    if image.has_transparency_data:
        # Grey stays grey, because its profile may be one for grey.
        mode = "RGB"
        if image.mode == "LA":
            mode = "L"
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert(mode)
    # Palettes and single bits; the three others are what profiles are for.
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        transform = find_transform(profile, image.mode)
        if transform:
            image = transform.apply(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image)


def scale_deep(values):
    """Scale values of 16 or 32 bits, or floats, to uint8 by what they hold."""
    values = np.nan_to_num(values)
    highest = values.max()
    white = max(1, highest)
    if values.dtype.kind != "f":
        white = max(65_535, highest)
        # Cameras and scanners put 10, 12 or 14 bits into files of 16. Multiples of 257
        # are 8 bits made 16: those are as bright as they say.
        for bits in (14, 12, 10, 8):
            if highest < 2**bits and np.any(values % 257):
                white = 2**bits - 1
    scaled = values.astype(np.float32) * np.float32(255 / white)
    return scaled.clip(0, 255).round().astype(np.uint8)


@functools.lru_cache(maxsize=64)
def find_transform(profile, mode):
    """Return Pillow's transform from a colour profile, bytes, to sRGB.

    None where there is nothing to do: the profile is broken, or not of this mode, or
    as good as sRGB, as most are.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return transform
    # Whether it changes anything is tried on colours from all over the range, because
    # the names of profiles say little.
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    if mode == "RGB":
        colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        colors = colors.reshape(1, -1, 3)
    else:
        colors = levels[None]
    image = Image.fromarray(colors)
    before = np.asarray(image.convert("RGB")).astype(int)
    after = np.asarray(transform.apply(image)).astype(int)
    if np.abs(after - before).max() <= 2:
        return None
    return transform


# ----------------------------------------------------------------------------
# Its content
# ----------------------------------------------------------------------------
def count_border_lines(lines):
    """Return how many first lines of some, uint8 (N, M, 3), have one colour, and it."""
    color = np.median(lines[0], axis=0)
    for number, line in enumerate(lines):
        if np.abs(line - color).max() > BORDER_LEVELS:
            return number, color
    return len(lines), color


def find_content(picture):
    """Find what lies within the uniform borders of a picture.

    Returns:
        The Box of the content, and the Box that squares may be taken from: the content
        where it is a photo in a frame or between bars, and the whole picture where it
        is a figure on an even ground, as an athlete in a white studio.
    """
    pixels = picture.pixels
    high, wide = pixels.shape[:2]
    columns = pixels.swapaxes(0, 1)
    left, left_color = count_border_lines(columns)
    right, right_color = count_border_lines(columns[::-1])
    top, top_color = count_border_lines(pixels)
    bottom, bottom_color = count_border_lines(pixels[::-1])
    if left + right >= wide or top + bottom >= high:  # one colour, or two halves
        return picture.box, picture.box

    # A frame ends where its content begins; a ground goes on beside the figure.
    inner = pixels[top : high - bottom, left : wide - right]
    shares = []
    for border, color, line in (
        (left, left_color, inner[:, 0]),
        (right, right_color, inner[:, -1]),
        (top, top_color, inner[0]),
        (bottom, bottom_color, inner[-1]),
    ):
        if border:
            like_border = np.abs(line - color).max(axis=1) <= BORDER_LEVELS
            shares.append(like_border.mean())
    if not shares:
        return picture.box, picture.box

    x = picture.box.width / wide  # 1, or more for a JPEG that was decoded smaller
    y = picture.box.height / high
    content = Box(
        round(left * x),
        round(top * y),
        round((wide - right) * x),
        round((high - bottom) * y),
    )
    # A strip is no photo, whatever lies at its edges.
    shorter = min(content.width, content.height)
    longer = max(content.width, content.height)
    is_photo = shorter >= MIN_SIDE and longer <= MAX_ASPECT * shorter
    if is_photo and np.mean(shares) < 0.5:
        return content, content
    return content, picture.box


# ----------------------------------------------------------------------------
# Squares
# ----------------------------------------------------------------------------
def place_square(about, side, room):
    """Return the square Box about the middle of a Box, moved to stay in the room.

    Where the room is smaller than the square, the square holds all of the room.
    """
    corner = []
    for low, high, start, end in (
        (about.left, about.right, room.left, room.right),
        (about.top, about.bottom, room.top, room.bottom),
    ):
        place = (low + high - side) / 2
        # One is the start of the room, the other the last start that ends in it; which
        # of them comes first depends on whether the square fits.
        first = min(start, end - side)
        last = max(start, end - side)
        corner.append(math.floor(min(max(place, first), last)))
    left, top = corner
    return Box(left, top, left + side, top + side)


def choose_box(content, room, people):
    """Return the Box that becomes the row, by FIT.

    Args:
        content: the Box of what lies within uniform borders.
        room: the Box that squares may be taken from.
        people: the Box of the people, with FIT = "person".
    """
    if FIT == "stretch":
        return content
    if FIT == "person":
        content = people
    longer = max(content.width, content.height)
    # With some margin, as far as the room has it.
    if FIT == "crop":
        side = min(MARGIN * longer, room.width, room.height)
    elif FIT == "pad":
        side = min(MARGIN * longer, max(room.width, room.height))
    else:
        # Before the square juts out of the room it loses a third of the margin.
        tight = min((1 + 2 * MARGIN) / 3 * longer, max(room.width, room.height))
        side = max(tight, min(MARGIN * longer, room.width, room.height))
    return place_square(content, max(1, round(side)), room)


def resize(image, width, height):
    """Resize an image: shrink it by averaging areas, enlarge it by cubic curves."""
    # Averaging enlarges by repeating pixels, and curves shrink by skipping them.
    shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
    image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def cut(picture, box, room, size, color=None):
    """Cut a Box out of a Picture and resize it to uint8 (size, size, 3).

    What lies outside of the room, a Box within the picture, gets the colour; without
    one the median colour of the border of what lies inside.
    """
    seen = Box(
        max(box.left, room.left),
        max(box.top, room.top),
        min(box.right, room.right),
        min(box.bottom, room.bottom),
    )
    # From pixels of the upright picture to those that were decoded.
    x = picture.pixels.shape[1] / picture.box.width
    y = picture.pixels.shape[0] / picture.box.height
    left = min(round(seen.left * x), picture.pixels.shape[1] - 1)
    top = min(round(seen.top * y), picture.pixels.shape[0] - 1)
    right = max(round(seen.right * x), left + 1)
    bottom = max(round(seen.bottom * y), top + 1)
    image = picture.pixels[top:bottom, left:right]

    # From there to pixels of the result.
    x = size / box.width
    y = size / box.height
    width = max(1, round(seen.width * x))
    height = max(1, round(seen.height * y))
    image = resize(image, width, height)
    if width == height == size:
        return image
    if color is None:
        border = np.vstack([image[0], image[-1], image[:, 0], image[:, -1]])
        color = np.median(border, axis=0)
    # Rounding must not push it out of the square.
    left = min(round((seen.left - box.left) * x), size - width)
    top = min(round((seen.top - box.top) * y), size - height)
    right = size - left - width
    bottom = size - top - height
    kind = cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(image, top, bottom, left, right, kind, value=color)


# ----------------------------------------------------------------------------
# The people in it
# ----------------------------------------------------------------------------
MODEL_SIDE = 256  # pixels: what the person model takes and gives
BACKGROUND_LEVEL = 200  # of 255: the light grey of BACKGROUND = "gray"


def get_model():
    """See to it that PERSON_MODEL is there and is the right one, or end the script."""
    path = Path(PERSON_MODEL)
    by_hand = (
        f"Put the model with the SHA-256 {PERSON_MODEL_SHA256} there by hand, or set "
        'FIT = "crop", which needs none.'
    )
    if not path.exists():
        try:
            with replacing(path) as temporary:
                fetch_model(temporary)
        except (OSError, Rejected) as error:  # those of requests are OSErrors
            sys.exit(
                f"Cannot fetch the person model from {PERSON_MODEL_URL} to "
                f"{path.resolve()}: {describe_error(error)}. {by_hand}"
            )
        print(f"Fetched {path} ({path.stat().st_size:,} bytes)")
    try:
        model = path.read_bytes()
    except OSError as error:  # a folder, or it may not be read
        sys.exit(
            f"Cannot use {path.resolve()} (PERSON_MODEL): {describe_error(error)}. "
            f"Move it away. {by_hand}"
        )
    found = hashlib.sha256(model).hexdigest()
    if found != PERSON_MODEL_SHA256:
        sys.exit(
            f"Cannot use {path.resolve()} (PERSON_MODEL): it has the SHA-256 {found}, "
            f"not PERSON_MODEL_SHA256. It stays as it is. Move it away. {by_hand}"
        )
    # Tried here, so that a model that does not run is one message and not one a thread.
    try:
        run_model(np.zeros((MODEL_SIDE, MODEL_SIDE, 3), np.uint8))
    except (cv2.error, ValueError) as error:
        sys.exit(
            f"Cannot use {path.resolve()} (PERSON_MODEL): OpenCV {cv2.__version__} "
            f"cannot run it: {describe_error(error)}. {by_hand}"
        )


def fetch_model(path):
    """Fetch PERSON_MODEL_URL to a path and check it.

    Raises:
        OSError, Rejected: It cannot be had, or is another.
    """
    import requests  # only here: it takes a while, and "crop" needs no network

    most = 20_000_000  # bytes; it has 249,505
    latest = time.monotonic() + 120
    digest = hashlib.sha256()
    size = 0
    try:
        response = requests.get(PERSON_MODEL_URL, stream=True, timeout=20)
        with response, open(path, "wb") as file:
            response.raise_for_status()
            for block in response.iter_content(1024):  # of a slow server soon enough
                size += len(block)
                if size > most:
                    raise Rejected(f"more than {most:,} bytes came")
                if time.monotonic() > latest:
                    raise Rejected("it did not end in two minutes")
                digest.update(block)
                file.write(block)
    # Their texts are of classes and addresses in memory.
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise Rejected("there is no connection, or it broke off") from None
    if digest.hexdigest() != PERSON_MODEL_SHA256:
        raise Rejected(
            f"what came ({size:,} bytes) has the SHA-256 {digest.hexdigest()}, not the "
            "one of PERSON_MODEL_SHA256"
        )


of_thread = threading.local()  # a net is not for several threads at once


def run_model(square):
    """Return how likely each pixel is a person's: float32 (S, S), 0..1.

    Args:
        square: uint8 (S, S, 3), RGB, S = MODEL_SIDE.
    """
    if not hasattr(of_thread, "net"):
        of_thread.net = cv2.dnn.readNetFromTFLite(PERSON_MODEL)
    of_thread.net.setInput(cv2.dnn.blobFromImage(square, 1 / 255))
    return of_thread.net.forward().reshape(MODEL_SIDE, MODEL_SIDE)


def find_parts(mask, box, least):
    """Find the people in a mask, float (S, S), that lies over a square Box.

    Returns:
        The Box about the largest connected part above `least`, and about those of a
        quarter of its area or more, so that athletes stay together; and the area of the
        largest, in pixels of the upright picture. None and 0 where there is none.
    """
    likely = (mask > least).astype(np.uint8)
    count, _, parts, _ = cv2.connectedComponentsWithStats(likely)
    if count == 1:
        return None, 0
    parts = parts[1:]  # the first is the background
    areas = parts[:, cv2.CC_STAT_AREA]
    parts = parts[areas >= areas.max() / 4]
    lefts = parts[:, cv2.CC_STAT_LEFT]
    tops = parts[:, cv2.CC_STAT_TOP]
    rights = lefts + parts[:, cv2.CC_STAT_WIDTH]
    bottoms = tops + parts[:, cv2.CC_STAT_HEIGHT]
    scale = box.width / len(mask)
    people = Box(
        box.left + scale * lefts.min(),
        box.top + scale * tops.min(),
        box.left + scale * rights.max(),
        box.top + scale * bottoms.max(),
    )
    return people, scale**2 * areas.max()


def move_mask(mask, box, other):
    """Redraw a mask, float (S, S), that lies over a square Box, over another one.

    What lies outside of its own is 0.
    """
    side = len(mask)
    scale = other.width / box.width
    # The middle of a pixel lies half a pixel from its corner.
    x = (other.left - box.left) * side / box.width + (scale - 1) / 2
    y = (other.top - box.top) * side / box.height + (scale - 1) / 2
    matrix = np.array([[scale, 0, x], [0, scale, y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(mask, matrix, (side, side), flags=flags)


def drop_unsure_parts(mask):
    """Set the connected parts of a mask, float32 (S, S), that are nowhere sure to 0.

    They are smears of floor and wall. A hand or a dumbbell by itself is sure somewhere.
    """
    count, parts = cv2.connectedComponents((mask > 0.25).astype(np.uint8))
    highest = np.zeros(count, np.float32)
    np.maximum.at(highest, parts, mask)
    return np.where(highest[parts] > 0.8, mask, np.float32(0))


def find_people(picture, room):
    """Find the people in a picture, or raise Rejected.

    The model looks twice: at the whole picture, and at a square about what it found
    there, which is sharper. The Box is that of the second look; the mask is 1 where
    both see people.

    Returns:
        Their Box, the share of the picture that the largest covers, and a mask, float32
        (S, S), 0..1, with the square Box that it lies over.
    """
    black = (0, 0, 0)  # about the picture: stretched to a square less was found
    whole = picture.box
    box = place_square(whole, max(whole.width, whole.height), whole)
    first = run_model(cut(picture, box, room, MODEL_SIDE, black))
    # At 0.5 the box lost feet and fists, at 0.3 it became too large.
    people, _ = find_parts(first, box, 0.4)
    _, area = find_parts(first, box, 0.5)
    share = area / (whole.width * whole.height)
    if people is None or share < MIN_PERSON:
        raise Rejected(f"no person found: {100 * share:.1f} % of it, below MIN_PERSON")

    # With more about it than MARGIN: the first look misses hands and feet.
    side = 1.3 * max(people.width, people.height)
    closer = place_square(people, math.ceil(side), room)
    second = run_model(cut(picture, closer, room, MODEL_SIDE, black))
    found, area = find_parts(second, closer, 0.4)
    # Of one that it loses, close up, the second look leaves only specks.
    if found is not None and area > 0.01 * closer.width**2:
        people = found
    # The first keeps out what looks like a person close up, as a plate or a rack.
    mask = second * np.clip(3 * move_mask(first, box, closer), 0, 1)
    mask = drop_unsure_parts(mask)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.5)  # a sure edge becomes soft as well
    return people, share, mask, closer


def cut_people(picture, box, room, mask, masked):
    """Cut a square Box out of a Picture with all but the people in even light grey.

    Args:
        box: what is cut.
        room: the Box of what may be seen of the picture.
        mask: how likely people are, float (S, S), over the square Box `masked`.

    Returns:
        uint8 (IMAGE_SIZE, IMAGE_SIZE, 3).
    """
    # Laid together at the size of the mask or more, and shrunk then: an edge between
    # the people and the grey has nothing of the wall behind them.
    size = max(IMAGE_SIZE, MODEL_SIDE)
    grey = (BACKGROUND_LEVEL, BACKGROUND_LEVEL, BACKGROUND_LEVEL)
    pixels = cut(picture, box, room, size, grey)
    mask = resize(move_mask(mask, masked, box), size, size)
    weight = np.clip((mask - 0.3) / 0.4, 0, 1)[..., None]  # a soft edge
    pixels = BACKGROUND_LEVEL + weight * (pixels - np.float32(BACKGROUND_LEVEL))
    return resize(pixels.round().astype(np.uint8), IMAGE_SIZE, IMAGE_SIZE)


# ----------------------------------------------------------------------------
# Its row
# ----------------------------------------------------------------------------
VIEW_SIDE = 128  # pixels: what the checks look at


class Row:
    """What became of an input: pixels and how they were fitted, or else a reason.

    Attributes:
        name: of the input.
        reason: why it is no row; "" for a row.
        is_picture: whether it could be read.
        pixels: uint8 (H, W, C); None once they are written.
        box: the Box that they show.
        person: share of the picture that the largest person covers, with FIT =
            "person".
        view: all of its content, stretched to uint8 (VIEW_SIDE, VIEW_SIDE, 3), RGB;
            None without the checks, and once it is written.
        sharpness: of the view.
        hashes: of the view, see hash_view.
        content: what is lost with it: pixels within its border, bytes of the file.
    """

    def __init__(self, name):
        self.name = name
        self.reason = ""
        self.is_picture = False
        self.pixels = None
        self.box = None
        self.person = None
        self.view = None
        self.sharpness = 0.0
        self.hashes = None
        self.content = (0, 0)


def make_row(name, source):
    """Make the Row of an input, a Path or an array: uint8 (H, W) or (H, W, C)."""
    row = Row(name)
    try:
        fit_row(row, source)
    except Rejected as reason:
        row.reason = str(reason)
    except OSError as error:  # its folder may not be entered, or it is gone by now
        row.reason = f"cannot be read: {describe_error(error)}"
    return row


def fit_row(row, source):
    """Fill in the Row of an input, or raise Rejected."""
    # A person is a part of the picture.
    least_side = IMAGE_SIZE
    if FIT == "person":
        least_side = 2 * max(IMAGE_SIZE, MODEL_SIDE)
    picture = read_source(source, max(least_side, VIEW_SIDE))
    row.is_picture = True
    content = picture.box
    room = picture.box
    # Images of an array were prepared by others.
    if CHECKS and isinstance(source, Path):
        content, room = find_content(picture)
        check_content(row, picture, content)
        row.content = (content.width * content.height, source.stat().st_size)

    people = None
    if FIT == "person":
        people, row.person, mask, masked = find_people(picture, room)
    row.box = choose_box(content, room, people)
    if BACKGROUND == "gray":
        pixels = cut_people(picture, row.box, room, mask, masked)
    else:
        pixels = cut(picture, row.box, room, IMAGE_SIZE)
    if COLOR == "gray":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    row.pixels = pixels


def check_content(row, picture, content):
    """Look at the content of a picture, a Box: fill in its Row, or raise Rejected."""
    width = picture.box.width
    height = picture.box.height
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected(f"too long: {width} x {height}, above MAX_ASPECT")
    if max(content.width, content.height) < MIN_SIDE:
        size = f"{content.width} x {content.height}"
        raise Rejected(f"too small: {size} within its border, below MIN_SIDE")
    row.view = cut(picture, content, content, VIEW_SIDE)
    grey = cv2.cvtColor(row.view, cv2.COLOR_RGB2GRAY)
    contrast = grey.std()
    if contrast < MIN_CONTRAST:
        raise Rejected(f"uniform: contrast {contrast:.1f}, below MIN_CONTRAST")
    # Of the contrast, so that pale pictures do not count as blurred.
    row.sharpness = cv2.Laplacian(grey, cv2.CV_32F).std() / max(contrast, 1e-6)
    row.hashes = hash_view(row.view)


def make_rows(sources):
    """Yield the Row of each (name, source), in order, made by threads.

    A terminal shows how far it is, how fast, and how much longer it takes.
    """
    live = is_terminal()
    threads = os.cpu_count() or 1
    notes = contextlib.nullcontext()
    if live:  # libtiff, for one, writes to stderr, which would break the live line
        notes = hold_back_stderr()
    with (
        notes,
        rich.progress.Progress(disable=not live) as progress,
        concurrent.futures.ThreadPoolExecutor(threads) as executor,
    ):
        task = progress.add_task("", total=len(sources))
        waiting = collections.deque()
        start = time.perf_counter()
        done = 0
        for number, (name, source) in enumerate(sources):
            waiting.append(executor.submit(make_row, name, source))
            is_last = number + 1 == len(sources)
            # No more wait at once than four a thread, so that memory stays flat.
            while waiting and (is_last or len(waiting) == 4 * threads):
                yield waiting.popleft().result()
                done += 1
                rate = f"{done / (time.perf_counter() - start):.0f} a second"
                progress.update(task, completed=done, description=rate)


@contextlib.contextmanager
def hold_back_stderr():
    """Keep what native code writes to stderr, and pass it on at the end."""
    with tempfile.TemporaryFile() as notes, open(os.dup(2), "wb") as stderr:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
            notes.seek(0)
            stderr.write(notes.read())


# ----------------------------------------------------------------------------
# Copies
# ----------------------------------------------------------------------------
# Pictures are compared as views, RGB, of 128 x 128 pixels, stretched to the square.
# 1. hash_view: each view gets short hashes: of the whole, its mirror and its parts.
# 2. find_similar: for each the few better pictures with the most similar hashes.
# 3. measure_difference: one view is laid on the other, and their tones are compared.
# 4. find_copies: from the best picture down, each stays or is a copy of one that stays.

PART_SHARES = (0.94, 0.84)  # sides of the parts that are hashed: of copies cut smaller
NUM_COMPARED = 3  # better pictures that each is compared with: pictures all alike
MIN_CORRELATION = 0.95  # of views laid roughly: copies of photos have 0.97 or more
QUERIES = 32  # hashes that are compared at once with
REFERENCES = 4096  # so many others: they fit into the cache of a core


def list_parts():
    """Return the (left, top, side) in pixels of the parts of a view that are hashed.

    The first is the whole view.
    """
    parts = [(0, 0, VIEW_SIDE)]
    for share in PART_SHARES:
        side = round(share * VIEW_SIDE)
        last = VIEW_SIDE - side
        for top in (0, last // 2, last):
            for left in (0, last // 2, last):
                parts.append((left, top, side))
    return parts


def hash_view(view):
    """Return the hashes of a view, uint8 (128, 128, 3) RGB: uint64 (K,).

    The first is that of its mirror, the others those of its parts by list_parts. A hash
    has a bit for each of the 63 lowest frequencies of the cosine transform: whether it
    is above their median.
    """
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    pictures = [cv2.flip(grey, 1)]
    for left, top, side in list_parts():
        pictures.append(grey[top : top + side, left : left + side])
    waves = []
    for picture in pictures:
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
        waves.append(cv2.dct(small.astype(np.float32))[:8, :8].ravel()[1:])
    waves = np.array(waves)
    bits = np.packbits(waves > np.median(waves, axis=1, keepdims=True), axis=1)
    return bits.view(np.uint64)[:, 0]


def count_bits(queries, references):
    """Return in how many bits pictures differ, laid on each other in the best way.

    One as a whole, or its mirror, is compared with each part of the other, and the
    other way round: either may have been cut out of the other.

    Args:
        queries: hashes, uint64 (K, Q).
        references: hashes, uint64 (K, R).

    Returns:
        The fewest bits, uint8 (Q, R).
    """
    fewest = np.full((queries.shape[1], references.shape[1]), 64, np.uint8)
    differing = np.empty(fewest.shape, np.uint64)
    bits = np.empty_like(fewest)
    pairs = []
    for whole in (0, 1):
        for part in range(1, len(queries)):
            pairs.append((whole, part))
            if part > 1:  # whole on whole once is enough
                pairs.append((part, whole))
    for query, reference in pairs:
        np.bitwise_xor(queries[query][:, None], references[reference], out=differing)
        np.bitwise_count(differing, out=bits)
        np.minimum(fewest, bits, out=fewest)
    return fewest


def find_most_similar(hashes, start):
    """Find better pictures that are like those from `start` to `start` + QUERIES.

    Args:
        hashes: uint64 (K, N), the best picture first.

    Returns:
        [(place, [places of better pictures, the most similar first])] of those that
        have any.
    """
    queries = hashes[:, start : start + QUERIES]
    found = [[] for _ in range(queries.shape[1])]
    for first in range(0, start + QUERIES, REFERENCES):
        references = hashes[:, first : min(first + REFERENCES, start + QUERIES)]
        bits = count_bits(queries, references)
        # Of each pair the worse is the query: it is not compared with worse ones.
        places = first + np.arange(bits.shape[1])
        bits[places >= start + np.arange(len(bits))[:, None]] = 64
        for row in np.flatnonzero(bits.min(axis=1) <= HASH_BITS):
            best = np.argsort(bits[row], kind="stable")[:NUM_COMPARED]
            for column in best[bits[row, best] <= HASH_BITS]:
                found[row].append((int(bits[row, column]), first + int(column)))
    similar = []
    for row, candidates in enumerate(found):
        if candidates:
            best = sorted(candidates)[:NUM_COMPARED]
            similar.append((start + row, [place for _, place in best]))
    return similar


def find_similar(hashes, show):
    """Find for each picture the few better ones that are most like it.

    Args:
        hashes: uint64 (N, K), the best picture first.
        show: function that is called with the share of the work that is done, 0 to 1.

    Returns:
        {place: [places of better pictures, the most similar first]}
    """
    hashes = np.ascontiguousarray(hashes.T)
    count = hashes.shape[1]
    starts = range(0, count, QUERIES)
    similar = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        search = functools.partial(find_most_similar, hashes)
        for start, found in zip(starts, executor.map(search, starts), strict=True):
            similar.update(found)
            # The later ones are compared with more: the work grows with the square.
            show(min(1, (start + QUERIES) / count) ** 2)
    return similar


def lay(small, large, part):
    """Lay a view on another that shows a part of it, and say how well it lies.

    Args:
        small, large: views, uint8 (128, 128, 3).
        part: (left, top, side) of what `small` shows of `large`, roughly.

    Returns:
        `large` moved and stretched to lie on `small`; where it covers that, bool
        (128, 128); and by how many pixels the corners moved.
        None where they cannot be laid on each other.
    """
    greys = []
    for view in (small, large):
        # Ranks of the greys: so a darker or flatter copy has the same ones.
        greys.append(cv2.equalizeHist(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)))
    left, top, side = part
    scale = side / VIEW_SIDE
    warp = np.array([[scale, 0, left], [0, scale, top]], np.float32)
    for size, rounds, blur in ((48, 20, 5), (VIEW_SIDE, 8, 3)):  # roughly, then well
        first = cv2.resize(greys[0], (size, size), interpolation=cv2.INTER_AREA)
        second = cv2.resize(greys[1], (size, size), interpolation=cv2.INTER_AREA)
        warp[:, 2] *= size / VIEW_SIDE
        until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, rounds, 1e-4)
        try:
            correlation, warp = cv2.findTransformECC(
                first, second, warp, cv2.MOTION_AFFINE, until, None, blur
            )
        except cv2.error:  # the two have nothing in common
            return None
        if size < VIEW_SIDE and correlation < MIN_CORRELATION:
            return None
        warp[:, 2] *= VIEW_SIDE / size
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (VIEW_SIDE, VIEW_SIDE)
    edge = cv2.BORDER_REPLICATE  # black would be blurred into what is compared
    laid = cv2.warpAffine(large, warp, size, flags=flags, borderMode=edge)
    covered = cv2.warpAffine(np.full(size, 255, np.uint8), warp, size, flags=flags)
    covered = cv2.erode(covered, np.ones((9, 9), np.uint8), borderValue=0) == 255
    corners = np.array([[0, VIEW_SIDE, 0, VIEW_SIDE], [0, 0, VIEW_SIDE, VIEW_SIDE]])
    moved = warp[:, :2] @ corners + warp[:, 2:] - corners
    return laid, covered, np.abs(moved).max()


def take_color_out(view, other, used):
    """Make a view as pale as another; a grey copy, for one, has no colours.

    Args:
        view, other: uint8 (H, W, 3).
        used: where they are compared, bool (H, W).

    Returns:
        The view with a share of its colours, uint8 (H, W, 3).
    """
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    other_grey = cv2.cvtColor(other, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    colors = view - grey
    products = colors * (other - other_grey)
    strength = np.square(colors)[used].sum()
    share = products[used].sum() / (strength + 1e-6)
    pale = grey + np.clip(share, 0, 1) * colors
    return pale.round().clip(0, 255).astype(np.uint8)


def fit_tones(view, other, used):
    """Give a view the tones of another by one curve for all channels.

    The curve is the mean value in `other` for each value in `view`: so a copy may be
    darker, flatter, or have lost what is brighter than white.

    Args: as for take_color_out.

    Returns:
        The view with its new tones, float32 (H, W, 3).
    """
    values = view[used].ravel()
    weights = (1, 2, 3, 4, 5, 4, 3, 2, 1)  # of near values: few pixels, rough curve
    counts = np.bincount(values, minlength=256)
    sums = np.bincount(values, other[used].ravel(), minlength=256)
    counts = np.convolve(counts, weights, "same")
    sums = np.convolve(sums, weights, "same")
    filled = np.flatnonzero(counts)  # values that only the rest has lie between these
    curve = np.interp(np.arange(256), filled, sums[filled] / counts[filled])
    return curve.astype(np.float32)[view]


def measure_difference(view, other, used):
    """Return how much a view with its tones fitted differs from another.

    What is compared is the mean difference in windows of a twelfth of the side, in
    standard deviations of `other`, where it is largest.

    Args: as for take_color_out.
    """
    fitted = fit_tones(view, other, used)
    blur = len(view) / 70  # hides the noise of JPEG and what sharpening adds
    first = cv2.GaussianBlur(fitted, (0, 0), blur)
    second = cv2.GaussianBlur(other.astype(np.float32), (0, 0), blur)
    deviation = second[used].std()
    if deviation < 4:  # of 255: nothing is seen in it
        return np.inf
    gaps = np.abs(first - second).mean(axis=2) * used
    window = len(view) // 12
    return cv2.blur(gaps, (window, window)).max() / deviation


def is_copy(view, other, hashes, other_hashes):
    """Return whether one of two pictures is a copy of the other.

    Args:
        view, other: views, uint8 (128, 128, 3). The better comes first, so that the
            answer is the same in each run.
        hashes, other_hashes: theirs, uint64 (K,).
    """
    parts = list_parts()
    # In how many bits a part of one differs from the whole other, or from its mirror.
    bits = np.empty((2, 2, len(parts)), np.uint8)
    for mirrored in (0, 1):
        whole = 1 - mirrored  # the place of the hash
        bits[0, mirrored] = np.bitwise_count(hashes[1:] ^ other_hashes[whole])
        bits[1, mirrored] = np.bitwise_count(other_hashes[1:] ^ hashes[whole])
    swapped, mirrored, part = np.unravel_index(bits.argmin(), bits.shape)
    large = view
    small = other
    if swapped:
        large = other
        small = view
    if mirrored:
        small = cv2.flip(small, 1)
    lying = lay(small, large, parts[part])
    if lying is None:
        return False
    laid, used, moved = lying
    if used.mean() < 0.6:
        return False
    limit = MAX_DIFFERENCE
    if moved < 0.12:  # pixels: what was drawn or photographed twice is moved by more
        limit = MAX_EXACT_DIFFERENCE
    # Half the side is enough for the tones and takes a quarter of the time.
    half = (VIEW_SIDE // 2, VIEW_SIDE // 2)
    small = cv2.resize(small, half, interpolation=cv2.INTER_AREA)
    laid = cv2.resize(laid, half, interpolation=cv2.INTER_AREA)
    used = used[::2, ::2]
    for first, second in ((small, laid), (laid, small)):
        if measure_difference(first, second, used) <= limit:
            return True
        paler = take_color_out(first, second, used)
        if measure_difference(paler, second, used) <= limit:
            return True
    return False


def find_copies(hashes, views, ranks):
    """Find the pictures that are copies of better ones.

    Each is a copy of one that stays: there are no chains. The result does not depend on
    the order of the pictures.

    Args:
        hashes: uint64 (N, K), by hash_view.
        views: uint8 (N, 128, 128, 3), RGB; may lie in a file.
        ranks: N tuples, no two of them equal: of copies the greatest stays.

    Returns:
        {number of a copy: number of the picture that stays}
    """
    order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
    with (
        rich.progress.Progress(disable=not is_terminal()) as progress,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor,
    ):
        # Searching is one half of the work that is shown, comparing the other.
        task = progress.add_task("looking for copies", total=2)

        def show(share):
            progress.update(task, completed=share)

        def compare(pair):
            place, better = pair
            first = order[better]
            second = order[place]
            return is_copy(views[first], views[second], hashes[first], hashes[second])

        similar = find_similar(hashes[order], show)
        pairs = []
        for place, others in similar.items():
            for better in others:
                pairs.append((place, better))
        answers = {}
        for pair, answer in zip(pairs, executor.map(compare, pairs), strict=True):
            answers[pair] = answer
            show(1 + len(answers) / len(pairs))

        stays = {}  # place of a copy: place of the picture that it is a copy of
        for place in sorted(similar):  # the best first
            for better in similar[place]:
                best = stays.get(better, better)
                if (place, best) not in answers:
                    answers[place, best] = compare((place, best))
                if answers[place, best]:
                    stays[place] = best
                    break
    return {order[place]: order[best] for place, best in stays.items()}


# ----------------------------------------------------------------------------
# Faults that show beside the others
# ----------------------------------------------------------------------------
def find_faults(rows, views):
    """Give a reason to the Rows that are no good beside the others.

    Args:
        rows: Rows that were checked, in the order of the array.
        views: their views, uint8 (N, VIEW_SIDE, VIEW_SIDE, 3), RGB.
    """
    sharpness = [row.sharpness for row in rows]
    limit = MIN_SHARPNESS * np.median(sharpness)
    for row in rows:
        if row.sharpness < limit:
            row.reason = f"blurred: sharpness {row.sharpness:.2f}, below {limit:.2f}"

    # Of copies the one with the most content stays; of equals the first by name. A
    # blurred one stays behind any that is not.
    names = sorted(row.name for row in rows)
    places = {name: place for place, name in enumerate(names)}
    ranks = []
    for row in rows:
        ranks.append((not row.reason, *row.content, -places[row.name]))
    hashes = np.array([row.hashes for row in rows])
    print(f"Looking for copies among {len(rows)} pictures", flush=True)
    for number, best in find_copies(hashes, views, ranks).items():
        if not rows[number].reason:
            rows[number].reason = f"a near-duplicate of {rows[best].name}"


# ----------------------------------------------------------------------------
# The inputs, and what is known of them
# ----------------------------------------------------------------------------
TABLES = ("manifest.jsonl", "failed.jsonl", "CREDITS.md", "factors.csv")  # no pictures


def is_foreign(folder):
    """Return whether a folder of this name is hidden, or a system's own.

    NAS systems keep @eaDir beside pictures, and macOS puts __MACOSX into archives.
    """
    return folder.startswith((".", "@")) or folder == "__MACOSX"


def list_files():
    """List the files below INPUT, a folder.

    Returns:
        [(name below INPUT, Path)], sorted by name, and the names of the folders that
        are left out, see is_foreign.

    Raises:
        OSError: INPUT may not be read.
    """
    root = Path(INPUT)
    os.listdir(root)
    ours = list_our_files()
    paths = []
    left_out = []

    def keep(error):  # a folder that may not be read becomes an input with a reason
        paths.append(Path(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=keep):
        place = Path(folder)
        for name in list(subfolders):
            if is_foreign(name):
                subfolders.remove(name)  # os.walk does not enter it then
                left_out.append((place / name).relative_to(root).as_posix())
            elif (place / name).is_symlink():  # nor this, by itself
                paths.append(place / name)
        for name in names:
            if name not in TABLES:
                paths.append(place / name)
    files = []
    for path in paths:
        if os.path.realpath(path) not in ours:
            files.append((path.relative_to(root).as_posix(), path))
    return sorted(files), sorted(left_out)


def list_our_files():
    """Return what the four scripts write, as a set of real paths: never inputs."""
    output = Path(OUTPUT_FILE)
    paths = [output, Path(PERSON_MODEL)]
    paths += [output.with_name("images.csv"), output.with_name("rejected.csv")]
    # FIGURE_DIR may lie within INPUT, as may OUTPUT_FILE.
    for name in (
        "dataset.png",
        "fitted.png",
        "rejected.png",
        "loss.png",
        "reconstructions.png",
        "latent_grid.png",
        "latent_grid.jpg",
        "latent_map.png",
        "traversals.png",
        "morph.gif",
        "latent_space.html",
    ):
        paths.append(Path(FIGURE_DIR) / name)
    return {os.path.realpath(path) for path in paths}


def load_arrays():
    """Load INPUT, an .npz file or MNIST.

    Returns:
        {name: uint8 (N, H, W) or (N, H, W, C)} and {name: labels, (N,)}, for the names
        x_train and x_test as far as they are there.

    Raises:
        ValueError: there are none, and why.
    """
    arrays = {}
    labels = {}
    try:
        if INPUT == "mnist":
            if "keras" not in sys.modules:
                os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
            with quiet():
                import keras  # only here: it takes seconds
            train, test = keras.datasets.mnist.load_data()
            arrays["x_train"], labels["x_train"] = train
            arrays["x_test"], labels["x_test"] = test
        elif not zipfile.is_zipfile(INPUT):
            raise ValueError("it is no folder, and no .npz file")
        else:
            with np.load(INPUT, allow_pickle=False) as archive:
                if "x_train" not in archive:
                    raise ValueError(f"it holds {list(archive)}, but no x_train")
                for part in ("train", "test"):
                    if f"x_{part}" in archive:
                        arrays[f"x_{part}"] = archive[f"x_{part}"]
                    with contextlib.suppress(KeyError, ValueError):  # none, or pickled
                        labels[f"x_{part}"] = archive[f"y_{part}"].ravel()
    except Exception as error:  # of many kinds; without the web a bare one from Keras
        raise ValueError(str(error) or type(error).__name__) from error
    for name, array in arrays.items():
        good = array.ndim > 2 and array.shape[3:] in ((), (1,), (3,))
        if array.dtype != np.uint8 or not good:
            wanted = "uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {wanted}")
    return arrays, labels


def list_sources():
    """List the inputs in their final order, and what is known of them.

    The order is shuffled, so that the last rows, which are held out from training, are
    like the others; those of an `x_test` stay last, in their own order.

    Returns:
        [(name, Path or array)], {column: {name: text}} and the folders left out.

    Raises:
        ValueError, OSError: INPUT cannot be used.
    """
    # Sorted before it is shuffled: a folder lists its files in any order.
    random = np.random.default_rng(SEED)
    if Path(INPUT).is_dir():
        sources, left_out = list_files()
        random.shuffle(sources)
        return sources, read_known(sources), left_out
    arrays, labels = load_arrays()
    known = {}
    groups = []
    # x_train comes first, and x_test, if it is there, second.
    for part, array in arrays.items():
        group = []
        for number, image in enumerate(array):
            group.append((f"{part}[{number}]", image))
        groups.append(group)
        for number, label in enumerate(labels.get(part, ())):
            known.setdefault("label", {})[f"{part}[{number}]"] = str(label)
    random.shuffle(groups[0])
    return list(itertools.chain.from_iterable(groups)), known, []


def read_known(files):
    """Return what is known of files below INPUT: {column: {name: text}}.

    Tables are read for what they hold: a file without a line, or a line that is torn,
    leaves an empty cell.
    """
    known = {}
    manifest = Path(INPUT) / "manifest.jsonl"
    if manifest.is_file():
        known["keyword"] = read_keywords(manifest)
    factors = Path(INPUT) / "factors.csv"
    if factors.is_file():
        known |= read_factors(factors)
    folders = {}
    for name, _ in files:
        folders[name] = name.rpartition("/")[0]
    known["folder"] = folders
    return known


def read_keywords(path):
    """Return {file: keyword} of a manifest as scrape.py writes it."""
    keywords = {}
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):  # blank, or torn by a kill
                continue
            if isinstance(entry, dict) and entry.get("keyword") is not None:
                keywords[str(entry.get("file"))] = str(entry["keyword"])
    return keywords


def read_factors(path):
    """Return {column: {file: text}} of a table with a column `file`."""
    # Columns of images.csv that do not come from this table.
    taken = {"row", "file", "mirrored", "left", "top", "width", "height", "person"}
    taken |= {"images_id", "keyword", "label", "folder", ""}
    factors = {}
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        table = csv.DictReader(file)
        try:
            for line in table:
                for name, text in line.items():
                    # None: cells after the last column, or a line without this one.
                    if name in (None, "file") or text is None:
                        continue
                    column = name
                    others = set(table.fieldnames) - {name}
                    while column in taken | others:
                        column = f"factor_{column}"
                    factors.setdefault(column, {})[line.get("file")] = text
        except csv.Error as error:
            print(f"Left out the rest of {path}: {error}.")
    return factors


def mirror_text(column, text):
    """Return what a column says in a mirror row: left becomes right in `shift`."""
    if column == "shift":
        with contextlib.suppress(ValueError):
            return str(0 - float(text))
    return text


# ----------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------
def plot_sheet(path, tiles, columns, side, caption):
    """Draw a sheet of tiles: (image, uint8 (H, W, C), label) in lines of `columns`."""
    high = side
    if any(label for _, label in tiles):
        high += 12
    lines = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * side, lines * high + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(tiles):
        left = number % columns * side
        top = number // columns * high
        sheet.paste(Image.fromarray(image.squeeze()), (left, top))
        text = label.encode("ascii", "replace").decode().replace("\n", " ")
        draw.text((left + 2, top + side), text[: side // 5], "black")
    text = f"{caption}; training images: check rights before publishing"
    draw.text((4, lines * high + 4), text, "black")
    sheet.save(path, "PNG", compress_level=1)  # a fifth of the time, a tenth larger


def draw_original(source, box, side):
    """Draw an input and the Box of it that is used, uint8 (side, side, 3)."""
    tile = np.full((side, side, 3), 230, np.uint8)
    try:
        picture = read_source(source, side)
    except (Rejected, OSError):  # it was there before, and is gone by now
        return tile
    # A gap of four pixels parts it from the next tile.
    scale = (side - 4) / max(picture.box.width, picture.box.height)
    width = max(1, round(scale * picture.box.width))
    height = max(1, round(scale * picture.box.height))
    tile[:height, :width] = resize(picture.pixels, width, height)
    if box:
        start = (round(scale * box.left), round(scale * box.top))
        end = (round(scale * box.right), round(scale * box.bottom))
        cv2.rectangle(tile, start, end, (0, 255, 0), 2)
    return tile


def choose_sample(rows):
    """Return up to 48 of a list, evenly spread."""
    count = min(48, len(rows))
    sample = []
    for number in range(count):
        sample.append(rows[number * len(rows) // count])
    return sample


def plot_rejected(path, rejected, sources):
    """Draw rejected pictures with the reasons, and their boxes if it came so far.

    What could not be read at all would fill the sheet with empty tiles.
    """
    places = dict(sources)
    pictures = [row for row in rejected if row.is_picture]
    sample = choose_sample(sorted(pictures, key=lambda row: row.reason))
    tiles = []
    for row in sample:
        tile = draw_original(places[row.name], row.box, 160)
        tiles.append((tile, row.reason))
    caption = f"{len(sample)} of {len(pictures)} rejected pictures"
    plot_sheet(path, tiles, 8, 160, caption)


def plot_fitted(path, rows, sources, images_file):
    """Draw inputs with their squares, and with BACKGROUND = "gray" what was kept."""
    places = dict(sources)
    images = np.load(images_file, mmap_mode="r")[:: rows_for_each()]
    tiles = []
    sample = choose_sample(list(range(len(rows))))
    for number in sample:
        row = rows[number]
        label = ""
        if FIT == "person":
            label = f"person {100 * row.person:.0f} %"
        tiles.append((draw_original(places[row.name], row.box, 160), label))
        if BACKGROUND == "gray":
            tiles.append((resize(images[number], 156, 156), ""))
    caption = f"{len(sample)} of {len(rows)} inputs and their squares"
    plot_sheet(path, tiles, 8, 160, caption)


def plot_dataset(path, images_file):
    """Draw the first 100 pictures of an array, ten in a line, 128 pixels at most."""
    images = np.load(images_file, mmap_mode="r")[:: rows_for_each()][:100]
    side = min(128, images.shape[1])
    tiles = []
    for image in images:
        tiles.append((resize(image, side, side), ""))
    white = np.full((1, 1, 3), 255, np.uint8)
    while len(tiles) < 100:
        tiles.append((white, ""))
    plot_sheet(path, tiles, 10, side, "the first images")


# ----------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------
@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its place on success.

    Temporary files of `path` that runs left when they were killed go as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for leftover in path.parent.glob(f".*-{glob.escape(path.name)}"):
        pid = leftover.name[1:].partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def is_running(pid):
    """Return whether a process of this number runs on this machine."""
    if os.name == "nt":
        return True  # os.kill would end it there: rather a file too many
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


def rows_for_each():
    """Return how many rows of the array a picture gets."""
    if MIRROR:
        return 2
    return 1


def image_shape():
    """Return the shape of a row, (H, W, C)."""
    if COLOR == "rgb":
        return IMAGE_SIZE, IMAGE_SIZE, 3
    return IMAGE_SIZE, IMAGE_SIZE, 1


def write_header(file, count):
    """Write the header of a .npy file of so many pictures: its length never changes."""
    file.seek(0)
    shape = (count * rows_for_each(), *image_shape())
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def write_array(path, rows, views):
    """Write the pixels of Rows to a .npy file one by one, and their views to a file.

    Returns:
        The Rows that were written, in their order, and the rejected ones, without
        pixels and views.
    """
    written = []
    rejected = []
    with open(path, "wb") as file:
        write_header(file, 0)  # how many there are is known at the end
        for row in rows:
            if row.reason:
                rejected.append(row)
            else:
                file.write(row.pixels)
                if MIRROR:
                    file.write(cv2.flip(row.pixels, 1))
                if row.view is not None:
                    views.write(row.view)
                written.append(row)
            row.pixels = None
            row.view = None
        write_header(file, len(written))
    return written, rejected


def take_out_faults(path, rows, views):
    """Take what is no good beside the others out of a .npy file.

    Args:
        path: of the file, with the pixels of all the rows.
        rows: Rows that were checked.
        views: an open file with their views.

    Returns:
        The Rows that stay, and those that were taken out, with their reasons.
    """
    views.flush()
    views = np.memmap(views, np.uint8, "r").reshape(-1, VIEW_SIDE, VIEW_SIDE, 3)
    find_faults(rows, views)
    kept = []
    rejected = []
    size = rows_for_each() * math.prod(image_shape())
    with open(path, "r+b") as file:
        write_header(file, len(rows))
        start = file.tell()  # of the pixels, behind the header
        # Those that stay move up. Making them once more would take twice the time.
        for number, row in enumerate(rows):
            if row.reason:
                rejected.append(row)
                continue
            if len(kept) < number:
                file.seek(start + number * size)
                pixels = file.read(size)
                file.seek(start + len(kept) * size)
                file.write(pixels)
            kept.append(row)
        file.truncate(start + len(kept) * size)
        write_header(file, len(kept))
    return kept, rejected


def write_table(path, header, lines):
    """Write a CSV file; bytes of a file name that are no valid text become \\udcNN."""
    options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with open(path, "w", **options) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


def read_images_id(path):
    """Return the id of an array: the first 16 letters of the SHA-256 of its file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_index(path, images_file, rows, known):
    """Write images.csv: a line for each row of the array, all with its id.

    Args:
        rows: the Rows, without the mirrors.
        known: {column: {name: text}}.
    """
    images_id = read_images_id(images_file)
    # The later scripts look these columns up by name.
    header = ["row", "file", "mirrored", "left", "top", "width", "height"]
    if FIT == "person":
        header.append("person")
    header += ["images_id", *known]
    lines = []
    for row in rows:
        box = row.box
        for mirrored in range(rows_for_each()):
            line = [len(lines), row.name, mirrored]
            line += [box.left, box.top, box.width, box.height]
            if FIT == "person":
                line.append(f"{row.person:.4f}")
            line.append(images_id)
            for column, texts in known.items():
                text = texts.get(row.name, "")
                if mirrored:
                    text = mirror_text(column, text)
                line.append(text)
            lines.append(line)
    write_table(path, header, lines)


# ----------------------------------------------------------------------------
# Checks of the settings
# ----------------------------------------------------------------------------
def check(good, name, value, expected):
    """End the script with a message if a setting is not what it has to be."""
    if not good:
        script = Path(__file__).name
        text = f"{name} = {value!r}: expected {expected}"
        sys.exit(f"{text}. Edit it at the top of {script}.")


def is_whole(value, low, high=1_000_000):
    """Return whether a value is a whole number from low to high, and no bool."""
    return type(value) is int and low <= value <= high


def is_number(value, low, high=math.inf):
    """Return whether a value is a finite number from low to high, and no bool."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def is_text(value, longest=1000):
    """Return whether a value is a text, and not an empty or a very long one."""
    return isinstance(value, str) and 0 < len(value.strip()) <= longest


def check_settings():
    """End the script with a message if a setting is not what it has to be."""
    for name, value in (
        ("INPUT", INPUT),
        ("OUTPUT_FILE", OUTPUT_FILE),
        ("FIGURE_DIR", FIGURE_DIR),
        ("PERSON_MODEL", PERSON_MODEL),
    ):
        check(is_text(value), name, value, "a path in quotes")
    for name, value in (
        ("PERSON_MODEL_URL", PERSON_MODEL_URL),
        ("PERSON_MODEL_SHA256", PERSON_MODEL_SHA256),
    ):
        check(is_text(value), name, value, "a text in quotes")
    good = OUTPUT_FILE.endswith(".npy")
    check(good, "OUTPUT_FILE", OUTPUT_FILE, 'a path that ends in ".npy"')
    good = is_whole(IMAGE_SIZE, 28, 4096) and IMAGE_SIZE % 4 == 0
    check(good, "IMAGE_SIZE", IMAGE_SIZE, "a multiple of 4 from 28 to 4096")
    names = ("rgb", "gray")
    check(COLOR in names, "COLOR", COLOR, f"one of {names}")
    check_fit()
    check(type(MIRROR) is bool, "MIRROR", MIRROR, "True or False")
    check(type(CHECKS) is bool, "CHECKS", CHECKS, "True or False")
    expected = "a whole number from 0 to 1,000,000"
    check(is_whole(MIN_SIDE, 0), "MIN_SIDE", MIN_SIDE, expected)
    expected = "a whole number from 0 to 10,000,000,000"
    check(is_whole(MAX_PIXELS, 0, 10**10), "MAX_PIXELS", MAX_PIXELS, expected)
    expected = "a whole number from 0 to 2**63"
    check(is_whole(SEED, 0, 2**63), "SEED", SEED, expected)
    check_limits()


def check_fit():
    """Check what is cut out of a picture: FIT and BACKGROUND."""
    names = ("crop", "person", "pad", "stretch")
    expected = f"one of {names}"
    if FIT == "subject":
        expected += ' ("subject" went: "person" finds people, and finds them better)'
    check(FIT in names, "FIT", FIT, expected)
    if INPUT == "mnist" or os.path.isfile(INPUT):  # False where it may not be looked at
        expected = f"another word, because INPUT is {INPUT!r}: "
        expected += "arrays are taken whole or by their centre"
        check(FIT != "person", "FIT", FIT, expected)
    names = ("keep", "gray")
    check(BACKGROUND in names, "BACKGROUND", BACKGROUND, f"one of {names}")
    good = BACKGROUND == "keep" or FIT == "person"
    expected = f'"keep", because FIT is {FIT!r}: with "person" it can be "gray"'
    check(good, "BACKGROUND", BACKGROUND, expected)


def check_limits():
    """Check the limits by which pictures are rejected."""
    expected = "a number from 0 to 1"
    check(is_number(MIN_PERSON, 0, 1), "MIN_PERSON", MIN_PERSON, expected)
    check(is_number(MARGIN, 1, 10), "MARGIN", MARGIN, "a number from 1 to 10")
    expected = "a whole number from 0 to 255"
    check(is_whole(BORDER_LEVELS, 0, 255), "BORDER_LEVELS", BORDER_LEVELS, expected)
    expected = "a whole number from 0 to 64"
    check(is_whole(HASH_BITS, 0, 64), "HASH_BITS", HASH_BITS, expected)
    check(is_number(MAX_ASPECT, 1), "MAX_ASPECT", MAX_ASPECT, "a number, 1 or more")
    for name, value in (
        ("MIN_CONTRAST", MIN_CONTRAST),
        ("MIN_SHARPNESS", MIN_SHARPNESS),
        ("MAX_DIFFERENCE", MAX_DIFFERENCE),
        ("MAX_EXACT_DIFFERENCE", MAX_EXACT_DIFFERENCE),
    ):
        check(is_number(value, 0), name, value, "a number, 0 or more")


# ----------------------------------------------------------------------------
# Messages and errors
# ----------------------------------------------------------------------------
def open_streams():
    """Make stdout take any text, also in a notebook, and replace closed streams."""
    if sys.stdout is None:  # closed by >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout is no real stream
        sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be shown
    if sys.stderr is None:  # closed by 2>&-: fill its place, or a file of ours gets it
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass


def is_terminal():
    """Return whether somebody sees stdout as it grows, so that a bar may move there."""
    # A window that stands for stdout need not have isatty.
    return hasattr(sys.stdout, "isatty") and sys.stdout.isatty()


@contextlib.contextmanager
def quiet():
    """Hold back what is written to stderr, such as TensorFlow's notes when it starts.

    Another process keeps the text. It shows it if the block fails, or if this process
    dies in the block, as TensorFlow makes it do on a CPU that is too old.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed by 2>&-: fill its place, or a file of ours would get it
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass
        stderr = os.dup(2)
    show = "import sys; sys.stderr.buffer.write(sys.stdin.buffer.read())"
    # -I and -S: it starts fast, whatever the user's environment adds to Python.
    keeper = subprocess.Popen(
        [sys.executable, "-ISc", show],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for the keeper
    )
    os.dup2(keeper.stdin.fileno(), 2)  # so that native code writes there, too
    try:
        yield
        keeper.kill()  # all went well: nobody needs the text
    except KeyboardInterrupt:
        keeper.kill()
        raise
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        # This ends its input: a keeper that still lives shows now what it was given.
        keeper.stdin.close()
        keeper.wait()


def describe_error(error):
    """Return what an exception says, in one line; of an OSError its reason alone."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    text = " ".join(text.split())[:300]
    # The others say little without their names: a KeyError holds only the key.
    if not text or not isinstance(error, (OSError, ValueError, ArithmeticError)):
        text = f"{type(error).__name__}: {text}"
    return text


def stop(error, path):
    """End the script with one message about an OSError, of stdout or of a file.

    Args:
        error: the OSError. Where it names no file, it was met in writing.
        path: what was most likely being written then.
    """
    reason = describe_error(error)
    try:
        print(flush=True)  # unbuffered, what was refused is gone: does it take a line?
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # or Python complains again at its end
        sys.exit(f"Cannot write to stdout: {reason}. Mend it and run again.")
    name = Path(error.filename or path).resolve()
    name = name.with_name(name.name.removeprefix(f".{os.getpid()}-"))  # of replacing()
    sys.exit(f"Cannot write {name}: {reason}. Mend it and run again.")


# ----------------------------------------------------------------------------
# All of it
# ----------------------------------------------------------------------------
def find_input():
    """Return what INPUT is, for messages: its resolved path, or "mnist"."""
    if INPUT == "mnist":
        return INPUT
    return Path(INPUT).resolve()


def announce(sources, left_out):
    """Print what the script is about to do."""
    is_folder = Path(INPUT).is_dir()
    has_manifest = (Path(INPUT) / "manifest.jsonl").is_file()
    shape = " x ".join(str(size) for size in image_shape())
    plan = f"{FIT} to {shape}"
    if BACKGROUND == "gray":
        plan += ", background grey"
    if MIRROR:
        plan += ", with mirrors"
    # As many as the inputs, should none be rejected.
    size = len(sources) * rows_for_each() * math.prod(image_shape())
    if is_folder and CHECKS:
        size += len(sources) * VIEW_SIDE**2 * 3
    else:
        plan += ", without checks"
    print(f"Preparing {INPUT} ({len(sources)} inputs): {plan}")
    print(f"It takes up to {size / 1e6:.0f} MB of disk while it runs.")
    if left_out:
        names = ", ".join(left_out[:3])
        print(f"Left out {len(left_out)} folders, hidden or the system's: {names}")
    if FIT == "crop" and is_folder and has_manifest:
        better = 'FIT = "person" and BACKGROUND = "gray"'
        print(f"Photographs of people come out better with {better}.")


def prepare(sources, known):
    """Write all files.

    Returns:
        How many pictures became rows, and a word on the others. Without any, only
        rejected.csv and rejected.png are written, and what an earlier run left stays.
    """
    output = Path(OUTPUT_FILE)
    figures = Path(FIGURE_DIR)
    # The array and its index take their places last, one right after the other.
    with (
        replacing(output) as new_output,
        replacing(output.with_name("images.csv")) as new_index,
        replacing(figures / "dataset.png") as new_dataset,
        replacing(figures / "fitted.png") as new_fitted,
        tempfile.TemporaryFile(dir=output.parent) as views,
        contextlib.closing(make_rows(sources)) as made,
    ):
        rows, rejected = write_array(new_output, made, views)
        if rows and CHECKS and Path(INPUT).is_dir():
            rows, faulty = take_out_faults(new_output, rows, views)
            rejected += faulty
        # These are written without any row as well: they say why there is none.
        rejected.sort(key=lambda row: row.name)
        with replacing(output.with_name("rejected.csv")) as new_rejected:
            lines = [(row.name, row.reason) for row in rejected]
            write_table(new_rejected, ["file", "reason"], lines)
        with replacing(figures / "rejected.png") as new_figure:
            plot_rejected(new_figure, rejected, sources)
        if not rows:
            explain_nothing(rejected)
        write_index(new_index, new_output, rows, known)
        plot_dataset(new_dataset, new_output)
        plot_fitted(new_fitted, rows, sources, new_output)
    return len(rows), describe_rejected(rejected)


def describe_rejected(rejected):
    """Return a few words on rejected Rows."""
    if not rejected:
        return "0 rejected"
    examples = []
    for row in rejected[:3]:
        examples.append(f"{row.name!r}: {row.reason}")
    return f"{len(rejected)} rejected, such as {'; '.join(examples)}"


def explain_nothing(rejected):
    """End the script: no input became a row."""
    table = Path(OUTPUT_FILE).with_name("rejected.csv").resolve()
    found = f"Found no usable picture in {find_input()} (INPUT)"
    sys.exit(f"{found}: {describe_rejected(rejected)}. See {table} for each.")


def main():
    check_settings()
    start = time.perf_counter()
    Image.init()  # here, not in several threads at once
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is no news here
    cv2.setNumThreads(1)  # the threads work on different pictures instead
    remedy = "Run scrape.py first, or tests/draw_athletes.py, or name an .npz file."
    try:
        if INPUT != "mnist" and not Path(INPUT).exists():
            sys.exit(f"Found no {find_input()} (INPUT). {remedy}")
        sources, known, left_out = list_sources()
    except (ValueError, OSError) as error:
        reason = describe_error(error)
        sys.exit(f"Cannot use {find_input()} (INPUT): {reason}. {remedy}")
    if not sources:
        sys.exit(f"Found no file in {find_input()} (INPUT). {remedy}")
    if FIT == "person":
        get_model()
    announce(sources, left_out)

    count, rejected = prepare(sources, known)
    output = Path(OUTPUT_FILE)
    print(f"Wrote {output.with_name('images.csv')} and rejected.csv ({rejected})")
    pictures = "dataset.png, fitted.png and rejected.png"
    notice = "training images: check rights before publishing"
    print(f"Wrote {pictures} in {FIGURE_DIR} ({notice})")
    shape = (count * rows_for_each(), *image_shape())
    text = " x ".join(str(size) for size in shape)
    size = output.stat().st_size / 1e6
    seconds = time.perf_counter() - start
    print(f"Wrote {output} (uint8, {text}, {size:.0f} MB) in {seconds:.1f} s")


if __name__ == "__main__":
    open_streams()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Stopped: earlier files are as they were. Run again.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        stop(error, OUTPUT_FILE)
