"""The interpreters' memory, measured from outside: near the package's size, though the weights are
far larger dense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.codec import encoder
from exporter.quiet import quiet
from tests.support.mil import ct, mb, save

with quiet():
    from coremltools.proto.Model_pb2 import Model

N, LAYERS = 2560, 4
PACKAGE_BYTES, DENSE_BYTES = LAYERS * N * N, LAYERS * N * N * 4
BUDGET_BYTES, SLACK_BYTES = (
    8 << 20,
    40 << 20,
)  # of values, blocks that are decoded, and what libraries load late

# Opens a package, runs it twice, and prints how far memory went above where it was before.
CHILD = """
import re, sys
from pathlib import Path
import numpy as np
from runtime_ref.coreml.package import CoreMLPackage
from runtime_ref.coreml.mil_program import MLProgram
from runtime_ref.coreml.neural_network import NeuralNetwork
from exporter.quiet import quiet
with quiet():
    from coremltools.proto.Model_pb2 import Model

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path, budget, n = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
x = {{"x": np.ones((1, n), np.float32)}}
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
{run}
print(status("VmHWM") - before)
"""
RUN = {
    "ML Program": """
program = MLProgram(CoreMLPackage.open(path), None, "float32", budget)
for _ in range(2):
    program.predict(x, {})
""",
    "neural network": """
network = NeuralNetwork(path, path.parent)
for _ in range(2):
    network.predict(x)
""",
}

needs_procfs = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)


def peak_growth(kind: str, path: Path, budget: int) -> int:
    command = [sys.executable, "-c", CHILD.format(run=RUN[kind]), str(path), str(budget), str(N)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def levels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(-127, 128, (N, N)).astype(np.int8)


@pytest.fixture(scope="module")
def ml_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`LAYERS` products of int8 weights."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, N))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        bias = np.zeros(N, np.float32)
        for i in range(LAYERS):
            scale = np.full((N, 1), 1e-3, np.float32)
            x = mb.linear(
                x=x,
                weight=mb.constexpr_blockwise_shift_scale(data=levels(i), scale=scale),
                bias=bias,
            )
        return x

    return save(program, tmp_path_factory.mktemp("large") / "x.mlpackage").path


@pytest.fixture(scope="module")
def neural_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as custom layers."""
    model = Model(specificationVersion=4)
    model.neuralNetwork.arrayInputShapeMapping = 1
    for features, name in (
        (model.description.input, "x"),
        (model.description.output, f"y{LAYERS - 1}"),
    ):
        array = features.add(name=name).type.multiArrayType
        array.dataType = array.ArrayDataType.Value("FLOAT32")
        array.shape.extend([1, N])
    for i in range(LAYERS):
        layer = model.neuralNetwork.layers.add(
            name=f"y{i}", input=[f"y{i - 1}" if i else "x"], output=[f"y{i}"]
        )
        layer.custom.className = "LZWLinear"
        for key, value in {"version": 3, "rows": N, "cols": N, "group_size": N}.items():
            layer.custom.parameters[key].intValue = value
        layer.custom.parameters["name"].stringValue = f"y{i}"
        layer.custom.parameters["scale_type"].stringValue = "float32"
        layer.custom.parameters["int16_activations"].boolValue = False
        layer.custom.weights.add().rawValue = encoder.encode(
            levels(i), -127, 255, "raw"
        ).blob.tobytes()
        layer.custom.weights.add().floatValue.extend([1e-3] * N)
    path = tmp_path_factory.mktemp("large") / "m.mlmodel"
    path.write_bytes(model.SerializeToString())
    return path


@needs_procfs
@pytest.mark.long
def test_an_ml_program_keeps_dense_what_its_budget_allows(ml_program: Path) -> None:
    growth = peak_growth("ML Program", ml_program, BUDGET_BYTES)
    assert growth < PACKAGE_BYTES + BUDGET_BYTES + SLACK_BYTES < DENSE_BYTES
    assert (
        peak_growth("ML Program", ml_program, 2 * DENSE_BYTES) > DENSE_BYTES
    )  # so the figure says something


@needs_procfs
def test_a_neural_network_keeps_nothing_dense(neural_network: Path) -> None:
    growth = peak_growth("neural network", neural_network, 0)
    assert PACKAGE_BYTES < growth < PACKAGE_BYTES + SLACK_BYTES
