"""The commands eval and compare: tables, JSON, the figure, the journal, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle
from tests.exporter.evaluation.test_questions import DEV, TEST, write_lines, write_mmlu
from tests.support.bundles import TEXT
from tests.support.command_line import one_error, strict_json, tinyqmoe
from tests.support.gguf_files import write_gguf

ROWS = [
    {"query": "the cat sat on", "choices": ["the mat", "a river"], "gold": 0},
    {"query": "the dog ran to", "choices": ["the forest", "the river", "me"], "gold": 1},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    write_lines(folder, "arc_easy", *ROWS)
    return write_mmlu(folder, "maths", DEV * 3, TEST)


def evaluated(*arguments: str | Path) -> Any:
    result = tinyqmoe("eval", *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return strict_json(result.stdout)


@pytest.mark.parametrize("backend", ["native", "executorch", "reference"])
def test_a_bundle_against_its_original(
    backend: str, bundle: Bundle, checkpoint: Path, data: Path
) -> None:
    found = evaluated(
        *(bundle.path, "--backend", backend, "--against", checkpoint),
        *("--task", "arc_easy", "--task", "mmlu", "--shots", "0", "--data", data),
        *("--text", data / "text.txt", "--limit", "2", "--window", "24"),
    )
    assert found["schema_version"] == 1
    format_ = {"executorch": "pte"}.get(backend, backend)
    assert found["model"]["name"] == f"{bundle.path.name} ({format_})"
    manifest = bundle.manifest
    coded = sum(t.blob_bytes + t.scales_bytes for t in manifest.tensors)
    assert found["model"]["weight_bytes"] == coded
    original = found["original"]
    assert (original["name"], original["context"]) == (checkpoint.name, 512)
    assert original["weight_bytes"] == manifest.model.source_bytes
    arc, mmlu = found["tasks"]
    assert (arc["task"], arc["version"], arc["n_shots"], arc["total"]["n"]) == ("arc_easy", 1, 0, 2)
    assert arc["total"]["acc"]["low"] <= arc["total"]["acc"]["value"] <= 1
    assert mmlu["subjects"].keys() == {"maths"}
    assert mmlu["total"]["acc_norm"] is None
    text = found["text"]
    assert (text["n_windows"], text["n_tokens"], text["window"]) == (2, 48, 24)
    divergence = text["score"]["divergence"]
    assert 0 < divergence["kl_mean"]["value"] < 1
    assert divergence["kl_median"] <= divergence["kl_99"] <= divergence["kl_999"]
    assert text["original"]["divergence"] is None


@pytest.mark.parametrize("backend", ["mlprogram", "custom-op"])
def test_packages_of_core_ml(backend: str, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    from tests.support.bundles import TERNARY, export

    made = export(checkpoint, tmp_path / "b", TERNARY, formats=(backend,), context=48)
    options = ("--task", "arc_easy", "--data", data, "--against", checkpoint)
    found = evaluated(made.path, *options)
    assert found["model"]["name"] == f"b ({backend})"
    assert found["tasks"][0]["total"]["n"] == 2


def test_the_tables_have_eighty_columns(bundle: Bundle, checkpoint: Path, data: Path) -> None:
    result = tinyqmoe(
        *("eval", bundle.path, "--against", checkpoint, "--text", data / "text.txt"),
        *("--task", "mmlu", "--shots", "0", "--data", data, "--window", "24"),
    )
    assert result.exit_code == 0, result.output
    for said in ("perplexity of a word", "KL, 99.9 %", "maths (2) acc, %", "flips: ", "cut on"):
        assert said in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_journal_lies_beside_the_result(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = ("eval", bundle.path, "--task", "arc_easy", "--data", data, "--json", out)
    assert tinyqmoe(*options).exit_code == 0
    first = strict_json(out.read_text())
    lines = (tmp_path / "result.json.journal").read_text().splitlines()
    assert len(lines) == len(ROWS)
    resumed = tinyqmoe(*options, "--resume")
    assert "2 results from the journal" in resumed.stdout
    again = strict_json(out.read_text())
    assert (first["n_resumed"], again["n_resumed"]) == (0, 2)
    assert first["tasks"] == again["tasks"]


# ---- compare


def test_models_are_compared_in_a_table_and_a_figure(
    bundle: Bundle, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--text", data / "text.txt", "--window", "24", "--limit", "3")
    out = tmp_path / "c.json"
    for end in ("png", "svg"):
        result = tinyqmoe(
            *("compare", checkpoint, bundle.path, checkpoint, *options),
            *("--plot", tmp_path / f"c.{end}", "--json", out),
        )
        assert result.exit_code == 0, result.output
    found = strict_json(out.read_text())
    alone = evaluated(bundle.path, "--against", checkpoint, *options)
    ternary, same = found["others"]
    assert ternary == {"model": alone["model"], "score": alone["text"]["score"]}
    assert found["original"]["score"] == alone["text"]["original"]
    assert same["score"]["divergence"]["kl_mean"]["value"] == 0
    assert same["score"]["divergence"]["top1"]["value"] == 1
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "│" in line]
    assert [row.split()[1] for row in rows] == [checkpoint.name] * 2 + [bundle.path.name]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_against_takes_the_place_of_the_first(bundle: Bundle, checkpoint: Path, data: Path) -> None:
    options = ("--text", data / "text.txt", "--window", "24", "--limit", "1", "--json", "-")
    listed = tinyqmoe("compare", checkpoint, bundle.path, *options)
    named = tinyqmoe("compare", bundle.path, "--against", checkpoint, *options)
    found, other = strict_json(listed.stdout), strict_json(named.stdout)
    assert found | {"seconds": 0} == other | {"seconds": 0}


def test_gguf_files_are_compared(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType as Type

    for name, kind in (("full", Type.F32), ("small", Type.Q8_0)):
        write_gguf(tmp_path / f"{name}.gguf", kind=kind)
    (tmp_path / "t").write_text("a cat and a dog " * 4)
    result = tinyqmoe(
        *("compare", tmp_path / "full.gguf", tmp_path / "small.gguf"),
        *("--text", tmp_path / "t", "--window", "20", "--json", "-"),
    )
    assert result.exit_code == 0, result.output
    found = strict_json(result.stdout)
    (small,) = found["others"]
    assert small["model"]["name"] == "small.gguf"
    assert small["model"]["weight_bytes"] < 0.4 * found["original"]["model"]["weight_bytes"]
    assert 0 < small["score"]["divergence"]["kl_mean"]["value"] < 0.01


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "neither a task nor a text is given"),
        (["--task", "arc_easy"], 2, "the tasks need the folder of their data"),
        (["--task", "squad", "--data", "DATA"], 2, "there is no task squad"),
        (["--task", "arc_easy", "--data", "no-such"], 3, "there is no folder no-such"),
        (["--task", "hellaswag", "--data", "DATA"], 3, "there is no file"),
        (["--task", "mmlu", "--data", "DATA", "--shots", "9"], 2, "give --shots 6 or fewer"),
        (["--text", "no-such"], 3, "cannot be read"),
        (["--text", "DATA/text.txt", "--window", "49"], 2, "does not fit the context of 48"),
        (["--text", "DATA/text.txt", "--resume"], 2, "--resume goes on from the journal"),
        (["--text", "DATA/text.txt", "--backend", "coreml"], 2, "no package for coreml"),
        (
            ["--text", "DATA/text.txt", "--backend", "reference", "--threads", "1"],
            2,
            "takes no number of threads",
        ),
        (
            ["--task", "arc_easy", "--data", "DATA", "--chat-template", "no-such"],
            2,
            "neither a file nor a name",
        ),
    ],
)
def test_what_eval_refuses(
    arguments: list[str], code: int, said: str, bundle: Bundle, data: Path
) -> None:
    given = [a.replace("DATA", str(data)) for a in arguments]
    assert said in one_error(tinyqmoe("eval", bundle.path, *given), code)


def test_a_checkpoint_has_no_backend(checkpoint: Path, data: Path) -> None:
    for option in (["--backend", "native"], ["--threads", "1"]):
        result = tinyqmoe("eval", checkpoint, "--text", data / "text.txt", *option)
        assert "a checkpoint has no packages" in one_error(result, 2)


def test_a_template_that_does_not_render(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("{{ raise_exception('no') }}")
    options = ("--task", "arc_easy", "--data", data, "--chat-template", tmp_path / "t")
    said = one_error(tinyqmoe("eval", bundle.path, *options), 2)
    assert "the chat template does not render a question" in said


def test_models_of_other_vocabularies(bundle: Bundle, other_checkpoint: Path, data: Path) -> None:
    options = ("--text", data / "text.txt", "--window", "24")
    said = one_error(tinyqmoe("eval", bundle.path, "--against", other_checkpoint, *options), 2)
    assert f"{other_checkpoint.name} has another vocabulary" in said
    assert "it knows 100 tokens, expected 150" in said
    options = ("compare", bundle.path, other_checkpoint, "--text", data / "text.txt")
    assert "has another vocabulary" in one_error(tinyqmoe(*options), 2)


def test_models_of_other_tokenizers(
    bundle: Bundle, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    raw = json.loads(file.read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(raw))
    options = ("--against", tmp_path / "m", "--task", "arc_easy", "--data", data)
    said = one_error(tinyqmoe("eval", bundle.path, *options), 2)
    assert f"2 ids stand for other tokens, such as {vocabulary['b']}: 'b', expected 'a'" in said


def test_models_that_are_not_there(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    text = ("--text", data / "text.txt")
    assert "no directory" in one_error(tinyqmoe("eval", tmp_path / "no/such/model", *text), 3)
    assert "no tokenizer" in one_error(
        tinyqmoe("eval", bundle_without_tokenizer(bundle, tmp_path), *text), 3
    )


def bundle_without_tokenizer(bundle: Bundle, tmp_path: Path) -> Path:
    from tests.support.bundles import copy, reseal

    copied = copy(bundle, tmp_path / "bare")
    (copied.path / "tokenizer.json").unlink()
    rows = [row for row in copied.manifest.ledger if row.file != "tokenizer.json"]
    return reseal(copied, ledger=rows).path


def test_a_comparison_of_one(checkpoint: Path, data: Path) -> None:
    said = one_error(tinyqmoe("compare", checkpoint, "--text", data / "text.txt"), 2)
    assert "at least one other model" in said


def test_a_figure_of_another_kind(checkpoint: Path, data: Path) -> None:
    result = tinyqmoe("compare", checkpoint, "--text", data / "text.txt", "--plot", "x.pdf")
    assert result.exit_code == 2
    assert "must end with .png or .svg" in " ".join(result.stderr.split())


def test_a_journal_that_is_none(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json.journal").write_text(json.dumps({"notes": 1}) + "\n")
    options = ("--text", data / "text.txt", "--json", tmp_path / "r.json", "--resume")
    said = one_error(tinyqmoe("eval", bundle.path, *options), 3)
    assert "is not of a journal" in said
