"""The native codec against numpy: every result to the last bit, with every instruction set of this
machine."""

from __future__ import annotations

import mmap
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.codec import native, native_encoder, native_tensor, reference
from exporter.codec.growth import grow, with_codewords
from exporter.codec.native_tensor import NativeTensor
from exporter.errors import CodecError, MissingComponentError
from tests.support.blobs import Levels, make_blob, random_levels, same_bits
from tests.support.paths import GOLDEN

F32 = np.float32
ISAS = native.available_isas()

# (codec, code_bits, cap, level_min, n_levels)
CODECS = [
    ("raw", 2, 0, -1, 3),
    ("raw", 4, 0, -7, 15),
    ("raw", 8, 0, -127, 255),
    ("raw", 8, 0, -128, 256),
    ("base3", 8, 5, -1, 3),
    ("lzw", 12, 3, -1, 3),
    ("lzw", 12, 6, -1, 3),
    ("lzw", 12, 14, -1, 3),
    ("lzw", 12, 6, -15, 31),
    ("lzw", 12, 3, -127, 255),
]
SHAPES = [(1, 1), (33, 43), (7, 172), (66, 300), (4, 2048)]


def quantize(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """The formula of tinyqmoe.h."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    zero = largest < F32(2.0**-100)
    safe = np.where(zero, F32(1), largest)
    quantized = np.rint(x * (F32(32512) / safe))
    scales = np.where(zero, F32(0), largest / F32(32512))
    return np.where(zero, 0, quantized).astype(np.int16), scales[:, 0]


def groups(cols: int, group_size: int) -> list[slice]:
    return [slice(begin, min(begin + group_size, cols)) for begin in range(0, cols, group_size)]


def linear_x16(x: Any, levels: Levels, scales: Any, group_size: int) -> npt.NDArray[np.float32]:
    quantized, x_scales = quantize(x)
    spans = groups(levels.shape[1], group_size)
    accs = [quantized[:, s].astype(np.int64) @ levels[:, s].astype(np.int64).T for s in spans]
    if len(spans) == 1:
        return accs[0].astype(F32) * (x_scales[:, None] * scales[None, :, 0])
    total = np.zeros(accs[0].shape, F32)
    for g, acc in enumerate(accs):
        total += acc.astype(F32) * scales[None, :, g]
    return x_scales[:, None] * total


def linear_f32(x: Any, levels: Levels, scales: Any, group_size: int) -> npt.NDArray[np.float32]:
    """The order of core/linear.h."""
    total = np.zeros((x.shape[0], levels.shape[0]), F32)
    for g, span in enumerate(groups(levels.shape[1], group_size)):
        products = x[:, None, span] * levels[None, :, span].astype(F32)
        p = np.zeros((8, *total.shape), F32)
        for i in range(products.shape[2]):
            p[i % 8] += products[:, :, i]
        total += (((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]))) * scales[
            None, :, g
        ]
    return total


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode(codec: tuple[str, int, int, int, int], shape: tuple[int, int]) -> None:
    levels = random_levels(shape, *codec[3:])
    blob = make_blob(levels, *codec)
    assert np.array_equal(reference.decode(blob), levels)
    with NativeTensor(blob, verify=True) as tensor:
        assert (tensor.info.codec, tensor.info.code_bits, tensor.info.rows, tensor.info.cols) == (
            *codec[:2],
            *shape,
        )
        assert tensor.info.total_bytes == blob.size
        for isa in ISAS:
            assert np.array_equal(tensor.decode_rows(isa=isa), levels)
            begin, end = shape[0] // 3, shape[0] // 2 + 1
            assert np.array_equal(tensor.decode_rows(begin, end, isa=isa), levels[begin:end])
            assert tensor.decode_rows(0, 0, isa=isa).shape == (0, shape[1])


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_products(codec: tuple[str, int, int, int, int], tokens: int) -> None:
    for seed, shape in enumerate(SHAPES):
        levels = random_levels(shape, *codec[3:], seed)
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((tokens, shape[1]), F32)
        x[0, :] *= seed % 2  # one token of zeros
        with NativeTensor(make_blob(levels, *codec)) as tensor:
            for group_size in (shape[1], 128, 100, 32, 7):
                scales = rng.standard_normal((shape[0], -(-shape[1] // group_size)), F32)
                expected = linear_x16(x, levels, scales, group_size)
                floats = linear_f32(x, levels, scales, group_size)
                for isa in ISAS:
                    assert same_bits(tensor.linear_x16(x, scales, group_size, isa=isa), expected)
                    assert same_bits(tensor.linear_f32(x, scales, group_size, isa=isa), floats)
                assert same_bits(tensor.linear_x16(x, scales, group_size, threads=3), expected)
                assert same_bits(tensor.linear_f32(x, scales, group_size, threads=2), floats)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_every_base3_code_meets_a_token(blocks: int) -> None:
    digits = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)  # [243, 5], of code after code
    levels = np.tile(np.repeat(digits, 32, axis=1), blocks)  # all codes of a row are the same
    x = np.random.default_rng(0).standard_normal((1, levels.shape[1]), F32)
    scales = np.ones((levels.shape[0], 1), F32)
    expected = linear_x16(x, levels, scales, levels.shape[1])
    with NativeTensor(make_blob(levels, "base3", 8, 5, -1, 3)) as tensor:
        for isa in ISAS:
            assert same_bits(tensor.linear_x16(x, scales, levels.shape[1], isa=isa), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_matrix(data: st.DataObject) -> None:
    """Coding and decoding give the levels back, whatever they are."""
    codec = data.draw(st.sampled_from(CODECS))
    rows, cols = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 90))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    used = data.draw(st.integers(1, codec[4]))
    levels = (codec[3] + rng.integers(0, used, (rows, cols))).astype(np.int8)
    blob = make_blob(levels, *codec)
    with NativeTensor(blob, verify=True) as tensor:
        for isa in ISAS:
            assert np.array_equal(tensor.decode_rows(isa=isa), levels)
    assert np.array_equal(reference.decode(blob), levels)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40
    )
)
def test_quantize_any_floats(values: list[float]) -> None:
    x = np.array([values], F32)
    with np.errstate(over="ignore", under="ignore"):
        expected = quantize(x)
    for isa in ISAS:
        got = native_tensor.quantize_x16(x, isa=isa)
        assert same_bits(got[0], expected[0])
        assert same_bits(got[1], expected[1])


def test_embedding() -> None:
    levels = random_levels((40, 100), -1, 3)
    scales = np.random.default_rng(0).standard_normal((40, 4), F32)
    ids = np.array([[39, 0, 7], [31, 32, 7]])
    expected = levels[ids].astype(F32) * np.repeat(scales, 32, axis=1)[ids][..., :100]
    with NativeTensor(make_blob(levels, "lzw", 12, 6, -1, 3)) as tensor:
        for isa in ISAS:
            assert same_bits(tensor.embedding(ids, scales, 32, isa=isa), expected)
        for bad in (-1, 40):
            with pytest.raises(CodecError) as caught:
                tensor.embedding([0, bad], scales, 32)
            assert caught.value.status == "BAD_ID"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite(bad: float) -> None:
    x = np.ones((2, 100), F32)
    x[1, 99] = bad
    for isa in ISAS:
        with pytest.raises(CodecError) as caught:
            native_tensor.quantize_x16(x, isa=isa)
        assert caught.value.status == "NON_FINITE"


def test_encode_sizes_and_errors() -> None:
    levels = random_levels((50, 77), -1, 3)
    tree = grow(native_encoder.count_levels(levels)[127:130], -1, (0, 3), 6, 256).dictionary
    dictionary = with_codewords(tree, native_encoder.count_phrases(levels, tree))
    row_bytes, payload = native_encoder.encode_lzw(levels, dictionary)
    counted, nothing = native_encoder.encode_lzw(levels, dictionary, count_only=True)
    assert nothing.size == 0
    assert payload.size == int(row_bytes.sum())
    assert np.array_equal(row_bytes, counted)
    with pytest.raises(CodecError, match="BAD_CODE"):
        native_encoder.encode_lzw(np.ones_like(levels), with_codewords(tree, np.arange(255) < 2))
    levels[3, 5] = 2
    for encode in (
        lambda: native_encoder.encode_lzw(levels, dictionary),
        lambda: native_encoder.count_phrases(levels, dictionary),
        lambda: native_encoder.encode_base3(levels, -1),
        lambda: native_encoder.encode_raw(levels, -1, 3, 2),
    ):
        with pytest.raises(CodecError) as caught:
            encode()
        assert caught.value.status == "BAD_LEVEL"


def test_a_blob_of_the_old_version_is_refused_with_a_next_step() -> None:
    blob = make_blob(random_levels((3, 9), -1, 3), "raw", 2, 0, -1, 3).copy()
    blob[4] = 1
    for decode in (NativeTensor, reference.decode):
        with pytest.raises(CodecError, match="BAD_VERSION") as caught:
            decode(blob)
        assert "export the model again" in str(caught.value) + caught.value.hint


def test_counts_and_crc() -> None:
    levels = np.random.default_rng(0).integers(-128, 128, (9, 1001), dtype=np.int8)
    assert np.array_equal(
        native_encoder.count_levels(levels),
        np.bincount(levels.ravel().astype(int) + 128, minlength=256),
    )
    for n in (0, 1, 7, 8, 9, 1000):
        data = levels.tobytes()[:n]
        assert native.crc32(data) == zlib.crc32(data)
    assert native.crc32(b"456", native.crc32(b"123")) == zlib.crc32(b"123456")


def test_buffers(tmp_path: Path) -> None:
    """A blob is read in place from whatever holds it, and kept alive."""
    levels = random_levels((5, 60), -1, 3)
    blob = make_blob(levels, "lzw", 12, 6, -1, 3)
    path = tmp_path / "blob"
    path.write_bytes(blob.tobytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for buffer in (blob, blob.tobytes(), bytearray(blob), memoryview(blob.tobytes()), mapped):
            tensor = NativeTensor(buffer)
            assert np.array_equal(tensor.decode_rows(), levels)
            tensor.close()
            tensor.close()
            with pytest.raises(ValueError, match="closed"):
                tensor.decode_rows()
            del tensor
    tensor = NativeTensor(blob.tobytes())
    assert np.array_equal(tensor.decode_rows(), levels)


def test_threads_share_a_tensor() -> None:
    levels = random_levels((64, 500), -1, 3)
    with (
        NativeTensor(make_blob(levels, "lzw", 12, 14, -1, 3)) as tensor,
        ThreadPoolExecutor(4) as pool,
    ):
        for decoded in pool.map(lambda _: tensor.decode_rows(), range(16)):
            assert np.array_equal(decoded, levels)


def test_arguments() -> None:
    levels = random_levels((5, 60), -1, 3)
    with NativeTensor(make_blob(levels, "raw", 2, 0, -1, 3)) as tensor:
        scales = np.ones((5, 1), F32)
        with pytest.raises(ValueError, match="scales must be"):
            tensor.linear_x16(np.ones((1, 60), F32), scales, 30)
        with pytest.raises(ValueError, match="activations must be"):
            tensor.linear_x16(np.ones((1, 61), F32), scales, 60)
        with pytest.raises(ValueError, match=r"rows 0\.\.6"):
            tensor.decode_rows(0, 6)
        missing = next(isa for isa in ("neon", "avx2") if isa not in ISAS)
        with pytest.raises(ValueError, match="NO_ISA"):
            tensor.decode_rows(isa=missing)  # type: ignore[arg-type]


def test_library_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_file", lambda: None)
    with pytest.raises(MissingComponentError, match="compiler"):
        native.library.__wrapped__()
    assert (
        Path(native.__file__).parent.parent / "native" / "include" / "tinyqmoe" / "tinyqmoe.h"
    ).is_file()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("errors/*.tqlz")), ids=lambda p: p.stem)
def test_errors_agree_with_the_reference(path: Path) -> None:
    blob = path.read_bytes()
    with pytest.raises(CodecError) as expected:
        reference.decode(blob)
    with pytest.raises(CodecError) as got:
        NativeTensor(blob, verify=True)
    assert got.value.status == expected.value.status
