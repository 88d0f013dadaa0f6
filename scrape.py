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
import math
import os
import pathlib
import queue
import re
import socket
import string
import sys
import threading
import time
import types
import urllib.parse
import warnings

import bs4
import icrawler
import requests
import rich.markup
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
FEEDER_THREADS = 1  # more of these two change nothing: an engine is asked one page
PARSER_THREADS = 2  # at a time
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

    def __init__(self, kind, reason="", final=False):
        super().__init__(reason or kind)
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
        if license in ("commercial", "commercial,modify"):
            names = [name for name in names if "nc" not in name]
        if license in ("noncommercial,modify", "commercial,modify"):
            names = [name for name in names if "nd" not in name]
        page = {"q": keyword, "page": 1, "page_size": 20, "filter_dead": "false"}
        if "commons" in engines:
            page["excluded_source"] = "wikimedia"
        return [{**page, "license": name} for name in names]
    if engine == "bing":
        page = {"q": keyword, "first": 1, "count": 35, "mmasync": 1, "mkt": "en-US"}
        codes = {"noncommercial": "L2_L3_L4_L5_L6_L7", "commercial": "L2_L3_L4"}
        codes |= {"noncommercial,modify": "L2_L3_L5_L6", "commercial,modify": "L2_L3"}
        filters = {"qft": f"+filterui:license-{codes[license]}"} if license else {}
        return [{**page, "adlt": "moderate", **filters}]
    page = {"q": keyword, "tbm": "isch", "ijn": 0, "start": 0}
    return [{**page, "tbs": "il:cl"} if license else page]


def plain(text):
    """Return text that may hold HTML as plain text on one line, or None."""
    # Bing marks its hits by U+E000 and U+E001; half a surrogate cannot be written.
    odd = r"<[^>]*>|[\ue000\ue001\ud800-\udfff]"
    text = re.sub(odd, "", text if isinstance(text, str) else "")
    return " ".join(html.unescape(text).split()) or None


def make_tasks(items, make):
    """Return the download tasks of a page: dicts of `file_url`, `fallback` and fields
    of the manifest. An item of which `make` cannot make a task is left out."""
    tasks, odd = [], 0
    for item in items:
        try:
            if task := make(item):
                for name in ("title", "creator", "license", "attribution"):
                    task[name] = plain(task.get(name))
                task["fallback"] = task.get("fallback") or task["file_url"]
                for name in ("file_url", "fallback"):
                    task[name].encode()  # UnicodeEncodeError: it cannot be asked for
                tasks.append(task)
        except (AttributeError, LookupError, TypeError, ValueError):
            odd += 1
    if odd and not tasks:
        raise ValueError(f"none of {odd} entries could be read")
    return tasks


def read_commons(page, body, license):
    """Return (tasks, next page or None) of an answer of Wikimedia Commons."""
    fields = json.loads(body)
    if "error" in fields:
        raise Failure("refused", f"its API says: {plain(fields['error']['info'])}")
    if not fields.keys() & {"query", "batchcomplete", "continue"}:
        raise KeyError("query")

    def make(item):
        info, title = item["imageinfo"][0], item["title"].removeprefix("File:")
        about = info.get("extmetadata") or {}
        about = {name: field["value"] for name, field in about.items()}
        name, artist = about.get("LicenseShortName"), about.get("Artist")
        if "svg" in info["mime"] or (license and not name):
            return None
        # The utm_ fields say who asked: a picture would have many addresses.
        thumbnail, original = (
            re.sub("[?&]utm_.*", "", address)
            for address in (info.get("thumburl") or info["url"], info["url"])
        )
        return {
            "file_url": thumbnail, "fallback": original, "title": title,
            "page_url": info.get("descriptionurl"), "creator": artist,
            "license": name, "license_url": about.get("LicenseUrl"),
            "attribution": ", ".join(filter(None, (title, artist, name))),
        }  # fmt: skip

    items = fields.get("query", {}).get("pages", [])
    items = sorted(items, key=lambda item: item.get("index", 0))  # sent out of rank
    following = {**page, **fields["continue"]} if "continue" in fields else None
    return make_tasks(items, make), following


def read_openverse(page, body, license):
    """Return (tasks, next page or None) of an answer of Openverse."""
    fields = json.loads(body)
    results, number = fields["results"], page["page"]
    names = {"cc0": "CC0", "pdm": "Public Domain Mark"}

    def make(item):
        name = names.get(item["license"], f"CC {item['license'].upper()}")
        return item["license"] == page["license"] and {
            **item, "file_url": item["url"], "fallback": item.get("thumbnail"),
            "page_url": item.get("foreign_landing_url"),
            "license": f"{name} {item.get('license_version') or ''}",
        }  # fmt: skip

    # Without a key page 12 is the last; a short page is not.
    end = number >= 12 or number * 20 >= fields["result_count"] or not results
    return make_tasks(results, make), None if end else {**page, "page": number + 1}


def read_bing(page, body, license):
    """Return (tasks, next page) of a page of Bing; it ends with an empty page."""
    if not body.strip():
        raise Failure("empty")
    names = {"file_url": "murl", "fallback": "turl", "page_url": "purl", "title": "t"}

    def make(link):
        fields = json.loads(link["m"])
        return {name: fields.get(key) for name, key in names.items()}

    links = bs4.BeautifulSoup(body, "lxml").select("a.iusc[m]")
    if not links:
        raise KeyError("a.iusc")
    return make_tasks(links, make), {**page, "first": page["first"] + 35}


def read_google(page, body, license):
    """Return (tasks, next page) of a page of Google, in its shape before 2025."""
    found = re.findall(rb'\["(https?://[^"\s]+)",\d+,\d+\]', body)
    found = [json.loads(b'"%b"' % address) for address in found]  # \u003d is =
    tasks = [{"file_url": address} for address in found if "gstatic.com" not in address]
    if not tasks:
        raise KeyError("AF_initDataCallback")
    following = {**page, "ijn": page["ijn"] + 1, "start": page["start"] + 100}
    return make_tasks(tasks, dict), following


def read_url_file(path):
    """Return the tasks of a list of addresses or of a manifest."""

    def make(line):
        about = json.loads(line) if line.startswith("{") else {"url": line}
        return {**about, "file_url": about["url"], "fallback": about.get("final_url")}

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        lines = [line.strip() for line in lines]
        return make_tasks([line for line in lines if line and line[0] != "#"], make)
    except (OSError, ValueError) as error:
        expected = "Give it an address a line, or a manifest.jsonl"
        sys.exit(f"Cannot read {path.resolve()} (URL_FILE): {error}. {expected}.")


def refusal(answer):
    """Return in plain words how an engine refuses programs, or None."""
    if "/sorry/" in answer.url:
        return "it wants a captcha to be solved"
    if "consent.google" in answer.url:
        return "it shows its consent page"
    if b"/httpservice/retry/enablejs" in answer.content:
        return "it wants a browser with JavaScript"
    return None if answer.status_code == 200 else f"HTTP {answer.status_code}"


def check_public(peer):
    """Raise a Failure if an address, in numbers, is not one of the public internet."""
    address = ipaddress.ip_address(peer)
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global:
        reason = f"{peer} is not a public address (see ALLOW_PRIVATE_HOSTS)"
        raise Failure("refused", reason, final=True)


def cut(connection):
    """End a connection, so that the thread that reads from it goes on."""
    connection = getattr(connection, "socket", connection)  # below a proxy's TLS
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Fetcher(requests.adapters.HTTPAdapter):
    """Fetches for all threads: with manners, within bounds, from public addresses.

    requests hands it each request, those of redirects too. The connected socket is
    asked where it leads, which no redirect and no name can deceive; only a proxy
    (HTTPS_PROXY) may be private. Whoever waits here stops when `halt` is set.
    """

    def __init__(self, settings):
        super().__init__(pool_connections=100)
        self.settings, self.halt = settings, threading.Event()
        self.hosts, self.lock = {}, threading.Lock()
        self.session = requests.Session()
        self.session.mount("https://", self)
        self.session.mount("http://", self)
        self.session.max_redirects = 5
        self.session.headers["Accept-Language"] = "en-US,en;q=0.8"
        self.session.headers["User-Agent"] = (
            f"bodybuilder-vae/1.0 ({settings.CONTACT or 'no contact given'}) "
            f"icrawler/{icrawler.__version__} python-requests/{requests.__version__}"
        )

    def fetch(self, address, seconds, silence):
        """Return the answer of an address, after redirects and the pauses it asks for.

        Args:
            seconds: what the transfers may take in all; waiting for a turn is apart.
            silence: seconds without a byte after which it is given up.
        """
        timeout = types.SimpleNamespace(seconds=seconds, silence=silence)
        try:
            return self.session.get(address, timeout=timeout)
        except requests.TooManyRedirects:
            raise Failure("refused", "more than five redirects", True) from None
        except ValueError as error:
            raise Failure("refused", f"no web address: {error}", True) from None

    def get_connection_with_tls_context(self, *args, **kwargs):
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        allow_private = self.settings.ALLOW_PRIVATE_HOSTS or pool.proxy

        class Connection(type(pool).ConnectionCls):
            def _new_conn(self):  # connects, but does not speak yet
                connection = super()._new_conn()
                if not allow_private:
                    check_public(connection.getpeername()[0])
                return connection

            def getresponse(self):  # self.timeout bounds silence, but not a trickle
                end = time.monotonic() + self.timeout + 1
                timer = threading.Timer(self.timeout + 1, cut, [self.sock])
                timer.start()
                try:
                    return super().getresponse()
                finally:
                    timer.cancel()
                    if time.monotonic() >= end:
                        raise Failure("refused", "its headers took too long", True)

        pool.ConnectionCls = Connection
        return pool

    def host(self, address):
        """Return what is known of the host of an address."""
        parts, settings = urllib.parse.urlsplit(address), self.settings
        if not settings.ALLOW_PRIVATE_HOSTS:  # behind a proxy there is no socket to ask
            with contextlib.suppress(ValueError):  # it is a name
                check_public(parts.hostname)
        delay = settings.HOST_DELAY.get(parts.hostname, settings.DEFAULT_DELAY)
        if parts.hostname.endswith(".wikimedia.org") and not settings.CONTACT:
            delay = max(delay, 6)
        turns = threading.Semaphore(1 if delay >= 1 else settings.HOST_CONCURRENCY)
        host = types.SimpleNamespace(
            name=parts.hostname, delay=delay, turns=turns, start=0.0, bad=0
        )  # `bad`: bad answers in a row; after three the host is left
        return self.hosts.setdefault(parts.netloc, host)

    def send(self, request, timeout, **kwargs):
        """Make a request, and again where the server is busy; return the answer.

        Args:
            timeout: `seconds` and `silence` as above. What it takes is subtracted.
        """
        host = self.host(request.url)
        for tries, wait in enumerate((1, 2, 0), start=1):
            with host.turns:
                with self.lock:
                    start = max(time.monotonic(), host.start)
                    host.start = start + host.delay
                if self.halt.wait(max(0.0, start - time.monotonic())):
                    raise Failure("stopped")
                if host.bad >= 3:
                    raise Failure("host left", f"{host.name} left after {host.reason}")
                start = time.monotonic()
                answer = self.exchange(request, host, timeout, kwargs)
                timeout.seconds -= time.monotonic() - start
            if timeout.seconds <= 0:  # here for slow redirects, below for slow bodies
                raise Failure("refused", "took too long in all", final=True)
            status = answer.status_code
            if status not in (429, 500, 502, 503, 504):
                host.bad = 0
                break
            with contextlib.suppress(Exception):  # a header can hold anything
                wait = urllib3.Retry().get_retry_after(answer.raw) or wait
            if status == 429 or tries == 3 or wait > 60:
                host.bad += 3 if wait > 60 else 1
                host.reason = f"HTTP {status}"
            if host.bad >= 3:
                break
            host.start = max(host.start, time.monotonic() + wait)
        return answer

    def exchange(self, request, host, timeout, options, again=True):
        """Make one request within time and size; a redirect's body is not read."""
        answer, until = None, time.monotonic() + timeout.seconds
        seconds = (self.settings.REQUEST_TIMEOUT, timeout.silence)
        try:
            with super().send(request, **options, timeout=seconds) as answer:
                body = b"" if answer.is_redirect else self.read_body(answer, until)
            answer._content, answer._content_consumed = body, True
            if answer.is_redirect:  # requests fails where it is not in UTF-8
                target = answer.headers["Location"].encode("latin-1")
                target = urllib.parse.quote(target, safe=string.punctuation)
                answer.headers["Location"] = target
            return answer
        except (Failure, ValueError):
            raise
        except Exception as error:  # sockets, TLS, decoders: each has its own
            while error.__context__:
                error = error.__context__  # the one at the bottom says what happened
            if again and isinstance(error, ConnectionError):
                # A connection that was kept may have been closed in the meantime.
                return self.exchange(request, host, timeout, options, again=False)
            reason = str(error) or type(error).__name__
            if answer is not None and not isinstance(error, TimeoutError):
                raise Failure("broken", f"cut short: {reason}") from None
            host.bad, host.reason = host.bad + 1, reason
            raise Failure("unreachable", f"{host.name}: {reason}") from None

    def read_body(self, answer, until):
        """Return the unpacked bytes of an answer, if they come before `until`."""
        body, limit = bytearray(), self.settings.MAX_BYTES
        while chunk := answer.raw.read1(65536, decode_content=True):
            body += chunk
            if max(len(body), answer.raw.length_remaining or 0) > limit:
                raise Failure("refused", f"more than {limit} bytes", final=True)
            if self.halt.is_set():
                raise Failure("stopped")
            if time.monotonic() >= until:
                raise Failure("refused", "took too long in all", final=True)
        return bytes(body)


def inspect(body, min_size, max_pixels):
    """Return (extension, width, height) of the bytes of a picture that is fit."""
    endings = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
    endings |= {"BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
    try:
        with Image.open(io.BytesIO(body), formats=tuple(endings)) as picture:
            width, height = picture.size
            if width * height <= max_pixels:
                picture.load()  # opening reads no more than the header
    except Exception as error:  # Pillow's readers raise whatever their bytes lead to
        raise Failure("broken", f"not a whole picture: {error}", True) from None
    reason = f"{width} x {height} pixels"
    if width * height > max_pixels:
        raise Failure("refused", reason, final=True)
    if min(width, height) < min(min_size) or max(width, height) < max(min_size):
        raise Failure("too small", reason, final=True)
    return endings.get(picture.format, "jpg"), width, height  # MPO is several JPEGs


def read_lines(path):
    """Return the objects of a .jsonl file; a last line torn by a kill is healed."""
    data = path.read_bytes() if path.exists() else b""
    *lines, torn = data.split(b"\n")
    if torn:
        try:
            json.loads(torn)
            lines.append(torn)
            with path.open("ab") as file:
                file.write(b"\n")  # it is whole: only its end was missing
        except ValueError:
            os.truncate(path, len(data) - len(torn))
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            entries.append(dict(json.loads(line)))
    return entries


class Folder:
    """OUT_DIR: what lies there, what is known, and how one more picture comes in."""

    def __init__(self, path):
        path.mkdir(parents=True, exist_ok=True)
        self.manifest = (path / "manifest.jsonl").open("ab")  # stays open for its lock
        with contextlib.suppress(ImportError):  # Windows has no such lock
            import fcntl

            fcntl.flock(self.manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path, self.lock, self.goal = path, threading.RLock(), 0
        entries = read_lines(path / "manifest.jsonl")
        self.entries = {str(each["file"]): each for each in entries if "file" in each}
        entries += read_lines(path / "failed.jsonl")
        known = [str(each.get(key)) for each in entries for key in ("url", "final_url")]
        self.known = set(map(requests.utils.requote_uri, known))
        self.patience = 3 + len(entries) // 20  # pages that list only what is known
        for part in path.glob(".*.part"):  # left by a kill, before or after its line
            final = path / part.name[1:-5]
            if final.name in self.entries and not final.exists():
                os.replace(part, final)
            part.unlink(missing_ok=True)
        endings = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .avif".split()
        files = [file for file in path.rglob("[!.]*") if file.suffix.lower() in endings]
        self.names = {file.relative_to(path).as_posix() for file in files}
        for name in self.names - self.entries.keys():  # they came from elsewhere
            digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
            self.entries[name] = {"sha256": digest}
        # What was deleted by hand keeps its line, and so its content and its number.
        self.hashes = {each.get("sha256"): name for name, each in self.entries.items()}
        stems = [pathlib.Path(name).stem for name in self.entries]
        self.number = max([0, *(int(stem) for stem in stems if stem.isdecimal())])

    def append(self, name, entry):
        """Append a line to a .jsonl file, or nothing of it where the disk is full."""
        path = self.path / name
        with self.lock:
            path.touch()
            size = path.stat().st_size
            try:
                with path.open("ab") as file:
                    file.write(json.dumps(entry).encode() + b"\n")
            except OSError:
                os.truncate(path, size)
                raise

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
            entry = {"file": name, **entry}
            entry |= {"bytes": len(body), "sha256": digest, "fetched_at": now}
            part = self.path / f".{name}.part"
            try:
                part.write_bytes(body)
            except OSError:  # the disk is full
                part.unlink(missing_ok=True)
                raise
            self.append("manifest.jsonl", entry)
            os.replace(part, self.path / name)
            self.names.add(name)
            self.entries[name], self.hashes[digest] = entry, name

    def close(self):
        """Let nothing in any more, and write CREDITS.md about what lies there."""
        with self.lock:
            self.goal = 0
        lines = ["# Credits", "", "Title, creator, licence and source of each picture."]
        lines += ["All are as downloaded; Wikimedia Commons scales large ones.", ""]
        for name in sorted(self.names):
            about = collections.defaultdict(str, self.entries[name])
            source = about["page_url"] or about["url"]
            title = markdown(about["title"] or "untitled", source)
            creator = markdown(about["creator"] or "unknown")
            license = about["license"] or "licence unknown"
            license = markdown(license, about["license_url"])
            lines.append(f"- `{name}`: {title} by {creator}, {license}")
        part = self.path / ".CREDITS.md.part"
        try:  # a file name may be no proper text
            part.write_bytes("\n".join([*lines, ""]).encode(errors="replace"))
            os.replace(part, self.path / "CREDITS.md")
        finally:
            part.unlink(missing_ok=True)


def markdown(text, address=""):
    """Return text that Markdown leaves alone, linked to an address if it is one."""
    text = re.sub(r"([\\`*_\[\]<>&~$])", r"\\\1", str(text))
    web = re.fullmatch(r"https?://[^\s<>]+", str(address))
    return f"[{text}](<{address}>)" if web else text


class KeywordCrawler(icrawler.Crawler):
    """Crawls for a keyword at an engine: what is to do, and what came of it.

    icrawler runs the threads. What they do is our own: its parser dies of a bad page
    and its downloader of a bad picture. The pages are here and not in its feeder, so
    that a second run takes up where the first one stopped.
    """

    def __init__(self, engine, about, pages, folder, fetcher):
        settings = fetcher.settings
        super().__init__(
            parser_threads=settings.PARSER_THREADS,
            feeder_threads=settings.FEEDER_THREADS,
            downloader_threads=settings.DOWNLOADER_THREADS,
            log_level=logging.CRITICAL,
        )
        self.engine, self.about, self.keyword = engine, about, about.get("keyword")
        self.folder, self.fetcher, self.settings = folder, fetcher, settings
        self.pages, self.tasks = collections.deque(pages), queue.Queue()
        self.counts, self.seconds = collections.Counter(), 0.0
        self.failure = self.trouble = None  # why its pages ended early; what stops us
        self.listed = 0  # pictures on its pages
        self.stale = 0  # pages in a row that listed only what is known
        self.parser.worker_exec = self.read_pages
        self.downloader.download = self.download
        # icrawler's own queue loses a task whenever it is full for a second, and
        # refuses one that is put back.
        self.downloader.in_queue = self.tasks

    def crawl(self, live):
        """Run until nothing is left or `halt` is set, and show how far it is."""
        halt, start, wanted = self.fetcher.halt, time.monotonic(), self.settings.MAX_NUM
        name = rich.markup.escape(f"{self.engine.name} {self.keyword or 'list'}")
        halt.clear()
        self.signal.reset()
        self.parser.start()
        self.downloader.start(max_num=0, queue_timeout=0.1)
        try:
            while self.parser.is_alive() or self.downloader.is_alive():
                over = not self.parser.is_alive() and self.tasks.empty()
                self.signal.set(parser_exited=over, reach_max_num=halt.is_set())
                count = len(self.folder.names)
                text = f"{name} {count}/{wanted}"
                live.update(live.task_ids[0], description=text, completed=count)
                time.sleep(0.05)
        finally:
            self.seconds += time.monotonic() - start
        if self.trouble:
            raise self.trouble

    def read_pages(self):
        """Read pages of results until there are none: the work of a parser thread."""
        engine, halt, tries = self.engine, self.fetcher.halt, 0
        with engine.turn:  # other threads find nothing left to do
            while self.pages and not halt.is_set():
                if self.tasks.qsize() > 40:
                    halt.wait(0.1)  # no page is asked for before it is needed
                    continue
                try:
                    tasks, following = self.read_page(self.pages[0])
                except Failure as failure:
                    kind, tries = failure.kind, tries + 1
                    passing = kind in ("unreachable", "unreadable", "empty")
                    if kind == "stopped" or (passing and tries < 3 and engine.heard):
                        continue
                    self.pages.clear()
                    self.failure = None if kind == "empty" else failure
                    if kind in ("budget", "refused", "unreachable"):
                        engine.failure = engine.failure or failure
                else:
                    tries = 0
                    self.pages.popleft()
                    self.add(tasks)
                    if following and self.stale < self.folder.patience:
                        self.pages.append(following)

    def read_page(self, page):
        """Return (tasks, next page or None) of a page of results."""
        engine, settings = self.engine, self.settings
        if engine.failure:
            raise engine.failure
        if engine.budget < 1:
            raise Failure("budget", "PAGE_BUDGET is used up for this run")
        engine.budget -= 1
        seconds = settings.PAGE_TIMEOUT
        if not engine.heard:  # where no engine answers, the end comes within 60 s
            seconds = min(seconds, 50 / len(settings.ENGINES))
        address = f"{settings.ENDPOINTS[engine.name]}?{urllib.parse.urlencode(page)}"
        try:
            answer = self.fetcher.fetch(address, seconds, seconds)
            engine.heard = True
            if answer.headers.get("x-ratelimit-available-anon_sustained") == "0":
                engine.failure = Failure("refused", "today's answers are used up")
            if reason := refusal(answer):
                raise Failure("refused", reason)
            return engine.read(page, answer.content, settings.LICENSE)
        except Failure as failure:
            if failure.kind == "broken":
                failure.kind = "unreadable"
            raise
        except Exception as error:  # a page can lead its reader anywhere
            reason = f"not in the known shape: {error!r}"
            raise Failure("unreadable", reason) from None

    def add(self, tasks):
        """Take in the tasks of a page whose addresses were never seen."""
        fresh = {requests.utils.requote_uri(task["file_url"]): task for task in tasks}
        with self.folder.lock:
            fresh = {url: fresh[url] for url in fresh if url not in self.folder.known}
            self.folder.known |= fresh.keys()
            self.listed += len(tasks)
            self.counts["duplicate"] += len(tasks) - len(fresh)
            self.stale = self.stale + 1 if tasks and not fresh else 0
        for task in fresh.values():
            self.tasks.put(task)

    def download(self, task, *unused):
        """Take a picture or else its thumbnail: the work of a downloader thread, which
        an error would end."""
        failures = []
        try:
            for address in dict.fromkeys((task["file_url"], task["fallback"])):
                try:
                    return self.take(address, task)
                except Failure as failure:
                    failures.append(failure)
                if failures[-1].kind in ("duplicate", "noai", "stopped", "too small"):
                    break
            if failures[-1].kind == "stopped":
                return self.tasks.put(task)  # for the second run
            with self.folder.lock:
                self.counts[failures[0].kind] += 1
            if all(failure.final for failure in failures):
                reason = "; ".join(map(str, failures))
                entry = {"url": task["file_url"], "reason": reason}
                entry |= {"engine": self.engine.name, "keyword": self.keyword}
                self.folder.append("failed.jsonl", entry)
        except Exception as error:  # a full disk or a mistake of ours stops the run
            self.trouble = error
            self.fetcher.halt.set()

    def take(self, address, task):
        """Fetch an address, look at the picture and save it, or raise a Failure."""
        settings, folder = self.settings, self.folder
        seconds = settings.IMAGE_DEADLINE
        answer = self.fetcher.fetch(address, seconds, settings.REQUEST_TIMEOUT)
        status, robots = answer.status_code, answer.headers.get("X-Robots-Tag", "")
        if status != 200:
            final = 400 <= status < 500 and status not in (408, 425, 429)
            raise Failure(f"HTTP {status}", final=final)
        if re.search("no(image)?ai", robots.lower()):
            raise Failure("noai", "X-Robots-Tag forbids it", final=True)
        body = answer.content
        ending, width, height = inspect(body, settings.MIN_SIZE, settings.MAX_PIXELS)
        names = "page_url title creator license license_url attribution license_filter"
        entry = {"url": task["file_url"], "final_url": answer.url}
        for name in (*names.split(), "engine", "keyword"):
            entry[name] = task.get(name)
        entry |= {**self.about, "width": width, "height": height}
        folder.save(body, ending, entry)
        with folder.lock:
            self.counts["saved"] += 1
        if len(folder.names) >= folder.goal:
            self.fetcher.halt.set()

    def outcome(self):
        """Return why it ended early or brought nothing, or else an empty text."""
        if self.failure:
            return f"{self.failure.kind}: {self.failure}"
        if self.counts["saved"]:
            return ""
        return "nothing new of use" if self.listed else "answered but empty"

    def summary(self):
        """Return the line that says what came of it."""
        kinds = ["saved", "duplicate", "too small", "broken", "refused"]
        kinds = dict.fromkeys(kinds + sorted(self.counts))
        counts = "".join(f"{kind} {self.counts[kind]}, " for kind in kinds)
        end = f"; {self.outcome()}" if self.outcome() else ""
        name = f'{self.engine.name} "{self.keyword or "list"}"'
        return f"{name}: {counts}{self.seconds:.1f} s{end}"


def plan(folder, fetcher, listed):
    """Return the crawlers, engine by engine; `listed` are the tasks for "urls"."""
    readers = {"commons": read_commons, "openverse": read_openverse, "bing": read_bing}
    readers |= {"google": read_google, "urls": None}
    crawlers, settings, license = [], fetcher.settings, fetcher.settings.LICENSE
    for name in settings.ENGINES:
        # `heard`: it has answered; `failure`: why it is left for the rest of the run.
        engine = types.SimpleNamespace(
            name=name, read=readers[name], budget=settings.PAGE_BUDGET.get(name),
            turn=threading.Lock(), heard=False, failure=None,
        )  # fmt: skip
        about = {"engine": name}
        if name == "urls":
            crawlers.append(KeywordCrawler(engine, about, [], folder, fetcher))
            crawlers[-1].add(listed)
            continue
        about["license_filter"] = license
        if license and name in ("bing", "google"):
            about["license_filter"] += f" ({name.title()}'s word, not checked)"
        for keyword in settings.KEYWORDS:
            pages = first_pages(name, keyword, license, settings.ENGINES)
            told = {**about, "keyword": keyword}
            crawlers.append(KeywordCrawler(engine, told, pages, folder, fetcher))
    return crawlers


def crawl_all(crawlers, folder, settings, live):
    """Run the crawlers, each keyword up to its share, then again without that limit."""
    wanted = settings.MAX_NUM
    share = math.ceil(wanted / len(settings.KEYWORDS))
    live.add_task("", total=wanted)
    for limit, crawler in itertools.product((share, wanted), crawlers):
        room = wanted - len(folder.names)
        if crawler.keyword:
            found = [folder.entries[name].get("keyword") for name in folder.names]
            room = min(room, limit - found.count(crawler.keyword))
        if room > 0 and (crawler.pages or not crawler.tasks.empty()):
            folder.goal = len(folder.names) + room
            crawler.crawl(live)


def collect(settings, out_dir, listed):
    """Fill the folder and say what came of it; return (Folder, crawlers)."""
    folder, fetcher = Folder(out_dir), Fetcher(settings)
    print(f"{len(folder.names)} images in {out_dir}, {settings.MAX_NUM} wanted.")
    if not settings.CONTACT and "commons" in settings.ENGINES:
        print("CONTACT is empty: Wikimedia wants one, and is asked every 6 s only.")
    crawlers = plan(folder, fetcher, listed)
    quiet = not sys.stdout.isatty()
    try:
        with rich.progress.Progress(disable=quiet, transient=True) as live:
            crawl_all(crawlers, folder, settings, live)
    finally:
        fetcher.halt.set()
        for crawler in crawlers:
            if crawler.seconds or crawler.listed:
                print(crawler.summary())
        folder.close()
    return folder, crawlers


def shortage(crawlers):
    """Return why so few pictures came, and what to do about it."""
    told = [each for each in crawlers if each.outcome()]
    lines = [f"{each.engine.name}: {each.outcome()}." for each in told]
    failures = [crawler.failure for crawler in crawlers]
    if all(failure and failure.kind == "unreachable" for failure in failures):
        lines += ["Is there a network, or a proxy to name in HTTPS_PROXY?"]
        lines += ["To go on without the web: python tests/draw_athletes.py"]
    else:
        lines += ["Try other KEYWORDS or ENGINES, or run again later."]
    return "\n".join(dict.fromkeys(lines))


def check_settings(settings):
    """End the script with a message if a setting is not what it should be."""

    def count(value):
        return type(value) is int and 0 < value <= 10**9

    def seconds(value):
        return type(value) in (int, float) and 0 <= value <= 86_400

    engines = ("commons", "openverse", "urls", "bing", "google")
    words = ("noncommercial", "commercial", "noncommercial,modify", "commercial,modify")
    rules = (
        ("OUT_DIR URL_FILE", "a path in quotes", str.strip),
        ("CONTACT", "plain letters in quotes", re.compile("[ -~]*").fullmatch),
        ("KEYWORDS", "phrases of 1 to 200 letters in round brackets",
            lambda value: type(value) is tuple and value
            and all(0 < len(phrase.strip()) <= 200 for phrase in value)),
        ("ENGINES", f"some of {engines}",
            lambda value: type(value) is tuple and value and {*value} <= {*engines}),
        ("LICENSE", f"None or one of {words}", lambda value: value in (None, *words)),
        ("MAX_NUM HOST_CONCURRENCY MAX_BYTES MAX_PIXELS REQUEST_TIMEOUT IMAGE_DEADLINE "
            "PAGE_TIMEOUT FEEDER_THREADS PARSER_THREADS DOWNLOADER_THREADS",
            "a whole number from 1 to 1_000_000_000", count),
        ("MIN_NUM", "a whole number from 0 to MAX_NUM",
            lambda value: value in range(settings.MAX_NUM + 1)),
        ("MIN_SIZE", "a width and a height in pixels",
            lambda value: len(value) == 2 and all(map(count, value))),
        ("DEFAULT_DELAY", "seconds, 0 or more", seconds),
        ("HOST_DELAY", "seconds for each host, 0 or more",
            lambda value: all(map(seconds, value.values()))),
        ("PAGE_BUDGET", "a whole number from 1 up for each engine",
            lambda value: all(map(count, value.values()))),
        ("ENDPOINTS", "an http address for each engine",
            lambda value: {*settings.ENGINES} <= {*value, "urls"}
            and all(urllib.parse.urlsplit(each).hostname for each in value.values())),
        ("ALLOW_PRIVATE_HOSTS", "True or False", lambda value: type(value) is bool),
    )  # fmt: skip
    for names, expected, fits in rules:
        for name in names.split():
            value, good = getattr(settings, name), False
            with contextlib.suppress(Exception):  # a wrong type can lead anywhere
                good = fits(value)
            if not good:
                sys.exit(f"{name} is {value!r}. Set it to {expected}.")


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
    # A console may lack a keyword's letters, and a log should grow line by line.
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    warnings.simplefilter("ignore")  # Pillow's about what is odd in a picture
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead
    start, out_dir = time.monotonic(), pathlib.Path(OUT_DIR).resolve()
    listed = read_url_file(pathlib.Path(URL_FILE)) if "urls" in ENGINES else []
    if (out_dir / "factors.csv").exists():
        sys.exit(
            f"{out_dir} holds drawn athletes (factors.csv), which must not mix with "
            "photographs. Move them away or set another OUT_DIR."
        )
    try:
        folder, crawlers = collect(settings, out_dir, listed)
    except BlockingIOError:
        sys.exit(f"Another scrape.py is at work in {out_dir}. Wait until it has ended.")
    except OSError as error:
        reason = error.strerror or error
        sys.exit(f"Cannot write into {out_dir}: {reason}. Mend it and run again.")
    count, seconds = len(folder.names), time.monotonic() - start
    files = "manifest.jsonl and CREDITS.md"
    print(f"Wrote {OUT_DIR}: {count} images with {files} in {seconds:.1f} s.")
    if count < MIN_NUM:
        found = f"{count} images in {out_dir}, fewer than MIN_NUM = {MIN_NUM}."
        sys.exit(f"{found}\n{shortage(crawlers)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped. All files are whole; run again to go on.", file=sys.stderr)
        sys.exit(130)
