"""Our models, for a process that times one: its size, and what it can call."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import fusion, models
from normjax.core.collections import PARAMS
from normjax.core.compiler import jit
from normjax.core.operations import multiply_adds

CLASSES = 1000


def measured(
    name: str, images: Any, batches: Sequence[int], dtype: str = "float32"
) -> tuple[tuple[int, float, float], dict[str, Callable]]:
    """(parameters, 1e9 multiply-adds by formula and as compiled), what to time.

    The latter by its kind: forward passes, those of the folded model, a training step
    of all images. All wait for their result.

    Args:
      images: [B, H, W, 3].  batches: how many of them at once.
      dtype: of the computation; inference has its weights in it as well.
    """
    narrow = jnp.dtype(dtype)
    model = models.build(name, num_classes=CLASSES, dtype=narrow)
    images = jnp.asarray(images, narrow)
    variables = dict(jax.jit(model.init)(jax.random.key(0), images[:1]))
    with warnings.catch_warnings():
        # Nothing was trained: decays stand at their start.
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded_model, folded = fusion.fold(model, variables)
    calls: dict[str, functools.partial] = {}
    for kind, apply, given in (
        ("forward", model.apply, variables),
        ("folded", folded_model.apply, folded),
    ):
        for batch in batches:
            arguments = _cast(given, narrow), images[:batch]
            compiled = jit(apply).lower(*arguments).compile()
            calls[f"{kind} {batch}"] = functools.partial(compiled, *arguments)
    calls[f"train {len(images)}"] = _train_call(model, variables, images)
    costs: Any = calls[f"forward {batches[0]}"].func.cost_analysis() or {}
    parameters = sum(x.size for x in jax.tree.leaves(variables[PARAMS]))
    formula = multiply_adds(model.apply, variables, images[:1])
    size = (parameters, formula / 1e9, costs.get("flops", 0) / 2e9 / batches[0])
    return size, {kind: _waiting(call) for kind, call in calls.items()}


def _waiting(call: Callable) -> Callable:
    return lambda: jax.block_until_ready(call())


def _cast(variables: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        variables,
    )


def _train_call(model: Any, variables: dict[str, Any], images: jax.Array) -> Any:
    """Forward in training and the gradient of every parameter."""
    state = {k: v for k, v in variables.items() if k != PARAMS}

    @jit
    def step(params, images):
        def loss(params):
            logits, new = model.apply(
                {**state, PARAMS: params}, images, train=True, mutable=list(state)
            )
            return jnp.mean(jnp.square(logits)), new

        return jax.grad(loss, has_aux=True)(params)

    return functools.partial(step, variables[PARAMS], images)
