"""The passage of windows of text through the layers of a model, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.quant.calibration import finite
from exporter.quant.calibration_passes import HeldLayers, States, embedded


@dataclass
class Passage:
    """Windows of token ids, int64 [windows, tokens], on their way through a model.

    What goes into a layer lies in a file of `folder`, whose name begins with `what`: so a passage
    that was cut off goes on from the last layer that was finished.
    """

    what: str
    checkpoint: Checkpoint
    windows: Tensor
    folder: Path
    layers: HeldLayers = field(init=False)

    def __post_init__(self) -> None:
        self.layers = HeldLayers(self.checkpoint)
        self.network = self.checkpoint.network(self.windows.shape[1], self.layers)
        self.start = torch.tensor([0])
        self.angles = self.network.rotation(self.windows[:1], self.start)

    def states(self, layer: int) -> States:
        """The inputs of a layer; of the final norm after the last one."""
        shape = (1, self.windows.shape[1], self.checkpoint.config.hidden_size)
        return States(self.folder / f"{self.what}.{layer}", shape)

    def left(self) -> range:
        """The layers that are yet to be passed; the inputs of the first of them are there."""
        n = len(self.network.blocks)
        done = [layer for layer in range(n + 1) if self.states(layer).path.is_file()]
        if not done:
            self.states(0).write(embedded(self.checkpoint, ids) for ids in self.windows)
        return range(max(done, default=0), n)

    def outputs(self, layer: int) -> Iterator[Tensor]:
        """What a layer, whose weights are held, makes of its inputs, window by window.

        Raises CheckpointError if that is not finite.
        """
        block = self.network.blocks[layer]
        return (finite(block(x, self.angles, self.start)) for x in self.states(layer).windows())

    def pass_on(self, layer: int) -> None:
        """Writes the inputs of the next layer."""
        self.states(layer + 1).write(self.outputs(layer))

    def drop(self, layer: int) -> None:
        """Removes the inputs of a layer."""
        self.states(layer).path.unlink()
