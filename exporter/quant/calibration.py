"""What quantization at a rate knows of a model: factors of Gram matrices, sensitivities of rows.

They are measured on a text (`calibration_passes`) and lie in a folder, or follow from the weights
alone.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter import chat_template
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError, UsageError
from exporter.guarded import guarded
from exporter.quant.rate import Curvature, Inputs

NONE = "none"  # no text
DEFAULT = Path(__file__).with_name("calibration.txt")
WINDOW = 512  # tokens that see each other
MAX_WINDOWS, TRAINING_WINDOWS = 128, 1024  # spread over a longer text
# Which matrix stands for all those of a layer that have the same input.
SHARED_INPUTS = {
    "self_attn.k_proj.weight": "self_attn.q_proj.weight",
    "self_attn.v_proj.weight": "self_attn.q_proj.weight",
    "mlp.up_proj.weight": "mlp.gate_proj.weight",
}


class Statistics(Protocol):
    """What is known of the matrices of a model."""

    def curvature(self, name: str) -> Curvature:
        """The curvature of the loss around a matrix."""


def checksum(crc: int) -> bytes:
    """The last bytes of a file of the calibration: the CRC-32 of all before them."""
    return crc.to_bytes(4, "little")


def _crc(file: BinaryIO, n_bytes: int) -> int:
    """CRC-32 of the next bytes of a file, of which few are in memory at a time."""
    crc = 0
    while n_bytes > 0 and (block := file.read(min(n_bytes, 1 << 20))):
        crc, n_bytes = zlib.crc32(block, crc), n_bytes - len(block)
    return crc


def finite(x: Tensor) -> Tensor:
    """The same values, if all are finite. Raises CheckpointError."""
    if x.isfinite().all():
        return x
    raise CheckpointError(
        "the model computes values that are not finite: its weights overflow float32",
        hint="check the checkpoint: does it generate text with transformers?",
    )


def damaged(file: Path) -> CheckpointError:
    """The error of a file whose values are not those that were written."""
    return CheckpointError(
        f"{file} is missing or damaged",
        hint=f"remove {file.parent} and export again without --resume: it is measured anew",
    )


@dataclass(frozen=True)
class Calibration:
    """Statistics that were measured on a text, in the files of a folder.

    Each file is a NumPy array, and its `checksum`.
    """

    folder: Path

    def curvature(self, name: str) -> Curvature:
        return Curvature(
            Inputs(self.read(f"{input_of(name)}.factor")), self.read(f"{name}.sensitivity")
        )

    def read(self, name: str) -> Tensor:
        """A tensor of the folder, float32.

        Raises CheckpointError if the file is not what was written.
        """
        path = self.folder / name
        try:
            with path.open("rb") as file:
                crc = _crc(file, path.stat().st_size - len(checksum(0)))
                if file.read() != checksum(crc):
                    raise damaged(path)
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise damaged(path) from error

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor, which is there whole or not at all."""
        temporary = self.folder / f"{name}.new"
        with temporary.open("w+b") as file:
            np.save(file, tensor.numpy())
            n_bytes = file.tell()
            file.seek(0)
            file.write(checksum(_crc(file, n_bytes)))
        os.replace(temporary, self.folder / name)

    def has(self, name: str) -> bool:
        """Whether a tensor has been written."""
        return (self.folder / name).is_file()


@dataclass(frozen=True)
class Uncalibrated:
    """Statistics by the weights alone: steps in proportion to the mean square of a row."""

    checkpoint: Checkpoint

    def curvature(self, name: str) -> Curvature:
        cols = self.checkpoint.shape(name)[1]
        powers = [block.square().mean(1) for _, block in self.checkpoint.blocks(name)]
        return Curvature(Inputs(torch.eye(cols)), 1 / torch.cat(powers).clamp(min=1e-30))


def input_of(name: str) -> str:
    """The matrix whose factor stands for all that have the same input as this one."""
    for ending, first in SHARED_INPUTS.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + first
    return name


@dataclass(frozen=True)
class CalibrationText:
    """The text of a calibration. name: of its file, without folders.

    as_chat: whether a model with a chat template reads it as conversations, a paragraph of the user
    and one of the assistant in turn. What a chat model is asked comes with the tokens of its
    template: by text without them, answers are lost that a loss on text does not show.
    """

    name: str
    content: str
    as_chat: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @classmethod
    def read(cls, given: str | None) -> CalibrationText | None:
        """The text of a file, of the one that ships where none is given, or None for "none".

        Raises UsageError if it cannot be read.
        """
        if given == NONE:
            return None
        path = DEFAULT if given is None else Path(given)
        try:
            return cls(path.name, path.read_text(encoding="utf-8"), as_chat=given is None)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(
                f"the calibration text {path} cannot be read: {reason}",
                hint=f"give a text file of what the model is for, or --calibration {NONE}",
            ) from error

    def windows(self, checkpoint: Checkpoint, most: int = MAX_WINDOWS) -> Tensor:
        """Windows of token ids, int64 [windows, tokens], `most` at most, spread over the text.

        Each begins with the token that the tokenizer puts in front of a text, if any. Raises
        CheckpointError where the model has no tokenizer that fits it, UsageError for a text of too
        few tokens.
        """
        ids = self._ids(checkpoint)
        first = [] if checkpoint.bos_rule != "tokenizer" else [checkpoint.bos_token_id]
        size = min(WINDOW, checkpoint.config.max_position_embeddings) - len(first)
        if len(ids) < size:
            raise UsageError(
                f"the calibration text {self.name} has {len(ids)} tokens, expected {size} or more",
                hint=f"give a longer text, or --calibration {NONE}",
            )
        n = min(most, len(ids) // size)
        starts = np.linspace(0, len(ids) - size, n).astype(int)
        return torch.tensor([[*first, *ids[start : start + size]] for start in starts])

    def _ids(self, checkpoint: Checkpoint) -> NDArray[np.int64]:
        """The ids of the text, int64 [n], with no special tokens but those of a template."""
        from tokenizers import Tokenizer

        hint = f"give --calibration {NONE}: the loss will be larger"
        if checkpoint.tokenizer is None:
            raise CheckpointError("calibration needs a tokenizer, and there is none", hint=hint)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write_texts(Path(folder))
            tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            text = conversations(self.content, Path(folder)) if self.as_chat else self.content
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        if ids.size and ids.max() >= checkpoint.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer gives id {ids.max()}, the model has "
                f"{checkpoint.config.vocab_size}: it cannot be calibrated",
                hint=hint,
            )
        return ids


def conversations(text: str, folder: Path) -> str:
    """A text as conversations of two paragraphs each, by the chat template in a folder.

    It stays as it is where there is no template. A template that asks for the date gets always the
    same one. Raises CheckpointError for one that does not render a question and an answer.
    """
    if chat_template.DEFAULT not in chat_template.templates(
        folder, chat_template.read_config(folder)
    ):
        return text
    template = replace(chat_template.read_template(folder), strftime=lambda form: "1 January 2026")
    paragraphs = text.split("\n\n")
    pairs = zip(paragraphs[::2], paragraphs[1::2], strict=False)

    def render() -> str:
        return "".join(
            template.render(
                [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
                generation=False,
            )
            for asked, said in pairs
        )

    try:
        return str(guarded(render))
    except ValueError as error:
        raise CheckpointError(
            f"the chat template renders no question with its answer to calibrate on: {error}",
            hint=f"give --calibration FILE, which is read as it is, or --calibration {NONE}",
        ) from error
