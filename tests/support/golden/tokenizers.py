"""Tokenizers of every kind that apps read, and the ids that the library `tokenizers` gives:
tokenizer/."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.support.golden.numbers import uniform

DEMO = "../../exporter/demo/model/tokenizer.json"
N_MERGES = 150
# What merges are learned from. Written for this.
TEXT = (
    "The children flew their kite over the hills, and it didn't come down until 1234567 people "
    "had seen it. They're sure they've never had a better day; I'll say so too. Zwölf Böen über "
    "dem Müggelsee, äußerst kühl. \n\n    for i in range(10):\n        print(i * 2)\n日本語の凧。"
)
SPLIT_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_QWEN2 = SPLIT_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = (
    *("", " ", "a", "Hello world", " Hello", "Hello  world  ", "the kite didn't come down", "\n"),
    *(
        "\n\n\nx",
        "a\r\nb",
        "\ttab\t\tx ",
        "DON'T I'LL we've 'S '",
        "it'\u017f 'Re",
        "12345678 9 007",
    ),
    *(
        "3.14159, 1e-5",
        "x² ½ Ⅻ ٣٤",
        "é e\u0301 Å A\u030a ﬁ",
        "日本語のテキスト。",
        "🙂👩‍👩‍👧 🇩🇪 🙂🙂",
    ),
    *(
        "مرحبا بالعالم",
        "हिन्दी में",
        "한국어 \u1112\u1161\u11ab",
        "\x85\u3000\ufeff\xa0x\u2028y",
        "\x00\x01\x7f",
    ),
    *(
        "<|im_start|>user\nHi<|im_end|>",
        "a<|im_end|>b",
        "<|im_end|><|im_end|>",
        "<|im_end",
        "<|bos|>",
    ),
    *(
        "<think>so</think>",
        "<s>a</s>",
        "</s>",
        "<0x41>",
        "▁a ▁▁",
        "    for i in range(10):\n        pass",
    ),
    *(
        "https://example.org/a?b=c&d=%20",
        "a" * 40,
        "\\n {{x}} %s <b>",
        "Zwölf Böen",
        "  two  spaces  ",
    ),
)
WORDS = (
    *("Hello", " world", "'s", "don't", "DON'T ", "\n", "\r\n", "\t", "  ", "123", "4567 8", "é"),
    *("\x85", "\u3000", "日本", "🙂", "ü", "²", " <b>", "_", "kite", " the", "<|im_end|>", "</s>"),
)
N_MIXED = 20


def texts() -> list[str]:
    """TEXTS, and mixtures of WORDS."""
    mixed = []
    for i in range(N_MIXED):
        draws = uniform(500 + i, 10)
        n = 2 + int(draws[0] * 8)
        mixed.append("".join(WORDS[int(d * len(WORDS))] for d in draws[1 : 1 + n]))
    return [*TEXTS, *mixed]


def byte_characters() -> list[str]:
    """The character of GPT-2's vocabulary for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + i) for i in range(256))
    return [chr(b) if b in kept else next(others) for b in range(256)]


def learn_merges(words: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """The most frequent pair, of equals the first in order, N_MERGES times."""
    parts = [list(word) for word in words]
    merges = []
    for _ in range(N_MERGES):
        pairs = Counter(pair for word in parts for pair in itertools.pairwise(word))
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(pair)
        parts = [merged(word, pair) for word in parts]
    return merges


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """A word in which the pair is joined, from the left."""
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def added(ids: Iterable[tuple[int, str, bool]]) -> list[dict[str, Any]]:
    """Entries of `added_tokens`: id, text, whether it is a control token."""
    return [
        {
            "id": id_,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for id_, content, special in ids
    ]


def bpe(vocab: Sequence[str], merges: Sequence[tuple[str, str]], **options: Any) -> dict[str, Any]:
    """The model of a tokenizer.json."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": {token: i for i, token in enumerate(vocab)},
        "merges": [" ".join(pair) for pair in merges],
    }


def byte_level(
    pre_tokenizers: list[dict[str, Any]], extra: Sequence[tuple[str, bool]] = (), **options: Any
) -> dict[str, Any]:
    """A tokenizer.json of bytes. extra: more added tokens, and whether they are control tokens."""
    characters = byte_characters()
    spaced = TEXT.replace(" ", "\0 ").split("\0")
    words = [[characters[b] for b in word.encode()] for word in spaced]
    merges = learn_merges(words)
    vocab = [*sorted(characters), *dict.fromkeys("".join(pair) for pair in merges)]
    tokens = [("<|bos|>", True), ("<|im_start|>", True), ("<|im_end|>", True), *extra]
    one = pre_tokenizers[0]
    normalizer = options.pop("normalizer", None)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added((len(vocab) + i, *token) for i, token in enumerate(tokens)),
        "normalizer": normalizer,
        "pre_tokenizer": one
        if len(pre_tokenizers) == 1
        else {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": None,
        "decoder": _bytes(add_prefix_space=True, use_regex=True),
        "model": bpe(vocab, merges, **options),
    }


def characters_level(normalizer: Any, pre_tokenizer: Any, **options: Any) -> dict[str, Any]:
    """A tokenizer.json of characters, where a byte stands for what the vocabulary lacks."""
    words = ["▁" + word for word in TEXT.replace("\n", " ").split(" ") if word]
    merges = learn_merges(words)
    known = sorted({c for word in words for c in word if c < "\u3000"})
    control = ["<unk>", "<s>", "</s>"]
    usable = [pair for pair in merges if all(c in known for part in pair for c in part)]
    joined = dict.fromkeys("".join(pair) for pair in usable)
    vocab = [*control, *(f"<0x{b:02X}>" for b in range(256)), *joined, *known]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added((i, token, True) for i, token in enumerate(control)),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": bpe(
            vocab, usable, unk_token="<unk>", fuse_unk=True, byte_fallback=True, **options
        ),
    }


def _bytes(*, add_prefix_space: bool = False, use_regex: bool) -> dict[str, Any]:
    """The step of GPT-2, as pre-tokenizer and as decoder."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def descriptions() -> dict[str, dict[str, Any]]:
    """A tokenizer.json of each kind, by name."""
    prepend = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    trim = {"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""}
    single = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    think = (("<think>", False), ("</think>", False))
    return {
        "gpt2": byte_level([_bytes(use_regex=True)]),
        "llama3": byte_level([_split(SPLIT_LLAMA3), _bytes(use_regex=False)], ignore_merges=True),
        "qwen2": byte_level(
            [_split(SPLIT_QWEN2), _bytes(use_regex=False)], think, normalizer={"type": "NFC"}
        ),
        "smollm2": byte_level(
            [{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)]
        ),
        "llama2": characters_level({"type": "Sequence", "normalizers": [prepend, spaces]}, None),
        "mistral": characters_level(None, metaspace),
        "metaspace_split": characters_level(
            None, metaspace | {"prepend_scheme": "always", "split": True}
        ),
        "trimmed": characters_level(
            {"type": "Sequence", "normalizers": [trim, single, prepend, spaces]}, None
        ),
    }


# Changes that make a tokenizer unknown: the file, the path of the member, its value, and a word
# that a refusal must name.
REFUSED: tuple[tuple[str, list[str | int], Any, str], ...] = (
    ("gpt2", ["model", "type"], "Unigram", "Unigram"),
    ("gpt2", ["model", "dropout"], 0.1, "dropout"),
    ("gpt2", ["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"),
    ("gpt2", ["normalizer"], {"type": "Lowercase"}, "Lowercase"),
    ("gpt2", ["pre_tokenizer"], {"type": "Whitespace"}, "Whitespace"),
    ("gpt2", ["pre_tokenizer", "add_prefix_space"], True, "add_prefix_space"),
    ("gpt2", ["decoder"], {"type": "WordPiece"}, "WordPiece"),
    ("gpt2", ["added_tokens", 0, "rstrip"], True, "<|bos|>"),
    ("llama3", ["pre_tokenizer", "pretokenizers", 0, "behavior"], "Removed", "Removed"),
    ("llama2", ["model", "byte_fallback"], False, "byte_fallback"),
    ("mistral", ["decoder", "decoders", 1], {"type": "Metaspace"}, "Metaspace"),
)


def vectors(folder: Path) -> dict[str, Any]:
    """What tokenizer/vectors.json holds; the tokenizers lie in `folder`."""
    from tokenizers import Tokenizer

    found = []
    files = {"demo": DEMO, **{name: f"tokenizer/{name}.json" for name in descriptions()}}
    for name, file in files.items():
        path = (Path(__file__).parents[2] / "golden" if name == "demo" else folder) / file
        tokenizer = Tokenizer.from_file(str(path))
        entry: dict[str, Any] = {"name": name, "file": file}
        for member, typed in (("ids", True), ("control_ids", False)):
            tokenizer.encode_special_tokens = typed
            entry[member] = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts()]
        entry["decoded"] = [tokenizer.decode(ids) for ids in entry["ids"]]
        found.append(entry)
    refused = [
        {"file": f"tokenizer/{name}.json", "path": path, "value": value, "names": names}
        for name, path, value, names in REFUSED
    ]
    return {"texts": texts(), "tokenizers": found, "refused": refused}


def make_tokenizers(out: Path) -> None:
    """The folder tokenizer/."""
    (out / "tokenizer").mkdir()
    for name, description in descriptions().items():
        path = out / "tokenizer" / f"{name}.json"
        path.write_text(json.dumps(description, ensure_ascii=False) + "\n", "utf-8")
    text = json.dumps(vectors(out), ensure_ascii=True, separators=(",", ":"))
    # A line a tokenizer, so that a change can be read.
    text = text.replace('{"name":', '\n{"name":').replace('"refused":', '\n"refused":\n')
    (out / "tokenizer" / "vectors.json").write_text(text + "\n", "ascii")
