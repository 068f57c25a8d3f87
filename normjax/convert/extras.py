"""Arrays of published state dicts that are no variables of ours, and why.

Such an array is left out on reading (one that we can compute is compared first) and
written as the published code makes it, so that its strict loading takes our files.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from normjax.attention.window import shifted_regions
from normjax.core.errors import UserError

_MASKED = -100.0


class Extra(NamedTuple):
    """An array that only they have.

    Attributes:
      value: as the published code initialises it.
      reason: why we have none.
      checked: whether a file must hold exactly this value.
    """

    value: np.ndarray
    reason: str
    checked: bool = False


class Row(NamedTuple):
    """Arrays that come beside others.

    Attributes:
      layouts: where.
      beside: pattern of the names that they come beside.
      name: template with the groups of the pattern.
      make: function of (shape beside, match, side of the images, patch size) to the
        value; None where there is no such array.
      reason, checked: as in Extra.
    """

    layouts: str
    beside: str
    name: str
    make: Callable[..., np.ndarray | None]
    reason: str
    checked: bool = False


def _side(table: tuple[int, ...]) -> int:
    """Side of the window of a table of offsets, ((2 side - 1)**2, heads)."""
    return (round(table[0] ** 0.5) + 1) // 2


def relative_position_index(table, *_: Any) -> np.ndarray:
    """Row of the table for each pair of positions of a window."""
    side = _side(table)
    y, x = (i.reshape(-1) for i in np.indices((side, side)))
    rows, columns = (i[:, None] - i[None] + side - 1 for i in (y, x))
    return (rows * (2 * side - 1) + columns).astype(np.int64)


def attention_mask(table, match, image_side: int, patch: int) -> np.ndarray | None:
    """-100 between regions of a shifted window; None where nothing is shifted."""
    if not image_side:
        raise UserError("the masks of shifted windows depend on the size of the images")
    side, stage, block = _side(table), int(match["s"]), int(match["i"])
    grid = image_side // patch >> stage
    if block % 2 == 0 or grid <= side:
        return None
    regions = shifted_regions((grid, grid), (side, side), side // 2)
    differ = regions[:, :, None] != regions[:, None]
    return np.where(differ, _MASKED, 0.0).astype(np.float32)


def _token(shape, *_: Any) -> np.ndarray:
    return np.zeros((1, 1, shape[-1]), np.float32)


_BLOCK = r"(layers\.(?P<s>\d+)\.blocks\.(?P<i>\d+)\.)"
_UNREAD = "nothing reads it"
ROWS = (
    Row(
        "deit swin swin_timm pvt cswin",
        r"(.*)bn\.running_mean",
        r"\1bn.num_batches_tracked",
        lambda *_: np.zeros((), np.int64),
        "counts batches; the momentum is fixed",
    ),
    Row(
        "swin",
        _BLOCK + r"attn\.relative_position_bias_table",
        r"\1attn.relative_position_index",
        relative_position_index,
        "recomputed, equal",
        checked=True,
    ),
    Row(
        "swin",
        _BLOCK + r"attn\.relative_position_bias_table",
        r"\1attn_mask",
        attention_mask,
        "recomputed, equal",
        checked=True,
    ),
    Row("deit", r"pos_embed", r"cls_token", _token, _UNREAD),
    Row("cswin", r"(.*attns\.\d+\.)positional_encoding", r"\1scale", _token, _UNREAD),
    Row(
        "pvt",
        r"block4\.0\.attn\.scale",
        r"norm.weight",
        lambda shape, *_: np.ones(shape[-1:], np.float32),
        _UNREAD,
    ),
    Row(
        "pvt",
        r"block4\.0\.attn\.scale",
        r"norm.bias",
        lambda shape, *_: np.zeros(shape[-1:], np.float32),
        _UNREAD,
    ),
)


def extras_of(
    shapes: Mapping[str, tuple[int, ...]], layout: str, image_side: int
) -> dict[str, Extra]:
    """What a state dict holds beside the arrays of `shapes`, by name.

    Args:
      shapes: of the arrays that are variables of ours.
      image_side: of the images, in pixels.
    """
    patch = shapes.get("patch_embed.proj.weight", (1,))[-1]
    found = {}
    for row in ROWS:
        for beside, shape in shapes.items() if layout in row.layouts.split() else ():
            match = re.fullmatch(row.beside, beside)
            name = match and match.expand(row.name)
            if match is None or name in shapes:
                continue
            value = row.make(shape, match, image_side, patch)
            if value is not None:
                found[name] = Extra(value, row.reason, row.checked)
    return found
