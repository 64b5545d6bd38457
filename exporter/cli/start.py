"""The start of the command line: signals are obeyed before anything that takes long is imported."""

from __future__ import annotations

from exporter.cli import signals


def main() -> None:
    """Runs the command line, as `app.main`."""
    signals.obey()
    from exporter.cli import app

    app.main()
