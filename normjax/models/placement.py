"""Where the norms of a residual network sit, as data."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from normjax.core.errors import UserError, one_of


class Spots(NamedTuple):
    """Norms of one residual branch.

    Attributes:
      input: on what the branch reads.  output: on what it gives.
      stream: on the sum of stream and branch.
      scale: factor on the (normalised) input.
      branch: factor on what the branch gives.
    """

    input: bool = False
    output: bool = False
    stream: bool = False
    scale: float = 1.0
    branch: float = 1.0


class Placement(NamedTuple):
    """Norms of a whole network.

    Attributes:
      spots: function of (index from 0, number of layers) -> Spots of that layer.
      embedding, final: whether the embedding and the last stream are normalised.
    """

    spots: Callable[[int, int], Spots]
    embedding: bool = False
    final: bool = True


def mix(fraction: float) -> Placement:
    """Mix-LN (Li et al., 2025): post in the first floor(fraction * L) layers."""

    def spots(index: int, depth: int) -> Spots:
        post = index < math.floor(fraction * depth)
        return Spots(stream=True) if post else Spots(input=True)

    return Placement(spots)


def norm_free(alpha: float) -> Placement:
    """No norms: x + alpha F(x / sqrt(1 + 2 alpha^2 l)), l from 0.

    The residual scaling of NFNets (Brock et al., 2021) on transformers: if F keeps the
    variance, each of the two branches of a layer adds alpha^2 to that of the stream.
    """

    def spots(index: int, depth: int) -> Spots:
        del depth
        return Spots(scale=1 / math.sqrt(1 + 2 * alpha**2 * index), branch=alpha)

    return Placement(spots, final=False)


PLACEMENTS: dict[str, Placement] = {
    # x + F(N(x))
    "pre": Placement(lambda index, depth: Spots(input=True)),
    # the same without a norm at the end (PVT with PRepBN, FLatten-PVT)
    "pre_open": Placement(lambda index, depth: Spots(input=True), final=False),
    # N(x + F(x)) (Vaswani et al., 2017)
    "post": Placement(lambda index, depth: Spots(stream=True), final=False),
    # x + N(F(N(x))) (Ding et al., 2021)
    "sandwich": Placement(lambda index, depth: Spots(input=True, output=True)),
    # the sandwich with a norm on the embedding (Kim et al., 2025)
    "peri": Placement(
        lambda index, depth: Spots(input=True, output=True), embedding=True
    ),
    "mix": mix(0.25),
    # x + F(N(x) / sqrt(l)), l from 1: LayerNorm Scaling (Sun et al., 2025)
    "scaled": Placement(
        lambda index, depth: Spots(input=True, scale=1 / math.sqrt(index + 1))
    ),
    "none": Placement(lambda index, depth: Spots(), final=False),
    "norm_free": norm_free(0.2),
}


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
    spots = [placement.spots(i, depth) for i in range(depth)]
    if placement.embedding or any(s.output or s.stream for s in spots):
        return f"placement {name!r} adds norms into the stream"
    if not placement.final or not all(s.input for s in spots):
        return f"placement {name!r} lets layers read it without norm"
    return ""


def residual(
    x: jax.Array,
    branch: Callable[[jax.Array], jax.Array],
    norm: Callable[[str, jax.Array], jax.Array],
    spots: Spots,
) -> jax.Array:
    """One residual branch with its norms.

    Args:
      x: the stream, [..., C].
      branch: function of the (normalised) stream.
      norm: norm(suffix, x) applies a norm of this branch; suffix "" or "_out".
      spots: which norms there are.
    """
    h = norm("", x) if spots.input else x
    if spots.scale != 1.0:
        h = h * spots.scale
    y = branch(h)
    if spots.output:
        y = norm("_out", y)
    x = x + y if spots.branch == 1.0 else x + spots.branch * y
    return norm("", x) if spots.stream else x
