"""What the operators keep of a program goes with it: memory, and what they would answer for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle
from exporter.codec.encoder import encode
from exporter.codec.reference import decode
from exporter.errors import BundleError
from runtime_ref.executorch import kernels
from runtime_ref.executorch.runner import ExecuTorchRunner
from runtime_ref.residency import Residency, apply, stats
from tests.support.bundles import copy, patch, place, read, tensor

MATRIX = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def library() -> Iterator[Any]:
    yield kernels.load()
    apply(kernels.load(), Residency())


def with_other_levels(bundle: Bundle, target: Path, *, own_header: bool) -> Bundle:
    """A copy whose matrix has the rows in reverse order, under a header of its own or the old."""
    changed, at = copy(bundle, target), place(bundle, MATRIX)
    entry, blob = tensor(bundle, MATRIX), read(bundle, at.offset, at.n_bytes)
    assert entry.codec == "base3"
    levels = np.ascontiguousarray(decode(blob)[::-1])
    other = encode(levels, level_min=-1, n_levels=3, codec="base3").blob
    patch(changed, at.offset, (bytes(other) if own_header else blob)[:64] + bytes(other)[64:])
    return changed


def logits(bundle: Bundle) -> bytes:
    """Those of one token; the program is dropped before they are returned."""
    found = ExecuTorchRunner(bundle).forward([3], 0).tobytes()
    gc.collect()
    return found


def test_the_tensors_of_a_program_are_closed_with_it(
    library: Any, bundle: Bundle, tmp_path: Path
) -> None:
    runner = ExecuTorchRunner(with_other_levels(bundle, tmp_path / "own", own_header=True))
    gc.collect()
    before = stats(library).tensors_known
    runner.forward([3], 0)
    assert stats(library).tensors_known > before
    del runner
    gc.collect()
    assert stats(library).tensors_known == before


def test_two_programs_have_tensors_of_their_own(library: Any, bundle: Bundle) -> None:
    one, other = ExecuTorchRunner(bundle), ExecuTorchRunner(bundle)
    expected = one.forward([3], 0)
    np.testing.assert_array_equal(other.forward([3], 0), expected)
    del one
    gc.collect()
    np.testing.assert_array_equal(other.forward([3], 0), expected)


def test_another_program_in_the_same_place_has_its_own_weights(
    library: Any, bundle: Bundle, tmp_path: Path
) -> None:
    """It has the same size, so it is mapped where the first was, and the same headers.

    Its payload is not that of its header, which is found where it is expanded: with the expanded
    copy of the first it would answer as that did. Neither has the header of `bundle`: while a test
    holds a program of that open, tensors of equal headers share its expanded copies.
    """
    first = with_other_levels(bundle, tmp_path / "first", own_header=True)
    other = with_other_levels(first, tmp_path / "other", own_header=False)
    from_codes = [logits(b) for b in (first, other)]
    assert from_codes[0] != from_codes[1]
    apply(library, Residency("expand"))
    assert logits(first) == from_codes[0]
    with pytest.raises(BundleError, match="the program failed"):
        logits(other)
