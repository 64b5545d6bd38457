"""The documentation as a site: it builds without a warning, and reads without the network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest

import tinyqmoe
from tests.support.paths import ROOT

NAME = re.compile(r"^::: tinyqmoe\.(\w+)$", re.MULTILINE)
ELSEWHERE = re.compile(r"(?:https?:)?//")
LOADS = {"script", "img", "iframe", "source"}  # and links, except those that name a relation
OF_CODE = {"pre", "code", "script", "style", "title"}
TOOLS = ("mkdocs", "material", "mkdocstrings")


class Page(HTMLParser):
    """The names of places in a page, its links, what it loads, and its text outside of code."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self._text: list[str] = []
        self._in_code = 0
        self.feed(file.read_text(encoding="utf-8"))
        self.text = "".join(self._text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        self._in_code += tag in OF_CODE
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in LOADS or (tag == "link" and values.get("rel") in ("stylesheet", "icon")):
            self.loads += [values[name] for name in ("src", "href") if name in values]

    def handle_endtag(self, tag: str) -> None:
        self._in_code -= tag in OF_CODE

    def handle_data(self, data: str) -> None:
        if not self._in_code:
            self._text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; the test is skipped where the extra `docs` is not installed."""
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"NOT TESTED: no {', '.join(missing)}; pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}


def test_every_link_leads_to_a_place(pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            name, _, place = link.partition("#")
            target = (file.parent / unquote(name)).resolve() if name else file
            there = target in pages and unquote(place) in pages[target].places
            if not target.exists() or (place and not there):
                broken.append(f"{file.name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    """Neither by a page nor by a style sheet; what a page only links to may be elsewhere."""
    assert [load for page in pages.values() for load in page.loads if ELSEWHERE.match(load)] == []
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", styles) == []


def test_markdown_became_html(pages: dict[Path, Page]) -> None:
    """Lists and tables that a reader of Markdown on the web shows, and this one might not."""
    left = re.compile(r"^\s*(?:[-*] |\d+\. +\*|\|.*\|$)|\*\*|\]\(", re.MULTILINE)
    of_ours = {f: p for f, p in pages.items() if "gallery" not in f.parts}
    assert len(of_ours) > 40
    assert {str(f): left.findall(p.text) for f, p in of_ours.items() if left.search(p.text)} == {}


def test_the_interface_is_there_name_by_name(site: Path, pages: dict[Path, Page]) -> None:
    """Of classes and functions with their docstrings' first words."""
    named = NAME.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(tinyqmoe.__all__)
    page = pages[site / "docs" / "api.html"]
    assert {f"tinyqmoe.{name}" for name in named} <= page.places
    words = " ".join(page.text.split())
    for name in named:
        value = getattr(tinyqmoe, name)
        if isinstance(value, type) or callable(value):
            said = (value.__doc__ or "").split("\n")[0].split("`")[0].strip()
            assert said in words, name


def test_the_search_knows_the_pages(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert all(f'"location":"{page}' in index for page in ("docs/ci.html", "docs/api.html#"))


def test_a_browser_reads_it(site: Path) -> None:
    """From a server of this machine, with names of all others unknown: the scripts run."""
    browser = shutil.which("chromium-headless-shell")
    if browser is None:
        pytest.skip("NOT TESTED: no chromium-headless-shell (Debian: apt-get install it)")
    handler = partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/docs/ci.html"
        options = ["--no-sandbox", "--virtual-time-budget=3000", "--dump-dom"]
        rule = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command = [browser, *options, rule, address]
        read = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        server.shutdown()
    assert "The gates of a team" in read
    assert '<html lang="en" class="js-focus-visible js"' in read, "set by the scripts of the theme"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing goes to the terminal."""
