"""Schedules of the learning rate, each in the file of its key.

Example:
  >>> from normjax.optim import schedules
  >>> rate = schedules.cosine(100, lr=0.5, warmup_fraction=0.1)
  >>> float(rate(10)), float(rate(100))
  (0.5, 0.0)
"""

from normjax.optim.schedules.cosine import cosine
from normjax.optim.schedules.infinite import infinite
from normjax.optim.schedules.linear import linear
from normjax.optim.schedules.power import power
from normjax.optim.schedules.rewarmed_cosine import rewarmed_cosine
from normjax.optim.schedules.wsd import wsd

__all__ = ["cosine", "infinite", "linear", "power", "rewarmed_cosine", "wsd"]
