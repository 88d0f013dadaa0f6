"""train_vae.py: what it reads, writes, measures and says, and bad input."""

import contextlib
import datetime
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import copy_script, run_script
from PIL import Image
from train_helpers import (
    build,
    build_stock,
    draw_images,
    keras,
    prepare,
    read_history,
    read_summary,
    small,
    start,
    strip,
    tf,
    train_vae,
)

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


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_array_is_read_with_its_id_and_mean(order, tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "VALIDATION_IMAGES", 6)
    images = np.random.default_rng(0).integers(0, 256, (130, 28, 28, 3), np.uint8)
    images[7] = 255  # one that differs from the first is enough
    path = tmp_path / "images.npy"
    np.save(path, np.asarray(images, order=order))
    found, images_id, num_train, mean_image = train_vae.read_images(path)
    np.testing.assert_array_equal(found, images)
    assert images_id == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert num_train == 124
    mean = images[:124].mean(axis=0) / 255
    np.testing.assert_allclose(mean_image, mean, rtol=1e-6)
    assert mean_image.dtype == np.float32


def test_a_large_array_is_read_in_parts(tmp_path):
    images = np.lib.format.open_memmap(
        tmp_path / "images.npy", "w+", np.uint8, (1000, 200, 200, 1)
    )
    images[100:] = np.arange(900)[:, None, None, None] % 256  # 40 MB in all
    images.flush()
    _, images_id, num_train, mean_image = train_vae.read_images(tmp_path / "images.npy")
    content = (tmp_path / "images.npy").read_bytes()
    assert images_id == hashlib.sha256(content).hexdigest()[:16]
    assert num_train == 900
    mean = (np.arange(800) % 256).sum() / 900 / 255
    np.testing.assert_allclose(mean_image, mean, rtol=1e-6)


# ---------------------------------------------------------------------- the figures


@pytest.mark.slow
def test_measure_against_numpy():
    _, encoder, decoder = build()
    random = np.random.default_rng(3)
    for weights in [*encoder.weights, *decoder.weights]:
        weights.assign(weights + random.normal(0, 0.1, weights.shape))
    decoder = build_stock(decoder)
    images = draw_images(12, 28, 1) / np.float32(255)
    mean_image = images.mean(axis=0)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(8)
    figures = train_vae.measure(encoder, decoder, batches, mean_image, 7)
    z_mean, z_log_var = (np.asarray(x) for x in encoder(images))
    assert np.abs(z_log_var).max() > 0.01
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

    # The cross-entropy by 500 samples of z of our own: 16 of measure's come near it.
    epsilon = random.normal(size=(500, *z_mean.shape))
    z = (z_mean + np.exp(z_log_var / 2) * epsilon).astype("float32")
    many = np.asarray(decoder(z.reshape(-1, 2))).reshape(500, *images.shape)
    sampled = [cross_entropy(decoded) for decoded in many]
    error = float(np.std(sampled)) / 16**0.5
    found = figures["cross_entropy_sampled"]
    assert found == pytest.approx(np.mean(sampled), abs=4 * error)
    assert np.mean(sampled) > cross_entropy(decoded) + 0.2 * error
    elbo = -784 * figures["cross_entropy_sampled"] - figures["kl"]
    assert figures["elbo"] == pytest.approx(elbo, rel=1e-6)
    assert figures["bits_per_value"] == pytest.approx(-elbo / 784 / math.log(2))
    again = train_vae.measure(encoder, decoder, batches, mean_image, 7)
    assert again == figures


def test_share_in_grid_is_that_of_the_first_two_latents():
    codes = np.zeros((10, 3))
    codes[:, 2] = 5  # not on the map
    codes[:3, 1] = -2
    figures = train_vae.describe_codes(codes, np.full((10, 3), [1.0, 0.5, 9.0]))
    assert figures["share_in_grid"] == pytest.approx(0.7)
    assert figures["kl_per_latent"] == [1.0, 0.5, 9.0]


def test_each_device_needs_a_row_that_is_held_out():
    strategy = types.SimpleNamespace(num_replicas_in_sync=4)
    assert train_vae.choose_batch_size(400, 4, strategy) == 4 * train_vae.BATCH_SIZE
    assert train_vae.choose_batch_size(40, 4, strategy) == 40
    with pytest.raises(SystemExit, match="Found 2 rows to hold out, expected"):
        train_vae.choose_batch_size(400, 2, strategy)


def test_advice_follows_the_figures(capsys):
    def advise(cross_entropy, share):
        figures = {"cross_entropy": cross_entropy, "cross_entropy_mean_image": 0.6}
        train_vae.report({**figures, "share_in_grid": share})
        return capsys.readouterr().out

    for share in (0.61, 0.81, 0.96):
        good = advise(0.5, share)
        assert "KL_WEIGHT" not in good and "mean image:" not in good
    assert "Raise KL_WEIGHT" in advise(0.5, 0.6)
    assert "Lower KL_WEIGHT" in advise(0.5, 0.97)
    assert "worse than the mean image: raise EPOCHS" in advise(0.61, 0.81)


def test_the_rest_is_told_from_the_second_epoch(capsys):
    history = [{"seconds": 9.0}]
    told = train_vae.RemainingTime(history, 20)
    told.on_train_begin()
    for epoch, seconds in ((1, 60.0), (2, 30.0), (3, 30.0)):
        told.on_epoch_begin(epoch)
        history.append({"seconds": seconds})
    told.on_epoch_begin(4)
    assert capsys.readouterr().out == "17 epochs are left, some 8.5 minutes.\n"


# ---------------------------------------------------------------------- the files


def test_a_full_disk_leaves_the_earlier_models_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource")
    _, encoder, decoder = build()
    decoder = build_stock(decoder)
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


def test_a_figure_that_cannot_be_drawn_is_told_and_training_goes_on(tmp_path, capsys):
    _, encoder, decoder = build()
    examples = draw_images(4, 28, 1) / np.float32(255)
    row = {"epoch": 1, "reconstruction_loss": 0.5, "kl_loss": 1.0}
    row |= {"val_reconstruction_loss": 0.5, "val_kl_loss": 1.0}
    drawing = train_vae.Drawing(tmp_path / "figures", [row], examples, encoder, decoder)
    drawing.on_epoch_end(0)
    assert (tmp_path / "figures/reconstructions.png").exists()
    assert capsys.readouterr().err == ""
    (tmp_path / "figures/loss.png").unlink()
    (tmp_path / "figures/loss.png").mkdir()
    drawing.on_epoch_end(1)  # every fifth only
    assert capsys.readouterr().err == ""
    drawing.on_epoch_end(5)
    said = capsys.readouterr().err
    assert said.startswith(f"Cannot draw in {tmp_path / 'figures'}: ")
    assert "The training goes on" in said and len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which six epochs were trained on 410 images, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder, draw_images(410))  # a tenth of them would part a pair
    result = run_script("train_vae.py", folder, **small())
    assert result.returncode == 0
    return folder, result


@pytest.mark.slow
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
    for name, size in (("loss", (1000, 400)), ("reconstructions", (10 * 128, 2 * 128))):
        with Image.open(folder / f"figures/{name}.png") as image:
            image.load()
            assert image.width >= size[0] and image.height >= size[1]


@pytest.mark.slow
def test_held_out_images_are_drawn_without_their_mirrors(trained):
    folder, _ = trained
    held_out = np.load(folder / "data/images.npy")[-40:]
    with Image.open(folder / "figures/reconstructions.png") as image:
        drawn = np.asarray(image.convert("RGB").crop((0, 0, 1280, 128))).astype(float)
    tiles = drawn.reshape(32, 4, 10, 32, 4, 3).mean(axis=(1, 4)).swapaxes(0, 1)
    assert np.abs(tiles - held_out[:20:2]).mean() < 2
    assert np.abs(tiles - held_out[1:20:2]).mean() > 4  # or this says nothing


@pytest.mark.slow
def test_the_summary_of_a_training(trained):
    folder, _ = trained
    history = read_history(folder)
    summary = read_summary(folder)
    assert summary["settings"]["LATENT_DIM"] == 2
    assert summary["settings"]["num_train"] == 370
    content = (folder / "data/images.npy").read_bytes()
    images_id = hashlib.sha256(content).hexdigest()[:16]
    assert summary["settings"]["images_id"] == images_id
    assert summary["kl_weights"] == [5e-4, 5e-4]
    trained_at = datetime.datetime.fromisoformat(summary["trained_at"])
    age = datetime.datetime.now(datetime.UTC) - trained_at  # it has an offset
    assert datetime.timedelta(0) <= age + datetime.timedelta(seconds=1)
    assert age < datetime.timedelta(hours=1)
    figures = summary["figures"]
    best = min(history, key=lambda row: float(row["val_loss"]))
    assert figures["epoch"] == int(best["epoch"])
    values = 32 * 32 * 3
    assert figures["beta"] == pytest.approx(5e-4 * values)
    sampled = figures["cross_entropy_sampled"]
    assert sampled == pytest.approx(float(best["val_reconstruction_loss"]), rel=0.01)
    assert figures["elbo"] == pytest.approx(-values * sampled - figures["kl"])
    seconds = sorted(float(row["seconds"]) for row in history)
    rate = 23 * 16 / (seconds[2] + seconds[3]) * 2
    assert figures["images_per_second"] == pytest.approx(rate)


@pytest.mark.slow
def test_what_a_training_says(trained):
    _, result = trained
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "Reading data/images.npy"
    assert lines[1].startswith("Training on 370 rows of 32 x 32 x 3, 40 held out: ")
    assert "6 epochs of 23 steps of 16 images on 1 x " in lines[1]
    assert "This is the loss in history.csv" in result.stdout
    assert result.stdout.count("epochs are left, some ") == 1
    assert "4 epochs are left, some " in result.stdout
    units = {line.partition(":")[0]: line.rpartition(" ")[2] for line in lines}
    for name in ("elbo", "kl", "kl_per_latent"):
        assert units[name] == "image"
    for name in ("cross_entropy", "cross_entropy_mean_image", "cross_entropy_excess"):
        assert units[name] == "value"
    assert (units["psnr"], units["seconds"]) == ("dB", "s")
    for name in ("bits_per_value", "images_per_second", "share_in_grid", "ssim"):
        assert name in units
    assert lines[-1] == "Wrote model/encoder.keras and model/decoder.keras"


@pytest.mark.slow
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


@pytest.mark.slow
def test_grey_images_and_bfloat16_and_more_latents(tmp_path):
    prepare(tmp_path, draw_images(60, 28, 1))
    settings = small(PRECISION="mixed_bfloat16", LATENT_DIM=5, EPOCHS=1, BATCH_SIZE=64)
    result = run_script("train_vae.py", tmp_path, **settings)
    assert result.returncode == 0
    assert "BATCH_SIZE = 64 is more than 54 rows" in result.stdout
    assert "1 epochs of 1 steps of 54 images" in result.stdout
    decoder = keras.saving.load_model(tmp_path / "model/decoder.keras")
    assert (decoder.input_shape, decoder.output_shape) == ((None, 5), (None, 28, 28, 1))
    assert decoder(np.zeros((1, 5), "float32")).dtype == "float32"
    summary = read_summary(tmp_path)
    assert len(summary["figures"]["kl_per_latent"]) == 5
    weights = summary["kl_weights"]
    assert weights[:2] == [5e-4] * 2 and 0 < max(weights[2:]) < 5e-4


# ---------------------------------------------------------------------- the start


@pytest.mark.slow
def test_keras_set_otherwise_changes_nothing(trained, tmp_path):
    prepare(tmp_path, draw_images(410))
    config = {"backend": "jax", "floatx": "float16", "epsilon": 0.1}
    config["image_data_format"] = "channels_first"
    (tmp_path / "keras.json").write_text(json.dumps(config))
    environment = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    process = start(tmp_path, environment, **small())
    _, stderr = process.communicate(timeout=900)
    assert (process.returncode, stderr) == (0, "")
    assert strip(read_history(tmp_path)) == strip(read_history(trained[0]))
    ids = [read_summary(folder)["model_id"] for folder in (tmp_path, trained[0])]
    assert ids[0] == ids[1]


def test_a_policy_set_elsewhere_does_not_leak_in():
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    keras.config.set_epsilon(0.5)
    try:
        train_vae.prepare_keras("mixed_bfloat16")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        assert keras.config.image_data_format() == "channels_last"
        assert keras.config.epsilon() == 1e-7
    finally:
        train_vae.prepare_keras("float32")
    assert keras.config.floatx() == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_another_backend_that_is_loaded_already_is_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(SystemExit, match="Keras runs on torch in this session"):
        train_vae.prepare_keras("float32")


BROKEN = """
import os, signal, time
os.write(2, b"a reason by native code\\n")
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("os.abort()", -signal.SIGABRT, True),
        ("raise ImportError('no wheel')", 1, True),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(600)", 130, False),
    ],
)
def test_an_import_that_fails_shows_what_was_held_back(end, code, said, tmp_path):
    """A keras.py beside the script stands for an installation that is broken."""
    (tmp_path / "keras.py").write_text(BROKEN + end + "\n")
    process = start(tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code
    assert stdout == ""
    assert ("a reason by native code" in stderr) == said
    if not said:
        assert stderr == ""


def run_shell(folder, command, **edits):
    """Run an edited copy of the script by a shell's command; {} stands for it."""
    copy_script("train_vae.py", folder, **edits)
    script = f"'{sys.executable}' train_vae.py"
    command = ["bash", "-c", "set -o pipefail; " + command.format(script)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no bash")
def test_closed_and_full_streams(tmp_path):
    prepare(tmp_path, draw_images(40))
    closed = run_shell(tmp_path, "{} >&-", **small(EPOCHS=2))
    assert (closed.returncode, closed.stderr) == (0, "")
    assert (tmp_path / "model/encoder.keras").exists()
    head = run_shell(tmp_path, "{} | head -1", **small(EPOCHS=3))
    assert head.stdout == "Reading data/images.npy\n"
    assert head.returncode == 1
    full = run_shell(tmp_path, "{} >/dev/full", **small(EPOCHS=4))
    assert full.returncode == 1
    for stderr in (head.stderr, full.stderr):
        assert stderr.startswith("Cannot write to stdout: ")
        assert len(stderr.splitlines()) == 1
    silent = run_shell(tmp_path, "{} 2>&-", **small(EPOCHS=4))
    assert silent.returncode == 0
    (tmp_path / "data/images.npy").unlink()
    assert run_shell(tmp_path, "{} 2>&-", **small()).returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no terminal to borrow")
def test_a_terminal_gets_a_bar_that_moves(tmp_path):
    import pty

    prepare(tmp_path, draw_images(40))
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", "COLUMNS": "120"}
    process = start(tmp_path, environment, theirs, **small(EPOCHS=1))
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # Linux: the other end was closed
        while data := os.read(ours, 65536):
            output += data
    os.close(ours)
    assert process.communicate(timeout=900)[1] == ""
    assert process.returncode == 0
    assert b"1/2" in output and b"\r" in output.replace(b"\r\n", b"")
    assert b"Wrote model/encoder.keras and model/decoder.keras" in output


@pytest.mark.slow
def test_it_runs_where_stdout_is_no_real_stream(tmp_path):
    """As in IDLE or a notebook: an object with write and flush only."""
    prepare(tmp_path, draw_images(40))
    copy_script("train_vae.py", tmp_path, **small(EPOCHS=1))
    code = """
import runpy, sys
class Window:
    text = ""
    def write(self, text): self.text += text
    def flush(self): pass
terminal, sys.stdout = sys.stdout, Window()
runpy.run_path("train_vae.py", run_name="__main__")
terminal.write(sys.stdout.text)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("Wrote model/encoder.keras and model/decoder.keras\n")


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
        ("INPUT_FILE", None),
        ("MODEL_DIR", 5),
        ("FIGURE_DIR", " "),
        ("LATENT_DIM", 1),
        ("LATENT_DIM", "2"),
        ("EPOCHS", 50.0),
        ("FILTERS", (32, 64.0)),
        ("FILTERS", ()),
        ("FILTERS", 32),
        ("FILTERS", (32, 0)),
        ("KL_WEIGHT", -1),
        ("KL_WEIGHT", "a lot"),
        ("KL_WEIGHT", 1e30),
        ("KL_WEIGHT", math.nan),
        ("KL_WEIGHT", True),
        ("EPOCHS", 0),
        ("BATCH_SIZE", 0),
        ("ACTIVATION", "gelu"),
        ("OPTIMIZER", "lion"),
        ("OPTIMIZER", ["adam"]),
        ("LEARNING_RATE", 0),
        ("LEARNING_RATE", "fast"),
        ("LEARNING_RATE", 1e30),
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
    assert "Edit it at the top of train_vae.py" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MODEL_DIR", "FIGURE_DIR"])
def test_a_place_that_cannot_be_written_is_named_first(name, tmp_path):
    prepare(tmp_path, draw_images(40))
    (tmp_path / "taken").touch()
    result = run_script("train_vae.py", tmp_path, **small(**{name: "taken"}))
    assert result.returncode == 1 and "Epoch" not in result.stdout
    assert result.stderr.startswith(f"Cannot write {tmp_path / 'taken'}: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["encoder.keras", "summary.json", "backup.npz", "loss.png"]
)
def test_a_folder_in_the_place_of_a_file_is_found_first(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError) as stopped:
        train_vae.check_places(tmp_path, tmp_path)
    assert stopped.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write it")
def test_a_folder_that_is_read_only_is_found_first(tmp_path):
    (tmp_path / "model").mkdir(mode=0o555)
    with pytest.raises(PermissionError) as stopped:
        train_vae.check_places(tmp_path / "model", tmp_path)
    assert stopped.value.filename == str(tmp_path / "model")


def test_messages_name_the_file_and_not_its_temporary_name(tmp_path):
    path = tmp_path / "backup.npz"
    path.mkdir()
    with pytest.raises(OSError) as failed, train_vae.replacing(path) as temporary:
        temporary.touch()
    with pytest.raises(SystemExit) as stopped:
        train_vae.stop(failed.value, "model")
    assert str(stopped.value).startswith(f"Cannot write {path}: ")
