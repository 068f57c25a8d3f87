"""Each array of a file counts; oracle: a function and its gradients by hand."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import golden_test
from tests.golden_adapters import runner_of
from tests.golden_adapters.compare import Tolerance
from tests.golden_adapters.run import Case, check
from tests.golden_adapters.translate import flat, of, ordered

TIGHT = Tolerance("float64", 1e-9, 1e-9)
pytestmark = pytest.mark.usefixtures("x64")


def apply(variables, x, *, train, mask):
    """y = w x mask + b + n, in training a loss sum(w**2) / 2, and n + mean(x)."""
    w, b = (variables["params"][k] for k in ("inner", "b"))
    w, b, n = w["w"].reshape(1, 1, -1), b.reshape(1, 1, -1), variables["held"]["n"]
    outputs = {"y": w * x * mask + b + n}
    if train:
        outputs["loss"] = (w**2).sum() / 2
    return outputs, {"held": {"n": n + x.mean()}}


SWAPPED = ordered("B C L", "B L C")
CASE = Case(
    apply,
    {"inner/w": flat("weight"), "b": of("bias"), "absent": of("absent")},
    {"held/n": of("count")},
    {"x": of("x", to=SWAPPED)},
    {"y": of("y", to=SWAPPED), "loss": of("loss")},
    {"mask": of("mask", to=SWAPPED)},
    gradients={"y": ("d{}", "dparam_{}"), "loss": ("d{}_loss", "dparam_loss_{}")},
    unused=("note_*",),
)


def arrays(steps=2):
    """A file [B, C, L] of two steps and its meta."""
    normal = np.random.default_rng(0).standard_normal
    w, b, n = normal((1, 3, 1)), normal(3), np.float64(0.25)
    data = {"param_weight": w, "param_bias": b, "state0_count": n, "note_seed": w}
    for suffix in [f"_{t}" for t in range(steps)]:
        x, dy, mask = normal((2, 3, 4)), normal((2, 3, 4)), normal((2, 1, 4)) > -1
        y, n = w * x * mask + b[:, None] + n, n + x.mean()
        of_y = {"dx": w * dy * mask, "dparam_bias": dy.sum((0, 2))}
        of_y["dparam_weight"] = (dy * x * mask).sum((0, 2)).reshape(w.shape)
        of_loss = {"dx_loss": 0 * x, "dparam_loss_weight": w, "dparam_loss_bias": 0 * b}
        step = {"x": x, "dy": dy, "mask": mask, "y": y, "state_count": n} | of_y
        step |= {"loss": (w**2).sum() / 2} | of_loss
        data |= {k + suffix: v for k, v in step.items()}
    y_eval = w * x * mask + b[:, None] + n
    data |= {"x_eval": x, "mask_eval": mask, "y_eval": y_eval}
    return data | {"state_after_eval_count": n + x.mean()}, {"steps": steps}


def changed(**more):
    return dataclasses.replace(CASE, **more)


def test_what_agrees_passes_and_is_compiled_once():
    train = []

    def counted(variables, x, **given):
        train.append(given["train"])
        return apply(variables, x, **given)

    check(changed(apply=counted), *arrays(), TIGHT)
    assert train == [True, False]


def test_a_file_of_one_step():
    data = {
        k.removesuffix("_0"): v for k, v in arrays(1)[0].items() if "_eval" not in k
    }
    case = changed(
        apply=lambda *inputs, train, mask: apply(*inputs, train=True, mask=mask)
    )
    check(case, data, {}, TIGHT)
    for key in ("y", "dx", "dparam_weight", "loss"):
        with jax.disable_jit(), pytest.raises(AssertionError):
            check(case, data | {key: -data[key]}, {}, TIGHT)


COUNTS = [key for key in arrays()[0] if key != "note_seed"]


@pytest.mark.parametrize("key", COUNTS)
def test_each_array_counts(key):
    data, meta = arrays()
    wrong = ~data[key] if data[key].dtype == bool else data[key] + 1e-3
    with jax.disable_jit(), pytest.raises(AssertionError):
        check(CASE, data | {key: wrong}, meta, TIGHT)


@pytest.mark.parametrize(
    "key", [k for k in COUNTS if k.startswith(("y", "dx", "dpar"))]
)
def test_no_result_may_be_missing(key):
    data, meta = arrays()
    with jax.disable_jit(), pytest.raises(AssertionError):
        check(CASE, {k: v for k, v in data.items() if k != key}, meta, TIGHT)


@pytest.mark.parametrize(
    "params,more,message",
    [
        ({}, "dparam_other_1", "nothing was compared with .'dparam_other_1"),
        ({}, "param_other", "nothing was compared with .'param_other"),
        ({}, "state_other_0", "nothing was compared with .'state_other_0"),
        ({}, "y_2", "nothing was compared with .'y_2"),
        ({"b": of("weight")}, "note_b", "6 of 3 parameters"),
        ({"b": of("bias", to=lambda b: b[:2])}, "note_b", "5 of 6 parameters"),
    ],
)
def test_an_array_that_nothing_reads_is_an_error(params, more, message):
    data, meta = arrays()
    case = changed(params={**CASE.params, **params})
    with jax.disable_jit(), pytest.raises(AssertionError, match=message):
        check(case, data | {more: np.ones(3)}, meta, TIGHT)


def test_a_parameter_that_does_nothing_is_an_error():
    def constant(variables, x, **given):
        bias = jax.lax.stop_gradient(variables["params"]["b"])
        params = {**variables["params"], "b": bias}
        return apply({**variables, "params": params}, x, **given)

    with jax.disable_jit(), pytest.raises(AssertionError, match="d y / d b_0: "):
        check(changed(apply=constant), *arrays(), TIGHT)


def test_gradients_of_parameters_are_measured_by_the_largest_or_each_by_its_own():
    data, meta = arrays()
    sizes = {k: np.abs(data[k]).max() for k in ("dparam_bias_0", "dparam_weight_0")}
    smallest = min(sizes, key=sizes.get)
    data[smallest] = data[smallest] + 1e-3 * max(sizes.values())
    coarse = Tolerance("float64", 1e-9, 1.01e-3)
    with jax.disable_jit():
        check(CASE, data, meta, coarse)
        with pytest.raises(AssertionError, match="d y / d "):
            check(CASE, data, meta, dataclasses.replace(coarse, each=True))


def test_types_that_were_asked_for_are_fast_but_for_whole_models():
    marks = functools.partial(golden_test.marks_of, runner=runner_of, dtype="float32")
    assert marks({"variant": "rmsnorm"}, asked=None) == pytest.mark.slow
    assert marks({"variant": "rmsnorm"}, asked="float32") == ()
    assert marks({"family": "swin"}, asked="float32") == pytest.mark.slow
