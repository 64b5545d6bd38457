"""The texts that ship: one to measure activations on, another to measure the loss on."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files

import pytest

RUN = 5  # words in a row that only a copied phrase has in common


def pieces(package: str, name: str) -> list[str]:
    return files(package).joinpath(name).read_text(encoding="utf-8").split("\n\n")


def runs(parts: list[str]) -> list[tuple[str, ...]]:
    lines = [part.lower().split() for part in parts]
    return [tuple(words[i : i + RUN]) for words in lines for i in range(len(words) - RUN + 1)]


CALIBRATION = pieces("exporter.quant", "calibration.txt")
LOSS = pieces("exporter.reference", "loss.txt")


@pytest.mark.parametrize("parts", [CALIBRATION, LOSS], ids=["calibration", "loss"])
def test_pieces_are_paragraphs_without_repeated_phrases(parts: list[str]) -> None:
    assert [part for part in parts if not part.strip() or part.startswith("\n")] == []
    assert [run for run, count in Counter(runs(parts)).items() if count > 1] == []


def test_the_loss_is_measured_on_other_words_than_the_activations() -> None:
    assert set(runs(LOSS)) & set(runs(CALIBRATION)) == set()
