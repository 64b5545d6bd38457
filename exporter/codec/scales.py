"""The scales of a matrix as they are stored: in 16 bits where these hold them exactly, else in 32.

16 bits are a `ue6m10`: unsigned, 6 bits of exponent E and 10 of mantissa M. Code 0 is 0, and any
other code is 2^(E - 47) * (1 + M / 1024). So it has the 11 significant bits of half precision, and
more than twice its range of exponents. A float32 with the same value has the same bits but for
its bias.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exporter.codec.scale_types import ScaleType

STORED_AS: dict[ScaleType, npt.DTypeLike] = {"float32": "<f4", "ue6m10": "<u2"}
DROPPED = 13  # bits of a float32's mantissa
BIAS = np.uint32((127 - 47) << 23)
StoredScales = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
"""Scales as they are stored: float32, or uint16 codes of a `ue6m10`."""


def type_of(stored: StoredScales) -> ScaleType:
    """The type of stored scales."""
    return "ue6m10" if stored.dtype == np.uint16 else "float32"


def stored(scales: npt.NDArray[np.float32]) -> StoredScales:
    """Scales of any shape, as they are stored: nothing is rounded."""
    values = np.ascontiguousarray(scales, np.float32)
    bits = values.view(np.uint32)
    codes = np.where(bits == 0, 0, (bits - BIAS) >> DROPPED).astype(np.uint16)
    return codes if np.array_equal(widened(codes).view(np.uint32), bits) else values


def widened(stored: StoredScales) -> npt.NDArray[np.float32]:
    """The values of stored scales."""
    if type_of(stored) == "float32":
        return np.array(stored, np.float32)  # a copy: the file may not be written
    codes = np.asarray(stored, np.uint32)
    return np.where(codes == 0, np.uint32(0), (codes << DROPPED) + BIAS).view(np.float32)
