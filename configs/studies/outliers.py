"""Batches with outliers: statistics of a window, with and without a filter.

    python -m normjax.study outliers --workdir=runs/outliers

A network of two norms on scanned digits; in one batch of ten every value is a hundred
times as large. Top-1 of clean test images after 400 updates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normjax.study.claims import Claim

NORMS: dict[str, dict[str, Any]] = {
    "unified_norm": {"name": "unified_norm", "warmup_steps": 40},
    "unified_norm, no filter": {
        "name": "unified_norm",
        "warmup_steps": 40,
        "filter_outliers": False,
    },
    "batch_norm": {"name": "batch_norm"},
    "layer_norm": {"name": "layer_norm"},
}
STEPS, BATCH, EVERY, FACTOR, WIDTH = 400, 64, 10, 100.0, 64


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    source = "UnifiedNorm (Yang et al., 2022)"
    filtered, plain, batch, _ = ((name, "outliers") for name in NORMS)
    return {
        "title": "digits: test top-1, outliers in one batch of ten",
        "rows": "norm",
        "runs": {
            (name, column): _trained(norm, column == "outliers")
            for name, norm in NORMS.items()
            for column in ("clean", "outliers")
        },
        "claims": (
            Claim(
                "Filtering outliers helps UnifiedNorm where there are some.",
                source,
                "the filter stabilises training of Swin-T",
                filtered,
                plain,
            ),
            Claim(
                "UnifiedNorm bears outliers better than BatchNorm.",
                source,
                "BatchNorm in transformers fails",
                filtered,
                batch,
            ),
        ),
    }


def _trained(norm: Mapping[str, Any], outliers: bool) -> Any:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import flax.linen as nn
        import jax
        import jax.numpy as jnp
        import numpy as np
        import optax
        from sklearn.datasets import load_digits

        from normjax import norms

        class Network(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
                for i in range(2):
                    x = nn.Dense(WIDTH, name=f"fc{i}")(x)
                    x = norms.build(dict(norm))(name=f"norm{i}")(x, train=train)
                    x = nn.relu(x)
                return nn.Dense(10, name="head")(x)

        images, labels = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32)
        model, rng = Network(), np.random.default_rng(seed)
        train, test = np.split(rng.permutation(len(images)), [1400])
        variables = model.init(jax.random.key(seed), images[:2], train=True)
        params = variables.pop("params")
        optimizer = optax.adam(3e-3)

        def loss_of(params, state, x, y):
            logits, new = model.apply(
                {"params": params, **state}, x, train=True, mutable=list(state)
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, new

        @jax.jit
        def step(params, state, opt, x, y):
            grads, new = jax.grad(loss_of, has_aux=True)(params, state, x, y)
            updates, opt = optimizer.update(grads, opt)
            return optax.apply_updates(params, updates), new, opt

        state, opt = variables, optimizer.init(params)
        for i in range(STEPS):
            rows = rng.choice(train, BATCH)
            factor = FACTOR if outliers and i % EVERY == EVERY - 1 else 1.0
            given = (factor * images[rows], labels[rows])
            params, state, opt = step(params, state, opt, *given)
        logits = model.apply({"params": params, **state}, images[test])
        hits = jnp.argmax(logits, -1) == labels[test]
        return {"top1": float(jnp.mean(hits))}

    return measure
