"""How many bits each matrix gets: one constant, with which all coded weights meet a size.

The size that a constant leads to is estimated on a sample of the rows of every matrix, which pass
through the quantizer and the codec themselves.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.bundle import RateEntry
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec.encoder import Codec, encode
from exporter.codec.scale_types import SCALE_BYTES
from exporter.config import ExportConfig
from exporter.errors import UsageError
from exporter.progress import Progress
from exporter.quant import column_steps, int8, rate
from exporter.quant.calibration import (
    NONE,
    TRAINING_WINDOWS,
    Calibration,
    CalibrationText,
    Statistics,
    Uncalibrated,
)
from exporter.quant.calibration_cache import CalibrationCache, make_folder
from exporter.quant.calibration_passes import Passes
from exporter.quant.plan import fitted, names_at_rate, trained
from exporter.quant.quantize import MatrixQuantizer
from exporter.quant.rate_quantizer import RateQuantizer, sample
from exporter.quant.sequential import SequentialQuantizer
from exporter.quant.trained_quantizer import TrainedQuantizer

if TYPE_CHECKING:
    from exporter.encoded import EncodedMatrix

ROUNDS = 10
CLOSE = 0.001  # to the size, as a share of it: it is not searched further
# Where a constant that is finer by so many octaves adds less: steps are as fine as they can be.
FINER, SATURATED = 0.1, 1.002
GAUSSIAN = math.sqrt(2 * math.pi * math.e)  # 2 to the entropy of a Gaussian of variance 1
CONSTANTS = "constants.json"


@dataclass(frozen=True)
class Allocation:
    """The quantizers of the matrices that are fitted, and what the manifest says of them.

    checkpoint: the model that computes the same as the given one, of which all else is taken.
    constants: of the matrices at a rate, by name.
    """

    checkpoint: Checkpoint
    quantizers: list[MatrixQuantizer]
    constants: Mapping[str, float]
    bits_asked: float | None
    text: CalibrationText | None
    tokens: int

    def entry(self, matrices: Mapping[str, EncodedMatrix]) -> RateEntry:
        """The rate that coded matrices have come to."""
        coded = [matrices[name] for quantizer in self.quantizers for name in quantizer.names]
        constants = {*self.constants.values()}
        size = sum(m.blob_bytes + m.scales_bytes for m in coded)
        return RateEntry(
            bits_asked=self.bits_asked,
            bits_per_weight=round(8 * size / sum(m.rows * m.cols for m in coded), 6),
            constant=constants.pop() if len(constants) == 1 else None,
            text=None if self.text is None else self.text.name,
            text_sha256=None if self.text is None else self.text.sha256,
            tokens=self.tokens,
        )


def text_of(config: ExportConfig, checkpoint: Checkpoint) -> CalibrationText | None:
    """The text that an export calibrates on, if any.

    Raises UsageError if it cannot be read.
    """
    if not fitted(config.quantization, checkpoint):
        return None
    return CalibrationText.read(config.calibration)


def check(config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Raises, before any work, UsageError or CheckpointError if a calibration cannot be done."""
    if config.calibration_cache is not None:
        make_folder(config.calibration_cache)
    if text := text_of(config, checkpoint):
        text.windows(checkpoint)
    elif config.calibration not in (None, NONE):
        raise UsageError(
            "nothing is to be calibrated: all levels are the checkpoint's own",
            hint="leave --calibration away",
        )


def allocate(
    checkpoint: Checkpoint,
    config: ExportConfig,
    folder: Path,
    cache: CalibrationCache | None,
    progress: Progress,
) -> Allocation | None:
    """The allocation of an export; None where all its levels are rounded.

    What is measured for it lies in `folder`, or in the cache if it is the same at any rate, and is
    not measured again where it is there already. Raises UsageError if the rate cannot be met.
    """
    names, text = names_at_rate(config.quantization, checkpoint), text_of(config, checkpoint)
    # What needs no rate is rounded where nothing is known of it.
    plans = {} if text is None else fitted(config.quantization, checkpoint)
    others = {name: plan for name, plan in plans.items() if name not in names}
    if not names and not others:
        return None
    windows = None if text is None else text.windows(checkpoint)
    made, constants, quantizers = checkpoint, dict[str, float](), list[MatrixQuantizer]()
    if names:
        at_rate = _at_rate(checkpoint, config, windows, folder, cache, progress)
        made, constants = at_rate.checkpoint, {**at_rate.constants}
        quantizers.append(at_rate)
    if others and windows is not None:
        sequential = SequentialQuantizer(checkpoint, others, windows, Calibration(folder))
        sequential.calibrate(progress)
        quantizers.append(sequential)
    if text is not None and (matrices := trained(plans)):
        steps = config.quantization.recovery_steps
        windows = text.windows(checkpoint, TRAINING_WINDOWS)
        training = TrainedQuantizer(made, quantizers, matrices, steps, windows, Calibration(folder))
        training.train(progress)
        made, quantizers = training.with_trained_norms(), [training]
    tokens = 0 if windows is None else windows.numel()
    asked = config.quantization.bits_per_weight
    return Allocation(made, quantizers, constants, asked, text, tokens)


def _at_rate(
    checkpoint: Checkpoint,
    config: ExportConfig,
    windows: Tensor | None,
    folder: Path,
    cache: CalibrationCache | None,
    progress: Progress,
) -> RateQuantizer:
    """The quantizer of the matrices at a rate, calibrated on windows of token ids, if any."""
    statistics: Statistics = Uncalibrated(checkpoint)
    if windows is not None:
        own = contextlib.nullcontext(Calibration(folder))
        with cache.calibration(checkpoint, windows) if cache else own as calibration:
            Passes(checkpoint, windows, calibration, progress).run()
        names = names_at_rate(config.quantization, checkpoint)
        checkpoint, statistics = column_steps.fold(checkpoint, names, calibration)
    known = folder / CONSTANTS
    if not known.is_file():  # a resumed export goes on with the same
        constants = _constants(checkpoint, config, statistics, progress)
        temporary = known.with_suffix(".new")
        temporary.write_text(json.dumps(constants), encoding="utf-8")
        temporary.replace(known)
    constants = json.loads(known.read_text(encoding="utf-8"))
    return RateQuantizer(checkpoint, statistics, constants)


def _constants(
    checkpoint: Checkpoint, config: ExportConfig, statistics: Statistics, progress: Progress
) -> dict[str, float]:
    """The constants of the matrices at a rate, by name.

    Those of which the same number of bits is asked share one, which is searched.
    """
    names = names_at_rate(config.quantization, checkpoint)
    settings = {name: config.quantization.config_for(name) for name in names}
    constants: dict[str, float] = {}
    for given in dict.fromkeys(settings.values()):
        assert isinstance(given, int8.Config)
        together = [name for name in names if settings[name] == given]
        c = given.constant
        if given.bits_per_weight is not None:
            search = Search(checkpoint, together, statistics, config.matrix_codec)
            c = search.find_constant(given.bits_per_weight * search.weights / 8, progress)
        assert c is not None  # one of both is given
        constants |= dict.fromkeys(together, c)
    return {name: constants[name] for name in names}


@dataclass(frozen=True)
class Search:
    """The search for the constant of matrices `names`, whose levels a codec codes."""

    checkpoint: Checkpoint
    names: Sequence[str]
    statistics: Statistics
    codec: Codec

    @property
    def weights(self) -> int:
        """Number of weights of all matrices."""
        return sum(math.prod(self.checkpoint.shape(name)) for name in self.names)

    def find_constant(self, target_bytes: float, progress: Progress) -> float:
        """The constant c at which codes and scales are expected to take `target_bytes`.

        Raises UsageError if the finest levels take less.
        """
        point, known = self._guess(target_bytes), dict[float, float]()
        for round_ in range(ROUNDS):
            known[point] = self._size(2.0**point, round_, progress)
            if abs(known[point] / target_bytes - 1) < CLOSE or self._is_finest(known):
                break
            point = self._next(known, target_bytes)
        best = min(known, key=lambda point: abs(known[point] - target_bytes))
        if known[best] < target_bytes and self._is_finest(known):
            asked, found = (8 * size / self.weights for size in (target_bytes, known[best]))
            raise UsageError(
                f"{asked:.2f} bits per weight cannot be met: the levels of int8 come to "
                f"{found:.2f} here",
                hint="ask for fewer, or leave the rate away",
            )
        return float(2**best)

    def _next(self, known: Mapping[float, float], target_bytes: float) -> float:
        """Logarithm of the next constant to try, after sizes of others are known by theirs."""
        finer = [point for point, size in known.items() if size > target_bytes]
        coarser = [point for point, size in known.items() if size <= target_bytes]
        if finer and coarser:
            ends = [min(coarser), max(finer)]
            return float(np.interp(target_bytes, [known[end] for end in ends], ends))
        bits = 8 * (known[[*known][-1]] - target_bytes) / self.weights
        return [*known][-1] + 1.1 * bits  # a bit is an octave; a little past the size brackets it

    def _is_finest(self, known: Mapping[float, float]) -> bool:
        """Whether the last constant made nothing finer: all steps are as small as they can be."""
        *_, (before, size_before), (last, size) = [(0.0, 0.0), *known.items()]
        return last < before - FINER and size < size_before * SATURATED

    def _guess(self, target_bytes: float) -> float:
        """Logarithm to base 2 of about the constant that is sought.

        Weights count as Gaussian, and nothing is fed back.
        """
        target = 8 * target_bytes / self.weights
        rows = [self._rows(name) for name in self.names]
        deviations, units, finest, shares = (torch.cat(x) for x in zip(*rows, strict=True))

        def bits(c: float) -> float:
            ratios = GAUSSIAN * deviations / torch.maximum(c * units, finest)
            return float((shares * torch.log2(1 + ratios.square()) / 2).sum() / shares.sum())

        low, high = -64.0, 64.0
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (middle, high) if bits(2.0**middle) > target else (low, middle)
        return low

    def _rows(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of sampled rows: standard deviation, steps at c = 1 and at least, number of weights."""
        w, curvature = sample(self.checkpoint, name, self.statistics.curvature(name))
        weights = torch.full((len(w),), math.prod(self.checkpoint.shape(name)) / len(w))
        return w.square().mean(1).sqrt(), curvature.unit_steps, rate.finest_steps(w), weights

    def _size(self, c: float, done: int, progress: Progress) -> float:
        """Size of codes and scales of all matrices, in bytes, that is expected of a constant."""
        size = 0.0
        for i, name in enumerate(self.names):
            progress("share out the bits", done * len(self.names) + i, 0)
            w, curvature = sample(self.checkpoint, name, self.statistics.curvature(name))
            prices = rate.learn_prices(w, curvature, c)
            levels = rate.round_rows(w, curvature, c, prices)  # a descent leaves their size
            size += self._coded(name, levels.numpy())
        return size

    def _coded(self, name: str, levels: NDArray[np.int8]) -> float:
        """Size of a matrix, in bytes, by the levels of its sampled rows."""
        header = encode(levels, int8.LEVEL_MIN, int8.N_LEVELS, self.codec).header
        rows = self.checkpoint.shape(name)[0]
        by_row = header.payload_bytes + header.index_bytes
        tables = header.layout.total_bytes - by_row
        return tables + by_row * rows / len(levels) + SCALE_BYTES["ue6m10"] * rows
