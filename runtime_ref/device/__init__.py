"""Simulated devices: profiles, predictions of memory and speed, runs under a limit."""
