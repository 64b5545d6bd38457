"""The files that are kept: parsed back, with hostile texts, and on a disk that is full."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import re
import resource
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from junitparser import Failure, JUnitXml

from exporter.bundle import Bundle
from runtime_ref.parity import TOLERANCES
from runtime_ref.reports.files import Judged, write_html, write_junit, write_markdown
from tests.support.bundles import small_manifest
from tests.support.reports import (
    FAILED,
    HOSTILE,
    PHONE,
    cells,
    device_plan,
    device_run,
    killed_run,
    parity,
)

BUNDLE = Bundle(Path("bundle"), small_manifest())
WRITERS: dict[str, Callable[[Path], None]] = {
    "junit": lambda path: write_junit(RESULTS, path),
    "markdown": lambda path: write_markdown(RESULTS, BUNDLE, path),
    "html": lambda path: write_html(RESULTS, BUNDLE, path),
}
HERE, ON_PHONE = Judged(parity(), None), Judged(parity(), device_run())
WRONG, KILLED = Judged(parity(FAILED), None), Judged(None, killed_run(HOSTILE))
RESULTS = [HERE, ON_PHONE, WRONG, KILLED]


# ---- verdicts


def test_a_result_passes_if_all_that_was_judged_did() -> None:
    assert [result.passed for result in RESULTS] == [True, True, False, False]
    assert not Judged(parity(FAILED), device_run()).passed
    assert not Judged(parity(), killed_run()).passed
    with pytest.raises(ValueError, match="nothing was judged"):
        Judged(None, None)


# ---- JUnit


def test_junit_has_a_suite_a_result_and_a_case_a_check(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    write_junit(RESULTS, file)
    xml = JUnitXml.fromfile(str(file))
    suites = list(xml)
    assert [s.name for s in suites] == [
        "executorch",
        "executorch on A phone",
        "executorch",
        "executorch on A phone",
    ]
    assert [(s.tests, s.failures) for s in suites] == [(4, 0), (5, 0), (5, 1), (1, 1)]
    assert (xml.tests, xml.failures, xml.errors, xml.time) == (15, 2, 0, 4.0)
    fits = next(iter(suites[1]))
    assert (fits.name, fits.classname, fits.time, fits.is_passed) == (
        "fits",
        "executorch on A phone",
        2.0,
        True,
    )
    assert list(suites[0])[1].name == "logits 7 + 3 tokens, prefill"
    properties = {p.name: p.value for p in suites[1].properties()}
    assert properties == {
        "peak_dirty_bytes": "380000000",
        "limit_dirty_bytes": "1000000000",
        "mechanism": "cgroup v9 memory",
    }


def test_junit_failures_have_figures_and_are_xml_whatever_the_text(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    write_junit([Judged(parity(replace(FAILED, what="\x00\ud800")), None), KILLED], file)
    tree = ET.parse(file)
    wrong, killed = (failure.attrib["message"] for failure in tree.iter("failure"))
    assert wrong.startswith(
        "KL 1.0e+00 median, 2.0e+00 worst; SQNR 3.0 dB median, -inf dB worst; top-1 1/4; <script>"
    )
    assert "\N{REPLACEMENT CHARACTER}" in wrong
    assert killed.startswith("killed in phase 'decode': <script>")
    cases = [case for suite in JUnitXml.fromfile(str(file)) for case in suite]
    assert all(isinstance(entry, Failure) for case in cases for entry in case.result)


# ---- Markdown


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells; every row has as many as its head."""
    found = [
        [cells(line) for line in part.splitlines()]
        for part in re.findall(r"(?:^\|.*\n)+", text, re.M)
    ]
    assert all(len({len(line) for line in table}) == 1 for table in found)
    return found


@pytest.fixture
def markdown(tmp_path: Path) -> str:
    write_markdown(RESULTS, BUNDLE, tmp_path / "report.md")
    return (tmp_path / "report.md").read_text(encoding="utf-8")


def test_markdown_begins_with_the_verdict(markdown: str, tmp_path: Path) -> None:
    assert markdown.startswith("**FAIL**: 2 of 4 passed; not: executorch; executorch on A phone\n")
    write_markdown([HERE], BUNDLE, tmp_path / "good.md")
    good = (tmp_path / "good.md").read_text(encoding="utf-8")
    assert good.startswith("**PASS**: 1 of 1 passed\n")
    assert "### Devices" not in good
    assert "never on a phone" in good
    write_markdown([], BUNDLE, tmp_path / "none.md")
    assert (
        (tmp_path / "none.md").read_text(encoding="utf-8").startswith("**FAIL**: 0 of 0 passed\n")
    )


def test_markdown_has_the_worst_of_each_verdict(markdown: str) -> None:
    head, _, *rows = tables(markdown)[0]
    assert head[:2] == ["package", "declares"]
    assert head[2:] == ["levels", "logits", "greedy"]
    assert [r[0] for r in rows] == ["executorch", "executorch on A phone", "executorch"]
    assert rows[0][1:] == [
        "int16",
        "pass",
        "pass, KL 2.0e-09, 61.5 dB, top-1 8/8",
        "pass, tokens 3/4",
    ]
    assert rows[2][3] == "FAIL, KL 2.0e+00, -inf dB, top-1 9/12"


def test_devices_with_the_same_figures_are_one_row(tmp_path: Path) -> None:
    results = [
        Judged(parity(), device_run(device_plan(profile=replace(PHONE, title=title))))
        for title in ("One", "Two")
    ]
    write_markdown(results, Bundle(tmp_path, small_manifest()), tmp_path / "report.md")
    checks, devices = tables((tmp_path / "report.md").read_text())
    assert [row[0] for row in checks[2:]] == ["executorch on 2 devices"]
    assert [row[0] for row in devices[2:]] == ["One", "Two"]


def test_markdown_has_what_devices_measured(markdown: str) -> None:
    head, _, fits, killed = tables(markdown)[1]
    assert dict(zip(head, fits, strict=True)) == {
        "device": "A phone",
        "package": "executorch",
        "residency": "stream",
        "limit MB": "1,000",
        "predicted dirty MB": "400",
        "measured dirty MB": "380",
        "clean MB": "250",
        "mechanism": "cgroup v9 memory",
        "verdict": "fits",
    }
    assert killed[-1] == "killed in phase decode"
    assert "measured there, under an enforced limit" in markdown


def test_markdown_names_model_tools_and_gates(markdown: str) -> None:
    assert "- model: small, 32 parameters, context 16\n" in markdown
    assert "- quantization: scheme int8\n" in markdown
    assert "with tiny-qmoe 0\n" in markdown
    gate = TOLERANCES["int16", "float16"]
    median = rf"KL \<= {gate.median_kl:g} and SQNR \>= {gate.median_sqnr_db:g} dB"
    worst = rf"KL \<= {gate.worst_kl:g} and SQNR \>= {gate.worst_sqnr_db:g} dB"
    line = f"- int16 activations, float16 KV cache: median {median}, worst {worst}\n"
    assert line in markdown


def test_markdown_means_nothing_by_hostile_texts(markdown: str) -> None:
    said = [line for line in markdown.splitlines() if "alert" in line]
    assert len(said) == 2  # a line each, though the text has two
    assert all(r"\<script\>alert(1)\</script\> \| a \[link\](x) " in line for line in said)
    assert all(r"and \`more\`" in line for line in said)
    assert not re.search("[\x00-\x09\x0b-\x1f]", markdown)


# ---- HTML


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def html(tmp_path: Path) -> str:
    write_html(RESULTS, BUNDLE, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_html_has_the_verdict_the_tables_and_a_figure_of_each_run(html: str) -> None:
    page = Page(html)
    assert "FAIL: 2 of 4 passed" in page.text
    assert "pass, KL 2.0e-09, 61.5 dB, top-1 8/8" in page.text
    assert "killed in phase decode" in page.text
    images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 2
    for image in images:
        png = base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True)
        assert matplotlib.image.imread(io.BytesIO(png), format="png").std() > 0.05


def test_html_is_safe_and_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert page.text.count("<script>alert(1)</script>") == 2
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a"})
    addresses = [
        a for _, attrs in page.tags for name, a in attrs.items() if name in ("src", "href")
    ]
    assert all(address and address.startswith("data:") for address in addresses)
    assert "url(" not in html
    assert "://" not in html
    assert not re.search("[\x00-\x09\x0b-\x1f]", html)


def test_html_is_made_for_phones_and_the_dark(html: str) -> None:
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Page(
        html
    ).tags
    assert "prefers-color-scheme: dark" in html


# ---- on disk


@contextlib.contextmanager
def disk_full_after_100_bytes() -> Iterator[None]:
    """Not for longer than a call: what pytest itself writes may go to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("of yesterday")
    with disk_full_after_100_bytes(), pytest.raises(OSError, match="too large") as caught:
        WRITERS[kind](file)
    assert caught.value.errno == errno.EFBIG
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("report", "of yesterday")]


@pytest.mark.parametrize("kind", WRITERS)
def test_where_no_file_can_be_the_error_is_raised_as_it_is(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WRITERS[kind](tmp_path / "no" / "report")
    with pytest.raises(IsADirectoryError):
        WRITERS[kind](tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_written_through_and_stays_one(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    WRITERS["markdown"](link)
    assert link.is_symlink()
    assert file.read_text(encoding="utf-8").startswith("**FAIL**")


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As any device: a pipe of the test's own, so that only that is lost if this fails."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        WRITERS["markdown"](pipe)
        assert os.read(reader, 1 << 16).startswith(b"**FAIL**")
    finally:
        os.close(reader)
    assert pipe.is_fifo()
