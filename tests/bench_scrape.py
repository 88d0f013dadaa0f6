"""Compare scrape.py with the crawler of icrawler on the same stand-in server.

    python tests/bench_scrape.py

Both ask the same Bing of tests/gallery.py with four download threads, each in a process
of its own; a host that is dead accepts connections and never answers. The last row is
scrape.py's alone: how long it takes to start with a long manifest. Prints a table. It
takes about six minutes and needs the loopback addresses 127.0.0.2 to 127.0.0.9, which
Linux has without ado.

Reads scrape.py and writes nothing.
"""

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from conftest import copy_script
from gallery import Gallery

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Data
NUM_SAVED = 60  # images of the comparison of what is saved, a fifth at a dead host
NUM_HICCUPS = 100  # images of the comparison with hosts that are away for a moment
NUM_FAST = 600  # images of the comparison of speed on a fast server
NUM_SLOW = 200  # and on one that answers after 0.3 s
NUM_LINES = 100_000  # of the long manifest
AWAY = 3  # seconds for which a host is away
LIMIT = 300  # seconds after which a crawl that has not ended is killed
# ----------------------------------------------------------------------------

STOCK = """
import sys
from icrawler.builtin import BingImageCrawler
from icrawler.builtin.bing import BingFeeder

class Feeder(BingFeeder):
    def feed(self, keyword, offset, max_num, filters=None):
        for first in range(offset, offset + max_num, 20):
            self.out_queue.put(f"{sys.argv[1]}?q={keyword}&first={first}")

crawler = BingImageCrawler(Feeder, feeder_threads=1, parser_threads=2,
                           downloader_threads=4, log_level=50,
                           storage={"root_dir": "data/raw"})
crawler.crawl("flex", max_num=int(sys.argv[2]))
"""


@contextlib.contextmanager
def dead_host():
    """Yield the address of a host that takes connections and never answers."""
    with socket.create_server(("127.0.0.9", 0), backlog=100) as server:
        yield f"http://127.0.0.9:{server.getsockname()[1]}"


def closed_port():
    """Return the address of a port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def run_stock(folder, endpoints, count):
    """Return the command of icrawler's own crawler."""
    return [sys.executable, "-c", STOCK, endpoints["bing"], str(count)]


def run_ours(folder, endpoints, count):
    """Return the command of scrape.py, with its delays off but the limits on."""
    copy = copy_script(
        "scrape.py",
        folder,
        ENGINES=("bing",),
        KEYWORDS=("flex",),
        MAX_NUM=count,
        MIN_NUM=0,
        ENDPOINTS=endpoints,
        HOST_DELAY={},
        DEFAULT_DELAY=0,
        ALLOW_PRIVATE_HOSTS=True,
    )
    return [sys.executable, copy.name]


COMMANDS = {"icrawler 0.6.10": run_stock, "scrape.py": run_ours}


def measure(command, endpoints, count):
    """Crawl into an empty folder; return the number of images and the seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = command(folder, endpoints, count)
        begun = time.perf_counter()
        try:
            subprocess.run(line, cwd=folder, capture_output=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            print(f"{command.__name__} was killed after {LIMIT} s")
        seconds = time.perf_counter() - begun
        return len(list(folder.glob("data/raw/0*"))), seconds


def show(title, name, text):
    """Print a result at once, and return it for the table."""
    print(f"{title}: {name} {text}", flush=True)
    return text


def bench_dead_hosts():
    """Return the rows of what is saved where hosts are dead or closed."""
    rows = {}
    hosts = [f"127.0.0.{number}" for number in range(1, 6)]
    with dead_host() as dead:
        for share, bad in (
            ("none", None),
            ("one in five dead", dead),
            ("one in five closed", closed_port()),
        ):
            with Gallery(hosts) as gallery:
                places = gallery.addresses[1:]
                if bad is not None:
                    places.append(bad)
                gallery.add(NUM_SAVED, hosts=places)
                reachable = 0
                for item in gallery.items:
                    if bad is None or not item["url"].startswith(bad):
                        reachable += 1
                title = f"hosts: {share}; saved of {reachable} reachable"
                rows[title] = []
                for name, command in COMMANDS.items():
                    found = measure(command, gallery.endpoints, NUM_SAVED)
                    text = f"{found[0]} in {found[1]:.1f} s"
                    rows[title].append(show(title, name, text))
    return rows


def go_away(gallery):
    """Let a host be away for a moment, after it has served some pictures."""
    while len(gallery.times) < 10:
        if gallery.closing.wait(0.01):
            return
    gallery.leave(1)
    gallery.closing.wait(AWAY)
    if not gallery.closing.is_set():
        gallery.arrive(1)


def bench_hiccups():
    """Return the row of what is saved where nothing is wrong for long.

    An engine answers HTTP 503 once, on its second page; one host in five refuses
    connections for a moment; a tenth of the pictures come only when asked again.
    """
    title = f"hiccups; saved of {NUM_HICCUPS} reachable"
    texts = []
    hosts = [f"127.0.0.{number}" for number in range(1, 7)]
    for name, command in COMMANDS.items():
        with Gallery(hosts) as gallery:
            gallery.add(NUM_HICCUPS * 9 // 10, hosts=gallery.addresses[1:])
            for number in range(NUM_HICCUPS // 10):
                address = gallery.addresses[2 + number % 4]
                url = f"{address}/faults/once_503_{number}.jpg"
                gallery.items.insert(number * 10, {"url": url})
            gallery.delay = 0.1
            gallery.modes["bing"] = ["ok", 503]
            away = threading.Thread(target=go_away, args=[gallery])
            away.start()
            images, seconds = measure(command, gallery.endpoints, NUM_HICCUPS)
            gallery.closing.set()
            away.join()
        texts.append(show(title, name, f"{images} in {seconds:.1f} s"))
    return {title: texts}


def bench_speed():
    """Return the rows of speed where nothing fails."""
    rows = {}
    hosts = [f"127.0.0.{number}" for number in range(1, 9)]
    for kind, count, delay in (
        ("fast", NUM_FAST, 0),
        ("answers in 0.3 s", NUM_SLOW, 0.3),
    ):
        title = f"server {kind}: images/s"
        rows[title] = []
        with Gallery(hosts) as gallery:
            gallery.add(count, hosts=gallery.addresses[1:])
            gallery.delay = delay
            for name, command in COMMANDS.items():
                images, seconds = measure(command, gallery.endpoints, count)
                rows[title].append(show(title, name, f"{images / seconds:.1f}"))
    return rows


def bench_engines():
    """Return the rows of how long an engine costs that brings nothing."""
    rows = {}
    for mode in ("blank", "silent", 503, "port closed"):
        title = f"engine {mode}: seconds until it ends"
        rows[title] = []
        with Gallery() as gallery:
            endpoints = gallery.endpoints
            gallery.modes["bing"] = mode
            if mode == "port closed":
                endpoints = {"bing": f"{closed_port()}/images/async"}
            for name, command in COMMANDS.items():
                _, seconds = measure(command, endpoints, 100)
                rows[title].append(show(title, name, f"{seconds:.1f}"))
    return rows


def write_manifest(path):
    """Write a long manifest of pictures that are not there any more."""
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(NUM_LINES):
            place = f"https://upload.example/a/ab/Bodybuilder_%28{number}%29.jpg"
            entry = {
                "file": f"{number + 1:06d}.jpg", "url": place, "final_url": place,
                "page_url": f"https://pages.example/File:Bodybuilder_({number}).jpg",
                "title": f"Bodybuilder ({number}).jpg", "creator": "Jürgen Müller",
                "license": "CC BY-SA 4.0", "license_url": "https://licenses.example/",
                "attribution": f"Bodybuilder ({number}).jpg, Jürgen Müller, CC BY-SA",
                "license_filter": None, "engine": "bing", "keyword": "flex",
                "width": 960, "height": 1280, "bytes": 200_000,
                "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
                "fetched_at": "2026-11-26T12:00:00+00:00",
            }  # fmt: skip
            file.write(json.dumps(entry) + "\n")


def bench_start():
    """Return the row of how long it takes until the first request."""
    title = f"manifest of {NUM_LINES} lines: seconds to the first request"
    with Gallery() as gallery, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "data" / "raw" / "manifest.jsonl")
        line = run_ours(folder, gallery.endpoints, NUM_LINES)
        gallery.modes["bing"] = 403
        begun = time.perf_counter()
        process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL)
        while not gallery.requests and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - begun
        process.wait()
    return {title: ["-", show(title, "scrape.py", f"{seconds:.1f}")]}


def main():
    rows = {}
    for bench in (
        bench_dead_hosts, bench_hiccups, bench_speed, bench_engines, bench_start,
    ):  # fmt: skip
        rows |= bench()
    print(f"\n| | {' | '.join(COMMANDS)} |\n|---|---|---|")
    for title, texts in rows.items():
        print(f"| {title} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
