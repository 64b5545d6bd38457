"""The command check: each gate passing and failing, the file of settings, the baseline, reports."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.bundle import Bundle
from runtime_ref.gates import (
    Facts,
    Gate,
    Limits,
    PackageFacts,
    Tolerance,
    baseline_gates,
    changes,
    limit_gates,
)
from runtime_ref.reports import gate_reports
from tests.support import bundles as shared
from tests.support.command_line import one_error, strict_json, tinyqmoe
from tests.support.reports import (
    FAILED,
    HOSTILE,
    PHONE,
    device_plan,
    device_run,
    figure,
    parity,
)
from tinyqmoe import checking, speed_gates

LOSS = shared.small_manifest().quantization_loss  # KL 0.1, best token 0.9, perplexity 10 to 11
FACTS = Facts("small", "today", LOSS, "ab" * 32, {"pte": PackageFacts(1_000_000, 2_000_000)})

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="NOT TESTED: memory limits are enforced by the Linux kernel only",
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity that passes at once: the gates of these tests are the others."""
    monkeypatch.setattr(checking, "parity_side_by_side", lambda *_: [parity()])


def document(bundle: Bundle, *options: str | Path) -> Any:
    return strict_json(tinyqmoe("check", bundle.path, *options, "--json", "-").stdout)


def failed(bundle: Bundle, *options: str | Path) -> list[str]:
    """Names of the gates that fail, which the exit code agrees with."""
    result = tinyqmoe("check", bundle.path, *options, "--json", "-")
    gates = strict_json(result.stdout)["gates"]
    names = [gate["name"] for gate in gates if not gate["passed"]]
    assert result.exit_code == bool(names), result.output
    return names


# ---- gates


def test_parity_runs_and_is_timed(bundle: Bundle) -> None:
    gates = document(bundle)["gates"]
    assert [gate["name"] for gate in gates] == ["parity of executorch", "parity of native"]
    assert all(gate["passed"] and gate["seconds"] > 0 for gate in gates)


def test_parity_that_fails_names_its_checks(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "parity_side_by_side", lambda *_: [parity(FAILED)])
    result = tinyqmoe("check", bundle.path, "--json", "-")
    (gate,) = strict_json(result.stdout)["gates"]
    assert (result.exit_code, gate["passed"]) == (1, False)
    assert gate["measured"].endswith(f"not logits {FAILED.what}")


@pytest.mark.usefixtures("quick")
def test_each_limit_passes_at_the_fact_and_fails_beyond_it(bundle: Bundle) -> None:
    facts = document(bundle)["facts"]
    loss, package = facts["loss"], facts["packages"]["pte"]
    assert package["n_bytes"] == bundle.shipped_bytes(bundle.artifact("pte"))
    ratio = loss["perplexity_quantized"] / loss["perplexity_original"]
    limits = (
        ("--max-bytes", package["n_bytes"], -1, "bytes of pte"),
        ("--max-dirty", package["dirty_bytes"], -1, "memory of pte"),
        ("--max-kl", loss["kl_mean"], -1e-6, "KL"),
        ("--min-top1", loss["top1_agreement"], 1e-6, "best token"),
        ("--max-perplexity-ratio", ratio, -1e-6, "perplexity ratio"),
    )
    at = [text for option, value, _, _ in limits for text in (option, str(value))]
    beyond = [text for option, value, by, _ in limits for text in (option, str(value + by))]
    assert failed(bundle, *at) == []
    assert failed(bundle, *beyond) == [name for *_, name in limits]


@pytest.mark.usefixtures("quick")
def test_fit_is_a_gate_for_each_device(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(bundle, "--device", "iphone-13", "--device", "pixel-6a") == []
    figure = replace(PHONE.ram_gb, value=0.01)
    small = replace(PHONE, limit_mb=figure, limit_with_entitlement_mb=None)
    monkeypatch.setattr(checking, "find_devices", lambda _: [small])
    assert failed(bundle, "--device", "phone") == ["fit of pte on phone"]


def test_shares_say_how_much_of_a_limit_is_used() -> None:
    limits = Limits(4_000_000, 1_000_000, 0.2, 0.45, 2.0)
    shares = {gate.name: gate.share for gate in limit_gates(FACTS, limits)}
    expected = {"bytes of pte": 0.25, "memory of pte": 2.0, "KL": 0.5, "best token": 0.5}
    assert shares == pytest.approx(expected | {"perplexity ratio": 0.55})
    (kl,) = limit_gates(FACTS, Limits(max_kl=0.0))
    assert (kl.passed, kl.share) == (False, None)


# ---- projected speed


def project(cores: float | None, tokens: int, least: float) -> Gate:
    """The gate of a run of `tokens` tokens in a tenth of a second on a phone with 20 GB/s."""
    profile = replace(PHONE, performance_cores=None if cores is None else figure(cores))
    result = {"prompt_tokens": [0], "tokens": [1] * tokens, "decode_ms": 100.0}
    run = device_run(device_plan(profile=profile), result=result)
    described: Any = SimpleNamespace(manifest=shared.small_manifest())
    return speed_gates._speed_gate(described, run, least)


def test_a_projected_speed_is_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    speed = 10 / 0.1 * 4 / 2  # cores of the phone over threads here: compute decides
    passed = project(4, 11, speed * 0.99)
    assert (passed.passed, passed.measured) == (True, "200.0 to 200.0 tokens/s projected")
    assert passed.share == pytest.approx(0.99)
    assert not project(4, 11, speed * 1.01).passed


def test_a_speed_that_is_not_projected_is_no_success() -> None:
    unknown = project(None, 11, 1)
    assert not unknown.passed
    assert "performance_cores of the device is not known" in unknown.measured
    assert not project(4, 1, 1).passed


@pytest.mark.usefixtures("quick")
def test_a_speed_needs_a_device_and_a_real_runtime(both: Bundle) -> None:
    asked = ("check", both.path, "--min-tokens-per-second-projected", "1")
    assert "it needs a device" in one_error(tinyqmoe(*asked), 2)
    interpreted = (*asked, "--device", "iphone-13", "--backend", "mlprogram")
    assert "no speed can be projected for mlprogram" in one_error(tinyqmoe(*interpreted), 2)


@pytest.mark.usefixtures("quick")
@linux
def test_a_speed_is_measured_under_the_limit(bundle: Bundle) -> None:
    asked = ("--device", "iphone-13", "--device", "iphone-15", "--min-tokens-per-second-projected")
    assert failed(bundle, *asked, "0.001") == []
    gates = document(bundle, *asked, "1e9")["gates"]
    assert [gate["name"] for gate in gates if not gate["passed"]] == [
        "speed of pte on iphone-13",
        "speed of pte on iphone-15",
    ]


@pytest.mark.usefixtures("quick")
def test_wrong_options_are_told_together(bundle: Bundle) -> None:
    said = one_error(tinyqmoe("check", bundle.path, "--max-kl", "nan", "--min-top1", "2"), 2)
    assert "max-kl: expected at least 0" in said
    assert "min-top1: expected 0 to 1" in said
    assert "iphone-1" in one_error(tinyqmoe("check", bundle.path, "--device", "iphone-31"), 2)


# ---- the file


@pytest.mark.usefixtures("quick")
def test_the_file_is_found_and_options_win(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = '[check]\nmax-bytes = "1kB"\nmax-kl = 1000\ndevice = ["iphone-13"]\n'
    (tmp_path / "tinyqmoe.toml").write_text(text)
    assert failed(bundle) == ["bytes of pte"]
    assert failed(bundle, "--max-bytes", "1GB") == []
    other = tmp_path / "other.toml"
    other.write_text("[check]\nmax-dirty = 1\n")
    assert failed(bundle, "--config", other) == ["memory of pte"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[check", "it is not TOML"),
        ("", "the table [check] is missing"),
        ("[check]\n[sweep]", "sweep is unknown"),
        ("[check]\nmax_kl = 1\nfast = true", "check.fast is unknown"),
        ("[check]\nmax_kl = 1", "check.max_kl is unknown"),
        ('[check]\nmax-kl = "a"', "check.max-kl: expected a number, got 'a'"),
        ("[check]\nmin-top1 = true", "check.min-top1: expected a number, got True"),
        ("[check]\nmin-top1 = 1.5", "check.min-top1: expected 0 to 1, got 1.5"),
        ("[check]\nmax-kl = nan", "check.max-kl: expected at least 0, got nan"),
        ("[check]\nmax-bytes = 1.5", "check.max-bytes: expected a size, got 1.5"),
        ('[check]\nmax-bytes = "much"', "check.max-bytes: got 'much', expected a size"),
        ('[check]\ndevice = "iphone-13"', "check.device: expected a list of names"),
        ("[check]\nbackend = []", "check.backend: expected a list of names, got []"),
        ("[check]\nbaseline = 1", "check.baseline: expected a path, got 1"),
    ],
)
def test_a_file_that_is_wrong_is_told(bundle: Bundle, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    assert said in one_error(tinyqmoe("check", bundle.path, "--config", file), 3)


def test_a_file_that_is_not_there_is_told(bundle: Bundle, tmp_path: Path) -> None:
    said = one_error(tinyqmoe("check", bundle.path, "--config", tmp_path / "no.toml"), 2)
    assert "there is no file" in said


# ---- the baseline


@pytest.mark.usefixtures("quick")
def test_a_bundle_and_its_report_are_the_same_baseline(bundle: Bundle, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert tinyqmoe("check", bundle.path, "--json", report).exit_code == 0
    (tmp_path / "c.toml").write_text('[check]\nbaseline = "report.json"\n')  # beside the file
    by_bundle = document(bundle, "--baseline", bundle.path)
    assert by_bundle == document(bundle, "--config", tmp_path / "c.toml")
    assert by_bundle["passed"]
    assert by_bundle["baseline"] == by_bundle["facts"]
    assert by_bundle["facts"]["bits"]
    assert "the same" in tinyqmoe("check", bundle.path, "--baseline", report).stdout


@pytest.mark.usefixtures("quick")
def test_what_got_worse_since_a_report_fails(bundle: Bundle, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    before = document(bundle)
    before["facts"]["packages"]["pte"]["n_bytes"] //= 2
    report.write_text(json.dumps(before))
    assert failed(bundle, "--baseline", report) == ["bytes of pte since the baseline"]
    assert failed(bundle, "--baseline", report, "--tolerance", "101") == []


def test_each_fact_has_a_tolerance() -> None:
    tolerance = Tolerance(percent=1.0, kl=0.001)

    def worse(n_bytes: int = 0, dirty: int = 0, kl: float = 0.0) -> list[str]:
        package = PackageFacts(1_000_000 + n_bytes, 2_000_000 + dirty)
        loss = replace(LOSS, kl_mean=LOSS.kl_mean + kl)
        now = replace(FACTS, loss=loss, packages={"pte": package})
        return [g.name for g in baseline_gates(FACTS, now, tolerance) if not g.passed]

    assert worse(n_bytes=9_999, dirty=19_999, kl=0.0009) == []
    assert worse(n_bytes=-500_000, dirty=-1, kl=-0.05) == []
    assert worse(n_bytes=10_001) == ["bytes of pte since the baseline"]
    assert worse(dirty=20_001) == ["memory of pte since the baseline"]
    assert worse(kl=0.0011) == ["KL since the baseline"]


def test_a_package_that_is_gone_fails_and_one_that_is_new_does_not() -> None:
    more = replace(FACTS, packages=FACTS.packages | {"mlprogram": PackageFacts(1, 1)})
    gone = [g for g in baseline_gates(more, FACTS, Tolerance(1, 1)) if not g.passed]
    assert [(g.name, g.measured) for g in gone] == [("mlprogram since the baseline", "is gone")]
    assert all(g.passed for g in baseline_gates(FACTS, more, Tolerance(1, 1)))


def test_changes_say_whether_the_bits_are_the_same() -> None:
    rows = {c.name: (c.before, c.now, c.difference) for c in changes(FACTS, FACTS)}
    assert rows["KL"] == ("0.1000", "0.1000", "+0.0000")
    assert rows["bytes of pte"] == ("1.00 MB", "1.00 MB", "+0.00 %")
    assert rows["bits"] == ("abababababab", "abababababab", "the same")
    other = {c.name: c.difference for c in changes(FACTS, replace(FACTS, bits="cd" * 32))}
    assert other["bits"] == "changed"


@pytest.mark.usefixtures("quick")
def test_losses_on_different_texts_are_not_compared(bundle: Bundle, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    before = document(bundle)
    before["facts"]["loss"]["text"] = "another"
    report.write_text(json.dumps(before))
    said = one_error(tinyqmoe("check", bundle.path, "--baseline", report), 3)
    assert "different texts: another" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not the report of a check"),
        ("{}", "it has no facts"),
        ('{"facts": {}}', "facts.packages or facts.bits"),
        ('{"facts": {"packages": {}, "bits": null}}', "facts.loss must have text, positions"),
        ("LOSS", "facts.loss has another type in kl_mean"),
        ("PACKAGE", "facts.packages.pte must have n_bytes, dirty_bytes"),
        ("MODEL", "facts.model or facts.created"),
        ("ORIGINAL", "facts.loss.perplexity_original must be positive"),
    ],
)
def test_a_baseline_that_is_no_report_is_told(
    bundle: Bundle, tmp_path: Path, text: str, said: str
) -> None:
    facts = FACTS.to_dict()
    edits: dict[str, Any] = {
        "LOSS": facts | {"loss": facts["loss"] | {"kl_mean": "0"}},
        "PACKAGE": facts | {"packages": {"pte": {"n_bytes": 1}}},
        "MODEL": facts | {"model": None},
        "ORIGINAL": facts | {"loss": facts["loss"] | {"perplexity_original": 0}},
    }
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"facts": edits[text]}) if text in edits else text)
    assert said in one_error(tinyqmoe("check", bundle.path, "--baseline", file), 3)


def test_a_baseline_that_is_not_there_is_told(bundle: Bundle, tmp_path: Path) -> None:
    said = one_error(tinyqmoe("check", bundle.path, "--baseline", tmp_path / "no"), 3)
    assert "is not there" in said


# ---- reports

GATES = [
    Gate("parity of x", "all", "3 of 3 checks", True, "export again", 2.5),
    Gate("bytes of pte", "at most 1 MB", HOSTILE, False, "export smaller", share=1.5),
]
JUDGED = gate_reports.JudgedGates(GATES, changes(FACTS, FACTS), FACTS, FACTS)


def test_markdown_has_the_verdict_then_what_changed(tmp_path: Path) -> None:
    file = tmp_path / "check.md"
    gate_reports.write_markdown(JUDGED, file)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("**FAIL**: 1 of 2 gates of small passed\n")
    places = [text.index(part) for part in ("To do: export smaller", "| KL |", "<details>")]
    assert places == sorted(places)
    assert "<script>" not in text
    gate_reports.write_markdown(replace(JUDGED, gates=GATES[:1], changes=[]), file)
    assert file.read_text(encoding="utf-8").startswith("**PASS**: 1 of 1 gates of small passed\n")


def test_junit_has_times_and_the_failed_gate_in_words(tmp_path: Path) -> None:
    file = tmp_path / "check.xml"
    gate_reports.write_junit(GATES, file)
    cases = list(ET.parse(file).iter("testcase"))
    assert [(c.attrib["name"], float(c.attrib["time"])) for c in cases] == [
        ("parity of x", 2.5),
        ("bytes of pte", 0.0),
    ]
    (message,) = [f.attrib["message"] for f in ET.parse(file).iter("failure")]
    assert message.startswith("bytes of pte: <script>")
    assert message.endswith("limit: at most 1 MB. To do: export smaller")


def test_html_is_one_page_with_its_plots(tmp_path: Path) -> None:
    file = tmp_path / "check.html"
    gate_reports.write_html(JUDGED, file)
    text = file.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!#)", text), "it needs no other file"
    drawn = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    shares, packages = ["".join(svg.itertext()) for svg in drawn]
    assert "150 %" in shares
    assert "parity of x" not in shares, "its limit is no number"
    assert "2.0" in packages
    assert "baseline" in packages
    gate_reports.write_html(replace(JUDGED, gates=GATES[:1], changes=[], baseline=None), file)
    assert file.read_text(encoding="utf-8").count("<svg") == 1
    (tmp_path / "again.html").write_bytes(file.read_bytes())
    gate_reports.write_html(replace(JUDGED, gates=GATES[:1], changes=[], baseline=None), file)
    assert file.read_bytes() == (tmp_path / "again.html").read_bytes()


@pytest.mark.usefixtures("quick")
def test_the_command_writes_all_reports_and_shows_the_remedy(
    bundle: Bundle, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("a.md", "a.xml", "a.json", "a.html")]
    names = ("--markdown", "--junit", "--json", "--html")
    options = [word for pair in zip(names, files, strict=True) for word in pair]
    result = tinyqmoe("check", bundle.path, "--max-bytes", "1", *options)
    assert result.exit_code == 1
    assert "--bits-per-weight" in result.stdout
    assert all(file.stat().st_size for file in files)
