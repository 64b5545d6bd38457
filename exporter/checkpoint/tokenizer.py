"""The tokenizer of a checkpoint: read and tried by transformers, and what of it ships.

transformers is the authority on the ids of a prompt. Where its tokenizer differs from the
tokenizer.json beside the weights (truncation and padding left from training, a BOS token that only
tokenizer_config.json asks for), or where there is none (SentencePiece, vocab.json and merges.txt,
GGUF), its own is what ships: the plain tokenizers library then gives the same ids.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter import chat
from exporter.checkpoint.folder import SHIPPED_FILES, VOCABULARY_FILES
from exporter.checkpoint.gguf_header import write_metadata
from exporter.errors import CheckpointError
from exporter.guarded import guarded, nothing
from exporter.quiet import quiet

JSON = "tokenizer.json"
ASK = {"role": "user", "content": "What is a kite?"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@dataclass(frozen=True)
class TokenizerFacts:
    """What the rest of an export needs to know of a tokenizer.

    bos_token_id: the token that it puts in front of a plain prompt, or None. eos_token_id: its end
    token. json_bytes: the size of its tokenizer.json. ships_as_it_is: whether that of the folder is
    what transformers reads.
    """

    bos_token_id: int | None
    eos_token_id: int | None
    json_bytes: int
    ships_as_it_is: bool


def read_tokenizer(
    path: Path,
    config: dict[str, Any],
    vocab_size: int,
    warnings: list[str],
    meanwhile: Callable[[], None] = nothing,
) -> TokenizerFacts | None:
    """The tokenizer of a folder or GGUF file, tried on a prompt and on a conversation.

    It is None, with a note in `warnings`, where there is none. `config` is the model's config.json.
    All of it is done in a child process, so that a hostile one is an error as any other, and it
    takes seconds: `meanwhile` is called in this process.
    Raises CheckpointError for one that cannot be used.
    """
    if path.is_dir() and not any((path / name).is_file() for name in VOCABULARY_FILES):
        warnings.append("there is no tokenizer: `run` needs one, and so does an app")
        meanwhile()
        return None

    def read() -> dict[str, Any]:
        noted: list[str] = []
        try:
            return {"facts": asdict(_facts(path, config, vocab_size, noted)), "warnings": noted}
        except CheckpointError as error:
            return {"what": error.what, "hint": error.hint}

    try:
        answer = guarded(read, meanwhile=meanwhile)
    except ValueError as error:
        what = f"{path}: the tokenizer and its chat template cannot be read: {error}"
        raise CheckpointError(what, hint=_other_files(path)) from None
    if "what" in answer:
        raise CheckpointError(answer["what"], hint=answer["hint"])
    warnings += answer["warnings"]
    return TokenizerFacts(**answer["facts"])


def _facts(
    path: Path, config: dict[str, Any], vocab_size: int, warnings: list[str]
) -> TokenizerFacts:
    """What an export needs to know of a tokenizer. Raises CheckpointError, and what it likes."""
    try:
        tokenizer = _load(path, config)
        plain, special = tokenizer("A kite.").input_ids, tokenizer("").input_ids
    except Exception as error:  # transformers and tokenizers raise all kinds
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path}: the tokenizer cannot be read: {type(error).__name__}: {reason}",
            hint=_other_files(path),
        ) from error
    _check_ids(tokenizer, vocab_size, warnings)
    if tokenizer.chat_template:
        _check_chat(path, tokenizer, warnings)
    text = _plain_json(tokenizer)
    original = path / JSON
    same = path.is_dir() and original.is_file() and _same(original, text)
    size = original.stat().st_size if same else len(text.encode())
    bos = special[0] if special and plain[:1] == special[:1] else None
    return TokenizerFacts(bos, tokenizer.eos_token_id, size, same)


def _other_files(path: Path) -> str:
    """The next step where a tokenizer is of no use."""
    if path.is_dir():
        return "get its files again, or move them away to export without a tokenizer"
    return "give another GGUF file of the model, or its Hugging Face directory"


def write_tokenizer(
    path: Path, config: dict[str, Any], facts: TokenizerFacts | None, out: Path
) -> None:
    """Writes the tokenizer, chat template and generation config of a checkpoint into a folder."""
    if path.is_dir():
        for name in SHIPPED_FILES:
            if (path / name).is_file():
                shutil.copyfile(path / name, out / name)
    if facts is None or facts.ships_as_it_is:
        return
    tokenizer = _load(path, config)
    text = _plain_json(tokenizer)
    if not (out / JSON).is_file():
        with quiet():
            tokenizer.save_pretrained(out)
    (out / JSON).write_text(text, encoding="utf-8")


def _load(path: Path, config: dict[str, Any]) -> Any:
    """The tokenizer as transformers reads it.

    It chooses the class by the type of the model. Of the config it gets no more: it checks what is
    checked here already, by rules of its own. Of a GGUF file it gets the metadata: it refuses files
    with tensors of types that it does not know.
    """
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    failed = None
    with quiet():
        try:
            if path.is_file():
                with tempfile.TemporaryDirectory() as folder:
                    write_metadata(path, Path(folder) / path.name)
                    return PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=path.name)
            known = {k: config[k] for k in ("tokenizer_class",) if config.get(k)}
            kind = AutoConfig.for_model(config["model_type"], **known)
            return AutoTokenizer.from_pretrained(path, config=kind, local_files_only=True)
        except Exception as error:  # which `quiet` would show with all that was held back
            failed = error
    raise failed


def _plain_json(tokenizer: Any) -> str:
    """tokenizer.json without truncation and padding, which transformers resets for each prompt."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return str(backend.to_str(pretty=True))


def _same(file: Path, text: str) -> bool:
    """Whether a tokenizer.json is this text, but for its layout.

    Most are to the byte: then nothing is parsed, which takes 1.6 s for one of 128,256 tokens.
    """
    original = file.read_bytes()
    return original == text.encode() or bool(json.loads(original) == json.loads(text))


def _check_ids(tokenizer: Any, vocab_size: int, warnings: list[str]) -> None:
    """Notes tokens that the model has no row for."""
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= vocab_size}
    if beyond:
        first = min(beyond)
        warnings.append(
            f"tokens of the tokenizer that the model lacks: {len(beyond):,}, such as "
            f"{beyond[first]!r} ({first}); a prompt that holds one is refused"
        )


def _check_chat(path: Path, tokenizer: Any, warnings: list[str]) -> None:
    """Notes a template that needs a system message.

    Raises CheckpointError for one that renders no conversation.
    """

    def template(messages: list[dict[str, Any]]) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text)

    try:
        chat.render(template, [ASK])
        return
    except ValueError as error:
        reason = str(error)
    try:
        chat.render(template, [SYSTEM, ASK])
    except ValueError:
        raise CheckpointError(
            f"{path}: the chat template does not render: {reason}",
            hint="mend it, or remove it (chat_template.jinja, or chat_template in "
            "tokenizer_config.json) to export without chat",
        ) from None
    warnings.append(f"the chat template needs a system message ({reason}): give --system TEXT")
