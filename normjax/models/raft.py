"""What stands around the token mixers of RaftMLP: patches of several sizes, blocks."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.mixers.ops.partition import unfolded
from normjax.models.block import Block, Branch, feeding, mixing, positioning, sites_of
from normjax.models.blocks import BLOCKS, Layer
from normjax.models.layers import Factory
from normjax.models.resized import resized
from normjax.models.stems import STEMS


@STEMS.register("multi_scale_patches", "grid")
class MultiScalePatches(nn.Module):
    """y = W [patches of k_1 | patches of k_2 | ...], of one stride (RaftMLP).

    The patches of a kernel size k have their centres in common with those of the stride
    (Tatsunami and Taki, 2021). A map that the stride does not divide is resized to the
    next multiple first, bicubically.

    Attributes:
      dim: width of the result.
      norm, activation: factories, unused: it is linear.
      stride: of all patches.  kernel_sizes: k, each the stride and an even number more.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> stem = models.MultiScalePatches(dim=8, norm=None, activation=None)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, variables["params"]["proj"]["kernel"].shape
      ((1, 2, 2, 8), (240, 8))
    """

    dim: int
    norm: Factory | None
    activation: Factory | None
    stride: int = 4
    kernel_sizes: tuple[int, ...] = (4, 8)
    dtype: Dtype | None = None

    writes: ClassVar[str | None] = "proj"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), dim].

        Raises:
          UserError: no kernel, or one that is smaller than the stride or lies beside
            its patch.
        """
        del train
        around = [size - self.stride for size in self.kernel_sizes]
        if not around or any(more < 0 or more % 2 for more in around):
            raise UserError(
                "stem 'multi_scale_patches': kernel_sizes must be the stride "
                f"{self.stride} and an even number more, got {self.kernel_sizes}"
            )
        x = resized(x, tuple(-(-n // self.stride) * self.stride for n in x.shape[1:3]))
        sizes = zip(self.kernel_sizes, around, strict=True)
        parts = [unfolded(x, size, self.stride, more // 2) for size, more in sizes]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        return Dense(self.dim, name="proj", **dense)(jnp.concatenate(parts, -1))

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        del dim
        return {}


class ResizedBlock(nn.Module):
    """Branches at the size of the map that they were trained for, on any other.

    Attributes:
      branches: first to last.
      grid: that size; None for that of the map.
    """

    branches: tuple[Branch, ...]
    grid: tuple[int, int] | None = None

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: [B, H, W, C] -> same, resized bicubically there and back."""
        size = x.shape[1:3]
        y = Block(self.branches, name="block")(resized(x, self.grid or size), train)
        return resized(y, size)

    @nn.nowrap
    def fold_sites(self) -> Iterable[FoldSite]:
        """The norms of the branches."""
        return sites_of("block", Block(self.branches, parent=None))


@BLOCKS.register("raft", "grid")
@dataclasses.dataclass(frozen=True)
class RaftBlock:
    """The mixer along columns, along rows, and the MLP (RaftMLP).

        x + vertical(norm(x)),   x + horizontal(norm(x)),   x + mlp(norm(x))

    Weights of the first two belong to positions: a map of another size than `grid` is
    resized before them, and back. Stochastic depth has the same rate in every layer
    (Tatsunami and Taki, 2021).

    Attributes:
      grid: height and width that the mixers are for; None for those of the map, which
        are fixed then.

    Example:
      >>> from normjax.models.raft import RaftBlock
      >>> RaftBlock(grid=(14, 14)).grid
      (14, 14)
    """

    grid: tuple[int, int] | None = None

    def branches(self, given: Layer) -> tuple[Branch, ...]:
        """Those of one layer."""
        more = {**given.scaled(), "drop_path": given.last_drop_path}
        tokens = tuple(
            mixing(
                given.norm,
                with_defaults(given.mixer, axis=axis),
                given.placement,
                **more,
            )._replace(name=axis, norm_name=f"{axis}_norm")
            for axis in ("vertical", "horizontal")
        )
        layer = functools.partial(ResizedBlock, branches=tuple(tokens), grid=self.grid)
        branch = positioning("tokens", layer)
        branch = branch._replace(replaces=True, takes=(("train", "train"),))
        if given.mlp is None:
            return (branch,)
        return branch, feeding(given.mlp_norm, given.mlp, given.mlp_placement, **more)
