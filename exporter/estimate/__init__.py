"""Estimates before an export: the bundle that it would write and the memory that it takes."""
