"""Bundles for tests: made from small checkpoints, damaged, and sealed again so that only a gate can
see the damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exporter import bundle as bundles
from exporter import pipeline
from exporter.backends.executorch import lowering
from exporter.backends.executorch.package import ROPE
from exporter.bundle import Arithmetic, Artifact, Bundle, Location, Manifest, TensorEntry
from exporter.bundle.network_shapes import matrix_shapes, vector_sizes
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec.encoder import Codec
from exporter.codec.format import align
from exporter.codec.scales import widened
from exporter.config import ExportConfig
from exporter.encoded import EncodedModel, encode_matrices
from exporter.models.config import rope_frequencies
from exporter.models.layers import Decoder
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from exporter.reference.model import QuantizedLayers, dequantized
from tests.support.checkpoints import write_llama

SHIPPED = Arithmetic("int16", "float16")  # of a `.pte` by default
TEXT = (
    "The cat sat on the mat while the dog ran to the river, and then the other cats and dogs "
    "came there together. "
    "When the rain began to fall they went into the little house, where another fire was burning "
    "in the hearth. "
    "Everything there was warm and bright; nothing was missing, and nobody wanted to leave "
    "before the morning came. "
    "In the evening the children were singing songs about the mountains, the forest, the weather "
    "and the wandering sea."
)


def no_progress(stage: str, done: int, total: int) -> None:
    """For exports nobody watches."""


def export(checkpoint: Path, out: Path, quantization: QuantConfig, **options: Any) -> Bundle:
    """`pipeline.export` without a progress bar.

    Without a rate it does not calibrate: most models here have no tokenizer.
    """
    if quantization.is_fitted and not quantization.at_rate:
        options = {"calibration": "none"} | options
    return pipeline.export(checkpoint, out, ExportConfig(quantization, **options), no_progress)


def write_text_model(directory: Path) -> Path:
    """A model of two layers with a tokenizer, for what is calibrated."""
    shape = {"hidden_size": 64, "intermediate_size": 160, "max_position_embeddings": 48}
    write_llama(directory, vocab_size=120, bos_token_id=0, eos_token_id=1, **shape)
    write_text_tokenizer(directory, 120)
    return directory


def write_text_tokenizer(directory: Path, vocab_size: int) -> None:
    """A BPE tokenizer.json of exactly `vocab_size` tokens, every one printable ASCII: <s> is 0,
    </s> is 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    # As in Llama's own: ExecuTorch's tokenizer puts BOS in front only where a post-processor says
    # how.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )


@dataclass(frozen=True)
class Parts:
    """What a program is made of, without a bundle around it."""

    checkpoint: Checkpoint
    encoded: EncodedModel

    def program(self, context: int, arithmetic: Arithmetic) -> lowering.ProgramConfig:
        int16 = arithmetic.activations == "int16"
        bos, eos = self.checkpoint.bos_token_id, self.checkpoint.eos_token_ids
        return lowering.ProgramConfig(context, int16, arithmetic.kv_type, bos, eos)

    def emit(
        self, path: Path, context: int, arithmetic: Arithmetic = SHIPPED
    ) -> lowering.EmittedProgram:
        vectors = self.encoded.vectors | {ROPE: rope_frequencies(self.checkpoint.config)}
        return lowering.emit(
            self.encoded,
            vectors,
            lambda layers: self.checkpoint.network(context, layers),
            self.program(context, arithmetic),
            path,
        )

    def reference(self, context: int, arithmetic: Arithmetic) -> Decoder:
        """The quantized model in PyTorch."""
        return self.checkpoint.network(context, QuantizedLayers(self.encoded, arithmetic))


def encode(directory: Path, work: Path, quantization: QuantConfig, codec: Codec = "auto") -> Parts:
    """Quantizes and codes a checkpoint; the files of the encoded model lie in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.open(directory)
    matrices = encode_matrices(quantize(checkpoint, quantization), work, codec)
    return Parts(checkpoint, EncodedModel(matrices, checkpoint.vectors()))


def dequantized_state(parts: Parts) -> dict[str, torch.Tensor]:
    """The weights a quantized model stands for, in float32."""
    weights = dict(parts.encoded.vectors)
    for name, matrix in parts.encoded.matrices.items():
        with matrix.open() as coded:
            levels = torch.from_numpy(coded.decode_rows()).float()
        weights[name] = dequantized(
            levels, torch.from_numpy(widened(matrix.scales())), matrix.group_size
        )
    return weights


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets `change` edit the parsed manifest of the bundle at `path` in place, and seals it."""
    file = path / bundles.MANIFEST
    raw = json.loads(file.read_text(encoding="utf-8"))
    del raw[bundles.DIGEST]
    change(raw)
    file.write_text(bundles.sealed(raw), encoding="utf-8")


def reseal(bundle: Bundle, **changes: Any) -> Bundle:
    """Writes the manifest for the files as they are now, with other fields changed.

    The result is as if it had been opened: opening would refuse most of what a test damages, and
    what runs and judges a bundle has to see it too.
    """
    files = bundles.file_entries(bundle.path)
    manifest: Manifest = replace(bundle.manifest, files=files, **changes)
    (bundle.path / bundles.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(bundle.path, manifest)


def copy(bundle: Bundle, target: Path) -> Bundle:
    """A copy that a test may damage."""
    shutil.copytree(bundle.path, target)
    return Bundle.open(target)


def patch(bundle: Bundle, offset: int, data: bytes) -> None:
    """Overwrites bytes of the program."""
    with (bundle.path / bundles.PROGRAM).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read(bundle: Bundle, offset: int, n_bytes: int) -> bytes:
    """Bytes of the program."""
    with (bundle.path / bundles.PROGRAM).open("rb") as file:
        file.seek(offset)
        return file.read(n_bytes)


def tensor(bundle: Bundle, name: str) -> TensorEntry:
    """The manifest's entry of one matrix."""
    return next(t for t in bundle.manifest.tensors if t.name == name)


def place(bundle: Bundle, name: str, wanted: str = "pte") -> Location:
    """Where a matrix lies in a package."""
    return bundle.artifact(wanted).places[name]


def with_artifact(bundle: Bundle, wanted: str = "pte", **changes: Any) -> list[Artifact]:
    """The artifacts of the manifest, one of them changed."""
    return [replace(a, **changes) if a.format == wanted else a for a in bundle.manifest.artifacts]


def greedy(model: Decoder, prompt: list[int], new_tokens: int) -> list[Tensor]:
    """Logits [V] of the last prompt position and of each greedy token after it but the last."""
    logits = [model(torch.tensor([prompt]), torch.tensor([0]))[0]]
    for position in range(len(prompt), len(prompt) + new_tokens - 1):
        logits.append(model(logits[-1].argmax().reshape(1, 1), torch.tensor([position]))[0])
    return logits


def sqnr_db(reference: np.ndarray, got: np.ndarray) -> float:
    """Signal over noise of one row, its mean left out."""
    signal = float(np.square(reference - reference.mean()).sum())
    return 10 * float(np.log10(signal / max(float(np.square(got - reference).sum()), 1e-30)))


SMALL_NETWORK = bundles.Network(3, 8, 16, 1, 2, 1, 4, 258, 16, 1e-5)
SMALL_BLOB = 32  # bytes of every matrix of a small bundle, which is none


def _small_tensors(network: bundles.Network) -> list[TensorEntry]:
    shapes = matrix_shapes(network)
    del shapes[bundles.HEAD]  # it is the embedding
    return [
        TensorEntry(
            name=name,
            rows=rows,
            cols=cols,
            scheme="int8",
            n_levels=255,
            group_size=cols,
            scale_type="float32",
            codec="raw",
            code_bits=8,
            cap=0,
            bits_per_weight=round(8 * (SMALL_BLOB + 4 * rows) / (rows * cols), 6),
            entropy_bits=7.1,
            zeros=0.25,
            levels_crc32=1,
            blob_bytes=SMALL_BLOB,
            scales_bytes=4 * rows,
            sizes_bytes={"raw8": SMALL_BLOB},
            own_levels=False,
        )
        for name, (rows, cols) in shapes.items()
    ]


def _small_artifact(network: bundles.Network, tensors: list[TensorEntry]) -> Artifact:
    """A `.pte` of `tensors`, one behind another, and the vectors behind them."""
    places, vectors, at = {}, {}, 64
    for t in tensors:
        places[t.name] = Location(
            bundles.PROGRAM, "tqlz", at, t.blob_bytes, at + t.blob_bytes, t.scales_bytes
        )
        at = align(at + t.blob_bytes + t.scales_bytes, 64)
    for name, n in vector_sizes(network).items():
        vectors[name] = bundles.VectorLocation(bundles.PROGRAM, at, n)
        at = align(at + 4 * n, 64)
    return Artifact(
        format="pte",
        path=bundles.PROGRAM,
        files=[bundles.PROGRAM],
        activations="int16",
        kv_type="float16",
        prefill_tokens=network.context,
        kv_cache_bytes=32 * network.context,
        operators={"tinyqmoe::lzw_linear.out": 1},
        places=places,
        vectors=vectors,
        details={"arena_bytes": 64 * network.context},
    )


def small_manifest(**changes: Any) -> Manifest:
    """A manifest for tests that need no program: vocabulary 258, context 16. `changes` are of the
    interface."""
    interface = bundles.Interface(
        context=16, vocab_size=258, bos_rule="tokenizer", bos_token_id=256, eos_token_ids=[257]
    )
    interface = replace(interface, **changes)
    network = replace(SMALL_NETWORK, context=interface.context, vocab=interface.vocab_size)
    tensors = _small_tensors(network)
    return Manifest(
        schema_version=bundles.SCHEMA_VERSION,
        created="2026-01-01T00:00:00+00:00",
        tools={"tiny-qmoe": "0"},
        model=bundles.ModelEntry(
            "small",
            32,
            128,
            {"model.safetensors": "0" * 64},
            {"model_type": "llama"},
            bundles.Origin("owner/small", "0" * 40, None, None, {"F32": 1}),
        ),
        quantization={"scheme": "int8"},
        rate=None,
        quantization_loss=bundles.QuantizationLoss("a text", 16, 0.1, 0.01, 0.9, 10.0, 11),
        interface=interface,
        network=network,
        artifacts=[_small_artifact(network, tensors)],
        prompts=["a prompt"],
        tensors=tensors,
    )


def write_small_bundle(path: Path, **changes: Any) -> Bundle:
    """A bundle directory that is whole by its manifest; its program is bytes that no runtime
    loads."""
    manifest = small_manifest(**changes)
    path.mkdir(parents=True)
    n_bytes = max(v.offset + 4 * v.n for v in manifest.artifacts[0].vectors.values())
    (path / bundles.PROGRAM).write_bytes(bytes(n_bytes))
    (path / bundles.REFERENCE).write_bytes(b"not a reference")
    (path / "tokenizer.json").write_text("{}")
    files = bundles.file_entries(path)
    ledger = [bundles.LedgerRow(f.path, "all of it", f.n_bytes) for f in files]
    manifest = replace(manifest, files=files, ledger=ledger)
    (path / bundles.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(path)


def as_dict(bundle: Bundle) -> dict[str, Any]:
    """The manifest as plain values."""
    return asdict(bundle.manifest)


CONTEXT = 48  # of both shared bundles
VOCAB = 150
TERNARY = QuantConfig(scheme="ternary")
SPARSE = QuantConfig(scheme="ternary", group_size=24, sparsity=0.6, embedding="ternary")


def export_other(checkpoint: Path, out: Path) -> Bundle:
    """Calls of at most five tokens, so that prompts cross their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "PREFILL_TOKENS", 5)
        return export(
            checkpoint,
            out,
            SPARSE,
            context=CONTEXT,
            codec="lzw",
            activations="float32",
            with_native=True,
        )
