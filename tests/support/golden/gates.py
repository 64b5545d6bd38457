"""The gates of parity, for "Check this model" in the apps: gates.tsv."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from runtime_ref.parity import TOLERANCES
from tests.support.golden.tables import write_table


def make_gates(out: Path) -> None:
    """gates.tsv."""
    columns = "activations kv_type median_kl median_sqnr_db worst_kl worst_sqnr_db"
    lines = [(*kind, *astuple(gate)) for kind, gate in TOLERANCES.items()]
    write_table(out / "gates.tsv", columns, lines)
