"""plot_latent.py on what a user's files and machine can hold: a figure or one line."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import keras
import matplotlib.figure
import numpy as np
import pytest
from conftest import copy_script, load_script, run_script, signal_at
from PIL import Image
from test_plot_latent import (
    FIGURES,
    NOT_OF_TWO,
    SETTINGS,
    add_column,
    change_summary,
    decode,
    encode,
    load,
    make_studio,
    nearest,
    read_gif,
    read_index,
    read_page,
    write_index,
)

SMALL = {"GRID_SIZE": 2}


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    return make_studio(tmp_path_factory.getbasetemp() / "studio")


@pytest.fixture(scope="module")
def plot():
    return load_script("plot_latent.py")


@pytest.fixture
def copy(studio, tmp_path):
    """Copy a folder of the studio, without its figures."""

    def copy(latent_dim):
        ignore = shutil.ignore_patterns("figures", "backup.npz")
        return shutil.copytree(studio[latent_dim], tmp_path / "copy", ignore=ignore)

    return copy


@pytest.fixture
def run(plot, monkeypatch, capsys):
    """Run main() in a folder; return exit code, output and message; stderr is empty."""

    def run(folder, **settings):
        monkeypatch.chdir(folder)
        for name, value in {**SETTINGS, **SMALL, **settings}.items():
            monkeypatch.setattr(plot, name, value)
        code = message = None
        try:
            plot.main()
        except SystemExit as stop:
            code, message = 1, stop.code
        output, errors = capsys.readouterr()
        assert errors == ""
        return code or 0, output, message

    return run


def names_in(folder):
    return {path.name for path in (folder / "figures").iterdir()}


# ----------------------------------------------------------------------------
# images.csv
# ----------------------------------------------------------------------------
TEXTS = (
    r"$\frac$", "A$AP", "_private", "two\nlines", "gym 💪", "ボディビル", "W" * 200,
    "$x$ $y", "\\", "%s {x}", "<script>", "&amp;", "</script>", "'\"",
)  # fmt: skip


def test_any_text_in_a_legend(plot, copy, run, recwarn):
    folder = copy(2)
    add_column(folder, "keyword", [TEXTS[row // 2 % 9] for row in range(120)])
    code, output, _ = run(folder)
    assert code == 0 and "coloured by keyword," in output
    assert names_in(folder) == FIGURES - NOT_OF_TWO
    assert len(recwarn) == 0
    legend = [text for text, _ in read_page(folder)["color"]["legend"]]
    assert {"_private", "two lines", r"$\frac$", "ボディビル", "gym 💪"} <= set(legend)
    assert max(map(len, legend)) == 24
    add_column(folder, "a $x_{ b", [TEXTS[5 + row // 2 % 9] for row in range(120)])
    code, output, _ = run(folder)
    assert code == 0 and "coloured by a $x_{ b," in output
    text = (folder / "figures/latent_space.html").read_text(encoding="utf-8")
    assert text.count("</script>") == plot.PAGE.count("</script>")


def test_texts_in_a_legend_are_seen(copy, run):
    """A name that begins with _ and one with $ are written as they are."""
    folder = copy(2)
    heights = []
    for names in (("_" * 9, "$a$"), ("", "")):
        add_column(folder, "keyword", [names[row // 2 % 2] for row in range(120)])
        assert run(folder, COLOR_BY="keyword")[0] == 0
        with Image.open(folder / "figures/latent_map.png") as picture:
            heights.append((np.asarray(picture.convert("L"))[1200:] < 128).sum())
    assert heights[0] > heights[1] > 100


@pytest.mark.parametrize("cell", ["", "nan", "inf", "None", "1e999"])
def test_empty_cells_and_what_is_no_number(copy, run, cell):
    folder = copy(2)
    values = [cell if row % 3 == 0 else str(row // 6) for row in range(120)]
    add_column(folder, "label", values)
    code, output, _ = run(folder)
    assert code == 0 and "coloured by label," in output
    data = read_page(folder)
    assert data["color"]["kind"] == ("numbers" if cell == "" else "names")
    dots = data["dots"]
    assert dots[0][3] == cell
    if cell == "":
        assert dots[0][2] == dots[3][2] == "#999999"


def test_a_table_without_colours_asks_for_preprocess(copy, run):
    folder = copy(2)
    index = []
    for row in read_index(folder):
        names = ("row", "file", "mirrored", "left", "top", "width", "height")
        index.append({name: row[name] for name in (*names, "images_id")})
    write_index(folder / "data/images.csv", index)
    code, output, _ = run(folder)
    assert code == 0 and "coloured by nothing," in output
    assert (
        "Grey dots: images.csv tells nothing more. Run preprocess.py again." in output
    )
    assert {dot[2] for dot in read_page(folder)["dots"]} == {"#999999"}


def test_a_byte_order_mark_is_no_part_of_a_name(copy, run):
    folder = copy(2)
    index = []
    for row in read_index(folder):
        index.append({"people": row["people"], **row})  # the first column
    write_index(folder / "data/images.csv", index, "utf-8-sig")
    text = (folder / "data/images.csv").read_bytes()
    assert text.startswith(b"\xef\xbb\xbfpeople,")
    code, output, _ = run(folder, COLOR_BY="people")
    assert code == 0 and "coloured by people," in output


@pytest.mark.parametrize(
    "change", ["missing", "no file", "short", "another", "empty", "binary", "long cell"]
)
def test_an_unusable_table_costs_the_colours_only(copy, run, change):
    folder = copy(2)
    path = folder / "data/images.csv"
    index = read_index(folder)
    if change == "missing":
        path.unlink()
    elif change == "no file":
        write_index(path, [{"row": 0, "images_id": row["images_id"]} for row in index])
    elif change == "short":
        write_index(path, index[:-1])
    elif change == "another":
        write_index(path, [{**row, "images_id": "0" * 16} for row in index])
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "binary":
        path.write_bytes(bytes(range(256)) * 9)
    else:
        write_index(path, [{**row, "people": "x" * 200_000} for row in index])
    code, output, _ = run(folder, COLOR_BY="people")
    assert code == 0 and f"Drawing without {path}: " in output
    assert "Run preprocess.py again" in output and "coloured by nothing," in output
    assert names_in(folder) == FIGURES - NOT_OF_TWO
    code, output, _ = run(folder, MORPH_PATH=["000001.jpg", "000002.jpg"])
    assert code == 0 and "Left out morph.gif: MORPH_PATH needs" in output


def test_rows_of_other_lengths(copy, run):
    folder = copy(2)
    path = folder / "data/images.csv"
    lines = path.read_text().splitlines()
    place = lines[0].split(",").index("images_id") + 1
    lines[3] = ",".join(lines[3].split(",")[:place])  # a spreadsheet cut it
    lines[4] += ",more,and more"
    path.write_text("\n".join(lines) + "\n")
    code, output, _ = run(folder, COLOR_BY="people")
    assert code == 0 and "coloured by people," in output
    assert read_page(folder)["dots"][2][3] == ""


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_with_accents_are_found_in_both_ways_to_write_them(copy, run, form):
    folder = copy(2)
    index = read_index(folder)
    other = "NFD" if form == "NFC" else "NFC"
    index[8]["file"] = unicodedata.normalize(form, "cafés/é.jpg")
    write_index(folder / "data/images.csv", index)
    name = unicodedata.normalize(other, "cafés/é.jpg")
    assert run(folder, MORPH_PATH=[name, index[30]["file"]])[0] == 0
    frames = read_gif(folder / "figures/morph.gif")
    assert nearest(frames, decode(folder, encode(folder, [8, 30]))).max() < 6


# ----------------------------------------------------------------------------
# The array
# ----------------------------------------------------------------------------
@pytest.mark.parametrize("change", ["array", "empty", "text", "summary"])
def test_with_a_changed_array(copy, run, change):
    folder = copy(2)
    array = folder / "data/images.npy"
    if change == "array":
        images = np.load(array)
        images[0, 0, 0, 0] ^= 1
        np.save(array, images)
    elif change == "empty":
        array.write_bytes(b"")
    elif change == "text":
        array.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': [[[, " + b" " * 200)
    else:
        (folder / "model/summary.json").write_text('{"model_id": "00000000"}')
    code, output, _ = run(folder, MORPH_PATH=["000001.jpg", "000002.jpg"])
    assert code == 0 and "Left out latent_map.png: " in output
    assert "Left out morph.gif: " in output
    assert names_in(folder) == FIGURES - NOT_OF_TWO - {"latent_map.png", "morph.gif"}


def test_an_array_of_another_size(copy, run):
    folder = copy(2)
    np.save(folder / "data/images.npy", np.zeros((40, 28, 28, 1), np.uint8))
    code, _, message = run(folder)
    assert code == 1 and "(28, 28, 1)" in message and "(32, 32, 3)" in message
    assert "train_vae.py" in message and str(folder / "data/images.npy") in message


def test_the_table_stands_beside_a_link_to_the_array(copy, run):
    folder = copy(2)
    (folder / "disk").mkdir()
    shutil.move(folder / "data/images.npy", folder / "disk/other.npy")
    (folder / "data/images.npy").symlink_to(folder / "disk/other.npy")
    code, output, _ = run(folder)
    assert code == 0 and "coloured by people," in output


# ----------------------------------------------------------------------------
# summary.json
# ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", "", "7", '"x"', "[" * 100_000, "missing"]
)
def test_a_summary_that_tells_nothing(copy, run, text):
    folder = copy(2)
    path = folder / "model/summary.json"
    path.write_text(text)
    if text == "missing":
        path.unlink()
    code, output, _ = run(folder)
    assert code == 0 and f"Drawing without {path}: " in output
    assert "Run train_vae.py again." in output
    assert names_in(folder) == FIGURES - NOT_OF_TWO - {"latent_map.png"}


@pytest.mark.parametrize("value", [None, [], "x", {"num_train": "many"}, 7])
@pytest.mark.parametrize("key", ["settings", "figures", "kl_weights"])
def test_a_summary_that_lacks_keys(copy, run, key, value):
    folder = copy(3)
    change_summary(folder, **{key: value})
    code, output, _ = run(folder)
    assert code == 0
    expected = FIGURES
    if key == "settings":
        expected = FIGURES - {"latent_map.png"}
        assert "summary.json does not tell of which array the model is" in output
    assert names_in(folder) == expected


# ----------------------------------------------------------------------------
# The models
# ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_is_not_finite(studio, copy, run, name, value):
    folder = copy(2)
    shutil.copytree(studio[2] / "figures", folder / "figures")
    before = {path: path.read_bytes() for path in (folder / "figures").iterdir()}
    model = load(folder, name)
    weights = model.get_weights()
    weights[0].flat[0] = value
    model.set_weights(weights)
    model.save(folder / f"model/{name}.keras")
    code, _, message = run(folder)
    assert code == 1 and "the model is not finite" in message
    assert f"{name}.keras" in message and str(folder / "model") in message
    after = {path: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert after == before


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_finite_weights_that_overflow(copy, run, name):
    folder = copy(2)
    model = load(folder, name)
    signs = np.random.default_rng(0)
    weights = []
    for weight in model.get_weights():
        weights.append(3e38 * signs.choice([-1, 1], weight.shape))
    model.set_weights(weights)
    model.save(folder / f"model/{name}.keras")
    code, _, message = run(folder)
    assert code == 1 and "model is not finite" in message
    assert not (folder / "figures/latent_map.png").exists()


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_codes_that_are_all_equal(copy, run, latent_dim):
    folder = copy(latent_dim)
    encoder = load(folder, "encoder")
    encoder.set_weights([weight * 0 for weight in encoder.get_weights()])
    encoder.save(folder / "model/encoder.keras")
    code, output, _ = run(folder)
    assert code == 0 and "All codes are the same along z[0]" in output
    assert names_in(folder) >= FIGURES - NOT_OF_TWO
    for low, high in read_page(folder)["bounds"]:
        assert 3 < high - low < 8
    change_summary(folder, kl_weights=None)
    assert run(folder)[0] == 0


def test_another_model_is_no_pair(studio, copy, run):
    folder = copy(3)
    shutil.copy(studio[2] / "model/decoder.keras", folder / "model/decoder.keras")
    code, _, message = run(folder)
    assert code == 1 and "do not belong together" in message
    assert "train_vae.py" in message and str(folder / "model") in message
    assert not (folder / "figures").exists()


def test_a_pair_of_two_trainings_is_no_pair(copy, run):
    folder = copy(2)
    decoder = load(folder, "decoder")
    decoder.name = "decoder_00000000"
    decoder.save(folder / "model/decoder.keras")
    code, _, message = run(folder)
    assert code == 1 and "decoder_00000000 do not belong together" in message


@pytest.mark.parametrize(
    ("latent_dim", "shape", "words"),
    [
        (2, (32, 28, 3), "pictures are 32 x 28 x 3, expected a square of 1 or 3"),
        (2, (32, 32, 2), "pictures are 32 x 32 x 2, expected a square of 1 or 3"),
        (2, (1024,), "pictures have the shape (1024,)"),
        (1, (32, 32, 3), "it has one latent, expected 2 or more (LATENT_DIM)"),
    ],
)
def test_models_of_another_kind(tmp_path, run, latent_dim, shape, words):
    images, z = keras.Input(shape), keras.Input((latent_dim,))
    flat = keras.layers.Flatten()(images)
    code = [keras.layers.Dense(latent_dim)(flat) for _ in range(2)]
    pixels = keras.layers.Dense(math.prod(shape), activation="sigmoid")(z)
    pictures = keras.layers.Reshape(shape)(pixels)
    (tmp_path / "model").mkdir()
    keras.Model(images, code, name="encoder_x").save(tmp_path / "model/encoder.keras")
    keras.Model(z, pictures, name="decoder_x").save(tmp_path / "model/decoder.keras")
    code, _, message = run(tmp_path)
    assert code == 1 and words in message and "train_vae.py" in message
    assert not (tmp_path / "figures").exists()


def test_a_damaged_model(copy, run):
    folder = copy(2)
    (folder / "model/decoder.keras").write_bytes(b"of another version")
    code, _, message = run(folder)
    assert (
        code == 1 and f"Keras {keras.__version__} cannot read decoder.keras" in message
    )


def test_a_model_of_another_keras_names_its_version_and_the_reason(copy, run):
    folder = copy(2)
    path = folder / "model/decoder.keras"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["metadata.json"] = b'{"keras_version": "9.8.7"}'
    config = json.loads(files["config.json"])
    config["config"]["layers"][-1]["config"]["a_new_option"] = True
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    code, _, message = run(folder)
    assert code == 1 and "written by Keras 9.8.7" in message
    assert f"Keras {keras.__version__} cannot read decoder.keras" in message
    assert "a_new_option" in message and len(message) < 900 and "\n" not in message


@pytest.mark.slow
def test_no_model_ends_with_a_message_and_no_traceback(tmp_path):
    result = run_script("plot_latent.py", tmp_path, **SETTINGS)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert str(tmp_path / "model") in result.stderr
    assert "encoder.keras" in result.stderr and "train_vae.py" in result.stderr
    assert not (tmp_path / "figures").exists()


# ----------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"GRID_SIZE": 1}, "GRID_SIZE = 1: expected a whole number from 2 to 40"),
        ({"GRID_SIZE": 15.0}, "GRID_SIZE = 15.0: expected a whole number from 2 to 40"),
        ({"MODEL_DIR": None}, "MODEL_DIR = None: expected a path in quotes"),
        ({"FIGURE_DIR": ""}, "FIGURE_DIR = '': expected a path in quotes"),
        ({"QUANTILES": 0.05}, "QUANTILES = 0.05: expected two"),
        ({"QUANTILES": (0.9, 0.1)}, "QUANTILES = (0.9, 0.1)"),
        ({"QUANTILES": (0, 1)}, "QUANTILES = (0, 1)"),
        ({"QUANTILES": (float("nan"), 0.5)}, "QUANTILES = (nan, 0.5)"),
        ({"COLOR_BY": 7}, "COLOR_BY = 7: expected None or"),
        ({"MORPH_PATH": "circle"}, "MORPH_PATH = 'circle': expected"),
        ({"MORPH_PATH": []}, "MORPH_PATH = []: expected"),
        ({"MORPH_PATH": ["000001.jpg"]}, "MORPH_PATH = ['000001.jpg']: expected"),
        ({"MORPH_PATH": ["000001.jpg", 2]}, "MORPH_PATH = ['000001.jpg', 2]: expected"),
        ({"MORPH_PATH": ["000001.jpg", "no.jpg"]}, "where 'no.jpg' is not"),
        ({"COLOR_BY": "age"}, "COLOR_BY = 'age': expected None or one of ['people'"),
    ],
)
def test_bad_settings(copy, run, settings, words):
    folder = copy(2)
    code, _, message = run(folder, **settings)
    assert code == 1 and words in message
    assert "Edit it at the top of plot_latent.py." in message
    assert not (folder / "figures").exists()


@pytest.mark.parametrize("quantiles", [(1e-300, 0.5), (0.5, 1 - 1e-16), (5e-324, 0.9)])
def test_quantiles_far_out(copy, run, quantiles):
    folder = copy(2)
    assert run(folder, QUANTILES=quantiles, GRID_SIZE=3)[0] == 0
    assert names_in(folder) == FIGURES - NOT_OF_TWO
    for low, high in read_page(folder)["bounds"]:
        assert high - low < 12  # the explorer shows where the codes are


# ----------------------------------------------------------------------------
# Figures that fail or are left out
# ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("an odd one"), "RuntimeError: an odd one"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_figure_that_fails_leaves_the_earlier_one_and_the_others(
    copy, run, monkeypatch, error, words
):
    save = matplotlib.figure.Figure.savefig

    def fail(figure, path, *args, **kwargs):
        if "latent_map" not in str(path):
            return save(figure, path, *args, **kwargs)
        Path(path).write_bytes(b"half of it")
        raise error

    folder = copy(2)
    (folder / "figures").mkdir()
    (folder / "figures/latent_map.png").write_bytes(b"earlier")
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    code, output, message = run(folder)
    assert code == 1 and f"Cannot draw latent_map.png ({words}" in message
    assert str(folder / "figures") in message
    assert (folder / "figures/latent_map.png").read_bytes() == b"earlier"
    assert names_in(folder) == FIGURES - NOT_OF_TWO  # and no temporary one
    assert "Wrote figures/latent_space.html" in output


def test_a_figure_of_another_model_is_removed_when_it_is_left_out(studio, copy, run):
    folder = copy(2)
    shutil.copytree(studio[3] / "figures", folder / "figures")
    (folder / "figures/traversals.png").write_bytes(b"damaged")  # of none, for all
    (folder / "data/images.npy").unlink()
    code, output, _ = run(folder)
    assert code == 0
    assert names_in(folder) == FIGURES - NOT_OF_TWO - {"latent_map.png"}
    removed = "The one that was there, of another model, is removed."
    assert output.count(removed) == 2


def test_a_figure_of_the_same_model_stays_and_is_named(studio, copy, run):
    folder = copy(2)
    shutil.copytree(studio[2] / "figures", folder / "figures")
    before = (folder / "figures/latent_map.png").read_bytes()
    (folder / "data/images.npy").unlink()
    code, output, _ = run(folder)
    assert code == 0 and "is of this model, of an earlier run" in output
    assert (folder / "figures/latent_map.png").read_bytes() == before


@pytest.mark.slow
def test_the_folder_of_the_figures_is_a_file(copy):
    folder = copy(2)
    (folder / "figures").write_text("a file")
    result = run_script("plot_latent.py", folder, **SETTINGS)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert str(folder / "figures") in result.stderr


# ----------------------------------------------------------------------------
# The machine: Keras, matplotlib, stdout, Ctrl-C
# ----------------------------------------------------------------------------
def start(folder, prefix="", environment=None, **settings):
    """Run a copy of the script in a shell, with text before its command."""
    script = copy_script("plot_latent.py", folder, **{**SETTINGS, **SMALL, **settings})
    command = prefix.replace("RUN", f"{sys.executable} {script.name}")
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_is_set_otherwise(copy, tmp_path, backend):
    folder = copy(2)
    home = tmp_path / "keras"
    home.mkdir()
    options = {"floatx": "float16", "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps({**options, "backend": backend}))
    environment = {"KERAS_HOME": str(home), "KERAS_BACKEND": backend}
    result = start(folder, "RUN", environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert names_in(folder) == FIGURES - NOT_OF_TWO


@pytest.mark.slow
def test_a_matplotlibrc_of_another_taste(copy, studio, tmp_path):
    folder = copy(2)
    text = "text.usetex: True\naxes.facecolor: black\nfont.family: No Such Font\n"
    text += "figure.facecolor: black\nsavefig.dpi: 20\naxes.unicode_minus: False\n"
    (folder / "matplotlibrc").write_text(text)
    result = start(folder, "RUN", {}, GRID_SIZE=15)
    assert (result.returncode, result.stderr) == (0, "")
    with (
        Image.open(folder / "figures/latent_map.png") as ours,
        Image.open(studio[2] / "figures/latent_map.png") as usual,
    ):
        np.testing.assert_array_equal(ours, usual)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("RUN > /dev/full", "Cannot write to stdout: No space left on device"),
        ("RUN >&-", ""),
        ("RUN 2>&-", ""),
        ("set -o pipefail; RUN | head -n 1", None),
    ],
)
def test_stdout_is_full_or_closed(copy, shell, words):
    folder = copy(2)
    result = start(folder, shell)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    if words:
        assert result.returncode == 1 and words in result.stderr
        assert str(folder) not in result.stderr
    elif words == "":
        assert (result.returncode, result.stderr) == (0, "")
        assert names_in(folder) == FIGURES - NOT_OF_TWO
    else:
        assert len(result.stderr.splitlines()) <= 1


@pytest.mark.slow
def test_run_in_a_notebook(copy):
    """As %run does it, with a stdout that cannot be reconfigured."""
    folder = copy(2)
    script = copy_script("plot_latent.py", folder, **{**SETTINGS, **SMALL})
    code = f"""
import io, runpy, sys
class Output(io.TextIOBase):
    def write(self, text):
        return len(text)
sys.stdout = Output()
runpy.run_path({script.name!r}, run_name="__main__")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert names_in(folder) == FIGURES - NOT_OF_TWO


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_ends_with_130_and_whole_files(copy):
    folder = copy(2)
    moment = signal_at(folder, signal.SIGINT, "os.rename", "latent_map.png")
    result = run_script("plot_latent.py", folder, environment=moment, **SETTINGS)
    assert result.returncode == 130 and "Run again" in result.stderr
    assert "Traceback" not in result.stderr
    names = names_in(folder)
    assert names < FIGURES - {"latent_space.html"}  # that one comes last
    for name in names:
        if name.endswith((".png", ".gif")):
            Image.open(folder / "figures" / name).load()
