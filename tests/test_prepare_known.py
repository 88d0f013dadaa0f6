"""preprocess.py: which files are inputs, and what images.csv says of them."""

import json
import os

import numpy as np
import pytest
from conftest import run_script
from pictures import (
    assert_message,
    draw_photo,
    encode,
    load_preprocess,
    read_reasons,
    read_table,
)

EDITS = {"INPUT": "data/raw", "IMAGE_SIZE": 28, "CHECKS": False, "MIRROR": True}


def fill(folder, *names):
    """Make a folder with these pictures, none like another."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw_photo(number), "PNG"))


def run(folder, **edits):
    result = run_script("preprocess.py", folder, **EDITS | edits)
    assert result.returncode == 0, result.stderr
    return read_table(folder / "data" / "images.csv")


def columns_of(index, *columns):
    """Return {file: [texts of these columns]} of the rows that are no mirrors."""
    known = {}
    for line in index:
        if line["mirrored"] == "0":
            known[line["file"]] = [line[column] for column in columns]
    return known


# ----------------------------------------------------------------------------
# What is known of a picture
# ----------------------------------------------------------------------------
def write_manifest(path, **keywords):
    """Write lines as scrape.py does: with ENGINES = ("urls", ...) keyword is null."""
    lines = []
    for name, keyword in keywords.items():
        line = {"file": f"{name}.png", "url": f"https://example.com/{name}"}
        line |= {"title": None, "engine": "commons", "keyword": keyword, "width": 192}
        if keyword is None:
            line["engine"] = "urls"
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_keywords_of_a_crawl(tmp_path):
    raw = tmp_path / "data" / "raw"
    fill(raw, "000001.png", "000002.png", "000003.png", "000004.png")
    keywords = {"000001": None, "000002": "posing, 'front'", "000003": "日本"}
    write_manifest(raw / "manifest.jsonl", **keywords)
    index = run(tmp_path)
    columns = "row,file,mirrored,left,top,width,height,images_id,keyword,folder"
    assert ",".join(index[0]) == columns
    assert columns_of(index, "keyword", "folder") == {
        "000001.png": ["", ""],
        "000002.png": ["posing, 'front'", ""],
        "000003.png": ["日本", ""],
        "000004.png": ["", ""],  # came from elsewhere
    }
    for original, mirror in zip(index[::2], index[1::2], strict=True):
        assert original["keyword"] == mirror["keyword"]


def test_a_manifest_is_read_tolerantly(tmp_path):
    path = tmp_path / "manifest.jsonl"
    lines = [
        b"\xef\xbb\xbf" + b'{"file": "1.png", "keyword": "first"}',
        b"",
        b'{"file": "2.png"}',
        b'{"file": "3.png", "keyword": null}',
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe no text",
        b"[" * 100_000,
        b'{"keyword": "of no file"}',
        b'{"file": "4.png", "keyword": 7}',
        b'{"file": "1.png", "keyword": "again"}',
        b'{"file": "5.png", "keyw',
    ]
    path.write_bytes(b"\n".join(lines))
    keywords = load_preprocess().read_keywords(path)
    keywords.pop("None", None)
    assert keywords == {"1.png": "again", "4.png": "7"}


def test_columns_of_factors(tmp_path):
    raw = tmp_path / "data" / "raw"
    fill(raw, "a.png", "sub/b.png", "c.png", "d.png")
    text = "\ufefffile,people,shift,width,row,label\na.png,2,0.005,1.02,9,x\n\n"
    text += "sub/b.png,1,-0.25,,8\nd.png,1,left,1,1,1,extra,cells\ngone.png,3,1,1,1,1"
    (raw / "factors.csv").write_text(text, encoding="utf-8")
    index = run(tmp_path)
    columns = ("people", "shift", "factor_width", "factor_row", "factor_label")
    assert list(index[0])[7:] == ["images_id", *columns, "folder"]
    assert columns_of(index, *columns, "folder") == {
        "a.png": ["2", "0.005", "1.02", "9", "x", ""],
        "sub/b.png": ["1", "-0.25", "", "8", "", "sub"],
        "c.png": ["", "", "", "", "", ""],
        "d.png": ["1", "left", "1", "1", "1", ""],
    }
    mirrors = {line["file"]: line["shift"] for line in index if line["mirrored"] == "1"}
    expected = {"a.png": "-0.005", "sub/b.png": "0.25", "c.png": "", "d.png": "left"}
    assert mirrors == expected
    width = {line["file"]: line["width"] for line in index}
    assert set(width.values()) == {"128"}  # of the box


def test_a_prefix_makes_no_two_columns_one(tmp_path):
    path = tmp_path / "factors.csv"
    path.write_text("file,width,factor_width\na.png,1,2\n", encoding="utf-8")
    factors = load_preprocess().read_factors(path)
    assert factors["factor_width"] == {"a.png": "2"}
    assert factors["factor_factor_width"] == {"a.png": "1"}


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"no,column\n1,2\n", b'file,a\n"a.png,1\n', b"file,a\na.png,\xff\n"],
)
def test_torn_factors_leave_empty_cells(tmp_path, data):
    fill(tmp_path / "data" / "raw", "a.png")
    (tmp_path / "data" / "raw" / "factors.csv").write_bytes(data)
    index = run(tmp_path)
    assert index[0]["file"] == "a.png" and index[0]["folder"] == ""


def test_what_follows_a_cell_that_is_far_too_long_is_left_out(tmp_path):
    fill(tmp_path / "data" / "raw", "a.png", "b.png")
    table = "file,pose\na.png,1\nb.png," + 200_000 * "x" + "\n"
    (tmp_path / "data" / "raw" / "factors.csv").write_text(table)
    index = run(tmp_path)
    assert {line["file"]: line["pose"] for line in index} == {"a.png": "1", "b.png": ""}


def test_drawn_athletes_bring_their_factors(tmp_path):
    assert run_script("tests/draw_athletes.py", tmp_path, NUM_IMAGES=6).returncode == 0
    truth = {}
    for line in read_table(tmp_path / "data" / "raw" / "factors.csv"):
        truth[line["file"]] = line
    index = run(tmp_path)
    assert len(index) == 12
    for line in index:
        expected = truth[line["file"]]
        for column in ("people", "pose", "skin", "zoom", "light"):
            assert line[column] == expected[column]
        assert line["factor_width"] == expected["width"]
        sign = -1 if line["mirrored"] == "1" else 1
        assert float(line["shift"]) == sign * float(expected["shift"])


def test_labels_of_arrays(tmp_path):
    images = np.arange(7, dtype=np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8)
    arrays = {"x_train": images[:5], "x_test": images[5:]}
    np.savez(tmp_path / "x.npz", y_train=[[5], [0], [4], [1], [9]], **arrays)
    index = run(tmp_path, INPUT="x.npz")
    assert list(index[0])[7:] == ["images_id", "label"]
    labels = columns_of(index, "label")
    assert labels["x_train[0]"] == ["5"] and labels["x_train[4]"] == ["9"]
    assert labels["x_test[0]"] == [""]
    np.savez(tmp_path / "x.npz", y_train=np.array([{}]), y_test=[7], **arrays)
    labels = columns_of(run(tmp_path, INPUT="x.npz"), "label")
    assert labels["x_test[0]"] == ["7"] and labels["x_test[1]"] == [""]
    assert labels["x_train[0]"] == [""]  # pickled ones are not opened
    np.savez(tmp_path / "x.npz", **arrays)
    assert "label" not in run(tmp_path, INPUT="x.npz")[0]


# ----------------------------------------------------------------------------
# Which files are inputs
# ----------------------------------------------------------------------------
def test_its_own_files_are_never_inputs(tmp_path):
    """INPUT = "." twice: the second run finds the same pictures."""
    fill(tmp_path, "a.png", "data/b.png", "figures/c.png", "figures/more/loss.png")
    fill(tmp_path, "figures/loss.png", "figures/morph.gif", "figures/latent_map.png")
    fill(tmp_path, "figures/latent_grid.png", "figures/latent_grid.jpg")
    expected = ["a.png", "data/b.png", "figures/c.png", "figures/more/loss.png"]
    for _ in range(2):
        index = run(tmp_path, INPUT=".")
        assert sorted(line["file"] for line in index[::2]) == expected
        assert list(read_reasons(tmp_path)) == ["preprocess.py"]


def test_its_own_files_are_known_by_their_place(tmp_path):
    """The same names elsewhere are pictures, and a link does not hide its own."""
    fill(tmp_path / "data" / "raw", "dataset.png", "figures/fitted.png", "x.png")
    (tmp_path / "out").mkdir()
    index = run(tmp_path, FIGURE_DIR="data/raw/figures")
    assert {line["file"] for line in index} == {"dataset.png", "x.png"}
    index = run(tmp_path, INPUT="data", FIGURE_DIR="data/raw/figures")
    assert {line["file"] for line in index} == {"raw/dataset.png", "raw/x.png"}
    assert read_reasons(tmp_path) == {}
    if os.name == "posix":
        (tmp_path / "link").symlink_to("data", target_is_directory=True)
        index = run(tmp_path, INPUT="link", FIGURE_DIR="link/raw/figures")
        assert {line["file"] for line in index} == {"raw/dataset.png", "raw/x.png"}
        assert read_reasons(tmp_path) == {}


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_to_its_own_files_are_no_inputs_either(tmp_path):
    fill(tmp_path, "data/raw/a.png", "far/b.png")
    (tmp_path / "data" / "raw" / "b.png").symlink_to(tmp_path / "far" / "b.png")
    link = tmp_path / "data" / "raw" / "c.png"
    link.symlink_to(tmp_path / "figures" / "dataset.png")
    (tmp_path / "data" / "raw" / "loop.png").symlink_to("loop.png")
    for _ in range(2):
        index = run(tmp_path)
        assert {line["file"] for line in index} == {"a.png", "b.png"}
        assert list(read_reasons(tmp_path)) == ["loop.png"]


def test_folders_of_the_system_are_left_out_with_a_count(tmp_path):
    raw = tmp_path / "data" / "raw"
    fill(raw, "a.png", ".cache/b.png", "sub/@eaDir/c.png", "__MACOSX/._d.png")
    fill(raw, "@x.png", "e@f/g.png", "h.i/j.png")
    result = run_script("preprocess.py", tmp_path, **EDITS)
    assert result.returncode == 0
    assert "Left out 3 folders" in result.stdout
    index = read_table(tmp_path / "data" / "images.csv")
    names = {line["file"] for line in index}
    assert names == {"a.png", "@x.png", "e@f/g.png", "h.i/j.png"}
    assert read_reasons(tmp_path) == {}


def test_a_folder_without_usable_files_does_not_send_to_the_crawl(tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
    (tmp_path / "data" / "raw" / "IMG_1.HEIC").write_bytes(heic)
    result = run_script("preprocess.py", tmp_path, **EDITS)
    assert_message(result, "IMG_1.HEIC", "HEIC: not supported, convert it to JPEG")
    assert "scrape.py" not in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_to_folders_are_named_and_not_followed(tmp_path):
    fill(tmp_path / "data" / "raw", "a.png", "sub/b.png")
    (tmp_path / "data" / "raw" / "sub" / "loop").symlink_to("..")
    index = run(tmp_path)
    assert {line["file"] for line in index} == {"a.png", "sub/b.png"}
    assert list(read_reasons(tmp_path)) == ["sub/loop"]
