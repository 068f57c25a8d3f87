"""One way to run a file: values, gradients and state, step by step.

Files of several steps have `x_t`, `dy_t`, `y_t`, `dx_t`, `dparam_*_t` and `state_*_t`
for each, `param_*` and `state0_*` before the first and `x_eval`, `y_eval` after the
last; the others have `x`, `dy`, `y`, `dx`, `param_*` and `dparam_*`.
"""

import dataclasses
import fnmatch
import functools
import inspect
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.collections import OVERWRITE, PARAMS
from tests.golden_adapters.compare import Tolerance, close
from tests.golden_adapters.translate import Layout, of

OTHERS = ("buffer_*", "*num_batches_tracked*")
"""What references keep and we do not: tables made of arguments, counters of batches."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What the arrays of a file are here, and the function that they belong to.

    A layout has an entry for what is ours, by its path in nested dicts: the names of
    the reference's arrays that it is made of and a function of them, which is linear,
    since it acts on gradients as well. Entries of which a file has nothing are left
    out of it.

    Attributes:
      apply: (variables, *inputs, train, **fixed) -> (outputs, new state); outputs are
        "y" or a dict. `train` is False for most files of one step.
      params: layout of the parameters.
      state: layout of the other collections; the first part of a path is one's name.
        The gradient of `_overwrite_with_gradient` is its next value.
      inputs: layout of what has gradients, in the order of the arguments.
      outputs: layout of the results that are compared where there are arrays for them.
      fixed: layout of the other arguments, such as masks.
      start: state that the reference does not keep.
      gradients: keys of the gradients of sum(output * d output), for each such output:
        those of inputs and of parameters. A cotangent that is not there is 1. Empty
        where there are only values.
      unused: patterns of keys that stand for nothing here.
      rounding: how much errors of the inputs grow, in units of the last place.
      train: whether a file of one step is one of training.
      kept: keys of the arrays of `state` before and after a step, with {} for the name.
    """

    apply: Callable
    params: Layout = FrozenDict()
    state: Layout = FrozenDict()
    inputs: Layout = FrozenDict(x=of("x"))
    outputs: Layout = FrozenDict(y=of("y"))
    fixed: Layout = FrozenDict()
    start: Mapping = FrozenDict()
    gradients: Mapping[str, tuple[str, str]] = FrozenDict(y=("d{}", "dparam_{}"))
    unused: tuple[str, ...] = ()
    rounding: float = 0.0
    train: bool = False
    kept: tuple[str, str] = ("state0_{}", "state_{}")


def applied(module: nn.Module) -> Callable:
    """The `apply` of a module."""
    trains = "train" in inspect.signature(type(module).__call__).parameters

    def apply(variables, *inputs, train, **fixed):
        states = [k for k in variables if k not in (PARAMS, OVERWRITE)]
        given = {**fixed, **({"train": train} if trains else {})}
        return module.apply(variables, *inputs, mutable=states, **given)

    return apply


def pure(function: Callable) -> Callable:
    """The `apply` of a function of parameters and inputs."""

    def apply(variables, *inputs, train, **fixed):
        del train
        return function(variables[PARAMS], *inputs, **fixed), {}

    return apply


def cast(tree, dtype: str):
    """The arrays on the device, those of floating numbers in `dtype`."""

    def typed(array):  # here, where nothing is compiled for it
        array = np.asarray(array)
        return array.astype(jnp.dtype(dtype)) if array.dtype.kind == "f" else array

    return jax.device_put(jax.tree.map(typed, tree))


class File:
    """The arrays of a file, which knows those that were asked for."""

    def __init__(self, data, unused):
        patterns = (*unused, *OTHERS)
        self.data = data
        self.unused = {k for p in patterns for k in fnmatch.filter(data, p)}
        self.used = set()

    def read(self, layout: Layout, *keys: str) -> dict[str, np.ndarray]:
        """What a layout has in this file.

        Args:
          keys: of arrays, with {} for the name; of several, the first that is there.
        """
        found = {}
        for path, (names, to_ours) in layout.items():
            for key in keys:
                theirs = [key.format(name) for name in names]
                if any(k in self.data for k in theirs):
                    found[path] = to_ours(*(self.data[k] for k in theirs))
                    self.used.update(theirs)
                    break
        return found

    def left(self) -> list[str]:
        """Keys that nobody asked for."""
        return sorted(self.data.keys() - self.used - self.unused)


def outputs_of(case: Case, train: bool, variables, inputs, fixed):
    """({name: output}, new state)."""
    outputs, new = case.apply(variables, *inputs, train=train, **fixed)
    return outputs if isinstance(outputs, dict) else {"y": outputs}, new


def step(case: Case, train: bool, variables, inputs, fixed, cotangents):
    """Outputs, the new state, and gradients for each output that has a cotangent."""
    if not case.gradients:
        return *outputs_of(case, train, variables, inputs, fixed), {}
    moved = {k: variables[k] for k in (PARAMS, OVERWRITE) if k in variables}

    def forward(moved, inputs):
        given = {**variables, **moved}
        outputs, new = outputs_of(case, train, given, inputs, fixed)
        return {k: outputs[k] for k in case.gradients}, (outputs, new)

    values, vjp, (outputs, new) = jax.vjp(forward, moved, inputs, has_aux=True)
    zeros = jax.tree.map(jnp.zeros_like, values)
    gradients = {}
    for k, value in values.items():
        cotangent = cotangents.get(k, jnp.ones_like(value)).astype(value.dtype)
        gradients[k] = vjp({**zeros, k: cotangent})
    if OVERWRITE in moved:
        new = {**new, OVERWRITE: gradients["y"][0][OVERWRITE]}
    return outputs, new, gradients


def compare_values(case, file, tolerance, outputs, new, suffix, state: str):
    """Outputs and the state after them; `state` is the key of its arrays."""
    layout = {k: case.outputs[k] for k in outputs}
    expected = file.read(layout, "{}" + suffix, "{}")
    missing = case.gradients.keys() & outputs.keys() - expected.keys()
    assert expected and not missing, f"nothing to compare with{suffix}: {missing}"
    for name, value in expected.items():
        close(f"{name}{suffix}", outputs[name], value, tolerance.value)
    new = flatten_dict(new, sep="/")
    for path, value in file.read(case.state, state).items():
        close(f"{path}{suffix}", new[path], value, tolerance.value)


def compare_gradients(case, file, tolerance, gradients, suffix):
    """Of inputs each by its size, of parameters by the largest of all.

    Where the gradients of a further output are 0, they are so but for the rounding of
    those of the first.
    """
    floor = 0.0
    for output, keys in case.gradients.items():
        (moved, dinputs), limit = gradients[output], tolerance.gradient
        dx, dparams = (
            file.read(layout, key + suffix)
            for layout, key in zip((case.inputs, case.params), keys, strict=True)
        )
        assert len(dx) == len(dinputs), f"no {keys[0]}{suffix} of some input"
        for (name, expected), ours in zip(dx.items(), dinputs, strict=True):
            close(f"d {output} / d {name}{suffix}", ours, expected, limit, floor)
        ours = flatten_dict(moved[PARAMS], sep="/")
        assert ours.keys() == dparams.keys(), (keys[1], ours.keys() ^ dparams.keys())
        sizes = [np.abs(d).max(initial=0.0) for d in dparams.values()]
        largest = floor if tolerance.each else max([floor, *sizes])
        for path, expected in dparams.items():
            name = f"d {output} / d {path}{suffix}"
            close(name, ours[path], expected, limit, largest)
        floor = floor or max((np.abs(d).max() for d in dx.values()), default=0.0)


def start_of(case: Case, file: File, dtype: str) -> dict:
    """The variables before the first step."""
    params = file.read(case.params, "param_{}")
    ours = sum(a.size for a in params.values())
    theirs = sum(file.data[k].size for k in file.used)
    assert ours == theirs, f"{ours} of {theirs} parameters"
    state = flatten_dict(case.start, sep="/") | file.read(case.state, case.kept[0])
    trees = {PARAMS: unflatten_dict(params, sep="/"), **unflatten_dict(state, sep="/")}
    return cast(trees, dtype)


def check(case: Case, data, meta, tolerance: Tolerance) -> None:
    """Assert that all arrays of a file agree, and that none was left out."""
    rounding = float(jnp.finfo(tolerance.dtype).eps) * case.rounding
    tolerance = dataclasses.replace(
        tolerance,
        value=max(tolerance.value, rounding),
        gradient=max(tolerance.gradient, rounding),
    )
    file, steps = File(data, case.unused), meta.get("steps")
    variables = start_of(case, file, tolerance.dtype)
    run = functools.partial(step, case, case.train or steps is not None)
    run = jax.jit(run) if case.gradients else run  # folds are not compiled

    def arguments(suffix):
        inputs = file.read(case.inputs, "{}" + suffix)
        fixed = file.read(case.fixed, "{}" + suffix, "{}")
        return cast((list(inputs.values()), fixed), tolerance.dtype)

    for suffix in [""] if steps is None else [f"_{t}" for t in range(steps)]:
        # A cotangent is called after our output.
        layout = {k: ((k,), case.outputs[k][1]) for k in case.gradients}
        cotangents = cast(file.read(layout, "d{}" + suffix), tolerance.dtype)
        outputs, new, gradients = run(variables, *arguments(suffix), cotangents)
        state = case.kept[1] + suffix
        compare_values(case, file, tolerance, outputs, new, suffix, state)
        compare_gradients(case, file, tolerance, gradients, suffix)
        variables = {**variables, **new}
    if any(key.endswith("_eval") for key in data):
        outputs, new = outputs_of(case, False, variables, *arguments("_eval"))
        state = "state_after_eval_{}"
        compare_values(case, file, tolerance, outputs, new, "_eval", state)
    assert not file.left(), f"nothing was compared with {file.left()}"
