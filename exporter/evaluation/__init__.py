"""How good a model is: perplexity, divergence from the original, and multiple-choice tasks."""
