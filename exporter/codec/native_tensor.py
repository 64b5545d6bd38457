"""TQLZ blobs in the C++ core: opening and decoding them, and products of activations with them.

`exporter/native/include/tinyqmoe/tinyqmoe.h` is the authority on what each call computes.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from exporter.codec.format import CodecId
from exporter.codec.native import (
    ISA_NUMBER,
    SCALE_NUMBER,
    Bytes,
    CEmbeddingArgs,
    CInfo,
    CLinearArgs,
    Isa,
    check,
    library,
)
from exporter.codec.scales import StoredScales, type_of

PASSED_WEIGHTS = 1 << 21
_VERIFY_PAYLOAD = 1
_P = ctypes.c_void_p

Int8Array = npt.NDArray[np.int8]
Int16Array = npt.NDArray[np.int16]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorInfo:
    """The header of a blob, see FORMAT.md section 2."""

    codec: str  # "raw", "lzw" or "base3"
    code_bits: int
    cap: int
    level_min: int
    n_levels: int
    rows: int
    cols: int
    n_entries: int
    header_crc32: int
    payload_bytes: int
    total_bytes: int


def _activations(x: npt.ArrayLike, cols: int | None = None) -> FloatArray:
    array = np.ascontiguousarray(x, np.float32)
    if array.ndim != 2 or (cols is not None and array.shape[1] != cols):
        raise ValueError(f"activations must be [tokens, {cols or 'cols'}], got {array.shape}")
    return array


def _aligned(n_bytes: int) -> npt.NDArray[np.uint8]:
    buffer = np.empty(n_bytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + n_bytes]


def _quantize(x: FloatArray, isa: Isa) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Activations in the core's own quantized form, and their scales.

    The form is uint8 [S, n_bytes] that begins with int16 [S, cols]; the scales are float32 [S].
    """
    tokens, cols = x.shape
    n_bytes = library().tinyqmoe_quantized_bytes(cols)
    quantized = _aligned(tokens * n_bytes).reshape(tokens, n_bytes)
    scales = np.empty(tokens, np.float32)
    status = library().tinyqmoe_quantize_x16(
        x.ctypes.data, tokens, cols, ISA_NUMBER[isa], quantized.ctypes.data, scales.ctypes.data
    )
    check(status, f"activations {x.shape}")
    return quantized, scales


def quantize_x16(x: npt.ArrayLike, isa: Isa = "auto") -> tuple[Int16Array, FloatArray]:
    """Activations quantized symmetrically to int16 per token.

    Returns the integers, int16 [S, cols], and the scales, float32 [S].
    """
    array = _activations(x)
    quantized, scales = _quantize(array, isa)
    return quantized.view(np.int16)[:, : array.shape[1]].copy(), scales


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for products, kept: starting them costs as much as a small product."""
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of them, and would wait


class NativeTensor:
    """An opened blob.

    It reads the buffer in place and keeps it alive. `passed` is called each time that a product has
    read PASSED_WEIGHTS weights a thread, so that a caller may let go of the pages.
    """

    def __init__(
        self, buffer: Bytes, verify: bool = False, passed: Callable[[], None] | None = None
    ) -> None:
        self._handle, self._passed = _P(), passed
        self._bytes = np.frombuffer(buffer, np.uint8)
        flags = _VERIFY_PAYLOAD if verify else 0
        status = library().tinyqmoe_open(
            self._bytes.ctypes.data, self._bytes.size, flags, ctypes.byref(self._handle)
        )
        check(status, f"a TQLZ blob of {self._bytes.size} bytes")
        raw = CInfo()
        library().tinyqmoe_get_info(self._handle, ctypes.byref(raw))
        fields = {name: getattr(raw, name) for name, _ in CInfo._fields_}
        self.info = TensorInfo(**{**fields, "codec": CodecId(raw.codec).name.lower()})

    def close(self) -> None:
        """Frees the tensor; calling it again is fine."""
        if self._handle:
            library().tinyqmoe_close(self._handle)
            self._handle = _P()

    def __enter__(self) -> NativeTensor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _open_handle(self) -> ctypes.c_void_p:
        if not self._handle:
            raise ValueError("the tensor is closed")
        return self._handle

    @property
    def _where(self) -> str:
        i = self.info
        return f"{i.codec} tensor [{i.rows}, {i.cols}], {i.code_bits}-bit codes"

    def decode_rows(self, begin: int = 0, end: int | None = None, isa: Isa = "auto") -> Int8Array:
        """Levels of rows begin..end, int8 [end - begin, cols]."""
        end = self.info.rows if end is None else end
        if not 0 <= begin <= end <= self.info.rows:
            raise ValueError(f"rows {begin}..{end} of a {self._where}")
        levels = np.empty((end - begin, self.info.cols), np.int8)
        status = library().tinyqmoe_decode_rows(
            self._open_handle(), begin, end, ISA_NUMBER[isa], levels.ctypes.data
        )
        check(status, f"rows {begin}..{end} of a {self._where}")
        return levels

    def _scales(self, scales: npt.ArrayLike, group_size: int) -> StoredScales:
        if group_size < 1:
            raise ValueError(f"group_size must be positive, got {group_size}")
        shape = (self.info.rows, -(-self.info.cols // group_size))
        given = np.asarray(scales)
        dtype = np.uint16 if given.dtype == np.uint16 else np.float32
        array = np.require(given, dtype, ["C", "A"])
        if array.shape != shape:
            raise ValueError(f"scales must be {shape}, got {array.shape}")
        return array

    def embedding(
        self, ids: npt.ArrayLike, scales: npt.ArrayLike, group_size: int, isa: Isa = "auto"
    ) -> FloatArray:
        """Rows `ids` of the matrix times their scales, float32 [*ids.shape, cols]."""
        index = np.ascontiguousarray(ids, np.int64)
        factors = self._scales(scales, group_size)
        out = np.empty((*index.shape, self.info.cols), np.float32)
        args = CEmbeddingArgs(
            tensor=self._open_handle(),
            scales=factors.ctypes.data,
            scale_type=SCALE_NUMBER[type_of(factors)],
            group_size=group_size,
            isa=ISA_NUMBER[isa],
            ids=index.ctypes.data,
            n_ids=index.size,
            out=out.ctypes.data,
        )
        status = library().tinyqmoe_embedding(ctypes.byref(args))
        check(status, f"{index.size} ids of a {self._where}")
        return out

    def linear_x16(
        self,
        x: npt.ArrayLike,
        scales: npt.ArrayLike,
        group_size: int,
        threads: int = 1,
        isa: Isa = "auto",
    ) -> FloatArray:
        """The product x W^T with activations quantized to int16 per token, float32 [S, rows]."""
        array = _activations(x, self.info.cols)
        quantized, x_scales = _quantize(array, isa)

        def part(args: CLinearArgs) -> int:
            status: int = library().tinyqmoe_linear_x16(
                ctypes.byref(args), quantized.ctypes.data, x_scales.ctypes.data
            )
            return status

        return self._multiply(part, array.shape[0], scales, group_size, threads, isa)

    def linear_f32(
        self,
        x: npt.ArrayLike,
        scales: npt.ArrayLike,
        group_size: int,
        threads: int = 1,
        isa: Isa = "auto",
    ) -> FloatArray:
        """The product x W^T with float activations, float32 [S, rows].

        The order of the sums is in core/linear.h.
        """
        array = _activations(x, self.info.cols)

        def part(args: CLinearArgs) -> int:
            status: int = library().tinyqmoe_linear_f32(ctypes.byref(args), array.ctypes.data)
            return status

        return self._multiply(part, array.shape[0], scales, group_size, threads, isa)

    def _multiply(
        self,
        part: Callable[[CLinearArgs], int],
        tokens: int,
        scales: npt.ArrayLike,
        group_size: int,
        threads: int,
        isa: Isa,
    ) -> FloatArray:
        """The product of activations with the matrix, its rows split over threads.

        ctypes lets go of the interpreter lock during a call.
        """
        what = f"product of {tokens} tokens with a {self._where}"
        factors = self._scales(scales, group_size)
        y = np.empty((tokens, self.info.rows), np.float32)
        form = _P()
        check(library().tinyqmoe_acquire(self._open_handle(), ctypes.byref(form)), what)
        try:
            handle = library().tinyqmoe_form_tensor(form)
            scratch_bytes = library().tinyqmoe_linear_scratch_bytes(handle, tokens)
            scratches = [_aligned(scratch_bytes) for _ in range(threads)]
            each = _pool(threads).map if threads > 1 else map
            for first, last in self._blocks(form, threads):
                step = -(-(last - first) // threads)
                jobs = [
                    CLinearArgs(
                        tensor=handle,
                        scales=factors.ctypes.data,
                        scale_type=SCALE_NUMBER[type_of(factors)],
                        group_size=group_size,
                        n_tokens=tokens,
                        row_begin=begin,
                        row_end=min(begin + step, last),
                        isa=ISA_NUMBER[isa],
                        scratch=scratch.ctypes.data,
                        scratch_bytes=scratch.size,
                        y=y.ctypes.data,
                    )
                    for begin, scratch in zip(range(first, last, step), scratches, strict=False)
                ]
                for status in each(part, jobs):
                    check(status, what)
        finally:
            library().tinyqmoe_release(form)
        return y

    def _blocks(self, form: _P, threads: int) -> Iterator[tuple[int, int]]:
        """The rows of a product, block by block: see tinyqmoe_form_next_rows."""
        begin, end = ctypes.c_uint32(), ctypes.c_uint32()
        while library().tinyqmoe_form_next_rows(form, ctypes.byref(begin), ctypes.byref(end)):
            if self._passed is None:
                yield begin.value, end.value
                continue
            step = max(1, threads * PASSED_WEIGHTS // self.info.cols)
            for first in range(begin.value, end.value, step):
                yield first, min(first + step, end.value)
                self._passed()
