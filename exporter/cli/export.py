"""The commands that make and show bundles: export, expand, inspect, demo, native-dir."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from exporter.cli.console import emit, err_console, out_console, progress_bars
from exporter.cli.options import (
    Activations,
    BundleArgument,
    CodecChoice,
    CodecOption,
    ContextOption,
    CoreMLFormatOption,
    DeviceFilesOption,
    DevicesOption,
    EmbeddingOption,
    EntitlementOption,
    ForceOption,
    GroupSizeOption,
    JsonOption,
    SchemeOption,
    SparsityOption,
    TargetOption,
    formats_of,
    size,
)

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from exporter.config import ExportConfig
from exporter.cli.common import (
    ALL_FORMATS,
    check_device_options,
    open_runner_of,
    open_verified,
    plan_runs,
    read_profiles,
    show_fit,
)
from exporter.cli.run import judge, parity_json, run_json, show_parity


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A Hugging Face directory, or a hub id such as meta-llama/Llama-3.2-1B.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle to make.")],
    target: TargetOption = "android",
    scheme: SchemeOption = "ternary",
    group_size: GroupSizeOption = None,
    sparsity: SparsityOption = None,
    embedding: EmbeddingOption = "int8",
    context: ContextOption = None,
    codec: CodecOption = CodecChoice.AUTO,
    activations: Annotated[
        Activations, typer.Option(help="int8: integer products, fast; float32: as PyTorch.")
    ] = Activations.INT8,
    coreml_format: CoreMLFormatOption = "mlprogram",
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
    from exporter.cli import bundle_tables
    from exporter.config import ExportConfig
    from exporter.quant.config import QuantConfig

    quantization = QuantConfig(
        scheme=scheme, group_size=group_size, sparsity=sparsity, embedding=embedding
    )
    config = ExportConfig(
        quantization,
        formats=formats_of(target, coreml_format),
        context=context,
        codec=codec.value,
        activations=activations.value,
        chunk_bytes=chunk_bytes,
        with_native=with_native,
    )
    profiles = read_profiles(device or [], device_file or [])
    check_device_options(profiles, None, entitlement, None)
    begin = time.monotonic()
    if resume:
        _say_resumed(out)
    bundle = _export(model, out, config, force=force, resume=resume, max_ram=max_ram)
    placed = plan_runs(bundle.manifest, bundle.manifest.artifacts, profiles, None, entitlement)
    result = _bundle_json(bundle) | ({"fit": [p.to_dict() for p in placed]} if placed else {})

    def show_all() -> None:
        out_console.print(bundle_tables.bundle_view(bundle, tensors=False))
        show_fit(bundle.manifest, placed, one=len(profiles) == 1)

    emit(json_file, lambda: result, show_all)
    _say_spent(time.monotonic() - begin, max_ram)
    if any(p.problems for p in placed):
        raise typer.Exit(1)


def _say_resumed(out: Path) -> None:
    from exporter.staging import staging_directory_of

    place = staging_directory_of(out)
    what = f"{place.finished} matrices of an earlier export are in {place.root}"
    if not place.finished:
        what = (
            f"nothing to resume: {place.root} has no finished matrix; starting from the beginning"
        )
    err_console.print(what, markup=False, highlight=False, soft_wrap=True)


def _say_spent(seconds: float, max_ram: int | None) -> None:
    """What depends on the machine is not in the manifest."""
    from exporter.cli.bundle_tables import bytes_text
    from exporter.memory import peak_bytes

    peak = peak_bytes()
    what = f"peak memory {bytes_text(peak)}"
    if max_ram is not None and peak > max_ram:
        what += f", more than the {bytes_text(max_ram)} of --max-ram: please report this as a bug"
    minutes = f"{seconds // 60:.0f} min " if seconds >= 60 else ""
    err_console.print(f"{what}, {minutes}{seconds % 60:.0f} s", highlight=False, soft_wrap=True)


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
    from exporter.cli.bundle_tables import bytes_text
    from exporter.errors import UsageError
    from runtime_ref.coreml import expansion

    bundle = open_verified(bundle_path)
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


def inspect(
    bundle_path: BundleArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list every matrix.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Show what is in a bundle and what every byte of it is."""
    from exporter.cli import bundle_tables

    bundle = open_verified(bundle_path)
    emit(
        json_file,
        lambda: _bundle_json(bundle),
        lambda: out_console.print(bundle_tables.bundle_view(bundle, tensors=tensors)),
    )


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the two bundles go.")] = Path(
        "tinyqmoe-demo"
    ),
    json_file: JsonOption = None,
) -> None:
    """Export the small model that ships with this tool, int8 and ternary, for both platforms; run
    and check all."""

    from exporter.config import ExportConfig
    from exporter.demo import PROMPTS, SCHEMES, held_out_texts, model_path
    from exporter.quant.config import QuantConfig

    begin = time.monotonic()
    results = {}
    for scheme in SCHEMES:
        config = ExportConfig(
            QuantConfig(scheme=scheme), ALL_FORMATS, context=256, texts=held_out_texts()
        )
        bundle = _export(str(model_path()), out / scheme, config, force=True)
        results[scheme] = _demonstrate(bundle, PROMPTS[0], quiet=str(json_file) == "-")
    passed = all(result["parity"]["passed"] for result in results.values())
    emit(json_file, lambda: results, lambda: _show_demo(out, passed, time.monotonic() - begin))
    if not passed:
        raise typer.Exit(1)


def native_dir_command(json_file: JsonOption = None) -> None:
    """Print where the C++ sources of the operators are, for Gradle, CMake and Xcode builds."""
    from exporter.codec.native import native_dir

    path = str(native_dir())
    emit(json_file, lambda: {"native_dir": path}, lambda: typer.echo(path))


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


def _demonstrate(bundle: Bundle, prompt: str, *, quiet: bool) -> dict[str, Any]:
    from exporter.cli import bundle_tables
    from runtime_ref import generate

    ids = generate.encode_prompt(bundle, prompt, chat=False)
    runs, reports = {}, []
    for artifact in bundle.manifest.artifacts:
        runner = open_runner_of(bundle, artifact)
        runs[artifact.format] = generate.run(
            bundle, runner, ids, 128, generate.Sampling(), lambda _: None
        )
        reports.append(judge(bundle, runner))
    if not quiet:
        out_console.rule(f"[bold]{escape(bundle.path.name)}")
        out_console.print(bundle_tables.summary_table(bundle))
        for text in dict.fromkeys(r.text for r in runs.values()):
            said = ", ".join(name for name, r in runs.items() if r.text == text)
            out_console.print(
                f"\n[bold]{said}:[/] [dim]{escape(prompt)}[/]{escape(text)}\n", highlight=False
            )
        show_parity(reports)
        out_console.print(bundle_tables.ledger_table(bundle))
    run_json = {name: run_json(r) for name, r in runs.items()}
    return {"runs": run_json, "parity": parity_json(reports), "bundle": _bundle_json(bundle)}


def _show_demo(out: Path, passed: bool, seconds: float) -> None:
    verdict = "[bold red]Parity failed."
    if passed:
        verdict = "[bold green]All packages answer like the quantized models they were made from."
    after = f"{seconds:.0f} s. Try next: tinyqmoe inspect {escape(str(out / 'ternary'))} --tensors"
    out_console.print(f"{verdict}[/] {after}", highlight=False, soft_wrap=True)


def _bundle_json(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    manifest = asdict(bundle.manifest)
    return {
        **manifest,
        "ledger": [asdict(row) for row in bundle.ledger],
        "size_bytes": bundle.size_bytes,
    }
