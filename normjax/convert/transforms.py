"""Layouts of arrays there and here, each with its inverse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from normjax.core.errors import UserError

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
POINTWISE = Transform(  # (out, in, 1, 1) -> [in, out]
    lambda ours: (ours.T[:, :, None, None],), lambda t: t[0][:, :, 0, 0].T
)
CHANNELS = reshaped(lambda shape: (1, *shape, 1, 1))  # (1, C, 1, 1) -> [C]
BATCHED = reshaped(lambda shape: (1, *shape))  # (1, H, W, C) -> [H, W, C]
VECTOR = reshaped(lambda shape: (1, 1, *shape))  # (1, 1, C) -> [C]
TOKENS = reshaped(lambda shape: (1, -1, shape[-1]))  # (1, H * W, C) -> [H, W, C]
TOKENS_LAST = Transform(  # (1, grid then token, C) -> [1, token then grid, C]
    lambda ours: (np.roll(ours, -1, 1),), lambda t: np.roll(t[0], 1, 1)
)
PREFIXES = axes(0, 2, 1, 3)  # (streams, heads, n, K) -> [streams, n, heads, K]
GAINS = reshaped(lambda shape: (*shape, 1, 1, 1))  # (out, 1, 1, 1) -> [out]
HEADS = reshaped(lambda s: (s[0], 1, *(s[1:] or (1,))))  # (H, 1, K) -> [H, K] or [H]
BLOCKS = axes(0, 2, 1)  # (blocks, out, in) -> [blocks, in, out]
STEPS = Transform(  # (C, 1, k) -> [k, C]
    lambda ours: (ours.T[:, None],), lambda t: t[0][:, 0].T
)
HEAD_TABLE = Transform(  # (heads, H * W) -> [H, W, heads]
    lambda ours: (ours.reshape(-1, ours.shape[-1]).T,), lambda t: t[0].T
)
TOKEN_BIAS = Transform(  # (1, heads, 1, M) -> [M, heads]
    lambda ours: (ours.T[None, :, None],), lambda t: t[0][0, :, 0].T
)
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


def by_head(heads: int, parts: int, *tail: int) -> Transform:
    """Ours [C, parts * heads * K], parts side by side; theirs the parts of each head.

    Args:
      tail: further sides of theirs, (heads * parts * K, C, *tail).
    """

    def swapped(t: np.ndarray, first: int, second: int) -> np.ndarray:
        apart = t.reshape(first, second, -1, *t.shape[1:])
        return apart.swapaxes(0, 1).reshape(t.shape)

    return Transform(
        lambda ours: (swapped(ours.T, parts, heads).reshape(*ours.T.shape, *tail),),
        lambda t: swapped(t[0].reshape(t[0].shape[:2]), heads, parts).T,
    )


def by_head_pointwise(heads: int, parts: int) -> Transform:
    """`by_head` of a convolution of 1x1."""
    return by_head(heads, parts, 1, 1)


def by_head_bias(heads: int, parts: int) -> Transform:
    """The bias of such a layer."""
    there, back = (
        lambda t, shape=shape: t.reshape(*shape, -1).swapaxes(0, 1).reshape(-1)
        for shape in ((parts, heads), (heads, parts))
    )
    return Transform(lambda ours: (there(ours),), lambda t: back(t[0]))


def split(count: int, *shape: int) -> Transform:
    """`count` arrays of that shape, side by side: ours is the vector of all."""
    return Transform(
        lambda ours: tuple(part.reshape(shape) for part in np.split(ours, count)),
        lambda t: np.concatenate([part.reshape(-1) for part in t]),
    )


def _one(ours: np.ndarray) -> np.ndarray:
    """What the only later task has.

    Raises:
      UserError: there are several.
    """
    if len(ours) > 1:
        raise UserError(f"the layout is of one later task, the model has {len(ours)}")
    return ours[0]


# Of each head a convolution of its own, of one later task; ours are [1, k, k, H].
TASK_CONVOLUTION = Transform(
    lambda ours: tuple(kernel[None, None] for kernel in np.moveaxis(_one(ours), -1, 0)),
    lambda t: np.stack([kernel[0, 0] for kernel in t], -1)[None],
)
TASK_SHIFT = Transform(
    lambda ours: tuple(_one(ours)[:, None]), lambda t: np.concatenate(t)[None]
)
TASK_GATE = Transform(
    lambda ours: (_one(ours)[:, None, None],), lambda t: t[0].reshape(1, -1)
)


def block_weights(*lead: int) -> Transform:
    """A block-diagonal layer, one array (out, in) of theirs for each block of ours.

    Args:
      lead: axes of length 1 that theirs have before those.
    """
    return Transform(
        lambda ours: tuple(block.T.reshape(*lead, *block.T.shape) for block in ours),
        lambda t: np.stack([a.reshape(a.shape[-2:]).T for a in t]),
    )


def own_entry(index: int, count: int) -> Transform:
    """A scalar for one of `count` entries of theirs, of which nothing else is read."""
    return Transform(
        lambda ours: (np.full(count, ours),), lambda t: np.asarray(t[0])[index]
    )


def repeated(*lead: int) -> Transform:
    """An array of ours that several of theirs repeat.

    Args:
      lead: how many, then axes of length 1 that theirs have before ours.
    """
    count, *ones = lead

    def to_ours(theirs: Arrays) -> np.ndarray:
        if any(not np.array_equal(a, theirs[0]) for a in theirs[1:]):
            raise UserError("arrays differ that are one and the same there")
        return theirs[0]

    return Transform(lambda ours: (ours.reshape(*ones, *ours.shape),) * count, to_ours)


def raft_order(rafts: int) -> Transform:
    """Channels that theirs counts within rafts first: (c, raft) -> (raft, c)."""
    return Transform(
        lambda ours: (ours.reshape(rafts, -1).T.reshape(-1),),
        lambda t: t[0].reshape(-1, rafts).T.reshape(-1),
    )


def joined_rows(count: int) -> Transform:
    """An array [all] for `count` of theirs, (1, part)."""
    return Transform(
        lambda ours: tuple(part[None] for part in np.split(ours, count)),
        lambda t: np.concatenate(t, -1)[0],
    )


def joined_depthwise(count: int) -> Transform:
    """A depthwise convolution for `count` of theirs: [h, w, all], (part, 1, h, w)."""
    return Transform(
        lambda ours: tuple(
            DEPTHWISE.to_torch(part)[0] for part in np.split(ours, count, -1)
        ),
        lambda t: DEPTHWISE.to_ours((np.concatenate(t),)),
    )


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
    "by_head": by_head,
    "by_head_pointwise": by_head_pointwise,
    "by_head_bias": by_head_bias,
    "split": split,
    "task_convolution": TASK_CONVOLUTION,
    "task_shift": TASK_SHIFT,
    "task_gate": TASK_GATE,
    "pointwise": POINTWISE,
    "channels": CHANNELS,
    "batched": BATCHED,
    "vector": VECTOR,
    "gains": GAINS,
    "prefixes": PREFIXES,
    "heads": HEADS,
    "tokens": TOKENS,
    "tokens_last": TOKENS_LAST,
    "offsets": OFFSETS,
    "head_table": HEAD_TABLE,
    "token_bias": TOKEN_BIAS,
    "block_weights": block_weights,
    "raft_order": raft_order,
    "repeated": repeated,
    "own_entry": own_entry,
    "blocks": BLOCKS,
    "steps": STEPS,
    "joined_rows": joined_rows,
    "joined_depthwise": joined_depthwise,
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
