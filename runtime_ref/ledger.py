"""How much memory a package will take, said before it runs, and by whom.

Counted as phones count. *Dirty* memory was written and cannot be dropped: the limits of phones are
about it. *Clean* memory is pages of files, which the system takes back when it is short and reads
again. Everything is predicted from the manifest alone. The constants were measured (`python
benchmarks/memory_prediction.py`) with the versions of ExecuTorch and coremltools that
pyproject.toml names, on Linux, as growth of a process that has loaded its libraries: what an app
itself takes comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporter.bundle import Artifact, Manifest, TensorEntry
from exporter.errors import BundleError
from runtime_ref.device import MemoryBudget
from runtime_ref.residency import EMBEDDING, HEAD, CodedTensor, Residency, in_order_of_use, plan

MB = 10**6
THREADS = 2  # that share a product; each has scratch of its own
TOKENIZER_READING, TOKENIZER_KEPT = (
    11.6,
    2.9,
)  # times the size of tokenizer.json, while it is read and afterwards


@dataclass(frozen=True)
class Holder:
    """What holds memory, in bytes."""

    what: str
    dirty_bytes: int = 0
    clean_bytes: int = 0


@dataclass(frozen=True)
class Phase:
    """Who holds how much while one part of a run is at its peak."""

    name: str  # load | prefill | decode
    holders: tuple[Holder, ...]

    @property
    def dirty_bytes(self) -> int:
        return sum(h.dirty_bytes for h in self.holders)

    @property
    def clean_bytes(self) -> int:
        return sum(h.clean_bytes for h in self.holders)

    def largest(self, n: int = 3) -> list[Holder]:
        """Those that hold most dirty memory, the largest first."""
        return sorted((h for h in self.holders if h.dirty_bytes), key=lambda h: -h.dirty_bytes)[:n]


@dataclass(frozen=True)
class MemoryLedger:
    """The phases of a run that fills the context, and the address space it maps, in bytes."""

    format: str
    residency: str
    phases: tuple[Phase, ...]
    mapped_bytes: int

    @property
    def peak(self) -> Phase:
        """The phase with most dirty memory."""
        return max(self.phases, key=lambda p: p.dirty_bytes)

    @property
    def dirty_bytes(self) -> int:
        return self.peak.dirty_bytes

    @property
    def clean_bytes(self) -> int:
        """Of files that are read in the course of a run: more than there is room for is read again
        and again."""
        return max(p.clean_bytes for p in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the sums."""
        phases = [
            {"phase": p.name, "dirty_bytes": p.dirty_bytes, "clean_bytes": p.clean_bytes,
             "holders": [vars(h) for h in p.holders]}
            for p in self.phases
        ]  # fmt: skip
        return {
            "format": self.format,
            "residency": self.residency,
            "dirty_bytes": self.dirty_bytes,
            "clean_bytes": self.clean_bytes,
            "mapped_bytes": self.mapped_bytes,
            "phases": phases,
        }


def predict(manifest: Manifest, artifact: Artifact, residency: Residency) -> MemoryLedger:
    """The memory of a run that fills the context. Raises BundleError for a model that is not
    described whole."""
    shape = _Shape.of(manifest)
    weights = _weights(manifest, artifact, residency)
    tokenizer = sum(f.n_bytes for f in manifest.files if f.path == "tokenizer.json")
    kept = [
        Holder("tokenizer", int(TOKENIZER_KEPT * tokenizer)),
        *_LOADED[artifact.format](artifact, shape),
    ]
    used = [*kept, *weights, *_USED[artifact.format](artifact, shape, manifest.interface.context)]
    reading = [Holder("reading the tokenizer", int(TOKENIZER_READING * tokenizer))]
    loading = max(reading, kept, key=lambda holders: sum(h.dirty_bytes for h in holders))
    phases = (
        Phase("load", tuple(loading)),
        Phase("prefill", tuple(used)),
        Phase("decode", tuple(used)),
    )
    mapped = max(p.dirty_bytes for p in phases) + sum(h.clean_bytes for h in used) + MAPPED_BESIDES
    return MemoryLedger(artifact.format, residency.mode, phases, mapped)


@dataclass(frozen=True)
class _Shape:
    """What activations follow: sizes of the model, as its matrices have them."""

    hidden: int
    intermediate: int
    heads: int
    rows: int  # of all matrices of the layers together
    weights: int

    @classmethod
    def of(cls, manifest: Manifest) -> _Shape:
        sizes = {t.name: (t.rows, t.cols) for t in manifest.tensors}
        try:
            intermediate, hidden = sizes["model.layers.0.mlp.gate_proj.weight"]
            heads = int(manifest.model.config["num_attention_heads"])
        except (KeyError, TypeError, ValueError) as error:
            what = f"the manifest lacks {error}, which the memory of a run follows"
            raise BundleError(what, do="export again") from error
        rows = sum(t.rows for t in manifest.tensors if t.name not in (EMBEDDING, HEAD))
        return cls(
            hidden, intermediate, heads, rows, sum(t.rows * t.cols for t in manifest.tensors)
        )


def _weights(manifest: Manifest, artifact: Artifact, residency: Residency) -> list[Holder]:
    """Of every package its file; of a coded one the tables of its dictionaries and what residency
    makes of it."""
    holders = [Holder("package, as it lies in its files", 0, package_bytes(manifest, artifact))]
    coded = coded_entries(manifest, artifact)
    if not coded:
        return holders
    in_memory = plan(coded, residency.budget)
    expanded = sum(t.form_bytes for t in coded if t.name in in_memory)
    filed = (
        sum(t.file_bytes for t in coded if t.gain > 0 and t.name not in in_memory)
        if residency.folder
        else 0
    )
    holders.append(Holder("dictionaries", sum(_table_bytes(t) for t in _lzw(manifest, artifact))))
    holders.append(Holder("expanded weights", expanded))
    holders.append(Holder("expanded weights, in files", 0, filed))
    return [h for h in holders if h.dirty_bytes or h.clean_bytes]


def package_bytes(manifest: Manifest, artifact: Artifact) -> int:
    """Of the files a runtime maps: those of an ML Program exist after `tinyqmoe expand`."""
    inside = artifact.path + "/"
    if expanded := [f.n_bytes for f in manifest.expanded if f.path.startswith(inside)]:
        return sum(expanded)
    return sum(f.n_bytes for f in manifest.files if f.path in artifact.files)


def coded_entries(manifest: Manifest, artifact: Artifact) -> list[CodedTensor]:
    """The matrices that the products of a package read in TQLZ form, in the order of use."""
    return [CodedTensor.of_entry(t) for t in in_order_of_use(_tqlz(manifest, artifact))]


def _tqlz(manifest: Manifest, artifact: Artifact) -> list[TensorEntry]:
    return [t for t in manifest.tensors if artifact.places[t.name].form == "tqlz"]


def _lzw(manifest: Manifest, artifact: Artifact) -> list[TensorEntry]:
    return [t for t in _tqlz(manifest, artifact) if t.codec == "lzw"]


def _table_bytes(t: TensorEntry) -> int:
    """A dictionary as it is in memory: a phrase of `cap` bytes and its length for each codeword."""
    return (1 << t.code_bits) * (t.cap + 1)


# ---- what a runtime itself takes, by format


def _pte_loaded(artifact: Artifact, shape: _Shape) -> list[Holder]:
    """ExecuTorch makes its whole arena, cache included, when a method is loaded."""
    arena = artifact.details["arena_bytes"]
    program = PTE_CALL_BYTES * sum(artifact.operators.values())
    return [
        Holder("KV cache", artifact.kv_cache_bytes),
        Holder("activations, as planned", arena - artifact.kv_cache_bytes),
        Holder("runtime", PTE_RUNTIME_BYTES + program),
    ]


def _pte_used(artifact: Artifact, shape: _Shape, context: int) -> list[Holder]:
    """XNNPACK's workspace for a layer's gate and up, a product's quantized input and scratch."""
    tokens, widest = artifact.prefill_tokens, max(shape.intermediate, shape.hidden)
    workspace = int(PTE_WORKSPACE * 4 * tokens * shape.intermediate)
    products = 4 * tokens * widest + THREADS * 4 * (4 * widest + tokens * widest // 32)
    return [Holder("workspace of products and activations", workspace + products)]


def _custom_op_loaded(artifact: Artifact, shape: _Shape) -> list[Holder]:
    """The interpreter's own form of the network. The cache belongs to the app; its pages come as it
    is filled."""
    return [Holder("runtime", NETWORK_LAYER_BYTES * sum(artifact.operators.values()))]


def _custom_op_used(artifact: Artifact, shape: _Shape, context: int) -> list[Holder]:
    """The cache when it is full, its new rows, and whichever is more: attention, or a layer's MLP.

    Attention holds scores twice, over the context and the new tokens, the mask, the residual stream
    and queries.
    """
    tokens = artifact.prefill_tokens
    scores = (2 * shape.heads + 1) * 4 * tokens * (context + tokens)
    attention = scores + 2 * 4 * tokens * shape.hidden
    return [
        Holder("KV cache", artifact.kv_cache_bytes),
        Holder("new rows of the KV cache", artifact.kv_cache_bytes * tokens // context),
        Holder("activations", max(attention, int(NETWORK_MLP * 4 * tokens * shape.intermediate))),
    ]


def _program_loaded(artifact: Artifact, shape: _Shape) -> list[Holder]:
    """The interpreter's own form of the program, and of the tables and scales of its rows."""
    calls = PROGRAM_CALL_BYTES * sum(artifact.operators.values())
    return [Holder("runtime", PROGRAM_RUNTIME_BYTES + calls + PROGRAM_ROW_BYTES * shape.rows)]


def _program_used(artifact: Artifact, shape: _Shape, context: int) -> list[Holder]:
    """States, what the interpreter keeps dense (Core ML decides that for itself), scores, and a
    layer's MLP."""
    tokens = artifact.prefill_tokens
    scores = 9 * shape.heads * tokens * context
    return [
        Holder("KV cache", artifact.kv_cache_bytes),
        Holder("dense weights of the interpreter", min(PROGRAM_DENSE_BYTES, 4 * shape.weights)),
        Holder("activations", scores + 4 * 4 * tokens * shape.intermediate),
    ]


MAPPED_BESIDES = 30 * MB  # stacks of threads, and what allocators reserve
PTE_RUNTIME_BYTES = int(0.6 * MB)
PTE_CALL_BYTES = 3400  # of a call of an operator in the program
PTE_WORKSPACE = 1.4  # tensors of the width of the MLP
NETWORK_LAYER_BYTES = 2200  # of a layer of the network, of which a layer of the model takes 76
# tensors of the width of the MLP that are alive at once: a sigmoid's, and a byte for its sign
NETWORK_MLP = 5.25
PROGRAM_RUNTIME_BYTES = int(1.6 * MB)
PROGRAM_CALL_BYTES, PROGRAM_ROW_BYTES = 4000, 95
PROGRAM_DENSE_BYTES = 1 << 28  # CACHE_BYTES of coreml_runner

_LOADED = {"pte": _pte_loaded, "custom-op": _custom_op_loaded, "mlprogram": _program_loaded}
_USED = {"pte": _pte_used, "custom-op": _custom_op_used, "mlprogram": _program_used}


# ---- verdicts


def problems(prediction: MemoryLedger, budget: MemoryBudget) -> list[str]:
    """Why a package does not fit a device; empty if it does."""
    found = []
    if prediction.dirty_bytes > budget.dirty_bytes:
        found.append(
            f"{prediction.peak.name}: {prediction.dirty_bytes / MB:,.0f} MB dirty, "
            f"{budget.dirty_bytes / MB:,.0f} MB allowed ({budget.counted})"
        )
    if budget.mapped_bytes is not None and prediction.mapped_bytes > budget.mapped_bytes:
        found.append(
            f"{prediction.mapped_bytes / MB:,.0f} MB of address space, "
            f"{budget.mapped_bytes / MB:,.0f} MB allowed"
        )
    return found
