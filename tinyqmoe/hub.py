"""Bundles on the Hugging Face hub: taken from there by their id, put there with a card."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.bundle import MANIFEST, SIGNATURE, Bundle
from exporter.errors import BundleError, OutOfSpaceError, TinyQMoEError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# owner/name, and perhaps @ with a branch, a tag or a commit
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
CARD = "README.md"
DISK_FULL = (28, 122)  # ENOSPC, EDQUOT


@dataclass(frozen=True)
class PushedBundle:
    """A bundle on the hub: its repository, the commit, its address, and the licence in its card."""

    repo: str
    commit: str
    url: str
    licence: str


def is_hub_id(given: str | Path) -> bool:
    """Whether this can be the id of a bundle on the hub: nothing on this machine, no JSON file."""
    path = Path(given)
    named = HUB_ID.fullmatch(str(given)) is not None
    return named and path.suffix != ".json" and not path.exists()


def bundle_or_model(given: Bundle | str | Path) -> Bundle | str | Path:
    """The same, with the id of a bundle on the hub as its folder; a model stays as it is.

    A repository with a manifest is a bundle. One that cannot be asked is left to those who read
    checkpoints: they take it from the cache of the hub, or say why it cannot be had. Raises
    BundleError where a bundle is there and cannot be taken, and OutOfSpaceError.
    """
    if isinstance(given, Bundle) or not is_hub_id(given):
        return given
    found = HUB_ID.fullmatch(str(given))
    assert found is not None  # is_hub_id has seen to that
    if _cached(found["repo"], found["revision"]) is not None:
        return bundle_place(given)
    try:
        with _hub_errors(f"the hub cannot be asked for {given}") as api:
            has_manifest = api.file_exists(found["repo"], MANIFEST, revision=found["revision"])
    except BundleError:
        return given
    return bundle_place(given) if has_manifest else given


def bundle_place(given: str | Path) -> Path:
    """The folder of a bundle: one of this machine, or that of a hub id, `owner/name[@revision]`.

    What is on this machine comes first. Of a repository only the files that its manifest names are
    fetched, into the user's cache, where each commit has a folder. Raises BundleError where there
    is neither, and OutOfSpaceError.
    """
    path = Path(given)
    found = HUB_ID.fullmatch(str(given))
    if path.exists() or found is None:
        return path
    repo, revision = found["repo"], found["revision"]
    if (cached := _cached(repo, revision)) is not None:
        return cached
    cache = _cache(repo)
    with _hub_errors(f"there is no directory {given}, and of the hub {repo} cannot be had") as api:
        commit = str(api.repo_info(repo, revision=revision).sha)
        if not (cache / commit).is_dir():
            _fetch(api, repo, commit, cache)
    return cache / commit


def known_name(bundle: Bundle) -> str:
    """The name that people know a bundle by: its folder's, or its id where it is from the hub."""
    folder = bundle.path.resolve()
    repo = folder.parent.name.replace("--", "/", 1)
    return repo if folder.parent == _cache(repo).resolve() else folder.name


def _cache(repo: str) -> Path:
    """The folder of a repository's commits in the user's cache."""
    import platformdirs

    return platformdirs.user_cache_path("tiny-qmoe") / "bundles" / repo.replace("/", "--")


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder of a bundle that needs no network, as its commit is there; else None."""
    if revision is None or not COMMIT.fullmatch(revision):
        return None
    folder = _cache(repo) / revision
    return folder if folder.is_dir() else None


def _fetch(api: HfApi, repo: str, commit: str, cache: Path) -> None:
    """Fetches the files of a bundle, which get their folder by a rename when all are there."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".") as folder:
        place = Path(folder, "bundle")
        wanted: list[str] = [MANIFEST]
        api.snapshot_download(repo, revision=commit, local_dir=place, allow_patterns=wanted)
        names = [entry.path for entry in Bundle.open(place).manifest.files]
        wanted = [glob.escape(name) for name in (*names, SIGNATURE)]
        api.snapshot_download(repo, revision=commit, local_dir=place, allow_patterns=wanted)
        shutil.rmtree(place / ".cache", ignore_errors=True)  # the hub's own notes
        if not (cache / commit).is_dir():
            os.rename(place, cache / commit)


def push(
    bundle: Bundle | str | Path, repo: str, *, licence: str | None = None, private: bool = False
) -> PushedBundle:
    """Puts a bundle into a repository of the hub, in one commit, with a model card.

    All files are verified first. The repository is made if it is not there; `private` is only of
    one that is made. `licence` is the identifier of the base model's; without it, the one in the
    card of the base model, where the manifest names its repository. Raises TinyQMoEError.
    """
    from tinyqmoe.model_card import model_card
    from tinyqmoe.packages import open_bundle

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise UsageError(f"{repo!r} is no repository of the hub", hint="give owner/name")
    opened = open_bundle(bundle)
    opened.verify()
    with _hub_errors(f"{opened.path} cannot be put to {repo} on the hub") as api:
        known = licence or _licence(api, opened)
        card = model_card(opened, repo, known)
        api.create_repo(repo, private=private or None, exist_ok=True)
        message = f"Bundle of {opened.manifest.model.name}"
        done = api.create_commit(repo, _operations(opened, card), commit_message=message)
    return PushedBundle(repo, str(done.oid), str(done.commit_url), known)


def _operations(bundle: Bundle, card: str) -> list[Any]:
    """The files of a commit: what the manifest names, the manifest, its signature, the card."""
    from huggingface_hub import CommitOperationAdd

    names = [entry.path for entry in bundle.manifest.files]
    names += [name for name in (MANIFEST, SIGNATURE) if (bundle.path / name).is_file()]
    added = [CommitOperationAdd(name, str(bundle.file(name))) for name in names]
    return [*added, CommitOperationAdd(CARD, card.encode())]


def _licence(api: HfApi, bundle: Bundle) -> str:
    """The licence in the card of the base model. Raises UsageError where it is not known."""
    origin = bundle.manifest.model.origin
    card = api.model_info(origin.repo_id).card_data if origin.repo_id else None
    if card is None or not isinstance(card.get("license"), str):
        what = "the licence of the base model is not known"
        raise UsageError(what, hint="give --license, such as apache-2.0 or llama3.2")
    return str(card["license"])


@contextmanager
def _hub_errors(what: str) -> Iterator[HfApi]:
    """The hub's interface without its progress bars, whose errors become ours with a next step."""
    from huggingface_hub import HfApi, errors, utils

    were_off = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield HfApi()
    except TinyQMoEError:
        raise
    except Exception as error:
        # Besides the hub's own errors this is whatever its HTTP library raises, which changes.
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            hint = "free space, and try again"
            raise OutOfSpaceError(f"{what}: the disk is full", hint=hint) from error
        hint = "is the hub reached? a commit that is in the cache is taken as owner/name@COMMIT"
        response = getattr(error, "response", None)
        if isinstance(error, errors.RevisionNotFoundError):
            hint = "give a branch, a tag or a commit of its history"
        elif getattr(response, "status_code", None) in (401, 403, 404):
            hint = "check the spelling; for what is yours set HF_TOKEN or run `hf auth login`"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{what}: {first}", hint=hint) from error
    finally:
        if not were_off:
            utils.enable_progress_bars()
