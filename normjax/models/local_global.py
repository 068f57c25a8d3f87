"""Layers in which half of the channels looks near and half far (SVIPTR)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.mixers.steps import depthwise_layer
from normjax.models.block import sites_of
from normjax.models.layers import Factory


class Permutation(nn.Module):
    """What both halves learn of each other (SVIPTR; Cheng et al., 2024).

        y = norm(W2 norm(gelu(W1 norm(gelu(conv3x3(x))))))

    with a depthwise convolution. The activation stands before the norm.

    Attributes:
      norm, activation: factories.
      hidden: width between W1 and W2; None for that of x / 8, at least 16.
      dtype: of the computation.  param_dtype: of the convolution's parameters.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> parts = {
      ...     "norm": norms.build("rms_norm"),
      ...     "activation": activations.build("gelu"),
      ... }
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> layer = models.Permutation(**parts)
      >>> y, _ = layer.init_with_output(jax.random.key(1), x, train=False)
      >>> y.shape
      (1, 4, 4, 8)
    """

    norm: Factory
    activation: Factory
    hidden: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        channels = x.shape[-1]
        hidden = max(16, channels // 8) if self.hidden is None else self.hidden

        def norm(x, i):
            return self.norm(name=f"norm_{i}", dtype=self.dtype)(x, train=train)

        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        x = depthwise_layer(self, "conv", x, (3, 3, channels))
        x = norm(self.activation(name="act_0")(x), 0)
        x = Dense(hidden, name="fc1", **dense)(x)
        x = norm(self.activation(name="act_1")(x), 1)
        return norm(Dense(channels, name="fc2", **dense)(x), 2)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms with the layers around them."""
        norm = self.norm(parent=None)
        return [
            FoldSite("norm_0", norm, readers=("fc1",)),
            FoldSite("norm_1", norm, readers=("fc2",)),
            FoldSite("norm_2", norm, writer="fc2"),
        ]


class LocalGlobalLayer(nn.Module):
    """Pairs of blocks on halves of the channels, mixed after each (SVIPTR).

        m = [local_i(x_1) | global_i(x_2)]        x = m + permutation(m)

    with blocks of their own and one permutation for all (Cheng et al., 2024).

    Attributes:
      local_block, global_block: factories of the blocks, called with `name`, of half of
        the channels each.
      depth: pairs of blocks.
      permutation: factory of the layer between the halves, called with `name`.

    Example:
      >>> import functools
      >>> import jax
      >>> from normjax import activations, mixers, models, norms
      >>> from normjax.models.block import Block, mixing
      >>> from normjax.models.placement import BranchPlacement
      >>> norm, pre = norms.build("rms_norm"), BranchPlacement(pre=True)
      >>> def block(name, **arguments):
      ...     mixer = mixers.build(name, **arguments)
      ...     return functools.partial(Block, (mixing(norm, mixer, pre),))
      >>> layer = models.LocalGlobalLayer(
      ...     block("cross_shaped_window", num_heads=2, split_size=2),
      ...     block("overlapping_spatial_reduction", num_heads=1, sr_ratio=2),
      ...     depth=2,
      ...     permutation=functools.partial(
      ...         models.Permutation, norm, activations.build("gelu")
      ...     ),
      ... )
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = layer.init_with_output(jax.random.key(1), x, False)
      >>> y.shape, sorted(variables["params"])[:3]
      ((1, 4, 4, 8), ['global_0', 'global_1', 'local_0'])
    """

    local_block: Factory
    global_block: Factory
    depth: int
    permutation: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> same, C even.

        Raises:
          UserError: an odd number of channels.
        """
        if x.shape[-1] % 2:
            raise UserError(f"{x.shape[-1]} channels do not split into two halves")
        permutation = self.permutation(name="permutation")
        for i in range(self.depth):
            near, far = jnp.split(x, 2, -1)
            near = self.local_block(name=f"local_{i}")(near, train)
            far = self.global_block(name=f"global_{i}")(far, train)
            x = jnp.concatenate((near, far), -1)
            x = x + permutation(x, train=train)
        return x

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms of the blocks and of the permutation."""
        parts = {
            f"{name}_{i}": block(name=f"{name}_{i}", parent=None)
            for i in range(self.depth)
            for name, block in (
                ("local", self.local_block),
                ("global", self.global_block),
            )
        }
        parts["permutation"] = self.permutation(parent=None)
        return [site for name, part in parts.items() for site in sites_of(name, part)]
