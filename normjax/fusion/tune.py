"""Convolutions and their frozen BatchNorms as one convolution, anew in every call."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from normjax.core.broadcast import add_bias
from normjax.core.collections import BATCH_STATS, PARAMS
from normjax.core.folding import FoldSite
from normjax.fusion.rewrite import mutable_tree, subtree
from normjax.norms import BatchNorm, reads_batch
from normjax.reparam import tuned_conv_bn


class TunedModel(nn.Module):
    """The tune mode of ConvBN blocks, for a whole model (You et al., 2024).

    Has the arguments, the result and the variables of `host`. Every BatchNorm that
    reads a Dense or Conv alone keeps its statistics, in training too, and is merged
    into that layer before it computes: y = conv(x; k W) + (c - mean) k + bias with
    k = scale / sqrt(var + epsilon). Gradients are those of the host with frozen norms,
    for the cost of the folded model. All other norms stay as they are.

    Attributes:
      host: a Flax module with `fold_sites`, trained before.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> logits, variables = model.init_with_output(jax.random.key(1), images)
      >>> tuned = fusion.TunedModel(model)
      >>> y = jax.jit(tuned.apply)(variables, images)
      >>> bool(abs(y - logits).max() < 1e-2)
      True
    """

    host: nn.Module

    def setup(self):
        nn.share_scope(self, self.host)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `host`."""
        if self.is_initializing():
            return self.host(*args, **kwargs)
        sites = {site.path: site for site in tunable_sites(self.host)}
        made, biased = tuned_params(sites.values(), self.variables)

        def exchange(call, args, kwargs, context):
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            path = "/".join(context.module.path[len(self.path) :])
            if path in sites:
                return args[0]
            y = call(*args, **kwargs)
            if path in biased:
                y = add_bias(y, context.module.get_variable(PARAMS, "bias"))
            return y

        def call(host):
            return host(*args, **kwargs)

        computed = nn.map_variables(call, PARAMS, lambda _: {PARAMS: made})
        with nn.intercept_methods(exchange):
            return computed(self.host)


def tunable_sites(model: nn.Module) -> list[FoldSite]:
    """BatchNorms of `model` that are all that reads a linear layer.

    Without those that use the statistics of the batch at evaluation.
    """
    sites = model.fold_sites()  # pyright: ignore[reportCallIssue]
    norms = [s for s in sites if s.writer and type(s.norm) is BatchNorm]
    return [s for s in norms if not reads_batch(s.norm)]


def tuned_params(
    sites: Iterable[FoldSite], variables: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str | None]]:
    """Parameters with every layer at a site merged with its norm; differentiable.

    Returns:
      (parameters, layers that have got a bias).
    """
    params, biased = mutable_tree(variables[PARAMS]), set()
    for site in sites:
        layer = subtree(params, str(site.writer))
        own = subtree(variables[BATCH_STATS], site.path)
        if "bias" not in layer:
            biased.add(site.writer)
        affine = subtree(params, site.path) or {}
        kernel, bias = tuned_conv_bn(
            layer["kernel"],
            layer.get("bias"),
            affine.get("scale", 1.0),
            affine.get("bias", 0.0),
            own["mean"],
            own["var"],
            epsilon=site.norm.epsilon,
        )
        layer.update(kernel=kernel, bias=bias)
    return params, biased
