"""Measurements: `python -m normjax.bench loop|norms`."""
