"""Does the package answer like the model it was made from? Verdicts against `reference.safetensors`, never mixed.

1. levels: every matrix in the file decodes to the levels the quantizer gave (CRC-32);
2. logits: prompts of several lengths, as one prefill, as a split prefill, and token by token;
3. greedy: the same tokens, where the reference itself is not undecided.
What quantization cost against the original model is another question, and another table (`Manifest.quantization_loss`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from exporter.bundle import REFERENCE, Bundle, TensorEntry
from exporter.codec.native import NativeTensor
from exporter.errors import BundleError, CodecError, ContextError
from runtime_ref.generate import Runner

BLOCK_WEIGHTS = 1 << 24  # decoded at a time when levels are compared


@dataclass(frozen=True)
class Tolerance:
    """The gates of one arithmetic: largest KL divergence in nats, smallest signal-to-noise ratio in dB."""

    max_kl: float
    min_sqnr_db: float

    def near_tie(self, reference: np.ndarray) -> float:
        """A margin between two logits that noise of the permitted size can close: four times its standard deviation."""
        return 4 * float(np.sqrt(np.mean(np.square(reference - reference.mean())))) * 10 ** (-self.min_sqnr_db / 20)


# With int8 activations a difference in the last bit of a float can flip a rounding, which the following layers carry on.
TOLERANCES = {"float32": Tolerance(max_kl=1e-6, min_sqnr_db=60.0), "int8": Tolerance(max_kl=1e-4, min_sqnr_db=35.0)}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    verdict: str  # levels | logits | greedy | context
    what: str
    passed: bool
    positions: int
    kl_max: float | None = None
    sqnr_db_min: float | None = None
    delta_max: float | None = None
    top1: int | None = None  # positions whose best token is the reference's, or a near tie with it
    detail: str = ""


@dataclass(frozen=True)
class ParityReport:
    """All checks of one backend. `passed` only if every one did."""

    backend: str
    activations: str
    tolerance: Tolerance
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Answer:
    """One prompt of the reference: tokens int64 [S], logits float32 [n, V], greedy tokens int64 [n]."""

    prompt: list[int]
    logits: np.ndarray
    tokens: list[int]
    fills_context: bool


def load_reference(bundle: Bundle) -> list[Answer]:
    """The answers in the arithmetic the program declares. Raises BundleError if some are missing or misshapen."""
    from safetensors import SafetensorError, safe_open

    entry = bundle.manifest.program
    try:
        with safe_open(bundle.path / REFERENCE, framework="numpy") as file:
            names = set(file.keys())
            count = sum(name.startswith("prompt.") for name in names)
            tensors = [
                (file.get_tensor(f"prompt.{i}"), file.get_tensor(f"{entry.activations}.{i}.logits"),
                 file.get_tensor(f"{entry.activations}.{i}.tokens"))
                for i in range(count)
            ]  # fmt: skip
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{REFERENCE} cannot be read: {error}", do="export again") from error
    answers = [Answer(p.tolist(), lg, t.tolist(), len(p) == entry.context) for p, lg, t in tensors]
    problems = []
    for i, a in enumerate(answers):
        if a.logits.shape != (len(a.tokens), entry.vocab_size) or not a.tokens or not a.prompt:
            problems.append(f"prompt {i}: logits {list(a.logits.shape)}, expected [{len(a.tokens)}, {entry.vocab_size}]")
        elif not np.isfinite(a.logits).all():
            problems.append(f"prompt {i}: the logits hold NaN or Inf")
        elif a.logits.argmax(-1).tolist() != a.tokens:
            problems.append(f"prompt {i}: the greedy tokens do not follow from the logits")
    if not any(a.fills_context for a in answers):
        problems.append("no prompt fills the context")
    if not any(not a.fills_context for a in answers):
        problems.append("no prompt is followed by greedy tokens")
    if problems:
        raise BundleError(f"{REFERENCE} is not a reference for this program", problems=problems, do="export again")
    return answers


def check_parity(
    bundle: Bundle, runner: Runner, progress: Callable[[int], None], tolerance: Tolerance | None = None
) -> ParityReport:
    """Runs all checks; `progress` is told the tokens that were run (see `work_tokens`)."""
    gate = tolerance or TOLERANCES[bundle.manifest.program.activations]
    checks = [check_levels(bundle)]
    for answer in load_reference(bundle):
        if answer.fills_context:
            checks += _check_full_context(runner, answer, gate, progress)
            continue
        for how, pieces in feeding(len(answer.prompt)).items():
            checks.append(_check_logits(runner, answer, gate, how, pieces, progress))
        checks.append(_check_greedy(runner, answer, gate, progress))
    return ParityReport(runner.name, bundle.manifest.program.activations, gate, checks)


def work_tokens(bundle: Bundle) -> int:
    """How many tokens `check_parity` runs."""
    total = 0
    for a in load_reference(bundle):
        if a.fills_context:
            total += len(a.prompt)
        else:
            ways = len(feeding(len(a.prompt)))
            total += (ways + 1) * (len(a.prompt) + len(a.tokens) - 1)
    return total


def feeding(n: int) -> dict[str, list[int]]:
    """Ways to feed a prompt of n tokens: names and the lengths of the pieces."""
    ways = {"prefill": [n]}
    if n >= 3:
        ways["split prefill"] = [n // 3, n - n // 3 - 1, 1]
    if n >= 2:
        ways["step by step"] = [1] * n
    return ways


def check_levels(bundle: Bundle) -> Check:
    """Decodes every matrix out of the artifact itself and compares the CRC-32 of its levels with the quantizer's."""
    bytes_ = np.memmap(bundle.file(bundle.manifest.program.file), dtype=np.uint8, mode="r")
    wrong = []
    for entry in bundle.manifest.tensors:
        try:
            if _levels_crc32(bytes_, entry) != entry.levels_crc32:
                wrong.append(f"{entry.name}: levels differ")
        except CodecError as error:
            wrong.append(f"{entry.name}: {error.status}")
    n = len(bundle.manifest.tensors)
    what = f"{n} matrices decode to the quantizer's levels"
    return Check("levels", what, passed=n > 0 and not wrong, positions=n, detail="; ".join(wrong[:8]))


def _levels_crc32(artifact: np.ndarray, entry: TensorEntry) -> int:
    blob = artifact[entry.blob_offset : entry.blob_offset + entry.blob_bytes]
    with NativeTensor(blob, verify=True) as tensor:
        if (tensor.info.rows, tensor.info.cols) != (entry.rows, entry.cols):
            raise CodecError("BAD_SHAPE", f"{entry.name} is {tensor.info.rows} x {tensor.info.cols}")
        crc = 0
        step = max(1, BLOCK_WEIGHTS // entry.cols)
        for begin in range(0, entry.rows, step):
            crc = zlib.crc32(memoryview(tensor.decode_rows(begin, min(begin + step, entry.rows))).cast("B"), crc)
    return crc


def _feed(runner: Runner, tokens: Sequence[int], pieces: Sequence[int]) -> np.ndarray:
    position = 0
    for n in pieces:
        logits = runner.forward(tokens[position : position + n], position)
        position += n
    return logits


def _teacher_forced(runner: Runner, answer: Answer, pieces: Sequence[int]) -> Iterator[np.ndarray]:
    """The package's logits at each position of the answer, fed with the reference's tokens."""
    yield _feed(runner, answer.prompt, pieces)
    for step, token in enumerate(answer.tokens[:-1]):
        yield runner.forward([token], len(answer.prompt) + step)


def _check_logits(
    runner: Runner, answer: Answer, gate: Tolerance, how: str, pieces: Sequence[int], progress: Callable[[int], None]
) -> Check:
    rows = [_compare(ref, got, gate) for ref, got in zip(answer.logits, _teacher_forced(runner, answer, pieces), strict=True)]
    progress(len(answer.prompt) + len(answer.tokens) - 1)
    return _logits_check(f"{len(answer.prompt)} + {len(rows) - 1} tokens, {how}", rows, gate)


def _logits_check(what: str, rows: list[tuple[float, float, float, bool]], gate: Tolerance) -> Check:
    kl, sqnr = max(r[0] for r in rows), min(r[1] for r in rows)
    top1 = sum(r[3] for r in rows)
    passed = kl <= gate.max_kl and sqnr >= gate.min_sqnr_db and top1 == len(rows)  # false for NaN
    return Check("logits", what, passed, len(rows), kl, sqnr, max(r[2] for r in rows), top1)


def _compare(reference: np.ndarray, got: np.ndarray, gate: Tolerance) -> tuple[float, float, float, bool]:
    """KL(reference || got) in nats, SQNR in dB, max |difference|, and whether the best token agrees or is a near tie."""
    if got.shape != reference.shape or not np.isfinite(got).all():
        return float("inf"), float("-inf"), float("inf"), False
    ref, new = reference.astype(np.float64), got.astype(np.float64)
    log_p, log_q = ref - _log_sum_exp(ref), new - _log_sum_exp(new)
    kl = max(0.0, float(np.sum(np.exp(log_p) * (log_p - log_q))))
    noise = float(np.sum(np.square(new - ref)))
    # The mean of the logits carries no information: a softmax ignores it, so the signal is what varies around it.
    signal = float(np.sum(np.square(ref - ref.mean())))
    sqnr = 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else float("inf") if noise == 0 else float("-inf")
    margin = ref.max() - ref[int(new.argmax())]
    return kl, float(sqnr), float(np.abs(new - ref).max()), bool(margin <= gate.near_tie(ref))


def _log_sum_exp(x: np.ndarray) -> float:
    return float(x.max() + np.log(np.sum(np.exp(x - x.max()))))


def _check_greedy(runner: Runner, answer: Answer, gate: Tolerance, progress: Callable[[int], None]) -> Check:
    """The package generates on its own; it may leave the reference only where the reference is undecided."""
    logits = _feed(runner, answer.prompt, [len(answer.prompt)])
    same, detail, passed = 0, "", True
    for step, want in enumerate(answer.tokens):
        got = int(logits.argmax())
        if got != want:
            reference = answer.logits[step]
            margin = float(reference[want] - reference[got])
            passed = margin <= gate.near_tie(reference)
            detail = f"token {step} is {got}, not {want}, margin {margin:.2g}: {'a near tie' if passed else 'not a tie'}"
            break
        same += 1
        if step + 1 < len(answer.tokens):
            logits = runner.forward([got], len(answer.prompt) + step)
    progress(len(answer.prompt) + len(answer.tokens) - 1)
    return Check("greedy", f"{len(answer.prompt)} tokens, then its own", passed, len(answer.tokens), top1=same, detail=detail)


def _check_full_context(
    runner: Runner, answer: Answer, gate: Tolerance, progress: Callable[[int], None]
) -> list[Check]:
    """Fills every cache slot, the last ones token by token, and sees that one more is refused."""
    n = len(answer.prompt)
    steps = min(4, n - 1)
    logits = _feed(runner, answer.prompt, [n - steps] + [1] * steps)
    progress(n)
    filled = _logits_check(f"{n} tokens: the whole context", [_compare(answer.logits[0], logits, gate)], gate)
    try:
        runner.forward([0], n)
        refused = False
    except ContextError:
        refused = True
    return [filled, Check("context", f"token {n + 1} is refused", refused, 1)]
