"""A little image-search site on this machine: three engines, pictures, and faults.

    python tests/gallery.py

By hand it draws 60 athletes and serves them until Ctrl-C; it prints which settings of
scrape.py to edit, so that a whole crawl can be watched without the web. The tests use
the class Gallery, which answers in the shapes of Wikimedia Commons, Openverse and
Bing, and, below /faults/, in all the ways in which servers misbehave.

Reads and writes nothing.
"""

import email.utils
import gzip
import html
import http.server
import io
import json
import random
import socket
import struct
import sys
import threading
import time
import urllib.parse
import zlib

from PIL import Image

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
PORT = 8000  # of 127.0.0.1

# Data
NUM_IMAGES = 60  # athletes to draw; a second gives about 30
# ----------------------------------------------------------------------------

ENGINES = {
    "/w/api.php": "commons",
    "/v1/images/": "openverse",
    "/images/async": "bing",
}
LICENSES = ["by", "by-sa", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd", "cc0", "pdm"]


def address_of(server):
    """Return the address of a server."""
    return "http://{}:{}".format(*server.server_address)


def make_picture(seed, size=(160, 160), kind="JPEG"):
    """Return the bytes of a small picture of coloured blocks, another for each seed."""
    blocks = random.Random(seed).randbytes(8 * 8 * 3)
    picture = Image.frombytes("RGB", (8, 8), blocks).resize(size, Image.NEAREST)
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def png_header(width, height):
    """Return the few bytes of a PNG that claims to be as large as this."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    start = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = zlib.compress(b"")
    middle = struct.pack(">I", len(data)) + b"IDAT" + data
    middle += struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return b"\x89PNG\r\n\x1a\n" + start + middle + end


class Gallery:
    """The site. Use it as a context manager.

    Args:
        hosts: loopback addresses to serve from; each is one image host with its own
            port. The first one is the engines', too.
        port: of every host; 0 takes a free one each.
        away: numbers of hosts that refuse connections until they `arrive`.

    Attributes:
        addresses: "http://host:port" of each host.
        pictures: {path: bytes} that it serves.
        items: what the engines list: dicts with `url` and perhaps `title`, `creator`,
            `license` (Openverse's word), `thumbnail`, `page`, `keyword` (listed for it
            alone) and `engines` (listed by them alone); for Commons alone `file` (a
            title with its ending) and `metadata` ({name: HTML}).
        modes: {engine: a mode, or a list of modes for its next requests}; see
            `answer_engine`.
        query_modes: {text: a mode}, for the queries one of whose values is that text.
        parts: whether Commons answers each page in two parts, as it does with much.
        hold: None, or an Event that pictures wait for.
        free: how many pictures need not wait for it.
        hang_up: {number of a host: numbers of its requests, from 0, without answer}.
        delay: seconds before each picture and page of results.
        requests: (path with query, headers) of what was asked so far, in order.
        times: {path: seconds at which it was asked for}.
        most_at_once: {address: number} the most requests of a host at the same time.
    """

    def __init__(self, hosts=("127.0.0.1",), port=0, away=()):
        self.pictures, self.items, self.modes = {}, [], {}
        self.query_modes, self.parts, self.hold = {}, False, None
        self.free, self.hang_up = 0, {}
        self.left = set()
        self.delay, self.requests, self.times = 0, [], {}
        self.most_at_once, self.at_once, self.counts = {}, {}, {}
        self.lock, self.closing = threading.Lock(), threading.Event()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            host = None

            def do_GET(self):
                if self.server.server_address in site.left:  # a kept connection
                    return fault_drop(site, self, "")
                site.answer(self)

            def do_CONNECT(self):  # as a proxy for https
                self.send_error(407)

            def begin(self, host):
                """Count this request among those under way."""
                self.host = host
                site.at_once[host] = site.at_once.get(host, 0) + 1
                now = site.at_once[host]
                site.most_at_once[host] = max(now, site.most_at_once.get(host, 0))

            def end(self):
                """Count it out: before the client has the answer, and asks again."""
                with site.lock:
                    if self.host is not None:
                        site.at_once[self.host] -= 1
                    self.host = None

            def log_message(self, *args):
                """Stay quiet."""

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 100

            def handle_error(self, *args):
                """Stay quiet: clients that hang up are part of the game."""

        self.make_server = lambda place: Server(place, Handler, False)
        self.servers = [self.make_server((host, port)) for host in hosts]
        self.threads = [None] * len(hosts)
        for server in self.servers:
            server.server_bind()  # until it listens, connections are refused
        self.away = away
        self.addresses = [address_of(server) for server in self.servers]
        self.address = self.addresses[0]

    def __enter__(self):
        for number in range(len(self.servers)):
            if number not in self.away:
                self.arrive(number)
        return self

    def __exit__(self, *error):
        self.closing.set()
        for number in range(len(self.servers)):
            self.leave(number)

    def arrive(self, number):
        """Let a host take connections."""
        server = self.servers[number]
        self.left.discard(server.server_address)
        server.server_activate()
        run = threading.Thread(target=server.serve_forever, args=(0.02,))
        self.threads[number] = run
        run.start()

    def leave(self, number):
        """Let a host refuse connections, and hang up those that it has."""
        server = self.servers[number]
        self.left.add(server.server_address)
        if self.threads[number] is not None:
            server.shutdown()
            self.threads[number].join()
            self.threads[number] = None
        server.server_close()
        if not self.closing.is_set():
            self.servers[number] = self.make_server(server.server_address)
            self.servers[number].server_bind()

    @property
    def endpoints(self):
        """The setting ENDPOINTS that points scrape.py here."""
        return {name: self.address + path for path, name in ENGINES.items()}

    def add(self, count, start=0, hosts=None, **about):
        """Add pictures to the site and to what the engines list.

        Args:
            count: how many.
            start: seed of the first.
            hosts: addresses that the pictures are listed at, in turn.
            **about: fields of the items.
        """
        hosts = hosts or self.addresses
        for number in range(start, start + count):
            path = f"/pictures/{number:05d}.jpg"
            self.pictures[path] = make_picture(number)
            self.items.append({"url": hosts[number % len(hosts)] + path, **about})

    def listed(self, engine, keyword):
        """Return the numbered items that an engine lists for a keyword."""
        return [
            {"number": number, "license": LICENSES[number % len(LICENSES)], **item}
            for number, item in enumerate(self.items)
            if engine in item.get("engines", (engine,))
            and keyword == item.get("keyword", keyword)
        ]

    def asked(self, path):
        """Return how often a path, or one below it, was asked for."""
        return sum(each.startswith(path) for each, _ in list(self.requests))

    def mode(self, engine, query):
        """Return how an engine answers now."""
        for text in query.values():
            if text in self.query_modes:
                return self.query_modes[text]
        mode = self.modes.get(engine, "ok")
        if isinstance(mode, list):
            with self.lock:
                return mode.pop(0) if mode else "ok"
        return mode

    def answer(self, handler):
        """Answer a request."""
        parts = urllib.parse.urlsplit(handler.path)
        host = address_of(handler.server)
        with self.lock:
            self.requests.append((handler.path, dict(handler.headers)))
            self.times.setdefault(parts.path, []).append(time.monotonic())
            number = self.counts.get(host, 0)
            self.counts[host] = number + 1
            handler.begin(host)
        try:
            if number in self.hang_up.get(self.addresses.index(host), ()):
                fault_drop(self, handler, "")
            elif parts.path in ENGINES:
                engine = ENGINES[parts.path]
                query = dict(urllib.parse.parse_qsl(parts.query))
                self.answer_engine(handler, engine, query, self.mode(engine, query))
            elif parts.path in self.pictures:
                self.closing.wait(self.delay)
                if self.hold is not None and self.asked("/pictures/") > self.free:
                    self.hold.wait(600)
                send(handler, self.pictures[parts.path], kind="image/jpeg")
            elif parts.path.startswith("/faults/"):
                name = urllib.parse.unquote(parts.path).removeprefix("/faults/")
                name = name.partition(".")[0]
                FAULTS[name.partition("_")[0]](self, handler, name)
            elif parts.path == "/":
                rows = [
                    f'<img src="{html.escape(each["url"])}">' for each in self.items
                ]
                page = f"<!doctype html><title>Gallery</title>{''.join(rows)}"
                send(handler, page.encode(), kind="text/html; charset=utf-8")
            else:
                send(handler, b"not here", 404)
        finally:
            handler.end()

    def answer_engine(self, handler, engine, query, mode):
        """Answer a request for a page of results.

        Modes: "ok"; a number, an HTTP status; (status, Retry-After); "empty", nothing
        found; "blank", an empty body; "malformed"; "half"; "other shape"; "error:CODE",
        one of the API with status 200; "odd", one broken item first; "repeat", the
        first page always; "many", more are counted than are shown; "slow", 10 s;
        "silent", never; "short", cut short; "quota", none left; "old quota", the same
        from a cache; "wait", HTTP 429 that says only in its text how long; "captcha";
        "end", nothing but the mark of Bing's end.
        """
        headers = {}
        if engine == "openverse":
            headers = quota_headers(mode)
        if isinstance(mode, tuple):
            mode, headers["Retry-After"] = mode
        if isinstance(mode, int) or mode == "wait":
            text = "Request was throttled."
            if mode == "wait":
                mode = 429
                text += " Expected available in 1 second."
            body = json.dumps({"detail": text}).encode()
            return send(handler, body, mode, "application/json", headers)
        if mode == "silent":
            return self.closing.wait(120)
        self.closing.wait(10 if mode == "slow" else self.delay)
        keyword = query.get("gsrsearch", query.get("q", ""))
        items = self.listed(engine, keyword.removeprefix("filetype:bitmap "))
        if mode == "empty":
            items = []
        pages = {"commons": commons_page, "openverse": openverse_page}
        page = pages.get(engine, bing_page)
        status, kind, body = page(self, items, query, mode)
        if mode == "short":
            return stream(self, handler, body, times=1, length=len(body) + 9)
        send(handler, spoil(body, kind, mode), status, kind, headers)


def quota_headers(mode):
    """Return the headers by which Openverse tells how often one may still ask."""
    left = "199"
    if mode in ("quota", "old quota"):
        left = "0"
    headers = {
        "x-ratelimit-limit-anon_burst": "20/min",
        "x-ratelimit-available-anon_burst": "19",
        "x-ratelimit-limit-anon_sustained": "200/day",
        "x-ratelimit-available-anon_sustained": left,
    }
    if mode == "old quota":
        headers["Age"] = "86"
    return headers


def spoil(body, kind, mode):
    """Return the body of a page as a mode wants it."""
    if mode == "half":
        return body[: len(body) // 2]
    if mode == "malformed":
        return b"\x00<<<{]"
    if mode == "other shape" and kind == "application/json":
        return b'{"hello": ["world"]}'
    if mode == "other shape":
        return b"<p>Hello"
    if mode == "blank":
        return b""
    return body


def send(handler, body, status=200, kind="text/plain", headers=None):
    """Send a whole answer."""
    handler.end()
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


# The engines: each returns status, content type and body of a page of results.


def commons_page(gallery, items, query, mode):
    """Answer like the search of Wikimedia Commons."""
    start, limit = int(query.get("gsroffset", 0)), int(query["gsrlimit"])
    error = commons_refusal(query, mode, start)
    if error is not None:
        return error
    first = start
    if mode == "repeat":
        first = 0
    pages = []
    for index, item in enumerate(items[first : first + limit], first + 1):
        page = commons_entry(item, index, query)
        in_second_part = index % 2 == 0
        if gallery.parts and in_second_part != ("iicontinue" in query):
            del page["imageinfo"]
        pages.append(page)
    if pages and first == 0:
        pages.append(drawing_entry(gallery))
    if mode == "odd":
        page = {"pageid": -1, "ns": 6, "title": "File:Missing.jpg", "missing": 1}
        pages.insert(0, page)
    random.Random(start).shuffle(pages)
    answer = {"batchcomplete": True}
    if pages:
        answer["query"] = {"pages": pages}
    more = start + limit < len(items) or mode == "repeat"
    if pages and gallery.parts and "iicontinue" not in query:
        del answer["batchcomplete"]
        answer["continue"] = {"iicontinue": str(start), "continue": "gsroffset||"}
        answer["continue"]["gsroffset"] = start
    elif more:
        answer["continue"] = {"gsroffset": start + limit, "continue": "gsroffset||"}
    return 200, "application/json", json.dumps(answer).encode()


def drawing_entry(gallery):
    """Return the entry of Commons about a drawing, which is no photograph."""
    info = {"mime": "image/svg+xml", "url": f"{gallery.address}/faults/svg"}
    info["extmetadata"] = {}
    page = {"pageid": 10**6, "ns": 6, "title": "File:Drawing.svg", "index": 0}
    return {**page, "imageinfo": [info]}


def commons_entry(item, index, query):
    """Return the entry of Commons about an item."""
    mark = "?"
    if "?" in item["url"]:
        mark = "&"
    mark += "utm_source=commons.wikimedia.org&utm_campaign=imageinfo"
    names = {"cc0": "CC0", "pdm": "Public domain"}
    name = names.get(item["license"], f"CC {item['license'].upper()} 4.0")
    artist = f"<a href='//x'>{item.get('creator', 'Ann &amp; Bo')}</a>"
    values = {
        "LicenseShortName": name,
        "LicenseUrl": f"https://licenses.example/{item['license']}",
        "Artist": artist,
        **item.get("metadata", {}),
    }
    about = {}
    for field in query["iiextmetadatafilter"].split("|"):
        if field in values and not item.get("bare"):
            about[field] = {"value": values[field], "source": "commons-desc-page"}
    info = {
        "size": 1, "width": 1600, "height": 1600, "mime": "image/jpeg",
        "thumburl": item["url"] + mark, "thumbwidth": 960, "thumbheight": 960,
        "url": item.get("thumbnail", item["url"]) + mark,
        "descriptionurl": item.get("page", f"https://pages.example/{item['number']}"),
        "extmetadata": about,
    }  # fmt: skip
    title = item.get("title", f"Athlete {item['number']}")
    return {
        "pageid": item["number"], "ns": 6, "index": index,
        "title": f"File:{item.get('file', title + '.jpg')}", "imageinfo": [info],
    }  # fmt: skip


def commons_refusal(query, mode, start):
    """Return the error with which Commons answers, or None."""
    size = len(query["gsrsearch"].encode())
    if size > 300:
        info = "Search request is longer than the maximum allowed length."
        info += f" (Actual: {size}; allowed: 300)"
        return commons_error("cirrussearch-query-too-long", info)
    if str(mode).startswith("error:"):
        return commons_error(mode.removeprefix("error:"), "The search is &lt;off&gt;.")
    if query.get("iicontinue", str(start)) != str(start):
        return commons_error("badcontinue", "Invalid continue param.")
    return None


def commons_error(code, info):
    """Return an error of the API, which comes with HTTP status 200."""
    error = {"code": code, "info": info, "docref": "See https://commons.example/api"}
    body = json.dumps({"error": error, "servedby": "here"}).encode()
    return 200, "application/json", body


def openverse_page(gallery, items, query, mode):
    """Answer like the image search of Openverse to someone without a key."""
    kind = "application/json"
    number, size = int(query.get("page", 1)), int(query.get("page_size", 20))
    if size > 20 or number * size > 240:
        return 401, kind, b'{"detail":"page_size must be no larger than 20"}'
    licenses = query.get("license", ",".join(LICENSES)).split(",")
    if not set(licenses) <= set(LICENSES):
        return 400, kind, b'{"detail":{"license":["unknown"]}}'
    if str(mode).startswith("error:"):
        return 200, kind, b'{"detail":"Something went wrong."}'
    items = [item for item in items if item["license"] in licenses]
    results = []
    start = 0 if mode == "repeat" else (number - 1) * size
    for item in items[start : start + size]:
        name = item["license"]
        results.append({
            "id": f"id-{item['number']}", "url": item["url"],
            "title": item.get("title", "<b>Pose</b> &amp; flex"),
            "foreign_landing_url": item.get("page", f"https://pages.example/{item['number']}"),
            "creator": item.get("creator"), "creator_url": None, "license": name,
            "license_version": None if name == "pdm" else "2.0",
            "license_url": f"https://licenses.example/{name}", "provider": "flickr",
            "source": "flickr", "category": None, "filesize": None, "filetype": None,
            "attribution": f'"Pose" is licensed under {name}.', "mature": False,
            "tags": [],
            "height": 1024, "width": 1024, "thumbnail": item.get("thumbnail"),
        })  # fmt: skip
    if mode == "odd":
        results.insert(0, {"id": "odd", "license": licenses[0], "url": None})
    count = min(240, len(items))
    if mode == "repeat":
        count = 240
    if mode == "many" and items:
        count = 10_000  # what there is, and not what is shown
    answer = {"result_count": count}
    answer |= {"page_count": 12, "page_size": size, "page": number, "results": results}
    return 200, kind, json.dumps(answer).encode()


def bing_page(gallery, items, query, mode):
    """Answer like Bing's endless scroll. The end is marked, or an empty body."""
    if mode == "captcha":
        body = b"<div class='captcha_text'>Please solve the challenge below</div>"
        return 200, "text/html", body
    if mode == "end":
        return 200, "text/html", b'<div class="dg_b" data-nextUrl=""></div>'
    first, count = int(query.get("first", 1)), int(query.get("count", 35))
    start = 0 if mode == "repeat" else max(0, first - 1)
    following = f"/images/async?q=x&amp;first={first + count}&amp;count={count}"
    if mode == "ok" and start + count >= len(items):
        following = ""
    items = items[start : start + count]
    if not items:
        return 200, "text/html", b""
    cells = []
    if mode == "odd":
        cells += ['<a class="iusc" m="{&quot;murl&quot;:">broken</a>', "<b>no link</b>"]
    for item in items:
        fields = {
            "cid": "x",
            "purl": item.get("page", f"https://pages.example/{item['number']}"),
            "murl": item["url"], "turl": item.get("thumbnail"), "md5": "0",
            "mid": "y", "t": "A \ue000bodybuilder\ue001", "desc": "",
        }  # fmt: skip
        data = html.escape(
            json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        )
        names = f'class="iusc" m="{data}" href="/images/search?view=detailV2"'
        if item["number"] % 2:
            names = f'href="/images/search?view=detailV2" m="{data}" class="iusc"'
        cells.append(f"<a {names}><img class='mimg'></a>")
    cells = [
        f'<div class="iuscp varh"><div class="imgpt">{each}</div></div>'
        for each in cells
    ]
    rows = "".join(
        f"<li data-idx={number}>{cell}</li>" for number, cell in enumerate(cells)
    )
    page = '<div class="dg_b"><div id="mmComponent_images_1" class="dgControl hover" '
    page += f'data-nextUrl="{following}" data-iid="images.1">'
    page += f'<ul class="dgControl_list ">{rows}</ul></div></div>'
    return 200, "text/html", page.encode()


# The faults: each answers a request below /faults/ by the first word of its path.


def fault_status(gallery, handler, name):
    """/faults/status_404, or /faults/status_429_1 with Retry-After: 1; for
    /faults/status_503_date it is a date in three seconds."""
    _, status, *wait = name.split("_")
    headers = {"Retry-After": wait[0]} if wait else {}
    if wait == ["date"]:
        headers["Retry-After"] = email.utils.formatdate(time.time() + 3, usegmt=True)
    send(handler, b"no", int(status), headers=headers)


def fault_once(gallery, handler, name):
    """/faults/once_429_1: that status once, then a picture."""
    if gallery.asked(handler.path) == 1:
        fault_status(gallery, handler, name)
    else:
        send(handler, make_picture(name), kind="image/jpeg")


def fault_busy(gallery, handler, name):
    """/faults/busy_429_3: that status three times, without a word, then a picture."""
    _, status, count = name.split("_")
    if gallery.asked(handler.path) <= int(count):
        send(handler, b"no", int(status))
    else:
        send(handler, make_picture(name), kind="image/jpeg")


def fault_html(gallery, handler, name):
    send(handler, b"<html>Please log in.</html>", kind="image/jpeg")


def fault_truncated(gallery, handler, name):
    send(handler, make_picture(name)[:-700], kind="image/jpeg")


def fault_cut(gallery, handler, name):
    """A picture without its end, and no word of its length, as HTTP/1.0 has it."""
    stream(gallery, handler, make_picture(name)[:-700], times=1)


def fault_encoding(gallery, handler, name):
    """/faults/encoding_xyz: packed in a way that nobody knows."""
    encoding = name.partition("_")[2]
    body = zlib.compress(make_picture(name))[2:]
    if encoding == "none":  # a word that means nothing, before a plain picture
        body = make_picture(name)
    headers = {"Content-Encoding": encoding}
    send(handler, body, kind="image/jpeg", headers=headers)


def fault_kind(gallery, handler, name):
    """/faults/kind_heic and so on: whole files of kinds that are no photographs."""
    starts = {
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "jxl": b"\0\0\0\x0cJXL \r\n\x87\n",
        "jxlbare": b"\xff\x0a\xfa\x1f",
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "ico": b"\0\0\1\0\1\0\x10\x10",
        "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    }
    send(handler, starts[name.partition("_")[2]] + bytes(100), kind="image/jpeg")


def fault_scans(gallery, handler, name):
    """/faults/scans_2500: a progressive JPEG with that many scans that say nothing."""
    file = io.BytesIO()
    Image.new("L", (512, 512), 128).save(file, "JPEG", progressive=True)
    body = file.getvalue()[:-2]
    scan = bytes.fromhex("ffda0008010100010500")  # one component, coefficients 1 to 5
    # ends of band for all 4096 blocks: what the coder of Pillow wrote for one scan
    start = body.index(b"\xff\xda", body.index(b"\xff\xda") + 2)
    end = body.index(b"\xff", start + len(scan))
    one = body[start:end]
    send(handler, body + one * int(name.partition("_")[2]) + b"\xff\xd9")


def fault_login(gallery, handler, name):
    """A picture for those who send a password, and for them alone."""
    if "Authorization" in handler.headers:
        send(handler, make_picture(name), kind="image/jpeg")
    else:
        headers = {"WWW-Authenticate": 'Basic realm="x"'}
        send(handler, b"who are you?", 401, headers=headers)


def fault_elsewhere(gallery, handler, name):
    """/faults/elsewhere_2: a redirect to the host of that number."""
    number = int(name.partition("_")[2])
    target = f"{gallery.addresses[number]}/faults/plain_elsewhere"
    send(handler, b"", 302, headers={"Location": target})


def fault_silent(gallery, handler, name):
    """No answer."""
    gallery.closing.wait(120)


def fault_empty(gallery, handler, name):
    send(handler, b"", kind="image/jpeg")


def fault_webp(gallery, handler, name):
    send(handler, make_picture(name, kind="WEBP"), kind="image/jpeg")


def fault_plain(gallery, handler, name):
    """A picture; its address may have any ending."""
    send(handler, make_picture(name), kind="application/octet-stream")


def fault_same(gallery, handler, name):
    """/faults/same_1 and /faults/same_2 are the same bytes."""
    send(handler, make_picture("same"), kind="image/jpeg")


def fault_tiny(gallery, handler, name):
    send(handler, make_picture(name, (8, 8)), kind="image/jpeg")


def fault_bomb(gallery, handler, name):
    send(handler, png_header(20_000, 20_000), kind="image/png")


def fault_gzip(gallery, handler, name):
    """A picture, or /faults/gzip_bomb: 200 MB in 200 kB."""
    body = gzip.compress(make_picture(name))
    if name == "gzip_bomb":
        body = gzip.compress(bytes(10**6)) * 200
    send(handler, body, kind="image/jpeg", headers={"Content-Encoding": "gzip"})


def fault_large(gallery, handler, name):
    """25 MB, with its length."""
    stream(gallery, handler, bytes(100_000), times=250, length=25_000_000)


def fault_endless(gallery, handler, name):
    stream(gallery, handler, bytes(100_000), times=10**9)


def fault_drip(gallery, handler, name):
    """One byte a second."""
    stream(gallery, handler, b"\xff", times=10**9, pause=1)


def fault_headers(gallery, handler, name):
    """A header that trickles in, for ever."""
    handler.send_response_only(200)
    handler.flush_headers()
    handler.wfile.write(b"X-Header: ")
    while not gallery.closing.wait(1):
        handler.wfile.write(b"x")


def fault_short(gallery, handler, name):
    """Fewer bytes than its Content-Length says."""
    body = make_picture(name)
    stream(gallery, handler, body, times=1, length=len(body) + 1000)


def fault_loop(gallery, handler, name):
    send(handler, b"", 302, headers={"Location": handler.path})


def fault_mirror(gallery, handler, name):
    """A redirect of a query to the engine that answers like Commons."""
    query = urllib.parse.urlsplit(handler.path).query
    send(handler, b"", 302, headers={"Location": f"/w/api.php?{query}"})


def fault_astray(gallery, handler, name):
    """A redirect to what is no address."""
    send(handler, b"", 302, headers={"Location": "http://[bad/x.jpg"})


def fault_private(gallery, handler, name):
    """A redirect to loopback, which a server on the web must not lead us to."""
    address = f"{gallery.address}/pictures/private.jpg"
    send(handler, b"", 302, headers={"Location": address})


def fault_moved(gallery, handler, name):
    """A redirect whose own body never ends, to a picture."""
    handler.send_response(302)
    handler.send_header("Location", f"/faults/plain_{name}")
    stream(gallery, handler, bytes(100_000), times=10**9, status=None)


def fault_detour(gallery, handler, name):
    """/faults/detour_5: five redirects, each after a pause."""
    gallery.closing.wait(1.4)
    count = int(name.partition("_")[2])
    target = f"/faults/detour_{count - 1}" if count > 1 else "/faults/plain_detour"
    send(handler, b"", 302, headers={"Location": target})


def fault_latin(gallery, handler, name):
    """A redirect to an address that is not in UTF-8."""
    send(handler, b"", 302, headers={"Location": "/faults/plain_\xfc"})


def fault_noai(gallery, handler, name):
    headers = {"X-Robots-Tag": "noindex, noimageai"}
    send(handler, make_picture(name), kind="image/jpeg", headers=headers)


def fault_drop(gallery, handler, name):
    """Hang up without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def stream(gallery, handler, chunk, times, pause=0, length=None, status=200):
    """Send a chunk again and again, until the client hangs up."""
    if status:
        handler.send_response(status)
    if length:
        handler.send_header("Content-Length", str(length))
    handler.send_header("Content-Type", "image/jpeg")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(times):
        handler.wfile.write(chunk)
        if gallery.closing.wait(pause) if pause else gallery.closing.is_set():
            return


FAULTS = {
    name.removeprefix("fault_"): function
    for name, function in list(globals().items())
    if name.startswith("fault_")
}


def main():
    """Draw athletes and serve them."""
    import draw_athletes  # beside this file; only by hand

    started = time.perf_counter()
    try:
        gallery = Gallery(port=PORT)
    except OSError as error:
        sys.exit(f"Cannot serve at port {PORT}: {error.strerror}. Set PORT to another.")
    with gallery:
        for number in range(NUM_IMAGES):
            factors = draw_athletes.draw_factors(1, number)
            picture = draw_athletes.draw_picture(factors, 320, 320)
            path = f"/pictures/{number:05d}.jpg"
            gallery.pictures[path] = draw_athletes.encode(picture, 1)
            gallery.items.append({"url": gallery.address + path, "creator": "Anybody"})
        print(f"Drew {NUM_IMAGES} athletes in {time.perf_counter() - started:.1f} s.")
        print(f"Serving them at {gallery.address} until Ctrl-C.")
        print("Edit these settings of scrape.py:\n")
        print(f"ENDPOINTS = {json.dumps(gallery.endpoints, indent=4)}")
        print("ALLOW_PRIVATE_HOSTS = True\nHOST_DELAY = {}\nDEFAULT_DELAY = 0")
        print(f"MIN_NUM = {min(200, NUM_IMAGES)}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"\n{len(gallery.requests)} requests were answered.")


if __name__ == "__main__":
    sys.exit(main())
