"""Norms that may evaluate by the batch: folded exactly, or kept with a reason."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, norms
from normjax.core.folding import FoldSite
from normjax.norms import NORMS
from tests.models.convolutions import random_variables

NEEDED = {"decay_steps": 3, "num_tasks": 2, "num_groups": 2}
BATCH = "is configured to evaluate by the statistics of the batch"
FORMLESS = "has no affine form as it is configured"
MIXED = {"name": "prepbn", "eval_mix": "current"}


def configurations():
    """Every norm as it is, frozen, by the batch, and PRepBN around each of them."""
    for entry in NORMS:
        fields = getattr(entry.make, "__dataclass_fields__", {})
        given = {k: v for k, v in NEEDED.items() if k in fields}
        options = [{}]
        if "use_running_average" in fields:
            options = [
                {"use_running_average": choice} for choice in (None, True, False)
            ]
        for option in options:
            spec = {"name": entry.name, **given, **option}
            yield spec
            if "batch_stats" in entry.tags and entry.name != "prepbn":
                yield {"name": "prepbn", "decay_steps": 3, "batch_norm": spec}
    for steps in (3, 4):  # the counters stand at 3
        yield {**MIXED, "decay_steps": steps}
    plain = {"name": "batch_norm", "use_scale": False, "use_bias": False}
    yield {"name": "prepbn", "decay_steps": 3, "batch_norm": plain}


def fast(spec):
    """Every norm as it is; frozen, by the batch and inside PRepBN one of each."""
    inner = spec.get("batch_norm", spec)
    as_it_is = inner is spec and spec.get("use_running_average") is None
    return inner["name"] == "batch_norm" or as_it_is


CASES = [
    pytest.param(spec, id=str(spec), marks=() if fast(spec) else pytest.mark.slow)
    for spec in configurations()
]


def by_batch(spec):
    inner = spec.get("batch_norm", {})
    return any(s.get("use_running_average") is False for s in (spec, inner))


class Host(nn.Module):
    """Convolution, norm, tanh, norm, linear layer."""

    norm: object

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (1, 1), name="conv")(x)
        x = nn.tanh(self.norm(name="out")(x, train=train))
        x = self.norm(name="in")(x, train=train)
        return nn.Dense(3, name="reader")(x)

    @nn.nowrap
    def fold_sites(self):
        norm = self.norm(parent=None)
        return [
            FoldSite("out", norm, writer="conv"),
            FoldSite("in", norm, readers=("reader",)),
        ]


def drawn(shapes):
    """Variables that are nowhere 0 or 1; quadratic means are positive."""

    def positive(path, x):
        return jnp.abs(x) if path[-1].key in ("phi", "window", "variance") else x

    variables = random_variables(shapes, np.float64)
    return jax.tree_util.tree_map_with_path(positive, variables)


@pytest.mark.parametrize("spec", CASES)
def test_folded_logits_equal_unfolded_ones_or_a_norm_stays(spec, x64):
    model = Host(norms.build(spec))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 2, 4)))
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), x))
    variables = drawn(shapes)
    plan = fusion.plan(model, variables)
    assert len(plan) == (0 if spec["name"] == "none" else 2)
    if by_batch(spec):
        foldable = hasattr(NORMS[spec["name"]].make, "inference_affine")
        assert {fold.reason == BATCH for fold in plan} == {foldable}
        assert all(fold.reason and not fold.into for fold in plan)
    folded, new = fusion.fold(model, variables)

    @jax.jit
    def both(x):
        pairs = (model, variables), (folded, new)
        return [m.apply(v, x, mutable=["batch_stats"])[0] for m, v in pairs]

    before, after = both(x)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12)


def test_what_folds_of_a_progressive_norm_is_what_its_second_norm_says(x64):
    x = jnp.zeros((1, 2, 2, 4))
    reasons = {}
    for inner in ("batch_norm", "evonorm_b0", "filled_batch_norm"):
        model = Host(norms.build("prepbn", decay_steps=0, batch_norm=inner))
        shapes = dict(jax.eval_shape(model.init, jax.random.key(0), x))
        plan = fusion.plan(model, drawn(shapes))
        reasons[inner] = {fold.reason for fold in plan}
    assert reasons == {
        "batch_norm": {""},
        "evonorm_b0": {FORMLESS},
        "filled_batch_norm": {FORMLESS},
    }
