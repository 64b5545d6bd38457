"""web_demo: its tokenizer, chat format and conversations in node, and the page in a browser."""

from __future__ import annotations

import json
import queue
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from exporter.bundle import Bundle, logits_sha256
from exporter.quant.config import QuantConfig
from exporter.session import Session
from tests.support import wasm
from tests.support.bundles import export
from tests.support.layer_tests import run
from tests.support.paths import DATA, GOLDEN, ROOT

pytestmark = wasm.needed

HERE = Path(__file__).parent
CONTEXT = 96
QUESTIONS = ["What is the kite's name?", " Tell me more. "]
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
WORDS = [
    *("Hello", " world", "'s", "'S", "don't", "DON'T ", "\n", "\r\n", "\t", "  ", "123", "4567 8"),
    *("\x85", "\u3000", "\ufeff", "é", "日本語", "🙂", "مرحبا", "\u017f", "ª", "²", "Ⅻ"),
    *(" <b>", "\\n", "{{x}}", "<|end|>", "<|user|>", "<|begin_of_text|>", "<|im_end|>"),
]


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what is posted."""

    results: queue.Queue[Any] = queue.Queue()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.results.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(
        ROOT / "exporter" / "demo" / "model",
        tmp_path_factory.mktemp("demo") / "bundle",
        QuantConfig(scheme="int8"),
        context=CONTEXT,
    )


@pytest.fixture(scope="module")
def site(wasm_build: Path, demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as web_demo/README.md makes it, with a bundle."""
    folder = tmp_path_factory.mktemp("site")
    for file in (
        *(ROOT / "web_demo").iterdir(),
        *wasm_build.glob("*.mjs"),
        HERE / "browser_page.html",
    ):
        shutil.copy(file, folder)
    shutil.copy(wasm_build / "tinyqmoe.wasm", folder)
    (folder / "bundle").symlink_to(demo.path)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Address of the served site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(site: Path, folder: Path, **request: Any) -> Any:
    """The answer of tests/native/web_demo.mjs."""
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    return json.loads(run(wasm.node(), HERE / "web_demo.mjs", site, path))


def typed(tokenizer: Tokenizer, text: str, control: bool) -> list[int]:
    """Ids of a text, in which names of control tokens are such tokens or plain text."""
    tokenizer.encode_special_tokens = not control
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


# ---- in node ----


def digits_and_words() -> Tokenizer:
    """A tokenizer of the form that SmolLM2 has."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(ROOT / "README.md").read_text(encoding="utf-8")], trainer)
    return tokenizer


@pytest.mark.parametrize("name", ["demo", "digits", "llama3"])
def test_a_text_has_the_ids_of_the_library(
    name: str, demo: Bundle, site: Path, tmp_path: Path
) -> None:
    file = {
        "demo": demo.file("tokenizer.json"),
        "llama3": DATA / "llama3_tokenizer" / "tokenizer.json",
        "digits": tmp_path / "tokenizer.json",
    }[name]
    if name == "digits":
        digits_and_words().save(str(file))
    if not file.is_file():
        pytest.skip(f"NO {file}: not tested")
    rng = random.Random(3)
    texts = ["", "a", *("".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(400))]
    tokenizer = Tokenizer.from_file(str(file))
    description = json.loads(file.read_text(encoding="utf-8"))
    answer = ask(site, tmp_path, part="tokenize", json=description, texts=texts)["answer"]
    for text, got in zip(texts, answer, strict=True):
        assert got["ids"] == typed(tokenizer, text, control=False)
        assert got["control"] == typed(tokenizer, text, control=True)
        assert got["decoded"] == text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"normalizer": {"type": "NFC"}}, "byte-level BPE"),
        ({"decoder": None}, "byte-level BPE"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
    ],
)
def test_another_tokenizer_is_refused(
    change: dict[str, Any], word: str, demo: Bundle, site: Path, tmp_path: Path
) -> None:
    description = json.loads(demo.file("tokenizer.json").read_text(encoding="utf-8")) | change
    assert word in ask(site, tmp_path, part="tokenize", json=description, texts=["a"])["error"]


def test_a_conversation_is_what_the_template_renders(site: Path, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "chat.json").read_text(encoding="utf-8"))
    answer = ask(site, tmp_path, part="render", **golden)["answer"]
    expected = [[r["text"] for r in template["renderings"]] for template in golden["templates"]]
    assert answer == expected


def native_answers(demo: Bundle, questions: list[str]) -> list[str]:
    """The greedy answers of a native session to the questions of one conversation."""
    tokenizer = Tokenizer.from_file(str(demo.file("tokenizer.json")))
    chat, ends = demo.manifest.chat, demo.manifest.interface.eos_token_ids
    session = Session(demo.path, 1, 128)
    before, answers = "without_system", []
    for question in questions:
        tokens = typed(tokenizer, chat.strings[before], control=True)
        tokens += typed(tokenizer, question.strip(), control=False)
        tokens += typed(tokenizer, chat.strings["generation"], control=True)
        answer: list[int] = []
        best = int(session.feed(tokens).argmax())
        while best not in ends:
            answer.append(best)
            if session.state().n_positions == CONTEXT:
                break
            best = int(session.feed([best]).argmax())
        answers.append(tokenizer.decode(answer))
        before = "assistant_to_user"
    return answers


def test_a_conversation_has_the_answers_of_a_native_session(
    demo: Bundle, site: Path, address: str, tmp_path: Path
) -> None:
    assert demo.manifest.chat.trims == ["user", "assistant"]
    conversation = {"address": f"{address}/bundle/", "questions": QUESTIONS}
    answer = ask(site, tmp_path, part="converse", **conversation)["answer"]
    assert answer["heard"] == [demo.file("model.pte").stat().st_size] * 2
    assert [a["text"] for a in answer["answers"]] == native_answers(demo, QUESTIONS)


def test_what_a_conversation_refuses(
    demo: Bundle, site: Path, address: str, tmp_path: Path
) -> None:
    """A bundle that is not there, one without what it needs, and a question without room."""

    def error(where: str, question: str = "a") -> str:
        conversation = {"address": f"{address}/{where}", "questions": [question]}
        return str(ask(site, tmp_path, part="converse", **conversation).get("error"))

    assert "nothing/manifest.json: HTTP 404" in error("nothing")
    assert f"the context of {CONTEXT} tokens is full" in error("bundle", "one two " * CONTEXT)
    manifest = json.loads(demo.file("manifest.json").read_text(encoding="utf-8"))
    changes: dict[str, dict[str, Any]] = {
        "does not chat": {"chat": asdict(demo.manifest.chat) | {"strings": {}}},
        "--target android": {"artifacts": []},
        "the manifest says 1": {"files": [f | {"n_bytes": 1} for f in manifest["files"]]},
    }
    for word, change in changes.items():
        wrong = tmp_path / "wrong"
        shutil.copytree(demo.path, wrong)
        (wrong / "manifest.json").write_text(json.dumps(manifest | change))
        (site / "wrong").symlink_to(wrong)
        assert word in error("wrong")
        (site / "wrong").unlink()
        shutil.rmtree(wrong)


@pytest.mark.parametrize("name", ["model.pte", "tokenizer.json"])
def test_a_file_that_was_changed_is_refused(
    name: str, demo: Bundle, site: Path, address: str, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(demo.path, changed)
    content = bytearray((changed / name).read_bytes())
    content[-1] ^= 1
    (changed / name).write_bytes(content)
    (site / "changed").symlink_to(changed)
    request = {"address": f"{address}/changed", "questions": ["a"]}
    answer = ask(site, tmp_path, part="converse", **request)
    (site / "changed").unlink()
    assert f"{name} has been changed: its SHA-256" in answer["error"]


# ---- in a browser ----


@pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: the page was not opened")
def test_the_page_chats_with_the_bits_of_this_machine(
    demo: Bundle, site: Path, address: str, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    calls = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]
    request = {"address": f"{address}/bundle/", "questions": QUESTIONS, "calls": calls}
    (site / "request.json").write_text(json.dumps(request))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    page = f"{address}/browser_page.html"
    browser = subprocess.Popen(
        [CHROMIUM, *flags, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        result = Handler.results.get(timeout=300)
    finally:
        browser.kill()
        browser.wait()
    assert "error" not in result
    native = Session(demo.path, 1, 128)
    assert result["sha256"] == logits_sha256(native.feed(tokens).data for tokens in calls).hex()
    assert result["answers"] == native_answers(demo, QUESTIONS)
