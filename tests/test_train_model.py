"""train_vae.py: its layers and functions, and the script as users run it."""

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import copy_script, load_script, run_script
from PIL import Image

train_vae = load_script("train_vae.py")
keras, tf = train_vae.keras, train_vae.tf

cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()]
tf.config.set_logical_device_configuration(cpu, two)  # for MirroredStrategy

FILTERS = (4, 8, 8, 16)


def draw_images(count, side=32, channels=3, seed=0):
    """Draw discs of two factors, uint8 (count, side, side, channels).

    Row 2i + 1 is the mirror of row 2i.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    rows = []
    for _ in range(count // 2):
        place, size = random.uniform(-0.5, 0.5), random.uniform(0.2, 0.5)
        disc = np.hypot(x - place, y) < size
        image = np.where(disc[..., None], (230, 160, 90)[:channels], 30)
        rows += [image, image[:, ::-1]]
    return np.array(rows, np.uint8)


def prepare(folder, images):
    """Save images where train_vae.py looks for them."""
    (folder / "data").mkdir(exist_ok=True)
    np.save(folder / "data/images.npy", images)


def small(**edits):
    """Return settings that train within seconds."""
    return {"FILTERS": FILTERS, "EPOCHS": 6, "BATCH_SIZE": 16, **edits}


def read_history(folder):
    with open(folder / "model/history.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- the layers


@pytest.mark.parametrize(
    ("side", "used", "stride", "base"),
    [(28, 2, 2, 7), (36, 2, 2, 9), (44, 2, 2, 11), (64, 3, 2, 8), (128, 4, 2, 8)]
    + [(256, 4, 4, 8), (512, 4, 4, 16)],
)
def test_depth_follows_the_side(side, used, stride, base):
    stages = train_vae.plan_stages(side, (32, 64, 128, 256))
    assert stages == ((32, 64, 128, 256)[:used], stride)
    assert side == base * stride * 2 ** (used - 1)


def call_loss(images, logits, z_mean, z_log_var, kl_weight=0.5):
    layer = train_vae.VAELoss(kl_weight)
    layer([np.asarray(x, "float32") for x in (images, logits, z_mean, z_log_var)])
    parts = {metric.name: float(metric.result()) for metric in layer.metrics}
    return float(layer.losses[0]), parts["reconstruction_loss"], parts["kl_loss"]


def test_loss_of_known_values():
    images, zero = np.full((2, 4, 4, 3), 0.3), np.zeros((2, 5))
    logits = np.zeros((2, 4, 4, 3))
    assert call_loss(images, logits, zero, zero) == pytest.approx(
        (math.log(2), math.log(2), 0), abs=1e-6
    )
    loss, reconstruction, kl = call_loss(images, logits + 1, zero + 1, zero)
    assert kl == pytest.approx(5 / 2)
    assert reconstruction == pytest.approx(math.log(1 + math.e) - 0.3, rel=1e-6)
    assert loss == pytest.approx(reconstruction + 0.5 * kl)
    _, _, kl = call_loss(images, logits, zero, zero + math.log(4))
    assert kl == pytest.approx(5 * (4 - 1 - math.log(4)) / 2, rel=1e-6)


def test_figures_of_an_epoch_count_images_not_batches():
    layer = train_vae.VAELoss(1.0)
    for size, z in ((3, 1.0), (1, 5.0)):  # a short last batch
        images, zero = np.zeros((size, 4, 4, 3)), np.zeros((size, 1))
        layer([images, images + z, zero + z, zero])
    parts = {metric.name: float(metric.result()) for metric in layer.metrics}
    assert parts["kl_loss"] == pytest.approx((3 * 1 + 1 * 25) / 4 / 2)
    softplus = np.log1p(np.exp([1, 1, 1, 5]))
    assert parts["reconstruction_loss"] == pytest.approx(softplus.mean(), rel=1e-5)


def test_loss_is_the_articles():
    random = np.random.default_rng(1)
    images, logits = random.uniform(size=(2, 3, 4, 4, 3))
    z_mean, z_log_var = random.normal(size=(2, 3, 2))
    loss, _, _ = call_loss(images, logits, z_mean, z_log_var, kl_weight=5e-4)
    p = 1 / (1 + np.exp(-logits))
    cross_entropy = -np.mean(images * np.log(p) + (1 - images) * np.log(1 - p))
    kl = -5e-4 * np.mean(1 + z_log_var - z_mean**2 - np.exp(z_log_var))
    assert loss == pytest.approx(cross_entropy + kl, rel=1e-5)


def test_loss_stays_finite_for_any_logit():
    logits = tf.Variable([[-1e4, 1e4, -50.0, 50.0]])
    images, zero = tf.constant([[0.0, 1.0, 1.0, 0.3]]), tf.zeros((1, 2))
    with tf.GradientTape() as tape:
        layer = train_vae.VAELoss(1.0)
        layer([images, logits, zero, zero])
        loss = layer.losses[0]
    assert np.isfinite(loss)
    assert np.abs(tape.gradient(loss, logits)).max() <= 1


def test_sampling_has_the_half_and_a_seed():
    z_mean, z_log_var = np.full((50_000, 1), 2.0), np.full((50_000, 1), 2 * math.log(3))
    inputs = [z_mean.astype("float32"), z_log_var.astype("float32")]
    z = np.asarray(train_vae.Sampling(7)(inputs))
    assert z.mean() == pytest.approx(2, abs=0.05)
    assert z.std() == pytest.approx(3, rel=0.02)
    assert (z == np.asarray(train_vae.Sampling(7)(inputs))).all()
    assert (z != np.asarray(train_vae.Sampling(8)(inputs))).any()


def test_up_conv_is_up_sampling_and_convolution():
    inputs = tf.random.stateless_normal((2, 5, 7, 3), (1, 2))
    ours = train_vae.UpConv2D(4, 3, padding="same", activation="relu")
    stock = keras.layers.Conv2D(4, 3, padding="same", activation="relu")
    stock.build((None, 10, 14, 3))
    results = []
    with tf.GradientTape(persistent=True) as tape:
        ours(inputs)
        stock.set_weights(ours.get_weights())
        for layer, x in ((ours, inputs), (stock, keras.layers.UpSampling2D()(inputs))):
            outputs = layer(x)
            loss = tf.reduce_sum(outputs**2)
            results.append((outputs, loss, layer.trainable_variables))
    assert results[0][0].shape == (2, 10, 14, 4)
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    for a, b in zip(results[0][2], results[1][2], strict=True):
        gradients = tape.gradient(results[0][1], a), tape.gradient(results[1][1], b)
        np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- the models


@pytest.mark.parametrize(
    ("side", "channels", "latent_dim"),
    [(28, 1, 2), (36, 3, 3), (64, 1, 16), (256, 3, 2)],
)
def test_saved_decoder_is_stock_and_equals_the_trained_one(side, channels, latent_dim):
    shape = (side, channels, latent_dim, FILTERS)
    encoder = train_vae.build_encoder(*shape)
    trained = train_vae.build_decoder(*shape, training=True)
    saved = train_vae.build_decoder(*shape, training=False)
    saved.set_weights(trained.get_weights())
    for layer in [*encoder.layers, *saved.layers]:
        assert type(layer).__module__.startswith("keras.")
    z = np.random.default_rng(0).normal(size=(3, latent_dim)).astype("float32")
    images = np.asarray(saved(z))
    assert images.shape == (3, side, side, channels) and images.dtype == np.float32
    np.testing.assert_allclose(images, tf.sigmoid(trained(z)), atol=1e-6)
    z_mean, z_log_var = encoder(images)
    assert z_mean.shape == z_log_var.shape == (3, latent_dim)
    assert np.abs(z_log_var).max() == 0


def test_log_variance_is_bounded():
    encoder = train_vae.build_encoder(28, 1, 2, FILTERS)
    encoder.set_weights([weight + 1e3 for weight in encoder.get_weights()])
    z_log_var = np.asarray(encoder(np.ones((1, 28, 28, 1), "float32"))[1])
    assert z_log_var.tolist() == [[10, 10]]


def build(filters=FILTERS, replicas=1):
    keras.utils.set_random_seed(0)
    encoder = train_vae.build_encoder(28, 1, 2, filters)
    decoder = train_vae.build_decoder(28, 1, 2, filters, training=True)
    vae = train_vae.build_vae(encoder, decoder, 5e-4, 0)
    vae.compile(train_vae.build_optimizer("adam", None, 300, replicas))
    vae.optimizer.build(vae.trainable_variables)
    return vae, encoder, decoder


def test_gradients_reach_every_weight():
    vae, encoder, decoder = build()
    images = draw_images(8, 28, 1) / np.float32(255)
    with tf.GradientTape() as tape:
        vae(images)
        loss = tf.add_n(vae.losses)
    assert len(vae.losses) == 1
    gradients = tape.gradient(loss, vae.trainable_variables)
    weights = encoder.trainable_variables + decoder.trainable_variables
    assert len(gradients) == len(weights)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_some_hundred_steps_learn_a_few_images():
    vae, _, _ = build()
    images = draw_images(16, 28, 1) / np.float32(255)
    p = np.clip(images, 1e-7, 1 - 1e-7)
    floor = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    before = vae.evaluate(images, verbose=0, return_dict=True)["reconstruction_loss"]
    steps = tf.data.Dataset.from_tensor_slices(images).batch(16).repeat(300)
    vae.fit(steps, verbose=0)
    after = vae.evaluate(images, verbose=0, return_dict=True)["reconstruction_loss"]
    assert after - floor < (before - floor) / 2


def test_the_kl_weight_rises_in_the_first_half_and_the_record_has_the_whole(tmp_path):
    vae, _, _ = build()
    recorder = train_vae.Recorder(tmp_path, {"KL_WEIGHT": 5e-4}, 10)
    recorder.set_model(vae)
    weights = []
    for epoch in range(10):
        recorder.on_epoch_begin(epoch)
        weights.append(float(vae.get_layer("loss").kl_weight))
    np.testing.assert_allclose(weights[:5], 5e-4 * np.array([0.1, 0.3, 0.5, 0.7, 0.9]))
    np.testing.assert_allclose(weights[5:], 5e-4)
    logs = {"loss": 0.6, "reconstruction_loss": 0.5, "kl_loss": 20.0}
    recorder.on_epoch_end(0, logs | {f"val_{name}": x for name, x in logs.items()})
    assert recorder.history[0]["loss"] == recorder.history[0]["val_loss"] == 0.51


def test_a_loss_that_is_not_finite_stops_the_training_at_once(tmp_path):
    vae, _, _ = build()
    recorder = train_vae.Recorder(tmp_path, {"KL_WEIGHT": 5e-4}, 10)
    images = draw_images(64, 28, 1) / np.float32(255)
    images[40] = np.nan
    steps = tf.data.Dataset.from_tensor_slices(images).batch(16)
    with pytest.raises(FloatingPointError, match="the loss has risen to nan"):
        vae.fit(steps, epochs=2, verbose=0, callbacks=[recorder])
    assert (recorder.history, list(tmp_path.iterdir())) == ([], [])


def awkward_images():
    """Return {what: uint8 (64, 28, 28, 1)}, with little to learn or much at once."""
    pixel, halves, outlier, black = np.zeros((4, 64, 28, 28, 1), np.uint8)
    pixel[np.arange(64), np.arange(64) % 28, 5] = 255
    halves[::2] = 255
    outlier[:] = 128
    outlier[7] = np.random.default_rng(0).integers(0, 256, (28, 28, 1))
    black[0, 0, 0] = 1
    return {"pixel": pixel, "halves": halves, "outlier": outlier, "black": black}


@pytest.mark.parametrize("what", awkward_images())
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_awkward_images_are_learned_too(what, optimizer, tmp_path):
    images = awkward_images()[what]
    mean_image = train_vae.average_images(images)
    settings = {"SEED": 0, "PRECISION": "float32", "KL_WEIGHT": 5e-4}
    settings |= {"LEARNING_RATE": None, "OPTIMIZER": optimizer}
    strategy = tf.distribute.get_strategy()
    sizes = (28, 1, 2, FILTERS)
    encoder, decoder, vae = train_vae.build_models(sizes, settings, 200, strategy)
    steps = tf.data.Dataset.from_tensor_slices(images / np.float32(255)).batch(16)
    recorder = train_vae.Recorder(tmp_path, settings, 5)
    vae.fit(steps.repeat(10), epochs=5, validation_data=steps, verbose=0,
            callbacks=[recorder])  # fmt: skip
    saved = train_vae.build_decoder(*sizes, training=False)
    saved.set_weights(decoder.get_weights())
    figures = train_vae.measure(encoder, saved, steps, mean_image)
    assert all(np.isfinite(value).all() for value in figures.values())
    mean = figures["cross_entropy_mean_image"]
    assert figures["cross_entropy"] < mean + 0.01


def test_gradients_of_all_devices_together_are_clipped_to_one():
    for replicas in (1, 2):
        optimizer = train_vae.build_optimizer("adam", None, 300, replicas)
        assert optimizer.global_clipnorm * replicas == 1


def test_a_backup_brings_everything_back_or_says_why_not(tmp_path):
    vae, _, _ = build()
    settings = {"KL_WEIGHT": 5e-4, "SEED": 0}
    first = train_vae.Recorder(tmp_path, settings, 10)
    assert first.restore(vae) == ""
    first.on_epoch_begin(0)
    vae.train_on_batch(draw_images(16, 28, 1) / np.float32(255))
    for epoch, loss in enumerate((0.5, 0.4, 0.6)):
        logs = {"reconstruction_loss": loss, "kl_loss": 2.0}
        first.on_epoch_end(epoch, logs | {f"val_{x}": y for x, y in logs.items()})
        vae.get_layer("loss").kl_weight.assign(epoch + 1)  # a mark of the epoch
    first.on_epoch_end(3, logs | {f"val_{x}": y for x, y in logs.items()})

    other, _, _ = build()
    second = train_vae.Recorder(tmp_path, settings, 10)
    assert second.restore(other) == "4 of 10 epochs are done: going on\n"
    assert second.history == first.history
    for old, new in zip(first.variables(), second.variables(), strict=True):
        np.testing.assert_array_equal(old, new)
    marks = [weight.ravel()[0] for weight in second.best if weight.ndim == 0]
    assert marks == [1]  # the second epoch had the lowest loss
    second.epochs = 4
    assert "4 of 4 epochs are done: raise EPOCHS" in second.restore(other)

    changed = train_vae.Recorder(tmp_path, {**settings, "SEED": 1}, 10)
    assert "SEED was 0, now it is 1" in changed.restore(other)
    wider, _, _ = build(filters=(8, 8))
    text = train_vae.Recorder(tmp_path, settings, 10).restore(wider)
    assert text.startswith("Starting afresh") and "another network" in text
    first.backup_file.write_bytes(first.backup_file.read_bytes()[:-100])
    text = train_vae.Recorder(tmp_path, settings, 10).restore(other)
    assert text.startswith("Starting afresh") and str(first.backup_file) in text


def test_a_full_disk_leaves_the_earlier_models_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource")
    _, encoder, _ = build()
    decoder = train_vae.build_decoder(28, 1, 2, FILTERS, training=False)
    train_vae.save_models(tmp_path, encoder, decoder, {}, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"encoder.keras", "decoder.keras", "summary.json"}
    encoder.set_weights([weight + 1 for weight in encoder.get_weights()])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 30_000):
        assert size < len(before["decoder.keras"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError):
                train_vae.save_models(tmp_path, encoder, decoder, {}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_leftovers_of_killed_runs_are_cleared_and_others_stay(tmp_path):
    for name in (".1-loss.png", ".2-loss.png", ".1-other.png"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".1-loss.png", (0, 0))
    os.utime(tmp_path / ".1-other.png", (0, 0))
    with train_vae.replacing(tmp_path / "loss.png") as path:
        path.touch()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".2-loss.png", ".1-other.png", "loss.png"}


# ---------------------------------------------------------------------- the data


def rows_of(dataset, batches):
    """Return the first value of each image of some batches: here, its row number."""
    taken = dataset.take(batches) if batches else dataset
    return [np.rint(batch[:, 0, 0, 0].numpy() * 255).astype(int) for batch in taken]


def test_datasets_visit_each_row_once_an_epoch_in_a_known_order():
    images = np.arange(70, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 1), np.uint8
    )
    training, held_out = train_vae.make_datasets(images, 64, 16, 5, 0, 1)
    batch = next(iter(training))
    assert batch.dtype == tf.float32 and batch.shape == (16, 4, 4, 1)
    two_epochs = rows_of(training, 8)
    for epoch in (two_epochs[:4], two_epochs[4:]):
        assert sorted(np.concatenate(epoch)) == list(range(64))
    assert {*two_epochs[0]} != {*two_epochs[4]}
    resumed, _ = train_vae.make_datasets(images, 64, 16, 5, 1, 1)
    np.testing.assert_array_equal(rows_of(resumed, 4), two_epochs[4:])
    other, _ = train_vae.make_datasets(images, 64, 16, 6, 0, 1)
    assert {*rows_of(other, 1)[0]} != {*two_epochs[0]}
    assert np.concatenate(rows_of(held_out, 0)).tolist() == list(range(64, 70))


def test_a_part_of_a_batch_is_left_out_and_replicas_get_equal_parts():
    images = np.zeros((45, 4, 4, 1), np.uint8)
    training, held_out = train_vae.make_datasets(images, 40, 16, 0, 0, 2)
    assert [len(rows) for rows in rows_of(training, 4)] == [16, 16, 16, 16]
    assert sum(len(rows) for rows in rows_of(held_out, 0)) == 4


def test_the_end_of_a_dataset_does_not_wait_for_the_tuner():
    datasets = train_vae.make_datasets(draw_images(40), 36, 12, 0, 0, 1)
    assert [x.options().autotune.enabled for x in datasets] == [False, False]


def test_average_images():
    images = np.random.default_rng(0).integers(0, 256, (130, 4, 4, 3)).astype(np.uint8)
    mean_image = train_vae.average_images(images)
    np.testing.assert_allclose(mean_image, images.mean(axis=0) / 255, rtol=1e-6)
    assert mean_image.dtype == np.float32
    with pytest.raises(ValueError, match="nothing to learn"):
        train_vae.average_images(np.repeat(images[:1], 100, axis=0))


def test_measure_against_numpy():
    _, encoder, _ = build()
    decoder = train_vae.build_decoder(28, 1, 2, FILTERS, training=False)
    images = draw_images(12, 28, 1) / np.float32(255)
    mean_image = images.mean(axis=0)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(8)
    figures = train_vae.measure(encoder, decoder, batches, mean_image)
    z_mean, z_log_var = (np.asarray(x) for x in encoder(images))
    decoded = np.asarray(decoder(z_mean))

    def cross_entropy(p):
        p = np.clip(p, 1e-7, 1 - 1e-7)
        return -np.mean(images * np.log(p) + (1 - images) * np.log(1 - p))

    assert figures["cross_entropy"] == pytest.approx(cross_entropy(decoded), rel=1e-5)
    mean = cross_entropy(np.broadcast_to(mean_image, images.shape))
    assert figures["cross_entropy_mean_image"] == pytest.approx(mean, rel=1e-5)
    lowest = cross_entropy(images)
    assert figures["cross_entropy_lowest"] == pytest.approx(lowest, rel=1e-4)
    excess = cross_entropy(decoded) - lowest
    assert figures["cross_entropy_excess"] == pytest.approx(excess, rel=1e-3)
    errors = np.mean((decoded - images) ** 2, axis=(1, 2, 3))
    assert figures["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-5)
    kl = (z_mean**2 + np.exp(z_log_var) - 1 - z_log_var) / 2
    assert figures["kl"] == pytest.approx(kl.sum(axis=1).mean(), abs=1e-5)
    assert figures["active_latents"] == (z_mean.var(axis=0) > 0.01).sum()
    assert 0 <= figures["ssim"] <= 1 and figures["sharpness"] < 1
    inside = (np.abs(z_mean) < 1.645).all(axis=1).mean()
    assert figures["share_in_grid"] == pytest.approx(inside)


# ---------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which six epochs were trained on 410 images, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder, draw_images(410))  # a tenth of them would part a pair
    result = run_script("train_vae.py", folder, **small())
    assert result.returncode == 0
    return folder, result


def read_summary(folder):
    return json.loads((folder / "model/summary.json").read_text(encoding="utf-8"))


def test_files_of_a_training(trained):
    folder, _ = trained
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert made - {"train_vae.py", "data/images.npy"} == {
        "model/encoder.keras",
        "model/decoder.keras",
        "model/history.csv",
        "model/summary.json",
        "model/backup.npz",
        "figures/loss.png",
        "figures/reconstructions.png",
    }
    history = read_history(folder)
    terms = ("loss", "reconstruction_loss", "kl_loss")
    names = {"epoch", "learning_rate", "seconds", *terms, *(f"val_{x}" for x in terms)}
    assert set(history[0]) == names
    assert [row["epoch"] for row in history] == list("123456")
    for row in history:
        parts = float(row["reconstruction_loss"]) + 5e-4 * float(row["kl_loss"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-5)
    summary = read_summary(folder)
    assert summary["settings"]["LATENT_DIM"] == 2
    assert summary["settings"]["num_train"] == 370
    best = min(history, key=lambda row: float(row["val_loss"]))
    values = 32 * 32 * 3
    elbo = -values * float(best["val_reconstruction_loss"]) - float(best["val_kl_loss"])
    figures = summary["figures"]
    assert figures["elbo"] == pytest.approx(elbo)
    assert figures["bits_per_value"] == pytest.approx(-elbo / values / math.log(2))
    assert figures["beta"] == pytest.approx(5e-4 * values)
    seconds = sorted(float(row["seconds"]) for row in history)
    rate = 23 * 16 / (seconds[2] + seconds[3]) * 2
    assert figures["images_per_second"] == pytest.approx(rate)
    for name, size in (("loss", (1000, 400)), ("reconstructions", (10 * 128, 2 * 128))):
        with Image.open(folder / f"figures/{name}.png") as image:
            image.load()
            assert image.width >= size[0] and image.height >= size[1]


def test_what_a_training_says(trained):
    _, result = trained
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Training on 370 rows of 32 x 32 x 3, 40 held out: ")
    assert "18,196 parameters; 6 epochs of 23 steps of 16 im" in lines[0]
    assert result.stdout.count("epochs are left, some ") == 1
    assert "5 epochs are left, some " in result.stdout
    units = {line.partition(":")[0]: line.rpartition(" ")[2] for line in lines}
    for name in ("elbo", "kl", "kl_per_latent"):
        assert units[name] == "image"
    for name in ("cross_entropy", "cross_entropy_mean_image", "cross_entropy_excess"):
        assert units[name] == "value"
    assert (units["psnr"], units["seconds"]) == ("dB", "s")
    for name in ("bits_per_value", "images_per_second", "share_in_grid", "ssim"):
        assert name in units
    assert lines[-1] == "Wrote model/encoder.keras and model/decoder.keras"


def test_saved_models_need_nothing_of_ours(trained):
    folder, _ = trained
    encoder = keras.saving.load_model(folder / "model/encoder.keras")
    decoder = keras.saving.load_model(folder / "model/decoder.keras")
    for layer in [*encoder.layers, *decoder.layers]:
        assert type(layer).__module__.startswith("keras.")
    summary = read_summary(folder)
    assert encoder.name == f"encoder_{summary['model_id']}"
    assert decoder.name == f"decoder_{summary['model_id']}"
    images = np.load(folder / "data/images.npy")[-40:] / np.float32(255)
    p = np.clip(np.asarray(decoder(encoder(images)[0])), 1e-7, 1 - 1e-7)
    cross_entropy = -np.mean(images * np.log(p) + (1 - images) * np.log(1 - p))
    expected = summary["figures"]["cross_entropy"]
    assert cross_entropy == pytest.approx(expected, rel=1e-4)


def test_a_finished_training_heals_its_files_goes_on_and_survives_a_change(
    trained, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    backup_file, encoder_file = (
        folder / f"model/{x}" for x in ("backup.npz", "encoder.keras")
    )
    size = encoder_file.stat().st_size
    encoder_file.write_bytes(b"half of a pair")
    with np.load(backup_file) as backup:
        arrays = dict(backup)
    best = {name for name in arrays if name.startswith("best_")}
    marked = {name: np.zeros_like(arrays[name]) for name in best}
    np.savez(backup_file, **{**arrays, **marked})
    again = run_script("train_vae.py", folder, **small())
    assert again.returncode == 0
    assert "6 of 6 epochs are done: raise EPOCHS" in again.stdout
    assert len(read_history(folder)) == 6
    assert encoder_file.stat().st_size == size
    decoder = keras.saving.load_model(folder / "model/decoder.keras")
    assert np.unique(decoder(np.ones((1, 2), "float32"))).tolist() == [0.5]

    more = run_script("train_vae.py", folder, **small(EPOCHS=7))
    assert more.returncode == 0 and "6 of 7 epochs are done: going on" in more.stdout
    assert [row["epoch"] for row in read_history(folder)] == list("1234567")

    models = {path: path.read_bytes() for path in folder.glob("model/*coder.keras")}
    settings = small(OPTIMIZER="sgd", LEARNING_RATE=1e30)
    hopeless = run_script("train_vae.py", folder, **settings)
    assert "OPTIMIZER was adam, now it is sgd" in hopeless.stdout
    assert hopeless.returncode == 1
    assert "Lower LEARNING_RATE" in hopeless.stderr
    assert len(hopeless.stderr.strip().splitlines()) == 1
    assert models == {path: path.read_bytes() for path in models}


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training ended too early"
        assert time.monotonic() < end, "the training never came so far"
        time.sleep(0.02)


def start(folder, environment=None, **edits):
    copy_script("train_vae.py", folder, **edits)
    return subprocess.Popen(
        [sys.executable, "train_vae.py"],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def strip(history):
    return [
        {name: float(value) for name, value in row.items() if name != "seconds"}
        for row in history
    ]


def test_a_stopped_and_a_killed_training_go_on_as_if_nothing_had_been(
    trained, tmp_path
):
    prepare(tmp_path, draw_images(410))
    stopped = start(tmp_path, **small())
    picture = tmp_path / "figures/reconstructions.png"  # drawn after the first epoch
    wait_for(picture.exists, stopped)
    stopped.send_signal(signal.SIGINT)
    _, stderr = stopped.communicate(timeout=60)
    done = len(read_history(tmp_path))
    assert stopped.returncode == 130 and done < 6
    assert f"{done} of 6 epochs are done." in stderr
    assert "run again to go on" in stderr and "Traceback" not in stderr
    assert not list(tmp_path.rglob(".*"))

    killed = start(tmp_path, **small())
    wait_for(lambda: len(read_history(tmp_path)) > done, killed)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "model/encoder.keras").exists()

    resumed = run_script("train_vae.py", tmp_path, **small())
    assert "of 6 epochs are done: going on" in resumed.stdout
    histories = [strip(read_history(folder)) for folder in (trained[0], tmp_path)]
    for row, other in zip(*histories, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    ids = [read_summary(folder)["model_id"] for folder in (trained[0], tmp_path)]
    assert ids[0] == ids[1]


def test_grey_images_and_bfloat16_and_more_latents_beside_a_torn_backup(tmp_path):
    prepare(tmp_path, draw_images(60, 28, 1))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/backup.npz").write_bytes(b"PK but not whole")
    settings = small(PRECISION="mixed_bfloat16", LATENT_DIM=5, EPOCHS=1, BATCH_SIZE=64)
    result = run_script("train_vae.py", tmp_path, **settings)
    assert result.returncode == 0
    assert "Starting afresh" in result.stdout
    assert "BATCH_SIZE = 64 is more than 54 rows" in result.stdout
    assert "1 epochs of 1 steps of 54 images" in result.stdout
    decoder = keras.saving.load_model(tmp_path / "model/decoder.keras")
    assert (decoder.input_shape, decoder.output_shape) == ((None, 5), (None, 28, 28, 1))
    assert decoder(np.zeros((1, 5), "float32")).dtype == "float32"
    assert len(read_summary(tmp_path)["figures"]["kl_per_latent"]) == 5


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_cluster(folders, **edits):
    """Run a worker in each folder; return their exit codes and what they printed."""
    workers = [f"127.0.0.1:{free_port()}" for _ in folders]
    processes = []
    for index, folder in enumerate(folders):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        processes.append(start(folder, {"TF_CONFIG": config}, **edits))
    outputs = [process.communicate(timeout=240) for process in processes]
    print(*sum(outputs, ()), sep="\n")
    return [process.returncode for process in processes], outputs


def test_two_workers_agree_with_one_process_and_notice_when_they_differ(tmp_path):
    folders = [tmp_path / name for name in ("worker0", "worker1", "single")]
    for folder in folders:
        folder.mkdir()
        prepare(folder, draw_images(200))
    settings = small(EPOCHS=3, OPTIMIZER="sgd")  # it follows the size of a gradient
    single = start(folders.pop(), **settings)
    codes, outputs = run_cluster(folders, **{**settings, "BATCH_SIZE": 8})
    single.communicate(timeout=240)
    assert [single.returncode, *codes] == [0, 0, 0]
    assert "11 steps of 16 images on 2 x CPU" in outputs[0][0]
    assert outputs[1][0] == ""  # the first speaks for all
    written = {path.name for path in (tmp_path / "worker1").rglob("*.*")}
    assert written == {"train_vae.py", "images.npy", "backup1.npz"}
    ours, theirs = (
        strip(read_history(tmp_path / name)) for name in ("single", "worker0")
    )
    assert ours[-1]["loss"] < 0.95 * ours[0]["loss"]
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.02)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=0.02)
    backup_files = [tmp_path / "worker0/model/backup.npz"]
    backup_files.append(tmp_path / "worker1/model/backup1.npz")
    backups = [np.load(path) for path in backup_files]
    for name in backups[0]:
        if name.startswith("best_"):
            np.testing.assert_array_equal(backups[0][name], backups[1][name])

    backup_files[1].unlink()
    settings |= {"BATCH_SIZE": 8, "EPOCHS": 4}
    codes, outputs = run_cluster(folders, **settings)
    assert codes == [1, 1]
    for (_, stderr), done in zip(outputs, (3, 0), strict=True):
        assert f"this one has done {done} of 4 epochs" in stderr
        assert "Traceback" not in stderr and "newest backup" in stderr


# ---------------------------------------------------------------------- bad input


def bad_inputs():
    good = draw_images(40)
    return {
        "float32": (good / 255).astype("float32"),
        "rank": good[..., 0],
        "two channels": good[..., :2],
        "not square": good[:, :, :28],
        "side 30": draw_images(40, 30),
        "side 24": draw_images(40, 24),
        "19 rows": good[:19],
        "no rows": good[:0],
        "all the same": np.repeat(good[:1], 40, axis=0),
    }


@pytest.mark.parametrize(
    "kind", [*bad_inputs(), "truncated", "nothing", "text", "npz", "a folder"]
)
def test_bad_arrays_end_with_one_message(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, bad_inputs().get(kind, draw_images(40)))
    path = tmp_path / "data/images.npy"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no array")
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, draw_images(40))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(SystemExit) as stopped:
        train_vae.main()
    message = str(stopped.value)
    assert str(path) in message and "preprocess.py" in message
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LATENT_DIM", 1),
        ("LATENT_DIM", "2"),
        ("EPOCHS", 50.0),
        ("FILTERS", (32, 64.0)),
        ("FILTERS", ()),
        ("FILTERS", 32),
        ("FILTERS", (32, 0)),
        ("KL_WEIGHT", -1),
        ("KL_WEIGHT", "a lot"),
        ("EPOCHS", 0),
        ("BATCH_SIZE", 0),
        ("OPTIMIZER", "lion"),
        ("LEARNING_RATE", 0),
        ("LEARNING_RATE", "fast"),
        ("VALIDATION_IMAGES", 33),
        ("PRECISION", "float16"),
        ("SEED", -1),
    ],
)
def test_wrong_settings_end_with_one_message(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_vae, name, value)
    with pytest.raises(SystemExit) as stopped:
        train_vae.main()
    message = str(stopped.value)
    assert name in message and repr(value) in message and ": expected " in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["MODEL_DIR", "FIGURE_DIR"])
def test_a_place_that_cannot_be_written_is_noticed_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, draw_images(40))
    (tmp_path / "taken").touch()
    monkeypatch.setattr(train_vae, name, "taken")
    with pytest.raises(SystemExit) as stopped:
        train_vae.main()
    assert f"Cannot write {tmp_path / 'taken'}: " in str(stopped.value)


def test_a_wrong_cluster_ends_with_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": ')
    with pytest.raises(SystemExit, match="Cannot use TF_CONFIG = "):
        train_vae.choose_strategy()
