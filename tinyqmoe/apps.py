"""What an app needs besides a bundle, and whether a bundle is fit for one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tinyqmoe.devices import fit
from tinyqmoe.packages import ALL, open_bundle

if TYPE_CHECKING:
    from exporter.apps.files import AppFiles, Platform
    from exporter.bundle import Artifact, Bundle
    from runtime_ref.doctor import Finding

EXPORT_AGAIN = "export the model again with --target android or both"


def app_files(bundle: Bundle | str | Path, platform: Platform, out: str | Path) -> AppFiles:
    """The sources, snippets, settings and file list that an app on a platform adds, at `out`.

    `platform` is "ios" or "android"; `out` must be absent or empty. Raises TinyQMoEError.
    """
    from exporter.apps.files import PLATFORMS, write_app_files
    from exporter.errors import UsageError

    if platform not in PLATFORMS:
        what = f"platform {platform!r} is unknown"
        raise UsageError(what, hint=f"give {' or '.join(PLATFORMS)}")
    return write_app_files(open_bundle(bundle), platform, Path(out))


def examine_bundle(path: str | Path) -> list[Finding]:
    """Findings about everything in a bundle that an app needs; what cannot be told is left out.

    Its files, its C++ sources, its chat format, a session over it, and the phones that it fits.
    """
    from runtime_ref.doctor import attempt

    opened: list[Bundle] = []
    again = "copy the bundle again, or export again"
    findings = [attempt("files", lambda: _files(Path(path), opened), again)]
    if not opened:
        return findings
    (bundle,) = opened
    return [
        *findings,
        attempt("C++ sources", lambda: _sources(bundle), again),
        _chat(bundle),
        attempt("session", lambda: _session(bundle, _package(bundle)), EXPORT_AGAIN),
        attempt("phones", lambda: _phones(bundle, _package(bundle)), EXPORT_AGAIN),
    ]


def _files(path: Path, opened: list[Bundle]) -> str:
    """Number and size of the files, whose SHA-256 are those of the manifest."""
    bundle = open_bundle(path)
    opened.append(bundle)
    return f"{len(bundle.manifest.files)} files, {bundle.size_bytes / 1e6:,.1f} MB, all as exported"


def _sources(bundle: Bundle) -> Finding | str:
    """Version of the C++ sources in the bundle, against that of this tool."""
    from exporter.codec.native import ABI_VERSION
    from runtime_ref.doctor import Finding

    header = bundle.path / "native/include/tinyqmoe/tinyqmoe.h"
    if not header.is_file():
        return f"none in the bundle; `tinyqmoe app-files` writes those of ABI version {ABI_VERSION}"
    found = re.search(r"TINYQMOE_ABI_VERSION (\d+)", header.read_text(encoding="utf-8"))
    version = int(found[1]) if found else None
    text = f"ABI version {version} (wanted: {ABI_VERSION})"
    return Finding("C++ sources", version == ABI_VERSION, text, "export with --with-native again")


def _chat(bundle: Bundle) -> Finding:
    """Finding about the chat format, without which an app offers plain completion."""
    from runtime_ref.doctor import Finding

    chat = bundle.manifest.chat
    do = "offer plain completion, or export from a checkpoint whose template derives (docs/chat.md)"
    return Finding(
        "chat format", bool(chat.strings), chat.problem or "derived from the template", do
    )


def _package(bundle: Bundle) -> Artifact:
    """The package that a session runs. Raises UsageError."""
    from runtime_ref.native.package import native_package

    return native_package(bundle.manifest)


def _session(bundle: Bundle, package: Artifact) -> str:
    """Memory of a session that is opened and computes a token. Raises TinyQMoEError."""
    from exporter.session import Session

    session = Session(bundle.path, 1, package.prefill_tokens)
    session.feed([0])
    state = session.state()
    session.close()
    return (
        f"opens and computes: {state.context} positions, "
        f"{(state.kv_cache_bytes + state.buffer_bytes) / 1e6:,.1f} MB of its own, "
        f"{state.mapped_bytes / 1e6:,.1f} MB mapped"
    )


def _phones(bundle: Bundle, package: Artifact) -> Finding:
    """Finding about the phones whose limits the session is predicted to keep."""
    from runtime_ref.doctor import Finding

    verdicts = fit(bundle, devices=ALL, backends=package.backend)
    others = [f"{v.device}: {'; '.join(v.problems)}" for v in verdicts if not v.fits]
    found = f"fits {len(verdicts) - len(others)} of {len(verdicts)}"
    do = "export with fewer bits or a shorter --context; `tinyqmoe fit` shows what takes the memory"
    return Finding("phones", len(others) < len(verdicts), "\n".join([found, *others]), do)
