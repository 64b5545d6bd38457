"""The command that writes what an app adds to its project."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import tinyqmoe
from exporter.cli.console import emit, out_console
from exporter.cli.options import BundleArgument, JsonOption


class AppPlatform(enum.StrEnum):
    """The platform of an app."""

    IOS = "ios"
    ANDROID = "android"


def app_files(
    bundle_path: BundleArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A directory that is absent or empty.")
    ],
    platform: Annotated[AppPlatform, typer.Option(help="What the app is for.")],
    json_file: JsonOption = None,
) -> None:
    """Write what an app adds to its project: sources, snippets, settings and steps.

    With them comes the list of the bundle's files, with sizes and SHA-256.
    """
    from dataclasses import asdict

    from exporter.cli.bundle_tables import bytes_text

    written = tinyqmoe.app_files(bundle_path, platform.value, out)
    carried = [f for f in written.bundle_files if f.use == "session"]
    size = bytes_text(sum(f.n_bytes for f in carried))
    what = f"{out}: {len(written.files)} files; begin with {out / 'README.md'}"
    needs = f"A session needs {', '.join(f.path for f in carried)} of the bundle: {size}"
    emit(
        json_file,
        lambda: asdict(written) | {"path": str(out), "platform": platform.value},
        lambda: out_console.print(escape(f"{what}\n{needs}"), soft_wrap=True, highlight=False),
    )
