"""Kernel library that a wheel brings, so that nothing is compiled where it is installed.

`python -m runtime_ref.executorch.prebuilt` makes it in the source tree before a wheel is built.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from runtime_ref.executorch import kernels


def make() -> Path:
    """Path of the library, compiled into the folder from which a wheel takes it.

    It finds executorch beside this package, where pip puts both. Those of other sources, flags and
    versions are deleted. Raises MissingComponentError.
    """
    target = kernels.PREBUILT / kernels.fingerprint() / kernels.library_name()
    packages = os.path.relpath(kernels.PREBUILT.parents[2], target.parent)
    shutil.rmtree(kernels.PREBUILT, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=kernels.PREBUILT.parent) as work:
        built = Path(work) / kernels.library_name()
        origin = kernels.platform().origin
        kernels.compile_library(built, f"{origin}/{packages}/executorch/lib")
        target.parent.mkdir(parents=True)
        os.replace(built, target)
    return target


if __name__ == "__main__":
    print(make())
