"""train_vae.py on several devices: a cluster by TF_CONFIG, and what can be wrong."""

import json
import os
import shutil
import signal
import socket
import threading

import numpy as np
import pytest
from conftest import run_script
from train_helpers import (
    draw_images,
    free_port,
    make_config,
    prepare,
    read_history,
    read_summary,
    run_cluster,
    small,
    start,
    strip,
    tf,
    train_vae,
    wait_for,
)

# ---------------------------------------------------------------------- TF_CONFIG


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "null",
        '{"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["127.0.0.1:2000"]}, '
        '"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"chief": ["127.0.0.1:2000"]}, '
        '"task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_cluster_of_one_is_none(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    assert train_vae.read_cluster() == ([], 0)


def test_the_number_of_a_worker(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", make_config(["a:1", "b:2"], 1))
    assert train_vae.read_cluster() == (["a:1", "b:2"], 1)
    cluster = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    for kind, index, number in (("chief", 0, 0), ("worker", 0, 1), ("worker", "1", 2)):
        task = {"type": kind, "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        monkeypatch.setenv("TF_CONFIG", config)
        assert train_vae.read_cluster() == (["a:1", "b:2", "c:3"], number)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"cluster": ', "Expecting value"),
        ('{"cluster": [1]}', "expected a cluster of lists"),
        ('{"cluster": {"worker": 5}}', "expected a cluster of lists"),
        ('{"task": 5}', "expected a cluster of lists"),
        (make_config(["a:1", "b:2"], 2), "its task is none of its cluster"),
        (make_config(["a:1", "b:2"], 0, "evaluator"), "types chief and worker"),
        (make_config(["a:1"], 0, "evaluator"), "types chief and worker"),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:2"]}, '
            '"task": {"type": "ps", "index": 0}}',
            "types chief and worker",
        ),
    ],
)
def test_a_wrong_cluster_ends_with_one_message(text, reason, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(SystemExit) as stopped:
        train_vae.read_cluster()
    message = str(stopped.value)
    assert message.startswith(f"Cannot use TF_CONFIG = {text}: ") and reason in message


# ---------------------------------------------------------------------- waiting


def test_workers_wait_for_each_other_and_say_for_whom(capsys):
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    both_came = threading.Barrier(2, timeout=300)

    def join(number):
        train_vae.await_workers(addresses, number, seconds=300)
        port = int(addresses[number].rpartition(":")[2])
        with socket.create_server(("", port)):  # as TensorFlow does then
            both_came.wait()

    other = threading.Thread(target=join, args=(1,))
    other.start()
    join(0)
    other.join()
    said = capsys.readouterr().out
    assert f"Worker 0 waits for {addresses[1]}" in said
    assert f"Worker 1 waits for {addresses[0]}" in said


def test_a_worker_that_never_comes_is_named():
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(SystemExit, match=f"come at {addresses[1]} in 1 s"):
        train_vae.await_workers(addresses, 0, seconds=1)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        own = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit, match=f"cannot listen at {own}"):
            train_vae.await_workers([own, "127.0.0.1:1"], 0)
    with pytest.raises(SystemExit, match="cannot listen at nowhere"):
        train_vae.await_workers(["nowhere", "127.0.0.1:1"], 0)


@pytest.mark.slow
def test_ctrl_c_is_heard_while_others_are_awaited(tmp_path):
    prepare(tmp_path, draw_images(40))
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    environment = {"TF_CONFIG": make_config(addresses, 1)}
    with open(tmp_path / "said.txt", "w") as said:
        waiting = start(tmp_path, environment, stdout=said, **small())
        wait_for(lambda: "waits for" in (tmp_path / "said.txt").read_text(), waiting)
        waiting.send_signal(signal.SIGINT)
        _, stderr = waiting.communicate(timeout=300)
    assert waiting.returncode == 130
    assert "Traceback" not in stderr and "Run again" in stderr


# ---------------------------------------------------------------------- devices


def test_each_device_draws_its_own_epsilon():
    devices = ["CPU:0", "CPU:1"]
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        sampling = train_vae.Sampling(3)
        zero = tf.zeros((4, 2))

        @tf.function
        def draw():
            return strategy.run(lambda: sampling([zero, zero]))

        drawn = [z.numpy() for z in strategy.experimental_local_results(draw())]
    assert len(drawn) == 2
    assert (drawn[0] != drawn[1]).all()


def test_gradients_of_all_devices_together_are_clipped_to_one():
    def walk(name, replicas, size):
        """Return where two steps lead, the first by a gradient of this size."""
        optimizer = train_vae.build_optimizer(name, 1e-3, replicas)
        place = tf.Variable([0.0, 0.0])
        for gradient in ([0.6 * size, 0.8 * size], [0.2, -0.1]):
            optimizer.apply_gradients([(tf.constant(gradient), place)])
        return place.numpy()

    for replicas in (1, 2):
        for name in ("adam", "rmsprop", "sgd"):
            bound = walk(name, replicas, 1 / replicas)
            huge = walk(name, replicas, 1000.0)
            np.testing.assert_allclose(huge, bound, rtol=1e-4)
            below = walk(name, replicas, 0.8 / replicas)
            assert not np.allclose(below, bound, rtol=1e-2)


@pytest.mark.slow
def test_what_tensorflow_says_is_shown_where_a_gpu_is_there_but_not_used(tmp_path):
    """A fake nvidia-smi stands for a machine whose GPU TensorFlow cannot use."""
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU that works")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    prepare(tmp_path, draw_images(40))
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "0"
    process = start(tmp_path, environment, **small(EPOCHS=1))
    _, stderr = process.communicate(timeout=900)
    assert process.returncode == 0
    assert "TensorFlow uses no GPU, although there may be one" in stderr
    assert len(stderr.splitlines()) > 1  # and TensorFlow's own notes


# ---------------------------------------------------------------------- the script


@pytest.mark.slow
def test_a_cluster_of_one_trains_as_without(tmp_path):
    texts = {"without": None, "empty": "{}", "list": "[1]"}
    texts["one"] = make_config([f"127.0.0.1:{free_port()}"], 0)
    results = []
    for name, text in texts.items():
        folder = tmp_path / name
        prepare(folder, draw_images(40))
        environment = {} if text is None else {"TF_CONFIG": text}
        process = start(folder, environment, **small(EPOCHS=2))
        _, stderr = process.communicate(timeout=900)
        assert (process.returncode, stderr) == (0, "")
        history = strip(read_history(folder))
        results.append((history, read_summary(folder)["model_id"]))
    assert results[1:] == results[:1] * 3


def move_of_bias(folder):
    """Return how far training has moved the sketch's bias from the mean image."""
    images = np.load(folder / "data/images.npy")[:180]
    p = np.clip(images.mean(axis=0) / 255, 0.01, 0.99)
    start_of_bias = np.log(p / (1 - p)).ravel()
    with np.load(folder / "model/backup.npz") as backup:
        for number in range(len(backup.files)):
            array = backup[f"state_{number}"]
            if array.shape == start_of_bias.shape:
                return array - start_of_bias
    raise AssertionError("the backup has no such bias")


@pytest.mark.slow
def test_two_workers_agree_with_one_process_and_notice_when_they_differ(tmp_path):
    folders = [tmp_path / name for name in ("worker0", "worker1", "single")]
    for folder in folders:
        prepare(folder, draw_images(200))
    settings = small(EPOCHS=3, OPTIMIZER="sgd")  # it follows the size of a gradient
    single = start(folders.pop(), **settings)
    single.communicate(timeout=900)
    codes, outputs = run_cluster(folders, **{**settings, "BATCH_SIZE": 8})
    assert [single.returncode, *codes] == [0, 0, 0]
    assert "11 steps of 16 images on 2 x CPU" in outputs[0][0]
    for line in outputs[1][0].splitlines():  # the first speaks for all
        assert line.startswith(("Reading ", "Worker 1 waits for "))
    written = {path.name for path in (tmp_path / "worker1").rglob("*.*")}
    assert written == {"train_vae.py", "images.npy", "backup1.npz"}
    ours, theirs = (
        strip(read_history(tmp_path / name)) for name in ("single", "worker0")
    )
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.02)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=0.02)
    backup_files = [tmp_path / "worker0/model/backup.npz"]
    backup_files.append(tmp_path / "worker1/model/backup1.npz")
    backups = [np.load(path) for path in backup_files]
    for name in backups[0]:
        if name.startswith("best_"):
            np.testing.assert_array_equal(backups[0][name], backups[1][name])

    # A gradient of another size would have moved the sketch's bias further.
    moved = [move_of_bias(tmp_path / name) for name in ("single", "worker0")]
    assert np.abs(moved[0]).max() > 0
    assert np.linalg.norm(moved[0] - moved[1]) < 0.02 * np.linalg.norm(moved[0])

    # One process goes on where the two stopped, and the other way round.
    shutil.copytree(tmp_path / "worker0", tmp_path / "alone")
    settings |= {"BATCH_SIZE": 8, "EPOCHS": 4}
    alone = run_script("train_vae.py", tmp_path / "alone", **settings)
    assert alone.returncode == 0
    assert "took 16 images until now and takes 8 from here on" in alone.stdout
    rates = [float(row["learning_rate"]) for row in read_history(tmp_path / "alone")]
    rate = train_vae.plan_rate(0.3, (2 + 10 / 11) / 3)
    assert rates[2] == pytest.approx(rate * 33 / 40)  # it rises over 40 steps
    assert rates[3] == pytest.approx(train_vae.plan_rate(0.3, (3 + 21 / 22) / 4))
    shutil.copy(tmp_path / "alone/model/backup.npz", backup_files[0])
    shutil.copy(tmp_path / "alone/model/backup.npz", backup_files[1])
    codes, outputs = run_cluster(folders, **{**settings, "EPOCHS": 5})
    assert codes == [0, 0]
    assert "took 8 images until now and takes 16 from here on" in outputs[0][0]

    backup_files[1].unlink()
    codes, outputs = run_cluster(folders, **{**settings, "EPOCHS": 6})
    assert codes == [1, 1]
    for (_, stderr), done in zip(outputs, (5, 0), strict=True):
        assert f"this one has done {done} of 6 epochs" in stderr
        assert "all in their order 5, 0" in stderr
        assert "Traceback" not in stderr and "newest backup" in stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"), [("KL_WEIGHT", (0, 1)), ("EPOCHS", (1, 2))]
)
def test_workers_with_other_settings_do_not_train(tmp_path, name, values):
    folders = [tmp_path / "worker0", tmp_path / "worker1"]
    addresses = [f"127.0.0.1:{free_port()}" for _ in folders]
    processes = []
    for index, folder in enumerate(folders):
        prepare(folder, draw_images(40))
        environment = {"TF_CONFIG": make_config(addresses, index)}
        settings = small(**{"EPOCHS": 1, name: values[index]})
        processes.append(start(folder, environment, **settings))
    for process, folder in zip(processes, folders, strict=True):
        _, stderr = process.communicate(timeout=900)
        assert process.returncode == 1
        assert "The workers differ" in stderr and "same script, settings" in stderr
        assert not (folder / "model/history.csv").exists()
