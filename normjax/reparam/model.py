"""A model whose layers are reparameterized, without the model knowing."""

import inspect
from typing import Any

import flax.linen as nn

from normjax.core.broadcast import add_bias
from normjax.core.collections import PARAMS, SPECTRAL_STATS
from normjax.core.errors import UserError
from normjax.core.scanned import scanned_of
from normjax.reparam.base import BIAS
from normjax.reparam.rules import Rule, Variables, attach, effective, rules_of


def reparameterize(model: nn.Module, spec: Any) -> nn.Module:
    """`model` with its layers reparameterized; `model` itself if there are no rules.

    Args:
      model: any Flax module; it takes `train` if a reparameterization has a state.
      spec: as of `rules_of`.

    Returns:
      A `Reparameterized` model with the arguments and the result of `model`.

    Raises:
      UserError: as `rules_of`.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import reparam
      >>> rule = {"pattern": "", "name": "weight_normalization"}
      >>> model = reparam.reparameterize(nn.Dense(3), rule)
      >>> x = jax.random.normal(jax.random.key(0), (2, 8))
      >>> y, variables = model.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((2, 3), ['bias', 'gain', 'kernel'])
    """
    rules = rules_of(spec, scanned_of(model))
    return Reparameterized(model, rules) if rules else model


class Reparameterized(nn.Module):
    """A model that computes with effective weights made of its raw ones.

    Has the arguments, the result and the variables of `host`, and beside them the own
    parameters of its reparameterizations and their state in `spectral_stats`. Effective
    weights are made once a call, outside of what the host rematerialises. The state
    moves in calls with train=True and in no others.

    Attributes:
      host: any Flax module; it takes `train` if a reparameterization has a state.
      rules: which layers, and how; see `rules.sites`.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import reparam
      >>> rule = {"pattern": "layers", "name": "weight_normalization"}
      >>> rules = reparam.rules_of(rule)
      >>> model = reparam.Reparameterized(nn.Sequential([nn.Dense(3)]), rules)
      >>> x = jax.random.normal(jax.random.key(0), (2, 8))
      >>> y, variables = model.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"]["layers_0"])
      ((2, 3), ['bias', 'gain', 'kernel'])
    """

    host: nn.Module
    rules: tuple[Rule, ...]

    @property
    def scanned(self) -> tuple[str, ...]:
        """As `host`, see `core.scanned`."""
        return scanned_of(self.host)

    def setup(self):
        nn.share_scope(self, self.host)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `host`.

        Raises:
          UserError: a rule finds no layer; a layer lacks its own parameters or state;
            there is a state, and `train` was not said.
        """
        if self.is_initializing():
            self.host(*args, **kwargs)
            self._store(attach(self.rules, self.variables, self.make_rng(PARAMS)))
        train = self._trains(args, kwargs)
        made = effective(self.rules, self.variables, train=train)
        if train and not self.is_initializing():
            self._store({SPECTRAL_STATS: made.state})

        def add_missing(call, args, kwargs, context):
            y = call(*args, **kwargs)
            path = "/".join(context.module.path[len(self.path) :])
            if path in made.biased and context.method_name == "__call__":
                return add_bias(y, context.module.get_variable(PARAMS, BIAS))
            return y

        def call(host):
            return host(*args, **kwargs)

        computed = nn.map_variables(call, PARAMS, lambda _: {PARAMS: made.params})
        with nn.intercept_methods(add_missing):
            return computed(self.host)

    @nn.nowrap
    def _trains(self, args, kwargs) -> bool:
        given = inspect.signature(self.host.__call__).bind(*args, **kwargs)
        given.apply_defaults()
        train = {**given.arguments, **kwargs}.get("train")
        for rule in self.rules:
            if train is None and rule.reparam.held:
                name = type(rule.reparam).__name__
                message = f"{name}: call the model with train=True or train=False"
                raise UserError(message)
        return bool(train)

    @nn.nowrap
    def _store(self, variables: Variables) -> None:
        for collection in (PARAMS, SPECTRAL_STATS):
            for name, value in variables.get(collection, {}).items():
                self.put_variable(collection, name, value)
