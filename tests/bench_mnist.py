"""Train two latents on MNIST with the ELBO's own weight, beside published figures.

    python tests/bench_mnist.py

Reads   MNIST_FILE: an .npz with uint8 x_train (60000, 28, 28) and x_test (10000, 28,
        28), as Keras keeps it; without such a file, what Keras downloads.
Writes  nothing but the figures. Both lengths of training take 10 minutes on two cores.

The ELBO is in nats per image, of grey pixels in 0..1 as targets of the cross-entropy,
with one sample of z for each image; the weights are those of the last epoch, as the
test images may not choose. The keras.io example reports the loss in training on all
70,000 images, averaged over its last epoch; beside it stands ours on 60,000.
"""

import statistics
import time
from pathlib import Path

import numpy as np
from conftest import load_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
MNIST_FILE = "mnist.npz"
LENGTHS = {4: (0, 1, 2), 30: (0,)}  # epochs of a training: seeds
BATCH_SIZE = 128  # as in the keras.io example
LATENT_DIM = 2
FILTERS = (32, 64, 256)  # small pictures can afford wider stages than the default
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


def train(train_vae, images, num_train, epochs, seed):
    """Train as train_vae.py does; return the test ELBO, its parts and the last loss."""
    keras = train_vae.keras
    keras.backend.clear_session()
    weight, steps = 1 / images[0].size, num_train // BATCH_SIZE
    settings = {"SEED": seed, "PRECISION": "float32", "KL_WEIGHT": weight}
    settings |= {"LEARNING_RATE": None, "OPTIMIZER": "adam"}
    sizes = (images.shape[1], 1, LATENT_DIM, FILTERS)
    strategy = train_vae.tf.distribute.get_strategy()
    _, _, vae = train_vae.build_models(sizes, settings, epochs * steps, strategy)
    training, test = train_vae.make_datasets(
        images, num_train, BATCH_SIZE, seed, 0, replicas=1
    )
    loss = vae.get_layer("loss")

    class WarmUp(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            loss.kl_weight.assign(weight * train_vae.warm_up(epoch, epochs))

    start = time.perf_counter()
    history = vae.fit(
        training,
        steps_per_epoch=steps,
        epochs=epochs,
        verbose=0,
        callbacks=[WarmUp()],
    )
    seconds = time.perf_counter() - start
    last = {name: values[-1] for name, values in history.history.items()}
    found = vae.evaluate(test, verbose=0, return_dict=True)
    return {
        "reconstruction": found["reconstruction_loss"] * images[0].size,
        "kl": found["kl_loss"],
        "elbo": -found["reconstruction_loss"] * images[0].size - found["kl_loss"],
        "training": last["reconstruction_loss"] * images[0].size + last["kl_loss"],
        "seconds": seconds,
    }


def main():
    train_vae = load_script("train_vae.py")
    images, num_train = load_images(MNIST_FILE)
    print(
        f"{num_train} images to train on, {len(images) - num_train} to test on, "
        f"{FILTERS = }, {LATENT_DIM = }, {BATCH_SIZE = }\n"
        "epochs  seed  test ELBO = -(reconstruction + KL)  training loss  seconds"
    )
    for epochs, seeds in LENGTHS.items():
        elbos = []
        for seed in seeds:
            found = train(train_vae, images, num_train, epochs, seed)
            elbos.append(found["elbo"])
            print(
                f"{epochs:6} {seed:5} {found['elbo']:10.2f} = -("
                f"{found['reconstruction']:.2f} + {found['kl']:.2f}) "
                f"{found['training']:20.2f} {found['seconds']:11.0f}",
                flush=True,
            )
        if len(elbos) > 1:
            mean, deviation = statistics.mean(elbos), statistics.stdev(elbos)
            print(f"{epochs:6}  mean {mean:10.2f} +- {deviation:.2f}")
    print(PUBLISHED)


if __name__ == "__main__":
    main()
