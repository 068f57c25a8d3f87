"""Arrays of published state dicts that are no variables of ours, and why.

Such an array is left out on reading (one that we can compute is compared first) and
written as the published code makes it, so that its strict loading takes our files.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from normjax.core.errors import UserError
from normjax.mixers.ops.partition import shifted_regions
from normjax.mixers.ops.rotary import rotary_frequencies

_MASKED = -100.0


class Extra(NamedTuple):
    """An array that only they have.

    Attributes:
      value: as the published code initialises it.
      reason: why we have none.
      tolerance: how far a file's may be from this value, relative; None for anything.
      explain: function of another value to words behind "is not what the model
        computes for it".
    """

    value: np.ndarray
    reason: str
    tolerance: float | None = None
    explain: Callable[[np.ndarray], str] = lambda array: ""

    def difference(self, array: np.ndarray) -> str:
        """What a file's `array` is instead, or "" where it may be as it is."""
        wide = np.asarray(array, np.float64)
        if wide.shape != self.value.shape:
            return f"has shape {wide.shape} instead of {self.value.shape}"
        if self.tolerance is None:
            return ""
        if np.allclose(wide, self.value, rtol=self.tolerance, atol=0):
            return ""
        return f"is not what the model computes for it{self.explain(wide)}"


class Host(NamedTuple):
    """What such arrays depend on besides those they come beside.

    Attributes:
      model: ours.  image_side, patch: of the images and their patches, in pixels.
    """

    model: Any
    image_side: int
    patch: int


class Row(NamedTuple):
    """Arrays that come beside others.

    Attributes:
      layouts: where; "" for everywhere.
      beside: pattern of the names that they come beside.
      name: template with the groups of the pattern.
      make: function of (shape beside, match, host) to the value; None where there is
        no such array.
      reason, tolerance, explain: as in Extra.
    """

    layouts: str
    beside: str
    name: str
    make: Callable[..., np.ndarray | None]
    reason: str
    tolerance: float | None = None
    explain: Callable[[np.ndarray], str] = lambda array: ""


def _side(table: tuple[int, ...]) -> int:
    """Side of the window of a table of offsets, ((2 side - 1)**2, heads)."""
    return (round(table[0] ** 0.5) + 1) // 2


def relative_position_index(table, *_: Any) -> np.ndarray:
    """Row of the table for each pair of positions of a window."""
    side = _side(table)
    y, x = (i.reshape(-1) for i in np.indices((side, side)))
    rows, columns = (i[:, None] - i[None] + side - 1 for i in (y, x))
    return (rows * (2 * side - 1) + columns).astype(np.int64)


def attention_mask(table, match, host: Host) -> np.ndarray | None:
    """-100 between regions of a shifted window; None where nothing is shifted."""
    if not host.image_side:
        raise UserError("the masks of shifted windows depend on the size of the images")
    side, stage, block = _side(table), int(match["s"]), int(match["i"])
    grid = host.image_side // host.patch >> stage
    if block % 2 == 0 or grid <= side:
        return None
    regions = shifted_regions((grid, grid), (side, side), side // 2)
    differ = regions[:, :, None] != regions[:, None]
    return np.where(differ, _MASKED, 0.0).astype(np.float32)


def inverse_frequencies(projection, match, host: Host) -> np.ndarray | None:
    """By which queries and keys turn with their position; None where they do not."""
    del match
    own = {k: getattr(host.model, k) for k in ("num_heads", "rotary_base")}
    own |= host.model.mixer.keywords
    if own["rotary_base"] is None:
        return None
    channels = projection[0] // own["num_heads"]
    frequencies = rotary_frequencies(channels, own["rotary_base"])
    return frequencies.astype(np.float32)


def _other_base(frequencies: np.ndarray) -> str:
    """Of inverse frequencies base**(-2 i / channels), i = 0, 1, ..."""
    second = frequencies[1] if len(frequencies) > 1 else 0.0
    if not 0 < second < 1:
        return ""
    base = second ** -len(frequencies)
    return f", but of config.model.rotary_base={base:.6g}"


def mask_side(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple]) -> int:
    """Side in pixels of the images that the masks in a file were made for, else 0.

    Args:
      shapes: of the arrays of the model, whose windows they are for.
    """
    patch = np.shape(state.get("patch_embed.proj.weight", ()))[-1:]
    for name, mask in state.items():
        match = re.fullmatch(_BLOCK + r"attn_mask", name)
        if match is None:
            continue
        shape = np.shape(mask)
        table = shapes.get(f"{match[1]}attn.relative_position_bias_table")
        if table and patch and shape[1:] == (_side(table) ** 2,) * 2:
            grid = round(shape[0] ** 0.5) * _side(table)
            return grid * patch[0] << int(match["s"])
    return 0


def _token(shape, *_: Any) -> np.ndarray:
    return np.zeros((1, 1, shape[-1]), np.float32)


_BLOCK = r"(layers\.(?P<s>\d+)\.blocks\.(?P<i>\d+)\.)"
_UNREAD = "nothing reads it"
ROWS = (
    Row(
        "",
        r"(.*)running_mean",
        r"\1num_batches_tracked",
        lambda *_: np.zeros((), np.int64),
        "counts batches; the momentum is fixed",
    ),
    Row(
        "swin",
        _BLOCK + r"attn\.relative_position_bias_table",
        r"\1attn.relative_position_index",
        relative_position_index,
        "recomputed, equal",
        tolerance=0.0,
    ),
    Row(
        "swin",
        _BLOCK + r"attn\.relative_position_bias_table",
        r"\1attn_mask",
        attention_mask,
        "recomputed, equal",
        tolerance=0.0,
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
    Row(
        "llama",
        r"(.*)warm",
        r"\1num_step",
        lambda *_: np.zeros((), np.int64),
        "counts the calls within an update",
    ),
    Row(
        "llama",
        r"(.*self_attn\.)q_proj\.weight",
        r"\1rotary_emb.inv_freq",
        inverse_frequencies,
        "recomputed, equal",
        tolerance=2**-8,  # files in bfloat16 round it, too
        explain=_other_base,
    ),
)


def _is_of(row: Row, layout: str) -> bool:
    return not row.layouts or layout in row.layouts.split()


def extras_of(
    model: Any,
    shapes: Mapping[str, tuple[int, ...]],
    layout: str,
    image_shape: tuple[int, ...],
) -> dict[str, Extra]:
    """What a state dict holds beside the arrays of `shapes`, by name.

    Args:
      model: ours.
      shapes: of the arrays that are variables of ours.
      image_shape: [H, ...] of the images; () if unknown.
    """
    patch = shapes.get("patch_embed.proj.weight", (1,))[-1]
    host, found = Host(model, image_shape[0] if image_shape else 0, patch), {}
    for row in ROWS:
        for beside, shape in shapes.items() if _is_of(row, layout) else ():
            match = re.fullmatch(row.beside, beside)
            name = match and match.expand(row.name)
            if match is None or name in shapes:
                continue
            value = row.make(shape, match, host)
            if value is not None:
                found[name] = Extra(value, row.reason, row.tolerance, row.explain)
    return found
