"""Benchmarks side by side: `python -m bench`."""
