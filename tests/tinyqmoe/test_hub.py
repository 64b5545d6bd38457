"""Bundles on the hub, against a stand-in on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml

import tinyqmoe as library
from exporter.bundle import Bundle
from tests.support.command_line import one_error, strict_json, tinyqmoe
from tests.support.hub import Hub, running_hub
from tinyqmoe.model_card import model_card

REPO = "me/small-model"
SECONDS = re.compile(r'"seconds": [\d.e-]+')


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as stand_in:
        files = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
        yield stand_in


def test_a_bundle_that_was_pushed_is_a_bundle_everywhere(
    hub: Hub, copied: Bundle, tmp_path: Path
) -> None:
    (copied.path / "notes.txt").write_text("mine")
    result = tinyqmoe("push", copied.path, REPO, "--license", "mit", "--private", "--json", "-")
    assert result.exit_code == 0, result.output
    pushed = strict_json(result.stdout)
    (commit, files) = hub.commits[REPO][-1]
    assert pushed == {
        "schema_version": 1,
        "repo": REPO,
        "commit": commit,
        "url": f"{hub.url}/{REPO}/commit/{commit}",
        "licence": "mit",
    }
    named = {entry.path for entry in copied.manifest.files}
    assert set(files) == named | {"manifest.json", "README.md"}, "and nothing of the user's"
    assert all(files[n] == (copied.path / n).read_bytes() for n in named)
    assert hub.private[REPO]

    hub.commit(REPO, {"huge.bin": b"not asked for"})
    asked = ("--prompt", "the cat", "--max-new-tokens", "3", "--json", "-")
    ran = tinyqmoe("run", REPO, *asked)
    assert ran.exit_code == 0, ran.output
    here = tinyqmoe(
        "run", copied.path, "--prompt", "the cat", "--max-new-tokens", "3", "--json", "-"
    )
    assert strict_json(ran.stdout)["tokens"] == strict_json(here.stdout)["tokens"]
    (folder,) = (tmp_path / "cache" / "tiny-qmoe" / "bundles" / "me--small-model").iterdir()
    assert {p.name for p in folder.iterdir()} == {Path(n).parts[0] for n in named} | {
        "manifest.json"
    }
    hub.asked.clear()
    assert tinyqmoe("verify", f"{REPO}@{folder.name}").exit_code == 0
    assert hub.asked == [], "a commit that is in the cache needs no network"


def test_a_hub_id_is_a_bundle_where_a_model_could_be(
    hub: Hub, copied: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    """`fit`, `eval`, `compare` and the baseline of `check` give what the folder gives."""
    library.push(copied, REPO, licence="mit")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat while the dog ran to the river " * 8)
    asked = ("--text", text, "--window", "16", "--limit", "1")
    for command in (
        ("fit", REPO, "--device", "iphone-13", "--device", "pixel-6a"),
        ("eval", REPO, *asked),
        ("compare", checkpoint, REPO, *asked),
    ):
        local = [copied.path if word == REPO else word for word in command]
        there, here = tinyqmoe(*command, "--json", "-"), tinyqmoe(*local, "--json", "-")
        assert (there.exit_code, here.exit_code) == (0, 0), there.output
        expected = here.stdout.replace('"copied (', f'"{REPO} (')
        assert SECONDS.sub("", there.stdout) == SECONDS.sub("", expected)
    settings = library.CheckSettings(backend=["native"], baseline=REPO)
    checked = library.check(copied, settings)
    assert checked.passed
    assert all(change.before == change.now for change in checked.changes)


def test_a_hub_id_without_a_manifest_is_a_model(hub: Hub, copied: Bundle) -> None:
    """So is one that cannot be asked: what reads checkpoints says why it cannot be had."""
    hub.commits[REPO] = []
    hub.commit(REPO, {"README.md": b"weights are elsewhere"})
    for given in (REPO, "me/nothing"):
        said = one_error(tinyqmoe("fit", given, "--device", "iphone-13"), 3)
        assert "manifest" not in said
    said = one_error(tinyqmoe("check", copied.path, "--baseline", "me/nothing"), 3)
    assert "of the hub me/nothing cannot be had" in said
    said = one_error(tinyqmoe("check", copied.path, "--baseline", "release/check.json"), 3)
    assert "the baseline release/check.json is not there" in said
    assert not [path for path in hub.asked if "check.json" in path]


def test_options_of_an_export_are_refused_for_a_bundle_on_the_hub(hub: Hub, copied: Bundle) -> None:
    library.push(copied, REPO, licence="mit")
    said = one_error(tinyqmoe("fit", REPO, "--scheme", "int8"), 2)
    assert "--scheme cannot be given for a bundle" in said


def test_a_baseline_on_the_hub_stands_in_the_file(copied: Bundle, tmp_path: Path) -> None:
    """What lies beside the file comes first, and a name of a JSON file is never asked for."""
    file = tmp_path / "tinyqmoe.toml"
    for name, expected in (
        (REPO, REPO),
        (copied.path.name, copied.path),
        ("release/check.json", tmp_path / "release" / "check.json"),
    ):
        file.write_text(f'[check]\nbaseline = "{name}"\n')
        assert library.read_check_file(file)["baseline"] == expected


def test_a_signature_goes_along(hub: Hub, copied: Bundle, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, kind))
    library.sign(copied.path, private)
    library.push(copied, REPO, licence="mit")
    assert tinyqmoe("verify", REPO, "--pubkey", public).exit_code == 0
    assert "It is signed" in hub.commits[REPO][-1][1]["README.md"].decode()


def test_the_licence_is_that_of_the_base_model(hub: Hub, copied: Bundle) -> None:
    said = one_error(tinyqmoe("push", copied.path, REPO), 2)
    assert "the licence of the base model is not known" in said
    assert hub.commits == {}, "nothing was made"
    origin = copied.manifest.model.origin
    object.__setattr__(origin, "repo_id", "maker/base")
    hub.cards["maker/base"] = {"license": "llama3.2"}
    assert library.push(copied, REPO).licence == "llama3.2"
    hub.cards["maker/base"] = {}
    with pytest.raises(library.UsageError, match="licence"):
        library.push(copied, REPO)


def test_the_card_says_what_the_manifest_says(both: Bundle) -> None:
    card = model_card(both, REPO, "mit")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "mit",
        "library_name": "tiny-qmoe",
        "tags": ["tiny-qmoe", "executorch", "coreml"],
    }
    loss = both.manifest.quantization_loss
    for artifact in both.manifest.artifacts:
        assert f"| {artifact.format} | {artifact.backend} |" in text
        assert f"{both.shipped_bytes(artifact):,}" in text
    assert loss.kl_words in text
    assert "| iPhone 13 | fits | fits |" in text
    assert f"tinyqmoe chat {REPO}" in text
    assert "--platform android" in text
    assert "It is not signed" in text
    assert (huggingface_hub.ModelCard(card).data.license) == "mit"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("me/nothing", "there is no directory me/nothing, and of the hub me/nothing cannot be had"),
        (f"{REPO}@none", "give a branch, a tag or a commit"),
    ],
)
def test_what_is_not_there_is_told(hub: Hub, bundle: Bundle, given: str, said: str) -> None:
    library.push(bundle, REPO, licence="mit")
    assert said in one_error(tinyqmoe("inspect", given), 3)


def test_a_repository_that_is_no_bundle_is_told(hub: Hub) -> None:
    hub.commits[REPO] = []
    hub.commit(REPO, {"config.json": b"{}"})
    assert "has no manifest.json" in one_error(tinyqmoe("inspect", REPO), 3)


def test_a_bundle_that_was_changed_there_is_refused(hub: Hub, bundle: Bundle) -> None:
    library.push(bundle, REPO, licence="mit")
    hub.commit(REPO, {"model.pte": bytes(bundle.file("model.pte").stat().st_size)})
    assert "model.pte has been changed" in one_error(tinyqmoe("inspect", REPO), 3)


def test_a_push_that_is_refused_is_told(hub: Hub, copied: Bundle) -> None:
    said = one_error(tinyqmoe("push", copied.path, "others/model", "--license", "mit"), 3)
    assert "hf auth login" in said
    assert "no repository" in one_error(tinyqmoe("push", copied.path, "model"), 2)
    (copied.path / "tokenizer.json").write_text("{}")
    said = one_error(tinyqmoe("push", copied.path, REPO, "--license", "mit"), 3)
    assert "tokenizer.json has" in said
    assert REPO not in hub.commits
