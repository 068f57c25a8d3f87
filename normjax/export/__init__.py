"""Trained models as self-contained programs.

`python -m normjax.export` writes them; `load` runs them with JAX alone.
"""

from normjax.export.artifact import export_model, load

__all__ = ["export_model", "load"]
