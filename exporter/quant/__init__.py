"""Quantization schemes, one file each, named as on the command line.

Adding a scheme is adding a file with NAME, `Config`, LEVEL_MIN, N_LEVELS, `quantize_rows`,
`dequantize` and `expected_entropy`; nothing is registered anywhere. One whose `Config` says
`is_fitted` has `fit_rows` too, which knows something of what a matrix is multiplied with.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

# Files here that are no scheme.
SHARED = (
    "calibration",
    "calibration_cache",
    "calibration_passes",
    "column_steps",
    "config",
    "descent",
    "feedback",
    "head_statistics",
    "passage",
    "plan",
    "quantize",
    "rate",
    "rate_quantizer",
    "recovery",
    "rules",
    "sequential",
    "tensor",
    "ternary_fit",
    "trained_matrix",
    "trained_quantizer",
)


def supported() -> list[str]:
    """Names of the schemes, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def load(scheme: str) -> ModuleType:
    """The module of a scheme."""
    return importlib.import_module(f"{__name__}.{scheme}")
