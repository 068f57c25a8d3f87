"""Tokens of images by attention between overlapping patches (T2T-ViT)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.collections import CONSTANTS
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.core.gelu import gelu
from normjax.core.moments import at_least_float32
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.partition import bordered, overlapping
from normjax.models.block import sites_of
from normjax.models.layers import Factory
from normjax.models.stems import STEMS

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Side, stride and border of the patches of each split."""

KINDS = ("performer", "transformer")


def soft_split(x: jax.Array, size: int, stride: int, border: int) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', C s * s]: overlapping patches as vectors.

    Channel by channel, in each row by row; zeros lie around the map.
    """
    x = overlapping(bordered(x, border), (size, size), (stride, stride))
    x = jnp.moveaxis(x, -1, 3)
    return x.reshape(*x.shape[:3], -1)


def orthogonal_features(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[m, K]: rows of a random orthogonal matrix times sqrt(m), m at most K."""
    return nn.initializers.orthogonal(shape[0] ** 0.5)(key, shape, jnp.float32)


def positive_features(x: jax.Array, directions: jax.Array) -> jax.Array:
    """exp(w . x - |x|^2 / 2) / sqrt(m) for each of m directions w (Performer).

    Args:
      x: [..., K].  directions: [m, K].

    Returns:
      [..., m] in at least float32.
    """
    x = at_least_float32(x)
    along = x @ directions.astype(x.dtype).T
    half = jnp.sum(x * x, -1, keepdims=True) / 2
    return jnp.exp(along - half) / directions.shape[0] ** 0.5


class TokenLayer(nn.Module):
    """z = v + W attention(q, k, v), y = z + MLP(norm(z)), of norm(x) (T2T-ViT).

    One head of another width than x, so that the values take the place of x in the sum.
    "transformer": softmax(q k^T / sqrt(C)) v with C the channels of x. "performer":
    phi(q) sum_j phi(k_j)^T v_j / (phi(q) sum_j phi(k_j) + 1e-8) with
    `positive_features` phi of 32 random directions, which are drawn once and stay.

    Attributes:
      norm: factory.
      features: width of queries, keys, values and result.
      kind: "performer" or "transformer".
      dropout_rate: behind the projection and at the end of the MLP.
      dtype: of the computation; parameters are float32.
    """

    norm: Factory
    features: int = 64
    kind: str = "performer"
    dropout_rate: float = 0.1
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, L, C] -> [B, L, features]."""
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        h = self.norm(name="norm1", dtype=self.dtype)(x, train=train)
        mixed = self._performer if self.kind == "performer" else self._transformer
        v, o = mixed(h)
        o = Dense(self.features, name="proj", **dense)(o)
        v = v + self._dropped(o, train)
        h = self.norm(name="norm2", dtype=self.dtype)(v, train=train)
        h = gelu(Dense(self.features, name="fc1", **dense)(h))
        h = Dense(self.features, name="fc2", **dense)(h)
        return v + self._dropped(h, train)

    def _dropped(self, x: jax.Array, train: bool) -> jax.Array:
        # The published one of softmax has none.
        rate = self.dropout_rate if self.kind == "performer" else 0.0
        return nn.Dropout(rate)(x, deterministic=not train)

    def _transformer(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        plain: Any = {"use_bias": False, "dtype": self.dtype, "name": "qkv"}
        q, k, v = SplitDense(3, self.features, **plain)(x)
        heads = (t[:, :, None] for t in (q, k, v))
        return v, softmax_attention(*heads, scale=x.shape[-1] ** -0.5)[:, :, 0]

    def _performer(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        k, q, v = SplitDense(3, self.features, name="kqv", dtype=self.dtype)(x)

        def drawn():
            shape = (self.features // 2, self.features)
            return orthogonal_features(self.make_rng("params"), shape)

        directions = self.variable(CONSTANTS, "features", drawn).value
        q, k = (positive_features(t, directions) for t in (q, k))
        wide = at_least_float32(v)
        context = jnp.einsum("bnm,bnv->bmv", k, wide)
        total = jnp.einsum("bnm,bm->bn", q, jnp.sum(k, 1))
        o = jnp.einsum("bnm,bmv->bnv", q, context) / (total[..., None] + 1e-8)
        return v, o.astype(v.dtype)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms with the layers that read them."""
        norm = self.norm(parent=None)
        first = "kqv" if self.kind == "performer" else "qkv"
        return [
            FoldSite("norm1", norm, readers=(first,)),
            FoldSite("norm2", norm, readers=("fc1",)),
        ]


@STEMS.register("tokens_to_token", "grid")
class TokensToToken(nn.Module):
    """Overlapping patches, mixed, three times (T2T-ViT; Yuan et al., 2021).

        x <- layer(split(x)),  x <- layer(split(x)),  y = W split(x) + b

    with `soft_split` of 7, 3 and 3 positions at strides of 4, 2 and 2, and token layers
    between. O(L C D) multiply-adds with "performer" layers, O(L**2 D) of
    "transformer" ones.

    Attributes:
      dim: width of the tokens.
      norm: factory.  activation: factory, unused: it is GELU.
      layer: of the token layers, "performer" or "transformer".
      token_dim: their width.
      dropout_rate: in those of "performer".
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> from normjax import models, norms
      >>> layer_norm = norms.build("layer_norm")
      >>> stem = models.TokensToToken(dim=8, norm=layer_norm, activation=None)
      >>> images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables), sorted(variables["params"])
      ((1, 2, 2, 8), ['constants', 'params'], ['attention1', 'attention2', 'project'])
    """

    dim: int
    norm: Factory
    activation: Factory | None
    layer: str = "performer"
    token_dim: int = 64
    dropout_rate: float = 0.1
    dtype: Dtype | None = None

    writes: ClassVar[str | None] = "project"
    ranges: ClassVar[Mapping[str, Range]] = {"token_dim": POSITIVE}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / 16, W / 16, dim], rounded up."""
        for i, (size, stride, border) in enumerate(SPLITS):
            x = soft_split(x, size, stride, border)
            if i == len(SPLITS) - 1:
                break
            tokens = x.reshape(x.shape[0], -1, x.shape[-1])
            tokens = self._layer(name=f"attention{i + 1}")(tokens, train=train)
            x = tokens.reshape(*x.shape[:3], -1)
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        return Dense(self.dim, name="project", **dense)(x)

    @nn.nowrap
    def _layer(self, **where) -> TokenLayer:
        if self.layer not in KINDS:
            raise UserError(one_of("layer of tokens_to_token", self.layer, KINDS))
        given = {"dropout_rate": self.dropout_rate, "dtype": self.dtype}
        return TokenLayer(self.norm, self.token_dim, self.layer, **given, **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms with the layers that read them."""
        names = ("attention1", "attention2")
        layer = self._layer(parent=None)
        return [site for name in names for site in sites_of(name, layer)]

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        del dim
        return {}
