"""Draw what the network has learned: the decoder's pictures and the map of the codes.

    python plot_latent.py

Reads   MODEL_DIR/encoder.keras, decoder.keras and summary.json, of one training;
        INPUT_FILE, the array of that training, uint8 (N, H, W, C), and images.csv
        beside it, which tells what is known of the pictures: the colours of the map.
Writes  FIGURE_DIR/latent_grid.png: GRID_SIZE x GRID_SIZE decoded codes.
        latent_grid.jpg: the same in 2000 pixels.
        latent_map.png: where the codes of the images lie.
        traversals.png: a row a latent, where there are more than two.
        morph.gif: a closed walk.
        latent_space.html: the same plane, to walk in without the web.
        No figure shows an image of the data: they are decoded pictures, and dots.
Exits   with 0: done; 1: a message says what to mend; 130: stopped by Ctrl-C.

Stopped, it leaves earlier figures as they were, each one whole.

The plane that is drawn is that of z[0] and z[1], centred and scaled by the codes of the
training images; other latents stay at the mean of their codes. The tiles of the grid
are at quantiles of the normal distribution with that mean and deviation. Without the
array, the plane is that of the prior. 600 images of 256 pixels take 10 s on two cores.

The file in order: loading; codes; the plane; the walk; the grid; the map; traversals;
the animation; the explorer; files; checks of the settings; messages; main(); the
explorer's page.
"""

import base64
import collections
import contextlib
import csv
import glob
import hashlib
import html
import io
import json
import math
import os
import subprocess
import sys
import time
import unicodedata
import warnings
import zipfile
from pathlib import Path


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


try:
    import matplotlib.cm
    import matplotlib.colors
    import matplotlib.figure
    import matplotlib.font_manager
    import matplotlib.lines
    import matplotlib.patches
    import numpy as np
    import scipy.spatial
    import scipy.special
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
    with quiet():
        import keras
except KeyboardInterrupt:  # the imports take seconds
    if __name__ != "__main__":
        raise
    sys.exit(130)

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
INPUT_FILE = "data/images.npy"
MODEL_DIR = "model"
FIGURE_DIR = "figures"

# Grid
GRID_SIZE = 15  # tiles a side, 2 to 40; 15 x 15 tiles of 256 pixels are 3840 x 3840
QUANTILES = (0.05, 0.95)  # of the codes, at the outermost tiles; wider shows rarer

# Map
COLOR_BY = None  # a column of images.csv, such as "keyword"; None: the first of use

# Animation
MORPH_PATH = "loop"  # round the middle of the codes; or a list of files to walk along
# ----------------------------------------------------------------------------


# ----------------------------------------------------------------------------
# Loading: the models, their summary, the array and what is known of its rows
# ----------------------------------------------------------------------------
def load_models(folder):
    """Load the encoder and the decoder of one training, or end with a message."""
    try:
        encoder = load_model(folder / "encoder.keras")
        decoder = load_model(folder / "decoder.keras")
        check_pair(encoder, decoder)
    except (ValueError, AttributeError) as error:  # not every model has shapes
        remedy = "Run train_vae.py again."
        sys.exit(f"Cannot use {folder} (MODEL_DIR): {error}. {remedy}")
    except OSError as error:  # it may not be looked at
        remedy = "Mend it and run again."
        sys.exit(f"Cannot use {folder} (MODEL_DIR): {describe_error(error)}. {remedy}")
    return encoder, decoder


def load_model(path):
    """Load a Keras model, or end with a message if there is none.

    Raises:
        ValueError: It cannot be read, or its weights are not finite.
    """
    if not path.exists():
        sys.exit(f"Found no {path} (MODEL_DIR). Run train_vae.py first.")
    try:
        with quiet():
            model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly anything
        # Keras tells the whole configuration of the model, and then what is wrong.
        reason = str(error).strip().rpartition("\n")[2][-300:]
        text = f"Keras {keras.__version__} cannot read {path.name}{told_writer(path)}"
        raise ValueError(f"{text}: {reason.rstrip('.')}") from error
    for weight in model.get_weights():
        if not np.isfinite(weight).all():
            raise ValueError(f"the model is not finite: {path.name} holds NaN or inf")
    return model


def told_writer(path):
    """Return ", written by Keras X" for a model's file, "" where it does not say so."""
    try:
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except Exception:  # a damaged file raises nearly anything: load_model() names it
        return ""
    return f", written by Keras {version}"


def check_pair(encoder, decoder):
    """Check that two models are of one training, and of a kind that can be drawn.

    Raises:
        ValueError: They are not.
    """
    # train_vae.py names them encoder_ID and decoder_ID.
    encoder_id = encoder.name.partition("_")[2]
    decoder_id = decoder.name.partition("_")[2]
    shapes = []
    for tensor in encoder.inputs + encoder.outputs:
        shapes.append(tensor.shape)
    # The encoder takes what the decoder returns, and returns twice what that takes.
    expected = [decoder.output_shape, decoder.input_shape, decoder.input_shape]
    if encoder_id != decoder_id or shapes != expected:
        raise ValueError(f"{encoder.name} and {decoder.name} do not belong together")
    if len(decoder.output_shape) != 4:
        raise ValueError(f"pictures have the shape {decoder.output_shape[1:]}")
    _, height, width, channels = decoder.output_shape
    if height != width or channels not in (1, 3):
        size = f"{height} x {width} x {channels}"
        raise ValueError(f"pictures are {size}, expected a square of 1 or 3 channels")
    if decoder.input_shape[1] < 2:
        raise ValueError("it has one latent, expected 2 or more (LATENT_DIM)")


def read_summary(path, model_id, latent_dim):
    """Read what the training tells of its model.

    Returns:
        A dict: images_id, a text; num_train, a whole number; both None if not told;
        kl, (latent_dim,) in nats, NaN if not told; staged, whether z[0] and z[1] are
        the map; trained, the day or "".
    """
    summary = {}
    reason = ""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            reason = "it holds no JSON object"
        elif summary.get("model_id") != model_id:
            reason = f"it is not of the model {model_id}"
    except (OSError, ValueError, RecursionError) as error:
        reason = describe_error(error)
    if reason:
        print(f"Drawing without {path}: {reason}. Run train_vae.py again.")
        summary = {}
    settings = summary.get("settings")
    if not isinstance(settings, dict):
        settings = {}
    figures = summary.get("figures")
    if not isinstance(figures, dict):
        figures = {}
    kl = figures.get("kl_per_latent")
    if not is_list_of_numbers(kl, latent_dim):
        kl = [math.nan] * latent_dim
    num_train = settings.get("num_train")
    if not is_whole(num_train, 1, 10**9):
        num_train = None
    # Trainings that give the latents weights of their own keep the map in the first
    # two. In older ones, all latents had the same weight, and none was the first.
    kl_weights = summary.get("kl_weights")
    staged = latent_dim == 2 or is_list_of_numbers(kl_weights, latent_dim)
    return {
        "images_id": settings.get("images_id"),
        "num_train": num_train,
        "kl": np.array(kl),
        "staged": staged,
        "trained": str(summary.get("trained_at", ""))[:10],
    }


def is_list_of_numbers(value, length):
    """Return whether a value is a list of so many finite numbers."""
    if type(value) is not list or len(value) != length:
        return False
    return all(is_number(number, -math.inf) for number in value)


def open_data(shape, summary):
    """Open the array of the training and read its index.

    Returns:
        images, uint8 (N, *shape), and N dicts of texts. There are no rows where they
        cannot be used, which is said.
    """
    # The index of a link to an array stands beside the link: only the folder is
    # resolved.
    path = Path(INPUT_FILE).parent.resolve() / Path(INPUT_FILE).name
    images = open_array(path, shape, summary)
    index = []
    if len(images) > 0:
        index_file = path.with_name("images.csv")
        index = read_index(index_file, len(images), summary["images_id"])
    return images, index


def open_array(path, shape, summary):
    """Map the array of the training into memory, uint8 (N, *shape).

    Returns:
        The array, of no rows where it cannot be used, which is said.
    """
    nothing = np.empty((0, *shape), np.uint8)
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.shape[1:] != shape:
            sys.exit(
                f"Cannot use {path} (INPUT_FILE): it holds images of "
                f"{images.shape[1:]}, expected {shape} as the model has. Run "
                "train_vae.py on this array, or preprocess.py as before."
            )
        if summary["images_id"] is None or summary["num_train"] is None:
            raise ValueError("summary.json does not tell of which array the model is")
        if read_images_id(path) != summary["images_id"]:
            raise ValueError("it is not the array that summary.json names")
        if images.dtype != np.uint8 or summary["num_train"] > len(images):
            raise ValueError("it does not fit to what summary.json tells")
    except Exception as error:  # damaged files raise nearly anything
        print(
            f"Drawing without {path} (INPUT_FILE): {describe_error(error)}. "
            "Run preprocess.py and train_vae.py."
        )
        return nothing
    return images


def read_images_id(path):
    """Return the id of an array: the first 16 letters of the SHA-256 of its file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_index(path, num_rows, images_id):
    """Read images.csv, what is known of the rows of the array.

    Returns:
        num_rows dicts of texts, or none where it cannot be used, which is said.
    """
    try:
        # Spreadsheets put a mark before the first name: utf-8-sig drops it.
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            # Cells after the last column get the name "", missing cells are empty.
            index = list(csv.DictReader(file, restkey="", restval=""))
        if len(index) != num_rows:
            raise ValueError(f"it has {len(index)} rows, expected {num_rows}")
        if index[0].get("images_id") != images_id:
            raise ValueError("it is of another array")
        if "file" not in index[0]:
            raise ValueError("it has no column 'file'")
    except (OSError, ValueError, csv.Error) as error:
        remedy = "Run preprocess.py again, and train_vae.py if the array changes."
        print(f"Drawing without {path}: {describe_error(error)}. {remedy}")
        return []
    return index


# ----------------------------------------------------------------------------
# Codes: from images to places in the latent space, and back
# ----------------------------------------------------------------------------
def choose_rows(num_rows, num_train):
    """Return up to 2000 training rows, evenly spread, and all the held-out ones."""
    training = np.linspace(0, num_train - 1, min(2000, num_train)).astype(int)
    return np.append(training, np.arange(num_train, num_rows))


def encode(encoder, images, rows):
    """Return z_mean, float32 (len(rows), L), of rows of images, mapped into memory."""
    codes = np.empty((len(rows), encoder.output_shape[0][1]), np.float32)
    for start in range(0, len(rows), 8):
        # Mapped anew for each batch: what was read before no longer takes up memory.
        mapped = np.load(images.filename, mmap_mode="r")
        batch = mapped[rows[start : start + 8]] / np.float32(255)
        codes[start : start + 8] = encoder.predict_on_batch(batch)[0]
    if not np.isfinite(codes).all():
        text = "The model is not finite: its codes are NaN or inf."
        sys.exit(f"{text} Run train_vae.py again.")
    return codes


def decode(decoder, codes):
    """Decode codes (N, L) in batches; return uint8 (N, H, W, C)."""
    # Batches of 8 are as fast as those of 32 at 256 pixels, and take 130 MB less.
    codes = codes.astype(np.float32)
    images = np.empty((len(codes), *decoder.output_shape[1:]), np.uint8)
    for start in range(0, len(codes), 8):
        batch = decoder.predict_on_batch(codes[start : start + 8])
        if not np.isfinite(batch).all():
            text = "The model is not finite: its pictures are NaN."
            sys.exit(f"{text} Run train_vae.py again.")
        images[start : start + 8] = np.rint(batch * 255)
    return images


# ----------------------------------------------------------------------------
# The plane that is drawn
# ----------------------------------------------------------------------------
class Plane:
    """A plane in the latent space. Places in it are (x, y), in units of z.

    Attributes:
        origin: (L,), the code of the place (0, 0).
        axes: (2, L), of length 1 and at right angles: what a step along x, and along y,
            adds to a code.
        middle, spread: (2,), mean and deviation of the codes in the plane.
        labels: what x and y are.
        note: what else there is to say, perhaps "".
    """

    def __init__(self, origin, axes, middle, spread, labels, note):
        self.origin = origin
        self.axes = axes
        self.middle = middle
        self.spread = spread
        self.labels = labels
        self.note = note

    def locate(self, places):
        """Return the codes (..., L) of places (..., 2)."""
        return self.origin + places @ self.axes

    def project(self, codes):
        """Return the places (..., 2) next to codes (..., L)."""
        return (codes - self.origin) @ self.axes.T


def choose_plane(codes, summary):
    """Choose the plane that is drawn, and say so where it is not the usual one.

    Args:
        codes: (N, L), of the training images; N may be 0.
        summary: as read_summary() returns it.
    """
    if len(codes) == 0:
        plane = make_prior_plane(summary["kl"], summary["staged"])
        print("The plane is that of the prior, as there are no codes.")
    elif summary["staged"]:
        plane = make_latent_plane(codes)
    else:
        plane = make_principal_plane(codes)
        print(
            "The plane is along the principal axes of the codes, as this model was "
            "trained before z[0] and z[1] became the map. Run train_vae.py for that."
        )
    for axis in range(2):
        # A latent that tells nothing has such codes, and any scale shows as much of it.
        if plane.spread[axis] < 1e-4:
            label = plane.labels[axis]
            print(f"All codes are the same along {label}: drawn in the prior's scale.")
            plane.spread[axis] = 1
    return plane


def make_latent_plane(codes):
    """Return the plane of z[0] and z[1] through the mean of codes (N, L)."""
    mean = codes.mean(axis=0, dtype=float)
    deviation = codes.std(axis=0, dtype=float)
    latent_dim = len(mean)
    origin = mean.copy()
    origin[:2] = 0  # so that places are z[0] and z[1] themselves
    note = ""
    if latent_dim == 3:
        note = "A slice: z[2] stays at the mean of its codes"
    if latent_dim > 3:
        note = f"A slice: z[2] to z[{latent_dim - 1}] stay at the mean of their codes"
    axes = np.eye(latent_dim)[:2]
    return Plane(origin, axes, mean[:2], deviation[:2], ["z[0]", "z[1]"], note)


def make_principal_plane(codes):
    """Return the plane of the two principal axes of codes (N, L), through their mean.

    The axes are turned so that their largest components are positive.
    """
    mean = codes.mean(axis=0, dtype=float)
    # The rows are the axes, that of the largest spread first.
    _, lengths, axes = np.linalg.svd(codes - mean, full_matrices=False)
    axes = axes[:2]
    for number in range(2):
        largest = np.abs(axes[number]).argmax()
        if axes[number, largest] < 0:
            axes[number] *= -1
    spread = lengths[:2] / math.sqrt(len(codes))
    labels = ["principal axis 1, in z", "principal axis 2, in z"]
    note = (
        f"A slice along two axes through the mean of the codes of {len(mean)} latents"
    )
    return Plane(mean, axes, np.zeros(2), spread, labels, note)


def make_prior_plane(kl, staged):
    """Return the plane of z[0] and z[1], or of the two latents of the largest kl."""
    latent_dim = len(kl)
    chosen = [0, 1]
    if not staged:
        chosen = np.argsort(-kl, kind="stable")[:2]  # NaN stays in its order
    labels = [f"z[{latent}]" for latent in chosen]
    note = "The plane of the prior, without the array"
    if latent_dim > 2:
        note += f"; the other {latent_dim - 2} of {latent_dim} latents stay at 0"
    axes = np.eye(latent_dim)[chosen]
    return Plane(np.zeros(latent_dim), axes, np.zeros(2), np.ones(2), labels, note)


def place_tiles(plane):
    """Return the x and the y of the grid's columns and rows, (GRID_SIZE,), rising."""
    # ndtri is the inverse of the normal distribution: each tile stands for an equal
    # share of it.
    deviations = scipy.special.ndtri(np.linspace(*QUANTILES, GRID_SIZE))
    columns = plane.middle[0] + plane.spread[0] * deviations
    rows = plane.middle[1] + plane.spread[1] * deviations
    return columns, rows


def make_lattice(columns, rows):
    """Return the places (R, K, 2) of K columns and R rows, the largest y on top."""
    return np.stack(np.meshgrid(columns, rows[::-1]), axis=-1)


def choose_bounds(plane, places):
    """Return [[low, high], [low, high]] in x and y: nearly all codes, or the prior.

    Args:
        places: (N, 2), of the codes; N may be 0.
    """
    bounds = []
    for axis in range(2):
        low = plane.middle[axis] - 2 * plane.spread[axis]
        high = plane.middle[axis] + 2 * plane.spread[axis]
        if len(places) == 0:
            low = plane.middle[axis] - 3 * plane.spread[axis]
            high = plane.middle[axis] + 3 * plane.spread[axis]
        else:
            # Few codes lie far out: 0.2 % on each side are not worth empty tiles.
            outer = np.quantile(places[:, axis], (0.002, 0.998))
            margin = 0.1 * plane.spread[axis]
            low = min(low, outer[0] - margin)
            high = max(high, outer[1] + margin)
        bounds.append([float(low), float(high)])
    return bounds


# ----------------------------------------------------------------------------
# The walk of morph.gif and of the explorer
# ----------------------------------------------------------------------------
def choose_loop(plane, places):
    """Return a closed walk, (360, 2), round the middle of the plane.

    In each direction three quarters of the codes lie within it: nearer to the middle,
    between the groups, pictures are blurred. Without codes it is the circle that
    holds half of the prior.

    Args:
        places: (N, 2), of the codes; N may be 0.
    """
    turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    # Of a normal in two dimensions, 1 - exp(-r**2 / 2) lies within r: here a half.
    radius = np.full(360, math.sqrt(math.log(4)))
    if len(places) > 0:
        points = (places - plane.middle) / plane.spread
        distances = np.linalg.norm(points, axis=1)
        angles = np.arctan2(points[:, 1], points[:, 0])
        order = np.argsort(distances)
        for step in range(360):
            # Codes count the more the nearer their direction is, by half a radian.
            weights = np.exp((np.cos(angles[order] - turn[step]) - 1) / 0.5**2)
            total = np.cumsum(weights)
            # Within the distance of this code lie three quarters of their weight.
            most = np.searchsorted(total, 0.75 * total[-1])
            radius[step] = distances[order][most]
    return plane.middle + plane.spread * circle * radius[:, None]


def follow(decoder, stops, num_frames):
    """Walk along lines from stop to stop and back to the first, in visibly equal steps.

    To this end twice as many codes are decoded, to measure how far the picture changes
    (root mean square). Stops are codes (S, L), those returned (num_frames, L).
    """
    corners = np.vstack([stops, stops[:1]])
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    miles = np.append(0, lengths.cumsum())

    def at(mile):
        """Return the codes that lie so far along the lines."""
        latents = []
        for latent in corners.T:
            latents.append(np.interp(mile, miles, latent))
        return np.stack(latents, axis=1)

    # Pictures change fast between groups of codes, and hardly within them.
    tried = np.linspace(0, miles[-1], 2 * num_frames + 1)
    images = decode(decoder, at(tried))
    seen = [0.0]
    for before, after in zip(images[:-1], images[1:], strict=True):
        change = np.subtract(before, after, dtype=np.float32)
        step = math.sqrt(np.square(change).mean())
        seen.append(seen[-1] + step + 1e-6)  # rising, whatever is decoded
    even = np.linspace(0, seen[-1], num_frames, endpoint=False)
    return at(np.interp(even, seen, tried))


def begin_in_crowd(walk, plane, places):
    """Return a closed walk, (T, L), turned to begin where the codes are densest.

    The animation and the explorer open with its first picture.

    Args:
        places: (N, 2), of the codes; N may be 0.
    """
    if len(places) == 0:
        return walk
    # Where the tenth nearest code is nearest, they are densest.
    tree = scipy.spatial.cKDTree(places / plane.spread)
    near = min(10, len(places))
    distances, _ = tree.query(plane.project(walk) / plane.spread, k=[near])
    return np.roll(walk, -int(distances.argmin()), axis=0)


def find_files(index):
    """Return the rows of the files of MORPH_PATH, or end with a message."""
    # The same letter is written in two ways: é is one sign, or e and an accent.
    rows = {}
    for row, known in enumerate(index):
        name = unicodedata.normalize("NFC", known["file"])
        rows.setdefault(name, row)  # the first is the picture, the second its mirror
    found = []
    for file in MORPH_PATH:
        row = rows.get(unicodedata.normalize("NFC", file))
        expected = f"names as in images.csv, where {file!r} is not: {list(rows)[:2]}..."
        check(row is not None, "MORPH_PATH", MORPH_PATH, expected)
        found.append(row)
    return found


def choose_walk(encoder, decoder, images, index, plane, places):
    """Return the codes (T, L) of the walk: the loop, or from file to file.

    Args:
        images, index: the array and what is known of its rows, perhaps of none.
        places: (N, 2), of the codes of the training images; N may be 0.
    """
    if MORPH_PATH == "loop" or not index:
        walk = follow(decoder, plane.locate(choose_loop(plane, places)), 120)
        return begin_in_crowd(walk, plane, places)
    stops = encode(encoder, images, find_files(index))
    return follow(decoder, stops, min(30 * len(stops), 400))


# ----------------------------------------------------------------------------
# The grid
# ----------------------------------------------------------------------------
def plot_grid(path, small_path, decoder, plane, columns, rows):
    """Draw the decoded pictures of these columns and rows of the plane.

    Args:
        path: of the PNG, every tile pixel by pixel, small ones enlarged.
        small_path: of a JPEG of at most 2000 pixels, to post.
    """
    codes = plane.locate(make_lattice(columns, rows))
    texts = format_numbers(columns)
    side_texts = format_numbers(rows)[::-1]
    sheet = draw_tiles(decoder, codes, texts, side_texts, plane.labels, plane.note)
    save_png(path, sheet, decoder)
    sheet.thumbnail((2000, 2000), Image.Resampling.LANCZOS)
    # Without subsampling, as red and blue edges would be blurred.
    with replacing(small_path) as temporary:
        comment = decoder.name.encode()
        sheet.save(temporary, "JPEG", quality=90, subsampling=0, comment=comment)


def draw_tiles(decoder, codes, column_texts, row_texts, labels, note):
    """Decode codes (R, K, L) and draw them as a sheet of tiles; return the picture.

    Args:
        column_texts: K texts, written below the columns.
        row_texts: R texts of one line or more, written to the left of the rows.
        labels: of the columns and of the rows.
        note: a sentence for below, or "".
    """
    # First all sizes, in pixels.
    side = decoder.output_shape[1]
    tile = side * max(1, round(120 / side))  # a whole number of times: sharp pixels
    gap = tile // 8
    font = fit_font(column_texts, 0.9 * tile, 0.17 * tile)
    line = round(1.2 * font.size)
    width = len(column_texts) * tile
    height = len(row_texts) * tile
    row_label = draw_text(labels[1], font, height).rotate(90, expand=True)
    column_label = draw_text(f"{labels[0]}\n{note}".strip(), font, width)
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))  # measures, and draws nothing
    number_width = 0
    for text in row_texts:
        right = ruler.multiline_textbbox((0, 0), text, font)[2]
        number_width = max(number_width, math.ceil(right))
    left = gap + row_label.width + gap + number_width + gap
    end = tile // 4  # white above and to the right: numbers may be larger than a tile
    bottom = gap + line + gap + column_label.height + gap
    # Then the pictures, and what is written beside them.
    sheet = Image.new("RGB", (left + width + end, end + height + bottom), "white")
    pen = ImageDraw.Draw(sheet)
    for row, line_of_codes in enumerate(codes):
        y = end + row * tile
        images = decode(decoder, line_of_codes)  # a line at a time: memory
        for column, image in enumerate(images):
            picture = to_picture(image, tile, Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * tile, y))
        place = (left - gap, y + tile / 2)
        pen.text(place, row_texts[row], "black", font, anchor="rm", align="right")
    for column, text in enumerate(column_texts):
        place = (left + (column + 0.5) * tile, end + height + gap)
        pen.text(place, text, "black", font, anchor="ma")
    sheet.paste(row_label, (gap, end + (height - row_label.height) // 2))
    x = left + (width - column_label.width) // 2
    sheet.paste(column_label, (x, end + height + gap + line + gap))
    return sheet


def format_numbers(values):
    """Return rising numbers as texts with a real minus, as long as tells them apart."""
    step = float(np.diff(values).min())
    decimals = 2
    if step >= 100:
        decimals = 0
    if step < 0.02:
        decimals = min(8, 1 - math.floor(math.log10(max(step, 1e-8))))
    texts = []
    for value in values:
        text = f"{value:z.{decimals}f}"  # z: what rounds to 0 has no minus
        texts.append(text.replace("-", "\N{MINUS SIGN}"))
    return texts


def load_font(size):
    """Return matplotlib's own font, which has a minus; Pillow's has none."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(file, max(8, round(size)))


def fit_font(texts, width, size):
    """Return the font of this size, or so much smaller that all texts fit the width."""
    font = load_font(size)
    widest = max(font.getlength(text) for text in texts)
    if widest > width:
        font = load_font(size * width / widest)
    return font


def draw_text(text, font, width):
    """Return a picture of a text, in centred lines of this width in pixels at most."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    text = "\n".join(lines)
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = ruler.multiline_textbbox((0, 0), text, font)
    size = (math.ceil(right) + 1, math.ceil(bottom) + 1)
    picture = Image.new("L", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.multiline_text((0, 0), text, "black", font, align="center")
    return picture


def to_picture(image, side, resample):
    """Return uint8 (H, W, C) as a picture of Pillow's, of another side in pixels."""
    if image.shape[2] == 1:
        image = image[:, :, 0]
    return Image.fromarray(image).resize((side, side), resample)


def save_png(path, sheet, decoder):
    """Save a sheet of tiles, for print at 300 dpi, with the name of its decoder."""
    known = PngImagePlugin.PngInfo()
    known.add_text("model", decoder.name)
    # Level 1 of 9: the others take twice the time for files hardly smaller.
    sheet.save(path, "PNG", compress_level=1, dpi=(300, 300), pnginfo=known)


# ----------------------------------------------------------------------------
# The map and its colours
# ----------------------------------------------------------------------------
# Ten colours that people of any colour vision tell apart, on white and on black. They
# were searched for: their distances in CIE Lab, as they are seen with and without each
# kind of cones (Machado 2009), are 23 at the least; of tab10 it is 4.6.
COLORS = (
    "#004be1", "#d23c00", "#4bd2a5", "#ffa51e", "#694b96", "#e1a5e1", "#964b3c",
    "#a5c369", "#f069ff", "#0f8787",
)  # fmt: skip
UNKNOWN_COLOR = "#999999"
NOT_FOR_COLORS = (
    "row", "file", "mirrored", "left", "top", "width", "height", "images_id",
    "confidence",  # of preprocess.py in 2026
)  # fmt: skip


def choose_column(index):
    """Return the name of the column of the index that colours the dots, or ""."""
    columns = []
    for name in index[0]:
        if name and name not in NOT_FOR_COLORS:
            columns.append(name)
    if COLOR_BY is not None:
        expected = f"None or one of {columns}, what images.csv tells of the images"
        check(COLOR_BY in columns, "COLOR_BY", COLOR_BY, expected)
        return COLOR_BY
    if not columns:
        print("Grey dots: images.csv tells nothing more. Run preprocess.py again.")
        return ""
    num_files = len({row["file"] for row in index})
    for name in columns:
        values = {row[name] for row in index}
        values.discard("")
        # A value of its own for every other image groups none, nor does the share of
        # its person.
        if name != "person" and 1 < len(values) < num_files / 2:
            return name
    print(f"Grey dots: none of {columns} in images.csv groups the images.")
    return ""


class Paint:
    """The colours of the dots and what they tell.

    Attributes:
        name: of the column, or "" for grey dots.
        kind: "names" or "numbers".
        values: a text for each dot, "" where nothing is known.
        colors: a colour for each dot, "#rrggbb".
        legend: pairs of a text and a colour. Of numbers it is the scale, from low to
            high, with texts at its ends only.
        low, high: the ends of the scale.
    """

    def __init__(self, name, values):
        self.name = name
        self.kind = "names"
        self.values = values
        self.colors = [UNKNOWN_COLOR] * len(values)
        self.legend = []
        self.low = 0.0
        self.high = 1.0


def choose_colors(index, chosen):
    """Return the Paint of the chosen rows: grey if the index tells nothing of them."""
    values = [""] * len(chosen)
    if not index:
        return Paint("", values)
    column = choose_column(index)
    if column == "":
        return Paint("", values)
    for place, row in enumerate(chosen):
        values[place] = " ".join(index[row][column].split())
    paint = Paint(shorten(" ".join(column.split()), 40), values)
    numbers = to_numbers(values)
    kinds = set(values) - {""}
    if numbers is not None and len(kinds) > len(COLORS):
        paint_numbers(paint, numbers)
    else:
        paint_names(paint, numbers)
    return paint


def to_numbers(texts):
    """Return texts as floats, None for "", or None where a text is no number."""
    numbers = []
    for text in texts:
        number = None
        if text:
            try:
                number = float(text)
            except ValueError:
                return None
            # Python also takes 1_000 for a number. Beyond 1e100 no scale can be drawn.
            if "_" in text or not abs(number) < 1e100:
                return None
        numbers.append(number)
    return numbers


def paint_numbers(paint, numbers):
    """Colour dots by value, on a scale."""
    known = []
    for number in numbers:
        if number is not None:
            known.append(number)
    paint.kind = "numbers"
    paint.low = min(known)
    paint.high = max(known)
    scale = matplotlib.colormaps["viridis"]
    for place, number in enumerate(numbers):
        if number is not None:
            part = (number - paint.low) / (paint.high - paint.low)
            paint.colors[place] = matplotlib.colors.to_hex(scale(part))
    # The page blends its scale from these.
    for part in np.linspace(0, 1, 17):
        paint.legend.append(["", matplotlib.colors.to_hex(scale(part))])
    paint.legend[0][0] = f"{paint.low:g}"
    paint.legend[-1][0] = f"{paint.high:g}"


def paint_names(paint, numbers):
    """Colour dots by name: all names, or the commonest nine and others."""
    counts = collections.Counter(paint.values)
    unknown = counts.pop("", 0)
    names = sorted(counts)
    if numbers is not None:  # 2 before 10
        names.sort(key=float)
    colors = {}
    if len(names) > len(COLORS):
        commonest = counts.most_common(len(COLORS) - 1)
        names = sorted(name for name, _ in commonest)
    for name, color in zip(names, COLORS, strict=False):
        colors[name] = color
        paint.legend.append([shorten(name, 24), color])
    if len(counts) > len(names):
        for name in counts:
            colors.setdefault(name, COLORS[-1])
        paint.legend.append([f"others ({len(counts) - len(names)})", COLORS[-1]])
    if unknown:
        paint.legend.append(["unknown", UNKNOWN_COLOR])
    for place, name in enumerate(paint.values):
        if name:
            paint.colors[place] = colors[name]
        paint.values[place] = shorten(name, 40)


def shorten(text, length):
    """Return a text in so many letters at most, without its middle."""
    if len(text) <= length:
        return text
    end = length // 2
    return text[: length - end - 1] + "…" + text[-end:]


def plot_map(path, plane, columns, rows, places, held_out, paint, model):
    """Draw where images lie in the plane, with the prior and the square of the grid.

    Args:
        path: of the PNG.
        columns, rows: x and y of the grid's tiles, rising.
        places: (N, 2), of the codes of the images.
        held_out: bool (N,), which are drawn as rings.
        paint: their colours.
        model: name that is kept in the file.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a matplotlibrc may ask for LaTeX, or for a dark style
        matplotlib.rcParams["font.family"] = list_fonts()
        warnings.simplefilter("ignore")  # a sign that no font has is drawn as a box
        figure = matplotlib.figure.Figure((9, 9), dpi=150)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        colors = np.array(paint.colors)
        seen = places[~held_out]
        axes.scatter(seen[:, 0], seen[:, 1], s=9, c=colors[~held_out], linewidths=0)
        rings = places[held_out]
        axes.scatter(
            rings[:, 0], rings[:, 1], s=18, facecolors="none",
            edgecolors=colors[held_out], linewidths=1.1,
        )  # fmt: skip
        lines = draw_frame(axes, plane, columns, rows, places)
        note = ""
        if len(plane.origin) > 2:
            note = f"\n{plane.note}. The dots are projections."
        num_rings = np.count_nonzero(held_out)
        axes.set_title(
            f"Codes of {len(places) - num_rings} training images (dots) and of "
            f"{num_rings} held-out ones (rings){note}",
            fontsize=11,
        )
        draw_legends(figure, axes, lines, paint)
        # A tight box, so that no legend squeezes the axes or is cut off.
        figure.savefig(
            path, format="png", bbox_inches="tight", pad_inches=0.2,
            metadata={"model": model},
        )  # fmt: skip


def draw_frame(axes, plane, columns, rows, places):
    """Draw the square of the grid and the prior; return the lines for a legend."""
    axes.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
    low = plane.middle - 2 * plane.spread
    high = plane.middle + 2 * plane.spread
    low = np.minimum(low, places.min(axis=0)) - 0.15 * plane.spread
    high = np.maximum(high, places.max(axis=0)) + 0.15 * plane.spread
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    corner = (columns[0], rows[0])
    size = (columns[-1] - columns[0], rows[-1] - rows[0])
    square = matplotlib.patches.Rectangle(corner, *size, fill=False, edgecolor="black")
    axes.add_artist(square)
    # The axes of the plane are at right angles, so the prior is round in it.
    center = plane.project(np.zeros_like(plane.origin))
    for share in (0.5, 0.9, 0.99):
        # As in choose_loop: solved for the radius within which this share lies.
        radius = math.sqrt(-2 * math.log(1 - share))
        ring = matplotlib.patches.Circle(
            center, radius, fill=False, edgecolor="grey", linestyle="--"
        )
        axes.add_artist(ring)
    line = matplotlib.lines.Line2D([], [], color="black", label="latent_grid.png")
    label = "50, 90 and 99 % of the prior"
    dashes = matplotlib.lines.Line2D([], [], color="grey", ls="--", label=label)
    return [line, dashes]


def draw_legends(figure, axes, lines, paint):
    """Write below the axes what the lines and colours mean, or draw a colour bar."""
    entries = paint.legend
    if paint.kind == "numbers":
        norm = matplotlib.colors.Normalize(paint.low, paint.high)
        scale = matplotlib.cm.ScalarMappable(norm, "viridis")
        bar = figure.add_axes((0.92, 0.1, 0.025, 0.8))
        figure.colorbar(scale, cax=bar)
        bar.set_ylabel(paint.name).set_parse_math(False)
        entries = []
        if "" in paint.values:
            entries = [["unknown", UNKNOWN_COLOR]]
    legend = axes.legend(
        handles=lines, ncols=2, frameon=False, loc="upper center",
        bbox_to_anchor=(0.5, -0.06),
    )  # fmt: skip
    if not entries:
        return
    axes.add_artist(legend)  # or the next one takes its place
    dots = []
    for _, color in entries:
        dot = matplotlib.lines.Line2D([], [], color=color, marker="o", linestyle="none")
        dots.append(dot)
    # In as many columns as fit below the axes.
    for num_columns in (11, 6, 5, 4, 3, 2, 1):
        legend = axes.legend(
            dots, ["x"] * len(dots), ncols=num_columns, frameon=False, title=" ",
            loc="upper center", bbox_to_anchor=(0.5, -0.095), handletextpad=0.2,
        )  # fmt: skip
        # Written now and not before: as labels, "_name" and "$a$" would be understood.
        legend.get_title().set(text=paint.name, parse_math=False)
        for place, (text, _) in enumerate(entries):
            legend.get_texts()[place].set(text=text, parse_math=False)
        if legend.get_window_extent().width <= axes.get_window_extent().width:
            break


def list_fonts():
    """Return matplotlib's font, and those of this machine that have more signs."""
    known = (
        "CJK", "Gothic", "Hiragino", "Meiryo", "YaHei", "SimHei", "PingFang", "Malgun",
        "WenQuanYi", "Droid Sans Fallback", "Arial Unicode", "Noto Sans JP",
        "Noto Sans SC", "Noto Sans KR", "Noto Emoji", "Symbola",
    )  # fmt: skip
    fonts = ["DejaVu Sans"]
    for name in sorted(matplotlib.font_manager.get_font_names()):
        if any(part in name for part in known):
            fonts.append(name)
    return fonts[:8]


# ----------------------------------------------------------------------------
# Traversals: one latent after the other, where there are more than two
# ----------------------------------------------------------------------------
def plot_traversals(path, decoder, codes, kl):
    """Draw a row for each latent, the others at the mean: 64 of the largest kl at most.

    Args:
        path: of the PNG.
        codes: (N, L), of the training images; of none the prior is taken.
        kl: (L,), what each latent tells, in nats, NaN if not known.
    """
    mean = np.zeros(len(kl))
    deviation = np.ones(len(kl))
    label = "z, where the other latents stay at 0"
    if len(codes) > 0:
        mean = codes.mean(axis=0, dtype=float)
        deviation = codes.std(axis=0, dtype=float)
        label = "deviations of the codes from their mean, where the other latents stay"
    values = np.linspace(-2.5, 2.5, 11)
    order = np.argsort(-kl, kind="stable")[:64]
    # A line of pictures for each latent, all at the mean but for this latent.
    shown = np.tile(mean, (len(order), len(values), 1))
    row_texts = []
    for row, latent in enumerate(order):
        shown[row, :, latent] += values * deviation[latent]
        text = f"z[{latent}]"
        if not math.isnan(kl[latent]):
            text += f"\n{kl[latent]:.2f} nats"
        if kl[latent] < 0.005:
            text += "\ncarries nothing"
        row_texts.append(text)
    column_texts = []
    for value in values:
        column_texts.append(f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    note = ""
    if len(order) < len(kl):
        note = f"{len(order)} of {len(kl)} latents, those that tell most"
    sheet = draw_tiles(decoder, shown, column_texts, row_texts, [label, ""], note)
    save_png(path, sheet, decoder)


# ----------------------------------------------------------------------------
# The animation
# ----------------------------------------------------------------------------
def write_morph(path, decoder, walk):
    """Write the pictures of codes (T, L) as a GIF that goes round, below 5 MB.

    All have the same 256 colours and are not dithered, so that nothing flickers.
    """
    images = decode(decoder, walk)
    side = images.shape[1] * max(1, round(224 / images.shape[1]))
    side = min(side, 320)
    # The colours are chosen from 24 pictures of the whole walk, side by side.
    every = math.ceil(len(images) / 24)
    sample = np.vstack(images[::every])
    palette = None  # grey pictures have 256 values at most: they need none
    if images.shape[3] == 3:
        palette = Image.fromarray(sample).quantize(256, Image.Quantize.FASTOCTREE)
    while True:
        frames = []
        for image in images:
            frame = to_picture(image, side, Image.Resampling.LANCZOS)
            if palette is not None:
                frame = frame.quantize(palette=palette, dither=0)
            frames.append(frame)
        frames[0].save(
            path, "GIF", save_all=True, append_images=frames[1:], duration=50, loop=0,
            comment=decoder.name.encode(),
        )  # fmt: skip
        if path.stat().st_size < 5e6:
            return
        side = side * 7 // 8  # too large for a chat or a mail: smaller pictures


# ----------------------------------------------------------------------------
# The explorer
# ----------------------------------------------------------------------------
def write_explorer(path, decoder, plane, places, data):
    """Write the plane as an HTML file well below 6 MB: tiles to blend between.

    Args:
        path: of the page.
        places: (N, 2), of the codes, nearly all of which lie within the tiles.
        data: what else the page shows, for JSON.
    """
    bounds = choose_bounds(plane, places)
    # Tiles a side. Of smooth pictures of 256 pixels, more tiles in as many bytes lose
    # more by their size and quality than the blending between few of them does.
    count = 21
    columns = np.linspace(*bounds[0], count)
    rows = np.linspace(*bounds[1], count)
    codes = plane.locate(make_lattice(columns, rows))
    # Every 19th tile: 19 and 21 share no divisor, so that all columns have a part.
    sample = decode(decoder, codes.reshape(count * count, -1)[::19])
    side, quality = choose_tiles(sample, count * count)
    tiles = []
    for line in codes:  # not all at once: memory
        for image in decode(decoder, line):
            file = make_jpeg(image, side, quality)
            tiles.append(base64.b64encode(file).decode())
    data = data | {"bounds": bounds, "count": count, "side": side, "tiles": tiles}
    # NaN is no JSON, and "</script>" in a text would end the data.
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    path.write_text(fill_page(data, text), encoding="utf-8", newline="\n")


def choose_tiles(images, num_tiles):
    """Choose side and quality of the tiles: those that lose least in 4.5 MB.

    Args:
        images: uint8 (N, H, W, C), a sample of the tiles.
        num_tiles: how many there are in all.
    """
    full = images.shape[1]
    best = None
    for side in (full, 192, 128, 96, 64):
        if side > min(full, 256):
            continue
        # The best quality of this side that fits; base 64 makes 4 letters of 3 bytes.
        for quality in (98, 95, 92, 88, 84, 80, 75, 65, 50, 30, 10):
            files = [make_jpeg(image, side, quality) for image in images]
            sample_size = sum(len(file) for file in files)
            size = sample_size / len(files) * num_tiles * 4 / 3
            if size < 4.5e6:
                break
        error = 0.0
        for image, file in zip(images, files, strict=True):
            small = np.asarray(Image.open(io.BytesIO(file)))
            small = small.reshape(side, side, -1)
            # A browser enlarges tiles in much the same way.
            shown = to_picture(small, full, Image.Resampling.BILINEAR)
            difference = np.subtract(image.squeeze(), shown, dtype=np.float32)
            error += np.square(difference).mean()
        if best is None or error < best[0]:
            best = (error, side, quality)
    return best[1], best[2]


def make_jpeg(image, side, quality):
    """Return uint8 (H, W, C) as the bytes of a JPEG file of this side in pixels."""
    file = io.BytesIO()
    picture = to_picture(image, side, Image.Resampling.LANCZOS)
    picture.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return file.getvalue()


def describe_plane(plane, columns, rows, walk, summary):
    """Return what the page shows of the plane, for JSON.

    Args:
        columns, rows: x and y of the grid's tiles, rising.
        walk: (T, 2), the places of the animation.
        summary: as read_summary() returns it.
    """
    grid = [[columns[0], columns[-1]], [rows[0], rows[-1]]]
    return {
        "latents": len(plane.origin),
        "trained": summary["trained"],
        "labels": plane.labels,
        "grid": np.round(grid, 4).tolist(),
        "walk": np.round(walk, 4).tolist(),
    }


def describe_dots(plane, places, held_out, paint):
    """Return the dots of the map and what they are, for JSON; args as in plot_map."""
    dots = []
    for row, (x, y) in enumerate(places.round(4).tolist()):
        dots.append([x, y, paint.colors[row], paint.values[row], int(held_out[row])])
    note = plane.note
    if note:
        note += "."
    if len(plane.origin) > 2 and dots:
        note += " The dots are projections."
    color = {"name": paint.name, "kind": paint.kind, "legend": paint.legend}
    return {"dots": dots, "color": color, "note": note}


def fill_page(data, text):
    """Return the explorer as HTML, with its title and the data, text of JSON, in it."""
    title = f"Latent space of model {data['model']}: {data['latents']} latents"
    if data["trained"]:
        title += f", trained on {data['trained']}"
    page = PAGE.replace("@TITLE@", html.escape(title))
    return page.replace("@DATA@", text)


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


@contextlib.contextmanager
def figure_file(path, text, failures):
    """Yield a temporary path for a figure, and say that it is written.

    If it fails, the others are still drawn: the reason is added to failures.

    Args:
        path: of the figure.
        text: what it shows.
        failures: a list of texts.
    """
    start = time.perf_counter()
    try:
        with replacing(path) as temporary:
            yield temporary
    except Exception as error:  # of any kind: the other figures do not need this one
        failures.append(f"{path.name} ({describe_error(error)})")
        return
    size = path.stat().st_size / 1e6
    seconds = time.perf_counter() - start
    print(f"Wrote {path} ({text}, {size:.1f} MB) in {seconds:.1f} s")


def leave_out(path, reason, model):
    """Say that a figure is left out, and remove one that is of another model."""
    text = f"Left out {path.name}: {reason}."
    if path.exists():
        if read_model(path) == model:
            text += " The one that is there is of this model, of an earlier run."
        else:
            path.unlink()
            text += " The one that was there, of another model, is removed."
    print(text)


def read_model(path):
    """Return the name of the model that a PNG or GIF carries, "" if none."""
    try:
        with Image.open(path) as picture:
            name = picture.info.get("model", picture.info.get("comment", b""))
    except Exception:  # damaged files raise nearly anything
        return ""
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    return name


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
        ("INPUT_FILE", INPUT_FILE),
        ("MODEL_DIR", MODEL_DIR),
        ("FIGURE_DIR", FIGURE_DIR),
    ):
        check(is_text(value), name, value, "a path in quotes")
    expected = "a whole number from 2 to 40"
    check(is_whole(GRID_SIZE, 2, 40), "GRID_SIZE", GRID_SIZE, expected)
    good = type(QUANTILES) in (tuple, list) and len(QUANTILES) == 2
    if good:
        low, high = QUANTILES
        good = is_number(low, 0, 1) and is_number(high, 0, 1) and 0 < low < high < 1
    check(good, "QUANTILES", QUANTILES, "two numbers, 0 < low < high < 1")
    good = COLOR_BY is None or type(COLOR_BY) is str
    check(good, "COLOR_BY", COLOR_BY, "None or the name of a column of images.csv")
    good = MORPH_PATH == "loop"
    if type(MORPH_PATH) in (tuple, list) and len(MORPH_PATH) > 1:
        good = all(type(file) is str for file in MORPH_PATH)
    check(good, "MORPH_PATH", MORPH_PATH, '"loop" or a list of two files or more')


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
def prepare_keras(precision):
    """Set Keras as this script needs it, whatever keras.json or a notebook has set.

    Args:
        precision: dtype policy of layers that name none, for example "float32".
    """
    backend = keras.config.backend()
    if backend != "tensorflow":
        sys.exit(
            f"Keras runs on {backend} in this session, expected tensorflow. "
            "Run the script from a shell, or first in a new session."
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    keras.config.set_dtype_policy(precision)


def main():
    check_settings()
    prepare_keras("float32")
    figure_dir = Path(FIGURE_DIR)
    model_dir = Path(MODEL_DIR).resolve()

    # What there is: the models, what is told of them, the array and its codes.
    encoder, decoder = load_models(model_dir)
    model = decoder.name
    latent_dim = decoder.input_shape[1]
    shape = decoder.output_shape[1:]
    size = f"{shape[0]} x {shape[1]} x {shape[2]}"
    print(f"Drawing {model}: {latent_dim} latents, pictures of {size}")
    model_id = model.partition("_")[2]
    summary = read_summary(model_dir / "summary.json", model_id, latent_dim)
    images, index = open_data(shape, summary)
    num_train = 0
    if len(images) > 0:
        num_train = summary["num_train"]
    chosen = choose_rows(len(images), num_train)
    held_out = chosen >= num_train
    paint = choose_colors(index, chosen)
    codes = encode(encoder, images, chosen)

    # The plane and the loop follow the codes of the training; held-out ones are shown.
    plane = choose_plane(codes[~held_out], summary)
    columns, rows = place_tiles(plane)
    places = plane.project(codes)
    walk = choose_walk(encoder, decoder, images, index, plane, places[~held_out])

    # The figures; leave_out() says why there is none.
    figure_dir.mkdir(parents=True, exist_ok=True)
    failures = []
    size = f"{GRID_SIZE} x {GRID_SIZE}"
    text = f"decoded pictures, {size}; latent_grid.jpg is the same, smaller"
    with figure_file(figure_dir / "latent_grid.png", text, failures) as path:
        small_path = figure_dir / "latent_grid.jpg"
        plot_grid(path, small_path, decoder, plane, columns, rows)

    map_file = figure_dir / "latent_map.png"
    if len(codes) > 0:
        text = f"codes of {len(codes)} images, coloured by {paint.name or 'nothing'}"
        with figure_file(map_file, text, failures) as path:
            plot_map(path, plane, columns, rows, places, held_out, paint, model)
    else:
        leave_out(map_file, "there are no codes without the array", model)

    traversals_file = figure_dir / "traversals.png"
    if latent_dim > 2:
        text = "decoded pictures, a row a latent"
        with figure_file(traversals_file, text, failures) as path:
            plot_traversals(path, decoder, codes[~held_out], summary["kl"])
    else:
        leave_out(traversals_file, "of two latents the grid tells more", model)

    morph_file = figure_dir / "morph.gif"
    if MORPH_PATH == "loop" or index:
        text = f"decoded pictures, {len(walk)} frames"
        with figure_file(morph_file, text, failures) as path:
            write_morph(path, decoder, walk)
    else:
        leave_out(morph_file, "MORPH_PATH needs the array and images.csv", model)

    text = "decoded pictures, to walk in by hand"
    with figure_file(figure_dir / "latent_space.html", text, failures) as path:
        data = describe_plane(plane, columns, rows, plane.project(walk), summary)
        data["model"] = model_id
        data |= describe_dots(plane, places, held_out, paint)
        write_explorer(path, decoder, plane, places, data)

    if failures:
        names = "; ".join(failures)
        where = figure_dir.resolve()
        remedy = "Earlier figures are as they were. Mend it and run again."
        sys.exit(f"Cannot draw {names} in {where}. {remedy}")


# ----------------------------------------------------------------------------
# The explorer's page: fill_page() puts the title and the data in
# ----------------------------------------------------------------------------
PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
  img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif;
    background: Canvas; color: CanvasText; }
  body { margin: 0; padding: 1rem; overflow-wrap: anywhere; }
  h1 { margin: 0 0 0.5rem; font-size: 1.2rem; line-height: 1.25; }
  header, main { margin-inline: auto; max-width: 44rem; }
  p, ul, figure { margin: 0; padding: 0; }
  canvas { display: block; width: 100%; height: auto; aspect-ratio: 1; }

  /* A swipe up or down that starts on a canvas scrolls the page, two fingers zoom it;
     what begins sideways, or after a hold, is ours. */
  canvas { touch-action: pan-y pinch-zoom; cursor: crosshair; user-select: none;
    -webkit-user-select: none; -webkit-touch-callout: none; }
  canvas:focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }

  /* Nothing is stretched, or the pictures would not be square. */
  main { display: grid; gap: 1rem; align-items: start; }
  figure { width: min(100%, max(15rem, 65vh)); margin-inline: auto; }
  #side { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
  #map { flex: 1 1 8.5rem; min-width: 0; max-width: 20rem; width: auto;
    background: Canvas; color: CanvasText; }
  #controls { flex: 1 1 8.5rem; }
  #words { flex: 1 1 15rem; }
  @media (min-width: 40rem) and (min-aspect-ratio: 1/1) {
    /* Wide screens: the picture as high as the window, the rest beside it. */
    header, main { max-width: calc(max(18rem, 100vh - 8rem) + 23rem); }
    main { grid-template-columns: minmax(0, 1fr) minmax(15rem, 22rem); }
    figure { width: min(100%, max(18rem, 100vh - 8rem)); margin-inline: 0 auto; }
    #map { flex: 0 1 auto; width: min(100%, max(9rem, 42vh)); max-width: none; }
  }

  figcaption { margin-top: 0.4rem; min-height: 2.8em; }
  #controls, figcaption { font-variant-numeric: tabular-nums; }
  .row { display: flex; justify-content: space-between; gap: 0.5rem; }
  .value { white-space: nowrap; }
  input { display: block; box-sizing: border-box; width: 100%; height: 24px;
    margin: 0 0 0.5rem; }
  button { font: inherit; min-height: 2.4rem; padding: 0.3rem 1rem; }
  #buttons { display: flex; flex-wrap: wrap; gap: 0.5rem; }
  #words > * { margin-bottom: 0.7rem; }
  #note, #help { font-size: 0.9rem; }
  ul { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; list-style: none; }
  li { display: flex; align-items: center; gap: 0.4rem; max-width: 100%; }
  svg { flex: none; width: 18px; height: 18px; fill: none; stroke: currentColor;
    stroke-width: 2; }
  svg .dot { fill: currentColor; stroke: none; }
  /* The colours say something: forced colours and printers have to keep them. */
  .chip, .scale { flex: none; box-sizing: border-box; width: 14px; height: 14px;
    border: 1px solid GrayText; border-radius: 50%; forced-color-adjust: none;
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scale { width: 8rem; border-radius: 0; }
  #said { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); white-space: nowrap; }

  /* The sentence stands where the picture would be, until the script has started. */
  #missing { padding: 1rem; border: 1px solid; }
  .ready #missing, .scripts #missing { display: none; }
  html:not(.ready) :is(canvas, figcaption, #side) { display: none; }

  @media print {
    main { display: block; max-width: none; }
    figure { width: 12cm; margin: 0 0 0.5cm; }
    #map { flex: none; width: 7cm; background: white; color: black; }
    #controls, #help { display: none; }
  }
</style>
<script>
"use strict";
// Where scripts run, the sentence for where they do not must not flash up. It comes
// back if the script below fails.
document.documentElement.className = "scripts";
window.onerror = () => { document.documentElement.className = ""; };
</script>
<header>
  <h1>@TITLE@</h1>
</header>
<main>
  <figure>
    <p id="missing">Here the pictures of the model would be, to walk through. This page
      needs JavaScript, which is off or not allowed here, as in the preview of a mail or
      of a repository. Save the file and open it in a browser.</p>
    <canvas id="picture" tabindex="0" role="application" aria-label="Decoded picture"
      aria-describedby="help"></canvas>
    <figcaption id="place"></figcaption>
    <p id="said" role="status"></p>
  </figure>
  <div id="side">
    <canvas id="map" tabindex="0" role="application" aria-label="Map of the codes"
      aria-describedby="help"></canvas>
    <div id="controls">
      <p class="row"><label for="x"></label><span class="value"></span></p>
      <input id="x" type="range" step="any">
      <p class="row"><label for="y"></label><span class="value"></span></p>
      <input id="y" type="range" step="any">
      <div id="buttons">
        <button type="button" id="play">Walk</button>
        <button type="button" id="save">Save picture</button>
      </div>
    </div>
    <div id="words">
      <ul id="colors"></ul>
      <p id="note"></p>
      <ul aria-label="What the map shows">
        <li><svg viewBox="0 0 18 18"><circle cx="9" cy="9" r="6"/></svg>
          <span>the picture shown</span></li>
        <li><svg viewBox="0 0 18 18"><path d="M1 13 Q6 1 9 9 T17 5"/></svg>
          <span>the walk</span></li>
        <li><svg viewBox="0 0 18 18"><path d="M2 2H16V16H2Z"/></svg>
          <span>the part in latent_grid.png</span></li>
        <li id="trained"><svg viewBox="0 0 18 18">
          <circle class="dot" cx="9" cy="9" r="3.5"/></svg>
          <span></span></li>
        <li id="held"><svg viewBox="0 0 18 18"><circle cx="9" cy="9" r="3.5"/></svg>
          <span></span></li>
      </ul>
      <p id="help">Pass over the picture or the map to look around, click or drag to
        stay. With a finger: tap, drag sideways, or hold and drag. Keys: arrows (with
        Shift further), Home for the start, space to walk or pause. The address follows:
        copy it to link to a picture. All pictures here are the decoder's.</p>
    </div>
  </div>
</main>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";

// ---------------------------------------------------------------------------
// The page and what the file tells
// ---------------------------------------------------------------------------
function find(text) {
  return document.querySelector(text);
}

const data = JSON.parse(find("#data").textContent);
const {bounds, walk, dots, color} = data;
const picture = find("#picture");
const map = find("#map");
const brush = picture.getContext("2d");
const pen = map.getContext("2d");
const chart = document.createElement("canvas");  // all of the map but the place
const sliders = [find("#x"), find("#y")];
const values = document.querySelectorAll(".value");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const themes = [matchMedia("(prefers-color-scheme: dark)"),
  matchMedia("(forced-colors: active)"), matchMedia("print")];
const tiles = [];

// A place is [x, y] in the plane. A spot is [across, down] in parts of a canvas.
let here = walk[0];    // the place that is drawn
let goal = walk[0];    // the one that it glides to
let chosen = walk[0];  // the one to come back to when a mouse has only passed over
let walking = false;
let steps = 0;         // how far along the walk
let before = 0;        // the time of the last frame, in ms
let asked = false;     // whether a frame is on its way
let told = "";         // what was last said and written into the address
let rest = 0;          // the timer that tells it
let chartLook = "";    // size and colours of the chart

const spans = bounds.map(([low, high]) => high - low);
// Numbers are as fine as a step that can be seen, 1/300 of the shorter side.
const narrow = Math.min(...spans);
const decimals = Math.min(9, Math.max(0, Math.ceil(2.5 - Math.log10(narrow))));

function toSpot([x, y]) {
  return [(x - bounds[0][0]) / spans[0], (bounds[1][1] - y) / spans[1]];
}

function toPlace([across, down]) {
  return [bounds[0][0] + across * spans[0], bounds[1][1] - down * spans[1]];
}

function clip(value, axis) {
  return Math.max(bounds[axis][0], Math.min(bounds[axis][1], value));
}

function write(value) {  // without -0.00
  return (+value.toFixed(decimals) || 0).toFixed(decimals);
}

function show(value) {
  return write(value).replace("-", "\u2212");
}

// ---------------------------------------------------------------------------
// Moving
// ---------------------------------------------------------------------------
function ask() {  // for a frame, one at a time
  if (!asked) requestAnimationFrame(draw);
  asked = true;
}

function go(place) {  // only to look
  goal = place.map(clip);
  ask();
}

function choose(place) {  // to stay
  play(false);
  go(place);
  chosen = goal;
}

function play(on) {
  if (on && !walking) steps = findStep();
  if (!on && walking) chosen = goal;
  walking = on;
  find("#play").textContent = on ? "Pause" : "Walk";
  ask();
}

function findStep() {  // of the walk that is the nearest
  let best = 0;
  let least = Infinity;
  walk.forEach((place, step) => {
    const far = measure(place, goal);
    if (far < least) {
      least = far;
      best = step;
    }
  });
  return best;
}

function measure(place, other) {  // as seen on the map, in parts of its side
  const across = (place[0] - other[0]) / spans[0];
  const up = (place[1] - other[1]) / spans[1];
  return Math.sqrt(across * across + up * up);
}

function walkOn(seconds) {
  steps = (steps + 20 * seconds) % walk.length;  // as fast as morph.gif
  const from = walk[Math.floor(steps)];
  const to = walk[Math.ceil(steps) % walk.length];
  go(from.map((value, axis) => value + steps % 1 * (to[axis] - value)));
}

// ---------------------------------------------------------------------------
// Drawing
// ---------------------------------------------------------------------------
function draw(now) {
  const seconds = Math.min(0.1, (now - before) / 1000);
  before = now;
  asked = false;
  if (walking) walkOn(seconds);
  const part = calm.matches ? 1 : 1 - Math.exp(-seconds / 0.07);
  here = here.map((value, axis) => {
    const left = goal[axis] - value;
    if (Math.abs(left) < spans[axis] / 3000) return goal[axis];
    return value + part * left;
  });
  drawPicture();
  drawMap();
  showPlace();
  clearTimeout(rest);
  if (walking || here.some((value, axis) => value !== goal[axis])) {
    ask();
  } else {
    rest = setTimeout(tell, 300);
  }
}

function drawPicture() {  // the four tiles around the place, each by its nearness
  const [across, down] = toSpot(here);
  const x = across * (data.count - 1);
  const y = down * (data.count - 1);
  let sum = 0;
  for (const row of [Math.floor(y), Math.floor(y) + 1]) {
    for (const column of [Math.floor(x), Math.floor(x) + 1]) {
      const weight = (1 - Math.abs(x - column)) * (1 - Math.abs(y - row));
      const tile = tiles[row * data.count + column];
      if (weight < 1e-6 || !tile.complete) continue;
      sum += weight;
      brush.globalAlpha = weight / sum;
      brush.drawImage(tile, 0, 0);
    }
  }
}

function drawMap() {
  // As many pixels as the screen has, so that a line of 1.5 is one at any zoom.
  const ratio = window.devicePixelRatio;
  const side = Math.max(1, Math.round(map.clientWidth * ratio));
  const style = getComputedStyle(map);
  const look = [side, ratio, style.color, style.backgroundColor].join();
  if (look !== chartLook) {  // else nothing but the place has changed
    map.width = map.height = chart.width = chart.height = side;
    chartLook = look;
    drawChart(side / ratio, ratio, style);
  }
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.drawImage(chart, 0, 0);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const [across, down] = toSpot(here);
  // A rim in the background's colour sets the circle off from the dots.
  for (const [width, ink] of [[6, style.backgroundColor], [2.5, style.color]]) {
    pen.lineWidth = width;
    pen.strokeStyle = ink;
    pen.beginPath();
    pen.arc(across * side / ratio, down * side / ratio, 7, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function drawChart(side, ratio, style) {  // in CSS pixels
  const ink = chart.getContext("2d");
  ink.setTransform(ratio, 0, 0, ratio, 0, 0);
  ink.fillStyle = style.backgroundColor;
  ink.fillRect(0, 0, side, side);
  for (const [x, y, shade, , heldOut] of dots) {
    const [across, down] = toSpot([x, y]);
    ink.beginPath();
    if (heldOut) {
      ink.arc(across * side, down * side, 2.5, 0, 2 * Math.PI);
      ink.lineWidth = 1.5;
      ink.strokeStyle = shade;
      ink.stroke();
    } else {
      // Of a dark dot on a dark page the rim is what can be seen, and of a light one.
      ink.arc(across * side, down * side, 1.75, 0, 2 * Math.PI);
      ink.fillStyle = shade;
      ink.fill();
      ink.globalAlpha = 0.4;
      ink.lineWidth = 0.5;
      ink.strokeStyle = style.color;
      ink.stroke();
      ink.globalAlpha = 1;
    }
  }
  ink.strokeStyle = style.color;
  ink.lineWidth = 1.5;
  ink.beginPath();
  for (const place of walk) {
    const [across, down] = toSpot(place);
    ink.lineTo(across * side, down * side);
  }
  ink.closePath();
  ink.stroke();
  const [left, top] = toSpot([data.grid[0][0], data.grid[1][1]]);
  const [right, bottom] = toSpot([data.grid[0][1], data.grid[1][0]]);
  ink.strokeRect(left * side, top * side, (right - left) * side, (bottom - top) * side);
  ink.strokeRect(0.75, 0.75, side - 1.5, side - 1.5);
}

// ---------------------------------------------------------------------------
// Telling where the reader is
// ---------------------------------------------------------------------------
function showPlace() {
  const near = describeNearest();
  find("#place").textContent = `At ${here.map(show).join(", ")}. ${near}`;
  sliders.forEach((slider, axis) => {
    slider.value = goal[axis];
    slider.ariaValueText = show(goal[axis]);
    values[axis].textContent = show(here[axis]);
  });
}

function describeNearest() {  // the values of the nearest three dots
  const nearest = [];
  for (const dot of dots) {
    const far = measure(dot, here);
    if (nearest.length === 3 && far >= nearest[2].far) continue;
    nearest.push({far, value: dot[3]});
    nearest.sort((one, other) => one.far - other.far);
    nearest.length = Math.min(3, nearest.length);
  }
  if (nearest.length === 0) return "";
  // Twice the distance from dot to dot, if they were spread evenly.
  const isFar = nearest[0].far > Math.max(0.08, 2 / Math.sqrt(dots.length));
  const start = isFar ? "Far from all pictures. Nearest: " : "Nearest pictures: ";
  if (!color.name) return isFar ? "Far from all pictures." : "";
  const texts = new Set();
  for (const {value} of nearest) {
    let text = value || "unknown";
    if (value && color.kind === "numbers") text = String(+Number(value).toPrecision(3));
    texts.add(text.replace(/^-/, "\u2212"));
  }
  return start + color.name + " " + [...texts].join(", ") + ".";
}

function tell() {  // when the reader stops: to screen readers, and into the address
  const text = here.map(write).join(",");
  if (text === told) return;
  told = text;
  picture.ariaLabel = "Decoded picture at " + here.map(show).join(", ");
  find("#said").textContent = find("#place").textContent;
  try {
    history.replaceState(null, "", "#" + text);  // no entry in the history
  } catch {
    // A page in a frame of another one may have no address to write to.
  }
}

function readAddress() {
  const numbers = location.hash.slice(1).split(",").map(parseFloat);
  if (numbers.length === 2 && numbers.every(Number.isFinite)) return numbers;
  return null;
}

function savePicture() {
  const sheet = document.createElement("canvas");
  // Small pictures are enlarged by a whole number, to about 512 pixels.
  sheet.width = data.side * Math.max(1, Math.round(512 / data.side));
  sheet.height = sheet.width;
  const ink = sheet.getContext("2d");
  ink.imageSmoothingQuality = "high";
  ink.drawImage(picture, 0, 0, sheet.width, sheet.height);
  const name = ["latent_space", data.model, ...here.map(write)].join("_") + ".png";
  sheet.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

// ---------------------------------------------------------------------------
// Pointers and keys
// ---------------------------------------------------------------------------
let press = null;  // the pointer that is down, and whether it drags

function listen(view) {
  function follow(event) {
    const box = view.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width;
    const down = (event.clientY - box.top) / box.height;
    return toPlace([across, down]);
  }

  function drag(event) {
    press.drags = true;
    clearTimeout(press.hold);
    view.setPointerCapture(event.pointerId);
    choose(follow(event));
  }

  view.onpointerdown = (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    press = {x: event.clientX, y: event.clientY, drags: false, hold: 0};
    if (event.pointerType === "touch") {
      // It may become a swipe, which is the browser's: wait.
      press.hold = setTimeout(drag, 300, event);
    } else {
      drag(event);
    }
  };
  view.onpointermove = (event) => {
    if (!event.isPrimary) return;
    if (press === null) {
      // A mouse passes over. It must not disturb the walk.
      if (event.pointerType !== "touch" && !walking) go(follow(event));
    } else if (press.drags) {
      choose(follow(event));
    } else {
      const across = Math.abs(event.clientX - press.x);
      const down = Math.abs(event.clientY - press.y);
      if (down > 8) clearTimeout(press.hold);
      if (across > 8 && across > down) drag(event);
    }
  };
  view.onpointerup = (event) => {
    if (press !== null && event.isPrimary) {
      if (!press.drags) choose(follow(event));  // a tap
      end();
    }
  };
  view.onpointercancel = end;  // the browser scrolls or zooms
  view.onpointerleave = () => {
    if (press === null && !walking) go(chosen);
  };
  // Only this keeps the browser from scrolling with a finger that was held first.
  view.addEventListener("touchmove", (event) => {
    if (press !== null && press.drags && event.cancelable) event.preventDefault();
  }, {passive: false});
  view.oncontextmenu = (event) => {
    if (press !== null) event.preventDefault();  // the finger is held to drag
  };
  view.onkeydown = (event) => {
    if (hasModifier(event)) return;
    if (event.key === " ") {
      play(!walking);
    } else if (event.key === "Home") {
      choose(walk[0]);
    } else if (event.key in ARROWS) {
      moveByKey(event, ARROWS[event.key][0]);
    } else {
      return;
    }
    event.preventDefault();
  };
}

function end() {
  if (press !== null) clearTimeout(press.hold);
  press = null;
}

// The arrow keys: the axis along which they move, and whether it is up or down.
const ARROWS = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1],
  ArrowUp: [1, 1]};

function moveByKey(event, axis) {
  const step = event.shiftKey ? spans[axis] / 12 : spans[axis] / 60;
  const place = [...goal];
  place[axis] += ARROWS[event.key][1] * step;
  choose(place);
}

function hasModifier(event) {  // then the key is the browser's: Alt+Left goes back
  return event.altKey || event.ctrlKey || event.metaKey;
}

function slideByKey(event, axis) {
  // A slider without steps moves by 1 in some browsers, whatever its range.
  if (hasModifier(event) || !(event.key in ARROWS)) return;
  moveByKey(event, axis);
  event.preventDefault();
}

// ---------------------------------------------------------------------------
// Setting up
// ---------------------------------------------------------------------------
function fillLegend() {
  const heldOut = dots.filter((dot) => dot[4] === 1).length;
  const trained = dots.length - heldOut;
  find("#trained span").textContent = trained + " pictures of the training";
  find("#trained").hidden = trained === 0;
  find("#held span").textContent = heldOut + " held out from it";
  find("#held").hidden = heldOut === 0;
}

function addColor(text, kind, background) {
  const item = document.createElement("li");
  const swatch = document.createElement("span");
  const words = document.createElement("span");
  swatch.className = kind;
  swatch.style.background = background;
  words.textContent = text;  // from users' files: text, never HTML
  item.append(swatch, words);
  find("#colors").append(item);
  return item;
}

function fillColors() {
  const list = find("#colors");
  list.hidden = !color.name;
  list.ariaLabel = "Colours: " + color.name;
  if (!color.name) return;
  if (color.kind === "names") {
    for (const [text, shade] of color.legend) {
      addColor(color.name + " " + text, "chip", shade);
    }
    return;
  }
  const shades = color.legend.map((entry) => entry[1]);
  const background = `linear-gradient(to right, ${shades.join(", ")})`;
  const low = color.legend[0][0];
  const high = color.legend[shades.length - 1][0];
  addColor(high, "scale", background).prepend(color.name + " " + low);
}

function loadTiles() {
  // Those around the opening place come first: nobody waits for the other hundreds.
  const [across, down] = toSpot(here);
  const order = data.tiles.map((text, number) => {
    const x = number % data.count - across * (data.count - 1);
    const y = Math.floor(number / data.count) - down * (data.count - 1);
    return {number, text, far: x * x + y * y};
  });
  order.sort((one, other) => one.far - other.far);
  for (const {number, text} of order) {
    tiles[number] = new Image();
    tiles[number].onload = ask;
    tiles[number].src = "data:image/jpeg;base64," + text;
  }
}

function start() {
  const place = readAddress() || walk[0];
  here = goal = chosen = place.map(clip);
  told = here.map(write).join(",");  // nobody has gone anywhere yet
  picture.ariaLabel = "Decoded picture at " + here.map(show).join(", ");
  loadTiles();
  picture.width = picture.height = data.side;
  sliders.forEach((slider, axis) => {
    [slider.min, slider.max] = bounds[axis];
    find(`label[for=${slider.id}]`).textContent = data.labels[axis];
    slider.oninput = () => {
      const value = Number(slider.value);
      choose(axis === 0 ? [value, goal[1]] : [goal[0], value]);
    };
    slider.onkeydown = (event) => slideByKey(event, axis);
  });
  find("#note").textContent = data.note;
  find("#note").hidden = !data.note;
  fillLegend();
  fillColors();
  listen(picture);
  listen(map);
  find("#play").onclick = () => play(!walking);
  find("#save").onclick = savePicture;
  window.onhashchange = () => {
    const place = readAddress();
    if (place !== null) choose(place);
  };
  // The map's colours are those of the theme or of paper, its pixels the screen's.
  for (const query of themes) query.onchange = drawMap;
  document.documentElement.className = "ready";
  new ResizeObserver(ask).observe(map);
  ask();
}

start();
window.onerror = null;
</script>
</html>
"""


if __name__ == "__main__":
    open_streams()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Stopped: all figures are whole. Run again.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        stop(error, FIGURE_DIR)
