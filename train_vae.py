"""Train a convolutional variational autoencoder on the rows of an array of images.

    python train_vae.py

Reads   INPUT_FILE: uint8 (N, H, W, C), 0..255, C = 1 or 3, H = W a multiple of 4 from
        28 up; a batch at a time, so that memory does not grow with N.
Writes  MODEL_DIR/encoder.keras: (B, H, W, C) float32 in 0..1 -> [z_mean, z_log_var],
        each (B, LATENT_DIM); decoder.keras: (B, LATENT_DIM) -> (B, H, W, C) float32 in
        0..1; history.csv: a line an epoch; summary.json: settings, the id of the
        array, versions, and how good the model is; backup.npz: to go on from.
        FIGURE_DIR/loss.png and reconstructions.png, every five epochs and at the end.

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
LATENT_DIM = 2  # 2 can be drawn as a plane; 16 to 64 need a lower KL_WEIGHT to gain
FILTERS = (16, 32, 64, 128)  # channels of the stages: wider ones, or more, are slower
KL_WEIGHT = 5e-4  # more: smoother and blurrier; 1 / (H*W*C) is the weight of the ELBO

# Training
EPOCHS = 50  # raised after the end, training goes on, at the rate of the longer plan
BATCH_SIZE = 32  # images a step on each device; fewer need less memory
OPTIMIZER = "adam"  # or "rmsprop" or "sgd"
LEARNING_RATE = None  # None: 3e-3 for adam, 3e-3 for rmsprop, 0.3 for sgd
VALIDATION_IMAGES = 256  # held-out rows from the end, even, at most a tenth of all
PRECISION = "float32"  # or "mixed_bfloat16": faster where the CPU or GPU has it
SEED = 0  # another seed finds another map of the same pictures
# ----------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its place on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".[0-9]*-{path.name}"):
        if leftover.stat().st_mtime < time.time() - 600:  # of a run that was killed
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_images(path):
    """Map an array into memory; return it, and a part of the SHA-256 of its file.

    Raises:
        ValueError: It is not uint8 (N, H, W, C), or does not fit the network.
        OSError: It cannot be read.
    """
    images = np.lib.format.open_memmap(path, mode="r")
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
    """Return the channels of the stages that a side needs, and the stride of the first.

    Each halves the side as long as that is even and 14 or more. If it could be halved
    more often than there are stages, the first quarters it: 256 becomes 64, 32, 16, 8
    in four stages; 64 becomes 32, 16, 8; 28 becomes 14, 7; 36 becomes 18, 9.
    """
    halvings = 0
    while side % 2 == 0 and side >= 14:
        side, halvings = side // 2, halvings + 1
    return filters[:halvings], 4 if halvings > len(filters) else 2


class Sampling(layers.Layer):
    """Draw z = z_mean + exp(z_log_var / 2) * epsilon, epsilon ~ N(0, I) from a seed.

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
    article had, has a gradient of 0 below 0 and of 500 next to 1.) kl_weight becomes a
    variable, for its warm-up.

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
    once: the numbers of UpSampling2D and Conv2D for 4/9 of the multiplications (266
    images/s in training instead of 203, 256 pixels, two cores), and without the lines
    that free 4x4 kernels leave in the pictures.
    """

    def call(self, inputs):
        # Row a of the 4x4 kernel is the sum of the rows of the 3x3 one that fall on the
        # same repeated pixel; likewise the columns. (As a product, since the gradients
        # of slices of a kernel took 7 % of a step.)
        ties = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], "float32")
        ties = ops.cast(np.kron(ties, ties), self.compute_dtype)
        channels = self.kernel.shape[2:]
        kernel = ops.matmul(ties, ops.reshape(self.kernel, (9, -1)))
        kernel = ops.transpose(ops.reshape(kernel, (4, 4, *channels)), (0, 1, 3, 2))
        outputs = ops.conv_transpose(inputs, kernel, strides=2, padding="same")
        return self.activation(outputs + self.bias)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, 2 * height, 2 * width, self.filters)


def build_encoder(side, channels, latent_dim, filters):
    """Build the encoder: (B, side, side, channels) -> [z_mean, z_log_var].

    z_log_var stays between -10 and 10, so that its exponential is finite, and is 0 at
    first, so that kl_loss starts small. Leaky units do not die: with plain ones adam at
    5e-3 left the latents unused (kl_loss 0.00 after 300 steps, drawn athletes at 64
    pixels), with leaky ones at 6e-3 it was 3.1 nats.
    """
    used, stride = plan_stages(side, filters)
    options = {"padding": "same", "activation": "leaky_relu"}
    images = keras.Input((side, side, channels), name="images")
    x = layers.Conv2D(used[0], 4, stride, **options)(images)
    for wide in used[1:]:
        x = layers.Conv2D(wide, 3, 2, **options)(x)
    x = layers.Dense(filters[-1], activation="leaky_relu")(layers.Flatten()(x))
    z_mean = layers.Dense(latent_dim, dtype="float32")(x)
    x = layers.Dense(latent_dim, kernel_initializer="zeros", dtype="float32")(x)
    return keras.Model(images, [z_mean, 10 * ops.tanh(x / 10)], name="encoder")


def build_decoder(side, channels, latent_dim, filters, training):
    """Build the decoder: (B, latent_dim) -> (B, side, side, channels).

    It goes through the encoder's stages backwards. Where the first one quarters
    the side, the last step blends between pixels, which costs little. (To make 2x2
    values at once at each position left lines: 8 times the power at their period.)

    With training = True it ends in logits; with False in a sigmoid, and has Keras's own
    layers only, so that it loads without this file. Both have the same weights.
    """
    used, stride = plan_stages(side, filters)
    base = side // (stride * 2 ** (len(used) - 1))
    z = x = keras.Input((latent_dim,), name="z")
    for units in (filters[-1], filters[-1], base * base * used[-1]):
        x = layers.Dense(units, activation="leaky_relu")(x)
    x = layers.Reshape((base, base, used[-1]))(x)
    kind = UpConv2D if training else layers.Conv2D
    for wide in reversed(used[:-1]):
        x = x if training else layers.UpSampling2D()(x)
        x = kind(wide, 3, padding="same", activation="leaky_relu")(x)
    x = x if training else layers.UpSampling2D()(x)
    x = kind(channels, 3, padding="same", dtype="float32")(x)
    if stride == 4:
        x = layers.UpSampling2D(interpolation="bilinear", dtype="float32")(x)
    if not training:
        x = layers.Activation("sigmoid", dtype="float32")(x)
    return keras.Model(z, x, name="decoder")


class ClusterVAE(keras.Model):
    """A model that gives its figures the axis along which Keras joins the workers'."""

    def compute_metrics(self, *args, **kwargs):
        logs = super().compute_metrics(*args, **kwargs)
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def build_vae(encoder, decoder, kl_weight, seed, cluster=False):
    """Chain encoder, Sampling, decoder to logits and VAELoss into a model of images."""
    images = encoder.input
    z_mean, z_log_var = encoder(images)
    logits = decoder(Sampling(seed, dtype="float32")([z_mean, z_log_var]))
    loss = VAELoss(kl_weight, dtype="float32", name="loss")
    logits = loss([images, logits, z_mean, z_log_var])
    return (ClusterVAE if cluster else keras.Model)(images, logits)


def build_optimizer(name, learning_rate, steps, replicas=1):
    """Build an optimizer that no single step can throw off its way.

    The rate is reached after 5 % of the steps and falls along a cosine to 1 % of it,
    which has no state to resume, and no plateau to misread while the KL weight rises.
    The gradients of each of the replicas (devices) are clipped to its share of a global
    norm of 1. The rates were measured with tests/bench_stability.py: rmsprop and sgd
    are slow (after 300 steps no better than the mean image on drawn athletes at 64
    pixels), but sgd at 2 lost one seed of 20 on digits.
    """
    kind, measured, options = {
        "adam": (keras.optimizers.Adam, 3e-3, {}),
        "rmsprop": (keras.optimizers.RMSprop, 3e-3, {}),
        "sgd": (keras.optimizers.SGD, 0.3, {"momentum": 0.9}),
    }[name]
    rate, warmup = learning_rate or measured, max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / warmup,
        max(1, steps - warmup),
        0.01,
        warmup_target=rate,
        warmup_steps=warmup,
    )
    return kind(schedule, global_clipnorm=1 / replicas, **options)


def make_datasets(images, num_train, batch_size, seed, first_epoch, replicas):
    """Make the training and the validation set, float32 (B, H, W, C) in 0..1.

    The training set has no end. Its epoch e, from first_epoch on, visits the first
    num_train rows, but for those that do not fill a last batch, in the order that
    (seed, e) gives, so that a resumed training sees what an unbroken one would. The
    other rows of images, uint8 (N, H, W, C), are held out. Each of the replicas
    (devices) gets an equal part of every batch.
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
    # Nothing is left to tune, and the end of a dataset waited for the tuner's next
    # turn, ever further apart: 1.4 s of steps took 2.5 s, 2.9 s took 5.1 s.
    options.autotune.enabled = False
    return [
        rows.map(load, 2, deterministic=True).prefetch(2).with_options(options)
        for rows in (epochs, held_out)
    ]


def choose_strategy():
    """Choose how to use what there is: many machines, several GPUs, or one device.

    Returns:
        The strategy, and the number of this worker in the cluster that TF_CONFIG names:
        0 writes the model and speaks for all.
    """
    with quiet():  # TensorFlow reports each kind of device that it lacks
        if "TF_CONFIG" in os.environ:
            try:
                strategy = tf.distribute.MultiWorkerMirroredStrategy()
            except ValueError as error:
                sys.exit(f"Cannot use TF_CONFIG = {os.environ['TF_CONFIG']}: {error}")
            cluster = strategy.cluster_resolver
            after_chief = (
                cluster.task_type == "worker" and "chief" in cluster.cluster_spec().jobs
            )
            return strategy, (cluster.task_id or 0) + after_chief
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        mirrored = tf.distribute.MirroredStrategy
        return mirrored() if len(gpus) > 1 else tf.distribute.get_strategy(), 0


def same_everywhere(strategy, state):
    """Tell whether all workers of a cluster are in the same state, a JSON value."""
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    number = int(digest[:6], 16)
    powers = tf.constant([1, number, number**2], tf.int64)
    numbers = strategy.run(tf.function(lambda: powers))
    count, total, squares = strategy.reduce("SUM", numbers, axis=None).numpy().tolist()
    return count * squares == total**2  # the variance is 0


def warm_up(epoch, epochs):
    """Return the share of the KL weight in an epoch, counted from 0: it rises to 1.

    It rises evenly over the first half: with the whole weight from the start, 2 of 5
    seeds put all they learned of drawn athletes into one latent, so with 0 of 5.
    """
    return min(1.0, (epoch + 0.5) / (0.5 * epochs))


class Recorder(keras.callbacks.Callback):
    """Warm the KL weight up, keep figures and the best weights, and write a backup.

    Losses are recorded with the whole KL weight.

    The backup, a file that is replaced after each epoch, holds all that is needed to go
    on as if nothing had happened: the weights, the state of the optimizer and of the
    random numbers, the best weights and the history. Each worker has its own.
    """

    def __init__(self, folder, settings, epochs, worker=0):
        super().__init__()
        self.settings, self.epochs, self.worker = settings, epochs, worker
        self.history_file = folder / "history.csv"
        self.backup_file = folder / f"backup{worker or ''}.npz"
        self.history, self.best, self.restored = [], [], 0

    def restore(self, model):
        """Take up where the backup stopped; return a text that says so, or why not."""
        self.set_model(model)
        variables = self.variables()
        try:
            with np.load(self.backup_file, allow_pickle=False) as backup:
                arrays = dict(backup)
            record = json.loads(str(arrays["record"]))
            for name, new in self.settings.items():
                if new != (old := record["settings"].get(name)):
                    raise ValueError(f"{name} was {old}, now it is {new}")
            state = [arrays[f"state_{n}"] for n in range(len(variables))]
            best = [arrays[f"best_{n}"] for n in range(len(model.weights))]
            if [x.shape for x in state] != [tuple(x.shape) for x in variables]:
                raise ValueError("it is of another network")
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            return f"Starting afresh, not from {self.backup_file}: {error}\n"
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        self.best, self.history = best, record["history"]
        self.restored = len(self.history)
        left = "going on" if self.restored < self.epochs else "raise EPOCHS to go on"
        return f"{self.restored} of {self.epochs} epochs are done: {left}\n"

    def variables(self):
        return [*self.model.variables, *self.model.optimizer.variables]

    def on_epoch_begin(self, epoch, logs=None):
        if self.worker == 0 and len(self.history) == self.restored + 1:
            left = self.epochs - epoch
            minutes = left * self.history[-1]["seconds"] / 60
            print(f"{left} epochs are left, some {minutes:.1f} minutes")
        kl_weight = warm_up(epoch, self.epochs) * self.settings["KL_WEIGHT"]
        self.model.get_layer("loss").kl_weight.assign(kl_weight)
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if not (math.isfinite(loss) and logs["reconstruction_loss"] < 10):
            raise FloatingPointError(f"the loss has risen to {loss:.4g}")

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, **{name: float(x) for name, x in logs.items()}}
        for name in ("", "val_"):
            kl_loss = self.settings["KL_WEIGHT"] * row[f"{name}kl_loss"]
            row[f"{name}loss"] = row[f"{name}reconstruction_loss"] + kl_loss
        rate = self.model.optimizer.learning_rate
        row["learning_rate"] = float(ops.convert_to_numpy(rate))
        row["seconds"] = round(time.perf_counter() - self.start, 3)
        if not math.isfinite(row["val_loss"]):
            raise FloatingPointError("the loss of the held-out images is not finite")
        if all(row["val_loss"] < other["val_loss"] for other in self.history):
            self.best = self.model.get_weights()
        history = [*self.history, row]
        record = {"settings": self.settings, "history": history}
        state = (ops.convert_to_numpy(variable) for variable in self.variables())
        arrays = {f"state_{n}": array for n, array in enumerate(state)}
        arrays |= {f"best_{n}": array for n, array in enumerate(self.best)}
        if self.worker == 0:
            lines = [history[0].keys(), *(row.values() for row in history)]
            text = "".join(",".join(map(str, line)) + "\n" for line in lines)
            with replacing(self.history_file) as path:
                path.write_text(text, encoding="utf-8", newline="\n")
        with replacing(self.backup_file) as path:
            np.savez(path, record=json.dumps(record), **arrays)
        self.history = history  # only now is it kept


def measure(encoder, decoder, batches, mean_image):
    """Measure what the saved models keep of held-out images, at z = z_mean.

    Args:
        encoder, decoder: the models as they are saved.
        batches: dataset of float32 (B, H, W, C) in 0..1.
        mean_image: float32 (H, W, C) in 0..1, the reconstruction that knows nothing.

    Returns:
        A dict of figures: cross-entropies in nats per value, the lowest being that of
        the images themselves; PSNR in dB; KL in nats per image; sharpness, the variance
        of the Laplacian, decoded over real; the share of codes within the square of the
        latent grid, in the two latents of most KL.
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
        found, lowest = cross_entropy(images, decoded), cross_entropy(images, images)
        error = ops.mean(ops.square(images - decoded), axis=(1, 2, 3))
        row = {
            "cross_entropy": found,
            "cross_entropy_mean_image": cross_entropy(images, 0 * images + mean_image),
            "cross_entropy_lowest": lowest,
            "cross_entropy_excess": found - lowest,
            "psnr": -10 * ops.log10(ops.maximum(error, 1e-10)),  # not infinite
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
    figures["sharpness"] /= figures.pop("real") or 1.0  # all of one colour
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


def save_models(folder, encoder, decoder, settings, figures):
    """Save both models under an id made of their weights, and what is known of them."""
    weights = [*encoder.get_weights(), *decoder.get_weights()]
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in weights))
    model_id = digest.hexdigest()[:8]
    encoder.name, decoder.name = f"encoder_{model_id}", f"decoder_{model_id}"
    summary = {
        "model_id": model_id,
        "settings": settings,
        "figures": figures,
        "versions": {module.__name__: module.__version__ for module in (np, keras, tf)},
        "python": platform.python_version(),
    }
    text = json.dumps(summary, indent=2) + "\n"
    with (
        replacing(folder / "encoder.keras") as encoder_file,
        replacing(folder / "decoder.keras") as decoder_file,
        replacing(folder / "summary.json") as summary_file,
    ):
        encoder.save(encoder_file)
        decoder.save(decoder_file)
        summary_file.write_text(text, encoding="utf-8", newline="\n")


def report(recorder, rows, values, measured):
    """Print how good the best epoch is, and return it as a dict.

    An epoch trains on that many rows, an image has that many values, H * W * C, and
    measured is what its weights reached on the held-out images.
    """
    history, kl_weight = recorder.history, recorder.settings["KL_WEIGHT"]
    best = min(history, key=lambda row: row["val_loss"])
    elbo = -values * best["val_reconstruction_loss"] - best["val_kl_loss"]
    seconds = [row["seconds"] for row in history]
    figures = {
        "epoch": best["epoch"],
        "epochs": len(history),
        "seconds": sum(seconds),
        "images_per_second": rows / float(np.median(seconds)),
        "beta": kl_weight * values,
        "elbo": elbo,
        "bits_per_value": -elbo / values / math.log(2),
        **measured,
    }
    units = dict.fromkeys(("elbo", "kl", "kl_per_latent"), "nats per image")
    units |= {"psnr": "dB", "seconds": "s"}
    print("The best epoch, on the held-out images:")
    for name, value in figures.items():
        unit = "nats per value" if "cross_entropy" in name else units.get(name, "")
        value = value if type(value) is list else f"{value:.6g}"
        print(f"{name + ':':26}{value} {unit}".rstrip())
    if measured["cross_entropy"] > measured["cross_entropy_mean_image"]:
        print("It is worse than the mean image: raise EPOCHS, or lower LEARNING_RATE")
    inside = measured["share_in_grid"]
    if not 0.6 < inside < 0.97:
        verb = "Raise" if inside < 0.6 else "Lower"
        print(f"{verb} KL_WEIGHT to bring share_in_grid nearer to 0.81, a normal's")
    return figures


def build_models(sizes, settings, steps, strategy):
    """Build the encoder, the decoder to logits, and the compiled model of both."""
    keras.utils.set_random_seed(settings["SEED"])
    keras.config.set_dtype_policy(settings["PRECISION"])
    # TensorFlow 2.21 fails, with a message, to fuse leaky units in training anyway.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    weight, seed = settings["KL_WEIGHT"], settings["SEED"]
    rate, replicas = settings["LEARNING_RATE"], strategy.num_replicas_in_sync
    cluster = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    with strategy.scope():
        encoder, decoder = build_encoder(*sizes), build_decoder(*sizes, training=True)
        vae = build_vae(encoder, decoder, weight, seed, cluster)
        vae.compile(build_optimizer(settings["OPTIMIZER"], rate, steps, replicas))
        vae.optimizer.build(vae.trainable_variables)
    return encoder, decoder, vae


def train(images, mean_image, settings, epochs, folder, figure_dir):
    """Train from where the backup stopped, if there is one, and write all files.

    images are uint8 (N, H, W, C), mean_image is the mean of those to train on, float32
    (H, W, C) in 0..1, and settings are all that a model depends on, but for the epochs.
    """
    strategy, worker = choose_strategy()
    replicas, num_train = strategy.num_replicas_in_sync, settings["num_train"]
    num_held_out, shape = len(images) - num_train, images.shape[1:]
    if num_held_out < replicas:
        sys.exit(f"Found {num_held_out} rows to hold out, expected {replicas} or more.")
    batch_size = min(settings["BATCH_SIZE"], num_train // replicas) * replicas
    steps, chief = num_train // batch_size, worker == 0
    sizes = (*shape[1:], settings["LATENT_DIM"], settings["FILTERS"])
    encoder, decoder, vae = build_models(sizes, settings, steps * epochs, strategy)
    recorder = Recorder(folder, settings, epochs, worker)
    text = recorder.restore(vae)
    done = len(recorder.history)
    if chief:
        device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        print(
            f"Training on {num_train} rows of {' x '.join(map(str, shape))}, "
            f"{num_held_out} held out: {vae.count_params():,} parameters; {epochs} "
            f"epochs of {steps} steps of {batch_size} images on {replicas} x {device}"
            f"\n{text}",
            end="",
        )
    if not same_everywhere(strategy, [settings, epochs, done]):
        sys.exit(
            f"The workers differ: this one has done {done} of {epochs} epochs. "
            "Give all the same script and array, and copies of the newest backup*.npz."
        )
    training, held_out = make_datasets(
        images, num_train, batch_size, settings["SEED"], done, replicas
    )
    first = images[num_train:][:20:2] / np.float32(255)  # every other may be a mirror

    def draw(epoch=0, logs=None):
        if chief and epoch % 5 == 0:
            decoded = np.asarray(ops.sigmoid(decoder(encoder(first)[0])))
            plot_loss(figure_dir / "loss.png", recorder.history)
            plot_reconstructions(figure_dir / "reconstructions.png", first, decoded)

    try:
        if done < epochs:
            vae.fit(
                training,
                shuffle=False,
                steps_per_epoch=steps,
                initial_epoch=done,
                epochs=epochs,
                validation_data=held_out,
                callbacks=[recorder, keras.callbacks.LambdaCallback(on_epoch_end=draw)],
                verbose=(1 if sys.stdout.isatty() else 2) if chief else 0,
            )
    except KeyboardInterrupt:
        done = len(recorder.history)
        print(f"\n{done} of {epochs} epochs are done.", file=sys.stderr)
        raise
    vae.set_weights(recorder.best)
    if chief:
        draw()
        stock = build_decoder(*sizes, training=False)
        stock.set_weights(decoder.get_weights())
        figures = measure(encoder, stock, held_out, mean_image)
        figures = report(recorder, steps * batch_size, mean_image.size, figures)
        save_models(folder, encoder, stock, settings, figures)
        print(f"Wrote {figure_dir / 'loss.png'} and {figure_dir}/reconstructions.png")
        print(f"Wrote {folder / 'encoder.keras'} and {folder / 'decoder.keras'}")


def check_settings(settings):
    """End the script with a message if a setting is not what it has to be."""

    def whole(low, high):
        return f"a whole number, {low} to {high}", lambda x: low <= x <= high, [int]

    optimizers, precisions = ("adam", "rmsprop", "sgd"), ("float32", "mixed_bfloat16")
    evens = range(2, 1_000_000, 2)
    rules = {
        "LATENT_DIM": whole(2, 1024),
        "EPOCHS": whole(1, 1_000_000),
        "BATCH_SIZE": whole(1, 1_000_000),
        "VALIDATION_IMAGES": ("an even number above 0", evens.count, [int]),
        "SEED": whole(0, 2**32 - 1),
        "FILTERS": (
            "channels from 1 to 4096, such as (32, 64, 128)",
            lambda x: x and all(type(n) is int and 0 < n < 4097 for n in x),
            [tuple, list],
        ),
        "KL_WEIGHT": ("a number from 0 up", lambda x: 0 <= x < math.inf, [int, float]),
        "LEARNING_RATE": (
            "None or a number above 0",
            lambda x: x is None or 0 < x < math.inf,
            [type(None), int, float],
        ),
        "OPTIMIZER": (f"one of {optimizers}", optimizers.count, [str]),
        "PRECISION": (f"one of {precisions}", precisions.count, [str]),
    }
    for name, (expected, good, kinds) in rules.items():
        value = settings[name]
        if type(value) not in kinds or not good(value):
            text = f"{name} = {value!r}: expected {expected}"
            sys.exit(f"{text}. Edit it at the top of train_vae.py.")


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be printed
    settings = {  # all that a model depends on, but for the epochs and the array
        "LATENT_DIM": LATENT_DIM,
        "FILTERS": FILTERS,
        "KL_WEIGHT": KL_WEIGHT,
        "BATCH_SIZE": BATCH_SIZE,
        "OPTIMIZER": OPTIMIZER,
        "LEARNING_RATE": LEARNING_RATE,
        "VALIDATION_IMAGES": VALIDATION_IMAGES,
        "PRECISION": PRECISION,
        "SEED": SEED,
    }
    check_settings({**settings, "EPOCHS": EPOCHS})
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
    arrays = {"images_id": images_id, "num_train": num_train}
    settings |= arrays | {"FILTERS": list(FILTERS)}  # as it comes back from JSON
    if num_train < BATCH_SIZE:
        print(f"{BATCH_SIZE = } is more than {num_train} rows: a batch has them all")
    try:
        for place in (folder, figure_dir):  # fail now rather than after an epoch
            place.mkdir(parents=True, exist_ok=True)
        train(images, mean_image, settings, EPOCHS, folder, figure_dir)
    except FloatingPointError as error:
        remedy = "Lower LEARNING_RATE; earlier models are as they were."
        sys.exit(f"Stopped: {error}. {remedy}")
    except tf.errors.OpError as error:
        reason = error.message.strip().partition("\n")[0]
        remedy = "If memory ran out, lower BATCH_SIZE; then start all workers again."
        sys.exit(f"Stopped: {reason}. {remedy}")
    except OSError as error:
        name = Path(error.filename or folder).resolve()
        sys.exit(f"Cannot write {name}: {error.strerror}. Mend it and run again.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped: whole epochs are kept, run again to go on.", file=sys.stderr)
        sys.exit(130)
