"""Sweeps: plans, cells that are finished or not, kills, workers, jobs, results and reports.

Most run a stand-in for our commands, which writes answers at once; one runs the commands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import tinyqmoe as library
from exporter.bundle import Bundle
from runtime_ref.reports import sweep_reports
from runtime_ref.reports.sweep_plot import AXES, front
from runtime_ref.sweep_table import Rule, SweepRow, SweepTable
from tests.support.bundles import small_manifest
from tests.support.command_line import one_error, strict_json, tinyqmoe
from tests.support.reports import HOSTILE, row, shown
from tinyqmoe import own_commands, sweep_tasks
from tinyqmoe.own_commands import Ended, Processes, Room, side_by_side
from tinyqmoe.sweep_cells import Cell
from tinyqmoe.sweep_folder import CELL, SweepFolder
from tinyqmoe.sweep_progress import SweepProgress
from tinyqmoe.sweep_tasks import CellTask, Made

STAND_IN = """#!/bin/sh
for word in "$@"; do
  [ "$last" = --json ] && result=$word
  [ "$last" = --bits-per-weight ] && bits=$word
  last=$word
done
echo "begin $1 $$ $result" >> "$SWEEP_LOG"
[ "$1" = export ] && mkdir -p "$3" && echo "$bits" > "$3/bits"
sleep "$SWEEP_SECONDS"
case "$*" in *"$SWEEP_FAILS"*) echo "error: no luck today" >&2; exit 3;; esac
cp "$SWEEP_ANSWERS/$1.json" "$result"
echo "end $1 $$ $result" >> "$SWEEP_LOG"
"""
PLAN = """
[sweep]
devices = ["iphone-13", "pixel-6a", "iphone-15", "galaxy-s24"]
tasks = ["parity"]
context = 48
[[model]]
name = "small"
model = "{model}"
[[scheme]]
name = "int8"
bits-per-weight = [6, 5, 4, 3]
[[rule]]
name = "phone"
device = "pixel-6a"
max-kl = 0.25
"""  # 4 bundles with 1 + 4 + 1 cells each: 24
DEVICES = ("iphone-13", "pixel-6a", "iphone-15", "galaxy-s24")


@dataclass(frozen=True)
class World:
    """A plan, the folder of its sweep, and what the stand-in was called for."""

    plan: Path
    out: Path
    log: Path

    def calls(self, what: str) -> list[list[str]]:
        """Kind, process and result of every call that began or ended."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(f"{what} ")]

    def sweep(self, **options: Any) -> SweepTable:
        return library.sweep(self.plan, self.out, **options)

    def finished(self) -> dict[str, float]:
        """Finished cells with the time at which each was published."""
        return {p.name: p.stat().st_ctime for p in (self.out / "cells").glob("[!.]*")}


def loss_of(bits: float) -> float:
    return round(1 / bits, 4)


@pytest.fixture
def world(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tool, answers = tmp_path / "tinyqmoe", tmp_path / "answers"
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    answers.mkdir()
    fits = [
        {"device": d, "format": "pte", "fits": True, "prediction": {"dirty_bytes": 2_000_000}}
        for d in DEVICES
    ]
    (answers / "export.json").write_text("{}")
    (answers / "fit.json").write_text(json.dumps({"packages": fits}))
    (answers / "parity.json").write_text('{"passed": true}')
    monkeypatch.setattr(own_commands, "TINYQMOE", (str(tool),))
    monkeypatch.setattr(sweep_tasks, "_facts", facts)
    for name, value in (("ANSWERS", answers), ("LOG", tmp_path / "log"), ("SECONDS", 0)):
        monkeypatch.setenv(f"SWEEP_{name}", str(value))
    monkeypatch.setenv("SWEEP_FAILS", "nothing fails")
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(model=checkpoint))
    return World(plan, tmp_path / "out", tmp_path / "log")


def facts(bundle: Path) -> dict[str, Any]:
    """What a real bundle would say: fewer bits are smaller and lose more."""
    bits = float((bundle / "bits").read_text())
    loss = replace(small_manifest().quantization_loss, kl_mean=loss_of(bits))
    return {"loss": vars(loss), "packages": {"pte": {"n_bytes": int(1e6 * bits), "dirty_bytes": 1}}}


# ---- cells


def test_the_table_is_the_same_from_any_number_of_workers(world: World) -> None:
    texts = set()
    for workers in (1, 2, 4):
        out = world.out / str(workers)
        texts.add(json.dumps(library.sweep(world.plan, out, workers=workers).to_dict()))
        assert json.dumps(library.read_sweep(out).to_dict()) in texts
        assert len(list((out / "cells").iterdir())) == 24
    (text,) = texts
    rows = json.loads(text)["rows"]
    assert [(r["bits"], r["device"]) for r in rows] == [
        (b, d) for b in (6, 5, 4, 3) for d in DEVICES
    ]
    assert rows[4]["kl"] == loss_of(5)
    assert rows[4]["n_bytes"] == 5_000_000
    assert rows[4]["dirty_bytes"] == 2_000_000
    assert (rows[4]["fits"], rows[4]["parity"], rows[4]["message"]) == (True, True, "")
    assert json.loads(text)["rules"][0]["row"] == 9, "4 bits are the least with a KL of 0.25"


def test_what_is_finished_is_not_made_again(world: World) -> None:
    world.sweep()
    before = world.finished()
    world.sweep()
    assert (world.finished(), len(world.calls("begin"))) == (before, 24)
    world.plan.write_text(world.plan.read_text().replace("[6, 5, 4, 3]", "[6, 5, 4, 3, 2]"))
    table = world.sweep()
    assert len(world.calls("begin")) == 24 + 6
    assert {name: world.finished()[name] for name in before} == before
    assert [r.bits for r in table.rows[-4:]] == [2.0] * 4


def test_an_address_follows_what_the_result_depends_on(world: World, tmp_path: Path) -> None:
    def addresses() -> list[str]:
        matrix = library.emit_sweep("github-matrix", world.plan, world.out)
        return [job["only"] for job in json.loads(matrix)["include"]]

    before, text = addresses(), world.plan.read_text()
    assert len({*before}) == 4
    world.plan.write_text(text.replace('name = "small"', 'name = "other"'))
    assert addresses() == before, "a name is no content"
    world.plan.write_text(text.replace("context = 48", "context = 40"))
    assert not {*addresses()} & {*before}
    model = tmp_path / "model"
    source = Path(re.search(r'model = "(.*)"', text)[1])  # type: ignore[index]
    subprocess.run(["cp", "-r", str(source), str(model)], check=True)
    world.plan.write_text(text.replace(str(source), "model"))
    assert addresses() == before, "the same files elsewhere"
    (model / "README.md").write_text("changed")
    assert not {*addresses()} & {*before}


def test_a_failure_is_a_row_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_FAILS", "--bits-per-weight 4")
    events: list[library.CellEvent] = []
    table = world.sweep(told=events.append)
    (failed,) = table.failed
    assert (failed.bits, failed.message) == (4.0, "export: no luck today")
    assert len(table.rows) == 3 * 4 + 1
    assert max(event.done for event in events) == events[-1].total == 24
    assert [event.message for event in events if event.message] == ["export: no luck today"]
    assert {e.label for e in events if e.ended} == {e.label for e in events if not e.ended}
    assert (events[0].left_seconds, events[-1].left_seconds) == (None, 0)
    monkeypatch.setenv("SWEEP_FAILS", "--device iphone-15")
    (*_, failed) = world.sweep().failed
    assert (failed.device, failed.message) == ("iphone-15", "fit: fit: no luck today")
    monkeypatch.setenv("SWEEP_FAILS", "nothing")
    assert world.sweep().failed == []
    assert list((world.out / "failed").iterdir()) == []


def test_a_command_that_is_killed_is_a_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_SECONDS", "0.3")
    killed: list[str] = []

    def kill(event: library.CellEvent) -> None:
        """Kills what runs when the first cell has ended."""
        if not event.ended:
            return
        running = {tuple(c) for c in world.calls("begin")} - {tuple(c) for c in world.calls("end")}
        for _, process, result in running if not killed else ():
            os.kill(int(process), signal.SIGKILL)
            killed.append(result)

    table = world.sweep(workers=4, told=kill)
    assert killed
    assert all("ended by signal 9" in row.message for row in table.failed)
    assert table.failed
    before = world.finished()
    assert world.sweep().failed == []
    assert {name: world.finished()[name] for name in before} == before


def test_a_sweep_that_is_killed_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGKILL: its commands outlive it, and are waited for by the next sweep."""
    monkeypatch.setenv("SWEEP_SECONDS", "0.1")
    driver = os.fork()
    if driver == 0:
        world.sweep(workers=2)
        os._exit(0)
    until = time.monotonic() + 300
    while not (world.out / "cells").is_dir() or len(world.finished()) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    before = world.finished()
    assert 3 <= len(before) < 24
    table = world.sweep(workers=2)
    assert table.failed == []
    assert len(world.finished()) == 24
    assert {name: world.finished()[name] for name in before} == before
    begun = Counter(result for _, _, result in world.calls("begin"))
    again = [result for result, n in begun.items() if n > 1]
    assert len(again) <= 2, "only what ran when it was killed"


def test_an_export_that_was_killed_after_its_bundle_begins_anew(world: World) -> None:
    job = json.loads(library.emit_sweep("github-matrix", world.plan, world.out))["include"][0]
    half = SweepFolder(world.out).unfinished(job["only"]) / "bundle"
    half.mkdir(parents=True)
    (half / "left").touch()
    world.sweep(only=[job["only"]])
    assert not (SweepFolder(world.out).cell(job["only"]) / "bundle" / "left").exists()


def test_the_rest_is_estimated_by_the_kinds_of_cells(tmp_path: Path) -> None:
    events: list[library.CellEvent] = []
    kinds = {"a": "export", "b": "fit", "c": "fit", "d": "parity"}
    progress = SweepProgress(kinds, {"export": [90.0, 110.0]}, events.append)
    progress._begun -= 10  # one after another
    for address, seconds in (("b", 2.0), ("c", 4.0), ("c", 0.0)):
        task = CellTask(tmp_path, Cell("fit", address, ()), "a", address, 0, {})
        progress.begin(task)
        progress.end(task, Made("", seconds), [])
    left = [event.left_seconds for event in events if event.ended]
    assert left[0] == pytest.approx(100 + 2 + (90 + 110 + 2) / 3), "a fit, and a kind not known"
    assert left[1] == left[2] == pytest.approx(100 + (90 + 110 + 2 + 4) / 4)
    assert [event.done for event in events] == [0, 1, 1, 2, 2, 2], "each cell counts once"


# ---- jobs of others


def test_a_part_is_made_elsewhere_and_merged(world: World) -> None:
    jobs = json.loads(library.emit_sweep("github-matrix", world.plan, world.out))["include"]
    assert jobs[2]["name"] == "small int8 at 4 b"
    for i, job in enumerate(jobs):
        part = library.sweep(world.plan, world.out / f"{i}", only=[job["only"]])
        assert sum(not r.message for r in part.rows) == 4
        assert not (world.out / f"{i}" / "results.sqlite").exists()
    merged = library.merge_sweep(world.out / "0", [world.out / f"{i}" for i in (1, 2, 3)])
    assert merged.failed == []
    assert merged.to_dict() == library.sweep(world.plan, world.out / "whole").to_dict()


def test_merge_takes_finished_cells_only(world: World) -> None:
    world.sweep()
    (one, *_) = (world.out / "cells").glob("fit-*")
    one.rename(one.with_name(f".{one.name}"))
    result = tinyqmoe("sweep", world.plan, world.out, "--merge", "--json", "-")
    assert result.exit_code == 1
    (failed,) = [r for r in strict_json(result.stdout)["rows"] if r["message"]]
    assert failed["message"] == "fit: not finished"
    assert len(world.calls("begin")) == 24


def test_the_script_of_slurm_runs(world: World, tmp_path: Path) -> None:
    script = tinyqmoe("sweep", world.plan, world.out, "--emit", "slurm").stdout
    assert "#SBATCH --array=0-3\n" in script
    assert int(re.search(r"--mem=(\d+)M", script)[1]) > 100  # type: ignore[index]
    (tmp_path / "job.sh").write_text(script)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2"}
    (tmp_path / "tinyqmoe").write_text('#!/bin/sh\necho "$@"\n')
    done = subprocess.run(
        ["sh", str(tmp_path / "job.sh")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    jobs = json.loads(library.emit_sweep("github-matrix", world.plan, world.out))["include"]
    words = ["sweep", str(world.plan), str(world.out), "--workers", "1", "--only", jobs[2]["only"]]
    assert shlex.split(done.stdout) == words


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sweep", "it is not TOML"),
        ("", "[[model]] is missing"),
        ("model = 1", "model: expected [[model]], a list of tables"),
        ("[more]", "more is unknown"),
        ("[sweep]\nfast = true", "sweep: fast is unknown"),
        ("[sweep]\ncontext = true", "sweep: context: expected an integer, got True"),
        ("[sweep]\ndevices = []", "sweep: devices: expected a list of texts, got []"),
        ('[sweep]\ntasks = ["chess"]', "sweep: tasks: chess: expected of parity, speed, arc_easy"),
        ('[sweep]\ntasks = ["arc_easy"]', "sweep: data is missing"),
        ('[sweep]\ntasks = ["speed"]', "sweep: the task speed needs devices"),
        ("[[model]]", "model 1: name is missing"),
        ('[[model]]\nname = "a"', "model 1: model is missing"),
        ('[[scheme]]\nname = "a"\n[[scheme]]\nname = "a"', "scheme 'a' is there twice"),
        ('[[scheme]]\nbits-per-weight = ["4"]', "expected a list of numbers, got ['4']"),
        ('[[rule]]\nname = "r"\nmax-kl = "small"', "rule 1: max-kl: expected a number"),
    ],
)
def test_a_plan_that_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    assert said in one_error(tinyqmoe("sweep", plan, tmp_path / "out"), 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said", "code"),
    [
        (('"iphone-13"', '"iphone-31"'), "there is no device 'iphone-31'", 2),
        (("[6, 5, 4, 3]", "[6, 99]"), "99", 2),
        (("context = 48", "context = 1000000"), "--context must be from", 2),
        (('device = "pixel-6a"', 'smallest = "price"'), "smallest is 'price'", 2),
    ],
)
def test_what_cannot_be_made_is_told_before_any_work(
    world: World, change: tuple[str, str], said: str, code: int
) -> None:
    world.plan.write_text(world.plan.read_text().replace(*change))
    assert said in one_error(tinyqmoe("sweep", world.plan, world.out), code)
    assert world.calls("begin") == []


def test_options_and_folders_that_are_wrong(world: World, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert "there is no file" in one_error(tinyqmoe("sweep", none, world.out), 2)
    said = one_error(tinyqmoe("sweep", world.plan, world.out, "--only", "x"), 2)
    assert "the plan has no bundle x" in said
    said = one_error(tinyqmoe("sweep", world.plan, world.out, "--from", none), 2)
    assert "--from is of --merge" in said
    assert "there is no" in one_error(tinyqmoe("sweep", world.plan, none, "--merge"), 3)
    assert "there is no" in one_error(tinyqmoe("report", none), 3)
    world.plan.with_suffix(".db").write_text("no data base, but long enough for one" * 9)
    said = one_error(tinyqmoe("report", world.plan.with_suffix(".db")), 3)
    assert "has no results of a sweep" in said
    world.sweep()
    (one, *_) = (world.out / "cells").glob("fit-*")
    (one / CELL).write_text("{")
    said = one_error(tinyqmoe("sweep", world.plan, world.out, "--merge"), 3)
    assert "cell.json is not JSON" in said


# ---- the table and its reports

ROWS = [
    SweepRow("m", "int8", 6.0, "pte", "a", 6_000_000, 0.01, 0.99, 1.0, 50, True, 9.0, True),
    SweepRow("m", "int8", 4.0, "pte", "a", 4_000_000, 0.05, 0.95, 1.1, 40, True, 10.0, True),
    SweepRow("m", "int8", 3.0, "pte", "a", 4_000_000, 0.06, 0.9, 1.2, 45, True, 9.0, False),
    SweepRow("m", "int8", 3.0, "pte", "b", 4_000_000, 0.06, 0.9, 1.2, 45, False, None, False),
    SweepRow(HOSTILE, "int8", None, message=HOSTILE),
]


def test_the_best_are_those_that_no_other_beats() -> None:
    assert SweepTable(ROWS, []).best == [True, True, False, True, False]
    assert SweepTable([ROWS[0], ROWS[0]], []).best == [True, True], "equal ones both are"


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        (Rule("r"), 1),
        (Rule("r", smallest="kl"), 0),
        (Rule("r", device="b"), None),
        (Rule("r", device="a", max_kl=0.02), 0),
        (Rule("r", min_top1=0.96), 0),
        (Rule("r", min_speed=9.5), 1),
        (Rule("r", max_bytes=3e6), None),
        (Rule("r", max_dirty=42), 1),
        (Rule("r", format="mlprogram"), None),
        (Rule("r", smallest="memory", max_kl=0.07), 1),
    ],
)
def test_a_rule_chooses(rule: Rule, place: int | None) -> None:
    chosen = SweepTable(ROWS, [rule]).chosen(rule)
    assert chosen == (None if place is None else ROWS[place])


def test_the_front_joins_what_no_other_beats() -> None:
    sizes, _, speeds = AXES
    assert front(ROWS, sizes) == [(4.0, 0.05), (6.0, 0.01)]
    assert front(ROWS[:3], speeds) == [(10.0, 0.05), (9.0, 0.01)]
    assert front(ROWS[4:], sizes) == []


def test_reports(tmp_path: Path) -> None:
    table = SweepTable(ROWS, [Rule("for a", device="a", max_kl=0.02), Rule("for b", device="b")])
    assert row(shown(sweep_reports.rows_table(table)), "*")[1] == "m int8 at 6 b"
    markdown, html = tmp_path / "s.md", tmp_path / "s.html"
    sweep_reports.write_markdown(table, markdown)
    sweep_reports.write_html(table, html)
    text = markdown.read_text(encoding="utf-8")
    assert "smallest bytes that fits a with KL" in text.replace("\\", "")
    assert "for b" in text
    assert "none" in text
    for written in (text, html.read_text(encoding="utf-8")):
        assert "<script>" not in written
        assert "does not fit" in written
    page = html.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!#)", page)
    (plot,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert "projected tokens/s" in "".join(ET.fromstring(plot).itertext())
    sweep_reports.write_html(SweepTable(ROWS[4:], []), html)
    assert "<svg" not in html.read_text(encoding="utf-8"), "nothing to draw"


def test_a_column_with_nothing_in_it_is_left_out() -> None:
    table = shown(sweep_reports.rows_table(SweepTable(ROWS[3:4], [])))
    assert not {"tasks", "projected"} & {*table.split()}
    judged = SweepTable([replace(ROWS[0], tasks={"arc_easy": 0.5})], [])
    table = shown(sweep_reports.rows_table(judged))
    assert {"tasks", "projected", "arc_easy"} <= {*table.split()}


def test_report_draws_what_a_sweep_has_written(world: World, tmp_path: Path) -> None:
    world.sweep()
    files = [tmp_path / "s.md", tmp_path / "s.html"]
    result = tinyqmoe("report", world.out, "--markdown", files[0], "--html", files[1])
    assert result.exit_code == 0
    assert "phone (smallest bytes that fits pixel-6a" in result.stdout
    assert all(file.stat().st_size for file in files)


# ---- commands side by side


def test_room_is_shared_and_never_more_than_there_is() -> None:
    room, held, most = Room(100), [0], [0]

    def job(n_bytes: int) -> None:
        with room.take(n_bytes):
            held[0] += min(n_bytes, 100)
            most[0] = max(most[0], held[0])
            time.sleep(0.01)
            held[0] -= min(n_bytes, 100)

    jobs = [lambda n=n: job(n) for n in (60, 60, 30, 500, 40)]
    ended: list[int] = []
    side_by_side(jobs, Processes(), 5, lambda place, none: ended.append(place))
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert 60 <= most[0] <= 100


def test_an_error_ends_what_runs_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SWEEP_SECONDS", "600")
    processes = Processes()

    def fail() -> Ended:
        while not world.calls("begin"):
            time.sleep(0.01)
        raise ValueError("a bug")

    jobs = [lambda: processes.run(["fit", "--json", str(tmp_path / "r")]), fail]
    with pytest.raises(ValueError, match="a bug"):
        side_by_side(jobs, processes, 2, lambda place, ended: None)
    with pytest.raises(InterruptedError):
        processes.run(["fit"])


# ---- the commands themselves


@pytest.fixture(scope="module")
def swept(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepTable]:
    """A sweep of one bundle by the real commands."""
    folder = tmp_path_factory.mktemp("sweep")
    plan = folder / "plan.toml"
    text = PLAN.format(model=checkpoint).replace("[6, 5, 4, 3]", "8").replace("0.25", "10")
    plan.write_text(re.sub("devices = .*", 'devices = ["pixel-6a"]', text))
    return folder, library.sweep(plan, folder / "out")


def test_the_commands_give_the_facts_of_the_bundle(swept: tuple[Path, SweepTable]) -> None:
    folder, table = swept
    (made,) = table.rows
    (path,) = (folder / "out" / "cells").glob("export-*/bundle")
    bundle = Bundle.open(path)
    (fit,) = library.fit(bundle, devices="pixel-6a")
    loss = bundle.manifest.quantization_loss
    assert made.message == ""
    assert (made.n_bytes, made.kl) == (bundle.shipped_bytes(bundle.artifact("pte")), loss.kl_mean)
    assert (made.dirty_bytes, made.fits) == (fit.plan.prediction.dirty_bytes, True)
    assert made.parity
    assert table.chosen(table.rules[0]) == made
