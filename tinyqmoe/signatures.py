"""Verification of a bundle that came from elsewhere, and its signature."""

from __future__ import annotations

from pathlib import Path

from exporter.bundle import Bundle
from tinyqmoe.hub import bundle_place


def verify(bundle: str | Path, *, public_key: str | Path | None = None) -> Bundle:
    """A bundle all of whose files have the SHA-256 of its manifest.

    With `public_key`, a file in PEM, it also has a signature made with its private key, which is
    looked at first. Raises TinyQMoEError.
    """
    opened = Bundle.open(bundle_place(bundle))
    if public_key is not None:
        from exporter.bundle.signing import check_signature

        check_signature(opened, Path(public_key))
    opened.verify()
    return opened


def sign(bundle: str | Path, key: str | Path) -> Path:
    """Signs a bundle with an Ed25519 key, a file in PEM, and returns the file of the signature.

    The files of the bundle are verified first. Raises TinyQMoEError.
    """
    from exporter.bundle import signing

    return signing.sign(Bundle.open(bundle), Path(key))
