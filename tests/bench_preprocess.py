"""Time preprocess.py against the article's loop, watch its memory, and fuzz its reader.

    python tests/bench_preprocess.py

Draws photo-like JPEG files of 850 x 567 pixels and prints files/s of

- the article's way: read with OpenCV, turn to RGB, resize to 256 x 256, append to a
  list, and all of it once more for the mirrors, everything kept in memory;
- preprocess.py with each FIT, with and without the checks, as a process of its own from
  its start to its end;

then its peak anonymous memory for few and for many files, and what becomes of pictures
with damaged bytes: each must become a row or a reason. It takes six minutes.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import cv2
import numpy as np
from conftest import copy_script, load_script
from PIL import Image

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
NUM_PICTURES = 1000  # for the speed
ROUNDS = 3  # of which the medians are printed
MEMORY_FILES = (500, 5000)  # the pictures again and again, most of them duplicates
NUM_DAMAGED = 10_000  # inputs of the fuzzer
SEED = 0
# ----------------------------------------------------------------------------


def write_pictures(folder, count, seed):
    """Write JPEG files of 850 x 567 pixels: parts of larger pictures, none alike.

    They have a camera's noise and 60 kB or so each.
    """
    bench_prepare = load_script("tests/bench_prepare.py")
    folder.mkdir()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        if number % 20 == 0:
            large = bench_prepare.draw_background(random, 4250, 2268)
            large += random.normal(0, 0.01, large.shape)
            large = (255 * large.clip(0, 1)).astype(np.uint8)
        top, left = 567 * (number % 20 // 5), 850 * (number % 5)
        picture = large[top : top + 567, left : left + 850]
        name = str(folder / f"{number:05}.jpg")
        cv2.imwrite(name, picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return sorted(folder.iterdir())


def link_pictures(folder, paths, count):
    """Fill a folder with `count` files, links to the pictures in turn."""
    folder.mkdir(parents=True)
    for number in range(count):
        os.link(paths[number % len(paths)], folder / f"{number:05}.jpg")


def load_as_in_the_article(paths):
    images = []
    for path in paths:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        images.append(cv2.resize(image, (256, 256)))
    for path in paths:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        images.append(cv2.flip(cv2.resize(image, (256, 256)), 1))
    return np.array(images)


def run(folder, **edits):
    """Run preprocess.py; return the seconds and its peak anonymous memory in MB."""
    edits = {"INPUT": "raw", "IMAGE_SIZE": 256, "MIRROR": True} | edits
    copy_script("preprocess.py", folder, **edits)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, "preprocess.py"], cwd=folder, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as file:
            sizes = [line.split()[1] for line in file if line.startswith("RssAnon")]
            peak = max([peak, *map(int, sizes)])
        time.sleep(0.02)
    assert process.returncode == 0
    return time.perf_counter() - start, peak / 1000


def bench_speed(scratch, files):
    folder, rates = scratch / "speed", {}
    link_pictures(folder / "raw", files, len(files))
    for _ in range(ROUNDS):  # in turn: what disturbs one disturbs all
        start = time.perf_counter()
        load_as_in_the_article(files)
        seconds = time.perf_counter() - start
        rates.setdefault("the article's way", []).append(len(files) / seconds)
        for checks in (False, True):
            for fit in ("crop", "pad", "stretch", "subject"):
                seconds, _ = run(folder, FIT=fit, CHECKS=checks)
                name = f"FIT {fit:8} checks {'on' if checks else 'off'}"
                rates.setdefault(name, []).append(len(files) / seconds)
    article = np.array(rates["the article's way"])
    for name, values in rates.items():
        print(
            f"{name + ':':25} {np.median(values):.0f} files/s, "
            f"{np.median(values / article):.2f} times the article's "
            f"({np.min(values / article):.2f} to {np.max(values / article):.2f})"
        )


def bench_memory(scratch, paths):
    for count in MEMORY_FILES:
        folder = scratch / f"memory-{count}"
        link_pictures(folder / "raw", paths, count)
        seconds, peak = run(folder, FIT="subject", CHECKS=True)
        print(f"{count} files: {peak:.0f} MB of anonymous memory, {seconds:.0f} s")
        (folder / "data" / "images.npy").unlink()


def damage(data, random):
    """Return bytes with some changed, cut out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(random.integers(1, 6)):
        place = int(random.integers(len(data)))
        length = int(random.integers(1, 40))
        kind = random.integers(4)
        if kind == 0:
            noise = random.integers(0, 256, length, np.uint8)
            data[place : place + length] = noise.tobytes()
        elif kind == 1:
            data[place] ^= 1 << random.integers(8)
        elif kind == 2:
            del data[place : place + length]
        else:
            data[place:place] = data[place : place + length]
        data = data or bytearray(b"\0")
    return bytes(
        data[: random.integers(1, len(data))] if random.random() < 0.1 else data
    )


def make_seeds(random):
    """Return {ending: bytes} of small pictures of each kind that is read."""
    image = random.integers(0, 256, (24, 32, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    seeds = {}
    for ending in ("jpeg", "png", "webp", "bmp", "tiff", "gif", "avif"):
        file = io.BytesIO()
        Image.fromarray(image).save(file, ending)
        seeds[ending] = file.getvalue()
    return seeds


def bench_damage(scratch):
    preprocess = load_script("preprocess.py")
    random = np.random.default_rng(SEED)
    settings = types.SimpleNamespace(
        image_size=64, color="rgb", fit="subject", margin=1.15, confidence=2.0,
        checks=True, border_levels=8, min_contrast=6, max_aspect=4, min_side=16,
        max_pixels=1_000_000,
    )  # fmt: skip
    seeds, rows, longest = make_seeds(random), 0, 0
    with preprocess.hold_back_stderr(pass_on=False):  # libtiff's complaints
        for number in range(NUM_DAMAGED):
            ending = list(seeds)[number % len(seeds)]
            path = scratch / f"damaged.{ending}"
            path.write_bytes(damage(seeds[ending], random))
            start = time.perf_counter()
            row = preprocess.make_row("x", path, settings)
            longest = max(longest, time.perf_counter() - start)
            rows += row.pixels is not None
            assert (row.pixels is None) == bool(row.reason)
    print(
        f"{NUM_DAMAGED} damaged pictures: {rows} rows, {NUM_DAMAGED - rows} reasons, "
        f"no crash, {longest:.2f} s at most for one"
    )


def main():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        bench_damage(scratch)
        paths = write_pictures(scratch / "pictures", NUM_PICTURES, SEED)
        bench_speed(scratch, paths)
        bench_memory(scratch, paths)


if __name__ == "__main__":
    main()
