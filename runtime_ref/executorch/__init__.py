"""The runner of ExecuTorch programs: the real runtime with the real C++ operators."""
