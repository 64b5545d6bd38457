"""Checks of an ML Program: whether coremltools reads it, and it is what was asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.backends.coreml import mlpackage
from exporter.backends.coreml.mlprogram_graph import DECODE, PREFILL, MLProgramConfig
from exporter.backends.coreml.mlprogram_weights import BlobLayout
from exporter.codec.weight_file import plain_form
from exporter.encoded import EncodedMatrix, EncodedModel
from exporter.errors import ExportError
from exporter.models.config import ModelConfig

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Value
    from coremltools.proto.Model_pb2 import Model

SPECIFICATION_VERSION = 9  # iOS 18, the first with states and 2-bit tables
# A program without weights has at most so many bytes a layer, and twice that outside of layers.
BYTES_PER_LAYER = 64 << 10


def operations(spec: Model, function: str) -> list[Any]:
    """The operations of a function, in order."""
    body = spec.mlProgram.functions[function]
    return list(body.block_specializations[body.opset].operations)


def census(ops: list[Any]) -> dict[str, int]:
    """Number of operations of each type but `const`."""
    counts = Counter(op.type for op in ops)
    counts.pop("const", None)
    return dict(sorted(counts.items()))


def check_reload(spec: Model) -> None:
    """Checks that coremltools itself builds the program again from the protobuf.

    Values from weight files are stand-ins. Raises ExportError.
    """
    from coremltools.converters.mil.frontend.milproto import helper, load

    original = load._load_value

    def load_value(context: Any, value: Value) -> Any:
        if value.WhichOneof("value") != "blobFileValue":
            return original(context, value)
        kind = helper.proto_to_types(value.type)
        dtype = load.types.nptype_from_builtin(kind.get_primitive())
        return np.broadcast_to(np.zeros((), dtype), kind.get_shape())

    load._load_value = load_value
    try:
        program = load.load(
            spec, specification_version=spec.specificationVersion, file_weights_dir=""
        )
    except Exception as error:
        what = f"coremltools cannot read the program it wrote: {error}"
        raise ExportError(what, hint="report this as a bug") from error
    finally:
        load._load_value = original
    if set(program.functions) != {DECODE, PREFILL}:
        raise ExportError(
            f"the program has the functions {sorted(program.functions)}",
            hint="report this as a bug",
        )


def check_program(
    spec: Model,
    layout: BlobLayout,
    encoded: EncodedModel,
    model: ModelConfig,
    config: MLProgramConfig,
    metadata: dict[str, str],
) -> None:
    """Checks that a program is the one that was asked for.

    Raises ExportError with all that is wrong. What is checked:

    - version and metadata; inputs, outputs and states of both functions;
    - operations of both functions (see `_function_problems`);
    - every matrix has its place in a weight file, whole; and nothing large lies in the program
      itself.
    """
    problems = mlpackage.description_problems(spec, SPECIFICATION_VERSION, metadata)
    described = {f.name: f for f in spec.description.functions}
    for name, n_tokens in ((DECODE, 1), (PREFILL, config.prefill_tokens)):
        found = mlpackage.declared(described[name]) if name in described else {}
        problems += mlpackage.differences(
            f"{name}: ", found, _interface(name, n_tokens, model, config)
        )
        problems += [
            f"{name}: {p}" for p in _function_problems(operations(spec, name), encoded, model)
        ]
    problems += [
        f"{name} is not in the program" for name in encoded.matrices if name not in layout.places
    ]
    problems += [
        f"{blob.key} has {blob.n_elements:,} elements"
        for _, blob in layout.places.values()
        if isinstance(blob.source, EncodedMatrix)
        and blob.n_elements != blob.source.rows * blob.source.cols
    ]
    if (n := spec.ByteSize()) > (limit := (2 + model.num_hidden_layers) * BYTES_PER_LAYER):
        problems.append(f"the program without weights has {n:,} bytes, expected {limit:,} at most")
    if problems:
        what = "the ML Program is not the one that was asked for"
        raise ExportError(what, problems=problems, hint="report this as a bug")


def _interface(
    name: str, n_tokens: int, model: ModelConfig, config: MLProgramConfig
) -> dict[str, str]:
    """The inputs, outputs and states of a function, as `mlpackage.declared` reads them."""
    cache = (
        f"{model.num_hidden_layers}, {model.num_key_value_heads}, {config.context}, "
        f"{model.head_dim}"
    )
    return {
        "input input_ids": f"int32 [1, {n_tokens}]",
        "input position": "int32 [1]",
        **({"input last": "int32 [1]"} if name == PREFILL else {}),
        "output logits": f"float16 [1, {model.vocab_size}]",
        "state k_cache": f"float16 [{cache}]",
        "state v_cache": f"float16 [{cache}]",
    }


def _function_problems(ops: list[Any], encoded: EncodedModel, model: ModelConfig) -> list[str]:
    """Problems of the operations of one function.

    Every matrix must be there once and compressed; products must be as many as asked and none
    dense; each state must be read first, and after that only what was just written.
    """
    looked_up = sum(plain_form(m.n_levels).bits == 2 for m in encoded.matrices.values())
    layers = model.num_hidden_layers
    expected = {
        "constexpr_lut_to_dense": looked_up,
        "constexpr_blockwise_shift_scale": len(encoded.matrices) - looked_up,
        "linear": 7 * layers + 1,
        "scaled_dot_product_attention": layers,
        "slice_update": 2 * layers,
        "matmul": 0,
        "conv": 0,
    }
    found = Counter(op.type for op in ops)
    problems = [
        f"{found[name]} x {name}, expected {n}" for name, n in expected.items() if found[name] != n
    ]
    orders: dict[str, list[str]] = {"k_cache": [], "v_cache": []}
    for op in ops:
        if op.type in ("read_state", "write_state"):
            orders.setdefault(op.inputs["input"].arguments[0].name, []).append(op.type)
    right = ["read_state", *["write_state", "read_state"] * layers]
    wrong = [name for name, order in orders.items() if order != right]
    return problems + [f"{name} is not read once and then updated in a chain" for name in wrong]
