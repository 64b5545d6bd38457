"""The command line as a user meets it: help, exit codes, one message an error, JSON and nothing
else on stdout."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from exporter import bundle as bundles
from exporter import pipeline, staging
from exporter.bundle import Bundle
from exporter.cli import app, console
from exporter.errors import MissingComponentError
from exporter.quiet import VERBOSE, quiet
from runtime_ref import doctor, generate, parity
from runtime_ref.doctor import Finding
from runtime_ref.executorch import kernels
from tests.support.bundles import patch
from tests.support.command_line import one_error, strict_json, tinyqmoe
from tinyqmoe import generation, judging

SCRIPT = Path(sysconfig.get_path("scripts")) / "tinyqmoe"
COMMANDS = [c.name or c.callback.__name__ for c in app.app.registered_commands if c.callback]


def raising(error: BaseException) -> Any:
    def function(*args: Any, **options: Any) -> None:
        raise error

    return function


# Help


def test_all_commands_are_here() -> None:
    assert COMMANDS == [
        "export",
        "run",
        "chat",
        "serve",
        "parity",
        "check",
        "sweep",
        "report",
        "compare",
        "bench",
        "devices",
        "fit",
        "expand",
        "inspect",
        "sign",
        "verify",
        "push",
        "demo",
        "doctor",
        "eval",
        "app-files",
        "native-dir",
    ]


def test_help_lists_the_commands_and_no_arguments_is_help() -> None:
    helped, bare = tinyqmoe("--help"), tinyqmoe()
    assert helped.exit_code == 0
    assert all(name in helped.stdout for name in COMMANDS)
    assert bare.output.strip() == helped.output.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    result = tinyqmoe(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout, "every command has --json"


def test_version() -> None:
    assert tinyqmoe("--version").stdout.startswith("tinyqmoe 0.")


def test_shell_completion() -> None:
    def complete(**variables: str) -> str:
        env = {**os.environ, **variables}
        return subprocess.run([SCRIPT], env=env, capture_output=True, text=True, check=False).stdout

    assert "complete -o default -F _tinyqmoe_completion tinyqmoe" in complete(
        _TINYQMOE_COMPLETE="source_bash"
    )
    words = complete(_TINYQMOE_COMPLETE="complete_bash", COMP_WORDS="tinyqmoe ex", COMP_CWORD="1")
    assert words.split() == ["export", "expand"]
    schemes = complete(
        _TINYQMOE_COMPLETE="complete_bash", COMP_WORDS="tinyqmoe export --scheme ", COMP_CWORD="3"
    )
    assert schemes.split() == ["auto", "int4", "int8", "ternary", "mixed"]
    phones = complete(
        _TINYQMOE_COMPLETE="complete_bash",
        COMP_WORDS="tinyqmoe parity B --device iphone-1",
        COMP_CWORD="4",
    )
    assert "iphone-13" in phones.split()
    assert all(name.startswith("iphone-1") for name in phones.split())
    every = complete(
        _TINYQMOE_COMPLETE="complete_bash", COMP_WORDS="tinyqmoe fit B --device a", COMP_CWORD="4"
    )
    assert "all" in every.split()
    one = complete(
        _TINYQMOE_COMPLETE="complete_bash", COMP_WORDS="tinyqmoe chat B --device a", COMP_CWORD="4"
    )
    assert "all" not in one.split()


# Exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["export"],
        ["export", "only-a-model"],
        ["export", "m", "o", "--scheme", "float"],
        ["export", "m", "o", "--target", "toaster"],
        ["export", "m", "o", "--group-size", "0"],
        ["export", "m", "o", "--scheme", "ternary", "--sparsity", "1.5"],
        ["export", "m", "o", "--scheme", "int8", "--sparsity", "0.5"],
        ["export", "m", "o", "--scheme", "int4", "--recover", "5"],
        ["export", "m", "o", "--scheme", "ternary", "--recover", "-1"],
        ["export", "m", "o", "--scheme", "ternary", "--recover", "5", "--calibration", "none"],
        ["run", "b", "--prompt", "x", "--max-new-tokens", "0"],
        ["run", "b", "--prompt", "x", "--temperature", "-1"],
        ["run", "b", "--prompt", "x", "--top-p", "0"],
        ["inspect", "b", "--tensor"],
        ["parity", "b", "--json", "no-such-directory/x.json"],
        ["parity", "b", "--json", "."],
    ],
)
def test_wrong_usage_is_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tinyqmoe(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rror" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_checkpoint_is_3(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = one_error(tinyqmoe("export", tmp_path / "empty", tmp_path / "out"), 3)
    assert "config.json" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


def test_an_existing_output_is_2_and_stays(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    message = one_error(tinyqmoe("export", checkpoint, tmp_path), 2)
    assert "--force" in message
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("command", [["inspect"], ["parity"], ["run", "--prompt", "x"]])
def test_no_bundle_is_3(command: list[str], tmp_path: Path) -> None:
    assert "not a bundle" in one_error(tinyqmoe(*command, tmp_path), 3)


@pytest.mark.parametrize("command", [["inspect"], ["parity"], ["run", "--prompt", "x"]])
def test_a_changed_bundle_is_3(command: list[str], copied: Bundle) -> None:
    with (copied.path / bundles.PROGRAM).open("ab") as file:
        file.write(b"x")
    assert bundles.PROGRAM in one_error(tinyqmoe(*command, copied.path), 3)


def test_a_missing_component_is_5(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernels, "load", raising(MissingComponentError("no compiler", hint="install one"))
    )
    assert "Next step: install one" in one_error(tinyqmoe("parity", bundle.path), 5)


def test_a_missing_package_is_5(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernels, "load", raising(ModuleNotFoundError("No module named 'executorch'"))
    )
    assert "tinyqmoe doctor" in one_error(tinyqmoe("parity", bundle.path), 5)


@pytest.mark.parametrize(
    ("command", "option"), [("run", "--plot"), ("parity", "--junit"), ("parity", "--html")]
)
@pytest.mark.parametrize("package", ["matplotlib", "junitparser"])
def test_a_missing_extra_is_5_with_its_pip_line_before_any_work(
    command: str, option: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = tinyqmoe(command, "no-such-bundle", option, tmp_path / "report")
    message = one_error(result, 5)
    assert f"writing report needs packages that are not installed: {package}\n" in message
    assert "Next step: pip install 'tiny-qmoe[report]'" in message
    assert list(tmp_path.iterdir()) == []


def test_no_coremltools_is_5_before_any_work(
    both: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine for which it has no build."""
    monkeypatch.setitem(sys.modules, "coremltools", None)
    monkeypatch.setattr(judging, "judge", raising(AssertionError("a package was run")))
    for command in (
        ("export", checkpoint, tmp_path / "out", "--target", "both"),
        ("parity", both),
        ("run", both, "--backend", "coreml", "--prompt", "x"),
    ):
        message = one_error(tinyqmoe(*command), 5)
        assert "needs packages that are not installed: coremltools\n" in message
        assert "Linux on x86-64" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/there"),
            3,
            "Permission denied: /there",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "the disk is full"),
        (MemoryError(), 4, "out of memory"),
    ],
)
def test_errors_of_the_system(
    error: Exception, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "export", raising(error))
    assert message in one_error(tinyqmoe("export", "model", "out"), code)


def test_an_interrupt_is_130_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export", raising(KeyboardInterrupt()))
    result = tinyqmoe("export", "model", "out")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("coded", [0, 2])
def test_a_signal_lets_an_export_clean_up(
    tmp_path: Path, number: int, code: int, coded: int
) -> None:
    """What is coded stays, and that is said."""
    script = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom exporter import "
        "pipeline, staging\nfrom exporter.cli import start\n"
        "def export(model, out, *args, **options):\n"
        "    with staging.staging_directory(out, {}, force=False, resume=False) as place:\n"
        f"        [(place.coded / f'{{i}}.json').touch() for i in range({coded})]\n"
        f"        os.kill(os.getpid(), {number:d})\n        time.sleep(60)\n"
        "pipeline.export = export\nsys.argv[1:] = ['export', 'model', sys.argv[1]]\nstart.main()\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    left = tmp_path / ".out.partial"
    said = (
        f"{coded} coded matrices are kept in {left}: the same command with --resume goes on "
        "from there\n"
    )
    assert done.stderr.decode() == (said if coded else "")
    assert list(tmp_path.iterdir()) == ([left] if coded else [])


SWALLOWED = """
try:
    os.kill(os.getpid(), NUMBER)
    time.sleep(60)
except BaseException:
    pass
time.sleep(60)
"""
ANOTHER_ERROR = """
try:
    os.kill(os.getpid(), NUMBER)
    time.sleep(60)
except BaseException:
    raise ERROR("initialization failed") from None
"""
NATIVE = """
import ctypes, threading
threading.Timer(0.2, os.kill, (os.getpid(), NUMBER)).start()
ctypes.CDLL(None).usleep(60_000_000)
"""
TWICE = """
import shutil, threading
shutil.rmtree = lambda *_, **__: time.sleep(60)
threading.Timer(2, os.kill, (os.getpid(), NUMBER)).start()
os.kill(os.getpid(), NUMBER)
time.sleep(60)
"""
IMPORT = """
Path("slow_module.py").write_text("import os, time; os.kill(os.getpid(), NUMBER); time.sleep(60)")
sys.path.insert(0, ".")
try:
    import slow_module
except BaseException:
    os.abort()
"""
MOMENTS = {
    "in an import that aborts": IMPORT,
    "swallowed by an import": SWALLOWED,
    "another error, a bug": ANOTHER_ERROR.replace("ERROR", "RuntimeError"),
    "another error of an import": ANOTHER_ERROR.replace("ERROR", "ImportError"),
    "in native code": NATIVE,
    "a second one while the first is obeyed": TWICE,
}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_is_obeyed_wherever_it_falls(
    tmp_path: Path, number: int, code: int, moment: str
) -> None:
    """What is coded stays, and that is said. The limit is far below the 60 s of the work."""
    work = textwrap.indent(MOMENTS[moment].replace("NUMBER", str(int(number))), 8 * " ")
    script = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom exporter import "
        "pipeline, staging\nfrom exporter.cli import start\n"
        "def export(model, out, *args, **options):\n"
        "    with staging.staging_directory(out, {}, force=False, resume=False) as place:\n"
        "        (place.coded / '0.json').touch()\n"
        f"{work}\n"
        "pipeline.export = export\nsys.argv[1:] = ['export', 'model', sys.argv[1]]\nstart.main()\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    said = done.stderr.decode()
    assert "Traceback" not in said
    assert "error" not in said
    assert moment == "a second one while the first is obeyed" or "--resume goes on" in said
    left = staging.staging_directory_of(tmp_path / "out")
    assert left.finished == 1
    with staging.staging_directory(tmp_path / "out", {}, force=False, resume=True) as place:
        assert place.finished == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("module", ["exporter.cli.app", "typer", "rich.console"])
def test_a_signal_in_the_first_imports(number: int, code: int, module: str) -> None:
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {number:d})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from exporter.cli.start import main\n"
        "sys.argv[1:] = ['--version']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_a_bug_is_70_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "app", raising(ZeroDivisionError("oops")))
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 70
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_141_and_says_nothing(bundle: Bundle) -> None:
    for command in (
        ["native-dir"],
        ["inspect", bundle.path],
        ["inspect", bundle.path, "--json", "-"],
    ):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([SCRIPT, *command], stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b""), command


def test_a_failed_verdict_is_1_and_still_json(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = parity.Check("levels", "[red] wrong", False, positions=1, kl_worst=float("inf"))
    gate = parity.TOLERANCES["int16", "float16"]
    report = parity.ParityReport("executorch", "int16", "float16", gate, [check])
    monkeypatch.setattr(judging, "open_runner", lambda *_, **__: None)
    monkeypatch.setattr(judging, "judge", lambda *_: report)
    result = tinyqmoe("parity", bundle.path, "--json", "-")
    assert result.exit_code == 1
    assert strict_json(result.stdout)["passed"] is False
    shown = tinyqmoe("parity", bundle.path)
    assert shown.exit_code == 1
    assert "FAIL" in shown.stdout
    assert "[red] wrong" in shown.stdout


# Results


def test_inspect(bundle: Bundle) -> None:
    data = strict_json(tinyqmoe("inspect", bundle.path, "--json", "-").stdout)
    assert sum(row["n_bytes"] for row in data["ledger"]) == data["size_bytes"] == bundle.size_bytes
    assert len(data["manifest"]["tensors"]) == len(bundle.manifest.tensors)
    shown = tinyqmoe("inspect", bundle.path, "--tensors").stdout
    assert f"{bundle.size_bytes:,}" in shown
    ((name, digest),) = bundle.manifest.model.source_sha256.items()
    assert f"{digest[:16]}… of {name}" in shown
    assert all(
        t.name.removeprefix("model.").removesuffix(".weight") in shown
        for t in bundle.manifest.tensors
    )


def test_names_are_not_markup(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "[red] :cat:")
    assert "Every byte of [red] :cat:" in tinyqmoe("inspect", tmp_path / "[red] :cat:").stdout


def test_json_to_a_file_also_shows(bundle: Bundle, tmp_path: Path) -> None:
    result = tinyqmoe("inspect", bundle.path, "--json", tmp_path / "x.json")
    assert "Every byte" in result.stdout
    data = strict_json((tmp_path / "x.json").read_text())
    assert data["manifest"]["schema_version"] == bundles.SCHEMA_VERSION


def test_run_prints_the_text_and_nothing_else(bundle: Bundle) -> None:
    prompt = "the cat sat :cat: [bold]on[/]"
    shown = tinyqmoe("run", bundle.path, "--prompt", prompt, "--max-new-tokens", "6")
    data = strict_json(
        tinyqmoe(
            "run", bundle.path, "--prompt", prompt, "--max-new-tokens", "6", "--json", "-"
        ).stdout
    )
    assert shown.stdout == f"{prompt}{data['text']}\n"
    assert "tokens/s" in shown.stderr
    assert 0 < len(data["tokens"]) <= 6
    assert data["stopped"] in ("eos", "limit")


def test_parity_of_a_good_bundle(bundle: Bundle) -> None:
    result = tinyqmoe("parity", bundle.path, "--json", "-")
    assert result.exit_code == 0, result.output
    assert strict_json(result.stdout)["passed"] is True


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with all three packages, made on the command line."""
    out = tmp_path_factory.mktemp("both") / "out"
    options = ("--target", "both", "--coreml-format", "both", "--context", "48")
    result = tinyqmoe("export", checkpoint, out, *options)
    assert result.exit_code == 0, result.output
    assert "model.weights.tqlz" in result.stdout
    return out


def test_target_decides_the_packages(both: Path) -> None:
    manifest = Bundle.open(both).manifest
    assert [(a.format, a.backend) for a in manifest.artifacts] == [
        ("pte", "executorch"),
        ("mlprogram", "coreml"),
        ("custom-op", "coreml"),
    ]
    assert {"executorch", "coremltools"} < manifest.tools.keys()


def test_parity_of_all_packages_stands_side_by_side(both: Path) -> None:
    shown = tinyqmoe("parity", both, "--backend", "all")
    assert shown.exit_code == 0, shown.output
    for name in ("executorch", "Core ML mlprogram", "Core ML custom-op"):
        assert re.search(rf"{name}: (int16|float16) activations", " ".join(shown.stdout.split()))
    data = strict_json(tinyqmoe("parity", both, "--backend", "coreml", "--json", "-").stdout)
    assert data["passed"] is True
    assert [p["backend"] for p in data["packages"]] == ["Core ML mlprogram", "Core ML custom-op"]


def test_packages_say_the_same(both: Path) -> None:
    options = ("--prompt", "the cat", "--max-new-tokens", "4", "--json", "-")
    for name in ("native", "executorch", "coreml", "mlprogram", "custom-op"):
        assert (
            len(strict_json(tinyqmoe("run", both, "--backend", name, *options).stdout)["tokens"])
            <= 4
        )
    first, again = (
        tinyqmoe("run", both, *backend, *options).stdout
        for backend in ((), ("--backend", "executorch"))
    )
    assert strict_json(first)["tokens"] == strict_json(again)["tokens"]


def test_a_run_is_native_unless_told_otherwise(bundle: Bundle) -> None:
    """Threads are taken by sessions alone, and make no difference."""
    command = ("run", bundle.path, "--prompt", "the cat", "--max-new-tokens", "4", "--json", "-")
    tokens = [
        strict_json(tinyqmoe(*command, *options).stdout)["tokens"]
        for options in ((), ("--threads", "1"), ("--backend", "native", "--threads", "3"))
    ]
    assert tokens[0] == tokens[1] == tokens[2]
    for options in (("--backend", "executorch"), ("--device", "iphone-13")):
        assert "--threads" in one_error(tinyqmoe(*command, "--threads", "2", *options), 2)


def test_a_run_verifies_what_it_reads_or_all(copied: Bundle) -> None:
    command = ("run", copied.path, "--prompt", "the cat", "--max-new-tokens", "2")
    reference = copied.path / bundles.REFERENCE
    reference.write_bytes(reference.read_bytes()[:-1] + b"?")
    assert tinyqmoe(*command).exit_code == 0
    assert f"{bundles.REFERENCE} has been changed" in one_error(
        tinyqmoe(*command, "--verify", "all"), 3
    )
    patch(copied, 100, b"????")
    assert f"{bundles.PROGRAM} has been changed" in one_error(tinyqmoe(*command), 3)


def test_a_package_that_is_not_there_is_told(bundle: Bundle) -> None:
    for command in (("run", "--prompt", "x"), ("parity",)):
        result = tinyqmoe(command[0], bundle.path, *command[1:], "--backend", "coreml")
        assert "it has pte (executorch)" in one_error(result, 2)
    assert "no package for mlprogram" in one_error(tinyqmoe("expand", bundle.path), 2)


def test_expand(both: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mlpackage"
    data = strict_json(tinyqmoe("expand", both, target, "--json", "-").stdout)
    sizes = {path: (target / path).stat().st_size for path in data["weight_files_bytes"]}
    assert sizes == data["weight_files_bytes"]
    assert "already exists" in one_error(tinyqmoe("expand", both, target), 2)
    assert tinyqmoe("expand", both, target, "--force").exit_code == 0


def test_groups_an_ml_program_cannot_hold_are_refused_at_once(
    checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--target", "ios", "--group-size", "32")
    message = one_error(tinyqmoe("export", checkpoint, tmp_path / "out", *options), 2)
    assert message.count("columns are no multiple of 32") == 15
    assert "custom-op" in message
    assert list(tmp_path.iterdir()) == []


def test_native_dir() -> None:
    path = Path(tinyqmoe("native-dir").stdout.rstrip("\n"))
    assert (path / "include" / "tinyqmoe" / "tinyqmoe.h").is_file()
    assert strict_json(tinyqmoe("native-dir", "--json", "-").stdout)["native_dir"] == str(path)


def test_doctor_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("Python", True, "3.11")])
    result = tinyqmoe("doctor", "--json", "-")
    found = {"what": "Python", "ok": True, "found": "3.11", "do": ""}
    assert strict_json(result.stdout)["findings"] == [found]


def test_infinity_becomes_null(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    result = generate.RunResult([1], [2], "x", "limit", float("inf"), float("nan"))
    monkeypatch.setattr(generation.PackageInUse, "open", lambda *_: None)
    monkeypatch.setattr(generate, "TextStream", lambda *_: SimpleNamespace(result=result))
    data = strict_json(tinyqmoe("run", bundle.path, "--prompt", "the", "--json", "-").stdout)
    assert (data["prefill_ms"], data["decode_ms"]) == (None, None)


def test_libraries_say_nothing_on_a_users_terminal(bundle: Bundle) -> None:
    """In a process of its own, where importing and loading everything has still to happen."""
    command = [
        SCRIPT,
        "run",
        bundle.path,
        "--prompt",
        "the cat",
        "--max-new-tokens",
        "3",
        "--json",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert strict_json(done.stdout)["text"]


@pytest.mark.long
def test_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, "demo", tmp_path / "demo", "--json", "-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    data = strict_json(done.stdout)
    passed = {name: of["parity"]["passed"] for name, of in data["bundles"].items()}
    assert passed == {"int8": True, "ternary": True}


# Quiet


def chatter(text: str) -> None:
    os.write(2, text.encode())
    logging.getLogger("library").warning(text)
    warnings.warn(text, stacklevel=2)


def test_quiet_holds_back_chatter_only(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before ")
    with quiet():
        chatter("inside")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"
    assert logging.root.manager.disable == logging.NOTSET


def test_quiet_shows_what_was_said_before_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def load() -> None:
        chatter("the cause")
        raise RuntimeError

    with pytest.raises(RuntimeError), quiet():
        load()
    assert "the cause" in capfd.readouterr().err


def test_quiet_stays_so_when_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    def load() -> None:
        chatter("inside")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), quiet():
        load()
    assert capfd.readouterr().err == ""


def test_quiet_can_be_switched_off(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VERBOSE, "1")
    with quiet():
        os.write(2, b"all of it")
    assert capfd.readouterr().err == "all of it"


def test_progress_is_for_terminals(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with console.progress_bars() as progress:
        progress("stage one", 1, 2)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setattr(console, "err_console", Console(stderr=True))
    with console.progress_bars() as progress, quiet():
        progress("stage two", 1, 2)
    assert "stage two" in capfd.readouterr().err
