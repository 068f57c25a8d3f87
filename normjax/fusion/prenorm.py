"""Pre-LN transformers as Pre-RMSNorm and Pre-CRMSNorm ones (Jiang et al., 2023).

LayerNorm is shift invariant, so whatever enters the residual stream may be made to
have mean 0; on such a stream LayerNorm is RMSNorm, and its last channel, minus the sum
of the others, need not be stored. All of it is linear algebra on the parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.collections import PARAMS
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.fusion.rewrite import (
    is_linear,
    mutable_tree,
    remove,
    rewritten,
    subtree,
    unrolled,
)
from normjax.norms import CRMSNorm, LayerNorm, RMSNorm

NORMS = ("rms_norm", "crms_norm")


class Change(NamedTuple):
    """What the conversion does to one norm, layer or table.

    Attributes:
      path: of its variables.  change: in words.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> lm = models.build("decoder", vocab_size=7, norm="layer_norm", dim=8, depth=1)
      >>> tokens = jax.numpy.array([[6, 3, 1, 4]])
      >>> y, variables = lm.init_with_output(jax.random.key(1), tokens)
      >>> change = fusion.convert_pre_norm(lm, variables, "rms_norm").report[0]
      >>> change.path, change.change
      ('blocks_0/norm1', 'layer_norm -> rms_norm (scale, bias into its readers)')
    """

    path: str
    change: str


class Conversion(NamedTuple):
    """A converted model.

    Attributes:
      model: gives the outputs of the model that was converted.
      variables: converted.
      transform: function from variables of the old model to variables of the new one,
        pure and differentiable: `new.apply(transform(old), x)` trains the old
        parameters exactly as the old model would.
      report: every norm, reader and writer of the residual stream.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> lm = models.build("decoder", vocab_size=7, norm="layer_norm", dim=8, depth=1)
      >>> tokens = jax.numpy.array([[6, 3, 1, 4]])
      >>> y, variables = lm.init_with_output(jax.random.key(1), tokens)
      >>> conversion = fusion.convert_pre_norm(lm, variables, "crms_norm")
      >>> conversion.model.model.dim, len(conversion.report)  # one channel less
      (7, 9)
    """

    model: nn.Module
    variables: dict[str, Any]
    transform: Callable[[Mapping[str, Any]], dict[str, Any]]
    report: list[Change]


def convert_pre_norm(
    model: nn.Module, variables: Mapping[str, Any], norm: str
) -> Conversion:
    """A Pre-LN model with RMSNorm or CRMSNorm instead, exact up to rounding.

    With the norm's scale g and bias c, a layer W, b that reads it and the mean taken
    over the channels of the stream:

        writers, tables  W - mean(W), b - mean(b)
        readers          diag(g) W, b + c W
        crms_norm        writers lose their last channel, readers become
                         W[:-1] - W[-1]: the stream has one channel less

    Args:
      model: a Flax module with `fold_sites`, `stream` and, for "crms_norm", `narrowed`.
        Scanned layers are unrolled first.
      variables: its variables.
      norm: "rms_norm" or "crms_norm".

    Raises:
      UserError: unknown `norm`; a norm on the stream that is no LayerNorm; something
        that writes into the stream or reads it is not linear, or is a layer that does
        not say so (see `core.folding`). The message names it.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> lm = models.build("decoder", vocab_size=7, norm="layer_norm", dim=8, depth=1)
      >>> tokens = jax.numpy.array([[6, 3, 1, 4]])
      >>> y, variables = lm.init_with_output(jax.random.key(1), tokens)
      >>> new = fusion.convert_pre_norm(lm, variables, "rms_norm")
      >>> bool(abs(jax.jit(new.model.apply)(new.variables, tokens) - y).max() < 1e-2)
      True
    """
    if norm not in NORMS:
        raise UserError(one_of("norm to convert to", norm, NORMS))
    plain, start = unrolled(model, variables)
    writers, sites = _stream_of(plain, start)
    compress = norm == "crms_norm"
    make = CRMSNorm if compress else lambda **kw: RMSNorm(use_scale=False, **kw)
    norms = {site.path: make(epsilon=site.norm.epsilon) for site in sites}

    def transform(variables: Mapping[str, Any]) -> dict[str, Any]:
        new = mutable_tree(unrolled(model, variables)[1])
        for site in sites:
            affine = subtree(new[PARAMS], site.path) or {}
            for path in site.readers:
                _convert_reader(
                    subtree(new[PARAMS], path), affine, site.scale, compress
                )
            remove(new[PARAMS], site.path)
        for path in writers:
            *parents, last = path.split("/")
            parent = subtree(new[PARAMS], "/".join(parents)) if parents else new[PARAMS]
            parent[last] = jax.tree.map(lambda w: _centred(w, compress), parent[last])
        return new

    report, biased = _report(sites, writers, start[PARAMS], norm)
    new_model = rewritten(_narrowed(plain) if compress else plain, norms, biased)
    return Conversion(new_model, transform(variables), transform, report)


def _report(sites, writers, params, norm: str) -> tuple[list[Change], set[str]]:
    """What happens to every part, and the readers that get a bias."""
    report, biased = [], set()
    for site in sites:
        affine = subtree(params, site.path) or {}
        absorbed = ", ".join(sorted(affine, reverse=True))
        note = f" ({absorbed} into its readers)" if affine else ""
        report.append(Change(site.path, f"layer_norm -> {norm}{note}"))
        for path in site.readers:
            if "bias" in affine and "bias" not in subtree(params, path):
                biased.add(path)
            if affine or norm == "crms_norm":
                report.append(Change(path, "reads the new stream"))
    report += [Change(path, "centred over the channels") for path in writers]
    return report, biased


def _stream_of(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[FoldSite]]:
    """Writers of the residual stream and the norms that read it, all LayerNorms."""
    if not hasattr(model, "stream"):
        raise UserError(f"{type(model).__name__} has no residual stream to convert")
    stream = model.stream()  # pyright: ignore[reportCallIssue]
    if stream.obstacle:
        raise UserError(f"cannot convert: {stream.obstacle}")
    sites = [s for s in model.fold_sites() if s.path in stream.norms]  # pyright: ignore[reportCallIssue]
    for site in sites:
        if type(site.norm) is not LayerNorm:
            name = type(site.norm).__name__
            raise UserError(f"cannot convert: {site.path} is {name}, not LayerNorm")
        if not site.readers:
            raise UserError(f"cannot convert: {site.path} is read by no linear layer")
    readers = [path for site in sites for path in site.readers]
    for path in (*stream.writers, *readers):
        found = subtree(variables[PARAMS], path)
        if not is_linear(found) and not hasattr(found, "shape"):
            raise UserError(f"cannot convert: {path} is no linear layer")
    return stream.writers, sites


def _narrowed(model: nn.Module) -> nn.Module:
    """The model with one channel less in its stream."""
    return model.narrowed()  # pyright: ignore[reportAttributeAccessIssue]


def _centred(w: jax.Array, compress: bool) -> jax.Array:
    w = w - jnp.mean(w, -1, keepdims=True)
    return w[..., :-1] if compress else w


def _convert_reader(
    layer: dict, affine: Mapping[str, Any], factor: float, compress: bool
) -> None:
    """diag(scale) W and b + factor * bias W; then W[:-1] - W[-1] if compressed."""
    kernel = layer["kernel"]
    if "bias" in affine:
        shift = factor * einsum("i,...io->o", affine["bias"], kernel)
        shift = shift.astype(kernel.dtype)
        layer["bias"] = layer["bias"] + shift if "bias" in layer else shift
    if "scale" in affine:
        scale = affine["scale"].reshape((1,) * (kernel.ndim - 2) + (-1, 1))
        kernel = kernel * scale
    if compress:
        kernel = kernel[..., :-1, :] - kernel[..., -1:, :]
    layer["kernel"] = kernel
