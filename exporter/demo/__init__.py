"""A small trained Llama that ships with the package, so that every command can be tried offline."""

from __future__ import annotations

from pathlib import Path

PROMPTS = (
    "Mia had a red kite and loved to fly it.",
    "Once upon a time, there was a boy named Tom.",
    "One day, Lily heard a strange sound in the barn.",
    "Sam is in the garden. The blue ball is in the basket.\nQuestion: Where is the blue ball?\nAnswer:",
)
CHAT = "Where does Mia live?"


def model_path() -> Path:
    """The Hugging Face directory of the demo model."""
    return Path(__file__).parent / "model"
