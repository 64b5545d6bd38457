"""Prediction of the memory that a package takes, before it runs, and of who holds it.

Counted as phones count. *Dirty* memory was written and cannot be dropped: the limits of phones are
about it. *Clean* memory is pages of files, which the system takes back when it is short and reads
again. Everything is predicted from the manifest alone; what the runtime of a format takes itself is
said by its runner (`memory`). The constants were measured (`python
benchmarks/memory_prediction.py`) with the versions of ExecuTorch and coremltools that
pyproject.toml names, on Linux, as growth of a process that has loaded its libraries: what an app
itself takes comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporter.bundle import EMBEDDING, HEAD, Artifact, Manifest, TensorEntry
from runtime_ref import runners
from runtime_ref.device.profile import MemoryBudget
from runtime_ref.memory import MB, Holder, ModelShape
from runtime_ref.residency import CodedTensor, Residency, in_order_of_use, plan

# Times the size of tokenizer.json, while it is read and afterwards.
TOKENIZER_READING, TOKENIZER_KEPT = 11.6, 2.9
MAPPED_BESIDES = 30 * MB  # stacks of threads, and what allocators reserve


@dataclass(frozen=True)
class PhasePrediction:
    """Predicted memory of each holder while one phase of a run is at its peak."""

    name: str  # load | prefill | decode
    holders: tuple[Holder, ...]

    @property
    def dirty_bytes(self) -> int:
        """Dirty memory of all holders, in bytes."""
        return sum(h.dirty_bytes for h in self.holders)

    @property
    def clean_bytes(self) -> int:
        """Clean memory of all holders, in bytes."""
        return sum(h.clean_bytes for h in self.holders)

    def largest(self, n: int = 3) -> list[Holder]:
        """Holders of most dirty memory, the largest first."""
        return sorted((h for h in self.holders if h.dirty_bytes), key=lambda h: -h.dirty_bytes)[:n]


@dataclass(frozen=True)
class MemoryPrediction:
    """Predicted phases of a run that fills the context, and the address space in bytes."""

    format: str
    residency: str
    phases: tuple[PhasePrediction, ...]
    mapped_bytes: int

    @property
    def peak(self) -> PhasePrediction:
        """Phase with most dirty memory."""
        return max(self.phases, key=lambda p: p.dirty_bytes)

    @property
    def dirty_bytes(self) -> int:
        """Dirty memory at its peak, in bytes."""
        return self.peak.dirty_bytes

    @property
    def clean_bytes(self) -> int:
        """Size of the files that are read in the course of a run, in bytes.

        More than there is room for is read again and again.
        """
        return max(p.clean_bytes for p in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Prediction as plain values, with the sums."""
        phases = [
            {
                "phase": p.name,
                "dirty_bytes": p.dirty_bytes,
                "clean_bytes": p.clean_bytes,
                "holders": [vars(h) for h in p.holders],
            }
            for p in self.phases
        ]
        return {
            "format": self.format,
            "residency": self.residency,
            "dirty_bytes": self.dirty_bytes,
            "clean_bytes": self.clean_bytes,
            "mapped_bytes": self.mapped_bytes,
            "phases": phases,
        }


def predict(
    manifest: Manifest, artifact: Artifact, residency: Residency, context: int | None = None
) -> MemoryPrediction:
    """Predicted memory of a run that fills the context, in bytes.

    `context`: positions, if it were exported with others than it was.
    """
    shape = _model_shape(manifest, artifact, context or manifest.interface.context)
    runtime = runners.module(artifact.format).memory(artifact, shape)
    tokenizer = sum(f.n_bytes for f in manifest.files if f.path == "tokenizer.json")
    kept = [Holder("tokenizer", int(TOKENIZER_KEPT * tokenizer)), *runtime.loaded]
    used = [*kept, *_weights(manifest, artifact, residency), *runtime.used]
    reading = [Holder("reading the tokenizer", int(TOKENIZER_READING * tokenizer))]
    loading = max(reading, kept, key=lambda holders: sum(h.dirty_bytes for h in holders))
    phases = (
        PhasePrediction("load", tuple(loading)),
        PhasePrediction("prefill", tuple(used)),
        PhasePrediction("decode", tuple(used)),
    )
    mapped = max(p.dirty_bytes for p in phases) + sum(h.clean_bytes for h in used) + MAPPED_BESIDES
    return MemoryPrediction(artifact.format, residency.mode, phases, mapped)


def _model_shape(manifest: Manifest, artifact: Artifact, context: int) -> ModelShape:
    """Sizes of the model, as its network has them."""
    network = manifest.network
    return ModelShape(
        hidden=network.hidden,
        intermediate=network.inner,
        heads=network.heads,
        rows=sum(t.rows for t in manifest.tensors if t.name not in (EMBEDDING, HEAD)),
        weights=sum(t.rows * t.cols for t in manifest.tensors),
        context=context,
        kv_cache_bytes=artifact.kv_cache_bytes * context // manifest.interface.context,
    )


def _weights(manifest: Manifest, artifact: Artifact, residency: Residency) -> list[Holder]:
    """Holders of the weights, by residency.

    Every package has its file, a coded one also the tables of its dictionaries and what is
    expanded.
    """
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
    """Size of the files a runtime maps, in bytes.

    Those of an ML Program exist after `tinyqmoe expand`.
    """
    inside = artifact.path + "/"
    if expanded := [f.n_bytes for f in manifest.expanded if f.path.startswith(inside)]:
        return sum(expanded)
    return sum(f.n_bytes for f in manifest.files if f.path in artifact.files)


def coded_entries(manifest: Manifest, artifact: Artifact) -> list[CodedTensor]:
    """Matrices that the products of a package read in TQLZ form, in the order of use."""
    return [CodedTensor.of_entry(t) for t in in_order_of_use(_tqlz(manifest, artifact))]


def _tqlz(manifest: Manifest, artifact: Artifact) -> list[TensorEntry]:
    """Entries of the matrices that a package has in TQLZ form."""
    return [t for t in manifest.tensors if artifact.places[t.name].form == "tqlz"]


def _lzw(manifest: Manifest, artifact: Artifact) -> list[TensorEntry]:
    """Entries of the matrices that a package has coded with a dictionary."""
    return [t for t in _tqlz(manifest, artifact) if t.codec == "lzw"]


def _table_bytes(t: TensorEntry) -> int:
    """Size of a dictionary in memory, in bytes.

    For every window of the longest codeword's bits it has an entry of `cap` levels and their number
    (at 3 levels one byte, else two), and two bytes for the first codeword.
    """
    return (1 << t.code_bits) * (t.cap + (1 if t.cap == 3 else 2) + 2)


# ---- verdicts


def problems(prediction: MemoryPrediction, budget: MemoryBudget) -> list[str]:
    """Reasons why a package is predicted not to fit a device; empty if it fits."""
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
