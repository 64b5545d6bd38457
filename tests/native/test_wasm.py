"""The core and sessions in WebAssembly, run by node: the bits of this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from exporter.bundle import MANIFEST, REFERENCE, logits_sha256
from exporter.quant.config import QuantConfig
from exporter.session import Session
from tests.support import wasm
from tests.support.bundles import export
from tests.support.families import CONTEXT, VOCABULARY, Model
from tests.support.layer_tests import digest, run
from tests.support.paths import DATA, GOLDEN, ROOT

HERE = Path(__file__).parent
STORIES = DATA / "hf-stories260K"
DEMO = ROOT / "exporter" / "demo" / "model"
BATCH_TOKENS = 128  # the default of a session
SCALAR, SIMD128 = 1, 6  # of tinyqmoe_isa

pytestmark = wasm.needed


def run_program(program: Path, folder: Path, *args: str | Path) -> str:
    """Output of a program that sees one folder."""
    script = HERE / "wasi_program.mjs"
    return run(wasm.node(), "--no-warnings", script, program, folder, *args)


@dataclass(frozen=True)
class Run:
    """Calls of one session; the logits of each are compared."""

    calls: list[list[int]]
    options: dict[str, int] = field(default_factory=dict)
    budget: int = 0
    claims: list[int] = field(default_factory=list)
    traps: bool = False


def run_sessions(
    wasm_build: Path, folder: Path, bundle: Path, runs: Sequence[Run]
) -> list[dict[str, Any]]:
    """The answers of tests/native/wasm_session.mjs, one a run."""
    files = [f.relative_to(bundle).as_posix() for f in bundle.rglob("*") if f.is_file()]
    request = {"bundle": str(bundle), "files": files, "runs": [vars(r) for r in runs]}
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    answers = run(wasm.node(), HERE / "wasm_session.mjs", wasm_build / "tinyqmoe.wasm", path)
    return list(json.loads(answers))


# ---- kernels and layers ----


def test_every_kernel_has_the_golden_bits(wasm_build: Path) -> None:
    """The golden vectors, and random and hostile matrices, by scalar code and by vectors."""
    output = run_program(wasm_build / "tinyqmoe_tests.wasm", GOLDEN, GOLDEN)
    assert f"0 failures, instruction sets: {SCALAR} {SIMD128}\n" in output


def test_layers_have_the_bits_of_this_machine(
    wasm_build: Path, models: dict[str, Model], digests: tuple[str, str]
) -> None:
    """Every part of a layer, and sessions over every family with each type of cache."""
    program = wasm_build / "tinyqmoe_llm_tests.wasm"
    assert digest(run_program(program, HERE)) == digests[0]
    bundles = [m.bundle for m in models.values()]
    assert digest(run_program(program, bundles[0].parent, *bundles)) == digests[1]


# ---- the module that an app loads ----


@pytest.mark.parametrize("scheme", ["int8", "ternary"])
@pytest.mark.parametrize("checkpoint", [DEMO, STORIES], ids=["demo", "stories"])
def test_a_session_has_the_digests_of_the_bundle(
    checkpoint: Path, scheme: str, wasm_build: Path, tmp_path: Path
) -> None:
    """The SHA-256 of all logits of every prompt, as the export wrote it, by every way of computing
    them."""
    if not checkpoint.is_dir():
        pytest.skip(f"NO {checkpoint}: not tested")
    bundle = export(checkpoint, tmp_path / "bundle", QuantConfig(scheme=scheme))
    reference = load_file(bundle.file(REFERENCE))
    (exact,) = (a.arithmetic.name for a in bundle.manifest.artifacts if a.exact)
    runs, expected = [], []
    for n in (n for n in range(20) if f"exact.{n}.sha256" in reference):
        following = reference[f"{exact}.{n}.tokens"][:-1].tolist()
        calls = [reference[f"prompt.{n}"].tolist(), *([token] for token in following)]
        sha256 = reference[f"exact.{n}.sha256"].tobytes().hex()
        for isa in (SCALAR, SIMD128):
            runs += [Run(calls, {"isa": isa}), Run(calls, {"isa": isa}, budget=1 << 30)]
            expected += [sha256, sha256]
    answers = run_sessions(wasm_build, tmp_path, bundle.path, runs)
    assert len(expected) >= 4 * 3
    assert [answer["sha256"] for answer in answers] == expected


def test_a_session_has_the_bits_and_the_state_of_the_native_one(
    wasm_build: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    calls = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]
    for model in models.values():
        native = Session(model.bundle, 1, BATCH_TOKENS)
        expected = logits_sha256(native.feed(tokens).data for tokens in calls).hex()
        (answer,) = run_sessions(wasm_build, tmp_path, model.bundle, [Run(calls)])
        assert answer["sha256"] == expected
        state, there = answer["state"], native.state()
        assert (state["positions"], state["context"]) == (there.n_positions, CONTEXT)
        assert (state["vocab"], state["threads"], state["fed"]) == (VOCABULARY, 1, there.n_fed)
        assert state["kvCacheBytes"] == there.kv_cache_bytes
        assert state["mappedBytes"] == there.mapped_bytes
        assert state["feedNs"] > 0


def test_what_a_session_refuses(wasm_build: Path, models: dict[str, Model], tmp_path: Path) -> None:
    """Each with a sentence, as the native one."""
    bundle = models["llama"].bundle
    fine, many, outside = [[1]], [[1] * (CONTEXT + 1)], [[VOCABULARY]]
    runs = [Run(many), Run(outside), Run(fine, {"isa": 2}), Run(fine, {"context": CONTEXT + 1})]
    said = [answer["error"] for answer in run_sessions(wasm_build, tmp_path, bundle, runs)]
    words = ["BAD_ARGUMENT", "BAD_ID", "lacks the instruction set", "context at most the bundle's"]
    assert [word in text for word, text in zip(words, said, strict=True)] == [True] * 4
    runs = [Run(fine, claims=[1 << 31]), Run(fine, claims=[3 << 29] * 3), Run(fine, traps=True)]
    said = [answer["error"] for answer in run_sessions(wasm_build, tmp_path, bundle, runs)]
    words = [
        "more than 2147483647 bytes: claim 0",
        f"no memory for {3 << 29} bytes",
        "open the bundle anew",
    ]
    assert [word in text for word, text in zip(words, said, strict=True)] == [True] * 3
    (tmp_path / MANIFEST).write_text("{")
    (answer,) = run_sessions(wasm_build, tmp_path, tmp_path, [Run(fine)])
    assert "manifest.json: " in answer["error"]
    (tmp_path / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes())
    (answer,) = run_sessions(wasm_build, tmp_path, tmp_path, [Run(fine)])
    assert "does not lie in a file of the bundle" in answer["error"]
