"""Schedules of the learning rate, each in the file of its key."""

from normjax.optim.schedules.cosine import cosine

__all__ = ["cosine"]
