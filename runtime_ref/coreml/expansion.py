"""Expansion of the `.mlpackage` of an ML Program from the coded weights in a bundle.

An app does the same at install.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporter.bundle import Artifact, Bundle
from exporter.codec import weight_file
from exporter.errors import BundleError


def load_recipe(bundle: Bundle, artifact: Artifact) -> weight_file.Recipe:
    """Recipe by which the package of an ML Program is rebuilt.

    Raises BundleError, also for one that makes something else than the manifest says.
    """
    recipe = weight_file.Recipe.from_json(bundle.file(artifact.details["recipe"]).read_bytes())
    expanded = {e.path: (e.n_bytes, e.sha256) for e in bundle.manifest.expanded}
    problems = [
        f"{file.path} has another size or SHA-256"
        for file in recipe.weight_files
        if expanded.get(f"{recipe.package}/{file.path}") != (file.n_bytes, file.sha256)
    ]
    if recipe.package != artifact.path:
        problems.append(f"it makes {recipe.package!r}, not {artifact.path!r}")
    templates = [name for name in artifact.files if name.startswith(f"{recipe.template}/")]
    if not templates or recipe.coded_file not in artifact.files:
        problems.append(f"{recipe.template!r} or {recipe.coded_file!r} is no part of the package")
    if problems:
        raise BundleError(
            "the recipe is not that of the manifest", problems=problems, hint="export again"
        )
    return recipe


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
