"""Ways to adapt a trained image model to a stream of batches, without labels.

An `Adaptation` has `start(variables) -> state` and `predict(apply, variables, state, x)
-> (logits, state)`, pure functions to be jitted. What is predicted for a batch may use
the whole batch and what came before it, never what comes after.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from normjax.adapt.lame import affinity, laplacian_adjusted
from normjax.adapt.statistics import (
    alpha_statistics,
    split_components,
    unmix_statistics,
)
from normjax.core.collections import BATCH_STATS, PARAMS
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError
from normjax.core.registry import Registry
from normjax.norms import BatchNorm, reads_batch

ADAPTATIONS = Registry("adaptation")
"""The methods by key: a row has `name` and `make`, the class.

Example:
  >>> from normjax.adapt import ADAPTATIONS
  >>> "tent" in ADAPTATIONS, ADAPTATIONS["tent"].make.__name__
  (True, 'EntropyMinimization')
"""

HEAD = "head"  # the layer whose input are the features, in every image model here

Apply = Callable[..., Any]
Variables = Mapping[str, Any]


class Adaptation(abc.ABC):
    """A way to adapt a trained image model to a stream of batches, without labels.

    `start` and `predict` are pure functions, to be jitted. What is predicted for a
    batch may use the whole batch and what came before it, never what comes after.

    Example:
      >>> import jax
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["alpha_bn"].make(batch_weight=0.2)
      >>> isinstance(method, adapt.Adaptation)
      True
      >>> state = method.start(variables)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> logits, state = predict(model.apply, variables, state, images)
      >>> logits.shape
      (4, 10)
    """

    @abc.abstractmethod
    def start(self, variables: Variables) -> Any:
        """The state before the first batch.

        Raises:
          UserError: the model has nothing that this method adapts.
        """

    @abc.abstractmethod
    def predict(
        self, apply: Apply, variables: Variables, state: Any, x: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits [B, K] of x [B, H, W, C], and the state after it."""


@ADAPTATIONS.register("source")
@dataclasses.dataclass(frozen=True)
class Source(Adaptation):
    """The model as it was trained: the control.

    Example:
      >>> import jax
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["source"].make()
      >>> state = method.start(variables)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> logits, _ = predict(model.apply, variables, state, images)
      >>> logits.shape, state  # nothing is kept
      ((4, 10), ())
    """

    def start(self, variables):
        del variables
        return ()

    def predict(self, apply, variables, state, x):
        return apply(variables, x, train=False), state


@ADAPTATIONS.register("alpha_bn")
@dataclasses.dataclass(frozen=True)
class AlphaBatchNorm(Adaptation):
    """BatchNorms with (1 - w) source + w batch statistics (You, Li & Zhao, 2021).

    Attributes:
      batch_weight: w; 0 is the model as it was trained, 1 test-time BatchNorm.

    Example:
      >>> import jax
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["alpha_bn"].make(batch_weight=0.1)
      >>> state = method.start(variables)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> logits, _ = predict(model.apply, variables, state, images)
      >>> logits.shape
      (4, 10)
    """

    batch_weight: float = 0.1

    def start(self, variables):
        _norms_of(variables)
        return ()

    def predict(self, apply, variables, state, x):
        def rule(path, x, mean, var):
            del path
            return alpha_statistics(x, mean, var, batch_weight=self.batch_weight)

        return _apply_with(rule, apply, variables, x), state


@ADAPTATIONS.register("batch_stats")
@dataclasses.dataclass(frozen=True)
class BatchStatistics(AlphaBatchNorm):
    """BatchNorms with the statistics of the batch (Nado et al., 2020).

    Attributes:
      batch_weight: of the statistics of the batch.

    Example:
      >>> import jax
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["batch_stats"].make()
      >>> method.batch_weight
      1.0
      >>> state = method.start(variables)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> logits, _ = predict(model.apply, variables, state, images)
      >>> logits.shape
      (4, 10)
    """

    batch_weight: float = 1.0


@ADAPTATIONS.register("unmix_tns")
@dataclasses.dataclass(frozen=True)
class UnMixStatistics(Adaptation):
    """BatchNorms with K components that follow the stream (Tomar et al., 2024).

    Attributes:
      components: K.  temperature: of the softmax over them.
      momentum: of the components for batches of 64; of B it is 1 - (1 - momentum)^(B /
        64).
      seed: of the first components.

    Example:
      >>> import jax
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["unmix_tns"].make(components=4)
      >>> state = method.start(variables)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> logits, state = predict(model.apply, variables, state, images)
      >>> logits.shape  # the components follow the stream in `state`
      (4, 10)
    """

    components: int = 16
    temperature: float = 0.07
    momentum: float = 0.1
    seed: int = 0

    def start(self, variables):
        keys = jax.random.key(self.seed)
        return {
            path: split_components(
                jax.random.fold_in(keys, i), s["mean"], s["var"], self.components
            )
            for i, (path, s) in enumerate(sorted(_norms_of(variables).items()))
        }

    def predict(self, apply, variables, state, x):
        new = dict(state)
        momentum = 1 - (1 - self.momentum) ** (len(x) / 64)

        def rule(path, x, mean, var):
            del mean, var
            statistics, new[path] = unmix_statistics(
                x, *new[path], momentum=momentum, temperature=self.temperature
            )
            return statistics

        return _apply_with(rule, apply, variables, x), new


@ADAPTATIONS.register("lame")
@dataclasses.dataclass(frozen=True)
class LaplacianAdjusted(Adaptation):
    """Probabilities that agree among like examples of a batch (Boudiaf et al., 2022).

    The logits are logarithms of the probabilities; the model stays as it is.

    Attributes:
      kind, neighbours: of `affinity`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["lame"].make(neighbours=2)
      >>> state = method.start(variables)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> logits, _ = predict(model.apply, variables, state, images)
      >>> bool(jnp.allclose(jnp.exp(logits).sum(-1), 1, atol=1e-3))  # log probabilities
      True
    """

    kind: str = "knn"
    neighbours: int = 5

    def start(self, variables):
        if HEAD not in variables[PARAMS]:
            raise UserError(f"adaptation 'lame': the model has no layer {HEAD!r}")
        return ()

    def predict(self, apply, variables, state, x):
        found = []

        def listen(call, args, kwargs, context):
            if context.module.path == (HEAD,) and context.method_name == "__call__":
                found.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(listen):
            logits = apply(variables, x, train=False)
        kernel = affinity(found[0], self.kind, neighbours=self.neighbours)
        adjusted = laplacian_adjusted(jax.nn.softmax(logits), kernel)
        return jnp.log(jnp.maximum(adjusted, 1e-20)), state


@ADAPTATIONS.register("tent")
@dataclasses.dataclass(frozen=True)
class EntropyMinimization(Adaptation):
    """Statistics of the batch, scale and bias by the entropy (Wang et al., 2021).

    One step of Adam on the mean entropy of the predictions of each batch; the
    predictions are those before the step.

    Attributes:
      learning_rate: of Adam.

    Example:
      >>> import jax
      >>> from normjax import adapt, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> method = adapt.ADAPTATIONS["tent"].make(learning_rate=1e-3)
      >>> predict = jax.jit(method.predict, static_argnums=0)
      >>> state = method.start(variables)
      >>> logits, state = predict(model.apply, variables, state, images)
      >>> logits.shape  # `state` has trained scales and biases of norms
      (4, 10)
    """

    learning_rate: float = 1e-3

    def start(self, variables):
        learned = _affine_of(variables)
        return learned, optax.adam(self.learning_rate).init(learned)

    def predict(self, apply, variables, state, x):
        learned, moments = state

        def entropy(learned):
            def rule(path, x, mean, var):
                del path
                return alpha_statistics(x, mean, var, batch_weight=1.0)

            logits = _apply_with(rule, apply, variables, x, learned)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1)), logits

        gradient, logits = jax.grad(entropy, has_aux=True)(learned)
        updates, moments = optax.adam(self.learning_rate).update(gradient, moments)
        return logits, (optax.apply_updates(learned, updates), moments)


def _norms_of(variables: Variables) -> dict[str, Variables]:
    """{path: {"mean", "var"}} of every BatchNorm."""
    found: dict[str, Variables] = {}

    def visit(tree, path):
        if "mean" in tree and "var" in tree:
            found["/".join(path)] = tree
        for name, child in tree.items():
            if isinstance(child, Mapping):
                visit(child, (*path, name))

    visit(variables.get(BATCH_STATS, {}), ())
    if not found:
        raise UserError("the model has no BatchNorm whose statistics could adapt")
    return found


def _affine_of(variables: Variables) -> dict[str, Any]:
    """{path: {"scale", "bias"}} of every BatchNorm that learns them."""
    affine = {}
    for path in _norms_of(variables):
        tree: Any = variables[PARAMS]
        for name in path.split("/"):
            tree = tree.get(name, {})
        affine[path] = {k: tree[k] for k in ("scale", "bias") if k in tree}
    return affine


def _apply_with(
    rule: Callable[..., tuple[jax.Array, jax.Array]],
    apply: Apply,
    variables: Variables,
    x: jax.Array,
    learned: Mapping[str, Any] | None = None,
) -> Any:
    """The model at evaluation with BatchNorms by other statistics.

    What a norm makes of them is its own (`BatchNorm.by_statistics`).

    Args:
      rule: rule(path, x, mean, var) -> (mean, var), from the running statistics.
      learned: {path: {"scale", "bias"}} instead of those in `variables`.

    Raises:
      UserError: statistics that are of no BatchNorm, or of one that uses those of the
        batch already.
    """
    left = set(_norms_of(variables))

    def exchange(call, args, kwargs, context):
        norm, path = context.module, "/".join(context.module.path)
        if path in left and reads_batch(norm):
            raise UserError(
                f"adaptation: {path} evaluates by the statistics of the batch already "
                "(use_running_average=False)"
            )
        if not (isinstance(norm, BatchNorm) and context.method_name == "normalize"):
            return call(*args, **kwargs)
        left.discard(path)
        x = args[0]
        running = (norm.get_variable(BATCH_STATS, name) for name in ("mean", "var"))
        own = {k: norm.get_variable(PARAMS, k) for k in ("scale", "bias")}
        own |= (learned or {}).get(path, {})
        affine = own["scale"], own["bias"]
        y = norm.by_statistics(x, affine, *rule(path, x, *running))
        return y, result_dtype(x, *affine, dtype=norm.dtype)

    with nn.intercept_methods(exchange):
        y = apply(variables, x, train=False)
    if left:
        raise UserError(f"adaptation: {min(left)} is no BatchNorm that could adapt")
    return y
