"""Which pixels and which places of a map an answer comes from."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32

SMALL = 1e-8


class SmoothGradients(NamedTuple):
    """Gradients of a score over noisy copies of an image.

    Attributes:
      mean: SmoothGrad.  square: mean of their squares.  variance: biased; VarGrad.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> found = analysis.smooth_grad(jnp.sum, jnp.arange(2.0), jnp.ones((3, 2)))
      >>> print(found.mean, found.variance)
      [1. 1.] [0. 0.]
    """

    mean: jax.Array
    square: jax.Array
    variance: jax.Array


def smooth_grad(
    score: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    noise: jax.Array,
    spread: float = 0.15,
) -> SmoothGradients:
    """Gradients of score(x + s n_m), s = spread (max x - min x) (Smilkov et al., 2017).

    Noisy images are not clipped. They are taken one after the other.

    Args:
      score: of one image, a scalar: the logit of a class.
      x: the image, [...].  noise: n, [M, ...], of variance 1.
      spread: 0.1 to 0.2 in the paper.

    Returns:
      Mean, mean square and variance over the M gradients, [...] each.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> x, noise = jnp.array([0.0, 2.0]), jnp.array([[1.0, 1.0], [-1.0, -1.0]])
      >>> found = analysis.smooth_grad(lambda x: jnp.sum(x**2), x, noise, spread=0.5)
      >>> print(found.mean, found.variance)
      [0. 4.] [4. 4.]
    """
    std = spread * (jnp.max(x) - jnp.min(x))
    gradients = jax.lax.map(lambda n: jax.grad(score)(x + std * n), noise)
    wide = at_least_float32(gradients)
    mean, square = jnp.mean(wide, 0), jnp.mean(jnp.square(wide), 0)
    return SmoothGradients(mean, square, jnp.var(wide, 0))


def saliency_picture(gradients: jax.Array, percentile: float = 99.0) -> jax.Array:
    """(v - min) / (percentile - min) in [0, 1], v the sum of |.| over channels.

    Args:
      gradients: [H, W, C], of one image.
      percentile: what becomes 1 with everything above.

    Returns:
      [H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> gradients = jnp.array([[[1.0, -1.0], [3.0, 3.0]]])
      >>> print(analysis.saliency_picture(gradients, percentile=100.0))
      [[0. 1.]]
    """
    v = jnp.sum(jnp.abs(at_least_float32(gradients)), -1)
    low, high = jnp.min(v), jnp.percentile(v, percentile)
    return jnp.clip((v - low) / jnp.maximum(high - low, SMALL), 0, 1)


def activations_and_gradients(
    model: nn.Module,
    variables: Mapping[str, Any],
    layer: str,
    x: jax.Array,
    classes: jax.Array,
    **arguments: Any,
) -> tuple[jax.Array, jax.Array]:
    """What a layer gives, and the gradient of the logits of given classes by it.

    Args:
      model: any Flax model with logits [B, K].  variables: its.
      layer: path of a module that is called once, "blocks_3".
      x: [B, ...].  classes: int [B].
      **arguments: of the call, such as train=False.

    Returns:
      (activations, gradients), both of the layer's output; those of an example are of
      its own logit.

    Raises:
      UserError: no such layer is called.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import analysis
      >>> model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(0), (4, 5))
      >>> variables = model.init(jax.random.key(1), x)
      >>> classes = jax.numpy.zeros(4, int)
      >>> a, g = analysis.activations_and_gradients(
      ...     model, variables, "layers_0", x, classes
      ... )
      >>> a.shape, g.shape
      ((4, 3), (4, 3))
    """
    seen: list[str] = []
    run = functools.partial(_score_and_output, model, layer, arguments, seen)
    given = variables, x, classes
    _, shape = jax.eval_shape(functools.partial(run, None), *given)
    if shape is None:
        raise UserError(one_of("layer", layer, filter(None, seen)))
    zeros = jnp.zeros(shape.shape, shape.dtype)
    gradients, activations = jax.jit(jax.grad(run, has_aux=True))(zeros, *given)
    return activations, gradients


def _score_and_output(
    model: nn.Module,
    layer: str,
    arguments: Mapping[str, Any],
    seen: list[str],
    added: jax.Array | None,
    variables: Mapping[str, Any],
    x: jax.Array,
    classes: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """(sum of the classes' logits, what the layer gives), with `added` to the latter.

    The paths of all that is called are put in `seen`.
    """
    found = []

    def at(path: str, y: jax.Array) -> jax.Array:
        seen.append(path)
        if path != layer:
            return y
        found.append(y)
        return y if added is None else y + added

    with nn.intercept_methods(_to_outputs(at)):
        logits: Any = model.apply(variables, x, **arguments)
    own = jnp.take_along_axis(logits, classes[:, None], axis=-1)
    return jnp.sum(own), found[0] if found else None


def _to_outputs(change: Callable[[str, jax.Array], jax.Array]) -> Callable[..., Any]:
    """An interceptor that gives change(path, output) of every module that is called."""

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(y, jax.Array):
            return y
        return change("/".join(context.module.path), y)

    return intercept


def grad_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """relu(sum_k w_k A_k), w_k the mean of g over places (Selvaraju et al., 2017).

    Args:
      activations: A, [B, H, W, K].
      gradients: g of a logit by A, [B, H, W, K].

    Returns:
      [B, H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> activations = jnp.array([[[[1.0, 5.0], [3.0, 0.0]]]])
      >>> gradients = jnp.array([[[[2.0, -1.0], [0.0, -1.0]]]])
      >>> print(analysis.grad_cam(activations, gradients))
      [[[0. 3.]]]
    """
    weights = jnp.mean(at_least_float32(gradients), (1, 2))
    return activation_map(weights, activations)


def grad_cam_plus_plus(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """Grad-CAM++: places count by their share of the score (Chattopadhay et al., 2018).

    alpha = g^2 / (2 g^2 + (sum_ab A_ab) g^3 + 1e-6), 0 where g = 0; w_k = sum_ij alpha
    relu(g); relu(sum_k w_k A_k).

    Args:
      activations: A, [B, H, W, K].
      gradients: g of a logit by A, [B, H, W, K].

    Returns:
      [B, H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> activations, gradients = jnp.ones((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1))
      >>> print(analysis.grad_cam_plus_plus(activations, gradients).round(3))
      [[[0.5 0.5]]]
    """
    weights = plus_plus_weights(activations, gradients)
    return activation_map(weights, activations)


def smooth_grad_cam_plus_plus(
    activations: jax.Array, gradients: jax.Array, *, first_order: bool = False
) -> jax.Array:
    """Smooth Grad-CAM++: means of g, g^2 and g^3 over noisy images (Omeiza, 2019).

    alpha = D2 / (2 D2 + sum_ab A_ab D3_ab + 1e-8), w_k = sum_ij alpha relu(D1), relu(
    sum_k w_k A_k), with A of the clean image.

    Args:
      activations: A, [B, H, W, K].
      gradients: g, [M, B, H, W, K], of noisy copies.
      first_order: D1 in the numerator of alpha, as the paper is said to have it.

    Returns:
      [B, H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> activations, gradients = jnp.ones((1, 1, 2, 1)), jnp.ones((3, 1, 1, 2, 1))
      >>> found = analysis.smooth_grad_cam_plus_plus(activations, gradients)
      >>> print(found.round(3))
      [[[0.5 0.5]]]
    """
    weights = smooth_weights(activations, gradients, first_order=first_order)
    return activation_map(weights, activations)


def activation_map(weights: jax.Array, activations: jax.Array) -> jax.Array:
    """relu(sum_k w_k A_k): [B, K], [B, H, W, K] -> [B, H, W]."""
    return jax.nn.relu(einsum("bk,bhwk->bhw", weights, activations))


def plus_plus_weights(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """w of Grad-CAM++, [B, K]."""
    a, g = (at_least_float32(v) for v in (activations, gradients))
    total = jnp.sum(a, (1, 2), keepdims=True)
    below = 2 * g**2 + total * g**3 + 1e-6
    alpha = jnp.where(g == 0, 0, g**2 / jnp.where(g == 0, 1, below))
    return jnp.sum(alpha * jax.nn.relu(g), (1, 2))


def smooth_weights(
    activations: jax.Array, gradients: jax.Array, *, first_order: bool = False
) -> jax.Array:
    """w of Smooth Grad-CAM++, [B, K]."""
    a, g = (at_least_float32(v) for v in (activations, gradients))
    first, second, third = (jnp.mean(g**power, 0) for power in (1, 2, 3))
    below = 2 * second + jnp.sum(a * third, (1, 2), keepdims=True) + SMALL
    alpha = (first if first_order else second) / below
    return jnp.sum(alpha * jax.nn.relu(first), (1, 2))


def normalized_map(maps: jax.Array) -> jax.Array:
    """Less its least, over its largest + 1e-8, each map by itself.

    Args:
      maps: [B, H, W].

    Returns:
      [B, H, W] in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> print(analysis.normalized_map(jnp.array([[[1.0, 3.0], [2.0, 1.0]]])))
      [[[0.  1. ]
        [0.5 0. ]]]
    """
    maps = maps - jnp.min(maps, (1, 2), keepdims=True)
    return maps / (jnp.max(maps, (1, 2), keepdims=True) + SMALL)
