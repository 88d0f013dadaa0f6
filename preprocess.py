"""Turn pictures into one array of equal squares, each followed by its mirror.

    python preprocess.py

Reads   the pictures below INPUT, a folder: .jpg .jpeg .png .webp .bmp .tif .tiff .gif
        .avif; or an .npz file with uint8 `x_train` and perhaps `x_test`; or MNIST.
Writes  OUTPUT_FILE: uint8 (N, H, W, C), 0..255, RGB (C = 3) or grey (C = 1); with
        MIRROR, row 2i is a picture and row 2i + 1 its left-right mirror.
        images.csv beside it: for each row the file, whether it is mirrored, the box in
        pixels of the upright picture that became the row, how sure the subject in it
        is, and the id of the array.
        rejected.csv beside it: each file that did not become a row, and why.
        FIGURE_DIR/dataset.png: the first pictures, 10 x 10.
        FIGURE_DIR/fitted.png, rejected.png: a sample of the originals with the squares
        that were cut, and of the rejected ones with the reasons: look at both.

Rows are written as they are made, so that memory stays flat however many there are.
"""

import collections
import concurrent.futures
import contextlib
import csv
import hashlib
import itertools
import math
import os
import sys
import tempfile
import time
import types
import typing
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import rich.progress
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
INPUT = "data/raw"  # a folder, an .npz file with x_train (and x_test), or "mnist"
OUTPUT_FILE = "data/images.npy"  # images.csv and rejected.csv are put beside it
FIGURE_DIR = "figures"

# Data
IMAGE_SIZE = 256  # side in pixels, a multiple of 4; twice the side, four times the work
COLOR = "rgb"  # or "gray": one channel instead of three
FIT = "subject"  # a square about it (arrays: "crop"); "crop", "pad" or "stretch"
MIRROR = True  # add the left-right mirror of each picture: twice the rows
MIN_SIDE = 64  # pixels; of a picture with a shorter side most would be made up
MAX_PIXELS = 50_000_000  # a larger picture is rejected before it fills the memory
SEED = 0  # order of the pictures: the last rows are held out from training

# Subject: see find_subject
MARGIN = 1.15  # side of the square in parts of the subject: 1 cuts off feet and fists
CONFIDENCE = 2.0  # below it the centre is taken: noise has 1.4, athletes 2.1 to 15

# Checks of files, not of arrays
CHECKS = True  # trim uniform borders; reject the unfit and near-duplicates, see below
BORDER_LEVELS = 8  # a border's colours differ by so little, of 255: the noise of JPEG
MIN_CONTRAST = 6.0  # standard deviation of the greys, of 255: a photo has 30 to 80
MAX_ASPECT = 4.0  # longer by shorter side: banners and strips; lying athletes have 3.5
MIN_SHARPNESS = 0.3  # of the median of all pictures: one blurred by a 64th of its side
HASH_BITS = 8  # of 64 that may differ: copies differ by 6 at most, others by 12 or more
MAX_DIFFERENCE = 0.065  # of pixels, in deviations: copies have 0.054, others 0.093
# ----------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its place on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_back_stderr(pass_on):
    """Keep what native code writes to stderr, and pass it on at the end or drop it."""
    with tempfile.TemporaryFile() as notes, open(os.dup(2), "wb") as stderr:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
            notes.seek(0)
            stderr.write(notes.read() if pass_on else b"")


def load_arrays(source):
    """Return {name: uint8 (N, H, W) or (N, H, W, C)}, or raise ValueError: why not."""
    try:
        if source == "mnist":
            with hold_back_stderr(pass_on=False):  # TensorFlow's start-up notes
                import keras  # only here: it takes seconds
            (x_train, _), (x_test, _) = keras.datasets.mnist.load_data()
            arrays = {"x_train": x_train, "x_test": x_test}
        elif not zipfile.is_zipfile(source):
            raise ValueError("no such folder or .npz file")
        else:
            with np.load(source, allow_pickle=False) as archive:
                if "x_train" not in archive:
                    raise ValueError(f"it holds {list(archive)}, but no x_train")
                arrays = {x: archive[x] for x in ("x_train", "x_test") if x in archive}
    except Exception as error:  # of many kinds; without the web a bare one from Keras
        raise ValueError(str(error) or type(error).__name__) from error
    for name, array in arrays.items():
        good = array.ndim > 2 and array.shape[3:] in ((), (1,), (3,))
        if array.dtype != np.uint8 or not good:
            wanted = "uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {wanted}")
    return arrays


def list_sources(source, seed):
    """Return the (name, path or array) of every input in its final order.

    The order is shuffled, so that the last rows, which are held out from training,
    are like the others; those of an `x_test` stay last, in their own order.
    """
    if Path(source).is_dir():
        os.listdir(source)  # raises where the folder may not be read
        ours = ("manifest.jsonl", "failed.jsonl", "CREDITS.md")
        files = (
            (path.relative_to(source).as_posix(), path)
            for path in Path(source).rglob("*")  # links to folders are not followed
            if path.is_symlink() or not path.is_dir() or not os.access(path, os.R_OK)
            if path.name not in ours and path.suffix.lower() != ".csv"
        )
        groups = [sorted(files)]
    else:
        groups = [
            [(f"{name}[{number}]", image) for number, image in enumerate(array)]
            for name, array in load_arrays(source).items()
        ]
    np.random.default_rng(seed).shuffle(groups[0])
    return sum(groups, [])


def to_rgb(image):
    """Lay a Pillow image on white and reduce it to 8 bits: uint8 (H, W, 3) RGB."""
    if image.mode[0] in "IF":  # 16 or 32 bits, grey
        grey = np.nan_to_num(np.asarray(image, np.float32))
        white = max(1 if image.mode == "F" else 65_535, grey.max())
        grey = np.clip(grey * (255 / white), 0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_image(path, least_side, min_side, max_pixels):
    """Read a picture as a person would see it: upright, on white, 8 bits a channel.

    Returns the image, uint8 (H, W, 3) RGB, and the upright width and height in the
    file, of which a JPEG may have been decoded to a half, a quarter or an eighth, as
    long as the shorter side keeps `least_side` pixels.
    Raises nearly anything, from Pillow's decoders, for damaged bytes.
    """
    formats = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
    with Image.open(path, formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"too large: {width} x {height}, above MAX_PIXELS")
        if min(width, height) < min_side:
            raise ValueError(f"too small: {width} x {height}, below MIN_SIDE")
        # A third of the time of decoding it whole, and a PSNR to that of 33 to 46 dB.
        image.draft(None, (least_side, least_side))
        image.load()
        orientation = 1
        with contextlib.suppress(Exception):  # a damaged EXIF block says nothing
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        pixels = to_rgb(image)
    if orientation in (5, 6, 7, 8):
        pixels, width, height = pixels.swapaxes(0, 1), height, width
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels, width, height


def trim(image, levels):
    """Return the (left, top, right, bottom) of what lies within uniform borders."""
    edges = []
    for turned in (image.swapaxes(0, 1), image):
        for lines in (turned, turned[::-1]):
            color = np.median(lines[0], axis=0)
            uniform = (np.abs(line - color).max() <= levels for line in lines)
            edges.append(sum(itertools.takewhile(bool, uniform)))
    left, right, top, bottom = edges
    edges = left, top, image.shape[1] - right, len(image) - bottom
    return edges if left + right < image.shape[1] else (0, 0, *image.shape[1::-1])


def find_subject(image):
    """Find what a picture, uint8 (H, W, 3) RGB, is of: most likely a person.

    The score of a pixel is its contrast, which is high where a lens is focused, and up
    to three times that if it has a colour of skin. The subject is what scores above a
    share of Otsu's threshold: the best connected part and those with 0.4 of its score.
    Found by measurement: against this score a prior for the centre, spectral residual
    saliency, rareness of colours at the border and GrabCut lost athletes.

    Returns:
        The box (left, top, right, bottom) in pixels and the confidence: how many times
        higher the mean score is in the chosen parts than elsewhere.
    """
    scale = 160 / max(image.shape[:2])
    width, height = (max(2, round(scale * side)) for side in image.shape[1::-1])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    red, blue = cv2.split(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).astype("f4"))[1:]
    skin = np.exp(-(((red - 150) / 14) ** 2) - ((blue - 108) / 14) ** 2)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    slopes = (cv2.Sobel(grey, cv2.CV_32F, *axes) for axes in ((1, 0), (0, 1)))
    score = cv2.GaussianBlur(np.hypot(*slopes) * (0.5 + skin), (0, 0), 2.5) + 1e-6
    levels = (255 / score.max() * score).astype(np.uint8)
    otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    parts = (levels > 0.75 * otsu).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(parts)
    sums = np.bincount(labels.ravel(), score.ravel())
    sums[0] = 0  # the background
    best = np.flatnonzero(sums >= 0.4 * sums.max())
    chosen = np.isin(labels, best)
    rest = score if chosen.all() else score[~chosen]
    confidence = min(99.0, float(score[chosen].mean() / rest.mean()))
    left, top, wide, high, _ = boxes[best].T
    edges = min(left), min(top), max(left + wide), max(top + high)
    return np.array(edges) / scale, round(confidence, 2)


def choose_box(width, height, fit, subject=None, margin=1):
    """Return the (left, top, width, height) that becomes the square, in pixels.

    About a subject (left, top, right, bottom) the square is moved to stay inside of the
    picture, and loses two thirds of its margin before it juts out.
    """
    if fit == "stretch":
        return 0, 0, width, height
    side = max(width, height) if fit == "pad" else min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if subject is not None:
        edges = np.array(subject)
        longer = max(edges[2:] - edges[:2])
        tight = min((2 + margin) / 3 * longer, max(width, height))
        side = round(max(tight, min(margin * longer, side)))
        room = np.array([width - side, height - side])
        corner = (edges[:2] + edges[2:] - side) / 2
        left, top = np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))
    return round(left), round(top), side, side


def resize(image, width, height):
    """Resize an image: shrink it by averaging areas, enlarge it by cubic curves."""
    shrunk = min(width, image.shape[1]), min(height, image.shape[0])
    image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def cut(image, edges, image_size):
    """Cut a rectangle out of an image, uint8 (H, W, 3), and resize it to a square.

    What lies outside of the image gets the median colour of the border of what lies
    inside. The edges are left, top, right and bottom in pixels.
    """
    left, top, right, bottom = edges
    image = image[max(0, top) : bottom, max(0, left) : right]
    x, y = image_size / (right - left), image_size / (bottom - top)
    width, height = max(1, round(image.shape[1] * x)), max(1, round(len(image) * y))
    image = resize(image, width, height)
    if width == height == image_size:
        return image
    border = np.vstack([image[0], image[-1], image[:, 0], image[:, -1]])
    color = np.median(border, axis=0)
    left, top = round(max(0, -left) * x), round(max(0, -top) * y)
    right, bottom = image_size - left - width, image_size - top - height
    edges = top, bottom, left, right
    return cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=color)


class Row(typing.NamedTuple):
    """What became of an input: pixels and how they were fitted, or else a reason."""

    name: str
    reason: str = ""
    pixels: np.ndarray | None = None  # uint8 (H, W, C)
    box: tuple = ()  # left, top, width, height in pixels of the upright picture
    confidence: float | str = ""  # of the subject, where one was looked for
    area: int = 0  # of the whole picture, in pixels
    view: np.ndarray | None = None  # uint8 (128, 128, 3), all of it: for the checks
    sharpness: float = 0.0
    hashes: np.ndarray | None = None  # see hash_view


def make_row(name, source, settings):
    """Make the Row of an input, a path or an array: uint8 (H, W) or (H, W, C)."""
    try:
        return fit_row(name, source, settings)
    except UnidentifiedImageError:
        return Row(name, "not an image, or cut short, or of an unknown kind")
    except ValueError as error:
        return Row(name, str(error))
    except Exception as error:  # a damaged file must not stop the others
        return Row(name, f"damaged or unreadable: {str(error) or repr(error)}")


def read_source(name, source, least_side, settings):
    """Return what read_image does of an input; raise ValueError: why it is none."""
    endings = ".jpg .jpeg .png .webp .bmp .tif .tiff .gif .avif".split()
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2]
        image = np.broadcast_to(np.atleast_3d(source), (height, width, 3))
        return image, width, height
    if not source.is_file():
        raise ValueError("no file: a broken link, a device, a folder not entered")
    if "/." in f"/{name}" or source.suffix.lower() not in endings:
        raise ValueError("not a picture by its name")
    if source.stat().st_size == 0:
        raise ValueError("an empty file")
    return read_image(source, least_side, settings.min_side, settings.max_pixels)


def fit_row(name, source, settings):
    """Make the Row of an input, or raise ValueError: why there is none."""
    # A subject is a part of its picture; the checks look at 128 pixels.
    least = settings.image_size * (1 + (settings.fit == "subject"))
    least = max(least, 128) if settings.checks else least
    image, width, height = read_source(name, source, least, settings)
    x, y = image.shape[1] / width, image.shape[0] / height  # 1, or less for a JPEG
    area, left, top, found = width * height, 0, 0, {}
    if settings.checks:
        if max(width, height) > settings.max_aspect * min(width, height):
            raise ValueError(f"too long: {width} x {height}, above MAX_ASPECT")
        left, top, right, bottom = trim(image, settings.border_levels)
        image = image[top:bottom, left:right]
        width, height = round((right - left) / x), round((bottom - top) / y)
        left, top = round(left / x), round(top / y)
        view = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
        contrast = grey.std()
        if contrast < settings.min_contrast:
            raise ValueError(f"uniform: contrast {contrast:.1f}, below MIN_CONTRAST")
        if min(width, height) < settings.min_side:
            raise ValueError(f"too small: {width} x {height} within its border")
        sharpness = cv2.Laplacian(grey, cv2.CV_32F).std() / contrast
        found = {"view": view, "sharpness": sharpness, "hashes": hash_view(grey)}
    subject, confidence = None, ""
    if settings.fit == "subject":
        subject, confidence = find_subject(image)
        sure = confidence >= settings.confidence
        subject = subject / (x, y, x, y) if sure else None
    box = choose_box(width, height, settings.fit, subject, settings.margin)
    edges = (box[0] * x, box[1] * y, (box[0] + box[2]) * x, (box[1] + box[3]) * y)
    pixels = cut(image, [round(edge) for edge in edges], settings.image_size)
    if settings.color == "gray":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    box = (box[0] + left, box[1] + top, *box[2:])
    return Row(name, "", pixels, box, confidence, area, **found)


def make_rows(sources, settings, threads):
    """Yield make_row(*source, settings) of each source in order, made by threads.

    A terminal shows how far it is, how fast, and how much longer it takes.
    """
    live = sys.stdout.isatty()
    with (  # libtiff, for one, writes to stderr, which would break the live line
        hold_back_stderr(pass_on=True) if live else contextlib.nullcontext(),
        rich.progress.Progress(disable=not live) as progress,
        concurrent.futures.ThreadPoolExecutor(threads) as executor,
    ):
        task = progress.add_task("", total=len(sources))
        futures = (executor.submit(make_row, *source, settings) for source in sources)
        waiting = collections.deque(itertools.islice(futures, 4 * threads))
        start = time.perf_counter()
        for done in range(1, len(sources) + 1):
            yield waiting.popleft().result()
            waiting.extend(itertools.islice(futures, 1))  # no more at once: memory
            if live:
                rate = f"{done / (time.perf_counter() - start):.0f} a second"
                progress.update(task, completed=done, description=rate)


def write_array(path, rows, shape, mirror, views):
    """Write the pixels of rows, each (H, W, C) = shape, to a .npy file one by one.

    Their views are written to the open file `views`. Returns the Rows without pixels
    and views: those that were written, in their order, and the rejected ones.
    """
    written, rejected = [], []
    with open(path, "wb") as file:
        write_header(file, (0, *shape))
        for row in rows:
            if row.pixels is None:
                rejected.append(row)
                continue
            file.write(row.pixels)
            if mirror:
                file.write(cv2.flip(row.pixels, 1))
            if row.view is not None:
                views.write(row.view)
            written.append(row._replace(pixels=None, view=None))
        write_header(file, (len(written) * (1 + mirror), *shape))
    return written, rejected


def write_header(file, shape):
    """Write the header of a .npy file: it is as long whatever the number of rows."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def keep_rows(path, numbers, shape, step):
    """Keep only these groups of `step` rows, each `shape`, of a .npy file, in place."""
    size = step * math.prod(shape)
    with open(path, "r+b") as file:
        write_header(file, (step * len(numbers), *shape))
        start = file.tell()
        for new, old in enumerate(numbers):
            if new != old:
                file.seek(start + old * size)
                group = file.read(size)
                file.seek(start + new * size)
                file.write(group)
        file.truncate(start + len(numbers) * size)


# ----------------------------------------------------------------------------
# Near-duplicates
# ----------------------------------------------------------------------------
def hash_view(grey):
    """Return perceptual hashes of a grey view, uint64 (11,).

    A hash has a bit for each of the 63 lowest frequencies of the cosine transform: is
    it above their median? The first is that of the view, the second of its mirror, the
    others of nine windows of 0.95 of its sides, which are like a picture cut smaller.
    """
    side = round(0.95 * len(grey))
    starts = (0, (len(grey) - side) // 2, len(grey) - side)
    windows = [grey[y : y + side, x : x + side] for y in starts for x in starts]
    hashes = []
    for part in (grey, cv2.flip(grey, 1), *windows):
        part = cv2.resize(part, (32, 32), interpolation=cv2.INTER_AREA)
        waves = cv2.dct(part.astype(np.float32))[:8, :8].ravel()[1:]
        hashes.append(np.packbits(waves > np.median(waves)))
    return np.array(hashes).view(np.uint64)[:, 0]


def find_similar(hashes, max_bits):
    """Return (i, j, mirrored) of views with similar hashes, uint64 (N, 11).

    Of each the three most similar others are taken, so that pictures which are all
    alike, as frames of one film, take no longer.
    """
    pairs = set()
    references = np.delete(hashes, 1, axis=1)
    for number, queries in enumerate(hashes[:, :2]):
        bits = [np.bitwise_count(references ^ query).min(1) for query in queries]
        bits = np.array(bits)
        bits[:, number] = 64
        best = np.argsort(bits, axis=None, kind="stable")[:3]
        for place in best[bits.ravel()[best] <= max_bits]:
            mirrored, other = divmod(int(place), len(hashes))
            pairs.add((min(number, other), max(number, other), mirrored))
    return sorted(pairs)


def align(first, second):
    """Move and stretch the second of two views, uint8 (H, W, 3), to lie on the first.

    Returns the second, and where it covers the first, bool (H, W). Raises cv2.error
    where they cannot be laid on each other.
    """
    size, warp = len(first), np.eye(2, 3, dtype=np.float32)
    greys = [cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in (first, second)]
    for side, rounds, blur in ((48, 20, 5), (size, 8, 3)):  # roughly, then well
        parts = [cv2.resize(x, (side, side), interpolation=3) for x in greys]
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, rounds, 1e-4)
        affine = cv2.MOTION_AFFINE
        warp[:, 2] *= side
        _, warp = cv2.findTransformECC(*parts, warp, affine, stop, None, blur)
        warp[:, 2] /= side
    warp[:, 2] *= size
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    second = cv2.warpAffine(second, warp, (size, size), flags=flags)
    covered = np.full((size, size), 255, np.uint8)
    covered = cv2.warpAffine(covered, warp, (size, size), flags=flags)
    return second, cv2.erode(covered, np.ones((9, 9)), borderValue=0) == 255


def measure_difference(first, second):
    """Return how much two views, uint8 (S, S, 3), differ where they differ most.

    One is laid on the other and its brightness fitted. What is compared is the mean
    difference in windows of a twelfth of the side, in standard deviations: infinite
    where nothing fits.
    """
    try:
        second, covered = align(first, second)
    except cv2.error:
        return np.inf
    if covered.mean() < 0.6:
        return np.inf
    # A brighter copy has lost what lies above white, unless white is most of it.
    bright = cv2.dilate(cv2.max(first, second), np.ones((5, 5))).max(axis=2) >= 240
    used = covered & ~bright if (covered & ~bright).mean() > 0.3 else covered
    views = [cv2.GaussianBlur(x.astype("f4"), (0, 0), 1.5) for x in (first, second)]
    (mean, deviation), (other, scale) = ((v[used].mean(), v[used].std()) for v in views)
    scale += 1e-6
    fitted = (views[0] - mean) * (scale / (deviation + 1e-6)) + other
    gaps = np.abs(fitted - views[1]).mean(axis=2) * used / scale
    return cv2.blur(gaps, (len(first) // 12,) * 2).max()


def find_faults(rows, views, settings, threads):
    """Return {number of a row: why it is no good beside the others}.

    Args:
        rows: Rows that were checked.
        views: their views, uint8 (N, 128, 128, 3).
    """
    sharpness = np.array([row.sharpness for row in rows])
    limit = settings.min_sharpness * np.median(sharpness)
    faults = {
        int(number): f"blurred: sharpness {sharpness[number]:.2f}, below {limit:.2f}"
        for number in np.flatnonzero(sharpness < limit)
    }
    sharp = [number for number in range(len(rows)) if number not in faults]
    hashes = np.array([rows[number].hashes for number in sharp])
    pairs = find_similar(hashes, settings.hash_bits)

    def compare(pair):
        first, second = views[sharp[pair[0]]], views[sharp[pair[1]]]
        return measure_difference(first, second[:, ::-1] if pair[2] else second)

    cluster = list(range(len(sharp)))  # the largest picture of each one's cluster
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        differences = list(executor.map(compare, pairs))
    for (*pair, _), difference in zip(pairs, differences, strict=True):
        if difference <= settings.max_difference:
            pair = {cluster[number] for number in pair}
            best = max(pair, key=lambda number: (rows[sharp[number]].area, -number))
            cluster = [best if other in pair else other for other in cluster]
    for number, best in enumerate(cluster):
        if best != number:
            faults[sharp[number]] = f"a near-duplicate of {rows[sharp[best]].name}"
    return faults


def write_table(path, header, lines):
    """Write a CSV file; bytes of a file name that are no valid text become \\udcNN."""
    table = open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")
    with table:
        csv.writer(table).writerows(itertools.chain([header.split()], lines))


def plot_sheet(path, tiles, columns, side, caption):
    """Draw a sheet of tiles: (image, uint8 (H, W, C), label) in lines of `columns`."""
    high = side + 12 * any(label for _, label in tiles)
    lines = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * side, lines * high + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(tiles):
        left, top = number % columns * side, number // columns * high
        sheet.paste(Image.fromarray(image.squeeze()), (left, top))
        label = label.encode("ascii", "replace").decode().replace("\n", " ")
        draw.text((left + 2, top + side), label[: side // 6], "black")
    text = f"{caption}; training images: check rights before publishing"
    draw.text((4, lines * high + 4), text, "black")
    sheet.save(path, "PNG", compress_level=1)  # a fifth of the time, a tenth larger


def draw_original(source, box, side, settings):
    """Draw an input and the box of it that is used, uint8 (side, side, 3)."""
    tile = np.full((side, side, 3), 230, np.uint8)
    with contextlib.suppress(Exception):  # it is no picture: an empty tile
        image, width, height = read_source("", source, side, settings)
        scale = (side - 4) / max(width, height)
        size = [max(1, round(scale * length)) for length in (width, height)]
        tile[: size[1], : size[0]] = resize(image, *size)
        if box:
            left, top, wide, high = (round(scale * length) for length in box)
            corners = (left, top), (left + wide, top + high)
            cv2.rectangle(tile, *corners, (0, 255, 0), 2)
    return tile


def plot_originals(path, rows, sources, settings, caption):
    """Draw up to 48 inputs of rows, evenly spread, with their boxes or reasons."""
    rows, places, tiles = sorted(rows, key=lambda row: row.reason), dict(sources), []
    count = min(48, len(rows))
    for row in (rows[number * len(rows) // count] for number in range(count)):
        tile = draw_original(places[row.name], row.box, 160, settings)
        tiles.append((tile, row.reason or f"confidence {row.confidence or '-'}"))
    plot_sheet(path, tiles, 8, 160, f"{count} of {len(rows)} {caption}")


def plot_dataset(path, images_file, step):
    """Draw 100 rows of an array, every step-th, ten in a line, 128 pixels at most."""
    images = np.load(images_file, mmap_mode="r")[::step][:100]
    side = min(128, images.shape[1])
    tiles = [(resize(image, side, side), "") for image in images]
    tiles += [(np.full((1, 1, 3), 255, np.uint8), "")] * (100 - len(tiles))
    plot_sheet(path, tiles, 10, side, "the first images")


def check_settings(settings):
    """End the script with a message if a setting is not what it has to be."""
    fits, sizes = ("subject", "crop", "pad", "stretch"), range(28, 4097, 4)
    whole = "min_side max_pixels seed border_levels hash_bits"
    numbers = "confidence min_contrast min_sharpness max_difference"
    for names, kinds, good, expected in (
        ("input output_file figure_dir", [str], len, "a text"),
        ("output_file", [str], lambda x: x.endswith(".npy"), "a .npy file"),
        ("image_size", [int], sizes.count, "a multiple of 4 from 28 to 4096"),
        ("color", [str], ("rgb", "gray").count, '"rgb" or "gray"'),
        ("fit", [str], fits.count, f"one of {fits}"),
        ("mirror checks", [bool], lambda x: True, "True or False"),
        (whole, [int], lambda x: x >= 0, "a whole number, 0 or more"),
        (numbers, [int, float], lambda x: x >= 0, "a number, 0 or more"),
        ("margin max_aspect", [int, float], lambda x: x >= 1, "a number, 1 or more"),
    ):
        for name in names.split():
            value = getattr(settings, name)
            if type(value) not in kinds or not good(value):
                text = f"{name.upper()} = {value!r}: expected {expected}"
                sys.exit(f"{text}. Edit it at the top of preprocess.py.")


def take_out_faults(path, rows, shape, views, settings, threads):
    """Take the rows that are no good beside the others out of a .npy file.

    Args:
        rows: Rows that were checked: all of the file, each `shape`, without mirrors.
        views: an open file with their views.

    Returns:
        The Rows that stay, and those that were taken out, with their reasons.
    """
    views.flush()
    pictures = np.memmap(views, np.uint8, "r").reshape(-1, 128, 128, 3)
    faults = find_faults(rows, pictures, settings, threads)
    kept = [number for number in range(len(rows)) if number not in faults]
    keep_rows(path, kept, shape, 1 + settings.mirror)
    rejected = [rows[number]._replace(reason=faults[number]) for number in faults]
    return [rows[number] for number in kept], rejected


def write_index(path, images_file, rows, step):
    """Write images.csv: `step` lines for each Row, all with the id of the array."""
    with open(images_file, "rb") as file:
        images_id = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    header = "row file mirrored left top width height confidence images_id"
    lines = (
        (step * n + mirrored, row.name, mirrored, *row.box, row.confidence, images_id)
        for n, row in enumerate(rows)
        for mirrored in range(step)
    )
    write_table(path, header, lines)


def prepare(sources, settings, shape, failure):
    """Write all files and return the Rows, without the mirrors, and a word on the rest.

    Without any row the script ends with the message `failure`: only rejected.csv and
    rejected.png are written then, and what an earlier run left stays.
    """
    threads, step = os.cpu_count() or 1, 1 + settings.mirror
    output, figures = Path(settings.output_file), Path(settings.figure_dir)
    with (
        replacing(output) as new_output,
        replacing(output.with_name("images.csv")) as new_index,
        replacing(figures / "dataset.png") as new_dataset,
        replacing(figures / "fitted.png") as new_fitted,
        tempfile.TemporaryFile(dir=output.parent) as views,
        contextlib.closing(make_rows(sources, settings, threads)) as rows,
    ):
        rows, rejected = write_array(new_output, rows, shape, settings.mirror, views)
        if rows and rows[0].hashes is not None:
            rows, faulty = take_out_faults(
                new_output, rows, shape, views, settings, threads
            )
            rejected += faulty
        rejected.sort(key=lambda row: row.name)
        with replacing(output.with_name("rejected.csv")) as new_rejected:
            lines = ((row.name, row.reason) for row in rejected)
            write_table(new_rejected, "file reason", lines)
        with replacing(figures / "rejected.png") as new_figure:
            plot_originals(new_figure, rejected, sources, settings, "rejected inputs")
        reasons = "; ".join(f"{row.name!r}: {row.reason}" for row in rejected[:3])
        reasons = f"{len(rejected)} rejected{reasons and ', such as '}{reasons}"
        if not rows:
            sys.exit(f"{failure} {reasons}; see {output.with_name('rejected.csv')}")
        write_index(new_index, new_output, rows, step)
        plot_dataset(new_dataset, new_output, step)
        plot_originals(new_fitted, rows, sources, settings, "inputs and their squares")
    return rows, reasons


def clear_up(output):
    """Remove the temporary files of a run that was killed, ten minutes ago or more."""
    for leftover in output.parent.glob(f".[0-9]*-{output.name}"):
        if leftover.stat().st_mtime < time.time() - 600:
            leftover.unlink(missing_ok=True)


def main():
    settings = types.SimpleNamespace(
        input=INPUT, output_file=OUTPUT_FILE, figure_dir=FIGURE_DIR, seed=SEED,
        image_size=IMAGE_SIZE, color=COLOR, fit=FIT, mirror=MIRROR, min_side=MIN_SIDE,
        max_pixels=MAX_PIXELS, margin=MARGIN, confidence=CONFIDENCE, checks=CHECKS,
        border_levels=BORDER_LEVELS, min_contrast=MIN_CONTRAST, max_aspect=MAX_ASPECT,
        min_sharpness=MIN_SHARPNESS, hash_bits=HASH_BITS, max_difference=MAX_DIFFERENCE,
    )  # fmt: skip
    check_settings(settings)
    if not Path(INPUT).is_dir():  # the images of an array were prepared by others
        settings.checks, settings.fit = False, FIT.replace("subject", "crop")
    start = time.perf_counter()
    sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be printed
    Image.init()  # here, not in several threads at once
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is no news here
    cv2.setNumThreads(1)  # the threads work on different pictures instead
    place = INPUT if INPUT == "mnist" else Path(INPUT).resolve()
    remedy = "Run scrape.py first, or tests/draw_athletes.py, or name an .npz file."
    try:
        sources = list_sources(INPUT, SEED)
    except (ValueError, OSError) as error:
        sys.exit(f"Cannot use {place} (INPUT): {error}. {remedy}")

    shape = (IMAGE_SIZE, IMAGE_SIZE, 3 if COLOR == "rgb" else 1)
    size = " x ".join(map(str, shape))
    print(
        f"Preparing {INPUT} ({len(sources)} inputs): {settings.fit} to {size}"
        f"{', with mirrors' if MIRROR else ''}"
        f"{'' if settings.checks else ', without checks'}"
    )
    output = Path(OUTPUT_FILE)
    try:
        clear_up(output)
        failure = f"Found no usable picture in {place} (INPUT). {remedy} There were"
        rows, reasons = prepare(sources, settings, shape, failure)
    except OSError as error:
        path = Path(error.filename or output).resolve()
        sys.exit(f"Cannot write {path}: {error.strerror}. Mend it and run again.")
    print(f"Wrote {output.with_name('images.csv')} and rejected.csv ({reasons})")
    pictures = "dataset.png, fitted.png and rejected.png"
    notice = "training images: check rights before publishing"
    print(f"Wrote {pictures} in {FIGURE_DIR} ({notice})")
    print(
        f"Wrote {output} (uint8, {len(rows) * (1 + MIRROR)} x {size}, "
        f"{output.stat().st_size / 1e6:.0f} MB) in {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped: earlier files are as they were, run again.", file=sys.stderr)
        sys.exit(130)
