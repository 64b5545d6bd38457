"""The interpreter of neural networks: models that others converted, and everything that it
refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporter.codec import encoder, scales
from exporter.codec.native_tensor import NativeTensor
from exporter.errors import BundleError, UsageError
from exporter.quiet import quiet
from runtime_ref.coreml.neural_network import NeuralNetwork

with quiet():
    import coremltools
    from coremltools.proto.Model_pb2 import Model

# Models that this project did not write


class Words(nn.Module):
    """Embedding, layer norm, attention, slices and reshapes: ids [5] and x [3, 16] -> [1, 21]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 16), nn.LayerNorm(24)
        self.inner, self.query = nn.Linear(16, 24), nn.Linear(24, 24, bias=False)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        h = self.norm(self.inner(torch.cat([self.embed(ids), x])))
        h = torch.softmax(self.query(h) @ h.T / 4.9, -1) @ h  # [8, 24]
        h = h[1:, 2:].reshape(1, 7, 11, 2).permute(0, 2, 1, 3).reshape(11, 14)[:, ::2]
        h = torch.cat(
            [torch.tanh(h), torch.sigmoid(h) * torch.relu(h), (h.abs() + 0.1).sqrt()], dim=1
        )
        return h.mean(0, keepdim=True)


class Images(nn.Module):
    """Convolutions, batch norm and pooling: x [1, 3, 12, 10] -> [1, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 8, 3, groups=4),
        )
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 4)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2, stride=1)
        return torch.softmax(self.last(self.second(h).mean((2, 3))), -1)


def converted(module: nn.Module, inputs: dict[str, Tensor], path: Path) -> NeuralNetwork:
    """What coremltools makes of a module, in the classic format."""
    declared = [
        coremltools.TensorType(
            name, x.shape, dtype=np.float32 if x.is_floating_point() else np.int32
        )
        for name, x in inputs.items()
    ]
    with quiet():
        traced = torch.jit.trace(module, tuple(inputs.values()))
        coremltools.convert(traced, inputs=declared, convert_to="neuralnetwork").save(str(path))
    return NeuralNetwork(path, path.parent)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


FOREIGN: dict[str, tuple[type[nn.Module], dict[str, Tensor]]] = {
    "words": (Words, {"ids": torch.tensor([3, 0, 10, 3, 7]), "x": rand(3, 16)}),
    "images": (Images, {"x": rand(1, 3, 12, 10)}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_models_converted_by_coremltools(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, inputs = FOREIGN[name]
    module = kind().eval()
    network = converted(module, inputs, tmp_path / "m.mlmodel")
    with torch.inference_mode():
        expected = module(*inputs.values())
    outputs = network.predict(
        {n: x.numpy().astype(network.inputs[n].dtype) for n, x in inputs.items()}
    )
    assert len(outputs) == 1
    torch.testing.assert_close(torch.tensor(outputs.popitem()[1]), expected, atol=1e-6, rtol=1e-5)


def test_an_unknown_layer_is_named_with_its_type(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be run") as caught:
        converted(nn.Softplus(), {"x": rand(2, 3)}, tmp_path / "m.mlmodel")
    assert [p.split(":", 1)[1] for p in caught.value.problems] == [" the function softplus"]
    with pytest.raises(BundleError) as caught:
        converted(nn.PixelShuffle(2), {"x": rand(1, 4, 2, 2)}, tmp_path / "n.mlmodel")
    assert any("reorganizeData" in p and "not known here" in p for p in caught.value.problems)


# A small network with custom layers: ids [1..4] -> embedding "table" [S, 8] -> product "head" [S,
# 6]


BlobAndScales = tuple[bytes, np.ndarray]


def matrix(rows: int, cols: int, seed: int) -> BlobAndScales:
    """A blob and its scales, one for a row."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    return encoder.encode(levels, -1, 3, "raw").blob.tobytes(), rng.uniform(
        0.5, 2, (rows, 1)
    ).astype(np.float32)


TABLE, HEAD = matrix(5, 8, 0), matrix(6, 8, 1)


def add_array(features: Any, name: str, dtype: str, shape: list[tuple[int, int]]) -> None:
    array = features.add(name=name).type.multiArrayType
    array.dataType = array.ArrayDataType.Value(dtype)
    for low, high in shape:
        array.shape.append(low)
        array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)


def add_custom(
    model: Any, name: str, class_name: str, source: str, weights: BlobAndScales, rows: int
) -> None:
    layer = model.neuralNetwork.layers.add(name=name, input=[source], output=[name])
    layer.custom.className = class_name
    for key, value in {"version": 3, "rows": rows, "cols": 8, "group_size": 8}.items():
        layer.custom.parameters[key].intValue = value
    layer.custom.parameters["name"].stringValue = name
    layer.custom.parameters["scale_type"].stringValue = "float32"
    if class_name == "LZWLinear":
        layer.custom.parameters["int16_activations"].boolValue = False
    layer.custom.weights.add().rawValue = weights[0]
    layer.custom.weights.add().floatValue.extend(weights[1].reshape(-1).tolist())


def small() -> Any:
    model = Model(specificationVersion=4)
    model.neuralNetwork.arrayInputShapeMapping = 1
    add_array(model.description.input, "ids", "INT32", [(1, 4)])
    add_array(model.description.output, "head", "FLOAT32", [(1, 4), (6, 6)])
    add_custom(model, "table", "LZWEmbedding", "ids", TABLE, 5)
    add_custom(model, "head", "LZWLinear", "table", HEAD, 6)
    return model


def opened(model: Any, folder: Path) -> NeuralNetwork:
    path = folder / "m.mlmodel"
    path.write_bytes(model.SerializeToString())
    return NeuralNetwork(path, folder)


def dense(weights: BlobAndScales) -> np.ndarray:
    with NativeTensor(np.frombuffer(weights[0], np.uint8)) as tensor:
        return tensor.decode_rows() * weights[1]


IDS = np.array([4, 0, 3], np.int32)


def test_the_small_network_is_right(tmp_path: Path) -> None:
    """Else what is refused below could be refused for another reason."""
    network = opened(small(), tmp_path)
    assert {n: str(i) for n, i in (network.inputs | network.outputs).items()} == {
        "ids": "int32 [1..4]",
        "head": "float32 [1..4, 6]",
    }
    got = network.predict({"ids": IDS})["head"]
    np.testing.assert_allclose(got, dense(TABLE)[IDS] @ dense(HEAD).T, rtol=1e-6, atol=1e-6)


def test_outputs_never_share_memory_with_inputs(tmp_path: Path) -> None:
    model = small()
    add_array(model.description.input, "x", "FLOAT32", [(2, 2)])
    model.description.output.add().CopyFrom(model.description.input[1])
    x = np.ones(2, np.float32)
    out = opened(model, tmp_path)
    assert not np.shares_memory(out.predict({"ids": IDS, "x": x})["x"], x)


# What is refused when it is opened


def parameter(model: Any, i: int, name: str) -> Any:
    return model.neuralNetwork.layers[i].custom.parameters[name]


def without_weights(model: Any, i: int) -> Any:
    del model.neuralNetwork.layers[i].custom.weights[:]
    return model.neuralNetwork.layers[i].custom


def stored(model: Any, i: int, which: int) -> Any:
    return model.neuralNetwork.layers[i].custom.weights[which]


def in_16_bits(model: Any, i: int) -> None:
    """Stores the scales of a layer, rounded to half precision, in 16 bits."""
    weight = stored(model, i, 1)
    codes = scales.stored(np.float32(np.float16(weight.floatValue)))
    weight.ClearField("floatValue")
    weight.rawValue = codes.tobytes()
    parameter(model, i, "scale_type").stringValue = "ue6m10"


def shared(model: Any, name: str, *, keep: bool = False) -> None:
    if not keep:
        without_weights(model, 1)
    parameter(model, 1, "weights_of").stringValue = name


def another_product(model: Any) -> None:
    add_custom(model, "more", "LZWLinear", "table", HEAD, 6)
    parameter(model, 2, "int16_activations").boolValue = True


def patched_blob(model: Any, at: int) -> None:
    blob = bytearray(stored(model, 0, 0).rawValue)
    blob[at] ^= 1
    stored(model, 0, 0).rawValue = bytes(blob)


def unknown_layers(model: Any) -> None:
    for i in range(25):
        model.neuralNetwork.layers.add(
            name=f"e{i}", input=["table"], output=[f"e{i}"]
        ).erf.SetInParent()


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "no model": (lambda m: m.ClearField("neuralNetwork"), "holds no model, expected neuralNetwork"),
    "another kind of model": (lambda m: m.mlProgram.SetInParent(), "holds mlProgram"),
    "an old version": (
        lambda m: setattr(m, "specificationVersion", 3),
        "version is 3, this reads 4 to 10",
    ),
    "rank-5 arrays": (
        lambda m: setattr(m.neuralNetwork, "arrayInputShapeMapping", 0),
        "EXACT_ARRAY_MAPPING",
    ),
    "images": (lambda m: m.neuralNetwork.preprocessing.add(), "preprocesses images"),
    "a double": (
        lambda m: setattr(m.description.input[0].type.multiArrayType, "dataType", 65600),
        "ids is no array",
    ),
    "a dictionary": (
        lambda m: m.description.input[0].type.dictionaryType.SetInParent(),
        "ids is no array",
    ),
    "a list of shapes": (
        lambda m: m.description.input[0].type.multiArrayType.enumeratedShapes.SetInParent(),
        "ids has enumeratedShapes",
    ),
    "an unknown layer": (
        lambda m: m.neuralNetwork.layers.add(
            name="e", input=["table"], output=["e"]
        ).erf.SetInParent(),
        "layer 'e' (erf): this type of layer is not known here",
    ),
    "an empty layer": (
        lambda m: m.neuralNetwork.layers.add(name="e", input=["table"], output=["e"]),
        "layer 'e' (None): this type",
    ),
    "an unknown function": (
        lambda m: m.neuralNetwork.layers.add(
            name="e", input=["table"], output=["e"]
        ).activation.ELU.SetInParent(),
        "layer 'e' (activation): the function ELU",
    ),
    "many unknown layers": (unknown_layers, "and 5 more"),
    "two outputs": (
        lambda m: m.neuralNetwork.layers[1].output.append("b"),
        "makes 2 values, expected 1",
    ),
    "two inputs": (
        lambda m: m.neuralNetwork.layers[1].input.append("ids"),
        "takes 2 values, expected 1 to 1",
    ),
    "an input nobody makes": (
        lambda m: m.neuralNetwork.layers[1].input.__setitem__(0, "tabel"),
        "no layer before it makes its input tabel",
    ),
    "a value made twice": (
        lambda m: m.neuralNetwork.layers.add().CopyFrom(m.neuralNetwork.layers[0]),
        "table is made twice",
    ),
    "an output nobody makes": (
        lambda m: setattr(m.description.output[0], "name", "logits"),
        "no layer makes the output logits",
    ),
    "two arithmetics": (
        another_product,
        "some products quantize their activations and some do not",
    ),
    "an unknown class": (
        lambda m: setattr(m.neuralNetwork.layers[0].custom, "className", "Other"),
        "layer 'table' (Other): this class of custom layer is not known here, only LZWLinear and "
        "LZWEmbedding",
    ),
    "a parameter less": (
        lambda m: m.neuralNetwork.layers[1].custom.parameters.pop("cols"),
        "missing, unknown or of another type: cols",
    ),
    "a parameter more": (
        lambda m: setattr(parameter(m, 0, "more"), "intValue", 1),
        "another type: more",
    ),
    "a parameter of another type": (
        lambda m: setattr(parameter(m, 0, "rows"), "doubleValue", 5.0),
        "another type: rows",
    ),
    "an embedding with activations": (
        lambda m: setattr(parameter(m, 0, "int16_activations"), "boolValue", True),
        "another type: int16_activations",
    ),
    "another version": (
        lambda m: setattr(parameter(m, 1, "version"), "intValue", 2),
        "version is 2, this computes 3",
    ),
    "groups of nothing": (
        lambda m: setattr(parameter(m, 1, "group_size"), "intValue", 0),
        "group_size is 0",
    ),
    "an unknown type of scales": (
        lambda m: setattr(parameter(m, 1, "scale_type"), "stringValue", "float16"),
        "scale_type is 'float16', which is unknown",
    ),
    "scales of another type": (
        lambda m: setattr(parameter(m, 0, "scale_type"), "stringValue", "ue6m10"),
        "in the fields [[30], [1]] of WeightParams, expected [[30], [30]]",
    ),
    "shared scales of another type": (
        lambda m: (shared(m, "table"), in_16_bits(m, 0)),
        "groups of 8, scales in ue6m10, its parameters say 6, 8, 8 and float32",
    ),
    "other rows": (
        lambda m: setattr(parameter(m, 1, "rows"), "intValue", 7),
        "its blob has 6 rows and 8 columns, groups of 8, scales in float32, its parameters say 7, "
        "8, 8 and float32",
    ),
    "smaller groups": (
        lambda m: setattr(parameter(m, 1, "group_size"), "intValue", 4),
        "its scales has 24 bytes, expected 48",
    ),
    "no weights": (
        lambda m: without_weights(m, 0),
        "in the fields [] of WeightParams, expected [[30], [1]]",
    ),
    "only a blob": (lambda m: m.neuralNetwork.layers[0].custom.weights.pop(), "fields [[30]]"),
    "scales in halves": (
        lambda m: (
            stored(m, 0, 1).ClearField("floatValue"),
            setattr(stored(m, 0, 1), "float16Value", b"\0" * 10),
        ),
        "fields [[30], [2]]",
    ),
    "a blob with a tail": (
        lambda m: setattr(stored(m, 0, 0), "rawValue", TABLE[0] + b"\0"),
        f"its blob has {len(TABLE[0]) + 1} bytes",
    ),
    "half a blob": (
        lambda m: setattr(stored(m, 0, 0), "rawValue", TABLE[0][: len(TABLE[0]) // 2]),
        "layer 'table'",
    ),
    "no blob": (lambda m: setattr(stored(m, 0, 0), "rawValue", TABLE[0][:3]), "layer 'table'"),
    "a flipped bit of a blob": (lambda m: patched_blob(m, -1), "layer 'table' (LZWEmbedding)"),
    "a flipped bit of its header": (lambda m: patched_blob(m, 9), "layer 'table' (LZWEmbedding)"),
    "shared weights that nobody has": (
        lambda m: shared(m, "tabel"),
        "no layer before it of that name has any",
    ),
    "shared weights of a later layer": (
        lambda m: shared(m, "head"),
        "no layer before it of that name has any",
    ),
    "shared weights and its own": (
        lambda m: shared(m, "table", keep=True),
        "has weights of its own and uses those",
    ),
    "shared weights of another shape": (
        lambda m: shared(m, "table"),
        "its blob has 5 rows and 8 columns",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_networks_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    change, problem = REFUSED[name]
    model = small()
    change(model)
    with pytest.raises(BundleError) as caught:
        opened(model, tmp_path)
    assert problem in str(caught.value)


def test_scales_in_16_bits(tmp_path: Path) -> None:
    """The same numbers as in 32 bits give the same bits."""
    model = small()
    for i in range(2):
        halves = np.float32(np.float16(stored(model, i, 1).floatValue))
        stored(model, i, 1).floatValue[:] = halves.tolist()
    wide = opened(model, tmp_path).predict({"ids": IDS})["head"]
    for i in range(2):
        in_16_bits(model, i)
    assert np.array_equal(opened(model, tmp_path).predict({"ids": IDS})["head"], wide)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    model = small()
    parameter(model, 0, "version").intValue = 9
    parameter(model, 1, "cols").intValue = 9
    model.description.output[0].name = "logits"
    with pytest.raises(BundleError) as caught:
        opened(model, tmp_path)
    assert len(caught.value.problems) == 3


# Damaged files


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.mlmodel"
    data = small().SerializeToString()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(BundleError):
            NeuralNetwork(path, tmp_path)


WIRE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an empty file": (lambda data: b"", "is not a Core ML model"),
    "a tail": (lambda data: data + b"\xff", "ends inside a number"),
    "a group": (lambda data: data + b"\x0b", "wire type 3"),
    "a long number": (lambda data: data + b"\xff" * 12, "more than ten bytes"),
    "a long field": (lambda data: data + b"\x12\x7f", "its message at"),
    "text": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        "is not a Core ML model",
    ),
    "scales twice in one": (
        lambda data: data.replace(*two_scales(data)),
        "not one piece of bytes a kind",
    ),
}


def two_scales(data: bytes) -> tuple[bytes, bytes]:
    """The scales of the table, and the same bytes as two fields of one message: 8 + 8 bytes for 2 +
    20."""
    scales = TABLE[1].tobytes()
    assert data.count(b"\x0a\x14" + scales) == 1
    return b"\x0a\x14" + scales, b"\x0a\x08" + scales[:8] + b"\x0a\x0a" + scales[:10]


@pytest.mark.parametrize("name", WIRE)
def test_what_is_no_protobuf_is_refused(name: str, tmp_path: Path) -> None:
    change, problem = WIRE[name]
    path = tmp_path / "m.mlmodel"
    path.write_bytes(change(small().SerializeToString()))
    with pytest.raises(BundleError, match="is not a Core ML model") as caught:
        NeuralNetwork(path, tmp_path)
    assert problem in str(caught.value)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a Core ML model"):
        NeuralNetwork(tmp_path / "m.mlmodel", tmp_path)


# Weights in a file beside the model


@dataclasses.dataclass(frozen=True)
class Place:
    """What the parameters of the table say of its weights. What they should say is the default."""

    file: str = "w.weights"
    blob_offset: int = 64
    blob_bytes: int = len(TABLE[0])
    scales_offset: int = 0
    scales_bytes: int = 20


def beside(folder: Path, place: Place) -> NeuralNetwork:
    """The small network with the weights of the table in a file: scales at 0, the blob at 64."""
    (folder / "w.weights").write_bytes(TABLE[1].tobytes().ljust(64, b"\0") + TABLE[0])
    model = small()
    parameters = without_weights(model, 0).parameters
    for name, value in dataclasses.asdict(place).items():
        setattr(parameters[name], "stringValue" if name == "file" else "longValue", value)
    return opened(model, folder)


@pytest.mark.parametrize("file", ["w.weights", "./w.weights"])
def test_weights_beside_the_model(tmp_path: Path, file: str) -> None:
    inline = opened(small(), tmp_path).predict({"ids": IDS})["head"]
    assert np.array_equal(beside(tmp_path, Place(file)).predict({"ids": IDS})["head"], inline)


WRONG_PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "absent": ({"file": "other.weights"}, "in other.weights, which is absent"),
    "a folder": ({"file": "sub"}, "in sub, which is absent"),
    "above": ({"file": "../outside"}, "'../outside', which points outside the bundle"),
    "above from below": ({"file": "sub/../../outside"}, "which points outside the bundle"),
    "absolute": ({"file": "/etc/hostname"}, "which points outside the bundle"),
    "a link to above": ({"file": "link"}, "'link', which points outside the bundle"),
    "no name": ({"file": ""}, "which points outside the bundle"),
    "backslashes": ({"file": "..\\outside"}, "which points outside the bundle"),
    "past the end": ({"blob_offset": 65}, "bytes at 65 of w.weights, which has"),
    "scales past the end": (
        {"scales_offset": 1 << 40},
        "20 bytes at 1,099,511,627,776 of w.weights",
    ),
    "before the beginning": ({"blob_offset": -1}, "bytes at -1 of w.weights"),
    "no bytes": ({"scales_bytes": 0}, "0 bytes at 0 of w.weights"),
    "a byte less": ({"scales_bytes": 19}, "its scales has 19 bytes, expected 20"),
    "another place": ({"blob_offset": 0}, "layer 'table' (LZWEmbedding)"),
}


@pytest.mark.parametrize("name", WRONG_PLACES)
def test_wrong_places_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(bytes(200))
    (folder / "link").symlink_to(tmp_path / "outside")
    changes, problem = WRONG_PLACES[name]
    with pytest.raises(BundleError) as caught:
        beside(folder, Place(**changes))
    assert problem in str(caught.value)


def test_a_cut_file_of_weights_is_refused(tmp_path: Path) -> None:
    beside(tmp_path, Place())
    file = tmp_path / "w.weights"
    for n in (0, 19, 64, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:n])
        with pytest.raises(BundleError, match=r"of w\.weights, which has"):
            NeuralNetwork(tmp_path / "m.mlmodel", tmp_path)
        beside(tmp_path, Place())


def test_weights_beside_the_model_and_in_it_are_refused(tmp_path: Path) -> None:
    model = small()
    for name, value in dataclasses.asdict(Place()).items():
        setattr(parameter(model, 0, name), "stringValue" if name == "file" else "longValue", value)
    with pytest.raises(BundleError, match=r"weights of its own and others in 'w\.weights'"):
        opened(model, tmp_path)


# Calls


CALLS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no input": ({}, "input ids is missing"),
    "an unknown input": ({"ids": IDS, "more": IDS}, "there is no input more"),
    "int64": ({"ids": IDS.astype(np.int64)}, "input ids is int64 [3], expected int32 [1..4]"),
    "floats": ({"ids": IDS.astype(np.float32)}, "input ids is float32 [3], expected int32 [1..4]"),
    "two dimensions": ({"ids": IDS[None]}, "input ids is int32 [1, 3], expected int32 [1..4]"),
    "nothing": ({"ids": IDS[:0]}, "input ids is int32 [0]"),
    "too many": ({"ids": np.zeros(5, np.int32)}, "input ids is int32 [5], expected int32 [1..4]"),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused(name: str, tmp_path: Path) -> None:
    inputs, problem = CALLS[name]
    with pytest.raises(UsageError, match="not called as it declares") as caught:
        opened(small(), tmp_path).predict(inputs)
    assert caught.value.problems == [p for p in caught.value.problems if problem in p] != []


@pytest.mark.parametrize("token", [-1, 5, 1 << 24])
def test_ids_outside_the_table_are_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(BundleError, match=r"layer 'table' \(LZWEmbedding\)"):
        opened(small(), tmp_path).predict({"ids": np.array([0, token], np.int32)})


def test_a_layer_that_fails_is_named(tmp_path: Path) -> None:
    model = small()
    layer = model.neuralNetwork.layers.add(name="r", input=["head"], output=["r"])
    layer.reshapeStatic.targetShape.extend([5, 6])
    with pytest.raises(BundleError, match=r"layer 'r' \(reshapeStatic\).*cannot reshape"):
        opened(model, tmp_path).predict({"ids": IDS})


def test_an_output_of_another_shape_than_declared_is_refused(tmp_path: Path) -> None:
    model = small()
    model.description.output[0].type.multiArrayType.shapeRange.sizeRanges[1].upperBound = 5
    with pytest.raises(BundleError, match=r"the output head came out as \[3, 6\]"):
        opened(model, tmp_path).predict({"ids": IDS})
