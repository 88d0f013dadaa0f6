"""latent_space.html in a real Chromium: what it shows, and that it asks for nothing."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image
from test_plot_latent import decode, encode, make_studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
NODE = shutil.which("node")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="found no chromium or no chromedriver in the PATH"
)
needs_node = pytest.mark.skipif(not NODE, reason="found no node in the PATH")
pytestmark = pytest.mark.slow  # the models are trained and drawn first

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync "
    "disable-background-networking disable-component-update disable-dev-shm-usage"
)
TILES = ((0, 0), (0.5, 0.5), (0.1, 0.8), (1, 1))  # to look at: across and down
SIZES = (
    (360, 740),
    (740, 360),
    (768, 1024),
    (820, 1180),
    (1024, 600),
    (1366, 650),
    (1920, 1080),
)
# Keys of WebDriver.
LEFT, UP, RIGHT, DOWN, HOME = "\ue012", "\ue013", "\ue014", "\ue015", "\ue011"
SHIFT, CONTROL, ALT, META = "\ue008", "\ue009", "\ue00a", "\ue03d"


class Browser:
    """A page in headless Chromium, by the HTTP interface of chromedriver."""

    def __init__(self, port, profile, logs):
        self.address = f"http://127.0.0.1:{port}/session"
        flags = [f"--{flag}" for flag in FLAGS.split()]
        flags += [f"--user-data-dir={profile}", "--window-size=1000,800"]
        options = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
            "goog:loggingPrefs": dict.fromkeys(logs, "ALL"),
        }
        answer = self.call("", capabilities={"alwaysMatch": options})
        self.address += "/" + answer["sessionId"]

    def call(self, path, method="POST", **values):
        data = json.dumps(values).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["value"]

    def command(self, name, **values):
        """Give a command of Chromium's own interface and return its answer."""
        return self.call("/goog/cdp/execute", cmd=name, params=values)

    def open(self, path, place="", **media):
        """Open a page afresh, at a place in its address, and wait for its tiles."""
        self.set_media(**media)
        self.call("/url", url="about:blank")  # or a new place only moves the old page
        self.call("/url", url=path.as_uri() + place)
        self.wait("return tiles.every((tile) => tile.complete)")

    def set_media(self, kind="", **media):
        """Have the reader want "print", or features such as a dark colour scheme."""
        features = []
        for name, value in media.items():
            features.append({"name": name.replace("_", "-"), "value": value})
        self.command("Emulation.setEmulatedMedia", media=kind, features=features)

    def set_size(self, width, height, ratio=1, mobile=False):
        """Make the window so large, in CSS pixels, on a screen of so many for each."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=ratio,
            mobile=mobile,
        )

    def run(self, script, *values):
        return self.call("/execute/sync", script=script, args=values)

    def wait(self, script):
        deadline = time.monotonic() + 300
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)
        return value

    def log(self, kind):
        return self.call("/se/log", type=kind)

    def act(self, kind, actions, **more):
        source = {"type": kind, "id": f"{kind}{more}", "actions": actions, **more}
        self.call("/actions", actions=[source])

    def press(self, keys, view="#picture", held=""):
        """Press keys one after the other, with another one held down meanwhile."""
        self.run("find(arguments[0]).focus()", view)
        actions = []
        if held:
            actions.append({"type": "keyDown", "value": held})
        for key in keys:
            actions.append({"type": "keyDown", "value": key})
            actions.append({"type": "keyUp", "value": key})
        if held:
            actions.append({"type": "keyUp", "value": held})
        self.act("key", actions)

    def box(self, view):
        """Return left, top, width and height of an element in the window."""
        script = (
            "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]"
        )
        return self.run(script, view)

    def spot(self, across, down, view="#picture"):
        """Return where a spot, in parts of a view, lies in the window."""
        left, top, width, height = self.box(view)
        return round(left + across * width), round(top + down * height)

    def pass_over(self, across, down, view="#picture"):
        x, y = self.spot(across, down, view)
        self.act("pointer", [{"type": "pointerMove", "duration": 0, "x": x, "y": y}])

    def drag(self, spots, view="#picture", button=0):
        """Press the mouse at the first of the spots, go to the others, and let go."""
        actions = []
        for across, down in spots:
            x, y = self.spot(across, down, view)
            actions.append({"type": "pointerMove", "duration": 0, "x": x, "y": y})
        actions.insert(1, {"type": "pointerDown", "button": button})
        actions.append({"type": "pointerUp", "button": button})
        self.act("pointer", actions)

    def touch(self, points, until="return true"):
        """Put a finger on the window, wait, go to the other points, and lift it."""
        for kind, point in zip(
            ["touchStart"] + ["touchMove"] * (len(points) - 1), points, strict=True
        ):
            touch = [{"x": point[0], "y": point[1]}]
            self.command("Input.dispatchTouchEvent", type=kind, touchPoints=touch)
            self.wait(until)
            time.sleep(0.02)  # Chromium joins what comes within one frame
        self.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def slide(self, axis, value):
        """Set a slider, as a screen reader does."""
        self.run(
            "const slider = document.querySelectorAll('input')[arguments[0]];"
            "slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
            axis,
            value,
        )

    def go(self, x, y):
        """Set both sliders and return the place that is shown then."""
        self.slide(0, x)
        self.slide(1, y)
        return self.place()

    def place(self):
        """Return the place that is shown, once it stands still."""
        self.wait("return !asked")
        return tuple(self.run("return here"))

    def read(self, view):
        """Return the text of the first such element, or None if it is hidden."""
        element = self.call("/element", using="css selector", value=view)
        path = f"/element/{next(iter(element.values()))}"
        if not self.call(path + "/displayed", "GET"):
            return None
        return self.call(path + "/text", "GET")

    def text(self, view):
        return self.run("return find(arguments[0]).textContent", view)

    def settle(self):
        """Wait until the page has told where the reader is."""
        self.wait("return !asked && told === here.map(write).join(',')")

    def picture(self, view="#picture"):
        """Return what a canvas holds, int (H, W, 3)."""
        url = self.run("return find(arguments[0]).toDataURL()", view)
        data = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return make_studio(tmp_path_factory.getbasetemp() / "studio")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start chromedriver, and yield a function that starts browsers."""
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    browsers = []

    def start(*logs):
        browsers.append(Browser(port[1], tmp_path_factory.mktemp("profile"), logs))
        return browsers[-1]

    try:
        for line in process.stdout:
            if port := re.search(r"successfully on port (\d+)", line):
                break
        yield start
    finally:
        for browser in browsers:
            browser.call("", "DELETE")
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def chromium(start):
    return start("browser")


@pytest.fixture
def browser(chromium):
    """Yield the browser, and see afterwards that no page had an error."""
    chromium.log("browser")
    yield chromium
    chromium.command("Emulation.clearDeviceMetricsOverride")
    chromium.command("Emulation.setTouchEmulationEnabled", enabled=False)
    chromium.set_media()
    chromium.call("/actions", "DELETE")
    assert chromium.log("browser") == []


def page_of(folder):
    return folder / "figures/latent_space.html"


def read_data(folder):
    """Return what the page of a folder knows."""
    text = page_of(folder).read_text(encoding="utf-8")
    text = re.search(r'id="data">(.*?)</script>', text, re.S)[1]
    return json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON


@pytest.fixture
def page(browser, studio):
    """Open the page of the model of two latents, as a reader finds it."""
    browser.set_size(1000, 800)
    browser.open(page_of(studio[2]))
    browser.place()
    return browser


# ----------------------------------------------------------------------------
# The file
# ----------------------------------------------------------------------------
def test_the_file_is_whole_and_small(studio):
    for folder in studio.values():
        text = page_of(folder).read_text(encoding="utf-8")
        assert 100_000 < page_of(folder).stat().st_size < 5_500_000
        assert "http://" not in text and "https://" not in text
        assert ".jpg" not in text  # nothing of the training images but their codes
        assert "@TITLE@" not in text and "@DATA@" not in text
        assert read_data(folder)["model"]


@needs_node
def test_node_takes_the_scripts(studio, tmp_path):
    text = page_of(studio[2]).read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2
    for script in scripts:
        file = tmp_path / "script.js"
        file.write_text(script, encoding="utf-8")
        command = [NODE, "--check", file]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_the_title_names_model_latents_and_day(studio):
    for latent_dim, folder in studio.items():
        text = (folder / "model/summary.json").read_text(encoding="utf-8")
        summary = json.loads(text)
        page = page_of(folder).read_text(encoding="utf-8")
        for part in ("title", "h1"):
            title = re.search(f"<{part}>(.*?)</{part}>", page)[1]
            assert summary["model_id"] in title
            assert f"{latent_dim} latents" in title
            assert summary["trained_at"][:10] in title


# ----------------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------------
def lattice(data):
    """Return x and y of the tiles, columns from the left and rows from the top."""
    columns = np.linspace(*data["bounds"][0], data["count"])
    rows = np.linspace(*data["bounds"][1][::-1], data["count"])
    return columns, rows


def place_of(tile, data):
    """Return the place of the tile next to a spot, across and down in 0..1."""
    columns, rows = lattice(data)
    last = data["count"] - 1
    return columns[round(tile[0] * last)], rows[round(tile[1] * last)]


def lossy(image):
    """Return what a JPEG file makes of an image."""
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file)).astype(int)


@needs_browser
def test_the_page_opens_standing_on_the_walk(page, studio):
    data = read_data(studio[2])
    assert page.place() == tuple(data["walk"][0])
    assert page.run("return walking") is False
    gap = np.abs(page.picture() - decode(studio[2], [data["walk"][0]])[0]).mean()
    assert gap < 5  # JPEG, and a blend of four tiles
    assert page.run("return location.hash") == ""  # nobody has gone anywhere


@needs_browser
@pytest.mark.parametrize("tile", TILES)
def test_tiles_are_the_decoder_s_pictures(page, studio, tile):
    data = read_data(studio[2])
    place = place_of(tile, data)
    np.testing.assert_allclose(page.go(*place), place, atol=1e-9)
    wanted = decode(studio[2], [place])[0]
    gap = np.abs(page.picture() - wanted).mean()
    assert gap < np.abs(lossy(wanted) - wanted).mean() + 0.5
    # Of these four tiles, it is nearest to no other one.
    for other in TILES:
        if other != tile:
            image = decode(studio[2], [place_of(other, data)])[0]
            assert np.abs(page.picture() - image).mean() > 2 * gap


@needs_browser
def test_between_tiles_they_are_blended(page, studio):
    columns, rows = lattice(read_data(studio[2]))
    left, right = columns[8:10]
    top, bottom = rows[5:7]
    wanted = 0
    for x, across in ((left, 0.8), (right, 0.2)):
        for y, down in ((top, 0.4), (bottom, 0.6)):
            page.go(x, y)
            wanted = wanted + across * down * page.picture()
    page.go(0.8 * left + 0.2 * right, 0.4 * top + 0.6 * bottom)
    assert np.abs(page.picture() - wanted).max() < 3


@needs_browser
def test_three_latents_show_a_slice_and_say_so(browser, studio):
    browser.open(page_of(studio[3]))
    data = read_data(studio[3])
    assert data["labels"] == ["z[0]", "z[1]"]
    mean = encode(studio[3], slice(114)).mean(axis=0)
    for tile in TILES:
        x, y = place_of(tile, data)
        browser.go(x, y)
        wanted = decode(studio[3], [[x, y, mean[2]]])[0]
        assert np.abs(browser.picture() - wanted).mean() < 5
    note = browser.text("#note")
    assert "slice" in note and "projections" in note
    assert browser.box("#note")[3] > 0


# ----------------------------------------------------------------------------
# The map
# ----------------------------------------------------------------------------
@needs_browser
def test_the_dots_are_the_codes_with_their_values(page, studio):
    data = read_data(studio[2])
    places = np.array([dot[:2] for dot in data["dots"]])
    np.testing.assert_allclose(places, encode(studio[2]), atol=1e-4)
    with open(studio[2] / "data/images.csv", encoding="utf-8", newline="") as file:
        people = [row["people"] for row in csv.DictReader(file)]
    assert data["color"]["name"] == "people"
    legend = dict(data["color"]["legend"])
    assert set(legend) == set(people)
    assert [dot[2] for dot in data["dots"]] == [legend[text] for text in people]
    assert [dot[3] for dot in data["dots"]] == people
    assert [dot[4] for dot in data["dots"]] == [0] * 114 + [1] * 6


@needs_browser
def test_the_legend_names_colours_and_signs(page, studio):
    data = read_data(studio[2])
    assert page.run("return find('#colors').ariaLabel") == "Colours: people"
    items = page.run(
        "return [...document.querySelectorAll('#colors li')].map((item) =>"
        "[item.textContent, getComputedStyle(item.firstChild).backgroundColor])"
    )
    wanted = []
    for text, color in data["color"]["legend"]:
        red, green, blue = bytes.fromhex(color[1:])
        wanted.append([f"people {text}", f"rgb({red}, {green}, {blue})"])
    assert items == wanted
    signs = page.run("return find('#words').innerText")
    for text in (
        "the picture shown",
        "the walk",
        "the part in latent_grid.png",
        "114 pictures of the training",
        "6 held out",
    ):
        assert text in signs


@needs_browser
def test_numbers_have_a_scale(page):
    page.run(
        "color.name = 'pose'; color.kind = 'numbers';"
        "find('#colors').replaceChildren();"
        "color.legend = [['-1', '#ff0000'], ['', '#00ff00'], ['2', '#0000ff']];"
        "fillColors()"
    )
    assert page.run("return find('#colors').innerText").split() == ["pose", "-1", "2"]
    style = page.run("return getComputedStyle(find('.scale')).backgroundImage")
    colors = re.findall(r"rgb\(.*?\)", style)
    assert colors == ["rgb(255, 0, 0)", "rgb(0, 255, 0)", "rgb(0, 0, 255)"]


@needs_browser
def test_texts_of_users_are_no_html(page):
    page.run(
        "color.legend = [['<img src=x onerror=alert(1)>', '#ff0000']];"
        "find('#colors').replaceChildren(); fillColors()"
    )
    assert "people <img src=x" in page.text("#colors")
    assert page.run("return document.images.length") == 0


@needs_browser
@pytest.mark.parametrize("ratio", [1, 2])
def test_dots_and_lines_can_be_seen(page, ratio):
    """A dot is where its code is and at least 3 CSS pixels wide; lines at least 1."""
    page.set_size(1000, 800, ratio)
    page.run(
        "dots.length = 0; dots.push([...toPlace([0.25, 0.75]), '#ff0000', '', 0]);"
        "walk.length = 0; walk.push(toPlace([0.5, 0.1]), toPlace([0.5, 0.2]));"
        "const corner = toPlace([0.6, 0.9]), other = toPlace([0.9, 0.6]);"
        "data.grid = [[corner[0], other[0]], [corner[1], other[1]]];"
        "choose(toPlace([0.9, 0.1])); chartLook = ''; ask()"
    )
    page.place()
    picture = page.picture("#map")
    side = len(picture)
    assert abs(side - ratio * page.box("#map")[2]) <= 1
    reddish = (picture[:, :, 0] > 150) & (picture[:, :, 1] < 110)
    rows, columns = np.nonzero(reddish)
    assert abs(rows.mean() / side - 0.75) < 0.01
    assert abs(columns.mean() / side - 0.25) < 0.01
    assert np.ptp(columns) + 1 >= 3 * ratio and np.ptp(rows) + 1 >= 3 * ratio
    ink = 255 - picture.mean(axis=2)
    walk = ink[round(0.15 * side), round(0.45 * side) : round(0.55 * side)]
    grid = ink[round(0.55 * side) : round(0.65 * side), round(0.75 * side)]
    for line in (walk, grid):
        assert line.sum() / 255 >= ratio - 0.01  # so many pixels of full black
    circle = ink[round(0.05 * side) : round(0.15 * side), round(0.9 * side)]
    assert circle.sum() / 255 >= 2 * ratio


# ----------------------------------------------------------------------------
# Mouse, fingers, keys
# ----------------------------------------------------------------------------
def expected(studio, across, down):
    """Return the place at a spot, and how far off a pixel may put it."""
    (left, right), (bottom, top) = read_data(studio[2])["bounds"]
    place = left + across * (right - left), top - down * (top - bottom)
    return pytest.approx(place, abs=0.012 * max(right - left, top - bottom))


@needs_browser
@pytest.mark.parametrize("view", ["#picture", "#map"])
def test_a_drag_moves_the_picture_and_it_stays(page, studio, view):
    before = page.picture()
    page.drag([(0.6, 0.4), (0.5, 0.5), (0.25, 0.75)], view)
    place = page.place()
    assert place == expected(studio, 0.25, 0.75)
    after = page.picture()
    assert np.abs(after - before).mean() > 1
    assert np.abs(after - decode(studio[2], [place])[0]).mean() < 5
    page.pass_over(0.5, 1.2, view)  # away from it
    assert page.place() == place


@needs_browser
def test_a_drag_goes_on_outside_and_ends_at_the_edge(page, studio):
    page.drag([(0.5, 0.5), (-0.2, 0.5)], "#map")
    assert page.place() == expected(studio, 0, 0.5)
    page.pass_over(0.5, 0.9, "#map")
    page.pass_over(0.5, 1.5, "#map")
    assert page.place() == expected(studio, 0, 0.5)  # let go: it only passed over


@needs_browser
def test_a_mouse_that_passes_over_only_looks(page, studio):
    start = page.place()
    page.pass_over(0.25, 0.75)
    assert page.place() == expected(studio, 0.25, 0.75)
    page.pass_over(0.5, 1.2)
    assert page.place() == start


@needs_browser
def test_a_mouse_that_passes_over_leaves_the_walk_alone(page, studio):
    page.run("find('#play').click()")
    page.wait("return steps > 3")
    page.pass_over(0.02, 0.02)
    page.pass_over(0.03, 0.03)
    before = page.run("return steps")
    page.wait(f"return Math.abs(steps - {before}) > 2")
    assert page.run("return walking")
    assert page.run("return here") != expected(studio, 0.03, 0.03)
    page.drag([(0.5, 0.5)], button=2)  # for the menu with "save picture as"
    assert page.run("return walking")
    page.drag([(0.3, 0.4)])  # a click
    assert page.run("return walking") is False
    assert page.place() == expected(studio, 0.3, 0.4)


@needs_browser
def test_keys_move_in_the_plane(page, studio):
    data = read_data(studio[2])
    steps = [(high - low) / 60 for low, high in data["bounds"]]
    x, y = page.place()
    page.press(LEFT * 3 + UP)
    assert page.place() == pytest.approx((x - 3 * steps[0], y + steps[1]))
    page.press(RIGHT, "#map")
    assert page.place() == pytest.approx((x - 2 * steps[0], y + steps[1]))
    page.press(DOWN, held=SHIFT)
    assert page.place() == pytest.approx((x - 2 * steps[0], y - 4 * steps[1]))
    page.press(HOME)
    assert page.place() == (x, y)
    page.press(LEFT * 14, held=SHIFT)
    assert page.place()[0] == data["bounds"][0][0]
    page.press(RIGHT + UP, "#x")  # a slider moves by the same steps
    wanted = data["bounds"][0][0] + 2 * steps[0]
    assert page.place() == pytest.approx((wanted, y))


@needs_browser
def test_keys_with_modifiers_are_the_browser_s(page):
    place = page.place()
    page.run(
        "window.taken = []; window.onkeydown = (event) => {"
        "if (event.key.length > 5 || event.key === ' ') {"
        "taken.push(event.defaultPrevented); event.preventDefault(); } }"
    )
    for view in ("#picture", "#map", "#x"):
        for held in (CONTROL, ALT, META):
            page.press(LEFT + UP + " ", view, held)
    assert page.run("return taken.includes(true)") is False
    assert page.run("return taken.length") >= 18
    assert page.place() == place
    assert page.run("return walking") is False


@needs_browser
def test_the_walk_is_that_of_the_animation(page, studio):
    assert page.text("#play") == "Walk"
    page.run("find('#play').click()")
    assert page.text("#play") == "Pause"
    before = page.picture()
    begun = page.run("return steps")
    page.wait(f"return (steps - {begun} + walk.length) % walk.length > 20")
    assert np.abs(page.picture() - before).mean() > 0.5
    page.run("find('#play').click()")
    assert page.text("#play") == "Walk"
    walk = np.array(read_data(studio[2])["walk"])
    gaps = np.linalg.norm(walk - page.place(), axis=1)
    assert gaps.min() < np.linalg.norm(np.diff(walk, axis=0), axis=1).max()
    begun = page.run("find('#play').click(); return steps")
    assert abs(begun - gaps.argmin()) < 20  # from where it stood
    page.press(" ")
    assert page.run("return walking") is False
    page.press(" ", "#map")
    assert page.run("return walking")


# ----------------------------------------------------------------------------
# Fingers: a swipe up or down is the page's, all else is the picture's
# ----------------------------------------------------------------------------
@pytest.fixture
def phone(browser, studio):
    browser.set_size(360, 640, 2, mobile=True)
    browser.command("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.open(page_of(studio[2]))
    browser.place()
    assert browser.run("return document.documentElement.scrollHeight") > 700
    return browser


@needs_browser
@pytest.mark.parametrize("view", ["#picture", "#map"])
def test_a_swipe_scrolls_the_page_and_does_not_disturb_it(phone, view):
    phone.run("play(true)")
    phone.run(  # a machine that is busy must not make a hold of the swipe
        "const wait = setTimeout;"
        "window.setTimeout = (task, time, ...rest) => wait(task, 1000 * time, ...rest)"
    )
    x, y = phone.spot(0.5, 0.8, view)
    points = [(x, y - step) for step in range(0, 130, 10)]
    phone.touch(points)
    phone.wait("return scrollY > 50")
    assert phone.run("return walking")


@needs_browser
@pytest.mark.parametrize("view", ["#picture", "#map"])
def test_a_tap_chooses_a_place(phone, studio, view):
    phone.touch([phone.spot(0.25, 0.75, view)])
    assert phone.place() == expected(studio, 0.25, 0.75)


@needs_browser
def test_a_drag_that_begins_sideways_goes_anywhere(phone, studio):
    spots = [(0.5, 0.5), (0.56, 0.5), (0.62, 0.5), (0.7, 0.5), (0.7, 0.4), (0.75, 0.25)]
    phone.touch([phone.spot(*spot) for spot in spots])
    assert phone.place() == expected(studio, 0.75, 0.25)
    assert phone.run("return scrollY") == 0


@needs_browser
def test_a_finger_that_is_held_first_goes_anywhere(phone, studio):
    spots = [(0.5, 0.5), (0.5, 0.45), (0.5, 0.4), (0.5, 0.3), (0.5, 0.25)]
    phone.touch([phone.spot(*spot) for spot in spots], "return press.drags")
    assert phone.place() == expected(studio, 0.5, 0.25)
    assert phone.run("return scrollY") == 0


# ----------------------------------------------------------------------------
# The address, and saving
# ----------------------------------------------------------------------------
@needs_browser
def test_the_address_follows_and_opens_a_place(page, studio):
    page.drag([(0.3, 0.6)])
    page.pass_over(0.3, 1.2)
    page.settle()
    address = page.run("return location.hash")
    numbers = [float(text) for text in address[1:].split(",")]
    assert numbers == pytest.approx(page.place(), abs=0.006)
    picture = page.picture()
    history = page.run("return history.length")
    page.drag([(0.6, 0.2)])
    page.settle()
    assert page.run("return history.length") == history
    page.open(page_of(studio[2]), address)
    assert page.place() == pytest.approx(numbers)
    assert np.abs(page.picture() - picture).max() < 12
    page.run("play(true); location.hash = '#0,0.25'")
    page.wait("return !walking")
    assert page.place() == (0, 0.25)


@needs_browser
def test_addresses_that_make_no_sense(browser, studio):
    data = read_data(studio[2])
    for address in ("#nonsense", "#1", "#1,x", "#NaN,0", "#1,2,3", "#"):
        browser.open(page_of(studio[2]), address)
        assert browser.place() == tuple(data["walk"][0])
    browser.open(page_of(studio[2]), "#99,-1e9")
    assert browser.place() == (data["bounds"][0][1], data["bounds"][1][0])


@needs_browser
def test_a_button_saves_the_picture(page, studio, tmp_path):
    page.command(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path)
    )
    page.go(*place_of((0.2, 0.3), read_data(studio[2])))
    page.run("find('#save').click()")
    deadline = time.monotonic() + 300
    while not (files := list(tmp_path.glob("*.png"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    name = page.run("return [data.model, ...here.map(write)].join('_')")
    assert [file.name for file in files] == [f"latent_space_{name}.png"]
    with Image.open(files[0]) as saved:
        assert saved.format == "PNG" and saved.size == (512, 512)
        small = saved.convert("RGB").resize((32, 32), Image.Resampling.BOX)
    assert np.abs(np.asarray(small) - page.picture()).mean() < 6
    page.press("s", held=CONTROL)  # no key of ours


# ----------------------------------------------------------------------------
# Screens, themes, paper
# ----------------------------------------------------------------------------
def check_shape(browser, width):
    for view in ("#picture", "#map"):
        left, _, wide, high = browser.box(view)
        assert abs(wide - high) <= 1
        assert left >= 0 and left + wide <= width
    assert browser.run("return document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize("latent_dim", [2, 3])
@pytest.mark.parametrize("width, height", SIZES)
def test_pictures_are_square_in_every_window(
    browser, studio, width, height, latent_dim
):
    browser.set_size(width, height)
    browser.open(page_of(studio[latent_dim]))
    check_shape(browser, width)
    _, top, side, _ = browser.box("#picture")
    assert top + side <= height  # all of it can be seen at once
    assert side >= 0.44 * min(width, height) and side >= 280
    # Many names and long ones make the column beside the picture higher, not wider.
    browser.run(
        "const text = 'W'.repeat(40);"
        "color.legend = Array(12).fill([text + ' ' + text, '#0000ff']); fillColors()"
    )
    check_shape(browser, width)
    for slider in browser.run(
        "return sliders.map((slider) => slider.getBoundingClientRect().height)"
    ):
        assert slider >= 24
    for button in browser.run(
        "return [find('#play'), find('#save')].map((item) => item.offsetHeight)"
    ):
        assert button >= 24


@needs_browser
@pytest.mark.parametrize("width, height", [(500, 800), (794, 1123), (1123, 794)])
def test_pictures_are_square_in_print(browser, studio, width, height):
    browser.set_size(width, height)
    browser.open(page_of(studio[2]))
    browser.set_media("print")
    check_shape(browser, width)
    assert browser.box("#controls")[3] == 0  # nobody can push buttons on paper
    assert browser.box("#colors")[3] > 0
    assert browser.text("#place") in browser.run("return document.body.innerText")


@needs_browser
def test_a_change_of_theme_is_drawn_at_once(page):
    colors = []
    for scheme in ("light", "dark", "light"):
        page.set_media(prefers_color_scheme=scheme)
        page.wait("return !asked")
        shot = base64.b64decode(page.call("/screenshot", "GET"))
        paper = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))[2, 2]
        picture = page.picture("#map").mean(axis=2)
        colors.append((paper, picture[12, 12], picture[0, 12]))  # beside, on the frame
    for paper, ground, frame in (colors[0], colors[2]):
        assert paper > 200 and ground > 200 and frame < 60
    paper, ground, frame = colors[1]
    assert paper < 60 and ground < 60 and frame > 200


@needs_browser
def test_forced_colours_leave_the_dots_theirs(browser, studio):
    browser.open(page_of(studio[2]), forced_colors="active")
    browser.place()
    wanted = browser.run("return color.legend.map((entry) => entry[1])")
    for place, color in enumerate(wanted):
        shown = browser.run(
            "return getComputedStyle(document.querySelectorAll('.chip')[arguments[0]])"
            ".backgroundColor",
            place,
        )
        red, green, blue = bytes.fromhex(color[1:])
        assert shown == f"rgb({red}, {green}, {blue})"


@needs_browser
def test_who_wants_no_motion_sees_none(browser, studio):
    browser.open(page_of(studio[2]), prefers_reduced_motion="reduce")
    start = browser.place()[0]
    browser.run(
        "window.seen = []; const old = drawMap;"
        "drawMap = () => { seen.push(here[0]); old(); }"
    )
    browser.slide(0, 1)
    assert browser.place()[0] == 1
    seen = set(browser.run("return seen"))
    assert 1 in seen and seen <= {start, 1}  # nothing on the way


# ----------------------------------------------------------------------------
# Screen readers; pages without scripts
# ----------------------------------------------------------------------------
@needs_browser
def test_everything_has_a_name_and_a_landmark(page):
    nodes = page.command("Accessibility.getFullAXTree")["nodes"]
    names = []
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in ("application", "slider", "button", "heading", "list", "status"):
            names.append((role, node["name"]["value"]))
    title = page.text("h1")
    assert sorted(names) == sorted(
        [
            ("heading", title),
            ("application", page.run("return picture.ariaLabel")),
            ("status", ""),
            ("application", "Map of the codes"),
            ("slider", "z[0]"),
            ("slider", "z[1]"),
            ("button", "Walk"),
            ("button", "Save picture"),
            ("list", "Colours: people"),
            ("list", "What the map shows"),
        ]
    )
    # Each element that shows something stands in a landmark.
    outside = page.run(
        "return [...document.body.children].map((item) => item.localName)"
        ".filter((name) => !['header', 'main', 'script'].includes(name))"
    )
    assert outside == []


@needs_browser
def test_a_screen_reader_hears_where_it_is_and_what_is_near(page, studio):
    page.settle()
    assert page.text("#said") == ""  # the page has only opened
    dot = page.run("return dots.find((dot) => dot[3] === '3')")
    page.go(*dot[:2])
    page.settle()
    said = page.text("#said")
    numbers = [f"{number:.2f}".replace("-", "\u2212") for number in dot[:2]]
    assert said.startswith(f"At {', '.join(numbers)}. ")
    assert re.search(r"earest(?: pictures)?: people 3", said)
    label = page.run("return picture.ariaLabel")
    assert label == f"Decoded picture at {', '.join(numbers)}"
    values = page.run("return sliders.map((slider) => slider.ariaValueText)")
    assert values == numbers
    # While the walk goes on, nothing is said.
    page.run("play(true)")
    page.wait(f"return measure(here, {dot[:2]}) > 0.1")
    assert page.text("#said") == said
    page.run("play(false)")
    page.settle()
    assert page.text("#said") != said


@needs_browser
def test_the_nearest_three_are_told(page):
    page.run("dots.length = 0; color.kind = 'numbers'; color.name = 'pose'")
    for across, value in ((0.5, "-0.41234"), (0.52, "0.4"), (0.53, "0.4"), (0.6, "9")):
        page.run(
            "dots.push([...toPlace([arguments[0], 0.5]), '#ff0000', arguments[1], 0])",
            across,
            value,
        )
    page.run("choose(toPlace([0.5, 0.5]))")
    page.place()
    assert page.text("#place").endswith(". Nearest pictures: pose \u22120.412, 0.4.")
    page.run("dots.length = 1; choose(toPlace([0, 0])); dots[0][3] = ''")
    page.run("measure = ((old) => (a, b) => 3 * old(a, b))(measure)")
    page.place()
    assert page.text("#place").endswith("Far from all pictures. Nearest: pose unknown.")
    page.run("color.name = ''; ask()")
    page.place()
    assert page.text("#place").endswith(". Far from all pictures.")
    page.run("dots.length = 0; ask()")
    page.place()
    assert "ictures" not in page.text("#place")


@needs_browser
@pytest.mark.parametrize("way", ["switched off", "sandbox", "broken"])
def test_without_scripts_a_sentence_stands_there(browser, studio, tmp_path, way):
    text = page_of(studio[2]).read_text(encoding="utf-8")
    file = tmp_path / "page.html"
    if way == "broken":  # as in a browser that lacks something
        lacks = "<script>delete HTMLCanvasElement.prototype.getContext</script>"
        text = text.replace("\n", f"\n{lacks}\n", 1)  # behind the doctype
    file.write_text(text, encoding="utf-8")
    if way == "sandbox":
        file = tmp_path / "frame.html"
        frame = '<iframe sandbox width="900" height="700" src="page.html"></iframe>'
        file.write_text(frame, encoding="utf-8")
    disabled = way == "switched off"
    browser.command("Emulation.setScriptExecutionDisabled", value=disabled)
    try:
        browser.call("/url", url=file.as_uri())
        if way == "sandbox":
            browser.call("/frame", id=0)
        sentence = browser.read("#missing")
        shown = {view: browser.read(view) is not None for view in ("h1", "canvas")}
        for view in ("#map", "input", "button", "figcaption", "#help"):
            shown[view] = browser.read(view) is not None
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
    assert "needs JavaScript" in sentence and "open it in a browser" in sentence
    assert shown.pop("h1")
    assert not any(shown.values())  # nothing that does nothing
    browser.log("browser")  # Chromium's own word on it


@needs_browser
def test_with_scripts_the_sentence_is_away(page):
    assert page.read("#missing") is None
    assert page.read("button") == "Walk"


# ----------------------------------------------------------------------------
# Alone
# ----------------------------------------------------------------------------
@needs_browser
def test_no_request(start, studio):
    # A browser of its own: its log of the network grows too long for all tests.
    browser = start("performance")
    page = page_of(studio[2])
    browser.open(page)
    browser.drag([(0.3, 0.3), (0.5, 0.6)])
    browser.run("play(true)")
    browser.wait("return steps > 5")
    asked = set()
    while entries := browser.log("performance"):  # it comes in parts
        for entry in entries:
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                request = message["params"]
                if request["documentURL"] == page.as_uri():  # not Chromium's own
                    asked.add(request["request"]["url"])
    assert page.as_uri() in asked
    assert len(asked) > 100  # the tiles
    for address in asked - {page.as_uri()}:
        assert urllib.parse.urlsplit(address).scheme == "data"
