"""Draw what the network has learned: the decoder's pictures and the map of the codes.

    python plot_latent.py

Reads   MODEL_DIR/encoder.keras, decoder.keras and summary.json, of one training;
        INPUT_FILE, the array of that training, uint8 (N, H, W, C), and its images.csv;
        what RAW_DIR knows about the pictures, for the colours of the map.
Writes  into FIGURE_DIR; all but the map show decoded pictures only, none of the data:
        latent_grid.png: GRID_SIZE x GRID_SIZE decoded codes; latent_map.png: where the
        codes of the images lie; traversals.png: a row a latent; morph.gif: a closed
        walk; latent_space.html: the same plane, to walk in by hand, without the web.

The tiles of the grid are at quantiles of the normal prior, so that each stands for an
equal share of it. With more than two latents the plane is spanned by the two principal
axes of the codes. Without the array, what needs only the decoder is still drawn. All
takes 9 s for a model of 256 pixels and 600 images on two cores.
"""

import base64
import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import matplotlib.colors
import matplotlib.figure
import matplotlib.patches
import numpy as np
import scipy.special
from PIL import Image, ImageDraw, ImageFont


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

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
INPUT_FILE = "data/images.npy"
RAW_DIR = "data/raw"  # what preprocess.py read: a folder, or an .npz file with y_train
MODEL_DIR = "model"
FIGURE_DIR = "figures"

# Grid
GRID_SIZE = 15  # tiles a side, 2 to 40; 15 x 15 tiles of 256 pixels are 3840 x 3840
QUANTILES = (0.05, 0.95)  # outermost positions, as quantiles of the normal prior

# Map
COLOR_BY = None  # "keyword", "folder", "label", or as in factors.csv; None: the first

# Animation
MORPH_PATH = "loop"  # round the plane, "columns" of the grid, or [files of images.csv]
# ----------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its place on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_models(folder):
    """Return the encoder, the decoder and their summary, {} where that is of others.

    Raises:
        ValueError: A model is missing or cannot be read, or they are no pair.
    """
    models = []
    for path in (folder / "encoder.keras", folder / "decoder.keras"):
        if not path.exists():
            raise ValueError(f"there is no {path.name}")
        try:
            with quiet():
                models.append(keras.saving.load_model(path, compile=False))
        except Exception as error:  # Keras raises nearly anything
            reason = f"Keras {keras.__version__} cannot read {path.name}: {error}"
            raise ValueError(" ".join(reason.split())[:300]) from error
    encoder, decoder = models
    ids = [model.name.partition("_")[2] for model in models]
    shapes = [tensor.shape for tensor in encoder.inputs + encoder.outputs]
    if ids[0] != ids[1] or shapes != [decoder.output_shape, *2 * [decoder.input_shape]]:
        raise ValueError(f"{encoder.name} and {decoder.name} do not belong together")
    summary = {}
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return encoder, decoder, summary if summary.get("model_id") == ids[0] else {}


def open_images(path, shape, images_id):
    """Map the array with this id, uint8 (N, *shape), and read its index, N dicts.

    Raises:
        ValueError, OSError: The array or its index is missing, or another.
    """
    images = np.lib.format.open_memmap(path, mode="r")
    if images.shape[1:] != shape:
        sys.exit(
            f"{path} (INPUT_FILE) holds images of {images.shape[1:]}, the model takes "
            f"{shape}. Run train_vae.py on this array, or preprocess.py as before."
        )
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest()[:16] != images_id:
            raise ValueError("it is not the array that summary.json names")
    with open(path.with_name("images.csv"), encoding="utf-8", newline="") as file:
        index = list(csv.DictReader(file))
    if len(index) != len(images) or index[0].get("images_id") != images_id:
        raise ValueError("images.csv beside it is of another array")
    return images, index


def encode(encoder, images, rows):
    """Return z_mean, (len(rows), L), of rows of images, uint8 (N, H, W, C)."""
    means = np.empty((len(rows), encoder.output_shape[0][1]), np.float32)
    for i in range(0, len(rows), 8):
        batch = images[rows[i : i + 8]] / np.float32(255)
        means[i : i + 8] = encoder.predict_on_batch(batch)[0]
    return means


def decode(decoder, codes):
    """Decode codes (N, L) in batches; return uint8 (N, H, W, C)."""
    # Batches of 8 are as fast as those of 32 at 256 pixels, and take 130 MB less.
    codes = codes.astype(np.float32)
    images = np.empty((len(codes), *decoder.output_shape[1:]), np.uint8)
    for i in range(0, len(codes), 8):
        images[i : i + 8] = np.rint(decoder.predict_on_batch(codes[i : i + 8]) * 255)
    return images


def read_values(raw, index):
    """Return {name: a text for each row of the index} of what is known about the rows.

    Args:
        raw: a folder with sub-folders, manifest.jsonl or factors.csv, or an .npz file
            with y_train and perhaps y_test.
        index: dicts with `file` and `mirrored`.
    """
    tables = {}
    if (raw / "manifest.jsonl").exists():
        with open(raw / "manifest.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        tables["keyword"] = {line["file"]: line["keyword"] for line in lines}
    tables["folder"] = {row["file"]: row["file"].rpartition("/")[0] for row in index}
    if raw.suffix == ".npz":
        with np.load(raw, allow_pickle=False) as archive:
            tables["label"] = {
                f"x_{part}[{number}]": str(label)
                for part in ("train", "test")
                if f"y_{part}" in archive
                for number, label in enumerate(archive[f"y_{part}"].ravel())
            }
    if (raw / "factors.csv").exists():
        with open(raw / "factors.csv", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        for name in list(lines[0])[1:]:
            tables[name] = {line["file"]: line[name] for line in lines}
    values = {
        name: [table.get(row["file"], "") for row in index]
        for name, table in tables.items()
    }
    for place, row in enumerate(index if "shift" in values else []):
        if row["mirrored"] == "1":  # to the right is to the left in a mirror
            values["shift"][place] = str(-float(values["shift"][place]))
    return {name: texts for name, texts in values.items() if len(set(texts)) > 1}


def paint(texts):
    """Choose a colour for each text; return them, RGBA (N, 4), and a legend."""
    with contextlib.suppress(ValueError):
        texts = [float(text) for text in texts]
    kinds, places = np.unique(texts, return_inverse=True)
    table = matplotlib.colormaps["tab10"]
    if len(kinds) > table.N:
        table = matplotlib.colormaps["viridis"].resampled(len(kinds))
    shown = np.unique(np.linspace(0, len(kinds) - 1, 10).astype(int))
    label = "{:g}".format if kinds.dtype == float else str
    return table(places), {label(kinds[kind]): table(kind) for kind in shown}


def choose_colors(raw, index, color_by):
    """Return RGBA (N, 4) for N rows of the index, what they tell, and a legend."""
    values = {}
    try:
        values = read_values(raw, index)
    except Exception as error:  # damaged files raise nearly anything
        print(f"Left out the colours: {raw} (RAW_DIR): {error!r}")
    known = f"{raw} (RAW_DIR) tells {list(values)}"
    check(color_by in (None, *values), f"COLOR_BY = {color_by!r}: {known}")
    if not values:
        return np.full((len(index), 4), 0.5), "nothing", {}
    name = color_by or next(iter(values))
    colors, legend = paint(values[name])
    return colors, name, legend


class Plane:
    """The plane of the latent space that is drawn: center (L,), axes (2, L), labels.

    With two latents it is the latent space. With more, its center is the mean of codes
    (N, L) and its axes are their principal ones, a standard deviation long, turned so
    that the largest components are positive; without codes, N = 0, it is that of the
    two latents of the largest kl, (L,).
    """

    def __init__(self, codes, kl):
        if len(kl) == 2 or not len(codes):
            chosen = [0, 1] if len(kl) == 2 else np.argsort(-kl, kind="stable")[:2]
            self.center, self.axes = np.zeros(len(kl)), np.eye(len(kl))[chosen]
            self.labels = [f"z[{latent}]" for latent in chosen]
            return
        self.center = codes.mean(axis=0, dtype=float)
        _, lengths, axes = np.linalg.svd(codes - self.center, full_matrices=False)
        lengths = lengths[:2] / math.sqrt(len(codes))
        signs = np.sign([axis[np.abs(axis).argmax()] for axis in axes[:2]])
        self.axes = axes[:2] * (lengths * signs)[:, None]
        self.labels = [
            f"principal axis {number}, in standard deviations ({length:.2f} in z)"
            for number, length in enumerate(lengths, 1)
        ]

    def locate(self, positions):
        """Return the codes (..., L) of positions (..., 2)."""
        return self.center + positions @ self.axes

    def project(self, codes):
        """Return the positions (..., 2) next to codes (..., L)."""
        return (codes - self.center) @ np.linalg.pinv(self.axes)


def make_lattice(positions):
    """Return the points (n, n, 2) of a lattice, the first row that of the largest y."""
    return np.stack(np.meshgrid(positions, positions[::-1]), axis=-1)


def choose_stops(path, positions):
    """Return the points (S, 2) at which a closed walk in the plane turns.

    A "loop" is the circle that holds half of the prior; "columns" are those of the grid
    at these positions, down and up in turn.
    """
    if path == "loop":
        turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)
        return math.sqrt(math.log(4)) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    y = np.resize(positions[[-1, 0, 0, -1]], 2 * len(positions))  # ends of two columns
    return np.stack([positions.repeat(2), y], axis=1)


def follow(decoder, stops, num_frames):
    """Walk along lines from stop to stop and back to the first, in visibly equal steps.

    To this end twice as many codes are decoded, to measure how far the picture changes
    (root mean square). Stops are codes (S, L), those returned (num_frames, L).
    """
    corners = np.vstack([stops, stops[:1]])
    miles = np.append(0, np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum())

    def at(mile):
        return np.stack([np.interp(mile, miles, axis) for axis in corners.T], axis=1)

    tried = np.linspace(0, miles[-1], 2 * num_frames + 1)
    pairs = itertools.pairwise(decode(decoder, at(tried)))
    steps = [np.square(np.subtract(*pair, dtype=np.float32)).mean() for pair in pairs]
    seen = np.append(0, np.cumsum(np.sqrt(steps) + 1e-6))  # rising, whatever is decoded
    even = np.linspace(0, seen[-1], num_frames, endpoint=False)
    return at(np.interp(even, seen, tried))


def to_pictures(images, side, resample=Image.Resampling.LANCZOS):
    """Yield uint8 (N, H, W, C) as Pillow's images of another side in pixels."""
    for image in images:
        yield Image.fromarray(image.squeeze()).resize((side, side), resample)


def plot_tiles(path, decoder, codes, columns, rows, labels):
    """Decode codes (R, K, L) and draw them pixel by pixel, small images enlarged.

    columns and rows are K and R texts, the rows from the top; labels are of both axes.
    """
    side = decoder.output_shape[1]
    tile = side * max(1, round(120 / side))
    left, end = 7 * tile // 4, tile // 4
    width, height = len(columns) * tile, len(rows) * tile
    sheet = Image.new("RGB", (left + width + end, end + height + tile), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(0.17 * tile)
    upward = ImageFont.TransposedFont(font, Image.Transpose.ROTATE_90)
    for y, text, line in zip(range(end, end + height, tile), rows, codes, strict=True):
        pictures = to_pictures(decode(decoder, line), tile, Image.Resampling.NEAREST)
        for x, picture in enumerate(pictures):
            sheet.paste(picture, (left + x * tile, y))
        place = left - end / 2, y + tile / 2
        pen.text(place, text, "black", font, anchor="rm", align="right")
    for x, text in enumerate(columns):
        place = left + (x + 0.5) * tile, height + 0.45 * tile
        pen.text(place, text, "black", font, anchor="mm")
    place = left + width / 2, height + 0.85 * tile
    pen.text(place, labels[0], "black", font, anchor="mm")
    place = 0.2 * tile, end + (height - upward.getbbox(labels[1])[3]) / 2
    pen.text(place, labels[1], "black", upward)
    sheet.save(path, "PNG", compress_level=1, dpi=(300, 300))
    return f"decoded pictures, {len(rows)} x {len(columns)} tiles of {tile} pixels"


def plot_grid(path, decoder, plane, positions):
    """Draw the grid: the plane at these positions along both axes."""
    codes = plane.locate(make_lattice(positions))
    texts = [f"{position:z.2f}" for position in positions]
    return plot_tiles(path, decoder, codes, texts, texts[::-1], plane.labels)


def plot_traversals(path, decoder, kl):
    """Draw a row for each latent, the others at 0: the 64 of the largest kl at most."""
    values, order = np.linspace(-2.5, 2.5, 11), np.argsort(-kl, kind="stable")[:64]
    codes = values[:, None] * np.eye(len(kl))[order, None]
    rows = [f"z[{latent}]" for latent in order]
    for row, nats in enumerate(kl[order]):
        rows[row] += "" if math.isnan(nats) else f"\n{nats:.2f} nats"
        rows[row] += "\ncarries nothing" if nats < 0.005 else ""
    labels = "z, where the others are 0", ""
    columns = [f"{value:g}" for value in values]
    text = plot_tiles(path, decoder, codes, columns, rows, labels)
    return f"{text}, {len(rows)} of {len(kl)} latents"


def plot_map(path, plane, square, points, held_out, colors, name, legend):
    """Draw where images lie in the plane, with the prior and the square of the grid.

    The square is its lowest and highest position. Of the points, (N, 2), in colours
    RGBA (N, 4), those held out, bool (N,), get a rim.
    """
    figure = matplotlib.figure.Figure((10, 8.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
    kinds = ("training", ~held_out, 12, 0), ("held-out", held_out, 36, 0.8)
    for text, chosen, size, rim in kinds:
        style = {"s": size, "linewidths": rim, "edgecolors": "black", "alpha": 0.8}
        axes.scatter(*points[chosen].T, c=colors[chosen], **style)
        axes.scatter([], [], c="grey", label=f"{chosen.sum()} {text} images", **style)
    for text, color in legend.items():
        axes.scatter([], [], color=color, label=f"{name}: {text[:40] or 'unknown'}")
    axes.plot(*square[[[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]], "k", label="latent_grid.png")
    # On the plane the prior is two independent normals, with ellipses as contours.
    center = plane.project(np.zeros_like(plane.center))
    spread = 1 / np.linalg.norm(plane.axes, axis=1)
    for share in (0.5, 0.9, 0.99):
        size = 2 * spread * math.sqrt(-2 * math.log(1 - share))
        ring = matplotlib.patches.Ellipse(center, *size, fill=False, edgecolor="grey")
        axes.add_artist(ring)
    axes.plot([], [], "grey", label="50, 90 and 99 % of the prior")
    reach = 1.05 * max(3.1, np.abs(points).max(), np.abs(square).max())
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    figure.legend(loc="outside right upper")
    figure.savefig(path, format="png", bbox_inches="tight")  # or a label is cut off
    return f"codes of {len(points)} images, coloured by {name}"


def write_morph(path, decoder, walk):
    """Write the pictures of codes (T, L) as a GIF that goes round, below 5 MB.

    All have the same 256 colours and are not dithered, so that nothing flickers.
    """
    images = decode(decoder, walk)
    some = Image.fromarray(np.vstack(images[:: -(-len(images) // 24)]).squeeze())
    palette = some.quantize(256, Image.Quantize.FASTOCTREE)
    side = min(images.shape[1] * max(1, round(224 / images.shape[1])), 320)
    options = {"save_all": True, "duration": 50, "loop": 0}  # 20 frames a second
    while True:
        frames = list(to_pictures(images, side))
        if images.shape[3] == 3:
            frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
        frames[0].save(path, "GIF", append_images=frames[1:], **options)
        if path.stat().st_size < 5e6:
            return f"decoded pictures, {len(images)} frames, {side} x {side} pixels"
        side = side * 7 // 8


def to_jpegs(images, side, quality):
    """Return uint8 (N, H, W, C) as the texts, in base 64, of N JPEG files."""
    texts, options = [], {"quality": quality, "subsampling": 0, "optimize": True}
    for picture in to_pictures(images, side):
        picture.save(file := io.BytesIO(), "JPEG", **options)
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


def write_explorer(path, decoder, plane, square, points, colors, walk):
    """Write the plane as an HTML file below 6 MB: tiles 0.25 apart to blend between.

    Args as in plot_map, and walk: (T, 2), the positions of the animation.
    """
    reach = max(3, math.ceil(np.abs(square).max()))
    lattice = make_lattice(np.linspace(-reach, reach, 8 * reach + 1))
    codes = plane.locate(lattice)
    some = decode(decoder, codes.reshape(-1, codes.shape[-1])[::13])
    for quality in range(92, 4, -4):
        side = min(some.shape[1], 256, 6 * quality)
        if 13 * len("".join(to_jpegs(some, side, quality))) < 5.6e6:
            break
    tiles = []
    for line in codes:  # not all at once: memory
        tiles += to_jpegs(decode(decoder, line), side, quality)
    square = make_lattice(square).reshape(4, 2)[[0, 1, 3, 2]]  # its corners, in turn
    names = [matplotlib.colors.to_hex(color) for color in colors]
    dots = zip(*points.T.round(2).tolist(), names, strict=True)
    data = {"side": side, "count": len(lattice), "reach": reach, "tiles": tiles}
    data |= {"labels": plane.labels, "square": square.round(3).tolist()}
    data |= {"dots": list(dots), "walk": walk.round(3).tolist()}
    page = fill_page(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    path.write_text(page, encoding="utf-8", newline="\n")
    return f"decoded pictures, {len(tiles)} tiles of {side} pixels, quality {quality}"


def fill_page(data):
    """Return the explorer as HTML with the data, JSON, in it."""
    return """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
  img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>Latent space</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }
  body { margin: 0 auto; padding: 1rem; max-width: 68rem; }
  h1 { margin: 0; font-size: 1.3rem; }
  p { margin: 0.3rem 0 1rem; }
  main, aside { display: flex; flex-wrap: wrap; gap: 1rem; }
  canvas { aspect-ratio: 1; touch-action: none; cursor: crosshair; min-width: 0; }
  canvas:focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }
  #picture { flex: 1 1 20rem; max-width: min(100%, 80vh); }
  aside { flex: 1 1 20rem; max-width: min(100%, 80vh); align-items: start; }
  #map { flex: 1 1 9rem; box-sizing: border-box; border: 1px solid GrayText; }
  #controls { flex: 1 1 9rem; font-variant-numeric: tabular-nums; }
  @media (min-width: 48rem) { aside { flex: 0 1 22rem; flex-direction: column; }
    aside > * { width: 100%; flex: none !important; } }
  label, output, input { display: block; }
  input { width: 100%; margin: 0 0 0.7rem; }
  button { font: inherit; padding: 0.6rem 1.6rem; }
</style>
<h1>Latent space</h1>
<p id="help">Move a pointer or a finger over the picture or the map, or press the arrow
  keys (with Shift: further; Home: to the middle; space: walk or pause). All pictures
  here are the decoder's.</p>
<main>
  <canvas id="picture" tabindex="0" role="application" aria-describedby="help"></canvas>
  <aside>
    <canvas id="map" width="640" height="640" tabindex="0" role="application"
      aria-label="Map: a dot is the code of an image" aria-describedby="help"></canvas>
    <div id="controls">
      <label><span></span><input type="range" step="0.01"></label>
      <label><span></span><input type="range" step="0.01"></label>
      <output id="place" aria-live="off"></output>
      <p><button type="button">Walk</button></p>
    </div>
  </aside>
</main>
<script type="application/json" id="data">DATA</script>
<script>
"use strict";
const find = (text) => document.querySelector(text);
const data = JSON.parse(find("#data").textContent);
const {count, reach, labels, walk} = data;
const picture = find("#picture"), map = find("#map"), button = find("button");
const sliders = document.querySelectorAll("input");
const brush = picture.getContext("2d"), pen = map.getContext("2d");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let here = [0, 0];  // the position that is drawn
let goal = [0, 0];  // the one that it glides to
let walking = false, steps = 0, before = 0, asked = false;

function ask() {  // for a frame, one at a time
  if (!asked) requestAnimationFrame(draw);
  asked = true;
}

function go(position) {
  goal = position.map((value) => Math.max(-reach, Math.min(reach, value)));
  ask();
}

function play(on) {
  walking = on;
  button.textContent = on ? "Pause" : "Walk";
  ask();
}

function draw(now) {
  const seconds = Math.min(0.1, (now - before) / 1000);
  before = now;
  asked = false;
  if (walking) {
    steps = (steps + 20 * seconds) % walk.length;  // as fast as morph.gif
    const from = walk[Math.floor(steps)], to = walk[Math.ceil(steps) % walk.length];
    go(from.map((value, axis) => value + steps % 1 * (to[axis] - value)));
  }
  const part = calm.matches ? 1 : 1 - Math.exp(-seconds / 0.07);
  here = here.map((value, axis) => Math.abs(goal[axis] - value) < 0.002 ? goal[axis]
    : value + part * (goal[axis] - value));
  drawPicture();
  drawMap();
  const numbers = here.map((value) => value.toFixed(2));
  find("#place").textContent = numbers.join(", ");
  picture.ariaLabel = "Decoded picture at " + numbers.join(", ");
  sliders.forEach((slider, axis) => { slider.value = goal[axis]; });
  if (walking || here.some((value, axis) => value !== goal[axis])) ask();
}

function drawPicture() {  // the four tiles around the place, each by its nearness
  const x = (here[0] + reach) / (2 * reach) * (count - 1);
  const y = (reach - here[1]) / (2 * reach) * (count - 1);
  let sum = 0;
  for (const row of [Math.floor(y), Math.floor(y) + 1]) {
    for (const column of [Math.floor(x), Math.floor(x) + 1]) {
      const weight = (1 - Math.abs(x - column)) * (1 - Math.abs(y - row));
      if (weight < 1e-6 || !tiles[row * count + column].complete) continue;
      sum += weight;
      brush.globalAlpha = weight / sum;
      brush.drawImage(tiles[row * count + column], 0, 0);
    }
  }
}

function drawMap() {
  const scale = map.width / (2 * reach);
  const spot = ([x, y]) => [(x + reach) * scale, (reach - y) * scale];
  pen.clearRect(0, 0, map.width, map.height);
  for (const [x, y, color] of data.dots) {
    pen.fillStyle = color;
    pen.fillRect(...spot([x - 0.02, y + 0.02]), 5, 5);
  }
  pen.strokeStyle = getComputedStyle(map).color;
  pen.lineWidth = 1;
  for (const corners of [data.square, walk]) {
    pen.beginPath();
    for (const corner of corners) pen.lineTo(...spot(corner));
    pen.closePath();
    pen.stroke();
  }
  pen.lineWidth = 4;
  pen.beginPath();
  pen.arc(...spot(here), 10, 0, 2 * Math.PI);
  pen.stroke();
}

const tiles = data.tiles.map((text) => {
  const tile = new Image();
  tile.onload = ask;
  tile.src = "data:image/jpeg;base64," + text;
  return tile;
});
picture.width = picture.height = data.side;
sliders.forEach((slider, axis) => {
  slider.min = -reach;
  slider.max = reach;
  slider.previousElementSibling.textContent = labels[axis];
  slider.oninput = () => {
    play(false);
    go(axis ? [goal[0], +slider.value] : [+slider.value, goal[1]]);
  };
});
button.onclick = () => play(!walking);
for (const view of [picture, map]) {
  view.onpointermove = (event) => {
    const box = view.getBoundingClientRect();
    play(false);
    go([(2 * (event.clientX - box.left) / box.width - 1) * reach,
        (1 - 2 * (event.clientY - box.top) / box.height) * reach]);
  };
  view.onpointerdown = (event) => {
    view.setPointerCapture(event.pointerId);
    view.onpointermove(event);
  };
  view.onkeydown = (event) => {
    const far = event.shiftKey ? 0.5 : 0.1;
    const [x, y] = goal;
    const places = {ArrowLeft: [x - far, y], ArrowRight: [x + far, y],
      ArrowUp: [x, y + far], ArrowDown: [x, y - far], Home: [0, 0]};
    if (event.key !== " " && !places[event.key]) return;
    event.preventDefault();
    play(event.key === " " && !walking);
    go(places[event.key] || goal);
  };
}
</script>
</html>
""".replace("DATA", data)


def write_figures(folder, figures):
    """Write {file: (function, *its arguments after the path)} into a folder."""
    for file, (draw, *values) in figures.items():
        start, path = time.perf_counter(), folder / file
        try:
            with replacing(path) as temporary:
                text = draw(temporary, *values)
        except OSError as error:
            reason = error.strerror or error
            sys.exit(f"Cannot write {path.resolve()}: {reason}. Mend it and run again.")
        size, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
        print(f"Wrote {path} ({text}, {size:.1f} MB) in {seconds:.1f} s")


def check(good, text):
    """End the script with a message where a setting is not what it has to be."""
    if not good:
        sys.exit(f"{text}. Edit it at the top of plot_latent.py.")


def check_settings(texts, grid_size, quantiles, morph_path):
    """Check what can be checked before anything is read."""
    good = all(type(text) is str for text in texts)
    check(good, f"INPUT_FILE, RAW_DIR, MODEL_DIR, FIGURE_DIR = {texts}: expected texts")
    good = type(grid_size) is int and grid_size in range(2, 41)
    check(good, f"GRID_SIZE = {grid_size!r}: expected 2 to 40")
    good = type(quantiles) is tuple and [type(x) for x in quantiles] == [float, float]
    good = good and 0 < quantiles[0] < quantiles[1] < 1
    check(good, f"QUANTILES = {quantiles!r}: expected two, 0 < low < high < 1")
    good = type(morph_path) is list and len(morph_path) > 1
    good = good or morph_path in ("loop", "columns")
    expected = 'expected "loop", "columns" or a list of files'
    check(good, f"MORPH_PATH = {morph_path!r}: {expected}")


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be printed
    paths = (INPUT_FILE, RAW_DIR, MODEL_DIR, FIGURE_DIR)
    check_settings(paths, GRID_SIZE, QUANTILES, MORPH_PATH)
    images_file, raw, model_dir = (Path(path).resolve() for path in paths[:3])
    files = [] if MORPH_PATH in ("loop", "columns") else MORPH_PATH
    route, color_by, left_out = "loop" if files else MORPH_PATH, COLOR_BY, []
    try:
        encoder, decoder, summary = load_models(model_dir)
    except ValueError as error:
        remedy = "Run train_vae.py first."
        sys.exit(f"Cannot use {model_dir} (MODEL_DIR): {error}. {remedy}")
    shape, settings = decoder.output_shape[1:], summary.get("settings", {})
    kl = np.full(decoder.input_shape[1], math.nan)
    if summary:
        kl = np.array(summary["figures"]["kl_per_latent"])
    size = " x ".join(map(str, shape))
    print(f"Drawing {decoder.name}: {len(kl)} latents, pictures of {size}")
    try:
        images, index = open_images(images_file, shape, settings.get("images_id"))
        num_train = settings["num_train"]
    except (OSError, ValueError) as error:
        left_out = ["latent_map.png", "morph.gif"][: 2 if files else 1]
        print(
            f"Left out {' and '.join(left_out)}: {images_file} (INPUT_FILE) cannot be "
            f"used: {error}. Run preprocess.py and train_vae.py."
        )
        images, index, num_train = np.empty((0, *shape), np.uint8), [], 0
        files, color_by = [], None  # of no rows

    names = [row["file"] for row in index]
    unknown = [file for file in files if file not in names]
    check(not unknown, f"MORPH_PATH: {unknown} not in images.csv, as {names[:1]} is")
    rows = np.linspace(0, num_train - 1, min(2000, num_train)).astype(int)
    rows = np.append(rows, np.arange(num_train, len(images)))
    look = choose_colors(raw, [index[row] for row in rows], color_by)
    codes = encode(encoder, images, rows)
    plane = Plane(codes, kl)
    positions = scipy.special.ndtri(np.linspace(*QUANTILES, GRID_SIZE))
    stops = plane.locate(choose_stops(route, positions))
    num_frames = {"loop": 120, "columns": max(60, GRID_SIZE**2)}[route]
    if files:
        stops = encode(encoder, images, [names.index(file) for file in files])
        num_frames = 30 * len(files)
    walk = follow(decoder, stops, min(num_frames, 400))
    place, points = (plane, positions[[0, -1]]), plane.project(codes)
    seen = decoder, *place, points, look[0], plane.project(walk)
    figures = {
        "latent_grid.png": (plot_grid, decoder, plane, positions),
        "traversals.png": (plot_traversals, decoder, kl),
        "latent_map.png": (plot_map, *place, points, rows >= num_train, *look),
        "morph.gif": (write_morph, decoder, walk),
        "latent_space.html": (write_explorer, *seen),
    }
    for file in left_out:
        del figures[file]
    write_figures(Path(FIGURE_DIR), figures)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped: the figures are whole, run again.", file=sys.stderr)
        sys.exit(130)
