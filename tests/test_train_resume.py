"""train_vae.py: going on after a stop, a kill, a change, or beside a bad backup."""

import io
import json
import os
import shutil
import signal
import zipfile

import numpy as np
import pytest
from conftest import run_script, signal_at
from train_helpers import (
    build,
    draw_images,
    keras,
    make_logs,
    prepare,
    read_history,
    read_summary,
    small,
    strip,
    train_vae,
)

SETTINGS = {"KL_WEIGHT": 5e-4, "SEED": 0}


def make_backup(folder, vae, epochs=1, settings=SETTINGS, batch_size=32, worker=0):
    """Write the backup of some epochs, and return the callback that wrote it."""
    backup = train_vae.Backup(folder, settings, batch_size, worker)
    backup.set_model(vae)
    for epoch in range(epochs):
        backup.on_epoch_begin(epoch)
        backup.on_epoch_end(epoch, make_logs(0.5 - epoch / 100, 2.0))
    return backup


def restore(folder, vae, settings=SETTINGS, batch_size=32, worker=0):
    backup = train_vae.Backup(folder, settings, batch_size, worker)
    return backup, backup.restore(vae)


# ---------------------------------------------------------------------- the backup


def test_a_backup_brings_everything_back(tmp_path):
    vae, _, _ = build()
    first, text = restore(tmp_path, vae)
    assert (text, first.history) == ("", [])
    vae.train_on_batch(draw_images(16, 28, 1) / np.float32(255))
    for epoch, loss in enumerate((0.5, 0.4, 0.6, 0.7)):
        vae.get_layer("loss").kl_weights.assign([epoch + 1] * 2)  # a mark of the epoch
        first.on_epoch_begin(epoch)
        first.on_epoch_end(epoch, make_logs(loss, 2.0))

    other, _, _ = build()
    second, text = restore(tmp_path, other)
    assert text == f"4 epochs are done, going on from {tmp_path / 'backup.npz'}.\n"
    assert second.history == first.history
    for old, new in zip(first.variables(), second.variables(), strict=True):
        np.testing.assert_array_equal(old, new)
    marks = [weights.tolist() for weights in second.best if weights.shape == (2,)]
    assert [2, 2] in marks  # the second epoch had the lowest loss
    assert [4, 4] not in marks


def test_the_history_has_the_loss_with_the_final_weights(tmp_path):
    vae, _, _ = build()
    backup = train_vae.Backup(tmp_path, SETTINGS, 32, 0)
    backup.set_model(vae)
    backup.on_epoch_begin(0)
    backup.on_epoch_end(0, make_logs(0.5, 20.0, loss=0.7))
    assert backup.history[0]["loss"] == backup.history[0]["val_loss"] == 0.51
    header, row = (tmp_path / "history.csv").read_text().splitlines()
    terms = "loss,reconstruction_loss,kl_loss"
    held_out = ",".join(f"val_{term}" for term in terms.split(","))
    assert header == f"epoch,{terms},{held_out},learning_rate,seconds"
    assert row.startswith("1,0.51,0.5,20.0,0.51,0.5,20.0,")


def test_a_changed_setting_puts_the_backup_aside_and_back_when_it_is_undone(tmp_path):
    vae, _, _ = build()
    make_backup(tmp_path, vae, epochs=3)
    before = (tmp_path / "backup.npz").read_bytes()
    changed = {**SETTINGS, "SEED": 1}
    backup, text = restore(tmp_path, vae, changed)
    assert "SEED was 0, now it is 1" in text and "backup-before.npz" in text
    assert backup.history == []
    assert (tmp_path / "backup.npz").read_bytes() == before  # nothing is done yet
    backup.on_epoch_begin(0)
    backup.on_epoch_end(0, make_logs(0.5, 2.0))
    assert (tmp_path / "backup-before.npz").read_bytes() == before
    again, text = restore(tmp_path, vae, changed)
    assert len(again.history) == 1 and text.startswith("1 epochs are done")
    assert (tmp_path / "backup-before.npz").read_bytes() == before

    undone, text = restore(tmp_path, vae)
    assert "SEED was 1, now it is 0" in text
    assert f"3 epochs are done, going on from {tmp_path / 'backup-before.npz'}" in text
    undone.on_epoch_begin(3)
    undone.on_epoch_end(3, make_logs(0.3, 2.0))
    assert len(restore(tmp_path, vae)[0].history) == 4
    assert len(restore(tmp_path, vae, changed)[0].history) == 1


def test_what_is_not_in_effect_is_no_change(monkeypatch):
    def describe(**edits):
        with monkeypatch.context() as patch:
            for name, value in edits.items():
                patch.setattr(train_vae, name, value)
            return train_vae.describe_training(64, 400, "id")

    usual = describe()
    assert json.loads(json.dumps(usual)) == usual  # as the backup brings it back
    assert describe(LEARNING_RATE=3e-3) == usual  # the one that None stands for
    assert describe(VALIDATION_IMAGES=2000, EPOCHS=7) == usual  # num_train tells it
    assert describe(FILTERS=[16, 32, 64, 128]) == usual
    assert describe(FILTERS=(16, 32, 64, 9, 128)) == usual  # 64 pixels halve thrice
    assert describe(BATCH_SIZE=400) == describe(BATCH_SIZE=500)  # of 400 rows
    for name, value in {
        "LEARNING_RATE": 1e-3,
        "FILTERS": (16, 32, 65, 128),
        "BATCH_SIZE": 31,
        "KL_WEIGHT": 6e-4,
        "LATENT_DIM": 3,
        "ACTIVATION": "silu",
        "PRECISION": "mixed_bfloat16",
        "OPTIMIZER": "rmsprop",
        "SEED": 1,
    }.items():
        assert describe(**{name: value}) != usual, name
    assert train_vae.describe_training(64, 398, "id") != usual
    assert train_vae.describe_training(64, 400, "other") != usual


def test_another_number_of_devices_is_said_and_keeps_rate_and_weights(tmp_path):
    vae, _, _ = build()
    backup = make_backup(tmp_path, vae, epochs=9)
    backup, text = restore(tmp_path, vae, batch_size=64)
    assert len(backup.history) == 9
    assert "took 32 images until now and takes 64 from here on" in text
    schedule = train_vae.Schedule(1e-3, [5e-4, 5e-4])
    schedule.set_model(vae)
    vae.optimizer.iterations.assign(1000)
    rates = []
    for steps in (20, 40):  # an epoch has; the plan is one of epochs
        schedule.set_params({"steps": steps, "epochs": 10})
        schedule.on_epoch_begin(9)
        schedule.on_train_batch_begin(steps // 2)
        rates.append(float(vae.optimizer.learning_rate))
        np.testing.assert_allclose(vae.get_layer("loss").kl_weights, 5e-4)
    expected = train_vae.plan_rate(1e-3, 0.95)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def save_npz(path, content, **changes):
    """Save the arrays of a backup, some of them changed."""
    np.savez(path, **{**np.load(io.BytesIO(content)), **changes})


def save_as_npy(path, content):
    with open(path, "wb") as file:
        np.save(file, np.zeros(5))


def save_no_history(path, content):
    record = json.loads(str(np.load(io.BytesIO(content))["record"]))
    save_npz(path, content, record=json.dumps({**record, "history": []}))


def save_words(path, content):
    shape = np.load(io.BytesIO(content))["state_0"].shape
    save_npz(path, content, state_0=np.full(shape, "a"))


def save_other_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("record.npy", b"no array")


def make_folder(path, content):
    path.unlink()
    path.mkdir()


SPOILERS = {
    "cut": lambda path, content: path.write_bytes(content[:-100]),
    "empty": lambda path, content: path.write_bytes(b""),
    "text": lambda path, content: path.write_text("PK but not whole"),
    "npy": save_as_npy,
    "pickle": lambda path, content: np.savez(path, record=np.array([{}], object)),
    "other npz": lambda path, content: np.savez(path, x_train=np.zeros(5)),
    "other record": lambda path, content: np.savez(path, record="[1, 2]"),
    "no history": save_no_history,
    "words for numbers": save_words,
    "zip": save_other_zip,
    "a folder": make_folder,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", SPOILERS)
def test_a_damaged_or_foreign_backup_is_named_and_passed_over(how, tmp_path):
    vae, _, _ = build()
    make_backup(tmp_path, vae)
    path = tmp_path / "backup.npz"
    SPOILERS[how](path, path.read_bytes())
    weights = vae.get_weights()
    backup, text = restore(tmp_path, vae)
    assert text.startswith(f"Not going on from {path}: it is damaged")
    assert "Starting afresh" in text and backup.history == []
    for old, new in zip(weights, vae.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    if how != "a folder":
        make_backup(tmp_path, vae)
        assert len(restore(tmp_path, vae)[0].history) == 1


def test_a_backup_of_another_network_is_passed_over(tmp_path):
    vae, _, _ = build()
    make_backup(tmp_path, vae)
    wider, _, _ = build(filters=(8, 8))
    _, text = restore(tmp_path, wider)
    assert "of another network" in text and "Starting afresh" in text


@pytest.mark.slow
def test_flipped_bits_never_end_in_a_traceback(tmp_path):
    vae, _, _ = build()
    make_backup(tmp_path, vae)
    path = tmp_path / "backup.npz"
    content = path.read_bytes()
    random = np.random.default_rng(0)
    # The names and lengths at the end, and the headers, are what confuses a reader.
    places = [*random.integers(0, len(content), 100)]
    places += [*random.integers(len(content) - 6000, len(content), 200)]
    places += [*random.integers(0, 300, 100)]
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        backup, text = restore(tmp_path, vae)
        refused += "it is damaged" in text
        assert len(backup.history) == int("Starting afresh" not in text)
    assert refused > 200


def test_workers_have_backups_of_their_own(tmp_path):
    vae, _, _ = build()
    make_backup(tmp_path, vae, worker=1)
    assert [path.name for path in tmp_path.iterdir()] == ["backup1.npz"]


# ---------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which six epochs were trained without a break."""
    folder = tmp_path_factory.mktemp("unbroken")
    prepare(folder, draw_images(410))
    assert run_script("train_vae.py", folder, **small()).returncode == 0
    return folder


@pytest.mark.slow
def test_a_finished_training_heals_its_files_goes_on_and_survives_a_change(
    trained, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
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
    assert "6 epochs are done" in again.stdout
    assert "Nothing is left to train: raise EPOCHS" in again.stdout
    assert len(read_history(folder)) == 6
    assert encoder_file.stat().st_size == size
    decoder = keras.saving.load_model(folder / "model/decoder.keras")
    assert np.unique(decoder(np.ones((1, 2), "float32"))).tolist() == [0.5]

    more = run_script("train_vae.py", folder, **small(EPOCHS=7))
    assert more.returncode == 0 and "6 epochs are done, going on" in more.stdout
    assert [row["epoch"] for row in read_history(folder)] == list("1234567")

    models = {path: path.read_bytes() for path in folder.glob("model/*coder.keras")}
    backup = backup_file.read_bytes()
    settings = small(OPTIMIZER="sgd", LEARNING_RATE=100)
    hopeless = run_script("train_vae.py", folder, **settings)
    assert "OPTIMIZER was adam, now it is sgd" in hopeless.stdout
    assert "LEARNING_RATE was 0.003, now it is 100" in hopeless.stdout
    assert hopeless.returncode == 1
    assert "Lower LEARNING_RATE" in hopeless.stderr
    assert len(hopeless.stderr.strip().splitlines()) == 1
    assert models == {path: path.read_bytes() for path in models}
    backups = [path.read_bytes() for path in folder.glob("model/backup*.npz")]
    assert backup in backups  # perhaps put aside


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_stopped_and_a_killed_training_go_on_as_if_nothing_had_been(
    trained, tmp_path
):
    prepare(tmp_path, draw_images(410))
    # After the first epoch the figures are drawn, when its backup is there.
    moment = signal_at(tmp_path, signal.SIGINT, "os.rename", "loss.png")
    stopped = run_script("train_vae.py", tmp_path, environment=moment, **small())
    assert stopped.returncode == 130 and len(read_history(tmp_path)) == 1
    assert "1 of 6 epochs are done." in stopped.stderr
    assert "Run again to go on" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not list(tmp_path.rglob(".*"))

    # In the fourth epoch, between its history and its backup.
    moment = signal_at(tmp_path, signal.SIGKILL, "os.rename", "backup.npz", 3)
    killed = run_script("train_vae.py", tmp_path, environment=moment, **small())
    assert killed.returncode == -signal.SIGKILL
    assert "1 epochs are done, going on from model/backup.npz" in killed.stdout
    assert len(read_history(tmp_path)) == 4
    assert not (tmp_path / "model/encoder.keras").exists()

    resumed = run_script("train_vae.py", tmp_path, **small())
    assert "3 epochs are done, going on from model/backup.npz" in resumed.stdout
    assert not list(tmp_path.rglob(".*"))
    histories = [strip(read_history(folder)) for folder in (trained, tmp_path)]
    assert histories[0] == histories[1]
    ids = [read_summary(folder)["model_id"] for folder in (trained, tmp_path)]
    assert ids[0] == ids[1]
