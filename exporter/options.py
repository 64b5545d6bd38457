"""Options that commands share, with the values they take."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer

from exporter.errors import UsageError
from exporter.memory import parse_size


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


class JudgedBackend(enum.StrEnum):
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


class ResidencyMode(enum.StrEnum):
    """Where the weights of products lie: as codes, expanded in memory, in files, or as a device's
    limit has room."""

    STREAM = "stream"
    EXPAND = "expand"
    FILE = "file"
    AUTO = "auto"


class Activations(enum.StrEnum):
    """The arithmetic of the products."""

    INT16 = "int16"
    FLOAT32 = "float32"


def size(text: str) -> int:
    """Bytes of "1.5 GB"."""
    try:
        return parse_size(text)
    except UsageError as error:
        raise typer.BadParameter(error.what) from error


def writable(json_file: Path | None) -> Path | None:
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
        "--json",
        metavar="FILE|-",
        callback=writable,
        help="Write the result as JSON to a file, or to stdout with -.",
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A directory made by `tinyqmoe export`.")
]
SchemeOption = Annotated[Scheme, typer.Option(help="How the matrices of the layers are quantized.")]
GroupSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Weights that share a scale; a whole row by default.")
]
SparsityOption = Annotated[
    float | None, typer.Option(help="Share of zeros of ternary matrices, from 0 to below 1.")
]
EmbeddingOption = Annotated[
    Scheme, typer.Option(help="How the embedding and the head are quantized.")
]
ContextOption = Annotated[
    int | None,
    typer.Option(help="Positions of the KV cache; by default 2048, or the model's own if less."),
]
CodecOption = Annotated[
    CodecChoice, typer.Option(help="auto takes, matrix by matrix, what is smaller.")
]
DevicesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME|all",
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
        "mapped), auto (as the "
        "device has room). By default auto on a device, else stream.",
    ),
]
BackendsOption = Annotated[
    list[JudgedBackend],
    typer.Option("--backend", help="Which packages. Can be given several times."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace a bundle that is already there.")
]
