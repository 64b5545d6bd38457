"""Decoder layers and sessions in C++: bits across instruction sets, threads and processors, and
values against PyTorch and transformers."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import REFERENCE, Bundle
from exporter.codec import native
from tests.support.bundles import SHIPPED
from tests.support.families import CONTEXT, FAMILIES, VOCABULARY, Model
from tests.support.layer_tests import CXX, SANITIZE, compile_tests, digest, run

ARM_CXX = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FLOAT16, FLOAT32, INT8 = 1, 2, 3

pytestmark = pytest.mark.skipif(CXX is None, reason="NO C++ COMPILER: the native tests did not run")
needs_arm = pytest.mark.skipif(
    ARM_CXX is None or QEMU is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)


# ---- bits ----


def test_all_checks_hold(digests: tuple[str, str]) -> None:
    assert all(digests)


@pytest.mark.long  # a minute of compiling each
@pytest.mark.parametrize(
    "flags",
    [SANITIZE, ["-O1", "-fsanitize=thread"], ["-O3"]],
    ids=["address", "thread", "as released"],
)
def test_other_builds_give_the_same_bits(
    flags: list[str], models: dict[str, Model], digests: tuple[str, str], tmp_path: Path
) -> None:
    """Under the sanitizers, and as a release is compiled."""
    assert CXX is not None
    program = compile_tests(CXX, flags, tmp_path)
    assert digest(run(program)) == digests[0]
    assert digest(run(program, *(m.bundle for m in models.values()))) == digests[1]


@needs_arm
def test_aarch64_gives_the_same_bits(
    models: dict[str, Model], digests: tuple[str, str], tmp_path: Path
) -> None:
    assert ARM_CXX is not None
    assert QEMU is not None
    program = compile_tests(ARM_CXX, ["-O1", "-static"], tmp_path)
    assert digest(run(QEMU, "-cpu", "cortex-a53", program)) == digests[0]
    bundles = [m.bundle for m in models.values()]
    assert digest(run(QEMU, "-cpu", "max", program, *bundles)) == digests[1]


# ---- values ----


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", ctypes.c_uint64),
        ("bundle", ctypes.c_char_p),
        ("context", ctypes.c_uint32),
        ("n_threads", ctypes.c_uint32),
        ("batch_tokens", ctypes.c_uint32),
        ("kv_type", ctypes.c_int),
        ("isa", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """The one that is installed; a handle of its own, for what native.py does not declare."""
    loaded = ctypes.CDLL(native.library()._name)
    loaded.tinyqmoe_session_feed.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_void_p,
    ]
    loaded.tinyqmoe_session_close.argtypes = [ctypes.c_void_p]
    return loaded


def open_session(
    library: ctypes.CDLL, bundle: Path, kv_type: int = FLOAT32
) -> tuple[ctypes.c_void_p, str]:
    """The session, null if it does not open, and the error."""
    options = Options(ctypes.sizeof(Options), str(bundle).encode(), 0, 2, 0, kv_type, 0)
    session, error = ctypes.c_void_p(), ctypes.create_string_buffer(300)
    status = library.tinyqmoe_session_open(
        ctypes.byref(options), ctypes.byref(session), error, ctypes.c_uint64(300)
    )
    assert (status == 0) == bool(session)
    return session, error.value.decode()


def native_logits(
    library: ctypes.CDLL,
    bundle: Path,
    tokens: list[int],
    kv_type: int,
    vocabulary: int = VOCABULARY,
) -> np.ndarray:
    session, error = open_session(library, bundle, kv_type)
    assert session, error
    ids, logits = np.array(tokens, np.int32), np.empty(vocabulary, np.float32)
    status = library.tinyqmoe_session_feed(session, ids.ctypes.data, len(ids), logits.ctypes.data)
    library.tinyqmoe_session_close(session)
    assert status == 0
    return logits


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    noise = float(np.square(signal.astype(np.float64) - other).sum())
    return 10 * float(np.log10(np.square(signal.astype(np.float64)).sum() / max(noise, 1e-30)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_computes_what_transformers_does(
    family: str, models: dict[str, Model], library: ctypes.CDLL
) -> None:
    """Both with x16 products, of which few roundings flip: with a cache in float32 they agree by 79
    to 142 dB, or in all bits."""
    rng = np.random.default_rng(3)
    for n in (1, 2, 9, 33, CONTEXT):
        tokens = rng.integers(0, VOCABULARY, n).tolist()
        expected = models[family].logits(tokens)
        values = {
            kind: sqnr(expected, native_logits(library, models[family].bundle, tokens, kind))
            for kind in (FLOAT32, FLOAT16, INT8)
        }
        assert values[FLOAT32] > 70
        assert values[FLOAT16] > 50
        assert values[INT8] > 30


def test_a_session_reads_what_an_export_writes(bundle: Bundle, library: ctypes.CDLL) -> None:
    """The answers of the reference in PyTorch, after every prompt."""
    from safetensors.numpy import load_file

    answers = load_file(bundle.file(REFERENCE))
    found = [n for n in range(10) if f"{SHIPPED.name}.{n}.logits" in answers]
    assert len(found) > 2
    for n in found:
        expected = answers[f"{SHIPPED.name}.{n}.logits"][0]
        tokens = answers[f"prompt.{n}"].tolist()
        got = native_logits(library, bundle.path, tokens, FLOAT16, len(expected))
        assert sqnr(expected, got) > 60
        assert got.argmax() == expected.argmax()


def test_an_expanded_model_has_the_same_bits(
    models: dict[str, Model], library: ctypes.CDLL
) -> None:
    tokens = list(range(20))
    streamed = native_logits(library, models["qwen3"].bundle, tokens, FLOAT16)
    library.tinyqmoe_set_budget(ctypes.c_uint64(1 << 40))
    try:
        expanded = native_logits(library, models["qwen3"].bundle, tokens, FLOAT16)
    finally:
        library.tinyqmoe_set_budget(ctypes.c_uint64(0))
    assert streamed.tobytes() == expanded.tobytes()


# ---- manifests that must not open ----

NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"


def _artifact(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["artifacts"][0]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no vectors": (lambda m: _artifact(m).pop("vectors"), "both places and vectors"),
    "layers past memory": (lambda m: m["network"].update(layers=1 << 24), "model.layers.2"),
    "no network": (lambda m: m.pop("network"), "network"),
    "version": (lambda m: m["network"].update(version=1), "version"),
    "size": (lambda m: m["network"].update(hidden=0), "network.hidden"),
    "fraction": (lambda m: m["network"].update(layers=1.5), "network.layers"),
    "eps": (lambda m: m["network"].update(eps=-1), "eps"),
    "heads": (lambda m: m["network"].update(heads=5), "kv_heads"),
    "layer too many": (lambda m: m["network"].update(layers=3), "model.layers.2"),
    "layer too few": (lambda m: m["network"].update(layers=1), "model.layers.1"),
    "other shape": (lambda m: m["network"].update(inner=93), "mlp"),
    "missing norm": (lambda m: _artifact(m)["vectors"].pop(NORM), NORM),
    "short norm": (lambda m: _artifact(m)["vectors"][NORM].update(n=59), NORM),
    "unknown vector": (
        lambda m: _artifact(m)["vectors"].update(extra=_artifact(m)["vectors"][NORM]),
        "extra",
    ),
    "outside the file": (lambda m: _artifact(m)["vectors"][NORM].update(offset=1 << 40), NORM),
    "crooked": (lambda m: _artifact(m)["vectors"][NORM].update(offset=2), NORM),
    "outside the bundle": (lambda m: _artifact(m)["places"][Q].update(file="../weights.bin"), Q),
    "absolute": (lambda m: _artifact(m)["places"][Q].update(file="/dev/zero"), Q),
    "no file": (lambda m: _artifact(m)["places"][Q].update(file="nothing"), Q),
    "other form": (lambda m: _artifact(m)["places"][Q].update(form="int8"), Q),
    "no blob there": (lambda m: _artifact(m)["places"][Q].update(offset=0), Q),
    "cut blob": (lambda m: _artifact(m)["places"][Q].update(n_bytes=64), Q),
    "scales": (lambda m: _artifact(m)["places"][Q].update(scales_offset=None), Q),
    "scales outside": (
        lambda m: _artifact(m)["places"][Q].update(scales_offset=1 << 40),
        f"{Q}: BAD_ARGUMENT",
    ),
    "crooked scales": (
        lambda m: _artifact(m)["places"][Q].update(scales_offset=2),
        f"{Q}: BAD_ARGUMENT",
    ),
    "no type of scales": (lambda m: m["tensors"][1].pop("scale_type"), "BAD_ARGUMENT"),
    "unknown type of scales": (
        lambda m: m["tensors"][1].update(scale_type="float16"),
        "BAD_ARGUMENT",
    ),
    "group": (lambda m: m["tensors"][1].update(group_size=0), "matrix"),
    "place without tensor": (lambda m: m["tensors"].pop(), "different matrices"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_manifest_is_refused(
    wrong: str, models: dict[str, Model], library: ctypes.CDLL, tmp_path: Path
) -> None:
    change, word = WRONG[wrong]
    bundle = models["llama"].bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "weights.bin").symlink_to(bundle / "weights.bin")
    session, error = open_session(library, tmp_path)
    assert not session
    assert word in error


def test_a_folder_without_a_manifest_is_refused(library: ctypes.CDLL, tmp_path: Path) -> None:
    assert "manifest.json" in open_session(library, tmp_path)[1]
    (tmp_path / "manifest.json").write_text("{")
    assert "byte" in open_session(library, tmp_path)[1]


def test_numbers_that_overflow_are_reported(
    models: dict[str, Model], library: ctypes.CDLL, tmp_path: Path
) -> None:
    bundle = models["mistral"].bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    weights = bytearray((bundle / "weights.bin").read_bytes())
    offset = _artifact(manifest)["vectors"]["model.layers.1.input_layernorm.weight"]["offset"]
    weights[offset : offset + 4] = np.float32("nan").tobytes()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "weights.bin").write_bytes(weights)
    session, error = open_session(library, tmp_path)
    assert session, error
    tokens = np.zeros(3, np.int32)
    status = library.tinyqmoe_session_feed(session, tokens.ctypes.data, 3, None)
    library.tinyqmoe_session_close(session)
    assert status == 67  # NON_FINITE
