"""Model families, one file each, named as the `model_type` of a Hugging Face config.

Adding a family is adding a file with `Config`, `tensor_shapes` and `Model`; nothing is registered
anywhere.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from types import ModuleType
from typing import Any

from exporter.errors import CheckpointError

MAX_SIZE = 2**31 - 1


def supported() -> list[str]:
    """The `model_type`s that have a file here, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(model_type: object) -> ModuleType:
    """The module of a family. Raises CheckpointError, naming the supported ones, for any other
    `model_type`."""
    names = supported()
    if model_type not in names:
        raise CheckpointError(
            f"config.json says model_type {model_type!r}, which is not supported",
            do=f"use a checkpoint of one of: {', '.join(names)}",
        )
    return importlib.import_module(f"{__name__}.{model_type}")


class ConfigReader:
    """Reads typed values from a parsed config.json and notes every problem, so that one run names
    them all.

    A wrong value reads as 1, to let the reading go on; `finish` raises if there was any.
    """

    def __init__(
        self, raw: dict[str, Any], *, prefix: str = "", problems: list[str] | None = None
    ) -> None:
        self.raw, self.prefix = raw, prefix
        self.problems: list[str] = [] if problems is None else problems

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; null counts as absent."""
        value = self.raw.get(key)
        return default if value is None else value

    def check(self, fine: bool, problem: str) -> None:
        """Note `problem` unless `fine`."""
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
        """One of the values this tool supports; the first stands for an absent one."""
        value = self.get(key, allowed[0])
        self.check(
            value in allowed, f"{key} is {value!r}, supported: {' or '.join(map(repr, allowed))}"
        )
        return value

    def section(self, *keys: str) -> ConfigReader:
        """The nested object under the first of `keys` that is present, or an empty one; problems
        are shared."""
        key = next((k for k in keys if self.get(k) is not None), keys[0])
        value = self.get(key, {})
        self.check(isinstance(value, dict), f"{key} must be an object, got {value!r}")
        raw = value if isinstance(value, dict) else {}
        return ConfigReader(raw, prefix=f"{self.prefix}{key}: ", problems=self.problems)

    def finish(self) -> None:
        """Raises CheckpointError with all problems, if there are any."""
        if self.problems:
            raise CheckpointError(
                "config.json describes a model this tool cannot export",
                problems=self.problems,
                do="use an unquantized Hugging Face checkpoint of one of: "
                f"{', '.join(supported())}",
            )


def is_id(value: object) -> bool:
    """Whether `value` can be a token id: an integer (True and False are none) from 0 up."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE
