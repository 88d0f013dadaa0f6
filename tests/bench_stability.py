"""Count the trainings that go wrong, of our network and of the article's.

    python tests/bench_stability.py

Reads   MNIST_FILE, if there is one; else it draws digits.
Writes  nothing but the counts. 20 seeds take about an hour on two cores.

Each run has 300 steps of 32 images, in five epochs with the warm-up of train_vae.py,
on one of three kinds of data: drawn athletes (64 pixels, rgb), digits (28 pixels, grey)
and uniform noise (64 pixels, rgb). It counts as not finite where a loss was, as stopped
where train_vae.py ends it with a message, and as stuck where the cross-entropy of the
held-out images, at z_mean, is more than 0.01 nats a value above that of the mean image.
"""

import collections
import concurrent.futures
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from bench_train import build_article
from conftest import load_script, run_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
MNIST_FILE = "mnist.npz"
KINDS = ("digits", "athletes", "noise")
OPTIMIZERS = ("adam", "rmsprop", "sgd", "article")  # ours with three, the article's
FACTORS = {1: 20, 10: 2}  # times the learning rate: seeds of ours
ARTICLE_FACTORS = {1: 10}  # and of the article's
PROCESSES = 2  # each with one thread
# ----------------------------------------------------------------------------

BATCH_SIZE, EPOCHS, STEPS = 32, 5, 60


def draw_digits(count, side=28):
    """Draw digits of several sizes, places and slants, uint8 (count, side, side, 1)."""
    random = np.random.default_rng(0)
    images = np.zeros((count, side, side, 1), np.uint8)
    for image in images:
        large = np.zeros((4 * side, 4 * side), np.uint8)
        text, scale = str(random.integers(10)), random.uniform(2, 3.4)
        place = (random.integers(20, 50), random.integers(80, 100))
        thick = int(random.integers(6, 14))
        cv2.putText(large, text, place, cv2.FONT_HERSHEY_DUPLEX, scale, 255, thick)
        slant = np.float32([[1, random.uniform(-0.3, 0.3), 0], [0, 1, 0]])
        large = cv2.warpAffine(large, slant, large.shape)
        image[..., 0] = cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)
    return images


def make_images(kind, folder):
    """Make 640 images of a kind, uint8 (N, H, W, C): a tenth of them is held out."""
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (640, 64, 64, 3), np.uint8)
    if kind == "digits":
        if Path(MNIST_FILE).exists():
            with np.load(MNIST_FILE) as archive:
                return archive["x_train"][:640, ..., None]
        return draw_digits(640)
    for script, edits in (
        ("tests/draw_athletes.py", {"NUM_IMAGES": 320, "IMAGE_SIZE": 128}),
        ("preprocess.py", {"IMAGE_SIZE": 64, "CHECKS": False}),
    ):
        if run_script(script, folder, 900, **edits).returncode:
            sys.exit(f"{script} has failed, see above.")
    return np.load(folder / "data/images.npy")


def train(file, optimizer, factor, seed):
    """Train once; return what became of it, and how much better than the mean image.

    The latter is in nats a value, None where the training did not get to its end.
    """
    train_vae = load_script("train_vae.py")
    tf, keras = train_vae.tf, train_vae.keras
    keras.backend.clear_session()
    images = np.load(file)
    num_train = len(images) // 10 * 9
    mean_image = train_vae.average_images(images[:num_train])
    side, channels = images.shape[1], images.shape[3]
    training, held_out = train_vae.make_datasets(
        images, num_train, BATCH_SIZE, seed, 0, replicas=1
    )
    options = {"steps_per_epoch": STEPS, "epochs": EPOCHS, "verbose": 0}
    if optimizer == "article":
        keras.utils.set_random_seed(seed)
        encoder, decoder, vae = build_article(keras, side, channels)
        vae.optimizer.learning_rate = factor * float(vae.optimizer.learning_rate)
        stop = keras.callbacks.TerminateOnNaN()
        history = vae.fit(training, callbacks=[stop], **options).history
        if not np.isfinite(history["loss"]).all():
            return "not finite", None
    else:
        rate = None
        if factor != 1:
            built = train_vae.build_optimizer(optimizer, None, 100)
            schedule = built.get_config()["learning_rate"]["config"]
            rate = factor * schedule["warmup_target"]
        settings = {"SEED": seed, "PRECISION": "float32", "KL_WEIGHT": 5e-4}
        settings |= {"LEARNING_RATE": rate, "OPTIMIZER": optimizer}
        sizes = (side, channels, 2, train_vae.FILTERS)
        strategy = tf.distribute.get_strategy()
        encoder, decoder, vae = train_vae.build_models(
            sizes, settings, EPOCHS * STEPS, strategy
        )
        with tempfile.TemporaryDirectory() as folder:
            recorder = train_vae.Recorder(Path(folder), settings, EPOCHS)
            try:
                vae.fit(
                    training, validation_data=held_out, callbacks=[recorder], **options
                )
            except FloatingPointError:
                return "stopped", None
        logits, decoder = decoder, train_vae.build_decoder(*sizes, training=False)
        decoder.set_weights(logits.get_weights())
    figures = train_vae.measure(encoder, decoder, held_out, mean_image)
    gain = figures["cross_entropy_mean_image"] - figures["cross_entropy"]
    if not np.isfinite(gain):
        return "not finite", None
    return "stuck" if gain < -0.01 else "fine", gain


def limit_threads():
    """Give TensorFlow one thread, as another process has the other core."""
    tf = load_script("train_vae.py").tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def main():
    start = time.perf_counter()
    print(
        "data      network, optimizer  rate   runs  fine  stuck  not finite  stopped  "
        "gain over the mean image (median, least)"
    )
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        concurrent.futures.ProcessPoolExecutor(
            PROCESSES, mp_context=context, initializer=limit_threads
        ) as executor,
    ):
        total = collections.Counter()
        for kind in KINDS:
            file = Path(scratch, f"{kind}.npy")
            np.save(file, make_images(kind, Path(scratch)))
            for optimizer in OPTIMIZERS:
                factors = ARTICLE_FACTORS if optimizer == "article" else FACTORS
                for factor, seeds in factors.items():
                    runs = [
                        executor.submit(train, file, optimizer, factor, seed)
                        for seed in range(seeds)
                    ]
                    ends, gains = zip(*(run.result() for run in runs), strict=True)
                    count = collections.Counter(ends)
                    name = optimizer if optimizer == "article" else f"ours, {optimizer}"
                    total.update(
                        {(name[:4], factor, end): n for end, n in count.items()}
                    )
                    gains = sorted(gain for gain in gains if gain is not None) or [0]
                    print(
                        f"{kind:10}{name:20}x {factor:<4}{seeds:5}{count['fine']:6}"
                        f"{count['stuck']:7}{count['not finite']:12}"
                        f"{count['stopped']:9}  {statistics.median(gains):8.4f}"
                        f" {gains[0]:8.4f}",
                        flush=True,
                    )
    for name, text in (("ours", "ours"), ("arti", "the article's")):
        for factor in FACTORS:
            runs = {k[2]: n for k, n in total.items() if k[:2] == (name, factor)}
            if not runs:
                continue
            bad = sum(n for end, n in runs.items() if end != "fine")
            print(f"{text}, rate x {factor}: {bad} of {sum(runs.values())} went wrong")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
