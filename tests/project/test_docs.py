"""The documentation against the tree: recipes, links, paths, commands, and the width of prose."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import pytest
import typer.core
import typer.main

from exporter.cli.app import app
from tests.support.paths import ROOT

WIDTH = 100
FOLDERS = (
    "docs",
    "exporter",
    "runtime_ref",
    "tests",
    "tinyqmoe",
    "benchmarks",
    "tools",
    "android_demo",
    "web_demo",
    "ios_demo",
)
TEMPLATES = ROOT / "runtime_ref" / "reports" / "templates"  # rendered, not read
PROFILES = ROOT / "runtime_ref" / "device" / "profiles"
COMMAND_LINE = cast(typer.core.TyperGroup, typer.main.get_command(app))
MAX_EDITS = {"a backend": 3, "a quantization scheme": 1, "a model family": 0, "a device": 1}

PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`]+)`")


def pages() -> list[Path]:
    """All Markdown of the project that people read."""
    nested = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md")]
    return sorted(f for f in [*ROOT.glob("*.md"), *nested] if TEMPLATES not in f.parents)


PAGES = pages()
of_each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[p.relative_to(ROOT).as_posix() for p in PAGES]
)


def split_fences(text: str) -> tuple[list[tuple[int, str]], list[tuple[str, str]]]:
    """The lines outside of code blocks, with their numbers; and the blocks, as (language, code)."""
    prose, blocks = [], []
    language: str | None = None
    code: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and language is None:
            language, code = fence[1], []
        elif fence and language is not None:
            blocks.append((language, "\n".join(code)))
            language = None
        elif language is None:
            prose.append((number, line))
        else:
            code.append(line)
    assert language is None, "a code block is not closed"
    return prose, blocks


def prose_of(page: Path) -> str:
    return "\n".join(line for _, line in split_fences(page.read_text(encoding="utf-8"))[0])


def blocks_of(page: Path, language: str) -> list[str]:
    return [c for name, c in split_fences(page.read_text(encoding="utf-8"))[1] if name == language]


# ---- Prose ---------------------------------------------------------------------------------------


@of_each_page
def test_prose_is_wrapped(page: Path) -> None:
    """Tables and code keep their lines; the target of a link does not count."""
    wide = [
        f"line {number}: {len(line)} columns"
        for number, line in split_fences(page.read_text(encoding="utf-8"))[0]
        if not line.startswith("|") and len(LINK.sub("]", line)) > WIDTH
    ]
    assert not wide


@of_each_page
def test_links_to_files_resolve(page: Path) -> None:
    targets = [t for t in LINK.findall(prose_of(page)) if not re.match(r"https?:|mailto:|#", t)]
    missing = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert not missing


@of_each_page
def test_paths_that_are_named_exist(page: Path) -> None:
    """In code spans, from the root of the project: `docs/devices.md`. A change log may be old."""
    if page.name == "CHANGELOG.md":
        return
    missing = [path for path in PATH.findall(prose_of(page)) if not (ROOT / path).exists()]
    assert not missing


def test_the_tests_of_each_fault_exist() -> None:
    """`FILE::NAME`, where a FILE that is left out is the one before it in the row."""
    named = re.findall(r"\| (`[\w/]+\.py::.*) \|", prose_of(ROOT / "docs" / "security.md"))
    assert named
    for row in named:
        file = ""
        for span in SPAN.findall(row):
            path, name = span.split("::")
            file = path or file
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {name}(" in text, span


def test_the_index_leads_to_every_page_of_docs() -> None:
    linked = set(LINK.findall(prose_of(ROOT / "docs" / "index.md")))
    assert {f.name for f in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_the_readme_has_the_commands_that_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r'^(?:demo|tests)="(.*)"$', script, re.MULTILINE)
    assert len(commands) == 2
    lines = [line for code in blocks_of(ROOT / "README.md", "sh") for line in code.splitlines()]
    assert set(commands) <= set(lines)


# ---- Commands ------------------------------------------------------------------------------------


def commands_of(page: Path) -> Iterator[list[str]]:
    """The arguments of each `tinyqmoe ...` in code blocks and code spans."""
    shell = [line for code in blocks_of(page, "sh") for line in code.splitlines()]
    for text in [*shell, *SPAN.findall(" ".join(prose_of(page).split()))]:
        for part in text.split("&&"):
            if re.match(r"\s*(\.venv/bin/)?tinyqmoe\s", part):
                yield shlex.split(part, comments=True)[1:]


def values_of(hint: Any) -> list[str] | None:
    """What an option of this type takes, if it is one of a list of names."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [str(member.value) for member in hint]
    return next((found for part in get_args(hint) if (found := values_of(part))), None)


def problem_of(arguments: list[str]) -> str | None:
    """What the command line would refuse. Values in capitals, and `…`, stand for any value."""
    devices = [file.stem for file in PROFILES.glob("*.toml")]
    command = COMMAND_LINE
    if not arguments[0].startswith("-"):
        name = arguments[0]
        if name not in COMMAND_LINE.commands:
            return f"there is no command {name}"
        command, arguments = COMMAND_LINE.commands[name], arguments[1:]
    hints = get_type_hints(command.callback)
    options = {name: p for p in command.params for name in [*p.opts, *p.secondary_opts]}
    n_arguments = sum(not name.startswith("-") for name in options)
    takes_any_number = any(p.nargs == -1 for p in command.params)
    rest = iter(arguments)
    for word in rest:
        if word in ("…", "...", "--help"):
            continue
        if not word.startswith("-"):
            n_arguments -= 1
            if n_arguments < 0 and not takes_any_number:
                return f"{word} is one argument too many"
        elif word not in options:
            return f"{command.name} has no option {word}"
        elif not options[word].is_flag:
            value, known = next(rest, "…"), values_of(hints.get(options[word].name))
            if word == "--device":
                known = ["all", *devices]
            if known and re.fullmatch("[a-z0-9-]+", value) and value not in known:
                return f"{word} does not take {value}, only {', '.join(known)}"
    return None


@of_each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    problems = {" ".join(words): problem_of(words) for words in commands_of(page)}
    assert {command: problem for command, problem in problems.items() if problem} == {}


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("export MODEL OUT --scheme int8 --device NAME", None),
        ("export MODEL OUT --scheme … --json FILE|-", None),
        ("compare A B C --text FILE", None),
        ("--install-completion", None),
        ("devour OUT", "there is no command devour"),
        ("run BUNDLE --prompt TEXT --promise", "run has no option --promise"),
        ("run BUNDLE MODEL --prompt TEXT", "MODEL is one argument too many"),
        ("export MODEL OUT --codec zip", "--codec does not take zip, only auto, lzw, raw"),
    ],
)
def test_a_wrong_command_is_seen(command: str, problem: str | None) -> None:
    assert problem_of(command.split()) == problem


def test_the_index_has_every_command() -> None:
    named = {words[0] for words in commands_of(ROOT / "docs" / "index.md")}
    assert set(COMMAND_LINE.commands) - named == set()


def test_the_python_of_the_readme_calls_what_exists() -> None:
    """Names and arguments of the functions of `tinyqmoe`; nothing is run."""
    calls = [
        node
        for code in blocks_of(ROOT / "README.md", "python")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tinyqmoe.")
    ]
    assert calls
    package = importlib.import_module("tinyqmoe")
    for call in calls:
        function = getattr(package, ast.unparse(call.func).removeprefix("tinyqmoe."))
        keywords = {str(k.arg): ast.unparse(k.value) for k in call.keywords}
        inspect.signature(function).bind(*call.args, **keywords)


# ---- Recipes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What CONTRIBUTING.md says of adding one kind of thing."""

    name: str
    n_edits: int  # as its first sentence says
    rows: list[tuple[str, str, str]]  # add | edit | test; the file; one like it, or where in it

    def files(self, kind: str) -> list[tuple[str, str]]:
        return [(file, note) for do, file, note in self.rows if do == kind]


def recipes() -> list[Recipe]:
    """In the order of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^#{2,3} ", text, flags=re.MULTILINE):
        title, _, body = section.partition("\n")
        if title.startswith("Recipe: "):
            said = re.search(r"^Edits (no|\d+) existing files?\.$", body, re.MULTILINE)
            assert said, f"{title}: how many existing files does it edit?"
            rows = re.findall(r"^\| (add|edit|test) \| `([^`]+)` \| (.+) \|$", body, re.MULTILINE)
            n_rows = sum(line.startswith("| ") for line in body.splitlines()) - 1
            assert len(rows) == n_rows, f"{title}: a line of its table is not understood"
            n_edits = 0 if said[1] == "no" else int(said[1])
            found.append(Recipe(title.removeprefix("Recipe: "), n_edits, rows))
    return found


of_each_recipe = pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)


def test_there_is_a_recipe_for_each_kind() -> None:
    names = [recipe.name for recipe in recipes()]
    assert names == [*dict.fromkeys(names)]
    assert set(MAX_EDITS) | {"an operator", "an option of the command line"} == set(names)


@of_each_recipe
def test_a_recipe_edits_as_many_files_as_it_says(recipe: Recipe) -> None:
    edited = [file for file, _ in recipe.files("edit")]
    assert len(set(edited)) == len(edited) == recipe.n_edits
    assert recipe.n_edits <= MAX_EDITS.get(recipe.name, recipe.n_edits)


@of_each_recipe
def test_what_a_recipe_edits_is_there(recipe: Recipe) -> None:
    """And so is every name that the recipe gives as the place in it."""
    for file, note in recipe.files("edit"):
        text = (ROOT / file).read_text(encoding="utf-8")
        beside = {f.name for f in (ROOT / file).parent.iterdir()}
        unknown = [name for name in SPAN.findall(note) if name not in text and name not in beside]
        assert not unknown, file


@of_each_recipe
def test_a_new_file_has_one_to_start_from(recipe: Recipe) -> None:
    """It is there, and its name fits the pattern of the new one."""
    for file, example in [*recipe.files("add"), *recipe.files("test")]:
        like = example.strip("`")
        assert (ROOT / like).is_file(), like
        pattern = re.sub(r"<\w+>", "[^/]+", re.sub(r"([.+])", r"\\\1", file))
        assert re.fullmatch(pattern, like), f"{like} is not named as {file}"
