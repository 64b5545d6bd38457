"""ExecuTorch programs (`.pte`) with the Tiny-QMoE operators."""
