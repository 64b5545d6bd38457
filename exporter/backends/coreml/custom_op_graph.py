"""The graph of a NeuralNetwork whose matrices are custom layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exporter.backends.coreml import mlpackage
from exporter.bundle import EMBEDDING, HEAD
from exporter.encoded import EncodedModel
from exporter.models.config import ModelConfig, bias_of

if TYPE_CHECKING:
    from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer


LINEAR_CLASS, EMBEDDING_CLASS = "LZWLinear", "LZWEmbedding"
CONTRACT_VERSION = 3
HIDDEN_SCORE = -3e4  # exp of it is 0, and half precision holds it


@dataclass(frozen=True)
class CustomOpConfig:
    """The settings of a network: C cache slots, and 1 to `max_tokens` tokens in a call."""

    context: int
    max_tokens: int
    int16_activations: bool


class NetworkBuilder:
    """Builder of the graph of a network.

    Methods take and return names of values; letters in shapes are those of the module `custom_op`.
    """

    def __init__(
        self,
        encoded: EncodedModel,
        model: ModelConfig,
        config: CustomOpConfig,
    ) -> None:
        self.encoded, self.model, self.config = encoded, model, config
        self.layers: list[NeuralNetworkLayer] = []
        self.scope = ""
        self.scalars: dict[float, str] = {}
        self.kv_rows: list[str] = []  # K and V of each layer, [S, KV * D]
        self._network()

    def layer(self, kind: str, *inputs: str, name: str = "", **params: Any) -> str:
        """Adds a layer with one output, which has the layer's name.

        `params` are the fields of its message.
        """
        from coremltools.proto.NeuralNetwork_pb2 import NeuralNetworkLayer

        name = name or f"{self.scope}{kind}_{len(self.layers)}"
        self.layers.append(
            NeuralNetworkLayer(name=name, input=inputs, output=[name], **{kind: params})
        )
        return name

    def constant(self, values: Tensor) -> str:
        """A constant with the values of a tensor, as float32."""
        data = {"floatValue": values.reshape(-1).tolist()}
        return self.layer("loadConstantND", shape=list(values.shape), data=data)

    def scalar(self, value: float) -> str:
        """A constant of one number, float32 [1]; equal numbers share one constant."""
        if value not in self.scalars:
            self.scalars[value] = self.constant(torch.tensor([value]))
        return self.scalars[value]

    def add(self, x: str, y: str) -> str:
        return self.layer("addBroadcastable", x, y)

    def multiply(self, x: str, y: str) -> str:
        return self.layer("multiplyBroadcastable", x, y)

    def divide(self, x: str, y: str) -> str:
        return self.layer("divideBroadcastable", x, y)

    def matmul(self, x: str, y: str, *, transpose: bool = False) -> str:
        return self.layer("batchedMatmul", x, y, transposeB=transpose)

    def concat(self, *values: str, axis: int) -> str:
        return self.layer("concatND", *values, axis=axis)

    def part(self, x: str, rank: int, axis: int, begin: int | None, end: int | None) -> str:
        """The slice x[begin:end] along one axis."""
        whole = [i != axis for i in range(rank)]
        return self.layer(
            "sliceStatic",
            x,
            beginIds=[0 if w else begin or 0 for w in whole],
            beginMasks=[w or begin is None for w in whole],
            endIds=[0 if w else end or 0 for w in whole],
            endMasks=[w or end is None for w in whole],
            strides=[1] * rank,
            squeezeMasks=[False] * rank,
        )

    def custom(
        self, class_name: str, x: str, tensor: str, name: str, **more: dict[str, Any]
    ) -> str:
        """A custom layer on a matrix of the encoded model."""
        matrix = self.encoded.matrices[tensor]
        parameters: dict[str, dict[str, Any]] = {
            "version": {"intValue": CONTRACT_VERSION},
            "name": {"stringValue": tensor},
            "rows": {"intValue": matrix.rows},
            "cols": {"intValue": matrix.cols},
            "group_size": {"intValue": matrix.group_size},
            "scale_type": {"stringValue": matrix.scale_type},
        }
        description = f"{class_name} of Tiny-QMoE"
        params = {
            "className": class_name,
            "parameters": parameters | more,
            "description": description,
        }
        return self.layer("custom", x, name=name, **params)

    def linear(self, x: str, tensor: str) -> str:
        """The product with a matrix, plus its bias if it has one: [S, cols] -> [S, rows]."""
        y = self.custom(LINEAR_CLASS, x, tensor, tensor, **self._arithmetic())
        bias = self.encoded.vectors.get(bias_of(tensor))
        return y if bias is None else self.add(y, self.constant(bias.float()))

    def _arithmetic(self) -> dict[str, dict[str, Any]]:
        return {"int16_activations": {"boolValue": self.config.int16_activations}}

    def _head(self, x: str) -> str:
        if not self.model.tie_word_embeddings:
            return self.linear(x, HEAD)
        shared = {"weights_of": {"stringValue": EMBEDDING}}
        return self.custom(LINEAR_CLASS, x, EMBEDDING, "lm_head", **self._arithmetic(), **shared)

    def _network(self) -> None:
        self._position_inputs()
        x = self.custom(EMBEDDING_CLASS, "input_ids", EMBEDDING, EMBEDDING)
        for i in range(self.model.num_hidden_layers):
            self.scope = f"layers.{i}."
            x = self._block(x, i)
        self.scope = ""
        last = self.part(x, 2, 0, -1, None)
        logits = self._head(self._norm(last, "model.norm.weight"))
        self.layer("reshapeStatic", logits, name="logits", targetShape=[self.model.vocab_size])
        rows = self.concat(*self.kv_rows, axis=1)
        m = self.model
        shape = self._with_tokens(m.num_hidden_layers, 2, m.num_key_value_heads, m.head_dim)
        self.layer("reshapeDynamic", rows, shape, name="kv_new")

    def _position_inputs(self) -> None:
        """Adds the values that all layers share.

        They are shapes with S in them, cos and sin of every token, and which keys a token may not
        see.
        """
        m, context = self.model, self.config.context
        self.n_tokens = self.layer("getShape", "positions")  # [1]
        groups = m.num_attention_heads // m.num_key_value_heads
        self.query_shape = self._with_tokens(m.num_key_value_heads, groups, m.head_dim)
        self.key_shape = self._with_tokens(m.num_key_value_heads, 1, m.head_dim)
        tables = (self.constant(table) for table in mlpackage.rope_tables(m, context))  # [C, D/2]
        # Both are [S, D/2].
        cos, sin = (self.layer("gather", table, "positions", axis=0) for table in tables)
        self.cos = self._to_heads(self.concat(cos, cos, axis=-1))
        self.sin = self._to_heads(self.concat(self.multiply(sin, self.scalar(-1.0)), sin, axis=-1))
        # A slot that holds no token yet gets a position after every token's.
        slots = self.layer("rangeStatic", endValue=context, startValue=0, stepSizeValue=1)  # [C]
        unused = self.layer("greaterEqual", slots, self.part("positions", 1, 0, 0, 1))
        key_positions = self.concat(
            self.add(slots, self.multiply(unused, self.scalar(float(context)))), "positions", axis=0
        )  # [C + S]
        query_positions = self.layer("expandDims", "positions", axes=[1])  # [S, 1]
        self.unseen = self.layer("greaterThan", key_positions, query_positions)  # [S, C + S]

    def _with_tokens(self, *sizes: int) -> str:
        """The shape [S, *sizes] as a value, for `reshapeDynamic`."""
        return self.concat(
            self.n_tokens, self.constant(torch.tensor(sizes, dtype=torch.float32)), axis=0
        )

    def _to_heads(self, table: str) -> str:
        """A table of the tokens with axes for the heads: [S, D] -> [S, 1, 1, D]."""
        return self.layer("expandDims", table, axes=[1, 2])

    def _block(self, x: str, i: int) -> str:
        """One decoder layer, x [S, hidden]: x + attention(norm(x)), then x + mlp(norm(x))."""
        prefix = f"model.layers.{i}"
        h = self._norm(x, f"{prefix}.input_layernorm.weight")
        x = self.add(x, self.linear(self._attention(h, i), f"{prefix}.self_attn.o_proj.weight"))
        h = self._norm(x, f"{prefix}.post_attention_layernorm.weight")
        gate = self.linear(h, f"{prefix}.mlp.gate_proj.weight")
        gate = self.multiply(gate, self.layer("activation", gate, sigmoid={}))
        inner = self.multiply(gate, self.linear(h, f"{prefix}.mlp.up_proj.weight"))
        return self.add(x, self.linear(inner, f"{prefix}.mlp.down_proj.weight"))

    def _norm(self, x: str, weight: str) -> str:
        """RMSNorm of x: x / sqrt(mean(x^2) + eps) * weight.

        It is computed with x / m in place of x, so that no square leaves half precision. With m =
        max(max |x|, sqrt(eps)) it equals (x / m) / sqrt(mean((x / m)^2) + (sqrt(eps) / m)^2), and
        everything under the root is at most 1 each; where the mean underflows, the other term is 1.
        """
        root_eps = self.scalar(math.sqrt(self.model.rms_norm_eps))
        largest = self.layer(
            "reduceMax", self.layer("unary", x, type="ABS"), axes=[-1], keepDims=True
        )
        m = self.layer("maxBroadcastable", largest, root_eps)
        scaled, eps = self.divide(x, m), self.divide(root_eps, m)
        mean = self.layer("reduceMean", self.multiply(scaled, scaled), axes=[-1], keepDims=True)
        root = self.layer("unary", self.add(mean, self.multiply(eps, eps)), type="SQRT")
        return self.multiply(
            self.divide(scaled, root), self.constant(self.encoded.vectors[weight].float())
        )

    def _head_norm(self, x: str, name: str) -> str:
        """The norm over each head, [S, KV, G or 1, D], where the model has one."""
        return self._norm(x, f"{name}.weight") if self.model.head_norm else x

    def _rotate(self, x: str) -> str:
        """RoPE on [S, KV, G or 1, D].

        Pairs are (i, i + D/2), and (-sin, sin) is one table.
        """
        half = self.model.head_dim // 2
        swapped = self.concat(
            self.part(x, 4, 3, half, None), self.part(x, 4, 3, None, half), axis=-1
        )
        return self.add(self.multiply(x, self.cos), self.multiply(swapped, self.sin))

    def _attention(self, h: str, i: int) -> str:
        """Grouped-query attention of h [S, hidden] over the cache and the new tokens -> [S, H * D].

        Scores of slots that hold no token are replaced and not only lowered: what such a slot holds
        can be anything.
        """
        prefix, context = f"model.layers.{i}.self_attn", self.config.context
        q, k, v = (self.linear(h, f"{prefix}.{name}_proj.weight") for name in "qkv")
        q = self._head_norm(self.layer("reshapeDynamic", q, self.query_shape), f"{prefix}.q_norm")
        q = self._rotate(q)
        q = self.multiply(q, self.scalar(1 / math.sqrt(self.model.head_dim)))
        q = self.layer("transpose", q, axes=[1, 2, 0, 3])  # [KV, G, S, D]
        k = self._head_norm(self.layer("reshapeDynamic", k, self.key_shape), f"{prefix}.k_norm")
        k = self._rotate(k)  # [S, KV, 1, D]
        self.kv_rows += [self.layer("flattenTo2D", k, axis=1), v]
        k = self.layer("transpose", k, axes=[1, 2, 0, 3])  # [KV, 1, S, D]
        v = self.layer(
            "transpose", self.layer("reshapeDynamic", v, self.key_shape), axes=[1, 2, 0, 3]
        )
        old_k, old_v = self._cached(i, 0), self._cached(i, 1)  # [KV, 1, C, D]
        scores = self.concat(
            self.matmul(q, old_k, transpose=True), self.matmul(q, k, transpose=True), axis=-1
        )
        # The scores are [KV, G, S, C + S].
        scores = self.layer("whereBroadcastable", self.unseen, self.scalar(HIDDEN_SCORE), scores)
        weights = self.layer("softmaxND", scores, axis=-1)
        old, new = self.part(weights, 4, 3, None, context), self.part(weights, 4, 3, context, None)
        mixed = self.add(self.matmul(old, old_v), self.matmul(new, v))  # [KV, G, S, D]
        return self.layer("flattenTo2D", self.layer("transpose", mixed, axes=[2, 0, 1, 3]), axis=1)

    def _cached(self, i: int, which: int) -> str:
        """Keys (0) or values (1) of one layer in the cache, [KV, 1, C, D]."""
        one = [False, True, True, False, False]
        plane = self.layer(
            "sliceStatic",
            "kv_cache",
            beginIds=[0, i, which, 0, 0],
            beginMasks=[not o for o in one],
            endIds=[0, i + 1, which + 1, 0, 0],
            endMasks=[not o for o in one],
            strides=[1] * 5,
            squeezeMasks=one,
        )  # [C, KV, D]
        return self.layer("expandDims", self.layer("transpose", plane, axes=[1, 0, 2]), axes=[1])
