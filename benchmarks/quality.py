"""The loss of a model by the rate that its weights are quantized at, in coded bytes.

    python benchmarks/quality.py --model DIR --text wiki.test.raw --work DIR --bits 4.4 3.3 \
        [--gguf FILE] [--matrices linear|all] [--calibration FILE|none] [--tokens 10240]

The loss is measured on four windows of 512 tokens of the first half of the text; KL is that of the
quantized against the given model. Calibrated is on the second half, or on another file. A
checkpoint that was once quantized to Q4_1 lies on a grid of 16 values a block of 32, which other
methods of four bits and more would find again: with its GGUF file each weight is first moved within
its cell, by uniform noise, and that model is the reference. `--work` keeps it and the calibration.
Needs the extras `test`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from exporter.allocation import Search
from exporter.bundle import EMBEDDING
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.codec.encoder import encode
from exporter.quant import column_steps, int8
from exporter.quant.calibration import Calibration, CalibrationText, Statistics, Uncalibrated
from exporter.quant.calibration_passes import Passes
from exporter.quant.rate_quantizer import RateQuantizer

WINDOW = 512
SHIPPED = "shipped"
QUESTION = "What is the capital of France?"
# Names of matrices in a GGUF file; the rows of queries and keys are in another order there.
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def without_grid(model: Path, gguf: Path, out: Path) -> Path:
    """A checkpoint whose matrices have noise of one cell of Q4_1; the embedding stays."""
    import gguf as library

    if (out / "config.json").is_file():
        return out
    tensors = {t.name: t for t in library.GGUFReader(gguf).tensors}
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    heads = 64  # columns of a head are not needed: rows of a head are
    for name in [n for n in weights if n.startswith("model.layers.") and weights[n].ndim == 2]:
        _, _, layer, kind = name.removesuffix(".weight").split(".", 3)
        blocks = np.array(tensors[f"blk.{layer}.{GGUF_NAMES[kind]}.weight"].data).reshape(-1, 20)
        steps = torch.from_numpy(blocks[:, :2].copy().view(np.float16).astype(np.float32))
        w = weights[name].float()
        steps = steps.view(len(w), -1, 1)
        if kind.endswith(("q_proj", "k_proj")):
            steps = steps.view(-1, heads // 2, 2, steps.shape[1]).transpose(1, 2)
            steps = steps.reshape(len(w), -1, 1)
        noise = torch.rand(*steps.shape[:2], 32, generator=generator) - 0.5
        weights[name] = (w.view(noise.shape) + noise * steps).view_as(w).contiguous()
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "model.safetensors":
            shutil.copyfile(file, out / file.name)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


class Judge:
    """The original's answers on windows of a text, and what another model loses against them."""

    def __init__(self, model: Path, text: str) -> None:
        self.model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        half = len(ids) // 2
        starts = [int(i * (half - 2 * WINDOW) / 7) for i in range(0, 8, 2)]
        self.windows = [ids[start : start + WINDOW] for start in starts]
        self.original = {n: p.clone() for n, p in self.model.named_parameters()}
        self.expected = [self.log_probabilities(window) for window in self.windows]

    def log_probabilities(self, window: torch.Tensor) -> torch.Tensor:
        """Log probabilities after each token of a window, float32 [n, vocab]."""
        return torch.log_softmax(self.model(window[None], use_cache=False).logits[0], -1)

    def restore(self) -> None:
        """Gives the model its own weights again."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.original[name])

    def loss(self) -> str:
        """Mean and median KL in nats, agreement of the best token, perplexity."""
        kl, same, log_p = [], [], []
        for window, expected in zip(self.windows, self.expected, strict=True):
            found = self.log_probabilities(window)
            kl.append((expected.exp() * (expected - found)).sum(-1))
            same.append(expected.argmax(-1) == found.argmax(-1))
            log_p.append(found[:-1].gather(1, window[1:, None])[:, 0])
        all_kl, agreement = torch.cat(kl), torch.cat(same).float().mean()
        perplexity = torch.exp(-torch.cat(log_p).double().mean())
        return (
            f"{all_kl.mean():.4f} | {all_kl.median():.4f} | {100 * agreement:.1f} | "
            f"{perplexity:.2f}"
        )

    def answer(self) -> str:
        """What the model says to QUESTION."""
        chat = [{"role": "user", "content": QUESTION}]
        prompt = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = self.model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=2)
        return self.tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :]).replace("\n", " ")


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


def quantize(judge: Judge, quantizer: RateQuantizer) -> int:
    """Puts quantized weights into the judge's model; returns the size of codes and scales."""
    weights, size = dict(judge.model.named_parameters()), 0
    for name in quantizer.names:
        blocks = list(quantizer.blocks(name))
        levels, scales = (torch.cat([block[i] for block in blocks]) for i in (1, 2))
        coded = encode(levels.numpy(), int8.LEVEL_MIN, int8.N_LEVELS, "smallest")
        size += coded.blob.nbytes + 4 * scales.numel()
        weights[name].copy_(levels.float() * scales)
    for name, vector in quantizer.checkpoint.vectors().items():
        weights[name].copy_(vector)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--matrices", choices=("linear", "all"), default="linear")
    parser.add_argument("--calibration", help=f"a file, none, or {SHIPPED}: the text that ships")
    parser.add_argument("--tokens", type=int, default=10_240)
    arguments = parser.parse_args()
    model, arguments.name = arguments.model, "original"
    if arguments.gguf:
        arguments.name = "without-grid"
        model = without_grid(model, arguments.gguf, arguments.work / arguments.name)
    text = arguments.text.read_text(encoding="utf-8")
    checkpoint = Checkpoint.open(model)
    calibration = calibrated(checkpoint, arguments, text)
    torch.set_grad_enabled(False)
    judge = Judge(model, text)
    names = [n for n in checkpoint.names if len(checkpoint.shape(n)) == 2]
    if arguments.matrices == "linear":
        names.remove(EMBEDDING)
    statistics: Statistics = Uncalibrated(checkpoint)
    if calibration:
        checkpoint, statistics = column_steps.fold(checkpoint, names, calibration)
    search = Search(checkpoint, names, statistics, "smallest")
    print("bits asked | coded | MB | c | KL | median | top-1 % | perplexity | answer")
    print(f"original | | | | {judge.loss()} | {judge.answer()}", flush=True)
    for bits in arguments.bits:
        judge.restore()
        c = search.find_constant(bits * search.weights / 8, lambda *_: None)
        size = quantize(judge, RateQuantizer(checkpoint, names, statistics, c))
        rate = f"{bits} | {8 * size / search.weights:.4f} | {size / 1e6:.2f} | {c:.3e}"
        print(f"{rate} | {judge.loss()} | {judge.answer()}", flush=True)


if __name__ == "__main__":
    main()
