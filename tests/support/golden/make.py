"""All golden files, written into a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.golden.blobs import make_decode
from tests.support.golden.errors import make_errors
from tests.support.golden.gates import make_gates
from tests.support.golden.manifests import make_manifests
from tests.support.golden.products import make_products
from tests.support.golden.sampler import vectors
from tests.support.golden.tokenizers import make_tokenizers

FOLDERS = ("decode", "errors", "linear", "embedding", "tokenizer", "manifest")
FILES = (*(f"{name}.tsv" for name in (*FOLDERS, "gates")), "sampler.json")


def make(out: Path) -> None:
    """Writes all tables and files into `out`, which holds none of them yet."""
    make_decode(out)
    make_errors(out)
    make_products(out)
    make_tokenizers(out)
    make_manifests(out)
    make_gates(out)
    lines = ",\n".join(json.dumps(vector) for vector in vectors())
    (out / "sampler.json").write_text(f"[\n{lines}\n]\n", "ascii")


def clear(out: Path) -> None:
    """Removes what an earlier run wrote."""
    for folder in FOLDERS:
        shutil.rmtree(out / folder, ignore_errors=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
