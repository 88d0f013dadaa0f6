"""What the tests of train_vae.py share: the script, tiny images, and running it."""

import csv
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
from conftest import copy_script, load_script

train_vae = load_script("train_vae.py")
keras, tf = train_vae.keras, train_vae.tf

cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()]
tf.config.set_logical_device_configuration(cpu, two)  # for MirroredStrategy

FILTERS = (4, 8, 8, 16)
ACTIVATION = "leaky_relu"


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
    (folder / "data").mkdir(parents=True, exist_ok=True)
    np.save(folder / "data/images.npy", images)


def small(**edits):
    """Return settings that train within seconds."""
    return {"FILTERS": FILTERS, "EPOCHS": 6, "BATCH_SIZE": 16, **edits}


def build(side=28, channels=1, filters=FILTERS, optimizer="adam", replicas=1):
    """Build a model of the article's loss; return it, the encoder and the decoder."""
    keras.utils.set_random_seed(0)
    sizes = (side, channels, 2, filters, ACTIVATION)
    encoder = train_vae.build_encoder(*sizes)
    decoder = train_vae.build_decoder(*sizes, train_vae.up_conv)
    vae = train_vae.build_vae(encoder, decoder, [5e-4, 5e-4], 0)
    rate = train_vae.choose_rate(optimizer, None)
    vae.compile(train_vae.build_optimizer(optimizer, rate, replicas))
    vae.optimizer.build(vae.trainable_variables)
    return vae, encoder, decoder


def build_stock(decoder, side=28, channels=1, filters=FILTERS):
    """Return the decoder of build() as it is saved."""
    sizes = (side, channels, 2, filters, ACTIVATION)
    return train_vae.build_stock_decoder(decoder, *sizes)


def make_logs(reconstruction_loss, kl_loss, loss=0.0):
    """Return what Keras gives to a callback at the end of an epoch."""
    logs = {"loss": loss, "reconstruction_loss": reconstruction_loss}
    logs |= {"kl_loss": kl_loss, "loss_final": reconstruction_loss + 5e-4 * kl_loss}
    return logs | {f"val_{name}": value for name, value in logs.items()}


def read_history(folder):
    with open(folder / "model/history.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_summary(folder):
    return json.loads((folder / "model/summary.json").read_text(encoding="utf-8"))


def strip(history):
    """Return the rows of a history as numbers, without the time."""
    return [
        {name: float(value) for name, value in row.items() if name != "seconds"}
        for row in history
    ]


def start(folder, environment=None, stdout=subprocess.PIPE, **edits):
    """Start an edited copy of the script in the folder and return the process."""
    copy_script("train_vae.py", folder, **edits)
    return subprocess.Popen(
        [sys.executable, "train_vae.py"],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training ended too early"
        assert time.monotonic() < end, "the training never came so far"
        time.sleep(0.02)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_config(addresses, index, kind="worker"):
    """Return the text of TF_CONFIG for one worker of a cluster."""
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def run_cluster(folders, **edits):
    """Run a worker in each folder; return their exit codes and what they printed."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in folders]
    processes = []
    for index, folder in enumerate(folders):
        config = make_config(addresses, index)
        processes.append(start(folder, {"TF_CONFIG": config}, **edits))
    outputs = [process.communicate(timeout=900) for process in processes]
    print(*sum(outputs, ()), sep="\n")
    return [process.returncode for process in processes], outputs
