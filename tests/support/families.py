"""Small random models of every family that a native session runs: in transformers with the
products' arithmetic, and as bundles with nothing but what a session reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.codec.encoder import encode
from exporter.codec.scales import stored, type_of

CONTEXT, VOCABULARY = 64, 97


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return LlamaForCausalLM(LlamaConfig(rope_parameters=rope, tie_word_embeddings=True, **SIZES))


def llama_biases() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    biases = {"attention_bias": True, "mlp_bias": True}
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **biases, **SIZES))


def mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(sliding_window=None, tie_word_embeddings=False, **SIZES)
    )


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SIZES))


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=False, **{**SIZES, "head_dim": 32}))


SIZES: dict[str, Any] = {
    "hidden_size": 60,
    "intermediate_size": 92,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
}
FAMILIES: dict[str, tuple[Callable[[], Any], int | None]] = {  # and the group of scales
    "llama": (llama, None),
    "llama with biases": (llama_biases, None),
    "mistral": (mistral, 32),
    "qwen2": (qwen2, None),
    "qwen3": (qwen3, 24),
}


@dataclass(frozen=True)
class Quantized:
    """int8 levels [rows, cols] and scales [rows, groups]."""

    levels: Tensor
    scales: Tensor
    group: int

    @classmethod
    def of(cls, weight: Tensor, group: int | None) -> Quantized:
        size = group or weight.shape[1]
        parts = weight.detach().split(size, 1)
        scales = torch.stack([p.abs().amax(1) / 127 for p in parts], 1)
        if group:  # they are stored in 16 bits
            scales = scales.half().float()
        levels = [torch.round(p / scales[:, [g]]) for g, p in enumerate(parts)]
        return cls(torch.cat(levels, 1), scales, size)

    def dense(self) -> Tensor:
        return self.levels * self.scales.repeat_interleave(self.group, 1)[:, : self.levels.shape[1]]

    def multiply(self, x: Tensor) -> Tensor:
        """In the arithmetic of the products (x16 of tinyqmoe.h): activations in int16, one scale a
        token, exact sums."""
        largest = x.abs().amax(-1, keepdim=True)
        q = torch.round(x * (torch.full_like(largest, 32512) / largest)).double()
        x_scale = largest / 32512
        parts = zip(q.split(self.group, 1), self.levels.double().split(self.group, 1), strict=True)
        sums = [(a @ w.T).float() for a, w in parts]
        if len(sums) == 1:
            return sums[0] * (x_scale * self.scales[:, 0])
        total = torch.zeros_like(sums[0])
        for g, part in enumerate(sums):
            total += part * self.scales[:, g]
        return x_scale * total


class QuantizedLinear(nn.Module):
    def __init__(self, matrix: Quantized, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix.multiply(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def quantize_model(model: Any, group: int | None) -> dict[str, Quantized]:
    """Replaces every product of `model`; returns its matrices by name."""
    embedding = Quantized.of(model.model.embed_tokens.weight, group)
    matrices = {"model.embed_tokens.weight": embedding}
    tied = model.config.tie_word_embeddings
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in linears:
        matrix = embedding if tied and name == "lm_head" else Quantized.of(linear.weight, group)
        if matrix is not embedding:
            matrices[f"{name}.weight"] = matrix
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, QuantizedLinear(matrix, linear.bias))
    model.model.embed_tokens.weight = nn.Parameter(embedding.dense())
    return matrices


def network_of(config: Any) -> dict[str, Any]:
    """The sizes of a model of transformers, as a manifest has them."""
    return {
        "version": 3,
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab": config.vocab_size,
        "context": CONTEXT,
        "eps": config.rms_norm_eps,
    }


def write_bundle(folder: Path, model: Any, matrices: dict[str, Quantized]) -> None:
    """What a session reads (exporter/native/llm/MANIFEST.md), and nothing else."""
    data = bytearray()

    def put(part: Any) -> int:
        data.extend(b"\0" * (-len(data) % 64))
        data.extend(bytes(part))
        return len(data) - len(bytes(part))

    places, tensors = {}, []
    for name, matrix in matrices.items():
        blob = bytes(encode(matrix.levels.to(torch.int8).numpy(), -127, 255).blob)
        scales = stored(matrix.scales.numpy())
        scales_at = put(scales.tobytes())
        places[name] = {
            "file": "weights.bin",
            "form": "tqlz",
            "offset": put(blob),
            "n_bytes": len(blob),
            "scales_offset": scales_at,
        }
        tensors.append({"name": name, "group_size": matrix.group, "scale_type": type_of(scales)})
    named = {n: p for n, p in model.named_parameters() if n != "model.embed_tokens.weight"}
    # the biases that quantize_model put aside are no parameters of QuantizedLinear's own
    named |= {
        f"{n}.bias": m.bias
        for n, m in model.named_modules()
        if isinstance(m, QuantizedLinear) and m.bias is not None
    }
    named["rope.frequencies"] = model.model.rotary_emb.inv_freq
    vectors = {
        name: {
            "file": "weights.bin",
            "offset": put(v.detach().float().numpy().tobytes()),
            "n": v.numel(),
        }
        for name, v in named.items()
    }
    manifest = {
        "network": network_of(model.config),
        "tensors": tensors,
        "artifacts": [
            {
                "format": "pte",
                "activations": "int16",
                "kv_type": "float16",
                "places": places,
                "vectors": vectors,
            }
        ],
    }
    folder.mkdir()
    (folder / "weights.bin").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@dataclass(frozen=True)
class Model:
    bundle: Path
    network: Any

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> np.ndarray:
        return self.network(torch.tensor([tokens])).logits[0, -1].numpy()


def make_models(root: Path) -> dict[str, Model]:
    """A model of each family, and its bundle in a folder of `root`."""
    made = {}
    for name, (make, group) in FAMILIES.items():
        torch.manual_seed(7)
        network = make().eval()
        with torch.no_grad():
            for parameter in network.parameters():  # norms and biases that matter
                spread = 0.3 if parameter.dim() == 1 else 0.15
                parameter.add_(torch.randn_like(parameter) * spread)
        matrices = quantize_model(network, group)
        write_bundle(root / name, network, matrices)
        made[name] = Model(root / name, network)
    return made
