"""Cells of a sweep: one command each, addressed by all that its result depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyqmoe.devices import find_devices
from tinyqmoe.settings import export_config
from tinyqmoe.sweep_plan import PARITY, SPEED, PlannedBundle, SweepPlan

if TYPE_CHECKING:
    from exporter.config import ExportConfig

EXPORT, FIT = "export", "fit"  # kinds of cells besides the tasks
BUNDLE, RESULT = "bundle", "result.json"  # what lies in the folder of a cell
# Words of a command that stand for places.
THE_BUNDLE, THE_RESULT, THE_CALIBRATIONS = "{bundle}", "{result}", "{calibrations}"
PROMPT, NEW_TOKENS = "The", 32  # of a projected speed: what a token means does not change its cost


@dataclass(frozen=True)
class Cell:
    """A command of ours, and the address of its result.

    kind: "export", "fit" or a task. words: of the command, in which THE_BUNDLE stands for the
    bundle, THE_RESULT for the file of the result, and THE_CALIBRATIONS for the folder of what
    exports of a model share. device: that it is about, if it is.
    """

    kind: str
    address: str
    words: tuple[str, ...]
    device: str | None = None

    @property
    def alone(self) -> bool:
        """Whether nothing may run beside it: its result is a time."""
        return self.kind == SPEED

    def command(self, bundle: Path, result: Path, calibrations: Path) -> list[str]:
        """The words of the command with its places."""
        places = {THE_BUNDLE: bundle, THE_RESULT: result, THE_CALIBRATIONS: calibrations}
        return [str(places.get(word, word)) for word in self.words]


@dataclass(frozen=True)
class BundleCells:
    """The cell that makes a bundle, and those that measure it.

    memory_bytes: forecast of the export, which takes more than what is run afterwards.
    """

    planned: PlannedBundle
    export: Cell
    measures: tuple[Cell, ...]
    memory_bytes: int

    @property
    def cells(self) -> list[Cell]:
        """All cells in the order in which they run."""
        return [self.export, *self.measures]


def cells_of(plan: SweepPlan) -> list[BundleCells]:
    """The cells of each bundle of a plan.

    Every checkpoint is opened first, and every setting tried. Raises TinyQMoEError where something
    speaks against one, before any work.
    """
    profiles = {p.name: _digest(p) for p in find_devices(plan.devices)}
    opened = _Opened()
    found = []
    for planned in plan.bundles:
        config = _config(planned)
        digest, memory_bytes = opened.describe(planned, config)
        text = _file_digest(config.loss_text) if config.loss_text else None
        settings = {**planned.options, "loss-text": text, "calibration": _calibration(planned)}
        words = ("export", planned.model, THE_BUNDLE, *planned.words, "--allow-loss", "--resume")
        words += ("--calibration-cache", THE_CALIBRATIONS)
        key = {"checkpoint": digest, "settings": settings, "versions": versions()}
        export = Cell(EXPORT, _address(EXPORT, key), (*words, "--json", THE_RESULT))
        measures = tuple(_measures(plan, profiles, export.address))
        found.append(BundleCells(planned, export, measures, memory_bytes))
    return found


def _config(planned: PlannedBundle) -> ExportConfig:
    """The configuration of an export, as its options say it. Raises UsageError."""
    from exporter.backends.registry import formats_of

    given = {key.replace("-", "_"): value for key, value in planned.options.items()}
    target, form = given.pop("target", "android"), given.pop("coreml_format", "mlprogram")
    formats = formats_of(str(target), str(form))
    return export_config(formats=formats, **given)  # type: ignore[arg-type]


class _Opened:
    """Checkpoints that were opened, and the digests of their files, each once."""

    def __init__(self) -> None:
        self._digests: dict[tuple[Any, ...], str] = {}

    def describe(self, planned: PlannedBundle, config: ExportConfig) -> tuple[str, int]:
        """The digest of a checkpoint with its adapter, and the memory of its export in bytes."""
        from exporter.checkpoint.checkpoint import Checkpoint
        from exporter.checkpoint.folder import locate
        from exporter.config import at_size, context_of
        from exporter.estimate.export_memory import stages
        from exporter.quant import plan as plans

        checkpoint = Checkpoint.open(
            planned.model, revision=config.revision, adapter=config.adapter
        )
        config = at_size(config, checkpoint)
        plans.check(config.quantization, checkpoint)
        found = stages(checkpoint, config, context_of(config, checkpoint))
        key = (planned.model, config.revision, config.adapter)
        if key not in self._digests:
            places = [checkpoint.path]
            places += [locate(config.adapter).path] if config.adapter else []
            self._digests[key] = _digest([_tree_digest(place) for place in places])
        return self._digests[key], max(stage.n_bytes for stage in found)


def _measures(plan: SweepPlan, profiles: Mapping[str, str], export: str) -> Iterator[Cell]:
    """The cells that measure the bundle of one address."""
    to_file = ("--json", THE_RESULT)
    for device, profile in profiles.items():
        key = {"export": export, "profile": profile}
        yield _measure(FIT, ("fit", THE_BUNDLE, "--device", device, *to_file), key, device)
        if SPEED in plan.tasks:
            asked = ("--prompt", PROMPT, "--max-new-tokens", f"{NEW_TOKENS}")
            on = ("--device", device, "--backend", "executorch")
            yield _measure(SPEED, ("run", THE_BUNDLE, *on, *asked, *to_file), key, device)
    if PARITY in plan.tasks:
        yield _measure(PARITY, ("parity", THE_BUNDLE, *to_file), {"export": export}, None)
    limit = () if plan.limit is None else ("--limit", f"{plan.limit}")
    for task in plan.tasks:
        if task in (PARITY, SPEED):
            continue
        assert plan.data is not None  # the reader of the plan has seen to that
        files = _tree_digest(Path(plan.data))
        asked_of = ("--task", task, "--data", plan.data, *limit)
        of_task = {"export": export, "data": files, "limit": plan.limit}
        yield _measure(task, ("eval", THE_BUNDLE, *asked_of, *to_file), of_task, None)


def _measure(kind: str, words: tuple[str, ...], key: dict[str, Any], device: str | None) -> Cell:
    return Cell(kind, _address(kind, {**key, "versions": versions()}), words, device)


# ---- addresses


def _address(kind: str, key: Mapping[str, Any]) -> str:
    """The address of a cell: SHA-256 of everything that its result depends on, shortened."""
    return f"{kind}-{_digest(key)[:32]}"


def versions() -> dict[str, str]:
    """Versions of what computes: the distributions that the manifest of a bundle names too."""
    from exporter.backends.registry import FORMATS, tools

    return {name: importlib.metadata.version(name) for name in tools(FORMATS)}


def _calibration(planned: PlannedBundle) -> str | None:
    """Digest of a calibration text where one is given; "none" stays."""
    given = planned.options.get("calibration")
    return _file_digest(Path(str(given))) if given and Path(str(given)).is_file() else str(given)


def _digest(value: Any) -> str:
    """SHA-256 of plain values or of a dataclass, by their canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=vars)
    return hashlib.sha256(text.encode()).hexdigest()


def _tree_digest(place: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    if place.is_file():
        return _file_digest(place)
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return _digest([(str(f.relative_to(place)), _file_digest(f)) for f in files])


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def chosen(groups: Sequence[BundleCells], only: Sequence[str]) -> list[BundleCells]:
    """The bundles whose export has one of these addresses; all where none is given.

    Raises UsageError for an address that the plan has not.
    """
    from exporter.errors import UsageError

    known = {group.export.address for group in groups}
    if unknown := [address for address in only if address not in known]:
        what = f"the plan has no bundle {', '.join(unknown)}"
        raise UsageError(what, hint="`--emit github-matrix` prints the addresses")
    return [g for g in groups if not only or g.export.address in only]
