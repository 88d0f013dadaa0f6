"""Train two latents on MNIST with the ELBO's own weight, beside published figures.

    python tests/bench_mnist.py

Reads   MNIST_FILE: an .npz with uint8 x_train (60000, 28, 28) and x_test (10000, 28,
        28), as Keras keeps it; without such a file, what Keras downloads.
Writes  nothing but the figures. Both lengths of training take 10 minutes on two cores.

The ELBO is in nats per image, of grey pixels in 0..1 as targets of the cross-entropy,
averaged over 16 samples of z for each image. The best epoch is kept; the last
HELD_OUT of the 60,000 choose it, and the test images are looked at once, at the end.
The keras.io example reports the loss in training on all 70,000 images, averaged over
its last epoch; beside it stands ours, on those that are not held out.
"""

import statistics
import time
from pathlib import Path

import numpy as np
import training
from conftest import load_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
MNIST_FILE = "mnist.npz"
LENGTHS = {4: (0, 1, 2), 30: (0,)}  # epochs of a training: seeds
HELD_OUT = 2000  # of the images to train on: they choose the epoch
BATCH_SIZE = 128  # as in the keras.io example
LATENT_DIM = 2
FILTERS = (32, 64, 256)  # small pictures can afford wider stages than the default
NETWORKS = {  # ACTIVATION and LEARNING_RATE
    "as shipped": ("leaky_relu", 3e-3),
    "silu": ("silu", 6e-3),
}
# ----------------------------------------------------------------------------

PUBLISHED = """
published, two latents:
  keras.io vae.py            30 epochs   training loss 146.95 = 140.15 + 6.80 (70,000)
  keras.io vae.py             4 epochs   training loss 183.0 (run by us once, 2026-11)
  tensorflow.org CVAE        10 epochs   test ELBO about -156 (pixels cut at 0.5)
"""


def load_images(file):
    """Return the 60,000 images to train on and then the 10,000 to test on, uint8."""
    if Path(file).exists():
        with np.load(file) as archive:
            arrays = archive["x_train"], archive["x_test"]
    else:
        import keras

        arrays = [x for x, _ in keras.datasets.mnist.load_data()]
    return np.concatenate(arrays)[..., None], len(arrays[0])


def train(images, num_images, epochs, seed, activation, learning_rate):
    """Train as train_vae.py does; return the test ELBO, its parts and the last loss."""
    values = images[0].size
    train_vae = training.load_train_vae(
        SEED=seed,
        EPOCHS=epochs,
        BATCH_SIZE=BATCH_SIZE,
        LATENT_DIM=LATENT_DIM,
        FILTERS=FILTERS,
        KL_WEIGHT=1 / values,
        ACTIVATION=activation,
        LEARNING_RATE=learning_rate,
    )
    num_train = num_images - HELD_OUT
    steps = num_train // BATCH_SIZE
    mean_image = training.find_mean(images[:num_train])
    sizes, encoder, decoder, vae = training.build(train_vae, images, mean_image)
    datasets = train_vae.make_datasets(
        images[:num_images], num_train, BATCH_SIZE, seed, 0, 1
    )
    start = time.perf_counter()
    history, best = training.fit(train_vae, vae, datasets, steps)
    seconds = time.perf_counter() - start
    vae.set_weights(best)
    stock = train_vae.build_stock_decoder(decoder, *sizes)
    _, test = train_vae.make_datasets(images, num_images, BATCH_SIZE, seed, 0, 1)
    figures = train_vae.measure(encoder, stock, test, mean_image, seed)
    lowest = min(history, key=lambda row: row["val_loss"])
    last = history[-1]
    return {
        "elbo": figures["elbo"],
        "reconstruction": -figures["elbo"] - figures["kl"],
        "kl": figures["kl"],
        "training": last["reconstruction_loss"] * values + last["kl_loss"],
        "epoch": lowest["epoch"],
        "seconds": seconds,
    }


def main():
    load_script("train_vae.py")  # TensorFlow's notes are hidden by it
    images, num_images = load_images(MNIST_FILE)
    print(
        f"{num_images - HELD_OUT} images to train on, {HELD_OUT} to choose the epoch, "
        f"{len(images) - num_images} to test on, {FILTERS = }, {LATENT_DIM = }, "
        f"{BATCH_SIZE = }\n"
        "network     epochs  seed  test ELBO = -(reconstruction + KL)  best epoch  "
        "training loss  seconds"
    )
    for name, (activation, learning_rate) in NETWORKS.items():
        for epochs, seeds in LENGTHS.items():
            elbos = []
            for seed in seeds:
                found = train(
                    images, num_images, epochs, seed, activation, learning_rate
                )
                elbos.append(found["elbo"])
                print(
                    f"{name:11} {epochs:6} {seed:5} {found['elbo']:10.2f} = -("
                    f"{found['reconstruction']:.2f} + {found['kl']:.2f}) "
                    f"{found['epoch']:17} {found['training']:14.2f} "
                    f"{found['seconds']:8.0f}",
                    flush=True,
                )
            if len(elbos) > 1:
                mean = statistics.mean(elbos)
                deviation = statistics.stdev(elbos)
                print(f"{name:11} {epochs:6}  mean {mean:10.2f} +- {deviation:.2f}")
    print(PUBLISHED)


if __name__ == "__main__":
    main()
