"""Folders that tests read: the repository, the golden vectors, and development data."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
DATA = Path(os.environ.get("TINYQMOE_DATA") or ROOT.parent / "shared" / "data")
