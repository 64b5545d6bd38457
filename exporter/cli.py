"""The command line. A command parses, makes one library call, and prints.

Results go to stdout, progress and errors to stderr. Exit codes: 0 fine; 1 a verdict failed; 2 wrong
usage; 3 bad or unsupported input; 4 out of budget, memory or disk; 5 a missing component; 70 a bug;
130, 141, 143 interrupted, output closed, terminated.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape

from exporter.console import Commands, emit, err_console, out_console, progress_bars, stream
from exporter.errors import MissingComponentError, OutOfSpaceError
from exporter.options import (
    Activations,
    Backend,
    BackendsOption,
    BundleArgument,
    CodecChoice,
    CodecOption,
    ContextOption,
    CoreMLFormat,
    DeviceFilesOption,
    DevicesOption,
    EmbeddingOption,
    EntitlementOption,
    ForceOption,
    GroupSizeOption,
    JsonOption,
    JudgedBackend,
    ResidencyMode,
    ResidencyOption,
    Scheme,
    SchemeOption,
    SparsityOption,
    Target,
    size,
    writable,
)

if TYPE_CHECKING:
    from exporter.bundle import Artifact, Bundle, Manifest
    from exporter.pipeline import ExportConfig
    from runtime_ref.device import DeviceProfile
    from runtime_ref.device_run import Placed
    from runtime_ref.generate import Runner, RunResult
    from runtime_ref.parity import ParityReport
    from runtime_ref.report_files import Judged
    from runtime_ref.residency import Mode

BUG, TERMINATED = 70, 143
ALL_FORMATS = ("pte", "mlprogram", "custom-op")


app = typer.Typer(
    cls=Commands,
    name="tinyqmoe",
    help="Llama 3.2 as ternary or int8 packages for phones, and the evidence that they work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tinyqmoe {importlib.metadata.version('tiny-qmoe')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What is common to all commands. The help of the program is the one given to `typer.Typer`."""


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A Hugging Face directory, or a hub id such as meta-llama/Llama-3.2-1B.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle to make.")],
    target: Annotated[
        Target, typer.Option(help="android: ExecuTorch (also runs on iOS); ios: Core ML; or both.")
    ] = Target.ANDROID,
    scheme: SchemeOption = Scheme.TERNARY,
    group_size: GroupSizeOption = None,
    sparsity: SparsityOption = None,
    embedding: EmbeddingOption = Scheme.INT8,
    context: ContextOption = None,
    codec: CodecOption = CodecChoice.AUTO,
    activations: Annotated[
        Activations, typer.Option(help="int16: integer products, fast; float32: as PyTorch.")
    ] = Activations.INT16,
    coreml_format: Annotated[
        CoreMLFormat,
        typer.Option(
            help="mlprogram: for the Neural Engine; custom-op: decodes LZW itself; or both."
        ),
    ] = CoreMLFormat.MLPROGRAM,
    chunk_bytes: Annotated[
        int, typer.Option(min=4096, help="Largest weight file of an ML Program, in bytes.")
    ] = 1_000_000_000,
    with_native: Annotated[
        bool, typer.Option("--with-native", help="Add the C++ sources of the operators.")
    ] = False,
    max_ram: Annotated[
        int | None,
        typer.Option(
            parser=size,
            metavar="SIZE",
            help="Memory the export may take, such as 2GB; else it is refused.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from what an export to OUT that was interrupted has finished."
        ),
    ] = False,
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    force: ForceOption = False,
    json_file: JsonOption = None,
) -> None:
    """Make a bundle from a Llama 3.x checkpoint: packages, tokenizer, manifest, byte ledger and
    expected answers.

    With devices it also says whether the packages fit them, as `fit` does, and exit code 1 if one
    does not.
    """
    from exporter import pipeline, show
    from exporter.quant import QuantConfig

    quantization = QuantConfig(
        scheme=scheme.value, group_size=group_size, sparsity=sparsity, embedding=embedding.value
    )
    config = pipeline.ExportConfig(
        quantization,
        formats=_formats(target, coreml_format),
        context=context,
        codec=codec.value,
        activations=activations.value,
        chunk_bytes=chunk_bytes,
        with_native=with_native,
    )
    profiles = _profiles(device or [], device_file or [])
    _check_device_options(profiles, None, entitlement, None)
    begin = time.monotonic()
    if resume:
        _say_resumed(out)
    bundle = _export(model, out, config, force=force, resume=resume, max_ram=max_ram)
    placed = _placed(bundle.manifest, bundle.manifest.artifacts, profiles, None, entitlement)
    result = _bundle_json(bundle) | ({"fit": [p.to_dict() for p in placed]} if placed else {})

    def show_all() -> None:
        out_console.print(show.bundle_view(bundle, tensors=False))
        _show_fit(bundle.manifest, placed, one=len(profiles) == 1)

    emit(json_file, lambda: result, show_all)
    _say_spent(time.monotonic() - begin, max_ram)
    if any(p.problems for p in placed):
        raise typer.Exit(1)


def _say_resumed(out: Path) -> None:
    from exporter.partial import workplace_of

    place = workplace_of(out)
    what = f"{place.finished} matrices of an earlier export are in {place.root}"
    if not place.finished:
        what = (
            f"nothing to resume: {place.root} has no finished matrix; starting from the beginning"
        )
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
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")
    ] = False,
    backend: Annotated[
        Backend | None, typer.Option(help="Which package; by default the first of the bundle.")
    ] = None,
    residency: ResidencyOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run under the limits of this phone.")
    ] = None,
    device_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run under the limits of a phone of your own."),
    ] = None,
    entitlement: EntitlementOption = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="Memory over time as a PNG; needs a device."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Generate text with a package: ExecuTorch's in the real runtime, Core ML's in an interpreter.

    On a device the package runs in a process of its own, under the phone's limits. Exit code 4 if
    it does not fit.
    """
    from runtime_ref import generate

    sampling = generate.Sampling(temperature, top_p, seed)
    profiles = _profiles([device] if device else [], [device_file] if device_file else [])
    _check_device_options(profiles, residency, entitlement, plot)
    bundle = _verified(bundle_path)
    ids = generate.encode_prompt(bundle, prompt, chat=chat)
    artifact = bundle.manifest.artifacts[0] if backend is None else bundle.artifact(backend.value)
    quiet = str(json_file) == "-"
    if profiles:
        _run_on_device(
            bundle,
            artifact,
            profiles,
            residency,
            entitlement,
            plot,
            json_file,
            "" if chat else prompt,
            {"prompt": ids, "max_new_tokens": max_new_tokens, "sampling": vars(sampling)},
        )
        return
    runner = _runner(bundle, artifact, residency)
    if not quiet and not chat:
        stream(prompt, style="dim")
    result = generate.run(
        bundle, runner, ids, max_new_tokens, sampling, lambda text: None if quiet else stream(text)
    )
    emit(json_file, lambda: _run_json(result), lambda: _show_run(result))


def _run_on_device(
    bundle: Bundle,
    artifact: Artifact,
    profiles: list[DeviceProfile],
    residency: ResidencyMode | None,
    entitlement: bool,
    plot: Path | None,
    json_file: Path | None,
    prompt: str,
    arguments: dict[str, Any],
) -> None:
    from dataclasses import asdict

    from runtime_ref import device_run, report
    from runtime_ref.plot import plot_memory

    (placed,) = _placed(bundle.manifest, [artifact], profiles, residency, entitlement)
    _prepare(artifact)
    with progress_bars() as progress:
        done = device_run.run(bundle, placed, "generate", arguments, progress)
    if plot is not None:
        plot_memory(done, plot)
    projection = device_run.project_speed(bundle, done)
    result = done.to_dict() | {"projection": projection and asdict(projection)}

    def show() -> None:
        if done.report.result is not None:
            stream(prompt, style="dim")
            out_console.print(
                done.report.result["text"], "\n", highlight=False, markup=False, soft_wrap=True
            )
        out_console.print(report.run_view(done, projection))

    emit(json_file, lambda: result, show)
    if not done.fits:
        raise typer.Exit(OutOfSpaceError.exit_code)


@app.command()
def parity(
    bundle_path: BundleArgument,
    backend: BackendsOption = [JudgedBackend.ALL],  # noqa: B006  (typer copies it)
    residency: ResidencyOption = None,
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=writable, help="For CI: a test case for each check."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=writable, help="For a pull request.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="For a browser, with memory over time."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Check that the packages answer like the quantized model in PyTorch. Exit code 1 if one does
    not.

    On devices each package is checked in a process of its own, under the phone's limits, and must
    fit besides.
    """
    from runtime_ref import report_files

    profiles = _profiles(device or [], device_file or [])
    _check_device_options(profiles, residency, entitlement, None)
    bundle = _verified(bundle_path)
    chosen = _chosen(bundle.manifest, backend)
    if profiles:
        placed = _placed(bundle.manifest, chosen, profiles, residency, entitlement)
        results = _judge_on_devices(bundle, placed)
    else:
        results = [
            report_files.Judged(_parity(bundle, _runner(bundle, a, residency)), None)
            for a in chosen
        ]
    emit(json_file, lambda: _judged_json(results), lambda: _show_judged(results))
    for write, path in ((report_files.write_markdown, markdown), (report_files.write_html, html)):
        if path is not None:
            write(results, bundle, path)
    if junit is not None:
        report_files.write_junit(results, junit)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _judge_on_devices(bundle: Bundle, placed: list[Placed]) -> list[Judged]:
    from runtime_ref import device_run
    from runtime_ref.report_files import Judged
    from runtime_ref.sandbox_tasks import parity_report

    for p in placed:
        _prepare(p.artifact)
    with progress_bars() as progress:
        runs = device_run.run_each(bundle, placed, "parity", progress)
    return [Judged(parity_report(r.report.result) if r.report.result else None, r) for r in runs]


def _chosen(manifest: Manifest, backends: list[JudgedBackend]) -> list[Artifact]:
    """All packages of these backends or formats. Raises UsageError for one the bundle has none
    of."""
    from exporter.errors import UsageError

    wanted = [b.value for b in backends]
    there = [
        a
        for a in manifest.artifacts
        if JudgedBackend.ALL in wanted or a.format in wanted or a.backend in wanted
    ]
    known = {"all", *(name for a in there for name in (a.format, a.backend))}
    if missing := [name for name in wanted if name not in known]:
        formats = ", ".join(f"{a.format} ({a.backend})" for a in manifest.artifacts)
        what = f"there is no package for {', '.join(missing)}: it has {formats}"
        raise UsageError(what, do="export it with --target")
    return there


def _profiles(names: list[str], files: list[Path]) -> list[DeviceProfile]:
    """The devices asked for, `all` among the names. Raises UsageError, TinyQMoEError."""
    from runtime_ref import device

    every = (
        device.all_devices()
        if "all" in names
        else [device.load(name) for name in dict.fromkeys(names)]
    )
    return [*every, *map(device.load_file, files)]


def _check_device_options(
    profiles: list[DeviceProfile],
    residency: ResidencyMode | None,
    entitlement: bool,
    plot: Path | None,
) -> None:
    """Raises UsageError for options that mean nothing without a device, and for two devices where
    one can be."""
    from exporter.errors import UsageError

    do = "give --device NAME; `tinyqmoe devices` lists them"
    if not profiles and residency is ResidencyMode.AUTO:
        raise UsageError("--residency auto fills the limit of a device, and there is none", do=do)
    if not profiles and (entitlement or plot):
        raise UsageError(f"--{'entitlement' if entitlement else 'plot'} needs a device", do=do)


def _mode(residency: ResidencyMode | None) -> Mode | None:
    return None if residency is None else cast("Mode", residency.value)


def _placed(
    manifest: Manifest,
    artifacts: list[Artifact],
    profiles: list[DeviceProfile],
    residency: ResidencyMode | None,
    entitlement: bool,
) -> list[Placed]:
    """Every package on every device that runs its kind. Of several devices, those that know no
    entitlement are as they are. Raises UsageError where nothing is left.
    """
    from exporter.errors import UsageError
    from runtime_ref.device_run import place

    several = len(profiles) > 1
    placed = [
        place(
            manifest,
            a,
            p,
            entitlement=entitlement and (not several or p.knows_entitlement),
            mode=_mode(residency),
        )
        for p in profiles
        for a in artifacts
        if a.backend in p.backends
    ]
    if profiles and not placed:
        raise UsageError(
            "Core ML packages do not run on Android",
            do="choose --backend executorch, or an iOS device",
        )
    return placed


def _prepare(artifact: Artifact) -> None:
    """Compiles the kernels here, where there is a progress bar, and not in the sandbox."""
    if artifact.format == "pte":
        from runtime_ref import kernels

        with progress_bars() as progress:
            progress("compile the kernels, the first time", 0, 0)
            kernels.build()


@app.command()
def devices(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show all that is known of this one.")
    ] = None,
    device_file: DeviceFilesOption = None,
    json_file: JsonOption = None,
) -> None:
    """List the phones that packages can be judged on, or show one with the source of each
    figure."""
    from dataclasses import asdict

    from runtime_ref import report

    names = [name] if name else [] if device_file else ["all"]
    profiles = _profiles(names, device_file or [])

    def show() -> None:
        out_console.print(
            report.device_view(profiles[0])
            if len(profiles) == 1
            else report.devices_table(profiles)
        )

    emit(json_file, lambda: [asdict(p) for p in profiles], show)


@app.command()
def fit(
    given: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE",
            help="A bundle, or a model as for `export`, before any export.",
        ),
    ],
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    residency: ResidencyOption = None,
    backend: BackendsOption = [JudgedBackend.ALL],  # noqa: B006  (typer copies it)
    scheme: SchemeOption = Scheme.TERNARY,
    group_size: GroupSizeOption = None,
    sparsity: SparsityOption = None,
    embedding: EmbeddingOption = Scheme.INT8,
    context: ContextOption = None,
    codec: CodecOption = CodecChoice.AUTO,
    json_file: JsonOption = None,
) -> None:
    """Say whether a package fits a phone, from its manifest or the shapes of a model; nothing is
    run.

    By default on all devices. Exit code 1 if a package does not fit one. For a MODEL give the
    options of the export.
    """
    profiles = _profiles(device or ([] if device_file else ["all"]), device_file or [])
    if (Path(target) / "manifest.json").is_file():
        from exporter.bundle import Bundle

        _refuse_export_options(given)
        manifest = Bundle.open(Path(target)).manifest
    else:
        manifest = _outline(target, scheme, group_size, sparsity, embedding, context, codec)
    placed = _placed(manifest, _chosen(manifest, backend), profiles, residency, entitlement)
    one = len(profiles) == 1
    emit(
        json_file,
        lambda: [p.to_dict() for p in placed],
        lambda: _show_fit(manifest, placed, one=one),
    )
    if any(p.problems for p in placed):
        raise typer.Exit(1)


def _show_fit(manifest: Manifest, placed: list[Placed], *, one: bool) -> None:
    """One device with all holders, several as a table."""
    from runtime_ref import device_run, report

    if not one:
        if placed:
            out_console.print(report.fit_table(placed))
        return
    for p in placed:
        out_console.print(report.fit_view(p, device_run.advice(manifest, p)))


def _refuse_export_options(given: typer.Context) -> None:
    """A bundle is what it is: options of an export would be ignored. Raises UsageError."""
    from exporter.errors import UsageError

    names = ("scheme", "group_size", "sparsity", "embedding", "context", "codec")
    if wrong := [n for n in names if _is_given(given, n)]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(
            f"{options} cannot be given for a bundle: it has its own",
            do="leave it away, or give a MODEL",
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _outline(
    model: str,
    scheme: Scheme,
    group_size: int | None,
    sparsity: float | None,
    embedding: Scheme,
    context: int | None,
    codec: CodecChoice,
) -> Manifest:
    """The manifest that an export to all formats would write, without the export."""
    from exporter import outline, pipeline
    from exporter.checkpoint import Checkpoint
    from exporter.quant import QuantConfig

    quantization = QuantConfig(
        scheme=scheme.value, group_size=group_size, sparsity=sparsity, embedding=embedding.value
    )
    config = pipeline.ExportConfig(quantization, ALL_FORMATS, context=context, codec=codec.value)
    with progress_bars() as progress:
        checkpoint = Checkpoint.open(model, progress=progress)
    return outline.outline(checkpoint, config, pipeline.context_of(config, checkpoint))


@app.command()
def expand(
    bundle_path: BundleArgument,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="TARGET", help="The package to make; by default inside the bundle."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a package that is already there.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Rebuild the .mlpackage of an ML Program from its coded weights, byte for byte, as an app does
    at install."""
    from exporter.errors import UsageError
    from exporter.show import bytes_text
    from runtime_ref import expansion

    bundle = _verified(bundle_path)
    artifact = bundle.artifact("mlprogram")
    recipe = expansion.load_recipe(bundle, artifact)
    package = bundle.file(artifact.path) if target is None else target
    if package.exists() and not force:
        raise UsageError(
            f"{package} already exists", do="choose another TARGET, or give --force to replace it"
        )
    with progress_bars() as progress:
        expansion.expand(
            bundle, recipe, package, lambda done, total: progress("expand the weights", done, total)
        )
    files = {f.path: f.n_bytes for f in recipe.weight_files}
    what = f"{package}: {bytes_text(sum(files.values()))} of weights, SHA-256 as exported"
    result = {"package": str(package), "weight_files_bytes": files}
    emit(
        json_file,
        lambda: result,
        lambda: out_console.print(escape(what), soft_wrap=True, highlight=False),
    )


@app.command()
def inspect(
    bundle_path: BundleArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list every matrix.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Show what is in a bundle and what every byte of it is."""
    from exporter import show

    bundle = _verified(bundle_path)
    emit(
        json_file,
        lambda: _bundle_json(bundle),
        lambda: out_console.print(show.bundle_view(bundle, tensors=tensors)),
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the two bundles go.")] = Path(
        "tinyqmoe-demo"
    ),
    json_file: JsonOption = None,
) -> None:
    """Export the small model that ships with this tool, int8 and ternary, for both platforms; run
    and check all."""
    from exporter.demo import PROMPTS, model_path
    from exporter.demo.text import held_out_texts
    from exporter.pipeline import ExportConfig
    from exporter.quant import QuantConfig

    begin = time.monotonic()
    results = {}
    texts = tuple(itertools.islice(held_out_texts(), 2))
    for scheme in Scheme:
        config = ExportConfig(
            QuantConfig(scheme=scheme.value), ALL_FORMATS, context=256, texts=texts
        )
        bundle = _export(str(model_path()), out / scheme.value, config, force=True)
        results[scheme.value] = _demonstrate(bundle, PROMPTS[0], quiet=str(json_file) == "-")
    passed = all(result["parity"]["passed"] for result in results.values())
    emit(json_file, lambda: results, lambda: _show_demo(out, passed, time.monotonic() - begin))
    if not passed:
        raise typer.Exit(1)


@app.command()
def doctor(json_file: JsonOption = None) -> None:
    """Check compiler, versions, kernels and disk, and say what to do. Exit code 5 if something is
    missing."""
    from dataclasses import asdict

    from rich.table import Table

    from runtime_ref.doctor import examine

    with progress_bars() as progress:
        progress("look around (compiles the kernels the first time)", 0, 0)
        findings = examine()
    table = Table()
    for name in ("", "what", "found", "next step"):
        table.add_column(name, overflow="fold")
    for f in findings:
        table.add_row(
            "[green]ok" if f.ok else "[red]no",
            f.what,
            escape(f.found),
            "" if f.ok else escape(f.do),
        )
    emit(json_file, lambda: [asdict(f) for f in findings], lambda: out_console.print(table))
    if not all(f.ok for f in findings):
        raise typer.Exit(MissingComponentError.exit_code)


@app.command("native-dir")
def native_dir_command(json_file: JsonOption = None) -> None:
    """Print where the C++ sources of the operators are, for Gradle, CMake and Xcode builds."""
    from exporter.codec.native import native_dir

    path = str(native_dir())
    emit(json_file, lambda: {"native_dir": path}, lambda: typer.echo(path))


def main() -> None:
    """Runs the command line. What is not an error of `exporter.errors` is a bug, and has an exit
    code that says so."""
    # OpenMP's threads wait by spinning unless told otherwise, and take the processor from those
    # that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED)
    )  # so that unfinished bundles are removed
    try:
        app()
    except Exception:
        traceback.print_exc()
        err_console.print(
            "[bold red]this is a bug in tinyqmoe[/]: please report the lines above", soft_wrap=True
        )
        sys.exit(BUG)


def _export(model: str, out: Path, config: ExportConfig, **options: Any) -> Bundle:
    """Whatever ends the export, what it leaves for --resume is said first."""
    from exporter import pipeline

    try:
        with progress_bars() as progress:
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


def _runner(bundle: Bundle, artifact: Artifact, mode: ResidencyMode | None = None) -> Runner:
    from runtime_ref.residency import Residency
    from runtime_ref.runners import open_runner

    _prepare(artifact)
    with progress_bars() as progress:
        return open_runner(bundle, artifact, Residency(_mode(mode) or "stream"), progress)


def _parity(bundle: Bundle, runner: Runner) -> ParityReport:
    from runtime_ref.parity import check_parity, work_tokens

    total, done = work_tokens(bundle, runner.artifact), 0
    stage = f"check parity of {runner.name}"
    with progress_bars() as progress:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress(stage, done, total)

        progress(stage, 0, total)
        return check_parity(bundle, runner, advance)


def _parity_json(reports: list[ParityReport]) -> dict[str, Any]:
    return {"passed": all(r.passed for r in reports), "packages": [r.to_dict() for r in reports]}


def _judged_json(results: list[Judged]) -> dict[str, Any]:
    """Without devices as `_parity_json`; with them a run for each package and device besides."""
    plain = _parity_json([r.parity for r in results if r.parity])
    runs = [r.run.to_dict() for r in results if r.run]
    return plain | ({"passed": all(r.passed for r in results), "devices": runs} if runs else {})


def _show_judged(results: list[Judged]) -> None:
    """Parity of each package, on several devices the one that failed, then how each did on each
    device."""
    from runtime_ref.report import run_table

    reports = [r.parity for r in results if r.parity]
    _show_parity(
        list({r.backend: r for r in sorted(reports, key=lambda r: r.passed, reverse=True)}.values())
    )
    if runs := [r.run for r in results if r.run]:
        out_console.print(run_table(runs))


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
        runs[artifact.format] = generate.run(
            bundle, runner, ids, 128, generate.Sampling(), lambda _: None
        )
        reports.append(_parity(bundle, runner))
    if not quiet:
        out_console.rule(f"[bold]{escape(bundle.path.name)}")
        out_console.print(show.summary_table(bundle))
        for text in dict.fromkeys(r.text for r in runs.values()):
            said = ", ".join(name for name, r in runs.items() if r.text == text)
            out_console.print(
                f"\n[bold]{said}:[/] [dim]{escape(prompt)}[/]{escape(text)}\n", highlight=False
            )
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


def _show_run(result: RunResult) -> None:
    out_console.print()
    why = {"eos": "end of text", "limit": "token limit", "context": "the context is full"}[
        result.stopped
    ]
    err_console.print(
        f"[dim]{len(result.prompt_tokens)} + {len(result.tokens)} tokens, ended by {why}; "
        f"prefill {result.prefill_ms:.0f} ms, decode {result.decode_tokens_per_second:.1f} "
        "tokens/s on this machine[/]",
        highlight=False,
        soft_wrap=True,
    )


def _run_json(result: RunResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(result), "decode_tokens_per_second": result.decode_tokens_per_second}


def _bundle_json(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    manifest = asdict(bundle.manifest)
    return {
        **manifest,
        "ledger": [asdict(row) for row in bundle.ledger],
        "size_bytes": bundle.size_bytes,
    }
