"""The loss of a model by the size of its weights, ours in coded bytes and other methods' beside.

    python -m benchmarks.quality --model DIR --work DIR --bits 4.4 3.3 [--text wiki.test.raw] \
        [--judged FILE] [--gguf FILE] [--matrices linear|all] \
        [--calibration FILE|shipped|none] [--tokens 10240] \
        [--ggml libggml-base.so --types Q4_K_M Q2_K] [--rounded int8 int4] [--plot FILE]

The loss is measured on four windows of 512 tokens of the first half of the text; KL is that of the
quantized against the given model. Without a text, the model writes one itself. Calibrated is on the
second half, or on another file. `--judged` is another text to measure the loss on. A checkpoint
that was once quantized to Q4_1 lies on a grid of 16 values a block of 32, which other methods of
four bits and more would find again: with its GGUF file each weight is first moved within its cell,
by uniform noise, and that model is the reference.

`--types` are llama.cpp's, with an importance matrix of the same calibration; `--rounded` are plain
int8 by row, and int4 in groups of 32. `--work` keeps the reference, the calibration and what was
measured, which is not measured again: a command that was cut off goes on. `--plot` draws what the
command measured. Needs the extras `test`, for a plot `report`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.llama_cpp import Ggml, type_of
from benchmarks.quality_judge import Judge, own_text, without_grid
from exporter.allocation import Search
from exporter.bundle import EMBEDDING
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec.encoder import encode
from exporter.codec.scales import stored
from exporter.quant import column_steps, int8, load
from exporter.quant.calibration import Calibration, CalibrationText, Statistics, Uncalibrated
from exporter.quant.calibration_passes import Passes
from exporter.quant.rate import DAMPING
from exporter.quant.rate_quantizer import RateQuantizer
from exporter.quant.tensor import effective_group_size

SHIPPED = "shipped"
OURS, LLAMA_CPP, ROUNDED = "int8 at a rate", "llama.cpp", "rounded"
HEADER = "bits | MB | KL | median | same best token, % | perplexity | answer"


def calibrated(
    checkpoint: Checkpoint, arguments: argparse.Namespace, text: str
) -> Calibration | None:
    """The calibration that the options ask for, if any."""
    if arguments.calibration == "none":
        return None
    source = CalibrationText("second half", text[len(text) // 2 :])
    if arguments.calibration:
        given = None if arguments.calibration == SHIPPED else arguments.calibration
        source = CalibrationText.read(given) or source
    windows = source.windows(checkpoint)
    wanted = min(len(windows), arguments.tokens // windows.shape[1])
    windows = windows[np.linspace(0, len(windows) - 1, wanted).astype(int)]
    stem = Path(arguments.calibration or "text").stem
    folder = arguments.work / f"{arguments.name}-{stem}-{windows.numel()}"
    folder.mkdir(parents=True, exist_ok=True)
    calibration = Calibration(folder)
    Passes(checkpoint, windows, calibration, lambda *_: None).run()
    return calibration


@dataclass(frozen=True)
class Methods:
    """The ways to quantize the matrices `names`; each puts the result into the judge's model.

    Each returns the size of the weights in bytes.
    """

    judge: Judge
    checkpoint: Checkpoint
    names: list[str]
    calibration: Calibration | None

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of the judge's model."""
        return dict(self.judge.model.named_parameters())

    def at_rate(self, bits: float) -> int:
        """int8 levels at a rate."""
        checkpoint, statistics = self.checkpoint, self._statistics()
        if self.calibration:
            checkpoint, statistics = column_steps.fold(checkpoint, self.names, self.calibration)
        search = Search(checkpoint, self.names, statistics, "smallest")
        c = search.find_constant(bits * search.weights / 8, lambda *_: None)
        quantizer, size = RateQuantizer(checkpoint, statistics, dict.fromkeys(self.names, c)), 0
        for name in self.names:
            blocks = list(quantizer.blocks(name))
            levels = torch.cat([levels for _, levels, _ in blocks])
            scales = torch.cat([scales for _, _, scales in blocks])
            coded = encode(levels.numpy(), int8.LEVEL_MIN, int8.N_LEVELS, "smallest")
            size += coded.blob.nbytes + stored(scales.numpy()).nbytes
            self.weights[name].copy_(levels.float() * scales)
        for name, vector in checkpoint.vectors().items():
            self.weights[name].copy_(vector)
        return size

    def _statistics(self) -> Statistics:
        return self.calibration or Uncalibrated(self.checkpoint)

    def rounded(self, scheme_name: str) -> int:
        """A scheme with its own settings, levels packed to whole bits and float16 scales."""
        scheme, size = load(scheme_name), 0
        config = scheme.Config()
        for name in self.names:
            levels, scales = scheme.quantize_rows(self._matrix(name), config)
            group_size = effective_group_size(config.group_size, levels.shape[1])
            self.weights[name].copy_(scheme.dequantize(levels, scales, group_size))
            bits = math.ceil(math.log2(scheme.N_LEVELS))
            size += bits * levels.numel() // 8 + 2 * scales.numel()
        return size

    def of_llama_cpp(self, library: Ggml, mixture: str) -> int:
        """A type of llama.cpp, with an importance matrix."""
        layers, size = self.checkpoint.config.num_hidden_layers, 0
        for name in self.names:
            dtype = type_of(mixture, name, layers)
            w, n_bytes = library.quantized(self._matrix(name), dtype, self._importance(name))
            self.weights[name].copy_(w)
            size += n_bytes
        return size

    def _matrix(self, name: str) -> torch.Tensor:
        return self.checkpoint.rows(name, 0, self.checkpoint.shape(name)[0])

    def _importance(self, name: str) -> torch.Tensor:
        """Mean squared inputs of a matrix, float32 [cols]: the Gram matrix without its damping."""
        damped = self._statistics().curvature(name).inputs.gram.diagonal()
        return (damped - damped.median() * DAMPING / (1 + DAMPING)).clamp(min=0)


@dataclass(frozen=True)
class Bench:
    """Measures methods, and keeps the points in a file by reference, method and setting."""

    methods: Methods
    reference: str
    file: Path

    def measure(self, method: str, setting: str, quantize: Callable[[], int]) -> dict[str, Any]:
        """The point of a method, printed; measured if it is not in the file."""
        points: dict[str, Any] = {}
        if self.file.is_file():
            points = json.loads(self.file.read_text(encoding="utf-8"))
        key = f"{self.reference}: {method}, {setting}"
        if key not in points:
            self.methods.judge.restore()
            size, weights = quantize(), self.methods.weights
            n = sum(weights[name].numel() for name in self.methods.names)
            of_size = {"bits": 8 * size / n, "mb": size / 1e6}
            loss = asdict(self.methods.judge.loss())
            points[key] = {"method": method, "setting": setting} | of_size | loss
            self.file.write_text(json.dumps(points, indent=1), encoding="utf-8")
        point: dict[str, Any] = points[key]
        cells = (v if isinstance(v, str) else f"{v:.4f}" for v in point.values())
        print(" | ".join(cells), flush=True)
        return point


def plot(points: list[dict[str, Any]], file: Path, title: str) -> None:
    """Draws KL over the bits of a weight, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for method, style in ((OURS, "o-"), (LLAMA_CPP, "s--"), (ROUNDED, "^")):
        own = sorted((p for p in points if p["method"] == method), key=lambda p: float(p["bits"]))
        if not own:
            continue
        axes.plot([p["bits"] for p in own], [p["kl"] for p in own], style, label=method)
        for p in own if method != OURS else ():
            axes.annotate(
                p["setting"], (p["bits"], p["kl"]), xytext=(4, 4), textcoords="offset points"
            )
    axes.set(yscale="log", xlabel="bits per weight, with scales and tables", ylabel="KL, nats")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(file)


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="without it, the model writes one")
    parser.add_argument("--judged", type=Path, help="another text for the loss: its first windows")
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--matrices", choices=("linear", "all"), default="linear")
    parser.add_argument("--calibration", help=f"a file, none, or {SHIPPED}: the text that ships")
    parser.add_argument("--tokens", type=int, default=10_240)
    parser.add_argument("--ggml", type=Path, help="llama.cpp's library ggml-base")
    parser.add_argument("--types", nargs="*", default=[], help="of llama.cpp; needs --ggml")
    parser.add_argument("--rounded", nargs="*", default=[], choices=("int8", "int4"))
    parser.add_argument("--plot", type=Path, help="a PNG or SVG file")
    arguments = parser.parse_args()
    arguments.name = "without-grid" if arguments.gguf else "original"
    if arguments.types and (not arguments.ggml or arguments.matrices == "all"):
        parser.error("--types needs --ggml, and is for --matrices linear")
    return arguments


def main() -> None:
    arguments = options()
    model, file = arguments.model, arguments.text
    text = file.read_text(encoding="utf-8") if file else own_text(model, arguments.work)
    if arguments.gguf:
        model = without_grid(model, arguments.gguf, arguments.work / arguments.name)
    checkpoint = Checkpoint.open(model)
    calibration = calibrated(checkpoint, arguments, text)
    torch.set_grad_enabled(False)
    judged = arguments.judged
    judge = Judge(model, text, judged and judged.read_text(encoding="utf-8"))
    names = [n for n in checkpoint.names if len(checkpoint.shape(n)) == 2]
    if arguments.matrices == "linear":
        names.remove(EMBEDDING)
    source = "none" if calibration is None else calibration.folder.name
    reference = f"{arguments.name}, {arguments.matrices}, {source}"
    reference += f", judged on {judged.name}" if judged else ""
    methods = Methods(judge, checkpoint, names, calibration)
    bench = Bench(methods, reference, arguments.work / "points.json")
    print(f"{reference}: {asdict(judge.loss())}\nmethod | setting | {HEADER}", flush=True)
    points = [
        bench.measure(OURS, f"{bits:g} bits", partial(methods.at_rate, bits))
        for bits in arguments.bits
    ]
    for kind in arguments.types:
        quantize = partial(methods.of_llama_cpp, Ggml(arguments.ggml), kind)
        points.append(bench.measure(LLAMA_CPP, kind, quantize))
    for scheme in arguments.rounded:
        points.append(bench.measure(ROUNDED, scheme, partial(methods.rounded, scheme)))
    if arguments.plot:
        plot(points, arguments.plot, f"against {arguments.name}, {arguments.matrices} matrices")


if __name__ == "__main__":
    main()
