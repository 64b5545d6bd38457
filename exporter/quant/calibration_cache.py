"""Calibrations that exports of one model at several rates share, in a folder of the user's.

Each has a folder there, which is named by all that it depends on. What lies there is believed, so
nobody else may write to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from exporter import real_files
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import UsageError
from exporter.quant.calibration import Calibration

PASSES = 4  # counts the changes of what passes compute from the same windows
LOCK = "lock"  # in the folder of a calibration, held while it is measured


def make_folder(folder: Path) -> None:
    """Makes the folder of a cache, if there is none. Raises UsageError."""
    what = f"{folder} cannot be a cache of calibrations"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        hint = "give a folder as --calibration-cache"
        raise UsageError(f"{what}: {error.strerror}", hint=hint) from error
    if not real_files.is_private_folder(folder):
        raise UsageError(
            f"{what}: others could change what is in it, or it is a link",
            hint=f"give a folder of your own as --calibration-cache, or `chmod go-w {folder}`",
        )


@dataclass(frozen=True)
class CalibrationCache:
    """The folder of calibrations, for a model whose files of weights have these SHA-256 by name."""

    folder: Path
    weights: Mapping[str, str]

    @contextlib.contextmanager
    def calibration(self, checkpoint: Checkpoint, windows: Tensor) -> Iterator[Calibration]:
        """The calibration on windows of token ids, whole or not, for the block to complete.

        Waits while another process does that.
        """
        folder = self.folder / self._key(checkpoint, windows)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Calibration(folder)

    def _key(self, checkpoint: Checkpoint, windows: Tensor) -> str:
        """SHA-256 of all that a calibration depends on."""
        depends = {
            "passes": PASSES,
            "weights": dict(self.weights),
            "config": repr(checkpoint.config),
            "windows": hashlib.sha256(repr(windows.tolist()).encode()).hexdigest(),
            **{name: importlib.metadata.version(name) for name in ("tiny-qmoe", "torch")},
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
