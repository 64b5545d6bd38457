"""Bundles as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from exporter.bundle import Bundle, TensorEntry


def bytes_text(n: int) -> str:
    """1234567 -> '1.23 MB' (decimal units, as stores and phones show them)."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}" if n < 100 * size else f"{n / size:,.0f} {unit}"
    return f"{n} B"


def ledger_table(bundle: Bundle) -> Table:
    """What every byte on disk is. The rows sum to the size of the directory."""
    rows, total = bundle.ledger, bundle.size_bytes
    table = Table(title=f"Every byte of {escape(bundle.path.name)}", title_justify="left", show_footer=True)
    table.add_column("file", footer="sum")
    table.add_column("what")
    table.add_column("bytes", justify="right", footer=f"{sum(r.n_bytes for r in rows):,}")
    table.add_column("share", justify="right", footer="100.0 %")
    for row in rows:
        table.add_row(escape(row.file), row.what, f"{row.n_bytes:,}", f"{100 * row.n_bytes / total:.1f} %")
    return table


def summary_table(bundle: Bundle) -> Table:
    """The model, the package and what quantization cost."""
    m = bundle.manifest
    weights = sum(t.rows * t.cols for t in m.tensors)
    coded = sum(t.blob_bytes + t.scales_bytes for t in m.tensors)
    loss = m.quantization_loss
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        ("model", f"{m.model.name}, {m.model.parameters:,} parameters, {bytes_text(m.model.source_bytes)} of weights"),
        ("package", f"{m.program.file}, {bytes_text((bundle.path / m.program.file).stat().st_size)}"),
        ("weights", f"{8 * coded / weights:.3f} bits each with scales"),
        ("scheme", ", ".join(f"{k} {v}" for k, v in m.quantization.items() if v is not None)),
        ("activations", f"{m.program.activations}, context {m.program.context}, prefill by {m.program.prefill_tokens}"),
        (
            "memory plan",
            f"arena {bytes_text(m.program.arena_bytes)}, of it KV cache {bytes_text(m.program.kv_cache_bytes)}",
        ),
        ("operators", ", ".join(f"{n} x {name}" for name, n in m.program.operators.items() if "tinyqmoe" in name)),
        (
            "against the original",
            f"KL {loss.kl_mean:.4f}, same best token {100 * loss.top1_agreement:.0f} %, perplexity "
            f"{loss.perplexity_original:.2f} -> {loss.perplexity_quantized:.2f} "
            f"({loss.positions} positions)",
        ),
        ("made", f"{m.created} with " + ", ".join(f"{k} {v}" for k, v in m.tools.items())),
    ]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def tensor_table(tensors: Iterable[TensorEntry]) -> Table:
    """One line a matrix: how it is coded, against its entropy."""
    table = Table(title="Matrices", title_justify="left")
    table.add_column("name", no_wrap=True)
    for name in ("shape", "scheme", "zeros", "codec", "bits/weight", "levels only", "entropy", "considered (bytes)"):
        table.add_column(name, justify="left" if name in ("scheme", "codec", "considered (bytes)") else "right")
    for t in tensors:
        levels_bits = 8 * t.blob_bytes / (t.rows * t.cols)
        considered = ", ".join(f"{k} {v:,}" for k, v in t.sizes_bytes.items())
        how = (f"{t.rows} x {t.cols}", t.scheme, f"{100 * t.zeros:.1f} %", f"{t.codec} {t.code_bits}")
        bits = (f"{t.bits_per_weight:.3f}", f"{levels_bits:.3f}", f"{t.entropy_bits:.3f}")
        table.add_row(escape(t.name), *how, *bits, considered)
    return table


def bundle_view(bundle: Bundle, *, tensors: bool) -> RenderableType:
    """All there is to see of a bundle."""
    parts: list[RenderableType] = [summary_table(bundle), ledger_table(bundle)]
    if tensors:
        parts.insert(1, tensor_table(bundle.manifest.tensors))
    return Group(*parts)
