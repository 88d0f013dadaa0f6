"""What the benchmarks of the training share: preparing arrays, training, measuring."""

import contextlib
import csv
import io
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.ndimage
import scipy.spatial
import scipy.stats
from conftest import ROOT, load_script, run_script

NEIGHBOURS = 10  # training codes that guess the factors of a held-out one
GRID_SIZE = 15  # tiles a side of the map


def limit_threads():
    """Give TensorFlow one thread, as another process has the other core."""
    tf = load_script("train_vae.py").tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def prepare(folder, **edits):
    """Run preprocess.py in the folder; return the path of the array that it wrote."""
    if run_script("preprocess.py", folder, 3600, **edits).returncode:
        sys.exit("preprocess.py has failed, see above.")
    return folder / edits.get("OUTPUT_FILE", "data/images.npy")


def prepare_photos(folder, photos, side):
    """Cut people out of the photos of a folder, in grey; return the array's path.

    The person model is looked for at data/person.tflite, and fetched to there.
    """
    (ROOT / "data").mkdir(exist_ok=True)
    return prepare(
        folder,
        INPUT=str(Path(photos).resolve()),
        IMAGE_SIZE=side,
        FIT="person",
        BACKGROUND="gray",
        PERSON_MODEL=str(ROOT / "data/person.tflite"),
    )


def draw_athletes(folder, count, **edits):
    """Draw athletes in the folder and prepare them; return the path of the array."""
    if run_script("tests/draw_athletes.py", folder, 900, NUM_IMAGES=count).returncode:
        sys.exit("draw_athletes.py has failed, see above.")
    return prepare(folder, FIT="crop", **edits)


def load_train_vae(**settings):
    """Import train_vae.py with some settings edited, and start Keras with them."""
    train_vae = load_script("train_vae.py")
    for name, value in settings.items():
        getattr(train_vae, name)  # a name that is no setting raises AttributeError
        setattr(train_vae, name, value)
    train_vae.keras.backend.clear_session()
    train_vae.prepare_keras(train_vae.PRECISION)
    return train_vae


def build(train_vae, images, mean_image):
    """Build what train_vae.py trains on such images; return its sizes as well."""
    side, _, channels = images.shape[1:]
    network = train_vae.FILTERS, train_vae.ACTIVATION
    sizes = (side, channels, train_vae.LATENT_DIM, *network)
    strategy = train_vae.tf.distribute.get_strategy()
    return sizes, *train_vae.build_models(sizes, mean_image, strategy)


def fit(train_vae, vae, datasets, steps, callbacks=()):
    """Train as train_vae.py does, in silence; return the history and the best weights.

    Raises:
        FloatingPointError: train_vae.py would have stopped with a message.
    """
    rate = train_vae.choose_rate(train_vae.OPTIMIZER, train_vae.LEARNING_RATE)
    kl_weights = train_vae.final_kl_weights(train_vae.KL_WEIGHT, train_vae.LATENT_DIM)
    schedule = train_vae.Schedule(rate, kl_weights)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        backup = train_vae.Backup(Path(folder), {}, train_vae.BATCH_SIZE, 0)
        callbacks = [schedule, train_vae.StopIfDiverging(), backup, *callbacks]
        train_vae.fit(vae, datasets, steps, callbacks, backup.history, 0)
    return backup.history, backup.best


def find_mean(images):
    """Return the mean of uint8 images (N, H, W, C) as float32 (H, W, C) in 0..1."""
    total = np.zeros(images.shape[1:])
    for start in range(0, len(images), 64):
        total += images[start : start + 64].sum(axis=0, dtype=np.uint32)
    return (total / len(images) / 255).astype("float32")


def read_factors(array_file):
    """Return pose and people of the rows of an array, or None where they are unknown.

    images.csv beside the array has a line for each row.
    """
    with open(array_file.with_name("images.csv"), encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if "pose" not in lines[0]:
        return None
    poses = np.array([float(line["pose"]) for line in lines])
    people = np.array([int(line["people"]) for line in lines])
    return poses, people


def sharpness(images):
    """Return the mean variance of the Laplacian of images, float (B, H, W, C)."""
    greys = images.mean(axis=3)
    return float(
        np.mean([scipy.ndimage.laplace(x, mode="nearest").var() for x in greys])
    )


def encode(encoder, images):
    """Return z_mean of uint8 images (N, H, W, C), float32 (N, latent_dim)."""
    parts = []
    for start in range(0, len(images), 64):
        batch = images[start : start + 64] / np.float32(255)
        parts.append(np.asarray(encoder(batch)[0]))
    return np.concatenate(parts)


def decode_map(decoder, rest):
    """Decode the grid of the first two latents, the others being rest: float32."""
    places = scipy.stats.norm.ppf(np.linspace(0.05, 0.95, GRID_SIZE))
    codes = np.zeros((GRID_SIZE**2, 2 + len(rest)), "float32")
    codes[:, 0] = np.tile(places, GRID_SIZE)
    codes[:, 1] = np.repeat(places[::-1], GRID_SIZE)
    codes[:, 2:] = rest
    parts = [np.asarray(decoder(part)) for part in np.split(codes, GRID_SIZE)]
    return np.concatenate(parts)


def guess_factors(codes, factors, num_train):
    """Guess pose and people of the held-out rows from the training codes nearest them.

    Args:
        codes: float32 (N, 2).
        factors: poses and numbers of people, each (N,).
        num_train: the rows from here on are held out.

    Returns:
        R2 of pose, and the accuracy of people.
    """
    poses, people = factors
    tree = scipy.spatial.KDTree(codes[:num_train])
    _, nearest = tree.query(codes[num_train:], NEIGHBOURS)
    errors = poses[nearest].mean(axis=1) - poses[num_train:]
    r2 = 1 - np.mean(errors**2) / poses[num_train:].var()
    guesses = [statistics.mode(numbers) for numbers in people[nearest].tolist()]
    return float(r2), float(np.mean(np.array(guesses) == people[num_train:]))


def measure_map(encoder, decoder, images, num_train, factors=None):
    """Measure what people look at: the map of the first two latents.

    Returns:
        tiles: sharpness of the grid's tiles over that of the held-out images;
        in_grid: the share of the held-out codes within the grid; and, where the
        factors are known, pose and people, see guess_factors.
    """
    codes = encode(encoder, images)
    tiles = decode_map(decoder, codes[:num_train, 2:].mean(axis=0))
    limit = scipy.stats.norm.ppf(0.95)
    inside = np.abs(codes[num_train:, :2]) < limit
    held_out = images[num_train:] / np.float32(255)
    figures = {
        "tiles": sharpness(tiles) / sharpness(held_out),
        "in_grid": float(inside.all(axis=1).mean()),
    }
    if factors is not None:
        found = guess_factors(codes[:, :2], factors, num_train)
        figures["pose"], figures["people"] = found
    return figures
