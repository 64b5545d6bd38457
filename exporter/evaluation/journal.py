"""The journal of an evaluation: results of finished items, from which an interrupted one goes on.

A line of JSON is written when an item is finished. Each carries a key, the digest of all that its
result depends on, so a line is taken only for the very same item of the same model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from exporter.errors import DataError


def key_of(*parts: Any) -> str:
    """Digest of plain values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """Results by key and item; without a path nothing is kept.

    With `resume` the lines of the file are taken, else it is begun anew: both when the first result
    is written, so that an evaluation that is refused changes nothing. A last line that was cut
    short is dropped. `results` are those taken, by key and item. Raises DataError for a file that
    is no journal.
    """

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self.results: dict[tuple[str, str], Any] = {}
        self.n_resumed = 0
        self._path, self._whole = path, b""
        self._file: IO[str] | None = None
        if resume and path is not None and path.is_file():
            self._whole = self._read(path)

    def get(self, key: str, item: str) -> Any:
        """The result of an item that was finished, or None."""
        found = self.results.get((key, item))
        self.n_resumed += found is not None
        return found

    def put(self, key: str, item: str, result: Any) -> None:
        """Writes the result of an item, which JSON must hold."""
        if self._path is None:
            return
        if self._file is None:
            self._path.write_bytes(self._whole)
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps({"key": key, "item": item, "result": result}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path) -> bytes:
        """Takes the lines of a file; returns those that are whole."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self.results[entry["key"], entry["item"]] = entry["result"]
            except (ValueError, KeyError, TypeError):
                hint = "remove it, or leave --resume away"
                what = f"line {number} of {path} is not of a journal of `tinyqmoe eval`"
                raise DataError(what, hint=hint) from None
        return whole
