"""Checks of where the matrices and vectors of a package lie: inside their files, and apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from exporter.bundle.entries import Artifact, Location, Manifest, TensorEntry
from exporter.codec.plain_bits import PLAIN_BITS, plain_bytes

ALIGNMENT = 64  # bytes of the constants of a program

Span = tuple[str, int, int, str]
"""Bytes of a file that are one matrix or vector: (file, begin, end, name)."""


def placement_problems(manifest: Manifest, a: Artifact, expanded: set[str]) -> list[str]:
    """All that is wrong with the places of a package.

    expanded: paths of the files that `tinyqmoe expand` makes of it.
    """
    tensors = {t.name: t for t in manifest.tensors}
    if a.places.keys() != tensors.keys():
        different = sorted(a.places.keys() ^ tensors.keys())
        return [f"{a.path}: {name} is in tensors or in places only" for name in different]
    return [
        *(p for name, place in a.places.items() for p in _place(a, tensors[name], place)),
        *_overlaps(manifest, a, {*a.files, *expanded}),
    ]


def _place(a: Artifact, t: TensorEntry, place: Location) -> Iterator[str]:
    where = f"{a.path}: {t.name}"
    if place.form == "tqlz":
        if place.n_bytes != t.blob_bytes:
            yield f"{where} has {place.n_bytes:,} bytes, its blob has {t.blob_bytes:,}"
    elif place.form not in PLAIN_BITS:
        yield f"{where} has the form {place.form!r}, which is unknown"
    elif place.n_bytes != (expected := plain_bytes(place.form, t.rows * t.cols)):
        yield f"{where} has {place.n_bytes:,} bytes, expected {expected:,} of {place.form}"
    # As they are stored, in float16 or a table of four float16; or the graph holds them.
    # A group of no columns is named elsewhere.
    stored, n = t.scales_bytes, t.rows * -(-t.cols // max(1, t.group_size))
    if place.scales_bytes not in ((stored,) if a.vectors else (stored, 2 * n, 8 * n, 0)):
        yield f"{where} has {place.scales_bytes:,} bytes of scales, {t.scale_type} has {stored:,}"
    if a.vectors and (place.form != "tqlz" or place.scales_offset % 4):
        yield f"{where} is not as a session reads it: a TQLZ blob, its scales on a multiple of 4"
    if place.scales_crc32 >= 1 << 32:
        yield f"{where}: scales_crc32 is {place.scales_crc32}, expected 32 bits"


def _overlaps(manifest: Manifest, a: Artifact, own: set[str]) -> Iterator[str]:
    """Matrices and vectors that overlap, or do not lie inside a file of the package.

    Where a session reads them, nothing but padding lies between them.
    """
    sizes = {e.path: e.n_bytes for e in [*manifest.files, *manifest.expanded] if e.path in own}
    spans: list[Span] = [span for name, place in a.places.items() for span in _spans(name, place)]
    spans += [(v.file, v.offset, v.offset + 4 * v.n, name) for name, v in a.vectors.items()]
    for (file, _, end, name), (next_file, begin, _, other) in itertools.pairwise(sorted(spans)):
        if file == next_file and begin < end:
            yield f"{name} and {other} overlap in {file}"
        # A session believes these places: one that was moved leaves a hole behind.
        if a.vectors and (file != next_file or begin > -(-end // ALIGNMENT) * ALIGNMENT):
            yield f"{name} and {other} do not follow each other in {file}"
    for file, _, end, name in spans:
        if file not in sizes:
            yield f"{name} lies in {file}, which is no file of {a.path}"
        elif end > sizes[file]:
            yield f"{name} ends past the end of {file}"


def _spans(name: str, place: Location) -> list[Span]:
    """Spans of the levels and of the scales of a matrix."""
    levels = (place.file, place.offset, place.offset + place.n_bytes, name)
    begin, file = place.scales_offset, place.scales_file or place.file
    scales = (file, begin, begin + place.scales_bytes, name)
    return [levels, scales] if place.scales_bytes else [levels]
