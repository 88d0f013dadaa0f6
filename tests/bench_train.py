"""Train the article's network and ours on the same drawn athletes, in one run.

    python tests/bench_train.py

Reads   nothing; it draws its pictures into a temporary folder: 0.5 GB with ROWS, 5 GB
        with MANY_ROWS.
Writes  nothing but what it prints: images a second, taken in turn, and their share of
        the processor's peak; what each network knows of held-out pictures after as
        many steps as fit into its seconds at those rates; and the memory of a training
        on few and on many rows. All of it takes an hour on two cores.

The article's network is built from its description: convolutions 3, 32 (stride 2), 32,
32; dense 128; in the decoder dense 128 and 128 * 128 * 32, three transposed
convolutions of 32, the last of stride 2, and a convolution 3; all 3 x 3 and relu, the
output too; rmsprop; z = z_mean + exp(z_log_var) * epsilon; Keras's cross-entropy,
clipped at 1e-7.
"""

import concurrent.futures
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import training
from conftest import copy_script, load_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
ROWS = 2000  # drawn athletes of 256 x 256 x 3, 256 of them held out
NETWORKS = {  # FILTERS and PRECISION, seconds of training; the article's has neither
    "article": (None, (180,)),
    "ours": (((16, 32, 64, 128), "float32"), (180, 600)),
    "ours, bfloat16": (((16, 32, 64, 128), "mixed_bfloat16"), (180,)),
    "ours, twice as wide": (((32, 64, 128, 256), "float32"), (180, 600)),
}
ROUNDS = 3  # how often the rate of each network is taken, in turn
STEPS = 24  # timed steps of 32 images in a round
MANY_ROWS = 20_000  # of the training whose memory is compared; 0: no comparison
# ----------------------------------------------------------------------------

SIDE = 256
EPOCHS = 20  # of the training of ours
PRODUCT_SIDE = 4096  # a product of two such matrices stands for the processor's peak


def build_article(keras, side, channels):
    """Build the article's encoder to [z_mean, z_log_var], decoder and compiled vae."""
    layers, ops = keras.layers, keras.ops

    class Sampling(layers.Layer):
        def call(self, inputs):
            z_mean, z_log_var = inputs
            return z_mean + ops.exp(z_log_var) * keras.random.normal(ops.shape(z_mean))

    class Loss(layers.Layer):
        def call(self, inputs):
            images, decoded, z_mean, z_log_var = inputs
            loss = keras.losses.binary_crossentropy(images, decoded)
            kl = 1 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var)
            self.add_loss(ops.mean(loss) - 5e-4 * ops.mean(kl))
            return decoded

    options = {"padding": "same", "activation": "relu"}
    x = images = keras.Input((side, side, channels))
    for filters, strides in ((channels, 1), (32, 2), (32, 1), (32, 1)):
        x = layers.Conv2D(filters, 3, strides, **options)(x)
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    encoder = keras.Model(images, [layers.Dense(2)(x), layers.Dense(2)(x)])
    x = z = keras.Input((2,))
    for units in (128, side // 2 * (side // 2) * 32):
        x = layers.Dense(units, activation="relu")(x)
    x = layers.Reshape((side // 2, side // 2, 32))(x)
    for strides in (1, 1, 2):
        x = layers.Conv2DTranspose(32, 3, strides, **options)(x)
    decoder = keras.Model(z, layers.Conv2D(channels, 3, **options)(x))
    z_mean, z_log_var = encoder(images)
    decoded = decoder(Sampling()([z_mean, z_log_var]))
    vae = keras.Model(images, Loss()([images, decoded, z_mean, z_log_var]))
    vae.compile("rmsprop")
    return encoder, decoder, vae


def build(train_vae, network, images, mean_image):
    """Build the article's network (None) or ours; the first result is ours' sizes."""
    if network is None:
        train_vae.keras.utils.set_random_seed(0)
        return None, *build_article(train_vae.keras, SIDE, 3)
    return training.build(train_vae, images, mean_image)


def load(network, **settings):
    """Import train_vae.py with the settings of a network; None is the article's."""
    if network is not None:
        settings["FILTERS"], settings["PRECISION"] = network
    return training.load_train_vae(**settings)


def count_flops(model):
    """Count the floating-point operations of a forward pass of one image."""
    total = 0
    for layer in model.layers:
        kind = type(layer).__name__
        if hasattr(layer, "layers"):
            total += count_flops(layer)
        elif kind in ("Conv2D", "Conv2DTranspose", "UpConv2D"):
            *kernel, channels_in, channels_out = layer.kernel.shape
            taps = np.prod(kernel)
            place = layer.output.shape[1:3]
            if kind != "Conv2D":  # a kernel is laid about each place of the input
                place = layer.input.shape[1:3]
            if kind == "UpConv2D":
                taps = 16
            total += 2 * taps * channels_in * channels_out * np.prod(place)
        elif kind == "Dense":
            total += 2 * np.prod(layer.kernel.shape)
    return int(total)


def take_rate(file, network, steps):
    """Return images a second of the median step, and operations a step and image."""
    train_vae = load(network, EPOCHS=1)
    images, _, num_train, mean_image = train_vae.read_images(file)
    _, _, _, vae = build(train_vae, network, images, mean_image)
    datasets = train_vae.make_datasets(images, num_train, train_vae.BATCH_SIZE, 0, 0, 1)
    times = []

    class Clock(train_vae.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    if network is None:
        options = {"steps_per_epoch": steps + 6, "verbose": 0, "shuffle": False}
        vae.fit(datasets[0], callbacks=[Clock()], **options)
    else:
        training.fit(train_vae, vae, datasets, steps + 6, [Clock()])
    # A training step needs about three forward passes.
    rate = train_vae.BATCH_SIZE / np.median(np.diff(times[5:]))
    return rate, 3 * count_flops(vae)


def take_peak(side):
    """Return the floating-point operations a second of a large matrix product."""
    tf = load_script("train_vae.py").tf
    a = tf.random.normal((side, side))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a).numpy()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def sample_memory(process, stop):
    """Return the peak of a process's anonymous memory in bytes, sampled until stop."""
    peak, status = 0, Path(f"/proc/{process}/status")
    while not stop():
        try:
            lines = dict(x.split(":", 1) for x in status.read_text().splitlines())
        except OSError:  # the process has ended
            break
        peak = max(peak, 1024 * int(lines.get("RssAnon", "0 kB").split()[0]))
        time.sleep(0.02)
    return peak


def train_steps(file, network, steps):
    """Train for some steps; return figures on held-out rows, and the peak of memory."""
    train_vae = load(network, EPOCHS=EPOCHS)
    images, _, num_train, mean_image = train_vae.read_images(file)
    sizes, encoder, decoder, vae = build(train_vae, network, images, mean_image)
    datasets = train_vae.make_datasets(images, num_train, train_vae.BATCH_SIZE, 0, 0, 1)
    with concurrent.futures.ThreadPoolExecutor() as executor:
        done = threading.Event()
        memory = executor.submit(sample_memory, os.getpid(), done.is_set)
        if network is None:
            options = {"steps_per_epoch": steps, "verbose": 0, "shuffle": False}
            vae.fit(datasets[0], **options)
        else:
            _, best = training.fit(train_vae, vae, datasets, steps // EPOCHS)
            vae.set_weights(best)
            decoder = train_vae.build_stock_decoder(decoder, *sizes)
        done.set()
        figures = train_vae.measure(encoder, decoder, datasets[1], mean_image, 0)
    figures["memory"] = memory.result()
    return figures


def measure_components(file, count=2):
    """Return the cross-entropy of held-out rows from their principal components."""
    images = np.load(file, mmap_mode="r")
    num_train = len(images) - load_script("train_vae.py").VALIDATION_IMAGES
    rows = images.reshape(len(images), -1) / np.float32(255)
    mean = rows[:num_train].mean(axis=0)
    centred = rows[:num_train] - mean
    _, vectors = np.linalg.eigh(centred @ centred.T)
    axes, _ = np.linalg.qr(centred.T @ vectors[:, -count:])
    held_out = rows[num_train:]
    decoded = mean + (held_out - mean) @ axes @ axes.T
    losses = []
    for low in (0.001, 0.003, 0.01, 0.03):  # the clipping that suits it best
        p = np.clip(decoded, low, 1 - low)
        losses.append(-(held_out * np.log(p) + (1 - held_out) * np.log(1 - p)).mean())
    return float(min(losses))


def alone(function, *values):
    """Call a function in a process of its own, so that nothing of it stays behind."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, *values).result()


def train_script(folder):
    """Train an epoch with train_vae.py in the folder; return its anonymous memory."""
    copy_script("train_vae.py", folder, EPOCHS=1)
    script = subprocess.Popen([sys.executable, "train_vae.py"], cwd=folder, text=True)
    peak = sample_memory(script.pid, lambda: script.poll() is not None)
    if script.wait():
        sys.exit("train_vae.py has failed, see above.")
    return peak


def repeat_rows(source, target, count):
    """Write an array of so many rows, made of those of another one in turn."""
    target.parent.mkdir(parents=True)
    images = np.load(source, mmap_mode="r")
    shape = (count, *images.shape[1:])
    rows = np.lib.format.open_memmap(target, "w+", images.dtype, shape)
    for start in range(0, count, len(images)):
        part = rows[start : start + len(images)]
        part[:] = images[: len(part)]
    rows.flush()


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        edits = {"IMAGE_SIZE": SIDE, "MIRROR": False, "CHECKS": False}
        file = training.draw_athletes(folder, ROWS, **edits)
        peak = alone(take_peak, PRODUCT_SIDE)
        print(f"a product of two {PRODUCT_SIDE} matrices: {peak / 1e9:.0f} GFLOP/s\n")
        rates = {name: [] for name in NETWORKS}
        flops = {}
        for _ in range(ROUNDS):
            for name, (network, _) in NETWORKS.items():
                rate, flops[name] = alone(take_rate, file, network, STEPS)
                rates[name].append(rate)
        print(
            "network                images/s: median, least to most  to article of peak"
        )
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in medians.items():
            spread = f"{min(rates[name]):.1f} to {max(rates[name]):.1f}"
            ratio = rate / medians["article"]
            share = rate * flops[name] / peak
            print(f"{name:22} {rate:8.1f} {spread:>23} {ratio:11.2f} {share:8.0%}")
        print(f"\nPCA of two components, held out: {measure_components(file):.4f}")
        print(
            "network                seconds  steps  cross-entropy  mean image  lowest"
        )
        for name, (network, lengths) in NETWORKS.items():
            for seconds in lengths:
                steps = round(seconds * medians[name] / 32)  # images a step
                found = alone(train_steps, file, network, steps)
                print(
                    f"{name:22} {seconds:7} {steps:6} {found['cross_entropy']:14.4f} "
                    f"{found['cross_entropy_mean_image']:11.4f} "
                    f"{found['cross_entropy_lowest']:7.4f}; "
                    f"{found['memory'] / 1e9:.2f} GB, PSNR {found['psnr']:.2f} dB, "
                    f"SSIM {found['ssim']:.3f}, sharpness {found['sharpness']:.3f}",
                    flush=True,
                )
        if MANY_ROWS:
            many = folder / "many"
            repeat_rows(file, many / "data/images.npy", MANY_ROWS)
            few, more = train_script(folder), train_script(many)
            print(
                f"\nanonymous memory of train_vae.py: {few / 1e9:.3f} GB on {ROWS} "
                f"rows, {more / 1e9:.3f} GB on {MANY_ROWS}, {more / few:.2f} times"
            )


if __name__ == "__main__":
    main()
