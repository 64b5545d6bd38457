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
from exporter.codec.dictionary import Dictionary
from exporter.codec.encoder import Candidate, encode
from exporter.codec.format import CodecId, Header
from exporter.codec.growth import best_cap, code_lengths, cores, grow, with_codewords
from exporter.codec.native_tensor import NativeTensor
from exporter.errors import CodecError
from tests.support.golden.slow_encoder import count_entries, slow_base3, slow_lzw, slow_raw

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
    name = f"raw{coded.code_bits}" if coded.codec == "raw" else coded.codec
    assert coded.sizes_bytes[name] == len(coded.blob)


@st.composite
def dictionaries(draw: st.DrawFn) -> tuple[Levels, Dictionary]:
    """Levels, and a dictionary of any core, cap and size with codewords for their phrases."""
    levels, level_min, n_levels = draw(matrices())
    first = draw(st.integers(0, n_levels - 1))
    n_core = draw(st.integers(1, n_levels - first))
    n_children = n_core + (n_core < n_levels)
    counts = np.bincount(levels.ravel().astype(np.int64) - level_min, minlength=n_levels)
    entries = draw(st.integers(n_children, 256))
    cap = draw(st.sampled_from([3, 6, 14]))
    tree = grow(counts, level_min, (first, n_core), cap, entries).dictionary
    return levels, with_codewords(tree, count_entries(levels, tree))


@settings(max_examples=100, deadline=None)
@given(dictionaries())
def test_every_dictionary_gives_the_bytes_of_the_slow_encoder(
    case: tuple[Levels, Dictionary],
) -> None:
    levels, dictionary = case
    blob = encoder.encode_with(levels, dictionary)
    assert blob.tobytes() == slow_lzw(levels, dictionary)
    assert np.array_equal(native_decode(blob), levels)
    assert np.array_equal(reference.decode(blob), levels)


@settings(max_examples=40, deadline=None)
@given(st.integers(-128, 125), st.integers(1, 9), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_base3_gives_the_bytes_of_the_slow_encoder(
    level_min: int, rows: int, cols: int, seed: int
) -> None:
    drawn = np.random.default_rng(seed).integers(level_min, level_min + 3, (rows, cols))
    levels = drawn.astype(np.int8)
    coded = encode(levels, level_min, 3, "base3")
    assert coded.blob.tobytes() == slow_base3(levels, level_min)
    assert np.array_equal(native_decode(coded.blob), levels)
    assert np.array_equal(reference.decode(coded.blob), levels)


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


def gaussian(entropy: float, shape: tuple[int, int]) -> Levels:
    """Levels of a normal distribution with about this entropy, int8 [rows, cols]."""
    deviation = 2**entropy / np.sqrt(2 * np.pi * np.e)
    drawn = np.random.default_rng(1).normal(0, deviation, shape)
    return np.clip(np.rint(drawn), -127, 127).astype(np.int8)


@pytest.mark.parametrize("entropy", [2.0, 3.0, 4.4, 6.0])
@pytest.mark.parametrize(("cols", "most"), [(576, 1.02), (2048, 1.012)])
def test_phrases_come_close_to_the_entropy(entropy: float, cols: int, most: float) -> None:
    coded = encode(gaussian(entropy, (1536, cols)), -127, 255, "lzw")
    assert coded.codec == "lzw"
    assert 1 <= coded.bits_per_weight / coded.entropy_bits <= most


@pytest.mark.parametrize("zeros", [1 / 3, 0.5, 0.7, 0.8, 0.9])
def test_ternary_comes_close_to_the_entropy(zeros: float) -> None:
    coded = encode(ternary(zeros, (1024, 2048)), -1, 3)
    assert 1 <= coded.bits_per_weight / coded.entropy_bits <= 1.015
    assert coded.codec == ("base3" if zeros < 0.4 else "lzw")


def test_raw_has_the_size_of_its_width() -> None:
    coded = encode(ternary(0.3, (256, 1024)), -1, 3, "raw")
    assert coded.bits_per_weight == pytest.approx(2, rel=0.003)


def test_auto_is_never_larger_than_raw() -> None:
    rng = np.random.default_rng(1)
    for levels, low, n, codec in [
        (ternary(0.9, (300, 500)), -1, 3, "lzw"),
        (rng.integers(-127, 128, (64, 300)).astype(np.int8), -127, 255, "raw"),
        (rng.integers(-1, 2, (64, 300)).astype(np.int8), -1, 3, "base3"),
        (ternary(0.9, (2, 5)), -1, 3, "raw"),
    ]:
        coded = encode(levels, low, n)
        raw = next(size for name, size in coded.sizes_bytes.items() if name.startswith("raw"))
        assert len(coded.blob) <= raw
        assert coded.codec == codec


def candidate(codec: str, n_bytes: int) -> Candidate:
    """A candidate of some size: one row of a byte a column."""
    if codec == "lzw":
        index = {"core_first": 0, "n_core": 3, "index_bytes": 4}
        return Candidate(
            Header(CodecId.LZW, 12, 6, -1, 3, 1, 9, 255, n_bytes, **index)  # type: ignore[arg-type]
        )
    codec_id, bits, cap = (CodecId.RAW, 8, 0) if codec == "raw" else (CodecId.BASE3, 8, 5)
    return Candidate(Header(codec_id, bits, cap, -1, 3, 1, 9, 0, n_bytes))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"raw": 1000, "lzw": 760}, "raw"),  # it saves too little to be worth its decoding
        ({"raw": 1000, "lzw": 740}, "lzw"),
        ({"raw": 1000, "base3": 800, "lzw": 765}, "base3"),
        ({"raw": 1000, "base3": 800, "lzw": 755}, "lzw"),
        ({"raw": 1000, "base3": 880, "lzw": 740}, "lzw"),
        ({"raw": 1000, "lzw": 1100}, "raw"),
    ],
)
def test_a_slower_codec_has_to_save_something(sizes: dict[str, int], expected: str) -> None:
    # In units of 64 KiB, so that the tables and the padding do not matter.
    candidates = [candidate(codec, size * 65536) for codec, size in sizes.items()]
    assert encoder.choose(candidates).codec == expected


def test_no_dictionary_is_grown_where_none_can_pay() -> None:
    rng = np.random.default_rng(1)
    coded = encode(rng.integers(-127, 128, (64, 300)).astype(np.int8), -127, 255)
    assert list(coded.sizes_bytes) == ["raw8"]


@pytest.mark.parametrize(("entropy", "cap"), [(0.0, 14), (0.9, 14), (1.5, 6), (3.0, 3), (8.0, 3)])
def test_the_cap_follows_what_a_window_holds(entropy: float, cap: int) -> None:
    assert best_cap(entropy) == cap


# ---- The dictionary ------------------------------------------------------------------------------

counts_strategy = st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any)


@settings(max_examples=60, deadline=None)
@given(counts_strategy, st.sampled_from([3, 6, 14]), st.integers(41, 256), st.data())
def test_a_dictionary_is_complete(
    counts: list[int], cap: int, max_entries: int, data: st.DataObject
) -> None:
    core = data.draw(st.sampled_from(cores(np.array(counts))))
    dictionary = grow(np.array(counts), -1, core, cap, max_entries).dictionary
    paths = list(dictionary.paths())
    n = dictionary.n_children
    # Kraft: nothing missing, nothing twice.
    assert sum(Fraction(1, n ** len(path)) for path in paths) == 1
    assert len(set(paths)) == len(paths) == dictionary.n_entries
    assert max(map(len, paths)) <= cap
    assert max_entries - n + 1 < len(paths) <= max_entries or max(map(len, paths)) == cap
    escape = dictionary.n_core if dictionary.has_escape else None
    assert all(child != escape for path in paths for child in path[:-1])


@settings(max_examples=40, deadline=None)
@given(counts_strategy, st.sampled_from([3, 6, 14]))
def test_growth_splits_the_most_probable_leaf(counts: list[int], cap: int) -> None:
    """No inner node is less probable than a leaf that could have been split."""
    shares = np.array(counts) / sum(counts)
    grown = grow(np.array(counts), 0, (0, len(counts)), cap, 256)
    paths = list(grown.dictionary.paths())
    probability = [float(np.prod(shares[list(path)])) for path in paths]
    assert np.allclose(grown.share, probability)
    inner = {path[:n] for path in paths for n in range(len(path))}
    least = min(float(np.prod(shares[list(path)])) for path in inner)
    split = [p for p, path in zip(probability, paths, strict=True) if len(path) < cap]
    assert max(split, default=0.0) <= least * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=60))
def test_code_lengths_are_those_of_huffman_where_the_limit_does_not_matter(
    counts: list[int],
) -> None:
    lengths = list(code_lengths(np.array(counts)))
    used = [bits for bits in lengths if bits]
    assert sum(Fraction(1, 2**bits) for bits in used) == 1
    assert max(used) <= 12
    assert all(bits > 0 for bits, count in zip(lengths, counts, strict=True) if count)
    if max(used) < 12 and sum(count > 0 for count in counts) > 1:
        cost = sum(bits * count for bits, count in zip(lengths, counts, strict=True))
        assert cost == huffman_cost([count for count in counts if count])


def huffman_cost(counts: list[int]) -> int:
    """Bits of the best prefix code, without a limit."""
    heap, cost = [*counts], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, pair)
        cost += pair
    return cost


def test_the_limit_of_a_codeword_holds_at_the_least_cost() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 20:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = list(code_lengths(np.array(fibonacci)))
    assert max(lengths) == 12
    assert sum(Fraction(1, 2**bits) for bits in lengths) == 1
    # One step along any direction that keeps the code complete does not lower the cost.
    cost = sum(bits * count for bits, count in zip(lengths, fibonacci, strict=True))
    assert huffman_cost(fibonacci) < cost < huffman_cost(fibonacci) * 1.01


@settings(max_examples=40, deadline=None)
@given(dictionaries())
def test_a_dictionary_survives_its_bytes(case: tuple[Levels, Dictionary]) -> None:
    _, d = case
    read = Dictionary.from_bytes(
        d.to_bytes(),
        level_min=d.level_min,
        n_levels=d.n_levels,
        core_first=d.core_first,
        n_core=d.n_core,
        cap=d.cap,
        n_entries=d.n_entries,
    )
    assert read == d


# ---- Damage --------------------------------------------------------------------------------------


@functools.cache
def small_blob(codec: encoder.Codec) -> bytes:
    """A blob of a few hundred bytes; that of lzw has escapes."""
    if codec != "lzw":
        return encode(ternary(0.6, (3, 30)), -1, 3, codec).blob.tobytes()
    levels = gaussian(2.5, (40, 30))
    counts = np.bincount(levels.ravel().astype(np.int64) + 20, minlength=41)
    tree = grow(counts, -20, (18, 5), 3, 41).dictionary
    coded = with_codewords(tree, count_entries(levels, tree))
    return encoder.encode_with(levels, coded).tobytes()


@pytest.mark.parametrize("codec", ["lzw", "base3", "raw"])
def test_every_truncation_is_an_error(codec: encoder.Codec) -> None:
    blob = small_blob(codec)
    for n_bytes in range(len(blob)):
        with pytest.raises(CodecError, match="TRUNCATED"):
            reference.decode(blob[:n_bytes])
        with pytest.raises(CodecError, match="TRUNCATED"):
            native_decode(np.frombuffer(blob[:n_bytes], np.uint8))


@pytest.mark.parametrize("codec", ["lzw", "base3", "raw"])
def test_every_changed_byte_is_an_error(codec: encoder.Codec) -> None:
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
    blob = np.frombuffer(
        small_blob(data.draw(st.sampled_from(["lzw", "base3", "raw"]))), np.uint8
    ).copy()
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
