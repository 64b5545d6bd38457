"""The part of `executorch.runtime` that a run needs, with the same names over the same bindings.

Importing `executorch.runtime` also imports the exporter of ExecuTorch, `executorch.exir`, which
takes seconds and is used by nothing that runs a program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class Method:
    """Loaded method of a program."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def execute(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Outputs of one call, valid until the next: the method's memory. Raises RuntimeError."""
        # PyTorch would copy them with threads of its own, which then spin beside ExecuTorch's.
        outputs: Sequence[Any] = self._method(inputs, clone_outputs=False)
        return outputs


class Program:
    """Program that is mapped, whose methods are loaded once."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self.method_names = {program.get_method_name(i) for i in range(program.num_methods())}
        self._methods: dict[str, Method] = {}

    def load_method(self, name: str) -> Method:
        """Method of a name in `method_names`. Raises RuntimeError."""
        if name not in self._methods:
            self._methods[name] = Method(self._program.load_method(name))
        return self._methods[name]


class OperatorRegistry:
    """Operators that this process knows."""

    def __init__(self, bindings: ModuleType) -> None:
        self._bindings = bindings

    @property
    def operator_names(self) -> set[str]:
        """Names of all operators, with their overloads."""
        return set(self._bindings._get_operator_names())


class Runtime:
    """The ExecuTorch runtime of this process."""

    @staticmethod
    @functools.cache
    def get() -> Runtime:
        """The one runtime. Raises ImportError."""
        import torch  # noqa: F401  (loads the libraries that the bindings are linked with)
        from executorch.extension.pybindings import _C

        return Runtime(_C)

    def __init__(self, bindings: ModuleType) -> None:
        self._bindings = bindings
        self.operator_registry = OperatorRegistry(bindings)

    def start_threads(self) -> int:
        """Number of threads of the pool, which starts with this or with the first product."""
        return int(self._bindings._threadpool_get_thread_count())

    def load_program(self, path: Path) -> Program:
        """Program of a file, whose structure is checked. Raises RuntimeError."""
        checked = self._bindings.Verification.InternalConsistency
        return Program(self._bindings._load_program(str(path), program_verification=checked))
