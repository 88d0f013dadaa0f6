"""latent_space.html in a real Chromium: what it shows, and that it asks for nothing."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image
from test_plot_latent import decode, encode, make_studio, principal_plane

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="found no chromium or no chromedriver in the PATH"
)
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync "
    "disable-background-networking disable-component-update disable-dev-shm-usage"
)
LEFT, UP, RIGHT, HOME = "\ue012", "\ue013", "\ue014", "\ue011"  # keys of WebDriver


class Browser:
    """A page in headless Chromium, by the HTTP interface of chromedriver."""

    def __init__(self, port, profile, width=1000, height=800):
        self.address = f"http://127.0.0.1:{port}/session"
        flags = [f"--{flag}" for flag in FLAGS.split()]
        flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        options = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self.call("", capabilities={"alwaysMatch": options})
        self.address += "/" + answer["sessionId"]

    def call(self, path, method="POST", **values):
        data = json.dumps(values).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path, **media):
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.command("Emulation.setEmulatedMedia", features=features)
        self.call("/url", url=path.as_uri())
        self.wait("return tiles.every((tile) => tile.complete)")

    def command(self, name, **values):
        self.call("/goog/cdp/execute", cmd=name, params=values)

    def run(self, script, *values):
        return self.call("/execute/sync", script=script, args=values)

    def wait(self, script):
        deadline = time.monotonic() + 20
        while not self.run(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)

    def log(self, kind):
        return self.call("/se/log", type=kind)

    def act(self, kind, actions, **more):
        source = {"type": kind, "id": f"{kind}{more}", "actions": actions, **more}
        self.call("/actions", actions=[source])

    def press(self, keys, view="picture"):
        self.run("document.getElementById(arguments[0]).focus()", view)
        kinds = ("keyDown", "keyUp")
        self.act(
            "key", [{"type": kind, "value": key} for key in keys for kind in kinds]
        )

    def point(self, x, y, view="picture", kind="mouse"):
        """Move a mouse to x and y, in parts of the view, or put a finger there."""
        left, top, width, height = self.run(
            "const box = document.getElementById(arguments[0]).getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]",
            view,
        )
        x, y = round(left + x * width), round(top + y * height)
        actions = [{"type": "pointerMove", "duration": 0, "x": x, "y": y}]
        if kind == "touch":
            down, up = (
                {"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")
            )
            actions += [down, {**actions[0], "x": x + 3}, actions[0], up]
        self.act("pointer", actions, parameters={"pointerType": kind})

    def slide(self, axis, value):
        """Set a slider, as a screen reader does."""
        self.run(
            "const slider = document.querySelectorAll('input')[arguments[0]];"
            "slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
            axis,
            value,
        )

    def place(self):
        """Return the position that is shown, once it stands still."""
        self.wait("return !asked")
        text = self.run("return document.getElementById('place').textContent")
        return tuple(float(number) for number in text.split(","))

    def picture(self, view="picture"):
        """Return what a canvas holds, int (H, W, 3)."""
        url = self.run("return document.getElementById(arguments[0]).toDataURL()", view)
        data = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return make_studio(tmp_path_factory.getbasetemp() / "studio")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if port := re.search(r"successfully on port (\d+)", line):
                break
        browser = Browser(port[1], tmp_path_factory.mktemp("profile"))
        try:
            yield browser
        finally:
            browser.call("", "DELETE")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page(browser, studio):
    """Open the page of the model of two latents, in the middle of the plane."""
    browser.open(studio[2] / "figures/latent_space.html")
    assert browser.place() == (0, 0)
    return browser


def test_the_file_is_whole_and_small(studio):
    for folder in studio.values():
        path = folder / "figures/latent_space.html"
        text = path.read_text(encoding="utf-8")
        assert 100_000 < path.stat().st_size < 6_000_000
        assert "http://" not in text and "https://" not in text
        assert ".jpg" not in text  # nothing of the training images but their codes


def test_grid_points_are_the_decoder_s_tiles(page, studio):
    for x, y in ((0, 0), (-3, 3), (1.25, -0.5), (3, -3)):
        page.slide(0, x)
        page.slide(1, y)
        assert page.place() == (x, y)
        wanted = decode(studio[2], [[x, y]])[0]
        gap = np.abs(page.picture() - wanted)
        assert gap.mean() < 5  # the loss of a JPEG file, which is that of one of ours
        Image.fromarray(wanted.astype(np.uint8)).save(
            file := io.BytesIO(), "JPEG", quality=92, subsampling=0
        )
        assert np.abs(page.picture() - np.asarray(Image.open(file))).mean() < 1
    away = np.abs(page.picture() - decode(studio[2], [[-3, 3]])[0])
    assert away.mean() > 5  # so much lies between the corners


def test_between_grid_points_tiles_are_blended(page):
    corners = []
    for x in (0.5, 0.75):
        for y in (0.5, 0.75):
            page.slide(0, x)
            page.slide(1, y)
            page.place()
            corners.append(page.picture())
    page.slide(0, 0.55)
    page.slide(1, 0.7)
    assert page.place() == (0.55, 0.7)
    weights = [
        0.8 * 0.2,
        0.8 * 0.8,
        0.2 * 0.2,
        0.2 * 0.8,
    ]  # of the corners, by nearness
    wanted = sum(
        weight * corner for weight, corner in zip(weights, corners, strict=True)
    )
    assert np.abs(page.picture() - wanted).max() < 3


@pytest.mark.parametrize("view", ["picture", "map"])
@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_pictures_follow_the_pointer(page, studio, view, kind):
    before = page.picture()
    page.point(0.25, 0.75, view, kind)
    x, y = page.place()
    assert abs(x + 1.5) < 0.05 and abs(y + 1.5) < 0.05
    after = page.picture()
    assert np.abs(after - before).mean() > 1
    assert np.abs(after - decode(studio[2], [[x, y]])[0]).mean() < 5


def test_arrow_keys_move_in_the_plane(page):
    page.press(RIGHT * 3 + UP)
    assert page.place() == (0.3, 0.1)
    page.press(LEFT, "map")
    assert page.place() == (0.2, 0.1)
    page.press("\ue008" + UP)  # with Shift
    page.press(HOME)
    assert page.place() == (0, 0)
    page.press(LEFT * 40)
    assert page.place() == (-3, 0)


def test_the_walk_is_that_of_the_animation(page):
    button = "return document.querySelector('button')"
    assert page.run(button + ".textContent") == "Walk"
    page.run(button + ".click()")
    assert page.run(button + ".textContent") == "Pause"
    page.wait("return here[1] > 0.5")
    pictures = [page.picture(), page.wait("return here[1] > 1"), page.picture()]
    assert np.abs(pictures[0] - pictures[2]).mean() > 0.5
    page.run(button + ".click()")
    assert page.run(button + ".textContent") == "Walk"
    x, y = page.place()
    assert abs(np.hypot(x, y) - np.sqrt(np.log(4))) < 0.02
    page.press(" ")
    assert page.run("return walking")
    page.press(" ")
    assert not page.run("return walking")


def test_the_map_shows_dots_square_and_place(page):
    page.run("data.dots = [[-1.5, 1.5, '#ff0000']]; ask()")
    page.place()
    picture = page.picture("map")
    rows, columns = np.nonzero((picture == (255, 0, 0)).all(axis=2))
    side = len(picture)
    assert abs(rows.mean() / side - 0.25) < 0.01
    assert abs(columns.mean() / side - 0.25) < 0.01
    assert page.run("return data.square.flat().map(Math.abs)") == [1.645] * 8


def test_the_dots_are_the_codes_in_the_colours_of_the_map(page, studio):
    dots = page.run("return data.dots")
    places = np.array([dot[:2] for dot in dots])
    np.testing.assert_allclose(places, encode(studio[2]), atol=0.006)
    with open(studio[2] / "data/images.csv", encoding="utf-8", newline="") as file:
        files = [row["file"] for row in csv.DictReader(file)]
    with open(studio[2] / "data/raw/factors.csv", encoding="utf-8") as file:
        people = {row["file"]: row["people"] for row in csv.DictReader(file)}
    tab10 = {"1": "#1f77b4", "2": "#ff7f0e", "3": "#2ca02c"}
    assert [dot[2] for dot in dots] == [tab10[people[file]] for file in files]


def test_three_latents_show_the_plane_of_the_grid(browser, studio):
    browser.open(studio[3] / "figures/latent_space.html")
    center, axes = principal_plane(encode(studio[3]))
    for x, y in ((0, 0), (1, -1.5), (-3, 3)):
        browser.slide(0, x)
        browser.slide(1, y)
        assert browser.place() == (x, y)
        wanted = decode(studio[3], [center + x * axes[0] + y * axes[1]])[0]
        assert np.abs(browser.picture() - wanted).mean() < 5
    labels = browser.run("return data.labels")
    assert "principal axis 1" in labels[0] and "standard deviations" in labels[1]
    assert browser.run("return data.dots.length") == 120


def test_light_dark_and_calm(browser, studio):
    path, colors = studio[2] / "figures/latent_space.html", []
    for scheme in ("light", "dark"):
        browser.open(path, **{"prefers-color-scheme": scheme})
        shot = base64.b64decode(browser.call("/screenshot", "GET"))
        colors.append(np.asarray(Image.open(io.BytesIO(shot)).convert("L"))[2, 2])
    assert colors[0] > 200 and colors[1] < 60
    browser.open(path, **{"prefers-reduced-motion": "reduce"})
    browser.place()
    browser.run(
        "window.seen = []; const old = drawMap;"
        "drawMap = () => { seen.push(here[0]); old(); }"
    )
    browser.slide(0, 2)
    browser.place()
    assert browser.run("return seen") == [2]


def test_a_phone_needs_no_sideways_scrolling(browser, studio):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.command("Emulation.setDeviceMetricsOverride", **size)
    try:
        browser.open(studio[2] / "figures/latent_space.html")
        widths = browser.run(
            "return [document.documentElement.scrollWidth, innerWidth,"
            "document.getElementById('picture').getBoundingClientRect().width]"
        )
        assert widths[0] == widths[1] == 390 and widths[2] > 340
    finally:
        browser.command("Emulation.clearDeviceMetricsOverride")


def test_everything_has_a_name_for_a_screen_reader(page):
    names = page.run(
        "return [...document.querySelectorAll('canvas, input, button')].map((item) =>"
        "item.ariaLabel || item.textContent || item.labels[0].textContent.trim())"
    )
    assert names == [
        "Decoded picture at 0.00, 0.00",
        "Map: a dot is the code of an image",
        "z[0]",
        "z[1]",
        "Walk",
    ]


def test_no_request_and_no_error(browser, studio):
    browser.log("performance")
    page = studio[2] / "figures/latent_space.html"
    browser.open(page)
    browser.point(0.3, 0.3)
    browser.run("play(true)")
    browser.wait("return steps > 5")
    messages = [
        json.loads(entry["message"])["message"] for entry in browser.log("performance")
    ]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked
    others = {url for url in asked if not url.startswith("data:")} - {page.as_uri()}
    assert not others
    assert browser.log("browser") == []  # of this and of all tests before
