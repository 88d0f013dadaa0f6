"""preprocess.py: pictures that are unfit, or copies of others."""

import hashlib
import io

import cv2
import numpy as np
import pytest
from conftest import load_script, run_script
from pictures import (
    draw_noise,
    draw_photo,
    encode,
    load_preprocess,
    read_reasons,
    read_table,
)
from PIL import Image

preprocess = load_preprocess(CHECKS=True)


def test_unfit_pictures_say_why(tmp_path):
    strip, small = draw_noise(1, 410, 100), np.full((300, 300, 3), 250, np.uint8)
    small[100:140, 100:150] = draw_noise(2, 50, 40)
    grey = 128 + draw_noise(3, 200, 200) // 25  # a deviation of 3
    unchecked = load_preprocess(CHECKS=False)
    for image, words in (
        (strip, "too long: 410 x 100, above MAX_ASPECT"),
        (small, "too small: 50 x 40 within its border"),
        (grey, "uniform: contrast"),
    ):
        Image.fromarray(image).save(tmp_path / "x.png")
        assert words in preprocess.make_row("x", tmp_path / "x.png").reason
        assert unchecked.make_row("x", tmp_path / "x.png").pixels is not None
    Image.fromarray(strip[:, :400]).save(tmp_path / "x.png")
    lenient = load_preprocess(CHECKS=True, MIN_CONTRAST=0)
    assert lenient.make_row("x", tmp_path / "x.png").reason == ""


# ----------------------------------------------------------------------------
# Copies
# ----------------------------------------------------------------------------
def draw_scene(number, width=480, height=360):
    """Return a picture with objects in it, another for each number."""
    random = np.random.default_rng([7, number])
    scene = draw_photo(100 + number, width, height).copy()
    for _ in range(40):
        place = random.integers(0, (width, height)).tolist()
        size = random.integers(8, 60, 2).tolist()
        color = random.integers(0, 256, 3).tolist()
        turn = int(random.integers(180))
        cv2.ellipse(scene, place, size, turn, 0, 360, color, -1, cv2.LINE_AA)
    return cv2.addWeighted(scene, 0.5, gray(scene), 0.5, 0)  # as pale as photos are


def recompress(picture, quality):
    data = io.BytesIO(encode(picture, "JPEG", quality=quality))
    return np.asarray(Image.open(data))


def gray(picture):
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.dstack([grey] * 3)


def saturate(picture):
    grey = gray(picture).astype(float)
    return (grey + 1.4 * (picture - grey)).clip(0, 255).astype(np.uint8)


def sharpen(picture):
    blurred = cv2.GaussianBlur(picture, (0, 0), 2)
    return cv2.addWeighted(picture, 1.7, blurred, -0.7, 0)


def darken(picture):
    return (255 * (picture / 255) ** 1.6).round().astype(np.uint8)


def halve(picture):
    height, width = picture.shape[:2]
    return cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


COPIES = {  # name: how the web changes a picture
    "jpeg": lambda picture: recompress(picture, 40),
    "half": halve,
    "mirror": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "cut": lambda picture: picture[12:-4, 6:-18],
    "cut more": lambda picture: picture[10:-30, 40:-8],
    "bright": lambda picture: cv2.convertScaleAbs(picture, alpha=1.2, beta=10),
    "gamma": darken,
    "grey": gray,
    "saturated": saturate,
    "sharpened": sharpen,
    "framed": lambda picture: np.pad(picture, ((20, 20), (30, 30), (0, 0))),
    "all": lambda picture: recompress(halve(gray(picture[4:-4, 5:-9])), 60),
}


def search(module, pictures, names=None):
    """Return {name: reason} of what the search rejects of {name: picture}."""
    rows, views = [], []
    for name, picture in pictures.items():
        row = module.Row(name)
        whole = module.Picture(picture, picture.shape[1], picture.shape[0])
        content, _ = module.find_content(whole)
        module.check_content(row, whole, content)
        row.content = (content.width * content.height, len(name))
        rows.append(row)
        views.append(row.view)
    module.find_faults(rows, np.array(views))
    return {row.name: row.reason for row in rows if row.reason}


@pytest.mark.parametrize("kind", COPIES)
def test_changed_copies_are_found(kind):
    pictures = {}
    for number in range(12):
        pictures[f"{number}"] = draw_scene(number)
        if number < 4:
            pictures[f"{number} {kind}"] = COPIES[kind](draw_scene(number))
    pairs = set()
    for name, reason in search(preprocess, pictures).items():
        other = reason.removeprefix("a near-duplicate of ")
        assert name.split()[0] == other.split()[0], (name, other)
        pairs.add(name.split()[0])
    assert pairs == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_what_is_alike_stays_apart():
    """Drawn athletes in other poses, and a figure that moves before one wall."""
    athletes = load_script("tests/draw_athletes.py")
    pictures = {}
    for number in range(40):
        factors = athletes.draw_factors(0, number)
        pictures[f"athlete {number}"] = athletes.draw_picture(factors, 320, 320)
    wall = draw_scene(0)
    for number in range(4):
        moved = wall.copy()
        left = 60 + 90 * number
        cv2.rectangle(moved, (left, 90), (left + 50, 330), (220, 190, 160), -1)
        pictures[f"wall {number}"] = moved
    assert search(preprocess, pictures) == {}


def test_pixels_decide_not_hashes():
    """The hashes of drawn athletes are alike: without pixels some would go."""
    athletes = load_script("tests/draw_athletes.py")
    hashes = []
    for number in range(40):
        factors = athletes.draw_factors(0, number) | {"people": 2}
        picture = athletes.draw_picture(factors, 128, 128)
        hashes.append(preprocess.hash_view(picture))
    similar = preprocess.find_similar(np.array(hashes), lambda share: None)
    assert len(similar) > 10


@pytest.mark.slow
def test_the_order_of_the_pictures_does_not_matter():
    pictures = {}
    for number in range(5):
        scene = draw_scene(number)
        for place, kind in enumerate(("half", "grey", "cut")):
            pictures[f"{number} {place}"] = COPIES[kind](scene)
        pictures[f"{number} original"] = scene
    found = search(preprocess, pictures)
    assert len(found) == 15
    for seed in range(3):
        names = list(pictures)
        np.random.default_rng(seed).shuffle(names)
        shuffled = {name: pictures[name] for name in names}
        assert search(preprocess, shuffled) == found


@pytest.mark.slow
def test_of_copies_the_one_with_the_most_content_stays(tmp_path):
    """Not the one in a frame, nor the coarse one: pixels within the border, bytes."""
    (tmp_path / "raw").mkdir()
    scene = draw_scene(1, 640, 480)
    small = np.full((600, 800, 3), 255, np.uint8)
    small[180:420, 240:560] = halve(scene)
    files = {
        "a framed.png": encode(small, "PNG"),
        "b coarse.jpg": encode(scene, "JPEG", quality=30),
        "c good.jpg": encode(scene, "JPEG", quality=95),
        "d half.png": encode(halve(scene), "PNG"),
        "e.png": encode(draw_scene(2), "PNG"),
        "f same.png": encode(draw_scene(2), "PNG"),
    }
    for name, data in files.items():
        (tmp_path / "raw" / name).write_bytes(data)
    for seed in range(3):
        edits = {"INPUT": "raw", "IMAGE_SIZE": 28, "CHECKS": True, "SEED": seed}
        result = run_script("preprocess.py", tmp_path, **edits)
        assert result.returncode == 0
        assert "Looking for copies among 6 pictures" in result.stdout
        assert read_reasons(tmp_path) == {
            "a framed.png": "a near-duplicate of c good.jpg",
            "b coarse.jpg": "a near-duplicate of c good.jpg",
            "d half.png": "a near-duplicate of c good.jpg",
            "f same.png": "a near-duplicate of e.png",
        }


def test_there_are_no_chains():
    """Of a slow pan each rejected picture is a copy of one that stays."""
    wide = draw_scene(3, 1200, 360)
    pictures = {}
    for number in range(40):
        left = 18 * number
        pictures[f"{number:02}"] = wide[:, left : left + 480]
    found = search(preprocess, pictures)
    stay = set(pictures) - set(found)
    assert len(stay) > 2
    for reason in found.values():
        assert reason.removeprefix("a near-duplicate of ") in stay


def test_of_many_equal_pictures_one_stays():
    pictures = {}
    for number in range(14):
        pictures[f"{number:02}"] = draw_scene(number // 7)
    found = search(preprocess, pictures)
    expected = {}
    for number in range(14):
        if number % 7:
            best = number // 7 * 7
            expected[f"{number:02}"] = f"a near-duplicate of {best:02}"
    assert found == expected


def test_a_blurred_copy_does_not_stay():
    pictures = {f"{number}": draw_scene(number) for number in range(5)}
    large = cv2.resize(draw_scene(0), (960, 720), interpolation=cv2.INTER_CUBIC)
    pictures["blurred"] = cv2.GaussianBlur(large, (0, 0), 16)
    found = search(preprocess, pictures)
    assert list(found) == ["blurred"] and found["blurred"].startswith("blurred: sharp")


# ----------------------------------------------------------------------------
# The whole script
# ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Run the script on athletes that are alike, scenes, copies, and a blurred one."""
    folder = tmp_path_factory.mktemp("checked")
    assert run_script("tests/draw_athletes.py", folder, NUM_IMAGES=40).returncode == 0
    raw = folder / "data" / "raw"
    kinds = ("jpeg", "half", "mirror", "cut", "grey")
    for number in range(10):
        scene = draw_scene(number)
        copy = COPIES[kinds[number % 5]](scene)
        (raw / f"scene-{number}.png").write_bytes(encode(scene, "PNG"))
        (raw / f"scene-copy{number}.png").write_bytes(encode(copy, "PNG"))
    blurred = cv2.GaussianBlur(draw_scene(11), (0, 0), 14)
    (raw / "blurred.png").write_bytes(encode(blurred, "PNG"))
    edits = {"INPUT": "data/raw", "IMAGE_SIZE": 64, "FIT": "crop", "CHECKS": True}
    result = run_script("preprocess.py", folder, MIRROR=True, SEED=0, **edits)
    assert result.returncode == 0, result.stderr
    return folder


def test_copies_are_rejected_with_the_name_of_the_one_that_stays(checked):
    rejected = read_reasons(checked)
    assert rejected.pop("blurred.png").startswith("blurred: sharpness")
    pairs = set()
    for name, reason in rejected.items():
        pairs.add(frozenset((name, reason.removeprefix("a near-duplicate of "))))
    names = [(f"scene-{i}.png", f"scene-copy{i}.png") for i in range(10)]
    assert pairs == set(map(frozenset, names))  # and no athlete for another
    for number in (1, 3, 6, 8):  # the half and the part are the worse ones
        assert f"scene-copy{number}.png" in rejected


def test_what_is_left_is_in_step(checked):
    index = read_table(checked / "data" / "images.csv")
    images = np.load(checked / "data" / "images.npy", allow_pickle=False)
    assert images.shape == (100, 64, 64, 3) and len(index) == 100
    assert [int(line["row"]) for line in index] == list(range(100))
    assert np.array_equal(images[1::2], images[::2, :, ::-1])
    data = (checked / "data" / "images.npy").read_bytes()
    assert index[0]["images_id"] == hashlib.sha256(data).hexdigest()[:16]
    for line in index[::2]:
        path = checked / "data" / "raw" / line["file"]
        row = preprocess.make_row("x", path)
        assert np.array_equal(images[int(line["row"])], row.pixels)
        box = tuple(int(line[x]) for x in ("left", "top", "width", "height"))
        assert box == (row.box.left, row.box.top, row.box.width, row.box.height)


def test_figures_show_boxes_and_reasons(checked):
    for name, count, high in (("fitted", 48, 160), ("rejected", 11, 172)):
        with Image.open(checked / "figures" / f"{name}.png") as file:
            sheet = np.asarray(file)
        assert sheet.shape[1] == 8 * 160
        lines = -(-count // 8)
        assert sheet.shape[0] == lines * high + 20
        green = (sheet == (0, 255, 0)).all(axis=2)
        for number in range(count):
            top, left = number // 8 * high, number % 8 * 160
            assert green[top : top + 160, left : left + 160].sum() > 100
