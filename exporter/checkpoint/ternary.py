"""Matrices that are ternary in the checkpoint: found by their weights, and read without a change.

Such a matrix has one scale s for each group of a row, and each of its weights is exactly -s, 0 or s
in float32, in which this tool computes. However it is stored, its weights decide: every one of them
is compared. s is the largest magnitude of its group, so nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exporter.checkpoint.folder import GET_ANOTHER
from exporter.checkpoint.gguf_types import TERNARY_TYPES
from exporter.checkpoint.packed import PACKED_TYPES
from exporter.checkpoint.tensors import (
    ScaledTensor,
    TensorSource,
    WrappedTensor,
    blocks_of,
    one_thread,
)
from exporter.errors import CheckpointError
from exporter.progress import Progress

SMALLEST_GROUP = 32  # that a trainer or a format uses
SAMPLED_ROWS = 8  # by which a matrix of floats is suspected
TOLD = 8  # matrices that one message names
LevelBlock = tuple[int, Tensor, Tensor]
"""The number of its first row, levels int8 [n, cols] and scales float32 [n, groups]."""


@dataclass(frozen=True)
class TernaryTensor(WrappedTensor):
    """A matrix of which every weight is -s, 0 or s, with one s for `group_size` weights of a row.

    The last group of a row may be shorter.
    """

    group_size: int

    def level_blocks(self) -> Iterator[LevelBlock]:
        """The levels and scales of the whole matrix, in blocks of rows.

        Raises CheckpointError if a file has changed since the matrix was found to be ternary.
        """
        for begin, block in blocks_of(self.source):
            found = ternary_levels(block, self.group_size)
            if found is None:
                raise CheckpointError(
                    f"{self.files[0]} has changed since it was opened", hint=GET_ANOTHER
                )
            yield begin, *found


def ternary_levels(w: Tensor, group_size: int) -> tuple[Tensor, Tensor] | None:
    """The levels, int8 [n, cols], and scales, float32 [n, groups], that weights exactly are.

    w is float32 [n, cols]. It is None unless every weight equals level * scale. The scale of a
    group of zeros is 0.
    """
    groups = _by_groups(w, group_size)
    levels, scales = groups.sign(), groups.abs().amax(-1)
    if not torch.equal(levels * scales[..., None], groups):
        return None
    return levels.reshape(len(w), -1)[:, : w.shape[1]].to(torch.int8), scales


def find_ternary(
    entries: Mapping[str, TensorSource], warnings: list[str], progress: Progress | None
) -> dict[str, TensorSource]:
    """The same tensors, those that are ternary as `TernaryTensor` with the widest group they have.

    Raises CheckpointError for matrices whose type says that they are ternary and whose weights are
    not. A matrix of floats that is ternary but for some weights stays one of floats, with a note in
    `warnings`.
    """
    suspects = {name: t for name, t in entries.items() if _may_be_ternary(t)}
    weights = sum(math.prod(tensor.shape) for tensor in suspects.values())
    found, done = dict(entries), 0
    claimed: list[str] = []
    almost: list[str] = []
    for name, tensor in suspects.items():
        size, odd = _widest_group(tensor)
        if odd is None:
            found[name] = TernaryTensor(tensor, size)
        else:
            (claimed if _says_ternary(tensor) else almost).append(f"{name}: {odd}")
        done += math.prod(tensor.shape)
        if progress:
            progress("check ternary weights", done, weights)
    if claimed:
        raise CheckpointError(
            f"matrices that are stored in a ternary type, and are not ternary: {len(claimed)}",
            problems=_shortened(claimed),
            hint="export the original weights in 16 or 32 bits with the scheme of your choice",
        )
    if almost:
        warnings.append(
            f"matrices that are ternary but for some weights: {len(almost)}, taken as floats: "
            + "; ".join(_shortened(almost))
        )
    return found


def scaled(tensor: TensorSource, factor: float) -> TensorSource:
    """A tensor times a factor; a ternary one stays ternary, as all of its weights are rounded
    alike."""
    if isinstance(tensor, TernaryTensor):
        return replace(tensor, source=ScaledTensor(tensor.source, factor))
    return ScaledTensor(tensor, factor)


def _by_groups(w: Tensor, group_size: int) -> Tensor:
    """Weights [n, cols] as [n, groups, group_size], the last group filled up with zeros."""
    missing = -w.shape[1] % group_size
    return torch.nn.functional.pad(w, (0, missing)).view(len(w), -1, group_size)


def _group_sizes(cols: int) -> list[int]:
    """The sizes of groups that are tried, from a whole row down: each lies within the one before.

    So a matrix that is ternary by one of them is so by all that follow.
    """
    powers = [1 << n for n in range(cols.bit_length(), 0, -1)]
    return [cols, *(size for size in powers if SMALLEST_GROUP <= size < cols)]


def _says_ternary(tensor: TensorSource) -> bool:
    return tensor.dtype in (*TERNARY_TYPES, *PACKED_TYPES)


def _may_be_ternary(tensor: TensorSource) -> bool:
    """Whether a matrix says that it is ternary, or most of a few of its rows are.

    Rows of zeros say nothing.
    """
    if len(tensor.shape) != 2 or _says_ternary(tensor):
        return len(tensor.shape) == 2
    rows, cols = tensor.shape
    sampled = sorted({i * rows // SAMPLED_ROWS for i in range(SAMPLED_ROWS)})
    blocks = [block for i in sampled if (block := tensor.rows(i, i + 1)).any()]
    size = _group_sizes(cols)[-1]
    ternary = sum(ternary_levels(block, size) is not None for block in blocks)
    return 2 * ternary > len(blocks)


def _widest_group(tensor: TensorSource) -> tuple[int, str | None]:
    """The widest group by which every weight is ternary, and None.

    Without one it is the smallest group, and a weight that does not fit in words.
    """
    sizes = _group_sizes(tensor.shape[1])
    for begin, block in one_thread(blocks_of(tensor)):
        while ternary_levels(block, sizes[0]) is None:
            if len(sizes) == 1:
                return sizes[0], _odd_weight(begin, block, sizes[0])
            sizes = sizes[1:]
    return sizes[0], None


def _odd_weight(begin: int, block: Tensor, group_size: int) -> str:
    """The first weight of a block that makes its group not ternary, in words.

    It is one whose magnitude is not the most frequent of its group. `begin` is the number of the
    first row.
    """
    groups = _by_groups(block, group_size)
    exact = (groups.sign() * groups.abs().amax(-1, keepdim=True) == groups).all(-1)
    row, number = (int(i) for i in (~exact).nonzero()[0])
    group = groups[row, number]
    magnitudes, counts = group[group != 0].abs().unique(return_counts=True)
    usual = magnitudes[counts.argmax()]
    odd = (group != 0) & ((group.abs() != usual) | group.isinf())
    at = int(odd.nonzero()[0])
    return (
        f"weight [{begin + row}, {number * group_size + at}] is {float(group[at]):.9g}, and others "
        f"of its {group_size} are 0 or ±{float(usual):.9g}"
    )


def _shortened(lines: list[str]) -> list[str]:
    """The first lines of many, and the number of the others."""
    more = len(lines) - TOLD
    return lines if more <= 0 else [*lines[:TOLD], f"and {more} more"]
