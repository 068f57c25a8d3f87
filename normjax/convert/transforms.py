"""Layouts of arrays there and here, each with its inverse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Transform(NamedTuple):
    """One array of ours as one or several of a PyTorch state dict.

    Attributes:
      to_torch: function of our array.
      to_ours: its inverse up to a reshape, which our shape says.
    """

    to_torch: Callable[[np.ndarray], Arrays]
    to_ours: Callable[[Arrays], np.ndarray]


def axes(*order: int) -> Transform:
    """Ours is theirs transposed by `order`."""
    back = tuple(np.argsort(order))
    return Transform(
        lambda ours: (ours.transpose(back),), lambda t: t[0].transpose(order)
    )


def reshaped(to_shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Transform:
    """Theirs is ours in the shape `to_shape(our shape)`."""
    return Transform(lambda ours: (ours.reshape(to_shape(ours.shape)),), lambda t: t[0])


SAME = reshaped(lambda shape: shape)
LINEAR = axes(1, 0)  # (out, in) -> [in, out]
CONV = axes(2, 3, 1, 0)  # (out, in, h, w) -> [h, w, in, out]
VECTOR = reshaped(lambda shape: (1, 1, *shape))  # (1, 1, C) -> [C]
TOKENS = reshaped(lambda shape: (1, -1, shape[-1]))  # (1, H * W, C) -> [H, W, C]
OFFSETS = reshaped(lambda shape: (-1, shape[-1]))  # (h * w, heads) -> [h, w, heads]
DEPTHWISE = Transform(  # (C, 1, h, w) -> [h, w, C]
    lambda ours: (ours.transpose(2, 0, 1)[:, None],),
    lambda t: t[0][:, 0].transpose(1, 2, 0),
)


def _split(t: np.ndarray) -> Arrays:
    return t[: len(t) // 3], t[len(t) // 3 :]


# Separate layers for q and for k and v: one layer of ours for all three.
Q_KV_WEIGHT = Transform(lambda ours: _split(ours.T), lambda t: np.concatenate(t).T)
Q_KV_BIAS = Transform(_split, np.concatenate)


def joined_weight(count: int) -> Transform:
    """One layer of ours for `count` of theirs, equally wide: ours is [C, all]."""
    return Transform(
        lambda ours: tuple(np.split(ours.T, count)), lambda t: np.concatenate(t).T
    )


def joined_bias(count: int) -> Transform:
    """The bias of such a layer, [all]."""
    return Transform(lambda ours: tuple(np.split(ours, count)), np.concatenate)


def schedule(warmup_steps: int, decay_steps: int) -> Transform:
    """Counters (warm, iter, total_step) that run down -> updates made so far.

    warm counts to 0 first, then iter from total_step to 0; both stay there.
    """

    def to_torch(step: np.ndarray) -> Arrays:
        left = warmup_steps + decay_steps - np.clip(step, 0, warmup_steps + decay_steps)
        counters = max(left - decay_steps, 0), min(left, decay_steps), decay_steps
        return tuple(np.asarray(counter, np.int64) for counter in counters)

    def to_ours(counters: Arrays) -> np.ndarray:
        warm, left, total = counters
        return warmup_steps - warm + total - left

    return Transform(to_torch, to_ours)


BY_NAME: dict[str, Any] = {
    "same": SAME,
    "linear": LINEAR,
    "conv": CONV,
    "vector": VECTOR,
    "tokens": TOKENS,
    "offsets": OFFSETS,
    "depthwise": DEPTHWISE,
    "q_kv_weight": Q_KV_WEIGHT,
    "q_kv_bias": Q_KV_BIAS,
    "joined_weight": joined_weight,
    "joined_bias": joined_bias,
    "schedule": schedule,
}
"""As the layouts of families name them; functions are named with their arguments."""


def named(spec: str | tuple[Any, ...]) -> Transform:
    """The transform of a layout's row."""
    if isinstance(spec, str):
        return BY_NAME[spec]
    name, *arguments = spec
    return BY_NAME[name](*arguments)
