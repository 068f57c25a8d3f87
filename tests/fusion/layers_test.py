"""Every layer of a transformer, folded and converted: exact, or reported or refused.

Which layers read and write the residual stream is what the layers say of themselves.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models
from normjax.core.errors import UserError
from normjax.mixers import MIXERS, SoftmaxAttention
from normjax.models.mlps import MLPS
from normjax.models.stems import STEMS
from tests.mixers.small import small as arguments_of
from tests.models.convolutions import random_variables

DIM = 8
TO = ("rms_norm", "crms_norm")
SMALL = {"sr_ratio": 2, "pool_size": 3}
STEM = {"patch_size": 2, "stride": 2, "kernel_size": 3}
SLOW = pytest.mark.slow

# In every placement the embedding of "peri" and what these say keep their norms.
NOTHING_WRITES = {"pooling", "identity", "raft", "ulsam"}
NOTHING_WRITES |= {"overlapping_spatial_reduction"}
NOTHING_READS = {*NOTHING_WRITES, "vig", "mix_shift", "group_mamba", "monarch"}
NOTHING_READS |= {"task_convolved", "locally_enhanced", "monarch_mlp"}
NOTHING_READS |= {"mixture_of_experts", "snnk"}
NOTHING_WRITES |= {"halo", "super_token", "monarch_mlp", "mixture_of_experts"}
INSIDE = {
    "aggregated": {"norm"},
    "aggregated_mixture_of_head": {"norm"},
    "ulsam": {"norm", "map_norm"},
    "overlapping_spatial_reduction": {"norm", "norm_out"},
    "squeezed_reduction": {"norm1"},
    "squeezed_stem": {"down/norm1"},
    "group_mamba": {"norm", *(f"scans/norm_{i}" for i in range(4))},
}
"""Norms inside that have no linear layer beside them."""
NORM_LAST = {"conv_norm", "conv_unit", "conv_pool", "conv_tokenizer"}
NORM_LAST |= {"conv_stack", "conv_units", "separable_conv"}
NORM_LAST |= {"squeezed_reduction", "squeezed_stem", "inverted_residual"}
NOTHING_READS |= {"super_token", "global_context", "inception"}
NOTHING_READS |= {"aggregated", "aggregated_mixture_of_head"}
NOTHING_READS |= {"factorization", "self_guided", "self_guided_hybrid", "forward_cross"}


def named(registry, name, **offered):
    fields = getattr(registry[name].make, "__dataclass_fields__", {})
    return {"name": name, **{k: v for k, v in offered.items() if k in fields}}


def layers():
    """(part of the model, its registry, key) of all that stands in a transformer."""
    for part, registry in (("mixer", MIXERS), ("mlp", MLPS), ("stem", STEMS)):
        for entry in registry:
            if entry.name != "patch_merge":  # makes a map of another one
                yield part, registry, entry.name


def small(**changes):
    stem = named(STEMS, "patch", **STEM)
    size = {"dim": DIM, "depth": 1, "num_heads": 2, "mlp_ratio": 1.5}
    return models.build("vit", **{"num_classes": 5, "stem": stem, **size, **changes})


def build(part, registry, name, **changes):
    changes = {"dim": 16 if name == "factorization" else DIM, **changes}
    if part == "mixer":
        spec = {"name": name, **arguments_of(name, **SMALL)}
        if "grid" not in registry[name].tags:
            changes["pool"] = "cls"
    else:
        spec = named(registry, name, **(STEM if part == "stem" else {}))
    return small(**{part: spec}, **changes)


def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)))


def variables_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    return random_variables(dict(shapes), np.float64)


def assert_same_logits(pairs, x):
    """Of the first (model, variables) and all others, in one program."""
    models, variables = zip(*pairs, strict=True)

    @jax.jit
    def logits(variables):
        return [m.apply(v, x) for m, v in zip(models, variables, strict=True)]

    expected, *others = (np.asarray(y) for y in logits(variables))
    assert 1e-3 < expected.std() < 1e3
    for actual in others:
        np.testing.assert_allclose(actual, expected, 0, 1e-10 * expected.std())


def converts(part, registry, name):
    """To both norms exactly; or nothing of it, in one line that names the layer."""
    model = build(part, registry, name, norm="layer_norm")
    variables = variables_of(model)
    if name in NOTHING_READS | NOTHING_WRITES | NORM_LAST:
        for to in TO:
            with pytest.raises(UserError, match=r"^cannot convert: (blocks_0|stem)"):
                fusion.convert_pre_norm(model, variables, to)
        return
    made = [fusion.convert_pre_norm(model, variables, to) for to in TO]
    pairs = [(model, variables), *((new.model, new.variables) for new in made)]
    assert_same_logits(pairs, images())


def folds(part, registry, name, placement):
    """Everything but what nothing linear reads or writes, which has its reason."""
    model = build(part, registry, name, norm="repbn", placement=placement)
    variables = variables_of(model)
    stays = {entry.path for entry in fusion.plan(model, variables) if entry.reason}
    kept = {"embed_norm"} if placement == "peri" else set()
    norm = "blocks_0/norm2" if part == "mlp" else "blocks_0/norm1"
    kept |= {norm} if name in NOTHING_READS else set()
    inside = {"stem": "stem"}.get(part, "blocks_0/mixer")
    kept |= {f"{inside}/{other}" for other in INSIDE.get(name, ())}
    if placement in ("sandwich", "peri") and name in NOTHING_WRITES:
        kept.add(f"{norm}_out")
    assert stays == kept
    assert_same_logits([(model, variables), fusion.fold(model, variables)], images())


QUICK = {"pattention", *NOTHING_READS, *NORM_LAST}
"""One of each kind, and what nothing is compiled for."""


FEW = ("pattention", "vig", "softmax", "window", "rala", "swiglu", "conv")
"""For the placements whose norms are some of those of "peri"."""


def over_layers(quick, chosen=lambda name: True):
    cases = [
        pytest.param(*case, id=case[2], marks=() if quick(case[2]) else SLOW)
        for case in layers()
        if chosen(case[2])
    ]
    return pytest.mark.parametrize(("part", "registry", "name"), cases)


@over_layers(lambda name: name in QUICK)
def test_every_layer_converts_exactly_or_is_named(part, registry, name, x64):
    converts(part, registry, name)


@over_layers(lambda name: name in FEW[:2])
def test_every_layer_folds_or_is_reported(part, registry, name, x64):
    folds(part, registry, name, "peri")


@over_layers(lambda name: name in FEW[:2], lambda name: name in FEW)
@pytest.mark.parametrize(
    "placement",
    ["sandwich", *(pytest.param(p, marks=SLOW) for p in ("pre", "scaled"))],
)
def test_layers_fold_in_every_placement(part, registry, name, placement, x64):
    folds(part, registry, name, placement)


class Foreign(nn.Module):
    """A mixer from elsewhere, which says nothing of itself."""

    dtype: object = None

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(x.shape[-1], name="last")(jnp.tanh(x))


class Changed(SoftmaxAttention):
    """A subclass whose last layer is not that of its base any more."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Dense(x.shape[-1], name="qkv")(x))
        return nn.Sequential([nn.Dense(x.shape[-1])], name="proj")(x)


@pytest.mark.parametrize(
    ("mixer", "message", "reason"),
    [
        (
            Foreign,
            "blocks_0/mixer is Foreign, whose output no linear layer writes",
            "no linear layer reads its output alone",
        ),
        (
            functools.partial(Changed, num_heads=2),
            "blocks_0/mixer/proj is no linear layer",
            "blocks_0/mixer/proj is no linear layer",
        ),
    ],
)
def test_layers_from_elsewhere_are_refused_and_reported(mixer, message, reason, x64):
    build = functools.partial(small, mixer=mixer)
    variables = variables_of(build(norm="layer_norm"))
    for to in TO:
        with pytest.raises(UserError, match=f"^cannot convert: {message}$"):
            fusion.convert_pre_norm(build(norm="layer_norm"), variables, to)
    model = build(norm="repbn", placement="sandwich")
    variables = variables_of(model)
    plan = {entry.path: entry.reason for entry in fusion.plan(model, variables)}
    assert plan["blocks_0/norm1_out"] == reason
    assert_same_logits([(model, variables), fusion.fold(model, variables)], images())


def test_scanned_layers_convert(x64):
    model = models.build(
        "decoder",
        vocab_size=7,
        dim=DIM,
        depth=2,
        num_heads=2,
        norm="layer_norm",
        mlp_hidden=12,
        scan_layers=True,
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 5)))
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), tokens))
    variables = random_variables(shapes, np.float64)
    new = fusion.convert_pre_norm(model, variables, "rms_norm")
    again = new.transform(variables)
    pairs = [(model, variables), (new.model, new.variables), (new.model, again)]
    assert_same_logits(pairs, tokens)
