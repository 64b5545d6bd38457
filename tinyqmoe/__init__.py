"""The Python interface of Tiny-QMoE export: make a bundle, run its packages, and judge them.

docs/python.md has an example of each function. The command line calls these functions. Every
function that takes long can be told a `progress`, which gets (stage, done, total). Errors that a
user can mend are subclasses of `TinyQMoEError`. Importing this package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from exporter.bundle import BACKENDS, Bundle
from exporter.config import ExportConfig
from exporter.errors import (
    BundleError,
    CheckpointError,
    CodecError,
    ContextError,
    DataError,
    ExportError,
    MissingComponentError,
    OutOfSpaceError,
    TinyQMoEError,
    UsageError,
)
from exporter.progress import Progress
from tinyqmoe.apps import app_files, examine_bundle
from tinyqmoe.benching import Bench, BenchSettings, bench
from tinyqmoe.chatting import HeldPackage, converse, hold_package
from tinyqmoe.check_settings import CHECK_FILE, CheckSettings, read_check_file
from tinyqmoe.checking import BundleCheck, check
from tinyqmoe.devices import FitVerdict, find_devices, fit
from tinyqmoe.evaluating import EvaluationSettings, compare, evaluate
from tinyqmoe.exporting import demo_model, export
from tinyqmoe.generation import DeviceGeneration, GenerationSettings, generate, run_on_device
from tinyqmoe.hub import PushedBundle, push
from tinyqmoe.judging import BundleParity, check_parity
from tinyqmoe.packages import expanded_bytes, open_bundle, open_runner
from tinyqmoe.serving import listen, serve
from tinyqmoe.settings import ExportSettings, export_config
from tinyqmoe.signatures import sign, verify
from tinyqmoe.sweep_jobs import jobs_text as emit_sweep
from tinyqmoe.sweep_progress import CellEvent
from tinyqmoe.sweep_results import merge as merge_sweep
from tinyqmoe.sweep_results import read_results as read_sweep
from tinyqmoe.sweeping import sweep

if TYPE_CHECKING:
    from exporter.apps.files import AppFiles
    from exporter.evaluation.compare import Comparison
    from exporter.evaluation.evaluate import Evaluation
    from exporter.quant.config import QuantConfig
    from runtime_ref.conversation import Conversation
    from runtime_ref.device.profile import DeviceProfile
    from runtime_ref.device.run import DeviceRun
    from runtime_ref.doctor import Finding
    from runtime_ref.generate import Runner, RunResult, TextStream
    from runtime_ref.parity import ParityReport
    from runtime_ref.reports.files import Judged
    from runtime_ref.residency import Mode, Residency
    from runtime_ref.server.limits import ServerLimits
    from runtime_ref.sweep_table import SweepTable

FORMATS = tuple(BACKENDS)
"""Names of all package formats, in the order in which they are made."""

__all__ = [
    "CHECK_FILE",
    "FORMATS",
    "AppFiles",
    "Bench",
    "BenchSettings",
    "Bundle",
    "BundleCheck",
    "BundleError",
    "BundleParity",
    "CellEvent",
    "CheckSettings",
    "CheckpointError",
    "CodecError",
    "Comparison",
    "ContextError",
    "Conversation",
    "DataError",
    "DeviceGeneration",
    "DeviceProfile",
    "DeviceRun",
    "Evaluation",
    "EvaluationSettings",
    "ExportConfig",
    "ExportError",
    "ExportSettings",
    "Finding",
    "FitVerdict",
    "GenerationSettings",
    "HeldPackage",
    "Judged",
    "MissingComponentError",
    "Mode",
    "OutOfSpaceError",
    "ParityReport",
    "Progress",
    "PushedBundle",
    "QuantConfig",
    "Residency",
    "RunResult",
    "Runner",
    "ServerLimits",
    "SweepTable",
    "TextStream",
    "TinyQMoEError",
    "UsageError",
    "app_files",
    "bench",
    "check",
    "check_parity",
    "compare",
    "converse",
    "demo_model",
    "emit_sweep",
    "evaluate",
    "examine_bundle",
    "expanded_bytes",
    "export",
    "export_config",
    "find_devices",
    "fit",
    "generate",
    "hold_package",
    "listen",
    "merge_sweep",
    "open_bundle",
    "open_runner",
    "push",
    "read_check_file",
    "read_sweep",
    "run_on_device",
    "serve",
    "sign",
    "sweep",
    "verify",
]

# Types whose modules import more than the standard library: they are loaded when they are used.
_LAZY = {
    "AppFiles": "exporter.apps.files",
    "Comparison": "exporter.evaluation.compare",
    "Conversation": "runtime_ref.conversation",
    "DeviceProfile": "runtime_ref.device.profile",
    "DeviceRun": "runtime_ref.device.run",
    "Evaluation": "exporter.evaluation.evaluate",
    "Finding": "runtime_ref.doctor",
    "Judged": "runtime_ref.reports.files",
    "Mode": "runtime_ref.residency",
    "ParityReport": "runtime_ref.parity",
    "QuantConfig": "exporter.quant.config",
    "Residency": "runtime_ref.residency",
    "RunResult": "runtime_ref.generate",
    "Runner": "runtime_ref.generate",
    "ServerLimits": "runtime_ref.server.limits",
    "SweepTable": "runtime_ref.sweep_table",
    "TextStream": "runtime_ref.generate",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
