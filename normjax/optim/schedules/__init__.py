"""Schedules of the learning rate, each in the file of its key.

Example:
  >>> from normjax.optim import schedules
  >>> rate = schedules.cosine(100, lr=0.5, warmup_fraction=0.1)
  >>> float(rate(10)), float(rate(100))
  (0.5, 0.0)
"""

from normjax.optim.schedules.cosine import cosine

__all__ = ["cosine"]
