"""The runner of sessions: the weights of a `.pte` in the C++ core, without ExecuTorch."""
