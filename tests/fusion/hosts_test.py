"""Every host with every norm and reparameterization that folds, at random statistics.

Without `jax.jit`: operations are compiled once for all rows of a host.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models, reparam
from normjax.norms import NORMS

BOUNDS = {"float32": 1e-4, "float64": 1e-9}

IMAGES = {"images": (2, 8, 8, 3)}
TEXT = {"tokens": (2, 6)}
PAIRS = {**TEXT, "source": (2, 6)}
TRANSFORMER = {"dim": 8, "depth": 2, "num_heads": 2}
LANGUAGE = {"vocab_size": 11, "mlp_hidden": 12, **TRANSFORMER}
PYRAMID = {"depths": (1, 1), "dims": (8, 12), "num_heads": (2, 2), "mlp_ratio": 2.0}

HOSTS = {
    # name: (model, what the norms see, what it is called with)
    "vit": (
        {
            "name": "vit",
            **TRANSFORMER,
            "mlp_ratio": 2.0,
            "placement": "sandwich",
            "stem": {"name": "conv", "strides": (2, 1)},
            "num_classes": 5,
        },
        {"grid"},
        IMAGES,
    ),
    "pyramid": (
        {
            "name": "pyramid",
            **PYRAMID,
            "stem": {"name": "conv_norm", "kernel_size": 2, "stride": 2},
            "mixer": {"name": "window", "window_size": 2},
            "num_classes": 5,
        },
        {"grid"},
        IMAGES,
    ),
    "resnet": (
        {
            "name": "resnet",
            "depths": (1, 1),
            "widths": (4, 6),
            "block": "bottleneck",
            "num_classes": 5,
        },
        {"grid"},
        IMAGES,
    ),
    "mobilenet_v2": (
        {
            "name": "mobilenet_v2",
            "stages": ((1, 8, 1, 1), (2, 8, 2, 2)),
            "stem_width": 8,
            "last_width": 16,
            "num_classes": 5,
        },
        {"grid"},
        IMAGES,
    ),
    "decoder": ({"name": "decoder", **LANGUAGE}, {"seq", "causal"}, TEXT),
    "encoder_decoder": (
        {"name": "encoder_decoder", **LANGUAGE},
        {"seq", "causal"},
        PAIRS,
    ),
}

NEEDED = {"decay_steps": 3, "num_tasks": 2}
"""Arguments without a default. Counters stand at 3: the decay is at its end."""

RULES = {
    # A part of the layers: units of variance 1 make the signal grow by sqrt(fan-in).
    "weight_standardization": "fc1|unit_0/conv|expand/conv",
    "scaled_weight_standardization": "",
    "sigma_reparam": "",
    "scale_and_shift": "",
}


def rows():
    """(title, norm, its tags, rules): norms affine at evaluation, and weights."""
    for entry in NORMS:
        if hasattr(entry.make, "inference_affine"):
            fields = entry.make.__dataclass_fields__
            given = {k: v for k, v in NEEDED.items() if k in fields}
            given |= {"num_groups": 0} if "num_groups" in fields else {}
            yield entry.name, {"name": entry.name, **given}, entry.tags, ()
    for name, pattern in RULES.items():
        rules = ({"pattern": pattern, "name": name},)
        yield name, {"name": "batch_norm"}, NORMS["batch_norm"].tags, rules


def build(host, norm, rules):
    model = models.build({**HOSTS[host][0], "norm": norm})
    return reparam.reparameterize(model, rules)


def inputs_of(host, dtype):
    rng = np.random.default_rng(1)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        if name == "images"
        else jnp.asarray(rng.integers(0, 11, shape))
        for name, shape in HOSTS[host][2].items()
    }


def random_variables(model, inputs, dtype):
    """Parameters and statistics that are nowhere 0 or 1; counters at 3."""
    (x, *_), known = inputs.values(), dict(list(inputs.items())[1:])
    init = functools.partial(model.init, train=False, **known)
    shapes = dict(jax.eval_shape(init, jax.random.key(0), x))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if leaf.dtype.kind != "f":
            return jnp.full(leaf.shape, 3, leaf.dtype)
        if name in ("var", "phi", "scale", "alpha", "gamma", "ssf_scale"):
            return jnp.asarray(rng.uniform(0.5, 0.9, leaf.shape), dtype)
        fan_in = leaf.size / leaf.shape[-1] if leaf.ndim > 1 else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(2 * fan_in), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def difference(host, norm, rules, dtype):
    """Largest of a logit, in their standard deviations."""
    inputs = inputs_of(host, dtype)
    model = build(host, norm, rules)
    variables = random_variables(model, inputs, dtype)
    folded, merged = fusion.fold(model, variables)
    assert not [e for e in fusion.plan(model, variables) if e.reason]
    assert merged.keys() == {"params"}
    assert fusion.fold(folded, merged)[0] is folded
    x, *_ = inputs.values()
    known = {**dict(list(inputs.items())[1:]), "train": False}
    before, after = (
        np.asarray(m.apply(v, x, **known))
        for m, v in ((model, variables), (folded, merged))
    )
    assert before.dtype == dtype and 1e-3 < before.std() < 1e6
    return np.abs(before - after).max() / before.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("host", HOSTS)
def test_logits_of_the_folded_model(host, dtype):
    """Prints the largest difference of each row (pytest -s)."""
    _, layouts, _ = HOSTS[host]
    found = {}
    with jax.enable_x64(dtype == "float64"):
        for name, norm, tags, rules in rows():
            if layouts <= tags:
                found[name] = difference(host, norm, rules, np.dtype(dtype))
    print(f"\n{host} {dtype}: " + ", ".join(f"{n} {d:.1e}" for n, d in found.items()))
    assert len(found) >= 9
    assert max(found.values()) < BOUNDS[dtype], found


def test_what_stays_of_a_power_norm():
    """Its group scaling, where a layer reads the norm; all of it where none does."""
    norm, inputs = {"name": "power_norm", "num_groups": 2}, inputs_of("vit", np.float32)
    stem = {"name": "patch", "patch_size": 4}
    model = models.build({**HOSTS["vit"][0], "norm": norm, "depth": 1, "stem": stem})
    variables = random_variables(model, inputs, np.float32)
    plan = {entry.path: entry for entry in fusion.plan(model, variables)}
    assert plan["blocks_0/norm1"].into == ("blocks_0/mixer/qkv",)
    assert plan["blocks_0/norm1"].remains == "GroupScale"
    assert plan["blocks_0/norm1_out"].reason == (
        "its affine part comes behind another part"
    )
    folded, merged = fusion.fold(model, variables)
    assert "norm1" not in merged["params"]["blocks_0"]
    assert merged["params"]["blocks_0"].keys() & variables["batch_stats"]["blocks_0"]
    again, same = fusion.fold(folded, merged)
    assert again is folded and same == merged
    x = inputs["images"]
    before, after = model.apply(variables, x), folded.apply(merged, x)
    assert np.abs(after - before).max() / before.std() < 1e-4
