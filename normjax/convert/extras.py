"""Arrays of published state dicts that are no variables of ours, and why.

Such an array is left out on reading (one that we can compute is compared first) and
written as the published code makes it, so that its strict loading takes our files.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from normjax.core.errors import UserError
from normjax.mixers.ops.partition import shifted_regions
from normjax.mixers.ops.rotary import rotary_frequencies
from normjax.models.sinusoids import sinusoids

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
      model: ours.  image_shape: [H, ...] of the images; () if unknown.
      patch: side of their patches.
    """

    model: Any
    image_shape: tuple[int, ...]
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


def absolute_offset_index(table, *_: Any) -> np.ndarray:
    """The same for a table (heads, rows * columns) by what two positions are apart."""
    side = round(table[1] ** 0.5)
    y, x = (i.reshape(-1) for i in np.indices((side, side)))
    rows, columns = (abs(i[:, None] - i[None]) for i in (y, x))
    return (rows * side + columns).astype(np.int64)


def attention_mask(table, match, host: Host) -> np.ndarray | None:
    """-100 between regions of a shifted window; None where nothing is shifted."""
    if not host.image_shape:
        raise UserError("the masks of shifted windows depend on the size of the images")
    side, stage, block = _side(table), int(match["s"]), int(match["i"])
    grid = host.image_shape[0] // host.patch >> stage
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


def sine_positions(pool, match, host: Host) -> np.ndarray | None:
    """The table of sines of tokens as wide as the pooling reads; None if learned."""
    del match
    if host.model.positions != "sine":
        return None
    if len(host.image_shape) < 2:
        raise UserError("the table of positions depends on the size of the images")
    images = jax.ShapeDtypeStruct((1, *host.image_shape[:2], 3), np.float32)
    stem = functools.partial(host.model.stem, dim=pool[-1], norm=None, activation=None)
    init = functools.partial(stem().init_with_output, train=False)
    tokens, _ = jax.eval_shape(init, jax.random.key(0), images)
    table = sinusoids(math.prod(tokens.shape[1:3]), pool[-1])
    return table[None].astype(np.float32)


def identities(qkv, match, host: Host) -> np.ndarray:
    """By which the released code takes neighbours apart."""
    del qkv, match, host
    return np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3)


def rotary_angles(qkvo, match, host: Host) -> np.ndarray:
    """Angles of a step, by which heads of a stage turn on a map."""
    channels = qkvo[1] // host.model.num_heads[int(match["s"])]
    angles = 10000.0 ** -np.linspace(0, 1, channels // 4)
    return np.repeat(angles, 2).astype(np.float32)


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


def unit_times(positions, *_: Any) -> np.ndarray:
    """0 to 1, one for each of the positions of a long convolution."""
    return np.linspace(0, 1, positions[1]).astype(np.float32)[None, :, None]


def filter_rates(skip, *_: Any) -> np.ndarray:
    """By which the filters of a long convolution fall, one a channel."""
    slowest, fastest = (np.log(0.01) / t for t in (1.5, 0.3))
    return np.linspace(slowest, fastest, skip[0]).astype(np.float32)[None, None]


def no_bias(weight, *_: Any) -> np.ndarray:
    """The zeros of a layer (in, out) whose bias is never trained."""
    return np.zeros(weight[-1:], np.float32)


def position_ids(table, *_: Any) -> np.ndarray:
    """0, 1, 2, ... of a table of positions."""
    return np.arange(table[0], dtype=np.int64)[None]


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
        "gcvit",
        r"(levels\.\d+\.blocks\.\d+\.attn\.)relative_position_bias_table",
        r"\1relative_position_index",
        relative_position_index,
        "recomputed, equal",
        tolerance=0.0,
    ),
    Row(
        "tiny_vit",
        r"(layers\.\d+\.blocks\.\d+\.attn\.attention_bias)es",
        r"\1_idxs",
        absolute_offset_index,
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
    Row(
        "m2_bert",
        r"(.*)pos_emb\.z",
        r"\1pos_emb.t",
        unit_times,
        "recomputed, equal",
        tolerance=1e-6,
    ),
    Row(
        "m2_bert",
        r"(.*filter_fn2?\.)bias",
        r"\1modulation.deltas",
        filter_rates,
        "recomputed, equal",
        tolerance=1e-6,
    ),
    Row(
        "m2_bert",
        r"(.*embeddings\.)position_embeddings\.weight",
        r"\1position_ids",
        position_ids,
        "counts the positions",
        tolerance=0.0,
    ),
    Row(
        "norm_free_gpt2",
        r"(transformer\.h\.\d+\.(attn\.(v_attn|c_proj)|mlp\.(c_fc|c_proj))\.)weight",
        r"\1bias",
        no_bias,
        "0, and never trained",
        tolerance=0.0,
    ),
    Row("deit", r"pos_embed", r"cls_token", _token, _UNREAD),
    Row("cswin", r"(.*attns\.\d+\.)positional_encoding", r"\1scale", _token, _UNREAD),
    Row(
        "cct",
        r"classifier\.attention_pool\.weight",
        r"classifier.positional_emb",
        sine_positions,
        "recomputed: the entries of sines build a table that is learned",
    ),
    *(
        Row(
            "stvit",
            r"(.*attn\.)stoken_refine\.qkv\.weight",
            rf"\1{name}.weights",
            identities,
            "recomputed, equal",
            tolerance=0.0,
        )
        for name in ("fold", "unfold")
    ),
    Row(
        "ravlt",
        r"(layers\.(?P<s>\d+)\.)blocks\.0\.attn\.qkvo\.weight",
        r"\1RoPE.angle",
        rotary_angles,
        "recomputed, equal",
        tolerance=2**-8,
    ),
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
    host, found = Host(model, image_shape, patch), {}
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
