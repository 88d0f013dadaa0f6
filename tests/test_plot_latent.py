"""plot_latent.py on models that train_vae.py has made, and its messages."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.stats
from conftest import copy_script, load_script, run_script
from PIL import Image

FIGURES = {
    "latent_grid.png",
    "latent_map.png",
    "latent_space.html",
    "morph.gif",
    "traversals.png",
}
PPF = scipy.stats.norm.ppf(np.linspace(0.05, 0.95, 15))


@functools.cache  # so that test_explorer.py shares it
def make_studio(studio):
    """Draw athletes, train a model of 2 and one of 3 latents and plot both.

    Args:
        studio: a folder to be made.

    Returns:
        {2: folder, 3: folder}, with the output of the plotting in output.txt.
    """
    folder = studio / "2"
    folder.mkdir(parents=True)
    edits = {"NUM_IMAGES": 60, "IMAGE_SIZE": 64, "SEED": 0, "OUT_DIR": "data/raw"}
    assert run_script("tests/draw_athletes.py", folder, **edits).returncode == 0
    edits = {"INPUT": "data/raw", "OUTPUT_FILE": "data/images.npy", "MIRROR": True}
    edits |= {"IMAGE_SIZE": 32, "COLOR": "rgb", "FIGURE_DIR": "other", "SEED": 0}
    assert run_script("preprocess.py", folder, MIN_SIDE=32, **edits).returncode == 0
    folders = {2: folder, 3: folder.with_name("3")}
    shutil.copytree(folder, folders[3])
    for latent_dim, folder in folders.items():
        edits = {"INPUT_FILE": "data/images.npy", "MODEL_DIR": "model", "EPOCHS": 20}
        edits |= {"FIGURE_DIR": "other", "LATENT_DIM": latent_dim, "BATCH_SIZE": 16}
        edits |= {"KL_WEIGHT": 5e-5, "FILTERS": (16, 32), "SEED": 0}
        result = run_script("train_vae.py", folder, VALIDATION_IMAGES=6, **edits)
        assert result.returncode == 0
        result = run_script("plot_latent.py", folder, **SETTINGS)
        assert (result.returncode, result.stderr) == (0, "")
        (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folders


SETTINGS = {
    "INPUT_FILE": "data/images.npy",
    "RAW_DIR": "data/raw",
    "MODEL_DIR": "model",
    "FIGURE_DIR": "figures",
    "GRID_SIZE": 15,
    "QUANTILES": (0.05, 0.95),
    "COLOR_BY": None,
    "MORPH_PATH": "loop",
}


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
    """Run main() in a folder with settings; return exit code, output and message."""

    def run(folder, **settings):
        monkeypatch.chdir(folder)
        for name, value in {**SETTINGS, **settings}.items():
            monkeypatch.setattr(plot, name, value)
        code = message = None
        try:
            plot.main()
        except SystemExit as stop:
            code, message = 1, stop.code
        return code or 0, capsys.readouterr().out, message

    return run


def load(folder, name):
    return keras.saving.load_model(folder / "model" / f"{name}.keras", compile=False)


def encode(folder, rows=slice(None)):
    images = np.load(folder / "data/images.npy")[rows]
    return np.asarray(load(folder, "encoder")(images / np.float32(255))[0])


def decode(folder, codes):
    images = np.asarray(load(folder, "decoder")(np.asarray(codes, np.float32)))
    return np.rint(images * 255).astype(int)


def principal_plane(codes):
    """Return center and axes (2, L) by another way than the script's."""
    values, vectors = np.linalg.eigh(np.cov(codes.T, bias=True))
    axes = vectors.T[::-1][:2]
    axes *= np.sign([axis[np.abs(axis).argmax()] for axis in axes])[:, None]
    return codes.mean(axis=0), axes * np.sqrt(values[::-1][:2])[:, None]


def read_gif(path):
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0 and gif.info["duration"] == 50
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")).astype(float))
    return np.stack(frames)


def check_steps(frames):
    """No step, nor that from the last frame to the first, is much above the median."""
    steps = np.square(frames - np.roll(frames, 1, axis=0)).mean(axis=(1, 2, 3)) ** 0.5
    assert steps.max() < 3 * np.median(steps) and np.median(steps) > 0.1


def nearest(frames, images):
    """Return the smallest root mean square between any frame and each image."""
    side = images.shape[1]
    small = [
        np.asarray(Image.fromarray(frame.astype(np.uint8)).resize((side, side), 4))
        for frame in frames
    ]
    gaps = np.array(small)[:, None].astype(float) - images
    return np.square(gaps).mean(axis=(2, 3, 4)).min(axis=0) ** 0.5


def crop_tiles(path, rows, columns, tile):
    """Cut the tiles out of a figure with a margin of 7/4 tiles left and 1 below."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    left, end = tile * 7 // 4, tile // 4
    shape = (rows * tile + tile + end, columns * tile + left + end, 3)
    assert picture.shape == shape
    picture = picture[end : end + rows * tile, left : left + columns * tile]
    return picture.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)


def test_all_figures_are_written_and_named(studio):
    for folder in studio.values():
        assert {path.name for path in (folder / "figures").iterdir()} == FIGURES
        output = (folder / "output.txt").read_text(encoding="utf-8")
        named = re.findall(r"^Wrote figures.(\S+) \((.*) MB\) in .* s$", output, re.M)
        assert {name for name, _ in named} == FIGURES
        for name, text in named:
            assert ("decoded pictures" in text) == (name != "latent_map.png")
    assert "codes of 120 images, coloured by people" in output


def test_grid_holds_the_decoded_quantiles(studio):
    tiles = crop_tiles(studio[2] / "figures/latent_grid.png", 15, 15, 128)
    x, y = np.meshgrid(PPF, PPF[::-1])
    wanted = decode(studio[2], np.stack([x, y], axis=-1).reshape(-1, 2))
    wanted = wanted.reshape(15, 15, 32, 32, 3)
    assert np.abs(tiles[:, :, ::4, ::4] - wanted).max() <= 1
    crisp = wanted.repeat(4, axis=2).repeat(4, axis=3)
    assert np.abs(tiles - crisp).max() <= 1
    assert np.abs(wanted[0] - wanted[-1]).mean() > 1  # or up and down were the same
    assert np.abs(wanted[:, 0] - wanted[:, -1]).mean() > 1


def test_grid_size_quantiles_and_print_resolution(copy, run):
    folder = copy(2)
    assert run(folder, GRID_SIZE=3, QUANTILES=(0.2, 0.7))[0] == 0
    path = folder / "figures/latent_grid.png"
    x, y = np.meshgrid(*[scipy.stats.norm.ppf([0.2, 0.45, 0.7])] * 2)
    wanted = decode(folder, np.stack([x, y[::-1]], axis=-1).reshape(-1, 2))
    tiles = crop_tiles(path, 3, 3, 128)[:, :, ::4, ::4]
    assert np.abs(tiles - wanted.reshape(3, 3, 32, 32, 3)).max() <= 1
    with Image.open(path) as picture:
        assert np.allclose(picture.info["dpi"], 300, atol=0.1)


def test_grid_of_three_latents_is_the_principal_plane(studio):
    tiles = crop_tiles(studio[3] / "figures/latent_grid.png", 15, 15, 128)
    center, axes = principal_plane(encode(studio[3]))
    for row, column in ((0, 0), (0, 14), (7, 7), (14, 0), (14, 14)):
        code = center + PPF[column] * axes[0] + PPF[14 - row] * axes[1]
        wanted = decode(studio[3], code[None])[0]
        assert np.abs(tiles[row, column, ::4, ::4] - wanted).max() <= 2


def test_grid_decodes_each_ppf_code_once_in_batches(plot, studio, tmp_path):
    decoder, calls = load(studio[2], "decoder"), []
    predict = decoder.predict_on_batch

    def count(codes):
        calls.append(codes)
        return predict(codes)

    decoder.predict_on_batch = count
    positions = scipy.stats.norm.ppf(np.linspace(0.1, 0.9, 9))
    plane = plot.Plane(None, np.ones(2))
    plot.plot_grid(tmp_path / "grid.png", decoder, plane, positions)
    assert len(calls) == 9 * 2  # a row is a batch of 8 and one of the rest
    codes = np.concatenate(calls).reshape(9, 9, 2)
    assert (
        np.ptp(codes[..., 0], axis=0).max() == np.ptp(codes[..., 1], axis=1).max() == 0
    )
    np.testing.assert_allclose(codes[0, :, 0], positions, atol=1e-6)
    np.testing.assert_allclose(codes[:, 0, 1], positions[::-1], atol=1e-6)
    np.testing.assert_allclose(codes[4, 4], 0, atol=1e-6)


def test_grey_pictures_of_any_size(plot, tmp_path):
    z = keras.Input((2,))
    x = keras.layers.Dense(28 * 28, activation="sigmoid")(z)
    decoder = keras.Model(z, keras.layers.Reshape((28, 28, 1))(x))
    plane = plot.Plane(None, np.ones(2))
    plot.plot_grid(tmp_path / "grid.png", decoder, plane, np.array([-1.0, 1.0]))
    tiles = crop_tiles(tmp_path / "grid.png", 2, 2, 112)
    codes = np.array([[-1, 1], [1, 1], [-1, -1], [1, -1]], np.float32)
    wanted = np.rint(np.asarray(decoder(codes)) * 255).reshape(2, 2, 28, 28, 1)
    assert np.abs(tiles[:, :, ::4, ::4] - wanted).max() <= 1
    plot.write_morph(tmp_path / "morph.gif", decoder, codes)
    assert read_gif(tmp_path / "morph.gif").shape == (4, 224, 224, 3)


def test_signs_of_the_axes_are_fixed(plot):
    codes = np.random.default_rng(0).normal(size=(500, 4)) * [1, 3, 0.5, 2] + 1
    plane = plot.Plane(codes, np.ones(4))
    other = plot.Plane(codes[::-1], np.ones(4))
    np.testing.assert_allclose(plane.axes, other.axes, atol=1e-9)
    assert plane.axes[0].argmax() == 1 and plane.axes[1].argmax() == 3
    positions = np.array([[0, 0], [1, -2]])
    np.testing.assert_allclose(plane.project(plane.locate(positions)), positions)
    np.testing.assert_allclose(plane.project(codes).std(axis=0), 1)


def test_traversals_are_ordered_by_kl(studio):
    summary = json.loads((studio[3] / "model/summary.json").read_text())
    order = np.argsort(summary["figures"]["kl_per_latent"])[::-1]
    tiles = crop_tiles(studio[3] / "figures/traversals.png", 3, 11, 128)
    for row, latent in enumerate(order):
        codes = np.zeros((11, 3))
        codes[:, latent] = np.arange(-5, 6) / 2
        wanted = decode(studio[3], codes)
        assert np.abs(tiles[row, :, ::4, ::4] - wanted).max() <= 1


def test_traversals_put_the_largest_kl_on_top_whatever_its_number(
    plot, studio, tmp_path
):
    decoder = load(studio[3], "decoder")
    plot.plot_traversals(tmp_path / "t.png", decoder, np.array([1.0, 3.0, 2.0]))
    tiles = crop_tiles(tmp_path / "t.png", 3, 11, 128)
    for row, latent in enumerate((1, 2, 0)):
        wanted = decode(studio[3], 2.5 * np.eye(3)[[latent]])[0]
        assert np.abs(tiles[row, -1, ::4, ::4] - wanted).max() <= 1


def test_traversals_mark_what_carries_nothing(plot, studio, tmp_path):
    decoder, margins = load(studio[3], "decoder"), []
    for nats in (0.03, 0.02, 0.001, np.nan):
        plot.plot_traversals(tmp_path / "t.png", decoder, np.array([1, 2, nats]))
        picture = np.asarray(Image.open(tmp_path / "t.png").convert("L"))
        margins.append((picture[32:-128, :224] < 128).reshape(3, 128, -1).sum((1, 2)))
    marked = margins[2] - margins[1]
    assert marked[2] > 100 and (marked[:2] == 0).all()
    assert abs(margins[1] - margins[0]).max() < 100  # only a digit
    assert margins[3][2] < margins[0][2]  # no number where nothing is known


def test_a_walk_has_visibly_equal_steps(plot):
    z = keras.Input((2,))  # grey pictures that change near 0 only
    x = keras.layers.Lambda(lambda z: keras.ops.sigmoid(5 * z[:, :1]))(z)
    decoder = keras.Model(z, keras.layers.Reshape((1, 1, 1))(x))
    walk = plot.follow(decoder, np.array([[-3.0, 0.0], [3.0, 0.0]]), 40)
    grey = plot.decode(decoder, walk).ravel().astype(int)
    steps = np.abs(grey - np.roll(grey, 1))
    assert len(walk) == 40 and steps.max() < 25  # of 255; equal in z: 90


def test_loop_is_smooth_and_round(studio):
    frames = read_gif(studio[2] / "figures/morph.gif")
    assert len(frames) == 120
    check_steps(frames)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    codes = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.sqrt(np.log(4))
    assert nearest(frames, decode(studio[2], codes)).max() < 6


def test_columns_are_walked_down_and_up(plot, copy, run):
    folder = copy(2)
    stops = plot.choose_stops("columns", np.array([-1.0, 0.0, 1.0]))
    turns = [[-1, 1], [-1, -1], [0, -1], [0, 1], [1, 1], [1, -1]]
    assert stops.tolist() == turns
    assert run(folder, MORPH_PATH="columns", GRID_SIZE=9)[0] == 0
    frames = read_gif(folder / "figures/morph.gif")
    assert len(frames) == 81
    check_steps(frames)


def test_files_are_morphed_into_each_other(plot, copy, run, monkeypatch):
    folder = copy(3)
    index = (folder / "data/images.csv").read_text().splitlines()[1:]
    rows = [4, 30, 80]
    files = [index[row].split(",")[1] for row in rows]
    seen, follow = [], plot.follow
    monkeypatch.setattr(plot, "follow", lambda *x: seen.append(x[1]) or follow(*x))
    assert run(folder, MORPH_PATH=files)[0] == 0
    assert np.allclose(seen[0], encode(folder, rows), atol=1e-5)
    mirrors = encode(folder, [row + 1 for row in rows])
    assert not np.allclose(seen[0], mirrors, atol=1e-3)  # or this says nothing
    frames = read_gif(folder / "figures/morph.gif")
    assert len(frames) == 90
    check_steps(frames)
    assert nearest(frames, decode(folder, encode(folder, rows))).max() < 6


def test_noise_stays_below_the_limits(plot, tmp_path):
    z = keras.Input((2,))
    x = keras.layers.Dense(128 * 128 * 3, kernel_initializer="random_normal")(z)
    x = keras.layers.Activation("sigmoid")(keras.ops.sin(x * 300))
    decoder = keras.Model(z, keras.layers.Reshape((128, 128, 3))(x))
    codes = np.random.default_rng(0).normal(size=(200, 2))
    plot.write_morph(tmp_path / "morph.gif", decoder, codes)
    assert 2e6 < (tmp_path / "morph.gif").stat().st_size < 5e6
    page, plane = tmp_path / "page.html", plot.Plane(None, np.ones(2))
    plot.write_explorer(
        page, decoder, plane, PPF[[0, -1]], codes, np.ones((200, 4)), codes
    )
    assert 2e6 < page.stat().st_size < 6e6


def test_values_of_every_source(plot, tmp_path):
    files = ["a/1.jpg", "a/1.jpg", "b/2.jpg", "b/2.jpg"]
    index = [
        {"file": file, "mirrored": str(number % 2)} for number, file in enumerate(files)
    ]
    text = "file,people,shift\na/1.jpg,1,0.25\nb/2.jpg,2,-0.5\n"
    (tmp_path / "factors.csv").write_text(text)
    values = plot.read_values(tmp_path, index)
    assert values == {
        "folder": ["a", "a", "b", "b"],
        "people": ["1", "1", "2", "2"],
        "shift": ["0.25", "-0.25", "-0.5", "0.5"],
    }
    (tmp_path / "factors.csv").unlink()
    lines = [
        '{"file": "a/1.jpg", "keyword": "pose"}',
        '{"file": "b/2.jpg", "keyword": "gym"}',
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    values = plot.read_values(tmp_path, index)
    assert list(values) == ["keyword", "folder"]
    assert values["keyword"] == ["pose", "pose", "gym", "gym"]
    y_train, y_test = np.array([3, 4, 5]), np.array([[7], [8]])
    np.savez(tmp_path / "digits.npz", y_train=y_train, y_test=y_test)
    files = ["x_train[2]", "x_test[0]", "x_train[0]"]
    index = [{"file": file, "mirrored": "0"} for file in files]
    values = plot.read_values(tmp_path / "digits.npz", index)
    assert values == {"label": ["5", "7", "3"]}


def test_a_damaged_manifest_costs_the_colours_only(copy, run):
    folder = copy(2)
    (folder / "data/raw/manifest.jsonl").write_text('{"file": "000001.jp')
    code, output, _ = run(folder, GRID_SIZE=2)
    assert code == 0 and "coloured by nothing" in output
    assert f"Left out the colours: {folder / 'data/raw'} (RAW_DIR): " in output
    assert {path.name for path in (folder / "figures").iterdir()} == FIGURES


def test_colours_follow_the_values(plot):
    colors, legend = plot.paint(["10", "9", "10", "8"])
    assert list(legend) == ["8", "9", "10"]  # as numbers, not as words
    np.testing.assert_array_equal(colors[0], colors[2])
    np.testing.assert_array_equal(colors[3], legend["8"])
    colors, legend = plot.paint([str(number / 7) for number in range(100)])
    assert len(np.unique(colors, axis=0)) == 100 and len(legend) == 10
    np.testing.assert_array_equal(colors[-1], list(legend.values())[-1])


def test_map_changes_with_the_colours(copy, run):
    folder = copy(2)
    pictures = []
    for name in ("people", "shift"):
        code, output, _ = run(folder, COLOR_BY=name, GRID_SIZE=2)
        assert code == 0 and f"coloured by {name}," in output
        picture = Image.open(folder / "figures/latent_map.png").convert("RGB")
        pictures.append(np.asarray(picture)[100:-100, 100:1100].astype(int))
    colourful = [np.ptp(picture, axis=2) > 60 for picture in pictures]
    assert min(map(np.count_nonzero, colourful)) > 400
    assert (np.abs(pictures[0] - pictures[1]).max(axis=2) > 60).sum() > 300


def test_the_map_knows_which_rows_were_held_out(plot, copy, run, monkeypatch):
    folder, seen = copy(2), []
    monkeypatch.setattr(plot, "plot_map", lambda *values: seen.append(values) or "")
    run(folder)  # ends where the map would be written
    held_out = seen[0][4]
    settings = json.loads((folder / "model/summary.json").read_text())["settings"]
    assert held_out.tolist() == [row >= settings["num_train"] for row in range(120)]


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_without_the_array(copy, run, latent_dim):
    folder = copy(latent_dim)
    (folder / "data/images.npy").unlink()
    code, output, _ = run(folder)
    assert code == 0 and "Left out latent_map.png: " in output
    assert str(folder / "data/images.npy") in output
    written = {path.name for path in (folder / "figures").iterdir()}
    assert written == FIGURES - {"latent_map.png"}
    summary = json.loads((folder / "model/summary.json").read_text())
    first, second = np.argsort(summary["figures"]["kl_per_latent"])[::-1][:2]
    if latent_dim == 2:
        first, second = 0, 1
    code = np.zeros((1, latent_dim))
    code[0, [first, second]] = PPF[14], PPF[0]
    tiles = crop_tiles(folder / "figures/latent_grid.png", 15, 15, 128)
    wanted = decode(folder, code)[0]
    assert np.abs(tiles[14, 14, ::4, ::4] - wanted).max() <= 1


@pytest.mark.parametrize("change", ["array", "index", "empty", "summary"])
def test_with_a_changed_array(copy, run, change):
    folder = copy(2)
    array, index = folder / "data/images.npy", folder / "data/images.csv"
    if change == "array":
        images = np.load(array)
        images[0, 0, 0, 0] ^= 1
        np.save(array, images)
    elif change == "index":
        text = index.read_text()
        index.write_text(text.replace(text.split()[1][-16:], "0" * 16))
    elif change == "empty":
        array.write_bytes(b"")
    else:
        (folder / "model/summary.json").write_text('{"model_id": "00000000"}')
    code, output, _ = run(folder, MORPH_PATH=["000001.jpg", "000002.jpg"])
    assert code == 0 and "Left out latent_map.png and morph.gif: " in output
    written = {path.name for path in (folder / "figures").iterdir()}
    assert written == FIGURES - {"latent_map.png", "morph.gif"}


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


def test_a_damaged_model(copy, run):
    folder = copy(2)
    (folder / "model/decoder.keras").write_bytes(b"of another version")
    code, _, message = run(folder)
    assert (
        code == 1 and f"Keras {keras.__version__} cannot read decoder.keras" in message
    )


def test_an_array_of_another_size(copy, run):
    folder = copy(2)
    np.save(folder / "data/images.npy", np.zeros((40, 28, 28, 1), np.uint8))
    code, _, message = run(folder)
    assert code == 1 and "(28, 28, 1)" in message and "(32, 32, 3)" in message
    assert "train_vae.py" in message and str(folder / "data/images.npy") in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"GRID_SIZE": 1}, "GRID_SIZE = 1: expected 2 to 40"),
        ({"GRID_SIZE": 15.0}, "GRID_SIZE = 15.0: expected 2 to 40"),
        ({"RAW_DIR": None}, "expected texts"),
        ({"QUANTILES": 0.05}, "QUANTILES = 0.05: expected two"),
        ({"QUANTILES": (0.9, 0.1)}, "QUANTILES = (0.9, 0.1)"),
        ({"QUANTILES": (0, 1)}, "QUANTILES = (0, 1)"),
        ({"MORPH_PATH": "circle"}, "MORPH_PATH = 'circle': expected"),
        ({"MORPH_PATH": []}, "MORPH_PATH = []: expected"),
        ({"MORPH_PATH": ["000001.jpg"]}, "MORPH_PATH = ['000001.jpg']: expected"),
        ({"MORPH_PATH": ["000001.jpg", "no.jpg"]}, "MORPH_PATH: ['no.jpg'] not in"),
        ({"COLOR_BY": "age"}, "COLOR_BY = 'age': "),
    ],
)
def test_bad_settings(studio, run, settings, words):
    code, _, message = run(studio[2], **settings)
    assert code == 1 and words in message
    assert "Edit it at the top of plot_latent.py." in message


def test_a_figure_that_cannot_be_written_leaves_the_earlier_one(
    copy, run, plot, monkeypatch
):
    def fail(path, *values):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    folder = copy(2)
    (folder / "figures").mkdir()
    (folder / "figures/latent_grid.png").write_bytes(b"earlier")
    monkeypatch.setattr(plot, "plot_grid", fail)
    code, _, message = run(folder)
    assert code == 1 and "No space left on device" in message
    assert str(folder / "figures/latent_grid.png") in message
    (file,) = (folder / "figures").iterdir()  # no temporary one
    assert file.read_bytes() == b"earlier"


def test_ctrl_c_ends_with_130_and_whole_files(copy):
    folder = copy(2)
    script = copy_script("plot_latent.py", folder, **SETTINGS)
    process = subprocess.Popen(
        [sys.executable, "-u", script.name],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("Drawing decoder_") for line in lines)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130 and "run again" in message
    assert "Traceback" not in message
    figures = folder / "figures"
    names = {path.name for path in figures.iterdir()} if figures.exists() else set()
    assert names < FIGURES


def test_no_model_ends_with_a_message_and_no_traceback(tmp_path):
    result = run_script("plot_latent.py", tmp_path, **SETTINGS)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert str(tmp_path / "model") in result.stderr
    assert "encoder.keras" in result.stderr and "train_vae.py" in result.stderr
    assert not (tmp_path / "figures").exists()


def test_only_held_out_points_have_a_rim(plot, tmp_path):
    plane, colors = plot.Plane(None, np.ones(2)), np.tile([1.0, 0, 0, 1], (40, 1))
    points = np.stack([np.linspace(-3, 3, 40), np.full(40, -0.7)], axis=1)
    dark = []
    for count in (0, 20):
        held_out = np.arange(40) >= 40 - count
        drawn = points, held_out, colors, None, {}
        plot.plot_map(tmp_path / "map.png", plane, PPF[[0, -1]], *drawn)
        picture = Image.open(tmp_path / "map.png").convert("RGB")
        dark.append((np.asarray(picture.convert("L")) < 60).sum())
        picture = np.asarray(picture)
        y, x = np.nonzero(np.ptp(picture, axis=2) > 150)
        assert np.ptp(x) > 700 and np.ptp(y) < 30  # a level line below the centre
        assert 0.55 < y.mean() / len(picture) < 0.65
    assert dark[1] - dark[0] > 20 * 30
