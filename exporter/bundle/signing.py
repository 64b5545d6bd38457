"""Signatures of bundles: who made one, by a key that whoever checks it already has.

The digest in a manifest covers the manifest, and through the SHA-256 of its files the whole bundle.
A signature is Ed25519 over the line

    tinyqmoe bundle HEX_DIGITS_OF_THE_DIGEST

without an end of line, and stands in `manifest.sig` as 128 hex digits and an end of line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.bundle.directory import Bundle
from exporter.bundle.entries import SIGNATURE
from exporter.bundle.sealing import digest_of
from exporter.errors import BundleError, UsageError, require_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNED = "tinyqmoe bundle {}"
MAKE_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"
TAKE_PUBLIC_KEY = "openssl pkey -in key.pem -pubout -out public.pem"


def sign(bundle: Bundle, key: Path) -> Path:
    """Signs a bundle with a private key, in PEM; the file of the signature, which is replaced.

    The files of the bundle are verified first: no damage is signed. Raises BundleError, UsageError,
    MissingComponentError.
    """
    require_extra("sign", ("cryptography",), "a signature")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        what = f"{key} is no private key in PEM without a password: {error}"
        raise UsageError(what, hint=f"make one: {MAKE_KEY}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(f"{key} is no Ed25519 key", hint=f"make one: {MAKE_KEY}")
    bundle.verify()
    file = bundle.path / SIGNATURE
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(private.sign(_message(bundle)).hex() + "\n", encoding="ascii")
    os.replace(temporary, file)
    return file


def check_signature(bundle: Bundle, public_key: Path) -> None:
    """Checks that a bundle was signed with the private key of this public one, in PEM.

    It says nothing of the files: `Bundle.verify` does. Raises BundleError, UsageError,
    MissingComponentError.
    """
    key = _public_key(public_key)
    from cryptography.exceptions import InvalidSignature

    file = bundle.path / SIGNATURE
    if not file.is_file() or file.is_symlink():
        what = f"{bundle.path} is not signed: it has no {SIGNATURE}"
        raise BundleError(what, hint="ask who made it to sign it: tinyqmoe sign BUNDLE --key KEY")
    try:
        key.verify(bytes.fromhex(file.read_text(encoding="ascii").strip()), _message(bundle))
    except (ValueError, InvalidSignature):
        what = f"{bundle.path} was not signed with the key of {public_key}, or changed since"
        raise BundleError(what, hint="get it from its maker again, and do not use it") from None


def _public_key(file: Path) -> Ed25519PublicKey:
    require_extra("sign", ("cryptography",), "a signature")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except (ValueError, TypeError) as error:
        what = f"{file} is no public key in PEM: {error}"
        raise UsageError(what, hint=f"take it from a private one: {TAKE_PUBLIC_KEY}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{file} is no Ed25519 key", hint=f"make one: {MAKE_KEY}")
    return key


def _message(bundle: Bundle) -> bytes:
    return SIGNED.format(digest_of(bundle.manifest.to_json())).encode()
