"""Plans: which rule a matrix takes, what is refused, and a plan that is found and used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tinyqmoe
from exporter.bundle import EMBEDDING, Bundle
from exporter.errors import UsageError
from exporter.quant import rules
from exporter.quant.config import QuantConfig
from exporter.quant.rules import Rule
from tests.support.bundles import TEXT, write_text_tokenizer
from tests.support.checkpoints import write_llama
from tests.support.command_line import tinyqmoe as command

RULES: list[dict[str, Any]] = [
    {"pattern": "*.mlp.down_proj.*", "scheme": "int4", "group_size": 32},
    {"pattern": "model.layers.?.mlp.*", "scheme": "int8", "bits_per_weight": 3.0},
    {"pattern": "*self_attn*", "scheme": "int8", "bits_per_weight": 5.0},
    {"pattern": "*", "scheme": "int8"},
]
SETTINGS: dict[str, Any] = {"formats": "custom-op", "context": 24, "calibration": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan") / "model"
    shape = {"hidden_size": 64, "intermediate_size": 160, "max_position_embeddings": 48}
    write_llama(directory, vocab_size=120, bos_token_id=0, eos_token_id=1, **shape)
    write_text_tokenizer(directory, 120)
    return directory


def plan_file(folder: Path, given: object) -> Path:
    path = folder / "plan.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    return path


def export(model: Path, out: Path, plan: Path, **settings: Any) -> Bundle:
    return tinyqmoe.export(model, out, scheme="mixed", plan=plan, **SETTINGS | settings)


def levels(bundle: Bundle) -> dict[str, tuple[int, str, int]]:
    return {t.name: (t.levels_crc32, t.scheme, t.group_size) for t in bundle.manifest.tensors}


def test_the_first_rule_that_matches_is_taken(model: Path, tmp_path: Path) -> None:
    made = export(model, tmp_path / "out", plan_file(tmp_path, {"rules": RULES}))
    sizes: dict[str, list[float]] = {"down": [], "mlp": [], "attention": []}
    for t in made.manifest.tensors:
        if "down_proj" in t.name:
            assert (t.scheme, t.group_size) == ("int4", 32)
        elif t.name != EMBEDDING:
            kind = "mlp" if ".mlp." in t.name else "attention"
            sizes[kind].append(8 * (t.blob_bytes + t.scales_bytes))
            assert (t.scheme, t.group_size) == ("int8", t.cols)
        else:
            assert t.scheme == "int8"
            assert t.entropy_bits > 6
    assert sum(sizes["mlp"]) / (2 * 2 * 160 * 64) == pytest.approx(3, rel=0.005)
    weights = sum(t.rows * t.cols for t in made.manifest.tensors if "self_attn" in t.name)
    assert sum(sizes["attention"]) / weights == pytest.approx(5, rel=0.005)
    assert made.manifest.quantization["rules"] == RULES
    rate = made.manifest.rate
    assert rate is not None
    assert (rate.bits_asked, rate.constant) == (None, None)


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_plan_that_was_found_gives_the_same_again(
    model: Path, tmp_path: Path, calibrated: bool
) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    calibration = str(tmp_path / "text.txt") if calibrated else "none"
    found = tmp_path / "found.json"
    plan = plan_file(tmp_path, {"rules": RULES})
    first = export(model, tmp_path / "first", plan, save_plan=found, calibration=calibration)
    saved = rules.read(found)
    assert [rule.pattern for rule in saved] == [t.name for t in first.manifest.tensors]
    again = export(model, tmp_path / "again", found, calibration=calibration)
    assert levels(again) == levels(first)


def test_a_plan_on_the_command_line(model: Path, tmp_path: Path) -> None:
    plan = plan_file(tmp_path, {"rules": RULES})
    given = ("--scheme", "mixed", "--plan", plan, "--context", 24, "--allow-loss")
    saved = ("--calibration", "none", "--save-plan", tmp_path / "found.json")
    done = command("export", model, tmp_path / "out", *map(str, (*given, *saved)))
    assert done.exit_code == 0, done.output
    assert "scheme int8, int4, embedding int8, rules 4" in " ".join(done.stdout.split())
    assert "bits each of embed_tokens" in " ".join(done.stdout.split())
    assert len(rules.read(tmp_path / "found.json")) == 15
    fits = command("fit", model, *map(str, given[:-1]), "--device", "iphone-13")
    assert fits.exit_code == 0, fits.output


def test_a_config_with_rules_has_a_round_trip() -> None:
    config = QuantConfig("mixed", rules=tuple(map(Rule.from_dict, RULES)))
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.at_rate


def test_rules_and_matrices_without_each_other_are_told_all_at_once(
    model: Path, tmp_path: Path
) -> None:
    given = [{**RULES[0]}, {"pattern": "*down_proj*", "scheme": "int8"}, {**RULES[2]}]
    given.append({"pattern": "blk.*", "scheme": "int8"})
    with pytest.raises(UsageError, match="the plan does not fit the model") as caught:
        export(model, tmp_path / "out", plan_file(tmp_path, {"rules": given}))
    problems = "\n".join(caught.value.problems)
    assert "the pattern blk.* matches no matrix" in problems
    assert "the pattern *down_proj* is never the first that matches" in problems
    assert f"{EMBEDDING} matches no pattern" in problems
    assert "model.layers.1.mlp.up_proj.weight matches no pattern" in problems
    assert len(problems.splitlines()) == 2 + 1 + 4
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="the plan does not fit the model"):
        tinyqmoe.fit(model, scheme="mixed", plan=tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "cannot be read"),
        ("{", "it is no JSON text"),
        ([], "is no plan"),
        ({"rules": []}, "is no plan"),
        ({"rules": RULES, "more": 1}, "is no plan"),
        ({"rules": [3, {"scheme": "int8"}]}, "rule 1: expected a pattern in 3"),
        ({"rules": [{"pattern": "*"}]}, r"rule 1: \*: the scheme must be one of"),
        ({"rules": [{"pattern": "*", "scheme": "int3"}]}, "got 'int3'"),
        (
            {"rules": [{"pattern": "*", "scheme": "int4", "bits_per_weight": 3}]},
            "bits_per_weight: the settings of int4 are group_size",
        ),
        ({"rules": [{"pattern": "*", "scheme": "auto", "group_size": 3}]}, "of auto are none"),
        ({"rules": [{"pattern": "*", "scheme": "int8", "bits_per_weight": 9}]}, "from 1.5 to 8"),
        ({"rules": [{"pattern": "*", "scheme": "int8", "constant": 0}]}, "a positive number"),
        (
            {"rules": [{"pattern": "*", "scheme": "int8", "constant": 1, "bits_per_weight": 3}]},
            "exclude each other",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_refused(given: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "none.json" if given is None else plan_file(tmp_path, given)
    with pytest.raises(UsageError, match=message):
        rules.read(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scheme": "mixed"}, "needs a plan"),
        ({"scheme": "int8", "rules": (Rule("*", "int8"),)}, "a plan is for scheme mixed"),
        (
            {"scheme": "mixed", "rules": (Rule("*", "int8"),), "group_size": 3},
            "group_size is for one scheme",
        ),
        (
            {"scheme": "mixed", "rules": (Rule("*", "int8"),), "embedding": "int4"},
            "embedding is for one scheme",
        ),
        ({"embedding": "mixed"}, "embedding must be one of"),
    ],
)
def test_settings_that_contradict_a_plan_are_refused(config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantConfig(**config)
