"""Signatures of bundles, made and checked; the keys are openssl's where it is there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tinyqmoe as library
from exporter.bundle import PROGRAM, SIGNATURE, Bundle, signing
from exporter.errors import BundleError, UsageError
from tests.support.bundles import edit_manifest, write_small_bundle
from tests.support.command_line import one_error, strict_json, tinyqmoe

pytest.importorskip("cryptography", reason="NOT TESTED: the extra `sign` is not installed")


def write_keys(folder: Path) -> tuple[Path, Path]:
    """A private and a public key in PEM, made by the documented commands."""
    if not shutil.which("openssl"):
        pytest.skip("NOT TESTED: there is no openssl to make keys with")
    folder.mkdir()
    for command in (signing.MAKE_KEY, signing.TAKE_PUBLIC_KEY):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=60)
    return folder / "key.pem", folder / "public.pem"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "keys")


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return write_small_bundle(tmp_path / "small")


def test_a_signed_bundle_is_known_by_its_key(small: Bundle, keys: tuple[Path, Path]) -> None:
    file = library.sign(small.path, keys[0])
    assert file == small.path / SIGNATURE
    opened = library.verify(small.path, public_key=keys[1])
    assert opened.foreign_files == []
    library.sign(small.path, keys[0])  # again: the old one is replaced
    library.verify(small.path, public_key=keys[1])


def test_openssl_accepts_the_signature(
    small: Bundle, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Apps check it by the words of docs/security.md, without this tool."""
    signature = bytes.fromhex(library.sign(small.path, keys[0]).read_text())
    digest = json.loads((small.path / "manifest.json").read_text())["sha256"]
    (tmp_path / "message").write_text(f"tinyqmoe bundle {digest}")
    (tmp_path / "signature").write_bytes(signature)
    command = f"openssl pkeyutl -verify -pubin -inkey {keys[1]} -rawin -in message"
    command += " -sigfile signature"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_another_key_is_refused(small: Bundle, keys: tuple[Path, Path], tmp_path: Path) -> None:
    library.sign(small.path, write_keys(tmp_path / "others")[0])
    with pytest.raises(BundleError, match="was not signed with the key"):
        library.verify(small.path, public_key=keys[1])


def test_no_signature_is_refused(small: Bundle, keys: tuple[Path, Path]) -> None:
    library.verify(small.path)
    with pytest.raises(BundleError, match="is not signed"):
        library.verify(small.path, public_key=keys[1])


@pytest.mark.parametrize("text", ["", "zz", "00" * 64, "é"])
def test_what_is_no_signature_is_refused(small: Bundle, keys: tuple[Path, Path], text: str) -> None:
    (small.path / SIGNATURE).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="was not signed with the key"):
        library.verify(small.path, public_key=keys[1])


def test_a_changed_manifest_is_refused(small: Bundle, keys: tuple[Path, Path]) -> None:
    library.sign(small.path, keys[0])
    edit_manifest(small.path, lambda raw: raw["model"].update(name="better"))
    Bundle.open(small.path).verify()
    with pytest.raises(BundleError, match="or changed since"):
        library.verify(small.path, public_key=keys[1])


def test_a_changed_file_is_refused(small: Bundle, keys: tuple[Path, Path]) -> None:
    library.sign(small.path, keys[0])
    (small.path / PROGRAM).write_bytes(bytes(b"x" * small.manifest.files[0].n_bytes))
    with pytest.raises(BundleError, match="is damaged"):
        library.verify(small.path, public_key=keys[1])
    with pytest.raises(BundleError, match="is damaged"):
        library.sign(small.path, keys[0])


def test_what_is_no_key_is_refused(small: Bundle, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    with pytest.raises(UsageError, match="no private key") as caught:
        library.sign(small.path, public)
    assert signing.MAKE_KEY in caught.value.hint
    library.sign(small.path, private)
    with pytest.raises(UsageError, match="no public key"):
        library.verify(small.path, public_key=private)
    rsa = ["openssl", "genpkey", "-algorithm", "rsa", "-out", tmp_path / "rsa.pem"]
    subprocess.run(rsa, check=True, capture_output=True, timeout=120)
    with pytest.raises(UsageError, match="no Ed25519 key"):
        library.sign(small.path, tmp_path / "rsa.pem")


def document(*arguments: str | Path) -> Any:
    return strict_json(tinyqmoe(*arguments, "--json", "-").stdout)


def test_the_commands(small: Bundle, keys: tuple[Path, Path]) -> None:
    assert document("sign", small.path, "--key", keys[0])["signature"].endswith(SIGNATURE)
    found = document("verify", small.path, "--pubkey", keys[1])
    assert (found["files"], found["signed"], found["foreign"]) == (3, True, [])
    assert "who made it was not checked" in tinyqmoe("verify", small.path).output
    (small.path / SIGNATURE).unlink()
    refused = tinyqmoe("verify", small.path, "--pubkey", keys[1])
    assert "is not signed" in one_error(refused, 3)
