"""The table of a sweep from its finished cells, and the same in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import DataError
from tinyqmoe.sweep_cells import EXPORT, FIT
from tinyqmoe.sweep_folder import RESULTS, SweepFolder
from tinyqmoe.sweep_plan import PARITY, SPEED

if TYPE_CHECKING:
    from runtime_ref.sweep_table import SweepRow, SweepTable

NOT_FINISHED = "not finished"
LOCK_SECONDS = 60.0  # that the file may be in the hands of another sweep
SCHEMA = """
DROP TABLE IF EXISTS rows; DROP TABLE IF EXISTS rules; DROP TABLE IF EXISTS cells;
CREATE TABLE rows (place INTEGER PRIMARY KEY, model TEXT, scheme TEXT, bits REAL, format TEXT,
    device TEXT, n_bytes INTEGER, kl REAL, top1 REAL, perplexity_ratio REAL, dirty_bytes INTEGER,
    fits INTEGER, speed REAL, parity INTEGER, tasks TEXT, message TEXT);
CREATE TABLE rules (place INTEGER PRIMARY KEY, rule TEXT);
CREATE TABLE cells (address TEXT PRIMARY KEY, kind TEXT, seconds REAL);
"""


def merge(out: str | Path, others: Sequence[str | Path] = ()) -> SweepTable:
    """The table of the finished cells of a sweep's folder, which is written to SQLite there.

    Nothing is run. Finished cells of `others`, the folders of the same plan on other machines, are
    taken over. Raises DataError where there is no sweep.
    """
    folder = SweepFolder(Path(out))
    plan = folder.plan()
    for other in others:
        folder.adopt(SweepFolder(Path(other)))
    table = table_of(folder)
    _write(folder, plan, table)
    return table


def table_of(folder: SweepFolder) -> SweepTable:
    """The table of the finished cells of a sweep's folder. Raises DataError."""
    from runtime_ref.sweep_table import Rule, SweepTable

    plan = folder.plan()
    rows = [row for planned in plan["bundles"] for row in _rows(folder, planned, plan["devices"])]
    return SweepTable(rows, [Rule(**rule) for rule in plan["rules"]])


def read_results(results: str | Path) -> SweepTable:
    """The table in the SQLite file of a sweep, or in its folder. Raises DataError."""
    from runtime_ref.sweep_table import Rule, SweepRow, SweepTable

    file = Path(results)
    file = file / RESULTS if file.is_dir() else file
    if not file.is_file():
        hint = "give the folder of a sweep, or its results.sqlite"
        raise DataError(f"there is no {file}", hint=hint)
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as base:
            base.row_factory = sqlite3.Row
            found = [dict(row) for row in base.execute("SELECT * FROM rows ORDER BY place")]
            rules = [
                json.loads(r[0]) for r in base.execute("SELECT rule FROM rules ORDER BY place")
            ]
    except sqlite3.DatabaseError as error:
        raise DataError(f"{file} has no results of a sweep: {error}") from error
    rows = [SweepRow(**_plain(row)) for row in found]
    return SweepTable(rows, [Rule(**rule) for rule in rules])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row of SQLite with the types that a row has here."""
    flags = {name: None if row[name] is None else bool(row[name]) for name in ("fits", "parity")}
    kept = {name: value for name, value in row.items() if name != "place"}
    return {**kept, **flags, "tasks": json.loads(row["tasks"])}


def _write(folder: SweepFolder, plan: dict[str, Any], table: SweepTable) -> None:
    """Writes the tables anew in one transaction: a reader has the old ones or the new ones."""
    names = [cell for planned in plan["bundles"] for cell in planned["cells"]]
    cells = {c["address"]: found[0] for c in names if (found := folder.read(c["address"]))}
    with closing(sqlite3.connect(folder.root / RESULTS, timeout=LOCK_SECONDS)) as base, base:
        for statement in SCHEMA.split(";"):
            base.execute(statement)
        for place, row in enumerate(table.rows):
            values = {**vars(row), "tasks": json.dumps(row.tasks)}
            marks = ", ".join("?" * (1 + len(values)))
            base.execute(f"INSERT INTO rows VALUES ({marks})", (place, *values.values()))
        rules = [(place, json.dumps(vars(rule))) for place, rule in enumerate(table.rules)]
        base.executemany("INSERT INTO rules VALUES (?, ?)", rules)
        done = [(address, c["kind"], c["seconds"]) for address, c in cells.items()]
        base.executemany("INSERT INTO cells VALUES (?, ?, ?)", done)


# ---- rows


def _rows(
    folder: SweepFolder, planned: dict[str, Any], devices: Sequence[str]
) -> Iterator[SweepRow]:
    """The rows of a bundle: one for each package on each device, or one if there is no bundle."""
    from runtime_ref.sweep_table import SweepRow

    own = {name: planned[name] for name in ("model", "scheme", "bits")}
    cells = planned["cells"]
    (export,) = [cell for cell in cells if cell["kind"] == EXPORT]
    made = folder.read(export["address"])
    if made is None:
        yield SweepRow(**own, message=_why(folder, export["address"]))
        return
    facts, loss = made[0]["facts"], made[0]["facts"]["loss"]
    ratio = loss["perplexity_quantized"] / loss["perplexity_original"]
    own |= {"kl": loss["kl_mean"], "top1": loss["top1_agreement"], "perplexity_ratio": ratio}
    for form, package in facts["packages"].items():
        sizes = {"format": form, "n_bytes": package["n_bytes"]}
        places: Sequence[str | None] = devices or [None]
        for device in places:
            about = [c for c in cells if c["kind"] != EXPORT and c["device"] in (None, device)]
            measured = _measured(folder, about, form)
            if measured is not None:
                yield SweepRow(**own, **sizes, device=device, **measured)


def _measured(
    folder: SweepFolder, cells: Sequence[dict[str, Any]], form: str
) -> dict[str, Any] | None:
    """What cells have measured of a package; None where the device does not run its kind."""
    found: dict[str, Any] = {"tasks": {}, "message": ""}
    messages = []
    for cell in cells:
        read = folder.read(cell["address"])
        if read is None:
            messages.append(f"{cell['kind']}: {_why(folder, cell['address'])}")
            continue
        result = read[1]
        if cell["kind"] == FIT:
            plans = [plan for plan in result["packages"] if plan["format"] == form]
            if not plans:
                return None
            found["fits"] = plans[0]["fits"]
            found["dirty_bytes"] = plans[0]["prediction"]["dirty_bytes"]
        elif cell["kind"] == SPEED:
            found["speed"] = _speed(result, form)
        elif cell["kind"] == PARITY:
            found["parity"] = result["passed"]
        else:
            found["tasks"][cell["kind"]] = _accuracy(result)
    return {**found, "message": "; ".join(messages)}


def _speed(result: dict[str, Any], form: str) -> float | None:
    """The lower end of the projected speed of a package; None of others, and if it is unknown."""
    projection = result["projection"]
    if result["format"] != form or not projection or not projection["tokens_per_second"]:
        return None
    return float(projection["tokens_per_second"][0])


def _accuracy(result: dict[str, Any]) -> float:
    """The accuracy on the one task of a result, by length where the task is scored so."""
    accuracy = result["tasks"][0]["total"]
    return float((accuracy["acc_norm"] or accuracy["acc"])["value"])


def _why(folder: SweepFolder, address: str) -> str:
    return folder.why_failed(address) or NOT_FINISHED
