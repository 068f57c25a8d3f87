"""A model in fewer bits: quantized weights, and inputs of its linear layers."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from normjax.core.collections import PARAMS
from normjax.core.errors import UserError
from normjax.fusion.merge import merge
from normjax.fusion.rewrite import (
    is_linear,
    mutable_tree,
    rewritten,
    subtree,
    unrolled,
)
from normjax.norms import LayerNorm
from normjax.quantize.rescale import rescale_norm
from normjax.quantize.uniform import (
    Ranges,
    UniformQuantizer,
    calibrate_uniform,
    calibrate_within,
    quantile_ranges,
)

QUANTIZERS = "quantizers"
IMAGE_BITS = 8


class Quantized(NamedTuple):
    """A model in fewer bits.

    Attributes:
      model: simulates it.  variables: its, quantizers among them.
      rescaled: paths of the norms that have one scale for all channels now.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import quantize
      >>> model = nn.Sequential([nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(0), (4, 3))
      >>> variables = model.init(jax.random.key(1), x)
      >>> quantize.quantized(model, variables, x, bits=8).rescaled
      ()
    """

    model: nn.Module
    variables: dict[str, Any]
    rescaled: tuple[str, ...]


class QuantizedModel(nn.Module):
    """A model whose linear layers read quantized inputs.

    Attributes:
      plain: the model, with its arguments, its result and its variables; quantizers lie
        in a collection of their own, by layer: `scale`, `zero_point` and `bits`. So one
        compiled program serves all bits.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> model = quantize.QuantizedModel(nn.Dense(1))
      >>> quantizer = {"scale": jnp.array(1.0), "zero_point": jnp.array(0.0)}
      >>> quantizer["bits"] = jnp.array(2)
      >>> params = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
      >>> variables = {"params": params, "quantizers": quantizer}
      >>> print(model.apply(variables, jnp.array([[0.7], [9.0]])).ravel())
      [1. 3.]
    """

    plain: nn.Module

    def setup(self):
        nn.share_scope(self, self.plain)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `plain`."""

        def intercept(call, args, kwargs, context):
            layer = context.module
            own = layer.has_variable(QUANTIZERS, "zero_point") and layer is not self
            if context.method_name != "__call__" or not own:
                return call(*args, **kwargs)
            names = "scale", "zero_point", "bits"
            quantizer = (layer.get_variable(QUANTIZERS, name) for name in names)
            return call(UniformQuantizer(*quantizer)(args[0]), *args[1:], **kwargs)

        with nn.intercept_methods(intercept):
            return self.plain(*args, **kwargs)


def quantized(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: jax.Array,
    bits: int,
    *,
    rescale: bool = True,
    **arguments: Any,
) -> Quantized:
    """Weights and inputs of linear layers in `bits` (RepQ-ViT; Li et al., 2023).

    Of every Dense and convolution with its kernel in its parameters: the kernel gets a
    quantizer an output, the input one for all its entries, calibrated on x; what reads
    x itself has at least 8 bits. Biases, norms, activations and the products of
    attention stay in floating point. Scanned layers are unrolled and reparameterized
    weights merged first.

    Args:
      model: any Flax module.  variables: its.
      x: calibration data, [B, ...]; 32 images in the paper.
      bits: of weights and inputs.
      rescale: LayerNorms whose readers are known (`fold_sites`) are rewritten by
        `rescale_norm`, after their quantizer is calibrated channel by channel.
      **arguments: of the call, such as train=False.

    Raises:
      UserError: bits below 1, or a model without linear layers.

    Example:
      >>> import jax
      >>> from normjax import models, quantize
      >>> size = {"dim": 4, "depth": 1, "num_heads": 1, "num_classes": 3}
      >>> model = models.build("vit", norm="layer_norm", **size)
      >>> x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
      >>> variables = jax.jit(model.init)(jax.random.key(1), x)
      >>> quantize.quantized(model, variables, x, bits=8).rescaled
      ('blocks_0/norm1', 'blocks_0/norm2', 'norm')
    """
    return Calibration(model, variables, x, **arguments).at(bits, rescale=rescale)


class Calibration:
    """`quantized` with several bits of one model.

    Runs the model on x and sorts what its layers read once for all bits.

    Args:
      model, variables, x, **arguments: as of `quantized`.

    Raises:
      UserError: a model without linear layers.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import quantize
      >>> model = nn.Sequential([nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(0), (4, 3))
      >>> variables = model.init(jax.random.key(1), x)
      >>> calibration = quantize.Calibration(model, variables, x)
      >>> [calibration.at(bits).rescaled for bits in (8, 4)]
      [(), ()]
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        x: jax.Array,
        **arguments: Any,
    ):
        self._model, self._variables = unrolled(*merge(model, variables))
        self._inputs = _inputs(self._model, self._variables, x, arguments)
        if not self._inputs:
            raise UserError("the model has no linear layers to quantize")
        self._shape = x.shape
        self._ranges = functools.cache(self._sorted)

    def _sorted(self, path: str, axis: int | None = None) -> Ranges:
        return quantile_ranges(self._inputs[path], axis)

    def at(self, bits: int, *, rescale: bool = True) -> Quantized:
        """The model in `bits`; see `quantized`."""
        params, collection = mutable_tree(self._variables[PARAMS]), {}
        made: dict[str, UniformQuantizer] = {}
        sites = _sites(self._model, params, self._inputs) if rescale else []
        biased = set()
        for site in sites:
            path = site.readers[0]
            ranges = self._ranges(path, -1)
            channels = calibrate_within(self._inputs[path], ranges, bits)
            biased |= _rescale(params, site, channels, made)
        for path, read in self._inputs.items():
            wide = max(bits, IMAGE_BITS) if read.shape == self._shape else bits
            if path not in made:
                made[path] = calibrate_within(read, self._ranges(path), wide)
            layer = subtree(params, path)
            kernel = layer["kernel"]
            layer["kernel"] = calibrate_uniform(kernel, bits, -1)(kernel)
            for name in ("scale", "zero_point", "bits"):
                value = jnp.asarray(getattr(made[path], name))
                collection[f"{path}/{name}"] = value
        plain = rewritten(self._model, {}, biased) if biased else self._model
        quantizers = unflatten_dict(collection, sep="/")
        new = {**self._variables, PARAMS: params, QUANTIZERS: quantizers}
        rescaled = tuple(site.path for site in sites)
        return Quantized(QuantizedModel(plain), new, rescaled)


def _rescale(
    params: Any, site: Any, channels: UniformQuantizer, made: dict[str, Any]
) -> set[str]:
    """Rewrite a norm and all its readers in place; the readers that got a bias.

    Their quantizers are put in `made`.
    """
    norm, biased = subtree(params, site.path), set()
    old = norm["scale"], norm["bias"]
    for path in site.readers:
        layer = subtree(params, path)
        biased |= set() if "bias" in layer else {path}
        new = rescale_norm(*old, layer["kernel"], layer.get("bias"), channels)
        layer.update(kernel=new.kernel, bias=new.linear_bias)
        norm.update(scale=new.scale, bias=new.bias)
        made[path] = new.quantizer
    return biased


def _inputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: jax.Array,
    arguments: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """What every linear layer reads, by path, in the order of the calls."""

    @jax.jit
    def run(variables, x):
        found: dict[str, jax.Array] = {}

        def intercept(call, args, kwargs, context):
            path = "/".join(context.module.path)
            layer = subtree(variables[PARAMS], path) if path else None
            if context.method_name == "__call__" and is_linear(layer):
                found.setdefault(path, args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            model.apply(variables, x, **arguments)
        return found

    return run(variables, x)


def _sites(model: nn.Module, params: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """LayerNorms with scale and bias that known matrices alone read."""
    if not hasattr(model, "fold_sites"):
        return []
    found: Any = model.fold_sites()  # pyright: ignore[reportCallIssue]
    return [
        site
        for site in found
        if type(site.norm) is LayerNorm
        and set(subtree(params, site.path) or ()) == {"scale", "bias"}
        and site.readers
        and site.scale == 1
        and not site.obstacle
        and all(path in inputs for path in site.readers)
        and all(jnp.ndim(subtree(params, p)["kernel"]) == 2 for p in site.readers)
    ]
