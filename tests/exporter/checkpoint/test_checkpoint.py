"""exporter.checkpoint: what it reads, and one test for everything it refuses."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint import tensors
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import CheckpointError, OutOfSpaceError
from tests.support.checkpoints import copy, edit_config, write_llama
from tests.support.gguf_files import write_gguf
from tests.support.paths import DATA

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tied") / "model", tokenizer=True, vocab_size=260)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("sharded") / "model", shards=3)


@pytest.fixture
def damaged(tied: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return copy(tied, tmp_path / "model")


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()}, directory / "model.safetensors"
    )


def edit_header(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON header and leave the data as it is."""
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def refusal(directory: Path | str, *messages: str) -> CheckpointError:
    """The error of `open`; asserts that each message is in it."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    for message in messages:
        assert message in str(caught.value)
    return caught.value


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_what_was_written(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    write_llama(tmp_path, dtype=dtype, shards=shards, tie_word_embeddings=False)
    checkpoint = Checkpoint.open(str(tmp_path))
    written: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        written |= load_file(file)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards > 1)
    assert set(checkpoint.names) == set(written)
    for name, tensor in written.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.entries[name].dtype == NAMES[dtype]
        rows = checkpoint.vector(name) if tensor.ndim == 1 else checkpoint.rows(name, 1, 5)
        assert rows.dtype == torch.float32
        assert torch.equal(rows, (tensor if tensor.ndim == 1 else tensor[1:5]).float())
    assert checkpoint.parameters == sum(t.numel() for t in written.values())
    assert checkpoint.source_bytes == sum(t.nbytes for t in written.values())


def test_blocks_cover_a_tensor(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BLOCK_WEIGHTS", 48 * 7)
    checkpoint = Checkpoint.open(tied)
    blocks = list(checkpoint.blocks(EMBEDDING))
    assert [begin for begin, _ in blocks] == list(range(0, 260, 7))
    assert torch.equal(torch.cat([b for _, b in blocks]), checkpoint.rows(EMBEDDING, 0, 260))
    assert checkpoint.rows(EMBEDDING, 4, 4).shape == (0, 48)
    with pytest.raises(IndexError):
        checkpoint.rows(EMBEDDING, 259, 261)


def test_names_are_in_the_order_of_the_network(sharded: Path) -> None:
    names = Checkpoint.open(sharded).names
    assert names[0] == EMBEDDING
    assert names[-1] == "model.norm.weight"
    assert names[1:3] == ("model.layers.0.input_layernorm.weight", Q_PROJ)


def test_text_files_are_those_that_exist(tied: Path, sharded: Path) -> None:
    sizes = Checkpoint.open(tied).text_files
    assert list(sizes) == ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    assert sizes["tokenizer.json"] == (tied / "tokenizer.json").stat().st_size
    assert list(Checkpoint.open(sharded).text_files) == ["generation_config.json"]


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, (2, 257)),
        ({}, (2, 257)),
        ({"eos_token_id": []}, (2, 257)),
        ({"eos_token_id": 5}, (5, 257)),
        ({"eos_token_id": [257, 6]}, (257, 6)),
        ({"eos_token_id": [5, 999]}, (5, 257)),
    ],
)
def test_end_tokens_are_the_generation_config_s_or_the_config_s_and_the_tokenizer_s(
    damaged: Path, generation: Any, expected: tuple[int, ...]
) -> None:
    file = damaged / "generation_config.json"
    file.unlink() if generation is None else file.write_text(json.dumps(generation))
    assert Checkpoint.open(damaged).eos_token_ids == expected


def test_rope_spelling_of_transformers_4(damaged: Path) -> None:
    before = Checkpoint.open(damaged).config
    edit_config(damaged, remove=("rope_parameters",), rope_theta=10000.0, rope_scaling=None)
    assert Checkpoint.open(damaged).config == before


def test_harmless_extras_are_ignored(damaged: Path) -> None:
    before = Checkpoint.open(damaged).names
    edit_tensors(
        damaged, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    )
    edit_tensors(damaged, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    assert Checkpoint.open(damaged).names == before


def test_cache_snapshots_of_links_open(tied: Path, tmp_path: Path) -> None:
    for file in tied.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert Checkpoint.open(tmp_path).names == Checkpoint.open(tied).names


@pytest.mark.skipif(
    not (DATA / "hf-stories260K").is_dir(), reason=f"EXTRA CHECK NOT RUN: no {DATA}/hf-stories260K"
)
def test_real_checkpoint() -> None:
    checkpoint = Checkpoint.open(DATA / "hf-stories260K")
    assert (len(checkpoint.names), checkpoint.parameters) == (47, 260_032)
    checkpoint.check_finite()


# ---- finite --------------------------------------------------------------------------------------


def test_check_finite_counts_everything_at_once(damaged: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q_PROJ][3, 1:4] = float("nan")
        tensors[Q_PROJ][40, 0] = float("inf")
        tensors["model.norm.weight"][0] = float("-inf")

    edit_tensors(damaged, poison)
    seen: list[tuple[str, int, int]] = []
    checkpoint = Checkpoint.open(damaged)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_finite(lambda *step: seen.append(step))
    assert caught.value.problems == [
        f"{Q_PROJ}: 3 NaN, 1 infinite of 2304 weights",
        "model.norm.weight: 0 NaN, 1 infinite of 48 weights",
    ]
    assert [stage for stage, _, _ in seen] == ["check weights"] * len(checkpoint.names)
    assert seen[-1][1:] == (checkpoint.parameters, checkpoint.parameters)


def test_check_finite_passes(sharded: Path) -> None:
    Checkpoint.open(sharded).check_finite()


# ---- refusals: directories -----------------------------------------------------------------------


def test_empty_directory(tmp_path: Path) -> None:
    refusal(tmp_path, "neither model.safetensors nor", "found nothing", "give a directory")


def test_path_is_a_file(tied: Path) -> None:
    refusal(tied / "config.json", "is a file", "give the directory")


@pytest.mark.parametrize(
    "path", ["./nowhere", "/nowhere/at/all", "a/b/c", "~nosuchuser/x", "", "a b", "../x"]
)
def test_path_that_is_no_hub_id(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    refusal(path or "/nowhere/", "there is no directory")


def test_missing_path_object_never_asks_the_hub() -> None:
    refusal(Path("owner/name"), "there is no directory owner/name")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "save_pretrained"),
        ("consolidated.00.pth", "save_pretrained"),
        ("other.safetensors", "found config.json"),
    ],
)
def test_other_weight_formats(damaged: Path, file: str, message: str) -> None:
    (damaged / "model.safetensors").rename(damaged / file)
    refusal(damaged, message)


@pytest.mark.parametrize(
    "text", ["{", "", "[1]", "[" * 100_000, "\xff", '{"a": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_broken_json(damaged: Path, file: str, text: str) -> None:
    (damaged / file).write_bytes(text.encode("latin-1"))
    refusal(damaged, file)


def test_unsupported_family(damaged: Path) -> None:
    edit_config(damaged, model_type="mamba")
    refusal(damaged, "model_type 'mamba'")


def test_bad_end_token(damaged: Path) -> None:
    (damaged / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    refusal(damaged, "eos_token_id")


def test_all_reasons_at_once(damaged: Path) -> None:
    edit_config(damaged, hidden_act="gelu", partial_rotary_factor=0.5)
    (damaged / "generation_config.json").write_text("{")
    (damaged / "model.safetensors").write_bytes(b"short")
    assert len(refusal(damaged).problems) == 4


# ---- refusals: tensors ---------------------------------------------------------------------------


def test_missing_surplus_and_misshapen_tensors_together(damaged: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
        tensors[Q_PROJ] = tensors[Q_PROJ][:, :40]
        del tensors["model.norm.weight"]

    edit_tensors(damaged, edit)
    error = refusal(
        damaged,
        "model.norm.weight [48] is missing",
        f"{Q_PROJ} has shape [48, 40], expected [48, 48]",
        "model.layers.0.self_attn.q_proj.bias is not part",
    )
    assert len(error.problems) == 3


def test_false_layer_count(damaged: Path) -> None:
    edit_config(damaged, num_hidden_layers=3)
    assert len(refusal(damaged, "model.layers.2.").problems) == 9


def test_a_head_that_differs_though_tied_is_taken(damaged: Path) -> None:
    edit_tensors(damaged, lambda t: t.update({HEAD: t[EMBEDDING] + 1}))
    checkpoint = Checkpoint.open(damaged)
    assert not checkpoint.config.tie_word_embeddings
    assert torch.equal(checkpoint.rows(HEAD, 3, 5), checkpoint.rows(EMBEDDING, 3, 5) + 1)
    assert any("differs from" in warning for warning in checkpoint.warnings)


def test_a_head_of_another_shape_though_tied(damaged: Path) -> None:
    edit_tensors(damaged, lambda t: t.update({HEAD: t[EMBEDDING][:9]}))
    refusal(damaged, f"{HEAD} has shape [9, 48], expected [260, 48]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_unsupported_dtype(damaged: Path, dtype: torch.dtype) -> None:
    edit_tensors(damaged, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(dtype)}))
    refusal(damaged, f"{Q_PROJ} is", "supported: F64, F32, F16, BF16")


# ---- refusals: safetensors files -----------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1, -4000])
def test_truncated(damaged: Path, kept: int) -> None:
    file = damaged / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    refusal(damaged, "model.safetensors", "truncated?")


def test_truncation_names_the_bytes(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    raw = file.read_bytes()
    data = len(raw) - 8 - struct.unpack("<Q", raw[:8])[0]
    file.write_bytes(raw[:-1])
    refusal(damaged, f"the tensors need {data} bytes, the file holds {data - 1}")


def test_surplus_data(damaged: Path) -> None:
    with (damaged / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    refusal(damaged, "the tensors need")


@pytest.mark.parametrize("length", [2**64 - 1, 100_000_001])
def test_false_header_length(damaged: Path, length: int) -> None:
    file = damaged / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refusal(damaged, f"the header claims {length} bytes")


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b"\xff\xff", b"[" * 100_000, b'{"a": 1}', b"7", '{"ä": {}}'.encode("utf-16")],
)
def test_damaged_header(damaged: Path, text: bytes) -> None:
    (damaged / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    refusal(damaged, "model.safetensors: the header is damaged")


def test_duplicate_key(damaged: Path) -> None:
    entry = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = b"{" + entry + b", " + entry + b"}"
    (damaged / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    refusal(damaged, "duplicate keys ['a']")


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dtype": lambda h: h[Q_PROJ].update(dtype="BF16"),
    "shape": lambda h: h[Q_PROJ].update(shape=[48, 49]),
    "huge-shape": lambda h: h[Q_PROJ].update(shape=[2**62, 2**62]),
    "negative-shape": lambda h: h[Q_PROJ].update(shape=[-48, -48]),
    "bool-shape": lambda h: h[Q_PROJ].update(shape=[True, 48]),
    "no-offsets": lambda h: h[Q_PROJ].pop("data_offsets"),
    "one-offset": lambda h: h[Q_PROJ].update(data_offsets=[0]),
    "overlap": lambda h: h[Q_PROJ].update(
        data_offsets=h["model.layers.1.self_attn.q_proj.weight"]["data_offsets"]
    ),
    "entry-is-text": lambda h: h.update({Q_PROJ: "F32"}),
    "dtype-no-text": lambda h: h[Q_PROJ].update(dtype=["F32"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header(damaged: Path, lie: str) -> None:
    edit_header(damaged / "model.safetensors", LIES[lie])
    refusal(damaged, "model.safetensors")


@pytest.mark.parametrize("remove", [False, True])
def test_file_that_changes_after_open(damaged: Path, remove: bool) -> None:
    checkpoint = Checkpoint.open(damaged)
    file = damaged / "model.safetensors"
    file.unlink() if remove else file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.rows(checkpoint.names[-2], 0, 1)


# ---- refusals: shards ----------------------------------------------------------------------------


def edit_index(directory: Path, edit: Callable[[dict[str, str]], Any]) -> None:
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index["weight_map"])
    file.write_text(json.dumps(index))


def test_missing_shard(sharded: Path, tmp_path: Path) -> None:
    copy(sharded, tmp_path / "model")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    shard.unlink()
    refusal(tmp_path / "model", f"shard {shard.name} is missing")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "c:\\x", "x\0y", "", ".x"]
)
def test_index_that_points_outside(sharded: Path, tmp_path: Path, name: str) -> None:
    copy(sharded, tmp_path / "model")
    edit_index(tmp_path / "model", lambda index: index.update({Q_PROJ: name}))
    refusal(tmp_path / "model", f"names {name!r}, which is not a plain file name")


def test_an_index_that_lists_other_tensors_does_no_harm(sharded: Path, tmp_path: Path) -> None:
    directory = copy(sharded, tmp_path / "model")
    edit_index(directory, lambda index: index.update({HEAD: index[Q_PROJ]}) or index.pop(Q_PROJ))
    assert Checkpoint.open(directory).names == Checkpoint.open(sharded).names


def test_a_tensor_in_two_shards(sharded: Path, tmp_path: Path) -> None:
    directory = copy(sharded, tmp_path / "model")
    first, second = sorted(directory.glob("*.safetensors"))[:2]
    both = next(iter(load_file(first)))
    save_file(load_file(second) | {both: torch.zeros(3)}, second)
    assert Checkpoint.open(directory).shape(both) != (3,)  # the index names the first
    (directory / "model.safetensors.index.json").unlink()
    refusal(directory, f"{both} is both in {first.name} and in {second.name}")


def test_shards_without_an_index(sharded: Path, tmp_path: Path) -> None:
    directory = copy(sharded, tmp_path / "model")
    (directory / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(directory).names == Checkpoint.open(sharded).names
    last = sorted(directory.glob("*.safetensors"))[-1]
    last.unlink()
    refusal(directory, f"shard {last.name} is missing")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_broken_index(sharded: Path, tmp_path: Path, text: str) -> None:
    directory = copy(sharded, tmp_path / "model")
    (directory / "model.safetensors.index.json").write_text(text)
    refusal(directory, "model.safetensors.index.json must hold a weight_map")


# ---- the hub -------------------------------------------------------------------------------------


def hub_that(monkeypatch: pytest.MonkeyPatch, action: Callable[..., str]) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", action)


def test_download_fetches_only_what_is_read(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    hub_that(
        monkeypatch, lambda repo_id, **options: asked.update(options, repo=repo_id) or str(tied)
    )
    assert Checkpoint.open("owner/name").path == tied
    assert asked["repo"] == "owner/name"
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(asked["allow_patterns"])
    assert "*.bin" not in asked["allow_patterns"]


@pytest.mark.parametrize(
    ("model", "revision", "repo", "asked_revision"),
    [
        ("owner/name", None, "owner/name", None),
        ("owner/name", "v1", "owner/name", "v1"),
        ("https://huggingface.co/owner/name", None, "owner/name", None),
        ("https://huggingface.co/owner/name/tree/v2", None, "owner/name", "v2"),
        ("https://hf.co/owner/na.me-1/?x=y", "v1", "owner/na.me-1", "v1"),
        ("hf://owner/name", None, "owner/name", None),
    ],
)
def test_addresses_and_revisions_of_the_hub(
    model: str,
    revision: str | None,
    repo: str,
    asked_revision: str | None,
    tied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    snapshot = copy(tied, tmp_path / ("ab" * 20))
    hub_that(monkeypatch, lambda name, **options: asked.update(options, repo=name) or str(snapshot))
    origin = Checkpoint.open(model, revision=revision).origin
    assert (asked["repo"], asked["revision"]) == (repo, asked_revision)
    assert (origin.repo_id, origin.revision) == (repo, "ab" * 20)


def test_a_gguf_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    write_gguf(tmp_path / "x.gguf")
    hub_that(monkeypatch, lambda name, **options: asked.update(options) or str(tmp_path))
    model = "https://huggingface.co/owner/name/blob/main/x.gguf"
    assert Checkpoint.open(model).path == tmp_path / "x.gguf"
    assert asked["allow_patterns"] == ["x.gguf"]


def _raise(error: Exception) -> Callable[..., str]:
    def action(*_: Any, **__: Any) -> str:
        raise error

    return action


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    return kind.__new__(kind)  # their constructors want an HTTP response


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "accept the licence at https://huggingface.co/owner/name"),
        ("RepositoryNotFoundError", "no such model on the hub"),
        ("RevisionNotFoundError", "has no revision"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
    ],
)
def test_hub_errors(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    hub_that(monkeypatch, _raise(hub_error(name)))
    refusal("owner/name", message)


def test_any_other_hub_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, _raise(RuntimeError("connection reset")))
    refusal("owner/name", "could not be downloaded: connection reset", "resume")


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, _raise(OSError(28, "No space left on device")))
    with pytest.raises(OutOfSpaceError):
        Checkpoint.open("owner/name")


def test_offline_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refusal("owner/name", "cannot be reached", "unset HF_HUB_OFFLINE")
