"""Measure what three choices are worth: corrections, latents, and grey or colour.

    python tests/bench_choices.py

Reads   nothing; it draws and prepares its pictures in a temporary folder.
Writes  nothing but three tables, after some 20 minutes. (With one seed, the network
        with logits alone was worse than the mean image after 300 steps, 0.553 to
        0.540, and better after 600, 0.525.)

All trainings have the same STEPS of 32 images on the same rows, of which a tenth, from
the end, is held out; all figures are of held-out rows decoded at z_mean, and medians
over the seeds. A training went wrong where a loss is not finite, or where the
cross-entropy is more than 0.01 nats a value above that of the mean image; it then
counts in no median. Images a second are of the median step, on one core beside another
training.

The corrections are put one after the other into the article's network, which
bench_train.py describes: logits instead of a relu output with a clipped cross-entropy;
noise of exp(z_log_var / 2) instead of exp(z_log_var); our encoder and decoder instead
of those with a dense layer to side/2 x side/2 x 32; and all of train_vae.py: Adam, the
clipped gradients, both warm-ups, the best epoch. Its KL term, a mean over two latents
without the factor 1/2, is the sum with it, so that all rows have the same.
"""

import concurrent.futures
import contextlib
import functools
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_stability import limit_threads
from bench_train import build_article
from conftest import load_script, run_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
ATHLETES = 300  # drawn ones; each is followed by its mirror
SIDE = 64  # pixels of a row
STEPS = 600  # of 32 images, in 10 epochs
SEEDS = (3, 3, 3)  # trainings of each row of the three tables
KL_WEIGHT = 5e-4  # of all trainings but the others of the second table
KL_WEIGHTS = (5e-4, 1e-5)  # of the second table: as shipped, and less
LATENT_DIMS = (2, 16, 64)  # of the second table
COLOUR_LATENT_DIMS = (2, 16)  # of the third one
PROCESSES = 2  # each with one thread
# ----------------------------------------------------------------------------

BATCH_SIZE, EPOCHS = 32, 10
CORRECTIONS = (
    "the article's network",
    "+ logits",
    "+ the half",
    "+ no large dense layer",
    "+ Adam, clipping, warm-ups",
)
OURS = len(CORRECTIONS) - 1
LUMINANCE = np.float32([0.299, 0.587, 0.114])  # as OpenCV's: of red, green and blue
TABLES = {  # title: {heading: name of a figure and the format of its value}
    "The corrections to the article, one after the other (nats a value; KL in nats)": {
        "parameters": ("parameters", ","),
        "cross-entropy": ("cross_entropy", ".4f"),
        "mean image": ("cross_entropy_mean_image", ".4f"),
        "lowest": ("cross_entropy_lowest", ".4f"),
        "in grid": ("share_in_grid", ".0%"),
        "KL believed": ("kl", ".2f"),
        "true KL": ("true_kl", ".2f"),
        "std believed": ("std_believed", ".3f"),
        "true std": ("true_std", ".3f"),
        "images/s": ("images_per_second", ".0f"),
    },
    "Blur: sharpness, decoded over real (KL in nats)": {
        "cross-entropy": ("cross_entropy", ".4f"),
        "PSNR, dB": ("psnr", ".2f"),
        "SSIM": ("ssim", ".3f"),
        "sharpness": ("sharpness", ".1%"),
        "KL": ("kl", ".2f"),
    },
    "Grey or colour: luminance, against the grey rows": {
        "PSNR, dB": ("luminance_psnr", ".2f"),
        "SSIM": ("luminance_ssim", ".3f"),
        "PSNR of all channels": ("psnr", ".2f"),
    },
}


def draw(folder):
    """Draw athletes in the folder; return {COLOR: array of the same rows}."""
    edits = {"NUM_IMAGES": ATHLETES}
    result = run_script("tests/draw_athletes.py", folder, 900, **edits)
    files = {color: folder / f"data/{color}.npy" for color in ("rgb", "gray")}
    for color, file in files.items():
        if result.returncode:
            break
        edits = {"IMAGE_SIZE": SIDE, "COLOR": color, "OUTPUT_FILE": str(file)}
        result = run_script("preprocess.py", folder, 900, **edits)
    if result.returncode:
        sys.exit("A script has failed, see above.")
    return files


def build(train_vae, correction, sizes, settings):
    """Build encoder, decoder as it is trained, and vae, with so many corrections."""
    keras, seed = train_vae.keras, settings["SEED"]
    if correction == OURS:
        strategy = train_vae.tf.distribute.get_strategy()
        return train_vae.build_models(sizes, settings, STEPS, strategy)
    keras.utils.set_random_seed(seed)
    if correction == 3:
        encoder = train_vae.build_encoder(*sizes)
        decoder = train_vae.build_decoder(*sizes, training=True)
    else:
        encoder, decoder, vae = build_article(keras, *sizes[:2])
        if correction == 0:
            return encoder, decoder, vae
        decoder.layers[-1].activation = keras.activations.linear
    if correction == 1:

        class Sampling(train_vae.Sampling):
            def call(self, inputs):
                z_mean, z_log_var = inputs
                return super().call([z_mean, 2 * z_log_var])

        train_vae.Sampling = Sampling
    vae = train_vae.build_vae(encoder, decoder, settings["KL_WEIGHT"], seed)
    vae.compile("rmsprop")
    return encoder, decoder, vae


def fit(train_vae, correction, vae, datasets, settings):
    """Train, and return images a second in the median step.

    Raises:
        FloatingPointError: A loss was not finite.
    """
    times = []

    class Clock(train_vae.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())
            if not np.isfinite(logs["loss"]):
                raise FloatingPointError

    training, held_out = datasets
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),  # no word of the time that is left
    ):
        recorder = train_vae.Recorder(Path(folder), settings, EPOCHS)
        vae.fit(
            training,
            shuffle=False,
            steps_per_epoch=STEPS // EPOCHS,
            epochs=EPOCHS,
            validation_data=held_out,
            callbacks=[Clock(), *([recorder] if correction == OURS else [])],
            verbose=0,
        )
    if correction == OURS:
        vae.set_weights(recorder.best)
    return BATCH_SIZE / float(np.median(np.diff(times)))


def measure_more(tf, z_mean, z_log_var, log_var_drawn, decoded, grey):
    """Measure the noise that is drawn, and decoded images against grey rows in 0..1.

    The KL term believes in z_log_var. The standard deviations are medians.
    """
    kl = (z_mean**2 + np.exp(log_var_drawn) - 1 - log_var_drawn) / 2
    if decoded.shape[3] == 3:
        decoded = (decoded @ LUMINANCE)[..., None]
    ssim = tf.image.ssim(grey, decoded, 1.0, filter_size=7)
    return {
        "std_believed": float(np.median(np.exp(z_log_var / 2))),
        "true_std": float(np.median(np.exp(log_var_drawn / 2))),
        "true_kl": float(kl.sum(axis=1).mean()),
        "luminance_psnr": float(np.mean(tf.image.psnr(grey, decoded, 1.0))),
        "luminance_ssim": float(np.mean(ssim)),
    }


def train(files, color, correction, latent_dim, kl_weight, seed):
    """Train once; return the figures of the held-out rows, None where it failed."""
    train_vae = load_script("train_vae.py")
    keras = train_vae.keras
    keras.backend.clear_session()
    images = np.load(files[color])
    num_train = len(images) // 20 * 18  # even: no mirror is parted from its picture
    sizes = (SIDE, images.shape[3], latent_dim, train_vae.FILTERS)
    settings = {"SEED": seed, "PRECISION": "float32", "KL_WEIGHT": kl_weight}
    settings |= {"LEARNING_RATE": None, "OPTIMIZER": "adam"}
    encoder, decoder, vae = build(train_vae, correction, sizes, settings)
    datasets = train_vae.make_datasets(images, num_train, BATCH_SIZE, seed, 0, 1)
    try:
        rate = fit(train_vae, correction, vae, datasets, settings)
    except FloatingPointError:
        return None
    if correction > 0:  # from the logits to pictures
        outputs = keras.ops.sigmoid(decoder.output)
        decoder = keras.Model(decoder.input, outputs)
    mean_image = train_vae.average_images(images[:num_train])
    held_out = images[num_train:] / np.float32(255)
    grey = np.load(files["gray"])[num_train:] / np.float32(255)
    z_mean, z_log_var = (np.asarray(x) for x in encoder(held_out))
    drawn = z_log_var if correction > 1 else 2 * z_log_var
    decoded = np.asarray(decoder(z_mean))
    return {
        **train_vae.measure(encoder, decoder, datasets[1], mean_image),
        **measure_more(train_vae.tf, z_mean, z_log_var, drawn, decoded, grey),
        "parameters": encoder.count_params() + decoder.count_params(),
        "images_per_second": rate,
    }


def plan_tables():
    """Return the rows of each table, {label: arguments of train but for the seed}."""
    corrections = {
        label: ("rgb", number, 2, KL_WEIGHT) for number, label in enumerate(CORRECTIONS)
    }
    latents = {
        f"LATENT_DIM {dim}, KL_WEIGHT {weight:g}": ("rgb", OURS, dim, weight)
        for weight in KL_WEIGHTS
        for dim in LATENT_DIMS
    }
    colours = {
        f"LATENT_DIM {dim}, COLOR {color}": (color, OURS, dim, KL_WEIGHT)
        for dim in COLOUR_LATENT_DIMS
        for color in ("rgb", "gray")
    }
    return corrections, latents, colours


def print_row(label, columns, runs):
    """Print how many runs went wrong, and the medians of the others' figures."""
    good = [
        run
        for run in runs
        if run and run["cross_entropy"] < run["cross_entropy_mean_image"] + 0.01
    ]
    print(f"{label:32}  {len(runs) - len(good)} of {len(runs)}", end="")
    for heading, (name, form) in columns.items():
        cell = format(statistics.median(x[name] for x in good), form) if good else "-"
        print(f"{cell:>{max(9, len(heading) + 2)}}", end="")
    print(flush=True)


def main():
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        concurrent.futures.ProcessPoolExecutor(
            PROCESSES, mp_context=context, initializer=limit_threads
        ) as executor,
    ):
        files = draw(Path(scratch))
        rgb, grey = (np.load(file) for file in files.values())
        apart = np.abs(rgb @ LUMINANCE - grey[..., 0]).max()
        print(
            f"{len(rgb)} rows of {SIDE} pixels, {STEPS} steps of {BATCH_SIZE} images; "
            f"the grey rows are the luminance of the others to {apart:.1f} of 255"
        )
        # A training that several tables want is done once.
        submit = functools.cache(functools.partial(executor.submit, train, files))
        tables = [
            {
                label: [submit(*run, seed) for seed in range(seeds)]
                for label, run in table.items()
            }
            for table, seeds in zip(plan_tables(), SEEDS, strict=True)
        ]
        for (title, columns), table in zip(TABLES.items(), tables, strict=True):
            headings = (f"{name:>{max(9, len(name) + 2)}}" for name in columns)
            print(f"\n{title}\n{'':32}   wrong", *headings, sep="")
            for label, runs in table.items():
                print_row(label, columns, [run.result() for run in runs])
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
