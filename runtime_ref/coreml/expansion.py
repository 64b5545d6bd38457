"""Expansion of the `.mlpackage` of an ML Program from the coded weights in a bundle.

An app does the same at install.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporter.bundle import Artifact, Bundle
from exporter.codec import weight_file


def load_recipe(bundle: Bundle, artifact: Artifact) -> weight_file.Recipe:
    """Recipe by which the package of an ML Program is rebuilt. Raises BundleError."""
    return weight_file.Recipe.from_json(
        bundle.file(artifact.details["recipe"]).read_text(encoding="utf-8")
    )


def expand(
    bundle: Bundle, recipe: weight_file.Recipe, target: Path, progress: Callable[[int, int], None]
) -> None:
    """Writes the package to `target`; `progress` is told the bytes done and in all.

    Raises BundleError, CodecError, OutOfSpaceError as `weight_file.expand`.
    """
    total, done = sum(file.n_bytes for file in recipe.weight_files), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    weight_file.expand(bundle.path, recipe, target, advance)
