"""The text of a manifest: JSON that holds the digest of its own content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

DIGEST = "sha256"  # the field of the manifest that holds the digest of all others


def sealed(content: dict[str, Any]) -> str:
    """The text of a manifest: its content, and under DIGEST the digest of that."""
    whole = content | {DIGEST: digest(content)}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def digest(content: dict[str, Any]) -> str:
    """SHA-256 in hex digits of a JSON object, whatever its layout and the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of(text: str) -> str:
    """The digest that stands in the text of a manifest."""
    return str(json.loads(text)[DIGEST])
