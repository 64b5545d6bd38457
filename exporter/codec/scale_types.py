"""The types that scales are stored in, by name, without NumPy: exporter.codec.scales reads them."""

from __future__ import annotations

from typing import Literal

ScaleType = Literal["float32", "ue6m10"]
SCALE_BYTES: dict[str, int] = {"float32": 4, "ue6m10": 2}  # of one scale
