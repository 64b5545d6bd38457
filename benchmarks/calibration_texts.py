"""Which text calibrates better, without a whole model quantized for each.

    python -m benchmarks.calibration_texts --model DIR --texts shipped a.txt shipped+a.txt \
        --held-out b.txt c.txt [--layers 0 1 2 3] [--tokens 65536]

Matrices of the first layers are quantized by the Gram matrices H of each text, and lose
tr(E T E^T) by the Gram matrices T of a text that was held out, E being the error of the weights. A
text joined by + to others adds its tokens. Printed is the loss at equal bits by that of the first
text: a bit quarters a loss, and bits are those of the entropy of levels. Steps are one share of the
size of weights, and all rows count alike.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.quant import rate
from exporter.quant.calibration import Calibration, CalibrationText, input_of
from exporter.quant.calibration_passes import Grams, Passes

SHIPPED = "shipped"
STEP = 0.6  # by the root mean square of weights: about 2.8 bits
KINDS = ("q_proj", "o_proj", "gate_proj", "down_proj")  # one for each input of a layer


class Inputs(Passes):
    """The pass forward alone, which keeps the sums of x x^T in memory."""

    def sums(self, layers: int) -> dict[str, Tensor]:
        """The sums of the first layers, float32 [cols, cols] by name."""
        self.kept: dict[str, Tensor] = {}
        for layer in range(-1, layers):
            self._forward(layer)
        return self.kept

    def _write_factors(self, grams: Grams) -> None:
        self.kept |= grams.sums


def means(checkpoint: Checkpoint, given: str, layers: int, tokens: int) -> dict[str, Tensor]:
    """Mean x x^T of the first layers over one or several texts, float32 [cols, cols] by name."""
    totals: dict[str, Tensor] = {}
    count = 0
    for name in given.split("+"):
        text = CalibrationText.read(None if name == SHIPPED else name)
        assert text is not None, "none is no text"
        windows = text.windows(checkpoint)
        wanted = min(len(windows), tokens // windows.shape[1])
        windows = windows[np.linspace(0, len(windows) - 1, wanted).astype(int)]
        with tempfile.TemporaryDirectory() as folder:
            passes = Inputs(checkpoint, windows, Calibration(Path(folder)), lambda *_: None)
            for matrix, total in passes.sums(layers).items():
                totals[matrix] = total + totals.get(matrix, 0)
        count += windows.numel()
    return {matrix: total / count for matrix, total in totals.items()}


def loss(w: Tensor, gram: Tensor, held_out: list[Tensor]) -> list[float]:
    """Logarithm to base 4 of what weights [rows, cols] lose on each held-out text, plus bits."""
    curvature = rate.Curvature(rate.inverse_factor(gram), torch.ones(len(w)))
    c = float(STEP * w.square().mean().sqrt() * curvature.errors.mean().sqrt())
    levels, scales = rate.quantize_rows(w, curvature, c, rate.learn_prices(w, curvature, c))
    shares = rate.count(levels) / levels.numel()
    bits = -float(torch.xlogy(shares, shares).sum()) / math.log(2)
    error = w - levels * scales
    return [bits + math.log(float(((error @ t) * error).sum()), 4) for t in held_out]


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", required=True, help=f"files, or {SHIPPED}; + joins")
    parser.add_argument("--held-out", nargs="+", required=True, help="files")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--tokens", type=int, default=65_536, help="of each text at most")
    return parser.parse_args()


def main() -> None:
    arguments = options()
    checkpoint = Checkpoint.open(arguments.model)
    torch.set_grad_enabled(False)
    depth = max(arguments.layers) + 1
    texts = dict.fromkeys([*arguments.texts, *arguments.held_out])
    known = {name: means(checkpoint, name, depth, arguments.tokens) for name in texts}
    names = [
        name
        for name in known[arguments.texts[0]]
        if name.split(".")[-2] in KINDS and int(name.split(".")[2]) in arguments.layers
    ]
    losses: dict[str, list[list[float]]] = {text: [] for text in arguments.texts}
    for name in names:
        w = checkpoint.rows(name, 0, checkpoint.shape(name)[0])
        held_out = [known[text][input_of(name)] for text in arguments.held_out]
        for text in arguments.texts:
            losses[text].append(loss(w, known[text][input_of(name)], held_out))
    print("text | " + " | ".join(f"loss on {Path(name).name}" for name in arguments.held_out))
    first = np.array(losses[arguments.texts[0]])
    for text in arguments.texts:
        ratios = 4 ** (np.array(losses[text]) - first).mean(0)
        print(" | ".join([text, *(f"{ratio:.3f}" for ratio in ratios)]), flush=True)


if __name__ == "__main__":
    main()
