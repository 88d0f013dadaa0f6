"""Train a convolutional variational autoencoder on the rows of an array of images.

    python train_vae.py

Reads   INPUT_FILE: uint8 (N, H, W, C), 0..255, C = 1 or 3, H = W a multiple of 4 from
        28 up; a batch at a time, so that memory does not grow with N.
Writes  MODEL_DIR/encoder.keras: (B, H, W, C) float32 in 0..1 -> [z_mean, z_log_var],
        each (B, LATENT_DIM); decoder.keras: (B, LATENT_DIM) -> (B, H, W, C) float32 in
        0..1; history.csv: a line an epoch; summary.json: settings, the id of the
        array, versions, and how good the model is; backup.npz: to go on from.
        FIGURE_DIR/loss.png and reconstructions.png.

Stopped at any moment, it goes on after the last whole epoch when it is run again. After
Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv 1312.6114):

    z    = z_mean + exp(z_log_var / 2) * epsilon, epsilon ~ N(0, I)
    loss = reconstruction_loss + KL_WEIGHT * kl_loss

reconstruction_loss is the binary cross-entropy, averaged over H, W and C: nats per
value. kl_loss is KL(N(z_mean, exp(z_log_var)) || N(0, I)), summed over LATENT_DIM: nats
per image. Both are averaged over the batch. KL_WEIGHT * H * W * C is the beta of a
beta-VAE; at 1 the loss is the negative ELBO divided by H * W * C.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import sys
import time
import zipfile
from pathlib import Path

import matplotlib.figure
import numpy as np
import scipy.ndimage


@contextlib.contextmanager
def quiet():
    """Drop what native code writes to stderr, such as TensorFlow's start-up notes."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


with quiet():
    import keras
    import tensorflow as tf
    from keras import layers, ops

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
INPUT_FILE = "data/images.npy"
MODEL_DIR = "model"  # another folder keeps this model beside the next one
FIGURE_DIR = "figures"

# Model
LATENT_DIM = 2  # 2 can be drawn as a plane; 16 to 64 give sharper pictures
FILTERS = (32, 64, 128, 256)  # channels of the stages: more, or wider ones, are slower
KL_WEIGHT = 5e-4  # more: smoother and blurrier; 1 / (H*W*C) is the weight of the ELBO

# Training
EPOCHS = 50  # raised after the end, training goes on, at the rate of the longer plan
BATCH_SIZE = 32  # less needs less memory; the rates below were measured with 32
OPTIMIZER = "adam"  # or "rmsprop" or "sgd"
LEARNING_RATE = None  # None: the rate measured for the optimizer
VALIDATION_IMAGES = 256  # held-out rows from the end, even, at most a tenth of all
PRECISION = "float32"  # or "mixed_bfloat16": faster where the CPU or GPU has it
SEED = 0  # another seed finds another map of the same pictures
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


def open_images(path):
    """Map an array of images into memory, and read it once to identify it.

    Returns:
        uint8 (N, H, W, C), read-only, and its id: part of the SHA-256 of the file.

    Raises:
        ValueError: It is no such array, or its side does not fit the network.
        OSError: It cannot be read.
    """
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    found = f"it holds {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"{found}, expected uint8 (N, H, W, C) with C = 1 or 3")
    height, width = images.shape[1:3]
    if height != width or height < 28 or height % 4:
        raise ValueError(f"{found}, expected a side of 28 or more that 4 divides")
    if len(images) < 20:
        raise ValueError(f"{found}, expected 20 rows at the least")
    with open(path, "rb") as file:
        return images, hashlib.file_digest(file, "sha256").hexdigest()[:16]


def average_images(images):
    """Return the mean of images, uint8 (N, H, W, C), as float32 (H, W, C) in 0..1.

    Raises:
        ValueError: They are all the same.
    """
    total, differ = np.zeros(images.shape[1:]), False
    for start in range(0, len(images), 64):  # memory does not grow with N
        batch = images[start : start + 64]
        differ = differ or (batch != images[0]).any()
        total += batch.sum(axis=0, dtype=np.uint32)
    if not differ:
        raise ValueError("all its images are the same, so there is nothing to learn")
    return (total / (255 * len(images))).astype("float32")


def plan_stages(side, filters):
    """Say by which stages a side is halved, so that depth follows the side.

    It is halved as long as an even number of 14 or more is left and there are stages.
    If it could be halved once more, the first stage quarters it: 256 becomes 64, 32,
    16, 8 in four stages; 64 becomes 32, 16, 8; 28 becomes 14, 7; 36 becomes 18, 9.

    Returns:
        The channels of the stages in use, and the stride of the first one.
    """
    halvings = 0
    while side % 2 == 0 and side >= 14:
        side, halvings = side // 2, halvings + 1
    return filters[:halvings], 4 if halvings > len(filters) else 2


class Sampling(layers.Layer):
    """Draw z = z_mean + exp(z_log_var / 2) * epsilon, epsilon ~ N(0, I).

    Args:
        seed: of epsilon.

    Call arguments:
        inputs: z_mean and z_log_var, each (B, latent_dim); z has the same shape.
    """

    def __init__(self, seed, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, inputs):
        z_mean, z_log_var = inputs
        epsilon = keras.random.normal(ops.shape(z_mean), seed=self.generator)
        return z_mean + ops.exp(z_log_var / 2) * epsilon


class VAELoss(layers.Layer):
    """Add reconstruction_loss + kl_weight * kl_loss to the loss of the model.

    The cross-entropy is taken from the logits, as softplus(logit) - logit * target:
    finite for any logit, with a gradient between -1 and 1. (A relu output, as the
    article had, has a gradient of 0 below 0 and of 500 next to 1.)

    Args:
        kl_weight: of kl_loss in the sum; a variable, for its warm-up.

    Call arguments:
        inputs: images (B, H, W, C) in 0..1, logits of the same shape, z_mean and
            z_log_var, each (B, latent_dim). The logits are returned.
    """

    def __init__(self, kl_weight, **kwargs):
        super().__init__(**kwargs)
        start = keras.initializers.Constant(kl_weight)
        self.kl_weight = self.add_weight(initializer=start, trainable=False)
        self.reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss = keras.metrics.Mean(name="kl_loss")

    def call(self, inputs):
        images, logits, z_mean, z_log_var = inputs
        reconstruction_loss = ops.mean(ops.softplus(logits) - logits * images)
        kl = (ops.square(z_mean) + ops.exp(z_log_var) - 1.0 - z_log_var) / 2
        kl_loss = ops.mean(ops.sum(kl, axis=-1))
        self.add_loss(reconstruction_loss + self.kl_weight * kl_loss)
        size = ops.shape(images)[0]  # a short last batch counts for less
        self.reconstruction_loss.update_state(reconstruction_loss, sample_weight=size)
        self.kl_loss.update_state(kl_loss, sample_weight=size)
        return logits


class UpConv2D(layers.Conv2D):
    """Double the side by repeating pixels and convolve: (B, H, W, C) -> (B, 2H, 2W, D).

    A transposed convolution with the kernels summed over windows of 2x2 does both at
    once: the numbers of UpSampling2D and Conv2D for 4/9 of the multiplications (150
    images/s in training instead of 118, 256x256x3, two cores), and without the lines
    that free 4x4 kernels leave in the pictures.
    """

    def call(self, inputs):
        kernel = ops.pad(self.kernel, [(1, 1), (1, 1), (0, 0), (0, 0)])
        kernel = kernel[1:] + kernel[:-1]
        kernel = kernel[:, 1:] + kernel[:, :-1]
        kernel = ops.transpose(ops.flip(kernel, (0, 1)), (0, 1, 3, 2))
        outputs = ops.conv_transpose(inputs, kernel, strides=2, padding="same")
        return self.activation(outputs + self.bias)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, 2 * height, 2 * width, self.filters)


def build_encoder(side, channels, latent_dim, filters):
    """Build the encoder: (B, side, side, channels) -> [z_mean, z_log_var].

    z_log_var stays between -10 and 10, so that its exponential is finite, and is 0 at
    first, so that kl_loss starts small.
    """
    used, stride = plan_stages(side, filters)
    images = keras.Input((side, side, channels), name="images")
    x = layers.Conv2D(used[0], 4, stride, padding="same", activation="relu")(images)
    for wide in used[1:]:
        x = layers.Conv2D(wide, 3, 2, padding="same", activation="relu")(x)
    x = layers.Dense(filters[-1], activation="relu")(layers.Flatten()(x))
    z_mean = layers.Dense(latent_dim, dtype="float32")(x)
    x = layers.Dense(latent_dim, kernel_initializer="zeros", dtype="float32")(x)
    return keras.Model(images, [z_mean, 10 * ops.tanh(x / 10)], name="encoder")


def build_decoder(side, channels, latent_dim, filters, training):
    """Build the decoder: (B, latent_dim) -> (B, side, side, channels).

    It goes through the stages of the encoder backwards. Where the first one quarters
    the side, the last step blends between pixels, which costs little. (To make 2x2
    values at once at each position left lines: 8 times the power at their period.)

    Args:
        side, channels, latent_dim, filters: as in build_encoder.
        training: True ends in logits; False in a sigmoid, and with Keras's own layers
            only, so that it loads without this file. Both have the same weights.
    """
    used, stride = plan_stages(side, filters)
    base = side // (stride * 2 ** (len(used) - 1))
    z = x = keras.Input((latent_dim,), name="z")
    for units in (filters[-1], filters[-1], base * base * used[-1]):
        x = layers.Dense(units, activation="relu")(x)
    x = layers.Reshape((base, base, used[-1]))(x)
    kind = UpConv2D if training else layers.Conv2D
    for wide in reversed(used[:-1]):
        x = x if training else layers.UpSampling2D()(x)
        x = kind(wide, 3, padding="same", activation="relu")(x)
    x = x if training else layers.UpSampling2D()(x)
    x = kind(channels, 3, padding="same", dtype="float32")(x)
    if stride == 4:
        x = layers.UpSampling2D(interpolation="bilinear", dtype="float32")(x)
    if not training:
        x = layers.Activation("sigmoid", dtype="float32")(x)
    return keras.Model(z, x, name="decoder")


class ClusterVAE(keras.Model):
    """A functional model that gives its figures an axis, (1,) instead of ().

    Keras 3.15 joins those of several workers along their first axis, and fails without.
    """

    def train_step(self, data):
        logs = super().train_step(data)
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def test_step(self, data):
        logs = super().test_step(data)
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def build_vae(encoder, decoder, kl_weight, seed, cluster=False):
    """Chain encoder, Sampling, decoder to logits and VAELoss into a model of images."""
    images = encoder.input
    z_mean, z_log_var = encoder(images)
    logits = decoder(Sampling(seed, dtype="float32")([z_mean, z_log_var]))
    loss = VAELoss(kl_weight, dtype="float32", name="loss")
    logits = loss([images, logits, z_mean, z_log_var])
    return (ClusterVAE if cluster else keras.Model)(images, logits)


def build_optimizer(name, learning_rate, steps):
    """Build an optimizer that no single step can throw off its way.

    The rate rises for the first 5 % of the steps, then falls along a cosine to 1 %. On
    drawn athletes, 3 seeds, that ended at 0.5223 nats, and the article's plateau rule
    (factor 0.5, patience 5) at 0.5221: the same, but the cosine has no state to keep
    and no plateau to misread while the KL weight rises.
    Gradients are clipped to a global norm of 1. LossScaleOptimizer leaves out a step
    whose gradients are not finite; its scale, 1 at first, has no other effect.

    Args:
        name: "adam", "rmsprop" or "sgd".
        learning_rate: the highest, or None for the one measured for the optimizer.
        steps: of the whole training.
    """
    kind, measured, options = {
        "adam": (keras.optimizers.Adam, 3e-3, {}),
        "rmsprop": (keras.optimizers.RMSprop, 1e-3, {}),
        "sgd": (keras.optimizers.SGD, 0.1, {"momentum": 0.9}),
    }[name]
    rate, warmup = learning_rate or measured, max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / warmup, steps - warmup, 0.01, warmup_target=rate, warmup_steps=warmup
    )
    optimizer = kind(schedule, global_clipnorm=1.0, **options)
    return keras.optimizers.LossScaleOptimizer(optimizer, 1.0, 2**31 - 1)


def make_datasets(images, num_train, batch_size, seed, first_epoch, replicas):
    """Make the training and the validation set, float32 (B, H, W, C) in 0..1.

    The training set has no end. Its epoch e visits the training rows in the order that
    (seed, e) gives, so that a resumed training sees what an unbroken one would, but for
    the rows that do not fill a last batch.

    Args:
        images: uint8 (N, H, W, C), mapped from the disk.
        num_train: rows to train on; the others, from the end, are held out.
        batch_size: B, shared by the replicas.
        seed: of the order.
        first_epoch: to start with, from 0.
        replicas: devices that each get an equal part of every batch.
    """

    def shuffle(epoch):
        return np.random.default_rng([seed, epoch]).permutation(num_train)

    def order(epoch):
        rows = tf.numpy_function(shuffle, [epoch], tf.int64)
        rows = tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, [num_train]))
        return rows.batch(batch_size, drop_remainder=True)

    def read(rows):
        return images[np.sort(rows)]  # in the order of the disk; the loss has none

    def load(rows):
        batch = tf.numpy_function(read, [rows], tf.uint8)
        batch = tf.ensure_shape(batch, (None, *images.shape[1:]))
        return tf.cast(batch, tf.float32) / 255.0

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(order)
    last = len(images) - (len(images) - num_train) % replicas
    held_out = tf.data.Dataset.range(num_train, last).batch(batch_size)
    options = tf.data.Options()  # each worker of a cluster takes its part of each batch
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    return [
        rows.map(load, 2, deterministic=True).prefetch(2).with_options(options)
        for rows in (epochs, held_out)
    ]


def choose_strategy():
    """Choose how to use what there is: many machines, several GPUs, or one device.

    Returns:
        The strategy, and the number of this worker in the cluster that TF_CONFIG names,
        0 without one.
    """
    with quiet():  # TensorFlow reports each kind of device that it lacks
        if "TF_CONFIG" in os.environ:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
            return strategy, strategy.cluster_resolver.task_id
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        several = len(tf.config.list_logical_devices("GPU")) > 1
        mirrored = tf.distribute.MirroredStrategy
        return mirrored() if several else tf.distribute.get_strategy(), 0


class Recorder(keras.callbacks.Callback):
    """Warm the KL weight up, keep figures and the best weights, and write a backup.

    In the first half of the epochs the weight of kl_loss rises evenly: with the whole
    weight from the start, 2 of 5 seeds put all they learned of drawn athletes into one
    latent, with the warm-up 0 of 5. Losses are recorded with the whole weight.

    The backup, a file that is replaced after each epoch, holds all that the training
    needs to go on as if it had not been stopped: the weights, the state of the
    optimizer and of the random numbers, the best weights and the history.

    Args:
        folder: for history.csv and the backup.
        settings: of the training, and the id of its array, as JSON has them.
        epochs: of the whole training.
        worker: number of this worker; each has a backup, and 0 writes the history.
    """

    def __init__(self, folder, settings, epochs, worker=0):
        super().__init__()
        self.kl_weight, self.epochs = settings["KL_WEIGHT"], epochs
        self.history_file = folder / "history.csv" if worker == 0 else None
        self.backup_file = folder / f"backup{worker or ''}.npz"
        self.settings, self.history, self.best = settings, [], []
        self.skipped = self.skipped_in_a_row = 0

    def restore(self, model):
        """Take up where the backup stopped; return what keeps it from that, or None."""
        self.set_model(model)
        if not self.backup_file.exists():
            return None
        try:
            with np.load(self.backup_file, allow_pickle=False) as backup:
                arrays = {name: backup[name] for name in backup}
            record = json.loads(str(arrays["record"]))
            for name, value in self.settings.items():
                if record["settings"].get(name) != value:
                    return (
                        f"{name} was {record['settings'].get(name)}, now it is {value}"
                    )
            state = [arrays[f"state_{n}"] for n in range(len(self.variables()))]
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            return f"it cannot be read ({error})"
        for variable, value in zip(self.variables(), state, strict=True):
            variable.assign(value)
        names = (f"best_{n}" for n in range(len(model.weights)))
        self.best = [arrays[name] for name in names if name in arrays]
        self.history = record["history"]
        return None

    def variables(self):
        return [*self.model.variables, *self.model.optimizer.variables]

    def count_steps(self):
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def on_epoch_begin(self, epoch, logs=None):
        share = min(1.0, (epoch + 0.5) / (0.5 * self.epochs))
        self.model.get_layer("loss").kl_weight.assign(share * self.kl_weight)
        self.start, self.steps = time.perf_counter(), self.count_steps()

    def on_train_batch_end(self, batch, logs=None):
        before, self.steps = self.steps, self.count_steps()
        self.skipped += self.steps == before
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if self.steps == before else 0
        if self.skipped_in_a_row == 10:
            raise FloatingPointError("ten steps in a row had no finite gradients")

    def on_epoch_end(self, epoch, logs=None):
        rate = self.model.optimizer.inner_optimizer.learning_rate
        row = {"epoch": epoch + 1, **{name: float(x) for name, x in logs.items()}}
        for name in ("", "val_"):
            kl_loss = self.kl_weight * row[f"{name}kl_loss"]
            row[f"{name}loss"] = row[f"{name}reconstruction_loss"] + kl_loss
        row["learning_rate"] = float(ops.convert_to_numpy(rate))
        row["seconds"] = round(time.perf_counter() - self.start, 3)
        lowest = min((line["val_loss"] for line in self.history), default=math.inf)
        if row["val_loss"] < lowest:
            self.best = self.model.get_weights()
        self.history.append(row)
        record = {"settings": self.settings, "history": self.history}
        state = (ops.convert_to_numpy(variable) for variable in self.variables())
        arrays = {f"state_{n}": array for n, array in enumerate(state)}
        arrays |= {f"best_{n}": array for n, array in enumerate(self.best)}
        if self.history_file:
            with replacing(self.history_file) as path:
                with open(path, "w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                    writer.writerows(self.history)
        with replacing(self.backup_file) as path:  # last: what it holds is on the disk
            np.savez(path, record=json.dumps(record), **arrays)


def measure(encoder, decoder, batches, mean_image):
    """Measure on held-out images what encoder and decoder keep of them.

    Args:
        encoder, decoder: the models as they are saved.
        batches: dataset of float32 (B, H, W, C) in 0..1.
        mean_image: float32 (H, W, C) in 0..1, the reconstruction that knows nothing.

    Returns:
        A dict of figures, those of the decoded images at z = z_mean: cross-entropies in
        nats per value, the lowest being that of the images themselves; PSNR in dB; KL
        in nats per image; the variance of the Laplacian, decoded over real; the share
        of codes within the square of the latent grid, in the two latents of most KL.
    """

    def cross_entropy(images, decoded):
        return ops.mean(keras.losses.binary_crossentropy(images, decoded), axis=(1, 2))

    def edges(images):
        grey = np.mean(images, axis=3)
        return [scipy.ndimage.laplace(x, mode="nearest").var() for x in grey]

    rows = []
    for images in batches:
        z_mean, z_log_var = encoder(images)
        decoded = decoder(z_mean)
        row = {
            "cross_entropy": cross_entropy(images, decoded),
            "cross_entropy_mean_image": cross_entropy(images, 0 * images + mean_image),
            "cross_entropy_lowest": cross_entropy(images, images),
            "psnr": tf.image.psnr(images, decoded, 1.0),
            "ssim": tf.image.ssim(images, decoded, 1.0, filter_size=7),
            "sharpness": edges(decoded),
            "real": edges(images),
            "z_mean": z_mean,
            "kl": (ops.square(z_mean) + ops.exp(z_log_var) - 1 - z_log_var) / 2,
        }
        rows.append({name: np.asarray(value) for name, value in row.items()})
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    z_mean, kl = columns.pop("z_mean"), columns.pop("kl").mean(axis=0)
    figures = {name: float(column.mean()) for name, column in columns.items()}
    figures["sharpness"] /= figures.pop("real")
    figures["kl"] = float(kl.sum())
    figures["kl_per_latent"] = [round(value, 4) for value in kl.tolist()]
    figures["active_latents"] = int((z_mean.var(axis=0) > 0.01).sum())
    inside = np.abs(z_mean[:, np.argsort(-kl)[:2]]) < 1.645  # 5 % to 95 % of a normal
    figures["share_in_grid"] = float(inside.all(axis=1).mean())
    return figures


def plot_loss(path, history):
    """Draw both terms of the loss over the epochs, in training and held out."""
    figure = matplotlib.figure.Figure((10, 4), dpi=100, layout="constrained")
    units = {"reconstruction_loss": "nats per value", "kl_loss": "nats per image"}
    epochs = [row["epoch"] for row in history]
    for axes, (name, unit) in zip(figure.subplots(1, 2), units.items(), strict=True):
        axes.plot(epochs, [row[name] for row in history], ".-", label="training")
        held_out = [row[f"val_{name}"] for row in history]
        axes.plot(epochs, held_out, ".-", label="held out")
        axes.set(title=name, xlabel="epoch", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def plot_reconstructions(path, images, decoded):
    """Draw images above what became of them, both float32 (B, H, W, C) in 0..1."""
    canvas = np.vstack([np.hstack(list(images)), np.hstack(list(decoded))])
    scale = max(1, round(128 / images.shape[1]))  # small images are drawn larger
    height, width = np.array(canvas.shape[:2]) * scale
    figure = matplotlib.figure.Figure((width / 100, (height + 40) / 100), dpi=100)
    caption = "above: held-out training images, check rights before publishing"
    figure.text(0.5, 12 / (height + 40), caption, ha="center")
    axes = figure.add_axes((0, 40 / (height + 40), 1, height / (height + 40)))
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def save_models(folder, encoder, decoder):
    """Save both models under a common id, made of their weights, which is returned."""
    weights = [*encoder.get_weights(), *decoder.get_weights()]
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in weights))
    model_id = digest.hexdigest()[:8]
    encoder.name, decoder.name = f"encoder_{model_id}", f"decoder_{model_id}"
    with (
        replacing(folder / "encoder.keras") as encoder_file,
        replacing(folder / "decoder.keras") as decoder_file,
    ):
        encoder.save(encoder_file)
        decoder.save(decoder_file)
    return model_id


def finish(folder, figure_dir, recorder, encoder, decoder, held_out, mean_image):
    """Measure the model, write what a training leaves behind, and say how good it is.

    Args:
        folder, figure_dir: where files go, as Paths.
        recorder: of the training.
        encoder, decoder: as they are saved, with the weights of the best epoch.
        held_out: dataset of float32 (B, H, W, C) in 0..1.
        mean_image: of the training rows, float32 (H, W, C) in 0..1.
    """
    history, values = recorder.history, mean_image.size
    best = min(history, key=lambda row: row["val_loss"])
    elbo = -values * best["val_reconstruction_loss"] - best["val_kl_loss"]
    figures = {
        "epoch": best["epoch"],
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
        "skipped_steps": recorder.skipped,
        "beta": recorder.settings["KL_WEIGHT"] * values,
        "elbo": elbo,
        "bits_per_value": -elbo / values / math.log(2),
        **measure(encoder, decoder, held_out, mean_image),
    }
    first = next(iter(held_out))[:20:2].numpy()  # every other row may be a mirror
    decoded = np.asarray(decoder(encoder(first)[0]))
    plot_loss(figure_dir / "loss.png", history)
    plot_reconstructions(figure_dir / "reconstructions.png", first, decoded)
    summary = {
        "model_id": save_models(folder, encoder, decoder),
        "settings": recorder.settings,
        "figures": figures,
        "versions": {module.__name__: module.__version__ for module in (np, keras, tf)},
        "python": platform.python_version(),
    }
    with replacing(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    print(
        "Held-out images, in nats per value, nats per image (kl, elbo) and dB (psnr):"
    )
    for name, value in figures.items():
        print(f"{name + ':':26}{value if type(value) is list else f'{value:.6g}'}")
    inside = figures["share_in_grid"]
    if not 0.6 < inside < 0.97:
        verb = "Raise" if inside < 0.6 else "Lower"
        print(
            f"{verb} KL_WEIGHT to bring share_in_grid nearer to 0.81, a normal's share"
        )


def train(images, mean_image, settings, epochs, folder, figure_dir):
    """Train from where the backup stopped, if there is one, to the end.

    Args:
        images: uint8 (N, H, W, C), mapped from the disk.
        mean_image: of the rows to train on, float32 (H, W, C) in 0..1.
        settings: {name: value} of all that a model depends on, but for epochs.
        epochs: of the whole training.
        folder, figure_dir: where files go, as Paths.

    Raises:
        FloatingPointError: The loss or the gradients do not stay finite.
        ValueError: The workers of a cluster stopped after different epochs.
        OSError: A file cannot be written.
    """
    strategy, worker = choose_strategy()
    replicas = strategy.num_replicas_in_sync
    num_train = settings["num_train"]
    batch_size = min(settings["BATCH_SIZE"], num_train // replicas) * replicas
    steps = num_train // batch_size
    keras.utils.set_random_seed(settings["SEED"])
    keras.config.set_dtype_policy(settings["PRECISION"])
    sizes = (*images.shape[2:], settings["LATENT_DIM"], settings["FILTERS"])
    with strategy.scope():
        encoder, decoder = build_encoder(*sizes), build_decoder(*sizes, training=True)
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        vae = build_vae(
            encoder, decoder, settings["KL_WEIGHT"], settings["SEED"], several
        )
        names = (settings["OPTIMIZER"], settings["LEARNING_RATE"])
        vae.compile(build_optimizer(*names, steps * epochs))
        vae.optimizer.build(vae.trainable_variables)
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    print(
        f"Training on {num_train} rows {images.shape[1:]}, {len(images) - num_train} "
        f"held out: {vae.count_params():,} parameters, {steps} steps of {batch_size} "
        f"images an epoch on {replicas} x {device}"
    )
    recorder = Recorder(folder, settings, epochs, worker)
    problem = recorder.restore(vae)
    done = len(recorder.history)
    if problem:
        print(f"Starting afresh, not from {recorder.backup_file}: {problem}")
    elif done:
        left = "going on" if done < epochs else "nothing is left; raise EPOCHS to go on"
        print(f"{done} of {epochs} epochs are done: {left}")
    training, held_out = make_datasets(
        images, num_train, batch_size, settings["SEED"], done, replicas
    )
    if done < epochs:
        vae.fit(
            training,
            shuffle=False,
            steps_per_epoch=steps,
            initial_epoch=done,
            epochs=epochs,
            validation_data=held_out,
            callbacks=[recorder],
            verbose=1 if sys.stdout.isatty() else 2,
        )
    if not recorder.best:
        raise FloatingPointError("the held-out loss was never finite")
    vae.set_weights(recorder.best)
    if worker == 0:
        stock = build_decoder(*sizes, training=False)
        stock.set_weights(decoder.get_weights())
        finish(folder, figure_dir, recorder, encoder, stock, held_out, mean_image)


def check(good, text):
    """End the script with a message where a setting is not what it has to be."""
    if not good:
        sys.exit(f"{text}. Edit it at the top of train_vae.py.")


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be printed
    numbers = (LATENT_DIM, EPOCHS, BATCH_SIZE, VALIDATION_IMAGES, SEED)
    names = "LATENT_DIM, EPOCHS, BATCH_SIZE, VALIDATION_IMAGES, SEED"
    whole = all(type(number) is int for number in numbers)
    check(whole, f"{names} = {numbers}: expected whole numbers")
    numbers = (int, float)
    check(LATENT_DIM in range(2, 1025), f"{LATENT_DIM = }: expected 2 to 1024")
    check(FILTERS and type(FILTERS) is tuple, f"{FILTERS = }: expected a tuple")
    wide = all(type(n) is int and 0 < n < 4097 for n in FILTERS)
    check(wide, f"{FILTERS = }: expected channels, such as (32, 64, 128, 256)")
    weight = type(KL_WEIGHT) in numbers and KL_WEIGHT >= 0
    check(weight, f"{KL_WEIGHT = }: expected a number from 0 up")
    check(EPOCHS in range(1, 10**6), f"{EPOCHS = }: expected 1 or more")
    check(BATCH_SIZE in range(1, 10**5), f"{BATCH_SIZE = }: expected 1 or more")
    names = ("adam", "rmsprop", "sgd")
    check(OPTIMIZER in names, f"{OPTIMIZER = }: expected one of {names}")
    rate = LEARNING_RATE is None or type(LEARNING_RATE) in numbers and LEARNING_RATE > 0
    check(rate, f"{LEARNING_RATE = }: expected None or a number above 0")
    even = VALIDATION_IMAGES in range(2, 10**9, 2)
    check(even, f"{VALIDATION_IMAGES = }: expected an even number from 2 up")
    names = ("float32", "mixed_bfloat16")
    check(PRECISION in names, f"{PRECISION = }: expected one of {names}")
    check(SEED in range(2**32), f"{SEED = }: expected a whole number from 0 up")

    path, folder, figure_dir = Path(INPUT_FILE), Path(MODEL_DIR), Path(FIGURE_DIR)
    try:
        images, images_id = open_images(path)
        num_train = len(images) - min(VALIDATION_IMAGES, len(images) // 20 * 2)
        mean_image = average_images(images[:num_train])
    except FileNotFoundError:
        sys.exit(f"Found no {path.resolve()} (INPUT_FILE). Run preprocess.py first.")
    except (ValueError, OSError) as error:
        remedy = "Run preprocess.py again."
        sys.exit(f"Cannot use {path.resolve()} (INPUT_FILE): {error}. {remedy}")
    settings = {
        "images_id": images_id,
        "num_train": num_train,
        "LATENT_DIM": LATENT_DIM,
        "FILTERS": list(FILTERS),
        "KL_WEIGHT": KL_WEIGHT,
        "BATCH_SIZE": BATCH_SIZE,
        "OPTIMIZER": OPTIMIZER,
        "LEARNING_RATE": LEARNING_RATE,
        "VALIDATION_IMAGES": VALIDATION_IMAGES,
        "PRECISION": PRECISION,
        "SEED": SEED,
    }
    if num_train < BATCH_SIZE:
        print(
            f"Only {num_train} rows to train on: a batch is as large, not {BATCH_SIZE}"
        )
    try:
        train(images, mean_image, settings, EPOCHS, folder, figure_dir)
    except FloatingPointError as error:
        remedy = "Lower LEARNING_RATE; earlier models are as they were."
        sys.exit(f"Stopped: {error}. {remedy}")
    except OSError as error:
        name = error.filename or folder.resolve()
        sys.exit(f"Cannot write {name}: {error.strerror}. Mend it and run again.")
    print(f"Wrote {figure_dir / 'loss.png'} and {figure_dir / 'reconstructions.png'}")
    print(f"Wrote {folder / 'encoder.keras'} and {folder / 'decoder.keras'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped: whole epochs are kept, run again to go on.", file=sys.stderr)
        sys.exit(130)
