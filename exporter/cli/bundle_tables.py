"""Bundles as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from exporter.bundle import Artifact, Bundle, Manifest, Origin, TensorEntry


def bytes_text(n: int) -> str:
    """A size in bytes as a short text: 1234567 -> '1.23 MB'.

    Units are decimal, as stores and phones show them.
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}" if n < 100 * size else f"{n / size:,.0f} {unit}"
    return f"{n} B"


def ledger_table(bundle: Bundle) -> Table:
    """The ledger of a bundle as a table: what every byte on disk is.

    The rows sum to the size of the directory.
    """
    rows, total = bundle.ledger, bundle.size_bytes
    table = Table(
        title=f"Every byte of {escape(bundle.path.name)}", title_justify="left", show_footer=True
    )
    table.add_column("file", footer="sum", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column("bytes", justify="right", footer=f"{sum(r.n_bytes for r in rows):,}")
    table.add_column("share", justify="right", footer="100.0 %")
    for row in rows:
        table.add_row(
            escape(row.file), row.what, f"{row.n_bytes:,}", f"{100 * row.n_bytes / total:.1f} %"
        )
    return table


def summary_table(bundle: Bundle) -> Table:
    """A table of the model, the packages and the loss by quantization."""
    m = bundle.manifest
    weights = sum(t.rows * t.cols for t in m.tensors)
    coded = sum(t.blob_bytes + t.scales_bytes for t in m.tensors)
    loss = m.quantization_loss
    i = m.interface
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        (
            "model",
            f"{m.model.name}, {m.model.parameters:,} parameters, "
            f"{bytes_text(m.model.source_bytes)} of weights",
        ),
        ("from", _origin(m.model.origin)),
        *(("SHA-256", f"{sha[:16]}… of {name}") for name, sha in m.model.source_sha256.items()),
        ("weights", f"{8 * coded / weights:.3f} bits each with scales"),
        *_bits_by_kind(m),
        *_own_levels(m.tensors),
        ("scheme", _quantization(m.quantization)),
        (
            "interface",
            f"context {i.context}, vocabulary {i.vocab_size}, end of text "
            f"{i.eos_token_ids or 'never'}",
        ),
        (
            "against the original",
            f"{loss.kl_words}, same best token {100 * loss.top1_agreement:.0f} %, perplexity "
            f"{loss.perplexity_original:.2f} -> {loss.perplexity_quantized:.2f}, on {loss.text}",
        ),
        ("made", f"{m.created} with " + ", ".join(f"{k} {v}" for k, v in m.tools.items())),
    ]
    rows += [("warning", warning) for warning in m.warnings]
    if foreign := bundle.foreign_files:
        rows.append(("not of the bundle", ", ".join(foreign)))
    for artifact in m.artifacts:
        rows += _artifact_rows(bundle, artifact)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _bits_by_kind(m: Manifest) -> list[tuple[str, str]]:
    """A row of the summary where a rate was shared out: what each kind of matrix has got."""
    sizes: dict[str, list[int]] = {}
    for t in m.tensors if m.rate else ():
        of_kind = sizes.setdefault(t.name.split(".")[-2], [0, 0])
        of_kind[0] += 8 * (t.blob_bytes + t.scales_bytes)
        of_kind[1] += t.rows * t.cols
    what = ", ".join(f"{kind} {bits / weights:.2f}" for kind, (bits, weights) in sizes.items())
    return [("", f"bits each of {what}")] if what else []


def _quantization(quantization: dict[str, Any]) -> str:
    """The quantization in words, a plan by the number of its rules."""
    given = {k: len(v) if k == "rules" else v for k, v in quantization.items() if v}
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _origin(origin: Origin) -> str:
    """Where the weights came from, and the types that they had there."""
    types = ", ".join(f"{n} x {name}" for name, n in origin.stored_as.items())
    hub = f"{origin.repo_id} at {origin.revision}, " if origin.repo_id else ""
    commit = f" at {origin.adapter_revision}" if origin.adapter_revision else ""
    adapter = f", with adapter {origin.adapter}{commit}" if origin.adapter else ""
    return f"{hub}{types}{adapter}"


def _own_levels(tensors: Sequence[TensorEntry]) -> list[tuple[str, str]]:
    """A row of the summary where matrices have the levels of the checkpoint."""
    n = sum(t.own_levels for t in tensors)
    what = f"the checkpoint's own, exactly, in {n} of {len(tensors)} matrices"
    return [("levels", what)] if n else []


def _artifact_rows(bundle: Bundle, a: Artifact) -> list[tuple[str, str]]:
    """Rows of the summary for one package."""
    ours = ("tinyqmoe", "LZW", "constexpr")
    operators = [f"{n} x {name}" for name, n in a.operators.items() if name.startswith(ours)]
    details = [
        _detail(name, value) for name, value in a.details.items() if not isinstance(value, dict)
    ]
    return [
        (a.format, f"{a.path}, {bytes_text(bundle.shipped_bytes(a))} shipped"),
        (
            "",
            f"activations {a.activations}, prefill by {a.prefill_tokens}, KV cache "
            f"{bytes_text(a.kv_cache_bytes)}",
        ),
        ("", ", ".join(operators)),
        ("", ", ".join(details)),
    ]


def _detail(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {bytes_text(value)}"
    return f"{name.replace('_', ' ')} {value}"


def tensor_table(tensors: Sequence[TensorEntry]) -> Table:
    """A table of the matrices, one line each, in bits per weight.

    The columns are the bits in all, those of the levels alone under each code considered, and the
    entropy of the levels.
    """
    names = {name for t in tensors for name in t.sizes_bytes}
    candidates = sorted(names, key=lambda name: (not name.startswith("raw"), len(name), name))
    table = Table(title="Matrices, bits per weight", title_justify="left", box=None, pad_edge=False)
    for name in ("name", "shape", "scheme", "zeros", "codec", "all", *candidates, "entropy"):
        table.add_column(
            name, justify="left" if name in ("name", "scheme", "codec") else "right", no_wrap=True
        )
    for t in tensors:
        considered = [
            _bits(t.sizes_bytes[name], t) if name in t.sizes_bytes else "" for name in candidates
        ]
        how = (
            f"{t.rows} x {t.cols}",
            t.scheme,
            f"{100 * t.zeros:.1f} %",
            f"{t.codec} {t.code_bits}",
        )
        name = escape(t.name.removeprefix("model.").removesuffix(".weight"))
        table.add_row(name, *how, f"{t.bits_per_weight:.2f}", *considered, f"{t.entropy_bits:.2f}")
    return table


def _bits(n_bytes: int, tensor: TensorEntry) -> str:
    return f"{8 * n_bytes / (tensor.rows * tensor.cols):.2f}"


def bundle_view(bundle: Bundle, *, tensors: bool) -> RenderableType:
    """The whole view of a bundle: its summary, its ledger and, with `tensors`, its matrices."""
    parts: list[RenderableType] = [summary_table(bundle), ledger_table(bundle)]
    if tensors:
        parts.insert(1, tensor_table(bundle.manifest.tensors))
    return Group(*parts)
