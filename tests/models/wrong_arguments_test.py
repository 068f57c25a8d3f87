"""Every row of every registry x every argument x what is wrong with it.

Either a component that is built, initialised and called, or one line of UserError:
never a traceback of Python, JAX or Flax. Shapes alone are computed.
"""

import functools
import math
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from normjax import activations, mixers, models, norms, reparam
from normjax.activations import ACTIVATIONS
from normjax.core.arguments import field_names, required_names
from normjax.core.errors import UserError
from normjax.mixers import CORES, MIXERS, RELATIVE_BIASES
from normjax.models import MODELS
from normjax.models.mlps import MLPS
from normjax.models.stems import STEMS
from normjax.norms import NORMS
from normjax.reparam import REPARAMS
from tests.mixers.small import small as arguments_of

VALUES = ("x", -1, 0, 1, 7, -0.5, 2.5, math.nan, math.inf, None, True, [], (3, -1))
UNKNOWN = {"name": "nothing_such"}
ENOUGH = {"num_heads": 2, "hidden": 8, "dim": 8, "decay_steps": 5}
"""Values of required arguments; others get 3."""
FEW_CHANNELS = {"num_groups": 2, "group_size": 1, "sr_ratio": 1, "group_width": 2}
"""Arguments whose defaults ask for more channels or rows than the tests have."""
SMALL = {
    "depth": 1,
    "dim": 8,
    "num_heads": 2,
    "depths": (1, 1),
    "dims": (8, 8),
    "widths": (8, 8),
    "stages": ((1, 8, 1, 1),),
    "blocks": (("inside", "behind"),),
    "loops": 1,
    "image_tower": {"name": "vit", "dim": 8, "depth": 1, "num_heads": 2},
    "text_tower": {"name": "text_encoder", "dim": 8, "depth": 1, "num_heads": 2},
}
"""Arguments of models; `num_heads` of one with stages is a tuple."""
OUTSIDE_OF_A_MESH = "axis_name"
"""Names what only shard_map knows."""


def shaped(module, *inputs, **call):
    """Initialise and call in shapes alone."""
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}

    def run(*inputs):
        variables = module.init(keys, *inputs, **call)
        return module.apply(
            variables, *inputs, **call, mutable=True, rngs={"dropout": keys["dropout"]}
        )

    jax.eval_shape(run, *inputs)


def called(build, call, spec, entry):
    """A component that takes an input by itself."""
    shape = (2, 4, 4, 8) if "grid" in entry.tags else (2, 8, 8)
    shaped(build(spec)(), jnp.zeros(shape), **call)


HOST = {"activation": activations.build("gelu"), "norm": norms.build("layer_norm")}
"""What a model gives its components."""


def inside(part, call, spec, entry):
    """A component of a model."""
    given = {k: v for k, v in HOST.items() if k in field_names(entry.make)}
    shaped(part.factory(spec, **given)(), jnp.zeros((2, 32, 32, 8)), **call)


def core(spec, entry):
    q = jnp.zeros((2, 4, 4, 8))
    shaped(CORES.factory(spec)(), q, q, q)


def relative_bias(spec, entry):
    module = RELATIVE_BIASES.factory(spec, num_heads=2)()
    jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), 4, 4))


def whole(spec, entry):
    model = models.build(spec)
    tokens = jnp.zeros((2, 8), int)
    images = jnp.zeros((2, 32, 32, 3))
    if "vocab_size" not in field_names(entry.make):
        return shaped(model, images, train=True)
    if entry.name == "two_towers":
        return shaped(model, images, train=True, tokens=tokens)
    source = {"source": tokens} if entry.name == "encoder_decoder" else {}
    return shaped(model, tokens, train=True, **source)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(8, name="layer")(x)


def reparameterized(spec, entry):
    rule = {"pattern": "layer", **spec}
    shaped(reparam.reparameterize(Layer(), rule), jnp.zeros((2, 8)), train=True)


KINDS = {
    "norm": (NORMS, functools.partial(called, norms.build, {"train": True})),
    "mixer": (MIXERS, functools.partial(called, mixers.build, {"train": True})),
    "activation": (ACTIVATIONS, functools.partial(called, activations.build, {})),
    "mlp": (MLPS, functools.partial(inside, MLPS, {})),
    "stem": (STEMS, functools.partial(inside, STEMS, {"train": True})),
    "core": (CORES, core),
    "relative_bias": (RELATIVE_BIASES, relative_bias),
    "model": (MODELS, whole),
    "reparameterization": (REPARAMS, reparameterized),
}


def right(kind, entry):
    """A spec that is right, as small as it can be."""
    own = field_names(entry.make)
    required = [k for k in required_names(entry.make) if k not in HOST]
    given = {k: ENOUGH.get(k, 3) for k in required}
    if kind == "model":
        staged = "dims" in own and "num_heads" in own
        windows = {"name": "window", "window_size": 2}
        small = SMALL | ({"num_heads": (2, 2), "mixer": windows} if staged else {})
        given |= {k: v for k, v in small.items() if k in own}
    if kind == "mixer":
        given = arguments_of(entry.name, **given)
    given |= {
        k: v for k, v in FEW_CHANNELS.items() if k in own and kind != "relative_bias"
    }
    return {"name": entry.name, **given}


def wrong(kind, entry):
    """Specs in which one argument is misspelt, left out, or perhaps not allowed."""
    spec = right(kind, entry)
    yield {"name": f"{entry.name}x"}
    if kind == "model":  # the others are factories, which a model completes
        for name in spec.keys() & required_names(entry.make):
            yield {k: v for k, v in spec.items() if k != name}
    for name in field_names(entry.make):
        yield {**spec, f"{name}x": 1}
        if name != OUTSIDE_OF_A_MESH:
            for value in (*VALUES, UNKNOWN):
                yield {**spec, name: value}


def fault_of(run, spec, entry):
    """What comes of a spec besides a component and one line, or None."""
    try:
        run(spec, entry)
    except UserError as error:
        return "more than one line" if "\n" in str(error) else None
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return None


def sweep(kind, count=None):
    registry, run = KINDS[kind]
    specs = [(entry, spec) for entry in registry for spec in wrong(kind, entry)]
    if count is not None:
        specs = random.Random(0).sample(specs, min(count, len(specs)))
    faults = [
        f"{spec}: {fault}"
        for entry, spec in specs
        if (fault := fault_of(run, spec, entry)) is not None
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("kind", KINDS)
def test_some_wrong_arguments_are_one_line(kind):
    sweep(kind, 20 if kind == "model" else 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_wrong_arguments_are_one_line(kind):
    sweep(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_specs_are_right_before_something_is_wrong(kind):
    registry, run = KINDS[kind]
    entries = list(registry)[:: 4 if kind in ("norm", "mixer") else 1]
    for entry in entries:
        run(right(kind, entry), entry)


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="model 'vit' needs num_classes"):
        models.build("vit")
