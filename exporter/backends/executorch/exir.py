"""The schema and the serializer of `executorch.exir`, without the exporter that they lie in.

A program is recorded here and not traced, so nothing else of `executorch.exir` is used. Importing
the package itself imports all of its exporter, and parses a list of operators in YAML, in Python:
seconds, which a small model's export does not take besides.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

_EXIR = "executorch.exir"


@contextlib.contextmanager
def without_exporter() -> Iterator[None]:
    """Lets modules of `executorch.exir` be imported, inside, without what the package imports.

    Afterwards they are forgotten, so that another import finds the whole package. Raises
    ImportError where ExecuTorch is not installed.
    """
    if _EXIR in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(_EXIR)
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{_EXIR}'", name=_EXIR)
    sys.modules[_EXIR] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n == _EXIR or n.startswith(f"{_EXIR}.")]:
            del sys.modules[name]
