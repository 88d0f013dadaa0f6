"""preprocess.py: the files that it writes, its messages, and what stops it."""

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import copy_script, run_script, signal_at
from pictures import (
    QUARTERS,
    assert_corners,
    assert_message,
    draw_noise,
    draw_quarters,
    encode,
    load_preprocess,
    make_png,
    read_reasons,
    read_table,
)
from PIL import Image

TRUNCATED = ("jpg", "png", "webp", "bmp", "tiff", "gif", "avif")
unix = pytest.mark.skipif(os.name != "posix", reason="needs signals and terminals")


# ----------------------------------------------------------------------------
# The array
# ----------------------------------------------------------------------------
def make_row(module, name, pixels, view):
    row = module.Row(name)
    row.pixels = pixels
    row.view = view
    if pixels is None:
        row.reason = "torn"
    return row


def test_array_counts_what_was_written(tmp_path):
    module = load_preprocess(IMAGE_SIZE=28, MIRROR=True)
    images = [draw_noise(seed, 28, 28) for seed in range(2)]
    views = [draw_noise(seed, 128, 128) for seed in range(2)]

    def rows():
        yield make_row(module, "a", images[0], views[0])
        yield make_row(module, "b", None, None)
        yield make_row(module, "c", images[1], views[1])

    file = io.BytesIO()
    written, rejected = module.write_array(tmp_path / "x", rows(), file)
    array = np.load(tmp_path / "x", allow_pickle=False)
    assert array.shape == (4, 28, 28, 3) and array.dtype == np.uint8
    assert np.array_equal(array[2], images[1])
    assert np.array_equal(array[3], images[1][:, ::-1])
    assert [row.name for row in written] == ["a", "c"]
    assert [(row.name, row.reason) for row in rejected] == [("b", "torn")]
    assert all(row.pixels is None and row.view is None for row in written)
    assert file.getvalue() == np.array(views).tobytes()
    module.MIRROR = False
    module.write_array(tmp_path / "x", rows(), file)
    assert np.array_equal(np.load(tmp_path / "x"), images[:2])


@pytest.mark.parametrize("mirror", [False, True])
def test_rows_are_taken_out_of_an_array(tmp_path, mirror):
    module = load_preprocess(IMAGE_SIZE=28, MIRROR=mirror)
    step = 1 + mirror
    images = np.array([draw_noise(seed, 28, 28) for seed in range(6 * step)])
    np.save(tmp_path / "x.npy", images)
    rows = []
    for number in range(6):
        row = make_row(module, str(number), None, None)
        row.reason = ""
        row.sharpness = 1.0 + 0.01 * number
        rows.append(row)
    for number in (0, 3, 4):
        rows[number].sharpness = 0.01
    views = [draw_noise(seed, 128, 128) for seed in range(6)]
    for row, view in zip(rows, views, strict=True):
        row.hashes = module.hash_view(view)
    with open(tmp_path / "views", "w+b") as file:
        file.write(np.array(views).tobytes())
        kept, rejected = module.take_out_faults(tmp_path / "x.npy", rows, file)
    assert [row.name for row in kept] == ["1", "2", "5"]
    assert [row.name for row in rejected] == ["0", "3", "4"]
    assert all(row.reason.startswith("blurred") for row in rejected)
    groups = images.reshape(6, step, 28, 28, 3)[[1, 2, 5]]
    np.save(tmp_path / "y.npy", groups.reshape(-1, 28, 28, 3))
    expected = (tmp_path / "y.npy").read_bytes()
    assert (tmp_path / "x.npy").read_bytes() == expected


def test_rows_keep_their_order_whatever_the_threads(monkeypatch):
    module = load_preprocess(IMAGE_SIZE=28)
    sources = [(str(number), draw_noise(number, 40, 40)) for number in range(50)]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone = list(module.make_rows(sources))
    assert [row.name for row in alone] == [str(number) for number in range(50)]
    for threads in (2, 7, 100, None):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        for row, expected in zip(module.make_rows(sources), alone, strict=True):
            assert row.name == expected.name
            assert np.array_equal(row.pixels, expected.pixels)
    assert list(module.make_rows([])) == []


def test_no_more_pictures_are_made_than_memory_needs(monkeypatch):
    module = load_preprocess(IMAGE_SIZE=28)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    taken = []

    class Sources(list):
        def __iter__(self):
            for source in super().__iter__():
                taken.append(source)
                yield source

    sources = Sources(("x", draw_noise(0, 40, 40)) for _ in range(100))
    rows = module.make_rows(sources)
    for done in range(1, 101):
        next(rows)
        assert len(taken) <= done + 8  # four for each thread


def test_order_is_shuffled_but_for_x_test(tmp_path):
    def names(source, seed):
        module = load_preprocess(INPUT=str(tmp_path / source), SEED=seed)
        sources, *_ = module.list_sources()
        return sources

    train = np.arange(50, dtype=np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8)
    np.savez(tmp_path / "x.npz", x_test=train[:7] + 100, x_train=train, y_train=[1])
    sources = names("x.npz", 0)
    values = [int(image[0, 0]) for _, image in sources]
    assert sorted(values[:50]) == list(range(50)) and values[:50] != list(range(50))
    assert values[50:] == list(range(100, 107))
    assert [name for name, _ in sources[50:52]] == ["x_test[0]", "x_test[1]"]
    assert all(name == f"x_train[{image[0, 0]}]" for name, image in sources[:50])
    again = names("x.npz", 0)
    assert [name for name, _ in again] == [name for name, _ in sources]
    other = names("x.npz", 1)
    assert [name for name, _ in other] != [name for name, _ in sources]


# ----------------------------------------------------------------------------
# The script on a folder of good and bad files
# ----------------------------------------------------------------------------
REASONS = {  # file: what its reason has to say
    "empty.jpg": "an empty file",
    "page.jpg": "a web page, not a picture",
    "program.png": "not a picture",
    "script.jpg": "PostScript: not supported",  # nor handed to Ghostscript
    "noise.png": "damaged",
    "tiny.png": "too small: 1 x 1",
    "huge.png": "too large: 20000 x 20000",
    "notes.txt": "not a picture",
    ".hidden.png": "a hidden file",
    **{f"torn.{ending}": "" for ending in TRUNCATED},
    "torn.jpg": "cut short",
    "torn.png": "cut short",
}
LINKS = ("broken.png", "itself.png", "deep/loop", "pipe.jpg")
NAMES = (
    "deep/er/日本語 写真.png",
    "deep/er/💪🏽.PNG",
    'deep/er/ lead, "quoted" %s {x} [1].png',
    f"deep/{'x' * 251}.png",
    "really_a_png.jpg",
)


def fill(folder):
    """Make a folder with good and bad files; return the names of the good ones."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".cache").mkdir()
    good = [name for name in NAMES if os.name == "posix" or '"' not in name]
    if os.name == "posix":
        good.append("deep/new\nline.png")
    png = encode(draw_quarters(), "PNG")
    good += ["picture", "x.csv", "d.jpg?w=400"][: 3 if os.name == "posix" else 2]
    for name in [*good, ".hidden.png", ".cache/inside.png"]:
        (folder / name).write_bytes(png)
    for number in range(12):
        jpeg = encode(draw_noise(number, 100, 80), "JPEG")
        (folder / f"{number:06}.jpg").write_bytes(jpeg)
        good.append(f"{number:06}.jpg")
    for name in ("manifest.jsonl", "failed.jsonl", "CREDITS.md", "factors.csv"):
        (folder / name).write_text("ours", encoding="utf-8")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<!doctype html><title>Not found</title>")
    (folder / "program.png").write_bytes(b"\x7fELF" + bytes(2000))
    (folder / "script.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"
    )
    noise = draw_noise(7, 200, 200)
    damaged = bytearray(encode(noise, "PNG"))
    damaged[5000:5100] = bytes(100)
    (folder / "noise.png").write_bytes(damaged)
    (folder / "tiny.png").write_bytes(encode(noise[:1, :1], "PNG"))
    (folder / "huge.png").write_bytes(make_png(20_000, 20_000, 8, 2, bytes(100)))
    for ending in TRUNCATED:
        kind = {"jpg": "JPEG"}.get(ending, ending.upper())
        data = encode(noise, kind)
        (folder / f"torn.{ending}").write_bytes(data[: len(data) * 6 // 10])
    if os.name == "posix":
        (folder / "broken.png").symlink_to("nowhere.png")
        (folder / "itself.png").symlink_to("itself.png")
        (folder / "deep" / "loop").symlink_to("..", target_is_directory=True)
        os.mkfifo(folder / "pipe.jpg")
    return good


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the script on a folder of good and bad files; share what it left."""
    folder = tmp_path_factory.mktemp("finished")
    good = fill(folder / "data" / "raw")
    settings = {"INPUT": "data/raw", "OUTPUT_FILE": "data/images.npy", "SEED": 0}
    settings |= {"IMAGE_SIZE": 64, "COLOR": "rgb", "FIT": "crop", "MIRROR": True}
    settings |= {"MIN_SIDE": 64, "MAX_PIXELS": 50_000_000, "FIGURE_DIR": "figures"}
    settings |= {"CHECKS": False}  # many of the good ones are equal
    result = run_script("preprocess.py", folder, **settings)
    assert result.returncode == 0, result.stderr
    return {
        "folder": folder,
        "good": good,
        "settings": settings,
        "result": result,
        "images": np.load(folder / "data" / "images.npy", allow_pickle=False),
        "index": read_table(folder / "data" / "images.csv"),
    }


def test_script_writes_the_array(finished):
    images = finished["images"]
    assert images.dtype == np.uint8
    assert images.shape == (2 * len(finished["good"]), 64, 64, 3)
    assert np.array_equal(images[1::2], images[::2, :, ::-1])
    assert not np.array_equal(images[0], images[2])


def test_script_writes_the_index(finished):
    index, images = finished["index"], finished["images"]
    assert list(index[0]) == (
        ["row", "file", "mirrored", "left", "top", "width", "height"]
        + ["images_id", "keyword", "folder"]
    )
    assert [int(line["row"]) for line in index] == list(range(len(images)))
    assert [line["mirrored"] for line in index] == ["0", "1"] * len(finished["good"])
    files = [line["file"] for line in index]
    assert files[::2] == files[1::2]
    assert sorted(files[::2]) == sorted(finished["good"])
    assert files[::2] != sorted(files[::2])  # shuffled
    box = [(line["left"], line["top"], line["width"], line["height"]) for line in index]
    assert box[files.index("000003.jpg")] == ("10", "0", "80", "80")
    assert box[files.index("really_a_png.jpg")] == ("32", "0", "128", "128")


def test_index_carries_the_id_of_the_array(finished):
    data = (finished["folder"] / "data" / "images.npy").read_bytes()
    expected = hashlib.sha256(data).hexdigest()[:16]
    assert {line["images_id"] for line in finished["index"]} == {expected}


def test_rows_show_the_files_that_the_index_names(finished):
    rows = {
        line["file"]: finished["images"][int(line["row"])]
        for line in [line for line in finished["index"] if line["mirrored"] == "0"]
    }
    for name in NAMES:
        if name in rows:
            assert_corners(rows[name], QUARTERS)
    for number in range(12):
        path = finished["folder"] / "data" / "raw" / f"{number:06}.jpg"
        whole = np.asarray(Image.open(path))[:, 10:90]
        expected = cv2.resize(whole, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(rows[path.name], expected)


def test_rejected_files_are_named_with_their_reason(finished):
    rejected = read_reasons(finished["folder"])
    expected = dict(REASONS)
    if os.name == "posix":
        expected |= dict.fromkeys(LINKS, "no file")
    assert sorted(rejected) == sorted(expected)
    for name, words in expected.items():
        assert rejected[name] and words in rejected[name], name
    assert list(rejected) == sorted(rejected)


def test_script_draws_the_first_images(finished):
    with Image.open(finished["folder"] / "figures" / "dataset.png") as file:
        sheet = np.asarray(file.convert("RGB"))
    assert sheet.shape[1] == 640 and sheet.shape[0] >= 640
    originals = finished["images"][::2]
    for number, image in enumerate(originals):
        top, left = number // 10 * 64, number % 10 * 64
        assert np.array_equal(sheet[top : top + 64, left : left + 64], image)
    assert (sheet[192:640] == 255).all()


def test_the_sheet_of_rejected_ones_is_not_filled_with_what_is_no_picture(finished):
    with Image.open(finished["folder"] / "figures" / "rejected.png") as file:
        assert file.height == 20  # none of them could be read: the caption alone


def test_script_says_what_it_did(finished):
    first, *_, last = finished["result"].stdout.splitlines()
    assert "data/raw" in first and "64 x 64 x 3" in first
    count = len(finished["images"])
    assert last.startswith(
        f"Wrote {os.path.join('data', 'images.npy')} (uint8, {count}"
    )
    assert f"{len(REASONS) + 4 * (os.name == 'posix')} rejected" in (
        finished["result"].stdout
    )
    left = [path.name for path in (finished["folder"] / "data").iterdir()]
    assert sorted(left) == ["images.csv", "images.npy", "raw", "rejected.csv"]


def test_same_seed_gives_the_same_bytes(finished):
    folder = finished["folder"]
    before = (folder / "data" / "images.npy").read_bytes()
    result = run_script("preprocess.py", folder, **finished["settings"])
    assert result.returncode == 0
    assert (folder / "data" / "images.npy").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text(tmp_path):
    raw = os.fsencode(tmp_path / "raw")
    os.mkdir(raw)
    for name in (b"\xff\xfe.png", b"\xfd"):
        with open(os.path.join(raw, name), "wb") as file:
            if name.endswith(b".png"):
                file.write(encode(draw_quarters(), "PNG"))
    result = run_script(
        "preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=28, CHECKS=False
    )
    assert result.returncode == 0
    table = read_table(tmp_path / "data" / "images.csv")
    assert {line["file"] for line in table} == {"\\udcff\\udcfe.png"}
    assert list(read_reasons(tmp_path)) == ["\\udcfd"]


@pytest.mark.parametrize("color, channels", [("gray", 1), ("rgb", 3)])
def test_an_npz_file_goes_the_same_way(tmp_path, color, channels):
    train, test = draw_noise(1, 28, 28 * 40, 1), draw_noise(2, 28, 28 * 10, 1)
    train, test = train.reshape(40, 28, 28), test.reshape(10, 28, 28)
    np.savez(tmp_path / "digits.npz", x_train=train, x_test=test)
    result = run_script(
        "preprocess.py",
        tmp_path,
        INPUT="digits.npz",
        IMAGE_SIZE=28,
        COLOR=color,
        MIRROR=color == "rgb",
    )
    assert result.returncode == 0
    images = np.load(tmp_path / "data" / "images.npy")
    if color == "rgb":
        assert np.array_equal(images[1::2], images[::2, :, ::-1])
        images = images[::2]
    assert images.shape == (50, 28, 28, channels)
    assert (images == images[..., :1]).all()
    assert np.array_equal(images[40:, ..., 0], test)
    order = [
        int(line["file"][8:-1])
        for line in read_table(tmp_path / "data" / "images.csv")
        if line["file"].startswith("x_train") and line["mirrored"] == "0"
    ]
    assert np.array_equal(images[:40, ..., 0], train[order])


def test_arrays_are_neither_checked_nor_searched(tmp_path):
    images = np.zeros((6, 28, 28), np.uint8)  # uniform, or copies,
    images[3:, 4:24, 18:22] = 255  # with content at the edge
    np.savez(tmp_path / "x.npz", x_train=images[:0], x_test=images)
    edits = {"INPUT": "x.npz", "IMAGE_SIZE": 28, "CHECKS": True, "MIRROR": False}
    result = run_script("preprocess.py", tmp_path, COLOR="gray", FIT="crop", **edits)
    assert result.returncode == 0
    assert "(6 inputs): crop to 28 x 28 x 1, without checks" in result.stdout
    assert np.array_equal(np.load(tmp_path / "data/images.npy")[..., 0], images)


def test_it_says_what_it_needs_on_the_disk(tmp_path):
    (tmp_path / "raw").mkdir()
    for number in range(40):
        png = encode(draw_noise(number), "PNG")
        (tmp_path / "raw" / f"{number}.png").write_bytes(png)
    edits = {"INPUT": "raw", "IMAGE_SIZE": 128, "MIRROR": True, "COLOR": "rgb"}
    result = run_script("preprocess.py", tmp_path, CHECKS=True, **edits)
    size = 40 * (2 * 128 * 128 * 3 + 128 * 128 * 3) / 1e6
    assert f"up to {size:.0f} MB of disk while it runs" in result.stdout


# ----------------------------------------------------------------------------
# What a user can mend
# ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "edits",
    [
        {"INPUT": 5},
        {"OUTPUT_FILE": "data/images.txt"},
        {"FIGURE_DIR": None},
        {"IMAGE_SIZE": "256"},
        {"IMAGE_SIZE": 256.0},
        {"IMAGE_SIZE": 30},
        {"COLOR": ["rgb"]},
        {"FIT": "squeeze"},
        {"MIRROR": "yes"},
        {"MIN_SIDE": 64.5},
        {"MAX_PIXELS": -1},
        {"SEED": None},
        {"CHECKS": 1},
        {"BACKGROUND": "grey"},
        {"MIN_PERSON": 2},
        {"PERSON_MODEL": ""},
        {"PERSON_MODEL_SHA256": None},
        {"MARGIN": 0.9},
        {"BORDER_LEVELS": 8.5},
        {"MIN_CONTRAST": None},
        {"MAX_ASPECT": 0},
        {"MIN_SHARPNESS": True},
        {"HASH_BITS": -1},
        {"MAX_DIFFERENCE": -0.1},
        {"MAX_EXACT_DIFFERENCE": "0.14"},
    ],
    ids=str,
)
def test_wrong_settings(tmp_path, edits):
    result = run_script("preprocess.py", tmp_path, **edits)
    name, value = next(iter(edits.items()))
    assert_message(result, name, repr(value), "expected", "preprocess.py")
    assert result.stdout == "" and not (tmp_path / "data").exists()


def test_missing_and_wrong_input(tmp_path):
    def run(source):
        return run_script("preprocess.py", tmp_path, INPUT=source)

    assert_message(run("nowhere"), str(tmp_path / "nowhere"), "Run scrape.py first")
    (tmp_path / "notes.txt").write_text("no array")
    assert_message(run("notes.txt"), str(tmp_path / "notes.txt"), ".npz")
    np.savez(tmp_path / "y.npz", y_train=np.zeros(3))
    assert_message(run("y.npz"), "y_train", "no x_train")
    np.savez(tmp_path / "floats.npz", x_train=np.zeros((3, 28, 28)))
    assert_message(run("floats.npz"), "float64 (3, 28, 28)", "uint8 (N, H, W)")
    (tmp_path / "empty").mkdir()
    assert_message(run("empty"), str(tmp_path / "empty"), "no file", "scrape.py")


def test_broken_npz_files(tmp_path):
    module = load_preprocess(INPUT=str(tmp_path / "x.npz"))

    def load(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return module.load_arrays()

    with pytest.raises(ValueError, match=r"uint8 \(3, 784\)"):
        load(x_train=np.zeros((3, 784), np.uint8))
    with pytest.raises(ValueError, match="x_test is int64"):
        load(x_train=np.zeros((3, 28, 28), np.uint8), x_test=np.zeros((3, 28, 28), int))
    with pytest.raises(ValueError, match="allow_pickle"):
        load(x_train=np.array([{}]))
    load(x_train=draw_noise())
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[300:400] = bytes(100)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        module.load_arrays()
    np.save(tmp_path / "x.npy", draw_noise())
    module.INPUT = str(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="no folder, and no .npz file"):
        module.load_arrays()


def test_no_usable_file_is_an_error_and_keeps_the_earlier_array(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "page.jpg").write_text("<html>")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    result = run_script("preprocess.py", tmp_path, INPUT="raw")
    assert_message(
        result, str(tmp_path / "raw"), "1 rejected", "'page.jpg': a web page"
    )
    assert (tmp_path / "data" / "images.npy").read_bytes() == b"earlier"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "images.npy",
        "rejected.csv",
    ]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["rejected.png"]
    assert list(read_reasons(tmp_path)) == ["page.jpg"]


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.png").write_bytes(encode(draw_quarters(), "PNG"))
    (tmp_path / "file").touch()
    for name in ("OUTPUT_FILE", "FIGURE_DIR"):
        edits = {name: "file/images.npy" if name == "OUTPUT_FILE" else "file"}
        result = run_script("preprocess.py", tmp_path, INPUT="raw", **edits)
        assert_message(result, "Cannot write", str(tmp_path / "file"))
        assert not list(tmp_path.glob("data/*images*"))


@pytest.mark.slow
def test_mnist_without_the_web(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):  # nothing listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    result = run_script("preprocess.py", tmp_path, INPUT="mnist")
    assert_message(result, "Cannot use mnist", "URL fetch failure", ".npz")


@pytest.mark.slow
@unix
def test_two_runs_at_once(many):
    command = [sys.executable, "preprocess.py"]
    runs = [
        subprocess.Popen(command, cwd=many, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in runs:
        assert process.communicate(timeout=300)[1] == b"" and process.returncode == 0
    data = (many / "data" / "images.npy").read_bytes()
    images_id = hashlib.sha256(data).hexdigest()[:16]
    index = read_table(many / "data" / "images.csv")
    assert len(index) == 120 and {line["images_id"] for line in index} == {images_id}
    left = sorted(path.name for path in (many / "data").iterdir())
    assert left == ["images.csv", "images.npy", "rejected.csv"]


# ----------------------------------------------------------------------------
# Stopped in the middle
# ----------------------------------------------------------------------------
MANY = {"INPUT": "raw", "IMAGE_SIZE": 64, "CHECKS": False}


@pytest.fixture
def many(tmp_path):
    """Make a folder with 60 pictures and an earlier array."""
    (tmp_path / "raw").mkdir()
    for number in range(60):
        png = encode(draw_noise(number), "PNG")
        (tmp_path / "raw" / f"{number}.png").write_bytes(png)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    copy_script("preprocess.py", tmp_path, **MANY)
    return tmp_path


@unix
def test_interrupt_keeps_the_earlier_array(many):
    moment = signal_at(many, signal.SIGINT, "open", ".png", 50)
    result = run_script("preprocess.py", many, environment=moment, **MANY)
    assert result.returncode == 130
    assert result.stderr.startswith("Stopped")
    assert len(result.stderr.splitlines()) == 1
    assert (many / "data" / "images.npy").read_bytes() == b"earlier"
    assert [path.name for path in (many / "data").iterdir()] == ["images.npy"]


@pytest.mark.slow
@unix
@pytest.mark.parametrize(
    ("event", "ending", "count"),
    [("open", ".png", 50), ("os.rename", "images.npy", 1)],
)
def test_kill_keeps_the_earlier_array_and_is_cleared_up_later(
    many, event, ending, count
):
    moment = signal_at(many, signal.SIGKILL, event, ending, count)
    result = run_script("preprocess.py", many, environment=moment, **MANY)
    assert result.returncode == -signal.SIGKILL
    assert (many / "data" / "images.npy").read_bytes() == b"earlier"
    assert run_script("preprocess.py", many, **MANY).returncode == 0
    assert np.load(many / "data" / "images.npy").shape == (120, 64, 64, 3)
    left = sorted(path.name for path in (many / "data").iterdir())
    assert left == ["images.csv", "images.npy", "rejected.csv"]


@unix
def test_a_full_disk_is_one_message(tmp_path):
    resource = pytest.importorskip("resource")
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(20):
        (raw / f"{number}.png").write_bytes(encode(draw_noise(number), "PNG"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(b"earlier")
    copy_script("preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=128)

    def limit():  # a file of 300 kB at most: the array gets 2 MB
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    result = subprocess.run(
        [sys.executable, "-B", "preprocess.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert_message(result, "Cannot write", str(tmp_path / "data" / "images.npy"))
    assert (tmp_path / "data" / "images.npy").read_bytes() == b"earlier"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["images.npy"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    def measure(count):
        """Return the most anonymous memory that a run over count files takes, in MB."""
        folder = tmp_path / str(count)
        (folder / "raw").mkdir(parents=True)
        source = folder / "raw" / "0.jpg"
        source.write_bytes(encode(draw_noise(0, 300, 300), "JPEG"))
        for number in range(1, count):
            os.link(source, folder / "raw" / f"{number}.jpg")
        # It looks whenever a picture is opened, so that it cannot be too late.
        (folder / "sitecustomize.py").write_text(
            "import atexit, sys\n"
            "seen = [0]\n"
            "def look(event, details):\n"
            "    if event == 'open' and str(details[0]).endswith('.jpg'):\n"
            "        for line in open('/proc/self/status'):\n"
            "            if line.startswith('RssAnon'):\n"
            "                seen.append(int(line.split()[1]))\n"
            "sys.addaudithook(look)\n"
            "atexit.register(lambda: print('peak', max(seen)))\n"
        )
        edits = {"INPUT": "raw", "IMAGE_SIZE": 256, "MIRROR": True}
        environment = {"PYTHONPATH": str(folder)}
        result = run_script("preprocess.py", folder, environment=environment, **edits)
        assert result.returncode == 0
        return int(result.stdout.rpartition("peak ")[2]) / 1000

    few, many = measure(40), measure(400)  # arrays of 16 and of 157 MB
    assert many - few < 25, (few, many)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("end", [">/dev/full", ">&-"])
def test_a_stdout_that_is_full_or_closed(many, end):
    command = ["bash", "-c", f"'{sys.executable}' preprocess.py {end}"]
    result = subprocess.run(command, cwd=many, capture_output=True, text=True)
    if end == ">&-":  # nobody wants to see it
        assert (result.returncode, result.stderr) == (0, "")
        assert np.load(many / "data" / "images.npy").shape == (120, 64, 64, 3)
        return
    assert_message(result, "Cannot write to stdout: No space left on device")
    assert (many / "data" / "images.npy").read_bytes() == b"earlier"


def damage_fax():
    """Return the bytes of a TIFF about which libtiff complains on stderr."""
    bits = Image.fromarray(draw_noise(0, 300, 300)[..., 0]).convert("1")
    file = io.BytesIO()
    bits.save(file, "TIFF", compression="group4")
    data = bytearray(file.getvalue())
    for place in range(300, len(data) - 1000, 500):
        data[place] ^= 0x55
    return data


@unix
def test_what_libraries_write_goes_into_no_file_of_ours(tmp_path):
    """Where stderr is closed, the next file to be opened would get its place."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "damaged.tiff").write_bytes(damage_fax())
    for number in range(4):
        png = encode(draw_noise(number, 128, 128), "PNG")
        (tmp_path / "raw" / f"{number}.png").write_bytes(png)
    result = run_script("preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=64)
    assert result.returncode == 0 and "Fax4Decode" in result.stderr
    expected = (tmp_path / "data" / "images.npy").read_bytes()
    command = f"'{sys.executable}' preprocess.py 2>&-"
    subprocess.run(command, cwd=tmp_path, shell=True, timeout=120, check=True)
    assert (tmp_path / "data" / "images.npy").read_bytes() == expected


@unix
def test_what_libraries_write_does_not_break_the_live_line(tmp_path):
    import pty

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "damaged.tiff").write_bytes(damage_fax())
    for number in range(30):
        png = encode(draw_noise(number), "PNG")
        (tmp_path / "raw" / f"{number}.png").write_bytes(png)
    copy_script("preprocess.py", tmp_path, INPUT="raw", IMAGE_SIZE=64)
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "preprocess.py"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # Linux ends it so
        while data := os.read(main, 65536):
            output += data
    os.close(main)
    assert process.wait(300) == 0
    before, _, after = output.partition(b"Fax4Decode")
    assert after, output  # libtiff did complain, and nothing of it is lost
    assert b"100%" in before and b"a second" in before
    assert b"a second" not in after and b"Wrote" in after
