"""Tests of scrape.py against servers on this machine that behave and misbehave."""

import ast
import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from conftest import copy_script, load_script, run_script, signal_at
from gallery import Gallery, make_picture
from PIL import Image

# Stands in for the pauses of real life, so that a fault costs seconds.
QUICK = {
    "ENGINES": ("commons",),
    "KEYWORDS": ("flex",),
    "MAX_NUM": 1000,
    "MIN_NUM": 1,
    "LICENSE": None,
    "CONTACT": "me@example.org",
    "HOST_DELAY": {},
    "DEFAULT_DELAY": 0,
    "ALLOW_PRIVATE_HOSTS": True,
    "MAX_BYTES": 2_000_000,
    "REQUEST_TIMEOUT": 60,
    "IMAGE_DEADLINE": 60,
    "PAGE_TIMEOUT": 60,
    "PAUSES": (0.1, 0.2, 0.4),
    "BUSY_PAUSE": 0.3,
    "LEFT_PAUSE": 1,
}
# For what never comes; a good answer on a busy machine has to come within them, too.
SHORT = {"REQUEST_TIMEOUT": 4, "IMAGE_DEADLINE": 6}


unix = pytest.mark.skipif(os.name == "nt", reason="needs signals")


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy of the user's stands between us and this machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def gallery():
    with Gallery(["127.0.0.1"] * 6) as site:
        yield site


def crawl(folder, gallery, **edits):
    """Run scrape.py against the gallery."""
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints, **edits}
    return run_script("scrape.py", folder, **settings)


def raw(folder, name=""):
    """Return the path of a file that scrape.py writes."""
    return folder / "data" / "raw" / name


def read(folder, name="manifest.jsonl"):
    """Return the lines of a manifest or of failed.jsonl; every line must be whole."""
    path = raw(folder, name)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def pictures(folder):
    """Return the names of the pictures, after a look at each of them and its line."""
    names = sorted(path.name for path in raw(folder).iterdir() if path.stem.isdigit())
    lines = {line["file"]: line for line in read(folder)}
    for name in names:
        data = raw(folder, name).read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            assert (lines[name]["width"], lines[name]["height"]) == picture.size
        assert lines[name]["bytes"] == len(data)
        assert lines[name]["sha256"] == hashlib.sha256(data).hexdigest()
    return names


def count_of(summary, kind):
    """Return how many of a kind a line of the summary counts."""
    found = re.search(f"{kind} ([0-9]+),", summary)
    return int(found[1]) if found else 0


def peak_memory(script):
    """Run a script in its folder and return the MiB of memory that it took at most."""
    code = (
        "import re, runpy\n"
        f"runpy.run_path({script.name!r}, run_name='__main__')\n"
        "text = open('/proc/self/status').read()\n"
        "print('peak', re.search('VmHWM:[^0-9]*([0-9]+) kB', text)[1])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=script.parent, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    return int(result.stdout.rpartition("peak ")[2]) / 1024


def closed_port():
    """Return the address of a port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


# Faults of image hosts


@pytest.mark.slow
def test_faults_of_images(tmp_path, gallery):
    good, rude, down, slow, hasty, sick = gallery.addresses
    saved = {
        good + "/faults/once_429_0.jpg": ".jpg",
        good + "/faults/webp_1.jpg": ".webp",
        good + "/faults/plain_1.JPG": ".jpg",
        good + "/faults/plain_2": ".jpg",
        good + "/faults/plain_3.png?sig=a%2Fb&w=9": ".jpg",
        good + "/faults/plain_größe ü.jpg": ".jpg",
        good + "/faults/gzip_1.jpg": ".jpg",
        good + "/faults/moved_1.jpg": ".jpg",
        good + "/faults/once_429_1.jpg": ".jpg",  # with good answers in between
        good + "/faults/once_503_1.jpg": ".jpg",
        good + "/faults/once_500.jpg": ".jpg",
        good + "/faults/latin.jpg": ".jpg",
        good + "/faults/once_429_2.jpg": ".jpg",
    }
    failed = {
        good + "/faults/status_404.jpg": "HTTP 404",
        good + "/faults/status_403.jpg": "HTTP 403",
        good + "/faults/status_407.jpg": "HTTP 407",
        good + "/faults/astray.jpg": "no web address",
        good + "/faults/html.jpg": "not a whole picture",
        good + "/faults/truncated.jpg": "not a whole picture",
        good + "/faults/empty.jpg": "not a whole picture",
        good + "/faults/tiny.jpg": "8 x 8 pixels",
        good + "/faults/bomb.png": "20000 x 20000 pixels",
        good + "/faults/gzip_bomb.jpg": "more than 2000000 bytes",
        good + "/faults/large.jpg": "more than 2000000 bytes",
        good + "/faults/endless.jpg": "more than 2000000 bytes",
        slow + "/faults/drip.jpg": "took too long",
        slow + "/faults/headers.jpg": "took too long",
        slow + "/faults/detour_5.jpg": "took too long",
        good + "/faults/loop.jpg": "more than five redirects",
        good + "/faults/noai.jpg": "X-Robots-Tag",
        good.replace("http", "ftp") + "/faults/plain_4.jpg": "no web address",
        "data:image/png;base64,AAAA": "no web address",
        "/relative.jpg": "no web address",
        "http://[bad/x.jpg": "no web address",
    }
    same = [good + "/faults/same_1.jpg", good + "/faults/same_2.jpg"]
    passing = [
        rude + "/faults/status_429.jpg",
        down + "/faults/status_429_99.jpg",
        sick + "/faults/status_500.jpg",
        sick + "/faults/status_503_1.jpg",
        good + "/faults/short.jpg",
        hasty + "/faults/drop.jpg",
        hasty + "/faults/status_429_" + "9" * 5000 + ".jpg",
        sick + "/faults/status_503_Fri, 31 Dec 999999 23:59:59 GMT.jpg",
        closed_port() + "/x.jpg",
        "http://no-such-host.invalid/x.jpg",
    ]
    gallery.items = [{"url": url} for url in [*saved, *same, *failed, *passing]]
    gallery.add(40, hosts=[good])
    for item in gallery.items[1:]:
        item["engines"] = ("commons",)
    result = crawl(tmp_path, gallery, ENGINES=("commons", "openverse"), **SHORT)
    assert result.returncode == 0
    assert result.stderr == ""
    lines = {line["url"]: line for line in read(tmp_path)}
    assert saved.keys() - lines.keys() == set()
    assert len(pictures(tmp_path)) == len(lines) == len(saved) + 1 + 40
    assert gallery.asked("/faults/webp_1") == 1  # listed by both engines
    for url, ending in saved.items():
        assert lines[url]["file"].endswith(ending), url
    reasons = {line["url"]: line["reason"] for line in read(tmp_path, "failed.jsonl")}
    (other,) = set(same) - lines.keys()
    assert "the bytes of" in reasons.pop(other)
    assert reasons.keys() == failed.keys()
    for url, reason in failed.items():
        assert reason in reasons[url], url
    assert lines[good + "/faults/moved_1.jpg"]["final_url"].endswith("plain_moved_1")
    assert gallery.asked("/faults/once_429_1") == 2
    assert gallery.asked("/faults/plain_3.png?sig=a%2Fb&w=9") == 1
    assert gallery.asked("/faults/loop") == 6
    assert 2 <= gallery.asked("/faults/drop") <= 5  # again after a pause, not for ever
    summary = next(line for line in result.stdout.splitlines() if "commons" in line)
    for count in ("saved 54", "duplicate 1", "too small 1", "broken 4", "HTTP 403 1",
                  "HTTP 404 1", "noai 1"):  # fmt: skip
        assert count in summary
    kinds = ("HTTP 429", "HTTP 500", "HTTP 503", "unreachable", "host left")
    assert sum(count_of(summary, kind) for kind in kinds) == len(passing) - 1  # short
    # What failed for good is not asked again; the rest is.
    del gallery.requests[:]
    assert crawl(tmp_path, gallery, **SHORT).returncode == 0
    assert gallery.asked("/pictures/") == gallery.asked("/faults/status_404") == 0
    assert gallery.asked("/faults/status_500") > 0
    assert len(pictures(tmp_path)) == len(saved) + 1 + 40
    # What took too long gets a second run, and no third one.
    slow = ("drip", "headers", "detour_5")
    assert all(gallery.asked(f"/faults/{name}") == 1 for name in slow)
    del gallery.requests[:]
    assert crawl(tmp_path, gallery, **SHORT).returncode == 0
    assert all(gallery.asked(f"/faults/{name}") == 0 for name in slow)


def test_a_thumbnail_is_taken_where_the_picture_is_gone(tmp_path, gallery):
    gone, thumb = (
        f"{gallery.address}/faults/{name}" for name in ("status_404", "plain_9")
    )
    gallery.items = [{"url": gone, "thumbnail": thumb}]
    assert crawl(tmp_path, gallery, ENGINES=("openverse",)).returncode == 0
    (line,) = read(tmp_path)
    assert (line["url"], line["final_url"]) == (gone, thumb)
    assert not raw(tmp_path, "failed.jsonl").exists()


def test_a_status_that_may_change_is_not_final(tmp_path, gallery):
    names = ("status_408", "status_425", "status_501", "status_410")
    gallery.items = [{"url": f"{gallery.address}/faults/{name}"} for name in names]
    for _ in range(2):
        assert crawl(tmp_path, gallery, MIN_NUM=0).returncode == 0
    assert [gallery.asked(f"/faults/{name}") for name in names] == [2, 2, 2, 1]
    (line,) = read(tmp_path, "failed.jsonl")
    assert line["reason"] == "HTTP 410"


def test_one_image_host_in_five_is_dead(tmp_path, gallery):
    gallery.add(200, hosts=[*gallery.addresses[:4], closed_port()])
    result = crawl(tmp_path, gallery)
    assert result.returncode == 0
    assert len(pictures(tmp_path)) == 160
    assert count_of(result.stdout, "host left") > 30  # it was asked no more


def test_private_addresses_are_refused_on_the_socket(tmp_path, gallery, monkeypatch):
    gallery.add(3)
    port = gallery.address.rpartition(":")[2]
    urls = [item["url"] for item in gallery.items]
    urls += [f"http://localhost:{port}/pictures/00000.jpg"]  # a name that leads here
    urls += [f"http://[::ffff:127.0.0.1]:{port}/pictures/00000.jpg"]
    urls += [f"https://127.0.0.1:{port}/pictures/00000.jpg"]  # before any handshake
    urls += [f"http://2130706433:{port}/pictures/00000.jpg"]  # the same in one number
    urls += [f"http://[::1]:{port}/x.jpg", "http://10.0.0.1/x.jpg"]
    urls += ["http://169.254.169.254/latest/meta-data"]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    edits = {"ENGINES": ("urls",), "URL_FILE": "urls.txt", "ALLOW_PRIVATE_HOSTS": False}
    result = crawl(tmp_path, gallery, **edits)
    assert result.returncode == 1
    assert gallery.requests == []
    reasons = [line["reason"] for line in read(tmp_path, "failed.jsonl")]
    assert len(reasons) == 10
    assert all("not a public address" in reason for reason in reasons)
    # A server on the web (reached by a proxy, as there is no web here) leads us home.
    monkeypatch.setenv("HTTP_PROXY", gallery.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    urls = ["http://web.example/faults/private", "http://web.example/faults/plain_1"]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert gallery.asked("/pictures/private") == 0
    assert [line["url"] for line in read(tmp_path)] == urls[1:]
    assert "not a public" in read(tmp_path, "failed.jsonl")[-1]["reason"]
    # Nor is the proxy asked for an address that is private by its numbers.
    monkeypatch.delenv("NO_PROXY")
    del gallery.requests[:]
    urls = ["http://10.1.2.3/faults/plain_2", "http://8.8.8.8/faults/plain_3"]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    crawl(tmp_path, gallery, **edits)
    assert [path for path, _ in gallery.requests] == urls[1:]


@pytest.mark.slow
def test_bounds_hold_behind_a_proxy(tmp_path, gallery, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", gallery.address)
    names = ("drip", "headers", "endless", "plain_1")
    urls = [f"http://web.example/faults/{name}" for name in names]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    edits = {"ENGINES": ("urls",), "URL_FILE": "urls.txt", "ALLOW_PRIVATE_HOSTS": False}
    assert crawl(tmp_path, gallery, **edits, **SHORT).returncode == 0
    assert [line["url"] for line in read(tmp_path)] == urls[3:]
    reasons = {line["url"]: line["reason"] for line in read(tmp_path, "failed.jsonl")}
    assert "took too long" in reasons[urls[0]]
    assert "took too long" in reasons[urls[1]]
    assert "more than 2000000 bytes" in reasons[urls[2]]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1",
        "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "2002:7f00:1::", "2001::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1",
        "192.0.0.8", "192.88.99.1", "168.63.129.16", "224.0.0.1", "239.255.255.250",
        "240.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_addresses_that_are_not_for_us(address):
    scrape = load_script("scrape.py")
    with pytest.raises(scrape.PictureFailure, match="not a public address"):
        scrape.check_public(address)
    for public in ("8.8.8.8", "2606:4700::1111", "192.0.1.1", "168.63.129.17"):
        scrape.check_public(public)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "localhost", "LOCALHOST.",
        "a.localhost", "[::1]", "10.1.2.3",
    ],
)  # fmt: skip
def test_private_numbers_in_other_dress_are_not_asked_of_a_proxy(
    tmp_path, gallery, monkeypatch, host
):
    monkeypatch.setenv("HTTP_PROXY", gallery.address)
    urls = [f"http://{host}/faults/plain_1", "http://web.example/faults/plain_2"]
    (tmp_path / "urls.txt").write_text("\n".join(urls), encoding="utf-8")
    edits = {"ENGINES": ("urls",), "ALLOW_PRIVATE_HOSTS": False}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert [line["url"] for line in read(tmp_path)] == urls[1:]
    assert len(gallery.requests) == 1
    (line,) = read(tmp_path, "failed.jsonl")
    assert "not a public address" in line["reason"]


def test_no_password_of_the_user_is_sent(tmp_path, gallery, monkeypatch):
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    names = ("plain_1", "moved_2", "elsewhere_3", "login")
    gallery.items = [{"url": f"{gallery.address}/faults/{name}"} for name in names]
    assert crawl(tmp_path, gallery).returncode == 0
    assert len(pictures(tmp_path)) == 3
    assert len(gallery.requests) > 6
    for _, headers in gallery.requests:
        assert "Authorization" not in headers


def test_pictures_of_other_kinds_and_bombs(tmp_path, gallery):
    kinds = {"heic": "HEIC", "jxl": "JPEG XL", "jxlbare": "JPEG XL", "jp2": "JP2",
             "ico": "ICO", "svg": "SVG"}  # fmt: skip
    names = [f"kind_{name}" for name in kinds] + ["scans_2500", "scans_5", "empty"]
    gallery.items = [{"url": f"{gallery.address}/faults/{name}"} for name in names]
    result = crawl(tmp_path, gallery)
    assert [line["url"][-7:] for line in read(tmp_path)] == ["scans_5"]
    assert count_of(result.stdout, "other kind") == 6
    reasons = {}
    for line in read(tmp_path, "failed.jsonl"):
        reasons[line["url"].rpartition("/")[2]] = line["reason"]
    for name, word in kinds.items():
        assert reasons[f"kind_{name}"] == f"of a kind we do not take ({word})"
    assert reasons["scans_2500"] == "a JPEG of more than 500 scans"
    assert reasons["empty"] == "not a whole picture"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")
def test_one_picture_at_a_time_is_unpacked(tmp_path, gallery):
    """Four of 49 megapixels do not take four times the memory of one of them.

    They do take somewhat more: malloc keeps for each thread what it has freed.
    """
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000), "grey").save(file, "WEBP", quality=1, method=0)
    peaks = []
    for count in (1, 4):
        gallery.items = []
        for number in range(count):
            path = f"/large_{number}"
            gallery.pictures[path] = file.getvalue() + bytes(number)
            gallery.items.append({"url": gallery.addresses[number] + path})
        folder = tmp_path / str(count)
        folder.mkdir()
        edits = {"ENDPOINTS": gallery.endpoints, "IMAGE_DEADLINE": 60}
        peaks.append(
            peak_memory(copy_script("scrape.py", folder, **{**QUICK, **edits}))
        )
        assert len(pictures(folder)) == count
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.slow
def test_what_may_be_our_own_slowness_gets_a_second_run(tmp_path, gallery):
    names = ("cut", "encoding_xyz", "encoding_gzip", "drip", "encoding_none")
    gallery.items = [{"url": f"{gallery.address}/faults/{name}"} for name in names]
    for run, lines in ((1, 4), (2, 8), (3, 8)):
        del gallery.requests[:]
        crawl(tmp_path, gallery, **SHORT)
        assert len(read(tmp_path, "failed.jsonl")) == lines
        for name in names[:4]:
            assert gallery.asked(f"/faults/{name}") == (run < 3)
    assert len(pictures(tmp_path)) == 1  # encoding_none


def drip_to(server):
    """Take one connection of a server and send a byte a second, for ever."""
    with contextlib.suppress(OSError):  # the other side hung up, or the test is over
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a long TLS record begins
            while True:
                connection.sendall(b"\0")
                time.sleep(1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_over_tls(tmp_path, gallery, monkeypatch):
    """Deadlines hold in a handshake, in headers and in a body."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem "
        "-days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = gallery.servers[1]
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    secure = gallery.addresses[1].replace("http:", "https:")
    with socket.create_server(("127.0.0.1", 0)) as trickle:
        threading.Thread(target=drip_to, args=[trickle], daemon=True).start()
        slow = [f"{secure}/faults/{name}" for name in ("drip", "headers")]
        shaking = f"https://127.0.0.1:{trickle.getsockname()[1]}/x.jpg"
        good = [f"{secure}/faults/plain_{number}" for number in range(5)]
        gallery.items = [{"url": url} for url in [shaking, *slow, *good]]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
        result = crawl(tmp_path, gallery, **SHORT)
    assert result.returncode == 0
    assert "unreachable 1" in result.stdout  # the handshake did not come to an end
    assert {line["url"] for line in read(tmp_path)} == set(good)
    reasons = {line["url"]: line["reason"] for line in read(tmp_path, "failed.jsonl")}
    assert reasons == dict.fromkeys(slow, "took too long in all")
    # A file of certificates that is not there is nobody's fault but ours.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "nowhere.pem")
    result = crawl(tmp_path, gallery)
    assert result.returncode == 1
    assert "REQUESTS_CA_BUNDLE names nowhere.pem" in result.stderr


@pytest.mark.filterwarnings("ignore")
def test_nothing_odd_in_a_picture_or_a_title_is_passed_on(tmp_path, gallery):
    gallery.add(1, title="Half a \ud800 character", creator="R&D <b>~x~</b> $1")
    gallery.items.append({"url": gallery.address + "/faults/\ud800"})
    file = io.BytesIO()
    pages = [Image.new("RGB", (160, 160), colour) for colour in ("red", "blue")]
    pages[0].save(file, "MPO", save_all=True, append_images=pages[1:])
    gallery.pictures["/several"] = file.getvalue()
    gallery.items.append({"url": gallery.address + "/several"})
    data = file.getvalue()[:-100]
    place = data.index(b"MPF\0") + 8  # Pillow warns of these
    gallery.pictures["/odd"] = data[:place] + b"\xff" * 4 + data[place + 4 :]
    gallery.items.append({"url": gallery.address + "/odd"})
    result = crawl(tmp_path, gallery)
    assert (result.returncode, result.stderr) == (0, "")
    assert pictures(tmp_path) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    text = raw(tmp_path, "CREDITS.md").read_text(encoding="utf-8")
    assert "Half a character" in text
    assert r"R\&D \~x\~ \$1" in text


# Hosts that are away for a moment


@pytest.mark.slow
def test_a_host_that_comes_late_loses_nothing(tmp_path):
    """Refused for three seconds, at the settings that scrape.py has."""
    with Gallery(["127.0.0.1"] * 2, away=(1,)) as gallery:
        gallery.add(30, hosts=gallery.addresses[1:])
        timer = threading.Timer(3, gallery.arrive, [1])
        edits = {"PAUSES": (1, 2, 4), "LEFT_PAUSE": 30}
        timer.start()
        assert crawl(tmp_path, gallery, **edits).returncode == 0
        timer.join()
        assert len(pictures(tmp_path)) == 30


@pytest.mark.slow
def test_a_host_that_was_left_gets_another_chance(tmp_path, gallery):
    """It hangs up more often than there are PAUSES, so that it is left for a while."""
    gallery.add(60, hosts=gallery.addresses[1:3])
    gallery.hang_up[1] = range(5, 11)
    assert crawl(tmp_path, gallery, LEFT_PAUSE=2).returncode == 0
    assert len(pictures(tmp_path)) == 60
    times = []
    for item in gallery.items:
        host, _, path = item["url"].partition("/pictures/")
        if host == gallery.addresses[1]:
            times += gallery.times[f"/pictures/{path}"]
    gaps = [after - before for before, after in itertools.pairwise(sorted(times))]
    assert max(gaps) > 1.9


def test_a_host_that_never_answered_gets_one_more_chance(tmp_path, gallery):
    dead = closed_port()
    gallery.add(20, hosts=[dead])
    gallery.add(5, start=100, hosts=[gallery.address])
    result = crawl(tmp_path, gallery, LEFT_PAUSE=0.5)
    assert len(pictures(tmp_path)) == 5
    assert not raw(tmp_path, "failed.jsonl").exists()
    assert count_of(result.stdout, "host left") == 19
    assert "unreachable 1" in result.stdout


def look_up_here(folder, monkeypatch, away=0):
    """Let the name pictures.example lead to this machine, after some seconds.

    Neither EAI_AGAIN nor such a name can be had from a server: the look-up is put in
    other hands.
    """
    (folder / "sitecustomize.py").write_text(
        "import socket, time\n"
        "real, first = socket.getaddrinfo, []\n"
        "def getaddrinfo(host, *args, **kwargs):\n"
        "    if host == 'pictures.example':\n"
        "        first.append(time.monotonic())\n"
        f"        if time.monotonic() < first[0] + {away}:\n"
        "            raise socket.gaierror(socket.EAI_AGAIN, 'Try again')\n"
        "        host = '127.0.0.1'\n"
        "    return real(host, *args, **kwargs)\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_names_that_cannot_be_looked_up_for_a_moment(tmp_path, gallery, monkeypatch):
    look_up_here(tmp_path, monkeypatch, away=0.5)
    place = gallery.address.replace("127.0.0.1", "pictures.example")
    gallery.add(30, hosts=[place])
    assert crawl(tmp_path, gallery, LEFT_PAUSE=30).returncode == 0
    assert len(pictures(tmp_path)) == 30


def test_a_public_name_that_leads_to_a_private_address(tmp_path, gallery, monkeypatch):
    look_up_here(tmp_path, monkeypatch)
    gallery.add(1)
    place = gallery.address.replace("127.0.0.1", "pictures.example")
    urls = [f"{place}/pictures/00000.jpg", place.replace("http:", "https:") + "/x.jpg"]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    edits = {"ENGINES": ("urls",), "ALLOW_PRIVATE_HOSTS": False}
    assert crawl(tmp_path, gallery, **edits).returncode == 1
    assert gallery.requests == []
    for line in read(tmp_path, "failed.jsonl"):
        assert "127.0.0.1 is not a public address" in line["reason"]
    # Nor is an engine asked there.
    ends = {"commons": f"{place}/w/api.php"}
    result = crawl(tmp_path, gallery, ENDPOINTS=ends, ALLOW_PRIVATE_HOSTS=False)
    assert "refused: 127.0.0.1 is not a public address" in result.stderr
    assert gallery.requests == []


def test_a_slow_host_does_not_hold_all_threads(tmp_path, gallery):
    """Its pictures stand first, and never come; the others need not wait for that."""
    silent = [f"{gallery.addresses[1]}/faults/silent_{number}" for number in range(8)]
    gallery.items = [{"url": url} for url in silent]
    gallery.add(30, hosts=[gallery.addresses[2]])
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints, "REQUEST_TIMEOUT": 600}
    settings["IMAGE_DEADLINE"] = 600
    copy = copy_script("scrape.py", tmp_path, **settings)
    process = subprocess.Popen([sys.executable, copy.name], cwd=tmp_path)
    wait_for(lambda: len(list(raw(tmp_path).glob("0*"))) == 30)
    assert process.poll() is None  # it still waits for the first two
    assert gallery.asked("/faults/silent") == 2
    process.kill()
    process.wait()


# Our own environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("http://:3128", "is no address of a proxy"),
        ("http://proxy:port", "is no address of a proxy"),
        ("gopher://proxy:1", "is no address of a proxy"),
        ("CLOSED", "cannot be reached: Connection refused"),
        ("http://no-such-host.invalid:3128", "cannot be reached"),
        ("socks5://127.0.0.1:1080", "pip install pysocks"),
    ],
)
def test_a_proxy_that_cannot_be_used(tmp_path, gallery, monkeypatch, value, words):
    if value.startswith("socks") and importlib.util.find_spec("socks"):
        pytest.skip("PySocks is installed")
    gallery.add(6)
    if value == "CLOSED":
        value = closed_port()
    monkeypatch.setenv("HTTPS_PROXY", value)
    result = crawl(tmp_path, gallery, MIN_NUM=0)
    assert result.returncode == 1
    assert words in result.stderr
    assert "HTTPS_PROXY" in result.stderr
    assert result.stderr.count("\n") == 1
    assert gallery.requests == []
    assert not raw(tmp_path).exists()
    # It is not asked for anything where NO_PROXY says so.
    monkeypatch.setenv("NO_PROXY", "*")
    assert crawl(tmp_path, gallery).returncode == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password(tmp_path, gallery, monkeypatch, scheme):
    (tmp_path / "urls.txt").write_text(f"{scheme}://web.example/faults/status_407\n")
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", gallery.address)
    result = crawl(tmp_path, gallery, ENGINES=("urls",))
    assert result.returncode == 1
    assert "The proxy wants a password" in result.stderr
    assert not raw(tmp_path, "failed.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="there is no such limit")
def test_too_few_file_handles(tmp_path, gallery):
    gallery.add(6)
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints}
    copy = copy_script("scrape.py", tmp_path, **settings)
    command = f"ulimit -n 64; exec {sys.executable} {copy.name}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Only 64 files may be open at once")
    assert gallery.requests == []
    assert not raw(tmp_path).exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("end", [">/dev/full", "|", ">&-"])
def test_a_stdout_that_is_closed(tmp_path, gallery, end):
    gallery.add(6)
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints}
    copy = copy_script("scrape.py", tmp_path, **settings)
    command = f"{sys.executable} {copy.name} {end.strip('|')}"
    ours, theirs = os.pipe()
    os.close(ours)  # "|": whoever read from it has gone
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, text=True,
        stdout=theirs, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    if end == ">&-":  # nobody wants to see it
        assert (result.returncode, result.stderr) == (0, "")
        return
    assert result.returncode == 1
    assert result.stderr.startswith("Cannot write to stdout: ")
    assert result.stderr.count("\n") == 1
    assert gallery.requests == []


def test_in_a_notebook(tmp_path, gallery):
    """Its stdout is no real stream: it has no `reconfigure` and no number."""
    gallery.add(6)
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints}
    copy = copy_script("scrape.py", tmp_path, **settings)
    (tmp_path / "notebook.py").write_text(
        "import io, runpy, sys\n"
        "class Out(io.TextIOBase):\n"
        "    def write(self, text):\n"
        "        return sys.__stdout__.write(text)\n"
        "sys.stdout = Out()\n"
        f"runpy.run_path({str(copy)!r}, run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Wrote data/raw (6 images, " in result.stdout


# Faults of engines


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "cirrussearch-too-busy-error", "ratelimited", "readonly",
        "internal_api_error_DBQueryError",
    ],
)  # fmt: skip
def test_a_passing_error_of_the_api_of_commons_passes(tmp_path, gallery, code):
    gallery.add(60, keyword="a")
    gallery.add(5, start=100, keyword="b")
    gallery.modes["commons"] = ["ok", f"error:{code}"]
    assert crawl(tmp_path, gallery, KEYWORDS=("a", "b")).returncode == 0
    assert len(pictures(tmp_path)) == 65


@pytest.mark.slow
def test_a_query_that_fails_costs_no_other_one(tmp_path, gallery):
    long = "マッチョ" * 30
    for start, word in enumerate(("a", long, "b", "c")):
        gallery.add(5, start=100 * start, keyword=word)
    gallery.query_modes["filetype:bitmap b"] = 500
    words = ("a", long, "b", "c")
    result = crawl(tmp_path, gallery, KEYWORDS=words)
    assert result.returncode == 0
    found = [line["keyword"] for line in read(tmp_path)]
    assert sorted(set(found)) == ["a", "c"]
    assert len(found) == 10
    assert "Search request is longer than the maximum" in result.stdout
    assert 'commons "b": saved 0' in result.stdout
    # Of Openverse one licence is out of order.
    gallery.query_modes["by-nc"] = 503
    other = tmp_path / "other"
    other.mkdir()
    gallery.items = []
    gallery.add(40)
    assert crawl(other, gallery, ENGINES=("openverse",)).returncode == 0
    assert len(pictures(other)) == 35


@pytest.mark.slow
def test_three_queries_that_fail_in_a_row_end_an_engine(tmp_path, gallery):
    gallery.add(5, keyword="e")
    for word in "abcd":
        gallery.query_modes[f"filetype:bitmap {word}"] = 500
    result = crawl(tmp_path, gallery, KEYWORDS=tuple("abcde"))
    assert result.returncode == 1
    assert gallery.asked("/w/api.php") == 3 * 4
    assert "three queries in a row failed" in result.stderr
    # A good one in between, and it goes on.
    gallery.add(5, start=10, keyword="x")
    words = tuple("abxcde")
    assert crawl(tmp_path, gallery, KEYWORDS=words).returncode == 0
    assert len(pictures(tmp_path)) == 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", [429, "wait"])
def test_429_without_retry_after(tmp_path, gallery, mode):
    gallery.add(90)
    gallery.modes["openverse"] = ["ok", mode, "ok", mode]
    result = crawl(tmp_path, gallery, ENGINES=("openverse",), BUSY_PAUSE=1)
    assert result.returncode == 0
    assert len(pictures(tmp_path)) == 90
    pages = gallery.times["/v1/images/"]
    gaps = [after - before for before, after in itertools.pairwise(pages)]
    assert gaps[1] > 0.9 and gaps[3] > 0.9  # after each of the two


def test_an_image_host_that_says_429_without_a_word(tmp_path, gallery):
    url = f"{gallery.addresses[1]}/faults/busy_429_3"
    gallery.items = [{"url": url}]
    assert crawl(tmp_path, gallery).returncode == 0
    assert len(pictures(tmp_path)) == 1


def test_a_quota_that_a_cache_tells_of_is_not_ours(tmp_path, gallery):
    gallery.add(90)
    gallery.modes["openverse"] = ["old quota"] * 20
    result = crawl(tmp_path, gallery, ENGINES=("openverse",))
    assert len(pictures(tmp_path)) == 90
    assert "used up" not in result.stdout


def test_answers_of_commons_in_parts(tmp_path, gallery):
    """`iicontinue` asks for the second part, and must not stick to the next page."""
    gallery.add(120)
    gallery.parts = True
    result = crawl(tmp_path, gallery)
    assert len(pictures(tmp_path)) == 120
    assert "unreadable" not in result.stdout
    assert gallery.asked("/w/api.php") == 6


@pytest.mark.parametrize("count", [20, 70])
def test_the_end_mark_of_bing(tmp_path, gallery, count):
    gallery.add(count)
    assert crawl(tmp_path, gallery, ENGINES=("bing",)).returncode == 0
    assert len(pictures(tmp_path)) == count
    assert gallery.asked("/images/async") == -(-count // 35)


def test_google_is_refused_in_one_line(tmp_path, gallery):
    result = crawl(tmp_path, gallery, ENGINES=("google",))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    for word in ("2025", "commons", "openverse", "urls", "bing"):
        assert word in result.stderr
    assert gallery.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "mode", "words"),
    [
        ("commons", "empty", "answered but empty"),
        ("commons", "malformed", "unreadable"),
        ("commons", "half", "unreadable"),
        ("commons", "other shape", "unreadable"),
        ("commons", "error:badvalue", "refused: its API says: The search is <off>"),
        ("commons", "error:readonly", "refused: its API says: The search is <off>"),
        ("commons", "error:ratelimited", "refused: its API says: The search is <off>"),
        ("commons", "silent", "unreachable"),
        ("commons", 403, "refused: HTTP 403"),
        ("commons", 404, "refused: HTTP 404"),
        ("commons", 500, "refused: HTTP 500"),
        ("commons", (503, "999"), "refused: HTTP 503"),
        ("commons", "short", "unreadable: cut short"),
        ("openverse", "silent", "unreachable"),
        ("openverse", "empty", "answered but empty"),
        ("openverse", "half", "unreadable"),
        ("openverse", "other shape", "unreadable"),
        ("openverse", "error:", "unreadable"),
        ("openverse", (429, "1"), "HTTP 429"),
        ("bing", "blank", "answered but empty"),
        ("bing", "end", "answered but empty"),
        ("bing", "malformed", "unreadable"),
        ("bing", "other shape", "unreadable"),
        ("bing", "captcha", "refused: it wants a captcha"),
    ],
)
def test_faults_of_engines(tmp_path, gallery, engine, mode, words):
    gallery.add(5)
    gallery.modes[engine] = mode
    edits = {}
    if mode == "silent":
        edits["PAGE_TIMEOUT"] = 1
    result = crawl(tmp_path, gallery, ENGINES=(engine,), **edits)
    assert result.returncode == 1
    assert words in result.stderr
    assert "fewer than MIN_NUM = 1" in result.stderr
    assert "Traceback" not in result.stderr
    assert f'{engine} "flex": saved 0' in result.stdout
    if mode == "silent":  # nobody waits for it twice
        assert len(gallery.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["commons", "openverse", "bing"])
def test_a_passing_fault_of_an_engine_costs_nothing(tmp_path, gallery, engine):
    gallery.add(90)
    gallery.modes[engine] = ["odd", (429, "1"), "half", "ok", "malformed"]
    if engine == "bing":
        gallery.modes[engine] = ["odd", "blank", "ok", "malformed"]
    result = crawl(tmp_path, gallery, ENGINES=(engine,))
    assert result.returncode == 0
    assert len(pictures(tmp_path)) == 90


def test_an_odd_entry_among_others_that_are_left_out(tmp_path, gallery):
    """The page is read all the same: nobody needs to ask for it again."""
    gallery.add(5, license="by-nc")
    gallery.modes["commons"] = "odd"
    result = crawl(tmp_path, gallery, LICENSE="commercial")
    assert "commons: answered but empty" in result.stderr
    assert gallery.asked("/w/api.php") == 1


def test_addresses_of_any_kind_are_kept_as_they_are(tmp_path, gallery):
    word, here = "R&D + 50% C#", gallery.addresses[1]
    names = ["plain_1.png?sig=a%2Fb=&w=9", "plain_2.JPEG", "plain_3", "plain_ü.webp"]
    urls = [f"{here}/faults/{name}" for name in names]
    gallery.items = [{"url": url, "keyword": word} for url in urls]
    gallery.add(70, keyword=word)
    thumbnail = f"{here}/faults/plain_9"
    gallery.items.append({"url": "/x.jpg", "thumbnail": thumbnail, "keyword": word})
    result = crawl(tmp_path, gallery, ENGINES=("bing",), KEYWORDS=(word,))
    assert result.returncode == 0
    saved = {line["url"] for line in read(tmp_path)}
    assert saved == {item["url"] for item in gallery.items}
    assert len(pictures(tmp_path)) == len(gallery.items)
    assert {line["keyword"] for line in read(tmp_path)} == {word}
    assert "duplicate 0" in result.stdout  # pages do not overlap


def test_an_engine_that_has_moved_is_followed_but_not_round_and_round(
    tmp_path, gallery
):
    gallery.add(5)
    ends = {"commons": f"{gallery.address}/faults/mirror"}
    assert crawl(tmp_path, gallery, ENDPOINTS=ends, MAX_NUM=5).returncode == 0
    assert len(pictures(tmp_path)) == 5
    ends = {"commons": f"{gallery.address}/faults/loop"}
    result = crawl(tmp_path, gallery, ENDPOINTS=ends, MIN_NUM=6)
    assert "commons: refused: more than five redirects" in result.stderr
    assert gallery.asked("/faults/loop") == 6


@pytest.mark.slow
def test_an_unreachable_engine_is_left_and_the_next_one_asked(tmp_path, gallery):
    gallery.add(5)
    ends = {**gallery.endpoints, "commons": f"{closed_port()}/w/api.php"}
    engines = ("commons", "openverse")
    result = crawl(tmp_path, gallery, ENGINES=engines, ENDPOINTS=ends, MIN_NUM=5)
    assert result.returncode == 0
    assert "unreachable: 127.0.0.1: [Errno" in result.stdout
    ends["openverse"] = "http://no-such-host.invalid/v1/images/"
    other = tmp_path / "other"
    other.mkdir()
    words = ("flex", "pose", "curl")
    result = crawl(other, gallery, ENGINES=engines, ENDPOINTS=ends, KEYWORDS=words)
    assert result.returncode == 1
    assert "commons: unreachable" in result.stderr
    assert "openverse: unreachable: no-such-host.invalid" in result.stderr
    assert "python tests/draw_athletes.py" in result.stderr


@pytest.mark.slow
def test_silent_engines_cost_less_than_a_minute_in_all(tmp_path, gallery):
    gallery.modes["commons"] = "silent"
    ends = {**gallery.endpoints, "openverse": closed_port()}
    engines = ("commons",) + ("openverse",) * 24  # two of the 50 s are for the first
    edits = {"ENGINES": engines, "ENDPOINTS": ends, "PAGE_TIMEOUT": 600}
    edits["PAUSES"] = (0,)
    result = crawl(tmp_path, gallery, **edits)
    assert "commons: unreachable" in result.stderr
    assert len(gallery.requests) == 1


@pytest.mark.slow
def test_a_slow_page_of_results_is_waited_for(tmp_path, gallery):
    gallery.add(5)
    gallery.modes["commons"] = "slow"
    edits = {"ENGINES": ("commons", "openverse"), "REQUEST_TIMEOUT": 5, "MAX_NUM": 5}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert {line["engine"] for line in read(tmp_path)} == {"commons"}


# Asking


@pytest.mark.slow
def test_keywords_share_and_a_second_round_takes_the_rest(tmp_path, gallery):
    gallery.add(50, keyword="a b")  # a page of results each
    gallery.add(4, start=100, keyword="R&D + 50% C#")
    gallery.add(50, start=200, keyword="ü")
    words = ("a b", "R&D + 50% C#", "ü")
    result = crawl(tmp_path, gallery, KEYWORDS=words, MAX_NUM=37)
    assert result.returncode == 0
    found = [line["keyword"] for line in read(tmp_path)]
    assert len(pictures(tmp_path)) == 37
    assert found.count("R&D + 50% C#") == 4
    assert found[:30].count("a b") == found[:30].count("ü") == 13
    assert gallery.asked("/w/api.php") == 3  # nothing is asked for twice
    # A larger MAX_NUM: the shares are of the folder, not of the run.
    assert crawl(tmp_path, gallery, KEYWORDS=words, MAX_NUM=81).returncode == 0
    found = [line["keyword"] for line in read(tmp_path)]
    assert (len(found), found.count("ü")) == (81, 27)


@pytest.mark.parametrize("engine", ["commons", "bing"])
def test_an_engine_that_repeats_itself_is_left(tmp_path, gallery, engine):
    gallery.add(30)
    gallery.modes[engine] = "repeat"
    assert crawl(tmp_path, gallery, ENGINES=(engine,)).returncode == 0
    assert len(pictures(tmp_path)) == 30
    assert len(gallery.requests) - gallery.asked("/pictures/") == 4


def test_no_page_is_asked_for_before_it_is_needed(tmp_path, gallery):
    gallery.add(500)
    gallery.delay = 0.05
    assert crawl(tmp_path, gallery, MAX_NUM=60).returncode == 0
    assert gallery.asked("/w/api.php") <= 3  # of ten


@pytest.mark.slow
def test_a_page_that_was_waited_for_comes_in_the_second_round(tmp_path, gallery):
    gallery.add(60, keyword="a")
    gallery.add(5, start=100, keyword="b")
    gallery.delay = 0.1
    address = gallery.address.replace("127.0.0.1", "localhost") + "/w/api.php"
    edits = {"ENDPOINTS": {"commons": address}, "HOST_DELAY": {"localhost": 3}}
    edits |= {"KEYWORDS": ("a", "b"), "MAX_NUM": 64}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert len(pictures(tmp_path)) == 64  # 50 of "a" are on its first page
    assert gallery.asked("/w/api.php") == 3


def test_what_an_engine_listed_is_fetched_though_it_refuses_later(tmp_path, gallery):
    gallery.add(30, keyword="a")
    gallery.modes["commons"] = ["ok", 403]
    result = crawl(tmp_path, gallery, KEYWORDS=("a", "b", "c"), MAX_NUM=24)
    assert result.returncode == 0
    assert len(pictures(tmp_path)) == 24
    assert gallery.asked("/w/api.php") == 2  # for "c" it is not asked any more
    assert 'commons "b": saved 0' in result.stdout
    assert "refused: HTTP 403" in result.stdout


def test_budget_and_daily_quota(tmp_path, gallery):
    gallery.add(300)
    edits = {"ENGINES": ("openverse",), "PAGE_BUDGET": {"openverse": 3}}
    result = crawl(tmp_path, gallery, **edits)
    assert gallery.asked("/v1/images/") == 3
    assert "PAGE_BUDGET" in result.stdout
    gallery.modes["openverse"] = "quota"
    del gallery.requests[:]
    result = crawl(tmp_path, gallery, ENGINES=("openverse",))
    assert "today's answers are used up" in result.stdout
    assert gallery.asked("/v1/images/") == 1


def test_openverse_gives_more_than_one_query_shows(tmp_path, gallery):
    gallery.add(400)
    edits = {"ENGINES": ("openverse",), "MIN_NUM": 400}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert len(pictures(tmp_path)) == 400
    for path, _ in gallery.requests:
        assert "mature" not in path
        assert "filter_dead=false" in path or "/pictures/" in path


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ok", "many"])
def test_openverse_is_not_asked_for_more_than_it_shows(tmp_path, gallery, mode):
    gallery.add(260, license="by")
    gallery.modes["openverse"] = mode
    result = crawl(tmp_path, gallery, ENGINES=("openverse",))
    assert len(pictures(tmp_path)) == 240
    assert gallery.asked("/v1/images/") == 12 + 7  # the other licences have no picture
    assert "refused: " not in result.stdout


@pytest.mark.slow
def test_licence_filters(tmp_path, gallery):
    gallery.add(16)
    gallery.add(1, start=99, bare=True, engines=("commons", "bing"))
    for engines, license_name, count in [
        (("openverse",), "commercial,modify", 8),
        (("openverse",), "noncommercial,modify", 12),
        (("openverse",), "commercial", 10),
        (("commons",), "commercial", 10),  # BY-NC is not what was asked for
        (("commons",), "commercial,modify", 8),
        (("commons",), "noncommercial", 16),
        (("commons",), None, 17),
        (("bing",), "commercial,modify", 17),
    ]:
        folder = tmp_path / f"{engines[0]}-{license_name}"
        folder.mkdir()
        edits = {"ENGINES": engines, "LICENSE": license_name}
        assert crawl(folder, gallery, **edits).returncode == 0
        lines = read(folder)
        assert len(lines) == count
        words = {line["license_filter"] for line in lines}
        told = license_name
        if engines == ("bing",):
            told += " (Bing's word, not checked)"
        assert words == {told}
        licensed = [line for line in lines if line["license"] and line["license_url"]]
        assert len(licensed) == (0 if engines == ("bing",) else min(count, 16))
    path = next(
        path for path, _ in gallery.requests if path.startswith("/images/async")
    )
    assert "qft=%2Bfilterui%3Alicense-L2_L3&" in path + "&"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "creator"),
    [
        ({"Artist": "John Doe<br>Jane Roe"}, "John Doe Jane Roe"),
        ({"Attribution": "As I wish", "Artist": "Ann"}, "As I wish"),
        ({"Artist": "", "Credit": "<i>Own</i> work"}, "Own work"),
        ({"Artist": "<ul><li>Ann</li><li>Bo</li></ul>"}, "Ann Bo"),
        ({"Artist": "<style>.a{color:red}</style><b>An</b>n"}, "Ann"),
        ({"Artist": 'Ann<span style="display: none">creator</span>'}, "Ann"),
        ({"Artist": '<div>Ann</div><div class="x" hidden>Bo</div>'}, "Ann"),
        ({"Artist": "Ann creator QS:P170,Q4233718"}, "Ann"),
        ({"Artist": 'Ann title QS:P1476,en:"A title" '}, "Ann"),
        ({"Artist": "<script>alert(1)</script>R&amp;D &lt;3"}, "R&D <3"),
        ({"Artist": "\x1b[31mAnn\x9b2J \u202eoB\u2066"}, "[31mAnn 2J oB"),
    ],
)  # fmt: skip
def test_the_creator_is_named_as_the_page_does(tmp_path, gallery, fields, creator):
    gallery.add(1, metadata=fields)
    assert crawl(tmp_path, gallery).returncode == 0
    (line,) = read(tmp_path)
    assert line["creator"] == creator


def test_texts_are_bounded_and_cannot_move_the_cursor(tmp_path, gallery):
    wild = "\x1b]0;pwned\x07\u202e\x9b31m" + "Long " * 20_000
    gallery.add(1, title=wild, creator=wild, license="by")
    gallery.modes["commons"] = "error:\x1b[2J"
    engines = ("commons", "openverse")
    (tmp_path / "\x1b[31m`x.jpg").write_bytes(b"")
    result = crawl(tmp_path, gallery, ENGINES=engines, KEYWORDS=("\x1b[5m flex",))
    assert result.returncode == 0
    (line,) = read(tmp_path)
    assert len(line["title"]) == len(line["creator"]) == 500
    # Another tool's lines are not to be trusted either.
    raw(tmp_path, "\x1b[31m`9.jpg").write_bytes(make_picture(9))
    with raw(tmp_path, "manifest.jsonl").open("a") as file:
        file.write(json.dumps({"file": "\x1b[31m`9.jpg", "title": wild}) + "\n")
    crawl(tmp_path, gallery, ENGINES=engines, KEYWORDS=("\x1b[5m flex",))
    text = raw(tmp_path, "CREDITS.md").read_text(encoding="utf-8")
    texts = (text, result.stdout, result.stderr, line["title"], line["creator"])
    for each in texts:
        assert not set(each) & set("\x1b\x07\x9b\u202e")
    assert len(text) < 5000


def test_addresses_are_bounded(tmp_path, gallery):
    gallery.add(1)
    gallery.items.append({"url": "data:image/png;base64," + "A" * 20_000})
    result = crawl(tmp_path, gallery)
    assert len(pictures(tmp_path)) == 1
    assert count_of(result.stdout, "unreadable") == 1
    assert not raw(tmp_path, "failed.jsonl").exists()


def test_of_a_jpeg_and_a_tiff_the_jpeg_is_taken(tmp_path, gallery):
    for number, name in enumerate(("Pose.tif", "Pose.jpg", "Flex.tiff", "Curl.TIF")):
        gallery.add(1, start=number, file=name)
    result = crawl(tmp_path, gallery)
    titles = {line["title"] for line in read(tmp_path)}
    assert titles == {"Pose.jpg", "Flex.tiff", "Curl.TIF"}
    assert "left out 2" in result.stdout  # the other one is an SVG


def test_licences_are_taken_by_their_words(monkeypatch):
    scrape = load_script("scrape.py")
    for license_name, commercial, modify in (
        ("CC BY 4.0", True, True),
        ("CC BY-NC-SA 2.0", False, True),
        ("cc-by-nd-3.0", True, False),
        ("CC BY-NC-ND 4.0", False, False),
        ("Non-Commercial use only", False, True),
        ("Public domain", True, True),
        ("FAL", True, True),
        ("Ncurses NDA", True, True),
        (None, False, False),
    ):
        monkeypatch.setattr(scrape, "LICENSE", "commercial")
        assert scrape.allows(license_name) == commercial
        monkeypatch.setattr(scrape, "LICENSE", "noncommercial,modify")
        assert scrape.allows(license_name) == modify
        monkeypatch.setattr(scrape, "LICENSE", "commercial,modify")
        assert scrape.allows(license_name) == (commercial and modify)
        monkeypatch.setattr(scrape, "LICENSE", "noncommercial")
        assert scrape.allows(license_name) == (license_name is not None)
        monkeypatch.setattr(scrape, "LICENSE", None)
        assert scrape.allows(license_name)


def test_credits(tmp_path, gallery):
    gallery.add(
        1, title="Pose [1]*", creator="<b>Ann</b> &lt;3", page="https://a.example/1"
    )
    gallery.add(1, start=1, engines=("bing",), page="javascript:alert(1)")
    assert crawl(tmp_path, gallery, ENGINES=("commons", "bing")).returncode == 0
    text = raw(tmp_path, "CREDITS.md").read_text(encoding="utf-8")
    assert r"[Pose \[1\]\*.jpg](<https://a.example/1>)" in text
    assert r"Ann \<3" in text
    assert "[CC BY 4.0](<https://licenses.example/by>)" in text
    assert "licence unknown" in text
    assert "javascript" not in text
    assert raw(tmp_path, "000001.jpg").name in text


@pytest.mark.slow
def test_manners(tmp_path, gallery):
    gallery.add(40, hosts=gallery.addresses[1:2])
    gallery.add(3, start=500, hosts=gallery.addresses[2:3])
    gallery.delay = 0.05
    edits = {"ENGINES": ("commons", "openverse", "bing"), "DOWNLOADER_THREADS": 8}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    (agent,) = {headers["User-Agent"] for _, headers in gallery.requests}
    assert agent.startswith("bodybuilder-vae/1.0 (me@example.org) icrawler/")
    assert gallery.most_at_once[gallery.address] == 1  # an engine
    paths = [path for path, _ in gallery.requests if path.startswith("/v1/images/")]
    assert paths  # what Commons gives itself is not asked for
    assert all("excluded_source=wikimedia" in path for path in paths)
    assert gallery.most_at_once[gallery.addresses[1]] == 2


@pytest.mark.slow
def test_pauses_are_kept(tmp_path, gallery):
    gallery.add(60, hosts=gallery.addresses[1:])
    gallery.modes["openverse"] = ["ok", (429, "2")]
    gallery.items.append({"url": gallery.address + "/faults/once_503_date"})
    edits = {"ENGINES": ("openverse",), "HOST_DELAY": {"127.0.0.1": 0.2}}
    assert crawl(tmp_path, gallery, **edits, DOWNLOADER_THREADS=1).returncode == 0
    assert len(pictures(tmp_path)) == 61
    pages = gallery.times["/v1/images/"]
    gaps = [after - before for before, after in itertools.pairwise(pages)]
    assert max(gaps) > 1.9  # what Retry-After asked for
    assert sum(gaps) > 0.2 * len(gaps) + 1.3
    (path,) = [path for path in gallery.times if "once_503" in path]
    assert gallery.times[path][1] - gallery.times[path][0] > 1


@pytest.mark.slow
def test_a_host_is_not_asked_at_once_again(tmp_path, gallery):
    gallery.add(10)
    gallery.items = [{"url": gallery.addresses[1] + path} for path in gallery.pictures]
    assert crawl(tmp_path, gallery, HOST_DELAY={"127.0.0.1": 0.3}).returncode == 0
    times = [time for path in gallery.pictures for time in gallery.times[path]]
    assert len(times) == 10
    assert max(times) - min(times) > 9 * 0.3 - 1


def test_delays_of_hosts(monkeypatch):
    scrape = load_script("scrape.py")
    monkeypatch.setattr(scrape, "HOST_DELAY", {"a.example": 1})
    monkeypatch.setattr(scrape, "DEFAULT_DELAY", 0.2)
    assert scrape.Host("upload.wikimedia.org").delay == 6
    assert scrape.Host("a.example").delay == 1
    assert scrape.Host("b.example").delay == 0.2
    monkeypatch.setattr(scrape, "CONTACT", "me@example.org")
    assert scrape.Host("upload.wikimedia.org").delay == 0.2


@pytest.mark.slow
def test_from_a_second_on_one_request_at_a_time(tmp_path, gallery):
    """HOST_CONCURRENCY is for hosts of short delays (test_manners sees it)."""
    gallery.add(5, hosts=gallery.addresses[1:2])
    gallery.delay = 1.2
    edits = {"DEFAULT_DELAY": 1, "MAX_NUM": 3, "DOWNLOADER_THREADS": 8}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert gallery.most_at_once[gallery.addresses[1]] == 1


def test_an_empty_contact_is_spoken_of(tmp_path, gallery):
    gallery.add(1)
    result = crawl(tmp_path, gallery, CONTACT="")
    assert "CONTACT is empty" in result.stdout
    assert "no contact given" in gallery.requests[0][1]["User-Agent"]


def test_lists_of_addresses(tmp_path, gallery):
    gallery.add(12)
    urls = [item["url"] for item in gallery.items]
    lines = [urls[0], "# ours", "", *urls[1:4], urls[2]]
    text = "\ufeff" + "\r\n".join(lines)  # as Windows' editor writes it
    (tmp_path / "list.txt").write_bytes(text.encode())
    edits = {"ENGINES": ("urls",), "URL_FILE": "list.txt"}
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert sorted(line["url"] for line in read(tmp_path)) == sorted(urls[:4])
    # A long one is read to its end.
    gallery.add(60, start=100)
    urls = [item["url"] for item in gallery.items]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    assert crawl(tmp_path, gallery, **edits).returncode == 0
    assert sorted(line["url"] for line in read(tmp_path)) == sorted(urls)
    # A published manifest brings the same pictures with what is known of them.
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    assert crawl(first, gallery).returncode == 0
    shutil.copy(raw(first, "manifest.jsonl"), second / "list.jsonl")
    with (second / "list.jsonl").open("a") as file:
        file.write('{"url": 5}\n{"torn')
    assert crawl(second, gallery, **edits | {"URL_FILE": "list.jsonl"}).returncode == 0
    told = ("url", "sha256", "title", "creator", "license", "license_url", "page_url")
    assert {tuple(line[name] for name in told) for line in read(second)} == {
        tuple(line[name] for name in told) for line in read(first)
    }


# Coming back


@pytest.mark.slow
def test_runs_again(tmp_path, gallery):
    gallery.add(20)
    assert crawl(tmp_path, gallery, MAX_NUM=8).returncode == 0
    before = {name: raw(tmp_path, name).read_bytes() for name in pictures(tmp_path)}
    assert len(before) == 8
    raw(tmp_path, "000003.jpg").unlink()  # the user does not want this one
    raw(tmp_path, "000008.jpg").unlink()
    unwanted = {line["url"] for line in read(tmp_path) if line["file"] in
                ("000003.jpg", "000008.jpg")}  # fmt: skip
    again = next(line for line in read(tmp_path) if line["file"] == "000003.jpg")
    path = again["url"].removeprefix(gallery.addresses[0])
    gallery.pictures["/pictures/copy.jpg"] = make_picture(int(path[-9:-4]))
    gallery.items.insert(0, {"url": gallery.address + "/pictures/copy.jpg"})
    del gallery.requests[:]
    assert crawl(tmp_path, gallery).returncode == 0
    names = pictures(tmp_path)
    assert len(names) == 18
    assert names[-1] == "000020.jpg"
    for name in set(before) - {"000003.jpg", "000008.jpg"}:
        assert raw(tmp_path, name).read_bytes() == before[name]
    assert gallery.asked("/pictures/") == 13
    assert not unwanted & {item[0] for item in gallery.requests}
    assert "the bytes of 000003.jpg" in read(tmp_path, "failed.jsonl")[0]["reason"]
    # A third run has nothing to do but look.
    del gallery.requests[:]
    assert crawl(tmp_path, gallery).returncode == 0
    assert gallery.asked("/pictures/") == 0
    assert len(pictures(tmp_path)) == 18
    # Enough is there: no engine is asked.
    del gallery.requests[:]
    assert crawl(tmp_path, gallery, MAX_NUM=18).returncode == 0
    assert gallery.requests == []


@pytest.mark.slow
def test_pages_that_are_known_are_passed_over(tmp_path, gallery):
    gallery.add(260)
    assert crawl(tmp_path, gallery, MAX_NUM=230).returncode == 0
    del gallery.requests[:]
    assert crawl(tmp_path, gallery).returncode == 0
    assert len(pictures(tmp_path)) == 260
    assert gallery.asked("/pictures/") == 30


def test_a_folder_of_pictures_without_a_manifest_is_respected(tmp_path, gallery):
    gallery.add(6)
    raw(tmp_path).mkdir(parents=True)
    raw(tmp_path, "000041.PNG").write_bytes(make_picture(500, kind="PNG"))
    raw(tmp_path, "mine.jpg").write_bytes(make_picture(2))
    raw(tmp_path, "notes.txt").write_text("mine")
    assert crawl(tmp_path, gallery, MAX_NUM=6).returncode == 0
    assert sorted(path.name for path in raw(tmp_path).glob("0*")) == [
        "000041.PNG", "000042.jpg", "000043.jpg", "000044.jpg", "000045.jpg",
    ]  # fmt: skip
    assert raw(tmp_path, "mine.jpg").read_bytes() == make_picture(2)
    assert crawl(tmp_path, gallery).returncode == 0
    assert raw(tmp_path, "000046.jpg").exists()
    sums = {line["sha256"] for line in read(tmp_path)}
    assert hashlib.sha256(make_picture(2)).hexdigest() not in sums


def test_a_folder_of_drawn_athletes_is_refused(tmp_path, gallery):
    raw(tmp_path).mkdir(parents=True)
    raw(tmp_path, "factors.csv").write_text("file\n")
    result = crawl(tmp_path, gallery)
    assert result.returncode == 1
    assert "factors.csv" in result.stderr
    assert gallery.requests == []
    assert [path.name for path in raw(tmp_path).iterdir()] == ["factors.csv"]


def test_one_run_at_a_time(tmp_path, gallery):
    pytest.importorskip("fcntl")
    gallery.add(40)
    gallery.hold = threading.Event()  # the first run gets no picture until told
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints, "REQUEST_TIMEOUT": 600}
    settings["IMAGE_DEADLINE"] = 600
    copy = copy_script("scrape.py", tmp_path, **settings)
    process = subprocess.Popen([sys.executable, copy.name], cwd=tmp_path)
    wait_for(lambda: gallery.asked("/pictures/") > 0)
    result = crawl(tmp_path, gallery)
    assert process.poll() is None  # the first one is still at work
    gallery.hold.set()
    assert result.returncode == 1
    assert f"Another scrape.py is at work in {raw(tmp_path)}" in result.stderr
    assert process.wait(timeout=300) == 0
    assert len(pictures(tmp_path)) == len(read(tmp_path)) == 40


@pytest.mark.parametrize("name", ["EOPNOTSUPP", "ENOLCK"])
def test_a_folder_that_cannot_be_locked(tmp_path, gallery, name):
    """As on network drives; a module beside the script stands in for theirs."""
    fcntl = pytest.importorskip("fcntl")
    if "fcntl" in sys.builtin_module_names:
        pytest.skip("no module beside the script could stand in")
    names = {key: value for key, value in vars(fcntl).items() if type(value) is int}
    lines = [f"{key} = {value}" for key, value in names.items()]
    lines += ["import errno, os", "def flock(*unused):"]
    lines += [f"    raise OSError(errno.{name}, os.strerror(errno.{name}))"]
    (tmp_path / "fcntl.py").write_text("\n".join(lines))
    gallery.add(6)
    result = crawl(tmp_path, gallery)
    assert (result.returncode, result.stderr) == (0, "")
    assert "cannot be locked" in result.stdout
    assert len(pictures(tmp_path)) == 6


def test_folders_that_do_not_count(tmp_path, gallery):
    gallery.add(6)
    for number, name in enumerate((".trash", "@eaDir", "__MACOSX", "sub/@x", "mine")):
        raw(tmp_path, name).mkdir(parents=True)
        raw(tmp_path, f"{name}/{number}.jpg").write_bytes(make_picture(100 + number))
    raw(tmp_path, "._hidden.jpg").write_bytes(make_picture(200))
    result = crawl(tmp_path, gallery, MAX_NUM=6)
    assert "1 images in" in result.stdout
    assert len(pictures(tmp_path)) == 5


@pytest.mark.slow
def test_a_manifest_in_another_encoding_stops(tmp_path, gallery):
    gallery.add(6)
    assert crawl(tmp_path, gallery, MAX_NUM=3).returncode == 0
    path = raw(tmp_path, "manifest.jsonl")
    text = path.read_text(encoding="utf-8")
    for data in (text.encode("utf-16"), b"a list\nof mine\n", b"mine"):
        path.write_bytes(data)
        result = crawl(tmp_path, gallery)
        assert result.returncode == 1
        assert str(path) in result.stderr
        assert result.stderr.count("\n") == 1
        assert path.read_bytes().startswith(data)
        assert len(list(raw(tmp_path).glob("0*"))) == 3


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")
def test_the_memory_of_a_long_manifest(tmp_path, gallery):
    gallery.modes["commons"] = "empty"
    raw(tmp_path).mkdir(parents=True)
    with raw(tmp_path, "manifest.jsonl").open("w") as file:
        for number in range(100_000):
            url = f"https://upload.example/commons/a/ab/Body_%28{number}%29.jpg"
            entry = {
                "file": f"{number + 1:06d}.jpg",
                "url": url,
                "final_url": url + "x",
            }
            for name in ("page_url", "title", "creator", "license_url", "attribution"):
                entry[name] = f"https://pages.example/{name}/{number}/" + "x" * 60
            entry["sha256"] = hashlib.sha256(url.encode()).hexdigest()
            file.write(json.dumps(entry) + "\n")
    edits = {"MIN_NUM": 0, "ENDPOINTS": gallery.endpoints}
    copy = copy_script("scrape.py", tmp_path, **{**QUICK, **edits})
    assert peak_memory(copy) < 300


def test_lines_that_cannot_be_read_are_counted(tmp_path, gallery):
    gallery.add(6)
    assert crawl(tmp_path, gallery, MAX_NUM=3).returncode == 0
    path = raw(tmp_path, "manifest.jsonl")
    bad = b'{"file": "\xed\xa0\x80.jpg"}\n{"url": "\\ud800"}\n[1]\n\xff\n'
    path.write_bytes(bad + path.read_bytes())
    result = crawl(tmp_path, gallery)
    assert (result.returncode, result.stderr) == (0, "")
    assert "4 lines of manifest.jsonl could not be read" in result.stdout
    assert len(list(raw(tmp_path).glob("0*"))) == 6


def test_odd_lines_and_names_in_the_folder(tmp_path, gallery):
    gallery.add(3)
    raw(tmp_path).mkdir(parents=True)
    lines = [{"sha256": "x"}, {"file": "000007.jpg", "url": 5, "title": 6}, [1], {}]
    lines += [{"file": "000008.jpg", "page_url": 7, "license_url": ["x"]}]
    text = "\n".join(map(json.dumps, lines)) + "\nnot json\n"
    raw(tmp_path, "manifest.jsonl").write_text(text)
    raw(tmp_path, "000008.jpg").write_bytes(make_picture(77))
    with contextlib.suppress(OSError):  # a name in another encoding
        path = os.fsencode(raw(tmp_path)) + b"/caf\xe9.jpg"
        with open(path, "wb") as file:
            file.write(make_picture(78))
    result = crawl(tmp_path, gallery)
    assert (result.returncode, result.stderr) == (0, "")
    assert raw(tmp_path, "000009.jpg").exists()
    assert raw(tmp_path, "CREDITS.md").exists()


def kill_at(folder, gallery, event, ending, count=1):
    """Run scrape.py for four pictures, and have it killed at a known moment."""
    environment = signal_at(folder, signal.SIGKILL, event, ending, count)
    edits = {"environment": environment, "MAX_NUM": 4}
    assert crawl(folder, gallery, **edits).returncode == -signal.SIGKILL


@pytest.mark.slow
@unix
@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_line_is_healed(tmp_path, gallery, cut):
    gallery.add(6)
    kill_at(tmp_path, gallery, "os.rename", "000003.jpg")
    path = raw(tmp_path, "manifest.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])  # cut 1 takes the end of the line only
    with raw(tmp_path, "failed.jsonl").open("ab") as file:
        file.write(b'{"url": "http://torn')
    assert crawl(tmp_path, gallery).returncode == 0
    assert len(pictures(tmp_path)) == len(read(tmp_path)) == 6
    assert read(tmp_path, "failed.jsonl") == []
    assert not list(raw(tmp_path).glob(".*"))
    if cut == 1:
        assert path.read_bytes().startswith(whole)


@pytest.mark.slow
def test_kill_in_the_middle(tmp_path, gallery):
    gallery.add(300)
    gallery.delay = 0.01
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints, "MAX_NUM": 200}
    copy = copy_script("scrape.py", tmp_path, **settings)
    for count in (20, 50, 80, 110):
        process = subprocess.Popen([sys.executable, copy.name], cwd=tmp_path)
        wait_for(lambda count=count: len(list(raw(tmp_path).glob("0*"))) >= count)
        process.kill()
        process.wait()
        for path in raw(tmp_path).glob("0*"):
            Image.open(path).load()
    assert crawl(tmp_path, gallery, MAX_NUM=200).returncode == 0
    lines = read(tmp_path)
    assert len(pictures(tmp_path)) == 200
    assert len({line["sha256"] for line in lines}) == len(lines)
    assert not list(raw(tmp_path).glob(".*"))


@unix
def test_a_kill_between_line_and_name_loses_nothing(tmp_path, gallery):
    gallery.add(4)
    kill_at(tmp_path, gallery, "os.rename", "000002.jpg")
    assert [line["file"] for line in read(tmp_path)] == ["000001.jpg", "000002.jpg"]
    assert not raw(tmp_path, "000002.jpg").exists()
    name = read(tmp_path)[1]["url"].rpartition("/")[2]
    del gallery.requests[:]
    assert crawl(tmp_path, gallery, MAX_NUM=4).returncode == 0
    assert len(pictures(tmp_path)) == len(read(tmp_path)) == 4
    assert gallery.asked(f"/pictures/{name}") == 0
    assert not list(raw(tmp_path).glob(".*"))


@unix
def test_a_kill_before_the_line_leaves_nothing_behind(tmp_path, gallery):
    gallery.add(4)
    # It was opened for its lock, and to be healed and read: now comes the first line.
    kill_at(tmp_path, gallery, "open", "manifest.jsonl", 4)
    gallery.items.clear()  # so that nothing comes into the place of what was begun
    assert crawl(tmp_path, gallery, MIN_NUM=0).returncode == 0
    left = sorted(path.name for path in raw(tmp_path).iterdir())
    assert left == ["CREDITS.md", "manifest.jsonl"]
    assert read(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent there")
def test_interrupt(tmp_path, gallery):
    gallery.add(300)
    gallery.hold = threading.Event()
    gallery.free = 20  # the run cannot end before it gets the signal
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints, "MAX_NUM": 200, **SHORT}
    copy = copy_script("scrape.py", tmp_path, **settings)
    process = subprocess.Popen(
        [sys.executable, copy.name], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: len(list(raw(tmp_path).glob("0*"))) >= 10)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.startswith("Stopped: all files are whole")
    assert 'commons "flex": saved' in output
    count = len(pictures(tmp_path))
    assert 10 <= count <= 20
    assert count == len(read(tmp_path))
    assert raw(tmp_path, "CREDITS.md").exists()
    assert not list(raw(tmp_path).glob(".*"))


def wait_for(condition):
    """Wait until something has happened; at most 300 s."""
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def small_disk(folder, options):
    """Mount a little file system in memory; skip the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("title", ["Short", "Long " * 1500])
def test_disk_full(tmp_path, gallery, title):
    gallery.add(200, title=title)  # a long one: its line finds no room
    with small_disk(tmp_path / "data", "size=200k"):
        result = crawl(tmp_path, gallery)
        assert result.returncode == 1
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        assert len(pictures(tmp_path)) > 5
        others = ("manifest.jsonl", "failed.jsonl", "CREDITS.md")
        for path in raw(tmp_path).iterdir():
            if path.name not in others:  # a picture, and none is half
                Image.open(path).load()
        assert gallery.asked("/pictures/") < 100
        # With room again it goes on, and every line and picture is whole.
        subprocess.run(
            ["mount", "-o", "remount,size=9m", str(tmp_path / "data")], check=True
        )
        assert crawl(tmp_path, gallery, MAX_NUM=100).returncode == 0
        assert len(pictures(tmp_path)) == len(read(tmp_path)) == 100
        assert not list(raw(tmp_path).glob(".*"))


def test_folder_read_only(tmp_path, gallery):
    gallery.add(5)
    with small_disk(tmp_path / "data", "size=1m,ro"):
        result = crawl(tmp_path, gallery)
    assert result.returncode == 1
    assert "Read-only file system" in result.stderr
    assert str(tmp_path / "data") in result.stderr
    assert gallery.requests == []


# What it says


def test_too_few(tmp_path, gallery):
    gallery.add(5)
    result = crawl(tmp_path, gallery, MIN_NUM=6, DOWNLOADER_THREADS=1)
    assert result.returncode == 1
    assert f"5 images in {raw(tmp_path)}, fewer than MIN_NUM = 6" in result.stderr
    assert len(pictures(tmp_path)) == 5
    saved = [line["url"] for line in read(tmp_path)]
    assert saved == [item["url"] for item in gallery.items]  # the best first
    assert "\x1b" not in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="there is no terminal to borrow")
def test_a_terminal_gets_a_live_line(tmp_path, gallery):
    import pty

    gallery.add(30)
    gallery.delay = 0.1
    settings = {**QUICK, "ENDPOINTS": gallery.endpoints}
    copy = copy_script("scrape.py", tmp_path, **settings)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, copy.name], cwd=tmp_path, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # Linux: the other end was closed
        while data := os.read(ours, 65536):
            output += data
    os.close(ours)
    assert process.wait(timeout=300) == 0
    assert b"commons flex" in output
    assert b"/1000" in output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEYWORDS", ()),
        ("KEYWORDS", "bodybuilder"),
        ("ENGINES", ("baidu",)),
        ("LICENSE", "cc"),
        ("MAX_NUM", 0),
        ("MIN_NUM", 2000),
        ("MIN_SIZE", 128),
        ("CONTACT", "me\nX: y"),
        ("PAGE_TIMEOUT", -1),
        ("HOST_DELAY", None),
        ("DOWNLOADER_THREADS", 0),
        ("MAX_BYTES", "20 MB"),
        ("OUT_DIR", ""),
        ("OUT_DIR", None),
        ("KEYWORDS", ("a", 5)),
        ("ENGINES", 5),
        ("LICENSE", ["commercial"]),
        ("MAX_NUM", "1000"),
        ("MIN_SIZE", (128, "a")),
        ("REQUEST_TIMEOUT", 1e20),
        ("DEFAULT_DELAY", "fast"),
        ("ALLOW_PRIVATE_HOSTS", "False"),
        ("PAGE_BUDGET", {"commons": "many"}),
        ("ENDPOINTS", {"commons": "http://["}),
        ("ENDPOINTS", {}),
    ],
)
def test_settings_are_checked_first(tmp_path, gallery, name, value):
    result = crawl(tmp_path, gallery, **{name: value})
    assert result.returncode == 1
    assert result.stderr.startswith(f"{name} = {value!r}: expected ")
    assert result.stderr.count("\n") == 1
    assert not raw(tmp_path).exists()
    assert gallery.requests == []


@pytest.mark.parametrize("data", [None, b"caf\xe9", b'{"url": 5}\n{"torn'])
def test_a_list_that_cannot_be_read_is_spoken_of(tmp_path, gallery, data):
    if data:
        (tmp_path / "list.txt").write_bytes(data)
    result = crawl(tmp_path, gallery, ENGINES=("urls",), URL_FILE="list.txt")
    assert result.returncode == 1
    assert str(tmp_path / "list.txt") in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent there")
def test_the_gallery_by_hand(tmp_path):
    for name in ("draw_athletes.py", "gallery.py"):
        edits = {"PORT": 0, "NUM_IMAGES": 2} if name == "gallery.py" else {}
        copy = copy_script(f"tests/{name}", tmp_path, **edits)
    process = subprocess.Popen(
        [sys.executable, copy.name], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    text = ""
    while "MIN_NUM" not in text:
        line = process.stdout.readline()
        assert line, "it ended too early"
        text += line
    settings = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert settings["ALLOW_PRIVATE_HOSTS"] == "True"
    ends = ast.literal_eval(text[text.index("{") : text.index("}") + 1])
    edits = {**QUICK, "ENDPOINTS": ends, "MIN_NUM": 2, "ENGINES": ("openverse",)}
    assert run_script("scrape.py", tmp_path, **edits).returncode == 0
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
