"""Train a convolutional variational autoencoder (VAE) on an array of images.

    python train_vae.py

Reads   INPUT_FILE: uint8 (N, H, W, C), C = 1 or 3, H = W a multiple of 4, 28 or more;
        while it trains a batch at a time, so that memory does not grow with N.
Writes  MODEL_DIR/encoder.keras: (B, H, W, C) float32 in 0..1 -> [z_mean, z_log_var],
        each (B, LATENT_DIM).
        decoder.keras: (B, LATENT_DIM) -> (B, H, W, C) float32 in 0..1.
        history.csv: a line an epoch.
        summary.json: settings, the id of the array, versions, how good the model is.
        backup.npz: what is needed to go on after a stop.
        FIGURE_DIR/loss.png and reconstructions.png, every five epochs and at the end.
Exits   with 0: done; 1: a message says what to mend; 130: stopped by Ctrl-C.

Stopped and run again, it goes on after the last whole epoch. 50 epochs of 600 rows of
256 pixels take less than three minutes on two cores.

The model is that of Kingma and Welling, "Auto-Encoding Variational Bayes" (arXiv
1312.6114):

    z    = z_mean + exp(z_log_var / 2) * epsilon,  epsilon ~ N(0, I)
    loss = reconstruction_loss + KL_WEIGHT * kl_loss

reconstruction_loss is the binary cross-entropy, averaged over H, W and C (nats per
value); kl_loss is KL(N(z_mean, exp(z_log_var)) || N(0, I)), summed over LATENT_DIM
(nats per image). KL_WEIGHT * H * W * C is the beta of a beta-VAE; at 1 the loss is the
negative ELBO divided by H * W * C. With more than two latents the first two are the
map; the others hold details and have a lower weight of their own.

The file in order: the model; its doubling layer; its training; several devices; going
on after a stop; how good it is; files; checks of the settings; messages; train() and
main().
"""

import contextlib
import datetime
import errno
import glob
import hashlib
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


@contextlib.contextmanager
def quiet():
    """Hold back what is written to stderr, such as TensorFlow's notes when it starts.

    Another process keeps the text. It shows it if the block fails, or if this process
    dies in the block, as TensorFlow makes it do on a CPU that is too old.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed by 2>&-: fill its place, or a file of ours would get it
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass
        stderr = os.dup(2)
    show = "import sys; sys.stderr.buffer.write(sys.stdin.buffer.read())"
    # -I and -S: it starts fast, whatever the user's environment adds to Python.
    keeper = subprocess.Popen(
        [sys.executable, "-ISc", show],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for the keeper
    )
    os.dup2(keeper.stdin.fileno(), 2)  # so that native code writes there, too
    try:
        yield
        keeper.kill()  # all went well: nobody needs the text
    except KeyboardInterrupt:
        keeper.kill()
        raise
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        # This ends its input: a keeper that still lives shows now what it was given.
        keeper.stdin.close()
        keeper.wait()


try:
    import matplotlib.figure
    import numpy as np
    import scipy.ndimage

    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
    with quiet():
        import keras
        import tensorflow as tf
        from keras import layers, ops
except KeyboardInterrupt:  # the imports take seconds
    if __name__ != "__main__":
        raise
    sys.exit(130)

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
INPUT_FILE = "data/images.npy"
MODEL_DIR = "model"  # another folder keeps this model beside the next one
FIGURE_DIR = "figures"

# Model
LATENT_DIM = 2  # 2 make a map; more add details, best with KL_WEIGHT = 2e-4
FILTERS = (16, 32, 64, 128)  # channels of each stage: larger or more are slower
ACTIVATION = "leaky_relu"  # or "silu" at LEARNING_RATE = 6e-3: digits, many images
KL_WEIGHT = 5e-4  # higher: smoother map, blurrier pictures; 0 to 10

# Training
EPOCHS = 50  # raise it after a finished run to train on
BATCH_SIZE = 32  # images a step on each device; lower it if memory runs out
OPTIMIZER = "adam"  # or "rmsprop"; "sgd" has learned nothing of 64-pixel athletes
LEARNING_RATE = None  # None: 3e-3 for adam, 1e-3 for rmsprop, 0.3 for sgd
VALIDATION_IMAGES = 256  # last rows that are held out, even; a tenth of all at most
PRECISION = "float32"  # or "mixed_bfloat16", "mixed_float16", if the GPU has it
SEED = 0  # another number finds another map of the same pictures
# ----------------------------------------------------------------------------


# ----------------------------------------------------------------------------
# The model
# ----------------------------------------------------------------------------
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
        # The seed is the same on every device: each takes its own part of the draw.
        device = tf.distribute.get_replica_context()
        shape = (device.num_replicas_in_sync, *ops.shape(z_mean))
        epsilon = keras.random.normal(shape, seed=self.generator)
        epsilon = epsilon[device.replica_id_in_sync_group]
        return z_mean + ops.exp(z_log_var / 2) * epsilon

    def compute_output_shape(self, input_shape):
        return input_shape[0]


class VAELoss(layers.Layer):
    """Add reconstruction_loss + the sum of kl_weights * KL to the loss of the model.

    reconstruction_loss is the binary cross-entropy from logits, in nats per value:
    softplus(logit) - logit * image, finite for any logit, with a gradient between -1
    and 1. KL is that of N(z_mean, exp(z_log_var)) from N(0, I), in nats per image, for
    each latent; kl_loss is its sum. loss_final is the loss with the final weights.

    Args:
        kl_weights: the final weight of each latent. The variable of this name starts
            there, and Schedule changes it during the first steps.

    Call arguments:
        inputs: images (B, H, W, C) in 0..1, logits of the same shape, z_mean and
            z_log_var, each (B, latent_dim). The logits are returned.
    """

    def __init__(self, kl_weights, **kwargs):
        super().__init__(**kwargs)
        self.final_weights = np.array(kl_weights, "float32")
        self.kl_weights = self.add_weight(
            shape=self.final_weights.shape,
            initializer=keras.initializers.Constant(self.final_weights),
            trainable=False,
        )
        self.reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss = keras.metrics.Mean(name="kl_loss")
        self.loss_final = keras.metrics.Mean(name="loss_final")

    def call(self, inputs):
        images, logits, z_mean, z_log_var = inputs
        reconstruction_loss = ops.mean(ops.softplus(logits) - logits * images)
        # The KL of two normal distributions has this closed form.
        kl = (ops.square(z_mean) + ops.exp(z_log_var) - 1.0 - z_log_var) / 2
        kl = ops.mean(kl, axis=0)  # (latent_dim,)
        self.add_loss(reconstruction_loss + ops.sum(self.kl_weights * kl))
        # Epochs are compared by this one, as the weights above change on the way.
        loss_final = reconstruction_loss + ops.sum(self.final_weights * kl)
        batch_size = ops.shape(images)[0]  # a short last batch counts for less
        self.reconstruction_loss.update_state(reconstruction_loss, batch_size)
        self.kl_loss.update_state(ops.sum(kl), batch_size)
        self.loss_final.update_state(loss_final, batch_size)
        return logits


def plan_stages(side, filters):
    """Return the channels of the stages that a side needs, and the stride of the first.

    Each stage halves the side, rounding up, while it is 14 or more. If it could be
    halved more often than there are stages, the first quarters it: 256 becomes 64, 32,
    16, 8 in four stages; 252 becomes 63, 32, 16, 8; 28 becomes 14, 7.
    """
    halvings = 0
    while side >= 14:
        side = math.ceil(side / 2)
        halvings += 1
    stride = 2
    if halvings > len(filters):
        stride = 4
    return filters[:halvings], stride


def build_encoder(side, channels, latent_dim, filters, activation):
    """Build the encoder: images (B, side, side, channels) -> [z_mean, z_log_var]."""
    stages, stride = plan_stages(side, filters)
    options = {"padding": "same", "activation": activation}
    images = keras.Input((side, side, channels), name="images")
    # A kernel of 4 leaves no pixel out when the stride is 4.
    x = layers.Conv2D(stages[0], 4, stride, **options)(images)
    for width in stages[1:]:
        x = layers.Conv2D(width, 3, 2, **options)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(filters[-1], activation=activation)(x)
    # What leaves a network is float32, whatever PRECISION is.
    z_mean = layers.Dense(latent_dim, dtype="float32", name="z_mean")(x)
    # It starts at 0, so that kl_loss starts small; within -10..10, exp() stays finite.
    x = layers.Dense(latent_dim, kernel_initializer="zeros", dtype="float32")(x)
    z_log_var = 10 * ops.tanh(x / 10)
    return keras.Model(images, [z_mean, z_log_var], name="encoder")


def build_decoder(side, channels, latent_dim, filters, activation, double):
    """Build the decoder: z (B, latent_dim) -> logits (B, side, side, channels).

    It is the encoder backwards, with a sketch added at the end.

    Args:
        double: function(x, filters, **options) that doubles the side of x, repeating
            pixels, and convolves: up_conv to train, up_conv_stock to save.
    """
    stages, stride = plan_stages(side, filters)
    # The side of the smallest maps, where the encoder ended.
    base = math.ceil(side / (stride * 2 ** (len(stages) - 1)))
    z = keras.Input((latent_dim,), name="z")
    folded = layers.Dense(filters[-1], activation=activation, name="fold_1")(z)
    folded = layers.Dense(filters[-1], activation=activation, name="fold_2")(folded)
    units = base * base * stages[-1]
    x = layers.Dense(units, activation=activation, name="base")(folded)
    x = layers.Reshape((base, base, stages[-1]))(x)
    for width in reversed(stages[:-1]):
        x = double(x, width, activation=activation, name=f"to_{x.shape[1] * 2}")
    x = double(x, channels, dtype="float32", name="to_colors")
    if stride == 4:  # the last doubling blends between pixels, which costs little
        x = layers.UpSampling2D(interpolation="bilinear", dtype="float32")(x)
    if x.shape[1] > side:  # where halving was rounded up
        x = layers.Cropping2D((x.shape[1] - side) // 2, dtype="float32")(x)
    sketch = build_sketch(folded, side, channels, activation)
    return keras.Model(z, layers.Add(dtype="float32")([x, sketch]), name="decoder")


def build_sketch(folded, side, channels, activation):
    """Return logits (B, side, side, channels): 16 pictures, mixed as z says.

    They carry what never changes and what changes slowly, which narrow convolutions
    learn late. The bias is a picture of its own, see start_sketch.
    """
    size = min(side, 256)  # larger ones would have too many parameters
    mix = layers.Dense(16, activation=activation, name="mix")(folded)
    units = size * size * channels
    sketch = layers.Dense(units, dtype="float32", name="sketch")(mix)
    sketch = layers.Reshape((size, size, channels))(sketch)
    if size < side:
        sketch = layers.Resizing(side, side, dtype="float32")(sketch)  # bilinear
    return sketch


def start_sketch(decoder, mean_image):
    """Start the sketch at the logits of the mean image, float32 (H, W, C) in 0..1."""
    bias = decoder.get_layer("sketch").bias
    side = min(mean_image.shape[0], 256)
    p = ops.image.resize(mean_image, (side, side), antialias=True)
    p = np.clip(ops.convert_to_numpy(p), 0.01, 0.99)  # the logit of 0 is not finite
    bias.assign(np.log(p / (1 - p)).ravel())


def build_vae(encoder, decoder, kl_weights, seed, model=keras.Model):
    """Chain encoder, Sampling, decoder and VAELoss: images -> logits."""
    images = encoder.input
    z_mean, z_log_var = encoder(images)
    z = Sampling(seed, dtype="float32")([z_mean, z_log_var])
    logits = decoder(z)
    loss = VAELoss(kl_weights, dtype="float32", name="loss")
    return model(images, loss([images, logits, z_mean, z_log_var]))


# ----------------------------------------------------------------------------
# The decoder's doubling, to train and to save
# ----------------------------------------------------------------------------
class UpConv2D(layers.Conv2D):
    """Double the side by repeating pixels and convolve: (B, H, W, C) -> (B, 2H, 2W, D).

    A transposed convolution with the kernels summed over windows of 2x2 does both at
    once: the numbers of UpSampling2D and Conv2D for 4/9 of the multiplications, which
    is 30 % of the speed of a step at 256 pixels. (Free 4x4 kernels would be as fast,
    but leave lines in the pictures.)
    """

    def call(self, inputs):
        # Row a of the 4x4 kernel is the sum of the rows of the 3x3 one that fall on the
        # same repeated pixel; likewise the columns. As a product, since the gradients
        # of slices of a kernel took 7 % of a step.
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


def up_conv(x, filters, **options):
    """Double the side and convolve in one layer: to train."""
    return UpConv2D(filters, 3, padding="same", **options)(x)


def up_conv_stock(x, filters, **options):
    """Double the side and convolve in Keras's own layers: to save."""
    x = layers.UpSampling2D()(x)
    return layers.Conv2D(filters, 3, padding="same", **options)(x)


def build_stock_decoder(decoder, *sizes):
    """Return the decoder as it is saved: to values in 0..1, in Keras's own layers.

    sizes are the arguments with which the decoder was built, but for the last one.
    """
    stock = build_decoder(*sizes, up_conv_stock)
    for layer in stock.layers:  # by name: the two models order their layers otherwise
        if layer.weights:
            layer.set_weights(decoder.get_layer(layer.name).get_weights())
    images = layers.Activation("sigmoid", dtype="float32")(stock.output)
    return keras.Model(stock.input, images, name="decoder")


# ----------------------------------------------------------------------------
# Its training
# ----------------------------------------------------------------------------
def final_kl_weights(kl_weight, latent_dim):
    """Return the weight of each latent's KL: the first two are the map.

    The others hold the details that the map leaves, and cost a 25th of it.
    """
    return [kl_weight] * 2 + [0.04 * kl_weight] * (latent_dim - 2)


def plan_kl_weights(step, epoch_steps, final_weights):
    """Return the weights of the KL at a step, counted from 0, as float32 (latent_dim,).

    They rise evenly over 300 steps. The latents from the third on are held down at
    first, at ten times the weight of the map, so that the map takes all it can. After 8
    epochs, or 800 steps where epochs are long, this begins to fall, and after 15
    epochs, or 1600 steps, they have their own weight.
    """
    weights = np.array(final_weights, "float32")
    if len(weights) > 2:
        held = max(10 * weights[0], weights[2])
        # Let go after 120 steps, the map of 1,700 photographs was lost: the network had
        # hardly seen each of them once. So it is epochs that count.
        begin = min(8 * epoch_steps, 800)
        end = min(15 * epoch_steps, 1600)
        fallen = min(1.0, max(0.0, (step - begin) / (end - begin)))
        weights[2:] = held ** (1 - fallen) * weights[2:] ** fallen
    # With the whole weight from the start, 2 of 5 seeds put all they learned of drawn
    # athletes into one latent.
    return weights * min(1.0, (step + 1) / 300)


def build_optimizer(name, learning_rate, replicas=1):
    """Build an optimizer that no single step can throw off its way.

    The gradients of each of the replicas (devices) are clipped to its share of a global
    norm of 1. Schedule changes the rate, see there.
    """
    clip = 1 / replicas
    if name == "adam":
        return keras.optimizers.Adam(learning_rate, global_clipnorm=clip)
    if name == "rmsprop":
        # Keras adds epsilon to the mean square of a gradient, under the root. Squares
        # are far below its 1e-7 here, and the network would stand still.
        options = {"epsilon": 1e-14, "global_clipnorm": clip}
        return keras.optimizers.RMSprop(learning_rate, **options)
    return keras.optimizers.SGD(learning_rate, momentum=0.9, global_clipnorm=clip)


def choose_rate(name, learning_rate):
    """Return the learning rate, or for None that of the optimizer of this name.

    These were measured with tests/bench_stability.py: sgd at 2 lost a seed of 20.
    """
    if learning_rate is None:
        learning_rate = {"adam": 3e-3, "rmsprop": 1e-3, "sgd": 0.3}[name]
    return float(learning_rate)  # Keras refuses a whole number


def plan_rate(learning_rate, done):
    """Return the learning rate when a share of the epochs is done, 0 to 1.

    It falls along a cosine to 1 % of it. It follows from the epoch alone, so a resumed
    training has the right one, also on another number of devices.
    """
    return learning_rate * (0.505 + 0.495 * math.cos(math.pi * done))


class Schedule(keras.callbacks.Callback):
    """Set the learning rate and the weights of the KL before each step.

    The rate rises over the first 40 steps, as Adam knows little of the gradients then;
    after them it is that of plan_rate. All follows from the epoch and from the steps
    that the optimizer has counted, so there is no state to keep.

    Args:
        learning_rate: the highest rate.
        kl_weights: the final weight of each latent.
    """

    def __init__(self, learning_rate, kl_weights):
        super().__init__()
        self.learning_rate = learning_rate
        self.final_weights = kl_weights

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs_done = epoch
        # Read from the device once an epoch; steps are counted on from there.
        iterations = self.model.optimizer.iterations
        self.steps_done = int(ops.convert_to_numpy(iterations))

    def on_train_batch_begin(self, batch, logs=None):
        epochs_done = self.epochs_done + batch / self.params["steps"]
        rate = plan_rate(self.learning_rate, epochs_done / self.params["epochs"])
        step = self.steps_done + batch
        self.model.optimizer.learning_rate = rate * min(1, (step + 1) / 40)
        epoch_steps = self.params["steps"]
        kl_weights = plan_kl_weights(step, epoch_steps, self.final_weights)
        self.model.get_layer("loss").kl_weights.assign(kl_weights)


def build_models(sizes, mean_image, strategy):
    """Build encoder, decoder (to logits) and the compiled model of both.

    Args:
        sizes: what build_encoder takes.
        mean_image: float32 (H, W, C) in 0..1.
        strategy: of choose_strategy.
    """
    keras.utils.set_random_seed(SEED)  # the weights start alike in each run
    # TensorFlow 2.21 fails, with a message, to fuse leaky units in training anyway.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    model = keras.Model
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        model = ClusterVAE
    kl_weights = final_kl_weights(KL_WEIGHT, LATENT_DIM)
    learning_rate = choose_rate(OPTIMIZER, LEARNING_RATE)
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        encoder = build_encoder(*sizes)
        decoder = build_decoder(*sizes, up_conv)
        start_sketch(decoder, mean_image)
        vae = build_vae(encoder, decoder, kl_weights, SEED, model)
        # Keras scales the loss by itself where PRECISION is "mixed_float16".
        vae.compile(build_optimizer(OPTIMIZER, learning_rate, replicas))
        # Keras would do so in fit(), too late to restore a backup before that.
        vae.optimizer.build(vae.trainable_variables)
    return encoder, decoder, vae


def make_datasets(images, num_train, batch_size, seed, first_epoch, replicas):
    """Make the training and the held-out set, float32 (B, H, W, C) in 0..1.

    The training set has no end. Its epoch e, from first_epoch on, visits the first
    num_train rows, but for those that do not fill a last batch, in the order that
    (seed, e) gives, so that a resumed training sees what an unbroken one would. The
    other rows of images, uint8 (N, H, W, C), are held out. Each of the replicas
    (devices) gets an equal part of every batch.
    """

    def shuffle(epoch):
        return np.random.default_rng([seed, epoch]).permutation(num_train)

    def order(epoch):
        # What comes out of a numpy_function has lost its shape, which Keras needs.
        rows = tf.numpy_function(shuffle, [epoch], tf.int64)
        rows = tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, [num_train]))
        return rows.batch(batch_size, drop_remainder=True)

    def read(rows):
        return images[np.sort(rows)]  # in the order of the disk: the loss has none

    def load(rows):
        batch = tf.numpy_function(read, [rows], tf.uint8)
        batch = tf.ensure_shape(batch, (None, *images.shape[1:]))
        return tf.cast(batch, tf.float32) / 255.0

    def prepare(rows):
        # Two batches are read at a time, and two lie ready.
        return rows.map(load, 2, deterministic=True).prefetch(2).with_options(options)

    options = tf.data.Options()
    # Each worker of a cluster takes its part of each batch, not of the files.
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    # Nothing is left to tune, and the end of an epoch waited seconds for the tuner.
    options.autotune.enabled = False
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    training = epochs.flat_map(order)
    # TensorFlow cannot run a last batch that leaves a device without a row.
    last = len(images) - (len(images) - num_train) % replicas
    held_out = tf.data.Dataset.range(num_train, last).batch(batch_size)
    return prepare(training), prepare(held_out)


class StopIfDiverging(keras.callbacks.Callback):
    """Raise FloatingPointError as soon as the loss is not finite or far too high."""

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        # A network that knows nothing has 0.7; 10 comes before nan.
        if not (math.isfinite(loss) and logs["reconstruction_loss"] < 10):
            raise FloatingPointError(f"the loss has risen to {loss:.4g}")

    def on_test_end(self, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError("the loss of the held-out images is not finite")


class RemainingTime(keras.callbacks.Callback):
    """Say once how long the training will take, as the second epoch shows it.

    The first epoch takes longer: TensorFlow prepares the step in it.
    """

    def __init__(self, history, epochs):
        super().__init__()
        self.history = history  # the list that Backup appends to
        self.epochs = epochs

    def on_train_begin(self, logs=None):
        self.done_before = len(self.history)

    def on_epoch_begin(self, epoch, logs=None):
        if len(self.history) == self.done_before + 2:
            left = self.epochs - epoch
            minutes = left * self.history[-1]["seconds"] / 60
            print(f"{left} epochs are left, some {minutes:.1f} minutes.", flush=True)


# ----------------------------------------------------------------------------
# Several devices
# ----------------------------------------------------------------------------
def read_cluster():
    """Return the addresses of the workers that TF_CONFIG names, and which this one is.

    Worker 0 writes the model. Without a cluster, or in a cluster of one, there are no
    addresses.
    """
    text = os.environ.get("TF_CONFIG", "")
    cluster, kind, index = read_tf_config(text)
    if not {*cluster, kind} <= {"chief", "worker"}:
        refuse_cluster(text, "only tasks of the types chief and worker have work here")
    addresses = []
    number = None
    for name in ("chief", "worker"):  # as TensorFlow counts them
        for position, address in enumerate(cluster.get(name, [])):
            # In TF_CONFIG the index may be a number or a text.
            if kind == name and index == str(position):
                number = len(addresses)
            addresses.append(str(address))
    if len(addresses) < 2:
        return [], 0
    if number is None:
        refuse_cluster(text, "its task is none of its cluster's")
    return addresses, number


def refuse_cluster(text, reason):
    """End the script with a message: the text of TF_CONFIG cannot be used."""
    remedy = "Mend it, or unset it to train on one machine."
    sys.exit(f"Cannot use TF_CONFIG = {text}: {reason}. {remedy}")


def read_tf_config(text):
    """Return the cluster, and type and index of the task, that TF_CONFIG holds."""
    config = {}
    if text:
        try:
            config = json.loads(text)
        except ValueError as error:
            refuse_cluster(text, describe_error(error))
    if not isinstance(config, dict):
        config = {}  # as TensorFlow takes it
    cluster = config.get("cluster", {})
    task = config.get("task", {})
    good = isinstance(cluster, dict) and isinstance(task, dict)
    if not good or not all(isinstance(value, list) for value in cluster.values()):
        refuse_cluster(text, "expected a cluster of lists of addresses, and a task")
    return cluster, str(task.get("type", "worker")), str(task.get("index", 0))


def choose_strategy(addresses, number):
    """Choose how to use what there is: many machines, several GPUs, or one device.

    Args:
        addresses, number: of read_cluster.
    """
    if addresses:
        return join_cluster(addresses, number)
    gpus = find_gpus()
    for gpu in gpus:
        # A notebook may have started the GPU in its own way: then it stays so.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if len(gpus) < 2:
        return tf.distribute.get_strategy()
    with quiet():  # TensorFlow reports each kind of device that it lacks
        return tf.distribute.MirroredStrategy()


def join_cluster(addresses, number):
    """Return the strategy of a cluster, as soon as all its workers are there."""
    await_workers(addresses, number)
    problem = None
    with quiet():  # TensorFlow writes several lines about each problem
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, tf.errors.OpError) as error:
            problem = describe_error(error)
    if problem is not None:
        sys.exit(
            f"Worker {number} at {addresses[number]} cannot start: {problem}. "
            "Start all workers again."
        )
    return strategy


def await_workers(addresses, number, seconds=1800):
    """Wait until all workers of a cluster have come; if one does not, end the script.

    Each listens at its own address until it has reached all others. TensorFlow by
    itself would wait without end and without a word, and not hear Ctrl-C.
    """
    own = addresses[number]
    try:
        listener = socket.create_server(("", int(own.rpartition(":")[2])))
    except (OSError, ValueError, OverflowError) as error:
        sys.exit(
            f"Worker {number} cannot listen at {own}, as TF_CONFIG has it: "
            f"{describe_error(error)}. End the program that uses this port, perhaps a "
            "worker of an earlier run, or name another port."
        )
    missing = [address for address in addresses if address != own]
    end = time.monotonic() + seconds
    with listener:  # until all are reached; TensorFlow listens there after that
        while missing:
            print(f"Worker {number} waits for {', '.join(missing)}", flush=True)
            count = len(missing)
            while len(missing) == count:
                if time.monotonic() > end:
                    sys.exit(
                        f"No worker has come at {', '.join(missing)} in {seconds} s. "
                        "Start all workers of TF_CONFIG, with the same addresses."
                    )
                time.sleep(0.2)
                missing = [address for address in missing if not is_reached(address)]


def is_reached(address):
    """Return whether something listens at an address, "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def find_gpus():
    """Return the GPUs that TensorFlow can use."""
    gpus = []
    try:
        with quiet():  # TensorFlow reports each kind of device that it lacks
            gpus = tf.config.list_physical_devices("GPU")
            if not gpus and shutil.which("nvidia-smi"):
                raise LookupError  # so that what it reports is shown
    except LookupError:
        text = "TensorFlow uses no GPU, although there may be one: see its notes above."
        print(text, file=sys.stderr)
    return gpus


def compare_workers(strategy, settings, history):
    """End the script if the workers of a cluster do not start from the same state.

    Args:
        strategy: of choose_strategy.
        settings: of describe_training.
        history: what this worker's backup has brought, a row an epoch.
    """
    state = [settings, EPOCHS]
    for row in history:
        state.append({**row, "seconds": 0})  # each has its own clock
    digest = hashlib.sha256(json.dumps(state).encode()).digest()
    number = int.from_bytes(digest[:7], "big")  # more bytes do not fit into an int64
    # Each worker gives a row, and all of them get all rows.
    own = tf.constant([[len(history), number]], tf.int64)
    rows = strategy.gather(strategy.run(tf.function(lambda: own)), axis=0)
    rows = rows.numpy().tolist()
    for row in rows:
        if row != rows[0]:
            epochs = ", ".join(str(done) for done, _ in rows)
            sys.exit(
                f"The workers differ: this one has done {len(history)} of {EPOCHS} "
                f"epochs, all in their order {epochs}. Give all the same script, "
                "settings and array, and copies of the newest backup*.npz."
            )


class ClusterVAE(keras.Model):
    """A model that gives its figures the axis along which Keras joins the workers'."""

    def compute_metrics(self, *args, **kwargs):
        logs = super().compute_metrics(*args, **kwargs)
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}


# ----------------------------------------------------------------------------
# Going on after a stop
# ----------------------------------------------------------------------------
class Backup(keras.callbacks.Callback):
    """Keep the history and the best weights, and write all that is needed to go on.

    backup.npz, replaced after each epoch, holds the weights, the state of the optimizer
    and of the random numbers, the best weights, the history, and the settings of all
    these. Each worker of a cluster has its own. A backup of other settings is put aside
    as backup-before.npz when the first new one is written.

    Args:
        folder: MODEL_DIR as a path.
        settings: what describe_training returns.
        batch_size: images a step on all devices.
        worker: number of this worker; 0 writes history.csv as well.
    """

    def __init__(self, folder, settings, batch_size, worker):
        super().__init__()
        name = "backup"
        if worker > 0:
            name = f"backup{worker}"
        self.file = folder / f"{name}.npz"
        self.file_before = folder / f"{name}-before.npz"
        self.history_file = folder / "history.csv"
        self.settings = settings
        self.batch_size = batch_size
        self.worker = worker
        self.history = []
        self.best = []
        self.put_aside = False

    def restore(self, model):
        """Take up where a backup stopped; return a text that says so, or why not."""
        self.set_model(model)  # Keras would do so when the training begins
        text = ""
        if self.file.exists():
            reason = self.load(self.file)
            if not reason:
                return self.describe(self.file)
            self.put_aside = True
            text = f"Not going on from {self.file}: {reason}.\n"
        # Who undoes a change finds the backup again that the change had put aside.
        if self.file_before.exists() and not self.load(self.file_before):
            return text + self.describe(self.file_before)
        if self.put_aside:
            text += f"Starting afresh; it will be kept as {self.file_before.name}.\n"
        return text

    def describe(self, path):
        done = len(self.history)
        text = f"{done} epochs are done, going on from {path}.\n"
        if self.old_batch_size != self.batch_size:
            text += (
                f"A step took {self.old_batch_size} images until now and takes "
                f"{self.batch_size} from here on: the number of devices has changed.\n"
            )
        if done >= EPOCHS:
            text += "Nothing is left to train: raise EPOCHS to train on.\n"
        return text

    def load(self, path):
        """Take up where this backup stopped; return "", or why that cannot be."""
        try:
            with np.load(path, allow_pickle=False) as backup:
                record = json.loads(str(backup["record"]))
                reason = self.compare(record["settings"])
                if reason:
                    return reason
                state = read_arrays(backup, "state", self.variables())
                best = read_arrays(backup, "best", self.model.weights)
            history = record["history"]
            batch_size = int(record["batch_size"])
            if not history:
                raise ValueError("it has no epoch")
        except Exception as error:  # damaged files make NumPy raise nearly anything
            return f"it is damaged, or of another program ({describe_error(error)})"
        # Only here, where all of it is known to be good, is anything changed.
        for variable, value in zip(self.variables(), state, strict=True):
            variable.assign(value)
        self.history = history
        self.best = best
        self.old_batch_size = batch_size
        return ""

    def compare(self, settings):
        """Return what has changed since the backup was written, or ""."""
        changes = []
        for name, new in self.settings.items():
            old = settings.get(name)
            if new != old:
                changes.append(f"{name} was {old}, now it is {new}")
        return ", ".join(changes)

    def variables(self):
        return [*self.model.variables, *self.model.optimizer.variables]

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1}
        for part in ("", "val_"):
            # Keras's own loss has the KL weights of the moment, which rise at first.
            row[f"{part}loss"] = float(logs[f"{part}loss_final"])
            for name in ("reconstruction_loss", "kl_loss"):
                row[f"{part}{name}"] = float(logs[f"{part}{name}"])
        rate = self.model.optimizer.learning_rate
        row["learning_rate"] = float(ops.convert_to_numpy(rate))
        row["seconds"] = round(time.perf_counter() - self.start, 3)
        # The best epoch is that of the lowest loss with the final weights.
        lowest = min((old["val_loss"] for old in self.history), default=math.inf)
        if row["val_loss"] < lowest:
            self.best = self.model.get_weights()
        self.write([*self.history, row])
        self.history.append(row)  # only now is it kept

    def write(self, history):
        """Write history.csv and the backup."""
        if self.worker == 0:
            lines = [",".join(history[0])]
            for row in history:
                lines.append(",".join(str(value) for value in row.values()))
            with replacing(self.history_file) as path:
                text = "\n".join(lines) + "\n"
                path.write_text(text, encoding="utf-8", newline="\n")
        record = {"settings": self.settings, "batch_size": self.batch_size}
        record["history"] = history
        arrays = {"record": json.dumps(record)}  # as text, which needs no pickle
        for number, variable in enumerate(self.variables()):
            arrays[f"state_{number}"] = ops.convert_to_numpy(variable)
        for number, weights in enumerate(self.best):
            arrays[f"best_{number}"] = weights
        with replacing(self.file) as path:
            np.savez(path, **arrays)
            if self.put_aside:  # only now, when the new one is whole
                os.replace(self.file, self.file_before)
                self.put_aside = False


def read_arrays(backup, kind, variables):
    """Return the arrays of a backup that belong to these variables.

    Raises:
        ValueError: They do not fit the variables.
    """
    arrays = []
    for number, variable in enumerate(variables):
        array = backup[f"{kind}_{number}"]
        if array.shape != tuple(variable.shape) or array.dtype != variable.dtype:
            raise ValueError(f"{kind} {number} is of another network")
        arrays.append(array)
    return arrays


# ----------------------------------------------------------------------------
# How good it is
# ----------------------------------------------------------------------------
def measure(encoder, decoder, batches, mean_image, seed):
    """Measure what the saved models keep of held-out images, at z = z_mean.

    Args:
        encoder, decoder: the models as they are saved.
        batches: dataset of float32 (B, H, W, C) in 0..1.
        mean_image: float32 (H, W, C) in 0..1, the reconstruction that knows nothing.
        seed: of the 16 samples of z for each image, over which elbo is averaged.

    Returns:
        A dict of figures. Cross-entropies are in nats per value, the lowest being that
        of the images themselves; elbo and kl in nats per image; psnr in dB. sharpness
        is the variance of the Laplacian, decoded over real. share_in_grid is the share
        of codes whose first two latents lie between the 5 % and 95 % quantiles of the
        prior: 0.81 if the codes are as normal as the prior.
    """
    random = np.random.default_rng(seed)
    rows = []
    for images in batches:
        row = measure_batch(encoder, decoder, np.asarray(images), mean_image, random)
        rows.append(row)
    columns = {}
    for name in rows[0]:
        columns[name] = np.concatenate([row[name] for row in rows])
    figures = describe_codes(columns.pop("z_mean"), columns.pop("kl"))
    for name, column in columns.items():
        figures[name] = float(column.mean())
    real = figures.pop("real")
    if real > 0:  # not all of one colour
        figures["sharpness"] /= real
    excess = figures["cross_entropy"] - figures["cross_entropy_lowest"]
    figures["cross_entropy_excess"] = excess
    values = mean_image.size
    figures["elbo"] = -values * figures["cross_entropy_sampled"] - figures["kl"]
    nats_per_value = -figures["elbo"] / values
    figures["bits_per_value"] = nats_per_value / math.log(2)
    return figures


def measure_batch(encoder, decoder, images, mean_image, random):
    """Return {name: a value, or a row, for each image} of images (B, H, W, C)."""
    z_mean, z_log_var = encoder(images)
    z_mean = np.asarray(z_mean)
    z_log_var = np.asarray(z_log_var)
    decoded = np.asarray(decoder(z_mean))
    mean_images = np.broadcast_to(mean_image, images.shape)
    error = np.mean((images - decoded) ** 2, axis=(1, 2, 3))
    # The ELBO is a mean over z: one sample is noisy, and z_mean flatters.
    sampled = []
    for _ in range(16):
        epsilon = random.standard_normal(z_mean.shape, "float32")
        z = z_mean + np.exp(z_log_var / 2) * epsilon
        sampled.append(cross_entropy(images, decoder(z)))
    return {
        "z_mean": z_mean,
        "kl": (z_mean**2 + np.exp(z_log_var) - 1 - z_log_var) / 2,
        "cross_entropy": cross_entropy(images, decoded),
        "cross_entropy_mean_image": cross_entropy(images, mean_images),
        "cross_entropy_lowest": cross_entropy(images, images),
        "cross_entropy_sampled": np.mean(sampled, axis=0),
        "psnr": -10 * np.log10(np.maximum(error, 1e-10)),  # not infinite
        "ssim": np.asarray(tf.image.ssim(images, decoded, 1.0, filter_size=7)),
        "sharpness": sharpness(decoded),
        "real": sharpness(images),
    }


def cross_entropy(images, decoded):
    """Return the cross-entropy of each image, both (B, H, W, C), in nats per value."""
    losses = keras.losses.binary_crossentropy(images, decoded)  # (B, H, W)
    return np.mean(losses, axis=(1, 2))


def sharpness(images):
    """Return the variance of the Laplacian of each image (B, H, W, C), in grey."""
    variances = []
    for grey in np.mean(images, axis=3):
        variances.append(scipy.ndimage.laplace(grey, mode="nearest").var())
    return variances


def describe_codes(codes, kl):
    """Return figures of codes (N, LATENT_DIM) and of their KL, of the same shape."""
    kl = kl.mean(axis=0)
    inside = np.abs(codes[:, :2]) < 1.645  # 5 % to 95 % of a normal
    # A latent is active if its codes vary by more than 0.01 (Burda, arXiv 1509.00519).
    return {
        "kl": float(kl.sum()),
        "kl_per_latent": [round(float(value), 4) for value in kl],
        "active_latents": int((codes.var(axis=0) > 0.01).sum()),
        "share_in_grid": float(inside.all(axis=1).mean()),
    }


def describe_epochs(history, num_images):
    """Return figures of the epochs, each of that many images, and of the best one."""
    best = min(history, key=lambda row: row["val_loss"])
    seconds = [row["seconds"] for row in history]
    return {
        "epoch": best["epoch"],
        "epochs": len(history),
        "seconds": round(sum(seconds), 3),
        "images_per_second": num_images / float(np.median(seconds)),
    }


def report(figures):
    """Print how good the best epoch is, and what the figures advise."""
    units = {
        "seconds": "s",
        "psnr": "dB",
        "elbo": "nats per image",
        "kl": "nats per image",
        "kl_per_latent": "nats per image",
        "share_in_grid": "of the codes, within 5 % to 95 % of the prior in z[0], z[1]",
    }
    print("The best epoch, on the held-out images:")
    for name, value in figures.items():
        unit = units.get(name, "")
        if name.startswith("cross_entropy"):
            unit = "nats per value"
        text = str(value)
        if isinstance(value, float):
            text = f"{value:.6g}"
        print(f"{name + ':':26}{text} {unit}".rstrip())
    if figures["cross_entropy"] > figures["cross_entropy_mean_image"]:
        print("It is worse than the mean image: raise EPOCHS, or lower LEARNING_RATE.")
    if figures["share_in_grid"] <= 0.6:
        print("Raise KL_WEIGHT to bring share_in_grid nearer to 0.81, the prior's.")
    if figures["share_in_grid"] >= 0.97:
        print("Lower KL_WEIGHT to bring share_in_grid nearer to 0.81, the prior's.")


def plot_loss(path, history):
    """Draw both terms of the loss over the epochs, in training and held out."""
    figure = matplotlib.figure.Figure((10, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    panels = [
        (left, "reconstruction_loss", "nats per value"),
        (right, "kl_loss", "nats per image"),
    ]
    for axes, name, unit in panels:
        training = [row[name] for row in history]
        held_out = [row[f"val_{name}"] for row in history]
        axes.plot(epochs, training, ".-", label="training")
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
    # All in pixels, as the figure has 100 an inch; 40 of them are for the caption.
    height = canvas.shape[0] * scale
    width = canvas.shape[1] * scale
    figure = matplotlib.figure.Figure((width / 100, (height + 40) / 100), dpi=100)
    caption = "above: held-out training images, check rights before publishing"
    figure.text(0.5, 12 / (height + 40), caption, ha="center")
    axes = figure.add_axes((0, 40 / (height + 40), 1, height / (height + 40)))
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


class Drawing(keras.callbacks.Callback):
    """Draw loss.png and reconstructions.png, every five epochs.

    Args:
        folder: FIGURE_DIR as a path.
        history: the list that Backup appends to.
        examples: held-out images, float32 (B, H, W, C) in 0..1.
        encoder, decoder: the models that are trained; the decoder ends in logits.
    """

    def __init__(self, folder, history, examples, encoder, decoder):
        super().__init__()
        self.folder = folder
        self.history = history
        self.examples = examples
        self.encoder = encoder
        self.decoder = decoder

    def on_epoch_end(self, epoch, logs=None):
        if epoch % 5 > 0:
            return
        try:
            self.draw()
        except Exception as error:  # a picture is not worth the training
            reason = describe_error(error)
            text = f"Cannot draw in {self.folder}: {reason}. The training goes on."
            print(text, file=sys.stderr)

    def draw(self):
        z_mean, _ = self.encoder(self.examples)
        decoded = np.asarray(ops.sigmoid(self.decoder(z_mean)))
        plot_loss(self.folder / "loss.png", self.history)
        plot_reconstructions(
            self.folder / "reconstructions.png", self.examples, decoded
        )


# ----------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------
@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its place on success.

    Temporary files of `path` that runs left when they were killed go as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for leftover in path.parent.glob(f".*-{glob.escape(path.name)}"):
        pid = leftover.name[1:].partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def is_running(pid):
    """Return whether a process of this number runs on this machine."""
    if os.name == "nt":
        return True  # os.kill would end it there: rather a file too many
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


def read_images(path):
    """Map an array into memory and read it once.

    Returns:
        images: uint8 (N, H, W, C), in a memory map.
        images_id: a part of the SHA-256 of the file.
        num_train: how many rows there are to train on; the others are held out.
        mean_image: the mean of the rows to train on, float32 (H, W, C) in 0..1.

    Raises:
        ValueError: It is not uint8 (N, H, W, C), or does not fit the network, or all
            images are the same.
        OSError: It cannot be read.
    """
    images = open_images(path)
    # A tenth at most, and an even number: row 2i + 1 may be the mirror of row 2i.
    num_train = len(images) - min(VALIDATION_IMAGES, len(images) // 20 * 2)
    digest = hashlib.sha256()
    total = np.zeros(images.shape[1:])
    differ = False
    rows = max(1, 20_000_000 // images[0].nbytes)  # memory does not grow with N
    with open(path, "rb") as file:
        for start in range(0, len(images), rows):
            block = images[start : start + rows]
            digest.update(file.read(block.nbytes))  # the same bytes, from the cache
            training = images[start : min(start + rows, num_train)]
            total += training.sum(axis=0, dtype=np.uint32)  # a block cannot exceed it
            if not differ:
                differ = bool((training != images[0]).any())
        digest.update(file.read())  # what remains, as the header has its bytes too
    if not differ:
        raise ValueError("all its images are the same, so there is nothing to learn")
    mean_image = (total / (255 * num_train)).astype("float32")
    return images, digest.hexdigest()[:16], num_train, mean_image


def open_images(path):
    """Map an array into memory, and check that a network can be trained on it."""
    images = np.lib.format.open_memmap(path, mode="r")
    found = f"it holds {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"{found}, expected uint8 (N, H, W, C) with C = 1 or 3")
    height, width = images.shape[1:3]
    if height != width or height < 28 or height % 4 > 0:
        raise ValueError(f"{found}, expected a side of 28 or more that 4 divides")
    if len(images) < 20:
        raise ValueError(f"{found}, expected 20 rows at the least")
    return images


def check_places(model_dir, figure_dir):
    """Find out whether all files can be written, rather now than after hours.

    Raises:
        OSError: One of them cannot; it names it.
    """
    models = ("encoder.keras", "decoder.keras", "summary.json", "history.csv")
    files = [model_dir / name for name in (*models, "backup.npz", "backup-before.npz")]
    files += [figure_dir / "loss.png", figure_dir / "reconstructions.png"]
    for folder in (model_dir, figure_dir):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:  # it names the file that was tried
            raise OSError(error.errno, error.strerror, str(folder)) from error
    for path in files:
        if path.is_dir():  # os.replace would refuse it only after the first epoch
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def describe_training(side, num_train, images_id):
    """Return all that a model depends on, but for EPOCHS and the devices.

    It holds what is in effect, so that another way to write the same is no change.
    """
    stages, _ = plan_stages(side, FILTERS)
    return {
        "LATENT_DIM": LATENT_DIM,
        "FILTERS": [*stages, FILTERS[-1]],  # the last one is the width of dense layers
        "ACTIVATION": ACTIVATION,
        "KL_WEIGHT": float(KL_WEIGHT),
        "BATCH_SIZE": min(BATCH_SIZE, num_train),
        "OPTIMIZER": OPTIMIZER,
        "LEARNING_RATE": choose_rate(OPTIMIZER, LEARNING_RATE),
        "PRECISION": PRECISION,
        "SEED": SEED,
        "num_train": num_train,  # it follows from VALIDATION_IMAGES
        "images_id": images_id,
    }


def describe_settings(num_train, images_id):
    """Return the settings as they stand at the top of the script, and the data."""
    return {
        "LATENT_DIM": LATENT_DIM,
        "FILTERS": list(FILTERS),
        "ACTIVATION": ACTIVATION,
        "KL_WEIGHT": KL_WEIGHT,
        "EPOCHS": EPOCHS,
        "BATCH_SIZE": BATCH_SIZE,
        "OPTIMIZER": OPTIMIZER,
        "LEARNING_RATE": LEARNING_RATE,
        "VALIDATION_IMAGES": VALIDATION_IMAGES,
        "PRECISION": PRECISION,
        "SEED": SEED,
        "images_id": images_id,
        "num_train": num_train,
    }


def save_models(folder, encoder, decoder, settings, figures):
    """Save both models under an id made of their weights, and what is known of them."""
    # The same id in both files shows that they belong together.
    digest = hashlib.sha256()
    for weights in [*encoder.get_weights(), *decoder.get_weights()]:
        digest.update(weights.tobytes())
    model_id = digest.hexdigest()[:8]
    encoder.name = f"encoder_{model_id}"
    decoder.name = f"decoder_{model_id}"
    now = datetime.datetime.now().astimezone()
    summary = {
        "model_id": model_id,
        "trained_at": now.isoformat(timespec="seconds"),
        "settings": settings,
        "kl_weights": final_kl_weights(KL_WEIGHT, LATENT_DIM),
        "figures": figures,
        "versions": {
            "numpy": np.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        "python": platform.python_version(),
    }
    text = json.dumps(summary, indent=2) + "\n"
    # All three are written before the first takes its place.
    with (
        replacing(folder / "encoder.keras") as encoder_file,
        replacing(folder / "decoder.keras") as decoder_file,
        replacing(folder / "summary.json") as summary_file,
    ):
        encoder.save(encoder_file)
        decoder.save(decoder_file)
        summary_file.write_text(text, encoding="utf-8", newline="\n")


# ----------------------------------------------------------------------------
# Checks of the settings
# ----------------------------------------------------------------------------
def check(good, name, value, expected):
    """End the script with a message if a setting is not what it has to be."""
    if not good:
        script = Path(__file__).name
        text = f"{name} = {value!r}: expected {expected}"
        sys.exit(f"{text}. Edit it at the top of {script}.")


def is_whole(value, low, high=1_000_000):
    """Return whether a value is a whole number from low to high, and no bool."""
    return type(value) is int and low <= value <= high


def is_number(value, low, high=math.inf):
    """Return whether a value is a finite number from low to high, and no bool."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def is_text(value, longest=1000):
    """Return whether a value is a text, and not an empty or a very long one."""
    return isinstance(value, str) and 0 < len(value.strip()) <= longest


def check_settings():
    """End the script with a message if a setting is not what it has to be."""
    for name, value in (
        ("INPUT_FILE", INPUT_FILE),
        ("MODEL_DIR", MODEL_DIR),
        ("FIGURE_DIR", FIGURE_DIR),
    ):
        check(is_text(value), name, value, "a path in quotes")
    expected = "a whole number from 2 to 1024"
    check(is_whole(LATENT_DIM, 2, 1024), "LATENT_DIM", LATENT_DIM, expected)
    good = isinstance(FILTERS, (tuple, list)) and len(FILTERS) > 0
    good = good and all(is_whole(width, 1, 4096) for width in FILTERS)
    check(good, "FILTERS", FILTERS, "channels from 1 to 4096, such as (32, 64, 128)")
    names = ("leaky_relu", "silu")
    check(ACTIVATION in names, "ACTIVATION", ACTIVATION, f"one of {names}")
    check(is_number(KL_WEIGHT, 0, 10), "KL_WEIGHT", KL_WEIGHT, "a number from 0 to 10")
    expected = "a whole number from 1 to 1,000,000"
    check(is_whole(EPOCHS, 1), "EPOCHS", EPOCHS, expected)
    check(is_whole(BATCH_SIZE, 1), "BATCH_SIZE", BATCH_SIZE, expected)
    names = ("adam", "rmsprop", "sgd")
    check(OPTIMIZER in names, "OPTIMIZER", OPTIMIZER, f"one of {names}")
    good = LEARNING_RATE is None
    if not good:
        good = is_number(LEARNING_RATE, 0, 100) and LEARNING_RATE > 0
    check(good, "LEARNING_RATE", LEARNING_RATE, "None or a number above 0, up to 100")
    good = is_whole(VALIDATION_IMAGES, 2) and VALIDATION_IMAGES % 2 == 0
    expected = "an even number from 2 to 1,000,000"
    check(good, "VALIDATION_IMAGES", VALIDATION_IMAGES, expected)
    names = ("float32", "mixed_bfloat16", "mixed_float16")
    check(PRECISION in names, "PRECISION", PRECISION, f"one of {names}")
    expected = "a whole number from 0 to 2**32 - 1"
    check(is_whole(SEED, 0, 2**32 - 1), "SEED", SEED, expected)


# ----------------------------------------------------------------------------
# Messages and errors
# ----------------------------------------------------------------------------
def open_streams():
    """Make stdout take any text, also in a notebook, and replace closed streams."""
    if sys.stdout is None:  # closed by >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout is no real stream
        sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be shown
    if sys.stderr is None:  # closed by 2>&-: fill its place, or a file of ours gets it
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass


def is_terminal():
    """Return whether somebody sees stdout as it grows, so that a bar may move there."""
    # A window that stands for stdout need not have isatty.
    return hasattr(sys.stdout, "isatty") and sys.stdout.isatty()


def describe_error(error):
    """Return what an exception says, in one line; of an OSError its reason alone."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    text = " ".join(text.split())[:300]
    # The others say little without their names: a KeyError holds only the key.
    if not text or not isinstance(error, (OSError, ValueError, ArithmeticError)):
        text = f"{type(error).__name__}: {text}"
    return text


def stop(error, path):
    """End the script with one message about an OSError, of stdout or of a file.

    Args:
        error: the OSError. Where it names no file, it was met in writing.
        path: what was most likely being written then.
    """
    reason = describe_error(error)
    try:
        print(flush=True)  # unbuffered, what was refused is gone: does it take a line?
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # or Python complains again at its end
        sys.exit(f"Cannot write to stdout: {reason}. Mend it and run again.")
    name = Path(error.filename or path).resolve()
    name = name.with_name(name.name.removeprefix(f".{os.getpid()}-"))  # of replacing()
    sys.exit(f"Cannot write {name}: {reason}. Mend it and run again.")


# ----------------------------------------------------------------------------
# All of it
# ----------------------------------------------------------------------------
def prepare_keras(precision):
    """Set Keras as this script needs it, whatever keras.json or a notebook has set.

    Args:
        precision: dtype policy of layers that name none, for example "float32".
    """
    backend = keras.config.backend()
    if backend != "tensorflow":
        sys.exit(
            f"Keras runs on {backend} in this session, expected tensorflow. "
            "Run the script from a shell, or first in a new session."
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    keras.config.set_dtype_policy(precision)


def choose_batch_size(num_train, num_held_out, strategy):
    """Return how many images a step takes on all devices together.

    Each takes BATCH_SIZE of them, or its share of all rows if those are fewer.
    """
    replicas = strategy.num_replicas_in_sync
    if num_held_out < replicas:
        sys.exit(
            f"Found {num_held_out} rows to hold out, expected one for each of "
            f"{replicas} devices. Prepare more pictures, or use fewer devices."
        )
    if num_train < BATCH_SIZE * replicas:
        print(f"{BATCH_SIZE = } is more than {num_train} rows have: a step takes all.")
    return min(BATCH_SIZE, num_train // replicas) * replicas


def print_plan(images, num_train, parameters, batch_size, replicas):
    """Print what will be trained, on what, for how long."""
    shape = " x ".join(str(size) for size in images.shape[1:])
    device = "CPU"
    if tf.config.list_physical_devices("GPU"):
        device = "GPU"
    print(
        f"Training on {num_train} rows of {shape}, {len(images) - num_train} held out: "
        f"{parameters:,} parameters; {EPOCHS} epochs of {num_train // batch_size} "
        f"steps of {batch_size} images on {replicas} x {device}"
    )
    print(
        "loss: with the KL weights of the moment, which rise during the first epochs;"
    )
    print("loss_final: with the final ones. This is the loss in history.csv.")


def fit(vae, datasets, steps, callbacks, history, worker):
    """Train the epochs that are left, and say on Ctrl-C how many are done."""
    training, held_out = datasets
    verbose = 0  # worker 0 speaks for all
    if worker == 0:
        verbose = 2  # a line an epoch
        if is_terminal():
            verbose = 1  # a bar that moves
    try:
        vae.fit(
            training,
            shuffle=False,  # the dataset does that
            steps_per_epoch=steps,
            initial_epoch=len(history),
            epochs=EPOCHS,
            validation_data=held_out,
            callbacks=callbacks,
            verbose=verbose,
        )
    except KeyboardInterrupt:
        print(f"\n{len(history)} of {EPOCHS} epochs are done.", file=sys.stderr)
        raise


def train(images, images_id, num_train, mean_image, addresses, worker):
    """Train from where the backup stopped, if there is one, and write all files.

    Args:
        images, images_id, num_train, mean_image: of read_images.
        addresses, worker: of read_cluster. Worker 0 speaks for all and writes.
    """
    side, _, channels = images.shape[1:]
    folder = Path(MODEL_DIR)
    strategy = choose_strategy(addresses, worker)
    replicas = strategy.num_replicas_in_sync
    batch_size = choose_batch_size(num_train, len(images) - num_train, strategy)
    steps = num_train // batch_size
    sizes = (side, channels, LATENT_DIM, FILTERS, ACTIVATION)
    encoder, decoder, vae = build_models(sizes, mean_image, strategy)
    settings = describe_training(side, num_train, images_id)
    backup = Backup(folder, settings, batch_size, worker)
    text = backup.restore(vae)
    history = backup.history
    if worker == 0:
        print_plan(images, num_train, vae.count_params(), batch_size, replicas)
        print(text, end="", flush=True)
    if addresses:
        compare_workers(strategy, settings, history)
    datasets = make_datasets(
        images, num_train, batch_size, SEED, len(history), replicas
    )
    examples = images[num_train:][:20:2] / np.float32(255)  # others may be mirrors
    drawing = Drawing(Path(FIGURE_DIR), history, examples, encoder, decoder)
    rate = choose_rate(OPTIMIZER, LEARNING_RATE)
    schedule = Schedule(rate, final_kl_weights(KL_WEIGHT, LATENT_DIM))
    callbacks = [schedule, StopIfDiverging(), backup]  # no backup of what diverged
    if worker == 0:
        callbacks += [drawing, RemainingTime(history, EPOCHS)]
    if len(history) < EPOCHS:
        fit(vae, datasets, steps, callbacks, history, worker)
    if worker > 0:
        return
    vae.set_weights(backup.best)  # of the best epoch, not of the last
    stock = build_stock_decoder(decoder, *sizes)
    figures = describe_epochs(history, steps * batch_size)
    figures["beta"] = KL_WEIGHT * mean_image.size
    figures |= measure(encoder, stock, datasets[1], mean_image, SEED)
    report(figures)
    save_models(
        folder, encoder, stock, describe_settings(num_train, images_id), figures
    )
    drawing.draw()
    print(f"Wrote loss.png and reconstructions.png in {drawing.folder}")
    print(f"Wrote {folder / 'encoder.keras'} and {folder / 'decoder.keras'}")


def main():
    check_settings()
    prepare_keras(PRECISION)
    addresses, worker = read_cluster()
    path = Path(INPUT_FILE)
    print(f"Reading {path}", flush=True)
    try:
        images, images_id, num_train, mean_image = read_images(path)
    except FileNotFoundError:
        sys.exit(f"Found no {path.resolve()} (INPUT_FILE). Run preprocess.py first.")
    except (ValueError, OSError) as error:
        reason = describe_error(error)
        remedy = "Run preprocess.py again."
        sys.exit(f"Cannot use {path.resolve()} (INPUT_FILE): {reason}. {remedy}")
    check_places(Path(MODEL_DIR), Path(FIGURE_DIR))
    try:
        train(images, images_id, num_train, mean_image, addresses, worker)
    except FloatingPointError as error:
        remedy = "Lower LEARNING_RATE; earlier models are as they were."
        sys.exit(f"Stopped: {error}. {remedy}")
    except tf.errors.OpError as error:  # no memory, or a worker that has gone
        reason = error.message.strip().partition("\n")[0]
        remedy = "If memory ran out, lower BATCH_SIZE; then start all workers again."
        sys.exit(f"Stopped: {reason}. {remedy}")


if __name__ == "__main__":
    open_streams()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Stopped: whole epochs are kept. Run again to go on.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        stop(error, MODEL_DIR)
