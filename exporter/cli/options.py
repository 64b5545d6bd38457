"""Options that commands share, with the values they take."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporter import quant
from exporter.backends.registry import BOTH, TARGETS
from exporter.bundle import BACKENDS, COREML_REAL, NATIVE
from exporter.errors import UsageError, require_extra
from exporter.memory import parse_size

ALL = "all"
COREML_FORMATS = [name for name, backend in BACKENDS.items() if backend == "coreml"]
PACKAGES = list(dict.fromkeys([NATIVE, *BACKENDS.values(), *COREML_FORMATS, COREML_REAL]))


if TYPE_CHECKING:  # whose members are known when the program runs
    Target = str
    CoreMLFormat = str
    Package = str
    Packages = str
    Scheme = str
else:

    def one_of(name: str, values: Iterable[str]) -> type[enum.StrEnum]:
        """An enumeration of texts: what Typer takes as the values of an option."""
        return enum.StrEnum(name, {value.upper(): value for value in values})

    Target = one_of("Target", [*TARGETS, BOTH])
    CoreMLFormat = one_of("CoreMLFormat", [*COREML_FORMATS, BOTH])
    Package = one_of("Package", PACKAGES)
    Packages = one_of("Packages", [ALL, *PACKAGES])
    Scheme = one_of("Scheme", ["auto", *quant.supported(), "mixed"])


class CodecChoice(enum.StrEnum):
    """The codec of the matrices.

    auto: by exact size, matrix by matrix; lzw, raw: one for all.
    """

    AUTO = "auto"
    LZW = "lzw"
    RAW = "raw"


class ResidencyMode(enum.StrEnum):
    """The place of the weights of products.

    They lie as codes, expanded in memory, in files, or in memory as far as there is room.
    """

    STREAM = "stream"
    EXPAND = "expand"
    FILE = "file"
    AUTO = "auto"


class Verification(enum.StrEnum):
    """The files of a bundle whose SHA-256 is compared with the manifest before a run."""

    USED = "used"
    ALL = "all"


class Activations(enum.StrEnum):
    """The arithmetic of the products."""

    INT16 = "int16"
    FLOAT32 = "float32"


class KVCache(enum.StrEnum):
    """The type of the keys and values in the cache of a `.pte`."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    INT8 = "int8"


def device_names(incomplete: str) -> list[str]:
    """Names of phones for a shell that completes them."""
    import tinyqmoe

    names = [ALL, *(profile.name for profile in tinyqmoe.find_devices())]
    return [name for name in names if name.startswith(incomplete)]


def one_device_name(incomplete: str) -> list[str]:
    """Names of phones where one is asked for."""
    return [name for name in device_names(incomplete) if name != ALL]


def size(text: str) -> int:
    """Size in bytes that a text such as "1.5 GB" names.

    Raises BadParameter.
    """
    try:
        return parse_size(text)
    except UsageError as error:
        raise typer.BadParameter(error.what) from error


def writable(json_file: Path | None) -> Path | None:
    """The same path, if a result can be written there.

    Raises BadParameter before the long work, and not after it.
    """
    if json_file is not None and str(json_file) != "-":
        if json_file.is_dir():
            raise typer.BadParameter(f"{json_file} is a directory")
        if not json_file.parent.is_dir():
            raise typer.BadParameter(f"there is no directory {json_file.parent}")
        if not os.access(json_file if json_file.exists() else json_file.parent, os.W_OK):
            raise typer.BadParameter(f"{json_file} cannot be written")
    return json_file


def report(path: Path | None) -> Path | None:
    """The same path, if a report that takes the packages of an extra can be written there.

    Raises BadParameter and MissingComponentError before the long work, and not after it.
    """
    if path is not None:
        require_extra("report", ("matplotlib", "junitparser"), f"writing {path.name}")
    return writable(path)


JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        callback=writable,
        help="Write the result as JSON to a file, or to stdout with -.",
    ),
]
BundleArgument = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="A directory made by `tinyqmoe export`, or a hub id of one."
    ),
]
SchemeOption = Annotated[
    Scheme,
    typer.Option(
        help="How the matrices of the layers are quantized. auto: a ternary checkpoint's as they "
        "are, others as int8. mixed: by the rules of --plan.",
    ),
]
PlanOption = Annotated[
    Path | None,
    typer.Option("--plan", help="A JSON file of rules for --scheme mixed: see docs/quality.md."),
]
SavePlanOption = Annotated[
    Path | None,
    typer.Option("--save-plan", help="Write the plan that was found to a JSON file."),
]
TargetOption = Annotated[
    Target,
    typer.Option(
        help="android: ExecuTorch (also runs on iOS); ios: Core ML; or both.",
    ),
]
CoreMLFormatOption = Annotated[
    CoreMLFormat,
    typer.Option(
        help="mlprogram: runs on the Neural Engine; custom-op: decodes the LZW codes itself.",
    ),
]
GroupSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Weights that share a scale; a whole row by default.")
]
SparsityOption = Annotated[
    float | None, typer.Option(help="Share of zeros of ternary matrices, from 0 to below 1.")
]
RecoverOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="STEPS",
        help="Steps of training of all layers that are ternary or at a rate, to say what the model "
        "says: see docs/quality.md.",
    ),
]
BitsOption = Annotated[
    float | None,
    typer.Option(
        "--bits-per-weight",
        help="Coded size of int8 matrices, from 1.5 to 8, at the least loss: see docs/quality.md.",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        parser=size,
        metavar="SIZE",
        help="The same as a whole, such as 80MB for all int8 matrices together.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXTFILE|none",
        help="What levels at a rate, or ternary ones, are fitted to the model by; by default a "
        "text that ships with this tool.",
    ),
]
CalibrationCacheOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep what the text shows for exports at other rates."),
]
EmbeddingOption = Annotated[
    Scheme,
    typer.Option(help="The same for the embedding and the head."),
]
ContextOption = Annotated[
    int | None,
    typer.Option(help="Positions of the KV cache; by default 2048, or the model's own if less."),
]
CodecOption = Annotated[
    CodecChoice,
    typer.Option(
        help="auto takes, matrix by matrix, what is smallest, or faster and hardly larger."
    ),
]
DevicesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME|all",
        autocompletion=device_names,
        help="A phone of `tinyqmoe devices`. Can be given several times.",
    ),
]
DeviceFilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--device-file",
        metavar="FILE",
        help="A phone of your own, see docs/devices.md. Can be repeated.",
    ),
]
EntitlementOption = Annotated[
    bool, typer.Option("--entitlement", help="iOS: the app has increased-memory-limit.")
]
ResidencyOption = Annotated[
    ResidencyMode | None,
    typer.Option(
        "--residency",
        help="Where weights lie: stream (as codes), expand (in memory), file (in a cache, "
        "mapped), auto (in memory, as the device or this machine has room). By default auto; a "
        "parity check without a device reads codes.",
    ),
]
BackendsOption = Annotated[
    list[Packages],
    typer.Option(
        "--backend",
        help="Which packages, all that ship by default. Can be given several times.",
    ),
]
BackendOption = Annotated[
    Package | None,
    typer.Option(
        "--backend",
        help="native: the weights of the .pte in the C++ core, by default where there are any; "
        "executorch: the .pte in its real runtime; coreml, or a format of its: an interpreter; "
        "coreml-real: an ML Program in Core ML itself, on macOS.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Threads of --backend native; by default as many as the process may use."
    ),
]
VerifyOption = Annotated[
    Verification,
    typer.Option(
        "--verify",
        help="used: the SHA-256 of the files that the run reads, unless they were hashed before "
        "and are untouched, and the sizes of all; all: the SHA-256 of every file of the bundle.",
    ),
]
AllowLossOption = Annotated[
    bool,
    typer.Option("--allow-loss", help="End with success however much quantization lost."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace a bundle that is already there.")
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face directory, a GGUF file, or a hub id such as meta-llama/Llama-3.2-1B.",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of a MODEL on the hub."),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(metavar="DIR|HUB_ID", help="A LoRA adapter, merged into the weights of MODEL."),
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="The bundle to make.")]
ActivationsOption = Annotated[
    Activations, typer.Option(help="int16: integer products, fast; float32: as PyTorch.")
]
KVCacheOption = Annotated[
    KVCache, typer.Option("--kv-cache", help="How a .pte stores keys and values.")
]
ChunkBytesOption = Annotated[
    int, typer.Option(min=4096, help="Largest weight file of an ML Program, in bytes.")
]
NativeOption = Annotated[
    bool, typer.Option("--with-native", help="Add the C++ sources of the operators.")
]
LossTextOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A text to measure the loss by quantization on; one ships."),
]
MaxRamOption = Annotated[
    int | None,
    typer.Option(
        parser=size,
        metavar="SIZE",
        help="Memory the export may take, such as 2GB; else it is refused.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on from what an export to OUT that was interrupted has finished."
    ),
]
OneDeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=one_device_name,
        help="Run under the limits of this phone.",
    ),
]
OneDeviceFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Run under the limits of a phone of your own."),
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", callback=report, help="Memory over time as a PNG; needs a device."
    ),
]
JUnitOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=report, help="For CI: a test case for each check."),
]
MarkdownOption = Annotated[
    Path | None, typer.Option(metavar="FILE", callback=writable, help="For a pull request.")
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=report, help="For a browser, with memory over time."),
]
