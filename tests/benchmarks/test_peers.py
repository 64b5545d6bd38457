"""The table of peers: how ratios are formed, and files of a shape."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from benchmarks import gguf_of_shape
from benchmarks.peers import Group, Row, as_json, peer_of, table
from benchmarks.rates import Rates
from exporter.bundle import Bundle
from exporter.errors import MissingComponentError, UsageError


def group() -> Group:
    """A peer of three rounds, the second under load, and one engine beside it."""
    peer = Row("m", "llama.cpp Q8_0", 2, 1024, 10_000_000)
    peer.rounds = [Rates(20.0, 100.0), Rates(5.0, 20.0), Rates(22.0, 110.0)]
    ours = Row("m", "native", 2, 1024, 9_500_000)
    ours.rounds = [Rates(24.0, 170.0), Rates(6.0, 30.0), Rates(33.0, 165.0)]
    return Group(peer, [ours])


def test_a_ratio_is_the_median_of_those_in_each_round() -> None:
    lines = table([group()]).splitlines()
    assert lines[2] == "| m | llama.cpp Q8_0 | 2 | 1,024 | 10 | 20.0 |  | 100.0 |  |"
    assert lines[3] == "| m | native | 2 | 1,024 | 9 | 24.0 | 1.20x | 165.0 | 1.50x |"
    assert len({line.count("|") for line in lines}) == 1


def test_the_document_has_every_round() -> None:
    (found,) = json.loads(json.dumps(as_json([group()])))
    assert found["peer"]["rounds"][1] == {"decode": 5.0, "prefill": 20.0}
    assert [row["engine"] for row in found["ours"]] == ["native"]


def test_a_file_has_the_shape_of_the_network(bundle: Bundle, tmp_path: Path) -> None:
    network = bundle.manifest.network
    file = tmp_path / "shape.gguf"
    gguf_of_shape.write(bundle.manifest, file)
    reader = gguf.GGUFReader(file)
    found = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    assert found == gguf_of_shape.shapes(bundle.manifest)
    assert found["token_embd.weight"] == (network.vocab, network.hidden)
    assert found["blk.0.ffn_down.weight"] == (network.hidden, network.inner)
    weights = sum(tensor.n_elements for tensor in reader.tensors)
    assert weights == bundle.manifest.model.parameters
    assert reader.fields["llama.block_count"].contents() == network.layers


def test_another_family_is_refused(bundle: Bundle) -> None:
    manifest = deepcopy(bundle.manifest)
    manifest.model.config["model_type"] = "qwen3"
    with pytest.raises(UsageError, match="is of the family qwen3"):
        gguf_of_shape.shapes(manifest)


def test_a_type_tells_its_peer() -> None:
    assert [peer_of(kind).name for kind in ("Q8_0", "TQ2_0")] == ["llama.cpp"] * 2
    assert [peer_of(kind).name for kind in ("8da8w", "8da4w")] == ["XNNPACK"] * 2
    with pytest.raises(UsageError, match=r"'8da2w' is no type of llama\.cpp or XNNPACK"):
        peer_of("8da2w")


def test_a_module_that_is_missing_is_named() -> None:
    peer = replace(peer_of("Q8_0"), module="benchmarks.no_such_speed")
    with pytest.raises(MissingComponentError, match="without the module benchmarks"):
        peer.rates()
