"""Collect pictures of bodybuilders, each with its source and its licence.

    python scrape.py

Reads   what the ENGINES answer; URL_FILE, with the engine "urls"; what earlier runs
        left in OUT_DIR.
Writes  OUT_DIR/NNNNNN.EXT: the bytes as downloaded, the extension by their content.
        manifest.jsonl beside them: one line a picture with its addresses, title,
        creator, licence, engine, keyword, size, SHA-256 and time.
        failed.jsonl: the addresses that failed for good, and why.
        CREDITS.md: what the licences ask to be named.
Exits   with 0: done; 1: a message says what to mend; 130: stopped by Ctrl-C.

Stopped and run again, it goes on where it was: nothing is saved twice or overwritten,
and a picture deleted by hand stays away. By the pauses alone 1000 pictures take 8 to 17
minutes, and 100 minutes from Wikimedia with an empty CONTACT.

The file in order: what can fail; texts and licences; engines; asking a server; looking
at a picture; the folder; the crawl; files; checks of the settings; messages; main().
"""

import collections
import contextlib
import datetime
import errno
import glob
import hashlib
import io
import ipaddress
import json
import logging
import math
import os
import queue
import re
import socket
import string
import sys
import threading
import time
import unicodedata
import urllib.parse
import warnings
from pathlib import Path

try:
    import bs4
    import icrawler
    import requests
    import rich.markup
    import rich.progress
    import urllib3
    from PIL import Image
except KeyboardInterrupt:  # the imports take seconds
    if __name__ != "__main__":
        raise
    sys.exit(130)

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
OUT_DIR = "data/raw"
URL_FILE = "urls.txt"  # for the engine "urls": an address a line, or a manifest.jsonl

# Search
KEYWORDS = (  # several related phrases find more; each gets an equal share
    "bodybuilder posing", "bodybuilder", "bodybuilding competition",
    "bodybuilding contest pose", "female bodybuilder posing",
)  # fmt: skip
# Asked in this order; also "urls" (see URL_FILE) and "bing". Bing's terms forbid
# automated queries: to switch it on is your decision.
ENGINES = ("commons", "openverse")
MAX_NUM = 1000  # images wanted in OUT_DIR in all
MIN_NUM = 200  # fewer than this at the end: exit code 1
# None, "noncommercial", "commercial", "noncommercial,modify" or "commercial,modify"
LICENSE = None
MIN_SIZE = (128, 128)  # pixels, either way round; smaller pictures are refused

# Manners
CONTACT = ""  # your mail address or page; if empty, Wikimedia is asked every 6 s only
HOST_DELAY = {  # seconds from request to request; from 1 on, one at a time
    "api.openverse.org": 3.1, "commons.wikimedia.org": 1.0, "www.bing.com": 2.0,
    "upload.wikimedia.org": 0.5, "thumb.wikimedia.org": 0.5,
    "live.staticflickr.com": 1.0,
}  # fmt: skip
DEFAULT_DELAY = 0.2  # the same for every other host
HOST_CONCURRENCY = 2  # downloads at once from one image host
# Result pages a run. Openverse answers 200 a day to those without a key.
PAGE_BUDGET = {"commons": 500, "openverse": 150, "bing": 100}
PAUSES = (1, 2, 4)  # seconds before a failed request is made again, one a try
BUSY_PAUSE = 10  # seconds after HTTP 429 that names no time
LEFT_PAUSE = 30  # seconds until a host that failed every time is asked once more

# Bounds
MAX_BYTES = 20_971_520  # of one download, unpacked
MAX_PIXELS = 50_000_000  # of a picture; larger ones would fill the memory
MAX_SCANS = 500  # of a progressive JPEG; each takes the time of a whole picture
MAX_TEXT = 500  # letters of a title, a creator, a licence
REQUEST_TIMEOUT = 10  # seconds without a byte
IMAGE_DEADLINE = 30  # seconds in all for one image
PAGE_TIMEOUT = 30  # seconds in all for a page of results: Openverse can be slow
ALLOW_PRIVATE_HOSTS = False  # True: fetch from addresses that are not public, too

# Network
DOWNLOADER_THREADS = 4  # the article's number
ENDPOINTS = {  # a mirror or a test server can stand in
    "commons": "https://commons.wikimedia.org/w/api.php",
    "openverse": "https://api.openverse.org/v1/images/",
    "bing": "https://www.bing.com/images/async",
}
# ----------------------------------------------------------------------------


# ----------------------------------------------------------------------------
# What can fail: this picture, this query, this engine, our own environment
# ----------------------------------------------------------------------------
class Failure(Exception):
    """What could not be had, and why.

    Args:
        kind: one or two words, for the summary.
        reason: the same for a person, in a sentence; the kind if it is left out.
    """

    def __init__(self, kind, reason=""):
        # Servers have a hand in these texts, and they are printed.
        super().__init__(clean(reason or kind))
        self.kind = kind


class PictureFailure(Failure):
    """Nothing of use came from an address. The picture is lost, and no more than it.

    Args:
        final: asking again would bring the same. It goes into failed.jsonl.
        doubtful: perhaps we were too slow. It is final when a second run says the same.
        other_address: the thumbnail may help.
    """

    def __init__(
        self, kind, reason="", final=False, doubtful=False, other_address=True
    ):
        super().__init__(kind, reason)
        self.final = final
        self.doubtful = doubtful
        self.other_address = other_address


class Refused(PictureFailure):
    """It is not for us, and never will be."""

    def __init__(self, reason):
        super().__init__("refused", reason, final=True)


class Passing(PictureFailure):
    """It may be over in a moment: the request is worth a pause and another try.

    Args:
        wait: seconds that the server asked for, or None.
        whole_host: the pause is for all that is wanted from the host.
        silent: it took all the time that we give.
    """

    def __init__(self, kind, reason="", wait=None, whole_host=True, silent=False):
        super().__init__(kind, reason)
        self.wait = wait
        self.whole_host = whole_host
        self.silent = silent


class Unreachable(Passing):
    """No connection, or one that was silent or broke off before an answer."""


class Busy(Passing):
    """A server has no time for us: HTTP 429, or a fault of its own."""

    def __init__(self, status, reason="", wait=None, whole_host=True):
        super().__init__(f"HTTP {status}", reason, wait, whole_host)
        self.status = status


class EmptyPage(Passing):
    """A page of results without a word: the end, or an engine's whim."""


class QueryFailure(Failure):
    """An engine has no answer to this query. Others may fare better."""


class EngineFailure(Failure):
    """An engine is of no use for the rest of this run."""


class SetupFailure(Exception):
    """Something on this machine is wrong, so that no picture is to blame."""


class Stopped(Exception):
    """Enough is there, or the run ends: what is under way is left for later."""


# ----------------------------------------------------------------------------
# Texts and licences
# ----------------------------------------------------------------------------
def clean(text):
    """Return text on one line that is safe to print, of MAX_TEXT letters at most."""
    text = str(text)[: 100 * MAX_TEXT]  # a page can send megabytes
    if not text.isprintable():
        kept = []
        for letter in text:
            category = unicodedata.category(letter)
            joiner = letter in "\u200c\u200d"  # of words and emoji
            if category in ("Cc", "Zl", "Zp"):  # controls: escapes move the cursor
                kept.append(" ")
            # Cf turns the direction of reading, half a surrogate (Cs) cannot be
            # written, and Bing marks its hits by letters of Co.
            elif joiner or category not in ("Cf", "Cs", "Co"):
                kept.append(letter)
        text = "".join(kept)
    text = " ".join(text.split())
    if len(text) > MAX_TEXT:
        # The mark shows that something is missing, for example of a list of authors.
        text = text[: MAX_TEXT - 1] + "…"
    return text


def plain(markup):
    """Return as plain text what may hold HTML; None where there is no text."""
    if not isinstance(markup, str):
        return None
    text = markup[: 100 * MAX_TEXT]
    if "<" in text or "&" in text:
        soup = bs4.BeautifulSoup(text, "lxml")
        for tag in soup.select(  # what a browser does not show
            "script, style, template, noscript, [hidden], "
            "[style*='display:none' i], [style*='display: none' i]"
        ):
            tag.extract()
        blocks = (
            "br", "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "td",
            "th", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
        )  # fmt: skip
        # Without these spaces two people run into one: John DoeJane Roe.
        for tag in soup.find_all(blocks):
            tag.insert_before(" ")
            tag.insert_after(" ")
        text = soup.get_text()
    # Commons adds notes for Wikidata, such as: creator QS:P170,Q123
    text = re.sub(r'\b\w+ QS:P\d+,(\w+:"[^"]*"|\S+)', " ", text)
    return clean(text) or None


def web_address(text):
    """Return a text if it is an http address of sensible length, otherwise None."""
    if not isinstance(text, str) or len(text) > 2000 or not text.isprintable():
        return None
    if re.fullmatch(r"https?://[^\s<>]+", text):
        return text
    return None


def allows(license_name):
    """Return whether the setting LICENSE lets a licence of this name in."""
    if LICENSE is None:
        return True
    if not license_name:
        return False
    name = license_name.upper()
    # NC and ND stand alone in CC BY-NC-ND 4.0, and inside Ncurses they mean nothing.
    words = re.split("[^A-Z]+", name)
    letters = re.sub("[^A-Z]", "", name)
    noncommercial = "NC" in words or "NONCOMMERCIAL" in letters
    no_derivatives = "ND" in words or "NODERIV" in letters
    if noncommercial and LICENSE.startswith("commercial"):
        return False
    return not (no_derivatives and LICENSE.endswith("modify"))


# ----------------------------------------------------------------------------
# Engines. For another one, copy a class, and name it in engine_classes and in the
# settings PAGE_BUDGET and ENDPOINTS.
# ----------------------------------------------------------------------------
class Engine:
    """What the engines have in common: how they are asked, and when they are left.

    A page is a dict, the query of a page of results. A task is a dict about a picture:
    `file_url`, perhaps `fallback` (another address), and fields of the manifest.
    """

    name = ""
    license_note = ""  # follows LICENSE in the manifest

    def __init__(self):
        self.budget = PAGE_BUDGET.get(self.name, 0)
        self.heard = False  # whether it has answered in this run
        self.failure = None  # why it is left for the rest of the run
        self.failed_queries = 0  # in a row
        self.unreadable = 0  # entries that could not be read
        self.left_out = 0  # entries that are not what was asked for

    def first_pages(self, keyword):
        """Return the first page of each query for a keyword."""
        raise NotImplementedError

    def read(self, page, answer):
        """Return (tasks, next page or None) of an Answer to a page.

        Where the answer is not in the known shape, any exception will do. Passing,
        QueryFailure and EngineFailure say more.
        """
        raise NotImplementedError

    def read_items(self, items):
        """Return the tasks of the entries of a page, by the engine's `read_item`.

        `read_item` returns a task, or None for what is to be left out.
        """
        tasks = []
        unreadable = 0
        for item in items:
            # One odd entry must not cost the page. If all are odd, the shape is new.
            try:
                task = self.read_item(item)
                if task is None:
                    self.left_out += 1
                    continue
                tasks.append(tidy(task))
            except (AttributeError, LookupError, TypeError, ValueError):
                unreadable += 1
        if unreadable > 0 and unreadable == len(items):
            raise ValueError(f"none of {unreadable} entries could be read")
        self.unreadable += unreadable
        return tasks

    def ask(self, session, page):
        """Return (tasks, next page or None); ask again where it may help."""
        for pause in (*PAUSES, None):
            try:
                return self.ask_once(session, page)
            except Passing as failure:
                last = failure
            if pause is None:  # that was the last try
                break
            # One that was silent from the start would cost as much time each time.
            if last.silent and not self.heard:
                break
            if last.wait is not None:
                pause = last.wait  # noqa: PLW2901
            if pause > 60:
                break
            session.pause(ENDPOINTS[self.name], pause)
        return self.give_up(last)

    def ask_once(self, session, page):
        """Return (tasks, next page or None) of a page of results."""
        if self.budget < 1:
            raise EngineFailure("budget", "PAGE_BUDGET is used up for this run")
        self.budget -= 1
        answer = self.fetch(session, page)
        self.heard = True
        if answer.status == 403:  # it does not want us
            raise EngineFailure("refused", "HTTP 403")
        if answer.status != 200:  # 400, 404, 414: it does not like the question
            raise QueryFailure("refused", f"HTTP {answer.status}")
        try:
            return self.read(page, answer)
        except (Failure, SetupFailure):
            raise
        except Exception as error:  # a page can lead its reader anywhere
            reason = f"not in the known shape: {error!r}"
            raise Passing("unreadable", reason) from None

    def fetch(self, session, page):
        """Return the Answer to a page."""
        seconds = PAGE_TIMEOUT
        if not self.heard:  # where no engine answers, the end comes within 60 s
            seconds = min(seconds, 50 / len(ENGINES))
        address = f"{ENDPOINTS[self.name]}?{urllib.parse.urlencode(page)}"
        try:
            return session.fetch_page(address, seconds)
        except Passing:
            raise
        except Refused as failure:
            raise EngineFailure("refused", str(failure)) from None
        except PictureFailure as failure:  # it took too long, or cannot be unpacked
            raise Unreachable("unreachable", str(failure), silent=True) from None

    def give_up(self, failure):
        """Say what a failure means that did not pass: for the query or the engine."""
        if isinstance(failure, EmptyPage):
            return [], None
        kind = "unreadable"
        refused = failure.wait is not None and failure.wait > 60
        if isinstance(failure, Busy):
            kind = "refused"
            refused = refused or failure.status == 429
        elif isinstance(failure, Unreachable):
            kind = "unreachable"
            refused = not self.heard
        if refused:
            raise EngineFailure(kind, str(failure))
        raise QueryFailure(kind, str(failure))

    def note_failed_query(self, failure):
        """Count the queries that fail in a row: after three the engine is left."""
        self.failed_queries += 1
        if self.failed_queries == 3 and self.failure is None:
            reason = f"three queries in a row failed, the last one: {failure}"
            self.failure = EngineFailure(failure.kind, reason)


def tidy(task):
    """Return a task with safe texts and addresses; ValueError without an address."""
    for name in ("title", "creator", "license", "attribution"):
        text = task.get(name)
        if isinstance(text, str):
            task[name] = clean(text) or None
        else:
            task[name] = None
    for name in ("page_url", "license_url"):
        task[name] = web_address(task.get(name))
    for name in ("file_url", "fallback"):
        address = task.get(name)
        if address is not None:
            address.encode()  # UnicodeEncodeError: it cannot be asked for
            if len(address) > 10_000:  # such as a picture in a data: address
                raise ValueError("too long for an address")
    if not task["file_url"]:
        raise ValueError("no address")
    return task


class Commons(Engine):
    """Wikimedia Commons. https://www.mediawiki.org/wiki/API:Imageinfo"""

    name = "commons"

    def __init__(self):
        super().__init__()
        self.photographs = set()  # titles without their endings

    def first_pages(self, keyword):
        return [self.query(f"filetype:bitmap {keyword}")]

    def query(self, search):
        """Return the page that starts a search."""
        fields = (
            "LicenseShortName", "LicenseUrl", "Attribution", "Artist", "Credit",
        )  # fmt: skip
        return {
            "action": "query", "format": "json", "formatversion": 2,
            "generator": "search", "gsrsearch": search,
            "gsrnamespace": 6, "gsrlimit": 50, "prop": "imageinfo", "iiurlwidth": 960,
            "iiprop": "url|size|mime|extmetadata",
            "iiextmetadatafilter": "|".join(fields),
        }  # fmt: skip

    def read(self, page, answer):
        fields = json.loads(answer.body)
        if "error" in fields:
            self.raise_error(fields["error"], answer)
        # Where nothing is found there is no "query", but the others tell Commons from
        # any other JSON.
        if not fields.keys() & {"query", "batchcomplete", "continue"}:
            raise KeyError("query")
        following = None
        if "continue" in fields:
            # Into the first query: what an earlier answer asked for is out of date.
            following = {**self.query(page["gsrsearch"]), **fields["continue"]}
        items = fields.get("query", {}).get("pages", [])
        if "iicontinue" in fields.get("continue", {}) or "iicontinue" in page:
            # An answer that comes in parts: the others stand in another part.
            items = [item for item in items if "imageinfo" in item]
        items = sorted(items, key=lambda item: item.get("index", 0))  # sent unsorted
        return self.read_items(self.drop_copies(items)), following

    def raise_error(self, error, answer):
        """Raise what an error of the API means; they come with HTTP status 200."""
        code = str(error.get("code"))
        reason = f"its API says: {plain(error.get('info')) or code}"
        # What passes is told like the HTTP status that would say the same.
        if code == "ratelimited":
            raise Busy(429, reason, answer.retry_after() or BUSY_PAUSE)
        busy = ("cirrussearch-too-busy-error", "cirrussearch-backend-error")
        if code in (*busy, "readonly", "maxlag") or code.startswith("internal_api_"):
            raise Busy(503, reason, answer.retry_after())
        raise QueryFailure("refused", reason)

    def drop_copies(self, items):
        """Return the entries without a TIFF whose photograph is there as a JPEG.

        Archives give Commons both, under one title.
        """
        for item in items:
            stem, _, ending = str(item.get("title")).rpartition(".")
            if ending.lower() in ("jpg", "jpeg"):
                self.photographs.add(stem)
        kept = []
        for item in items:
            stem, _, ending = str(item.get("title")).rpartition(".")
            if ending.lower() in ("tif", "tiff") and stem in self.photographs:
                self.left_out += 1
            else:
                kept.append(item)
        return kept

    def read_item(self, item):
        info = item["imageinfo"][0]  # the newest version of the file
        texts = {}
        for name, field in (info.get("extmetadata") or {}).items():
            texts[name] = plain(str(field["value"]))
        license_name = texts.get("LicenseShortName")
        if "svg" in info["mime"] or not allows(license_name):
            return None
        creator = texts.get("Attribution") or texts.get("Artist") or texts.get("Credit")
        title = item["title"].removeprefix("File:")
        attribution = [text for text in (title, creator, license_name) if text]
        original = without_utm(info["url"])
        return {
            # The thumbnail's address as it is given: Commons makes only some sizes.
            "file_url": without_utm(info.get("thumburl") or info["url"]),
            "fallback": original,
            "page_url": info.get("descriptionurl"),
            "title": title,
            "creator": creator,
            "license": license_name,
            "license_url": texts.get("LicenseUrl"),
            "attribution": ", ".join(attribution),
        }


def without_utm(address):
    """Return an address without the fields that say who asked for it."""
    return re.sub("[?&]utm_.*", "", address)


class Openverse(Engine):
    """Openverse. https://api.openverse.org/v1/"""

    name = "openverse"

    def first_pages(self, keyword):
        pages = []
        licenses = (
            "by", "by-sa", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd", "cc0", "pdm",
        )  # fmt: skip
        # A query shows 240 pictures at most, so that each licence gets its own.
        for name in licenses:
            if not allows(name):
                continue
            page = {"q": keyword, "license": name, "page": 1, "page_size": 20}
            page["filter_dead"] = "false"  # else each answer takes seconds
            if "commons" in ENGINES:
                page["excluded_source"] = "wikimedia"
            pages.append(page)
        return pages

    def read(self, page, answer):
        fields = json.loads(answer.body)
        results = fields["results"]
        # An answer from a cache tells of the quota of whoever asked first.
        left = answer.headers.get("x-ratelimit-available-anon_sustained")
        if left == "0" and answer.headers.get("Age", "0") == "0":
            self.failure = EngineFailure("refused", "today's answers are used up")
        # It is asked for one licence, and believed only as far as it says so.
        wanted = [item for item in results if item.get("license") == page["license"]]
        self.left_out += len(results) - len(wanted)
        tasks = self.read_items(wanted)
        number = page["page"]
        # Without a key page 12 is the last one. A short page is not the end.
        if not results or number >= 12 or number * 20 >= fields["result_count"]:
            return tasks, None
        return tasks, {**page, "page": number + 1}

    def read_item(self, item):
        license_name = f"CC {item['license'].upper()}"
        if item["license"] == "cc0":
            license_name = "CC0"
        elif item["license"] == "pdm":
            license_name = "Public Domain Mark"
        return {
            "file_url": item["url"],
            "fallback": item.get("thumbnail"),
            "page_url": item.get("foreign_landing_url"),
            "title": plain(item.get("title")),
            "creator": plain(item.get("creator")),
            "license": f"{license_name} {item.get('license_version') or ''}",
            "license_url": item.get("license_url"),
            "attribution": plain(item.get("attribution")),
        }


class Bing(Engine):
    """Bing's images, as its page asks for them while one scrolls."""

    name = "bing"
    license_note = " (Bing's word, not checked)"

    def first_pages(self, keyword):
        page = {"q": keyword, "first": 1, "count": 35, "mmasync": 1, "mkt": "en-US"}
        page["adlt"] = "moderate"
        codes = {
            "noncommercial": "L2_L3_L4_L5_L6_L7",
            "commercial": "L2_L3_L4",
            "noncommercial,modify": "L2_L3_L5_L6",
            "commercial,modify": "L2_L3",
        }
        if LICENSE is not None:
            page["qft"] = f"+filterui:license-{codes[LICENSE]}"
        return [page]

    def read(self, page, answer):
        if not answer.body.strip():  # the end, but now and then by chance
            raise EmptyPage("empty", wait=0)
        soup = bs4.BeautifulSoup(answer.body, "lxml")
        links = soup.select("a.iusc[m]")  # m holds JSON about a picture
        # The parser makes data-nextUrl lower case.
        end = soup.select_one('[data-nexturl=""]') is not None
        if not links and end:
            return [], None
        if not links and b"captcha" in answer.body.lower():
            raise EngineFailure("refused", "it wants a captcha to be solved")
        if not links:
            raise KeyError("a.iusc")
        tasks = self.read_items(links)
        if end:
            return tasks, None
        return tasks, {**page, "first": page["first"] + 35}

    def read_item(self, item):
        fields = json.loads(item["m"])
        return {
            "file_url": fields["murl"],
            "fallback": fields.get("turl"),
            "page_url": fields.get("purl"),
            "title": plain(fields.get("t")),
        }


class UrlList(Engine):
    """The addresses in URL_FILE: a list, or a manifest.jsonl of somebody's."""

    name = "urls"

    def __init__(self):
        super().__init__()
        path = Path(URL_FILE)
        lines = []
        try:
            for line in path.read_text(encoding="utf-8-sig").split("\n"):
                line = line.strip()  # noqa: PLW2901
                if line and not line.startswith("#"):
                    lines.append(line)
            # Now, and not after hours of another engine.
            self.tasks = self.read_items(lines)
        except FileNotFoundError:
            raise SetupFailure(
                f"Found no {path.resolve()} (URL_FILE). Write an address a line into "
                "it, or name a manifest.jsonl."
            ) from None
        except (OSError, ValueError) as error:
            raise SetupFailure(
                f"Cannot use {path.resolve()} (URL_FILE): {describe_error(error)}. "
                "Expected an address a line, or a manifest.jsonl."
            ) from None

    def first_pages(self, keyword):
        return [{"start": 0}]

    def ask(self, session, page):
        start = page["start"]
        end = start + 50  # a page of our own making
        tasks = self.tasks[start:end]
        if end >= len(self.tasks):
            return tasks, None
        return tasks, {"start": end}

    def read_item(self, item):
        if not item.startswith("{"):
            return {"file_url": item}
        entry = json.loads(item)
        task = {"file_url": entry["url"], "fallback": entry.get("final_url")}
        for name in ("page_url", "title", "creator", "license", "license_url"):
            task[name] = entry.get(name)
        task["attribution"] = entry.get("attribution")
        return task


engine_classes = {
    "commons": Commons, "openverse": Openverse, "bing": Bing, "urls": UrlList,
}  # fmt: skip


# ----------------------------------------------------------------------------
# Asking a server: from public addresses only, within a time, with manners
# ----------------------------------------------------------------------------
def not_for_us():
    """Return the networks that are refused although Python calls them global.

    They hold IPv4 addresses in IPv6 ones, or are what a provider serves to its own
    machines, or are reserved.
    """
    networks = (
        "::/96",  # IPv4 in IPv6, the oldest way
        "64:ff9b::/96",  # NAT64: the last 32 bits are an IPv4 address
        "64:ff9b:1::/48",  # NAT64 of a local network
        "2002::/16",  # 6to4
        "2001::/23",  # Teredo and others that the IETF keeps
        "fec0::/10",  # site-local, the forerunner of fc00::/7
        "192.0.0.0/24",  # of the IETF
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # Azure's services for its own machines
    )
    return [ipaddress.ip_network(network) for network in networks]


def check_public(peer):
    """Raise Refused if an address, in numbers, is not a public one."""
    address = ipaddress.ip_address(peer.partition("%")[0])  # fe80::1%eth0
    # ::ffff:127.0.0.1 is an IPv4 address in the dress of IPv6.
    address = getattr(address, "ipv4_mapped", None) or address
    refused = not address.is_global or address.is_multicast
    for network in not_for_us():
        if address in network:
            refused = True
    if refused:
        raise Refused(f"{peer} is not a public address (see ALLOW_PRIVATE_HOSTS)")


def check_name(host):
    """Raise Refused if the host of an address is private by its very name.

    Behind a proxy there is no socket to ask, and systems read numbers in many ways:
    127.1, 0x7f.1, 0177.0.0.1 and 2130706433 are all this machine.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith((".localhost", ".localdomain")):
        check_public("127.0.0.1")
    try:
        check_public(name)
        return
    except ValueError:  # not in the usual form, or a name
        pass
    # inet_aton reads numbers as the system does, and fails for names.
    with contextlib.suppress(OSError, UnicodeError):
        check_public(socket.inet_ntoa(socket.inet_aton(name)))


transfers = threading.local()  # .deadline: of the request that a thread is making


class Deadline:
    """Ends a request when its time is over, wherever it stands then.

    A socket's own timeout bounds silence, but not a trickle: in a TLS handshake, in
    headers, or in a body. Use it as a context manager, in the thread that asks.

    Attributes:
        passed: whether the time was over.
    """

    def __init__(self, seconds):
        self.passed = False
        self.handle = None
        self.lock = threading.Lock()
        self.timer = threading.Timer(max(0.01, seconds), self.cut)
        self.timer.daemon = True

    def __enter__(self):
        transfers.deadline = self
        self.timer.start()
        return self

    def __exit__(self, *error):
        self.timer.cancel()  # it may run just now: the lock below waits for it
        transfers.deadline = None
        with self.lock:
            self.handle = None  # another request may use the connection now

    def watch(self, handle):
        """Say which socket is to be cut."""
        with self.lock:
            self.handle = handle
            passed = self.passed
        if passed:
            self.cut()

    def cut(self):
        """End the connection, so that the thread that reads from it goes on."""
        with self.lock:
            self.passed = True
            if self.handle is not None:
                with contextlib.suppress(OSError):
                    self.handle.shutdown(socket.SHUT_RDWR)


class Guarded:
    """What our connections do beside urllib3's: they look where they lead, and tell the
    deadline which socket it is about.

    The connected socket is asked, which no redirect and no name can deceive. A proxy
    may be private: what it leads to is for the proxy to judge.
    """

    handle = None

    def _new_conn(self):  # urllib3 has no public place between connecting and speaking
        connection = super()._new_conn()
        if self.proxy is None and not ALLOW_PRIVATE_HOSTS:
            check_public(connection.getpeername()[0])
        # A second handle of the same connection: TLS takes the first one away.
        self.handle = connection.dup()
        transfers.deadline.watch(self.handle)
        return connection

    def request(self, *args, **kwargs):
        if self.handle is None:
            self.connect()
        if self.handle is None:  # fail closed: nobody has looked where it leads
            raise SetupFailure(
                f"urllib3 {urllib3.__version__} connects in a way that scrape.py does "
                "not know. Install the version that requirements.txt names."
            )
        transfers.deadline.watch(self.handle)  # it may be one that was kept
        return super().request(*args, **kwargs)

    def close(self):
        # Not closed here: a body may still be read from it, and the deadline holds it.
        self.handle = None
        super().close()


class GuardedHTTPConnection(Guarded, urllib3.connection.HTTPConnection):
    pass


class GuardedHTTPSConnection(Guarded, urllib3.connection.HTTPSConnection):
    pass


class GuardedHTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = GuardedHTTPConnection


class GuardedHTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = GuardedHTTPSConnection


class GuardedAdapter(requests.adapters.HTTPAdapter):
    """Makes every connection of a session a guarded one, with a proxy and without."""

    def init_poolmanager(self, *args, **kwargs):
        super().init_poolmanager(*args, **kwargs)
        self.guard(self.poolmanager)

    def proxy_manager_for(self, proxy, **kwargs):
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # PySocks brings its own connections
            self.guard(manager)
        return manager

    def guard(self, manager):
        """Let a manager of urllib3 make guarded connections."""
        pools = {"http": GuardedHTTPPool, "https": GuardedHTTPSPool}
        manager.pool_classes_by_scheme = pools


class Answer:
    """What a server answered to one request.

    Attributes:
        url: the address as it was asked for.
        status, headers, body: of HTTP; the body is unpacked.
        target: where a redirect leads, or None. Its body is not read.
        sure: whether nothing of the body can be missing, or packed in an unknown way.
    """

    def __init__(self, response, body):
        self.url = response.request.url
        self.status = response.status_code
        self.headers = response.headers
        self.body = body
        self.target = None
        if response.is_redirect:
            # http.client reads headers as Latin-1; what is sent is mostly UTF-8.
            target = response.headers["Location"].encode("latin-1", "replace")
            target = urllib.parse.quote(target, safe=string.punctuation)
            try:
                self.target = urllib.parse.urljoin(self.url, target)
            except ValueError:  # asking for it will say why
                self.target = target
        # Otherwise the body ends where the connection does, for whatever reason.
        self.sure = "Content-Length" in self.headers or response.raw.chunked
        for encoding in self.headers.get("Content-Encoding", "").split(","):
            known = (*response.raw.CONTENT_DECODERS, "identity", "")
            if encoding.strip().lower() not in known:
                self.sure = False

    def retry_after(self):
        """Return the seconds that a server asks us to wait, or None."""
        with contextlib.suppress(Exception):  # a header can hold anything
            value = self.headers["Retry-After"]
            seconds = urllib3.Retry().parse_retry_after(value)  # a number or a date
            if seconds > 0:  # a date may be over
                return seconds
        # Openverse says it in the text as well.
        text = re.search(rb"available in (\d{1,6}) second", self.body[:10_000])
        if text is not None:
            return int(text[1])
        return None


class Host:
    """When a host may be asked, and how it behaved in this run.

    Attributes:
        start: the time from which on it may be asked.
        under_way: requests that are being made.
        bad: bad answers since the last good one.
        answered: whether there ever was a good one.
        chances: how often it was given another chance after it was left.
        gone: whether it is left for the rest of the run; `reason` says why.
    """

    def __init__(self, name):
        self.name = name
        self.delay = HOST_DELAY.get(name, DEFAULT_DELAY)
        # Wikimedia allows ten requests a minute to those who do not say who they are.
        if name.endswith(".wikimedia.org") and not CONTACT:
            self.delay = max(self.delay, 6)
        self.at_once = HOST_CONCURRENCY
        if self.delay >= 1:
            self.at_once = 1
        self.start = 0.0
        self.under_way = 0
        self.bad = 0
        self.last_bad = 0.0
        self.answered = False
        self.chances = 0
        self.gone = False
        self.reason = ""

    def is_left(self):
        """Return whether it failed so often that it is left alone for a while."""
        return self.bad > len(PAUSES)

    def is_free(self, now):
        """Return whether it may be asked now."""
        at_once = self.at_once
        if self.bad:  # one request is enough to see whether it is back
            at_once = 1
        return now >= self.start and self.under_way < at_once

    def begin(self, now):
        self.under_way += 1
        self.start = now + self.delay

    def note_good(self):
        self.bad = 0
        self.chances = 0
        self.answered = True

    def note_bad(self, failure, began):
        """Take in a Passing failure of a request that began at a time."""
        if began < self.last_bad:
            return  # it was under way with the one that was counted
        now = time.monotonic()
        self.last_bad = now  # what began before now will not be counted
        self.reason = str(failure)
        self.bad += 1
        if failure.silent:  # each try takes REQUEST_TIMEOUT
            self.bad += 1
            if not self.answered:
                self.bad = len(PAUSES) + 1
        if failure.wait is not None and failure.wait > 60:
            self.gone = True  # longer than anybody wants to sit and wait
        elif self.is_left():
            self.leave(now)
        elif failure.whole_host:
            wait = failure.wait or PAUSES[self.bad - 1]
            self.start = max(self.start, now + wait)

    def leave(self, now):
        """Leave it alone for a while, or for the rest of the run."""
        allowed = 1
        if self.answered:  # it is known to exist, so that it is worth more patience
            allowed = 3
        if self.chances == allowed:
            self.gone = True
        self.chances += 1
        self.start = now + LEFT_PAUSE


class Session(requests.Session):
    """Asks servers for all threads. Whoever waits here stops when `halt` is set."""

    def __init__(self):
        super().__init__()
        # Twenty hosts keep their connections: more would take too many file handles.
        self.mount("https://", GuardedAdapter(pool_connections=20))
        self.mount("http://", GuardedAdapter(pool_connections=20))
        contact = CONTACT or "no contact given"
        self.headers["Accept-Language"] = "en-US,en;q=0.8"
        self.headers["User-Agent"] = (
            f"bodybuilder-vae/1.0 ({contact}) "
            f"icrawler/{icrawler.__version__} python-requests/{requests.__version__}"
        )
        self.halt = threading.Event()
        self.answered = False  # whether any host has
        self.hosts = {}
        self.changed = threading.Condition()  # guards the hosts, and tells of changes

    def host(self, address):
        """Return what is known of the host of an address."""
        try:
            parts = urllib.parse.urlsplit(address)
            place = parts.netloc.rpartition("@")[2].lower()
            name = parts.hostname or ""
        except ValueError:  # no address at all: asking for it will say so
            place = ""
            name = ""
        with self.changed:
            if place not in self.hosts:
                self.hosts[place] = Host(clean(name))
            return self.hosts[place]

    def pause(self, address, seconds):
        """Ask the host of an address for nothing in the next seconds."""
        host = self.host(address)
        with self.changed:
            host.start = max(host.start, time.monotonic() + seconds)

    def begin(self, host):
        """Wait until a host may be asked, and take the turn."""
        with self.changed:
            while not host.is_free(time.monotonic()):
                if self.halt.is_set():
                    raise Stopped
                self.changed.wait(0.05)  # nobody tells when a pause is over
            host.begin(time.monotonic())

    def end(self, host):
        """Give the turn back."""
        with self.changed:
            host.under_way -= 1
            self.changed.notify_all()

    def fetch_page(self, address, seconds):
        """Return the Answer of an engine, after redirects and the pauses of its host.

        Args:
            seconds: for each request in all, and of silence as well.
        """
        for _ in range(6):  # an address and five redirects
            host = self.host(address)  # each hop has manners of its own
            self.begin(host)
            try:
                answer = self.exchange(address, seconds, seconds)
            finally:
                self.end(host)
            with self.changed:
                host.note_good()
            if answer.target is None:
                return answer
            address = answer.target
        raise Refused("more than five redirects")

    def exchange(self, address, seconds, silence):
        """Make one request, and follow no redirect; return the Answer.

        Args:
            seconds: what it may take in all.
            silence: seconds without a byte after which it is given up.
        """
        try:
            # Not by the session's own methods: they would send what ~/.netrc has for
            # the host, and read the whole body of a redirect.
            request = requests.Request(
                "GET", address, headers=self.headers, cookies=self.cookies
            ).prepare()
            adapter = self.get_adapter(request.url)
            if not ALLOW_PRIVATE_HOSTS:
                check_name(urllib.parse.urlsplit(request.url).hostname or "")
        except ValueError as error:
            raise Refused(f"no web address: {error}") from None
        # The environment's proxies and certificates do count.
        options = self.merge_environment_settings(request.url, {}, True, None, None)
        options["timeout"] = (min(REQUEST_TIMEOUT, silence), silence)
        with Deadline(seconds) as deadline:
            response = None
            try:
                response = adapter.send(request, **options)
                answer = Answer(response, self.read_body(response))
            except (Failure, SetupFailure, Stopped):
                raise
            except Exception as error:  # sockets, TLS, decoders: each has its own
                if not deadline.passed:
                    raise_failure(error, request, response)
            finally:
                if response is not None:
                    response.close()
        if deadline.passed:  # the body may look whole: it was cut
            raise PictureFailure("refused", "took too long in all", doubtful=True)
        # Some hosts redirect to themselves until they see their cookie.
        requests.cookies.extract_cookies_to_jar(self.cookies, request, response.raw)
        if answer.status == 407 and request.url.startswith("http:"):
            # A server could say so, too. But then our proxy has mostly let us through.
            proxy = requests.utils.select_proxy(request.url, options["proxies"])
            if proxy is not None and not self.answered:
                raise_proxy_password()
        check_status(answer)
        self.answered = True
        return answer

    def read_body(self, response):
        """Return the unpacked bytes of an answer, if they are not too many."""
        body = bytearray()
        if response.is_redirect:
            return bytes(body)
        raw = response.raw
        # read1 returns what is there; read would wait for more.
        while chunk := raw.read1(65536, decode_content=True):
            body += chunk
            # The length that is promised is checked, and what really comes.
            if max(len(body), raw.length_remaining or 0) > MAX_BYTES:
                raise Refused(f"more than {MAX_BYTES} bytes")
            if self.halt.is_set():
                raise Stopped
            if transfers.deadline.passed:  # by SOCKS there is no socket of ours to cut
                break
        return bytes(body)


def raise_failure(error, request, response):
    """Raise what an exception of requests means.

    Args:
        request: what was asked.
        response: the answer in whose body it came, or None.
    """
    if isinstance(error, urllib3.exceptions.DecodeError):
        reason = "its Content-Encoding cannot be undone"
        raise PictureFailure("broken", reason, doubtful=True) from None
    if isinstance(error, requests.exceptions.InvalidURL):  # a name that cannot be one
        raise Refused(f"no web address: {error}") from None
    ours = isinstance(error, OSError) and not isinstance(
        error, requests.RequestException
    )
    if ours and response is None:  # such as a file of certificates that is not there
        raise SetupFailure(f"Cannot ask any server: {error}. Mend it and run again.")
    bottom = error
    while bottom.__context__ is not None:
        bottom = bottom.__context__  # the one at the bottom says what happened
    if getattr(bottom, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise SetupFailure(
            "Too many files are open at once. Allow more, for example by "
            "ulimit -n 1024, and run again."
        )
    reason = str(bottom) or type(bottom).__name__
    silent = isinstance(bottom, TimeoutError)  # of the socket, or of the system
    if response is not None and not silent:
        raise Passing("broken", f"cut short: {reason}", whole_host=False)
    if isinstance(error, requests.exceptions.ProxyError):
        if "Tunnel connection failed: 407" in reason:
            raise_proxy_password()
        reason = f"by the proxy: {reason}"
    name = urllib.parse.urlsplit(request.url).hostname
    reason = f"{name}: {reason}"
    raise Unreachable("unreachable", reason, silent=silent) from None


def raise_proxy_password():
    raise SetupFailure(
        "The proxy wants a password. Name it in HTTPS_PROXY and HTTP_PROXY: "
        "http://user:password@host:port"
    )


def check_status(answer):
    """Raise what is wrong for the moment with the status of an answer."""
    status = answer.status
    if status not in (429, 500, 502, 503, 504):
        return
    wait = answer.retry_after()
    if status == 429 and wait is None:
        wait = BUSY_PAUSE
    # 500, 502 and 504 are mostly about one picture; these are about the host.
    whole_host = status in (429, 503) or wait is not None
    raise Busy(status, wait=wait, whole_host=whole_host)


# ----------------------------------------------------------------------------
# Looking at a picture
# ----------------------------------------------------------------------------
looking = threading.Lock()  # one picture at a time is unpacked: memory


def inspect(answer):
    """Return (extension, width, height) of an Answer that is a picture fit for us."""
    body = answer.body
    # In a JPEG this pair of bytes stands nowhere but at the head of a scan, or, a few
    # times, in a thumbnail.
    if body.startswith(b"\xff\xd8") and body.count(b"\xff\xda") > MAX_SCANS:
        raise Refused(f"a JPEG of more than {MAX_SCANS} scans")
    try:
        with looking:
            ending, width, height = unpack(body)
    except MemoryError:  # that is not the picture's fault
        raise PictureFailure("refused", "too large for our memory") from None
    except Exception as error:  # Pillow's readers raise whatever their bytes lead to
        other = name_other_kind(body)
        if other is not None:
            reason = f"of a kind we do not take ({other})"
            raise PictureFailure("other kind", reason, final=True) from None
        reason = "not a whole picture"
        if body[:1000].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            reason += ": a web page"
        elif not isinstance(error, Image.UnidentifiedImageError):  # it names an object
            reason += f": {error}"
        final = answer.sure
        raise PictureFailure("broken", reason, final, doubtful=not final) from None
    size = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise Refused(size)
    if min(width, height) < min(MIN_SIZE) or max(width, height) < max(MIN_SIZE):
        raise PictureFailure("too small", size, final=True, other_address=False)
    return ending, width, height


def unpack(body):
    """Return (extension, width, height) of the bytes of a picture.

    Its pixels are unpacked, as opening reads no more than the header, and are gone when
    this returns. What has more than MAX_PIXELS is not unpacked.
    """
    endings = {
        "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp",
        "TIFF": "tif", "AVIF": "avif",
    }  # fmt: skip
    with Image.open(io.BytesIO(body), formats=tuple(endings)) as picture:
        width, height = picture.size
        if width * height <= MAX_PIXELS:
            picture.load()
        return endings.get(picture.format, "jpg"), width, height  # MPO: several JPEGs


def name_other_kind(body):
    """Return the name of a kind of file that is whole and still not for us, or None."""
    if body[4:8] == b"ftyp" and body[8:12] in (
        b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1",
    ):  # fmt: skip
        return "HEIC"
    starts = {
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
        b"\0\0\0\x0cjP  ": "JP2",
        b"\xff\x4f\xff\x51": "JP2",
        b"\0\0\1\0": "ICO",
        b"%PDF": "PDF",
        b"8BPS": "PSD",
    }
    for start, name in starts.items():
        if body.startswith(start):
            return name
    if b"<svg" in body[:1000].lower():
        return "SVG"
    return None


# ----------------------------------------------------------------------------
# The folder
# ----------------------------------------------------------------------------
def usual_form(address):
    """Return an address with its letters quoted in the usual way, to compare it."""
    if re.fullmatch(r"[A-Za-z0-9:/?&=._~+,;@!$'()*-]*", address):
        return address  # requote_uri would take ten times as long to say so
    return requests.utils.requote_uri(address)


def is_foreign(folder):
    """Return whether a folder of this name is hidden, or a system's own.

    NAS systems keep @eaDir beside pictures, and macOS puts __MACOSX into archives.
    """
    return folder.startswith((".", "@")) or folder == "__MACOSX"


def is_picture(folder, name):
    """Return whether a file counts as a picture, by its path below OUT_DIR."""
    # Folders and kinds are those of preprocess.py.
    endings = (
        ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
    )  # fmt: skip
    if name.startswith(".") or not name.lower().endswith(endings):
        return False
    return not any(is_foreign(part) for part in folder.parts)


class Folder:
    """OUT_DIR: what lies there, what is known, and how one more picture comes in.

    Attributes:
        names: the pictures that are there, as paths below OUT_DIR.
        keywords: {name: keyword} of what the manifest lists.
        known: the addresses that are not to be asked for.
        doubtful: addresses that failed once, perhaps because we were too slow.
        hashes: {SHA-256: name}, also of what was deleted by hand.
        goal: how many pictures are wanted for the moment.
        notes: what is to be said about the folder.
    """

    def __init__(self, path):
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lock = threading.RLock()
        self.goal = 0
        self.notes = []
        self.keywords = {}
        self.known = set()
        self.doubtful = set()
        self.hashes = {}
        self.manifest = (path / "manifest.jsonl").open("ab")  # stays open for its lock
        self.lock_manifest()
        # First the files as they should be, then what they say, then what is there.
        for name in ("manifest.jsonl", "failed.jsonl"):
            self.heal(name)
        self.read_manifest()
        self.read_failures()
        # Pages in a row that list only what is known, before a query is given up.
        self.patience = 3 + len(self.known) // 20
        self.finish_parts()
        self.names = set()
        self.find_pictures()
        self.number = 0  # of the last picture; deleted ones keep theirs
        for name in self.keywords.keys() | self.names:
            stem = Path(name).stem
            # Longer ones are not ours: times at which a camera took a picture.
            if stem.isdecimal() and len(stem) < 10:
                self.number = max(self.number, int(stem))

    def lock_manifest(self):
        """Keep other runs out of the folder; SetupFailure if there is one."""
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            return
        try:
            fcntl.flock(self.manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupFailure(
                f"Another scrape.py is at work in {self.path}. Wait until it has ended."
            ) from None
        except OSError as error:  # network drives and Colab's have none
            self.notes.append(
                f"{self.path} cannot be locked ({describe_error(error)}): "
                "make sure that no other scrape.py is at work there."
            )

    def heal(self, name):
        """Mend the last line of a .jsonl file, which a kill may have torn."""
        path = self.path / name
        if not path.exists():
            return
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1000)
            file.seek(max(0, size - 1_000_000))  # no line of ours is as long
            torn = file.read().rpartition(b"\n")[2]
        if b"\0" in head:  # before anything is cut off from it
            raise SetupFailure(
                f"Cannot use {path}: it seems to be in UTF-16, expected JSON lines in "
                "UTF-8. Save it in UTF-8, or move it away."
            )
        if not torn:
            return
        try:
            json.loads(torn)
        except ValueError:
            if torn.startswith(b"{"):  # the beginning of a line of ours
                os.truncate(path, size - len(torn))
                return
        with path.open("ab") as file:
            file.write(b"\n")  # it is whole: only its end was missing

    def read_lines(self, name):
        """Yield the entries of a .jsonl file; say how many lines could not be read."""
        path = self.path / name
        if not path.exists():
            return
        good = 0
        bad = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line.decode("utf-8"))
                    if b"\\ud" in line.lower():  # half a letter cannot be written again
                        json.dumps(entry, ensure_ascii=False).encode()
                    if not isinstance(entry, dict):
                        raise ValueError("no object")
                except (ValueError, RecursionError):
                    bad += 1
                    continue
                good += 1
                yield entry
        if bad and not good:
            raise SetupFailure(
                f"Cannot use {path}: none of its {bad} lines can be read, expected "
                "JSON lines. Mend it, or move it away."
            )
        if bad:
            self.notes.append(f"{bad} lines of {name} could not be read.")

    def read_manifest(self):
        for entry in self.read_lines("manifest.jsonl"):
            self.learn_addresses(entry)
            if "file" in entry:
                name = str(entry["file"])
                self.keywords[name] = entry.get("keyword")
                self.hashes[str(entry.get("sha256"))] = name

    def read_failures(self):
        for entry in self.read_lines("failed.jsonl"):
            if entry.get("again"):
                self.doubtful.add(usual_form(str(entry.get("url"))))
            else:
                self.learn_addresses(entry)

    def learn_addresses(self, entry):
        """Note the addresses of an entry as known."""
        addresses = {str(entry.get("url")), str(entry.get("final_url"))}
        for address in addresses - {"None"}:  # either may be missing
            self.add_known(address)

    def finish_parts(self):
        """Name the files that a kill left unnamed, after their line was written."""
        for part in self.path.glob(".*.part"):
            final = self.path / part.name[1:-5]
            if final.name in self.keywords and not final.exists():
                os.replace(part, final)
            part.unlink(missing_ok=True)

    def find_pictures(self):
        """Find the pictures that are there; look at those that came from elsewhere."""
        for place, _, files in os.walk(self.path):
            folder = Path(place).relative_to(self.path)
            for file in files:
                if is_picture(folder, file):
                    self.names.add((folder / file).as_posix())
        # Their content is known by its hash, so that it does not come a second time.
        for name in self.names - self.keywords.keys():
            digest = hashlib.sha256((self.path / name).read_bytes()).hexdigest()
            self.hashes[digest] = name

    def count(self, keyword):
        """Return how many of the pictures that are there came for a keyword."""
        count = 0
        for name in self.names:
            if self.keywords.get(name) == keyword:
                count += 1
        return count

    def add_known(self, address):
        """Note an address; return whether it is new."""
        address = usual_form(address)
        with self.lock:
            if address in self.known:
                return False
            self.known.add(address)
            return True

    def append(self, name, entry):
        """Append a line to a .jsonl file, or nothing of it where the disk is full."""
        path = self.path / name
        with self.lock:
            path.touch()
            size = path.stat().st_size  # to go back to
            try:
                with path.open("ab") as file:
                    file.write(json.dumps(entry).encode() + b"\n")
            except OSError:
                os.truncate(path, size)
                raise

    def add_failure(self, entry, doubtful):
        """Remember an address that failed, for good or perhaps for good."""
        if doubtful and usual_form(entry["url"]) not in self.doubtful:
            entry = {**entry, "again": True}  # the next run tries it once more
        self.append("failed.jsonl", entry)

    def save(self, body, ending, entry):
        """Take a picture in: its line comes first, so that none is without licence."""
        digest = hashlib.sha256(body).hexdigest()
        with self.lock:
            if self.is_full():
                raise Stopped
            if digest in self.hashes:
                reason = f"the bytes of {self.hashes[digest]}"
                raise PictureFailure(
                    "duplicate", reason, final=True, other_address=False
                )
            self.number += 1
            name = f"{self.number:06d}.{ending}"
            entry = {"file": name, **entry}
            entry["bytes"] = len(body)
            entry["sha256"] = digest
            now = datetime.datetime.now(datetime.UTC)
            entry["fetched_at"] = now.isoformat(timespec="seconds")
            part = self.path / f".{name}.part"
            try:
                part.write_bytes(body)
            except OSError:  # the disk is full
                part.unlink(missing_ok=True)
                raise
            self.append("manifest.jsonl", entry)
            # A kill before this leaves the part, which the next run names.
            os.replace(part, self.path / name)
            self.names.add(name)
            self.keywords[name] = entry["keyword"]
            self.hashes[digest] = name

    def is_full(self):
        return len(self.names) >= self.goal

    def close(self):
        """Let nothing in any more, and write CREDITS.md about what lies there."""
        with self.lock:
            self.goal = 0
        lines = {}
        # Read once more: to keep 100,000 entries in memory would take 300 MB.
        for entry in self.read_lines("manifest.jsonl"):
            name = str(entry.get("file"))
            if name in self.names:
                lines[name] = credit(name, entry)
        for name in self.names - lines.keys():
            lines[name] = credit(name, {})
        text = (
            "# Credits\n\nTitle, creator, licence and source of each picture.\n"
            "All are as downloaded; Wikimedia Commons scales large ones.\n\n"
        )
        for name in sorted(lines):
            text += lines[name] + "\n"
        with replacing(self.path / "CREDITS.md") as temporary:
            # A file name may be no proper text.
            temporary.write_text(text, encoding="utf-8", errors="replace")


def credit(name, entry):
    """Return the line of CREDITS.md about a picture."""
    # The page says more than the picture itself. Any field can be missing or null.
    source = entry.get("page_url") or entry.get("url")
    title = markdown(entry.get("title") or "untitled", source)
    creator = markdown(entry.get("creator") or "unknown")
    license_name = entry.get("license") or "licence unknown"
    license_name = markdown(license_name, entry.get("license_url"))
    name = clean(name).replace("`", "'")
    return f"- `{name}`: {title} by {creator}, {license_name}"


def markdown(text, address=None):
    """Return text that Markdown leaves alone, linked to an address if it is one."""
    text = re.sub(r"([\\`*_\[\]<>&~$])", r"\\\1", clean(text))
    address = web_address(address)
    if address is None:
        return text
    return f"[{text}](<{address}>)"


# ----------------------------------------------------------------------------
# The crawl: icrawler runs the threads, what they do is our own
# ----------------------------------------------------------------------------
class Download:
    """A picture that an engine listed, and how far its download has come.

    Attributes:
        task: the dict that the engine made.
        address: what is asked for next.
        host: the Host of that address, while it waits.
        hops: redirects so far.
        tries: requests that failed for the moment.
        seconds: what the requests may still take.
        start: the time from which on it may be asked for.
        failures: why the addresses before this one brought nothing.
    """

    def __init__(self, task):
        self.task = task
        self.others = []
        if task.get("fallback") and task["fallback"] != task["file_url"]:
            self.others.append(task["fallback"])
        self.failures = []
        self.turn_to(task["file_url"])

    def turn_to(self, address):
        """Start with an address."""
        self.address = address
        self.hops = 0
        self.tries = 0
        self.seconds = IMAGE_DEADLINE
        self.start = 0.0


class DownloadQueue:
    """The downloads that wait. `get` returns the first one whose host may be asked now,
    so that no thread waits for a host while others are free.

    It has the methods of a queue that icrawler's threads call. icrawler's own one loses
    a task whenever it is full for a second, and refuses one that is put back.
    """

    def __init__(self, session):
        self.session = session
        self.waiting = []  # the best first
        self.under_way = 0
        self.last_get = time.monotonic()

    def put(self, download, first=False):
        download.host = self.session.host(download.address)
        with self.session.changed:
            if first:
                self.waiting.insert(0, download)
            else:
                self.waiting.append(download)
            self.session.changed.notify()

    def get(self, timeout):
        """Return a download and take its host's turn; queue.Empty after the timeout."""
        with self.session.changed:
            download = self.take_ready()
            if download is None:
                self.session.changed.wait(timeout)
                download = self.take_ready()
            if download is None:  # icrawler's thread will ask again
                raise queue.Empty
            return download

    def take_ready(self):
        """Return the first download that may be made now, or None."""
        if self.session.halt.is_set():
            return None
        now = time.monotonic()
        for place, download in enumerate(self.waiting):
            host = download.host
            if host.gone or (now >= download.start and host.is_free(now)):
                host.begin(now)
                self.under_way += 1
                self.last_get = now
                return self.waiting.pop(place)
        return None

    def task_done(self):
        with self.session.changed:
            self.under_way -= 1

    def wants_more(self):
        """Return whether another page of results is needed."""
        with self.session.changed:
            waiting = 0
            for download in self.waiting:
                if not download.host.is_left():
                    waiting += 1
            # All that waits may be for hosts that are slow.
            stuck = time.monotonic() > self.last_get + REQUEST_TIMEOUT
            limit = 40
            if stuck:
                limit = 1000
            return waiting < limit and len(self.waiting) < 1000

    def hurry(self):
        """Give hosts that never answered their last chance now, if all else is done."""
        with self.session.changed:
            if self.is_over(patient=False):
                for download in self.waiting:
                    if not download.host.answered:
                        download.host.start = 0.0

    def is_over(self, patient):
        """Return whether nothing is left to do.

        Args:
            patient: what waits for a host that was left counts as well.
        """
        with self.session.changed:
            if self.under_way:
                return False
            for download in self.waiting:
                if patient or not download.host.is_left():
                    return False
            return True


class Search:
    """What is asked of an engine, mostly for one keyword, and what came of it.

    The pages wait here and not in icrawler's feeder, so that a second round takes up
    where the first one stopped.
    """

    def __init__(self, engine, keyword, folder, session):
        self.engine = engine
        self.keyword = keyword
        self.folder = folder
        self.session = session
        self.pages = collections.deque(engine.first_pages(keyword))
        self.downloads = DownloadQueue(session)
        self.counts = collections.Counter()
        self.failure = None  # why its pages ended early
        self.trouble = None  # an exception that ends the run
        self.listed = 0  # pictures on its pages
        self.stale = 0  # pages in a row that listed only what is known
        self.seconds = 0.0

    def has_work(self):
        return bool(self.pages or self.downloads.waiting)

    def stop(self, error):
        """End the run with an exception, which the main thread will raise."""
        self.trouble = error
        self.session.halt.set()

    def add(self, tasks):
        """Take in the tasks of a page whose addresses were never seen."""
        fresh = 0
        for task in tasks:
            if self.folder.add_known(task["file_url"]):
                self.downloads.put(Download(task))
                fresh += 1
        self.listed += len(tasks)
        self.counts["duplicate"] += len(tasks) - fresh
        self.counts["unreadable"] += self.engine.unreadable
        self.counts["left out"] += self.engine.left_out
        self.engine.unreadable = 0
        self.engine.left_out = 0
        # Some engines go on for ever with what they have already listed.
        if fresh:
            self.stale = 0
        elif tasks:
            self.stale += 1

    def outcome(self):
        """Return why it ended early or brought nothing, or else an empty text."""
        if self.failure is not None:
            return f"{self.failure.kind}: {self.failure}"
        if self.counts["saved"]:
            return ""
        if self.listed:
            return "nothing new of use"
        return "answered but empty"

    def summary(self):
        """Return the line that says what came of it."""
        kinds = ["saved", "duplicate", "too small", "broken", "refused"]
        for kind in sorted(self.counts):
            if self.counts[kind] and kind not in kinds:
                kinds.append(kind)
        counts = "".join(f"{kind} {self.counts[kind]}, " for kind in kinds)
        line = f'{self.engine.name} "{clean(self.keyword or "list")}": {counts}'
        line += f"{self.seconds:.1f} s"
        if self.outcome():
            line += f"; {self.outcome()}"
        return line


class PageParser(icrawler.Parser):
    """Reads pages of results until there are none."""

    def __init__(self, thread_num, signal, session, search):
        super().__init__(thread_num, signal, session, out_queue=search.downloads)
        self.search = search

    def worker_exec(self, **unused):
        """Do the work of a thread."""
        search = self.search
        try:
            with self.lock:  # of icrawler: the other thread finds nothing left to do
                while search.pages and not self.session.halt.is_set():
                    if search.downloads.wants_more():
                        self.read_page(search.pages[0])
                    else:
                        self.session.halt.wait(0.02)
        except Stopped:
            pass
        except Exception as error:  # our environment, or a mistake of ours
            search.stop(error)

    def read_page(self, page):
        """Read a page, and put the next one of its query in its place."""
        search = self.search
        engine = search.engine
        try:
            if engine.failure is not None:
                raise engine.failure
            tasks, following = engine.ask(self.session, page)
        except QueryFailure as failure:  # the other queries of the keyword stay
            search.pages.popleft()
            search.failure = failure
            engine.note_failed_query(failure)
        except EngineFailure as failure:  # what it has listed is still downloaded
            search.pages.clear()
            search.failure = failure
            engine.failure = failure
        else:
            # Stopped leaves the page where it is, for the second round.
            engine.failed_queries = 0
            search.pages.popleft()
            search.add(tasks)
            if following is not None and search.stale < search.folder.patience:
                search.pages.append(following)


class PictureDownloader(icrawler.Downloader):
    """Makes the requests for pictures, one at a time for each thread."""

    def __init__(self, thread_num, signal, session, storage, search):
        super().__init__(thread_num, signal, session, storage)
        self.search = search

    def download(self, task, *unused, **unused_too):
        """Make the next request for a Download, and see what it brings."""
        host = task.host  # the queue took its turn
        try:
            self.advance(task, host)
        except Stopped:
            self.search.downloads.put(task, first=True)  # for the second round
        except Exception as error:  # a full disk, our environment, a mistake of ours
            self.search.stop(error)
        finally:
            self.session.end(host)

    def advance(self, task, host):
        """Make a request, unless its host is gone."""
        if host.gone:
            reason = f"{host.name} left after {host.reason}"
            self.give_up(task, PictureFailure("host left", reason))
            return
        began = time.monotonic()
        try:
            answer = self.session.exchange(task.address, task.seconds, REQUEST_TIMEOUT)
            with self.session.changed:
                host.note_good()
            task.seconds -= time.monotonic() - began  # pauses and turns do not count
            # An answer of any status is good news of the host.
            if answer.target is None:
                self.take(task.task, answer)
            else:
                self.follow(task, answer.target)
        except Passing as failure:
            self.postpone(task, host, failure, began)
        except PictureFailure as failure:
            self.give_up(task, failure)

    def postpone(self, task, host, failure, began):
        """Put a download back for another try, or give it up."""
        with self.session.changed:
            host.note_bad(failure, began)
        task.tries += 1
        # While its host is left, a picture waits with all the others.
        if host.gone or (task.tries > len(PAUSES) and not host.is_left()):
            self.give_up(task, failure)
            return
        if not failure.whole_host:
            pause = PAUSES[min(task.tries, len(PAUSES)) - 1]
            task.start = time.monotonic() + pause
        task.seconds = IMAGE_DEADLINE
        self.search.downloads.put(task)

    def follow(self, task, target):
        """Go where a redirect leads."""
        if task.seconds <= 0:
            raise PictureFailure("refused", "took too long in all", doubtful=True)
        if task.hops == 5:
            raise Refused("more than five redirects")
        task.hops += 1
        task.address = target
        self.search.downloads.put(task, first=True)  # the other host has its own turn

    def give_up(self, task, failure):
        """Turn to the other address of a picture, or count it as lost."""
        task.failures.append(failure)
        if task.others and failure.other_address:
            task.turn_to(task.others.pop())
            self.search.downloads.put(task, first=True)
            return
        folder = self.search.folder
        with folder.lock:
            self.search.counts[task.failures[0].kind] += 1
        doubtful = False
        for each in task.failures:
            if not each.final and not each.doubtful:
                return  # it may come another day
            doubtful = doubtful or each.doubtful
        reasons = [str(each) for each in task.failures]
        entry = {"url": task.task["file_url"], "reason": "; ".join(reasons)}
        entry["engine"] = self.search.engine.name
        entry["keyword"] = self.search.keyword
        folder.add_failure(entry, doubtful)

    def take(self, task, answer):
        """Look at an answer and save the picture, or raise a PictureFailure."""
        if answer.status != 200:
            # 408 and 425 ask for another try; above 500 a server has trouble.
            final = 400 <= answer.status < 500 and answer.status not in (408, 425)
            raise PictureFailure(f"HTTP {answer.status}", final=final)
        robots = answer.headers.get("X-Robots-Tag", "").lower()
        if re.search("no(image)?ai", robots):
            reason = "X-Robots-Tag forbids it"
            raise PictureFailure("noai", reason, final=True, other_address=False)
        ending, width, height = inspect(answer)
        entry = {"url": task["file_url"], "final_url": answer.url}
        for name in (
            "page_url", "title", "creator", "license", "license_url", "attribution",
        ):  # fmt: skip
            entry[name] = task.get(name)
        entry["license_filter"] = None
        if self.search.keyword is not None and LICENSE is not None:
            entry["license_filter"] = LICENSE + self.search.engine.license_note
        entry["engine"] = self.search.engine.name
        entry["keyword"] = self.search.keyword
        entry["width"] = width
        entry["height"] = height
        folder = self.search.folder
        folder.save(answer.body, ending, entry)
        with folder.lock:
            self.search.counts["saved"] += 1
        if folder.is_full():
            self.session.halt.set()  # now, and not one download later


class SearchCrawler(icrawler.Crawler):
    """Runs a Search in icrawler's threads."""

    def __init__(self, search):
        self.search = search
        super().__init__(
            parser_cls=PageParser,
            downloader_cls=PictureDownloader,
            # The article's numbers. Only the downloader's makes a difference: an engine
            # is asked for one page at a time, and our pages need no feeder.
            feeder_threads=1,
            parser_threads=2,
            downloader_threads=DOWNLOADER_THREADS,
            log_level=logging.CRITICAL,
            extra_parser_args={"search": search},
            extra_downloader_args={"search": search},
        )

    def set_session(self, headers=None):  # icrawler calls it before it makes the parts
        self.session = self.search.session

    def crawl(self, progress, patient):
        """Run until nothing is left or the session halts, and show how far it is.

        Args:
            progress: the bar on the terminal, see rich.
            patient: wait for hosts that were left, too.
        """
        search = self.search
        halt = self.session.halt
        name = clean(f"{search.engine.name} {search.keyword or 'list'}")
        name = rich.markup.escape(name)
        start = time.monotonic()
        halt.clear()
        search.downloads.last_get = start
        self.signal.reset()
        # As icrawler's own crawl() does, but that looks only once a second, and takes a
        # queue that is empty for a while for the end.
        self.parser.start()
        self.downloader.start(max_num=0, queue_timeout=0.02)
        try:
            while self.parser.is_alive() or self.downloader.is_alive():
                over = False
                if not self.parser.is_alive():
                    over = search.downloads.is_over(patient)
                    if patient:
                        search.downloads.hurry()
                # These two end the downloader's threads.
                self.signal.set(parser_exited=over, reach_max_num=halt.is_set())
                count = len(search.folder.names)
                text = f"{name} {count}/{MAX_NUM}"
                task = progress.task_ids[0]
                progress.update(task, description=text, completed=count)
                time.sleep(0.05)
        finally:
            search.seconds += time.monotonic() - start
        if search.trouble is not None:
            raise search.trouble


def crawl_all(searches, folder, progress):
    """Run the searches, each keyword up to its share, then again without that limit."""
    share = math.ceil(MAX_NUM / len(KEYWORDS))
    progress.add_task("", total=MAX_NUM)
    crawlers = [SearchCrawler(search) for search in searches]
    # Hosts that are left get their other chance in the second round, when most of the
    # time has passed that they are left for.
    for second_round in (False, True):
        for crawler in crawlers:
            search = crawler.search
            missing = MAX_NUM - len(folder.names)
            if search.keyword is not None and not second_round:
                missing = min(missing, share - folder.count(search.keyword))
            if missing > 0 and search.has_work():
                folder.goal = len(folder.names) + missing
                crawler.crawl(progress, patient=second_round)


def collect(engines, out_dir):
    """Fill the folder and say what came of it; return (Folder, searches)."""
    folder = Folder(out_dir)
    session = Session()
    # Flushed, so that a log grows while the crawl does.
    count = len(folder.names)
    print(f"Collecting: {count} images in {out_dir}, {MAX_NUM} wanted", flush=True)
    for note in folder.notes:
        print(note, flush=True)
    if not CONTACT and "commons" in ENGINES:
        text = "CONTACT is empty: Wikimedia wants one, and is asked every 6 s only."
        print(text, flush=True)
    searches = []
    for engine in engines:
        keywords = KEYWORDS
        if engine.name == "urls":  # a list is not searched
            keywords = (None,)
        for keyword in keywords:
            searches.append(Search(engine, keyword, folder, session))
    try:
        with rich.progress.Progress(
            disable=not is_terminal(), transient=True
        ) as progress:
            crawl_all(searches, folder, progress)
    finally:
        session.halt.set()
        folder.close()  # first, as stdout may be what fails
        for search in searches:
            if search.seconds or search.listed:
                print(search.summary(), flush=True)
    return folder, searches


def shortage(searches):
    """Return why so few pictures came, and what to do about it."""
    lines = []  # each reason once
    unreachable = 0
    for search in searches:
        line = f"{search.engine.name}: {search.outcome()}."
        if search.outcome() and line not in lines:
            lines.append(line)
        if search.failure is not None and search.failure.kind == "unreachable":
            unreachable += 1
    if unreachable == len(searches):
        lines.append("Is there a network, or a proxy to name in HTTPS_PROXY?")
        lines.append("To go on without the web: python tests/draw_athletes.py")
    else:
        lines.append("Try other KEYWORDS or ENGINES, or run again later.")
    return "\n".join(lines)


# ----------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------
@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its place on success.

    Temporary files of `path` that runs left when they were killed go as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for leftover in path.parent.glob(f".*-{glob.escape(path.name)}"):
        pid = leftover.name[1:].partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def is_running(pid):
    """Return whether a process of this number runs on this machine."""
    if os.name == "nt":
        return True  # os.kill would end it there: rather a file too many
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


# ----------------------------------------------------------------------------
# Checks of the settings
# ----------------------------------------------------------------------------
def check(good, name, value, expected):
    """End the script with a message if a setting is not what it has to be."""
    if not good:
        script = Path(__file__).name
        text = f"{name} = {value!r}: expected {expected}"
        sys.exit(f"{text}. Edit it at the top of {script}.")


def is_whole(value, low, high=1_000_000):
    """Return whether a value is a whole number from low to high, and no bool."""
    return type(value) is int and low <= value <= high


def is_number(value, low, high=math.inf):
    """Return whether a value is a finite number from low to high, and no bool."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def is_text(value, longest=1000):
    """Return whether a value is a text, and not an empty or a very long one."""
    return isinstance(value, str) and 0 < len(value.strip()) <= longest


def check_settings():
    """End the script with a message if a setting is not what it has to be."""
    check_search()
    check_manners()
    check_bounds()


def check_search():
    """Check what is searched, and where it goes."""
    # Each line looks at the type first: a wrong one would raise in what follows.
    for name, value in (
        ("OUT_DIR", OUT_DIR),
        ("URL_FILE", URL_FILE),
    ):
        check(is_text(value), name, value, "a path in quotes")
    good = type(KEYWORDS) is tuple and len(KEYWORDS) > 0
    good = good and all(is_text(keyword, 200) for keyword in KEYWORDS)
    expected = "phrases of 1 to 200 letters in round brackets"
    check(good, "KEYWORDS", KEYWORDS, expected)
    known = tuple(engine_classes)
    good = type(ENGINES) is tuple and len(ENGINES) > 0
    expected = f"some of {known}"
    if good and "google" in ENGINES:
        expected += '. "google" has returned nothing since 2025'
    good = good and all(engine in known for engine in ENGINES)
    check(good, "ENGINES", ENGINES, expected)
    words = ("noncommercial", "commercial", "noncommercial,modify", "commercial,modify")
    good = LICENSE is None or LICENSE in words
    check(good, "LICENSE", LICENSE, f"None or one of {words}")
    expected = "a whole number from 1 to 1,000,000"
    check(is_whole(MAX_NUM, 1), "MAX_NUM", MAX_NUM, expected)
    good = is_whole(MIN_NUM, 0, MAX_NUM)
    check(good, "MIN_NUM", MIN_NUM, "a whole number from 0 to MAX_NUM")
    good = type(MIN_SIZE) is tuple and len(MIN_SIZE) == 2
    good = good and all(is_whole(side, 1) for side in MIN_SIZE)
    check(good, "MIN_SIZE", MIN_SIZE, "a width and a height in pixels")


def check_manners():
    """Check how servers are treated."""
    # It goes into a header, which a line break would end.
    good = isinstance(CONTACT, str) and CONTACT.isascii()
    good = good and (CONTACT == "" or CONTACT.isprintable())
    check(good, "CONTACT", CONTACT, "plain letters in quotes")
    good = isinstance(HOST_DELAY, dict)
    good = good and all(is_number(value, 0, 86_400) for value in HOST_DELAY.values())
    check(good, "HOST_DELAY", HOST_DELAY, "seconds from 0 to 86,400 for each host")
    for name, value in (
        ("DEFAULT_DELAY", DEFAULT_DELAY),
        ("BUSY_PAUSE", BUSY_PAUSE),
        ("LEFT_PAUSE", LEFT_PAUSE),
    ):
        check(is_number(value, 0, 86_400), name, value, "seconds from 0 to 86,400")
    # A longer pause would be worth another run.
    good = type(PAUSES) is tuple and len(PAUSES) > 0
    good = good and all(is_number(value, 0, 60) for value in PAUSES)
    check(good, "PAUSES", PAUSES, "seconds from 0 to 60 in round brackets")
    good = isinstance(PAGE_BUDGET, dict)
    good = good and all(is_whole(value, 1) for value in PAGE_BUDGET.values())
    for engine in ENGINES:
        good = good and (engine == "urls" or engine in PAGE_BUDGET)
    expected = "a whole number from 1 to 1,000,000 for each engine"
    check(good, "PAGE_BUDGET", PAGE_BUDGET, expected)


def check_bounds():
    """Check the bounds on what comes in, and the network."""
    for name, value in (
        ("HOST_CONCURRENCY", HOST_CONCURRENCY),
        ("MAX_BYTES", MAX_BYTES),
        ("MAX_PIXELS", MAX_PIXELS),
        ("MAX_SCANS", MAX_SCANS),
        ("MAX_TEXT", MAX_TEXT),
        ("DOWNLOADER_THREADS", DOWNLOADER_THREADS),
    ):
        expected = "a whole number from 1 to 1,000,000,000"
        check(is_whole(value, 1, 10**9), name, value, expected)
    for name, value in (
        ("REQUEST_TIMEOUT", REQUEST_TIMEOUT),
        ("IMAGE_DEADLINE", IMAGE_DEADLINE),
        ("PAGE_TIMEOUT", PAGE_TIMEOUT),
    ):
        check(is_number(value, 0.1, 86_400), name, value, "seconds from 0.1 to 86,400")
    good = type(ALLOW_PRIVATE_HOSTS) is bool
    check(good, "ALLOW_PRIVATE_HOSTS", ALLOW_PRIVATE_HOSTS, "True or False")
    # The others may be missing or wrong: nobody asks them.
    good = isinstance(ENDPOINTS, dict)
    for engine in ENGINES:
        good = good and (engine == "urls" or is_endpoint(ENDPOINTS.get(engine)))
    check(good, "ENDPOINTS", ENDPOINTS, "an http address for each engine")


def is_endpoint(address):
    """Return whether an address can be asked."""
    if web_address(address) is None:
        return False
    try:
        return urllib.parse.urlsplit(address).hostname is not None
    except ValueError:
        return False


# ----------------------------------------------------------------------------
# Messages and errors
# ----------------------------------------------------------------------------
def open_streams():
    """Make stdout take any text, also in a notebook, and replace closed streams."""
    if sys.stdout is None:  # closed by >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout is no real stream
        sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be shown
    if sys.stderr is None:  # closed by 2>&-: fill its place, or a file of ours gets it
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass


def is_terminal():
    """Return whether somebody sees stdout as it grows, so that a bar may move there."""
    # A window that stands for stdout need not have isatty.
    return hasattr(sys.stdout, "isatty") and sys.stdout.isatty()


def describe_error(error):
    """Return what an exception says, in one line; of an OSError its reason alone."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    text = " ".join(text.split())[:300]
    # The others say little without their names: a KeyError holds only the key.
    if not text or not isinstance(error, (OSError, ValueError, ArithmeticError)):
        text = f"{type(error).__name__}: {text}"
    return text


def stop(error, path):
    """End the script with one message about an OSError, of stdout or of a file.

    Args:
        error: the OSError. Where it names no file, it was met in writing.
        path: what was most likely being written then.
    """
    reason = describe_error(error)
    try:
        print(flush=True)  # unbuffered, what was refused is gone: does it take a line?
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # or Python complains again at its end
        sys.exit(f"Cannot write to stdout: {reason}. Mend it and run again.")
    name = Path(error.filename or path).resolve()
    name = name.with_name(name.name.removeprefix(f".{os.getpid()}-"))  # of replacing()
    sys.exit(f"Cannot write {name}: {reason}. Mend it and run again.")


# ----------------------------------------------------------------------------
# All of it
# ----------------------------------------------------------------------------
def check_environment():
    """Raise a SetupFailure if something on this machine would fail each request."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and limit < 200:
            raise SetupFailure(
                f"Only {limit} files may be open at once, and 200 are needed. "
                "Allow more, for example by ulimit -n 1024, and run again."
            )
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            raise SetupFailure(
                f"{name} names {path}, which is not there. Mend or unset it."
            )
    # NO_PROXY and the scheme decide which proxy is for which address.
    addresses = ["http://pictures.example/", "https://pictures.example/"]
    for engine in ENGINES:
        if engine in ENDPOINTS:
            addresses.append(ENDPOINTS[engine])
    proxies = set()
    for address in addresses:
        found = requests.utils.get_environ_proxies(address)
        proxies.add(requests.utils.select_proxy(address, found))
    for proxy in proxies - {None, ""}:
        check_proxy(proxy)


def check_proxy(proxy):
    """Raise a SetupFailure if a proxy of the environment cannot be used."""
    names = []  # of the variables, which the user knows by name
    for name, value in os.environ.items():
        if value == proxy and name.lower().endswith("_proxy"):
            names.append(name)
    where = " and ".join(names) or "the system's settings"
    try:
        url = requests.utils.prepend_scheme_if_needed(proxy, "http")
        address = urllib3.util.parse_url(url)
        if not address.host:
            raise ValueError("no host")
        requests.adapters.HTTPAdapter().proxy_manager_for(url)  # knows its schemes
    except ValueError as error:  # whatever requests and urllib3 raise is one
        reason = clean(error).rstrip(".")
        raise SetupFailure(
            f"{where}: {clean(proxy)!r} is no address of a proxy that can be used: "
            f"{reason}. Expected http://host:port; for SOCKS, "
            "pip install pysocks. Mend or unset it."
        ) from None
    host = address.host
    port = address.port or {"http": 80, "https": 443}.get(address.scheme, 1080)
    # Otherwise each picture would be said to be out of reach.
    try:
        socket.create_connection((host.strip("[]"), port), REQUEST_TIMEOUT).close()
    except OSError as error:
        raise SetupFailure(
            f"The proxy {host}:{port} ({where}) cannot be reached: "
            f"{describe_error(error)}. Mend or unset it."
        ) from None


def main():
    check_settings()
    # Pillow warns of what is odd in a picture, BeautifulSoup of what is no HTML.
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead
    start = time.perf_counter()
    out_dir = Path(OUT_DIR).resolve()
    if (out_dir / "factors.csv").exists():
        sys.exit(
            f"Cannot use {out_dir} (OUT_DIR): it holds drawn athletes (factors.csv), "
            "which must not mix with photographs. Move them away, or set another "
            "OUT_DIR."
        )
    try:
        check_environment()
        engines = [engine_classes[name]() for name in ENGINES]
        folder, searches = collect(engines, out_dir)
    except SetupFailure as failure:
        sys.exit(str(failure))
    count = len(folder.names)
    seconds = time.perf_counter() - start
    files = "manifest.jsonl, CREDITS.md"
    print(f"Wrote {OUT_DIR} ({count} images, {files}) in {seconds:.1f} s")
    if count < MIN_NUM:
        found = f"{count} images in {out_dir}, fewer than MIN_NUM = {MIN_NUM}."
        sys.exit(f"{found}\n{shortage(searches)}")


if __name__ == "__main__":
    open_streams()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Stopped: all files are whole. Run again to go on.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        stop(error, OUT_DIR)
