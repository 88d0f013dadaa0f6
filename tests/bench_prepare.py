"""Measure what preprocess.py finds, keeps and rejects, and what that is worth.

    python tests/bench_prepare.py

Draws athletes on cluttered backgrounds at known boxes, runs preprocess.py on them as a
user does, and prints four tables. Where PHOTOS and TRUTH name real photographs, each is
printed for these as well: what holds on drawings need not hold on photographs.

- squares: how well the squares of FIT "crop" and "person" lie about the people;
- copies: which changed copies are found, and what is wrongly taken for one;
- rejections: of athletes, of blurred scenes, of pictures without people;
- learning, on photographs alone: how much a VAE learns of the people from rows by
  "crop", by "person", and by "person" with BACKGROUND "gray".

The person model is looked for at data/person.tflite; without it, what needs it is left
out. The drawn part takes five minutes, the learning an hour.
"""

import csv
import math
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from conftest import ROOT, load_script, run_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
SEED = 77_000
NUM_SCENES = 300  # drawn, for the squares; half of them for the copies
PHOTOS = ""  # a folder of photographs, or "": the drawn part only
TRUTH = ""  # a .csv: file, width, height, left, top, right, bottom, points (joints)
WITHOUT_PEOPLE = ""  # a folder of pictures, most of them without people, or ""
LINE_DRAWINGS = ""  # a folder of drawings that are alike, for wrong copies, or ""
NUM_COPIED = 300  # photographs that are copied in each way
STEPS = 3000  # of each training; 0 leaves the learning out
KL_WEIGHTS = {2: 5e-4, 16: 1e-5}  # number of latents: KL_WEIGHT
LEARNED_SIZE = 64  # pixels
# ----------------------------------------------------------------------------

MODEL = ROOT / "data" / "person.tflite"
MARGIN = 1.15  # side of the wanted square in parts of the person's box
SIZES = ((850, 567), (567, 850), (720, 720), (960, 540), (600, 800))  # width, height
SKINS = ((0.85, 0.6, 0.45), (0.6, 0.38, 0.25), (0.35, 0.2, 0.13))  # RGB, 0 to 1


# ----------------------------------------------------------------------------
# Drawn scenes
# ----------------------------------------------------------------------------
def draw_noise(random, width, height, cells, colors):
    """Draw clouds: `cells` random colours along the longer side, made smooth."""
    side = max(width, height)
    rows = max(2, cells * height // side)
    columns = max(2, cells * width // side)
    grid = random.normal(0, 1, (rows, columns, colors)).astype(np.float32)
    clouds = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.atleast_3d(clouds)


def draw_wall(random, width, height):
    """Draw a gradient with clouds of several sizes, float32 (height, width, 3)."""
    upper, lower = random.uniform(0.05, 0.75, (2, 3))
    tint = random.uniform(0.1, 0.7)  # most places are nearly grey
    upper = tint * upper + (1 - tint) * upper.mean()
    lower = tint * lower + (1 - tint) * lower.mean()
    if random.random() < 0.2:  # wood or a warm light
        upper = upper * (1.3, 1, 0.75)
        lower = lower * (1.3, 1, 0.75)
    down = np.linspace(0, 1, height)[:, None, None]
    picture = np.float32(upper + (lower - upper) * down)
    picture = picture + np.zeros((1, width, 1), np.float32)
    texture = random.uniform(0.3, 1.3)
    for cells in (3, 8, 24, 80, 240):
        grey = draw_noise(random, width, height, cells, 1)
        color = draw_noise(random, width, height, cells, 3)
        strength = texture * 0.16 / cells**0.35
        picture += strength * (0.7 * grey + 0.3 * color)
    return picture


def draw_thing(random, picture):
    """Draw a bar, a plate, a board or a patch somewhere on a picture, in place."""
    height, width = picture.shape[:2]
    color = random.uniform(0, 0.9, 3) ** 1.3
    color = color.mean() + random.uniform(0.1, 1) * (color - color.mean())
    if random.random() < 0.25:  # things that have a colour of skin
        color = np.array(SKINS[random.integers(3)]) * random.uniform(0.7, 1.1)
    x = int(random.uniform(0, width))
    y = int(random.uniform(0, height))
    long = int(min(width, height) * random.uniform(0.1, 0.7))
    thin = int(min(width, height) * random.uniform(0.01, 0.09))
    kind = random.integers(4)
    angle = random.uniform(0, 180)
    layer = picture.copy()
    if kind == 0:  # a bar
        corners = cv2.boxPoints(((x, y), (long, thin), angle)).astype(int)
        cv2.fillPoly(layer, [corners], color)
    elif kind == 1:  # a plate with its hole
        cv2.circle(layer, (x, y), long // 5 + 2, color, -1, cv2.LINE_AA)
        cv2.circle(layer, (x, y), long // 20 + 1, color / 3, -1, cv2.LINE_AA)
    elif kind == 2:  # a board or a window
        cv2.rectangle(layer, (x, y), (x + long // 2, y + 4 * thin), color, -1)
    else:
        axes = (long // 4, 2 * thin)
        cv2.ellipse(layer, (x, y), axes, angle, 0, 360, color, -1)
    picture += random.uniform(0.5, 1) * (layer - picture)


def draw_rack(random, picture):
    """Draw equal bars side by side somewhere on a picture, in place."""
    height, width = picture.shape[:2]
    x = int(random.uniform(0, width))
    y = int(random.uniform(0, height))
    length = int(min(width, height) * random.uniform(0.1, 0.5))
    step = int(min(width, height) * random.uniform(0.02, 0.06))
    color = random.uniform(0, 0.9, 3) ** 2
    upright = random.random() < 0.5
    for number in range(random.integers(4, 12)):
        if upright:
            box = (x + number * step, y, step // 2, length)
        else:
            box = (x, y + number * step, length, step // 2)
        cv2.rectangle(picture, box, color, -1)


def draw_background(random, width, height):
    """Draw a place that might be a gym or a stage, float32 (height, width, 3), 0 to 1.

    Things of many kinds before a wall, more or less out of focus.
    """
    picture = draw_wall(random, width, height)
    for _ in range(random.integers(4, 16)):
        draw_thing(random, picture)
    for _ in range(random.choice([0, 0, 1, 2])):
        draw_rack(random, picture)
    blur = random.choice([0.001, 0.002, 0.004, 0.008]) * min(width, height)
    return cv2.GaussianBlur(picture, (0, 0), blur).clip(0, 1)


def draw_group(random, tall, athletes):
    """Return one to three athletes, [(left edge, athlete)], and how wide they are."""
    group = []
    right = 0
    start = 0
    for _ in range(random.choice([1, 1, 1, 1, 2, 3])):
        pose = random.uniform(0, 1)
        skin = random.uniform(0, 1)
        breadth = random.uniform(0.92, 1.08)
        trunks = random.uniform(0, 360)
        size = round(tall * random.uniform(0.94, 1))
        athlete = athletes.draw_athlete(size, pose, skin, breadth, trunks=trunks)
        wide = athlete[2][2]
        group.append((start, athlete))
        right = max(right, start + wide)
        start += 0.75 * random.uniform(0.7, 1.2) * wide
    return group, right


def draw_scene(seed, index, athletes):
    """Draw one to three athletes somewhere in a cluttered place.

    Returns:
        The picture, uint8 (H, W, 3), RGB, and the (left, top, right, bottom) of the
        athletes in pixels: all of them are inside of the picture.
    """
    random = np.random.default_rng([seed, index])
    width, height = SIZES[random.integers(len(SIZES))]
    picture = draw_background(random, width, height)
    tall = int(height * random.uniform(0.4, 0.92))
    group, wide = draw_group(random, tall, athletes)
    if wide > width:  # they do not fit: one alone
        group = group[:1]
        wide = group[0][1][2][2]
    if wide > width:
        return draw_scene(seed + 7919, index, athletes)
    first = random.uniform(0, width - wide)
    soles = random.uniform(tall, height)
    light = random.uniform(0.75, 1.15) * random.uniform(0.9, 1.1, 3)
    edges = []
    for start, (colors, mask, (x, y, body_width, body_height)) in group:
        lit = (colors * light).clip(0, 255).astype(np.uint8)
        left = round(first + start)
        top = round(soles - body_height)
        athletes.blend(picture, lit, mask / np.float32(255), left - x, top - y)
        edges.append((left, top, left + body_width, top + body_height))
    picture += random.normal(0, random.uniform(0.005, 0.02), picture.shape)
    edges = np.array(edges)
    left, top = np.maximum(edges[:, :2].min(axis=0), 0)
    right, bottom = np.minimum(edges[:, 2:].max(axis=0), (width, height))
    box = (int(left), int(top), int(right), int(bottom))
    return (255 * picture.clip(0, 1)).astype(np.uint8), box


def write_scenes(folder, seed, count):
    """Write scenes as JPEG files; return the truth about them, see read_truth."""
    athletes = load_script("tests/draw_athletes.py")
    folder.mkdir(parents=True)
    truth = {}
    for index in range(count):
        picture, box = draw_scene(seed, index, athletes)
        name = f"{index:05}.jpg"
        cv2.imwrite(str(folder / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        height, width = picture.shape[:2]
        truth[name] = {"width": width, "height": height, "box": box, "joints": []}
    return truth


# ----------------------------------------------------------------------------
# Running the scripts
# ----------------------------------------------------------------------------
def prepare(source, folder, **edits):
    """Run preprocess.py and return its index and what it rejected.

    Returns:
        {file: line of images.csv} of the rows that are no mirrors, and {file: reason}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"INPUT": str(source), "IMAGE_SIZE": 64, "PERSON_MODEL": str(MODEL)}
    settings.update(edits)
    result = run_script("preprocess.py", folder, timeout=3600, **settings)
    if result.returncode != 0:
        sys.exit(f"preprocess.py ended with {result.returncode}: {result.stderr}")
    index = {}
    for line in read_table(folder / "data" / "images.csv"):
        if line["mirrored"] == "0":
            index[line["file"]] = line
    rejected = {}
    for line in read_table(folder / "data" / "rejected.csv"):
        rejected[line["file"]] = line["reason"]
    return index, rejected


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def list_fits():
    """Return {name: settings} of the ways to choose a square that can be tried."""
    fits = {"crop": {"FIT": "crop"}}
    if MODEL.is_file():
        fits["person"] = {"FIT": "person"}
    return fits


# ----------------------------------------------------------------------------
# Squares
# ----------------------------------------------------------------------------
def read_truth(path):
    """Read where the people are in photographs.

    Returns:
        {file: {"width", "height", "box": (left, top, right, bottom), "joints": [(x,
        y)]}}, in pixels of the upright picture.
    """
    truth = {}
    for line in read_table(path):
        box = []
        for edge in ("left", "top", "right", "bottom"):
            box.append(float(line[edge]))
        joints = []
        for point in line["points"].split(";"):
            x, y = point.split()
            joints.append((float(x), float(y)))
        truth[line["file"]] = {
            "width": float(line["width"]),
            "height": float(line["height"]),
            "box": tuple(box),
            "joints": joints,
        }
    return truth


def find_wanted(person):
    """Return the (left, top, right, bottom) of the square that is wanted.

    It is MARGIN times the longer side of the person's box, about its middle, and moved
    to stay inside of the picture where it fits.
    """
    left, top, right, bottom = person["box"]
    side = MARGIN * max(right - left, bottom - top)
    x = move_inside((left + right - side) / 2, person["width"] - side)
    y = move_inside((top + bottom - side) / 2, person["height"] - side)
    return x, y, x + side, y + side


def move_inside(start, room):
    """Move the start of a square so that it stays between 0 and the room it has.

    Where it is larger than the picture, the room is negative and it covers all of it.
    """
    return min(max(start, min(0, room)), max(0, room))


def measure_area(box):
    """Return the area of a (left, top, right, bottom), 0 where it is turned round."""
    left, top, right, bottom = box
    return max(0, right - left) * max(0, bottom - top)


def intersect(first, second):
    """Return what two boxes share, as (left, top, right, bottom)."""
    return (*np.maximum(first[:2], second[:2]), *np.minimum(first[2:], second[2:]))


def measure_overlap(first, second):
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    shared = measure_area(intersect(first, second))
    return shared / (measure_area(first) + measure_area(second) - shared)


def get_edges(line):
    """Return the (left, top, right, bottom) of a line of images.csv."""
    left = float(line["left"])
    top = float(line["top"])
    return left, top, left + float(line["width"]), top + float(line["height"])


def are_inside(points, edges):
    left, top, right, bottom = edges
    return all(left <= x <= right and top <= y <= bottom for x, y in points)


def bench_squares(scratch, name, source, truth):
    """Print how well the squares lie about the people of one set of pictures."""
    for fit, settings in list_fits().items():
        folder = scratch / f"squares-{name}-{fit}"
        index, rejected = prepare(source, folder, CHECKS=False, **settings)
        overlaps, joints, people, shares, made_up = [], [], [], [], []
        for file, person in truth.items():
            if file not in index:
                continue
            edges = get_edges(index[file])
            left, top, right, bottom = person["box"]
            picture = (0, 0, person["width"], person["height"])
            overlaps.append(measure_overlap(edges, find_wanted(person)))
            joints.append(are_inside(person["joints"], edges))
            corners = [(left + 2, top + 2), (right - 2, bottom - 2)]
            people.append(are_inside(corners, edges))
            shares.append(max(right - left, bottom - top) / (edges[2] - edges[0]))
            seen = measure_area(intersect(edges, picture))
            made_up.append(1 - seen / measure_area(edges))
        missing = [file for file in truth if rejected.get(file, "").startswith("no p")]
        print(
            f"squares, {name}, {fit:7} overlap {np.mean(overlaps):.3f}, "
            f"all joints inside {np.mean(joints):.1%}, "
            f"whole person inside {np.mean(people):.1%}, "
            f"person / side {np.mean(shares):.3f}, made up {np.mean(made_up):.1%}, "
            f"no person found {len(missing)} of {len(truth)} ({len(overlaps)} scored)"
        )


# ----------------------------------------------------------------------------
# Copies
# ----------------------------------------------------------------------------
# Each function makes a copy of a picture, uint8 (H, W, 3), BGR as OpenCV reads it.
def keep(picture, random):
    return picture


def make_grey(picture, random):
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def saturate(picture, random):
    grey = make_grey(picture, random).astype(np.float32)
    return (grey + 1.5 * (picture - grey)).clip(0, 255).astype(np.uint8)


def brighten(picture, random):
    return cv2.convertScaleAbs(picture, alpha=1.3)


def darken(picture, random):
    return cv2.convertScaleAbs(picture, alpha=0.7)


def bend_tones(picture, random):
    curve = 255 * (np.arange(256) / 255) ** 0.6
    return cv2.LUT(picture, curve.round().astype(np.uint8))


def bend_tones_down(picture, random):
    curve = 255 * (np.arange(256) / 255) ** 1.6
    return cv2.LUT(picture, curve.round().astype(np.uint8))


def sharpen(picture, random):
    blurred = cv2.GaussianBlur(picture, (0, 0), 1.5)
    return cv2.addWeighted(picture, 2, blurred, -1, 0)


def halve(picture, random):
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def mirror(picture, random):
    return cv2.flip(picture, 1)


def cut_part(picture, random, share):
    height, width = picture.shape[:2]
    high = round(share * height)
    wide = round(share * width)
    top = random.integers(height - high + 1)
    left = random.integers(width - wide + 1)
    return picture[top : top + high, left : left + wide]


def cut_little(picture, random):
    return cut_part(picture, random, 0.95)


def cut_much(picture, random):
    return cut_part(picture, random, 0.8)


def add_frame(picture, random):
    white = (255, 255, 255)
    return cv2.copyMakeBorder(picture, 30, 30, 30, 30, cv2.BORDER_CONSTANT, value=white)


def add_logo(picture, random):
    picture = picture.copy()
    side = len(picture) // 10
    color = tuple(int(value) for value in random.integers(0, 256, 3))
    cv2.rectangle(picture, (4, 4, 2 * side, side), color, -1)
    cv2.putText(picture, "GYM", (8, side - 4), 0, side / 40, (255, 255, 255), 2)
    return picture


def add_caption(picture, random):
    picture = picture.copy()
    height, width = picture.shape[:2]
    for y in (height // 8, height - height // 16):
        text = "WHEN YOU SKIP LEG DAY"
        for color, thickness in (((0, 0, 0), 9), ((255, 255, 255), 3)):
            place = (width // 20, y)
            cv2.putText(picture, text, place, 0, width / 430, color, thickness)
    return picture


def add_meme_border(picture, random):
    high = len(picture) // 6
    white = (255, 255, 255)
    framed = cv2.copyMakeBorder(
        picture, high, 20, 20, 20, cv2.BORDER_CONSTANT, value=white
    )
    place = (30, round(0.7 * high))
    cv2.putText(framed, "leg day", place, 0, high / 60, (0, 0, 0), 3)
    return framed


def change_all(picture, random):
    picture = mirror(cut_little(picture, random), random)
    return halve(bend_tones(picture, random), random)


COPIES = {  # name: (function, quality of the JPEG)
    "JPEG 50": (keep, 50),
    "JPEG 15": (keep, 15),
    "grey": (make_grey, 90),
    "saturated x 1.5": (saturate, 90),
    "brightness x 1.3": (brighten, 90),
    "brightness x 0.7": (darken, 90),
    "gamma 0.6": (bend_tones, 90),
    "gamma 1.6": (bend_tones_down, 90),
    "sharpened": (sharpen, 90),
    "half the size": (halve, 90),
    "mirrored": (mirror, 90),
    "5 % cut off": (cut_little, 90),
    "20 % cut off": (cut_much, 90),
    "white frame": (add_frame, 90),
    "logo": (add_logo, 90),
    "caption": (add_caption, 90),
    "meme border": (add_meme_border, 90),
    "mirrored, 5 % cut off, gamma 0.6, half, JPEG 50": (change_all, 50),
}
NEAR_DUPLICATE = "a near-duplicate of "


def find_copies(rejected):
    """Return {file: file that stays} of what was rejected as a copy."""
    copies = {}
    for file, reason in rejected.items():
        if reason.startswith(NEAR_DUPLICATE):
            copies[file] = reason.removeprefix(NEAR_DUPLICATE)
    return copies


def bench_copies(scratch, name, paths):
    """Print which kinds of copies of pictures are found beside their originals."""
    random = np.random.default_rng(SEED)
    for kind, (change, quality) in COPIES.items():
        # One folder after the other: a thousand files of each kind take disk space.
        with tempfile.TemporaryDirectory(dir=scratch) as name_of_folder:
            folder = Path(name_of_folder)
            (folder / "raw").mkdir()
            for number, path in enumerate(paths):
                (folder / "raw" / f"{number:05}-original.jpg").symlink_to(path)
                copy = change(cv2.imread(str(path)), random)
                file = str(folder / "raw" / f"{number:05}-copy.jpg")
                cv2.imwrite(file, copy, [cv2.IMWRITE_JPEG_QUALITY, quality])
            _, rejected = prepare(folder / "raw", folder, FIT="crop", IMAGE_SIZE=28)
        found = find_copies(rejected)
        recognized = 0
        others = []
        for number in range(len(paths)):
            original = f"{number:05}-original.jpg"
            copy = f"{number:05}-copy.jpg"
            # Both may be copies of a third one: photographs hold some true copies.
            if found.get(copy, copy) == found.get(original, original):
                recognized += 1
            if found.get(copy, original)[:5] != original[:5]:
                others.append(f"{copy} = {found[copy]}")
        print(
            f"copies, {name}, {kind}: {recognized} of {len(paths)} found "
            f"({recognized / len(paths):.1%}), {len(others)} of another picture "
            f"{others[:3]}"
        )


def bench_wrong_copies(scratch, name, source):
    """Print what is taken for a copy among pictures of one folder."""
    start = time.perf_counter()
    folder = scratch / f"wrong-{name}"
    index, rejected = prepare(source, folder, FIT="crop", IMAGE_SIZE=28)
    found = find_copies(rejected)
    seconds = time.perf_counter() - start
    count = len(index) + len(rejected)
    print(
        f"copies, {name}: {len(found)} among {count} ({seconds:.0f} s); look at them:"
    )
    for file, stays in sorted(found.items()):
        print(f"    {file} = {stays}")


# ----------------------------------------------------------------------------
# Rejections
# ----------------------------------------------------------------------------
def bench_rejections(scratch, name, source, **settings):
    """Print how many pictures of a folder are rejected, and why."""
    folder = scratch / f"rejections-{name}"
    index, rejected = prepare(source, folder, **settings)
    kinds = {}
    for reason in rejected.values():
        kind = reason.split(":")[0].split(" of ")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    count = len(index) + len(rejected)
    print(f"rejections, {name}: {len(rejected)} of {count} {kinds}")
    return index, rejected


def bench_blurred(scratch, scenes):
    """Print how many blurred scenes are rejected, and how many others."""
    folder = scratch / "blurred"
    folder.mkdir()
    blurred = set()
    for number, path in enumerate(sorted(scenes.iterdir())):
        picture = cv2.imread(str(path))
        if number % 10 == 0:
            picture = cv2.GaussianBlur(picture, (0, 0), max(picture.shape) / 64)
            blurred.add(path.name)
        cv2.imwrite(str(folder / path.name), picture)
    _, rejected = prepare(folder, scratch / "rejections-blurred", FIT="crop")
    found = len(blurred & set(rejected))
    others = len(set(rejected) - blurred)
    print(f"blurred: {found} of {len(blurred)} rejected, and {others} others")


# ----------------------------------------------------------------------------
# Learning
# ----------------------------------------------------------------------------
def bench_learning(scratch, photos):
    """Print how much of the people is explained by VAEs from three kinds of rows."""
    kinds = {
        "crop": {"FIT": "crop"},
        "person": {"FIT": "person"},
        "person, gray": {"FIT": "person", "BACKGROUND": "gray"},
    }
    indices = {}
    for kind, settings in kinds.items():
        folder = scratch / f"learning-{kind}"
        indices[kind], _ = prepare(photos, folder, IMAGE_SIZE=LEARNED_SIZE, **settings)
    for latents, kl_weight in KL_WEIGHTS.items():
        compare_learning(scratch, photos, indices, latents, kl_weight)


def compare_learning(scratch, photos, indices, latents, kl_weight):
    """Train on each kind of rows that was prepared, and print what it explains.

    Args:
        scratch: where the folders "learning-KIND" are.
        photos: folder of the pictures.
        indices: {kind: {file: line of images.csv}}.
    """
    count = min(len(index) for index in indices.values())
    held_out = count // 40 * 2  # pictures: a tenth of the rows are they and mirrors
    scored = None
    for index in indices.values():
        names = set(list(index)[-held_out:])
        # The kinds reject different files: what all of them hold out is compared.
        scored = names if scored is None else scored & names
    pixels, masks = read_people(photos, indices, scored)
    for kind, index in indices.items():
        start = time.perf_counter()
        folder = scratch / f"learning-{kind}"
        rows, mean_image = learn(folder, latents, kl_weight, held_out)
        seconds = time.perf_counter() - start
        errors = 0.0
        spread = 0.0
        for name, row in zip(list(index)[-held_out:], rows, strict=True):
            if name in scored:
                sure = masks[kind][name]
                errors += np.square(row - pixels[kind][name])[sure].sum()
                spread += np.square(mean_image - pixels[kind][name])[sure].sum()
        print(
            f"learning, {latents} latents, {kind}: of the people of {len(scored)} "
            f"held-out photographs {1 - errors / spread:.3f} explained, "
            f"{seconds:.0f} s"
        )


def read_people(photos, indices, names):
    """Read the unaltered pixels of rows and where the model is sure of a person.

    Args:
        photos: folder of the pictures.
        indices: {kind: {file: line of images.csv}}.
        names: the files that are looked at.

    Returns:
        {kind: {file: float32 (S, S, 3), 0 to 1}} and {kind: {file: bool (S, S)}}.
    """
    preprocess = load_script("preprocess.py")
    preprocess.PERSON_MODEL = str(MODEL)
    pixels = {}
    masks = {}
    for kind in indices:
        pixels[kind] = {}
        masks[kind] = {}
    for name in names:
        picture = preprocess.read_source(Path(photos) / name, 2 * preprocess.MODEL_SIDE)
        _, _, mask, masked = preprocess.find_people(picture, picture.box)
        for kind, index in indices.items():
            left, top, right, bottom = (round(edge) for edge in get_edges(index[name]))
            box = preprocess.Box(left, top, right, bottom)
            row = preprocess.cut(picture, box, picture.box, LEARNED_SIZE)
            pixels[kind][name] = row.astype(np.float32) / 255
            moved = preprocess.move_mask(mask, masked, box)
            size = (LEARNED_SIZE, LEARNED_SIZE)
            moved = cv2.resize(moved, size, interpolation=cv2.INTER_AREA)
            masks[kind][name] = moved >= 0.7
    return pixels, masks


def learn(folder, latents, kl_weight, held_out):
    """Train on a prepared folder, and draw the held-out pictures again.

    Returns:
        The reconstructions of the last `held_out` rows that are no mirrors, float32 (N,
        S, S, 3), 0 to 1, and the mean image of the other rows.
    """
    import keras  # only here: it takes seconds

    images = np.load(folder / "data" / "images.npy", mmap_mode="r")
    training = images[: -2 * held_out]
    epochs = max(1, round(STEPS / math.ceil(len(training) / 32)))
    model_dir = f"model-{latents}"
    result = run_script(
        "train_vae.py",
        folder,
        timeout=36_000,
        SEED=0,
        EPOCHS=epochs,
        BATCH_SIZE=32,
        LATENT_DIM=latents,
        KL_WEIGHT=kl_weight,
        VALIDATION_IMAGES=2 * held_out,
        MODEL_DIR=model_dir,
    )
    if result.returncode != 0:
        sys.exit(f"train_vae.py ended with {result.returncode}: {result.stderr}")
    encoder = keras.saving.load_model(folder / model_dir / "encoder.keras")
    decoder = keras.saving.load_model(folder / model_dir / "decoder.keras")
    pictures = images[-2 * held_out :: 2].astype(np.float32) / 255
    codes = encoder.predict(pictures, verbose=0)[0]
    rows = decoder.predict(codes, verbose=0)
    mean_image = training.mean(axis=0, dtype=np.float32) / 255
    return rows, mean_image


# ----------------------------------------------------------------------------
# All of it
# ----------------------------------------------------------------------------
def bench_drawn(scratch):
    """Print the tables of our own drawings."""
    scenes = scratch / "scenes"
    truth = write_scenes(scenes, SEED, NUM_SCENES)
    bench_squares(scratch, "drawn scenes", scenes, truth)
    drawn = scratch / "drawn"
    drawn.mkdir()
    run_script("tests/draw_athletes.py", drawn, NUM_IMAGES=300)
    athletes = drawn / "data" / "raw"
    bench_copies(scratch, "drawn scenes", sorted(scenes.iterdir())[: NUM_SCENES // 2])
    bench_copies(scratch, "drawn athletes", sorted(athletes.glob("*.jpg")))
    bench_wrong_copies(scratch, "drawn athletes", athletes)
    bench_blurred(scratch, scenes)
    if MODEL.is_file():
        bench_rejections(scratch, "drawn athletes", athletes, FIT="person")
    else:
        print(f"No person model at {MODEL}: what needs it is left out.")


def bench_photos(scratch):
    """Print the tables of photographs."""
    if TRUTH:
        bench_squares(scratch, "photographs", PHOTOS, read_truth(TRUTH))
    bench_wrong_copies(scratch, "photographs", PHOTOS)
    paths = sorted(Path(PHOTOS).resolve().rglob("*.jpg"))
    chosen = []
    for number in range(min(NUM_COPIED, len(paths))):
        chosen.append(paths[number * len(paths) // min(NUM_COPIED, len(paths))])
    bench_copies(scratch, "photographs", chosen)
    if STEPS and MODEL.is_file():
        bench_learning(scratch, PHOTOS)


def main():
    sys.stdout.reconfigure(line_buffering=True)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bench_drawn(scratch)
        if LINE_DRAWINGS:
            bench_wrong_copies(scratch, "line drawings", LINE_DRAWINGS)
        if WITHOUT_PEOPLE and MODEL.is_file():
            settings = {"FIT": "person", "CHECKS": False}
            bench_rejections(scratch, "without people", WITHOUT_PEOPLE, **settings)
        if PHOTOS:
            bench_photos(scratch)


if __name__ == "__main__":
    main()
