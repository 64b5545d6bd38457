"""Files that an app adds to its project to run a bundle, written to a directory of their own."""

from __future__ import annotations

import json
import shutil
import string
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from exporter.bundle import MANIFEST, PROGRAM, REFERENCE, Bundle, FileEntry, sha256
from exporter.errors import UsageError
from exporter.native import copy_sources, native_dir
from exporter.staging import staging_directory

Platform = Literal["ios", "android"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
TOKENIZER = "tokenizer.json"
BUNDLE_FILES = "bundle-files.json"
# Where the snippets of a platform and the C++ sources go.
PLACES: dict[Platform, dict[str, str]] = {
    "android": {"CMakeLists.txt": "cpp", "tinyqmoe_jni.cc": "cpp"},
    "ios": {},
}
SOURCES: dict[Platform, str] = {"android": "cpp/tinyqmoe", "ios": "tinyqmoe"}


@dataclass(frozen=True)
class BundleFile:
    """A file of the bundle that an app carries or downloads.

    use: "session" what a session reads, "check" the answers that a check on the device compares
    with, "core-ml" other packages.
    """

    path: str
    n_bytes: int
    sha256: str
    use: str


@dataclass(frozen=True)
class AppFiles:
    """The directory that was written: its files, and those of the bundle."""

    path: Path
    files: list[FileEntry]
    bundle_files: list[BundleFile]


def write_app_files(bundle: Bundle, platform: Platform, out: Path) -> AppFiles:
    """Files for an app on a platform, written to `out`, which must be absent or empty.

    Nothing is at `out` unless all of it succeeded. Raises UsageError with all that the bundle lacks
    for an app, OutOfSpaceError.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"{out} exists and is not an empty directory", hint="choose another OUT")
    _check(bundle)
    listed = bundle_files(bundle, platform)
    with staging_directory(out, {"app-files": platform}, force=False, resume=False) as place:
        work = place.bundle
        copy_sources(work / SOURCES[platform])
        _write_snippets(platform, work, _values(bundle, listed))
        shutil.copyfile(native_dir() / "LICENSE", work / "LICENSE")
        document = {"model": bundle.manifest.model.name, "files": [asdict(f) for f in listed]}
        (work / BUNDLE_FILES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    found = sorted(p for p in out.rglob("*") if p.is_file())
    entries = [FileEntry(p.relative_to(out).as_posix(), p.stat().st_size, sha256(p)) for p in found]
    return AppFiles(out, entries, listed)


def bundle_files(bundle: Bundle, platform: Platform) -> list[BundleFile]:
    """Files of a bundle that an app on a platform uses, the manifest first."""
    uses = {TOKENIZER: "session", REFERENCE: "check"}
    for artifact in bundle.manifest.artifacts:
        use = "session" if artifact.format == "pte" else "core-ml"
        if use == "session" or platform == "ios":
            uses |= dict.fromkeys(artifact.files, use)
    manifest = bundle.path / MANIFEST
    first = BundleFile(MANIFEST, manifest.stat().st_size, sha256(manifest), "session")
    entries = (f for f in bundle.manifest.files if f.path in uses)
    return [first, *(BundleFile(f.path, f.n_bytes, f.sha256, uses[f.path]) for f in entries)]


def _check(bundle: Bundle) -> None:
    """Checks that an app can run the bundle. Raises UsageError with all that it lacks."""
    there = {f.path for f in bundle.manifest.files}
    programs = [a for a in bundle.manifest.artifacts if a.format == "pte"]
    problems = []
    if not programs:
        problems.append(f"it has no {PROGRAM}, which a session reads: export with --target android")
    elif not any(a.exact for a in programs):
        problems.append(
            f"{programs[0].path} has {programs[0].activations} activations, a session computes "
            "int16 only: export with --activations int16"
        )
    if TOKENIZER not in there:
        problems.append(f"it has no {TOKENIZER}: export from a checkpoint that has one")
    if problems:
        hint = "export the model again, as each line says"
        raise UsageError(f"{bundle.path} is no bundle for an app", problems=problems, hint=hint)


def _values(bundle: Bundle, listed: list[BundleFile]) -> dict[str, object]:
    """Words of the README that depend on the bundle."""
    manifest = bundle.manifest
    needed = sum(f.n_bytes for f in listed if f.use == "session")
    chat = "The chat format is `chat` of the manifest: six strings that an app joins."
    if not manifest.chat.strings:
        chat = f"The bundle has no chat format ({manifest.chat.problem}): offer plain completion."
    return {
        "model": manifest.model.name,
        "context": manifest.interface.context,
        "vocab": manifest.interface.vocab_size,
        "eos": ", ".join(map(str, manifest.interface.eos_token_ids)),
        "size": f"{needed / 1e6:,.1f} MB for a session",
        "chat": chat,
    }


def _write_snippets(platform: Platform, work: Path, values: dict[str, object]) -> None:
    """Copies the snippets of a platform to their places, the README with its values."""
    for source in sorted((Path(__file__).parent / platform).iterdir()):
        target = work / PLACES[platform].get(source.name, ".") / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".md":
            text = string.Template(text).substitute(values)
        target.write_text(text, encoding="utf-8")
