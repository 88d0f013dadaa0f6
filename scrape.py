"""Collect pictures of bodybuilders, each with its source and its licence.

    python scrape.py

Writes  OUT_DIR/NNNNNN.EXT: the bytes as downloaded, the extension by their content;
        manifest.jsonl beside them: one line an image with its addresses, title,
        creator, licence, engine, keyword, size, SHA-256 and time; failed.jsonl: the
        addresses that failed for good; CREDITS.md: what the licences ask to be named.

Run again, it goes on where it was: nothing is saved twice or overwritten, and a picture
deleted by hand stays away. By the pauses alone 1000 pictures take 8 to 17 minutes, and
100 minutes from Wikimedia with an empty CONTACT.
"""

import collections
import contextlib
import datetime
import hashlib
import html
import io
import ipaddress
import itertools
import json
import logging
import os
import pathlib
import queue
import re
import socket
import sys
import threading
import time
import types
import urllib.parse

import bs4
import icrawler
import requests
import rich.progress
import urllib3
from PIL import Image

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
OUT_DIR = "data/raw"
URL_FILE = "urls.txt"  # for the engine "urls": an address a line, or a manifest.jsonl

# Search
KEYWORDS = (  # related phrases bring more than one does; each gets an equal share
    "bodybuilder posing", "bodybuilder", "bodybuilding competition",
    "bodybuilding contest pose", "female bodybuilder posing",
)  # fmt: skip
# Tried in order: "commons", "openverse", "urls", "bing", "google". The terms of Bing
# and Google forbid automated queries: to switch these two on is your decision.
ENGINES = ("commons", "openverse")
MAX_NUM = 1000  # images wanted in OUT_DIR in all
MIN_NUM = 200  # fewer than this at the end: exit code 1
# None, "noncommercial", "commercial", "noncommercial,modify" or "commercial,modify"
LICENSE = None
MIN_SIZE = (128, 128)  # pixels, whichever way round; smaller pictures are refused

# Manners
CONTACT = ""  # your mail address or page; without it Wikimedia is asked every 6 s only
HOST_DELAY = {  # seconds between requests; from 1 s on, one request at a time
    "api.openverse.org": 3.1, "commons.wikimedia.org": 1.0, "www.bing.com": 2.0,
    "upload.wikimedia.org": 0.5, "thumb.wikimedia.org": 0.5,
    "live.staticflickr.com": 1.0,
}  # fmt: skip
DEFAULT_DELAY = 0.2  # seconds, for every other host
HOST_CONCURRENCY = 2  # downloads at once from one image host
# Result pages a run. Openverse answers 200 a day to those without a key.
PAGE_BUDGET = {"commons": 500, "openverse": 150, "bing": 100, "google": 20}

# Bounds
MAX_BYTES = 20_971_520  # of one download, unpacked
MAX_PIXELS = 50_000_000  # a larger picture would fill the memory when it is opened
REQUEST_TIMEOUT = 10  # seconds of silence
IMAGE_DEADLINE = 30  # seconds in all for one image
PAGE_TIMEOUT = 30  # seconds in all for a page of results: Openverse can be slow
ALLOW_PRIVATE_HOSTS = False  # True: fetch from addresses that are not public, too

# Network
FEEDER_THREADS = 1
PARSER_THREADS = 2
DOWNLOADER_THREADS = 4
ENDPOINTS = {  # a mirror or a test server can stand in
    "commons": "https://commons.wikimedia.org/w/api.php",
    "openverse": "https://api.openverse.org/v1/images/",
    "bing": "https://www.bing.com/images/async",
    "google": "https://www.google.com/search",
}
# ----------------------------------------------------------------------------


class Failure(Exception):
    """Why an address could not be had: `kind` is counted, and after a `final` failure
    asking again would bring the same."""

    def __init__(self, kind, reason="no more is wanted", final=False):
        super().__init__(reason)
        self.kind, self.final = kind, final


def first_pages(engine, keyword, license, engines):
    """Return the queries, as dicts, of the first result pages for a keyword."""
    if engine == "commons":
        return [{
            "action": "query", "format": "json", "formatversion": 2,
            "generator": "search", "gsrsearch": f"filetype:bitmap {keyword}",
            "gsrnamespace": 6, "gsrlimit": 50, "prop": "imageinfo", "iiurlwidth": 960,
            "iiprop": "url|size|mime|extmetadata",
            "iiextmetadatafilter": "LicenseShortName|LicenseUrl|Artist",
        }]  # fmt: skip
    if engine == "openverse":  # a query shows 240 pictures: each licence gets its own
        names = "by by-sa by-nc by-nc-sa by-nd by-nc-nd cc0 pdm".split()
        for word in (license or "").split(","):
            bad = {"commercial": "nc", "modify": "nd"}.get(word, "none")
            names = [name for name in names if bad not in name]
        page = {"q": keyword, "page": 1, "page_size": 20, "filter_dead": "false"}
        page |= {"excluded_source": "wikimedia"} if "commons" in engines else {}
        return [page | {"license": name} for name in names]
    if engine == "bing":
        codes = {"noncommercial": "L2_L3_L4_L5_L6_L7", "commercial": "L2_L3_L4"}
        codes |= {"noncommercial,modify": "L2_L3_L5_L6", "commercial,modify": "L2_L3"}
        page = {"qft": f"+filterui:license-{codes[license]}"} if license else {}
        page |= {"first": 1, "count": 35, "mmasync": 1, "adlt": "moderate"}
        return [page | {"q": keyword, "mkt": "en-US"}]
    page = {"tbs": "il:cl"} if license else {}
    return [page | {"q": keyword, "tbm": "isch", "ijn": 0, "start": 0}]


def plain(text):
    """Return text that may hold HTML as plain text on one line, or None."""
    text = re.sub(r"<[^>]*>|[\ue000\ue001]", "", text if isinstance(text, str) else "")
    return " ".join(html.unescape(text).split()) or None


def make_tasks(items, make):
    """Return a page's download tasks: dicts of file_url, fallback, and fields of the
    manifest. An item that is not in the known shape is left out."""
    tasks, odd = [], False
    for item in items:
        try:
            if task := make(item):
                for name in ("title", "creator", "license", "attribution"):
                    task[name] = plain(task.get(name))
                task["fallback"] = task.get("fallback") or task["file_url"]
                for name in ("file_url", "fallback"):  # utm_ fields change nothing
                    address = re.sub(r"#.*|(?<=[?&])utm_[^&#]*&?", "", task[name])
                    task[name] = address.strip().rstrip("?&")
                tasks.append(task)
        except (AttributeError, LookupError, TypeError, ValueError):
            odd = True
    if odd and not tasks:
        raise ValueError("none of them")
    return tasks


def read_commons(page, body, license):
    """Return (tasks, next page or None) of an answer of Wikimedia Commons."""
    fields = json.loads(body)
    if "error" in fields:
        raise Failure("refused", f"its API says: {plain(fields['error']['info'])}")
    if not fields.keys() & {"query", "batchcomplete", "continue"}:
        raise KeyError("query")

    def make(item):
        info, about = item["imageinfo"][0], item["imageinfo"][0].get("extmetadata")
        about = {name: plain(field["value"]) for name, field in (about or {}).items()}
        title, name = item["title"].removeprefix("File:"), about.get("LicenseShortName")
        if "svg" in info["mime"] or (license and not name):
            return None
        named = (title, about.get("Artist"), name, "via Wikimedia Commons")
        return {
            "file_url": info.get("thumburl") or info["url"], "fallback": info["url"],
            "page_url": info.get("descriptionurl"), "title": title, "license": name,
            "creator": about.get("Artist"), "license_url": about.get("LicenseUrl"),
            "attribution": ", ".join(filter(None, named)),
        }  # fmt: skip

    items = fields.get("query", {}).get("pages", [])
    items = sorted(items, key=lambda item: item.get("index", 0))  # sent out of rank
    following = page | fields["continue"] if "continue" in fields else None
    return make_tasks(items, make), following


def read_openverse(page, body, license):
    """Return (tasks, next page or None) of an answer of Openverse."""
    fields = json.loads(body)
    results, number = fields["results"], page["page"]
    names = {"cc0": "CC0", "pdm": "Public Domain Mark"}

    def make(item):
        name = names.get(item["license"], f"CC {item['license'].upper()}")
        copied = ("title", "creator", "license_url", "attribution")
        return item["license"] == page["license"] and {
            **{field: item.get(field) for field in copied},
            "file_url": item["url"], "fallback": item.get("thumbnail"),
            "page_url": item.get("foreign_landing_url"),
            "license": f"{name} {item.get('license_version') or ''}",
        }  # fmt: skip

    end = number >= 12 or number * 20 >= fields["result_count"] or not results
    return make_tasks(results, make), None if end else page | {"page": number + 1}


def read_bing(page, body, license):
    """Return (tasks, next page) of a page of Bing; it ends with an empty page."""
    if not body.strip():
        raise Failure("empty", "answered but empty")
    names = {"file_url": "murl", "fallback": "turl", "page_url": "purl", "title": "t"}

    def make(link):
        fields = json.loads(link["m"])
        return {name: fields.get(key) for name, key in names.items()}

    links = bs4.BeautifulSoup(body, "lxml").select("a.iusc[m]")
    if not links:
        raise KeyError("a.iusc")
    return make_tasks(links, make), page | {"first": page["first"] + 35}


def read_google(page, body, license):
    """Return (tasks, next page) of a page of Google, in its shape before 2025."""
    found = re.findall(rb'\["(https?://[^"\s]+)",\d+,\d+\]', body)
    found = [json.loads(b'"%b"' % address) for address in found]  # \u003d is =
    tasks = [{"file_url": address} for address in found if "gstatic.com" not in address]
    if not tasks:
        raise KeyError("AF_initDataCallback")
    following = page | {"ijn": page["ijn"] + 1, "start": page["start"] + 100}
    return make_tasks(tasks, dict), following


def refusal(answer):
    """Return in plain words how an engine refuses programs, or None."""
    if "/sorry/" in answer.url:
        return "it wants a captcha to be solved"
    if "consent.google" in answer.url:
        return "it shows its consent page"
    if b"/httpservice/retry/enablejs" in answer.content:
        return "it wants a browser with JavaScript"
    return None if answer.status_code == 200 else f"HTTP {answer.status_code}"


def read_url_file(path):
    """Return the tasks of a list of addresses or of a manifest."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    lines = [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]

    def make(line):
        about = json.loads(line) if line.startswith("{") else {"url": line}
        return about | {"file_url": about["url"], "fallback": about.get("final_url")}

    return make_tasks(lines, make)


def guarded(pool_class, under_way, allow_private):
    """Return a urllib3 pool class that connects to public addresses only.

    It asks the connected socket, which covers redirects and names that resolve to a
    private address. A proxy (HTTPS_PROXY) has pools of its own: it may well be private.
    The socket is noted in `under_way`, so that it can be cut when its time is over.
    """

    class Connection(pool_class.ConnectionCls):
        def _new_conn(self):  # connects, but does not speak yet
            connection = super()._new_conn()
            peer = connection.getpeername()[0].partition("%")[0]
            address = ipaddress.ip_address(peer)
            address = getattr(address, "ipv4_mapped", None) or address
            if allow_private or address.is_global:
                return connection
            connection.close()
            raise Failure("refused", f"{peer} is not a public address", True)

        def getresponse(self):
            under_way.get(threading.get_ident(), [None])[0] = self.sock
            return super().getresponse()

    return type("GuardedPool", (pool_class,), {"ConnectionCls": Connection})


class PoliteSession(requests.Session):
    """Fetches for all threads and engines, with manners and within bounds.

    Whoever waits in it stops waiting when `halt` is set: nothing more is wanted.
    """

    def __init__(self, settings):
        super().__init__()
        self.headers["User-Agent"] = (
            f"bodybuilder-vae/1.0 ({settings.CONTACT or 'no contact given'}) "
            f"icrawler/{icrawler.__version__} python-requests/{requests.__version__}"
        )
        self.headers["Accept-Language"] = "en-US,en;q=0.8"
        self.settings, self.hosts, self.lock = settings, {}, threading.Lock()
        self.halt = threading.Event()
        self.under_way = {}  # thread -> [socket, time when it is cut]
        for scheme in ("http", "https"):
            adapter = requests.adapters.HTTPAdapter(pool_connections=100)
            pools = adapter.poolmanager.pool_classes_by_scheme
            pool = guarded(pools[scheme], self.under_way, settings.ALLOW_PRIVATE_HOSTS)
            adapter.poolmanager.pool_classes_by_scheme = {scheme: pool}
            self.mount(f"{scheme}://", adapter)

    def get_redirect_target(self, resp):
        """Hide redirects from requests, which would read their bodies unbounded."""

    def host(self, address):
        """Return what is known of the host of an address."""
        parts, settings = urllib.parse.urlsplit(address), self.settings
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is neither http nor https")
        with self.lock:
            if parts.netloc not in self.hosts:
                delay = settings.HOST_DELAY.get(parts.hostname, settings.DEFAULT_DELAY)
                if parts.hostname.endswith(".wikimedia.org") and not settings.CONTACT:
                    delay = max(delay, 6)
                engines = map(urllib.parse.urlsplit, settings.ENDPOINTS.values())
                single = delay >= 1 or parts.netloc in [each.netloc for each in engines]
                turns = threading.Semaphore(1 if single else settings.HOST_CONCURRENCY)
                self.hosts[parts.netloc] = types.SimpleNamespace(
                    name=parts.hostname, delay=delay, turns=turns, start=0.0, bad=0
                )  # `bad`: bad answers in a row; after three the host is left
            return self.hosts[parts.netloc]

    def fetch(self, address, seconds, silence):
        """Return the answer of an address, after redirects and the pauses it asks for.

        Args:
            seconds: what the transfers may take in all; waiting for a turn is apart.
            silence: seconds without a byte after which it is given up.
        """
        hops, tries, target = 0, 0, ""
        while hops <= 5:
            try:
                address = urllib.parse.urljoin(address, target)
                host = self.host(address)
            except ValueError as error:
                raise Failure("refused", f"no web address: {error}", True) from None
            with host.turns:
                with self.lock:
                    start = max(time.monotonic(), host.start)
                    host.start = start + host.delay
                if self.halt.wait(max(0.0, start - time.monotonic())):
                    raise Failure("stopped")
                if host.bad >= 3:
                    raise Failure("host left", f"{host.name} left after {host.reason}")
                start = time.monotonic()
                answer = self.exchange(address, host, start + seconds, silence)
                seconds -= time.monotonic() - start
            status = answer.status_code
            if answer.is_redirect:
                target, hops = answer.headers["Location"].encode("latin-1"), hops + 1
                target = target.decode(errors="replace")
            elif status not in (429, 500, 502, 503, 504):
                host.bad = 0
                return answer
            else:
                target, wait, tries = "", 2**tries, tries + 1
                with contextlib.suppress(urllib3.exceptions.InvalidHeader):
                    wait = urllib3.Retry().get_retry_after(answer.raw) or wait
                down = wait > 60 or (status >= 500 and "wikimedia.org" in host.name)
                if status == 429 or tries == 3 or down:
                    host.bad, host.reason = host.bad + 1 + 2 * down, f"HTTP {status}"
                if tries == 3 or host.bad >= 3:
                    return answer
                host.start = time.monotonic() + wait
        raise Failure("refused", "more than five redirects", True)

    def exchange(self, address, host, until, silence, again=True):
        """Make one request within time and size; a redirect's body is not read."""
        body, limit, response = bytearray(), self.settings.MAX_BYTES, None
        self.under_way[threading.get_ident()] = [None, until]
        try:
            silence = (self.settings.REQUEST_TIMEOUT, silence)
            options = {"timeout": silence, "stream": True, "allow_redirects": False}
            with self.get(address, **options) as response:
                while not response.is_redirect and (
                    chunk := response.raw.read1(65536, decode_content=True)
                ):
                    body += chunk
                    if max(len(body), response.raw.length_remaining or 0) > limit:
                        raise Failure("refused", f"more than {limit} bytes", True)
            if time.monotonic() >= until or self.halt.is_set():
                raise TimeoutError  # it was cut, so this may be half of the body
            response._content, response._content_consumed = bytes(body), True
            return response
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            late = time.monotonic() >= until
            if self.halt.is_set():
                raise Failure("stopped") from None
            if late and response is not None:
                raise Failure("refused", "took too long in all", True) from None
            if isinstance(error, ValueError):
                raise Failure("refused", f"no web address: {error}", True) from None
            while error.__context__:
                error = error.__context__  # the one at the bottom says what happened
            if again and isinstance(error, ConnectionError) and not late:
                # A connection that was kept may have been closed in the meantime.
                return self.exchange(address, host, until, silence[1], again=False)
            reason = "timed out" if late else str(error) or type(error).__name__
            if response is not None and not isinstance(error, TimeoutError):
                raise Failure("broken", f"cut short: {reason}") from None
            host.bad, host.reason = host.bad + 1, reason
            raise Failure("unreachable", f"{host.name}: {reason}") from None
        finally:
            self.under_way.pop(threading.get_ident(), None)

    def cut(self):
        """Cut the connections whose time is over, even while headers trickle in."""
        for connection, until in list(self.under_way.values()):
            if connection and (self.halt.is_set() or time.monotonic() >= until):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def inspect(body, min_size, max_pixels):
    """Return (extension, width, height) of the bytes of a picture that is fit."""
    endings = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
    endings |= {"BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
    try:
        with Image.open(io.BytesIO(body), formats=tuple(endings)) as picture:
            size = picture.size
            reason = f"{size[0]} x {size[1]} pixels"
            if size[0] * size[1] > max_pixels:
                raise Failure("refused", reason, True)
            if min(size) < min(min_size) or max(size) < max(min_size):
                raise Failure("too small", reason, True)
            picture.load()  # opening reads the header only: a truncated file would pass
            return endings.get(picture.format, "jpg"), *size  # MPO is several JPEGs
    except Failure:
        raise
    except Exception as error:  # Pillow's readers raise whatever their bytes lead to
        raise Failure("broken", f"not a whole picture: {error}", True) from None


def read_lines(path):
    """Return the objects of a .jsonl file; a last line torn by a kill is healed."""
    data = path.read_bytes() if path.exists() else b""
    lines, entries = data.split(b"\n"), []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            entries.append(dict(json.loads(line)))
    if lines[-1]:
        os.truncate(path, len(data) - len(lines[-1]))
        with contextlib.suppress(ValueError), path.open("ab") as file:
            json.loads(lines[-1])  # it is whole: only its end was missing
            file.write(lines[-1] + b"\n")
    return entries


class Folder:
    """OUT_DIR: what lies there, what is known, and how one more picture comes in."""

    def __init__(self, path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "manifest.jsonl").open("a").close()  # OSError if it cannot be written
        self.path, self.lock, self.goal, self.trouble = path, threading.RLock(), 0, None
        entries = read_lines(path / "manifest.jsonl")
        self.entries = {each["file"]: each for each in entries if "sha256" in each}
        entries += read_lines(path / "failed.jsonl")
        known = [entry.get(key) for entry in entries for key in ("url", "final_url")]
        self.known = {requests.utils.requote_uri(address or "") for address in known}
        self.patience = 3 + len(entries) // 20  # pages that list only what is known
        for part in path.glob(".*.part"):  # left by a kill, before or after its line
            final = path / part.name[1:-5]
            if final.name in self.entries and not final.exists():
                os.replace(part, final)
            part.unlink(missing_ok=True)
        endings = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .avif".split()
        files = [file for file in path.rglob("*") if file.suffix.lower() in endings]
        self.names = {file.relative_to(path).as_posix() for file in files}
        # What was deleted by hand keeps its line, and so its content and its number.
        self.hashes = {entry["sha256"]: name for name, entry in self.entries.items()}
        for name in self.names - self.entries.keys():
            self.hashes[hashlib.sha256((path / name).read_bytes()).hexdigest()] = name
        stems = [pathlib.Path(name).stem for name in self.names | self.entries.keys()]
        self.number = max([0, *(int(stem) for stem in stems if stem.isdecimal())])

    def append(self, name, entry):
        """Append a line to a .jsonl file, unless an earlier one may be torn."""
        with self.lock:
            if self.trouble:
                raise Failure("stopped")
            try:
                with (self.path / name).open("ab") as file:
                    file.write(json.dumps(entry).encode() + b"\n")
            except OSError as error:
                self.trouble = error
                raise

    def new(self, tasks):
        """Return the tasks whose addresses were never seen, and remember them."""
        with self.lock:
            fresh = {
                requests.utils.requote_uri(task["file_url"]): task for task in tasks
            }
            fresh = {url: task for url, task in fresh.items() if url not in self.known}
            self.known |= fresh.keys()
            return list(fresh.values())

    def save(self, body, ending, entry):
        """Take a picture in: its line comes first, so that none is without licence."""
        digest = hashlib.sha256(body).hexdigest()
        with self.lock:
            if len(self.names) >= self.goal:
                raise Failure("stopped")
            if digest in self.hashes:
                raise Failure("duplicate", f"the bytes of {self.hashes[digest]}", True)
            self.number += 1
            name = f"{self.number:06d}.{ending}"
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            entry = {"file": name} | entry
            entry |= {"bytes": len(body), "sha256": digest, "fetched_at": now}
            part = self.path / f".{name}.part"
            part.write_bytes(body)
            self.append("manifest.jsonl", entry)
            os.replace(part, self.path / name)
            self.names.add(name)
            self.entries[name], self.hashes[digest] = entry, name

    def write_credits(self):
        """Write CREDITS.md: title, creator, licence and source of each picture."""

        def link(text, address=""):
            text = re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)
            web = re.fullmatch(r"https?://[^\s<>]+", address or "")
            return f"[{text}](<{address}>)" if web else text

        lines = ["# Credits", "", "What the pictures' licences ask to be named.", ""]
        for name in sorted(self.names):
            entry = collections.defaultdict(str, self.entries.get(name, {}))
            source = entry["page_url"] or entry["url"]
            title = link(entry["title"] or "untitled", source)
            license = link(entry["license"] or "licence unknown", entry["license_url"])
            creator = link(entry["creator"] or "unknown")
            lines.append(f"- `{name}`: {title} by {creator}, {license}")
        temporary = self.path / ".CREDITS.md.part"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        os.replace(temporary, self.path / "CREDITS.md")


class PageFeeder(icrawler.Feeder):
    """Hands the pages that are still to be read to the parser."""

    def feed(self, **kwargs):
        with contextlib.suppress(IndexError):
            while True:
                self.output(self.search.pages.pop(0))


class PageParser(icrawler.Parser):
    """Reads pages of results: hands on the pictures, and the next page to itself."""

    def worker_exec(self, **kwargs):
        """Read pages until there are none; icrawler's own loop dies of a bad page."""
        search, halt = self.search, self.session.halt
        while not halt.is_set():
            over = self.signal.get("feeder_exited")  # asked before the queue is
            try:
                page = self.in_queue.get(timeout=0.1)
            except queue.Empty:
                if over:
                    return
                continue
            while self.out_queue.qsize() > 40 and not halt.wait(0.1):
                pass  # no page is asked for before it is needed
            try:
                tasks, following = self.read(page)
            except Failure as failure:
                if failure.kind == "stopped":
                    self.in_queue.put(page)  # for the second round
                elif failure.kind != "empty":
                    search.failure = failure
                    with self.in_queue.mutex:
                        self.in_queue.queue.clear()
                if failure.kind in ("budget", "refused", "unreachable"):  # left for now
                    search.engine.failure = search.engine.failure or failure
                    if not search.engine.heard:
                        halt.set()  # the other thread need not find out by itself
                continue
            with self.lock:
                new = self.folder.new(tasks)
                search.listed += len(tasks)
                search.counts["duplicate"] += len(tasks) - len(new)
                search.stale = search.stale + 1 if tasks and not new else 0
            for task in new:
                self.output(task)
            if following and search.stale < self.folder.patience:
                self.input(following)

    def read(self, page):
        """Return (tasks, next page or None) of a page; what may pass is tried again."""
        engine, settings = self.search.engine, self.settings
        address = f"{settings.ENDPOINTS[engine.name]}?{urllib.parse.urlencode(page)}"
        for attempt in (1, 2, 3):
            if engine.failure:
                raise engine.failure
            if engine.budget < 1:
                raise Failure("budget", "PAGE_BUDGET is used up for this run")
            engine.budget -= 1
            # Until it has answered once, an engine gets its part of 50 s only.
            share = 50 / len(settings.ENGINES)
            seconds = min(settings.PAGE_TIMEOUT, 1e9 if engine.heard else share)
            try:
                answer = self.session.fetch(address, seconds, seconds)
                engine.heard = True
                if answer.headers.get("x-ratelimit-available-anon_sustained") == "0":
                    engine.failure = Failure("refused", "today's answers are used up")
                if reason := refusal(answer):
                    raise Failure("refused", reason)
                return engine.read(page, answer.content, settings.LICENSE)
            except Failure as error:
                left = error.kind == "host left"
                failure = Failure("refused", str(error)) if left else error
            except Exception as error:  # a page can lead its reader anywhere
                failure = Failure("unreadable", f"not in the known shape: {error!r}")
            tries = {"unreachable": 3 if engine.heard else 1, "unreadable": 2}
            if attempt >= (tries | {"empty": 2}).get(failure.kind, 1):
                raise failure


class PictureDownloader(icrawler.ImageDownloader):
    """Fetches pictures, looks at them and takes them into the folder.

    icrawler's loop calls download() for each task. Its threads leave early once they
    have counted a picture in `fetched_num`, so the counting is done elsewhere.
    """

    def download(self, task, default_ext, timeout=5, **kwargs):
        """Take a picture or else its thumbnail. No error gets out: it ends a thread."""
        search, failures = self.search, []
        try:
            for address in dict.fromkeys((task["file_url"], task["fallback"])):
                try:
                    return self.take(address, task)
                except Failure as failure:
                    failures.append(failure)
                if failures[-1].kind in ("duplicate", "noai", "stopped", "too small"):
                    break
            if failures[-1].kind == "stopped":
                return self.in_queue.put(task)  # for the second round
            with self.lock:
                search.counts[failures[0].kind] += 1
            if all(failure.final for failure in failures):
                reason = "; ".join(map(str, failures))
                entry = {"url": task["file_url"], "reason": reason}
                entry |= {"engine": search.engine.name, "keyword": search.keyword}
                self.folder.append("failed.jsonl", entry)
        except Exception as error:  # a full disk or a mistake of ours stops the run
            self.folder.trouble = self.folder.trouble or error
            self.session.halt.set()

    def take(self, address, task):
        """Fetch an address, look at the picture and save it, or raise a Failure."""
        settings, search, folder = self.settings, self.search, self.folder
        seconds = settings.IMAGE_DEADLINE
        answer = self.session.fetch(address, seconds, settings.REQUEST_TIMEOUT)
        status, robots = answer.status_code, answer.headers.get("X-Robots-Tag", "")
        if status != 200:
            final = 400 <= status < 500 and status not in (408, 425, 429)
            raise Failure(f"HTTP {status}", f"HTTP {status}", final)
        if re.search("no(image)?ai", robots.lower()):
            raise Failure("noai", "X-Robots-Tag forbids it", True)
        body = answer.content
        ending, width, height = inspect(body, settings.MIN_SIZE, settings.MAX_PIXELS)
        entry = {"url": task["file_url"], "final_url": answer.url}
        for name in "page_url title creator license license_url attribution".split():
            entry[name] = task.get(name)
        told = search.filter or task.get("license_filter")
        entry |= {"license_filter": told, "engine": search.engine.name}
        entry |= {"keyword": search.keyword or task.get("keyword")}
        folder.save(body, ending, entry | {"width": width, "height": height})
        with self.lock:
            search.counts["saved"] += 1
        if len(folder.names) >= folder.goal:
            self.session.halt.set()


class PoliteCrawler(icrawler.Crawler):
    """One search: a keyword at an engine. Each gets a new crawler, because icrawler's
    queues and threads remember the search before."""

    def __init__(self, job):
        settings = job.settings
        super().__init__(
            *(PageFeeder, PageParser, PictureDownloader, settings.FEEDER_THREADS),
            *(settings.PARSER_THREADS, settings.DOWNLOADER_THREADS),
            storage={"root_dir": settings.OUT_DIR},
            log_level=logging.CRITICAL,
        )
        # icrawler's own queues lose a task whenever they are full for a second, and
        # refuse one that is put back.
        self.feeder.out_queue = self.parser.in_queue = queue.Queue()
        self.parser.out_queue = self.downloader.in_queue = queue.Queue()
        for part in (self, self.feeder, self.parser, self.downloader):
            vars(part).update(vars(job))  # settings, folder, session, search, show

    def crawl(self):
        """Run the search until it ends or `halt` is set; what is left stays in it."""
        search, halt, tasks = self.search, self.session.halt, self.downloader.in_queue
        name = f"{search.engine.name} {search.keyword or 'list'}"
        for task in search.tasks:
            tasks.put(task)
        self.feeder.start()
        self.parser.start()
        self.downloader.start(max_num=0, queue_timeout=0.1)
        while self.parser.is_alive() or self.downloader.is_alive():
            over = not self.parser.is_alive() and tasks.empty()
            self.signal.set(feeder_exited=not self.feeder.is_alive())
            self.signal.set(parser_exited=over, reach_max_num=halt.is_set())
            self.session.cut()
            self.show(description=name, completed=len(self.folder.names))
            time.sleep(0.05)
        search.pages += self.parser.in_queue.queue
        search.tasks = list(tasks.queue)


def plan(settings, folder):
    """Return the searches, engine by engine: what is to do, and what came of it."""
    readers = {"commons": read_commons, "openverse": read_openverse, "bing": read_bing}
    readers |= {"google": read_google, "urls": None}
    searches = []
    for name in settings.ENGINES:
        engine = types.SimpleNamespace(name=name, read=readers[name], heard=False)
        engine.failure, engine.budget = None, settings.PAGE_BUDGET.get(name)
        told = settings.LICENSE
        if told and name in ("bing", "google"):
            told = f"{told} ({name.title()}'s word, not checked)"
        for keyword in settings.KEYWORDS if name != "urls" else [None]:
            search = types.SimpleNamespace(engine=engine, keyword=keyword, filter=told)
            search.counts, search.failure = collections.Counter(), None
            search.listed = search.stale = search.seconds = 0
            search.pages, search.tasks = [], []
            if keyword:
                words = keyword, settings.LICENSE, settings.ENGINES
                search.pages = first_pages(name, *words)
            else:
                tasks = read_url_file(pathlib.Path(settings.URL_FILE))
                search.tasks, search.filter = folder.new(tasks), None
                search.listed = len(tasks)
                search.counts["duplicate"] = len(tasks) - len(search.tasks)
            searches.append(search)
    return searches


def crawl_all(settings, folder, session, searches, progress):
    """Run the searches, each keyword up to its share, then again without that limit."""
    line = progress.add_task("", total=settings.MAX_NUM)
    job = types.SimpleNamespace(settings=settings, folder=folder, session=session)
    job.show = lambda **state: progress.update(line, **state)
    share = -(-settings.MAX_NUM // len(settings.KEYWORDS))
    for limit, search in itertools.product((share, settings.MAX_NUM), searches):
        have = [folder.entries.get(name, {}).get("keyword") for name in folder.names]
        room = settings.MAX_NUM - len(have)
        if search.keyword:
            room = min(room, limit - have.count(search.keyword))
        if room > 0 and not search.engine.failure and (search.pages or search.tasks):
            folder.goal, job.search, start = len(have) + room, search, time.monotonic()
            session.halt.clear()
            PoliteCrawler(job).crawl()
            search.seconds += time.monotonic() - start
        if folder.trouble:
            raise folder.trouble


def outcome(search):
    """Return why a search ended early or brought nothing, or else an empty text."""
    failure = search.failure or (None if search.listed else search.engine.failure)
    if failure:
        return f"{failure.kind}: {failure}"
    if search.counts["saved"]:
        return ""
    return "nothing new of use" if search.listed else "answered but empty"


def summary(search):
    """Return the line that says what came of a search."""
    fixed = ["saved", "duplicate", "too small", "broken", "refused"]
    kinds = fixed + sorted(search.counts.keys() - set(fixed))
    counts = [f"{kind} {search.counts[kind]}" for kind in kinds]
    counts = ", ".join([*counts, f"{search.seconds:.1f} s"])
    end = f"; {outcome(search)}" if outcome(search) else ""
    return f'{search.engine.name} "{search.keyword or "list"}": {counts}{end}'


def check_settings(settings):
    """End the script with a message if a setting is not what it should be."""
    engines = ("commons", "openverse", "urls", "bing", "google")
    words = ("noncommercial", "commercial", "noncommercial,modify", "commercial,modify")
    counts = "MAX_NUM HOST_CONCURRENCY MAX_BYTES MAX_PIXELS "
    counts += "FEEDER_THREADS PARSER_THREADS DOWNLOADER_THREADS"
    rules = (
        ("OUT_DIR URL_FILE", "a path in quotes", lambda value: value + ""),
        ("CONTACT", "plain letters", lambda value: re.fullmatch("[ -~]*", value)),
        ("KEYWORDS", "phrases of 1 to 200 letters in round brackets", lambda value: (
            value and type(value) is tuple
            and all(0 < len(word.strip()) <= 200 for word in value))),
        ("ENGINES", f"some of {engines}", lambda value: (
            value and type(value) is tuple and {*value} <= {*engines})),
        ("LICENSE", f"None or one of {words}", lambda value: value in (None, *words)),
        (counts, "a whole number from 1", lambda value: (
            type(value) is int and value > 0)),
        ("MIN_NUM", "a whole number from 0 to MAX_NUM", lambda value: (
            type(value) is int and 0 <= value <= settings.MAX_NUM)),
        ("MIN_SIZE", "a width and a height in pixels", lambda value: (
            len(value) == 2 and min(value) > 0)),
        ("REQUEST_TIMEOUT IMAGE_DEADLINE PAGE_TIMEOUT", "seconds, more than 0",
            lambda value: value > 0),
        ("DEFAULT_DELAY", "seconds, 0 or more", lambda value: value >= 0),
        ("HOST_DELAY", "seconds for each host", lambda value: (
            min([0, *value.values()]) >= 0)),
        ("PAGE_BUDGET", "a number for each engine", lambda value: all(
            value[name] > 0 for name in settings.ENGINES if name != "urls")),
        ("ENDPOINTS", "an http address for each engine", lambda value: all(
            value[name][:4] == "http" for name in settings.ENGINES if name != "urls")),
    )  # fmt: skip
    for names, expected, good in rules:
        for name in names.split():
            fits = False
            with contextlib.suppress(AttributeError, KeyError, TypeError):
                fits = good(getattr(settings, name))
            if not fits:
                sys.exit(
                    f"{name} is {getattr(settings, name)!r}. Set it to {expected}."
                )


def main():
    settings = types.SimpleNamespace(
        OUT_DIR=OUT_DIR, URL_FILE=URL_FILE, KEYWORDS=KEYWORDS, ENGINES=ENGINES,
        MAX_NUM=MAX_NUM, MIN_NUM=MIN_NUM, LICENSE=LICENSE, MIN_SIZE=MIN_SIZE,
        CONTACT=CONTACT, HOST_DELAY=HOST_DELAY, DEFAULT_DELAY=DEFAULT_DELAY,
        HOST_CONCURRENCY=HOST_CONCURRENCY, PAGE_BUDGET=PAGE_BUDGET, MAX_BYTES=MAX_BYTES,
        MAX_PIXELS=MAX_PIXELS, REQUEST_TIMEOUT=REQUEST_TIMEOUT, ENDPOINTS=ENDPOINTS,
        IMAGE_DEADLINE=IMAGE_DEADLINE, PAGE_TIMEOUT=PAGE_TIMEOUT,
        ALLOW_PRIVATE_HOSTS=ALLOW_PRIVATE_HOSTS, FEEDER_THREADS=FEEDER_THREADS,
        PARSER_THREADS=PARSER_THREADS, DOWNLOADER_THREADS=DOWNLOADER_THREADS,
    )  # fmt: skip
    check_settings(settings)
    sys.stdout.reconfigure(errors="replace")  # a console may lack a keyword's letters
    out_dir = pathlib.Path(OUT_DIR).resolve()
    if (out_dir / "factors.csv").exists():
        sys.exit(
            f"{out_dir} holds drawn athletes (factors.csv), which must not mix with "
            "photographs. Move them away or set another OUT_DIR."
        )
    if "urls" in ENGINES and not pathlib.Path(URL_FILE).is_file():
        path = pathlib.Path(URL_FILE).resolve()
        sys.exit(f"{path} is missing; it should hold the addresses to fetch.")
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead
    session, searches, folder = PoliteSession(settings), [], None
    try:
        folder = Folder(out_dir)
        print(f"{len(folder.names)} images in {out_dir}, {MAX_NUM} wanted.", flush=True)
        if not CONTACT and "commons" in ENGINES:
            print("CONTACT is empty: Wikimedia wants one, and is asked every 6 s only.")
        searches = plan(settings, folder)
        name = rich.progress.TextColumn("{task.description}", markup=False)
        columns = name, rich.progress.BarColumn(), rich.progress.MofNCompleteColumn()
        quiet = not sys.stdout.isatty()
        with rich.progress.Progress(*columns, disable=quiet, transient=True) as live:
            crawl_all(settings, folder, session, searches, live)
    except OSError as error:
        reason = error.strerror or error
        sys.exit(f"Cannot write into {out_dir}: {reason}. Make room and run again.")
    finally:
        session.halt.set()
        if folder:
            with folder.lock, contextlib.suppress(OSError):
                folder.goal = 0  # a save has ended, and no other begins
                folder.write_credits()
        for search in searches:
            if search.seconds or search.listed:
                print(summary(search))
    count = len(folder.names)
    print(f"Wrote {OUT_DIR}: {count} images with manifest.jsonl and CREDITS.md.")
    if count < MIN_NUM:
        lines = [f"{count} images in {out_dir}, fewer than MIN_NUM = {MIN_NUM}."]
        lines += [f"{each.engine.name}: {outcome(each)}." for each in searches]
        lines = [line for line in dict.fromkeys(lines) if not line.endswith(": .")]
        failures = [search.engine.failure for search in searches]
        if all(failure and failure.kind == "unreachable" for failure in failures):
            lines += ["Is there a network, or a proxy to name in HTTPS_PROXY?"]
            lines += ["To go on without the web: python tests/draw_athletes.py"]
        else:
            lines += ["Try other KEYWORDS or ENGINES, or run again later."]
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped. All files are whole; run again to go on.", file=sys.stderr)
        sys.exit(130)
