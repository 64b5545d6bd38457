"""Writes tests/golden anew: `python -m tests.support.golden [FOLDER]`, from the root.

The README there describes the files. All come out the same to the byte on every machine. chat.json
and demo.json have modules of their own: `tests.support.chat_templates` and
`tests.support.golden.demo_answers`. policy.tsv is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.golden.hexdump import FORMAT_MD, with_hexdump
from tests.support.golden.make import clear, make
from tests.support.paths import GOLDEN

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    make(folder)
    if folder == GOLDEN:
        FORMAT_MD.write_text(with_hexdump(FORMAT_MD.read_text("utf-8")), "utf-8")
