"""Whether a batch is large enough for the gradient that it gives (AdAdaGrad).

Of gradients g_i of single samples, with their mean g: trees with a first axis of
samples.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32


class BatchTest(NamedTuple):
    """What a test measured of B samples.

    Attributes:
      required: samples, of which the batch needs at least this number.
      variance: of the gradients, or of their part that the test looks at.
      square: |g|^2.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import norm_test
      >>> test = norm_test({"w": jnp.array([1.0, 3.0])}, 0.5)
      >>> type(test).__name__, float(test.required), float(test.square)
      ('BatchTest', 2.0, 4.0)
    """

    required: jax.Array
    variance: jax.Array
    square: jax.Array


def _flat(gradients: Any, joint: bool) -> list[jax.Array]:
    """[samples, coordinates] of each array, or of all together."""
    arrays = [
        at_least_float32(x).reshape(len(x), -1) for x in jax.tree.leaves(gradients)
    ]
    return [jnp.concatenate(arrays, 1)] if joint else arrays


def _variance(x: jax.Array, shards: int) -> jax.Array:
    """Unbiased variances over the first axis: of shards, plus that of their means."""
    parts = x.reshape(shards, -1, *x.shape[1:])
    within = jnp.mean(jnp.var(parts, axis=1, ddof=1), axis=0)
    return within + jnp.var(jnp.mean(parts, axis=1), axis=0)


def _square(means: list[jax.Array]) -> jax.Array:
    return sum((jnp.sum(m * m) for m in means), start=jnp.zeros([]))


def norm_test(gradients: Any, eta: float = 0.1, *, shards: int = 1) -> BatchTest:
    """The norm test of AdAdaGrad (Lau et al., 2024).

        V = sum of the variances of all coordinates of g_i
        required = V / (eta^2 |g|^2)

    Args:
      gradients: tree of [samples, ...].
      eta: the largest relative error.
      shards: equal parts, one after the other, of which the variances are averaged.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import norm_test
      >>> float(norm_test({"w": jnp.array([1.0, 3.0])}, 0.5).required)  # 2 / (1/4 4)
      2.0
    """
    flat = _flat(gradients, joint=True)[0]
    variance, square = jnp.sum(_variance(flat, shards)), _square([jnp.mean(flat, 0)])
    return BatchTest(variance / (eta**2 * square), variance, square)


def inner_product_test(
    gradients: Any, theta: float = 0.1, *, shards: int = 1, joint: bool = True
) -> BatchTest:
    """The inner product test of AdAdaGrad (Lau et al., 2024).

        I = variance of <g_i, g>        required = I / (theta^2 |g|^4)

    Args:
      gradients: tree of [samples, ...].
      theta: the largest relative error of the length along g.
      shards: equal parts, see `norm_test`.
      joint: products of all coordinates, as in the paper; else I is the sum of the
        variances of the products of each array, as in the published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import inner_product_test
      >>> float(inner_product_test({"w": jnp.array([1.0, 3.0])}, 0.5).required)
      2.0
    """
    parts = _flat(gradients, joint)
    means = [jnp.mean(x, 0) for x in parts]
    products = [x @ m for x, m in zip(parts, means, strict=True)]
    variance = sum((_variance(x, shards) for x in products), start=jnp.zeros([]))
    square = _square(means)
    return BatchTest(variance / (theta**2 * square**2), variance, square)


def orthogonality_test(
    gradients: Any,
    nu: float = 0.1,
    *,
    shards: int = 1,
    joint: bool = True,
) -> BatchTest:
    """The orthogonality test of AdAdaGrad (Lau et al., 2024).

        o_i = g_i - <g_i, g> g / |g|^2
        R = sum of the variances of the coordinates of o_i
        required = R / (nu^2 |g|^2)

    Args:
      gradients: tree of [samples, ...].
      nu: the largest relative length across g.
      shards: equal parts, see `norm_test`.
      joint: o_i of all coordinates; else of each array with its own |g|^2, as in the
        published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import orthogonality_test
      >>> gradients = {"w": jnp.array([[2.0, 1.0], [2.0, -1.0]])}
      >>> float(orthogonality_test(gradients, 0.5).required)  # 2 / (1/4 4)
      2.0
    """
    parts = _flat(gradients, joint)
    square = _square([jnp.mean(x, 0) for x in parts])
    variance = jnp.zeros([])
    for x in parts:
        mean = jnp.mean(x, 0)
        own = jnp.sum(mean * mean)
        rest = x - jnp.outer(x @ mean, mean) / jnp.where(own > 0, own, 1)
        variance += jnp.sum(_variance(rest, shards))
    return BatchTest(variance / (nu**2 * square), variance, square)


class Spread(NamedTuple):
    """How single gradients g_i lie about their mean g: all that the tests need.

    It takes scalars of each, so that gradients need not be kept.

    Attributes:
      square: |g|^2.  distances: |g_i - g|^2, [samples].
      products: <g_i, g>, [samples].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import BATCH_TESTS, Spread
      >>> spread = Spread(4.0, jnp.array([1.0, 1.0]), jnp.array([2.0, 6.0]))
      >>> float(BATCH_TESTS["norm"](spread, 0.5).required)  # of gradients 1 and 3
      2.0
    """

    square: jax.Array
    distances: jax.Array
    products: jax.Array

    def norm(self, tolerance: float) -> BatchTest:
        """See `norm_test`."""
        variance = jnp.sum(self.distances) / (len(self.distances) - 1)
        return BatchTest(variance / (tolerance**2 * self.square), variance, self.square)

    def inner_product(self, tolerance: float) -> BatchTest:
        """See `inner_product_test`, of all coordinates together."""
        variance = jnp.var(self.products, ddof=1)
        required = variance / (tolerance**2 * self.square**2)
        return BatchTest(required, variance, self.square)

    def orthogonality(self, tolerance: float) -> BatchTest:
        """See `orthogonality_test`, of all coordinates together."""
        along = (self.products - self.square) ** 2 / self.square
        across = jnp.maximum(self.distances - along, 0)
        variance = jnp.sum(across) / (len(across) - 1)
        return BatchTest(variance / (tolerance**2 * self.square), variance, self.square)

    def augmented(self, tolerance: float) -> BatchTest:
        """The inner product or the orthogonality test, whichever requires more."""
        tests = self.inner_product(tolerance), self.orthogonality(tolerance)
        more = tests[1].required > tests[0].required
        return jax.tree.map(lambda a, b: jnp.where(more, b, a), *tests)


BATCH_TESTS: Mapping[str, Callable[[Spread, float], BatchTest]] = {
    "norm": Spread.norm,
    "inner_product": Spread.inner_product,
    "augmented": Spread.augmented,
}
"""The tests of AdAdaGrad that a run's batches may grow by: (spread, tolerance).

Example:
  >>> from normjax.optim import BATCH_TESTS
  >>> list(BATCH_TESTS)
  ['norm', 'inner_product', 'augmented']
"""


def grown_batch(batch: int, required: float, largest: int) -> int:
    """ceil(max(batch, required)), at most `largest`: a batch never shrinks.

    Args:
      batch: its size now.  required: by a test.  largest: size allowed.

    Example:
      >>> from normjax.optim import grown_batch
      >>> grown_batch(64, 70.5, 256), grown_batch(64, 10.0, 256)
      (71, 64)
    """
    return max(batch, min(math.ceil(max(batch, required)), largest))


class BatchPlan(NamedTuple):
    """How a batch is made.

    Attributes:
      micro: samples of a worker at a time.  accumulation: times.
      batch: samples of all workers.

    Example:
      >>> from normjax.optim import BatchPlan, grown_plan
      >>> limits = {"workers": 2, "largest_micro": 40, "largest": 300}
      >>> grown_plan(BatchPlan(8, 1, 16), 50.0, **limits)
      BatchPlan(micro=25, accumulation=1, batch=50)
    """

    micro: int
    accumulation: int
    batch: int


def grown_plan(
    plan: BatchPlan, required: float, *, workers: int, largest_micro: int, largest: int
) -> BatchPlan:
    """The next plan, rounded to workers and accumulation (Lau et al., 2024).

    Args:
      plan: of now.  required: samples by a test.  workers: their number.
      largest_micro: samples that fit a worker.  largest: samples allowed, which
        rounding may exceed.

    Example:
      >>> from normjax.optim import BatchPlan, grown_plan
      >>> limits = {"workers": 2, "largest_micro": 40, "largest": 300}
      >>> grown_plan(BatchPlan(40, 1, 80), 100.0, **limits)
      BatchPlan(micro=40, accumulation=2, batch=160)
    """

    def split(batch, parts):
        return math.ceil(batch / (workers * parts))

    (micro, times, batch), last = plan, plan.batch
    if last < largest:
        made = micro * workers * times
        batch = min(math.ceil(max(made, required)), largest)
    micro = split(batch, times)
    times = split(batch, micro)
    batch = micro * workers * times
    if batch > largest:
        batch, micro = largest, largest_micro
        times = split(batch, micro)
    if batch > last:
        micro = split(batch, times)
        batch = micro * workers * times
        if micro > largest_micro:
            micro = largest_micro
            times = split(batch, micro)
            batch = micro * workers * times
        if batch > largest:
            batch = largest
            micro = split(batch, times)
            times = split(batch, micro)
            batch = micro * workers * times
    return BatchPlan(micro, times, batch)
