"""The memory and the disk that quantization by what is known of a model will take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exporter.quant.calibration import MAX_WINDOWS, SHARED_INPUTS, TRAINING_WINDOWS, WINDOW
from exporter.quant.calibration_passes import BACKWARD_WINDOWS, HEAD_TOKENS
from exporter.quant.rate_quantizer import BLOCK_WEIGHTS, SAMPLE, SAMPLE_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.quant.plan import MatrixPlan

MB = 10**6
LIBRARIES = 40 * MB  # what PyTorch's products, gradients and decompositions leave
# Values of a weight in training: itself, its gradient, what Adam keeps of it, and what the layer
# computes with; of one whose level stays: the level, in a byte and as a float, what the layer
# computes with, and its gradient. Of a logit: those of both models, their logarithms, and the
# gradients of one.
IN_TRAINING, OF_LEVEL, OF_LOGIT = 5, 3.25, 6


def calibration_memory(checkpoint: Checkpoint) -> int:
    """Memory of calibrating, in bytes.

    It is that of a layer with what its gradients need, of its Gram matrices and of the largest
    being factored, or of the head with the logits of some tokens.
    """
    config = checkpoint.config
    grams = sum(cols * cols for cols in _inputs(checkpoint))
    factoring = 8 * max(_inputs(checkpoint)) ** 2  # in float64, four of them
    layer = _layer_weights(checkpoint) + grams + max(factoring, _layer_values(checkpoint))
    head = config.vocab_size * (config.hidden_size + 4 * HEAD_TOKENS) + factoring
    return LIBRARIES + 4 * max(layer, head)


def _layer_values(checkpoint: Checkpoint) -> int:
    """Number of values that the gradients of a layer need of a window, and of its attention."""
    config, tokens = checkpoint.config, min(WINDOW, checkpoint.config.max_position_embeddings)
    queries = config.num_attention_heads * config.head_dim
    of_token = 12 * config.hidden_size + 8 * queries + 6 * config.intermediate_size
    return of_token * tokens + 3 * config.num_attention_heads * tokens**2


def recovery_memory(checkpoint: Checkpoint, plans: Mapping[str, MatrixPlan]) -> int:
    """Memory of training the matrices of `plans`, in bytes; the weights of others are held."""
    config, tokens = checkpoint.config, min(WINDOW, checkpoint.config.max_position_embeddings)

    def values(name: str) -> float:
        if name not in plans:
            return 1
        return OF_LEVEL if plans[name].at_rate else IN_TRAINING

    layers = [name for name in _matrices(checkpoint) if name.startswith("model.layers.")]
    weights = sum(int(values(name) * math.prod(checkpoint.shape(name))) for name in layers)
    head = config.vocab_size * (config.hidden_size + OF_LOGIT * tokens)
    passing = 4 * _layer_weights(checkpoint)  # of one layer, whose gradients are being computed
    inputs = config.num_hidden_layers * _layer_values(checkpoint)
    return LIBRARIES + 4 * (weights + inputs + passing + head)


def fitting_memory(checkpoint: Checkpoint, plans: Mapping[str, MatrixPlan]) -> int:
    """Memory of fitting the largest of some matrices, in bytes.

    It is that of a factor, of the Gram matrix that is made of it, and of a block of weights, at a
    rate or a sample of them. For a scale of every group there are products of all groups; the
    weights of a layer are in memory as well.
    """
    layer = _layer_weights(checkpoint)

    def of_matrix(name: str) -> int:
        weights, cols = math.prod(checkpoint.shape(name)), checkpoint.shape(name)[1]
        block, gram = min(weights, BLOCK_WEIGHTS), 16 * cols**2  # made of its factor
        if not plans[name].at_rate:
            groups = -(-cols // plans[name].group_size(cols))
            return 4 * layer + gram + block * (32 + 8 * groups**2 // cols)
        sampled = max(min(weights, SAMPLE_WEIGHTS), weights // SAMPLE)
        return gram + 30 * max(block, sampled)

    return LIBRARIES + max(map(of_matrix, plans))


def calibration_disk(checkpoint: Checkpoint) -> int:
    """Disk space of a calibration, in bytes: a factor for each input, and hidden states.

    Those of the windows that go backward stay for all layers, those of the others for two.
    """
    config = checkpoint.config
    factors = config.num_hidden_layers * sum(cols * cols for cols in _inputs(checkpoint))
    windows = (config.num_hidden_layers + 2) * BACKWARD_WINDOWS + 2 * MAX_WINDOWS
    states = windows * WINDOW * config.hidden_size
    return 4 * (factors + 2 * config.hidden_size**2 + states)


def recovery_disk(checkpoint: Checkpoint, plans: Mapping[str, MatrixPlan]) -> int:
    """Disk space of training the matrices of `plans`, in bytes.

    That are the hidden states of three layers, twice the state of the training, and its levels.
    """
    steps = max((plan.recover for plan in plans.values()), default=0)
    states = min(steps, TRAINING_WINDOWS) * WINDOW * checkpoint.config.hidden_size
    weights = {name: math.prod(checkpoint.shape(name)) for name in plans}
    latent = sum(weights[name] for name, plan in plans.items() if not plan.at_rate)
    return 4 * (3 * states + 2 * 3 * latent) + sum(weights.values())


def _matrices(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.names if len(checkpoint.shape(name)) == 2]


def _layer(checkpoint: Checkpoint) -> list[str]:
    """The matrices of a layer: all layers are alike."""
    return [name for name in _matrices(checkpoint) if name.startswith("model.layers.0.")]


def _layer_weights(checkpoint: Checkpoint) -> int:
    """Number of weights of the matrices of a layer."""
    return sum(math.prod(checkpoint.shape(name)) for name in _layer(checkpoint))


def _inputs(checkpoint: Checkpoint) -> list[int]:
    """The sizes of the inputs of a layer that have Gram matrices of their own."""
    own = [name for name in _layer(checkpoint) if not name.endswith(tuple(SHARED_INPUTS))]
    return [checkpoint.shape(name)[1] for name in own]
