"""Adversarial examples beside the clean ones, with norms of their own (ConAdv)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.collections import BATCH_STATS, PARAMS, TRAINING
from normjax.core.errors import UserError
from normjax.tasks import Attacked, Objective, Task, adversarial_examples
from normjax.train.rule import Rule, apart, check_whole
from normjax.train.state import of_model

STALE = "stale"
"""Parameters of the update before, in the memory."""


class ConcurrentAdversarial(Rule):
    """The mean loss of clean and of adversarial examples (ConAdv; Liu et al., 2022).

    The attack is one step by the parameters of the update before. Adversarial examples
    have statistics, scales and biases of their own in every norm with batch statistics,
    in which they are attacked, too; evaluation knows those of the clean ones alone.

    Args:
      config: of the run.  task: with its data.

    Raises:
      UserError: what does not go with it.
    """

    def __init__(self, config: Any, task: Task):
        check_whole("adversarial", config)
        self._fields, self._task = config.adversarial, task

    def objective(self, own):
        fields, epsilon = self._fields, self._fields.epsilon
        return Attacked(own, epsilon, fields.targeted, fields.noise)

    def model(self, model):
        epsilon, own = self._fields.epsilon, self._task.objective
        step = self._fields.step or epsilon
        return Attacking(model, own, epsilon, step, self._fields.targeted)

    def begin(self, variables):
        params = variables[PARAMS]
        return {**variables, PARAMS: {**params, TRAINING: _norms(variables)}}

    def memory(self, variables):
        if self._task.examples() is None:
            return None
        params = jax.tree.map(jnp.copy, variables[PARAMS])
        stats = jax.tree.map(jnp.copy, variables[BATCH_STATS])
        return {STALE: params, BATCH_STATS: stats}


def _norms(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the parameters of all norms with batch statistics.

    Raises:
      UserError: there are none.
    """
    stats: Any = flatten_dict(dict(variables.get(BATCH_STATS, {})))
    params: Any = flatten_dict(dict(variables[PARAMS]))
    modules = {path[:-1] for path in stats}
    found = {p: jnp.copy(x) for p, x in params.items() if p[:-1] in modules}
    if not stats:
        raise UserError(
            "config.adversarial needs norms with batch statistics, such as batch_norm"
        )
    if any(x.ndim != 1 for x in found.values()):
        raise UserError("config.adversarial takes no scanned layers")
    return unflatten_dict(found)


class Attacking(NamedTuple):
    """A model that gives (logits of clean, logits of adversarial examples).

    In its place wherever only `apply` is called.

    Attributes:
      model: anything with the `apply` of a Flax module.
      own: objective of its logits.
      epsilon, step, targeted: of `tasks.adversarial_examples`.
    """

    model: Any
    own: Objective
    epsilon: float
    step: float
    targeted: bool

    def apply(self, variables: dict[str, Any], x: Any, **arguments: Any) -> Any:
        """As `model.apply`, of images and what `tasks.Attacked` gives beside them."""
        attack, (memory, rest) = arguments.pop("attack"), apart(variables, arguments)
        params, stats = rest[PARAMS], {BATCH_STATS: memory[BATCH_STATS]}

        def loss(start):
            there = {**rest, PARAMS: _with_norms(memory[STALE]), **stats}
            logits, _ = self.model.apply(there, start, **arguments)
            return self.own.loss(logits, attack["targets"])[0]

        made = adversarial_examples(
            x,
            attack["start"],
            jax.grad(loss)(attack["start"]),
            epsilon=self.epsilon,
            step=self.step,
            targeted=self.targeted,
            low=attack["low"],
            high=attack["high"],
        )
        clean, new = self.model.apply(
            {**rest, PARAMS: of_model(params)}, x, **arguments
        )
        there = {**rest, PARAMS: _with_norms(params), **stats}
        adversarial, other = self.model.apply(there, made, **arguments)
        memory = {STALE: params, BATCH_STATS: other[BATCH_STATS]}
        return (clean, adversarial), {**new, TRAINING: memory}


def _with_norms(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the model, the norms being those of adversarial examples."""
    flat: Any = flatten_dict(dict(of_model(params)))
    return unflatten_dict({**flat, **flatten_dict(dict(params[TRAINING]))})
