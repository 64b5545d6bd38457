"""Imports go one way (CONTRIBUTING.md has the picture). Read from the syntax trees: nothing is
imported."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from tests.support.paths import ROOT

OURS = ("exporter", "runtime_ref", "tinyqmoe")
HEAVY = (
    "torch",
    "torchao",
    "transformers",
    "coremltools",
    "executorch",
    "tokenizers",
    "scipy",
    "pandas",
    "matplotlib",
    "gguf",
    "prompt_toolkit",
    "fastapi",
    "cryptography",
    "ray",
    "submitit",
)

# What a part may import, of ours and of others, besides the standard library. The longest name that
# fits counts.
CODEC = (
    "exporter.codec",
    "exporter.native",
    "exporter.errors",
    "exporter.in_order",
    "exporter.real_files",
    "exporter.strict_json",
)
MODELS = ("exporter.models", "exporter.bundle", "exporter.errors")
CHECKPOINT = (
    "exporter.checkpoint",
    "exporter.bundle",
    "exporter.chat",
    "exporter.guarded",
    "exporter.in_order",
    "exporter.progress",
    "exporter.quiet",
    *MODELS,
)
QUANT = (
    "exporter.quant",
    "exporter.chat_template",
    "exporter.codec.native",
    "exporter.real_files",
    *CHECKPOINT,
)
CONFIG = ("exporter.config", *CODEC, *QUANT)
REFERENCE = (
    "exporter.reference",
    "exporter.encoded",
    "exporter.memory",
    "exporter.session",
    "exporter.backends.package",
    *CONFIG,
)
BACKEND = ("exporter.backends.package", "exporter.encoded", "exporter.quiet", *CONFIG)
RUNNER = (
    "exporter.chat",
    "exporter.native",
    "exporter.guarded",
    "exporter.bundle",
    "exporter.errors",
    "exporter.codec",
    "exporter.quiet",
    "exporter.progress",
    "exporter.memory",
    "exporter.session",
)
RUNNERS = (
    "runtime_ref.generate",
    "runtime_ref.trial",
    "runtime_ref.residency",
    "runtime_ref.memory",
    *RUNNER,
)
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "exporter": ((), ()),
    "exporter.errors": ((), ()),
    "exporter.quiet": ((), ()),
    "exporter.progress": ((), ()),
    "exporter.native": ((), ()),
    "exporter.memory": (("exporter.errors",), ()),
    "exporter.real_files": ((), ()),
    "exporter.interrupts": ((), ()),
    "exporter.in_order": ((), ()),
    "exporter.guarded": ((), ()),
    "exporter.strict_json": ((), ()),
    "exporter.bundle": (
        (
            "exporter.bundle",
            "exporter.codec.plain_bits",
            "exporter.codec.scale_types",
            "exporter.errors",
            "exporter.real_files",
            "exporter.strict_json",
        ),
        ("cryptography",),
    ),
    "exporter.codec": (("exporter.quiet", *CODEC), ("numpy",)),
    "exporter.models": (MODELS, ("torch",)),
    "exporter.chat": ((), ()),
    "exporter.chat_format": (
        (
            "exporter.bundle",
            "exporter.chat",
            "exporter.chat_template",
            "exporter.errors",
            "exporter.guarded",
        ),
        (),
    ),
    "exporter.chat_template": (("exporter.chat", "exporter.errors"), ("jinja2",)),
    "exporter.checkpoint": (
        CHECKPOINT,
        ("torch", "numpy", "huggingface_hub", "transformers", "gguf"),
    ),
    "exporter.quant": (QUANT, ("torch", "numpy", "tokenizers")),
    "exporter.config": (CONFIG, ()),
    "exporter.session": (("exporter.codec", "exporter.errors"), ("numpy",)),
    "exporter.encoded": ((*CODEC, *QUANT), ("numpy", "torch")),
    "exporter.reference": (REFERENCE, ("torch", "numpy", "safetensors", "tokenizers")),
    "exporter.backends.package": (("exporter.backends", *BACKEND), ("torch",)),
    "exporter.backends": (
        ("exporter.backends", *BACKEND),
        ("torch", "numpy", "executorch", "coremltools"),
    ),
    "exporter.apps": (
        ("exporter.bundle", "exporter.native", "exporter.errors", "exporter.staging"),
        (),
    ),
    "exporter.manifest": (
        (
            "exporter.backends.package",
            "exporter.backends.registry",
            "exporter.encoded",
            "exporter.bundle",
            "exporter.chat_format",
            "exporter.codec.scales",
            *QUANT,
        ),
        ("numpy",),
    ),
    "exporter.estimate": (
        ("exporter.estimate", "exporter.manifest", "exporter.backends", *BACKEND, *REFERENCE),
        (),
    ),
    "exporter.evaluation": (
        ("exporter.evaluation", "exporter.chat_template", "exporter.guarded", *REFERENCE),
        ("numpy", "torch", "tokenizers", "matplotlib"),
    ),
    "exporter.allocation": (("exporter.encoded", *CONFIG), ("torch", "numpy")),
    "exporter.staging": (
        ("exporter.bundle", "exporter.errors", "exporter.interrupts", "exporter.real_files"),
        (),
    ),
    "exporter.pipeline": (
        (
            "exporter.manifest",
            "exporter.backends.registry",
            "exporter.estimate",
            "exporter.staging",
            "exporter.allocation",
            "exporter.memory",
            *BACKEND,
            *REFERENCE,
        ),
        (),
    ),
    "exporter.demo": ((), ()),
    "exporter.demo.chat_model": (("exporter.errors", "exporter.progress"), ()),
    "exporter.cli.bundle_tables": (("exporter.bundle",), ("rich",)),
    "exporter.cli.console": (
        ("exporter.cli.narrow", "exporter.errors", "exporter.interrupts"),
        ("typer", "rich"),
    ),
    "exporter.cli.narrow": ((), ("rich",)),
    "exporter.cli.options": (
        (
            "tinyqmoe",
            "exporter.quant",
            "exporter.backends.registry",
            "exporter.bundle",
            "exporter.memory",
            "exporter.errors",
        ),
        ("typer",),
    ),
    "exporter.cli.evaluation_tables": (
        ("exporter.cli.bundle_tables", "exporter.evaluation"),
        ("rich",),
    ),
    "exporter.cli.line_editor": ((), ("prompt_toolkit",)),
    # Before these nothing is imported that takes long.
    "exporter.cli.start": (("exporter.cli.signals", "exporter.cli.app"), ()),
    "exporter.cli.signals": (("exporter.interrupts",), ()),
    # For what is exported, run and judged a command calls the public interface and nothing below.
    "exporter.cli": (
        (
            "tinyqmoe",
            "exporter.backends.registry",
            "exporter.cli",
            "exporter.bundle",
            "exporter.codec",
            "exporter.demo",
            "exporter.errors",
            "exporter.evaluation.figure",
            "exporter.interrupts",
            "exporter.memory",
            "exporter.native",
            "exporter.staging",
            "runtime_ref.coreml",
            "runtime_ref.doctor",
            "runtime_ref.reports",
        ),
        ("typer", "rich"),
    ),
    "runtime_ref": ((), ()),
    "runtime_ref.prompts": (
        ("exporter.chat_template", "runtime_ref.trial", *RUNNER),
        ("tokenizers",),
    ),
    "runtime_ref.notes": (("exporter.real_files",), ("platformdirs",)),
    "runtime_ref.trial": (("runtime_ref.notes", "exporter.guarded"), ()),
    "runtime_ref.known_files": (
        ("runtime_ref.notes", "exporter.bundle", "exporter.real_files"),
        (),
    ),
    "runtime_ref.generate": (("runtime_ref.prompts", *RUNNER), ("numpy", "tokenizers")),
    "runtime_ref.conversation": (("runtime_ref.prompts", "runtime_ref.generate", *RUNNER), ()),
    "runtime_ref.server": (
        ("runtime_ref.server", "runtime_ref.prompts", "runtime_ref.generate", *RUNNER),
        ("fastapi", "pydantic", "starlette", "uvicorn", "h11"),
    ),
    "runtime_ref.residency": (("exporter.real_files", *RUNNER), ("platformdirs",)),
    "runtime_ref.memory": ((), ()),
    "runtime_ref.machine": ((), ("numpy",)),
    "runtime_ref.native": (("runtime_ref.native", *RUNNERS), ("numpy",)),
    "runtime_ref.coreml": (
        ("runtime_ref.coreml", *RUNNERS),
        ("numpy", "torch", "coremltools", "google"),
    ),
    "runtime_ref.executorch": (
        ("runtime_ref.executorch", *RUNNERS),
        ("numpy", "torch", "executorch", "platformdirs"),
    ),
    "runtime_ref.answers": (RUNNER, ("numpy", "safetensors")),
    "runtime_ref.gates": (("runtime_ref.memory", *RUNNER), ()),
    "runtime_ref.sweep_table": (RUNNER, ()),
    "runtime_ref.stored_weights": (("runtime_ref.generate", *RUNNER), ("numpy",)),
    "runtime_ref.parity": (
        (
            "runtime_ref.answers",
            "runtime_ref.generate",
            "runtime_ref.stored_weights",
            *RUNNER,
        ),
        ("numpy",),
    ),
    # It names the runners' modules as text, and imports one when it is used.
    "runtime_ref.runners": (
        ("runtime_ref.native.package", "runtime_ref.coreml.real_package", *RUNNERS),
        (),
    ),
    "runtime_ref.doctor": (("runtime_ref.executorch", *RUNNER), ("packaging", "platformdirs")),
    "runtime_ref.device": (
        (
            "runtime_ref.device",
            "runtime_ref.prompts",
            "runtime_ref.runners",
            "runtime_ref.parity",
            *RUNNERS,
        ),
        ("numpy", "tokenizers", "safetensors"),
    ),
    "runtime_ref.reports": (
        (
            "runtime_ref.reports",
            "runtime_ref.device",
            "runtime_ref.gates",
            "runtime_ref.sweep_table",
            "runtime_ref.parity",
            "runtime_ref.memory",
            *RUNNER,
        ),
        ("rich", "jinja2", "junitparser", "matplotlib"),
    ),
    "tinyqmoe": (OURS, ()),
    "tinyqmoe.hub": (OURS, ("huggingface_hub", "platformdirs")),
    "tinyqmoe.sweep_executors": (OURS, ("ray", "submitit")),
}

# Besides the C++ standard library, the core and sessions ask the processor what it can do, and the
# system for pages and files.
MACHINE_HEADERS = {
    "immintrin.h",
    "arm_neon.h",
    "wasm_simd128.h",
    "sys/auxv.h",
    "sys/sysctl.h",
    "cpuid.h",
    "asm/hwcap.h",
}
MACHINE_HEADERS |= {"fcntl.h", "unistd.h", "sys/file.h", "sys/mman.h", "sys/stat.h"}
C_HEADERS = {
    "float.h",
    "inttypes.h",
    "limits.h",
    "math.h",
    "stdbool.h",
    "stddef.h",
    "stdint.h",
    "stdlib.h",
    "string.h",
}


def python_files() -> list[Path]:
    return sorted(f for package in OURS for f in (ROOT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def rule_for(module: str) -> str:
    fitting = [name for name in RULES if is_within(module, name)]
    best = max(fitting, key=len)
    # `exporter` itself has a rule for its __init__ only: a new module has to say where it stands.
    assert best != "exporter" or module == "exporter", f"{module} has no line in RULES: give it one"
    return best


class Imports(ast.NodeVisitor):
    """All imports of a module: (line, name, whether inside a function, whether for type checkers
    only)."""

    def __init__(self, tree: ast.AST) -> None:
        self.found: list[tuple[int, str, bool, bool]] = []
        self.in_function = self.for_types = False
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [
            (node.lineno, alias.name, self.in_function, self.for_types) for alias in node.names
        ]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        module = node.module or ""
        # `from exporter import bundle` names a module, `from exporter.bundle import Bundle`
        # something in one.
        names = [f"{module}.{a.name}" for a in node.names] if self._is_package(module) else [module]
        self.found += [(node.lineno, name, self.in_function, self.for_types) for name in names]

    @staticmethod
    def _is_package(module: str) -> bool:
        return module.split(".")[0] in OURS and (ROOT / module.replace(".", "/")).is_dir()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outside, self.in_function = self.in_function, True
        self.generic_visit(node)
        self.in_function = outside

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)
            return
        self.for_types = True
        for child in node.body:
            self.visit(child)
        self.for_types = False
        for child in node.orelse:
            self.visit(child)


def imports(file: Path) -> list[tuple[int, str, bool, bool]]:
    return Imports(ast.parse(file.read_text(encoding="utf-8"), str(file))).found


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_module_imports_only_what_its_layer_may(file: Path) -> None:
    module = module_name(file)
    rule = rule_for(module)
    ours, others = RULES[rule]
    wrong = []
    for line, name, _, _ in imports(file):
        top = name.split(".")[0]
        from_outside = top in others or top in sys.stdlib_module_names
        if not (any(is_within(name, p) for p in ours) if top in OURS else from_outside):
            wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, (
        f"{rule} may import {', '.join([*ours, *others]) or 'nothing'} and the standard library"
    )


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_exporter_meets_runtime_ref_only_inside_commands(file: Path) -> None:
    if not is_within(module_name(file), "exporter"):
        return
    for line, name, in_function, for_types in imports(file):
        if is_within(name, "runtime_ref"):
            assert file.parent.name == "cli", f"{file.relative_to(ROOT)}:{line}"
            assert in_function or for_types, (
                f"{file.relative_to(ROOT)}:{line} is not inside a command"
            )


@pytest.mark.parametrize("file", python_files(), ids=module_name)
def test_the_public_interface_imports_at_once_only_what_is_light(file: Path) -> None:
    """`import tinyqmoe` must not wait for what a function may never need."""
    light = ("tinyqmoe", "exporter.bundle", "exporter.config", "exporter.errors")
    if not is_within(module_name(file), "tinyqmoe"):
        return
    for line, name, in_function, for_types in imports(file):
        if name.split(".")[0] in OURS and not (in_function or for_types):
            assert any(is_within(name, p) for p in (*light, "exporter.progress")), (
                f"{file.relative_to(ROOT)}:{line} imports {name} outside functions"
            )


def test_the_rules_name_modules_that_exist() -> None:
    known = {module_name(f) for f in python_files()}
    assert set(RULES) <= known


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom exporter import bundle\n"
        "if TYPE_CHECKING:\n    from exporter.quant.tensor import X\ndef f():\n    import "
        "runtime_ref.parity\n"
    )
    assert imports(file) == [
        (1, "typing", False, False),
        (2, "exporter.bundle", False, False),
        (4, "exporter.quant.tensor", False, True),
        (6, "runtime_ref.parity", True, False),
    ]


def test_the_cpp_core_includes_only_itself_and_the_standard_library() -> None:
    native = ROOT / "exporter" / "native"
    files = [
        f
        for folder in ("core", "llm", "include")
        for f in (native / folder).rglob("*")
        if f.suffix in (".h", ".cc")
    ]
    assert len(files) > 10
    wrong = []
    for file in files:
        for kind, name in re.findall(
            r'^\s*#\s*include\s*([<"])([^>"]+)', file.read_text(encoding="utf-8"), re.M
        ):
            if kind == '"':
                folders = {file.parent, native / "core", native / "include"}
                allowed = any((folder / name).is_file() for folder in folders)
            else:
                allowed = (
                    "." not in name or name in C_HEADERS | MACHINE_HEADERS
                )  # <vector> is standard, <x/y.h> is not
            if not allowed:
                wrong.append(f"{file.relative_to(ROOT)} includes {name}")
    assert not wrong


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--version"], ["export", "--help"], ["native-dir"], ["run", "--bogus"]],
)
def test_the_command_line_starts_without_heavy_packages(
    arguments: list[str], tmp_path: Path
) -> None:
    """They take many seconds to import: what needs none of them must not wait for them."""
    script = (
        "import json, sys\nfrom exporter.cli import app\nsys.argv[1:] = json.loads(sys.argv[1])\n"
        "try:\n    app.app() if sys.argv[1:] else None\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted(set(sys.modules) & set({HEAVY})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_public_interface_is_imported_without_heavy_packages(tmp_path: Path) -> None:
    script = f"import sys, tinyqmoe\nprint(sorted(set(sys.modules) & set({(*HEAVY, 'numpy')})))\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == "[]\n"


# A run in the core needs numpy, the tokenizer and, for a chat, the template engine. The real
# runtime needs PyTorch, and nothing that exports or compiles.
NEVER = ("transformers", "executorch.exir", "torch._dynamo", "torch._inductor", "coremltools")


RUN = ("run", "--prompt", "the cat", "--max-new-tokens", "2")


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        (RUN, ("torch", "executorch", *NEVER)),
        ((*RUN, "--chat"), ("torch", "executorch", *NEVER)),
        ((*RUN, "--verify", "all", "--residency", "expand"), ("torch", "executorch", *NEVER)),
        ((*RUN, "--backend", "executorch"), NEVER),
        (("chat", "--max-new-tokens", "2"), ("torch", "executorch", *NEVER)),
        (("parity",), (*NEVER, "matplotlib", "junitparser")),
    ],
    ids=["native", "a chat prompt", "verified", "executorch", "chat", "parity"],
)
def test_a_run_imports_only_what_it_needs(
    command: tuple[str, ...], absent: tuple[str, ...], bundle: Bundle, tmp_path: Path
) -> None:
    """What takes seconds to import keeps a user waiting for the first token."""
    name, *options = command
    arguments = [name, str(bundle.path), *options]
    script = (
        "import json, sys\nfrom exporter.cli import app\nsys.argv[1:] = json.loads(sys.argv[1])\n"
        "try:\n    app.app()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('LOADED', 'numpy' in sys.modules, sorted(set(sys.modules) & set({absent})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)],
        input="hello\n" if name == "chat" else "",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED True []"
