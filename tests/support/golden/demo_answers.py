"""What the demo model must answer: demo.json. It takes an export of `exporter/demo/model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from exporter.bundle import Bundle, logits_sha256
from exporter.session import Session
from runtime_ref.answers import load_reference

SCHEME, CONTEXT = "int8", 128
QUESTION = "What is the kite's name?"
N_NEW_TOKENS = 24


def greedy(session: Session, prompt: list[int], n: int) -> dict[str, Any]:
    """Greedy tokens after a prompt, with the digest of all their logits float32 [n, V]."""
    session.trim(0)
    rows = [session.feed(prompt)]
    tokens = [int(rows[0].argmax())]
    for _ in range(n - 1):
        rows.append(session.feed(tokens[-1:]))
        tokens.append(int(np.argmax(rows[-1])))
    digest = logits_sha256(row.data for row in rows)
    return {"prompt": prompt, "tokens": tokens, "sha256": digest.hex()}


def answers(bundle: Bundle, question: list[int]) -> dict[str, Any]:
    """What demo.json holds, of a bundle made with SCHEME and CONTEXT. question: QUESTION as ids."""
    session = Session(bundle.path, 1, 128)
    reference = [
        {"prompt": a.prompt, "tokens": a.tokens, "sha256": a.sha256.hex()}
        for a in load_reference(bundle, bundle.artifact("pte"))
        if a.sha256 is not None
    ]
    chat = {"question": QUESTION, **greedy(session, question, N_NEW_TOKENS)}
    session.close()
    return {"scheme": SCHEME, "context": CONTEXT, "reference": reference, "chat": chat}


def as_json(found: dict[str, Any]) -> str:
    """The text of demo.json."""
    return json.dumps(found).replace(' {"', '\n{"') + "\n"


if __name__ == "__main__":
    import tempfile

    from exporter.quant.config import QuantConfig
    from runtime_ref.prompts import PromptEncoder
    from tests.support.bundles import export
    from tests.support.paths import GOLDEN, ROOT

    with tempfile.TemporaryDirectory() as folder:
        model, out = ROOT / "exporter" / "demo" / "model", Path(folder) / "demo"
        made = export(model, out, QuantConfig(scheme=SCHEME), context=CONTEXT)
        ids = PromptEncoder(made).chat([{"role": "user", "content": QUESTION}])
        (GOLDEN / "demo.json").write_text(as_json(answers(made, ids)), "ascii")
