"""The example in exporter/codec/FORMAT.md: the annotated bytes of a golden blob."""

from __future__ import annotations

import struct

from exporter.codec.dictionary import Dictionary
from exporter.codec.format import Header, packed_bytes
from tests.support.golden.blobs import EXAMPLE
from tests.support.golden.slow_encoder import parse_row
from tests.support.paths import ROOT

FORMAT_MD = ROOT / "exporter" / "codec" / "FORMAT.md"

HEADER_FIELDS = (  # offset, struct character, name
    *(
        (4, "H", "version"),
        (6, "H", "header_bytes"),
        (8, "B", "codec"),
        (9, "B", "code_bits"),
        (10, "B", "cap"),
    ),
    *(
        (11, "b", "level_min"),
        (12, "H", "n_levels"),
        (14, "H", "n_core"),
        (16, "I", "rows"),
        (20, "I", "cols"),
    ),
    *(
        (24, "I", "n_entries"),
        (28, "H", "core_first"),
        (30, "H", "reserved"),
        (32, "Q", "payload_offset"),
        (40, "Q", "payload_bytes"),
    ),
    *(
        (48, "I", "tables_crc32"),
        (52, "I", "payload_crc32"),
        (56, "I", "index_bytes"),
        (60, "I", "header_crc32"),
    ),
)


def dump_lines(blob: bytes, start: int, end: int, note: str) -> list[str]:
    """Bytes `start` to `end`, 16 a line, the note beside the first."""
    lines = []
    for at in range(start, end, 16):
        digits = blob[at : min(at + 16, end)].hex(" ")
        lines.append(f"{at:04x}  {digits:<48} {note if at == start else ''}".rstrip())
    return lines


def dump_header(blob: bytes) -> list[str]:
    """The fields of the header, one a line."""
    lines = dump_lines(blob, 0, 4, "magic TQLZ")
    for offset, form, name in HEADER_FIELDS:
        (value,) = struct.unpack_from("<" + form, blob, offset)
        shown = f"{value:08x}" if name.endswith("crc32") else str(value)
        lines += dump_lines(blob, offset, offset + struct.calcsize(form), f"{name} {shown}")
    return lines


def dump_rows(blob: bytes, header: Header, dictionary: Dictionary, sizes: list[int]) -> list[str]:
    """The rows, with their phrases."""
    lines, at, phrases = [], header.layout.payload_offset, dictionary.phrases()
    for row, (levels, n_bytes) in enumerate(zip(EXAMPLE.levels().tolist(), sizes, strict=True)):
        parsed = parse_row(levels, dictionary)
        shown = [
            " ".join(f"{level:+d}" if level else "0" for level in phrases[entry].levels)
            + ("" if escaped is None else f" [{escaped:+d}]")
            for entry, escaped in zip(parsed.entries, parsed.escaped, strict=True)
        ]
        joined = " | ".join(part.strip() for part in shown)
        lines += dump_lines(blob, at, at + n_bytes, f"row {row}: {joined}")
        at += n_bytes
    return lines


def hexdump() -> str:
    """The annotated bytes of `EXAMPLE`, as FORMAT.md shows them."""
    blob, dictionary = EXAMPLE.blob(), EXAMPLE.dictionary()
    header = Header.parse(blob)
    at = header.layout
    tree_end, dictionary_end = 64 + packed_bytes(header.n_nodes, 1), 64 + at.dictionary_bytes
    index_end, payload_end = at.index_offset + at.index_bytes, at.payload_offset + at.payload_bytes
    shortest, width = blob[at.index_offset], blob[at.index_offset + 3]
    deltas = int.from_bytes(blob[at.index_offset + 4 : index_end], "little")
    sizes = [
        shortest + (deltas >> (row * width) & ((1 << width) - 1)) for row in range(header.rows)
    ]
    lengths = "code lengths: " + " ".join(map(str, dictionary.code_bits))
    inner = header.n_nodes - header.n_entries
    return "\n".join(
        [
            *dump_header(blob),
            *dump_lines(
                blob, 64, tree_end, f"tree: {inner} inner nodes, {header.n_entries} leaves"
            ),
            *dump_lines(blob, tree_end, dictionary_end, lengths),
            *dump_lines(blob, dictionary_end, at.index_offset, "gap"),
            *dump_lines(
                *(blob, at.index_offset, at.index_offset + 4),
                f"row index: tile 0, shortest row {shortest} bytes, {width} bits a delta",
            ),
            *dump_lines(blob, at.index_offset + 4, index_end, f"rows of {sizes} bytes"),
            *dump_lines(blob, index_end, at.payload_offset, "gap"),
            *dump_rows(blob, header, dictionary, sizes),
            *dump_lines(blob, payload_end, at.total_bytes, "tail"),
        ]
    )


def with_hexdump(text: str) -> str:
    """FORMAT.md's text with the example as it is now."""
    begin, end = "<!-- hexdump:begin -->\n", "<!-- hexdump:end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}```\n{hexdump()}\n```\n{end}{rest.split(end)[1]}"
