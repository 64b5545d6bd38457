"""The codec: round trips, its two decoders against each other, and what it promises about size."""

from __future__ import annotations

import functools
import heapq
import tracemalloc
import zlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.codec import encoder, reference
from exporter.codec.dictionary import Dictionary, round_shares
from exporter.codec.encoder import encode
from exporter.codec.format import CodecId, Header
from exporter.codec.native import NativeTensor
from exporter.errors import CodecError
from tests.support.make_golden import slow_lzw, slow_raw

Levels = npt.NDArray[np.int8]


def ternary(zeros: float, shape: tuple[int, int], seed: int = 0) -> Levels:
    """Ternary levels int8 [rows, cols] with a share of zeros."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, shape, dtype=np.int8) * np.int8(2) - np.int8(1)
    return np.where(rng.random(shape) < zeros, np.int8(0), signs)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Levels, int, int]:
    """Levels of a random shape, alphabet and skew, with level_min and n_levels."""
    n_levels = draw(st.sampled_from([2, 3, 4, 5, 15, 16, 31, 129, 255, 256]))
    level_min = draw(st.integers(-128, 128 - n_levels))
    shape = (draw(st.integers(1, 70)), draw(st.integers(1, 90)))
    skew = draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    usual = level_min + int(rng.integers(n_levels))
    others = rng.integers(level_min, level_min + n_levels, shape)
    return np.where(rng.random(shape) < skew, usual, others).astype(np.int8), level_min, n_levels


def native_decode(blob: npt.NDArray[np.uint8]) -> Levels:
    """All rows through the native decoder."""
    with NativeTensor(blob, verify=True) as tensor:
        return tensor.decode_rows()


# ---- Round trips ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(["auto", "lzw", "raw"]))
def test_round_trip(case: tuple[Levels, int, int], codec: encoder.Codec) -> None:
    levels, level_min, n_levels = case
    coded = encode(levels, level_min, n_levels, codec)
    assert np.array_equal(reference.decode(coded.blob), levels)
    assert np.array_equal(native_decode(coded.blob), levels)
    assert coded.levels_crc32 == zlib.crc32(levels.tobytes())
    assert coded.sizes_bytes[f"{coded.codec}{coded.code_bits}"] == len(coded.blob)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from([8, 12, 16]), st.sampled_from([16, 32]))
def test_every_width_and_cap_gives_the_bytes_of_the_slow_encoder(
    case: tuple[Levels, int, int], code_bits: int, cap: int
) -> None:
    levels, level_min, n_levels = case
    counts = np.bincount(levels.ravel().astype(np.int64) - level_min, minlength=n_levels)
    dictionary = Dictionary.grow(counts, level_min, n_levels, code_bits, cap)
    blob = encoder.encode_with(levels, dictionary)
    assert blob.tobytes() == slow_lzw(levels, dictionary)
    assert np.array_equal(native_decode(blob), levels)


@settings(max_examples=30, deadline=None)
@given(matrices())
def test_raw_gives_the_bytes_of_the_slow_encoder(case: tuple[Levels, int, int]) -> None:
    coded = encode(*case, "raw")
    assert coded.blob.tobytes() == slow_raw(*case, coded.code_bits)


def test_levels_need_not_be_contiguous() -> None:
    levels = ternary(0.8, (64, 66))
    assert np.array_equal(reference.decode(encode(levels.T, -1, 3).blob), levels.T)


def test_encoding_is_deterministic() -> None:
    levels = ternary(0.7, (40, 300))
    assert encode(levels, -1, 3).blob.tobytes() == encode(levels.copy(), -1, 3).blob.tobytes()


def test_a_constant_matrix_has_no_entropy() -> None:
    coded = encode(np.zeros((64, 512), np.int8), -1, 3)
    assert coded.entropy_bits == 0
    assert coded.codec == "lzw"
    assert coded.bits_per_weight < 0.5


@pytest.mark.parametrize("codec", ["auto", "raw"])
def test_memory_does_not_grow_with_the_matrix(
    codec: encoder.Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "BLOCK_BYTES", 1 << 18)
    levels = ternary(0.9, (4096, 2048))
    encode(levels, -1, 3, codec)  # grows the dictionaries, which are kept
    tracemalloc.start()
    coded = encode(levels, -1, 3, codec)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < coded.blob.nbytes + levels.nbytes / 4


# ---- What encode refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "level_min", "n_levels", "status"),
    [
        (np.zeros((2, 2), np.int16), -1, 3, "BAD_ARGUMENT"),
        (np.zeros(4, np.int8), -1, 3, "BAD_ARGUMENT"),
        (np.full((2, 2), 2, np.int8), -1, 3, "BAD_LEVEL"),
        (np.full((2, 2), -2, np.int8), -1, 3, "BAD_LEVEL"),
        (np.zeros((2, 2), np.int8), 0, 1, "BAD_ALPHABET"),
        (np.zeros((2, 2), np.int8), -1, 300, "BAD_ALPHABET"),
        (np.zeros((0, 2), np.int8), -1, 3, "BAD_SHAPE"),
        (np.zeros((1, 65536), np.int8), -1, 3, "BAD_SHAPE"),
    ],
)
def test_encode_refuses(
    levels: npt.NDArray[np.generic], level_min: int, n_levels: int, status: str
) -> None:
    with pytest.raises(CodecError) as error:
        encode(levels, level_min, n_levels)  # type: ignore[arg-type]
    assert error.value.status == status


def test_a_result_that_decodes_to_something_else_is_an_error() -> None:
    levels = ternary(0.5, (40, 64))
    blob = encode(levels, -1, 3, "raw").blob
    levels[39, 63] += 1 if levels[39, 63] < 1 else -1
    with pytest.raises(CodecError):
        encoder.verify(blob, levels)


# ---- Size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [1 / 3, 0.5, 0.7, 0.8])
def test_twelve_bit_codewords_come_within_six_percent_of_the_entropy(zeros: float) -> None:
    levels = ternary(zeros, (512, 2048))
    coded = encode(levels, -1, 3, "lzw")
    bits = coded.sizes_bytes["lzw12"] * 8 / levels.size
    assert coded.entropy_bits <= bits <= 1.06 * coded.entropy_bits


def test_raw_has_the_size_of_its_width() -> None:
    coded = encode(ternary(0.3, (256, 1024)), -1, 3, "raw")
    assert coded.bits_per_weight == pytest.approx(2, rel=0.003)


def test_auto_is_never_larger_than_raw() -> None:
    rng = np.random.default_rng(1)
    for levels, low, n in [
        (ternary(0.9, (300, 500)), -1, 3),
        (rng.integers(-127, 128, (64, 300)).astype(np.int8), -127, 255),
        (ternary(0.9, (2, 5)), -1, 3),
    ]:
        coded = encode(levels, low, n)
        raw = next(size for name, size in coded.sizes_bytes.items() if name.startswith("raw"))
        assert len(coded.blob) <= raw
        assert coded.codec == ("lzw" if len(coded.blob) < raw else "raw")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({8: 1000, 12: 996, 16: 979}, 16),  # 12 saves too little over 8; 16 saves enough over 8
        ({8: 1000, 12: 996, 16: 981}, 8),
        ({8: 1000, 12: 994, 16: 979}, 12),
        ({8: 1000, 12: 1001, 16: 1002}, 8),
    ],
)
def test_a_wider_codeword_has_to_earn_its_table(sizes: dict[int, float], expected: int) -> None:
    dictionary = Dictionary.grow(np.array([1, 1]), 0, 2, 8, 16)
    candidates = [
        encoder.Candidate(
            # Payloads in units of 64 KiB, so that the tables and the padding do not matter.
            Header(CodecId.LZW, bits, 16, 0, 2, 1, 65535, 256, int(size * 65536)),
            dictionary,
        )
        for bits, size in sizes.items()
    ]
    assert encoder.choose(candidates).header.code_bits == expected


def test_the_longer_cap_is_for_sparse_tensors() -> None:
    assert encode(ternary(1 / 3, (64, 512)), -1, 3, "lzw").cap == 16
    assert encode(ternary(0.9, (64, 512)), -1, 3, "lzw").cap == 32


# ---- The dictionary ------------------------------------------------------------------------------

counts_strategy = st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any)


@settings(max_examples=40, deadline=None)
@given(counts_strategy, st.sampled_from([8, 12]), st.sampled_from([16, 32]))
def test_a_dictionary_is_complete(counts: list[int], code_bits: int, cap: int) -> None:
    n = len(counts)
    phrases = Dictionary.grow(np.array(counts), -1, n, code_bits, cap).phrases()
    assert (
        sum(Fraction(1, n ** len(phrase)) for phrase in phrases) == 1
    )  # Kraft: nothing missing, nothing twice
    assert len(set(phrases)) == len(phrases)
    assert max(map(len, phrases)) <= cap


def one_split_at_a_time(shares: tuple[int, ...], code_bits: int, cap: int) -> list[tuple[int, ...]]:
    """Phrases by FORMAT.md section 7, to the letter."""
    p = [share / sum(shares) for share in shares]
    leaves: list[tuple[float, int, tuple[int, ...]]] = [(-1.0, 0, ())]
    at_cap, made = [], 1
    while leaves and len(leaves) + len(at_cap) + len(p) - 1 <= 2**code_bits:
        negative, _, phrase = heapq.heappop(leaves)
        for i, share in enumerate(p):
            if len(phrase) + 1 < cap:
                heapq.heappush(leaves, (negative * share, made, (*phrase, i)))
            else:
                at_cap.append((*phrase, i))
            made += 1
    return sorted([phrase for _, _, phrase in leaves] + at_cap)


@settings(max_examples=40, deadline=None)
@given(counts_strategy, st.sampled_from([8, 12]), st.sampled_from([16, 32]))
def test_growth_is_one_split_at_a_time(counts: list[int], code_bits: int, cap: int) -> None:
    dictionary = Dictionary.grow(np.array(counts), 0, len(counts), code_bits, cap)
    assert dictionary.phrases() == one_split_at_a_time(
        round_shares(np.array(counts)), code_bits, cap
    )


@settings(max_examples=40, deadline=None)
@given(counts_strategy, st.sampled_from([8, 12, 16]))
def test_a_dictionary_survives_its_bits(counts: list[int], code_bits: int) -> None:
    grown = Dictionary.grow(np.array(counts), -1, len(counts), code_bits, 32)
    read = Dictionary.from_bits(
        grown.to_bits(),
        level_min=-1,
        n_levels=grown.n_levels,
        code_bits=code_bits,
        cap=32,
        n_entries=grown.n_entries,
    )
    assert read == grown


def test_shares_are_rounded_half_up_and_never_zero() -> None:
    assert round_shares(np.array([1, 511, 0])) == (1, 256, 1)  # 0.5 of 256 rounds to 1
    assert round_shares(np.array([3, 509])) == (2, 255)  # 1.5 and 254.5
    assert round_shares(np.array([0, 0])) == (1, 1)


def test_mean_phrase_length_is_the_expectation() -> None:
    dictionary = Dictionary.grow(np.array([10, 80, 10]), -1, 3, 8, 16)
    shares = (0.2, 0.7, 0.1)
    expected = 0.0
    for phrase in dictionary.phrases():
        expected += len(phrase) * float(np.prod([shares[level + 1] for level in phrase]))
    assert dictionary.mean_phrase_length(shares) == pytest.approx(expected)


def test_a_dictionary_needs_a_count_for_every_level() -> None:
    with pytest.raises(CodecError, match="BAD_ARGUMENT"):
        Dictionary.grow(np.array([1, 2]), -1, 3, 8, 16)


# ---- Damage --------------------------------------------------------------------------------------


@functools.cache
def small_blob(codec: str) -> bytes:
    """A blob of a few hundred bytes."""
    levels = ternary(0.6, (3, 30))
    if codec == "raw":
        return encode(levels, -1, 3, "raw").blob.tobytes()
    return encoder.encode_with(levels, Dictionary.grow(np.array([1, 3, 1]), -1, 3, 8, 16)).tobytes()


@pytest.mark.parametrize("codec", ["lzw", "raw"])
def test_every_truncation_is_an_error(codec: str) -> None:
    blob = small_blob(codec)
    for n_bytes in range(len(blob)):
        with pytest.raises(CodecError, match="TRUNCATED"):
            reference.decode(blob[:n_bytes])
        with pytest.raises(CodecError, match="TRUNCATED"):
            native_decode(np.frombuffer(blob[:n_bytes], np.uint8))


@pytest.mark.parametrize("codec", ["lzw", "raw"])
def test_every_changed_byte_is_an_error(codec: str) -> None:
    blob = small_blob(codec)
    for at in range(len(blob)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = np.frombuffer(blob, np.uint8).copy()
            damaged[at] ^= flip
            with pytest.raises(CodecError) as slow:
                reference.decode(damaged)
            with pytest.raises(CodecError) as fast:
                native_decode(damaged)
            assert slow.value.status == fast.value.status, f"byte {at} ^ {flip:02x}"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_both_decoders_agree_on_damage_behind_right_crcs(data: st.DataObject) -> None:
    blob = np.frombuffer(small_blob(data.draw(st.sampled_from(["lzw", "raw"]))), np.uint8).copy()
    header = Header.parse(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[
            data.draw(st.integers(64, header.layout.payload_offset + header.payload_bytes - 1))
        ] ^= data.draw(st.integers(1, 255))
    seal_crcs(blob, header)
    assert outcome(reference.decode, blob) == outcome(native_decode, blob)


def seal_crcs(blob: npt.NDArray[np.uint8], header: Header) -> None:
    """Makes the CRCs right again."""
    at, end = header.layout.payload_offset, header.layout.payload_offset + header.payload_bytes
    blob[48:52] = np.frombuffer(zlib.crc32(blob[64:at]).to_bytes(4, "little"), np.uint8)
    blob[52:56] = np.frombuffer(zlib.crc32(blob[at:end]).to_bytes(4, "little"), np.uint8)
    blob[60:64] = np.frombuffer(zlib.crc32(blob[:60]).to_bytes(4, "little"), np.uint8)


def outcome(
    decode: Callable[[npt.NDArray[np.uint8]], Levels], blob: npt.NDArray[np.uint8]
) -> bytes | str:
    """The levels' bytes, or whether opening or a row is at fault.

    A row with several faults may be reported by any of them, so errors of rows count as one.
    """
    try:
        return decode(blob).tobytes()
    except CodecError as error:
        return (
            "row"
            if error.status in ("BAD_CODE", "BAD_ROW_LENGTH", "BAD_LEVEL", "BAD_PADDING")
            else error.status
        )
