"""Core ML packages (`.mlpackage`) in two formats: ML Programs, and networks of custom layers."""
