"""What an arithmetic costs, and how far apart two correct programs of it are: the tables of
docs/arithmetic.md, and the figures behind the gates of `tinyqmoe parity` (docs/parity.md).

The loss table compares the quantized model in PyTorch with the original checkpoint. The noise table
compares packages, position by position, with the quantized model in PyTorch: what lies between them
is no error of either. The models are the demo's, two of random weights, and CHECKPOINT...

    python -m benchmarks.arithmetic CHECKPOINT... [--text FILE] [--windows 4] [--tokens 384]
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from exporter import demo, manifest
from exporter.backends import registry
from exporter.backends.package import PackageInput
from exporter.bundle import NATIVE, REFERENCE, Arithmetic, Bundle, QuantizationLoss
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.config import MIN_CONTEXT, ExportConfig
from exporter.encoded import EncodedModel, encode_matrices
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from exporter.reference.answers import write_tensors
from exporter.reference.loss import quantization_loss
from exporter.reference.loss_text import LossText
from exporter.reference.model import QuantizedLayers, hidden_states
from exporter.reference.prompts import TEXTS, read_tokenizer, token_sequences
from runtime_ref import runners
from runtime_ref.generate import Runner
from runtime_ref.parity import Difference, compare, tolerance
from runtime_ref.residency import Residency
from tests.support.checkpoints import LLAMA3_ROPE, write_llama

LOSS = (
    Arithmetic("float32", "float32"),
    Arithmetic("int16", "float32"),
    Arithmetic("int16", "float16"),
    Arithmetic("int16", "int8"),
)
NOISE = (  # formats of packages as runners know them, and their arithmetics; "native" runs a "pte"
    ("custom-op", Arithmetic("float32", "float32")),
    ("pte", Arithmetic("float32", "float16")),
    ("custom-op", Arithmetic("int16", "float32")),
    (NATIVE, Arithmetic("int16", "float32")),
    (NATIVE, Arithmetic("int16", "float16")),
    (NATIVE, Arithmetic("int16", "int8")),
    ("mlprogram", Arithmetic("int16", "float16")),  # half precision, whatever is asked for
)
RANDOM: dict[str, dict[str, Any]] = {
    "random, hidden 256, 4 layers": {"hidden_size": 256, "num_hidden_layers": 4},
    "random, hidden 64, 8 layers, llama3 rope": {
        "hidden_size": 64,
        "num_hidden_layers": 8,
        "rope_scaling": LLAMA3_ROPE,
    },
}
TOGETHER = 4  # positions in a check of a large model, over which parity takes a median


@dataclass(frozen=True)
class Windows:
    """Windows of a text: `count` of them, evenly apart, of `tokens` each or of what there is.

    The noise is measured on the first `noise_tokens` of each.
    """

    texts: Sequence[str]
    count: int
    tokens: int
    noise_tokens: int

    def of(self, checkpoint: Checkpoint) -> list[list[int]]:
        """Token ids of the windows, each of the same number."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write_texts(Path(folder))
            vocab_size = checkpoint.config.vocab_size
            _, sequences = token_sequences(read_tokenizer(Path(folder)), vocab_size, self.texts)
        ids = [token for sequence in sequences for token in sequence]
        n = min(self.tokens, len(ids) // self.count)
        step = (len(ids) - n) // max(1, self.count - 1)
        return [ids[i * step : i * step + n] for i in range(self.count)]


def quiet(*_: object) -> None:
    """Shows no progress."""


def loss_row(
    checkpoint: Checkpoint, encoded: EncodedModel, windows: list[list[int]]
) -> tuple[list[str], QuantizationLoss]:
    """Cells of the loss table, the mean KL over all windows in each arithmetic; and a loss."""
    cells, text = [f"{len(windows)} x {len(windows[0])}"], LossText("", windows)
    for arithmetic in LOSS:
        loss = quantization_loss(checkpoint, encoded, arithmetic, text, quiet)
        cells.append(f"{loss.kl_mean:.6f}")
    return cells, loss


def noise_row(source: PackageInput, runner: Runner, windows: Sequence[Sequence[int]]) -> list[str]:
    """Row of the noise table: a package against the model in PyTorch, in the same arithmetic."""
    artifact, rows = runner.artifact, []
    layers = QuantizedLayers(source.encoded, artifact.arithmetic)
    model = source.checkpoint.network(source.context, layers)
    for window in windows:
        with torch.inference_mode():
            logits = model.logits(hidden_states(model, window))[0].numpy()
        for position, token in enumerate(window):
            got = runner.forward([token], position)
            rows.append(compare(logits[position], got, tolerance(artifact)))
    return [artifact.format, artifact.activations, artifact.kv_type, *_figures(rows)]


def package_runner(
    source: PackageInput, package_format: str, arithmetic: Arithmetic, loss: QuantizationLoss
) -> Runner:
    """Runner of a package that is made for it, in `source.work`."""
    needed = "pte" if package_format == NATIVE else package_format
    activations, kv_cache = arithmetic.activations, arithmetic.kv_type
    options = replace(source.config, activations=activations, kv_cache=kv_cache, formats=(needed,))
    source = replace(source, config=options)
    source.work.mkdir()
    write_tensors({}, source.work / REFERENCE)  # a bundle has one; nothing here reads it
    manifest.write(source, [registry.emit(needed, source, quiet)], [], loss)
    bundle = Bundle.open(source.work)
    artifact = runners.package(bundle.manifest, package_format)
    return runners.open_runner(bundle, artifact, Residency(), quiet)


def _figures(rows: Sequence[Difference]) -> list[str]:
    """Cells of the differences at all positions.

    They are the median, the worst median of positions that a check judges together, and the worst.
    """
    cells = [str(len(rows))]
    for values, worst, form in (
        ([r.kl for r in rows], max, ".1e"),
        ([r.sqnr_db for r in rows], min, ".1f"),
    ):
        together = (values[i : i + TOGETHER] for i in range(0, len(values), TOGETHER))
        medians = [median(part) for part in together]
        cells += [format(v, form) for v in (median(values), worst(medians), worst(values))]
    return cells


def measure(path: Path, scheme: str, options: Windows) -> tuple[list[str], list[list[str]]]:
    """The row of the loss table, and the rows of the noise table, of a checkpoint."""
    checkpoint = Checkpoint.open(path)
    windows = options.of(checkpoint)
    starts = [window[: options.noise_tokens] for window in windows]
    config = ExportConfig(QuantConfig(scheme=scheme))
    name = [path.name, scheme]
    noise: list[list[str]] = []
    with tempfile.TemporaryDirectory() as work:
        coded = Path(work) / "coded"
        coded.mkdir()
        matrices = encode_matrices(quantize(checkpoint, config.quantization), coded, config.codec)
        encoded = EncodedModel(matrices, checkpoint.vectors())
        cells, loss = loss_row(checkpoint, encoded, windows)
        for i, (package_format, arithmetic) in enumerate(NOISE):
            place = Path(work) / f"bundle-{i}"
            source = PackageInput(checkpoint, encoded, MIN_CONTEXT + len(starts[0]), config, place)
            runner = package_runner(source, package_format, arithmetic, loss)
            noise.append([*name, *noise_row(source, runner, starts)])
    return [*name, *cells], noise


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--text", type=Path, help="the built-in texts by default")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=384, help="of a window")
    parser.add_argument("--noise-tokens", type=int, default=32, help="of a window")
    args = parser.parse_args()
    texts = [args.text.read_text(encoding="utf-8")] if args.text else TEXTS
    options = Windows(texts, args.windows, args.tokens, args.noise_tokens)
    with tempfile.TemporaryDirectory() as work:
        random = [write_llama(Path(work) / name, **sizes) for name, sizes in RANDOM.items()]
        paths = [demo.model_path(), *random, *args.checkpoints]
        measured = [measure(path, s, options) for path in paths for s in ("int8", "ternary")]
    print(f"{platform.machine()}, torch {torch.__version__}\n")
    columns = ["model", "scheme", "windows x tokens", *(a.name for a in LOSS)]
    print(table(columns, [loss for loss, _ in measured]), "\n")
    figures = ("median", "worst median of 4", "worst")
    columns = ["model", "scheme", "package", "activations", "cache", "positions"]
    columns += [*(f"KL {f}" for f in figures), *(f"dB {f}" for f in figures)]
    print(table(columns, [row for _, noise in measured for row in noise]))


if __name__ == "__main__":
    main()
