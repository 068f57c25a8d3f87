"""Two towers: images and texts as points of one space (CLIP's shape)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.folding import FoldSite
from normjax.core.moments import at_least_float32
from normjax.core.ranges import ABOVE_ZERO, POSITIVE, Range
from normjax.models.base import MODELS
from normjax.models.block import sites_of
from normjax.models.layers import Factory


@MODELS.register("two_towers", "seq", "grid")
class TwoTowers(nn.Module):
    """An image tower and a text tower (CLIP; Radford et al., 2021; BASIC, Pham et al.).

        a = f(image) / |f(image)|, b = g(text) / |g(text)|, tau = exp(log_temperature)

    Each head is the projection into the space of both. The temperature is one
    parameter, which every row of the result repeats, so that a loss reads nothing else.

    Attributes:
      vocab_size: tokens of the texts.
      embed_dim: of the space of both.
      image_tower, text_tower: factories of a model of images, and of one of tokens with
        `num_classes`, such as "text_encoder" (`models.build` takes keys of models).
      norm: of the towers that name none of their own.
      temperature: initial tau.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> small = {"dim": 16, "depth": 1, "num_heads": 2}
      >>> model = models.build(
      ...     "two_towers",
      ...     vocab_size=11,
      ...     embed_dim=8,
      ...     image_tower={"name": "vit", **small},
      ...     text_tower={"name": "text_encoder", **small},
      ... )
      >>> images, tokens = jnp.zeros((3, 32, 32, 1)), jnp.ones((3, 4), int)
      >>> out, _ = model.init_with_output(jax.random.key(0), images, tokens=tokens)
      >>> {name: out[name].shape for name in sorted(out)}
      {'image': (3, 8), 'log_temperature': (3,), 'text': (3, 8)}
    """

    vocab_size: int
    embed_dim: int = 512
    image_tower: Any = "vit"
    text_tower: Any = "text_encoder"
    norm: Any = "layer_norm"
    temperature: float = 0.07
    dtype: Dtype | None = None

    ranges: ClassVar[Mapping[str, Range]] = {
        "embed_dim": POSITIVE,
        "temperature": ABOVE_ZERO,
    }

    @nn.nowrap
    def towers(self) -> dict[str, dict[str, Any]]:
        """What the models within are given, by attribute."""
        given = {"num_classes": self.embed_dim, "norm": self.norm, "dtype": self.dtype}
        return {
            "image_tower": given,
            "text_tower": {**given, "vocab_size": self.vocab_size},
        }

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see, in either tower."""
        image, text = (make(parent=None) for make in self._makers().values())
        return image.layouts() | text.layouts()

    @nn.nowrap
    def _makers(self) -> dict[str, Factory]:
        return {name: getattr(self, name) for name in self.towers()}

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        *,
        tokens: jax.Array,
        mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Pairs as points of norm 1.

        Args:
          images: [B, H, W, C], normalised.
          train: whether the model trains.
          tokens: int [B, L].  mask: bool [B, L]; False is padding.

        Returns:
          "image" and "text", [B, embed_dim] with rows of norm 1, and "log_temperature",
          [B], the same in every row; in at least float32.
        """
        log = self.param(
            "log_temperature",
            lambda key, value: jnp.log(jnp.asarray(value, jnp.float32)),
            self.temperature,
        )
        image, text = (make(name=name) for name, make in self._makers().items())
        return {
            "image": _unit(image(images, train=train)),
            "text": _unit(text(tokens, train=train, mask=mask)),
            "log_temperature": jnp.broadcast_to(log, images.shape[:1]),
        }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of both towers with the linear layers around it."""
        return [
            site
            for name, make in self._makers().items()
            for site in sites_of(name, make(parent=None))
        ]


def _unit(x: jax.Array) -> jax.Array:
    """Rows of norm 1; a row of zeros stays one, and has a gradient."""
    wide = at_least_float32(x)
    square = jnp.sum(jnp.square(wide), -1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
