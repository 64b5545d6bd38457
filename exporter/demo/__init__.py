"""A small trained Llama that ships with the package, so that every command can be tried offline."""

from __future__ import annotations

from pathlib import Path

# Starts of plots that the model knows; it stays on the characters named here.
PROMPTS = (
    "Mia had a red kite and loved to fly it.",
    "In spring, Aunt Bell gave Nora a small seed.",
    "It was night, and Finn was in bed.",
    "One morning, Rosa and Leo found a blue lantern",
)
# The schemes that `tinyqmoe demo` exports, with their calibrations. The model was trained to bear
# rounding to ternary.
CALIBRATIONS = {"int8": None, "ternary": "none"}
CHAT = "Where does Mia live?"
# Documents that the model was not trained on, for measuring what quantization costs.
HELD_OUT = Path(__file__).parent / "held_out.txt"


def model_path() -> Path:
    """The Hugging Face directory of the demo model."""
    return Path(__file__).parent / "model"
