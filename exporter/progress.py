"""The one type of function that is told how far a long task has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""
