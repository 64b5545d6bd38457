"""Sessions from Python: the same bits with any threads and pieces, and what is refused."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter import session as sessions
from exporter.bundle import Bundle
from exporter.codec.native import library
from exporter.codec.native_residency import ResidencyManager
from exporter.errors import BundleError, UsageError
from exporter.session import Session
from tests.support.bundles import edit_manifest, patch, place, read, tensor
from tests.support.families import CONTEXT, FAMILIES, VOCABULARY, Model, make_models

TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, CONTEXT).tolist()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return make_models(tmp_path_factory.mktemp("bundles"))


def fed(folder: Path, pieces: list[int], threads: int, batch_tokens: int) -> list[bytes]:
    """The bits of the logits after each piece."""
    session = Session(folder, threads, batch_tokens)
    ends = np.cumsum(pieces)
    return [
        session.feed(TOKENS[end - n : end]).tobytes()
        for end, n in zip(ends.tolist(), pieces, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_and_pieces_make_no_difference_in_bits(
    family: str, models: dict[str, Model]
) -> None:
    folder = models[family].bundle
    steps = fed(folder, [1] * CONTEXT, 1, 1)
    assert len(set(steps)) == CONTEXT, "the logits follow the tokens"
    for threads in (1, 2, 3):
        for batch_tokens in (3, 128):
            for pieces in ([CONTEXT], [1, 2, 30, CONTEXT - 33], [17, CONTEXT - 17]):
                ends = np.cumsum(pieces) - 1
                expected = [steps[end] for end in ends]
                assert fed(folder, pieces, threads, batch_tokens) == expected


def test_trimming_goes_back_to_an_earlier_position(models: dict[str, Model]) -> None:
    session = Session(models["qwen3"].bundle, 2, 128)
    first = session.feed(TOKENS[:20])
    session.trim(7)
    assert session.state().n_positions == 7
    assert session.feed(TOKENS[7:20]).tobytes() == first.tobytes()
    session.trim(0)
    assert session.feed(TOKENS[:20]).tobytes() == first.tobytes()
    with pytest.raises(ValueError, match="position 21 of a session that holds 20"):
        session.trim(21)


def test_the_state_says_what_is_held(models: dict[str, Model]) -> None:
    session = Session(models["llama"].bundle, 3, 128)
    session.feed(TOKENS[:9])
    state = session.state()
    assert (state.n_positions, state.context, state.vocab) == (9, CONTEXT, VOCABULARY)
    assert (state.n_threads, state.n_fed) == (3, 9)
    assert state.mapped_bytes == (models["llama"].bundle / "weights.bin").stat().st_size


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_outside_the_vocabulary_is_refused(token: int, models: dict[str, Model]) -> None:
    session = Session(models["llama"].bundle, 1, 128)
    with pytest.raises(UsageError, match=f"token {token} is outside the vocabulary of 97"):
        session.feed([3, token])
    assert session.state().n_positions == 0


def damaged(model: Model, folder: Path, change: Any) -> Path:
    """A bundle with another manifest over the same weights."""
    manifest = json.loads((model.bundle / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "weights.bin").symlink_to(model.bundle / "weights.bin")
    return folder


def test_a_manifest_that_does_not_fit_its_weights_is_refused(
    models: dict[str, Model], tmp_path: Path
) -> None:
    folder = damaged(models["llama"], tmp_path, lambda m: m["network"].update(inner=93))
    with pytest.raises(BundleError, match=r"mlp.* is missing, or of another shape") as caught:
        Session(folder, 1, 128)
    assert str(folder) in caught.value.what
    assert "export again" in caught.value.hint


def test_a_bias_of_another_length_is_refused(models: dict[str, Model], tmp_path: Path) -> None:
    bias = "model.layers.1.mlp.down_proj.bias"

    def shorten(manifest: dict[str, Any]) -> None:
        manifest["artifacts"][0]["vectors"][bias]["n"] -= 1

    folder = damaged(models["llama with biases"], tmp_path, shorten)
    with pytest.raises(BundleError, match=f"{bias} is not known to this runner"):
        Session(folder, 1, 128)


def test_missing_weights_are_refused(models: dict[str, Model], tmp_path: Path) -> None:
    folder = damaged(models["llama"], tmp_path, lambda m: None)
    (folder / "weights.bin").unlink()
    with pytest.raises(BundleError, match="does not lie in a file of the bundle"):
        Session(folder, 1, 128)


def test_weights_that_overflow_are_an_error(models: dict[str, Model], tmp_path: Path) -> None:
    bundle = models["mistral"].bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    weights = bytearray((bundle / "weights.bin").read_bytes())
    norm = "model.layers.1.input_layernorm.weight"
    offset = manifest["artifacts"][0]["vectors"][norm]["offset"]
    weights[offset : offset + 4] = np.float32("nan").tobytes()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "weights.bin").write_bytes(weights)
    session = Session(tmp_path, 1, 128)
    with pytest.raises(BundleError, match=r"3 tokens at position 0 failed \(NON_FINITE\)"):
        session.feed([1, 2, 3])
    assert session.state().n_positions == 0


# ---- what was changed


class Options(ctypes.Structure):
    """All of tinyqmoe_session_options, on a machine of 64 bits."""

    _fields_ = (
        *sessions._COptions._fields_,
        ("engine", ctypes.c_int),
        ("verify", ctypes.c_uint32),
    )


def verified(folder: Path) -> tuple[int, str]:
    """Status and words of opening a bundle with `verify`."""
    options = Options(struct_bytes=ctypes.sizeof(Options), bundle=os.fsencode(folder), verify=1)
    handle, said = ctypes.c_void_p(), ctypes.create_string_buffer(1000)
    own = ctypes.CDLL(library()._name)  # with signatures of its own
    status = own.tinyqmoe_session_open(
        ctypes.byref(options), ctypes.byref(handle), said, ctypes.c_uint64(1000)
    )
    own.tinyqmoe_session_close(handle)
    return status, said.value.decode()


BAD_PAYLOAD_CRC = 15
MATRIX = "model.layers.0.mlp.gate_proj.weight"


def test_verify_takes_what_was_exported(bundle: Bundle) -> None:
    assert verified(bundle.path) == (0, "")


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_verify_finds_a_flipped_bit(copied: Bundle, where: str) -> None:
    file = copied.path / "model.pte"
    size = file.stat().st_size
    at = {"first": 0, "middle": size // 2, "last": size - 1}[where]
    patch(copied, at, bytes([read(copied, at, 1)[0] ^ 1]))
    status, said = verified(copied.path)
    assert status == BAD_PAYLOAD_CRC
    assert said.startswith("model.pte has been changed: its SHA-256 is not that of manifest.json")


def test_verify_finds_a_changed_tokenizer(copied: Bundle) -> None:
    """The app reads it."""
    file = copied.path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    status, said = verified(copied.path)
    assert status == BAD_PAYLOAD_CRC
    assert said.startswith("tokenizer.json has been changed: its SHA-256")


def test_verify_finds_another_size_and_a_file_that_is_gone(copied: Bundle) -> None:
    file = copied.path / "model.pte"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    said = f"model.pte has {size - 1} bytes, expected {size}: copy the bundle again"
    assert verified(copied.path) == (BAD_PAYLOAD_CRC, said)
    file.unlink()
    assert verified(copied.path) == (
        BAD_PAYLOAD_CRC,
        "model.pte cannot be read: copy the bundle again",
    )


def test_verify_needs_the_digests(copied: Bundle) -> None:
    edit_manifest(copied.path, lambda raw: raw.update(files=[]))
    assert "model.pte has no size and SHA-256" in verified(copied.path)[1]
    edit_manifest(copied.path, lambda raw: raw["artifacts"][0].update(files=[]))
    assert "no artifact has places, vectors and files" in verified(copied.path)[1]


@pytest.fixture
def expanding(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Weights are expanded, into memory or into files."""
    manager = ResidencyManager(library())
    manager.set_budget((1 << 64) - 1 if request.param == "memory" else 0)
    manager.set_cache_dir(None if request.param == "memory" else tmp_path)
    yield
    manager.set_cache_dir(None)
    manager.set_budget(0)


@pytest.mark.parametrize("expanding", ["memory", "files"], indirect=True)
def test_a_damaged_payload_is_not_expanded(expanding: None, copied: Bundle) -> None:
    """Its bytes are codes that can be read, of other weights."""
    assert tensor(copied, MATRIX).codec == "base3"
    end = place(copied, MATRIX).offset + place(copied, MATRIX).n_bytes // 64 * 32
    payload = read(copied, end, 2)
    patch(copied, end, bytes([(payload[0] + 1) % 243, payload[1]]))
    session = Session(copied.path, 1, 8)
    for _ in range(2):
        with pytest.raises(BundleError, match="BAD_PAYLOAD_CRC"):
            session.feed([1, 2, 3])
    assert session.state().n_positions == 0


@pytest.mark.parametrize("expanding", ["memory", "files"], indirect=True)
def test_expanded_weights_have_the_same_bits(
    expanding: None, bundle: Bundle, tmp_path: Path
) -> None:
    expanded = Session(bundle.path, 1, 8).feed([1, 2, 3]).tobytes()
    ResidencyManager(library()).set_cache_dir(None)
    ResidencyManager(library()).set_budget(0)
    assert Session(bundle.path, 1, 8).feed([1, 2, 3]).tobytes() == expanded
