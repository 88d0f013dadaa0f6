"""Turn pictures into one array of equal squares, each followed by its mirror.

    python preprocess.py

Reads   the pictures below INPUT, a folder: .jpg .jpeg .png .webp .bmp .tif .tiff .gif
        .avif; or an .npz file with uint8 `x_train` and perhaps `x_test`; or MNIST.
Writes  OUTPUT_FILE: uint8 (N, H, W, C), 0..255, RGB (C = 3) or grey (C = 1); with
        MIRROR, row 2i is a picture and row 2i + 1 its left-right mirror.
        images.csv beside it: for each row the file, whether it is mirrored, the box in
        pixels of the upright picture that became the row, and the id of the array.
        rejected.csv beside it: each file that did not become a row, and why.
        FIGURE_DIR/dataset.png: the first pictures, 10 x 10.

Rows are written as they are made, so that memory stays flat however many there are:
45 MB for 2000 photos of 850 x 567 pixels, which take 10 s on two cores.
"""

import collections
import concurrent.futures
import contextlib
import csv
import hashlib
import itertools
import os
import sys
import tempfile
import time
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
FIT = "crop"  # "crop" the centre square, "pad" to a square, or "stretch" to one
MIRROR = True  # add the left-right mirror of each picture: twice the rows
MIN_SIDE = 64  # pixels; of a picture with a shorter side most would be made up
MAX_PIXELS = 50_000_000  # a larger picture is rejected before it fills the memory
SEED = 0  # order of the pictures: the last rows are held out from training
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


def read_image(path, image_size, min_side, max_pixels):
    """Read a picture as a person would see it: upright, on white, 8 bits a channel.

    Returns the image, uint8 (H, W, 3) RGB, and the upright width and height in the
    file, of which a JPEG may have been decoded to a half, a quarter or an eighth.
    Raises nearly anything, from Pillow's decoders, for damaged bytes.
    """
    formats = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
    with Image.open(path, formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"too large: {width} x {height}, above MAX_PIXELS")
        if min(width, height) < min_side:
            raise ValueError(f"too small: {width} x {height}, below MIN_SIDE")
        # Decoded at twice the final side or more, a JPEG leaves the last step to area
        # averaging: PSNR 35 to 49 dB to decoding it whole, 21 ms for 4000 x 3000 pixels
        # and not 100. At the final side it would be 30 dB, and hardly faster.
        image.draft(None, (2 * image_size, 2 * image_size))
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


def choose_box(width, height, fit):
    """Return the (left, top, width, height) that becomes the square, in pixels."""
    if fit == "stretch":
        return 0, 0, width, height
    side = min(width, height) if fit == "crop" else max(width, height)  # "pad"
    return (width - side) // 2, (height - side) // 2, side, side


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
    square = np.full((image_size, image_size, 3), np.median(border, axis=0), np.uint8)
    left, top = round(max(0, -left) * x), round(max(0, -top) * y)
    square[top : top + height, left : left + width] = image
    return square


def make_row(name, source, image_size, color, fit, min_side, max_pixels):
    """Make a row of an input, a path or an array: uint8 (H, W) or (H, W, C).

    Returns (name, pixels, box), or (name, None, reason) of one that cannot be used.
    """
    endings = ".jpg .jpeg .png .webp .bmp .tif .tiff .gif .avif".split()
    try:
        if isinstance(source, np.ndarray):
            height, width = source.shape[:2]
            image = np.broadcast_to(np.atleast_3d(source), (height, width, 3))
        elif not source.is_file():
            raise ValueError("no file: a broken link, a device, a folder not entered")
        elif "/." in f"/{name}" or source.suffix.lower() not in endings:
            raise ValueError("not a picture by its name")
        elif source.stat().st_size == 0:
            raise ValueError("an empty file")
        else:
            image, width, height = read_image(source, image_size, min_side, max_pixels)
        box = left, top, wide, high = choose_box(width, height, fit)
        x, y = image.shape[1] / width, image.shape[0] / height  # 1, or less for a JPEG
        edges = (left * x, top * y, (left + wide) * x, (top + high) * y)
        pixels = cut(image, [round(edge) for edge in edges], image_size)
        if color == "gray":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        return name, pixels, box
    except UnidentifiedImageError:
        return name, None, "not an image, or cut short, or of an unknown kind"
    except ValueError as error:
        return name, None, str(error)
    except Exception as error:  # a damaged file must not stop the others
        return name, None, f"damaged or unreadable: {str(error) or repr(error)}"


def make_rows(sources, options, threads):
    """Yield make_row(*source, *options) of each source in order, made by threads.

    A terminal shows how far it is, how fast, and how much longer it takes.
    """
    live = sys.stdout.isatty()
    with (  # libtiff, for one, writes to stderr, which would break the live line
        hold_back_stderr(pass_on=True) if live else contextlib.nullcontext(),
        rich.progress.Progress(disable=not live) as progress,
        concurrent.futures.ThreadPoolExecutor(threads) as executor,
    ):
        task = progress.add_task("", total=len(sources))
        futures = (executor.submit(make_row, *source, *options) for source in sources)
        waiting = collections.deque(itertools.islice(futures, 4 * threads))
        start = time.perf_counter()
        for done in range(1, len(sources) + 1):
            yield waiting.popleft().result()
            waiting.extend(itertools.islice(futures, 1))  # no more at once: memory
            rate = f"{done / (time.perf_counter() - start):.0f} a second"
            progress.update(task, completed=done, description=rate)


def write_array(path, rows, shape, mirror):
    """Write the pixels of rows, each (H, W, C) = shape, to a .npy file one by one.

    Returns two lists: for each row of the array (name, mirrored, *box), and for each
    one that has no pixels (name, reason).
    """
    index, rejected = [], []
    header = {"descr": "|u1", "fortran_order": False, "shape": (0, *shape)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for name, pixels, note in rows:
            if pixels is None:
                rejected.append((name, note))
                continue
            for mirrored in range(1 + mirror):
                file.write(cv2.flip(pixels, 1) if mirrored else pixels)
                index.append((name, mirrored, *note))
        file.seek(0)
        header["shape"] = (len(index), *shape)  # as long as before: numpy leaves room
        np.lib.format.write_array_header_1_0(file, header)
    return index, sorted(rejected)


def write_table(path, header, lines):
    """Write a CSV file; bytes of a file name that are no valid text become \\udcNN."""
    table = open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")
    with table:
        csv.writer(table).writerows(itertools.chain([header.split()], lines))


def plot_dataset(path, images_file, step):
    """Draw 100 rows of an array, every step-th, ten in a line, 128 pixels at most."""
    images = np.load(images_file, mmap_mode="r")[::step][:100]
    side = min(128, images.shape[1])
    sheet = Image.new("RGB", (10 * side, 10 * side + 20), "white")
    for number, image in enumerate(images):
        tile = Image.fromarray(resize(image, side, side).squeeze())
        sheet.paste(tile, (number % 10 * side, number // 10 * side))
    caption = "training images: check rights before publishing"
    ImageDraw.Draw(sheet).text((4, 10 * side + 4), caption, "black")
    sheet.save(path, "PNG")


def check(good, text):
    """End the script with a message where a setting is not what it has to be."""
    if not good:
        sys.exit(f"{text}. Edit it at the top of preprocess.py.")


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be printed
    texts = all(type(x) is str and x for x in (INPUT, OUTPUT_FILE, FIGURE_DIR))
    check(texts, f"{INPUT, OUTPUT_FILE, FIGURE_DIR = }: expected texts")
    check(OUTPUT_FILE.endswith(".npy"), f"{OUTPUT_FILE = }: expected a .npy file")
    numbers = (IMAGE_SIZE, MIN_SIDE, MAX_PIXELS, SEED)
    whole = all(type(number) is int and number >= 0 for number in numbers)
    text = f"IMAGE_SIZE, MIN_SIDE, MAX_PIXELS, SEED = {numbers}: expected whole numbers"
    check(whole, text)
    side = IMAGE_SIZE in range(28, 4097, 4)
    check(side, f"{IMAGE_SIZE = }: expected a multiple of 4 from 28 to 4096")
    check(COLOR in ("rgb", "gray"), f'{COLOR = }: expected "rgb" or "gray"')
    fits = ("crop", "pad", "stretch")
    check(FIT in fits, f"{FIT = }: expected one of {fits}")
    check(type(MIRROR) is bool, f"{MIRROR = }: expected True or False")

    start = time.perf_counter()
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
    threads = os.cpu_count() or 1
    print(
        f"Preparing {INPUT} ({len(sources)} inputs): {FIT} to {size}"
        f"{', with mirrors' if MIRROR else ''}, in {threads} threads"
    )
    options = (IMAGE_SIZE, COLOR, FIT, MIN_SIDE, MAX_PIXELS)
    output, dataset_file = Path(OUTPUT_FILE), Path(FIGURE_DIR, "dataset.png")
    index_file = output.with_name("images.csv")
    rejected_file = output.with_name("rejected.csv")
    try:
        for leftover in output.parent.glob(f".[0-9]*-{output.name}"):
            if leftover.stat().st_mtime < time.time() - 600:  # of a run that was killed
                leftover.unlink(missing_ok=True)
        with (
            replacing(output) as new_output,
            replacing(index_file) as new_index,
            replacing(dataset_file) as new_dataset,
            contextlib.closing(make_rows(sources, options, threads)) as rows,
        ):
            index, rejected = write_array(new_output, rows, shape, MIRROR)
            with replacing(rejected_file) as new_rejected:
                write_table(new_rejected, "file reason", rejected)
            reasons = "; ".join(f"{name!r}: {reason}" for name, reason in rejected[:3])
            reasons = f"{len(rejected)} rejected{reasons and ', such as '}{reasons}"
            if not index:
                found = f"Found no usable picture in {place} (INPUT): {reasons}"
                sys.exit(f"{found}; see {rejected_file}. {remedy}")
            with open(new_output, "rb") as file:
                images_id = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            header = "row file mirrored left top width height images_id"
            lines = ([row, *line, images_id] for row, line in enumerate(index))
            write_table(new_index, header, lines)
            plot_dataset(new_dataset, new_output, 1 + MIRROR)
    except OSError as error:
        path = Path(error.filename or output).resolve()
        sys.exit(f"Cannot write {path}: {error.strerror}. Mend it and run again.")
    print(f"Wrote {index_file} and {rejected_file} ({reasons})")
    print(f"Wrote {dataset_file} (training images: check rights before publishing)")
    print(
        f"Wrote {output} (uint8, {len(index)} x {size}, "
        f"{output.stat().st_size / 1e6:.0f} MB) in {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped: earlier files are as they were, run again.", file=sys.stderr)
        sys.exit(130)
