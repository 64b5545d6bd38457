"""The folder of a checkpoint: found locally or downloaded from the hub."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

from exporter.errors import CheckpointError, OutOfSpaceError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"


GET_ANOTHER = (
    "download the checkpoint again, or use an unquantized Llama 3.x checkpoint in "
    "Hugging Face format"
)


def local_directory(model: str | Path, *, show_bars: bool) -> Path:
    """The directory of a local or downloaded checkpoint. Raises CheckpointError where there is
    none."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, not a checkpoint directory", hint="give the directory it lies in"
        )
    if isinstance(model, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise CheckpointError(
            f"there is no directory {path}",
            hint="give a Hugging Face directory or a hub id (owner/name)",
        )
    return _download(model, show_bars=show_bars)


def _download(repo_id: str, *, show_bars: bool) -> Path:
    """The snapshot of a hub model; files already in the cache are not fetched again, broken
    downloads resume."""
    from huggingface_hub import errors, snapshot_download, utils

    weights = [SINGLE_FILE, "model-*.safetensors", INDEX_FILE]
    were_off = utils.are_progress_bars_disabled()
    if not show_bars:
        utils.disable_progress_bars()
    try:
        return Path(
            snapshot_download(repo_id, allow_patterns=["config.json", *weights, *TOKENIZER_FILES])
        )
    except errors.GatedRepoError as error:
        hint = (
            f"accept the licence at https://huggingface.co/{repo_id}, then set HF_TOKEN or run "
            "`hf auth login`"
        )
        raise CheckpointError(
            f"{repo_id} on the hub is gated, and access was refused", hint=hint
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = (
            "check the spelling; for a private model set HF_TOKEN; for a local model give its "
            "directory"
        )
        raise CheckpointError(
            f"there is no directory {repo_id} and no such model on the hub", hint=hint
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        hint = "connect to the internet, unset HF_HUB_OFFLINE, or give a local directory"
        raise CheckpointError(
            f"{repo_id} is no local directory, and the hub cannot be reached", hint=hint
        ) from error
    except Exception as error:
        # This is whatever the hub's HTTP library raises: that library changes between versions.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OutOfSpaceError(
                f"the disk is full: {error}", hint="free space; the download will resume"
            ) from error
        raise CheckpointError(
            f"{repo_id} could not be downloaded: {error}", hint="try again; it will resume"
        ) from error
    finally:
        if not were_off:
            utils.enable_progress_bars()


def read_json(file: Path, problems: list[str], *, required: bool = True) -> dict[str, Any]:
    """A JSON object, or {} with a note in `problems`. An optional file may be absent."""
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
