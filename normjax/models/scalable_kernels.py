"""Feed-forward layers as products of random features (SNNK; Sehanobish et al., 2024).

f(W x + b) becomes Phi(x) . Psi(W, b) with features of the inputs and of the weights by
random directions; Psi is then trained itself, of as many numbers as there are features.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.accumulate import einsum
from normjax.core.collections import CONSTANTS
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.core.ranges import ABOVE_ZERO, POSITIVE, Range
from normjax.models.layers import Factory
from normjax.models.mlps import MLPS

torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Between -1 and 1 over the root of the inputs: PyTorch's of linear layers."""


def relu_features(
    x: jax.Array, directions: jax.Array, constant: float = 0.0
) -> jax.Array:
    """max(G x, constant) / sqrt(m): products estimate E[relu(g.x) relu(g.w)].

    That is the arc-cosine kernel of first order (Cho and Saul, 2009), with theta
    between x and w: |x| |w| (sin theta + (pi - theta) cos theta) / (2 pi).

    Args:
      x: [..., C].
      directions: G [m, C], standard normal.
      constant: 0 for that kernel.

    Returns:
      [..., m] in at least float32.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> directions = jax.random.normal(jax.random.key(0), (10000, 2))
      >>> x, w = models.relu_features(jax.numpy.eye(2), directions)
      >>> print((x @ x).round(1), (x @ w).round(1))  # 1 / 2 and 1 / (2 pi)
      0.5 0.2
    """
    x = at_least_float32(x)
    y = einsum("...c,mc->...m", x, directions.astype(x.dtype))
    return jnp.maximum(y, constant) * len(directions) ** -0.5


EXPANSIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "cos": lambda xi: jnp.ones_like(xi, jnp.result_type(xi, jnp.complex64)),
    "sin": lambda xi: -1j * jnp.sign(xi),
}
"""F(xi) / p(xi) of f(z) = sum of F(xi) exp(2 pi i xi z), xi = +-1 / (2 pi) alike."""


def universal_features(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    directions: jax.Array,
    frequencies: jax.Array,
    *,
    function: str = "cos",
    control: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Phi and Psi with E[Re(Phi Psi^T)] = f(x W^T + b): universal random features.

        Phi_j = K exp(s rho_j g_j.x - rho_j^2 |x|^2 / 2 - M |g_j|^2) / sqrt(m)
        Psi_j = K F(xi_j) / p(xi_j) exp(2 pi i xi_j b)
                exp(s g_j.w - |w|^2 / 2 - M |g_j|^2) / sqrt(m)

    with rho = 2 pi i xi, s = sqrt(1 + 4 M) and K = (1 + 4 M)^(C / 4). Phi grows as
    exp(|x|^2 / 2): keep x small.

    Args:
      x: [N, C].  weight: W [F, C].  bias: b [F].
      directions: g [m, C], standard normal.
      frequencies: xi [m], drawn from p: 1 / (2 pi) and -1 / (2 pi) alike.
      function: f, "cos" or "sin".
      control: M, at least 0; unbiased for all of them.

    Returns:
      Complex [N, m] and [F, m].

    Raises:
      UserError: unknown `function`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> keys = jax.random.split(jax.random.key(0))
      >>> g = jax.random.normal(keys[0], (100000, 2))
      >>> xi = jax.random.rademacher(keys[1], (100000,)) / (2 * jnp.pi)
      >>> x, w, b = jnp.array([[0.1, 0.3]]), jnp.array([[0.5, -0.2]]), jnp.zeros(1)
      >>> phi, psi = models.universal_features(x, w, b, g, xi)
      >>> print((phi @ psi.T).real.round(1), jnp.cos(x @ w.T).round(1))
      [[1.]] [[1.]]
    """
    if function not in EXPANSIONS:
        raise UserError(one_of("function", function, EXPANSIONS))
    x, weight, bias = (at_least_float32(t) for t in (x, weight, bias))
    growth = 1 + 4 * control
    scale = growth ** (x.shape[-1] / 4) * len(directions) ** -0.5
    less = control * jnp.sum(directions**2, -1)
    rho = (2j * jnp.pi * frequencies)[None]

    def exponent(t, factor):
        along = jnp.matmul(t, directions.T, precision=jax.lax.Precision.HIGHEST)
        length = jnp.sum(t**2, -1, keepdims=True) / 2
        return growth**0.5 * factor * along - factor**2 * length - less[None]

    phi = scale * jnp.exp(exponent(x, rho))
    turned = EXPANSIONS[function](frequencies)[None] * jnp.exp(rho * bias[:, None])
    return phi, scale * turned * jnp.exp(exponent(weight, jnp.ones_like(rho.real)))


class KernelDense(nn.Module):
    """y = relu_features(x) Psi, which stands for relu(W x) (SNNK, ReLU form).

    Psi [m, features] is trained and starts as the features of a W that is drawn; the
    directions [m, C] are drawn once, from the key of the parameters, and lie in the
    collection `constants`. No bias, and no activation behind it. Features in at least
    float32.

    Attributes:
      features: width of y.
      num_features: m.
      constant: see `relu_features`.
      normalize: x, and W at the start, are divided by their length.
      scale: factor of both then.
      dtype: of the result; None infers it.  param_dtype: of Psi.
      kernel_init: of W [C, features].

    Example:
      >>> import jax
      >>> from normjax import models
      >>> layer = models.KernelDense(features=3, num_features=16)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = layer.init_with_output(jax.random.key(1), x)
      >>> y.shape, jax.tree.map(jax.numpy.shape, variables)
      ((2, 6, 3), {'constants': {'directions': (16, 8)}, 'params': {'psi': (16, 3)}})
    """

    features: int
    num_features: int = 64
    constant: float = 0.0
    normalize: bool = False
    scale: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features]."""
        inputs = x.shape[-1]

        def drawn():
            shape = (self.num_features, inputs)
            return jax.random.normal(self.make_rng("params"), shape, self.param_dtype)

        directions = self.variable(CONSTANTS, "directions", drawn).value

        def features(t):
            t = self._normalized(at_least_float32(t))
            return relu_features(t, directions, self.constant)

        def initial(key, shape, dtype):
            weight = self.kernel_init(key, (inputs, shape[-1]), jnp.float32)
            return features(weight.T).T.astype(dtype)

        shape = (self.num_features, self.features)
        psi = self.param("psi", initial, shape, self.param_dtype)
        dtype = self.dtype or jnp.result_type(x, psi)
        phi = features(x).astype(dtype)
        return phi @ psi.astype(dtype)

    def _normalized(self, t: jax.Array) -> jax.Array:
        if not self.normalize:
            return t
        square = jnp.sum(t**2, -1, keepdims=True)
        positive = square > 1e-24
        length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 1e-12)
        return t / length * self.scale


@MLPS.register("snnk", "seq", "grid", "causal", "decode")
class KernelMLP(nn.Module):
    """y = fc2(relu_features(x) Psi): random features for the first layer of an MLP.

    (SNNK; Sehanobish et al., 2024), see `KernelDense`; m (C + 2 hidden) multiply-adds a
    position beside those of fc2, of which Psi could be a part.

    Attributes:
      hidden: width between the two layers.
      activation: unused: the features have theirs.
      num_features: m.
      constant: see `relu_features`.
      normalize: x is divided by its length.
      scale: factor of it then.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> mlp = models.MLPS["snnk"].make(hidden=32, activation=None, num_features=16)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((2, 6, 8), ['fc1', 'fc2'])
    """

    hidden: int
    activation: Factory
    num_features: int = 64
    constant: float = 0.0
    normalize: bool = False
    scale: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads: ClassVar[tuple[str, ...]] = ()  # fixed directions do
    writes: ClassVar[str | None] = "fc2"
    ranges: ClassVar[Mapping[str, Range]] = {
        "num_features": POSITIVE,
        "scale": ABOVE_ZERO,
    }

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> same."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = KernelDense(
            *(self.hidden, self.num_features, self.constant),
            *(self.normalize, self.scale),
            name="fc1",
            **types,
        )(x)
        dense = {"kernel_init": trunc_normal, **types}
        return Dense(x.shape[-1], name="fc2", **dense)(h)


class KernelAdapter(nn.Module):
    """y = x + up(relu_features(norm(x)) Psi): an adapter that starts as x (SNNK).

    Attributes:
      num_features: m.
      down: width between Psi and `up`, a layer that starts at 0; None: Psi gives the
        channels of x, and `up` is a factor of each.
      norm: factory of a norm before it, or None.
      constant: see `relu_features`.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> adapter = models.KernelAdapter(num_features=16, down=4)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = adapter.init_with_output(jax.random.key(1), x)
      >>> bool((x == y).all()), sorted(variables["params"])
      (True, ['down', 'up'])
    """

    num_features: int = 64
    down: int | None = None
    norm: Factory | None = None
    constant: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> same."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = x if self.norm is None else self.norm(name="norm")(x)
        width, zeros = self.down or x.shape[-1], nn.initializers.zeros
        features = (self.num_features, self.constant)
        h = KernelDense(width, *features, name="down", **types)(h)
        if self.down is None:
            factor = self.param("factor", zeros, (width,), self.param_dtype)
            shape = (1,) * (x.ndim - 1) + (width,)
            return x + h * factor.astype(h.dtype).reshape(shape)
        return x + Dense(x.shape[-1], kernel_init=zeros, name="up", **types)(h)
