"""The golden files that the apps read, against what Python does."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from exporter.bundle import read_manifest
from exporter.errors import BundleError
from exporter.quant.config import QuantConfig
from runtime_ref.prompts import PromptEncoder
from tests.support.bundles import export
from tests.support.golden import demo_answers, manifests, sampler
from tests.support.paths import GOLDEN, ROOT
from tinyqmoe.check_facts import facts_of


@pytest.mark.parametrize("name", manifests.texts())
def test_the_exporter_refuses_the_same_manifests(name: str) -> None:
    kind, names, text = manifests.texts()[name]
    if kind in ("ok", "no_package"):
        assert read_manifest(json.loads(text)).model.name == "Kite-ß 🪁"
        return
    with pytest.raises((BundleError, ValueError)) as error:
        read_manifest(json.loads(text))
    if isinstance(error.value, BundleError):
        assert names in f"{error.value.what} {error.value.problems}"


def test_draws_have_the_probabilities_of_numpy() -> None:
    logits, sampling = sampler.cases()[5]
    random, n = sampler.SplitMix64(1), 20_000
    counts = Counter(sampler.choose(logits, sampling, random) for _ in range(n))
    drawn = np.array([counts[i] / n for i in range(len(logits))])
    expected = sampler.probabilities(logits, sampling)
    assert set(counts) == set(np.flatnonzero(expected).tolist())
    assert np.abs(drawn - expected).max() < 0.02


def test_the_exponential_is_that_of_numpy() -> None:
    x = -np.arange(0, 60_000) / 97
    got = np.array([sampler.exp(float(value)) for value in x])
    assert np.abs(got / np.exp(x) - 1).max() < 5e-16
    assert sampler.exp(-701.0) == 0


def test_the_demo_model_answers_as_the_golden_file_says(tmp_path: Path) -> None:
    model = ROOT / "exporter" / "demo" / "model"
    quantization = QuantConfig(scheme=demo_answers.SCHEME)
    bundle = export(model, tmp_path / "demo", quantization, context=demo_answers.CONTEXT)
    question = [{"role": "user", "content": demo_answers.QUESTION}]
    answers = demo_answers.answers(bundle, PromptEncoder(bundle).chat(question))
    golden = (GOLDEN / "demo.json").read_text("ascii")
    assert demo_answers.as_json(answers) == golden
    # The digest that "Check this model" of the apps says is that of `tinyqmoe check`.
    digests = b"".join(bytes.fromhex(a["sha256"]) for a in json.loads(golden)["reference"])
    facts = facts_of(bundle, [bundle.artifact("pte")])
    assert facts.bits == hashlib.sha256(digests).hexdigest()
