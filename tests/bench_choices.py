"""Measure what each part of the model is worth, in what people look at.

    python tests/bench_choices.py

Reads   PHOTO_DIR, if it is set; athletes are drawn and prepared in a temporary folder.
Writes  nothing but its tables, after some two hours on two cores. Without the rows of
        256 pixels and the 2000 athletes it is a third of that.

All figures are of held-out rows decoded at z_mean, with the weights of the best epoch,
and medians over the seeds; those beside `worst` are of the worst seed. A training went
wrong where train_vae.py would have stopped it, or where the cross-entropy is more than
0.01 nats a value above that of the mean image; it then counts in no median.

sharpness: variance of the Laplacian, decoded over real; tiles: the same of a grid of
15 x 15 tiles of the first two latents. in grid: share of the codes within that grid.
pose, people: R2 and accuracy of what the ten training codes nearest in the first two
latents say of the held-out ones.

The ingredients: the sketch layer (without it: the network of convolutions alone); silu
with twice the learning rate in place of leaky units; the stages of the KL with more
than two latents (without them: one weight for all).

The corrections are put one after the other into the article's network, which
bench_train.py describes: logits instead of a relu output with a clipped cross-entropy;
noise of exp(z_log_var / 2) instead of exp(z_log_var); our encoder and decoder, without
the sketch, instead of those with a dense layer to side/2 x side/2 x 32; Adam, clipped
gradients, warm-ups, best epoch; and the sketch. Its KL term, a mean over two latents
without the factor 1/2, is the sum with it, so that all rows have the same.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import training
from bench_train import build_article

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
TABLES = ("corrections", "ingredients", "latents", "colours", "shipped", "photos")
SEEDS = (0, 1, 2)
STEPS = 600  # of the tables of 300 athletes at 64 pixels
MANY_STEPS = 800  # with 2000 athletes
PHOTO_DIR = None  # a folder of photos with people, for FIT = "person"; None: no table
PHOTO_SIDE = 64  # pixels
PHOTO_STEPS = 2000
# ----------------------------------------------------------------------------

LUMINANCE = np.float32([0.299, 0.587, 0.114])  # as OpenCV's: of red, green and blue
COLUMNS = {  # heading: name of a figure and the format of its value
    "cross-entropy": ("cross_entropy", ".4f"),
    "PSNR, dB": ("psnr", ".2f"),
    "SSIM": ("ssim", ".3f"),
    "sharpness": ("sharpness", ".3f"),
    "tiles": ("tiles", ".3f"),
    "in grid": ("in_grid", ".2f"),
    "pose": ("pose", ".3f"),
    "people": ("people", ".3f"),
    "KL": ("kl", ".2f"),
}
CORRECTION_COLUMNS = {
    "cross-entropy": ("cross_entropy", ".4f"),
    "mean image": ("cross_entropy_mean_image", ".4f"),
    "lowest": ("cross_entropy_lowest", ".4f"),
    "in grid": ("in_grid", ".2f"),
    "KL believed": ("kl", ".2f"),
    "true KL": ("true_kl", ".2f"),
    "std believed": ("std_believed", ".3f"),
    "true std": ("true_std", ".3f"),
    "parameters": ("parameters", ",.0f"),
    "images/s": ("images_per_second", ".0f"),
}
COLOUR_COLUMNS = {
    "PSNR, dB": ("luminance_psnr", ".2f"),
    "SSIM": ("luminance_ssim", ".3f"),
    "PSNR of all channels": ("psnr", ".2f"),
}
CORRECTIONS = (
    "the article's network",
    "+ logits",
    "+ the half",
    "+ no large dense layer",
    "+ Adam, clipping, warm-ups",
    "+ the sketch",
)


def leave_out_sketch(train_vae):
    """Make train_vae.py build its decoder without the sketch."""

    def build_nothing(folded, side, channels, activation):
        layers = train_vae.layers
        options = {"kernel_initializer": "zeros", "trainable": False}
        zero = layers.Dense(1, name="sketch", dtype="float32", **options)(folded)
        return layers.Reshape((1, 1, 1))(zero)

    def start_nothing(decoder, mean_image):
        pass

    train_vae.build_sketch = build_nothing
    train_vae.start_sketch = start_nothing


def leave_out_stages(train_vae):
    """Make train_vae.py give all latents the same weight, which rises as ever."""
    plan = train_vae.plan_kl_weights

    def final_kl_weights(kl_weight, latent_dim):
        return [kl_weight] * latent_dim

    def plan_kl_weights(step, epoch_steps, final_weights):
        of_the_map = plan(step, epoch_steps, final_weights[:2])
        return np.full(len(final_weights), of_the_map[0])

    train_vae.final_kl_weights = final_kl_weights
    train_vae.plan_kl_weights = plan_kl_weights


def build_corrected(train_vae, correction, images, mean_image):
    """Build encoder, decoder as it is trained, and vae, with so many corrections."""
    keras = train_vae.keras
    side, channels = images.shape[1], images.shape[3]
    keras.utils.set_random_seed(train_vae.SEED)
    if correction < 3:
        encoder, decoder, vae = build_article(keras, side, channels)
        if correction == 0:
            return encoder, decoder, vae
        decoder.layers[-1].activation = keras.activations.linear
    else:
        sizes = (side, channels, 2, train_vae.FILTERS, "leaky_relu")
        encoder = train_vae.build_encoder(*sizes)
        decoder = train_vae.build_decoder(*sizes, train_vae.up_conv)
    if correction == 1:

        class Sampling(train_vae.Sampling):
            def call(self, inputs):
                z_mean, z_log_var = inputs
                return super().call([z_mean, 2 * z_log_var])

        train_vae.Sampling = Sampling
    kl_weights = train_vae.final_kl_weights(train_vae.KL_WEIGHT, 2)
    vae = train_vae.build_vae(encoder, decoder, kl_weights, train_vae.SEED)
    vae.compile("rmsprop")
    return encoder, decoder, vae


def fit_plainly(train_vae, vae, datasets, steps):
    """Train as the article does; return the history.

    Raises:
        FloatingPointError: A loss was not finite.
    """
    start = time.perf_counter()
    vae.fit(
        datasets[0],
        shuffle=False,
        steps_per_epoch=steps,
        epochs=train_vae.EPOCHS,
        callbacks=[train_vae.StopIfDiverging()],
        verbose=0,
    )
    seconds = (time.perf_counter() - start) / train_vae.EPOCHS
    return [{"seconds": seconds}]


def measure_noise(encoder, images, correction):
    """Measure the noise that is drawn, and the noise in which the KL term believes."""
    z_mean, z_log_var = (np.asarray(x) for x in encoder(images))
    drawn = z_log_var
    if correction is not None and correction < 2:
        drawn = 2 * z_log_var
    kl = (z_mean**2 + np.exp(drawn) - 1 - drawn) / 2
    return {
        "std_believed": float(np.median(np.exp(z_log_var / 2))),
        "true_std": float(np.median(np.exp(drawn / 2))),
        "true_kl": float(kl.sum(axis=1).mean()),
    }


def measure_luminance(tf, images, decoded):
    """Compare decoded images with the luminance of images, float32 in 0..1."""
    if images.shape[3] == 3:
        images = (images @ LUMINANCE)[..., None]
        decoded = (decoded @ LUMINANCE)[..., None]
    ssim = tf.image.ssim(images, decoded, 1.0, filter_size=7)
    return {
        "luminance_psnr": float(np.mean(tf.image.psnr(images, decoded, 1.0))),
        "luminance_ssim": float(np.mean(ssim)),
    }


def train(
    file,
    seed,
    steps=None,
    correction=None,
    sketch=True,
    stages=True,
    **settings,
):
    """Train once; return the figures of the held-out rows, None where it failed.

    Args:
        file: path of the array, with images.csv beside it.
        seed: SEED.
        steps: in all, about, in whole epochs; None: EPOCHS as shipped.
        correction: how many corrections the article's network gets; None: ours.
        sketch, stages: whether ours has these ingredients.
        **settings: of train_vae.py.
    """
    train_vae = training.load_train_vae(SEED=seed, **settings)
    if not sketch:
        leave_out_sketch(train_vae)
    if not stages:
        leave_out_stages(train_vae)
    images, _, num_train, mean_image = train_vae.read_images(file)
    batch_size = train_vae.BATCH_SIZE
    steps_per_epoch = num_train // batch_size
    if steps is not None:
        train_vae.EPOCHS = max(1, round(steps / steps_per_epoch))
    datasets = train_vae.make_datasets(images, num_train, batch_size, seed, 0, 1)
    if correction is None:
        models = training.build(train_vae, images, mean_image)[1:]
    else:
        models = build_corrected(train_vae, correction, images, mean_image)
    encoder, decoder, vae = models
    try:
        if correction is None:
            history, best = training.fit(train_vae, vae, datasets, steps_per_epoch)
            vae.set_weights(best)
        else:
            history = fit_plainly(train_vae, vae, datasets, steps_per_epoch)
    except FloatingPointError:
        return None
    if correction != 0:  # from the logits to pictures
        keras = train_vae.keras
        decoder = keras.Model(decoder.input, keras.ops.sigmoid(decoder.output))
    seconds = statistics.median(row["seconds"] for row in history)
    return {
        **train_vae.measure(encoder, decoder, datasets[1], mean_image, seed),
        **measure_more(train_vae, encoder, decoder, file, images, num_train),
        **measure_noise(encoder, images[num_train:] / np.float32(255), correction),
        "parameters": encoder.count_params() + decoder.count_params(),
        "images_per_second": steps_per_epoch * batch_size / seconds,
    }


def measure_more(train_vae, encoder, decoder, file, images, num_train):
    """Return the figures of the map and of the luminance of held-out rows."""
    held_out = images[num_train:] / np.float32(255)
    decoded = np.asarray(decoder(np.asarray(encoder(held_out)[0])))
    factors = training.read_factors(file)
    return {
        **training.measure_map(encoder, decoder, images, num_train, factors),
        **measure_luminance(train_vae.tf, held_out, decoded),
    }


def plan_corrections(files):
    rows = {}
    for number, label in enumerate(CORRECTIONS[:4]):
        rows[label] = {
            "file": files["300 at 64"],
            "steps": STEPS,
            "correction": number,
            "sketch": False,
        }
    few = {"file": files["300 at 64"], "steps": STEPS}
    rows[CORRECTIONS[4]] = {**few, "sketch": False}
    rows[CORRECTIONS[5]] = few
    return rows


def plan_ingredients(files):
    rows = {}
    silu = {"ACTIVATION": "silu", "LEARNING_RATE": 6e-3}
    for name, steps in (("300 at 64", STEPS), ("2000 at 64", MANY_STEPS)):
        data = {"file": files[name], "steps": steps}
        rows[f"{name}: convolutions alone"] = {**data, "sketch": False}
        rows[f"{name}: silu"] = {**data, "sketch": False, **silu}
        rows[f"{name}: sketch (shipped)"] = data
        rows[f"{name}: sketch, silu"] = {**data, **silu}
    return rows


def plan_latents(files):
    """Compare the stages with one weight for all latents, at several weights."""
    rows = {}
    data = {"file": files["300 at 64"], "steps": STEPS, "LATENT_DIM": 16}
    for kl_weight in (5e-4, 2e-4, 2e-5):
        rows[f"16 latents, stages, {kl_weight:g}"] = {**data, "KL_WEIGHT": kl_weight}
    silu = {"ACTIVATION": "silu", "LEARNING_RATE": 6e-3, "KL_WEIGHT": 2e-4}
    rows["16 latents, stages, 0.0002, silu"] = {**data, **silu}
    for kl_weight in (5e-4, 1e-5):
        options = {**data, "KL_WEIGHT": kl_weight, "stages": False}
        rows[f"16 latents, one weight, {kl_weight:g}"] = options
    options = {**data, "KL_WEIGHT": 1e-5, "stages": False, "sketch": False}
    rows["16 latents, one weight, 1e-05, no sketch"] = options
    return rows


def plan_colours(files):
    rows = {}
    for latent_dim in (2, 16):
        for name in ("300 at 64", "300 at 64, grey"):
            options = {"steps": STEPS, "LATENT_DIM": latent_dim}
            rows[f"{latent_dim} latents, {name}"] = {"file": files[name], **options}
    return rows


def plan_shipped(files):
    return {"300 at 256, as shipped": {"file": files["300 at 256"]}}


def plan_photos(files):
    rows = {}
    data = {"file": files["photos"], "steps": PHOTO_STEPS}
    for latent_dim in (2, 16):
        options = {**data, "LATENT_DIM": latent_dim}
        label = f"photos, {latent_dim} latents"
        rows[f"{label}, no sketch"] = {**options, "sketch": False}
        rows[label] = options
    rows["photos, 16 latents, one weight"] = {**options, "stages": False}
    return rows


PLANS = {  # name: rows and columns of a table, and the arrays that it needs
    "corrections": (plan_corrections, CORRECTION_COLUMNS, ("300 at 64",)),
    "ingredients": (plan_ingredients, COLUMNS, ("300 at 64", "2000 at 64")),
    "latents": (plan_latents, COLUMNS, ("300 at 64",)),
    "colours": (plan_colours, COLOUR_COLUMNS, ("300 at 64", "300 at 64, grey")),
    "shipped": (plan_shipped, COLUMNS, ("300 at 256",)),
    "photos": (plan_photos, COLUMNS, ("photos",)),
}


def make_array(name, folder):
    """Make an array by its name, in a new folder; return its path."""
    folder.mkdir()
    if name == "photos":
        return training.prepare_photos(folder, PHOTO_DIR, PHOTO_SIDE)
    words = name.replace(",", "").split()  # such as 300 at 64, grey
    edits = {"IMAGE_SIZE": int(words[2])}
    if words[-1] == "grey":
        edits["COLOR"] = "gray"
    return training.draw_athletes(folder, int(words[0]), **edits)


def print_row(label, columns, runs):
    """Print how many runs went wrong, and the medians of the others' figures."""
    good = []
    for run in runs:
        if run is None:
            continue
        if run["cross_entropy"] < run["cross_entropy_mean_image"] + 0.01:
            good.append(run)
    print(f"{label:42}{len(runs) - len(good)} of {len(runs)}", end="")
    for heading, (name, form) in columns.items():
        values = [run[name] for run in good if name in run]
        cell = "-"
        if values:
            cell = format(statistics.median(values), form)
        print(f"{cell:>{max(8, len(heading) + 2)}}", end="")
    poses = [run["pose"] for run in good if "pose" in run]
    if "pose" in columns and poses:
        sharpness = min(run["sharpness"] for run in good)
        print(f"  worst: sharpness {sharpness:.3f}, pose {min(poses):.3f}", end="")
    print(flush=True)


def main():
    start = time.perf_counter()
    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        for title in TABLES:
            if title == "photos" and PHOTO_DIR is None:
                continue
            plan, columns, names = PLANS[title]
            for name in names:
                if name not in files:
                    files[name] = make_array(name, Path(scratch, name))
            print(f"\n{title}\n{'':42} wrong", end="")
            for heading in columns:
                print(f"{heading:>{max(8, len(heading) + 2)}}", end="")
            print()
            for label, options in plan(files).items():
                runs = [train(seed=seed, **options) for seed in SEEDS]
                print_row(label, columns, runs)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
