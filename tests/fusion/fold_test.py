"""Folded models give the logits of unfolded ones; formulas written out in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models, norms
from normjax.core.folding import FoldSite

PREPBN = {"name": "prepbn", "decay_steps": 3}
PATCH = {"name": "patch", "patch_size": 2}
CONV = {"name": "conv", "strides": (2, 1)}

# A pairwise cover of norm, mixer, pool, placement, stem and bias.
CASES = [
    (PREPBN, "sla", "mean", "pre", CONV, True),
    ("repbn", "softmax", "cls", "pre", PATCH, False),
    ("batch_norm", "sla", "mean", "sandwich", PATCH, False),
    (PREPBN, "softmax", "cls", "sandwich", CONV, True),
    ("repbn", "sla", "mean", "peri", CONV, False),
    ("batch_norm", "softmax", "cls", "peri", PATCH, True),
    ("batch_norm", "softmax", "mean", "post", CONV, False),
    (PREPBN, "sla", "mean", "scaled", PATCH, False),
    ("repbn", "softmax", "cls", "scaled", CONV, True),
    ("batch_norm", "sla", "mean", "scaled", CONV, True),
    ("repbn", "softmax", "cls", "mix", PATCH, True),
]


def cover(cases):
    plain = [[v["name"] if isinstance(v, dict) else v for v in case] for case in cases]
    names = ["-".join(map(str, case)) for case in plain]
    fields = ("norm", "mixer", "pool", "placement", "stem", "bias")
    return pytest.mark.parametrize(fields, cases, ids=names)


COVER = cover(CASES)


def build(
    norm, mixer="softmax", pool="mean", placement="pre", stem=PATCH, bias=True, **kw
):
    mixer = {"name": mixer, "qkv_bias": bias}
    arguments = {"dim": 8, "depth": 4, "num_heads": 2, "mlp_ratio": 1.0, **kw}
    return models.build(
        "vit",
        num_classes=5,
        norm=norm,
        mixer=mixer,
        pool=pool,
        placement=placement,
        stem=stem,
        **arguments,
    )


def random_variables(model, dtype=np.float32):
    """Parameters and statistics that are nowhere 0 or 1; counters at 3."""
    variables = jax.eval_shape(model.init, jax.random.key(0), images(dtype))
    rng = np.random.default_rng(0)

    def draw(path, x):
        if x.dtype == jnp.int32:
            return jnp.int32(3)
        fan_in = x.size / x.shape[-1] if x.ndim > 1 else 1
        value = 0.3 * rng.normal(size=x.shape) / np.sqrt(fan_in)
        if path[-1].key in ("var", "scale", "alpha"):
            value = rng.uniform(0.3, 0.8, x.shape)
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(draw, dict(variables))


def images(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 4, 1)), dtype)


def logits(model, variables, dtype=np.float32):
    apply = jax.jit(functools.partial(model.apply, train=False))
    return np.asarray(apply(variables, images(dtype)))


def largest_difference(model, variables, dtype):
    folded = fusion.fold(model, variables)
    before, after = logits(model, variables, dtype), logits(*folded, dtype)
    assert 1e-3 < before.std() < 1e2
    return np.abs(before - after).max() / before.std()


@COVER
def test_same_logits_in_float64(norm, mixer, pool, placement, stem, bias, x64):
    model = build(norm, mixer, pool, placement, stem, bias)
    variables = random_variables(model, np.float64)
    assert largest_difference(model, variables, np.float64) < 1e-9


@cover(CASES[:1])
def test_same_logits_in_float32(norm, mixer, pool, placement, stem, bias):
    model = build(norm, mixer, pool, placement, stem, bias)
    assert largest_difference(model, random_variables(model), np.float32) < 1e-4


@COVER
def test_plan_names_every_norm(norm, mixer, pool, placement, stem, bias):
    model = build(norm, mixer, pool, placement, stem, bias)
    variables = random_variables(model)
    plan = {entry.path: entry for entry in fusion.plan(model, variables)}
    leaves = jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
    names = ["/".join(k.key for k in p) for p, _ in leaves if p[-1].key == "mean"]
    paths = {n.removesuffix("/mean").removesuffix("/batch_norm") for n in names}
    assert set(plan) == paths
    stays = {path for path, entry in plan.items() if entry.reason}
    for path in stays:
        assert plan[path].into == ()
        assert plan[path].reason == "its output is the residual stream"
    in_stream = {"post": 8, "mix": 2, "peri": 1}.get(placement, 0)
    assert len(stays) == in_stream
    _, folded = fusion.fold(model, variables)
    assert ("batch_stats" in folded) == bool(stays)


def test_where_the_norms_of_a_model_go():
    model = build("repbn", placement="sandwich", stem=CONV, depth=1)
    plan = fusion.plan(model, random_variables(model))
    assert {entry.path: entry.into for entry in plan} == {
        "stem/norm_0": ("stem/conv_0",),
        "blocks_0/norm1": ("blocks_0/mixer/qkv",),
        "blocks_0/norm1_out": ("blocks_0/mixer/proj",),
        "blocks_0/norm2": ("blocks_0/mlp/fc1",),
        "blocks_0/norm2_out": ("blocks_0/mlp/fc2",),
        "norm": ("head",),
    }


def test_layer_norms_stay_with_a_reason():
    model = build("layer_norm")
    variables = random_variables(model)
    plan = fusion.plan(model, variables)
    assert len(plan) == 9
    assert {entry.norm for entry in plan} == {"LayerNorm"}
    assert all("from the input at evaluation" in entry.reason for entry in plan)
    folded, same = fusion.fold(model, variables)
    assert folded is model and same == variables


def test_a_mixture_at_evaluation_has_no_affine_form_before_the_end_of_the_decay():
    model = build({**PREPBN, "eval_mix": "current", "decay_steps": 4})
    variables = random_variables(model)
    plan = fusion.plan(model, variables)
    assert {entry.reason for entry in plan} == {
        "has no affine form as it is configured before step 4"
    }
    assert fusion.fold(model, variables)[0] is model
    at_the_end = model.clone(norm=norms.build({**PREPBN, "eval_mix": "current"}))
    assert not [entry for entry in fusion.plan(at_the_end, variables) if entry.reason]
    assert largest_difference(at_the_end, variables, np.float32) < 1e-4


def test_folding_before_the_end_of_the_decay_warns():
    """The counters stand at 3; the step of the warning is the first without one."""
    for decay, warmup in ((4, 0), (1, 3), (7, 2)):
        schedule = {"name": "prepbn", "decay_steps": decay, "warmup_steps": warmup}
        model = build(schedule, depth=1)
        variables = random_variables(model)
        end = decay + warmup
        assert {entry.decay for entry in fusion.plan(model, variables)} == {(3, end)}
        text = rf"PRepBN is at step 3 .* in 3 norms .* exact from step {end} on"
        with pytest.warns(fusion.UnfinishedDecay, match=text):
            folded, merged = fusion.fold(model, variables)
        assert merged.keys() == {"params"}
        # What it warns about: folded is what the model is at evaluation anyway.
        x = images()
        np.testing.assert_allclose(
            folded.apply(merged, x), model.apply(variables, x), rtol=0, atol=1e-5
        )


def test_sizes_by_hand():
    """One convolution of patches, four linear layers and a head, on four tokens."""
    model = build("batch_norm", pool="mean", depth=1)
    variables = random_variables(model)
    x = images()[:1]
    before = fusion.size_of(model, variables, x)
    after = fusion.size_of(*fusion.fold(model, variables), x)
    dim, tokens, classes = 8, 4, 5
    matrices = {"stem": 4 * dim, "qkv": 3 * dim**2, "proj": dim**2, "mlp": 2 * dim**2}
    biases, table = dim + 3 * dim + dim + 2 * dim, tokens * dim
    head = dim * classes + classes
    assert after.parameters == sum(matrices.values()) + biases + table + head
    assert before.parameters == after.parameters + 3 * 2 * dim
    assert (before.state, after.state) == (3 * 2 * dim, 0)
    attention = 2 * tokens**2 * dim
    # The mean over the tokens and the table of positions are written as products.
    expected = tokens * sum(matrices.values()) + attention + dim * classes
    expected += 2 * tokens * dim
    assert before.multiply_adds == after.multiply_adds == expected
    # Subtract, multiply by the root, by the scale, add: of every number, in each norm.
    saved = before.operations - after.operations
    assert 3 * 4 * tokens * dim <= saved <= 3 * 4 * (tokens + 1) * dim


def test_no_norm_needs_no_folding():
    model = build("none")
    assert fusion.plan(model, random_variables(model)) == []


@pytest.mark.parametrize("placement", ["pre", "mix"])
def test_folding_twice_changes_nothing(placement):
    model = build(PREPBN, placement=placement)
    folded, variables = fusion.fold(model, random_variables(model))
    again, same = fusion.fold(folded, variables)
    assert again is folded
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, same, variables))


def test_a_projection_without_bias_gets_one():
    model = build("repbn", bias=False)
    variables = random_variables(model)
    assert "bias" not in variables["params"]["blocks_0"]["mixer"]["qkv"]
    folded, new = fusion.fold(model, variables)
    assert new["params"]["blocks_0"]["mixer"]["qkv"]["bias"].shape == (24,)
    assert folded.biased == {f"blocks_{i}/mixer/qkv" for i in range(4)}


def test_the_input_is_left_as_it_was():
    model = build("repbn", stem=CONV)
    variables = random_variables(model)
    before = jax.tree.map(np.array, variables)
    fusion.fold(model, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


@pytest.mark.parametrize("remat", [False, True])
def test_folded_models_work_under_jit_in_bfloat16_and_with_remat(remat):
    model = build("repbn", bias=False, dtype=jnp.bfloat16, remat=remat, depth=1)
    variables = random_variables(model)
    folded, new = fusion.fold(model, variables)
    run = jax.jit(lambda v, x: folded.apply(v, x, train=False))
    after, before = run(new, images()), logits(model, variables)
    assert after.dtype == jnp.float32
    assert np.abs(after - before).max() / before.std() < 0.1


class Chain(nn.Module):
    """writer -> norm_a -> reader_b with a factor; the smallest model that folds."""

    norm: object
    factor: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3, name="writer")(x)
        x = self.norm(name="out")(x, train=train)
        x = nn.tanh(x)
        x = self.norm(name="in")(x, train=train)
        return nn.Dense(2, use_bias=False, name="reader")(x * self.factor)

    @nn.nowrap
    def fold_sites(self):
        norm = self.norm(parent=None)
        return [
            FoldSite("out", norm, writer="writer"),
            FoldSite("in", norm, readers=("reader",), scale=self.factor),
        ]


def test_closed_form_of_a_writer_and_a_reader():
    """RepBN is y = alpha x + (x - m) / sqrt(v + eps) g + b."""
    from normjax import norms

    model = Chain(norms.build("repbn", epsilon=0.1))
    x = jnp.ones((2, 4))
    rng, shapes = (
        np.random.default_rng(0),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.uniform(0.5, 2, s.shape), jnp.float32), dict(shapes)
    )
    _, folded = fusion.fold(model, variables)
    assert set(folded) == {"params"}
    assert set(folded["params"]) == {"writer", "reader"}
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), variables)

    def affine(name):
        own, stats = p["params"][name], p["batch_stats"][name]
        slope = own["scale"] / np.sqrt(stats["var"] + 0.1)
        return slope + own["alpha"], own["bias"] - stats["mean"] * slope

    a, c = affine("out")
    writer, reader = p["params"]["writer"], p["params"]["reader"]
    np.testing.assert_allclose(
        folded["params"]["writer"]["kernel"], writer["kernel"] * a, rtol=1e-6
    )
    np.testing.assert_allclose(
        folded["params"]["writer"]["bias"], a * writer["bias"] + c, rtol=1e-6
    )
    a, c = affine("in")
    np.testing.assert_allclose(
        folded["params"]["reader"]["kernel"], a[:, None] * reader["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(
        folded["params"]["reader"]["bias"], 0.5 * c @ reader["kernel"], rtol=1e-6
    )


def test_a_model_that_tells_nothing():
    with pytest.raises(ValueError, match="Dense does not say where its norms sit"):
        fusion.fold(nn.Dense(3), {"params": {}})
