"""The commands that pass a bundle on: `sign` and `push` it, and `verify` one that came."""

from __future__ import annotations

from dataclasses import asdict
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


def push(
    bundle_path: BundleArgument,
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="A repository of the hub, owner/name.")
    ],
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="NAME",
            help="The base model's, such as apache-2.0; by default that of its card on the hub.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A repository that is made is private.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Put a bundle on the hub, with a model card that says what its manifest says.

    `tinyqmoe run owner/name` then runs it anywhere, and so do the other commands.
    """
    pushed = tinyqmoe.push(bundle_path, repo, licence=licence, private=private)
    emit(json_file, lambda: asdict(pushed), lambda: typer.echo(pushed.url))


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
