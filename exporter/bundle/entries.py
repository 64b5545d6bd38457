"""The entries of a manifest: what `manifest.json` says of tensors, packages and bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from exporter.bundle.sealing import sealed

SCHEMA_VERSION = 10
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"  # of the manifest: see exporter/bundle/signing.py
PROGRAM = "model.pte"
NETWORK_VERSION = 3  # of native/llm/MANIFEST.md
REFERENCE = "reference.safetensors"
# Past them the best token is another one more often than not, and a chat model babbles.
LARGE_KL, SMALL_AGREEMENT = 1.0, 0.5
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Activations = Literal["int16", "float32"]
ACTIVATIONS: tuple[Activations, ...] = ("int16", "float32")
HALF = "float16"  # activations of what Core ML itself computes
KVType = Literal["float16", "float32", "int8"]
KV_TYPES: tuple[KVType, ...] = ("float16", "float32", "int8")
# The backend of each format of an artifact.
BACKENDS = {"pte": "executorch", "mlprogram": "coreml", "custom-op": "coreml"}
NATIVE = "native"  # the backend that runs the weights of a `.pte` in a session of the core
COREML_REAL = "coreml-real"  # the backend that runs an ML Program in Core ML itself, on macOS


@dataclass(frozen=True)
class TensorEntry:
    """One matrix, the same in every package of the bundle.

    `bits_per_weight` counts blob and scales. scale_type: how the scales are stored, a ScaleType of
    exporter.codec.scale_types; an ML Program has them in a form of its own. own_levels: levels and
    scales are those of the checkpoint, which is ternary; nothing was quantized.
    """

    name: str
    rows: int
    cols: int
    scheme: str
    n_levels: int
    group_size: int
    scale_type: str
    codec: str
    code_bits: int
    cap: int
    bits_per_weight: float
    entropy_bits: float
    zeros: float
    levels_crc32: int
    blob_bytes: int
    scales_bytes: int
    sizes_bytes: dict[str, int]
    own_levels: bool


@dataclass(frozen=True)
class Location:
    """The place of a matrix: the file of its levels, their first byte, and their number of bytes.

    `scales_offset` is the first byte of its `scales_bytes` of scales, in the form of the package;
    `scales_crc32` is the CRC-32 that they should have. They lie in `scales_file`; None: in the file
    of the levels. There are none where the graph itself holds the scales, and in an estimate.

    form: "tqlz" a TQLZ blob, or the name of a `codec.weight_file.PlainForm`.
    """

    file: str
    form: str
    offset: int
    n_bytes: int
    scales_offset: int = 0
    scales_bytes: int = 0
    scales_crc32: int = 0
    scales_file: str | None = None


@dataclass(frozen=True)
class VectorLocation:
    """Location of the float32 values of a vector: file, first byte and number.

    offset: a multiple of 4.
    """

    file: str
    offset: int
    n: int


@dataclass(frozen=True)
class Network:
    """The sizes of the decoder, as a session reads them (native/llm/MANIFEST.md).

    eps: of the norms, at most 9 digits, which are its float32.
    """

    version: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle; its path is relative to the bundle, in POSIX form."""

    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class LedgerRow:
    """A row of the byte ledger: what some bytes of a file are.

    The rows of a file sum to its size.
    """

    file: str
    what: str
    n_bytes: int


@dataclass(frozen=True)
class Origin:
    """Where the weights came from.

    repo_id, revision: on the hub, with the commit. adapter, adapter_revision: the LoRA adapter that
    was merged, and its commit where it came from the hub. stored_as: number of tensors by their
    type on disk, such as {"BF16": 272} or {"Q4_1": 210}.
    """

    repo_id: str | None
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    stored_as: dict[str, int]


@dataclass(frozen=True)
class ModelEntry:
    """The model that the bundle was made from.

    source_sha256: of each file that weights were read from, in hex digits by its name; none in an
    estimate. `config` is its config.json.
    """

    name: str
    parameters: int
    source_bytes: int
    source_sha256: dict[str, str]
    config: dict[str, Any]
    origin: Origin


@dataclass(frozen=True)
class Interface:
    """The properties that all packages of the bundle share, for whoever runs them.

    `context` counts positions. `bos_rule` says who puts `bos_token_id` in front of a plain prompt:
    "tokenizer": tokenizer.json does it, an app must not; "none": nobody, the model has none there;
    "unknown": there is no tokenizer, and the id is that of config.json. A chat template writes all
    tokens itself.
    """

    context: int
    vocab_size: int
    bos_rule: str
    bos_token_id: int | None
    eos_token_ids: list[int]


@dataclass(frozen=True)
class ChatFormat:
    """The chat format of the model as six strings, as exporter/chat_format.py joins them.

    strings: by name, those that were proven against the template. trims: roles whose texts lose the
    spaces around them first. problem: what did not derive and why, or empty.
    """

    strings: dict[str, str]
    trims: list[str]
    problem: str


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic of a model: what its products read, and how keys and values are stored."""

    activations: Activations
    kv_type: KVType

    @property
    def name(self) -> str:
        return f"{self.activations}-{self.kv_type}"


EXACT = Arithmetic("float32", "float32")


@dataclass(frozen=True)
class Artifact:
    """One package: a `.pte`, or an `.mlpackage` of one of two formats.

    path: what a runner opens; an ML Program's comes into being by `tinyqmoe expand`. files: what
    ships for it. activations: the arithmetic of the products, "int16", "float32" or "float16".
    kv_type: how keys and values are stored, a KVType. prefill_tokens: number of tokens of the
    longest call. operators: how often each is in it. places: by name of the matrix. vectors: by
    name, of what lies in float32 where a session can read it, or none. details: what only its kind
    has.
    """

    format: str  # pte | mlprogram | custom-op
    path: str
    files: list[str]
    activations: str
    kv_type: str
    prefill_tokens: int
    kv_cache_bytes: int
    operators: dict[str, int]
    places: dict[str, Location]
    vectors: dict[str, VectorLocation]
    details: dict[str, Any]

    @property
    def backend(self) -> str:
        return BACKENDS[self.format]

    @property
    def exact(self) -> bool:
        """Whether the core alone computes it, so that its logits have the same bits everywhere."""
        return bool(self.vectors) and self.activations == "int16"

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic that answers in PyTorch for it; half precision is judged by the exact."""
        if self.activations == HALF:
            return EXACT
        return Arithmetic(cast(Activations, self.activations), cast(KVType, self.kv_type))


@dataclass(frozen=True)
class QuantizationLoss:
    """The loss that quantization cost against the float model, over the positions of one text.

    It is not a parity verdict. text: name of the text. kl_mean: KL(original || quantized) in nats.
    kl_standard_error: of that mean, by blocks of neighbouring positions.
    """

    text: str
    positions: int
    kl_mean: float
    kl_standard_error: float
    top1_agreement: float
    perplexity_original: float
    perplexity_quantized: float

    @property
    def kl_words(self) -> str:
        """The mean KL with its standard error and number of positions, in words."""
        kl = f"KL {self.kl_mean:.4f} ± {self.kl_standard_error:.4f}"
        return f"{kl} ({self.positions:,} positions)"

    @property
    def is_large(self) -> bool:
        """Whether the quantized model says other things than the original: see LARGE_KL."""
        return self.kl_mean > LARGE_KL or self.top1_agreement < SMALL_AGREEMENT


@dataclass(frozen=True)
class RateEntry:
    """The rate of the weights whose levels were fitted to what is known of them.

    Bits per weight count codes, tables and scales of all these matrices. bits_asked: of all of
    them; None where a plan asks, or no rate was asked for. constant: what the steps follow from;
    None where there are none, or a plan has several. text: the file that was calibrated on, if any,
    with `tokens` read of it.
    """

    bits_asked: float | None
    bits_per_weight: float
    constant: float | None
    text: str | None
    text_sha256: str | None
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    schema_version: int
    created: str
    tools: dict[str, str]
    model: ModelEntry
    quantization: dict[str, Any]
    rate: RateEntry | None  # where one was asked for, or levels were fitted
    quantization_loss: QuantizationLoss
    interface: Interface
    network: Network
    artifacts: list[Artifact]
    prompts: list[str]
    chat: ChatFormat = ChatFormat({}, [], "not derived")
    # What will disappoint, in whole sentences.
    warnings: list[str] = field(default_factory=list)
    tensors: list[TensorEntry] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)
    # These are made by `tinyqmoe expand`, beside the files.
    expanded: list[FileEntry] = field(default_factory=list)

    def to_json(self) -> str:
        """The manifest as indented JSON with a final newline, and its own digest in it."""
        return sealed(asdict(self))
