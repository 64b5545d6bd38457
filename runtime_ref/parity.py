"""Parity: does the package answer like the model it was made from?

Verdicts against `reference.safetensors`, never mixed:

1. levels: every matrix in the file decodes to the levels the quantizer gave (CRC-32);
2. scales: those of every matrix are the quantizer's, in the package's form (CRC-32);
3. logits: prompts of several lengths, as one prefill, as a split prefill and token by token, and
   one that fills the context;
4. greedy: the same tokens, where the reference itself is not undecided;
5. bits: where the package computes in our operators alone, the exact logits, by their SHA-256.

A package is judged in the arithmetic that it ships with, by one gate (docs/parity.md says how it
was measured). What quantization cost against the original model is another question, and another
table (`Manifest.quantization_loss`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Artifact, Bundle, logits_sha256
from exporter.errors import CodecError, ContextError
from runtime_ref.answers import Answer, load_reference
from runtime_ref.generate import Runner
from runtime_ref.stored_weights import levels_crc32, scales_crc32


@dataclass(frozen=True)
class Tolerance:
    """Gates of the median and the worst position.

    KL is in nats, the signal-to-noise ratio in dB.
    """

    median_kl: float
    median_sqnr_db: float
    worst_kl: float
    worst_sqnr_db: float

    def near_tie(self, reference: NDArray[np.floating]) -> float:
        """Margin between two logits that noise of the permitted size can close.

        It is twice the standard deviation of that noise.
        """
        return 2 * float(reference.std()) * 10 ** (-self.worst_sqnr_db / 20)


# Each stands beyond the noise between correct programs, which docs/parity.md measures.
_FLOAT = Tolerance(median_kl=1e-9, median_sqnr_db=95.0, worst_kl=1e-9, worst_sqnr_db=90.0)
_ROUNDED = Tolerance(median_kl=5e-4, median_sqnr_db=42.0, worst_kl=5e-3, worst_sqnr_db=23.0)
_COARSE_CACHE = Tolerance(median_kl=2e-2, median_sqnr_db=24.0, worst_kl=3e-2, worst_sqnr_db=19.0)
_HALF = Tolerance(median_kl=4e-3, median_sqnr_db=30.0, worst_kl=2e-2, worst_sqnr_db=16.0)

TOLERANCES = {  # by the activations and the KV cache of a package: the coarsest rounding decides
    ("float32", "float32"): _FLOAT,
    ("float32", "float16"): _ROUNDED,
    ("float32", "int8"): _COARSE_CACHE,
    ("int16", "float32"): _ROUNDED,
    ("int16", "float16"): _ROUNDED,
    ("int16", "int8"): _COARSE_CACHE,
    ("float16", "float16"): _HALF,
}


@dataclass(frozen=True)
class Check:
    """One check, with what it measured: a line of the report."""

    verdict: str  # levels | scales | logits | greedy | bits | context
    what: str
    passed: bool
    positions: int
    kl_median: float | None = None
    kl_worst: float | None = None
    sqnr_db_median: float | None = None
    sqnr_db_worst: float | None = None
    delta_max: float | None = None
    top1: int | None = None  # positions whose best token is the reference's, or a near tie with it
    detail: str = ""
    seconds: float = 0.0  # a run counts to its first check, and those after it take only their own


@dataclass(frozen=True)
class ParityReport:
    """All checks of one package. `passed` only if every one did."""

    backend: str
    activations: str
    kv_type: str
    tolerance: Tolerance
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Report with its verdict as plain values; figures that are not finite stay so."""
        return {"passed": self.passed, **asdict(self)}


def check_parity(bundle: Bundle, runner: Runner, progress: Callable[[int], None]) -> ParityReport:
    """Report of all checks; `progress` is told the tokens that were run."""
    artifact = runner.artifact
    gate = tolerance(artifact)
    judge = _Judge(runner, gate, progress)
    checks = list(_timed(_all_checks(bundle, judge)))
    return ParityReport(runner.name, artifact.activations, artifact.kv_type, gate, checks)


def _all_checks(bundle: Bundle, judge: _Judge) -> Iterator[Check]:
    """Checks of a package one by one, each made when it is asked for."""
    yield check_levels(bundle, judge.runner)
    yield check_scales(bundle, judge.runner)
    for answer in load_reference(bundle, judge.runner.artifact):
        yield from judge.answer(answer)


def _timed(checks: Iterator[Check]) -> Iterator[Check]:
    """The same checks with the seconds that each took."""
    begun = time.perf_counter()
    for check in checks:
        yield replace(check, seconds=time.perf_counter() - begun)
        begun = time.perf_counter()


def tolerance(artifact: Artifact) -> Tolerance:
    """Gate of a package, in the arithmetic that it ships with."""
    return TOLERANCES[artifact.activations, artifact.kv_type]


def work_tokens(bundle: Bundle, artifact: Artifact) -> int:
    """Number of tokens that `check_parity` runs."""
    return sum(
        len(a.prompt)
        if a.fills_context
        else (len(feeding(a)) + 1) * (len(a.prompt) + len(a.tokens) - 1)
        for a in load_reference(bundle, artifact)
    )


def feeding(answer: Answer) -> dict[str, list[int]]:
    """Ways to feed a prompt: names and lengths of the chunks, in tokens."""
    n = len(answer.prompt)
    ways = {"prefill": [n]}
    if n >= 3:
        ways["split prefill"] = [n // 3, n - n // 3 - 1, 1]
    if n >= 2:
        ways["step by step"] = [1] * n
    return ways


def check_levels(bundle: Bundle, runner: Runner) -> Check:
    """Check of all levels: every matrix is decoded out of the artifact itself.

    The CRC-32 of its levels is compared with that of the quantizer.
    """
    wrong = []
    for entry in bundle.manifest.tensors:
        place = runner.artifact.places.get(entry.name)
        if place is None:
            wrong.append(f"{entry.name}: the manifest does not say where it lies")
            continue
        try:
            if levels_crc32(runner, place, entry) != entry.levels_crc32:
                wrong.append(f"{entry.name}: levels differ")
        except CodecError as error:
            wrong.append(f"{entry.name}: {error.status}")
    n = len(bundle.manifest.tensors)
    what = f"{n} matrices decode to the quantizer's levels"
    return Check(
        "levels",
        what,
        passed=n > 0 and not wrong,
        positions=n,
        detail="; ".join(wrong[:8]),
    )


def check_scales(bundle: Bundle, runner: Runner) -> Check:
    """Check of all scales, as they lie in the artifact itself."""
    places = runner.artifact.places
    wrong = [
        f"{name}: scales differ"
        for name, place in places.items()
        if scales_crc32(runner, place) != place.scales_crc32
    ]
    n = len(bundle.manifest.tensors)
    what = f"{n} matrices have the quantizer's scales"
    return Check(
        "scales",
        what,
        passed=len(places) == n > 0 and not wrong,
        positions=n,
        detail="; ".join(wrong[:8]),
    )


@dataclass(frozen=True)
class Difference:
    """Difference of logits at one position.

    KL(reference || package) in nats, SQNR in dB, the largest difference, and whether the best token
    agrees.
    """

    kl: float
    sqnr_db: float
    delta: float
    same: bool


def compare(
    reference: NDArray[np.float32], got: NDArray[np.float32], gate: Tolerance
) -> Difference:
    """Difference of two rows of logits float32 [V].

    The mean of a row says nothing (softmax ignores it), so it is no signal.
    """
    if got.shape != reference.shape or not np.isfinite(got).all():
        return Difference(math.inf, -math.inf, math.inf, False)
    ref, new = reference.astype(np.float64), got.astype(np.float64)
    log_p, log_q = ref - _log_sum_exp(ref), new - _log_sum_exp(new)
    kl = max(0.0, float(np.sum(np.exp(log_p) * (log_p - log_q))))
    noise, signal = float(np.sum(np.square(new - ref))), float(np.sum(np.square(ref - ref.mean())))
    sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    margin = float(ref.max() - ref[int(new.argmax())])
    return Difference(kl, sqnr, float(np.abs(new - ref).max()), margin <= gate.near_tie(ref))


def _log_sum_exp(x: NDArray[np.float64]) -> float:
    """Logarithm of the sum of exponentials of x, float64 [V]."""
    return float(x.max() + np.log(np.sum(np.exp(x - x.max()))))


def _logits_check(what: str, rows: Sequence[Difference], gate: Tolerance) -> Check:
    """Check of logits from the differences at all positions."""
    kl, sqnr = [r.kl for r in rows], [r.sqnr_db for r in rows]
    # Of two middles, the worse counts.
    kl_median, sqnr_median = sorted(kl)[len(rows) // 2], sorted(sqnr)[(len(rows) - 1) // 2]
    passed = (
        kl_median <= gate.median_kl
        and max(kl) <= gate.worst_kl
        and sqnr_median >= gate.median_sqnr_db
        and min(sqnr) >= gate.worst_sqnr_db
        and all(r.same for r in rows)
    )
    return Check(
        "logits",
        what,
        passed,
        len(rows),
        kl_median,
        max(kl),
        sqnr_median,
        min(sqnr),
        max(r.delta for r in rows),
        sum(r.same for r in rows),
    )


def _feed(runner: Runner, tokens: Sequence[int], chunks: Sequence[int]) -> NDArray[np.float32]:
    """Logits of the last position of a prompt fed in chunks, float32 [V]."""
    position = 0
    for n in chunks:
        logits = runner.forward(tokens[position : position + n], position)
        position += n
    return logits


def _teacher_forced(
    runner: Runner, answer: Answer, chunks: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """Logits at each position of the answer, fed with the reference's tokens: float32 [V] each."""
    yield _feed(runner, answer.prompt, chunks)
    for step, token in enumerate(answer.tokens[:-1]):
        yield runner.forward([token], len(answer.prompt) + step)


@dataclass(frozen=True)
class _Judge:
    """The checks of a runner's answers; `progress` is told the tokens that were run."""

    runner: Runner
    gate: Tolerance
    progress: Callable[[int], None]

    def answer(self, answer: Answer) -> Iterator[Check]:
        """Checks of one answer."""
        if answer.fills_context:
            yield from self._full_context(answer)
            return
        for how, chunks in feeding(answer).items():
            got = list(_teacher_forced(self.runner, answer, chunks))
            self.progress(len(answer.prompt) + len(answer.tokens) - 1)
            what = f"{len(answer.prompt)} + {len(got) - 1} tokens, {how}"
            yield self._logits(answer, got, what)
            yield from self._bits(answer, got, what)
        yield self._greedy(answer)

    def _logits(self, answer: Answer, got: Sequence[NDArray[np.float32]], what: str) -> Check:
        """Check of the logits of an answer."""
        pairs = zip(answer.logits, got, strict=True)
        rows = [compare(reference, logits, self.gate) for reference, logits in pairs]
        return _logits_check(what, rows, self.gate)

    def _bits(self, answer: Answer, got: Sequence[NDArray[np.float32]], what: str) -> list[Check]:
        """Check of the exact logits, where the reference has their digest."""
        if answer.sha256 is None:
            return []
        same = logits_sha256(row.data for row in got) == answer.sha256
        detail = "" if same else "the logits have other bits than where the bundle was made"
        return [Check("bits", what, same, len(got), detail=detail)]

    def _greedy(self, answer: Answer) -> Check:
        """Check of the tokens that the package generates on its own.

        It may leave the reference only where the reference is undecided.
        """
        logits = _feed(self.runner, answer.prompt, [len(answer.prompt)])
        same, detail, passed = 0, "", True
        for step, want in enumerate(answer.tokens):
            got = int(logits.argmax())
            if got != want:
                reference = answer.logits[step]
                margin = float(reference[want] - reference[got])
                passed = margin <= self.gate.near_tie(reference)
                kind = "a near tie" if passed else "not a tie"
                detail = f"token {step} is {got}, not {want}, margin {margin:.2g}: {kind}"
                break
            same += 1
            if step + 1 < len(answer.tokens):
                logits = self.runner.forward([got], len(answer.prompt) + step)
        self.progress(len(answer.prompt) + len(answer.tokens) - 1)
        what = f"{len(answer.prompt)} tokens, then its own"
        return Check("greedy", what, passed, len(answer.tokens), top1=same, detail=detail)

    def _full_context(self, answer: Answer) -> Iterator[Check]:
        """Checks of a context that is full: its last logits, and that one more token is refused.

        The last slots of the cache are filled token by token.
        """
        n = len(answer.prompt)
        steps = min(4, n - 1)
        got = [_feed(self.runner, answer.prompt, [n - steps] + [1] * steps)]
        self.progress(n)
        what = f"{n} tokens: the whole context"
        try:
            self.runner.forward([0], n)
            refused = False
        except ContextError:
            refused = True
        yield self._logits(answer, got, what)
        yield from self._bits(answer, got, what)
        yield Check("context", f"token {n + 1} is refused", refused, 1)
