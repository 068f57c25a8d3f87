"""Effective weights of a reparameterized model, put into the plain one."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from normjax.core.collections import PARAMS, SPECTRAL_STATS
from normjax.fusion.rewrite import rewritten
from normjax.reparam import Reparameterized, effective, sites


def merge(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The plain model, with the weights that `model` computes with at evaluation.

    Own parameters and singular vectors are gone. Layers that SSF gave a bias they have
    not got keep it, in a `RewrittenModel`. A model that is not `Reparameterized` is
    returned as it is, so merging twice changes nothing.

    Args:
      model: any Flax module, a `reparam.Reparameterized` one or not.
      variables: of `model`, in the dtype to compute and store in.

    Returns:
      (model, variables).

    Raises:
      UserError: the variables are not those of `model`.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import fusion, reparam
      >>> rule = {"pattern": "", "name": "weight_standardization"}
      >>> model = reparam.reparameterize(nn.Dense(3), rule)
      >>> x = jax.random.normal(jax.random.key(0), (2, 8))
      >>> y, variables = model.init_with_output(jax.random.key(1), x)
      >>> plain, new = fusion.merge(model, variables)
      >>> type(plain).__name__, bool(abs(plain.apply(new, x) - y).max() < 1e-2)
      ('Dense', True)
    """
    if not isinstance(model, Reparameterized):
        return model, dict(variables)
    made = effective(model.rules, variables, train=False)
    merged = {k: v for k, v in variables.items() if k != SPECTRAL_STATS}
    plain = rewritten(model.host, {}, made.biased) if made.biased else model.host
    return plain, {**merged, PARAMS: made.params}


def reparameterized(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, str]:
    """Class of the reparameterization of every layer that has one, by its path."""
    if not isinstance(model, Reparameterized):
        return {}
    found = sites(model.rules, variables[PARAMS])
    return {"/".join(site.path): type(site.reparam).__name__ for site in found}
