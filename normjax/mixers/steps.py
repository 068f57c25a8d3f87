"""The steps of a mixer, in the order in which its `__call__` reads.

Functions of the module that calls them: parameters that they make are its own.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.core.arguments import field_names
from normjax.core.collections import DETAILS
from normjax.core.dense import Dense, SplitDense
from normjax.core.depthwise import depthwise_conv
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.registry import with_defaults
from normjax.mixers import cache
from normjax.mixers.base import CORES
from normjax.mixers.ops.attend import attention_entropies, softmax_attention
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of


def types_of(module: Any) -> dict[str, Any]:
    """The types of a module, as its layers take them."""
    return {"dtype": module.dtype, "param_dtype": module.param_dtype}


def dense_of(module: Any) -> dict[str, Any]:
    """What the linear layers of a module have in common."""
    return {"kernel_init": module.kernel_init, **types_of(module)}


def rows_of(
    x: jax.Array, mask: jax.Array | None, memory: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Tokens [B, L, D] of x [B, L, D] or [B, H, W, D], row by row, and their mask.

    Beside a `memory` the mask is that of the keys, [B, M].
    """
    rows = tokens_of(x)
    keys = rows if memory is None else memory
    return rows, None if mask is None else mask.reshape(keys.shape[:2])


def check_order(
    module: Any,
    memory: jax.Array | None,
    positions: jax.Array | None,
    decode: bool,
) -> None:
    """Refuse what speaks of the order of one sequence where there is none.

    Args:
      module: with `causal` and `rotary_base`.

    Raises:
      UserError: `memory` with `causal`, `rotary_base` or `positions`; `decode` without
        `causal`.
    """
    rotary = module.rotary_base is not None
    if memory is not None and (module.causal or rotary or positions is not None):
        raise UserError("cross-attention knows neither order nor packed documents")
    if decode and not module.causal:
        raise UserError("decode=True needs a mixer with causal=True")


def project(
    module: Any, x: jax.Array, memory: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Queries, keys and values: [..., C] -> three of [..., D], heads side by side.

    One layer `qkv`; beside a `memory`, of which keys and values are made then, two
    layers `q` and `kv`.

    Args:
      module: a `Mixer` with `qkv_bias`.
    """
    width = module.qkv_features or x.shape[-1]
    dense = {"use_bias": module.qkv_bias, **dense_of(module)}
    if memory is None:
        return SplitDense(3, width, name="qkv", **dense)(x)
    q = Dense(width, name="q", **dense)(x)
    return q, *SplitDense(2, width, name="kv", **dense)(memory)


def project_groups(module: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heads q [B, L, H, K], and k, v [B, L, G, K] that groups of them share.

    Of two layers, `q` and `kv`, or of one `qkv` that has them one after the other.

    Args:
      module: a `Mixer` with `qkv_bias`, `joint` (one layer) and `num_kv_heads`; None
        for as many as heads.
      x: [B, L, C].

    Raises:
      UserError: heads that do not make groups.
    """
    heads = module.num_heads
    groups = module.num_kv_heads or heads
    if heads % groups:
        raise UserError(
            f"{heads} heads do not make {groups} groups: num_kv_heads must divide "
            "num_heads"
        )
    width = module.qkv_features or x.shape[-1]
    dense = {"use_bias": module.qkv_bias, **dense_of(module)}
    shared = width // heads * groups
    if module.joint:
        qkv = Dense(width + 2 * shared, name="qkv", **dense)(x)
        q, k, v = jnp.split(qkv, (width, width + shared), -1)
    else:
        q = Dense(width, name="q", **dense)(x)
        k, v = SplitDense(2, shared, name="kv", **dense)(x)
    return split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)


def asking(
    rows: jax.Array,
    memory: jax.Array | None,
    mask: jax.Array | None,
    query_mask: jax.Array | None,
) -> jax.Array | None:
    """bool [B, N], which queries are tokens; None: all. Keys have the `mask`."""
    if memory is None:
        return mask
    return jnp.ones(rows.shape[:2], bool) if query_mask is None else query_mask


def normalized_heads(
    module: Any,
    q: jax.Array,
    k: jax.Array,
    *,
    mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
    train: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys [..., H, K] after the `qk_norm` of a mixer, if it has one.

    Args:
      module: with `qk_norm`, `dtype` and `param_dtype`; gets `q_norm` and `k_norm`.
      mask: bool over the positions of the keys.
      query_mask: the same of the queries; None: `mask` where it fits them.
      train: passed to the norm.
    """
    if module.qk_norm is None:
        return q, k
    make = with_defaults(module.qk_norm, **types_of(module))
    if query_mask is None and mask is not None and mask.shape == q.shape[:-2]:
        query_mask = mask

    def normalized(t, name, mask):
        valid = None if mask is None else mask[..., None, None]
        return make(name=name)(t, mask=valid, train=train)

    return normalized(q, "q_norm", query_mask), normalized(k, "k_norm", mask)


def normalized_maps(
    module: Any, q: jax.Array, k: jax.Array, mask: jax.Array | None, train: bool
) -> tuple[jax.Array, jax.Array]:
    """`normalized_heads` of maps [B, H, W, D]; `mask` is that of the keys."""
    if module.qk_norm is None:
        return q, k
    heads = (split_heads(t, module.num_heads) for t in (q, k))
    q, k = normalized_heads(module, *heads, mask=mask, train=train)
    return merge_heads(q), merge_heads(k)


def attend(
    module: nn.Module,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    bias: jax.Array | None = None,
    gain: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """`softmax_attention` on heads; their entropies for those who ask for details."""
    seen: dict[str, Any] = {"bias": bias, "gain": gain, "mask": mask, "causal": causal}
    seen["scale"] = scale
    if module.is_mutable_collection(DETAILS) and not module.is_initializing():
        entropies = attention_entropies(q, k, **seen)
        module.sow(DETAILS, "attention_entropy", jnp.mean(entropies, (0, 2)))
    return softmax_attention(q, k, v, **seen)


def core_of(module: Any, **given: Any) -> Callable[..., nn.Module]:
    """A factory of the `core` of a mixer.

    Fields that both have are the mixer's (heads, types; those of a mixer that is made
    for one core), unless `given` or the core's own spec say otherwise.
    """
    own = {name: getattr(module, name) for name in field_names(type(module))}
    return with_defaults(CORES.factory(module.core), **{**own, **given})


def own_core(module: Any) -> nn.Module:
    """The `core` of a mixer, its parameters among those of the mixer."""
    core = core_of(module)()
    nn.share_scope(module, core)
    return core


def check_same_map(core: str, q: jax.Array, k: jax.Array) -> None:
    """Raises UserError where keys are of another map than queries.

    Args:
      core: whose bias is by offset.  q, k: [B, H, W, D].
    """
    (height, width), (rows, columns) = q.shape[1:3], k.shape[1:3]
    if (height, width) != (rows, columns):
        raise UserError(
            f"core {core!r} has a bias by offset and needs keys at the places of the "
            f"queries, {height}x{width}, got {rows}x{columns}"
        )


def sized_table(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    init: Initializer,
    what: str,
    dtype: Dtype = jnp.float32,
) -> jax.Array:
    """The parameter `name` of a module, its shape fixed by the first grid.

    Raises:
      UserError: the module was initialised for another grid.
    """
    stored = module.get_variable("params", name)
    if stored is not None and stored.shape != shape:
        kind = type(module).__name__
        raise UserError(
            f"{kind} was initialised with a {what} of {stored.shape[:2]} and needs "
            f"{shape[:2]} here: its size is fixed"
        )
    return module.param(name, init, shape, dtype)


def depthwise_layer(
    module: Any,
    name: str,
    v: jax.Array,
    shape: tuple[int, int, int],
    use_bias: bool = True,
) -> jax.Array:
    """Depthwise convolution; parameters `name`_kernel and, with bias, `name`_bias.

    Args:
      v: [B, H, W, D].  shape: of the kernel, [k, k, d] with d a divisor of D: one
        kernel shared by D / d heads.
    """
    kernel, bias = depthwise_parameters(module, name, shape, use_bias)
    return convolved(v, kernel, bias, module.dtype)


def depthwise_parameters(
    module: Any, name: str, shape: tuple[int, int, int], use_bias: bool = True
) -> tuple[jax.Array, jax.Array | None]:
    """Those of `depthwise_layer`; None: no bias."""
    bound = (shape[0] * shape[1]) ** -0.5  # PyTorch's default for this fan-in

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel = module.param(f"{name}_kernel", init, shape, module.param_dtype)
    if not use_bias:
        return kernel, None
    return kernel, module.param(f"{name}_bias", init, shape[-1:], module.param_dtype)


def convolved(
    v: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Dtype | None
) -> jax.Array:
    """What `depthwise_layer` computes."""
    if bias is None:
        return depthwise_conv(*promote_dtype(v, kernel, dtype=dtype))
    v, kernel, added = promote_dtype(v, kernel, bias, dtype=dtype)
    # A gather, for XLA computes it once; jnp.tile becomes an index in the loop of the
    # convolution, which then takes 4 times as long on CPU.
    added = added[np.arange(v.shape[-1]) % added.shape[0]]
    return depthwise_conv(v, kernel) + added.reshape(1, 1, 1, -1)


def short_convolution(
    module: Any,
    u: jax.Array,
    mask: jax.Array | None,
    positions: jax.Array | None,
    decode: bool,
    kernel_init: Initializer,
) -> jax.Array:
    """Causal depthwise convolution; parameters `conv_kernel` [k, C] and `conv_bias`.

    Sums over the last k = `module.conv_width` positions of the same document.

    Args:
      u: [B, L, C], 0 at padding.
      positions: int [B, L], of `cache.positions_of`.
      decode: the cache has the k - 1 positions before.
    """
    before = module.conv_width - 1
    if not decode:
        u = jnp.pad(u, ((0, 0), (before, 0), (0, 0)))
        return _convolved(module, u, positions, kernel_init)
    u = cache.with_last(module, "inputs", u, before, mask)
    places = None if positions is None else cache.padding_first(positions, mask)
    return cache.padding_in_place(_convolved(module, u, places, kernel_init), mask)


def _convolved(module, u, positions, kernel_init):
    """Of u [B, k - 1 + L, C], with what comes before the L positions."""
    size, channels = module.conv_width, u.shape[-1]
    length, zeros = u.shape[1] - size + 1, nn.initializers.zeros
    shape, dtype = (size, channels), module.param_dtype
    kernel = module.param("conv_kernel", kernel_init, shape, dtype)
    bias = module.param("conv_bias", zeros, (channels,), dtype)
    if positions is None:
        positions = jnp.arange(length)[None]
    y = bias.astype(u.dtype).reshape(1, 1, -1)
    for back in range(size):
        start = size - 1 - back
        inside = (positions >= back)[..., None]
        tap = kernel[start].astype(u.dtype).reshape(1, 1, -1)
        y = y + jnp.where(inside, u[:, start : start + length], 0) * tap
    return y


def uniform_taps(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """A kernel [k, C] between -1 and 1 over the root of k, PyTorch's default."""
    limit = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


xavier = nn.initializers.variance_scaling(2.0**-5, "fan_avg", "uniform")


class LogDecay(nn.Module):
    """logsigmoid(W2 W1 x + b) / 16: decays close to 1, from few channels.

    Attributes:
      features: decays a position.  rank: channels between W1 and W2.
      normalizer: the 16.
      dtype, param_dtype, kernel_init: as in nn.Dense.
    """

    features: int
    rank: int = 16
    normalizer: float = 16.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = xavier

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features], negative, in at least float32."""
        x = Dense(self.rank, use_bias=False, name="down", **dense_of(self))(x)
        x = Dense(self.features, name="up", **dense_of(self))(x)
        return jax.nn.log_sigmoid(at_least_float32(x)) / self.normalizer
