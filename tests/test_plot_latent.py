"""plot_latent.py on models that train_vae.py has made: what the figures show."""

import base64
import csv
import functools
import io
import json
import re
import shutil

import keras
import matplotlib
import matplotlib.colors
import matplotlib.figure
import matplotlib.patches
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from conftest import load_script, run_script
from PIL import Image

FIGURES = {
    "latent_grid.jpg",
    "latent_grid.png",
    "latent_map.png",
    "latent_space.html",
    "morph.gif",
    "traversals.png",
}
NOT_OF_TWO = {"traversals.png"}  # the grid tells more
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
    # As many rows as were drawn: small as they are, two of them count as copies.
    edits |= {"IMAGE_SIZE": 32, "COLOR": "rgb", "FIGURE_DIR": "other", "SEED": 0}
    edits |= {"CHECKS": False}
    assert run_script("preprocess.py", folder, MIN_SIDE=32, **edits).returncode == 0
    folders = {2: folder, 3: folder.with_name("3")}
    shutil.copytree(folder, folders[3])
    for latent_dim, folder in folders.items():
        edits = {"INPUT_FILE": "data/images.npy", "MODEL_DIR": "model", "EPOCHS": 60}
        edits |= {"FIGURE_DIR": "other", "LATENT_DIM": latent_dim, "BATCH_SIZE": 16}
        edits |= {"KL_WEIGHT": 5e-5, "FILTERS": (16, 32), "SEED": 0}
        result = run_script("train_vae.py", folder, VALIDATION_IMAGES=6, **edits)
        assert result.returncode == 0
        change_summary(folder, kl_weights=[5e-5] * latent_dim)
        result = run_script("plot_latent.py", folder, **SETTINGS)
        assert (result.returncode, result.stderr) == (0, "")
        (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folders


def write_index(path, index, encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(index[0]))
        writer.writeheader()
        writer.writerows(index)


def read_index(folder):
    with open(folder / "data/images.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add_column(folder, name, values):
    """Give each row of images.csv a value of a new column, which comes first."""
    index = []
    for row, value in zip(read_index(folder), values, strict=True):
        known = {key: row[key] for key in ("row", "file", "mirrored", "images_id")}
        index.append({**known, name: value})
    write_index(folder / "data/images.csv", index)


def change_summary(folder, **values):
    """Set keys of summary.json; None takes one away."""
    path = folder / "model/summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        summary[name] = value
        if value is None:
            del summary[name]
    path.write_text(json.dumps(summary), encoding="utf-8")


SETTINGS = {
    "INPUT_FILE": "data/images.npy",
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


def training_codes(folder):
    settings = json.loads((folder / "model/summary.json").read_text())["settings"]
    return encode(folder, slice(settings["num_train"]))


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
    """Cut out the tiles of a figure with a margin of 1/4 tile above and right."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    end = tile // 4
    left = picture.shape[1] - end - columns * tile
    assert left > 0 and len(picture) > end + rows * tile
    picture = picture[end : end + rows * tile, left : left + columns * tile]
    return picture.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)


def test_all_figures_are_written_and_named(studio):
    for folder in studio.values():
        left_out = NOT_OF_TWO if folder == studio[2] else set()
        expected = FIGURES - left_out
        assert {path.name for path in (folder / "figures").iterdir()} == expected
        output = (folder / "output.txt").read_text(encoding="utf-8")
        named = re.findall(r"^Wrote figures.(\S+) \((.*) MB\) in .* s$", output, re.M)
        assert {name for name, _ in named} == expected - {"latent_grid.jpg"}
        assert output.count("latent_grid.jpg") == 1
        for name, text in named:
            assert ("decoded pictures" in text) == (name != "latent_map.png")
    assert "codes of 120 images, coloured by people" in output


def test_grid_holds_the_decoded_quantiles_of_the_codes(studio):
    tiles = crop_tiles(studio[2] / "figures/latent_grid.png", 15, 15, 128)
    codes = training_codes(studio[2])
    x, y = np.meshgrid(PPF, PPF[::-1])
    places = np.stack([x, y], axis=-1).reshape(-1, 2)
    assert np.abs(codes.mean(axis=0)).max() > 0.02  # or the prior's were the same
    wanted = decode(studio[2], codes.mean(axis=0) + codes.std(axis=0) * places)
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
    codes = training_codes(folder)
    places = np.stack([x, y[::-1]], axis=-1).reshape(-1, 2)
    wanted = decode(folder, codes.mean(axis=0) + codes.std(axis=0) * places)
    tiles = crop_tiles(path, 3, 3, 128)[:, :, ::4, ::4]
    assert np.abs(tiles - wanted.reshape(3, 3, 32, 32, 3)).max() <= 1
    with Image.open(path) as picture:
        assert np.allclose(picture.info["dpi"], 300, atol=0.1)
        large = picture.convert("RGB")
    with Image.open(folder / "figures/latent_grid.jpg") as picture:
        assert picture.size == large.size  # it is below 2000 pixels
        gap = np.subtract(picture, large, dtype=float)
        assert np.abs(gap).mean() < 3


def test_the_jpeg_of_the_grid_has_2000_pixels(studio):
    with (
        Image.open(studio[2] / "figures/latent_grid.jpg") as small,
        Image.open(studio[2] / "figures/latent_grid.png") as large,
    ):
        assert small.format == "JPEG" and max(small.size) == 2000 < max(large.size)
        gap = np.subtract(small, large.resize(small.size), dtype=float)
        assert np.abs(gap).mean() < 4


def test_the_plane_follows_codes_that_are_not_like_the_prior(copy, run):
    """As with a low KL_WEIGHT: the same models, but for a shift and scale of z."""
    folder = copy(2)
    before = crop_tiles_of_a_run(folder, run)
    shift, scale = np.array([4.8, -2.0], np.float32), np.array([3.4, 0.5], np.float32)
    encoder, decoder = load(folder, "encoder"), load(folder, "decoder")
    z_mean, z_log_var = encoder.outputs
    moved = keras.layers.Rescaling(scale, shift)(z_mean)
    keras.Model(encoder.input, [moved, z_log_var], name=encoder.name).save(
        folder / "model/encoder.keras"
    )
    z = keras.Input((2,))
    x = decoder(keras.layers.Rescaling(1 / scale, -shift / scale)(z))
    keras.Model(z, x, name=decoder.name).save(folder / "model/decoder.keras")
    after = crop_tiles_of_a_run(folder, run)
    assert np.abs(before - after).max() <= 2
    data = read_page(folder)
    codes = encode(folder)
    for axis in range(2):
        low, high = data["bounds"][axis]
        inside = (low <= codes[:, axis]) & (codes[:, axis] <= high)
        assert inside.mean() > 0.98 and high - low < 1.6 * np.ptp(codes[:, axis])
    walk = np.array(data["walk"])
    assert np.abs((walk - codes.mean(axis=0)) / codes.std(axis=0)).max() < 3


def crop_tiles_of_a_run(folder, run):
    assert run(folder, GRID_SIZE=3)[0] == 0
    return crop_tiles(folder / "figures/latent_grid.png", 3, 3, 128)


def read_page(folder):
    """Return the JSON of the page, which holds no NaN."""

    def refuse(text):
        raise AssertionError(text)

    text = (folder / "figures/latent_space.html").read_text(encoding="utf-8")
    text = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    return json.loads(text, parse_constant=refuse)


def test_grid_of_three_latents_is_the_slice_of_the_first_two(studio):
    tiles = crop_tiles(studio[3] / "figures/latent_grid.png", 15, 15, 128)
    codes = training_codes(studio[3])
    for row, column in ((0, 0), (0, 14), (7, 7), (14, 0), (14, 14)):
        code = codes.mean(axis=0)
        code[0] += PPF[column] * codes[:, 0].std()
        code[1] += PPF[14 - row] * codes[:, 1].std()
        wanted = decode(studio[3], code[None])[0]
        assert np.abs(tiles[row, column, ::4, ::4] - wanted).max() <= 2
    page = (studio[3] / "figures/latent_space.html").read_text(encoding="utf-8")
    assert "A slice: z[2] stays at the mean of its codes." in page


def test_grid_of_an_older_model_is_the_principal_plane(copy, run):
    folder = copy(3)
    change_summary(folder, kl_weights=None)
    code, output, _ = run(folder)
    assert code == 0 and "along the principal axes of the codes, as" in output
    tiles = crop_tiles(folder / "figures/latent_grid.png", 15, 15, 128)
    center, axes = principal_plane(training_codes(folder))
    for row, column in ((0, 0), (0, 14), (7, 7), (14, 0), (14, 14)):
        code = center + PPF[column] * axes[0] + PPF[14 - row] * axes[1]
        wanted = decode(folder, code[None])[0]
        assert np.abs(tiles[row, column, ::4, ::4] - wanted).max() <= 2
    assert read_page(folder)["labels"][0] == "principal axis 1, in z"


def test_tiles_of_the_grid_lie_at_their_places(plot, tmp_path):
    """By a decoder whose pictures are red by z[0] and green by z[1]."""
    z = keras.Input((2,))
    color = keras.ops.concatenate([keras.ops.sigmoid(z), 0 * z[:, :1]], axis=1)
    pixel = keras.layers.Reshape((1, 1, 3))(color)
    decoder = keras.Model(z, keras.layers.UpSampling2D(8)(pixel))
    positions = scipy.stats.norm.ppf(np.linspace(0.1, 0.9, 9))
    plane = plot.make_prior_plane(np.ones(2), True)
    files = tmp_path / "grid.png", tmp_path / "grid.jpg"
    plot.plot_grid(*files, decoder, plane, positions, positions)
    tiles = crop_tiles(files[0], 9, 9, 120)
    shown = 255 / (1 + np.exp(-positions))
    for row in range(9):
        for column in range(9):
            color = (shown[column], shown[8 - row], 0)  # the largest y on top
            assert np.abs(tiles[row, column] - color).max() <= 1


def test_titles_are_whole_in_a_small_grid(plot, studio, tmp_path):
    """Text of any length leaves the tiles and the edge alone."""
    decoder = load(studio[2], "decoder")
    plane = plot.make_prior_plane(np.ones(2), True)
    plane.labels = ["principal axis 1, a long title", "principal axis 2, in z, long"]
    plane.note = "A slice: z[2] to z[1023] stay at the mean of their codes"
    for size in (2, 3):
        ends = np.linspace(-12345.678, 3, size)
        files = tmp_path / "grid.png", tmp_path / "grid.jpg"
        plot.plot_grid(*files, decoder, plane, ends, ends)
        picture = np.asarray(Image.open(files[0]).convert("L"))
        left = picture.shape[1] - 32 - size * 128
        bottom = 32 + size * 128
        margins = picture.copy()
        margins[32:bottom, left : left + size * 128] = 255
        assert (margins[:32] == 255).all() and (margins[:, :4] == 255).all()
        assert (margins[-4:] == 255).all() and (margins[:, -4:] == 255).all()
        # The title of y: a column of ink that goes through half of the height or more,
        # beside the numbers, with white between them.
        ink = (margins[:bottom, :left] < 128).any(axis=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ink, [0]]).astype(int)))
        gaps = np.diff(edges)[1::2]
        assert gaps.max() >= 8
        end = edges[1 + 2 * gaps.argmax()]
        title = (margins[:bottom, :end] < 128).any(axis=1)
        assert np.ptp(np.flatnonzero(title)) > 0.5 * size * 128


def test_numbers_have_a_real_minus_and_tell_tiles_apart(plot):
    assert plot.format_numbers([-1.5, -0.001, 2]) == ["−1.50", "0.00", "2.00"]
    assert plot.format_numbers([0.1, 0.1004]) == ["0.10000", "0.10040"]
    assert plot.format_numbers([-12345.678, 3]) == ["−12346", "3"]
    font = plot.load_font(40)
    assert bytes(font.getmask("−")) != bytes(font.getmask("\u0378"))  # no such sign


def test_grey_pictures_of_any_size(plot, tmp_path):
    z = keras.Input((2,))
    x = keras.layers.Dense(28 * 28, activation="sigmoid")(z)
    decoder = keras.Model(z, keras.layers.Reshape((28, 28, 1))(x))
    plane = plot.make_prior_plane(np.ones(2), True)
    ends = np.array([-1.0, 1.0])
    files = tmp_path / "grid.png", tmp_path / "grid.jpg"
    plot.plot_grid(*files, decoder, plane, ends, ends)
    tiles = crop_tiles(tmp_path / "grid.png", 2, 2, 112)
    codes = np.array([[-1, 1], [1, 1], [-1, -1], [1, -1]], np.float32)
    wanted = np.rint(np.asarray(decoder(codes)) * 255).reshape(2, 2, 28, 28, 1)
    assert np.abs(tiles[:, :, ::4, ::4] - wanted).max() <= 1
    plot.write_morph(tmp_path / "morph.gif", decoder, codes)
    assert read_gif(tmp_path / "morph.gif").shape == (4, 224, 224, 3)


def test_signs_of_the_axes_are_fixed(plot):
    codes = np.random.default_rng(0).normal(size=(500, 4)) * [1, 3, 0.5, 2] + 1
    plane = plot.make_principal_plane(codes)
    other = plot.make_principal_plane(codes[::-1])
    np.testing.assert_allclose(plane.axes, other.axes, atol=1e-9)
    assert plane.axes[0].argmax() == 1 and plane.axes[1].argmax() == 3
    places = np.array([[0, 0], [1, -2]])
    found = plane.project(plane.locate(places))
    np.testing.assert_allclose(found, places, atol=1e-12)
    spread = plane.project(codes).std(axis=0)
    np.testing.assert_allclose(spread, plane.spread)


def test_places_of_the_usual_plane_are_z(plot):
    codes = np.random.default_rng(0).normal(size=(500, 4)) * [1, 3, 0.5, 2] + 1
    plane = plot.make_latent_plane(codes)
    np.testing.assert_allclose(plane.project(codes), codes[:, :2])
    code = plane.locate(np.array([3.0, -7.0]))
    np.testing.assert_allclose(code[:2], [3, -7])
    np.testing.assert_allclose(code[2:], codes.mean(axis=0)[2:])
    np.testing.assert_allclose(plane.middle, codes.mean(axis=0)[:2])
    np.testing.assert_allclose(plane.spread, codes.std(axis=0)[:2])


def test_traversals_are_ordered_by_kl_and_follow_the_codes(studio):
    summary = json.loads((studio[3] / "model/summary.json").read_text())
    order = np.argsort(summary["figures"]["kl_per_latent"])[::-1]
    tiles = crop_tiles(studio[3] / "figures/traversals.png", 3, 11, 128)
    codes = training_codes(studio[3])
    for row, latent in enumerate(order):
        shown = np.tile(codes.mean(axis=0), (11, 1))
        shown[:, latent] += np.arange(-5, 6) / 2 * codes[:, latent].std()
        wanted = decode(studio[3], shown)
        assert np.abs(tiles[row, :, ::4, ::4] - wanted).max() <= 1


NO_CODES = np.empty((0, 3), np.float32)


def test_traversals_put_the_largest_kl_on_top_whatever_its_number(
    plot, studio, tmp_path
):
    decoder = load(studio[3], "decoder")
    kl = np.array([1.0, 3.0, 2.0])
    plot.plot_traversals(tmp_path / "t.png", decoder, NO_CODES, kl)
    tiles = crop_tiles(tmp_path / "t.png", 3, 11, 128)
    for row, latent in enumerate((1, 2, 0)):
        wanted = decode(studio[3], 2.5 * np.eye(3)[[latent]])[0]
        assert np.abs(tiles[row, -1, ::4, ::4] - wanted).max() <= 1


def test_of_many_latents_those_that_tell_most_are_drawn(plot, tmp_path):
    z = keras.Input((70,))
    x = keras.layers.Dense(64, kernel_initializer="random_normal")(z)
    x = keras.layers.Activation("sigmoid")(3 * x)
    decoder = keras.Model(z, keras.layers.Reshape((8, 8, 1))(x))
    kl = np.arange(70.0)
    plot.plot_traversals(tmp_path / "t.png", decoder, NO_CODES, kl)
    tiles = crop_tiles(tmp_path / "t.png", 64, 11, 120)
    for row, latent in ((0, 69), (63, 6)):
        wanted = np.asarray(decoder(2.5 * np.eye(70, dtype="float32")[[latent]]))
        assert np.abs(tiles[row, -1, 7::15, 7::15, :1] - 255 * wanted[0]).max() <= 1


def test_traversals_mark_what_carries_nothing(plot, studio, tmp_path):
    decoder, margins = load(studio[3], "decoder"), []
    for nats in (0.03, 0.02, 0.001, np.nan):
        kl = np.array([1, 2, nats])
        plot.plot_traversals(tmp_path / "t.png", decoder, NO_CODES, kl)
        picture = np.asarray(Image.open(tmp_path / "t.png").convert("L"))
        left = picture.shape[1] - 32 - 11 * 128
        dark = picture[32 : 32 + 3 * 128, :left] < 128
        margins.append(dark.reshape(3, 128, -1).sum((1, 2)))
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


def test_loop_is_smooth_and_goes_where_the_codes_are(studio):
    frames = read_gif(studio[2] / "figures/morph.gif")
    assert len(frames) == 120
    check_steps(frames)
    walk = np.array(read_page(studio[2])["walk"])
    assert nearest(frames, decode(studio[2], walk[::10])).max() < 6
    codes = training_codes(studio[2])
    points = (walk - codes.mean(axis=0)) / codes.std(axis=0)
    turns = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    assert abs(turns[-1] - turns[0]) > 5  # once round the middle
    others = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    gaps = np.linalg.norm(others[None] - points[:, None], axis=2)
    tenth = np.sort(gaps, axis=1)[:, 9]
    assert tenth[0] == pytest.approx(tenth.min(), rel=0.01)  # it opens in a crowd


def test_nearly_all_codes_lie_within_the_bounds_of_the_page(plot):
    plane = plot.make_prior_plane(np.ones(2), True)
    places = np.linspace([-5, -1], [5, 1], 1001)
    wide, narrow = plot.choose_bounds(plane, places)
    assert wide == pytest.approx([-5.08, 5.08])  # 0.2 % of 10 less, and a margin
    assert narrow == [-2, 2]  # as the prior is there
    assert plot.choose_bounds(plane, places[:0]) == [[-3, 3], [-3, 3]]


def test_the_loop_follows_the_distance_of_the_codes(plot):
    turn = np.random.default_rng(0).uniform(-np.pi, np.pi, 4000)
    radius = np.where(np.cos(turn) > 0, 2.0, 0.5)
    codes = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    plane = plot.make_prior_plane(np.ones(2), True)
    loop = plot.choose_loop(plane, codes)
    distances = np.linalg.norm(loop, axis=1)
    assert distances[0] == pytest.approx(2, abs=0.01)
    assert distances[180] == pytest.approx(0.5, abs=0.01)
    loop = plot.choose_loop(plane, codes[:0])
    assert np.allclose(np.linalg.norm(loop, axis=1), np.sqrt(np.log(4)))


def test_files_are_morphed_into_each_other(copy, run):
    folder = copy(3)
    index = (folder / "data/images.csv").read_text().splitlines()[1:]
    rows = [4, 30, 80]
    files = [index[row].split(",")[1] for row in rows]
    assert run(folder, MORPH_PATH=files)[0] == 0
    frames = read_gif(folder / "figures/morph.gif")
    assert len(frames) == 90
    check_steps(frames)
    assert nearest(frames, decode(folder, encode(folder, rows))).max() < 6
    # The walk of the page is the same. It goes along lines between these pictures, and
    # not between their mirrors.
    page = read_page(folder)
    dots = np.array([dot[:2] for dot in page["dots"]])
    walk = np.array(page["walk"])
    assert leave_lines(walk, dots[rows]) < 1e-3
    assert (
        leave_lines(walk, dots[[row + 1 for row in rows]]) > 1e-2
    )  # or it says little
    step = np.linalg.norm(np.diff(walk, axis=0), axis=1).max()
    for row in rows:
        assert np.linalg.norm(walk - dots[row], axis=1).min() < step


def leave_lines(walk, corners):
    """Return how far places get from the lines from corner to corner and back."""
    gaps = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        line = end - start
        along = np.clip((walk - start) @ line / (line @ line), 0, 1)
        gaps.append(np.linalg.norm(walk - start - along[:, None] * line, axis=1))
    return np.min(gaps, axis=0).max()


def test_noise_stays_below_the_limits(plot, tmp_path):
    z = keras.Input((2,))
    x = keras.layers.Dense(128 * 128 * 3, kernel_initializer="random_normal")(z)
    x = keras.layers.Activation("sigmoid")(keras.ops.sin(x * 300))
    decoder = keras.Model(z, keras.layers.Reshape((128, 128, 3))(x))
    codes = np.random.default_rng(0).normal(size=(200, 2))
    plot.write_morph(tmp_path / "morph.gif", decoder, codes)
    assert 2e6 < (tmp_path / "morph.gif").stat().st_size < 5e6
    page = tmp_path / "page.html"
    plane = plot.make_prior_plane(np.ones(2), True)
    data = {"model": "12345678", "latents": 2, "trained": ""}
    plot.write_explorer(page, decoder, plane, codes, data)
    assert 2e6 < page.stat().st_size < 5.5e6


def test_tiles_of_the_page_are_near_to_the_pictures(studio):
    data = read_page(studio[2])
    count = data["count"]
    assert len(data["tiles"]) == count**2
    columns = np.linspace(*data["bounds"][0], count)
    rows = np.linspace(*data["bounds"][1], count)[::-1]
    for row, column in ((0, 0), (5, 20), (count // 2, count // 2), (count - 1, 3)):
        file = base64.b64decode(data["tiles"][row * count + column])
        tile = np.asarray(Image.open(io.BytesIO(file)), float)
        wanted = decode(studio[2], [[columns[column], rows[row]]])[0]
        assert tile.shape == wanted.shape
        assert np.square(tile - wanted).mean() < 255**2 / 10**3.8  # 38 dB


def test_large_smooth_pictures_become_small_tiles(plot):
    """As those of the decoder at 256 pixels, whose last doubling is bilinear."""
    noise = np.random.default_rng(0).uniform(0, 256, (24, 32, 32, 3))
    images = []
    for image in noise.astype(np.uint8):
        images.append(np.asarray(Image.fromarray(image).resize((256, 256), 2)))
    images = np.stack(images)
    side, quality = plot.choose_tiles(images, 625)
    assert side < 256
    size = sum(len(plot.make_jpeg(image, side, quality)) for image in images)
    assert size / 24 * 625 * 4 / 3 < 4.5e6
    assert plot.choose_tiles(images[:, :28, :28], 625) == (28, 98)


def test_a_column_is_chosen_that_groups_the_images(plot, monkeypatch, capsys):
    monkeypatch.setattr(plot, "COLOR_BY", None)
    index = []
    for row in range(40):
        known = {"row": row, "file": f"{row // 2}.jpg", "mirrored": row % 2}
        known |= {"left": row % 3, "images_id": "0", "keyword": "pose"}
        known |= {"label": "", "pose": f"{row / 7}", "people": f"{row % 3}"}
        index.append({name: str(value) for name, value in known.items()})
    assert plot.choose_column(index) == "people"
    for row in index:
        row["keyword"] = row["people"]
    assert plot.choose_column(index) == "keyword"
    assert capsys.readouterr().out == ""
    for row in index:
        del row["people"], row["keyword"]
    assert plot.choose_column(index) == ""
    assert "none of ['label', 'pose']" in capsys.readouterr().out
    for row in index:
        del row["pose"], row["label"]
    assert plot.choose_column(index) == ""
    assert "Run preprocess.py again" in capsys.readouterr().out
    monkeypatch.setattr(plot, "COLOR_BY", "left")
    with pytest.raises(SystemExit, match="COLOR_BY = 'left': expected None or one of"):
        plot.choose_column(index)


def paint(plot, values):
    index = [{"row": "0", "file": "a", "kind": value} for value in values]
    plot.COLOR_BY = "kind"
    try:
        return plot.choose_colors(index, np.arange(len(values)))
    finally:
        plot.COLOR_BY = None


def test_numbers_are_sorted_by_value_and_names_by_letter(plot):
    found = paint(plot, ["10", "9", "10", "8", ""])
    assert found.kind == "names"
    assert [text for text, _ in found.legend] == ["8", "9", "10", "unknown"]
    assert found.colors == [
        found.legend[2][1], found.legend[1][1], found.legend[2][1],
        found.legend[0][1], found.legend[3][1],
    ]  # fmt: skip
    assert found.values == ["10", "9", "10", "8", ""]


def test_many_numbers_are_a_scale_by_value(plot):
    values = [str(number) for number in [*range(99), 1000]]
    found = paint(plot, [*values, ""])
    assert found.kind == "numbers" and (found.low, found.high) == (0, 1000)
    assert found.legend[0][0] == "0" and found.legend[-1][0] == "1000"
    assert found.colors[0] == found.legend[0][1] == "#440154"
    assert found.colors[99] == found.legend[-1][1] == "#fde725"
    assert found.colors[98] != found.colors[99]
    near = [int(found.colors[98][i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(np.subtract(near, [0x44, 0x01, 0x54])).max() < 40  # 98 of 1000
    assert found.colors[100] == plot.UNKNOWN_COLOR


def test_what_counts_as_a_number(plot):
    assert plot.to_numbers(["1", "", "-2e3", " 0.5 "]) == [1, None, -2000, 0.5]
    for text in ("1_000", "one", "nan", "inf", "1e200", "1,5"):
        assert plot.to_numbers(["1", text]) is None, text


def test_rings_hold_their_share_of_the_prior(plot):
    axes = matplotlib.figure.Figure().add_subplot()
    ends = np.array([-1.0, 1.0])
    plane = plot.make_prior_plane(np.ones(2), True)
    plot.draw_frame(axes, plane, ends, ends, np.zeros((1, 2)))
    shares = []
    for patch in axes.patches:
        if isinstance(patch, matplotlib.patches.Circle):
            assert tuple(patch.center) == (0, 0)
            shares.append(1 - np.exp(-(patch.radius**2) / 2))
    assert shares == pytest.approx([0.5, 0.9, 0.99])


def test_a_scale_goes_from_its_lowest_to_its_highest_number(plot):
    found = paint(plot, [str(number) for number in range(10, 31)])
    ends = [found.legend[0], found.legend[-1]]
    assert [text for text, _ in ends] == ["10", "30"]
    assert [found.colors[0], found.colors[-1]] == [color for _, color in ends]
    assert found.colors[10] == found.legend[8][1]  # the middle


def test_more_than_ten_names_are_nine_and_others(plot):
    names = [letter for letter in "abcdefghijklm" for _ in range(3)] + ["m", "l"]
    found = paint(plot, names)
    texts = [text for text, _ in found.legend]
    assert len(texts) == 10 and texts[-1] == "others (4)"
    assert {"m", "l"} <= set(texts)
    assert len({color for _, color in found.legend}) == 10
    names = [str(number % 10) for number in range(50)]
    assert len(paint(plot, names).legend) == 10  # ten need no others


def test_names_are_shortened_in_the_middle(plot):
    assert plot.shorten("a" * 100 + "b" * 100, 24) == "a" * 11 + "…" + "b" * 12
    assert plot.shorten("short", 24) == "short"


def simulate(colors, cones):
    """Return CIE Lab of colours as eyes without one kind of cones see them.

    The matrices are those of Machado, Oliveira and Fernandes (2009) for severity 1.
    """
    matrices = {
        "all": np.eye(3),
        "protan": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deutan": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritan": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(matrices[cones]), 0, 1)
    xyz = linear @ np.transpose(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz /= [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])]
    return np.stack(lab, axis=1)


@pytest.mark.parametrize("cones", ["all", "protan", "deutan", "tritan"])
def test_colour_blind_people_tell_the_colours_apart(plot, cones):
    def smallest(colors):
        lab = simulate(colors, cones)
        gaps = np.linalg.norm(lab[:, None] - lab, axis=2)
        return (gaps + 1000 * np.eye(len(colors))).min()

    assert smallest(plot.COLORS) > 22
    if cones in ("protan", "deutan"):
        assert smallest(matplotlib.color_sequences["tab10"]) < 10


def test_map_changes_with_the_colours(copy, run):
    folder = copy(2)
    pictures = []
    for name in ("people", "shift"):
        code, output, _ = run(folder, COLOR_BY=name, GRID_SIZE=2)
        assert code == 0 and f"coloured by {name}," in output
        picture = Image.open(folder / "figures/latent_map.png").convert("RGB")
        pictures.append(np.asarray(picture)[100:1000, 150:1100].astype(int))
    colourful = [np.ptp(picture, axis=2) > 60 for picture in pictures]
    assert min(map(np.count_nonzero, colourful)) > 400
    assert (np.abs(pictures[0] - pictures[1]).max(axis=2) > 60).sum() > 300


def test_the_map_knows_which_rows_were_held_out(copy, run):
    folder = copy(2)
    assert run(folder, GRID_SIZE=2)[0] == 0
    settings = json.loads((folder / "model/summary.json").read_text())["settings"]
    held_out = [dot[4] for dot in read_page(folder)["dots"]]
    assert held_out == [int(row >= settings["num_train"]) for row in range(120)]


@pytest.mark.parametrize("kind", ["names", "numbers", "grey"])
def test_no_legend_squeezes_the_map_or_is_cut_off(plot, studio, tmp_path, kind):
    """The axes have the same size below any legend, and the edge is white."""
    names = [f"{'W' * 20} {number} {'M' * 20}" for number in range(40)]
    if kind == "numbers":
        names = [str(number) for number in range(40)]
    found = plot.Paint("", [""] * 40)
    if kind != "grey":
        found = paint(plot, names)
    plane = plot.make_prior_plane(np.ones(2), True)
    places = np.stack([np.linspace(-3, 3, 40)] * 2, axis=1)
    path = tmp_path / "map.png"
    held_out = np.arange(40) >= 30
    plot.plot_map(path, plane, PPF, PPF, places, held_out, found, "decoder_1")
    picture = np.asarray(Image.open(path).convert("L"))
    sides = (picture[:20], picture[-20:], picture[:, :20].T, picture[:, -20:].T)
    for side in sides:
        assert (side == 255).all()
    # The frame of the axes is the longest lines of ink: 0.8 of 9 inches at 150 dpi. The
    # dashes of the prior are lighter.
    dark = picture < 90
    rows = np.flatnonzero(dark.sum(axis=1) > 1000)
    columns = np.flatnonzero(dark.sum(axis=0) > 1000)[:4]  # a colour bar may follow
    assert abs(np.ptp(rows) - 1080) < 4 and abs(np.ptp(columns) - 1080) < 4
    assert rows.min() < 120 and len(picture) - rows.max() < 560
    ink = np.flatnonzero((picture < 128).any(axis=1))
    assert np.diff(ink).max() < 40  # no empty band
    assert (picture[rows.max() + 60 :] < 128).sum() > 500  # a legend is below


def test_only_held_out_points_are_rings(plot, tmp_path):
    plane = plot.make_prior_plane(np.ones(2), True)
    found = paint(plot, ["one"] * 39 + ["two"])
    found.colors = ["#ff0000"] * 40
    places = np.stack([np.linspace(-3, 3, 40), np.full(40, -0.7)], axis=1)
    filled = []
    for count in (0, 20):
        held_out = np.arange(40) >= 40 - count
        path = tmp_path / "map.png"
        plot.plot_map(path, plane, PPF, PPF, places, held_out, found, "decoder_1")
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
        y, x = np.nonzero(red[:1150])  # above the legend
        assert np.ptp(x) > 700 and np.ptp(y) < 30  # a level line below the centre
        spots, num_spots = scipy.ndimage.label(red[:1150])
        assert num_spots == 40
        holes = scipy.ndimage.binary_fill_holes(red[:1150]) & ~red[:1150]
        filled.append(scipy.ndimage.label(holes)[1])
    assert filled == [0, 20]


@pytest.mark.parametrize("kind", ["two", "three", "older"])
def test_without_the_array(copy, run, kind):
    """The plane is that of the prior: of z[0] and z[1], or of the largest KL."""
    latent_dim = 2 if kind == "two" else 3
    folder = copy(latent_dim)
    (folder / "data/images.npy").unlink()
    first, second = 0, 1
    if kind == "older":
        summary = json.loads((folder / "model/summary.json").read_text())
        kl = summary["figures"]["kl_per_latent"] = [0.1, 0.3, 0.2]
        first, second = 1, 2
        change_summary(folder, kl_weights=None, figures={"kl_per_latent": kl})
    code, output, _ = run(folder)
    assert code == 0 and "Left out latent_map.png: " in output
    assert str(folder / "data/images.npy") in output
    assert "The plane is that of the prior" in output
    written = {path.name for path in (folder / "figures").iterdir()}
    left_out = (
        {"latent_map.png"} if latent_dim == 3 else NOT_OF_TWO | {"latent_map.png"}
    )
    assert written == FIGURES - left_out
    code = np.zeros((1, latent_dim))
    code[0, [first, second]] = PPF[14], PPF[0]
    tiles = crop_tiles(folder / "figures/latent_grid.png", 15, 15, 128)
    wanted = decode(folder, code)[0]
    assert np.abs(tiles[14, 14, ::4, ::4] - wanted).max() <= 1
    assert read_page(folder)["dots"] == []


def test_every_file_carries_the_id_of_its_model(studio):
    for folder in studio.values():
        summary = json.loads((folder / "model/summary.json").read_text())
        name = f"decoder_{summary['model_id']}"
        figures = folder / "figures"
        for path in figures.glob("*.png"):
            with Image.open(path) as picture:
                assert picture.text["model"] == name
        for file in ("morph.gif", "latent_grid.jpg"):
            with Image.open(figures / file) as picture:
                assert picture.info["comment"] == name.encode()
        page = (figures / "latent_space.html").read_text(encoding="utf-8")
        title = re.search("<title>(.*?)</title>", page)[1]
        latents = summary["settings"]["LATENT_DIM"]
        assert f"model {summary['model_id']}: {latents} latents" in title


def test_the_page_tells_the_day_of_the_training(copy, run):
    folder = copy(2)
    change_summary(folder, trained_at="2026-11-26T21:30:00+01:00")
    assert run(folder, GRID_SIZE=2)[0] == 0
    page = (folder / "figures/latent_space.html").read_text(encoding="utf-8")
    assert "2 latents, trained on 2026-11-26</title>" in page
