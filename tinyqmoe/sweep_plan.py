"""The plan of a sweep, as a TOML file has it: models x schemes x rates x devices x tasks."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import TinyQMoEError, UsageError

if TYPE_CHECKING:
    from runtime_ref.sweep_table import Rule

HINT = "docs/sweep.md says what such a file holds"
PARITY, SPEED = "parity", "speed"  # tasks that are no questions
RATES = "bits-per-weight"
_MODEL: dict[str, Any] = {"name": str, "model": str, "revision": str, "adapter": str}
_SCHEME: dict[str, Any] = {
    "name": str,
    "scheme": str,
    "embedding": str,
    "group-size": int,
    "sparsity": float,
    "recover": int,
    RATES: (float, list),
}
_SWEEP: dict[str, Any] = {
    "target": str,
    "coreml-format": str,
    "context": int,
    "calibration": str,
    "loss-text": str,
    "devices": list,
    "tasks": list,
    "data": str,
    "limit": int,
}
_RULE: dict[str, Any] = {
    "name": str,
    "smallest": str,
    "device": str,
    "format": str,
    "max-bytes": float,
    "max-kl": float,
    "min-top1": float,
    "max-dirty": float,
    "min-speed": float,
}
# Lists of tables, with their keys.
_TABLES: dict[str, Mapping[str, Any]] = {"model": _MODEL, "scheme": _SCHEME, "rule": _RULE}
_COMMON = ("target", "coreml-format", "context", "calibration", "loss-text")  # of every export
_OWN = ("scheme", "embedding", "group-size", "sparsity", "recover")
_FILES = {
    *(("sweep", key) for key in ("calibration", "loss-text", "data")),
    *(("model", key) for key in ("model", "adapter")),
}
_NAMES = {str: "a text", int: "an integer", float: "a number", list: "a list"}


@dataclass(frozen=True)
class PlannedBundle:
    """A bundle that a plan asks for.

    `options` are those of its export by name, without the dashes. `bits` is the rate in bits per
    weight; None where a scheme is exported without one.
    """

    name: str
    model: str
    scheme: str
    bits: float | None
    options: Mapping[str, str | int | float]

    @property
    def label(self) -> str:
        """Name of the bundle as a person would say it."""
        return f"{self.name} {self.scheme}" + ("" if self.bits is None else f" at {self.bits:g} b")

    @property
    def words(self) -> list[str]:
        """The options as words of a command line."""
        return [word for key, value in self.options.items() for word in (f"--{key}", f"{value}")]


@dataclass(frozen=True)
class SweepPlan:
    """Bundles that are made, and what is measured of each of them.

    devices: names of phones. tasks: "parity", "speed", and tasks of `tinyqmoe eval`, whose files
    lie in `data`; `limit` are the first questions of each.
    """

    bundles: tuple[PlannedBundle, ...]
    devices: tuple[str, ...]
    tasks: tuple[str, ...]
    data: str | None
    limit: int | None
    rules: tuple[Rule, ...]


def read_plan(path: Path) -> SweepPlan:
    """The plan in a file; paths in it are relative to its folder.

    Raises UsageError if there is no file, TinyQMoEError with everything that is wrong in it.
    """
    from runtime_ref.sweep_table import Rule

    raw = _parsed(path)
    if problems := list(_problems(raw)):
        raise TinyQMoEError(f"{path} is not the plan of a sweep", problems=problems, hint=HINT)
    _resolve(raw, path.parent)
    sweep = raw.get("sweep", {})
    rules = [Rule(**{k.replace("-", "_"): v for k, v in r.items()}) for r in raw.get("rule", ())]
    return SweepPlan(
        tuple(_bundles(raw, sweep)),
        tuple(sweep.get("devices", ())),
        tuple(sweep.get("tasks", ())),
        sweep.get("data"),
        sweep.get("limit"),
        tuple(rules),
    )


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint=HINT)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also TOMLDecodeError, UnicodeDecodeError
        what = f"{path} is not the plan of a sweep: it is not TOML: {error}"
        raise TinyQMoEError(what, hint=HINT) from error


def _problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong in a parsed file."""
    yield from (f"{key} is unknown" for key in raw if key not in ("sweep", *_TABLES))
    yield from _table_problems("sweep", raw.get("sweep", {}), _SWEEP)
    for name, keys in _TABLES.items():
        tables = raw.get(name, [])
        if not isinstance(tables, list):
            yield f"{name}: expected [[{name}]], a list of tables"
            continue
        for i, table in enumerate(tables, 1):
            yield from _table_problems(f"{name} {i}", table, keys)
        known = [t.get("name") for t in tables if isinstance(t, dict)]
        yield from (f"{name} {n!r} is there twice" for n in {*known} if known.count(n) > 1)
        if not tables and name != "rule":
            yield f"[[{name}]] is missing"
    for i, table in enumerate(
        raw.get("model", ()) if isinstance(raw.get("model"), list) else (), 1
    ):
        if isinstance(table, dict) and "model" not in table:
            yield f"model {i}: model is missing, a path or a hub id"
    if isinstance(sweep := raw.get("sweep", {}), dict):
        yield from _task_problems(sweep)


def _task_problems(sweep: Mapping[str, Any]) -> Iterator[str]:
    """Tasks that are not known, and what the others lack."""
    from exporter.evaluation.questions import TASKS

    tasks = sweep.get("tasks", [])
    if not isinstance(tasks, list):
        return
    known = (PARITY, SPEED, *TASKS)
    if unknown := [t for t in tasks if t not in known]:
        yield f"sweep: tasks: {', '.join(map(str, unknown))}: expected of {', '.join(known)}"
    if SPEED in tasks and not sweep.get("devices"):
        yield f"sweep: the task {SPEED} needs devices"
    if SPEED in tasks and sweep.get("target") == "ios":
        yield f"sweep: the task {SPEED} needs a package of ExecuTorch: another target"
    if {*map(str, tasks)} - {PARITY, SPEED} and "data" not in sweep:
        yield "sweep: data is missing, the folder where the files of the tasks lie"


def _table_problems(where: str, table: Any, keys: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(table, dict):
        yield f"{where}: expected a table, got {table!r}"
        return
    yield from (f"{where}: {key} is unknown" for key in table if key not in keys)
    if "name" in keys and "name" not in table:
        yield f"{where}: name is missing"
    for key, value in table.items():
        kinds = keys.get(key, object)
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not any(_is(value, kind) for kind in kinds):
            yield f"{where}: {key}: expected {_NAMES[kinds[0]]}, got {value!r}"
        elif isinstance(value, list):
            item = float if key == RATES else str
            if not value or not all(_is(v, item) for v in value):
                yield f"{where}: {key}: expected a list of {_NAMES[item][2:]}s, got {value!r}"


def _is(value: object, kind: type) -> bool:
    """Whether a value of TOML is of a kind; an integer is a number too, a boolean is neither."""
    if isinstance(value, bool):
        return kind is object
    return isinstance(value, (int, float) if kind is float else kind)


def _resolve(raw: Mapping[str, Any], folder: Path) -> None:
    """Makes paths absolute that are relative to the folder of the file; a hub id stays."""
    for name in ("sweep", "model"):
        tables = raw.get(name, [])
        for table in tables if isinstance(tables, list) else [tables]:
            for key in table:
                found = (folder / table[key]) if (name, key) in _FILES else None
                if found is not None and found.exists():
                    table[key] = str(found.resolve())


def _bundles(raw: Mapping[str, Any], sweep: Mapping[str, Any]) -> Iterator[PlannedBundle]:
    """Every model with every scheme at each of its rates."""
    common = {key: sweep[key] for key in _COMMON if key in sweep}
    for model, scheme in product(raw["model"], raw["scheme"]):
        of_model = {key: model[key] for key in ("revision", "adapter") if key in model}
        own = {key: scheme[key] for key in _OWN if key in scheme}
        rates = scheme.get(RATES, [None])
        for bits in rates if isinstance(rates, list) else [rates]:
            rate = {} if bits is None else {RATES: float(bits)}
            yield PlannedBundle(
                model["name"],
                model["model"],
                scheme["name"],
                rate.get(RATES),
                {**common, **of_model, **own, **rate},
            )
