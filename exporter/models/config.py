"""The shape of a decoder of the Llama kind: read from config.json, with the tensors it implies.

Every family here is such a decoder. What sets families apart are the features that a
`ModelConfig` names: biases of projections, and norms over each head of the queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exporter.bundle import EMBEDDING, HEAD
from exporter.errors import CheckpointError
from exporter.models.rope import (
    DividedFrequencies,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)

MAX_SIZE = 2**31 - 1
# A config is foreign input: without a limit, a false layer count alone would exhaust memory.
MAX_LAYERS = 1024
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
# Ends of the names of architectures whose head is not that of a language model.
OTHER_TASKS = ("Classification", "QuestionAnswering", "RewardModel")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, in Hugging Face field names.

    It is made by `read_decoder`, which validates.

    biases: the projections of a layer that add a bias, of ATTENTION and MLP. head_norm: whether
    queries and keys pass an RMSNorm over each head before they are rotated.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    biases: tuple[str, ...] = ()
    head_norm: bool = False


class ConfigReader:
    """Reads typed values from a parsed config.json and notes every problem.

    One run names all problems. A wrong value reads as 1, to let the reading go on; `finish` raises
    if there was any.
    """

    def __init__(
        self, raw: dict[str, Any], *, prefix: str = "", problems: list[str] | None = None
    ) -> None:
        self.raw, self.prefix = raw, prefix
        self.problems: list[str] = [] if problems is None else problems

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key as it is; null counts as absent."""
        value = self.raw.get(key)
        return default if value is None else value

    def check(self, fine: bool, problem: str) -> None:
        """Notes `problem` unless `fine`."""
        if not fine:
            self.problems.append(self.prefix + problem)

    def size(self, key: str, default: Any = None, *, limit: int = MAX_SIZE) -> int:
        """An integer from 1 to `limit`."""
        value = self.get(key, default)
        fine = is_id(value) and 1 <= value <= limit
        self.check(fine, f"{key} must be an integer from 1 to {limit}, got {value!r}")
        return value if fine else 1

    def positive(self, key: str, default: Any = None) -> float:
        """A finite number above zero."""
        value = self.get(key, default)
        fine = (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        )
        self.check(fine, f"{key} must be a positive number, got {value!r}")
        return float(value) if fine else 1.0

    def one_of(self, key: str, *allowed: Any) -> Any:
        """A value of those that this tool supports; the first stands for an absent one."""
        value = self.get(key, allowed[0])
        self.check(
            value in allowed, f"{key} is {value!r}, supported: {' or '.join(map(repr, allowed))}"
        )
        return value

    def section(self, *keys: str) -> ConfigReader:
        """The nested object under the first of `keys` that is present, or an empty one.

        Problems are shared.
        """
        key = next((k for k in keys if self.get(k) is not None), keys[0])
        value = self.get(key, {})
        self.check(isinstance(value, dict), f"{key} must be an object, got {value!r}")
        raw = value if isinstance(value, dict) else {}
        return ConfigReader(raw, prefix=f"{self.prefix}{key}: ", problems=self.problems)

    def finish(self) -> None:
        """Ends the reading.

        Raises CheckpointError with all problems, if there are any.
        """
        if self.problems:
            raise CheckpointError(
                "config.json describes a model this tool cannot export",
                problems=self.problems,
                hint="use an unquantized Hugging Face checkpoint of a family this tool supports",
            )


def is_id(value: object) -> bool:
    """Whether `value` can be a token id: an integer from 0 up.

    True and False are none.
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE


def read_decoder(
    read: ConfigReader,
    *,
    biases: tuple[str, ...] = (),
    head_norm: bool = False,
) -> ModelConfig:
    """The shape that a config.json describes, of transformers 4 or 5.

    Raises CheckpointError with all that is unsupported, what the caller has noted in `read`
    included.
    """
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    kv_heads = read.size("num_key_value_heads", heads)
    head_dim = read.size("head_dim", max(1, hidden // heads))
    if not read.problems:  # else these would follow from a size that is named already
        _check_heads(read, hidden, heads, kv_heads, head_dim)
    _check_task(read)
    read.one_of("hidden_act", "silu")
    read.one_of("partial_rotary_factor", 1.0)
    read.check(
        "sliding_attention" not in (read.get("layer_types") or ()),
        "layer_types: only attention over the whole context is supported",
    )
    bos, eos = read.get("bos_token_id"), read.get("eos_token_id", [])
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    read.check(all(map(is_id, ids)), f"eos_token_id must be one or more token ids, got {eos!r}")
    read.check(bos is None or is_id(bos), f"bos_token_id must be a token id, got {bos!r}")
    theta, rope = _read_rope(read)
    config = ModelConfig(
        vocab_size=read.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.size("intermediate_size"),
        num_hidden_layers=read.size("num_hidden_layers", limit=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=read.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope=rope,
        max_position_embeddings=read.size("max_position_embeddings"),
        tie_word_embeddings=bool(read.one_of("tie_word_embeddings", False, True)),
        bos_token_id=bos,
        eos_token_ids=ids,
        biases=biases,
        head_norm=head_norm,
    )
    read.finish()
    return config


def _check_task(read: ConfigReader) -> None:
    """Notes an architecture that gives no text. How it is spelt else does not matter."""
    names = read.get("architectures") or []
    for name in names if isinstance(names, list) else [names]:
        read.check(
            not str(name).endswith(OTHER_TASKS),
            f"architectures is {name!r}: such a model classifies, it does not write text",
        )


def _check_heads(read: ConfigReader, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Notes sizes of heads that do not fit each other."""
    whole = read.get("head_dim") is not None or hidden % heads == 0
    read.check(
        whole, f"hidden_size {hidden} must be a multiple of {heads} heads, as head_dim is absent"
    )
    read.check(
        heads % kv_heads == 0,
        f"num_attention_heads {heads} must be a multiple of {kv_heads} kv heads",
    )
    read.check(
        head_dim % 2 == 0, f"head_dim must be even, because RoPE turns pairs, got {head_dim}"
    )


def _read_rope(read: ConfigReader) -> tuple[float, RopeScaling | None]:
    """RoPE base and scaling.

    They come from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (4).
    """
    rope = read.section("rope_parameters", "rope_scaling")
    theta = (rope if rope.get("rope_theta") is not None else read).positive("rope_theta", 10000.0)
    outer = read.get("rope_theta", theta)
    read.check(
        rope.get("rope_theta") in (None, outer),
        f"rope_theta is {outer!r}, but {theta!r} in {rope.prefix[:-2]}",
    )
    rope.one_of("partial_rotary_factor", 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = kind in ROPE_KINDS
    rope.check(known, f"rope_type is {kind!r}, supported: {', '.join(map(repr, ROPE_KINDS))}")
    return theta, ROPE_KINDS[kind](read, rope) if known else None


def _original_positions(read: ConfigReader, rope: ConfigReader) -> int:
    """The positions of the training.

    A value beside rope_scaling counts first, as in transformers.
    """
    name = "original_max_position_embeddings"
    if read.get(name) is not None:
        return read.size(name)
    return rope.size(name, read.get("max_position_embeddings"))


def _read_llama3(read: ConfigReader, rope: ConfigReader) -> RopeScaling:
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    original = _original_positions(read, rope)
    rope.check(low < high, f"high_freq_factor {high} must be greater than low_freq_factor {low}")
    return Llama3Scaling(rope.positive("factor"), low, high, original)


def _read_yarn(read: ConfigReader, rope: ConfigReader) -> RopeScaling:
    original = _original_positions(read, rope)
    factor = rope.positive("factor", read.size("max_position_embeddings") / original)
    weights = [rope.positive(n) if rope.get(n) else 0.0 for n in ("mscale", "mscale_all_dim")]
    return YarnScaling(
        factor,
        original,
        rope.positive("attention_factor", yarn_attention_factor(factor, *weights)),
        rope.positive("beta_fast", 32.0),
        rope.positive("beta_slow", 1.0),
        bool(rope.one_of("truncate", True, False)),
    )


def _read_factors(read: ConfigReader, rope: ConfigReader) -> RopeScaling:
    factors, pairs = rope.get("factors"), read.size("head_dim") // 2
    fine = isinstance(factors, list) and len(factors) == pairs
    fine = fine and all(isinstance(f, float) and 0 < f < math.inf for f in factors)
    rope.check(fine, f"factors must be {pairs} positive numbers, got {factors!r}")
    return DividedFrequencies(tuple(factors) if fine else ())


ROPE_KINDS: dict[str, Callable[[ConfigReader, ConfigReader], RopeScaling | None]] = {
    "default": lambda read, rope: None,
    "linear": lambda read, rope: LinearScaling(rope.positive("factor")),
    "llama3": _read_llama3,
    "yarn": _read_yarn,
    "factors": _read_factors,  # of a GGUF file: see exporter.checkpoint.gguf
}


def decoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint and its shape, in the order of the network.

    A tied model has no lm_head.weight.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    outputs_inputs = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def projections(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            shapes[f"{name}.weight"] = outputs_inputs[name]
            if name in config.biases:
                shapes[f"{name}.bias"] = outputs_inputs[name][:1]
        return shapes

    head = (config.head_dim,)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        **projections(ATTENTION),
        **({f"self_attn.{x}_norm.weight": head for x in "qk"} if config.head_norm else {}),
        "post_attention_layernorm.weight": (hidden,),
        **projections(MLP),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    head_shape = {} if config.tie_word_embeddings else {HEAD: (config.vocab_size, hidden)}
    return shapes | head_shape


def bias_of(weight: str) -> str:
    """Name of the bias that goes with a weight matrix, whether the model has one or not."""
    return f"{weight.removesuffix('.weight')}.bias"


def rope_frequencies(config: ModelConfig) -> Tensor:
    """RoPE frequencies of each pair of a head, in radians per position, float32 [D/2].

    theta^(-2i/D) (RoFormer, arXiv 2104.09864), stretched as the config says (models.rope).
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**pairs)
    return (
        frequencies if config.rope is None else config.rope.stretch(frequencies, config.rope_theta)
    )
