"""The quantized model in PyTorch: what every package must answer."""
