"""Where a checkpoint lies: a folder, a GGUF file, the hub's cache, or the hub itself."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import CheckpointError, OutOfSpaceError, UsageError

SHIPPED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# What a tokenizer is read from; the others are converted.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
READ_FILES = (*SHIPPED_FILES, *VOCABULARY_FILES, "merges.txt", "added_tokens.json")
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BESIDE = ("config.json", INDEX_FILE, ADAPTER_CONFIG)
WEIGHTS = (".safetensors", ".gguf")
GET_ANOTHER = (
    "download again what is missing or truncated; docs/checkpoints.md lists what is read, "
    "converted and refused"
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HUB_URL = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?P<repo>[\w.-]+/[\w.-]+?)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?]+)(?:/(?P<file>[^?]+))?)?/?(?:\?.*)?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Located:
    """The place of a checkpoint.

    path: a folder or a GGUF file. repo_id, revision: of the hub, with the commit, where it came
    from there.
    """

    path: Path
    repo_id: str | None = None
    revision: str | None = None


def locate(model: str | Path, *, revision: str | None = None, show_bars: bool = False) -> Located:
    """The place of a local or downloaded checkpoint.

    `model` is a folder, a GGUF file, a root of the hub's cache, a hub id or its address. Raises
    CheckpointError where there is none, UsageError for a revision of what is not on the hub.
    """
    path = Path(model)
    if path.exists():
        if revision is not None:
            raise UsageError(
                f"--revision is of a model on the hub, and {path} is on this machine",
                hint="leave it away, or give the hub id",
            )
        return _on_this_machine(path)
    if isinstance(model, Path):
        raise _nothing_there(path)
    if address := HUB_URL.fullmatch(model):
        wanted = revision or address["revision"]
        return _download(address["repo"], wanted, address["file"], show_bars=show_bars)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise _nothing_there(path)
    return _download(model, revision, None, show_bars=show_bars)


def _nothing_there(path: Path) -> CheckpointError:
    return CheckpointError(
        f"there is no directory {path}",
        hint="give a Hugging Face directory, a GGUF file, or a hub id (owner/name)",
    )


def _on_this_machine(path: Path) -> Located:
    """A folder or GGUF file, with its origin where it lies in the hub's cache."""
    if path.is_file() and path.suffix != ".gguf":
        raise CheckpointError(
            f"{path} is a file, not a checkpoint directory", hint="give the directory it lies in"
        )
    if (path / "snapshots").is_dir() and not (path / "config.json").is_file():
        path = _snapshot(path)
    elif path.is_dir() and not (path / "config.json").exists():
        path = _only_gguf(path)
    for folder in path.absolute().parents:
        if folder.name.startswith("models--") and COMMIT.fullmatch(path.absolute().name):
            return Located(path, folder.name[8:].replace("--", "/"), path.absolute().name)
    return Located(path)


def _snapshot(root: Path) -> Path:
    """The snapshot of a root of the hub's cache: that of `main`, or the only one."""
    found = sorted((root / "snapshots").iterdir())
    main = root / "refs" / "main"
    wanted = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    chosen = [f for f in found if f.name == wanted] or found
    if len(chosen) != 1:
        names = ", ".join(str(f) for f in found) or "none"
        raise CheckpointError(
            f"{root} is a root of the hub's cache with {len(found)} snapshots: {names}",
            hint="give the directory of one of them",
        )
    return chosen[0]


def _only_gguf(folder: Path) -> Path:
    """The GGUF file of a folder that has nothing else to export, or the folder itself."""
    files = sorted(folder.glob("*.gguf"))
    firsts = [f for f in files if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", f.name)]
    if len(firsts) > 1:
        listing = ", ".join(f.name for f in firsts)
        raise CheckpointError(
            f"{folder} has {len(firsts)} GGUF models: {listing}", hint="give one of these files"
        )
    return firsts[0] if firsts else folder


def _download(repo_id: str, revision: str | None, file: str | None, *, show_bars: bool) -> Located:
    """A hub model's snapshot.

    Files that are already in the cache are not fetched again, and broken downloads resume. `file`
    is a GGUF file of the repository, where one is wanted. Raises CheckpointError, or
    OutOfSpaceError where the disk is full.
    """
    from huggingface_hub import snapshot_download, utils

    weights = [SINGLE_FILE, "model-*.safetensors", INDEX_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    gguf = file is not None and file.endswith(".gguf")
    patterns = [file] if file and gguf else ["config.json", *weights, *READ_FILES]
    were_off = utils.are_progress_bars_disabled()
    if not show_bars:
        utils.disable_progress_bars()
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except Exception as error:
        # Besides the hub's own errors this is whatever its HTTP library raises, which changes.
        raise _hub_error(repo_id, revision, error) from error
    finally:
        if not were_off:
            utils.enable_progress_bars()
    commit = folder.name if COMMIT.fullmatch(folder.name) else revision
    return Located(folder / file if file and gguf else folder, repo_id, commit)


def _hub_error(
    repo_id: str, revision: str | None, error: Exception
) -> CheckpointError | OutOfSpaceError:
    """What went wrong on the hub, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        what = f"the disk is full: {error}"
        return OutOfSpaceError(what, hint="free space; the download will resume")
    if isinstance(error, errors.GatedRepoError):
        what = f"{repo_id} on the hub is gated, and access was refused"
        hint = (
            f"accept the licence at https://huggingface.co/{repo_id}, then set HF_TOKEN or run "
            "`hf auth login`"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"{repo_id} on the hub has no revision {revision}"
        hint = "give a branch, a tag or a commit of its history, or leave --revision away"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = f"there is no directory {repo_id} and no such model on the hub"
        hint = (
            "check the spelling; for a private model set HF_TOKEN; for a local model give its "
            "directory"
        )
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        what = f"{repo_id} is no local directory, and the hub cannot be reached"
        hint = "connect to the internet, unset HF_HUB_OFFLINE, or give a local directory"
    else:
        what = f"{repo_id} could not be downloaded: {error}"
        hint = "try again; it will resume"
    return CheckpointError(what, hint=hint)


def check_fetched(folder: Path) -> None:
    """Raises CheckpointError for files of which only a git-lfs pointer is there, or that are none.

    A read from a pipe or a device may never end.
    """
    read = {*READ_FILES, *BESIDE}
    named = [f for f in sorted(folder.iterdir()) if f.suffix in WEIGHTS or f.name in read]
    if strange := [f.name for f in named if f.exists() and not f.is_file()]:
        raise CheckpointError(
            f"{folder}: {', '.join(strange)}: no file, but a folder, pipe, socket or device",
            hint=GET_ANOTHER,
        )
    pointers = []
    for file in named:
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                    pointers.append(file.name)
    if pointers:
        raise CheckpointError(
            f"{folder}: {', '.join(pointers)}: only a git-lfs pointer is there, not the file",
            hint=f"run `git lfs pull` in {folder}",
        )


def read_json(file: Path, problems: list[str], *, required: bool = True) -> dict[str, Any]:
    """The JSON object in a file, or {} with a note in `problems`.

    An optional file may be absent.
    """
    if not file.is_file():
        if required:
            problems.append(f"{file.name} is missing")
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        problems.append(f"{file.name} is not JSON: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} must hold an object, got {type(value).__name__}")
        return {}
    return value
