"""Rebuilds the `.mlpackage` of an ML Program from the coded weights in a bundle, as an app does at
install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporter.bundle import Artifact, Bundle
from exporter.codec import weight_file


def load_recipe(bundle: Bundle, artifact: Artifact) -> weight_file.Recipe:
    """How the package of an ML Program is rebuilt. Raises BundleError."""
    return weight_file.Recipe.from_json(
        bundle.file(artifact.details["recipe"]).read_text(encoding="utf-8")
    )


def expand(
    bundle: Bundle, recipe: weight_file.Recipe, target: Path, progress: Callable[[int, int], None]
) -> None:
    """`weight_file.expand` with the bytes done and in all for `progress`."""
    total, done = sum(file.n_bytes for file in recipe.weight_files), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    weight_file.expand(bundle.path, recipe, target, advance)
