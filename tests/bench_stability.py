"""Count the trainings that go wrong, of our network and of the article's.

    python tests/bench_stability.py

Reads   MNIST_FILE, if there is one; else it draws digits. PHOTO_DIR, if it is set.
Writes  nothing but the counts. 20 seeds take about an hour and a half on two cores.

A run of the first table has 300 steps of 32 images, in five epochs with the warm-up of
train_vae.py, on one of three kinds of data: drawn athletes (64 pixels, rgb), digits (28
pixels, grey) and uniform noise (64 pixels, rgb). It counts as not finite where a loss
was, as stopped where train_vae.py ends it with a message, and as stuck where the
cross-entropy of the held-out images, at z_mean, is more than 0.01 nats a value above
that of the mean image.

A map can lose the pose, and codes can leave it, with no loss going wrong. So there are
two rows more: Adam on 300 athletes, 64 pixels, 800 steps, where R2 of `pose` (from the
ten training codes nearest in both latents) has to be above 0.85; and photos cut out in
grey, 64 pixels, 300 steps, where no epoch's kl_loss may be above 50.
"""

import collections
import concurrent.futures
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import training
from bench_train import build_article
from conftest import load_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
MNIST_FILE = "mnist.npz"
PHOTO_DIR = None  # a folder of photos with people; None: no row of them
KINDS = ("digits", "athletes", "noise")
OPTIMIZERS = ("adam", "rmsprop", "sgd", "article")  # ours with three, the article's
FACTORS = {1: 20, 10: 2}  # times the learning rate: seeds of ours
ARTICLE_FACTORS = {1: 10}  # and of the article's
MAP_SEEDS = 20  # of the two rows about the map
PROCESSES = 2  # each with one thread
# ----------------------------------------------------------------------------

EPOCHS, STEPS = 5, 60
MAP_STEPS = 800  # on the athletes, in 50 epochs
LEAST_R2 = 0.85
MOST_KL = 50  # nats per image


def draw_digits(count, side=28):
    """Draw digits of several sizes, places and slants, uint8 (count, side, side, 1)."""
    random = np.random.default_rng(0)
    images = np.zeros((count, side, side, 1), np.uint8)
    for image in images:
        large = np.zeros((4 * side, 4 * side), np.uint8)
        text = str(random.integers(10))
        scale = random.uniform(2, 3.4)
        place = (random.integers(20, 50), random.integers(80, 100))
        thick = int(random.integers(6, 14))
        cv2.putText(large, text, place, cv2.FONT_HERSHEY_DUPLEX, scale, 255, thick)
        slant = np.float32([[1, random.uniform(-0.3, 0.3), 0], [0, 1, 0]])
        large = cv2.warpAffine(large, slant, large.shape)
        image[..., 0] = cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)
    return images


def make_array(kind, folder):
    """Make an array of a kind, of 640 images; return its path."""
    folder.mkdir()
    if kind == "athletes":
        return training.draw_athletes(folder, 320, IMAGE_SIZE=64)
    if kind == "noise":
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (640, 64, 64, 3), np.uint8)
    elif Path(MNIST_FILE).exists():
        with np.load(MNIST_FILE) as archive:
            images = archive["x_train"][:640, ..., None]
    else:
        images = draw_digits(640)
    file = folder / "images.npy"
    np.save(file, images)
    return file


def train_article(train_vae, factor, images, datasets):
    """Train the article's network; return encoder and decoder, None if it failed."""
    keras = train_vae.keras
    keras.utils.set_random_seed(train_vae.SEED)
    encoder, decoder, vae = build_article(keras, images.shape[1], images.shape[3])
    vae.optimizer.learning_rate = factor * float(vae.optimizer.learning_rate)
    history = vae.fit(
        datasets[0],
        shuffle=False,
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        callbacks=[keras.callbacks.TerminateOnNaN()],
        verbose=0,
    )
    if not np.isfinite(history.history["loss"]).all():
        return None
    return encoder, decoder


def train(file, optimizer, factor, seed):
    """Train once; return what became of it, and how much better than the mean image.

    The latter is in nats a value, None where the training did not get to its end.
    """
    train_vae = training.load_train_vae(SEED=seed, EPOCHS=EPOCHS)
    images = np.load(file)
    num_train = len(images) // 10 * 9
    mean_image = training.find_mean(images[:num_train])
    datasets = train_vae.make_datasets(
        images, num_train, train_vae.BATCH_SIZE, seed, 0, 1
    )
    if optimizer == "article":
        models = train_article(train_vae, factor, images, datasets)
        if models is None:
            return "not finite", None
        encoder, decoder = models
    else:
        train_vae.OPTIMIZER = optimizer
        train_vae.LEARNING_RATE = factor * train_vae.choose_rate(optimizer, None)
        sizes, encoder, logits, vae = training.build(train_vae, images, mean_image)
        try:
            training.fit(train_vae, vae, datasets, STEPS)
        except FloatingPointError:
            return "stopped", None
        decoder = train_vae.build_stock_decoder(logits, *sizes)
    figures = train_vae.measure(encoder, decoder, datasets[1], mean_image, seed)
    gain = figures["cross_entropy_mean_image"] - figures["cross_entropy"]
    if not np.isfinite(gain):
        return "not finite", None
    if gain < -0.01:
        return "stuck", gain
    return "fine", gain


def train_map(file, steps, epochs, seed):
    """Train ours as shipped; return R2 of pose, and the greatest kl_loss of an epoch.

    R2 is None for photos, whose poses nobody knows.
    """
    train_vae = training.load_train_vae(SEED=seed, EPOCHS=epochs)
    images, _, num_train, mean_image = train_vae.read_images(file)
    datasets = train_vae.make_datasets(
        images, num_train, train_vae.BATCH_SIZE, seed, 0, 1
    )
    _, encoder, _, vae = training.build(train_vae, images, mean_image)
    history, best = training.fit(train_vae, vae, datasets, steps // epochs)
    vae.set_weights(best)
    most = 0
    for row in history:
        most = max(most, row["kl_loss"], row["val_kl_loss"])
    factors = training.read_factors(file)
    if factors is None:
        return None, most
    codes = training.encode(encoder, images)
    r2, _ = training.guess_factors(codes, factors, num_train)
    return r2, most


def compare_optimizers(executor, folder):
    """Print the table of all kinds of data and all optimizers."""
    print(
        "data      network, optimizer  rate   runs  fine  stuck  not finite  stopped  "
        "gain over the mean image (median, least)"
    )
    runs = collections.Counter()  # of ours or the article's, at a factor
    fine = collections.Counter()
    for kind in KINDS:
        file = make_array(kind, folder / kind)
        for optimizer in OPTIMIZERS:
            name = f"ours, {optimizer}"
            factors = FACTORS
            if optimizer == "article":
                name = "the article's"
                factors = ARTICLE_FACTORS
            for factor, seeds in factors.items():
                cells = f"{kind:10}{name:20}x {factor:<4}{seeds:5}"
                count = repeat(executor, cells, file, optimizer, factor, seeds)
                whose = name.partition(",")[0]
                runs[whose, factor] += seeds
                fine[whose, factor] += count["fine"]
    for (whose, factor), number in runs.items():
        bad = number - fine[whose, factor]
        print(f"{whose}, rate x {factor}: {bad} of {number} went wrong")


def repeat(executor, cells, file, optimizer, factor, seeds):
    """Train with each seed; print the cells and what came of it; return the counts."""
    runs = []
    for seed in range(seeds):
        runs.append(executor.submit(train, file, optimizer, factor, seed))
    count = collections.Counter()
    gains = []
    for run in runs:
        end, gain = run.result()
        count[end] += 1
        if gain is not None:
            gains.append(gain)
    text = "       -        -"
    if gains:
        text = f"{statistics.median(gains):8.4f} {min(gains):8.4f}"
    print(
        f"{cells}{count['fine']:6}{count['stuck']:7}{count['not finite']:12}"
        f"{count['stopped']:9}  {text}",
        flush=True,
    )
    return count


def check_maps(executor, folder):
    """Print the two rows about the map."""
    file = training.draw_athletes(folder, 300, IMAGE_SIZE=64)
    runs = []
    for seed in range(MAP_SEEDS):
        runs.append(executor.submit(train_map, file, MAP_STEPS, 50, seed))
    found = sorted(run.result()[0] for run in runs)
    lost = sum(r2 <= LEAST_R2 for r2 in found)
    print(
        f"athletes, {MAP_STEPS} steps: R2 of pose at most {LEAST_R2} in {lost} of "
        f"{len(found)}; least {found[0]:.3f}, median {statistics.median(found):.3f}",
        flush=True,
    )
    if PHOTO_DIR is None:
        return
    photos = folder / "photos"
    photos.mkdir()
    file = training.prepare_photos(photos, PHOTO_DIR, 64)
    runs = []
    for seed in range(MAP_SEEDS):
        runs.append(executor.submit(train_map, file, STEPS * EPOCHS, EPOCHS, seed))
    found = sorted(run.result()[1] for run in runs)
    left = sum(most > MOST_KL for most in found)
    print(
        f"photos, {STEPS * EPOCHS} steps: kl_loss above {MOST_KL} in {left} of "
        f"{len(found)}; most {found[-1]:.1f}, median {statistics.median(found):.1f}",
        flush=True,
    )


def main():
    start = time.perf_counter()
    load_script("train_vae.py")  # TensorFlow's notes are hidden by it
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        concurrent.futures.ProcessPoolExecutor(
            PROCESSES, mp_context=context, initializer=training.limit_threads
        ) as executor,
    ):
        compare_optimizers(executor, Path(scratch))
        maps = Path(scratch, "maps")
        maps.mkdir()
        check_maps(executor, maps)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
