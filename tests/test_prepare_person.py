"""preprocess.py: fetching the person model, finding people, cutting them out.

Most tests use a tiny model for which bright is a person. Those of the real one run
where data/person.tflite was put.
"""

import contextlib
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT, copy_script, load_script, run_script
from pictures import (
    assert_message,
    draw_noise,
    draw_photo,
    encode,
    load_preprocess,
    read_reasons,
    read_table,
)
from PIL import Image

DARK, BRIGHT, GREY = (40, 60, 50), (250, 240, 230), (200, 200, 200)

TINY = """
import sys
import keras
import tensorflow as tf
image = keras.Input((256, 256, 3), batch_size=1)
layer = keras.layers.Conv2D(
    1, 1, activation="sigmoid",
    kernel_initializer=keras.initializers.Constant(40 / 3),
    bias_initializer=keras.initializers.Constant(-24),
)
model = keras.Model(image, layer(image))
data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
open(sys.argv[1], "wb").write(data)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the bytes of a model: the probability of a person is that of bright."""
    path = tmp_path_factory.mktemp("model") / "tiny.tflite"
    command = [sys.executable, "-c", TINY, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return path.read_bytes()


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def people(tiny, tmp_path):
    """Return preprocess.py that looks for bright people, with edits."""
    (tmp_path / "tiny.tflite").write_bytes(tiny)

    def load(**edits):
        model = str(tmp_path / "tiny.tflite")
        return load_preprocess(FIT="person", PERSON_MODEL=model, **edits)

    return load


def draw_people(*boxes, width=850, height=567):
    """Return a dark picture with bright boxes (left, top, right, bottom)."""
    image = np.full((height, width, 3), DARK, np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = BRIGHT
    return image


def save(path, image):
    path.write_bytes(encode(image, "PNG"))
    return path


def middle(box):
    return np.array([box.left + box.right, box.top + box.bottom]) / 2


# ----------------------------------------------------------------------------
# Finding and cutting
# ----------------------------------------------------------------------------
def test_the_square_is_about_the_person(people, tmp_path):
    module = people()
    path = save(tmp_path / "x.png", draw_people((500, 150, 600, 450)))
    row = module.make_row("x", path)
    assert row.reason == ""
    assert np.abs(middle(row.box) - (550, 300)).max() <= 3
    assert abs(row.box.width - 1.15 * 300) <= 8
    assert row.box.width == row.box.height
    assert abs(row.person - 100 * 300 / (850 * 567)) < 0.003
    expected = np.asarray(Image.open(path).crop(row.box).resize((64, 64), 4))
    assert np.abs(row.pixels.astype(int) - expected).mean() < 3  # nothing is altered


def test_several_people_stay_together(people, tmp_path):
    module = people()
    pair = draw_people((100, 100, 200, 400), (400, 120, 480, 380), (800, 20, 830, 60))
    row = module.make_row("x", save(tmp_path / "x.png", pair))
    assert abs(row.person - 100 * 300 / (850 * 567)) < 0.003  # of the largest
    assert np.abs(middle(row.box) - (290, 250)).max() <= 4  # the small one is not meant
    assert abs(row.box.width - 1.15 * 380) <= 8


def test_a_person_at_the_edge_moves_the_square(people, tmp_path):
    module = people()
    row = module.make_row("x", save(tmp_path / "x.png", draw_people((0, 0, 90, 300))))
    assert (row.box.left, row.box.top) == (0, 0)
    assert abs(row.box.width - 1.15 * 300) <= 8
    tall = draw_people((100, 0, 300, 567))  # does not fit: padded as little as may be
    row = module.make_row("x", save(tmp_path / "x.png", tall))
    assert abs(row.box.width - 1.1 * 567) <= 8
    assert row.box.left >= 0 and row.box.top < 0 < 567 < row.box.bottom


def test_a_turned_and_reduced_jpeg_has_its_box_in_upright_pixels(people, tmp_path):
    module = people(IMAGE_SIZE=28)
    upright = draw_people((400, 1600, 1200, 2800), width=2400, height=4800)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(upright)
    data = encode(np.ascontiguousarray(stored), "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(data)
    picture = module.read_picture(tmp_path / "x.jpg", 512)
    assert picture.pixels.shape == (1200, 600, 3)  # or this test says nothing
    row = module.make_row("x", tmp_path / "x.jpg")
    assert np.abs(middle(row.box) - (800, 2200)).max() <= 30
    assert abs(row.box.width - 1.15 * 1200) <= 60


def test_a_frame_about_a_photo_is_not_seen(people, tmp_path):
    module = people(CHECKS=True)
    photo = draw_people((20, 50, 100, 380), width=500, height=400)
    photo = np.clip(
        photo + np.random.default_rng(0).integers(-9, 9, photo.shape), 0, 255
    )
    framed = np.pad(photo.astype(np.uint8), ((100, 100), (150, 150), (0, 0)))
    row = module.make_row("x", save(tmp_path / "x.png", framed))
    assert row.reason == ""
    assert row.box.left == 150 and row.box.top >= 100 and row.box.bottom <= 500


@pytest.mark.parametrize("side", [64, 512, 900])
def test_a_moved_mask_lies_where_it_lay(side):
    """Its values are the places of its pixels, so that they stay the same there."""
    module = load_preprocess()
    box = module.Box(100, 50, 612, 562)
    other = module.Box(300, 250, 300 + side, 250 + side)
    middles = (np.arange(256, dtype=np.float32) + 0.5) / 256
    across = np.tile(box.left + 512 * middles, (256, 1))
    down = np.tile(box.top + 512 * middles[:, None], (1, 256))
    moved_across = module.move_mask(across, box, other)[20]
    moved_down = module.move_mask(down, box, other)[:, 20]
    for moved, start, end in ((moved_across, 300, 612), (moved_down, 250, 562)):
        places = start + side * middles
        inside = places < end - 2
        assert np.abs(moved - places)[inside].max() < 0.1
        assert not moved[places > end + 2].any()  # it says nothing of them


@pytest.mark.parametrize(("bottom", "together"), [(500, True), (370, False)])
def test_others_of_a_quarter_of_the_largest_stay_with_it(
    people, tmp_path, bottom, together
):
    module = people()
    image = draw_people((300, 100, 400, 500), (600, 300, 660, bottom))  # 0.3 and 0.1
    row = module.make_row("x", save(tmp_path / "x.png", image))
    assert abs(middle(row.box)[0] - (480 if together else 350)) <= 6


def test_what_the_second_look_loses_keeps_the_first_box(people, tmp_path):
    """From afar its dots are bright together; close up they are specks, no people."""
    module = people(MIN_PERSON=0.01)
    image = draw_people(width=2560, height=1700)
    person = np.full((300, 300, 3), 0.56 * 255, np.uint8)
    for row in range(4):
        for column in range(4):
            person[row::10, column::10] = 255
    image[600:900, 1500:1800] = person
    row = module.make_row("x", save(tmp_path / "x.png", image))
    assert row.reason == ""
    assert np.abs(middle(row.box) - (1650, 750)).max() <= 15
    assert abs(row.box.width - 1.15 * 300) <= 30


def test_without_a_person_a_picture_is_rejected(people, tmp_path):
    small = draw_people((100, 100, 150, 200))  # 1 % of it
    for checks in (False, True):
        module = people(CHECKS=checks, MIN_CONTRAST=0)
        for image, words in (
            (draw_people(), "no person found: 0.0 % of it, below MIN_PERSON"),
            (small, "no person found: 1.0 % of it, below MIN_PERSON"),
        ):
            row = module.make_row("x", save(tmp_path / "x.png", image))
            assert row.reason == words
            assert row.pixels is None
        module.MIN_PERSON = 0.005
        assert module.make_row("x", tmp_path / "x.png").reason == ""
        module.MIN_PERSON = 0
        reason = module.make_row("x", save(tmp_path / "x.png", draw_people())).reason
        assert reason.startswith("no person found")


@pytest.mark.parametrize("size", [64, 300])
def test_a_grey_background_with_a_soft_edge(people, tmp_path, size):
    module = people(BACKGROUND="gray", IMAGE_SIZE=size)
    path = save(tmp_path / "x.png", draw_people((400, 100, 600, 500)))
    row = module.make_row("x", path)
    left = round((400 - row.box.left) / row.box.width * size)
    right = round((600 - row.box.left) / row.box.width * size)
    line = row.pixels[size // 2].astype(int)
    edge = max(3, size // 40)
    assert (line[: left - edge] == GREY).all() and (line[right + edge :] == GREY).all()
    assert np.abs(line[left + edge : right - edge] - BRIGHT).max() <= 1
    steps = line[left - edge : left + edge, 0]
    assert ((steps != 200) & (steps != 250)).any()  # not from one to the other at once
    assert steps.min() > 150  # nothing of the dark wall in between
    assert (row.pixels[0] == GREY).all() and (row.pixels[-1] == GREY).all()


def test_what_lies_outside_of_the_picture_is_grey_as_well(people, tmp_path):
    module = people(BACKGROUND="gray")
    path = save(tmp_path / "x.png", draw_people((100, 0, 300, 567)))
    row = module.make_row("x", path)
    outside = round(-row.box.top / row.box.height * 64)
    assert outside >= 2
    assert (row.pixels[: outside - 1] == GREY).all()
    assert (row.pixels[-outside + 1 :] == GREY).all()
    assert (row.pixels[outside + 2 : -outside - 2, 20] == BRIGHT).all()


def test_smears_go_and_hands_stay(people, tmp_path):
    """A part that is nowhere surely a person's is grey; a sure one by itself is not."""
    module = people(BACKGROUND="gray")
    image = draw_people((400, 100, 600, 500), (640, 150, 670, 180))
    image[200:300, 330:380] = 155  # by the tiny model a person with 0.58
    row = module.make_row("x", save(tmp_path / "x.png", image))

    def at(x, y):
        scale = 64 / row.box.width
        place = round((y - row.box.top) * scale), round((x - row.box.left) * scale)
        return tuple(row.pixels[place].tolist())

    assert at(500, 300) == BRIGHT and at(355, 250) == GREY
    assert np.abs(np.subtract(at(655, 165), BRIGHT)).max() < 30


def test_grey_pictures_with_a_grey_background(people, tmp_path):
    path = save(tmp_path / "x.png", draw_people((400, 100, 600, 500)))
    color = people(BACKGROUND="gray").make_row("x", path).pixels
    grey = people(BACKGROUND="gray", COLOR="gray").make_row("x", path).pixels
    assert grey.shape == (64, 64, 1)
    assert np.array_equal(grey[..., 0], cv2.cvtColor(color, cv2.COLOR_RGB2GRAY))
    assert (grey[0] == 200).all()


def test_copies_are_compared_as_whole_pictures(people, tmp_path):
    """What the checks look at does not depend on what is cut."""
    image = np.maximum(draw_photo(3, 850, 567) // 3, draw_people((400, 100, 600, 500)))
    path = save(tmp_path / "x.png", image)
    row = people(CHECKS=True, BACKGROUND="gray").make_row("x", path)
    whole = load_preprocess(CHECKS=True, FIT="crop").make_row("x", path)
    assert row.reason == "" and row.box != whole.box
    assert np.array_equal(row.view, whole.view)
    assert np.array_equal(row.hashes, whole.hashes)
    assert row.content == whole.content


def test_threads_make_the_same_rows(people, tmp_path):
    """A net is not for several threads at once."""
    module = people(BACKGROUND="gray", IMAGE_SIZE=28)
    sources = []
    for number in range(24):
        box = (40 + 8 * number, 30, 140 + 8 * number, 300)
        image = draw_people(box, width=500, height=400)
        sources.append((f"{number}", save(tmp_path / f"{number}.png", image)))
    alone = [module.make_row(*source) for source in sources]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 6)
        together = list(module.make_rows(sources))
    for row, expected in zip(together, alone, strict=True):
        assert (row.name, row.box) == (expected.name, expected.box)
        assert np.array_equal(row.pixels, expected.pixels)


# ----------------------------------------------------------------------------
# The whole script
# ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Run the script on people and on pictures without them."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "raw").mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "person.tflite").write_bytes(tiny)
    for number in range(10):
        random = np.random.default_rng(number)
        image = 20 + draw_photo(number, 400, 300) // 4
        left, top = random.integers(0, 250), random.integers(0, 100)
        image[top : top + 180, left : left + 90] = 255 - image[:180, :90] // 4
        save(folder / "raw" / f"{number}.png", image)
    for number in range(3):
        save(folder / "raw" / f"empty{number}.png", 20 + draw_photo(50 + number) // 4)
    result = run_script(
        "preprocess.py",
        folder,
        INPUT="raw",
        IMAGE_SIZE=64,
        FIT="person",
        BACKGROUND="gray",
        MIRROR=True,
        CHECKS=True,
        PERSON_MODEL_SHA256=digest(tiny),
        PERSON_MODEL_URL="http://127.0.0.1:9/never",
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_rows_have_a_share_and_a_mirror(finished):
    index = read_table(finished / "data" / "images.csv")
    assert list(index[0]) == (
        [
            "row",
            "file",
            "mirrored",
            "left",
            "top",
            "width",
            "height",
            "person",
            "images_id",
            "folder",
        ]
    )
    assert sorted(line["file"] for line in index[::2]) == [
        f"{n}.png" for n in range(10)
    ]
    images = np.load(finished / "data" / "images.npy")
    assert images.shape == (20, 64, 64, 3)
    assert np.array_equal(images[1::2], images[::2, :, ::-1])
    for line in index:
        assert abs(float(line["person"]) - 180 * 90 / (400 * 300)) < 0.01
        assert int(line["width"]) == int(line["height"])
    grey = (images == 200).all(axis=3)
    assert grey[:, 0].all() and 0.3 < grey.mean() < 0.8


def test_pictures_without_people_are_counted_and_shown(finished):
    reasons = read_reasons(finished)
    assert sorted(reasons) == ["empty0.png", "empty1.png", "empty2.png"]
    for reason in reasons.values():
        assert reason.startswith("no person found: 0.0 %")
    with Image.open(finished / "figures" / "rejected.png") as file:
        sheet = np.asarray(file)
    for number in range(3):
        tile = sheet[:100, 160 * number : 160 * number + 156]
        assert 20 < tile.mean() < 90  # the dark pictures themselves


def test_the_figure_shows_the_square_and_what_was_kept(finished):
    with Image.open(finished / "figures" / "fitted.png") as file:
        sheet = np.asarray(file)
    images = np.load(finished / "data" / "images.npy")[::2]
    for number in range(10):
        top, left = number // 4 * 172, number % 4 * 320
        original = sheet[top : top + 160, left : left + 160]
        assert (original == (0, 255, 0)).all(axis=2).sum() > 100
        kept = sheet[top : top + 156, left + 160 : left + 316]
        expected = cv2.resize(images[number], (156, 156), interpolation=cv2.INTER_CUBIC)
        assert np.array_equal(kept, expected)


# ----------------------------------------------------------------------------
# What can be misread
# ----------------------------------------------------------------------------
def test_words_that_do_not_go_together(tmp_path):
    def run(**edits):
        return run_script("preprocess.py", tmp_path, INPUT="raw", **edits)

    (tmp_path / "raw").mkdir()
    save(tmp_path / "raw" / "x.png", draw_photo())
    assert_message(run(FIT="subject"), "FIT = 'subject'", '"person"')
    result = run(FIT="crop", BACKGROUND="gray")
    assert_message(result, "BACKGROUND = 'gray'", "FIT is 'crop'", '"person"')
    np.savez(tmp_path / "x.npz", x_train=np.zeros((3, 28, 28), np.uint8))
    result = run_script("preprocess.py", tmp_path, INPUT="x.npz", FIT="person")
    assert_message(result, "FIT = 'person'", "x.npz", "whole or by their centre")
    assert not (tmp_path / "data").exists()


def test_a_crawl_is_told_of_people(tmp_path):
    words = 'FIT = "person" and BACKGROUND = "gray"'
    (tmp_path / "raw").mkdir()
    save(tmp_path / "raw" / "x.png", draw_photo())
    result = run_script("preprocess.py", tmp_path, INPUT="raw", FIT="crop")
    assert result.returncode == 0 and words not in result.stdout
    (tmp_path / "raw" / "manifest.jsonl").touch()
    result = run_script("preprocess.py", tmp_path, INPUT="raw", FIT="crop")
    assert result.returncode == 0 and words in result.stdout
    result = run_script("preprocess.py", tmp_path, INPUT="raw", FIT="pad")
    assert result.returncode == 0 and words not in result.stdout


# ----------------------------------------------------------------------------
# Fetching the model
# ----------------------------------------------------------------------------
@pytest.fixture
def server(tiny):
    """Serve files on loopback.

    They are /right, /wrong, /gone, /endless, /cut (the connection breaks off) and /half
    (it stays open, and nothing more comes).
    """
    asked = []
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/gone":
                self.send_error(404)
                return
            self.send_response(200)
            if self.path == "/cut":
                self.send_header("Content-Length", str(len(tiny)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the script hangs up
                if self.path == "/right":
                    self.wfile.write(tiny)
                elif self.path == "/wrong":
                    self.wfile.write(b"another")
                elif self.path == "/cut":
                    self.wfile.write(tiny[:700])
                elif self.path == "/half":
                    self.wfile.write(tiny[:700])
                    self.wfile.flush()
                    done.wait()
                else:
                    while not done.is_set():
                        self.wfile.write(bytes(1_000_000))

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        web.address = f"http://127.0.0.1:{web.server_address[1]}"
        web.asked = asked
        yield web
        done.set()
        web.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    """Make a folder with a picture and an earlier array."""
    (tmp_path / "raw").mkdir()
    save(
        tmp_path / "raw" / "x.png",
        draw_people((40, 30, 90, 120), width=150, height=150),
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    return tmp_path


def edits_for(tiny, url):
    edits = {"INPUT": "raw", "IMAGE_SIZE": 28, "FIT": "person", "CHECKS": False}
    edits |= {"PERSON_MODEL": "data/person.tflite", "PERSON_MODEL_URL": url}
    return edits | {"PERSON_MODEL_SHA256": digest(tiny)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_the_model_is_fetched_once(tiny, server, folder):
    edits = edits_for(tiny, f"{server.address}/right")
    for _ in range(2):
        result = run_script("preprocess.py", folder, **edits)
        assert result.returncode == 0, result.stderr
    assert server.asked == ["/right"]
    assert (folder / "data" / "person.tflite").read_bytes() == tiny
    assert names(folder / "data") == (
        ["images.csv", "images.npy", "person.tflite", "rejected.csv"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, words",
    [
        ("/wrong", digest(b"another")),
        ("/gone", "404"),
        ("/endless", "more than 20,000,000 bytes"),
        ("/cut", "person.tflite: there is no connection, or it broke off. Put"),
    ],
)
def test_another_model_is_not_taken(tiny, server, folder, page, words):
    edits = edits_for(tiny, server.address + page)
    result = run_script("preprocess.py", folder, **edits)
    path = str(folder / "data" / "person.tflite")
    assert_message(result, words, server.address + page, path, 'FIT = "crop"')
    assert names(folder / "data") == ["images.npy"]
    assert (folder / "data" / "images.npy").read_bytes() == b"earlier"


def test_without_the_network(tiny, folder):
    edits = edits_for(tiny, "http://127.0.0.1:9/model")  # nobody listens there
    result = run_script("preprocess.py", folder, **edits)
    path = str(folder / "data" / "person.tflite")
    assert_message(result, "http://127.0.0.1:9/model", path, "by hand", 'FIT = "crop"')
    assert names(folder / "data") == ["images.npy"]


def test_an_address_that_is_none(tiny, folder):
    result = run_script("preprocess.py", folder, **edits_for(tiny, "no address"))
    assert_message(result, "no address", "by hand")


def test_crop_never_asks_for_the_model(tiny, server, folder):
    edits = edits_for(tiny, f"{server.address}/right") | {"FIT": "crop"}
    assert run_script("preprocess.py", folder, **edits).returncode == 0
    assert server.asked == []


def test_a_file_put_there_by_hand_is_checked(tiny, server, folder):
    path = folder / "data" / "person.tflite"
    path.write_bytes(b"not it")
    edits = edits_for(tiny, f"{server.address}/right")
    result = run_script("preprocess.py", folder, **edits)
    assert_message(result, str(path), digest(b"not it"), digest(tiny), 'FIT = "crop"')
    assert path.read_bytes() == b"not it" and server.asked == []
    path.write_bytes(tiny)
    assert run_script("preprocess.py", folder, **edits).returncode == 0
    assert server.asked == []


def test_a_model_that_cannot_be_read(tiny, folder):
    path = folder / "data" / "person.tflite"
    path.mkdir()
    result = run_script(
        "preprocess.py", folder, **edits_for(tiny, "http://127.0.0.1:9")
    )
    assert_message(result, f"Cannot use {path}", "Move it away", 'FIT = "crop"')


def test_a_model_that_cannot_be_run(folder):
    path = folder / "data" / "person.tflite"
    path.write_bytes(b"no model at all")
    edits = edits_for(b"no model at all", "http://127.0.0.1:9/never")
    result = run_script("preprocess.py", folder, **edits)
    assert_message(result, str(path), "cannot run it", 'FIT = "crop"')


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_a_fetch_that_is_stopped_leaves_no_model(tiny, server, folder, number):
    edits = edits_for(tiny, f"{server.address}/half")
    copy_script("preprocess.py", folder, **edits)
    command = [sys.executable, "preprocess.py"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while names(folder / "data") == ["images.npy"]:  # until it has begun a file
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == {"SIGKILL": -9, "SIGINT": 130}[number]
    assert "Traceback" not in stderr
    assert not (folder / "data" / "person.tflite").exists()
    edits["PERSON_MODEL_URL"] = f"{server.address}/right"
    assert run_script("preprocess.py", folder, **edits).returncode == 0
    assert (folder / "data" / "person.tflite").read_bytes() == tiny
    assert names(folder / "data") == (
        ["images.csv", "images.npy", "person.tflite", "rejected.csv"]
    )


# ----------------------------------------------------------------------------
# The real model
# ----------------------------------------------------------------------------
REAL = ROOT / "data" / "person.tflite"
real = pytest.mark.skipif(not REAL.exists(), reason="data/person.tflite is not there")


@pytest.fixture(scope="module")
def finder():
    return load_preprocess(FIT="person", BACKGROUND="gray", PERSON_MODEL=str(REAL))


@real
def test_the_real_model_is_the_one_that_is_named(finder):
    assert digest(REAL.read_bytes()) == finder.PERSON_MODEL_SHA256


@real
@pytest.mark.slow
def test_drawn_athletes_are_found_and_cut_out(finder, tmp_path):
    athletes = load_script("tests/draw_athletes.py")
    for number in range(40):
        factors = athletes.draw_factors(0, number)
        stage = athletes.draw_picture(factors, 400, 300)
        empty = athletes.draw_stage(400, 300, factors["light"])
        empty = (255 * empty).round().astype(int)
        figure = np.abs(stage.astype(int) - empty).max(axis=2) > 40
        row = finder.make_row("x", save(tmp_path / "x.png", stage))
        assert row.reason == "" and row.person > 0.1
        box = row.box
        lines, columns = np.nonzero(figure)
        inside = (columns >= box.left) & (columns < box.right)
        inside &= (lines >= box.top) & (lines < box.bottom)
        assert inside.mean() > 0.97
        padded = np.pad(figure, 400)
        part = padded[
            box.top + 400 : box.bottom + 400, box.left + 400 : box.right + 400
        ]
        part = cv2.resize(
            part.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA
        )
        is_grey = (row.pixels == 200).all(axis=2)
        assert is_grey[part > 0.99].mean() < 0.12  # little of them is lost
        assert (row.pixels[0] == 200).all(axis=1).mean() > 0.6
        assert is_grey[:, [0, -1]].mean() > 0.6


@real
def test_pictures_without_people_are_rejected(finder, tmp_path):
    athletes = load_script("tests/draw_athletes.py")
    stage = (255 * athletes.draw_stage(400, 300, 230)).round().astype(np.uint8)
    ramp = np.linspace(0, 255, 400).astype(np.uint8)[None, :, None]
    ramp = np.broadcast_to(ramp, (300, 400, 3)).copy()
    cv2.putText(ramp, "LOGO", (60, 180), 0, 4, (200, 30, 30), 12)
    for image in (stage, ramp, draw_noise(1, 400, 300)):
        row = finder.make_row("x", save(tmp_path / "x.png", image))
        assert row.reason.startswith("no person found")
