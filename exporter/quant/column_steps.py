"""Steps by column at no cost: the inputs of matrices get factors, which fold into what makes them.

Where the errors d_j of a matrix's columns (exporter.quant.rate) differ, a finer step where they are
large loses less at the same number of bits. With e = 1/2, feedback and an entropy code, that comes
close to the bound of any code (WaterSIC, arXiv 2603.04956). A step of s_i f_j is one of s_i on
W diag(1/f) with the input diag(f) x, where

    f_j = (d_j / geometric mean of d)^-EXPONENT.

The weight of a norm makes the inputs of queries, keys and values, and of gate and up. The rows of
values make those of the attention's output projection, and the rows of up those of down. So a model
with these factors computes what it did before, and its matrices have one step a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from exporter.bundle import HEAD
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.checkpoint.tensors import WrappedTensor
from exporter.quant.calibration import Calibration
from exporter.quant.rate import Curvature, Inputs

EXPONENT = 0.25


@dataclass(frozen=True)
class Fold:
    """The matrices that have one input, and the tensors whose rows make it."""

    readers: tuple[str, ...]
    makers: tuple[str, ...]

    def of_layer(self, layer: int) -> Fold:
        """The same with the names of a layer in front."""
        prefix = f"model.layers.{layer}."
        return Fold(*(tuple(prefix + n for n in names) for names in (self.readers, self.makers)))


LAYER = (
    Fold(
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        ("input_layernorm.weight",),
    ),
    Fold(("self_attn.o_proj.weight",), ("self_attn.v_proj.weight", "self_attn.v_proj.bias")),
    Fold(("mlp.gate_proj.weight", "mlp.up_proj.weight"), ("post_attention_layernorm.weight",)),
    Fold(("mlp.down_proj.weight",), ("mlp.up_proj.weight", "mlp.up_proj.bias")),
)


@dataclass(frozen=True)
class FoldedTensor(WrappedTensor):
    """A tensor whose rows and columns have factors; None: all are 1.

    of_rows: float32 [rows]. of_columns: float32 [cols].
    """

    of_rows: Tensor | None
    of_columns: Tensor | None

    def rows(self, begin: int, end: int) -> Tensor:
        block = self.source.rows(begin, end)
        if self.of_columns is not None:
            block = block * self.of_columns
        if self.of_rows is None:
            return block
        return block * self.of_rows[begin:end].view(-1, *[1] * (block.ndim - 1))


@dataclass(frozen=True)
class FoldedStatistics:
    """The statistics of a model with factors, by those of the model without.

    of_rows, of_columns: the factors of weights by name, as of `FoldedTensor`.
    """

    calibration: Calibration
    of_rows: Mapping[str, Tensor]
    of_columns: Mapping[str, Tensor]

    def curvature(self, name: str) -> Curvature:
        known = self.calibration.curvature(name)
        upper, sensitivity = known.inputs.upper, known.sensitivity
        # Columns of W times a are inputs divided by a, and so columns of U times a; rows times b
        # are gradients divided by b.
        if name in self.of_columns:
            upper.mul_(self.of_columns[name])  # it is large, and nobody else's
        if name in self.of_rows:
            sensitivity = sensitivity / self.of_rows[name].square()
        return Curvature(Inputs(upper), sensitivity)


def fold(
    checkpoint: Checkpoint, names: Collection[str], calibration: Calibration
) -> tuple[Checkpoint, FoldedStatistics]:
    """The model with factors on the inputs of the matrices `names`, and the statistics of it.

    An input has factors where all matrices that have it, and those that make it, are of `names`.
    """
    of_rows: dict[str, Tensor] = {}
    of_columns: dict[str, Tensor] = {}
    for part in _folds(checkpoint, names):
        errors = calibration.curvature(part.readers[0]).inputs.errors
        made, read = _factors(errors, checkpoint, part.makers[0])
        of_rows |= {name: made for name in part.makers if name in checkpoint.entries}
        of_columns |= dict.fromkeys(part.readers, 1 / read)
    entries = {
        name: FoldedTensor(tensor, of_rows.get(name), of_columns.get(name))
        if name in of_rows or name in of_columns
        else tensor
        for name, tensor in checkpoint.entries.items()
    }
    return replace(checkpoint, entries=entries), FoldedStatistics(calibration, of_rows, of_columns)


def _folds(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[Fold]:
    """Where factors can be: what has them is of `names`, or a vector."""
    everywhere = [
        part.of_layer(layer)
        for layer in range(checkpoint.config.num_hidden_layers)
        for part in LAYER
    ]
    # A tied head reads what the norm makes; but a layer reads its rows as an embedding.
    everywhere.append(Fold((HEAD,), ("model.norm.weight",)))
    for part in everywhere:
        makers = [n for n in part.makers if n in checkpoint.entries]
        matrices = [n for n in makers if len(checkpoint.shape(n)) == 2]
        if all(name in names for name in (*part.readers, *matrices)):
            yield part


def _factors(errors: Tensor, checkpoint: Checkpoint, maker: str) -> tuple[Tensor, Tensor]:
    """The factors of a maker's rows, float32 [rows], and of inputs with `errors`, float32 [cols].

    Queries that share a head of values share its factors.
    """
    logs = -EXPONENT * (errors.log() - errors.log().mean())
    times = len(errors) // checkpoint.shape(maker)[0]
    if times == 1:
        return logs.exp(), logs.exp()
    by_head = logs.view(-1, times, checkpoint.config.head_dim).mean(1, keepdim=True).exp()
    return by_head.flatten(), by_head.expand(-1, times, -1).flatten()
