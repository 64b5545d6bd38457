"""The hidden directory beside OUT in which an export works, and from which it can be resumed.

It is named `.OUT.partial`:

    lock                held while an export is under way
    fingerprint.json    what the coded matrices were made from
    calibration/        what is measured for a rate (exporter.allocation)
    coded/              the finished matrices (exporter.encoded)
    bundle/             the bundle being made; it takes its place at OUT by a rename when complete
    old/                the bundle that is being replaced, between two renames

A process may be killed at any moment: what is at OUT is whole or absent, and the next export puts
an old bundle back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from exporter import interrupts, real_files
from exporter.bundle import check_target
from exporter.errors import MissingComponentError, OutOfSpaceError, UsageError

FORMAT_VERSION = 4  # of this directory and of what lies in it
LOCK, FINGERPRINT = "lock", "fingerprint.json"
OURS = {LOCK, FINGERPRINT, f"{FINGERPRINT}.new", "calibration", "coded", "bundle", "old"}
RESUME = "the same command with --resume goes on from there"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# What a user can mend, or did on purpose, and come back from: the coded matrices stay. Anything
# else is wrong input or a bug, which would be met again.
MENDABLE = (
    OSError,
    MemoryError,
    ImportError,
    OutOfSpaceError,
    MissingComponentError,
    KeyboardInterrupt,
    SystemExit,
)

Fingerprint = dict[str, str]
"""What coded matrices depend on: a value for each thing that is named to the user where it differs.
"""


@dataclass(frozen=True)
class StagingDirectory:
    """The directory of one export."""

    root: Path

    @property
    def coded(self) -> Path:
        return self.root / "coded"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def old(self) -> Path:
        return self.root / "old"

    @property
    def finished(self) -> int:
        """Number of matrices that have a record, damaged or not."""
        return len(list(self.coded.glob("*.json")))

    @property
    def measured(self) -> int:
        """Number of files of the calibration."""
        return len(list(self.calibration.glob("*")))


def staging_directory_of(out: Path) -> StagingDirectory:
    """The directory beside `out`, whether it exists or not."""
    return StagingDirectory(out.parent / f".{out.name}.partial")


@contextlib.contextmanager
def staging_directory(
    out: Path, fingerprint: Fingerprint, *, force: bool, resume: bool
) -> Iterator[StagingDirectory]:
    """A staging directory with an empty `bundle` to fill.

    The bundle goes to `out` when the block ends well, and nothing else is left then. With `resume`,
    `coded` holds what an earlier export with this fingerprint has finished. After an error that can
    be mended it stays, with a note on the exception that says so. Raises UsageError as
    `check_target`, if another export to `out` is under way, if the fingerprint differs, and if
    something else than a directory of ours has its name; OutOfSpaceError when the disk fills.
    """
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    place = staging_directory_of(out)
    _check_ours(place)
    with _locked(place, out):
        _put_back(place, out)
        try:
            check_target(out, force=force)
            _begin(place, fingerprint, resume)
        except BaseException:
            if not place.finished + place.measured:
                _remove(place)
            raise
        try:
            with _kept_words(place):
                yield place
                _replace(place, out)
        except BaseException as error:
            interrupts.tidying.set()
            raised = _disk_full(error, out) or error
            _put_back(place, out)
            _leave(place, raised)
            if raised is error:
                raise
            raise raised from error
        _remove(place)


@contextlib.contextmanager
def _kept_words(place: StagingDirectory) -> Iterator[None]:
    """Has words ready while the block runs, for a process that is ended in the middle of it."""
    words = f"what is finished is kept in {place.root}: {RESUME}"
    interrupts.kept.append(words)
    try:
        yield
    finally:
        interrupts.kept.remove(words)


def _check_ours(place: StagingDirectory) -> None:
    """Refuses a directory that the tool did not make: what is in it will be removed.

    Raises UsageError.
    """
    others = real_files.unsafe_to_write(place.root)
    if not others and place.root.exists():
        others = sorted({path.name for path in place.root.iterdir()} - OURS)
    if others:
        raise UsageError(
            f"{place.root} is not a work directory of this tool, and an export would remove it",
            problems=[f"it holds {name}" if name != "." else "it is a link" for name in others],
            hint="move it away, or choose another OUT",
        )


def _locked(place: StagingDirectory, out: Path) -> IO[bytes]:
    """The lock file of the directory, which is made; it is locked until it is closed.

    Raises UsageError if another process has the lock.
    """
    path = place.root / LOCK
    while True:
        place.root.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # The export that held it has just ended and removed it.
            file = path.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                hint = "wait until it has ended, or choose another OUT"
                raise UsageError(f"another export to {out} is under way", hint=hint) from None
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()


def _put_back(place: StagingDirectory, out: Path) -> None:
    """Ends a replacement that was cut off.

    The old bundle goes back if the new one is not in its place.
    """
    if not place.old.exists():
        return
    if out.exists():
        shutil.rmtree(place.old)
    else:
        os.rename(place.old, out)


def _begin(place: StagingDirectory, fingerprint: Fingerprint, resume: bool) -> None:
    previous = _read_fingerprint(place)
    if not resume or previous is None:
        _clear(place)
        place.coded.mkdir()
        place.calibration.mkdir()
        temporary = place.root / f"{FINGERPRINT}.new"
        temporary.write_text(json.dumps(fingerprint), encoding="utf-8")
        os.replace(temporary, place.root / FINGERPRINT)
    elif problems := _differences(previous, fingerprint):
        what = f"{place.root} was begun with something else, so this export cannot go on from there"
        raise UsageError(
            what, problems=problems, hint="export as then, or begin anew: leave --resume out"
        )
    shutil.rmtree(place.bundle, ignore_errors=True)
    place.bundle.mkdir()


def _read_fingerprint(place: StagingDirectory) -> Fingerprint | None:
    """The fingerprint in a directory; None where there is nothing to go on from."""
    try:
        raw = json.loads((place.root / FINGERPRINT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return raw if isinstance(raw, dict) and place.coded.is_dir() else None


def _differences(previous: Fingerprint, fingerprint: Fingerprint) -> list[str]:
    names = dict.fromkeys([*fingerprint, *previous])
    values = [
        (name, previous.get(name, "absent"), fingerprint.get(name, "absent")) for name in names
    ]
    return [f"{name}: {then} then, {now} now" for name, then, now in values if then != now]


def _replace(place: StagingDirectory, out: Path) -> None:
    """Puts the bundle in its place at `out`.

    An old one is out of it for the moment between two renames.
    """
    real_files.sync(place.bundle)
    if out.exists():
        os.rename(out, place.old)
    real_files.rename(place.bundle, out)


def _leave(place: StagingDirectory, error: BaseException) -> None:
    """Removes what nobody can go on from, and adds a note on what is kept to the error."""
    # A library that is interrupted may make any other error of it.
    mendable = isinstance(error, MENDABLE) or interrupts.asked.is_set()
    kept = place.finished if mendable else 0
    measured = place.measured if mendable else 0
    if not kept + measured:
        _remove(place)
        return
    shutil.rmtree(place.bundle, ignore_errors=True)
    matrices = "1 coded matrix is" if kept == 1 else f"{kept} coded matrices are"
    if not kept:
        matrices = "what was measured is"
    error.add_note(f"{matrices} kept in {place.root}: {RESUME}")


def _disk_full(error: BaseException, out: Path) -> OutOfSpaceError | None:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return OutOfSpaceError(
            f"the disk that holds {out.parent} is full", hint="free space, or choose another OUT"
        )
    return None


def _clear(place: StagingDirectory) -> None:
    """Removes everything but the lock."""
    for path in place.root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def _remove(place: StagingDirectory) -> None:
    """Removes the directory, the lock last.

    Who waits for the lock must not meet the rest.
    """
    _clear(place)
    (place.root / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another export has already begun here
        place.root.rmdir()
