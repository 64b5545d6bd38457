"""What a model loses by quantization: a reference without a grid, texts, and the loss on them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

WINDOW = 512
OWN_WINDOWS = 32  # of a text that the model writes
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


def own_text(model: Path, work: Path) -> str:
    """A text of OWN_WINDOWS pieces of WINDOW tokens, drawn from the model's own distribution."""
    file = work / f"{model.name}.txt"
    if not file.is_file():
        tokenizer = AutoTokenizer.from_pretrained(model)
        network = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        torch.manual_seed(0)
        begin = torch.full((OWN_WINDOWS, 1), network.config.bos_token_id)
        sampling = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
        ids = network.generate(begin, max_length=WINDOW, **sampling)
        work.mkdir(parents=True, exist_ok=True)
        text = "\n".join(tokenizer.batch_decode(ids, skip_special_tokens=True))
        file.write_text(text, encoding="utf-8")
    return file.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Loss:
    """KL in nats over all positions, percentage of equal best tokens, perplexity, an answer.

    There is an answer where the model has a chat template.
    """

    kl: float
    kl_median: float
    same_best: float
    perplexity: float
    answer: str


class Judge:
    """The original's answers on windows of a text, and what another model loses against them."""

    def __init__(self, model: Path, text: str, other: str | None = None) -> None:
        """Judged is on four windows of the first half of `text`, or from the start of `other`."""
        self.model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        given = text if other is None else other
        ids = torch.tensor(self.tokenizer(given, add_special_tokens=False)["input_ids"])
        starts = [int(i * (len(ids) // 2 - 2 * WINDOW) / 7) for i in range(0, 8, 2)]
        if other is not None:
            starts = [*range(0, min(len(ids), 4 * WINDOW), WINDOW)]
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

    def loss(self) -> Loss:
        """The loss of the model as it is now against the original, on all windows."""
        kl, same, log_p = [], [], []
        for window, expected in zip(self.windows, self.expected, strict=True):
            found = self.log_probabilities(window)
            kl.append((expected.exp() * (expected - found)).sum(-1))
            same.append(expected.argmax(-1) == found.argmax(-1))
            log_p.append(found[:-1].gather(1, window[1:, None])[:, 0])
        all_kl, agreement = torch.cat(kl), torch.cat(same).float().mean()
        perplexity = torch.exp(-torch.cat(log_p).double().mean())
        values = (all_kl.mean(), all_kl.median(), 100 * agreement, perplexity)
        return Loss(*map(float, values), self.answer())

    def answer(self) -> str:
        """What the model says to QUESTION, if it has a chat template."""
        if self.tokenizer.chat_template is None:
            return ""
        chat = [{"role": "user", "content": QUESTION}]
        prompt = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = self.model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=2)
        return self.tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :]).replace("\n", " ")
