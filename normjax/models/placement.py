"""Where the norms of a residual network sit, as data."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from normjax.core.errors import UserError, one_of


class BranchPlacement(NamedTuple):
    """Norms of one residual branch F of a stream x.

    Attributes:
      pre: on what the branch reads, F(N(x)).
      output: on what it gives, N(F(x)).
      post: on the sum of stream and branch, N(x + F(x)).
      stream: on the stream that branch and sum go on with, N(x) + F(N(x)).
      input_scale: factor on the (normalised) input of F.
      branch_scale: factor on what the branch gives.
    """

    pre: bool = False
    output: bool = False
    post: bool = False
    stream: bool = False
    input_scale: float = 1.0
    branch_scale: float = 1.0


class Placement(NamedTuple):
    """Norms of a whole network.

    Attributes:
      layer: function of (index from 0, number of layers) -> that layer's branches'.
      embedding, final: whether the embedding and the last stream are normalised.
      feeding: the same of the layer's last branch, its MLP; None: as the others.
    """

    layer: Callable[[int, int], BranchPlacement]
    embedding: bool = False
    final: bool = True
    feeding: Callable[[int, int], BranchPlacement] | None = None

    def branches(self, index: int, depth: int) -> tuple[BranchPlacement, ...]:
        """The norms of a layer's branches: of the mixers, and of the MLP."""
        feeding = self.feeding or self.layer
        return self.layer(index, depth), feeding(index, depth)


def mix(fraction: float) -> Placement:
    """Mix-LN (Li et al., 2025): post in the first floor(fraction * L) layers."""

    def layer(index: int, depth: int) -> BranchPlacement:
        post = index < math.floor(fraction * depth)
        return BranchPlacement(post=post, pre=not post)

    return Placement(layer)


def norm_free(alpha: float) -> Placement:
    """No norms: x + alpha F(x / sqrt(1 + 2 alpha^2 l)), l from 0.

    The residual scaling of NFNets (Brock et al., 2021) on transformers: if F keeps the
    variance, each of the two branches of a layer adds alpha^2 to that of the stream.
    """

    def layer(index: int, depth: int) -> BranchPlacement:
        del depth
        scale = 1 / math.sqrt(1 + 2 * alpha**2 * index)
        return BranchPlacement(input_scale=scale, branch_scale=alpha)

    return Placement(layer, final=False)


def _pre(index: int, depth: int) -> BranchPlacement:
    del index, depth
    return BranchPlacement(pre=True)


def _stream(index: int, depth: int) -> BranchPlacement:
    del index, depth
    return BranchPlacement(stream=True)


PLACEMENTS: dict[str, Placement] = {
    "pre": Placement(_pre),
    "pre_open": Placement(_pre, final=False),
    "post": Placement(lambda index, depth: BranchPlacement(post=True), final=False),
    "sandwich": Placement(lambda index, depth: BranchPlacement(pre=True, output=True)),
    "peri": Placement(
        lambda index, depth: BranchPlacement(pre=True, output=True), embedding=True
    ),
    "mix": mix(0.25),
    "scaled": Placement(
        lambda index, depth: BranchPlacement(
            pre=True, input_scale=1 / math.sqrt(index + 1)
        )
    ),
    "carried": Placement(_pre, feeding=_stream),
    "carried_open": Placement(_pre, feeding=_stream, final=False),
    "none": Placement(lambda index, depth: BranchPlacement(), final=False),
    "final": Placement(lambda index, depth: BranchPlacement()),
    "norm_free": norm_free(0.2),
}
"""Where the norms of a network sit, by name: `placement=` of models.

With F a branch, N a norm and l the layer from 1:

    pre            x + F(N(x))
    pre_open       the same without a norm at the end (PVT with PRepBN, FLatten-PVT)
    post           N(x + F(x)) (Vaswani et al., 2017)
    sandwich       x + N(F(N(x))) (Ding et al., 2021)
    peri           the sandwich with a norm on the embedding (Kim et al., 2025)
    mix            post in the first quarter of the layers, then pre (Li et al., 2025)
    scaled         x + F(N(x) / sqrt(l)): LayerNorm Scaling (Sun et al., 2025)
    carried        pre for mixers, N(x) + F(N(x)) for MLPs (CCT; Hassani et al., 2021)
    carried_open   the same without a norm at the end (ConTraCon)
    none           x + F(x)
    final          the same with a norm at the end (Jha and Reagen, 2024)
    norm_free      x + 0.2 F(x / sqrt(1 + 0.08 (l - 1))): no norms (Brock et al., 2021)

Example:
  >>> from normjax.models import PLACEMENTS
  >>> place = PLACEMENTS["sandwich"].layer(0, 12)
  >>> place.pre, place.output, place.post
  (True, True, False)
  >>> [PLACEMENTS["mix"].layer(i, 8).post for i in range(4)]
  [True, True, False, False]
"""


def placement_of(name: str | Placement) -> Placement:
    """The placement of that name, or the one given.

    Raises:
      UserError: unknown name; the message lists near matches.
    """
    if isinstance(name, Placement):
        return name
    if not isinstance(name, str) or name not in PLACEMENTS:
        raise UserError(one_of("placement", name, PLACEMENTS))
    return PLACEMENTS[name]


def stream_obstacle(name: str | Placement, depth: int) -> str:
    """Why the residual stream of a network does not only carry sums; "" if it does."""
    placement = placement_of(name)
    layers = [b for i in range(depth) for b in placement.branches(i, depth)]
    inside = any(layer.output or layer.post or layer.stream for layer in layers)
    if placement.embedding or inside:
        return f"placement {name!r} adds norms into the stream"
    if not placement.final or not all(layer.pre for layer in layers):
        return f"placement {name!r} lets layers read it without norm"
    return ""


def residual(
    x: jax.Array,
    branch: Callable[[jax.Array], jax.Array],
    norm: Callable[[str, jax.Array], jax.Array],
    placement: BranchPlacement,
) -> jax.Array:
    """One residual branch with its norms.

    Args:
      x: the stream, [..., C].
      branch: function of the (normalised) stream.
      norm: norm(suffix, x) applies a norm of this branch; suffix "" or "_out".
      placement: which norms there are.
    """
    if placement.stream:
        x = norm("", x)
    h = norm("", x) if placement.pre else x
    if placement.input_scale != 1.0:
        h = h * placement.input_scale
    y = branch(h)
    if placement.output:
        y = norm("_out", y)
    scale = placement.branch_scale
    x = x + y if scale == 1.0 else x + scale * y
    return norm("", x) if placement.post else x
