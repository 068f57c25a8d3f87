"""The registry of measures."""

from normjax.core.registry import Registry

MEASURES = Registry("measure")
"""Functions (seed, folder, **arguments) -> numbers by name.

Example:
  >>> from pathlib import Path
  >>> from normjax.study.measures import MEASURES
  >>> MEASURES["attention_rank"].make(0, Path(), attention="linear")["rank"] <= 32 / 196
  True
"""
