"""How far apart two correct int16 programs are: the figures behind the int16 gates of `tinyqmoe
parity` (docs/parity.md).

The quantized model is computed twice in PyTorch, the second time with the inputs of every product
off by a few units in the last place (as another exp, another order of sums would give). What lies
between the two is no error of either.

    python benchmarks/rounding_noise.py CHECKPOINT... [--runs 8] [--positions 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.encoded import EncodedModel, encode_matrices
from exporter.models.layers import Decoder
from exporter.quant.config import QuantConfig
from exporter.quant.quantize import quantize
from exporter.reference import model as reference_model
from exporter.reference import prompts
from exporter.reference.model import QuantizedLayers, quantize_activations
from exporter.reference.prompts import token_sequences

ROW = 16  # positions judged together by a check
EXACT = quantize_activations


def logits(model: Decoder, ids: torch.Tensor, epsilon: float, seed: int) -> torch.Tensor:
    """float64 [S, V], with activations multiplied by 1 ± epsilon before they are quantized."""
    generator = torch.Generator().manual_seed(seed)

    def disturbed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return EXACT(x * (1 + epsilon * (2 * torch.rand(x.shape, generator=generator) - 1)))

    with (
        torch.inference_mode(),
        mock.patch.object(reference_model, "quantize_activations", disturbed),
    ):
        return model.logits(model.hidden(ids, torch.tensor([0])))[0].double()


def differences(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL in nats and SQNR in dB, each [S]."""
    p, q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    signal, noise = a.var(-1, correction=0), (a - b).square().mean(-1).clamp_min(1e-30)
    return (p.exp() * (p - q)).sum(-1).numpy(), (10 * torch.log10(signal / noise)).numpy()


def measure(path: str, scheme: str, runs: int, positions: int) -> Iterator[dict[str, object]]:
    """One row of the table for each size of disturbance."""
    checkpoint = Checkpoint.open(path)
    with tempfile.TemporaryDirectory() as work:
        tensors = quantize(checkpoint, QuantConfig(scheme=scheme))
        matrices = encode_matrices(tensors, Path(work), "auto")
        encoded = EncodedModel(matrices, checkpoint.vectors())
        checkpoint.write_texts(Path(work))
        vocab_size = checkpoint.config.vocab_size
        _, sequences = token_sequences(Path(work), vocab_size, prompts.TEXTS)
        ids = torch.tensor([[t for s in sequences for t in s][:positions]])
        model = checkpoint.network(positions, QuantizedLayers(encoded, "int16"))
        plain = logits(model, ids, 0.0, 0)
        for bits in (22, 20):
            pairs = [
                differences(plain, logits(model, ids, 2.0**-bits, seed)) for seed in range(runs)
            ]
            kl, sqnr = (
                np.stack(x)[:, : positions // ROW * ROW].reshape(-1, ROW)
                for x in zip(*pairs, strict=True)
            )
            yield {
                "model": checkpoint.path.resolve().name,
                "scheme": scheme,
                "disturbance": f"2^-{bits}",
                "kl_median": float(np.median(kl)),
                "kl_row_median_worst": float(np.median(kl, 1).max()),
                "kl_worst": float(kl.max()),
                "sqnr_db_median": float(np.median(sqnr)),
                "sqnr_db_row_median_worst": float(np.median(sqnr, 1).min()),
                "sqnr_db_worst": float(sqnr.min()),
            }


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--positions", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pairs = [(c, s) for c in args.checkpoints for s in ("int8", "ternary")]
    rows = [row for c, s in pairs for row in measure(c, s, args.runs, args.positions)]
    print(
        f"{platform.machine()}, torch {torch.__version__}, {args.runs} runs of {args.positions} "
        "positions\n"
    )
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{v:.2g}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(cells) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
