"""Rows that fill a batch reach no example: every norm and mixer, in their hosts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from normjax import models, norms
from normjax.devices import mesh
from normjax.mixers import MIXERS
from normjax.norms import NORMS
from normjax.train.experiment import build_experiment
from normjax.train.programs import jit_eval_step
from tests.mixers.contracts_test import FIRST_ROWS as MIXER_ROWS
from tests.norms.contracts_test import FIRST_ROWS as NORM_ROWS

REAL, FILLER = 3, 2
VIT = {
    **{"dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0, "num_classes": 3},
    "stem": {"name": "patch", "patch_size": 2},
}
RESNET = {
    **{"depths": (1,), "widths": (6,), "num_classes": 3},
    "stem": {"name": "conv_unit", "stride": 1},
}
DECODER = {"vocab_size": 11, "dim": 8, "depth": 1, "num_heads": 2, "mlp_hidden": 8}
HOSTS = {"resnet": RESNET, "vit": VIT, "decoder": DECODER}
KNOWN = {"num_heads", "causal", "layer", "num_layers"}  # the host says what they are


ONE_OF_A_KIND = (
    *("layer_norm", "batch_norm", "prepbn", "ghost_batch_norm", "filled_batch_norm"),
    *("evonorm_b0", "power_norm", "region_norm"),
)
"""Of norms: what they evaluate by."""


FITTING = {
    "factorization": {"num_heads": 1, "sr_ratio": 1},
    "monarch": {"max_length": 16},
}
"""What mixers need for the few channels and the 16 positions of the hosts."""


def spec(row):
    given = {k: v for k, v in row.kwargs.items() if k not in KNOWN}
    return {"name": row.name, **given, **FITTING.get(row.name, {})}


def hosts():
    """Every norm and mixer in each host that takes it; fast: norms of each kind."""
    slow = pytest.mark.slow
    for kind, rows, registry in (
        ("norm", NORM_ROWS, NORMS),
        ("mixer", MIXER_ROWS, MIXERS),
    ):
        fits = HOSTS if kind == "norm" else {k: HOSTS[k] for k in ("vit", "decoder")}
        for host, fields in fits.items():
            for row in rows:
                if host == "decoder" and "causal" not in registry[row.name].tags:
                    continue
                fast = host == "resnet" and row.name in ONE_OF_A_KIND
                marks = () if fast else slow
                given = {kind: spec(row)}
                if host == "vit" and "grid" not in registry[row.name].tags:
                    given["pool"] = "cls"
                name = f"{host}-{row}"
                yield pytest.param(host, fields, given, id=name, marks=marks)


def asked(model, x):
    """Shapes of the variables, and whether any of the model's modules reads the batch.

    As `Experiment` asks.
    """
    found = []

    def ask(call, args, kwargs, context):
        found.append(norms.reads_batch(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(ask):
        init = functools.partial(model.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), x)
    return shapes, any(found)


@pytest.mark.parametrize(("host", "fields", "given"), list(hosts()))
def test_filler_reaches_no_example_or_is_left_out(host, fields, given):
    """Unless the model says that its rows meet."""
    rng = np.random.default_rng(0)
    if host == "decoder":
        x = rng.integers(1, 11, (REAL + FILLER, 8)).astype(np.int32)
    else:
        x = rng.normal(size=(REAL + FILLER, 8, 8, 3)).astype(np.float32)
        x[REAL:] *= 1e3
    blank = x.copy()
    blank[REAL:] = 0
    batches = x, blank
    model = models.build(host, **{**fields, **given})
    shapes, reads_batch = asked(model, x[:1])

    def draw(leaf):
        values = rng.uniform(0.2, 0.8, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    apply = jax.jit(functools.partial(model.apply, train=False))
    one, other = (apply(variables, batch)[:REAL] for batch in batches)
    assert np.isfinite(one).all()
    equal = np.allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(one).max())
    assert equal != reads_batch


READERS = [
    {"name": "batch_norm", "use_running_average": False},
    pytest.param({"name": "region_norm"}, marks=pytest.mark.slow),
    pytest.param({"name": "region_norm_learnable"}, marks=pytest.mark.slow),
    pytest.param({"name": "poincare_batch_norm"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("norm", READERS, ids=str)
def test_batches_of_models_whose_rows_meet_hold_real_rows_only(norm):
    """1,437 images in batches of 720: 717 in the second, which four devices cannot
    share."""
    config = digits.get_config("model=resnet")
    config.batch_size, config.model.norm = 720, norm
    config.model.update(depths=(1,), widths=(4,))
    experiment = build_experiment(config)
    assert experiment.reads_batch
    variables = experiment.create_state().eval_variables()
    batches = list(experiment.eval_batches("train"))
    assert [len(b["label"]) for b in batches] == [720, 717]
    assert all(b["mask"].all() for b in batches)
    scores = experiment.evaluate(jit_eval_step(experiment), variables, "train")
    apply = jax.jit(
        functools.partial(experiment.model.apply, train=False, mutable=["batch_stats"])
    )
    losses = []
    for batch in batches:
        images = np.asarray(batch["image"], np.float32) / 255 * 2 - 1
        logits, _ = apply(variables, images)
        label = np.asarray(batch["label"])
        losses.append(-jax.nn.log_softmax(logits)[np.arange(len(label)), label])
    assert scores["nll"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)


def test_rows_in_the_middle_are_left_out():
    """As of examples that others stand in for."""
    devices = mesh.device_mesh(jax.devices())
    rows, kept = np.arange(16), np.arange(16) % 3 > 0
    (batch,) = mesh.to_devices([{"x": rows}], devices, keep=lambda batch: kept)
    np.testing.assert_array_equal(batch["x"], rows[kept])
