"""How far a Core ML ML Program computed in half precision is from the float32 reference
(docs/parity.md).

Exports each checkpoint and runs the package in the interpreter, every operation rounded to half
precision. These figures are what the float16 gates of `tinyqmoe parity` stand above.

    python benchmarks/float16_noise.py CHECKPOINT... [--context 128]
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

from exporter.config import ExportConfig
from exporter.pipeline import export
from exporter.quant.config import QuantConfig
from runtime_ref.parity import check_parity
from runtime_ref.residency import Residency
from runtime_ref.runners import open_runner

COLUMNS = (
    "model",
    "scheme",
    "KL median",
    "KL worst",
    "dB median",
    "dB worst",
    "in float32, dB worst",
)


def measure(path: str, scheme: str, context: int) -> tuple[str, ...]:
    """One row of the table: the worst of all checks in half precision; medians are each check's
    own."""
    with tempfile.TemporaryDirectory() as work:
        config = ExportConfig(QuantConfig(scheme=scheme), ("mlprogram",), context)
        bundle = export(path, Path(work) / "bundle", config, lambda *_: None)
        runner = open_runner(bundle, bundle.artifact("mlprogram"), Residency(), lambda *_: None)
        checks = [
            c for c in check_parity(bundle, runner, lambda _: None).checks if c.verdict == "logits"
        ]
    half = [c for c in checks if c.arithmetic == "float16"]
    exact = [c for c in checks if c.arithmetic == "float32"]
    figures = (
        f"{max(c.kl_median or 0 for c in half):.1e}",
        f"{max(c.kl_worst or 0 for c in half):.1e}",
        f"{min(c.sqnr_db_median or 0 for c in half):.1f}",
        f"{min(c.sqnr_db_worst or 0 for c in half):.1f}",
        f"{min(c.sqnr_db_worst or 0 for c in exact):.1f}",
    )
    return bundle.manifest.model.name, scheme, *figures


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--context", type=int, default=128)
    args = parser.parse_args()
    print(f"{platform.machine()}, context {args.context}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for checkpoint in args.checkpoints:
        for scheme in ("int8", "ternary"):
            print("| " + " | ".join(measure(checkpoint, scheme, args.context)) + " |", flush=True)


if __name__ == "__main__":
    main()
