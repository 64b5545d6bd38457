"""The graph of an ML Program: both functions, written with coremltools' builder `mb`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.backends.coreml import mlpackage
from exporter.codec.scales import widened
from exporter.codec.weight_file import plain_form
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import ExportError
from exporter.models.config import ModelConfig, bias_of

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Program, Var


DECODE, PREFILL = "decode", "prefill"


# The tokens of one call of `prefill`; its shapes are fixed, as the Neural Engine wants them.
PREFILL_TOKENS = 128


MASKED = -3e4  # exp of it is 0, and half precision holds it


@dataclass(frozen=True)
class MLProgramConfig:
    """The settings of a program: its number of cache slots, and the size of its weight files.

    `context` counts the slots. No weight file is larger than `chunk_bytes`.
    """

    context: int
    chunk_bytes: int

    @property
    def prefill_tokens(self) -> int:
        return min(self.context, PREFILL_TOKENS)


class ProgramBuilder:
    """Builder of both functions of a program.

    `mb` keeps a stack of open blocks, so operations go where they are written.
    """

    def __init__(
        self,
        encoded: EncodedModel,
        model: ModelConfig,
        config: MLProgramConfig,
    ) -> None:
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import types

        self.mb, self.types = Builder, types
        self.encoded, self.model, self.config = encoded, model, config
        self.rope = [table.numpy() for table in mlpackage.rope_tables(model, config.context)]
        self.state_shape = (
            model.num_hidden_layers,
            model.num_key_value_heads,
            config.context,
            model.head_dim,
        )
        self.constants: dict[str, Var] = {}  # of the function being built

    def program(self) -> Program:
        from coremltools.converters.mil.mil import Program

        def decode(input_ids: Var, position: Var, k_cache: Var, v_cache: Var) -> Var:
            return self.llama(input_ids, position, None, k_cache, v_cache)

        def prefill(input_ids: Var, position: Var, last: Var, k_cache: Var, v_cache: Var) -> Var:
            return self.llama(input_ids, position, last, k_cache, v_cache)

        # Names of operations are counted per process, but equal exports must be equal bytes.
        self.mb.name_count.clear()
        program = Program()
        program.add_function(DECODE, self.function(decode, [(1, 1), (1,)]))
        program.add_function(
            PREFILL, self.function(prefill, [(1, self.config.prefill_tokens), (1,), (1,)])
        )
        program.default_function_name = DECODE
        program.export_as_multifunction = True
        return program

    def function(self, body: Callable[..., Var], shapes: list[tuple[int, ...]]) -> Any:
        """A function of the program, with int32 inputs of these shapes and the two states.

        `mb` names the inputs by the parameters of `body`; the states come last.
        """
        import coremltools as ct

        inputs = [self.mb.TensorSpec(shape=shape, dtype=self.types.int32) for shape in shapes]
        states = [
            self.mb.StateTensorSpec(self.state_shape, dtype=self.types.fp16) for _ in range(2)
        ]
        self.constants = {}
        return self.mb.function(inputs + states, opset_version=ct.target.iOS18)(body)

    def llama(
        self, input_ids: Var, position: Var, last: Var | None, k_cache: Var, v_cache: Var
    ) -> Var:
        """Logits of token `last` of the call, float16 [1, V].

        `input_ids` [1, S] stand at `position` and after it. Without `last` the call has a single
        token.
        """
        mb, n_tokens = self.mb, input_ids.shape[1]
        positions = mb.add(
            x=position, y=self.constant("steps", np.arange(n_tokens, dtype=np.int32))
        )  # [S]
        cos, sin = (
            mb.cast(
                x=mb.gather(
                    x=self.constant(name, table), indices=positions, validate_indices=False
                ),
                dtype="fp16",
            )
            for name, table in zip(("rope.cos", "rope.sin"), self.rope, strict=True)
        )  # [S, D/2]
        mask = self.mask(positions, n_tokens)
        embedding = self.weight("model.embed_tokens.weight")
        x = mb.gather(x=embedding, indices=input_ids, validate_indices=False)  # [1, S, hidden]
        caches = [(state, mb.read_state(input=state)) for state in (k_cache, v_cache)]
        for layer in range(self.model.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            h = self.norm(x, f"{prefix}.input_layernorm.weight")
            q, k, v = (
                self.heads(h, f"{prefix}.self_attn.{name}_proj.weight", n_tokens) for name in "qkv"
            )
            q, k = (
                self.head_norm(y, f"{prefix}.self_attn.{x}_norm.weight")
                for x, y in (("q", q), ("k", k))
            )
            k = self.rotate(k, cos, sin)
            caches = [
                self.update(cache, layer, new, position)
                for cache, new in zip(caches, (k, v), strict=True)
            ]
            h = self.attention(
                self.rotate(q, cos, sin), [value for _, value in caches], layer, mask, n_tokens
            )
            x = mb.add(x=x, y=self.linear(h, f"{prefix}.self_attn.o_proj.weight"))
            x = mb.add(
                x=x,
                y=self.mlp(
                    self.norm(x, f"{prefix}.post_attention_layernorm.weight"), f"{prefix}.mlp"
                ),
            )
        if last is not None:
            x = mb.gather(x=x, indices=last, axis=1, validate_indices=False)
        head = "model.embed_tokens.weight" if self.model.tie_word_embeddings else "lm_head.weight"
        logits = self.linear(self.norm(x, "model.norm.weight"), head)  # [1, 1, V]
        return mb.squeeze(x=logits, axes=[1], name="logits")

    def mask(self, positions: Var, n_tokens: int) -> Var:
        """Attention mask, float16 [G * S, C].

        It is 0 where a token may look: at its own slot and earlier ones.
        """
        mb = self.mb
        slots = self.constant("slots", np.arange(self.config.context, dtype=np.int32)[None])
        seen = mb.less_equal(x=slots, y=mb.reshape(x=positions, shape=[n_tokens, 1]))
        mask = mb.mul(
            x=mb.sub(x=mb.cast(x=seen, dtype="fp16"), y=np.float16(1)), y=np.float16(-MASKED)
        )  # [S, C]
        groups = self.model.num_attention_heads // self.model.num_key_value_heads
        return mb.tile(x=mask, reps=[groups, 1]) if groups > 1 else mask

    def norm(self, x: Var, name: str) -> Var:
        """RMSNorm of x: x / sqrt(mean(x^2) + eps) * weight.

        It is computed in float32: squares of Llama's residual stream overflow halves.
        """
        mb = self.mb
        wide = mb.cast(x=x, dtype="fp32")
        mean = mb.reduce_mean(x=mb.mul(x=wide, y=wide), axes=[-1], keep_dims=True)
        scale = mb.rsqrt(
            x=mb.add(x=mean, y=np.float32(self.model.rms_norm_eps)), epsilon=np.float32(1e-30)
        )
        weight = self.constant(name, self.encoded.vectors[name].numpy().astype(np.float32))
        return mb.cast(x=mb.mul(x=mb.mul(x=wide, y=scale), y=weight), dtype="fp16")

    def head_norm(self, x: Var, name: str) -> Var:
        """The norm over each head, [1, heads, S, D], where the model has one."""
        return self.norm(x, name) if self.model.head_norm else x

    def heads(self, h: Var, name: str, n_tokens: int) -> Var:
        """The product with a matrix, split into heads: [1, S, hidden] -> [1, heads, S, D]."""
        y = self.linear(h, name)
        y = self.mb.reshape(
            x=y, shape=[1, n_tokens, y.shape[-1] // self.model.head_dim, self.model.head_dim]
        )
        return self.mb.transpose(x=y, perm=[0, 2, 1, 3])

    def rotate(self, x: Var, cos: Var, sin: Var) -> Var:
        """RoPE on [1, heads, S, D].

        Pairs are (i, i + D/2).
        """
        mb = self.mb
        first, second = mb.split(x=x, num_splits=2, axis=-1)
        turned = (
            mb.sub(x=mb.mul(x=first, y=cos), y=mb.mul(x=second, y=sin)),
            mb.add(x=mb.mul(x=second, y=cos), y=mb.mul(x=first, y=sin)),
        )
        return mb.concat(values=turned, axis=-1)

    def update(
        self, cache: tuple[Var, Var], layer: int, new: Var, position: Var
    ) -> tuple[Var, Var]:
        """Writes [1, KV, S, D] into the state's slots from `position` on.

        Updates are chained, never read twice: coremltools merges two reads of a state, though it
        was written between them.
        """
        mb = self.mb
        state, value = cache
        begin = mb.concat(
            values=[np.array([layer, 0], np.int32), position, np.zeros(1, np.int32)], axis=0
        )
        end = mb.add(x=begin, y=np.array(new.shape, np.int32))
        value = mb.slice_update(x=value, update=new, begin=begin, end=end)
        return state, mb.coreml_update_state(state=state, value=value)

    def attention(self, q: Var, caches: list[Var], layer: int, mask: Var, n_tokens: int) -> Var:
        """Grouped-query attention over the caches: [1, H, S, D] -> [1, S, H * D].

        The queries of a group are rows over one key head: nothing is repeated.
        """
        mb, model = self.mb, self.model
        kv, dim = model.num_key_value_heads, model.head_dim
        q = mb.reshape(x=q, shape=[1, kv, n_tokens * model.num_attention_heads // kv, dim])
        k, v = (
            mb.slice_by_index(
                x=cache, begin=[layer, 0, 0, 0], end=[layer + 1, kv, self.config.context, dim]
            )
            for cache in caches
        )
        y = mb.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=mb.expand_dims(x=mask, axes=[0, 1])
        )
        y = mb.reshape(x=y, shape=[1, model.num_attention_heads, n_tokens, dim])
        y = mb.transpose(x=y, perm=[0, 2, 1, 3])
        return mb.reshape(x=y, shape=[1, n_tokens, model.num_attention_heads * dim])

    def mlp(self, h: Var, prefix: str) -> Var:
        mb = self.mb
        gate, up = (self.linear(h, f"{prefix}.{name}_proj.weight") for name in ("gate", "up"))
        return self.linear(mb.mul(x=mb.silu(x=gate), y=up), f"{prefix}.down_proj.weight")

    def linear(self, x: Var, name: str) -> Var:
        """The product of x with a matrix, plus its bias.

        The builder gives every product a bias; where the model has none, all of a size share one of
        zeros, or the file would hold many.
        """
        rows, own = self.encoded.matrices[name].rows, self.encoded.vectors.get(bias_of(name))
        if own is None:
            bias = self.constant(f"zeros{rows}", np.zeros(rows, np.float16))
        else:
            bias = self.constant(bias_of(name), half(bias_of(name), own.numpy()))
        return self.mb.linear(x=x, weight=self.weight(name), bias=bias)

    def constant(self, key: str, value: NDArray[Any]) -> Var:
        """A constant that both functions share, if both have it with these values."""
        if key not in self.constants:
            var = self.mb.const(val=value, name=key)
            var.op.weight_id = f"{key}.{value.size}"
            self.constants[key] = var
        return self.constants[key]

    def weight(self, name: str) -> Var:
        """A matrix, float16 [rows, cols].

        It is stored as indices into a table of two bits, or as integers and scales.
        """
        if name not in self.constants:
            matrix = self.encoded.matrices[name]
            looked_up = plain_form(matrix.n_levels).bits == 2
            self.constants[name] = (self.look_up if looked_up else self.scaled)(matrix)
        return self.constants[name]

    def scaled(self, matrix: EncodedMatrix) -> Var:
        """A matrix as int8 or int4 levels, times one scale a row or group."""
        dtype = {8: np.dtype(np.int8), 4: self.types.np_int4_dtype}[
            plain_form(matrix.n_levels).bits
        ]
        data = np.broadcast_to(np.zeros((), dtype), (matrix.rows, matrix.cols))
        var = self.mb.constexpr_blockwise_shift_scale(data=data, scale=half_scales(matrix))
        var.op.data.op.weight_id, var.op.scale.op.weight_id = matrix.name, scales_key(matrix.name)
        return var

    def look_up(self, matrix: EncodedMatrix) -> Var:
        """A ternary matrix as indices into a table of -scale, 0, scale.

        The scale is in the table: a look-up followed by a scale fails to load on the Neural Engine
        of OS 26 (apple/coremltools pull request 2688).
        """
        scales = half_scales(matrix)
        table = np.stack([-scales, 0 * scales, scales, 0 * scales], axis=-1)
        table = table[..., None]  # [rows, groups, 4, 1]
        indices = np.broadcast_to(
            np.zeros((), self.types.np_uint2_dtype), (matrix.rows, matrix.cols)
        )
        var = self.mb.constexpr_lut_to_dense(indices=indices, lut=table)
        var.op.indices.op.weight_id, var.op.lut.op.weight_id = matrix.name, scales_key(matrix.name)
        return var


def scales_key(name: str) -> str:
    """Key of the constant that holds the scales of a matrix, or its tables with them."""
    return f"{name}.scales"


def half_scales(matrix: EncodedMatrix) -> NDArray[np.float16]:
    """Scales of a matrix, float16 [rows, groups].

    Raises ExportError where half precision cannot hold the weights.
    """
    return half(matrix.name, widened(matrix.scales()), largest_level=matrix.n_levels // 2)


def half(name: str, values: NDArray[np.float32], *, largest_level: int = 1) -> NDArray[np.float16]:
    """The same values in float16.

    Raises ExportError where half precision cannot hold them, or their products with a level.
    """
    largest = float(np.abs(values).max())
    if largest * largest_level > 65504 or 0 < largest < 2.0**-14:
        raise ExportError(
            f"{name} has scales or values up to {largest:.3g}: they do not fit half precision",
            hint="export for Android, or with --coreml-format custom-op, which keep float32",
        )
    return values.astype(np.float16)
