"""The command line. A command parses, makes one library call, and prints.

Results go to stdout, progress and errors to stderr. Exit codes: 0 fine; 1 a verdict failed; 2 wrong usage; 3 bad or
unsupported input; 4 out of budget, memory or disk; 5 a missing component; 70 a bug; 130, 141, 143 interrupted, output
closed, terminated.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import itertools
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from exporter.errors import MissingComponentError, OutOfSpaceError, TinyQMoEError

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Bundle
    from exporter.pipeline import ExportConfig
    from runtime_ref.generate import Runner, RunResult
    from runtime_ref.parity import ParityReport

DISK_FULL = (28, 122)  # ENOSPC, EDQUOT
BUG, INTERRUPTED, OUTPUT_CLOSED, TERMINATED = 70, 130, 141, 143
DEMO_FORMATS = ("pte", "mlprogram", "custom-op")
PLAIN_WIDTH = 120  # of tables where there is no terminal to measure


class _Commands(TyperGroup):
    """Turns the errors a user can meet into one message and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # a reader that has gone away shows here, not in the interpreter's last breath
            return result
        except TinyQMoEError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OUTPUT_CLOSED) from None
        except OSError as error:
            _fail_os(error)
        except MemoryError as error:
            _fail(f"out of memory {error}".rstrip(), OutOfSpaceError.exit_code)
        except ImportError as error:
            what = f"a package is missing or broken: {error}\nNext step: run `tinyqmoe doctor`"
            _fail(what, MissingComponentError.exit_code)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """As any other output: rich would exit with 1, which here means that a verdict failed."""
        raise BrokenPipeError


def _fail(message: str, code: int) -> NoReturn:
    err_console.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _fail_os(error: OSError) -> NoReturn:
    full = error.errno in DISK_FULL
    what = "the disk is full" if full else f"{error.strerror or error}"
    where = f": {error.filename}" if error.filename else ""
    _fail(what + where, OutOfSpaceError.exit_code if full else TinyQMoEError.exit_code)


def _width() -> int | None:
    return None if sys.stdout is None or sys.stdout.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH


app = typer.Typer(
    cls=_Commands,
    name="tinyqmoe",
    help="Llama 3.2 as ternary or int8 packages for phones, and the evidence that they work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out_console = _Console(width=_width(), emoji=False)  # ":cat:" is text
err_console = _Console(stderr=True, emoji=False)


class Target(enum.StrEnum):
    """What the package is for."""

    ANDROID = "android"
    IOS = "ios"
    BOTH = "both"


class CoreMLFormat(enum.StrEnum):
    """mlprogram: runs on the Neural Engine; custom-op: decodes the LZW codes itself."""

    MLPROGRAM = "mlprogram"
    CUSTOM_OP = "custom-op"
    BOTH = "both"


class Backend(enum.StrEnum):
    """Which package of a bundle, by backend or by format."""

    EXECUTORCH = "executorch"
    COREML = "coreml"
    MLPROGRAM = "mlprogram"
    CUSTOM_OP = "custom-op"


class Judged(enum.StrEnum):
    """Which packages of a bundle: all, those of a backend, or that of a format."""

    ALL = "all"
    EXECUTORCH = "executorch"
    COREML = "coreml"
    MLPROGRAM = "mlprogram"
    CUSTOM_OP = "custom-op"


class Scheme(enum.StrEnum):
    """How the layers are quantized."""

    INT8 = "int8"
    TERNARY = "ternary"


class CodecChoice(enum.StrEnum):
    """auto: by exact size; lzw, raw: one for all."""

    AUTO = "auto"
    LZW = "lzw"
    RAW = "raw"


class Activations(enum.StrEnum):
    """The arithmetic of the products."""

    INT8 = "int8"
    FLOAT32 = "float32"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tinyqmoe {importlib.metadata.version('tiny-qmoe')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What is common to all commands. The help of the program is the one given to `typer.Typer`."""


def _size(text: str) -> int:
    """Bytes of "1.5 GB"."""
    from exporter.errors import UsageError
    from exporter.memory import parse_size

    try:
        return parse_size(text)
    except UsageError as error:
        raise typer.BadParameter(error.what) from error


def _writable(json_file: Path | None) -> Path | None:
    """Says before the long work, and not after it, that its result has nowhere to go."""
    if json_file is not None and str(json_file) != "-":
        if json_file.is_dir():
            raise typer.BadParameter(f"{json_file} is a directory")
        if not json_file.parent.is_dir():
            raise typer.BadParameter(f"there is no directory {json_file.parent}")
        if not os.access(json_file if json_file.exists() else json_file.parent, os.W_OK):
            raise typer.BadParameter(f"{json_file} cannot be written")
    return json_file


JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE|-", callback=_writable, help="Write the result as JSON to a file, or to stdout with -."
    ),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory made by `tinyqmoe export`.")]
SchemeOption = Annotated[Scheme, typer.Option(help="How the matrices of the layers are quantized.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a bundle that is already there.")]


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A Hugging Face directory, or a hub id such as meta-llama/Llama-3.2-1B."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle to make.")],
    target: Annotated[
        Target, typer.Option(help="android: ExecuTorch (also runs on iOS); ios: Core ML; or both.")
    ] = Target.ANDROID,
    scheme: SchemeOption = Scheme.TERNARY,
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Weights that share a scale; a whole row by default.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of zeros of ternary matrices, from 0 to below 1.")
    ] = None,
    embedding: Annotated[Scheme, typer.Option(help="How the embedding and the head are quantized.")] = Scheme.INT8,
    context: Annotated[
        int | None, typer.Option(help="Positions of the KV cache; by default 2048, or the model's own if less.")
    ] = None,
    codec: Annotated[
        CodecChoice, typer.Option(help="auto takes, matrix by matrix, what is smaller.")
    ] = CodecChoice.AUTO,
    activations: Annotated[
        Activations, typer.Option(help="int8: integer products, fast; float32: as PyTorch.")
    ] = Activations.INT8,
    coreml_format: Annotated[
        CoreMLFormat, typer.Option(help="mlprogram: for the Neural Engine; custom-op: decodes LZW itself; or both.")
    ] = CoreMLFormat.MLPROGRAM,
    chunk_bytes: Annotated[
        int, typer.Option(min=4096, help="Largest weight file of an ML Program, in bytes.")
    ] = 1_000_000_000,
    with_native: Annotated[bool, typer.Option("--with-native", help="Add the C++ sources of the operators.")] = False,
    max_ram: Annotated[
        int | None,
        typer.Option(parser=_size, metavar="SIZE", help="Memory the export may take, such as 2GB; else it is refused."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what an export to OUT that was interrupted has finished.")
    ] = False,
    force: ForceOption = False,
    json_file: JsonOption = None,
) -> None:
    """Make a bundle from a Llama 3.x checkpoint: packages, tokenizer, manifest, byte ledger and expected answers."""
    from exporter import pipeline, show
    from exporter.quant import QuantConfig

    quantization = QuantConfig(scheme=scheme.value, group_size=group_size, sparsity=sparsity, embedding=embedding.value)
    config = pipeline.ExportConfig(
        quantization,
        formats=_formats(target, coreml_format),
        context=context,
        codec=codec.value,
        activations=activations.value,
        chunk_bytes=chunk_bytes,
        with_native=with_native,
    )
    begin = time.monotonic()
    if resume:
        _say_resumed(out)
    bundle = _export(model, out, config, force=force, resume=resume, max_ram=max_ram)
    _emit(json_file, lambda: _bundle_json(bundle), lambda: out_console.print(show.bundle_view(bundle, tensors=False)))
    _say_spent(time.monotonic() - begin, max_ram)


def _say_resumed(out: Path) -> None:
    from exporter.partial import workplace_of

    place = workplace_of(out)
    what = f"{place.finished} matrices of an earlier export are in {place.root}"
    if not place.finished:
        what = f"nothing to resume: {place.root} has no finished matrix; starting from the beginning"
    err_console.print(what, markup=False, highlight=False, soft_wrap=True)


def _say_spent(seconds: float, max_ram: int | None) -> None:
    """What depends on the machine is not in the manifest."""
    from exporter.memory import peak_bytes
    from exporter.show import bytes_text

    peak = peak_bytes()
    what = f"peak memory {bytes_text(peak)}"
    if max_ram is not None and peak > max_ram:
        what += f", more than the {bytes_text(max_ram)} of --max-ram: please report this as a bug"
    minutes = f"{seconds // 60:.0f} min " if seconds >= 60 else ""
    err_console.print(f"{what}, {minutes}{seconds % 60:.0f} s", highlight=False, soft_wrap=True)


def _formats(target: Target, coreml_format: CoreMLFormat) -> tuple[str, ...]:
    both = (CoreMLFormat.MLPROGRAM.value, CoreMLFormat.CUSTOM_OP.value)
    coreml = both if coreml_format is CoreMLFormat.BOTH else (coreml_format.value,)
    return {Target.ANDROID: ("pte",), Target.IOS: coreml, Target.BOTH: ("pte", *coreml)}[target]


@app.command()
def run(
    bundle_path: BundleArgument,
    prompt: Annotated[str, typer.Option(help="What the model goes on from.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the most likely tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")] = False,
    backend: Annotated[Backend | None, typer.Option(help="Which package; by default the first of the bundle.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Generate text with a package: ExecuTorch's in the real runtime, Core ML's in an interpreter."""
    from runtime_ref import generate

    sampling = generate.Sampling(temperature, top_p, seed)
    bundle = _verified(bundle_path)
    ids = generate.encode_prompt(bundle, prompt, chat=chat)
    artifact = bundle.manifest.artifacts[0] if backend is None else bundle.artifact(backend.value)
    runner = _runner(bundle, artifact)
    quiet = str(json_file) == "-"
    if not quiet and not chat:
        _stream(prompt, style="dim")
    result = generate.run(bundle, runner, ids, max_new_tokens, sampling, lambda text: None if quiet else _stream(text))
    _emit(json_file, lambda: _run_json(result), lambda: _show_run(result))


@app.command()
def parity(
    bundle_path: BundleArgument,
    backend: Annotated[
        list[Judged], typer.Option(help="Which packages. Can be given several times.")
    ] = [Judged.ALL],  # noqa: B006  (typer copies it)
    json_file: JsonOption = None,
) -> None:
    """Check that the packages answer like the quantized model in PyTorch. Exit code 1 if one does not."""
    bundle = _verified(bundle_path)
    reports = [_parity(bundle, _runner(bundle, a)) for a in _chosen(bundle, backend)]
    passed = all(report.passed for report in reports)
    _emit(json_file, lambda: _parity_json(reports), lambda: _show_parity(reports))
    if not passed:
        raise typer.Exit(1)


def _chosen(bundle: Bundle, backends: list[Judged]) -> list[Artifact]:
    """All packages of these backends or formats. Raises UsageError for one the bundle has none of."""
    wanted = [b.value for b in backends]
    if Judged.ALL in wanted:
        return bundle.manifest.artifacts
    for name in wanted:
        bundle.artifact(name)
    return [a for a in bundle.manifest.artifacts if a.format in wanted or a.backend in wanted]


@app.command()
def expand(
    bundle_path: BundleArgument,
    target: Annotated[
        Path | None, typer.Argument(metavar="TARGET", help="The package to make; by default inside the bundle.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is already there.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Rebuild the .mlpackage of an ML Program from its coded weights, byte for byte, as an app does at install."""
    from exporter.errors import UsageError
    from exporter.show import bytes_text
    from runtime_ref import expansion

    bundle = _verified(bundle_path)
    artifact = bundle.artifact("mlprogram")
    recipe = expansion.load_recipe(bundle, artifact)
    package = bundle.file(artifact.path) if target is None else target
    if package.exists() and not force:
        raise UsageError(f"{package} already exists", do="choose another TARGET, or give --force to replace it")
    with _progress() as progress:
        expansion.expand(bundle, recipe, package, lambda done, total: progress("expand the weights", done, total))
    files = {f.path: f.n_bytes for f in recipe.weight_files}
    what = f"{package}: {bytes_text(sum(files.values()))} of weights, SHA-256 as exported"
    result = {"package": str(package), "weight_files_bytes": files}
    _emit(json_file, lambda: result, lambda: out_console.print(escape(what), soft_wrap=True, highlight=False))


@app.command()
def inspect(
    bundle_path: BundleArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list every matrix.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Show what is in a bundle and what every byte of it is."""
    from exporter import show

    bundle = _verified(bundle_path)
    _emit(json_file, lambda: _bundle_json(bundle), lambda: out_console.print(show.bundle_view(bundle, tensors=tensors)))


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the two bundles go.")] = Path("tinyqmoe-demo"),
    json_file: JsonOption = None,
) -> None:
    """Export the small model that ships with this tool, int8 and ternary, for both platforms; run and check all."""
    from exporter.demo import PROMPTS, model_path
    from exporter.demo.text import held_out_texts
    from exporter.pipeline import ExportConfig
    from exporter.quant import QuantConfig

    begin = time.monotonic()
    results = {}
    texts = tuple(itertools.islice(held_out_texts(), 2))
    for scheme in Scheme:
        config = ExportConfig(QuantConfig(scheme=scheme.value), DEMO_FORMATS, context=256, texts=texts)
        bundle = _export(str(model_path()), out / scheme.value, config, force=True)
        results[scheme.value] = _demonstrate(bundle, PROMPTS[0], quiet=str(json_file) == "-")
    passed = all(result["parity"]["passed"] for result in results.values())
    _emit(json_file, lambda: results, lambda: _show_demo(out, passed, time.monotonic() - begin))
    if not passed:
        raise typer.Exit(1)


@app.command()
def doctor(json_file: JsonOption = None) -> None:
    """Check compiler, versions, kernels and disk, and say what to do. Exit code 5 if something is missing."""
    from dataclasses import asdict

    from rich.table import Table

    from runtime_ref.doctor import examine

    with _progress() as progress:
        progress("look around (compiles the kernels the first time)", 0, 0)
        findings = examine()
    table = Table()
    for name in ("", "what", "found", "next step"):
        table.add_column(name, overflow="fold")
    for f in findings:
        table.add_row("[green]ok" if f.ok else "[red]no", f.what, escape(f.found), "" if f.ok else escape(f.do))
    _emit(json_file, lambda: [asdict(f) for f in findings], lambda: out_console.print(table))
    if not all(f.ok for f in findings):
        raise typer.Exit(MissingComponentError.exit_code)


@app.command("native-dir")
def native_dir_command(json_file: JsonOption = None) -> None:
    """Print where the C++ sources of the operators are, for Gradle, CMake and Xcode builds."""
    from exporter.codec.native import native_dir

    path = str(native_dir())
    _emit(json_file, lambda: {"native_dir": path}, lambda: typer.echo(path))


def main() -> None:
    """Runs the command line. What is not an error of `exporter.errors` is a bug, and has an exit code that says so."""
    # OpenMP's threads wait by spinning unless told otherwise, and take the processor from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))  # so that unfinished bundles are removed
    try:
        app()
    except Exception:
        traceback.print_exc()
        err_console.print("[bold red]this is a bug in tinyqmoe[/]: please report the lines above", soft_wrap=True)
        sys.exit(BUG)


def _export(model: str, out: Path, config: ExportConfig, **options: Any) -> Bundle:
    """Whatever ends the export, what it leaves for --resume is said first."""
    from exporter import pipeline

    try:
        with _progress() as progress:
            return pipeline.export(model, out, config, progress, **options)
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            err_console.print(note, markup=False, highlight=False, soft_wrap=True)
        raise


def _verified(path: Path) -> Bundle:
    from exporter.bundle import Bundle

    bundle = Bundle.open(path)
    bundle.verify()
    return bundle


def _runner(bundle: Bundle, artifact: Artifact) -> Runner:
    with _progress() as progress:
        if artifact.backend == "coreml":
            from runtime_ref import coreml_runner

            return coreml_runner.open_runner(bundle, artifact, lambda *n: progress("expand the weights", *n))
        from runtime_ref.executorch_runner import ExecuTorchRunner

        progress("load the package (compiles the kernels the first time)", 0, 0)
        return ExecuTorchRunner(bundle)


def _parity(bundle: Bundle, runner: Runner) -> ParityReport:
    from runtime_ref.parity import check_parity, work_tokens

    total, done = work_tokens(bundle, runner.artifact), 0
    stage = f"check parity of {runner.name}"
    with _progress() as progress:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress(stage, done, total)

        progress(stage, 0, total)
        return check_parity(bundle, runner, advance)


def _parity_json(reports: list[ParityReport]) -> dict[str, Any]:
    return {"passed": all(r.passed for r in reports), "packages": [r.to_dict() for r in reports]}


def _show_parity(reports: list[ParityReport]) -> None:
    """One package in detail, several side by side and in detail only those that fail."""
    from runtime_ref.report import parity_table, side_by_side

    for report in reports:
        if len(reports) == 1 or not report.passed:
            out_console.print(parity_table(report))
    if len(reports) > 1:
        out_console.print(side_by_side(reports))


def _demonstrate(bundle: Bundle, prompt: str, *, quiet: bool) -> dict[str, Any]:
    from exporter import show
    from runtime_ref import generate

    ids = generate.encode_prompt(bundle, prompt, chat=False)
    runs, reports = {}, []
    for artifact in bundle.manifest.artifacts:
        runner = _runner(bundle, artifact)
        runs[artifact.format] = generate.run(bundle, runner, ids, 128, generate.Sampling(), lambda _: None)
        reports.append(_parity(bundle, runner))
    if not quiet:
        out_console.rule(f"[bold]{escape(bundle.path.name)}")
        out_console.print(show.summary_table(bundle))
        for text in dict.fromkeys(r.text for r in runs.values()):
            said = ", ".join(name for name, r in runs.items() if r.text == text)
            out_console.print(f"\n[bold]{said}:[/] [dim]{escape(prompt)}[/]{escape(text)}\n", highlight=False)
        _show_parity(reports)
        out_console.print(show.ledger_table(bundle))
    run_json = {name: _run_json(r) for name, r in runs.items()}
    return {"runs": run_json, "parity": _parity_json(reports), "bundle": _bundle_json(bundle)}


def _show_demo(out: Path, passed: bool, seconds: float) -> None:
    verdict = "[bold red]Parity failed."
    if passed:
        verdict = "[bold green]All packages answer like the quantized models they were made from."
    after = f"{seconds:.0f} s. Try next: tinyqmoe inspect {escape(str(out / 'ternary'))} --tensors"
    out_console.print(f"{verdict}[/] {after}", highlight=False, soft_wrap=True)


def _stream(text: str, style: str | None = None) -> None:
    """As it is: no markup, no line broken."""
    out_console.print(text, end="", style=style, highlight=False, markup=False, soft_wrap=True)


def _show_run(result: RunResult) -> None:
    out_console.print()
    why = {"eos": "end of text", "limit": "token limit", "context": "the context is full"}[result.stopped]
    err_console.print(
        f"[dim]{len(result.prompt_tokens)} + {len(result.tokens)} tokens, ended by {why}; "
        f"prefill {result.prefill_ms:.0f} ms, decode {result.decode_tokens_per_second:.1f} tokens/s on this machine[/]",
        highlight=False,
        soft_wrap=True,
    )


def _run_json(result: RunResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(result), "decode_tokens_per_second": result.decode_tokens_per_second}


def _bundle_json(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    manifest = asdict(bundle.manifest)
    return {**manifest, "ledger": [asdict(row) for row in bundle.ledger], "size_bytes": bundle.size_bytes}


def _emit(json_file: Path | None, data: Callable[[], Any], show: Callable[[], None]) -> None:
    """Shows for people, or writes JSON; with a file both."""
    if str(json_file) != "-":
        show()
    if json_file is None:
        return
    text = json.dumps(_finite(data()), indent=1, allow_nan=False) + "\n"
    if str(json_file) == "-":
        sys.stdout.write(text)
    else:
        json_file.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar a stage on stderr, with an ETA; nothing when stderr is not a terminal."""
    if not err_console.is_terminal:
        yield lambda stage, done, total: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # A descriptor of its own: bars go on while exporter.quiet holds back what libraries write to stderr.
    with open(os.dup(sys.stderr.fileno()), "w") as stream, Progress(*columns, console=Console(file=stream)) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)  # a stage begins when the one before has ended
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield update


