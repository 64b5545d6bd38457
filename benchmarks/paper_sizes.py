"""Where the sizes in the Tiny-QMoE paper (arXiv 2509.22951) come from: computed from the shapes of
Llama 3.2 alone.

python benchmarks/paper_sizes.py
"""

from __future__ import annotations

HEADER_BYTES = 128  # of a NumPy file, one for each coded tensor
WEIGHTS_PER_CODE, CODE_BYTES = 4, 2
PAPER_MB = {"1B": 125.29, "3B": 187.97}
# A model is its layers, hidden, intermediate, key/value width, vocabulary.
SHAPES = {"1B": (16, 2048, 8192, 512, 128256), "3B": (28, 3072, 8192, 1024, 128256)}


def counts(size: str) -> tuple[int, int, int]:
    """Parameters of the embedding, of the norms and of the linear layers."""
    layers, hidden, inner, kv, vocab = SHAPES[size]
    linear = layers * (2 * hidden * hidden + 2 * kv * hidden + 3 * inner * hidden)
    return vocab * hidden, (2 * layers + 1) * hidden, linear


def main() -> None:
    """Prints the table."""
    for size, (layers, *_) in SHAPES.items():
        embedding, norms, linear = counts(size)
        files = 2 * layers + 2  # one a norm, one for the embedding
        coded = (embedding + norms) // WEIGHTS_PER_CODE * CODE_BYTES + files * HEADER_BYTES
        total = embedding + norms + linear
        print(
            f"{size}: embedding and norms {embedding + norms:,} parameters -> {coded:,} B = "
            f"{coded / 2**20:.3f} MiB "
            f"(paper: {PAPER_MB[size]}); linear layers left out: {linear:,} "
            f"({100 * linear / total:.0f} %)"
        )


if __name__ == "__main__":
    main()
