"""The commands that say who made a bundle: `sign` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinyqmoe
from exporter.cli.console import emit, out_console
from exporter.cli.options import BundleArgument, JsonOption


def sign(
    bundle_path: BundleArgument,
    key: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Ed25519 private key in PEM: openssl genpkey -algorithm ed25519 -out key.pem",
        ),
    ],
    json_file: JsonOption = None,
) -> None:
    """Sign a bundle, so that others can check who made it."""
    file = tinyqmoe.sign(bundle_path, key)
    emit(json_file, lambda: {"signature": str(file)}, lambda: typer.echo(file))


def verify(
    bundle_path: BundleArgument,
    pubkey: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Ed25519 public key in PEM that the bundle has to be signed with.",
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Hash every file of a bundle, and check its signature.

    Exit code 3 if a file differs from the manifest, or with --pubkey if the signature does not fit.
    """
    bundle = tinyqmoe.verify(bundle_path, public_key=pubkey)
    n_files = len(bundle.manifest.files)
    said = f"signed with the key of {pubkey}" if pubkey else "who made it was not checked"
    emit(
        json_file,
        lambda: {"files": n_files, "signed": pubkey is not None, "foreign": bundle.foreign_files},
        lambda: out_console.print(
            f"{n_files} files are as the manifest says; {said}", markup=False, highlight=False
        ),
    )
