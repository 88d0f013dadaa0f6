"""Time preprocess.py against the article's loop, watch its memory, and fuzz its reader.

    python tests/bench_preprocess.py

Draws photo-like JPEG files of 850 x 567 pixels and prints files/s of

- the article's way: read with OpenCV, turn to RGB, resize to 256 x 256, append to a
  list, and all of it once more for the mirrors, everything kept in memory;
- preprocess.py with each FIT, with and without the checks, as a process of its own from
  its start to its end; "person" on drawn scenes with athletes, without and with
  BACKGROUND "gray";

all of it on PHOTOS as well, if that names a folder; then its peak anonymous memory for
few and for many files, and what becomes of pictures with damaged bytes: each must
become a row or a reason. The person model is looked for at data/person.tflite; without
it, what needs it is left out. It takes a quarter of an hour.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from conftest import ROOT, copy_script, load_script
from PIL import Image

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
PHOTOS = ""  # a folder of photographs, or "": the drawn part only
NUM_PICTURES = 1000  # for the speed
NUM_SCENES = 300  # with athletes, for the speed of "person"
ROUNDS = 3  # of which the medians are printed
MEMORY_FILES = (500, 5000)  # the pictures again and again, most of them duplicates
NUM_DAMAGED = 10_000  # inputs of the fuzzer
SEED = 0
# ----------------------------------------------------------------------------

MODEL = ROOT / "data" / "person.tflite"
FITS = {  # name: settings
    "crop": {"FIT": "crop"},
    "pad": {"FIT": "pad"},
    "stretch": {"FIT": "stretch"},
}
PERSON_FITS = {
    "person": {"FIT": "person"},
    "person, gray": {"FIT": "person", "BACKGROUND": "gray"},
}


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
    settings = {"INPUT": "raw", "IMAGE_SIZE": 256, "MIRROR": True}
    settings["PERSON_MODEL"] = str(MODEL)
    settings.update(edits)
    copy_script("preprocess.py", folder, **settings)
    start = time.perf_counter()
    peak = 0
    process = subprocess.Popen(
        [sys.executable, "preprocess.py"], cwd=folder, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it may just have ended
            peak = max(peak, read_anonymous_memory(process.pid))
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"preprocess.py ended with {process.returncode}")
    return time.perf_counter() - start, peak / 1000


def read_anonymous_memory(pid):
    """Return the anonymous memory of a process in kB, 0 where it has just ended."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("RssAnon"):
                return int(line.split()[1])
    return 0


def bench_speed(name, folder, files, fits):
    """Print files/s of the article's way and of preprocess.py by some FITs.

    Args:
        name: of the pictures.
        folder: where to work; it is made here.
        files: Paths of the pictures.
        fits: {name: settings}.
    """
    folder.mkdir()
    (folder / "raw").mkdir()
    for number, path in enumerate(files):
        (folder / "raw" / f"{number:05}{path.suffix}").symlink_to(path)
    article = []
    rates = {}
    for _ in range(ROUNDS):  # in turn: what disturbs one disturbs all
        start = time.perf_counter()
        load_as_in_the_article(files)
        article.append(len(files) / (time.perf_counter() - start))
        for fit, settings in fits.items():
            for checks in (False, True):
                seconds, _ = run(folder, CHECKS=checks, **settings)
                kind = f"{fit:12} checks {'on' if checks else 'off'}"
                rates.setdefault(kind, []).append(len(files) / seconds)
    print(f"{name}, the article's way: {np.median(article):.0f} files/s")
    for kind, values in rates.items():
        ratios = np.array(values) / article
        print(
            f"{name}, {kind + ':':25} {np.median(values):.0f} files/s, "
            f"{np.median(ratios):.2f} times the article's "
            f"({ratios.min():.2f} to {ratios.max():.2f})",
            flush=True,
        )


def bench_memory(name, folder, paths, fits):
    """Print the peak memory for few and for many files, which are links to `paths`."""
    for count in MEMORY_FILES:
        link_pictures(folder / f"{count}" / "raw", paths, count)
        for fit, settings in fits.items():
            seconds, peak = run(folder / f"{count}", CHECKS=True, **settings)
            print(
                f"{name}, {fit}, {count} files: {peak:.0f} MB of anonymous memory, "
                f"{seconds:.0f} s",
                flush=True,
            )
        (folder / f"{count}" / "data" / "images.npy").unlink()


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
        if not data:
            data = bytearray(b"\0")
    if random.random() < 0.1:
        data = data[: random.integers(1, len(data))]
    return bytes(data)


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
    preprocess.IMAGE_SIZE = 64
    preprocess.MIN_SIDE = 16
    preprocess.MAX_PIXELS = 1_000_000
    preprocess.CHECKS = True
    preprocess.FIT = "crop"
    if MODEL.is_file():
        preprocess.FIT = "person"
        preprocess.PERSON_MODEL = str(MODEL)
        preprocess.MIN_PERSON = 0
    random = np.random.default_rng(SEED)
    seeds = make_seeds(random)
    endings = list(seeds)
    rows = 0
    longest = 0
    with preprocess.quiet():  # libtiff's complaints
        for number in range(NUM_DAMAGED):
            ending = endings[number % len(endings)]
            path = scratch / f"damaged.{ending}"
            path.write_bytes(damage(seeds[ending], random))
            start = time.perf_counter()
            row = preprocess.make_row("x", path)
            longest = max(longest, time.perf_counter() - start)
            if row.pixels is not None:
                rows += 1
            assert (row.pixels is None) == bool(row.reason)
    print(
        f"{NUM_DAMAGED} damaged pictures: {rows} rows, {NUM_DAMAGED - rows} reasons, "
        f"no crash, {longest:.2f} s at most for one"
    )


def main():
    scenes = load_script("tests/bench_prepare.py")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bench_damage(scratch)
        paths = write_pictures(scratch / "pictures", NUM_PICTURES, SEED)
        bench_speed("drawn", scratch / "speed", paths, FITS)
        bench_memory("drawn", scratch / "memory", paths, {"crop": FITS["crop"]})
        if MODEL.is_file():
            scenes.write_scenes(scratch / "scenes", SEED, NUM_SCENES)
            people = sorted((scratch / "scenes").iterdir())
            bench_speed("scenes", scratch / "people", people, PERSON_FITS)
            bench_memory("scenes", scratch / "memory-people", people, PERSON_FITS)
        else:
            print(f"No person model at {MODEL}: what needs it is left out.")
        if PHOTOS:
            photos = sorted(Path(PHOTOS).resolve().rglob("*.jpg"))
            fits = dict(FITS)
            if MODEL.is_file():
                fits.update(PERSON_FITS)
            bench_speed("photographs", scratch / "photos", photos, fits)
            # Links beside the photographs would need one disk: copies are measured.
            copies = scratch / "copied"
            copies.mkdir()
            for number, path in enumerate(photos[: MEMORY_FILES[0]]):
                (copies / f"{number:05}.jpg").write_bytes(path.read_bytes())
            paths = sorted(copies.iterdir())
            bench_memory("photographs", scratch / "memory-photos", paths, fits)


if __name__ == "__main__":
    main()
