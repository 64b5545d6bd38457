"""What `tinyqmoe app-files` writes: whole, checked, and built as an app builds it."""

from __future__ import annotations

import hashlib
import json
import plistlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

import tinyqmoe
from exporter.apps import files
from exporter.bundle import Bundle
from exporter.errors import OutOfSpaceError, UsageError
from exporter.native import native_dir
from runtime_ref.answers import load_reference
from tests.native.test_app_libraries import build
from tests.support.bundles import edit_manifest, with_artifact
from tests.support.layer_tests import run

LOST = "a file of the test is in the way"


@pytest.fixture(params=files.PLATFORMS)
def written(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> tinyqmoe.AppFiles:
    return tinyqmoe.app_files(bundle, request.param, tmp_path / "app")


def test_all_sources_are_there_and_no_tests(written: tinyqmoe.AppFiles) -> None:
    paths = {f.path for f in written.files}
    folder = "cpp/tinyqmoe" if "TinyQMoE.kt" in paths else "tinyqmoe"
    for name in ("core", "llm", "executorch", "include/tinyqmoe"):
        for source in (native_dir() / name).glob("*.*"):
            assert f"{folder}/{name}/{source.name}" in paths
    assert {f"{folder}/{n}" for n in ("CMakeLists.txt", "Package.swift", "session.map")} <= paths
    assert not [p for p in paths if "/tests/" in p or p.endswith((".so", ".py", ".pyc"))]
    assert (written.path / "LICENSE").read_bytes() == (native_dir() / "LICENSE").read_bytes()


def test_every_file_is_listed_with_its_size_and_digest(written: tinyqmoe.AppFiles) -> None:
    assert len(written.files) == len([p for p in written.path.rglob("*") if p.is_file()])
    for entry in written.files:
        data = (written.path / entry.path).read_bytes()
        assert (entry.n_bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_files_of_the_bundle_are_those_of_a_session(
    written: tinyqmoe.AppFiles, bundle: Bundle
) -> None:
    document = json.loads((written.path / "bundle-files.json").read_text())
    uses = {f["path"]: f["use"] for f in document["files"]}
    assert uses == {
        **dict.fromkeys(("manifest.json", "model.pte", "tokenizer.json"), "session"),
        "reference.safetensors": "check",
    }
    for entry in document["files"]:
        data = (bundle.path / entry["path"]).read_bytes()
        assert entry["n_bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_session_opens_with_the_listed_files_alone(bundle: Bundle, tmp_path: Path) -> None:
    from exporter.session import Session

    for file in files.bundle_files(bundle, "android"):
        if file.use == "session":
            shutil.copy(bundle.path / file.path, tmp_path)
    assert len(Session(tmp_path, 1, 8).feed([1, 2, 3])) == bundle.manifest.interface.vocab_size


def test_the_readme_has_the_facts_of_the_bundle(written: tinyqmoe.AppFiles, bundle: Bundle) -> None:
    text = (written.path / "README.md").read_text()
    interface = bundle.manifest.interface
    assert f"{interface.context} positions, {interface.vocab_size} tokens" in text
    assert "$" not in text
    named = set(re.findall(r"`([\w./-]+\.(?:kt|swift|pro|txt|json|entitlements))`", text))
    there = {Path(f.path).name for f in written.files}
    assert {n for n in named if "/" not in n} <= there | {"tokenizer.json"}


def test_a_bundle_without_a_chat_format_is_told_in_the_readme(
    copied: Bundle, tmp_path: Path
) -> None:
    edit_manifest(copied.path, lambda m: m["chat"].update(strings={}, problem="no template"))
    written = tinyqmoe.app_files(copied.path, "ios", tmp_path / "app")
    assert "no chat format (no template)" in (written.path / "README.md").read_text()


def test_the_settings_of_a_platform(bundle: Bundle, tmp_path: Path) -> None:
    ios = tinyqmoe.app_files(bundle, "ios", tmp_path / "ios").path
    entitlements = plistlib.loads((ios / "App.entitlements").read_bytes())
    assert entitlements == {"com.apple.developer.kernel.increased-memory-limit": True}
    android = tinyqmoe.app_files(bundle, "android", tmp_path / "android").path
    kept = re.findall(r"^-keep class (\S+)", (android / "proguard-rules.pro").read_text(), re.M)
    calls = (android / "cpp/tinyqmoe_jni.cc").read_text()
    kotlin = (android / "TinyQMoE.kt").read_text()
    assert kept == ["com.tinyqmoe.TinyQMoE"]
    assert f"Java_{kept[0].replace('.', '_')}_##name" in calls
    declared = re.findall(r"external fun (\w+)", kotlin)
    assert sorted(declared) == sorted(re.findall(r"^TINYQMOE_JNI\(\w+, (\w+)\)", calls, re.M))


# ---- what is refused ----


def test_what_is_at_out_stays(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert tinyqmoe.app_files(bundle, "ios", tmp_path / "app").files
    (tmp_path / "app" / "mine").write_text(LOST)
    with pytest.raises(UsageError, match="not an empty directory"):
        tinyqmoe.app_files(bundle, "ios", tmp_path / "app")
    assert (tmp_path / "app" / "mine").read_text() == LOST
    (tmp_path / "file").write_text(LOST)
    with pytest.raises(UsageError, match="not an empty directory"):
        tinyqmoe.app_files(bundle, "ios", tmp_path / "file")


def test_a_full_disk_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(files, "copy_sources", full)
    with pytest.raises(OutOfSpaceError):
        tinyqmoe.app_files(bundle, "ios", tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_another_platform_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ios or android"):
        tinyqmoe.app_files(bundle, "symbian", tmp_path / "app")  # type: ignore[arg-type]


def test_all_that_a_bundle_lacks_is_told_at_once(
    other_bundle: Bundle, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="float32 activations"):
        tinyqmoe.app_files(other_bundle, "android", tmp_path / "app")
    manifest = replace(
        bundle.manifest,
        artifacts=with_artifact(bundle, format="custom-op"),
        files=[f for f in bundle.manifest.files if f.path != "tokenizer.json"],
    )
    with pytest.raises(UsageError) as told:
        files.write_app_files(replace(bundle, manifest=manifest), "android", tmp_path / "app")
    assert len(told.value.problems) == 2
    assert not (tmp_path / "app").exists()


# ---- as an app builds it ----

CACHE = platformdirs.user_cache_path("tiny-qmoe")
KOTLIN = next(CACHE.glob("kotlin-*/lib/kotlin-compiler.jar"), None)


@pytest.mark.long
@pytest.mark.skipif(
    KOTLIN is None, reason="NO Kotlin compiler (get-kotlin.sh): the snippet was not compiled"
)
def test_the_kotlin_snippet_compiles(bundle: Bundle, tmp_path: Path) -> None:
    assert KOTLIN is not None
    app = tinyqmoe.app_files(bundle, "android", tmp_path / "app").path
    compiler = ["java", "-cp", KOTLIN, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror"]
    library = ["-no-stdlib", "-no-reflect", "-cp", KOTLIN.with_name("kotlin-stdlib.jar")]
    run(*compiler, *library, "-d", tmp_path / "out", app / "TinyQMoE.kt")
    assert (tmp_path / "out/com/tinyqmoe/TinyQMoE.class").is_file()


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("swiftc") is None, reason="NO swiftc: the snippet was not compiled"
)
def test_the_swift_snippet_is_of_the_right_types(bundle: Bundle, tmp_path: Path) -> None:
    app = tinyqmoe.app_files(bundle, "ios", tmp_path / "app").path
    modules = ["-I", app / "tinyqmoe/include"]
    run("swiftc", "-typecheck", "-parse-as-library", *modules, app / "TinyQMoE.swift")


JAVA = """
package com.tinyqmoe;

public final class TinyQMoE {
  static { System.load(System.getProperty("library")); }
  static native long open(String bundle, int threads) throws java.io.IOException;
  static native float[] feed(long handle, int[] tokens) throws java.io.IOException;
  static native void rewind(long handle, int positions) throws java.io.IOException;
  static native long freeMemory(long bytes);
  static native void close(long handle);

  public static void main(String[] words) throws Exception {
    int[] prompt = new int[words.length - 1];
    for (int i = 0; i < prompt.length; ++i) prompt[i] = Integer.parseInt(words[i + 1]);
    long session = open(words[0], 0);
    float[] first = feed(session, prompt);
    rewind(session, 0);
    freeMemory(Long.MAX_VALUE);
    int best = 0;
    float[] again = feed(session, prompt);
    for (int i = 0; i < again.length; ++i) if (again[i] > again[best]) best = i;
    System.out.println(best + " " + java.util.Arrays.equals(first, again));
    try { feed(session, new int[] {-1}); } catch (java.io.IOException e) { System.out.println(e.getMessage()); }
    close(session);
    try { open("/nowhere", 0); } catch (java.io.IOException e) { System.out.println(e.getMessage()); }
  }
}
"""  # noqa: E501


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("javac") is None, reason="NO JDK (openjdk-17-jdk-headless): JNI was not tested"
)
def test_the_calls_from_java_run_on_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    """The C++ snippet as written, called as Kotlin's compiled code calls it."""
    app = tinyqmoe.app_files(bundle, "android", tmp_path / "app").path
    build(app / "cpp", tmp_path / "out", "tinyqmoe_jni")
    source = tmp_path / "com/tinyqmoe/TinyQMoE.java"
    source.parent.mkdir(parents=True)
    source.write_text(JAVA)
    subprocess.run(["javac", "-d", str(tmp_path), str(source)], check=True)
    answer = load_reference(bundle, bundle.artifact("pte"))[0]
    java = ["java", "-Xcheck:jni", f"-Dlibrary={tmp_path / 'out/libtinyqmoe_jni.so'}"]
    words = [bundle.path, *map(str, answer.prompt)]
    lines = run(*java, "-cp", tmp_path, "com.tinyqmoe.TinyQMoE", *words).splitlines()
    assert lines[0] == f"{answer.tokens[0]} true"
    assert lines[1] == "BAD_ID"
    assert "/nowhere has no manifest.json" in lines[2]
    assert not [line for line in lines if "WARNING" in line]
