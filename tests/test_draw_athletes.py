"""draw_athletes.py: files and factors agree, factors show, crawls are left alone."""

import csv

import cv2
import numpy as np
import pytest
from conftest import load_script, run_script
from PIL import Image, ImageOps

SCRIPT = "tests/draw_athletes.py"
RANGES = {
    "people": (1, 3),
    "pose": (0, 1),
    "skin": (0, 1),
    "zoom": (0.9, 1.1),
    "shift": (-0.05, 0.05),
    "width": (0.9, 1.1),
    "light": (0, 360),
}
SMALL = {"OUT_DIR": "data/raw", "IMAGE_SIZE": 96, "SEED": 0}
USUAL = {"skin": 0.5, "zoom": 1.0, "shift": 0.0, "width": 1.0, "light": 235.0}

script = load_script(SCRIPT)


def draw(folder, **edits):
    """Run the script and return its folder of pictures."""
    result = run_script(SCRIPT, folder, **{**SMALL, **edits})
    assert result.returncode == 0, result.stderr
    return folder / "data" / "raw"


def read_factors(raw):
    """Return the rows of factors.csv as {file: {column: number}}."""
    with open(raw / "factors.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return {
        row.pop("file"): {
            name: int(value) if name == "people" else float(value)
            for name, value in row.items()
        }
        for row in rows
    }


def contents(folder):
    """Return {path: bytes} of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Ninety small pictures: enough for each shape and each orientation."""
    return draw(tmp_path_factory.mktemp("drawn"), NUM_IMAGES=90)


def test_table_names_every_file_and_all_factors_vary(raw):
    factors = read_factors(raw)
    names = [f"{number:06d}.jpg" for number in range(1, 91)]
    assert list(factors) == names
    assert sorted(path.name for path in raw.iterdir()) == [*names, "factors.csv"]
    for name, (low, high) in RANGES.items():
        values = np.array([row[name] for row in factors.values()])
        assert values.min() >= low and values.max() <= high, name
        assert len(set(values)) == 3 if name == "people" else len(set(values)) > 30
    pose = np.array([row["pose"] for row in factors.values()])
    assert np.all(np.histogram(pose, 4, (0, 1))[0] > 90 / 4 / 2)
    people = [row["people"] for row in factors.values()]
    assert all(people.count(number) > 90 / 3 / 2 for number in (1, 2, 3))


def test_pictures_are_upright_and_show_their_row(raw):
    sizes, orientations = set(), set()
    for file, row in read_factors(raw).items():
        with Image.open(raw / file) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            orientations.add(picture.getexif().get(0x0112, 1))
            upright = np.asarray(ImageOps.exif_transpose(picture))
        height, width = upright.shape[:2]
        sizes.add((width, height))
        expected = script.draw_picture(row, width, height).astype(int)
        error = np.abs(expected - upright).mean()
        assert error < 6, file  # JPEG; another row is off by more than 7
        assert error < 0.7 * np.abs(expected[:, ::-1] - upright).mean(), file
        other_viewer = cv2.imread(str(raw / file))[..., ::-1]
        assert np.abs(other_viewer.astype(int) - upright).mean() < 2, file
    assert sizes == {(96, 96), (128, 96), (96, 128), (192, 192)}
    assert orientations == {1, 3, 5, 6, 8}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_by_a_viewer(orientation, tmp_path):
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:24, :40] = (255, 0, 0)
    picture[:24, 40:] = (0, 255, 0)
    picture[24:, :40] = (0, 0, 255)
    path = tmp_path / "corners.jpg"
    path.write_bytes(script.encode(picture, orientation))
    with Image.open(path) as stored:
        assert stored.getexif().get(0x0112, 1) == orientation
        assert stored.size == ((80, 48) if orientation < 5 else (48, 80))
        upright = np.asarray(ImageOps.exif_transpose(stored))
    assert np.abs(upright.astype(int) - picture).mean() < 4


def test_a_picture_depends_on_seed_and_number_alone(raw, tmp_path):
    few = draw(tmp_path, NUM_IMAGES=12)
    for number in range(1, 13):
        name = f"{number:06d}.jpg"
        assert (few / name).read_bytes() == (raw / name).read_bytes()
    again = draw(tmp_path, NUM_IMAGES=12, SEED=1)
    assert again.joinpath("000001.jpg").read_bytes() != (
        raw.joinpath("000001.jpg").read_bytes()
    )


def test_rerun_restores_shrinks_and_keeps_table_and_folder_together(tmp_path):
    raw = draw(tmp_path, NUM_IMAGES=8)
    before = contents(raw)
    (raw / "000002.jpg").unlink()  # as if killed half way
    (raw / "000005.jpg").write_bytes(b"broken")
    (raw / ".DS_Store").write_bytes(b"")
    assert contents(draw(tmp_path, NUM_IMAGES=8)) == {
        **before,
        raw / ".DS_Store": b"",
    }
    draw(tmp_path, NUM_IMAGES=3)
    shown = {path.name for path in raw.iterdir() if path.name[0] != "."}
    assert shown == {*read_factors(raw), "factors.csv"}
    assert len(shown) == 4


def foreign_manifest(raw):
    (raw / "manifest.jsonl").write_text("{}\n")


def foreign_picture(raw):
    (raw / "000009.jpg").write_bytes(b"a picture of somebody")


def foreign_folder(raw):
    (raw / "more").mkdir()
    (raw / "more" / "000001.jpg").write_bytes(b"a picture of somebody")


def foreign_table(raw):
    (raw / "factors.csv").write_text("file,people\n000001.jpg,1\n")


def row_that_points_elsewhere(raw):
    (raw.parent / "mine.jpg").write_bytes(b"mine")
    with open(raw / "factors.csv", "a", encoding="utf-8") as table:
        table.write("../mine.jpg,1,0,0,1,0,1,235\n")
    (raw / "mine.jpg").write_bytes(b"mine")


@pytest.mark.parametrize(
    "add",
    [
        foreign_manifest,
        foreign_picture,
        foreign_folder,
        foreign_table,
        row_that_points_elsewhere,
    ],
)
@pytest.mark.parametrize("drawn_before", [False, True])
def test_a_folder_with_anything_else_is_left_alone(add, drawn_before, tmp_path):
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    if drawn_before:
        draw(tmp_path, NUM_IMAGES=2)
    add(raw)
    before = contents(tmp_path / "data")
    result = run_script(SCRIPT, tmp_path, NUM_IMAGES=4, **SMALL)
    assert result.returncode == 1
    assert str(raw.resolve()) in result.stderr
    assert "OUT_DIR" in result.stderr and "Traceback" not in result.stderr
    assert contents(tmp_path / "data") == before


def test_a_row_never_removes_a_file_outside_the_folder(tmp_path):
    raw = draw(tmp_path, NUM_IMAGES=2)
    mine = raw.parent / "mine.jpg"
    mine.write_bytes(b"mine")
    with open(raw / "factors.csv", "a", encoding="utf-8") as table:
        table.write("../mine.jpg,1,0,0,1,0,1,235\n\n")
    draw(tmp_path, NUM_IMAGES=2)
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "edit", [{"NUM_IMAGES": 0}, {"IMAGE_SIZE": 20}, {"SEED": -1}, {"NUM_IMAGES": 2.5}]
)
def test_a_wrong_setting_is_named_before_anything_is_written(edit, tmp_path):
    result = run_script(SCRIPT, tmp_path, **{**SMALL, "NUM_IMAGES": 2, **edit})
    assert result.returncode == 1
    assert next(iter(edit)) in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("pose", [0, 0.3, 0.5, 0.8, 1])
def test_an_athlete_comes_with_its_mask_and_box(pose):
    picture, mask, (x, y, width, height) = script.draw_athlete(200, pose, 0.6, 1.04)
    assert picture.dtype == mask.dtype == np.uint8
    assert picture.shape == (*mask.shape, 3)
    inside = mask > 127
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (x, y) == (columns[0], rows[0])
    assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()  # nothing cut off
    assert cv2.connectedComponents(inside.astype(np.uint8))[0] == 2  # in one piece
    assert np.array_equal(mask, mask[:, ::-1])
    assert height >= 195
    levels = picture[inside].mean(1)
    assert np.percentile(levels, 95) - np.percentile(levels, 5) > 80  # it is shaded


def test_pose_raises_the_arms_from_below_the_shoulders_to_above():
    """Beside the body stands forearm and fist at 0, the whole arm at 1."""
    head = 200 / script.BODY_HEIGHT
    shoulders = 1.6
    highest = []
    for pose in (0, 0.25, 0.5, 0.75, 1):
        _, mask, _ = script.draw_athlete(200, pose)
        middle = mask.shape[1] // 2
        rows = np.flatnonzero((mask[:, middle + round(1.75 * head) :] > 127).any(1))
        highest.append(rows[0] / head + script.TOP)
    assert highest[0] > shoulders + 1
    assert highest[4] < shoulders - 1
    assert all(np.diff(highest) < 0)
    assert rows[-1] / head + script.TOP < shoulders + 1  # the upper arm is level


def measure(**changes):
    """Return box and mean colour of an athlete, wall colour and middle, in pixels."""
    row = {"people": 1, "pose": 0.0, **USUAL, **changes}
    picture = script.draw_picture(row, 320, 320).astype(float)
    stage = 255 * np.minimum(script.draw_stage(320, 320, row["light"]), 1)
    body = np.abs(picture - stage).max(2) > 25
    body[275:] = False  # the shadow of the feet
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    return {
        "top": rows[0],
        "breadth": np.ptp(columns),
        "middle": columns.mean(),
        "tone": picture[body].mean(),
        "wall": picture[100, 60] / picture[100, 60].sum(),
    }


def test_skin_zoom_shift_width_and_light_do_what_they_say():
    usual = measure()
    assert measure(skin=0.9)["tone"] < usual["tone"] - 10
    assert measure(zoom=0.9)["top"] > usual["top"] + 20
    assert measure(shift=0.05)["middle"] == pytest.approx(usual["middle"] + 16, abs=1)
    broad = measure(width=1.1)
    assert broad["breadth"] == pytest.approx(1.1 * usual["breadth"], abs=3)
    assert abs(broad["top"] - usual["top"]) <= 1
    red, blue = measure(light=0)["wall"], measure(light=240)["wall"]
    assert red[0] > 0.5 and blue[2] > 0.5


@pytest.mark.parametrize("people", [1, 2, 3])
@pytest.mark.parametrize("size", [(320, 320), (427, 320), (320, 427)])
def test_as_many_heads_as_people(people, size):
    width, height = size
    picture = script.draw_picture({"people": people, "pose": 0, **USUAL}, width, height)
    stage = 255 * np.minimum(script.draw_stage(width, height, USUAL["light"]), 1)
    body = np.abs(picture - stage).max(2) > 25
    top = np.flatnonzero(body.any(1))[0]
    tall = np.flatnonzero(body.any(1))[-1] - top
    row = body[top + round(0.07 * tall)].astype(int)
    assert (np.diff(row) == 1).sum() == people


def test_stage_fills_pictures_of_any_shape():
    for width, height in ((320, 320), (427, 320), (320, 427), (97, 64)):
        stage = script.draw_stage(width, height, 235.0)
        assert stage.shape == (height, width, 3)
        assert stage.min() > 0 and np.isfinite(stage).all()
        assert stage[-1, 0, 0] > stage[-1, 0, 2]  # wood below
        assert stage[0, 0, 2] > stage[0, 0, 0]  # a blue wall above


def test_people_and_pose_change_far_more_than_any_other_factor():
    """Half the squared difference of pictures that differ in one factor alone."""
    change = dict.fromkeys(RANGES, 0.0)
    for index in range(10):
        one, other = script.draw_factors(0, index), script.draw_factors(1, index)
        picture = script.draw_picture(one, 128, 128)
        for name in change:
            changed = script.draw_picture({**one, name: other[name]}, 128, 128)
            pair = np.stack([picture, changed]).astype(np.float32)
            small = [
                cv2.resize(p, (64, 64), interpolation=cv2.INTER_AREA) for p in pair
            ]
            change[name] += ((small[0] - small[1]) ** 2).mean() / 2
    others = [change[name] for name in change if name not in ("people", "pose")]
    assert min(change["people"], change["pose"]) > 2 * max(others), change
