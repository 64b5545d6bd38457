"""The kernel library: built once, whole or not at all, with an error that says what is missing.

The compilers here are scripts.
"""

from __future__ import annotations

import re
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.errors import MissingComponentError
from runtime_ref.executorch import kernels, prebuilt
from runtime_ref.executorch.runtime import Runtime

SCRIPT = """#!/bin/sh
case " $* " in *" -c "*) {compiles} ;; esac
echo called >> "{log}"
while [ "$1" != "-o" ]; do shift; done
{body}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that nothing is built yet, and a package that brings nothing."""
    monkeypatch.setattr(kernels, "PREBUILT", tmp_path / "packages/runtime_ref/executorch/prebuilt")
    monkeypatch.setattr(
        kernels.platformdirs, "user_cache_path", lambda name, **_: tmp_path / "cache" / name
    )
    return tmp_path / "cache"


class Compiler:
    """A script in the place of the compiler: `body` links, with the output file as $2, and
    `compiles` is run for each source. The log is of what is linked."""

    def __init__(self, folder: Path, body: str, compiles: str = "exit 0") -> None:
        self.path, self.log = folder / "compiler", folder / "log"
        self.path.write_text(SCRIPT.format(log=self.log, body=body, compiles=compiles))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def use(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> Compiler:
    monkeypatch.setenv("CXX", str(compiler.path))
    return compiler


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.rglob("*") if f.is_file())


def test_a_library_is_built_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = use(monkeypatch, Compiler(tmp_path, 'echo library > "$2"'))
    built = kernels.build()
    assert built == kernels.library_path()
    assert built.read_text() == "library\n"
    assert kernels.build() == built
    assert compiler.calls == 1
    assert files(cache) == [built.name, f"{built.name}.sha256"]


def test_other_flags_or_sources_are_another_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kernels.library_path()
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-g"))
    second = kernels.library_path()
    monkeypatch.setattr(kernels, "sources", lambda: [Path(__file__)])
    third = kernels.library_path()
    assert len({first, second, third}) == 3
    assert {path.name for path in (first, second, third)} == {first.name}


def test_other_versions_are_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernels.library_path()
    monkeypatch.setattr(kernels.importlib.metadata, "version", lambda name: "99")
    assert kernels.library_path() != first


def test_without_a_compiler_the_error_says_how_to_get_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingComponentError, match=r"no C\+\+ compiler: looked for c\+\+, g\+\+, clang\+\+"
    ) as caught:
        kernels.build()
    assert "apt-get install g++" in caught.value.hint
    assert caught.value.exit_code == 5


def test_a_compiler_that_is_asked_for_and_absent_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingComponentError, match="no-such-compiler"):
        kernels.build()


def test_a_compiler_with_options_is_understood(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CXX="ccache g++" and CXX="g++ -m64" are usual."""
    compiler = Compiler(tmp_path, 'echo library > "$2"')
    monkeypatch.setenv("CXX", f"{compiler.path} -m64")
    assert kernels.build().is_file()
    assert compiler.calls == 1


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'echo half > "$2"; echo "kernels.cpp:1: error: the disk is a lie" >&2; exit 3'
    compiler = use(monkeypatch, Compiler(tmp_path, body))
    with pytest.raises(MissingComponentError, match="ended with 3") as caught:
        kernels.build()
    assert any("the disk is a lie" in problem for problem in caught.value.problems)
    assert files(cache) == []
    with pytest.raises(MissingComponentError):
        kernels.build()
    assert compiler.calls == 2  # a failure is not remembered


def test_a_source_that_does_not_compile_is_quoted_and_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles = 'case "$*" in *kernels_avx2.cc*) echo "the sun is too hot" >&2; exit 4 ;; esac; exit'
    compiler = use(monkeypatch, Compiler(tmp_path, 'echo library > "$2"', compiles))
    with pytest.raises(MissingComponentError, match="ended with 4") as caught:
        kernels.build()
    assert caught.value.problems == ["the sun is too hot"]
    assert files(cache) == []
    assert compiler.calls == 0


def test_two_builds_at_once_end_with_one_whole_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'printf first-half > "$2"; sleep 0.3; printf -- -second-half >> "$2"'
    use(monkeypatch, Compiler(tmp_path, body))
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(kernels.build().read_text())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    target = kernels.library_path()
    while any(thread.is_alive() for thread in threads):
        if target.is_file():
            seen.append(target.read_text())
    for thread in threads:
        thread.join(60)
    assert set(seen) == {"first-half-second-half"}
    assert len(seen) >= 4
    assert files(cache) == [target.name, f"{target.name}.sha256"]
    assert Compiler(tmp_path, body).calls == 1


# ---- who may put a library there


@pytest.fixture
def built(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that was compiled before."""
    use(monkeypatch, Compiler(tmp_path, 'echo library > "$2"'))
    return kernels.build()


def test_the_folder_is_the_users_alone(built: Path) -> None:
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700


def test_a_library_that_was_exchanged_is_not_loaded(built: Path) -> None:
    built.write_text("somebody else's")
    with pytest.raises(MissingComponentError, match="is not the library that was compiled") as e:
        kernels.build()
    assert e.value.hint == f"delete {built.parent} and try again"


def test_a_library_without_its_hash_is_not_loaded(built: Path) -> None:
    built.with_name(f"{built.name}.sha256").unlink()
    with pytest.raises(MissingComponentError, match="is not the library that was compiled"):
        kernels.build()


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o710])
def test_a_folder_that_is_open_to_others_is_refused(built: Path, mode: int) -> None:
    built.parent.chmod(mode)
    with pytest.raises(MissingComponentError, match="is open to other users") as caught:
        kernels.build()
    assert f"chmod 700 {built.parent}" in caught.value.hint
    built.parent.chmod(0o700)
    assert kernels.build() == built


def test_a_folder_around_it_that_others_write_into_is_refused(built: Path) -> None:
    built.parent.parent.chmod(0o777)
    with pytest.raises(MissingComponentError, match="is open to other users"):
        kernels.build()


def test_a_folder_of_another_user_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = built.stat().st_uid
    monkeypatch.setattr(kernels.library_cache.os, "geteuid", lambda: owner + 1)
    with pytest.raises(MissingComponentError, match=f"belongs to the user with the number {owner}"):
        kernels.build()


def test_a_link_in_place_of_the_folder_is_refused(built: Path) -> None:
    elsewhere = built.parent.rename(built.parent.with_name("elsewhere"))
    built.parent.symlink_to(elsewhere)
    with pytest.raises(MissingComponentError, match="or a link to one"):
        kernels.build()


def test_missing_sources_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "native_dir", lambda: tmp_path)
    with pytest.raises(MissingComponentError, match=r"holds no C\+\+ sources"):
        kernels.sources()


def test_without_executorch_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingComponentError, match="executorch is not installed"):
        kernels.library_path()


@pytest.mark.parametrize(
    ("system", "suffix", "flag"),
    [("linux", ".so", "-shared"), ("darwin", ".dylib", "-dynamiclib")],
)
def test_libraries_are_named_and_linked_as_on_their_platform(
    system: str, suffix: str, flag: str, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    executorch = tmp_path / "executorch"
    (executorch / "lib").mkdir(parents=True)
    found = SimpleNamespace(submodule_search_locations=[str(executorch)])
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(kernels.sys, "platform", system)
    with pytest.raises(MissingComponentError, match=rf"lib/libexecutorch{suffix}\n"):
        kernels.library_path()
    (executorch / "lib" / f"libexecutorch{suffix}").touch()
    compiler = use(monkeypatch, Compiler(tmp_path, 'echo library > "$2"'))
    compiler.path.write_text(compiler.path.read_text().replace("called", "called $*"))
    assert kernels.build().suffix == suffix
    called = compiler.log.read_text()
    assert f" {flag} " in called
    assert f"-L {executorch}/lib -lexecutorch -lexecutorch_threadpool -o " in called


# ---- what a wheel brings


@pytest.fixture
def shipped(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library in the package, made by a compiler that is gone."""
    compiler = use(monkeypatch, Compiler(tmp_path, 'echo "$*" > "$2"'))
    compiler.path.write_text(compiler.path.read_text().replace("called", "called $*"))
    kernels.PREBUILT.parent.mkdir(parents=True)
    made = prebuilt.make()
    assert made.is_relative_to(kernels.PREBUILT)
    monkeypatch.setenv("CXX", "no-such-compiler")
    return made


def test_what_the_package_brings_needs_no_compiler(cache: Path, shipped: Path) -> None:
    assert kernels.is_prebuilt()
    assert kernels.build() == kernels.library_path() == shipped
    assert files(cache) == [], "nothing is put into the cache"


def test_what_the_package_brings_finds_executorch_beside_it(shipped: Path, tmp_path: Path) -> None:
    """By a path that holds wherever pip puts both."""
    called = (tmp_path / "log").read_text()
    (search,) = re.findall(r"-rpath,\$ORIGIN/(\S+)", called)
    assert (
        shipped.parent / search
    ).resolve() == tmp_path.resolve() / "packages" / "executorch" / "lib"


def test_what_was_made_of_other_sources_is_not_taken(
    cache: Path, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-g"))
    with pytest.raises(MissingComponentError, match="no-such-compiler"):
        kernels.build()
    use(monkeypatch, Compiler(tmp_path, 'echo library > "$2"'))
    assert kernels.build().is_relative_to(cache)
    assert prebuilt.make() != shipped
    assert files(kernels.PREBUILT) == [shipped.name], "the old one is gone"


def test_a_library_that_cannot_be_made_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Compiler(tmp_path, 'echo half > "$2"; exit 3'))
    kernels.PREBUILT.parent.mkdir(parents=True)
    with pytest.raises(MissingComponentError, match="ended with 3"):
        prebuilt.make()
    assert list(kernels.PREBUILT.parent.iterdir()) == []


# ---- the real library


def test_the_real_library_registers_every_operator() -> None:
    kernels.load()
    assert set(kernels.OPERATORS) <= Runtime.get().operator_registry.operator_names
    assert kernels.load() is kernels.load()


def test_a_second_copy_is_refused_before_it_aborts_the_process() -> None:
    kernels.load()
    with pytest.raises(MissingComponentError, match="another copy"):
        kernels.load.__wrapped__()


def test_a_library_that_does_not_load_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.load()
    use(monkeypatch, Compiler(tmp_path, 'echo "not a library" > "$2"'))
    monkeypatch.setattr(kernels, "OPERATORS", ("tinyqmoe::of_tomorrow.out",))
    with pytest.raises(MissingComponentError, match="does not load") as caught:
        kernels.load.__wrapped__()
    assert str(kernels.library_path().parent) in caught.value.hint


def test_a_library_that_registers_too_little_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.load()
    monkeypatch.setattr(kernels, "OPERATORS", ("tinyqmoe::of_tomorrow.out",))
    with pytest.raises(MissingComponentError, match=r"did not register tinyqmoe::of_tomorrow\.out"):
        kernels.load.__wrapped__()
