"""The errors that a user can meet.

Each names what is wrong and the next step; the command line gives each an exit code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


class TinyQMoEError(Exception):
    """Base of every error with a message for the user.

    `problems` lists all offenders, so that one run tells everything that is wrong.
    """

    exit_code = 3

    def __init__(self, what: str, *, problems: list[str] | None = None, hint: str = "") -> None:
        self.what = what
        self.problems = list(problems or [])
        self.hint = hint
        lines = [what, *(f"  - {p}" for p in self.problems)]
        if hint:
            lines.append(f"Next step: {hint}")
        super().__init__("\n".join(lines))


class UsageError(TinyQMoEError):
    """An option is wrong or two options contradict each other."""

    exit_code = 2


class CheckpointError(TinyQMoEError):
    """The input checkpoint is damaged, incomplete or not supported."""


class CodecError(TinyQMoEError):
    """A TQLZ blob violates FORMAT.md.

    `status` is the name of the violation, such as `BAD_MAGIC`.
    """

    def __init__(self, status: str, what: str, *, hint: str = "") -> None:
        self.status = status
        super().__init__(f"{status}: {what}", hint=hint)


class BundleError(TinyQMoEError):
    """A bundle is damaged, incomplete or was changed after it was written."""


class DataError(TinyQMoEError):
    """The data of an evaluation is missing or malformed, or does not fit the model."""


class ExportError(TinyQMoEError):
    """A package that was written is not what was asked for."""


class ContextError(TinyQMoEError):
    """A prompt or a generation does not fit the context the package was exported with."""


class OutOfSpaceError(TinyQMoEError):
    """A budget or the disk is too small."""

    exit_code = 4


class MissingComponentError(TinyQMoEError):
    """A compiler, kernel library, operator or package is missing."""

    exit_code = 5


def require(packages: Sequence[str], what: str, hint: str) -> None:
    """Checks that packages are installed, and imports none of them.

    `what` is the thing that needs them. Raises MissingComponentError with the names of all that are
    missing.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        needs = f"{what} needs packages that are not installed: {', '.join(missing)}"
        raise MissingComponentError(needs, hint=hint)


def require_extra(extra: str, packages: Sequence[str], what: str) -> None:
    """Checks as `require` does for packages that an extra of tiny-qmoe brings."""
    require(packages, what, f"pip install 'tiny-qmoe[{extra}]'")
