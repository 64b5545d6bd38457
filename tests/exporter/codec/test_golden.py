"""The golden vectors, through every decoder there is in Python, and the script that writes them."""

from __future__ import annotations

import filecmp
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from exporter.codec import reference
from exporter.codec.encoder import encode
from exporter.codec.native import Isa, available_isas
from exporter.codec.native_tensor import NativeTensor, quantize_x16
from exporter.codec.scales import StoredScales
from exporter.errors import CodecError
from tests.support.golden.blobs import EXAMPLE
from tests.support.golden.errors import STATUS_NUMBERS
from tests.support.golden.hexdump import FORMAT_MD, with_hexdump
from tests.support.golden.make import make
from tests.support.paths import GOLDEN

Row = dict[str, str]
ISAS = available_isas()
# By hand, and by `tests.support.golden`'s other scripts.
WRITTEN_ELSEWHERE = ("README.md", "chat.json", "demo.json", "policy.tsv")


def table(name: str) -> list[Row]:
    """The lines of a .tsv, by column."""
    columns, *lines = [
        line.split("\t") for line in (GOLDEN / f"{name}.tsv").read_text("ascii").splitlines()
    ]
    return [dict(zip(columns, line, strict=True)) for line in lines]


def rows_of(name: str) -> pytest.MarkDecorator:
    """One test a line."""
    lines = table(name)
    return pytest.mark.parametrize(
        "row",
        lines,
        ids=[Path(row.get("scales", next(iter(row.values())))).name.split(".")[0] for row in lines],
    )


def blob_of(row: Row, column: str = "file") -> npt.NDArray[np.uint8]:
    """The bytes of a blob."""
    return np.fromfile(GOLDEN / row[column], np.uint8)


def crc(array: npt.NDArray[np.generic]) -> str:
    """As the tables write it."""
    return f"{zlib.crc32(np.ascontiguousarray(array)):08x}"


# ---- Files ---------------------------------------------------------------------------------------


def test_the_script_writes_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = sorted(
        path.relative_to(GOLDEN)
        for path in GOLDEN.rglob("*")
        if path.is_file() and path.name not in WRITTEN_ELSEWHERE
    )
    assert written == kept
    assert [
        path for path in written if not filecmp.cmp(tmp_path / path, GOLDEN / path, shallow=False)
    ] == []


def test_the_hexdump_in_the_format_is_the_golden_file() -> None:
    text = FORMAT_MD.read_text("utf-8")
    assert with_hexdump(text) == text
    assert (GOLDEN / f"decode/{EXAMPLE.name}.tqlz").read_bytes() == EXAMPLE.blob()


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 600_000


def test_every_status_that_bytes_can_cause_has_a_file() -> None:
    assert {row["status"] for row in table("errors")} == set(STATUS_NUMBERS)
    assert {int(row["number"]) for row in table("errors")} == set(range(1, 19))


# ---- Decoding ------------------------------------------------------------------------------------


@rows_of("decode")
def test_reference_decodes(row: Row) -> None:
    levels = reference.decode(blob_of(row))
    assert levels.shape == (int(row["rows"]), int(row["cols"]))
    assert crc(levels) == row["levels_crc32"]


@pytest.mark.parametrize("isa", ISAS)
@rows_of("decode")
def test_native_decodes(row: Row, isa: Isa) -> None:
    with NativeTensor(blob_of(row), verify=True) as tensor:
        levels = tensor.decode_rows(isa=isa)
    assert crc(levels) == row["levels_crc32"]


@rows_of("decode")
def test_the_encoder_gives_levels_back(row: Row) -> None:
    levels = reference.decode(blob_of(row))
    coded = encode(
        levels,
        int(row["level_min"]),
        int(row["n_levels"]),
        row["codec"],  # type: ignore[arg-type]
    )
    assert f"{coded.levels_crc32:08x}" == row["levels_crc32"]


# ---- Errors --------------------------------------------------------------------------------------


@rows_of("errors")
def test_reference_rejects(row: Row) -> None:
    with pytest.raises(CodecError) as error:
        reference.decode(blob_of(row))
    assert error.value.status == row["status"]
    if row["stage"] != "verify":
        with pytest.raises(CodecError) as error:
            reference.decode(blob_of(row), verify=False)
        assert error.value.status == row["status"]


@rows_of("errors")
def test_native_rejects(row: Row) -> None:
    with pytest.raises(CodecError) as error:
        NativeTensor(blob_of(row), verify=True)
    assert error.value.status == row["status"]


@pytest.mark.parametrize("isa", ISAS)
@rows_of("errors")
def test_native_rejects_at_its_stage(row: Row, isa: Isa) -> None:
    if row["stage"] == "open":
        with pytest.raises(CodecError) as error:
            NativeTensor(blob_of(row), verify=False)
        assert error.value.status == row["status"]
        return
    with NativeTensor(blob_of(row), verify=False) as tensor:
        if row["stage"] == "row":
            with pytest.raises(CodecError) as error:
                tensor.decode_rows(isa=isa)
            assert error.value.status == row["status"]


# ---- Products and look-ups -----------------------------------------------------------------------


def scales_of(row: Row, tensor: NativeTensor) -> StoredScales:
    """Scales as they are stored, [rows, groups]."""
    dtype = {"float32": "<f4", "ue6m10": "<u2"}[row["scale_type"]]
    return np.fromfile(GOLDEN / row["scales"], dtype).reshape(tensor.info.rows, -1)


@pytest.mark.parametrize("isa", ISAS)
@rows_of("linear")
def test_native_products_have_the_bits_of_numpy(row: Row, isa: Isa) -> None:
    group_size, n_tokens = int(row["group_size"]), int(row["n_tokens"])
    x = np.fromfile(GOLDEN / row["activations"], "<f4").reshape(n_tokens, -1)
    quantized, _ = quantize_x16(x, isa=isa)
    assert crc(quantized) == row["quantized_crc32"]
    with NativeTensor(blob_of(row, "blob")) as tensor:
        y = tensor.linear_x16(x, scales_of(row, tensor), group_size, isa=isa)
    assert y.shape == (n_tokens, tensor.info.rows)
    assert crc(y) == row["y_crc32"]


@pytest.mark.parametrize("isa", ISAS)
@rows_of("embedding")
def test_native_look_ups_have_the_bits_of_numpy(row: Row, isa: Isa) -> None:
    ids = np.fromfile(GOLDEN / row["ids"], "<i8")
    assert len(ids) == int(row["n_ids"])
    with NativeTensor(blob_of(row, "blob")) as tensor:
        found = tensor.embedding(ids, scales_of(row, tensor), int(row["group_size"]), isa=isa)
    assert crc(found) == row["out_crc32"]
