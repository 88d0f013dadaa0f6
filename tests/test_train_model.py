"""train_vae.py: its layers, its networks, and that they learn."""

import math

import numpy as np
import pytest
from train_helpers import (
    ACTIVATION,
    FILTERS,
    build,
    build_stock,
    draw_images,
    keras,
    tf,
    train_vae,
)

# ---------------------------------------------------------------------- the layers


@pytest.mark.parametrize(
    ("side", "used", "stride", "base"),
    [(28, 2, 2, 7), (36, 2, 2, 9), (44, 2, 2, 11), (64, 3, 2, 8), (128, 4, 2, 8)]
    + [(256, 4, 4, 8), (252, 4, 4, 8), (512, 4, 4, 16), (508, 4, 4, 16)],
)
def test_depth_follows_the_side(side, used, stride, base):
    stages = train_vae.plan_stages(side, (32, 64, 128, 256))
    assert stages == ((32, 64, 128, 256)[:used], stride)
    assert base == math.ceil(side / (stride * 2 ** (used - 1)))


def call_loss(images, logits, z_mean, z_log_var, kl_weight=0.5):
    layer = train_vae.VAELoss([kl_weight] * np.shape(z_mean)[1])
    layer([np.asarray(x, "float32") for x in (images, logits, z_mean, z_log_var)])
    parts = {metric.name: float(metric.result()) for metric in layer.metrics}
    loss = float(layer.losses[0])
    assert parts["loss_final"] == pytest.approx(loss, rel=1e-6)
    return loss, parts["reconstruction_loss"], parts["kl_loss"]


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
    layer = train_vae.VAELoss([1.0])
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
        layer = train_vae.VAELoss([1.0, 1.0])
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


def test_each_latent_has_its_weight_and_the_final_ones_are_recorded():
    layer = train_vae.VAELoss([0.5, 0.25, 0.1])
    zero = np.zeros((2, 3), "float32")
    images = np.zeros((2, 4, 4, 1), "float32")
    layer.kl_weights.assign([1, 2, 3])
    layer([images, images, zero + [1, 2, 3], zero])
    kl = np.array([1, 4, 9]) / 2
    parts = {metric.name: float(metric.result()) for metric in layer.metrics}
    assert parts["kl_loss"] == pytest.approx(kl.sum())
    assert float(layer.losses[0]) == pytest.approx(math.log(2) + kl @ [1, 2, 3])
    final = math.log(2) + kl @ [0.5, 0.25, 0.1]
    assert parts["loss_final"] == pytest.approx(final)


# ---------------------------------------------------------------------- the models


@pytest.mark.parametrize(
    ("side", "channels"), [(28, 1), (36, 3), (64, 1), (252, 3), (256, 3), (300, 1)]
)
def test_saved_decoder_is_stock_and_equals_the_trained_one(side, channels):
    _, encoder, trained = build(side, channels)
    random = np.random.default_rng(0)
    for weights in trained.weights:  # biases and the sketch start at 0
        weights.assign(random.normal(0, 0.2, weights.shape))
    saved = build_stock(trained, side, channels)
    for layer in [*encoder.layers, *saved.layers]:
        assert type(layer).__module__.startswith("keras.")
    z = random.normal(size=(3, 2)).astype("float32")
    images = np.asarray(saved(z))
    assert images.shape == (3, side, side, channels) and images.dtype == np.float32
    assert images.std() > 0.01
    np.testing.assert_allclose(images, tf.sigmoid(trained(z)), atol=2e-6)
    z_mean, z_log_var = encoder(images)
    assert z_mean.shape == z_log_var.shape == (3, 2)
    assert np.abs(z_log_var).max() == 0


@pytest.mark.slow
def test_every_multiple_of_4_has_a_network_of_about_the_size_of_its_neighbours():
    for side, neighbour in ((252, 256), (508, 512), (1020, 1024)):
        sizes = []
        for pixels in (side, neighbour):
            _, encoder, decoder = build(pixels, 3, (16, 32, 64, 128))
            sizes.append(encoder.count_params() + decoder.count_params())
        assert sizes[0] == pytest.approx(sizes[1], rel=0.04)
        assert sizes[0] < 40_000_000


def test_the_decoder_starts_at_the_mean_image():
    for side in (28, 300):
        _, _, decoder = build(side, 3)
        mean_image = np.zeros((side, side, 3), "float32")
        mean_image[:, side // 2 :] = (0.9, 0.5, 0.2)
        train_vae.start_sketch(decoder, mean_image)
        image = tf.sigmoid(decoder(np.zeros((1, 2), "float32")))[0].numpy()
        middle = slice(side // 2 - 4, side // 2 + 4)  # blended where it is scaled
        image[:, middle] = mean_image[:, middle]
        np.testing.assert_allclose(image, mean_image, atol=0.011)


def test_log_variance_is_bounded():
    encoder = train_vae.build_encoder(28, 1, 2, FILTERS, ACTIVATION)
    encoder.set_weights([weight + 1e3 for weight in encoder.get_weights()])
    z_log_var = np.asarray(encoder(np.ones((1, 28, 28, 1), "float32"))[1])
    assert z_log_var.tolist() == [[10, 10]]


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_each_optimizer_leaves_the_mean_image(optimizer):
    """The gradients are small: the loss is a mean over all values of an image."""
    vae, _, decoder = build(64, 3, optimizer=optimizer)
    images = draw_images(64, 64) / np.float32(255)
    train_vae.start_sketch(decoder, images.mean(axis=0))
    p = np.clip(images, 1e-7, 1 - 1e-7)
    floor = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    before = vae.evaluate(images, verbose=0, return_dict=True)["reconstruction_loss"]
    steps = tf.data.Dataset.from_tensor_slices(images).batch(32).repeat(150)
    vae.fit(steps, verbose=0)
    after = vae.evaluate(images, verbose=0, return_dict=True)["reconstruction_loss"]
    assert after - floor < (before - floor) / 2


def kl_weights_of(steps, epoch_steps, final):
    weights = [train_vae.plan_kl_weights(n, epoch_steps, final) for n in range(steps)]
    return np.array(weights)


def test_the_kl_weights_rise_and_the_map_comes_first():
    weights = kl_weights_of(400, 16, [5e-4] * 2)
    assert weights[0].max() < 1e-5 and (np.diff(weights, axis=0) >= 0).all()
    np.testing.assert_allclose(weights[300:], 5e-4)
    final = train_vae.final_kl_weights(5e-4, 4)
    assert final[:2] == [5e-4] * 2 and final[2] == final[3] < 5e-4
    # The details are held down for 8 epochs, or 800 steps where epochs are long.
    for epoch_steps, begin, end in (
        (16, 128, 300),
        (100, 800, 1500),
        (1875, 800, 1600),
    ):
        weights = kl_weights_of(2000, epoch_steps, final)
        np.testing.assert_allclose(weights[:begin, 2], 10 * weights[:begin, 0], 1e-5)
        assert weights[begin + 20, 2] < 10 * weights[begin + 20, 0]
        np.testing.assert_allclose(weights[end], final, rtol=1e-6)
        assert weights[end - 20, 2] > weights[end, 2] or end == 300
    assert np.isfinite(train_vae.plan_kl_weights(200, 16, [0.0] * 4)).all()


def test_the_schedule_follows_the_epoch_and_the_steps_that_were_counted():
    vae, _, _ = build()
    final = train_vae.final_kl_weights(5e-4, 2)
    schedule = train_vae.Schedule(3e-3, final)
    schedule.set_model(vae)
    schedule.set_params({"steps": 10, "epochs": 20})
    for epoch, done in ((0, 0), (2, 20), (15, 150), (19, 1000)):
        vae.optimizer.iterations.assign(done)
        schedule.on_epoch_begin(epoch)
        schedule.on_train_batch_begin(7)
        weights = train_vae.plan_kl_weights(done + 7, 10, final)
        np.testing.assert_allclose(vae.get_layer("loss").kl_weights, weights)
        rate = train_vae.plan_rate(3e-3, (epoch + 0.7) / 20)
        rate *= min(1, (done + 8) / 40)  # it rises at first
        assert float(vae.optimizer.learning_rate) == pytest.approx(rate)
    rates = [train_vae.plan_rate(3e-3, done) for done in (0, 0.5, 0.75, 1)]
    low = 3e-3 * (0.505 - 0.495 * np.cos(np.pi / 4))
    assert rates == pytest.approx([3e-3, 3e-3 * 0.505, low, 3e-5])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_training_at_once():
    vae, _, _ = build()
    images = draw_images(64, 28, 1) / np.float32(255)
    images[40] = np.nan
    steps = tf.data.Dataset.from_tensor_slices(images).batch(16)
    with pytest.raises(FloatingPointError, match="the loss has risen to nan"):
        vae.fit(steps, epochs=2, verbose=0, callbacks=[train_vae.StopIfDiverging()])
    assert int(vae.optimizer.iterations) == 3
    good = tf.data.Dataset.from_tensor_slices(images[:16]).batch(16)
    with pytest.raises(FloatingPointError, match="the held-out images is not finite"):
        build()[0].fit(good, validation_data=steps, verbose=0,
                       callbacks=[train_vae.StopIfDiverging()])  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "reconstruction_loss"), [(10.5, 10.5), (math.nan, 0.5), (math.inf, 0.5)]
)
def test_a_loss_that_is_far_too_high_counts_as_well(loss, reconstruction_loss):
    callback = train_vae.StopIfDiverging()
    callback.on_train_batch_end(0, {"loss": 500.0, "reconstruction_loss": 0.7})
    with pytest.raises(FloatingPointError, match="the loss has risen to"):
        logs = {"loss": loss, "reconstruction_loss": reconstruction_loss}
        callback.on_train_batch_end(0, logs)


def awkward_images():
    """Return {what: uint8 (64, 28, 28, 1)}, with little to learn or much at once."""
    pixel, halves, outlier, black = np.zeros((4, 64, 28, 28, 1), np.uint8)
    pixel[np.arange(64), np.arange(64) % 28, 5] = 255
    halves[::2] = 255
    outlier[:] = 128
    outlier[7] = np.random.default_rng(0).integers(0, 256, (28, 28, 1))
    black[0, 0, 0] = 1
    return {"pixel": pixel, "halves": halves, "outlier": outlier, "black": black}


@pytest.mark.slow
@pytest.mark.parametrize("what", awkward_images())
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_awkward_images_are_learned_too(what, optimizer):
    images = awkward_images()[what]
    mean_image = (images / 255).mean(axis=0).astype("float32")
    vae, encoder, decoder = build(optimizer=optimizer)
    train_vae.start_sketch(decoder, mean_image)
    steps = tf.data.Dataset.from_tensor_slices(images / np.float32(255)).batch(16)
    rate = train_vae.choose_rate(optimizer, None)
    schedule = train_vae.Schedule(rate, [5e-4, 5e-4])
    vae.fit(steps.repeat(10), epochs=5, validation_data=steps, verbose=0,
            callbacks=[schedule, train_vae.StopIfDiverging()])  # fmt: skip
    figures = train_vae.measure(encoder, build_stock(decoder), steps, mean_image, 0)
    assert all(np.isfinite(value).all() for value in figures.values())
    mean = figures["cross_entropy_mean_image"]
    assert figures["cross_entropy"] < mean + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_half_precision_trains_in_a_scaled_loss(replicas):
    devices = ["CPU:0", "CPU:1"][:replicas]
    strategy = tf.distribute.MirroredStrategy(devices)
    images = draw_images(32, 28, 1) / np.float32(255)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with strategy.scope():
            vae, _, decoder = build(replicas=replicas)
        assert float(vae.optimizer.scale_loss(tf.constant(1.0))) > 100
        assert "float16" in {layer.compute_dtype for layer in decoder.layers}
        before = vae.evaluate(images, verbose=0, return_dict=True)
        steps = tf.data.Dataset.from_tensor_slices(images).batch(16).repeat(20)
        schedule = train_vae.Schedule(3e-3, [5e-4, 5e-4])
        vae.fit(steps, verbose=0, callbacks=[schedule, train_vae.StopIfDiverging()])
        after = vae.evaluate(images, verbose=0, return_dict=True)
        stock = build_stock(decoder)
    finally:
        keras.config.set_dtype_policy("float32")
    assert after["reconstruction_loss"] < before["reconstruction_loss"] - 0.05
    assert int(keras.ops.convert_to_numpy(vae.optimizer.iterations)) > 30  # of 40
    assert stock(np.zeros((1, 2), "float32")).dtype == "float32"
