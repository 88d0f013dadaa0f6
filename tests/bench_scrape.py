"""Compare scrape.py with the crawler of icrawler on the same stand-in server.

    python tests/bench_scrape.py

Both ask the same Bing of tests/gallery.py with four download threads, each in a process
of its own; a host that is dead accepts connections and never answers. Prints a table.
It takes about four minutes and needs the loopback addresses 127.0.0.2 to 127.0.0.9,
which Linux has without ado.

Reads scrape.py and writes nothing.
"""

import contextlib
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from conftest import copy_script
from gallery import Gallery

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Data
NUM_SAVED = 60  # images of the comparison of what is saved, a fifth at a dead host
NUM_FAST = 600  # images of the comparison of speed on a fast server
NUM_SLOW = 200  # and on one that answers after 0.3 s
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


def run_stock(folder, endpoints, count):
    """Return the command of icrawler's own crawler."""
    return [sys.executable, "-c", STOCK, endpoints["bing"], str(count)]


def run_ours(folder, endpoints, count):
    """Return the command of scrape.py, with its manners off but the limits on."""
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


def measure(command, endpoints, count):
    """Crawl into an empty folder; return the number of images and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        line = command(folder, endpoints, count)
        start = time.perf_counter()
        try:
            subprocess.run(line, cwd=folder, capture_output=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            print(f"{command.__name__} was killed after {LIMIT} s")
        seconds = time.perf_counter() - start
        return len(list(folder.glob("data/raw/0*"))), seconds


def main():
    hosts = [f"127.0.0.{number}" for number in range(1, 9)]
    commands = {"icrawler 0.6.10": run_stock, "scrape.py": run_ours}
    rows = {}

    def compare(title, gallery, count, text, endpoints=None):
        for name, command in commands.items():
            images, seconds = measure(command, endpoints or gallery.endpoints, count)
            rate = images / seconds
            line = text.format(images=images, seconds=seconds, rate=rate)
            rows.setdefault(title, []).append(line)
            print(f"{title}: {name} {line}", flush=True)

    with dead_host() as dead:
        for share, places in (("none", []), ("one in five", [dead])):
            with Gallery(hosts[:5]) as gallery:
                gallery.add(NUM_SAVED, hosts=gallery.addresses[1:] + places)
                reachable = sum(
                    not each["url"].startswith(dead) for each in gallery.items
                )
                title = f"hosts dead: {share}; saved of {reachable} reachable"
                compare(title, gallery, NUM_SAVED, "{images} in {seconds:.1f} s")
    for title, count, delay in (
        ("fast", NUM_FAST, 0),
        ("answers in 0.3 s", NUM_SLOW, 0.3),
    ):
        with Gallery(hosts) as gallery:
            gallery.add(count, hosts=gallery.addresses[1:])
            gallery.delay = delay
            compare(f"server {title}: images/s", gallery, count, "{rate:.1f}")
    for mode in ("blank", "silent", 503):
        with Gallery(hosts[:1]) as gallery:
            gallery.modes["bing"] = mode
            compare(
                f"engine {mode}: seconds until it ends", gallery, 100, "{seconds:.1f}"
            )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nowhere = {"bing": f"http://127.0.0.1:{port}/images/async"}
    compare(
        "engine's port closed: seconds until it ends",
        None,
        100,
        "{seconds:.1f}",
        nowhere,
    )
    print(f"\n| | {' | '.join(commands)} |\n|---|---|---|")
    for title, lines in rows.items():
        print(f"| {title} | {' | '.join(lines)} |")


if __name__ == "__main__":
    main()
